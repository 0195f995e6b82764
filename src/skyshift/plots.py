"""Figures that every stage draws: maps side by side with axes in kpc, units, and one stretch for maps that compare.

Colour maps are perceptually uniform and safe for colour-blind readers; differences are drawn on a diverging map that is
symmetric about zero. Maps that are compared share one colour bar.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy import units
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.ticker import AsinhLocator
from numpy.typing import NDArray


@dataclass(frozen=True)
class Panel:
    """One map of a figure.

    Attributes:
        values: (height, width).
        title: Above it.
        unit: As astropy writes it.
        colour_map: Of matplotlib.
        side: kpc; ``None`` draws pixels.
        stretch: Panels of a row with the same stretch share one norm and one colour bar.
        signed: Symmetric about zero.
    """

    values: NDArray[np.floating]
    title: str
    unit: str
    colour_map: str
    side: float | None = None
    stretch: str = ""
    signed: bool = False


def unit_label(unit: str) -> str:
    """A unit for an axis, typeset."""
    parsed = units.Unit(unit)
    return "" if parsed == units.dimensionless_unscaled else f"[{parsed.to_string('latex_inline')}]"


def shared_norm(maps: Sequence[NDArray[np.floating]], signed: bool) -> AsinhNorm:
    """An asinh stretch for maps that are compared: linear below a hundredth of the 99.5 % quantile."""
    values = np.concatenate([np.abs(m[np.isfinite(m)]).ravel() for m in maps])
    positive = values[values > 0]
    top = float(np.quantile(positive, 0.995)) if positive.size else 1.0
    return AsinhNorm(linear_width=top / 100, vmin=-top if signed else 0.0, vmax=top)


def map_figure(rows: Sequence[Sequence[Panel]], row_titles: Sequence[str] = ()) -> Figure:
    """Maps in rows; within a row, panels of one stretch share a colour bar.

    Args:
        rows: Of equal length.
        row_titles: Left of each row.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(3.0 * columns + 0.6, 2.75 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, row in enumerate(rows):
        groups: dict[str, list[int]] = {}
        for j, panel in enumerate(row):
            groups.setdefault(panel.stretch or panel.title, []).append(j)
        for members in groups.values():
            norm = shared_norm([row[j].values for j in members], row[members[0]].signed)
            for j in members:
                panel, axis = row[j], axes[i, j]
                half = panel.side / 2 if panel.side else None
                extent = (-half, half, -half, half) if half else None
                image = axis.imshow(
                    panel.values,
                    origin="lower",
                    cmap=panel.colour_map,
                    norm=norm,
                    extent=extent,
                    interpolation="nearest",
                )
                if i == 0:
                    axis.set_title(panel.title, fontsize=10)
                axis.tick_params(labelsize=7)
                if i == len(rows) - 1:
                    axis.set_xlabel("x [kpc]" if half else "x [pixel]", fontsize=8)
            bar = figure.colorbar(image, ax=[axes[i, j] for j in members], shrink=0.9, aspect=18, pad=0.01)
            bar.ax.yaxis.set_major_locator(AsinhLocator(norm.linear_width, numticks=5))
            bar.ax.tick_params(labelsize=7)
            bar.set_label(unit_label(row[members[0]].unit), fontsize=8)
        label = "y [kpc]" if row[0].side else "y [pixel]"
        axes[i, 0].set_ylabel(f"{row_titles[i]}\n{label}" if row_titles else label, fontsize=8)
    return figure
