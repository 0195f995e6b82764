"""Figures that every stage draws: maps side by side with axes in kpc or arcsec and units.

Colour maps are perceptually uniform and safe for colour-blind readers; differences and signed quantities (velocities)
are drawn on a diverging map that is symmetric about zero. Maps that are compared share one colour bar. Pixels without a
value (NaN) are grey, so that they are not taken for empty ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from astropy import units
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import AsinhLocator
from numpy.typing import NDArray

BLANK = "0.6"
"""Colour of pixels without a value."""

DIVERGING = "RdBu_r"
"""Of signed values: blue below zero, red above; a velocity away from us is red."""


@dataclass(frozen=True)
class Panel:
    """One map of a figure.

    Attributes:
        values: (height, width).
        title: Above it.
        unit: As astropy writes it.
        colour_map: Of matplotlib.
        side: Length of a row in ``extent_unit``; ``None`` draws pixels.
        stretch: Panels of a row with the same stretch share one norm and one colour bar.
        signed: Symmetric about zero.
        extent_unit: Of ``side``: kpc, arcsec, …
        softening: The stretch is linear below this share of its top: 0.01 shows decades (columns, differences), 0.5 is
            almost linear (velocities).
    """

    values: NDArray[np.floating]
    title: str
    unit: str
    colour_map: str
    side: float | None = None
    stretch: str = ""
    signed: bool = False
    extent_unit: str = "kpc"
    softening: float = 0.01

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """Left, right, bottom, top about the centre; pixels are square."""
        if not self.side:
            return None
        half, ratio = self.side / 2, self.values.shape[0] / self.values.shape[1]
        return -half, half, -half * ratio, half * ratio

    def axis_label(self, name: str) -> str:
        """Of the x or y axis."""
        return f"{name} [{self.extent_unit if self.side else 'pixel'}]"


def unit_label(unit: str) -> str:
    """A unit for an axis, typeset."""
    parsed = units.Unit(unit)
    return "" if parsed == units.dimensionless_unscaled else f"[{parsed.to_string('latex_inline')}]"


def shared_norm(maps: Sequence[NDArray[np.floating]], signed: bool, softening: float = 0.01) -> AsinhNorm:
    """An asinh stretch for maps that are compared, up to the 99.5 % quantile of their sizes.

    Args:
        maps: Of any shapes; what is not finite does not count.
        signed: Symmetric about zero; else from zero upwards.
        softening: Linear below this share of the top.
    """
    values = np.concatenate([np.abs(m[np.isfinite(m)]).ravel() for m in maps])
    positive = values[values > 0]
    top = float(np.quantile(positive, 0.995)) if positive.size else 1.0
    return AsinhNorm(linear_width=top * softening, vmin=-top if signed else 0.0, vmax=top)


def colours(name: str) -> Colormap:
    """The colour map called ``name``, with :data:`BLANK` where there is no value."""
    return matplotlib.colormaps[name].with_extremes(bad=BLANK)


def _draw(axis: Axes, panel: Panel, norm: AsinhNorm) -> AxesImage:
    values = np.ma.masked_invalid(panel.values)
    image = axis.imshow(
        values, origin="lower", cmap=colours(panel.colour_map), norm=norm, extent=panel.extent, interpolation="nearest"
    )
    axis.tick_params(labelsize=7)
    return image


def _groups(row: Sequence[Panel | None]) -> dict[str, dict[int, Panel]]:
    """Stretch to its panels by column; a panel without one stands alone, under its title."""
    groups: dict[str, dict[int, Panel]] = {}
    for j, panel in enumerate(row):
        if panel is not None:
            groups.setdefault(panel.stretch or panel.title, {})[j] = panel
    return groups


def _norms(rows: Sequence[Sequence[Panel | None]]) -> dict[str, AsinhNorm]:
    """One norm a stretch, over all rows given."""
    members: dict[str, list[Panel]] = {}
    for row in rows:
        for name, panels in _groups(row).items():
            members.setdefault(name, []).extend(panels.values())
    return {name: shared_norm([p.values for p in ps], ps[0].signed, ps[0].softening) for name, ps in members.items()}


def map_figure(
    rows: Sequence[Sequence[Panel | None]], row_titles: Sequence[str] = (), *, across_rows: bool = False
) -> Figure:
    """Maps in rows; within a row, panels of one stretch share a colour bar.

    Args:
        rows: Of equal length; ``None`` leaves a place empty.
        row_titles: Left of each row.
        across_rows: Panels of one stretch share their norm in all rows, not in each row alone.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(3.0 * columns + 0.6, 2.75 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    everywhere = _norms(rows) if across_rows else {}
    for i, row in enumerate(rows):
        norms: Mapping[str, AsinhNorm] = everywhere or _norms([row])
        for name, members in _groups(row).items():
            for j, panel in members.items():
                image = _draw(axes[i, j], panel, norms[name])
                above = rows[i - 1][j] if i else None
                if above is None or above.title != panel.title:
                    axes[i, j].set_title(panel.title, fontsize=10)
                if i == len(rows) - 1 or rows[i + 1][j] is None or panel.axis_label("x") != _label(rows[i + 1][j]):
                    axes[i, j].set_xlabel(panel.axis_label("x"), fontsize=8)
            bar = figure.colorbar(image, ax=[axes[i, j] for j in members], shrink=0.9, aspect=18, pad=0.01)
            bar.ax.yaxis.set_major_locator(AsinhLocator(norms[name].linear_width, numticks=5))
            bar.ax.tick_params(labelsize=7)
            bar.set_label(unit_label(next(iter(members.values())).unit), fontsize=8)
        for j, entry in enumerate(row):
            if entry is None:
                axes[i, j].set_axis_off()
        label = row[0].axis_label("y") if row[0] is not None else ""
        axes[i, 0].set_ylabel(f"{row_titles[i]}\n{label}" if row_titles else label, fontsize=8)
    return figure


def _label(panel: Panel | None) -> str:
    return panel.axis_label("x") if panel else ""
