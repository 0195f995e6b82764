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

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe & Ito: safe for colour-blind readers."""
STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
STRUCTURE = {
    "half_mass_radius": "half-mass radius\n[relative]",
    "concentration": "concentration\nC",
    "asymmetry": "asymmetry\nA",
    "clumpiness": "clumpiness\nS",
    "gini": "Gini",
    "m20": "M20",
}


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


def unpaired_figure(
    store: MapStore,
    views: Sequence[int] | NDArray[np.integer],
    source: Sequence[str],
    estimate: Mapping[str, Maps],
    others: MapStore,
    other_views: Sequence[int] | NDArray[np.integer],
) -> Figure:
    """Source, its translation, and a map of another galaxy as the target store has them, a row a view.

    Args:
        store: With the source domains.
        views: Which; the maps of ``estimate`` are of these.
        source: Source domains.
        estimate: Target domain to translated maps.
        others: With the target domains.
        other_views: One a row.
    """
    rows = []
    for i, (view, other) in enumerate(zip(views, other_views, strict=True)):
        row = []
        for domain, maps in store_maps(store, source, [view]).items():
            title, colours = _look(domain)
            row.append(Panel(maps.values[0], title, maps.unit, colours, _side(maps, 0)))
        for domain, maps in estimate.items():
            title, colours = _look(domain)
            true = store_maps(others, [domain], [other])[domain].to(maps.unit)
            row += [
                Panel(maps.values[i], f"{title}, translated", maps.unit, colours, _side(maps, i), stretch=domain),
                Panel(true.values[0], f"{title}, another", maps.unit, colours, _side(true, 0), stretch=domain),
            ]
        rows.append(row)
    return map_figure(rows, next(iter(estimate.values())).names)


def _side(maps: Maps, row: int) -> float | None:
    return None if maps.side is None else float(maps.side[row])


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
    for number, (name, values) in enumerate(curves.items()):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        for axis, x, y in (
            (axes[0], k, values["power_ratio"]),
            (axes[1], k, values["correlation"]),
            (axes[2], values["radius"], values["profile_ratio"]),
        ):
            seen = np.isfinite(y).any(axis=0)
            if not seen.any():
                continue
            low, middle, high = np.nanquantile(y[:, seen], [0.16, 0.5, 0.84], axis=0)
            axis.plot(x[seen], middle, linestyle=style, color=colour, label=name)
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


def structure_figure(
    curves: Mapping[str, Mapping[str, NDArray[Any]]], scores: Mapping[str, Mapping[str, NDArray[Any]]], unit: str
) -> Figure:
    """One-point distributions, and differences in structure: median and 16-84 % of the maps, a mark a translator.

    Args:
        curves: Translator to ``edges`` (bins + 1,) of pixel values, and ``true_pixels`` and ``pixels`` (n, bins).
        scores: Translator to differences (n,) of structure, estimate less truth.
        unit: Of the maps.
    """
    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    left, *axes = figure.subplots(1, 1 + len(STRUCTURE), width_ratios=[4.5] + [1] * len(STRUCTURE))
    first = next(iter(curves.values()))
    centres = np.sqrt(first["edges"][1:] * first["edges"][:-1])
    decades = np.diff(np.log10(first["edges"]))

    def draw(counts: NDArray[Any], **look: Any) -> None:
        density = counts.sum(axis=0) / decades
        left.plot(centres, np.where(density > 0, density, np.nan), **look)

    draw(first["true_pixels"], color="0.0", linewidth=3, alpha=0.35, label="simulated")
    for number, (name, values) in enumerate(curves.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
        draw(values["pixels"], label=name, **look)
        for axis, key in zip(axes, STRUCTURE, strict=True):
            found = scores[name][key][np.isfinite(scores[name][key])]
            if found.size:
                low, middle, high = np.quantile(found, [0.16, 0.5, 0.84])
                axis.plot([number, number], [low, high], color=look["color"], linewidth=1.5)
                axis.plot(number, middle, "o", color=look["color"], markersize=5)
    left.set(xscale="log", xlabel=f"pixel value [{unit}]", ylabel="pixels per dex", title="One-point distribution")
    if first["true_pixels"].sum():
        left.set_yscale("log")
    left.title.set_fontsize(10)
    left.legend(fontsize=7)
    for axis, title in zip(axes, STRUCTURE.values(), strict=True):
        axis.axhline(0.0, color="0.5", linewidth=0.8)
        axis.set_title(title, fontsize=8)
        axis.set_xticks([])
        axis.set_xlim(-0.7, len(curves) - 0.3)
        axis.tick_params(labelsize=7)
        reach = max(abs(edge) for edge in axis.get_ylim())
        axis.set_ylim(-reach, reach)
    axes[0].set_ylabel("translated − simulated")
    figure.suptitle("Held-out galaxies; dots: median, lines: 16 to 84 % of the maps", fontsize=9)
    return figure


def calibration_figure(curves: Mapping[str, Mapping[str, NDArray[Any]]]) -> Figure:
    """Coverage, rank histogram, and spread against error: whether draws spread as the truth does.

    Args:
        curves: Translator to ``central`` (n, bins), ``ranks`` (n, draws + 1), ``spread`` and ``error`` (n,), as
            :func:`skyshift.translate.metrics.calibration.calibrate` gives them.
    """
    figure = Figure(figsize=(11.5, 3.8), layout="constrained")
    coverage, ranks, spread = figure.subplots(1, 3)
    coverage.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    ranks.axhline(1.0, color="0.5", linewidth=0.8)
    for number, (name, values) in enumerate(curves.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "label": name}
        inside = np.concatenate([[0.0], np.cumsum(values["central"].sum(axis=0))])
        if inside[-1]:
            coverage.plot(np.linspace(0, 1, len(inside)), inside / inside[-1], **look)
            share = values["ranks"].sum(axis=0)
            ranks.stairs(share / share.mean(), np.linspace(0, 1, len(share) + 1), linewidth=1.5, **look)
        spread.plot(values["spread"], values["error"], "o", markersize=3, alpha=0.7, **look)
    ends = [end for axis in (spread.get_xlim(), spread.get_ylim()) for end in axis]
    positive = [v for c in curves.values() for n in ("spread", "error") for v in c[n][np.isfinite(c[n])] if v > 0]
    if positive:
        spread.set(xscale="log", yscale="log")
        ends = [min(positive), max(positive)]
    spread.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.5", linewidth=0.8)
    coverage.set(xlabel="central interval of the draws", ylabel="share of pixels inside", title="Coverage")
    ranks.set(xlabel="rank of the truth / draws", ylabel="pixels / expected", title="Rank histogram", ylim=(0, None))
    spread.set(
        xlabel="spread of the draws / L", ylabel="error of their mean / L", title="Spread and error, a dot a map"
    )
    spread.tick_params(axis="both", which="both", labelsize=7)
    spread.tick_params(axis="x", which="both", labelrotation=60)
    for axis in (coverage, ranks, spread):
        axis.title.set_fontsize(10)
    coverage.legend(fontsize=8)
    return figure
