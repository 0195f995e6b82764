"""Metrics: agreement with scikit-image, and the closed forms of spectra, profiles and totals."""

import warnings

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from skyshift.translate.metrics import image, physics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def pair(rng):
    """Five smooth maps and a disturbed copy of each, one worse than the other."""
    y, x = np.mgrid[:48, :40]
    scale = rng.uniform(5, 15, (5, 1, 1))
    truth = np.exp(-np.hypot(y - 24, x - 20) / scale).astype(np.float32)
    noise = rng.normal(size=truth.shape) * np.linspace(0.01, 0.3, 5)[:, None, None]
    return truth, (truth + noise).astype(np.float32)


def plane_wave(height, width, ny, nx, amplitude=1.0, phase=0.3):
    y, x = np.mgrid[:height, :width]
    return amplitude * np.cos(2 * np.pi * (ny * y / height + nx * x / width) + phase)[None]


# --- image


@pytest.mark.parametrize("data_range", [1.0, 7.5])
def test_psnr_is_that_of_scikit_image(pair, data_range):
    truth, estimate = pair
    expected = [peak_signal_noise_ratio(t, e, data_range=data_range) for t, e in zip(*pair, strict=True)]
    # scikit-image subtracts in float32: seven digits.
    np.testing.assert_allclose(image.psnr(truth, estimate, data_range), expected, rtol=1e-5)


