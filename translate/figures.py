"""Figures of the translate stage: maps beside their truth, and what differs between them at every scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skyshift.datasets.domains import DOMAINS
from skyshift.datasets.maps import Maps
from skyshift.datasets.store import MapStore
from skyshift.plots import Panel, map_figure
from skyshift.translate.translator import store_maps


def _look(domain: str) -> tuple[str, str]:
    """Title and colour map of a domain, also of one that this package does not know."""
    known = DOMAINS.get(domain)
    return (known.title, known.colour_map) if known else (domain, "viridis")


def comparison_figure(
    store: MapStore,
    views: Sequence[int] | NDArray[np.integer],
    source: Sequence[str],
    estimate: Mapping[str, Maps],
    titles: Sequence[str] = (),
) -> Figure:
    """Source, truth, translation (truth and translation on one stretch) and difference, a row a view.

    Args:
        store: With source and target domains.
        views: Which; the maps of ``estimate`` are of these.
        source: Source domains.
        estimate: Target domain to translated maps.
        titles: Of the rows; by default the names of the maps.
    """
    rows = []
    sides = next(iter(estimate.values())).side
    for i, view in enumerate(views):
        side = None if sides is None else float(sides[i])
        row = []
        for domain in source:
            title, colours = _look(domain)
            row.append(Panel(store.maps(domain, [view])[0], title, store.units[domain], colours, side))
        for domain, maps in estimate.items():
            title, colours = _look(domain)
            truth = store_maps(store, [domain], [view])[domain].to(maps.unit).values[0]
            row += [
                Panel(truth, f"{title}, simulated", maps.unit, colours, side, stretch=domain),
                Panel(maps.values[i], f"{title}, translated", maps.unit, colours, side, stretch=domain),
                Panel(
                    maps.values[i] - truth,
                    "Translated − simulated",
                    maps.unit,
                    "RdBu_r",
                    side,
                    stretch=f"{domain} difference",
                    signed=True,
                ),
            ]
        rows.append(row)
    return map_figure(rows, titles or next(iter(estimate.values())).names)


def spectra_figure(k: NDArray[np.floating], curves: Mapping[str, Mapping[str, NDArray[Any]]], unit: str) -> Figure:
    """Power ratio, cross-correlation and radial profile: median and 16-84 % band over the maps, a line a translator.

    Args:
        k: (bins,) wave number in units of the Nyquist one.
        curves: Translator to ``power_ratio`` (n, bins), ``correlation`` (n, bins), ``radius`` (rings,) in units of
            half the side and ``profile_ratio`` (n, rings).
        unit: Of the maps, for the caption.
    """
    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    styles = ["-", "--", ":", "-."]
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # Okabe & Ito: safe for colour-blind readers
    for number, (name, values) in enumerate(curves.items()):
        colour, style = colours[number % 4], styles[number % 4]
        for axis, x, y in (
            (axes[0], k, values["power_ratio"]),
            (axes[1], k, values["correlation"]),
            (axes[2], values["radius"], values["profile_ratio"]),
        ):
            seen = np.isfinite(y).any(axis=0)
            if not seen.any():
                continue
            low, middle, high = np.nanquantile(y[:, seen], [0.16, 0.5, 0.84], axis=0)
            axis.plot(x[seen], middle, style, color=colour, label=name)
            axis.fill_between(x[seen], low, high, color=colour, alpha=0.15, linewidth=0)
    for axis, title, label in (
        (axes[0], "Power spectrum", "P(translated) / P(simulated)"),
        (axes[1], "Cross-correlation", "r(k)"),
        (axes[2], "Radial profile", "translated / simulated"),
    ):
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(label)
        axis.axhline(1.0, color="0.5", linewidth=0.8)
        axis.set_xlabel("k / Nyquist")
    axes[2].set_xlabel("radius / half of the side")
    axes[0].set_ylim(0, 2)
    axes[1].set_ylim(None, 1.02)
    axes[2].set_ylim(0, 2)
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(fontsize=8, loc="lower left")
    figure.suptitle(f"Held-out galaxies, maps in {unit}; lines: median, bands: 16 to 84 %", fontsize=9)
    return figure
