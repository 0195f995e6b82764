"""Figures: one stretch for what compares, grey where there is no value, axes in the unit that was asked for."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from skyshift.plots import BLANK, Panel, colours, map_figure, shared_norm

MAPS = np.random.default_rng(0).lognormal(0, 2, (4, 6, 6)).astype(np.float32)


def images(figure: Figure) -> list:
    return [axis.images[0] for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"]


def test_compared_maps_share_a_stretch_and_others_do_not():
    row = [
        Panel(MAPS[0], "gas", "K", "viridis"),
        Panel(MAPS[1], "truth", "K", "magma", stretch="hi"),
        Panel(100 * MAPS[2], "estimate", "K", "magma", stretch="hi"),
    ]
    gas, truth, estimate = images(map_figure([row]))
    assert truth.norm is estimate.norm
    assert truth.norm.vmax == pytest.approx(np.quantile([MAPS[1], 100 * MAPS[2]], 0.995), rel=1e-6)
    assert gas.norm is not truth.norm


def test_a_stretch_is_of_its_row_or_of_all_rows():
    rows = [[Panel(MAPS[0], "a", "K", "viridis", stretch="s")], [Panel(9 * MAPS[1], "b", "K", "viridis", stretch="s")]]
    first, second = images(map_figure(rows))
    assert first.norm.vmax != second.norm.vmax
    first, second = images(map_figure(rows, across_rows=True))
    assert first.norm is second.norm


def test_signed_maps_are_symmetric_about_zero():
    velocity = np.linspace(-50, 120, 36).reshape(6, 6)
    norm = shared_norm([velocity], signed=True)
    assert norm.vmin == -norm.vmax
    assert norm(0.0) == pytest.approx(0.5), "zero is the middle of the colour map"
    assert shared_norm([MAPS[0]], signed=False).vmin == 0
    # half of the range in velocity is about half of the colours where the stretch is almost linear, far more by decades
    gentle, steep = (shared_norm([velocity], True, softening) for softening in (0.5, 0.01))
    assert gentle(gentle.vmax / 2) == pytest.approx(0.5 + 0.5 * np.arcsinh(1) / np.arcsinh(2))
    assert steep(steep.vmax / 2) > 0.9


def test_pixels_without_a_value_are_grey():
    """And do not count for the stretch; a map of nothing but these is drawn as well."""
    blank = MAPS[0].copy()
    blank[2, 3], blank[0, 0] = np.nan, np.inf
    (image,) = images(map_figure([[Panel(blank, "m", "K", "viridis")]]))
    drawn = image.cmap(image.norm(image.get_array()))
    assert drawn[2, 3] == pytest.approx([float(BLANK)] * 3 + [1.0])
    assert drawn[0, 0] == pytest.approx([float(BLANK)] * 3 + [1.0])
    assert image.norm.vmax == pytest.approx(np.quantile(blank[np.isfinite(blank)], 0.995), rel=1e-6)
    map_figure([[Panel(np.full((4, 4), np.nan), "none", "K", "viridis")]])
    for name in ("viridis", "magma", "inferno", "cividis", "plasma", "RdBu_r"):
        used = colours(name)(np.linspace(0, 1, 256))[:, :3]
        assert not np.isclose(used, float(BLANK), atol=0.03).all(axis=1).any(), f"{name} does not use that grey"


def test_axes_in_kpc_arcsec_or_pixels():
    row = [
        Panel(MAPS[0], "a", "K", "viridis", 60.0),
        Panel(MAPS[1][:3], "b", "K", "viridis", 600.0, extent_unit="arcsec"),
        Panel(MAPS[2], "c", "K", "viridis"),
        None,
    ]
    figure = map_figure([row], ["galaxy"])
    kpc, arcsec, pixel = (image.axes for image in images(figure))
    assert (kpc.get_xlabel(), arcsec.get_xlabel(), pixel.get_xlabel()) == ("x [kpc]", "x [arcsec]", "x [pixel]")
    assert kpc.get_ylabel() == "galaxy\ny [kpc]"
    assert kpc.get_xlim() == (-30, 30)
    assert arcsec.get_xlim() == (-300, 300)
    assert arcsec.get_ylim() == (-150, 150), "three rows of six pixels: pixels are square"


def test_each_label_stands_where_it_is_needed():
    """Titles only where they change, the x axis only below the last panel of a column in the same unit."""
    rows = [
        [Panel(MAPS[0], "same", "K", "viridis", 10.0), Panel(MAPS[0], "one", "K", "viridis", 10.0)],
        [Panel(MAPS[1], "same", "K", "viridis", 10.0), Panel(MAPS[1], "two", "K", "viridis", 9.0, extent_unit="pc")],
    ]
    first, second, third, fourth = (image.axes for image in images(map_figure(rows)))
    assert [axis.get_title() for axis in (first, second, third, fourth)] == ["same", "one", "", "two"]
    assert [axis.get_xlabel() for axis in (first, second, third, fourth)] == ["", "x [kpc]", "x [kpc]", "x [pc]"]