@pytest.mark.parametrize("data_range", [0.1, 1.0, 7.5])
def test_ssim_is_that_of_scikit_image(pair, data_range):
    # Both average the windows inside the map: scikit-image crops the same five pixels of its border.
    expected = [
        structural_similarity(
            t.astype(np.float64),
            e.astype(np.float64),
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for t, e in zip(*pair, strict=True)
    ]
    assert np.ptp(expected) > 0.005
    # torchmetrics clips negative variances at 0, which costs no more than rounding.
    np.testing.assert_allclose(image.ssim(*pair, data_range), expected, rtol=0, atol=1e-9)


def test_identical_maps_are_perfect(pair):
    assert np.isposinf(image.psnr(pair[0], pair[0], 1.0)).all()
    np.testing.assert_allclose(image.ssim(pair[0], pair[0], 1.0), 1.0, atol=1e-12)


def test_psnr_of_a_constant_offset_is_exact():
    zeros = np.zeros((2, 4, 4))
    np.testing.assert_allclose(image.psnr(zeros, zeros + 0.1, 1.0), 20.0)
    np.testing.assert_allclose(image.psnr(zeros, zeros + 0.1, [1.0, 10.0]), [20.0, 40.0])


@pytest.mark.parametrize("metric", [image.psnr, image.ssim])
def test_units_do_not_matter_when_the_range_has_them_too(pair, metric):
    truth, estimate = (m.astype(np.float64) for m in pair)
    one = metric(truth, estimate, 1.0)
    units = 10.0 ** np.arange(-6, 9, 3)
    scaled = metric(truth * units[:, None, None], estimate * units[:, None, None], units)
    np.testing.assert_allclose(scaled, one, rtol=1e-9)


@pytest.mark.parametrize("metric", [image.psnr, image.ssim])
def test_a_broken_pixel_spoils_its_own_map_only(pair, metric):
    truth, estimate = pair
    good = metric(truth, estimate, 1.0)
    estimate[2, 20, 20] = np.nan
    value = metric(truth, estimate, 1.0)
    assert np.isnan(value[2])
    np.testing.assert_array_equal(np.delete(value, 2), np.delete(good, 2))


def test_many_maps_are_compared_one_by_one(rng):
    truth, estimate = rng.random((2, 150, 12, 12))
    value = image.ssim(truth, estimate, 1.0)
    np.testing.assert_allclose(value[[70, 149]], image.ssim(truth[[70, 149]], estimate[[70, 149]], 1.0))
    assert image.ssim(truth[:0], estimate[:0], 1.0).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image.psnr(np.zeros((4, 4)), np.zeros((4, 4)), 1.0), r"map\[None\]"),
        (lambda: image.psnr(np.zeros((1, 4, 4)), np.zeros((2, 4, 4)), 1.0), "one shape"),
        (lambda: image.psnr(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), 0.0), "must be positive"),
        (lambda: image.ssim(np.zeros((1, 10, 20)), np.zeros((1, 10, 20)), 1.0), "at least 11 x 11"),
        (lambda: physics.total_error(np.zeros((1, 4, 4)), np.zeros((1, 4, 5))), "one shape"),
        (lambda: physics.radial_profile(np.zeros((2, 4, 4)), [1.0, 2.0, 3.0]), "2 of them"),
        (lambda: physics.radial_profile(np.zeros((2, 4, 4)), 1.0, bins=0), "at least one"),
        (lambda: physics.power_spectrum(np.zeros((2, 4, 4)), -1.0), "positive length"),
        (lambda: physics.power_spectrum(np.zeros((2, 1, 4)), 1.0), "at least 2 x 2"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- totals and profiles


def test_total_error_is_exact(rng):
    truth = rng.random((4, 9, 7)) + 0.1
    factors = np.array([0.5, 1.0, 1.25, 3.0])
    np.testing.assert_allclose(physics.total_error(truth, truth * factors[:, None, None]), factors - 1, atol=1e-12)


def test_radial_profile_of_an_exponential_disc_gives_its_scale_length():
    # Scale lengths of 10 kpc in maps of 128 and 256 kpc: the radii carry the unit, galaxy by galaxy.
    side, length = np.array([128.0, 256.0]), 10.0
    centre = (np.arange(128) - 63.5) / 128
    r = np.hypot(centre[:, None], centre) * side[:, None, None]
    radii, profile = physics.radial_profile(np.exp(-r / length), side)
    assert radii.shape == profile.shape == (2, 64)
    assert np.all(np.diff(radii) > 0)
    for i in range(2):
        far = (radii[i] > length) & (radii[i] < 5 * length)
        slope = np.polyfit(radii[i, far], np.log(profile[i, far]), 1)[0]
        # A ring's mean exceeds the value at its mean radius by (width / length)² / 24, the same in all rings.
        assert -1 / slope == pytest.approx(length, rel=2e-3)


@pytest.mark.parametrize(("height", "width", "bins"), [(32, 32, None), (33, 21, None), (20, 40, 5), (1, 1, None)])
def test_radial_profile_of_a_constant_is_that_constant(height, width, bins):
    radii, profile = physics.radial_profile(np.full((2, height, width), 3.0), bins=bins)
    np.testing.assert_allclose(profile, 3.0)
    assert radii.shape == profile.shape[1:]
    assert radii.max() <= min(height, width) / 2


def test_an_empty_ring_is_nan():
    _, profile = physics.radial_profile(np.ones((1, 4, 4)), 1.0, bins=40)
    assert np.isnan(profile).any()
    assert np.nanmax(profile) == np.nanmin(profile) == 1.0


def test_radial_profile_error_is_the_share_at_the_wrong_radius(rng):
    truth = rng.random((3, 32, 32))
    np.testing.assert_allclose(physics.radial_profile_error(truth, truth), 0.0)
    np.testing.assert_allclose(physics.radial_profile_error(truth, 1.3 * truth), 0.3)
    # Turning a map moves nothing to another radius.
    np.testing.assert_allclose(physics.radial_profile_error(truth, np.rot90(truth, axes=(1, 2))), 0.0, atol=1e-14)
    ring = np.zeros((1, 32, 32))
    moved = ring.copy()
    ring[0, 16, 16], moved[0, 16, 20] = 1.0, 1.0
    np.testing.assert_allclose(physics.radial_profile_error(ring, moved), 2.0)  # missing here, too much there


# --- spectra


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 33), (24, 40), (31, 16)])
@pytest.mark.parametrize("bins", [None, 7])
def test_parseval(rng, height, width, bins):
    # A map without modes beyond Nyquist: what the bins hold is its whole variance.
    maps = rng.normal(size=(3, height, width))
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    maps = np.fft.ifft2(np.fft.fft2(maps) * (f <= 0.5)).real
    side = np.array([10.0, 20.0, 35.0])
    area = side**2 * height / width
    _, power = physics.power_spectrum(maps, side, bins)
    modes = physics.mode_count(height, width, bins)
    variance = (modes * power).sum(axis=1) / area
    np.testing.assert_allclose(variance, maps.var(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize(("ny", "nx"), [(0, 1), (5, 0), (3, 4), (0, 16), (8, 6)])
def test_a_plane_wave_sits_in_its_bin(ny, nx):
    n = np.hypot(ny, nx)
    amplitude, side = 2.5, 40.0
    # At the Nyquist frequency (16 of 32 pixels) only the cosine lives on the grid.
    phase = 0.0 if n == 16 else 0.3
    k, power = physics.power_spectrum(plane_wave(32, 32, ny, nx, amplitude, phase), side)
    bin_ = round(n) - 1
    assert np.argmax(power[0]) == bin_
    assert abs(k[bin_] - 2 * np.pi * n / side) < 0.5 * 2 * np.pi / side
    mean_square = amplitude**2 * (1.0 if n == 16 else 0.5)
    assert power[0, bin_] * physics.mode_count(32, 32)[bin_] / side**2 == pytest.approx(mean_square)
    np.testing.assert_array_equal(np.delete(power[0], bin_), 0.0)


def test_k_runs_from_the_fundamental_to_nyquist():
    maps = np.zeros((2, 64, 64))
    k, power = physics.power_spectrum(maps, [10.0, 20.0])
    assert k.shape == power.shape == (2, 32)
    np.testing.assert_allclose(k[0], 2 * k[1])
    # The first ring holds |n| = 1 and √2; the last ends at Nyquist, π / pixel.
    np.testing.assert_allclose(k[0, 0], 2 * np.pi / 10 * (1 + np.sqrt(2)) / 2)
    assert 31.5 / 32 <= k[0, -1] * (10 / 64) / np.pi <= 1.0
    fraction, _ = physics.power_spectrum(maps)
    np.testing.assert_allclose(fraction, k[0] * (10 / 64) / np.pi)


def test_every_mode_is_counted_once():
    for height, width in ((16, 16), (15, 15), (12, 20)):
        f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
        assert physics.mode_count(height, width).sum() == ((f > 0) & (f <= 0.5)).sum()


def test_white_noise_is_flat(rng):
    # White noise of unit variance has P = pixel area. 200 maps average 200 · modes / 2 independent modes.
    maps = rng.normal(size=(200, 32, 32))
    _, power = physics.power_spectrum(maps, 64.0)
    assert power.shape == (200, 16)
    sigma = 4.0 * np.sqrt(2.0 / (200 * physics.mode_count(32, 32)))
    assert (np.abs(power.mean(axis=0) - 4.0) < 4 * sigma).all()


def test_power_does_not_depend_on_the_pixels_of_a_smooth_map():
    # The same Gaussian on 64 and on 128 pixels: P(k) is a property of the map, not of its sampling.
    def gaussian(n):
        x = (np.arange(n) + 0.5) / n * 40.0 - 20.0
        return np.exp(-(x[:, None] ** 2 + x**2) / (2 * 2.0**2))[None]

    k, coarse = physics.power_spectrum(gaussian(64), 40.0)
    _, fine = physics.power_spectrum(gaussian(128), 40.0)
    np.testing.assert_allclose(fine[0, :15], coarse[0, :15], rtol=1e-6)
    # In closed form P = (2πσ²)² exp(−k²σ²) / A, but for the spread of k within a bin.
    expected = (2 * np.pi * 4.0) ** 2 * np.exp(-(k[:8] ** 2) * 4.0) / 1600.0
    np.testing.assert_allclose(coarse[0, :8], expected, rtol=0.1)


def test_power_ratio_is_the_square_of_a_factor(rng):
    truth = rng.random((3, 30, 30))
    _, ratio = physics.power_ratio(truth, 3.0 * truth + 5.0, 10.0)  # a constant adds no power
    np.testing.assert_allclose(ratio, 9.0, rtol=1e-9)


def test_correlation_of_scaled_copies_is_one(rng):
    truth = rng.random((3, 32, 24))
    for factor, sign in ((4.0, 1.0), (1e-12, 1.0), (1e12, 1.0), (-2.0, -1.0)):
        np.testing.assert_allclose(physics.cross_correlation(truth, factor * truth)[1], sign)


def test_correlation_ignores_amplitude_and_not_position(rng):
    truth, estimate = rng.random((2, 3, 32, 32))
    _, r = physics.cross_correlation(truth, estimate, 10.0)
    np.testing.assert_allclose(physics.cross_correlation(truth, 7.0 * estimate, 10.0)[1], r)
    np.testing.assert_allclose(physics.cross_correlation(estimate, truth, 10.0)[1], r)
    assert (np.abs(r) <= 1 + 1e-12).all()
    _, shifted = physics.cross_correlation(truth, np.roll(truth, 8, axis=2), 10.0)
    assert np.abs(shifted[:, 5:]).mean() < 0.3


def test_correlation_of_independent_noise_is_zero(rng):
    truth, estimate = rng.normal(size=(2, 200, 32, 32))
    _, r = physics.cross_correlation(truth, estimate)
    # One map's r scatters by about √(2 / modes), the mean of 200 by √200 less.
    sigma = np.sqrt(2.0 / (200 * physics.mode_count(32, 32)))
    assert (np.abs(r.mean(axis=0)) < 4 * sigma).all()


@pytest.mark.parametrize("fill", [0.0, 0.1, 1e30])
def test_maps_without_structure_have_no_spectrum(rng, fill):
    # A constant map has rounding errors and no power: neither a ratio nor a correlation is made of them.
    flat, full = np.full((2, 30, 35), fill), rng.random((2, 30, 35))
    assert (physics.power_spectrum(flat, 1.0)[1] == 0).all()
    assert np.isnan(physics.power_ratio(flat, full)[1]).all()
    np.testing.assert_array_equal(physics.power_ratio(full, flat)[1], 0.0)
    assert np.isnan(physics.cross_correlation(flat, full)[1]).all()
    assert np.isnan(physics.cross_correlation(full, flat)[1]).all()


def test_zero_maps_have_no_relative_errors_and_spoil_no_others(rng):
    truth = rng.random((3, 16, 16)).astype(np.float32)
    truth[1] = 0.0
    for error in (physics.total_error(truth, truth + 1), physics.radial_profile_error(truth, truth + 1)):
        assert np.isnan(error).tolist() == [False, True, False]
    for curve in (physics.power_ratio, physics.cross_correlation):
        assert np.isnan(curve(truth, truth, 1.0)[1]).all(axis=1).tolist() == [False, True, False]
    # Not a number in, not a number out.
    truth[2, 3, 3] = np.nan
    assert np.isnan(physics.power_ratio(truth, truth)[1]).all(axis=1).tolist() == [False, True, True]
    assert np.isnan(physics.total_error(truth, truth)).tolist() == [False, True, True]
