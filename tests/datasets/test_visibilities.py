"""Coverage of the uv plane: limits, symmetry, what short spacings lose, noise, and the tracks of known baselines."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from astropy import constants

from skyshift.datasets.observation import ObservationError
from skyshift.datasets.radio import HI_FREQUENCY, observe_radio
from skyshift.datasets.sky import Placement
from skyshift.datasets.surveys import LAYOUTS, radio_survey
from skyshift.datasets.visibilities import (
    Coverage,
    antenna_layout,
    observe_dirty,
    uv_coverage,
    uv_tracks,
)

WAVELENGTH = constants.c.value / HI_FREQUENCY


def vla(hours: float = 6.0) -> np.ndarray:
    return uv_tracks(antenna_layout("vla_d"), 34.08, 50.0, HI_FREQUENCY, hours)


def sky(pixels: int = 64) -> np.ndarray:
    return np.random.default_rng(2).exponential(1.0, (pixels, pixels)) ** 4


# The dirty beam and the dirty map.


def test_full_coverage_returns_the_sky():
    """All cells with one weight, the origin as well: the beam is one pixel. FFT rounding."""
    full = Coverage(np.ones((64, 64)), np.ones((64, 64)))
    np.testing.assert_allclose(full.image(sky()), sky(), atol=1e-11)
    beam = full.beam()
    assert beam[32, 32] == pytest.approx(1.0, rel=1e-12)
    assert np.abs(np.delete(beam.ravel(), 32 * 64 + 32)).max() < 1e-12


@pytest.mark.parametrize("weighting", ["natural", "uniform"])
def test_the_beam_peaks_at_one_and_the_map_sums_to_zero(weighting):
    coverage = uv_coverage(vla(), (128, 128), 12.0, weighting)
    beam = coverage.beam()
    assert beam[64, 64] == beam.max() == pytest.approx(1.0, rel=1e-12)
    # No baseline is zero long: the total flux is not measured
    assert coverage.weights[0, 0] == 0
    assert abs(beam.sum()) < 1e-9
    image = coverage.image(sky(128))
    assert abs(image.sum()) < 1e-9 * np.abs(image).sum()
    assert (image < 0).any()
    np.testing.assert_allclose(coverage.image(sky(128) + 100.0), image, atol=1e-9 * np.abs(image).max())


def test_a_point_source_shows_the_beam():
    coverage = uv_coverage(vla(), (128, 128), 12.0)
    point = np.zeros((128, 128))
    point[70, 50] = 3.0
    image = coverage.image(point)
    assert np.unravel_index(image.argmax(), image.shape) == (70, 50)
    np.testing.assert_allclose(image, 3.0 * np.roll(coverage.beam(), (6, -14), (0, 1)), atol=1e-12)


def test_the_map_is_the_sum_over_visibilities():
    """Written out: each gridded visibility of the sky, by the definition, with east to the left."""
    pixel, size = 30.0, 16
    uv = vla(0.0)[::7]
    coverage = uv_coverage(uv, (size, size), pixel)
    bright = sky(size)
    radians = np.deg2rad(pixel / 3600)
    l = -(np.arange(size)) * radians  # noqa: E741  east
    m = np.arange(size) * radians
    expected, weights = np.zeros((size, size)), 0.0
    for u, v in np.round(uv * radians * size) / (radians * size):
        if max(abs(u), abs(v)) * radians * size > (size - 1) // 2 + 0.5 or u == v == 0:
            continue
        visibility = (bright * np.exp(-2j * np.pi * (u * l[None, :] + v * m[:, None]))).sum()
        expected += 2 * (visibility * np.exp(2j * np.pi * (u * l[None, :] + v * m[:, None]))).real
        weights += 2
    np.testing.assert_allclose(coverage.image(bright), expected / weights, atol=1e-10 * bright.sum())


def test_longer_baselines_and_uniform_weights_see_finer():
    def width(coverage: Coverage) -> float:
        return float(np.sqrt((coverage.beam() > 0.5).sum()))

    natural, uniform = (uv_coverage(vla(), (256, 256), 8.0, w) for w in ("natural", "uniform"))
    tapered = uv_coverage(vla(), (256, 256), 8.0, "natural", taper_arcsec=60.0)
    assert width(uniform) < width(natural) < width(tapered)
    # VLA D at 1.4 GHz: 46 arcsec (NRAO), with weights between the two
    smallest, largest = (2 * np.sqrt((c.beam() > 0.5).sum() / np.pi) * 8.0 for c in (uniform, natural))
    assert 28.0 < smallest < 46.0 < largest < 65.0


def test_a_dirty_observation():
    """A source at the edge keeps its flux and does not come back at the other edge; a sheet loses its flux."""
    survey = dataclasses.replace(radio_survey("nvss"), pixel_arcsec=12.0)
    side = Placement(0.05).kpc(64 * 12.0)
    point = np.zeros((64, 64))
    point[3, 60] = 1.0
    make = functools.partial(
        observe_dirty,
        side_kpc=side,
        survey=survey,
        redshift=0.05,
        seed=1,
        hours=6.0,
        direction=(0.0, 50.0),
        shape=(64, 64),
    )
    seen = make(point, "Jy")
    assert np.unravel_index(seen.clean.argmax(), seen.clean.shape) == (3, 60)
    assert seen.clean.max() == pytest.approx(1.0, rel=1e-5)
    assert np.abs(seen.clean[:, :8]).max() < 0.3
    assert seen.header["BTYPE"] == "dirty"
    assert 40.0 < seen.beam_arcsec[0] < 65.0
    np.testing.assert_array_equal(seen.noisy, make(point, "Jy").noisy)
    # All baselines of D fall on this grid: the noise is that of the array in 6 h, uniform weights make it worse
    thermal = dataclasses.replace(survey, rms_jy=None).noise(None, 6 * 3600.0)
    assert seen.sigma.min() == seen.sigma.max() == pytest.approx(thermal, rel=1e-3)
    assert make(point, "Jy", weighting="uniform").sigma.min() > 1.1 * thermal
    with pytest.raises(ObservationError, match="stays below 15 degrees"):
        make(point, "Jy", direction=(0.0, -80.0))
    flat = make(np.full((64, 64), 1.0), "Jy").clean
    # A sheet of 13 arcmin, nearly all that the shortest baseline of 45 m sees (16): most of its 19 Jy a beam is lost
    assert abs(flat[24:40, 24:40].mean()) < 0.5 * np.pi / (4 * np.log(2)) * (seen.beam_arcsec[0] / 12.0) ** 2


def test_noise_falls_with_the_time_for_which_the_source_is_up():
    """σ ∝ t^(-1/2) with natural weights, t without the hours below 15 degrees; a snapshot takes the survey's time.

    At declination 20 MeerKAT sees a source above 15 degrees while cos H > (sin 15° - sin φ sin δ) / (cos φ cos δ),
    φ = -30.711°: for 7.82 h, to one of 240 steps (1 %).
    """
    survey = dataclasses.replace(radio_survey("meerkat"), pixel_arcsec=5.0)

    def make(hours: float, declination: float):
        sky = np.ones((32, 32))
        seen = observe_dirty(sky, "Jy", 60.0, survey, 0.02, seed=0, hours=hours, direction=(0.0, declination))
        uv = uv_tracks(antenna_layout("meerkat"), survey.latitude_deg, declination, survey.frequency_hz, hours)
        used = uv_coverage(uv, (2 * seen.clean.shape[0],) * 2, 5.0).counts.sum() / (2 * len(uv))
        return seen.header["EXPTIME"], float(seen.sigma[0, 0]) * np.sqrt(used)

    phi, delta = np.deg2rad([survey.latitude_deg, 20.0])
    cosine = (np.sin(np.deg2rad(15.0)) - np.sin(phi) * np.sin(delta)) / (np.cos(phi) * np.cos(delta))
    up = 2.0 * np.rad2deg(np.arccos(cosine)) / 15.0 * 3600.0
    for hours, declination, expected in ((2.0, -30.0, 7200.0), (8.0, -30.0, 28800.0), (12.0, 20.0, up)):
        time, sigma = make(hours, declination)
        assert time == pytest.approx(expected, rel=0.011)
        assert sigma == pytest.approx(survey.noise(None, time), rel=1e-5)
    assert make(0.0, -30.0)[0] == survey.time_s


def test_a_dirty_map_needs_a_layout_and_a_seed():
    make = functools.partial(observe_dirty, np.ones((32, 32)), "Jy", 60.0, redshift=0.02)
    with pytest.raises(ObservationError, match="'meerkat' names no antenna layout"):
        make(dataclasses.replace(radio_survey("meerkat"), layout=""), seed=0)
    with pytest.raises(ObservationError, match="the seed -1; give a whole number, 0 or more"):
        make("meerkat", seed=-1)


def test_baselines_that_the_pixels_leave_out_cost_sensitivity():
    """MeerKAT at 15 arcsec keeps those below 1 / (2 × 3 arcsec): its noise is above that of the whole array."""
    seen = observe_dirty(np.ones((32, 32)), "Msun / kpc2", 60.0, "meerkat", 0.02, seed=0)
    whole = observe_radio(np.ones((32, 32)), "Msun / kpc2", 60.0, "meerkat", 0.02, seed=0, primary="none")
    assert 1.0 <= seen.sigma.min() / whole.sigma.min() < 1.5
    assert seen.unit == whole.unit


# Noise.


def test_natural_noise_is_correlated_as_the_dirty_beam():
    """By Wiener and Khinchin, exactly in the mean; 60 maps of 128² leave 2 %."""
    coverage = uv_coverage(vla(), (128, 128), 12.0)
    power = np.mean([np.abs(np.fft.fft2(coverage.noise(seed))) ** 2 for seed in range(60)], axis=0)
    correlation = np.fft.fftshift(np.fft.ifft2(power).real) / 128**2
    assert correlation[64, 64] == pytest.approx(1.0, rel=0.02)
    core = (slice(56, 73), slice(56, 73))
    np.testing.assert_allclose(correlation[core], coverage.beam()[core], atol=0.03)


def test_other_weights_cost_sensitivity():
    assert uv_coverage(vla(), (128, 128), 12.0).noise_factor() == pytest.approx(1.0, rel=1e-12)
    assert uv_coverage(vla(), (128, 128), 12.0, "uniform").noise_factor() > 1.1
    assert uv_coverage(vla(), (128, 128), 12.0, "natural", 90.0).noise_factor() > 1.05


# Tracks.


def test_an_east_west_baseline_draws_an_ellipse():
    """u = (E/λ) cos H, v = (E/λ) sin H sin δ: at the pole a circle, at the equator a line."""
    layout = np.array([[0.0, 0, 0], [100.0, 0, 0]])
    for declination in (90.0, 40.0):
        uv = uv_tracks(layout, 60.0, declination, HI_FREQUENCY, 12.0, steps=25, lowest_deg=0.0)
        sin = np.sin(np.deg2rad(declination))
        np.testing.assert_allclose(uv[:, 0] ** 2 + (uv[:, 1] / sin) ** 2, (100 / WAVELENGTH) ** 2, rtol=1e-10)
    flat = uv_tracks(layout, 0.0, 0.0, HI_FREQUENCY, 6.0, lowest_deg=5.0)
    assert np.abs(flat[:, 1]).max() < 1e-9


def test_a_source_overhead_sees_the_layout():
    """At transit through the zenith u and v are east and north in wavelengths."""
    layout = antenna_layout("vla_d")
    uv = uv_tracks(layout, 34.0, 34.0, HI_FREQUENCY, 0.0, steps=1)
    first, second = np.triu_indices(len(layout), 1)
    np.testing.assert_allclose(uv, (layout[first] - layout[second])[:, :2] / WAVELENGTH, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "antennas", "longest_km"),
    [("vla_b", 27, 11.1), ("vla_d", 24, 1.03), ("wsrt", 14, 2.7), ("meerkat", 64, 7.7), ("ska_mid_aa4", 197, 150)],
)
def test_layouts_have_the_published_extent(name, antennas, longest_km):
    """NRAO: 11.1 km (B) and 1.03 km (D); ASTRON: 2.7 km; SARAO: 7.7 km, shortest 29 m; SKA-Mid: 150 km. Within 20 %."""
    layout = antenna_layout(name)
    first, second = np.triu_indices(len(layout), 1)
    baselines = np.linalg.norm(layout[first] - layout[second], axis=1)
    assert len(layout) == antennas
    assert baselines.max() / 1e3 == pytest.approx(longest_km, rel=0.2)
    assert baselines.min() > 25.0
    np.testing.assert_array_equal(layout, antenna_layout(name))


def test_presets_name_their_layouts():
    for name in ("meerkat", "ska_mid_aa_star", "ska_mid_aa4", "wsrt", "nvss", "first"):
        survey = radio_survey(name)
        assert survey.layout in LAYOUTS
        if not survey.layout.startswith("vla"):
            assert len(antenna_layout(survey.layout)) == sum(kind.count for kind in survey.dishes)


def test_a_table_of_ones_own(tmp_path: Path):
    np.savetxt(tmp_path / "array.txt", antenna_layout("wsrt")[:, :2])
    np.testing.assert_allclose(antenna_layout(str(tmp_path / "array.txt")), antenna_layout("wsrt"))


# What cannot be.


def test_bad_arrays_and_tracks(tmp_path: Path):
    with pytest.raises(ObservationError, match=r"unknown antenna layout 'vla_e'\. Did you mean 'vla_[bd]'"):
        antenna_layout("vla_e")
    (tmp_path / "one.txt").write_text("1 2\n")
    with pytest.raises(ObservationError, match="two or more rows 'east north"):
        antenna_layout(str(tmp_path / "one.txt"))
    (tmp_path / "words.txt").write_text("east north\n")
    with pytest.raises(ObservationError, match="is no table of antenna positions"):
        antenna_layout(str(tmp_path / "words.txt"))
    with pytest.raises(ObservationError, match=r"declination -80 stays below 15 degrees .* at best it reaches -24"):
        uv_tracks(antenna_layout("vla_d"), 34.0, -80.0, HI_FREQUENCY, 4.0)
    with pytest.raises(ObservationError, match=r"a track of 30\.0 h"):
        uv_tracks(antenna_layout("vla_d"), 34.0, 30.0, HI_FREQUENCY, 30.0)


def test_bad_coverage():
    with pytest.raises(ObservationError, match=r"no baseline falls on the uv grid .* take smaller pixels"):
        uv_coverage(vla(), (8, 8), 3600.0)
    with pytest.raises(ObservationError, match="'natural' or 'uniform', not 'robust'"):
        uv_coverage(vla(), (64, 64), 12.0, "robust")  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match="pixels of 0 arcsec"):
        uv_coverage(vla(), (64, 64), 0.0)
    coverage = uv_coverage(vla(), (64, 64), 12.0)
    with pytest.raises(ObservationError, match=r"a sky of \(32, 32\) pixels on a uv coverage of \(64, 64\)"):
        coverage.image(np.ones((32, 32)))
    holed = sky()
    holed[0, 0] = np.nan
    with pytest.raises(ObservationError, match="1 of 4096 pixels are not finite"):
        coverage.image(holed)
