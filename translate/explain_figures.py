"""Figures of explanations: where the evidence lies on the map, and what it has in common over many maps.

SHAP values are drawn on a diverging map that is symmetric about zero and safe for colour-blind readers (matplotlib's
``PuOr_r``, after ColorBrewer): orange raises the output, purple lowers it. All SHAP panels of a row share one scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import AsinhLocator
from numpy.typing import NDArray

from skyshift.datasets.domains import DOMAINS
from skyshift.plots import shared_norm, unit_label
from skyshift.translate.explain_analysis import Mean

SIGNED = "PuOr_r"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe & Ito
CLIP = 0.998
"""Quantile of |SHAP| at which its colours end."""


@dataclass(frozen=True)
class Row:
    """One explained view.

    Attributes:
        title: Left of it.
        maps: (channels, height, width), physical.
        values: (channels, height, width), SHAP.
        side: kpc; ``None`` draws pixels.
        box: Receptive field of one patch, pixels: bottom, top, left, right; ``None`` for none.
        complete: Whether the values add up within the tolerance.
        stretch: (channels, height, width), physical, whose values fix the colours of the maps; by default the maps
            themselves. Maps that are compared are given the same.
    """

    title: str
    maps: NDArray[np.floating]
    values: NDArray[np.floating]
    side: float | None
    box: tuple[int, int, int, int] | None
    complete: bool = True
    stretch: NDArray[np.floating] | None = None


def domain_title(name: str) -> tuple[str, str]:
    """Title and colour map of a domain."""
    known = DOMAINS.get(name)
    return (known.title, known.colour_map) if known else (name, "viridis")


def symmetric(values: NDArray[np.floating]) -> Normalize:
    """Linear and symmetric about zero, to the 99.8 % quantile of the size."""
    size = np.abs(values)
    top = float(np.quantile(size, CLIP)) if size.size else 0.0
    top = top or float(size.max(initial=0.0)) or 1.0
    return Normalize(-top, top)


def _extent(shape: tuple[int, ...], side: float | None) -> tuple[float, float, float, float]:
    height, width = shape[-2:]
    pixel = 1.0 if side is None else side / width
    return (-width * pixel / 2, width * pixel / 2, -height * pixel / 2, height * pixel / 2)


def draw_box(axis: Axes, box: tuple[int, int, int, int], shape: tuple[int, ...], side: float | None) -> None:
    """Outline a patch on axes in kpc."""
    height, width = shape[-2:]
    pixel = 1.0 if side is None else side / width
    bottom, top, left, right = box
    corner = ((left - width / 2) * pixel, (bottom - height / 2) * pixel)
    size = ((right - left) * pixel, (top - bottom) * pixel)
    axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#009E73", linewidth=1.3, linestyle="--"))


def overlay(
    axis: Axes, values: NDArray[np.floating], signed: Normalize, extent: tuple[float, float, float, float]
) -> None:
    """SHAP over a map: as opaque as it is large."""
    strength = np.clip(np.abs(values) / signed.vmax, 0, 1) ** 0.5
    axis.imshow(
        values, origin="lower", cmap=SIGNED, norm=signed, extent=extent, alpha=strength, interpolation="nearest"
    )


def page(
    rows: Sequence[Row],
    domains: Sequence[str],
    map_units: Sequence[str],
    unit: str,
    title: str,
    titles: Sequence[str] = (),
) -> Figure:
    """Map, SHAP and overlay of every channel, a row a view.

    Args:
        rows: What to draw.
        domains: Of the channels.
        map_units: Of the channels' maps.
        unit: Of the SHAP values, in words.
        title: Of the page.
        titles: Of the columns, three a channel; by default the domain, its SHAP and both.
    """
    columns = 3 * len(domains)
    figure = Figure(figsize=(2.55 * columns + 1.2, 2.6 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, row in enumerate(rows):
        signed = symmetric(row.values)
        extent = _extent(row.maps.shape, row.side)
        for c, domain in enumerate(domains):
            name, colours = domain_title(domain)
            cells = axes[i, 3 * c : 3 * c + 3]
            norm = shared_norm([(row.maps if row.stretch is None else row.stretch)[c]], False)
            look = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
            image = cells[0].imshow(row.maps[c], cmap=colours, norm=norm, **look)
            bar = figure.colorbar(image, ax=cells[0], shrink=0.8, pad=0.01, aspect=22)
            bar.ax.yaxis.set_major_locator(AsinhLocator(norm.linear_width, numticks=4))
            bar.ax.tick_params(labelsize=5.5)
            bar.set_label(unit_label(map_units[c]), fontsize=6)
            shap_image = cells[1].imshow(row.values[c], cmap=SIGNED, norm=signed, **look)
            cells[2].imshow(row.maps[c], cmap="gray", norm=norm, alpha=0.75, **look)
            overlay(cells[2], row.values[c], signed, extent)
            for j, axis in enumerate(cells):
                axis.tick_params(labelsize=6)
                if row.box is not None and j:
                    draw_box(axis, row.box, row.maps.shape, row.side)
                axis.set_xlim(extent[:2])
                axis.set_ylim(extent[2:])
                if i == 0:
                    usual = (name, f"SHAP of {name}", "both")
                    axis.set_title(titles[3 * c + j] if titles else usual[j], fontsize=8)
                if i == len(rows) - 1:
                    axis.set_xlabel("x [kpc]" if row.side else "x [pixel]", fontsize=7)
        bar = figure.colorbar(shap_image, ax=axes[i, -1], shrink=0.85, pad=0.01, aspect=22)
        bar.ax.tick_params(labelsize=6)
        bar.set_label(f"SHAP [{unit} / pixel]", fontsize=7)
        label = f"{row.title}\ny [{'kpc' if row.side else 'pixel'}]"
        axes[i, 0].set_ylabel(label, fontsize=6.5, color="black" if row.complete else "#CC0000")
    figure.suptitle(title, fontsize=9)
    return figure


def curves_figure(
    panels: Sequence[tuple[str, Sequence[str], Mapping[str, Mean], str]], title: str, columns: int = 3
) -> Figure:
    """Means with 95 % intervals against bins, a line a name.

    Args:
        panels: Of title, labels of the bins, name to (bins,) means, label of the vertical axis.
        title: Of the figure.
        columns: Panels beside each other.
    """
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.ravel()[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, labels, means, label) in zip(axes.ravel(), panels, strict=False):
        x = np.arange(len(labels))
        for number, (line, mean) in enumerate(means.items()):
            shift = 0.12 * (number - (len(means) - 1) / 2)
            error = np.abs(np.stack([mean.value - mean.low, mean.high - mean.value]))
            axis.errorbar(
                x + shift,
                mean.value,
                error,
                fmt="osD^vP"[number % 6],
                color=COLOURS[number % 6],
                markersize=3.5,
                linewidth=1.1,
                capsize=2,
                label=line.replace("_", " "),
            )
        axis.axhline(0.0, color="0.5", linewidth=0.8)
        axis.set_xticks(x, labels, rotation=55, ha="right", fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_xlabel(name, fontsize=8)
        axis.set_ylabel(label, fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def removal_figure(
    shares: NDArray[np.floating], curves: Mapping[str, Mapping[str, Mean]], unit: str, title: str
) -> Figure:
    """Deletion and insertion curves, a line an order.

    Args:
        shares: (steps,) of the pixels.
        curves: Order to ``deletion`` and ``insertion``.
        unit: Of the output.
        title: Of the figure.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, mode in zip(axes, ("deletion", "insertion"), strict=True):
        for number, (name, modes) in enumerate(curves.items()):
            mean = modes[mode]
            axis.plot(shares, mean.value, ("-", "--", ":", "-.")[number % 4], color=COLOURS[number], label=name)
            axis.fill_between(shares, mean.low, mean.high, color=COLOURS[number], alpha=0.15, linewidth=0)
        axis.set_xlabel(f"share of the pixels {'deleted' if mode == 'deletion' else 'inserted'}, best first")
        axis.set_title(mode, fontsize=10)
    axes[0].set_ylabel(f"output [{unit}]")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def grid_figure(
    rows: Sequence[tuple[str, NDArray[np.floating], NDArray[np.floating], float | None]],
    boxes: Sequence[tuple[int, int, int, int]],
    unit: str,
) -> Figure:
    """A map and the logits of all patches on the sky, a column a view.

    Args:
        rows: Of title, map (height, width), logits (rows, columns) and side in kpc.
        boxes: Receptive fields of the first and the last patch.
        unit: Of the logits.
    """
    figure = Figure(figsize=(3.2 * len(rows) + 0.6, 6.0), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    low = min(float(logits.min()) for _, _, logits, _ in rows)
    high = max(float(logits.max()) for _, _, logits, _ in rows)
    for j, (title, values, logits, side) in enumerate(rows):
        extent = _extent(values.shape, side)
        axes[0, j].imshow(
            values, origin="lower", extent=extent, cmap="gray", norm=shared_norm([values], False), aspect="equal"
        )
        for box in boxes:
            draw_box(axes[0, j], box, values.shape, side)
        axes[0, j].set_xlim(extent[:2])
        axes[0, j].set_ylim(extent[2:])
        axes[0, j].set_title(title, fontsize=8)
        pixel = 1.0 if side is None else side / values.shape[-1]
        # Logits stand at the centres of their patches.
        ends = []
        for axis_number, count in ((1, logits.shape[1]), (0, logits.shape[0])):
            first, last = (
                np.mean(box[2:] if axis_number else box[:2]) - values.shape[axis_number] / 2 for box in boxes
            )
            half = (last - first) / max(1, count - 1) / 2
            ends += [(first - half) * pixel, (last + half) * pixel]
        image = axes[1, j].imshow(logits, origin="lower", extent=tuple(ends), cmap="viridis", vmin=low, vmax=high)
        axes[1, j].set_xlim(extent[:2])
        axes[1, j].set_ylim(extent[2:])
        axes[1, j].set_xlabel("x [kpc]" if side else "x [pixel]", fontsize=7)
    figure.colorbar(image, ax=axes[1, :].tolist(), shrink=0.8, label=unit)
    return figure
