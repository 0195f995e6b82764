import numpy as np
import pytest
import scipy.ndimage
from astropy.convolution import convolve as astropy_convolve
from astropy.convolution import convolve_fft

from skyshift.datasets.beams import gaussian_kernel, moffat_kernel
from skyshift.datasets.resampling import ResamplingError, convolve, rebin


@pytest.fixture
def maps():
    return np.random.default_rng(1).random((3, 30, 24))


@pytest.mark.parametrize(("from_pixel", "to_pixel"), [(0.3, 0.2), (0.2, 0.3), (1.0, 7.0), (5.0, 1.0), (0.2, 0.262)])
def test_flux_is_conserved_at_any_ratio(maps, from_pixel, to_pixel):
    out = rebin(maps, from_pixel, to_pixel)
    # Sums of some 1e3 numbers in float64.
    np.testing.assert_allclose(out.sum((-2, -1)), maps.sum((-2, -1)), rtol=1e-13)
    bright = rebin(maps, from_pixel, to_pixel, conserve="surface_brightness")
    np.testing.assert_allclose(bright.sum((-2, -1)) * to_pixel**2, maps.sum((-2, -1)) * from_pixel**2, rtol=1e-13)


def test_against_a_common_finer_grid(maps):
    """3 pixels of 0.2 are 2 of 0.3: both are multiples of 0.1, where rebinning is only repeating and adding."""
    out = rebin(maps, 0.3, 0.2)
    fine = np.repeat(np.repeat(maps, 3, axis=1), 3, axis=2) / 9.0
    expected = fine.reshape(3, 45, 2, 36, 2).sum((2, 4))
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)


def test_whole_ratio_adds_blocks_and_a_round_trip_of_blocks_is_exact(maps):
    out = rebin(maps, 1.0, 3.0)
    np.testing.assert_allclose(out, maps.reshape(3, 10, 3, 8, 3).sum((2, 4)), rtol=1e-13)
    np.testing.assert_allclose(rebin(rebin(out, 3.0, 1.0), 1.0, 3.0), out, rtol=1e-13)


def test_first_and_second_moments():
    """The centroid stays; the variance grows by that of both pixels, (a² + b²) / 12 (Sheppard's correction)."""
    y, x = np.mgrid[-20:21, -20:21] * 0.3
    source = np.exp(-0.5 * ((x - 0.7) ** 2 + (y + 0.4) ** 2) / 1.2**2)
    out = rebin(source, 0.3, 0.45, shape=(31, 31))
    Y, X = np.mgrid[-15:16, -15:16] * 0.45
    assert (out * X).sum() / out.sum() == pytest.approx(0.7, abs=1e-4)
    assert (out * Y).sum() / out.sum() == pytest.approx(-0.4, abs=1e-4)
    variance = (out * (X - 0.7) ** 2).sum() / out.sum()
    assert variance == pytest.approx(1.2**2 + (0.45**2 + 0.3**2) / 12, rel=2e-3)


def test_a_constant_stays_a_constant_inside():
    out = rebin(np.full((40, 40), 2.5), 0.2, 0.35, shape=(20, 20), conserve="surface_brightness")
    np.testing.assert_allclose(out, 2.5, rtol=1e-13)


def test_rebinning_to_the_same_grid_copies(maps):
    out = rebin(maps, 0.4, 0.4)
    assert out is not maps
    np.testing.assert_array_equal(out, maps)


def test_a_larger_field_is_empty_outside_and_a_smaller_one_is_cut(maps):
    wide = rebin(maps, 1.0, 1.0, shape=(34, 28))
    np.testing.assert_array_equal(wide[:, 2:-2, 2:-2], maps)
    assert wide[:, :2].sum() == 0.0
    np.testing.assert_array_equal(rebin(maps, 1.0, 1.0, shape=(26, 20)), maps[:, 2:-2, 2:-2])


def test_float32_in_float32_out(maps):
    out = rebin(maps.astype(np.float32), 0.3, 0.7)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, rebin(maps, 0.3, 0.7), rtol=3e-7)


def test_rebin_refuses_what_it_cannot_do(maps):
    with pytest.raises(ResamplingError, match="pixels of 0 and 1 have no size"):
        rebin(maps, 0.0, 1.0)
    with pytest.raises(ResamplingError, match="pixels of 1 and -2"):
        rebin(maps, 1.0, -2.0)
    with pytest.raises(ResamplingError, match=r"shape \(4,\): maps are"):
        rebin(np.ones(4), 1.0, 1.0)
    with pytest.raises(ResamplingError, match="0 × 4 pixels"):
        rebin(maps, 1.0, 1.0, shape=(0, 4))
    with pytest.raises(ResamplingError, match="not 'mass'"):
        rebin(maps, 1.0, 2.0, conserve="mass")
    maps[1, 2, 3] = np.nan
    kept = maps.copy()
    with pytest.raises(ResamplingError, match=r"1 values are not finite.*replace or mask"):
        rebin(maps, 1.0, 2.0)
    np.testing.assert_array_equal(maps, kept)


@pytest.mark.parametrize(
    ("boundary", "theirs"),
    [("zero", {"boundary": "fill"}), ("wrap", {"boundary": "wrap"}), ("nearest", {"boundary": "extend"})],
)
def test_against_astropy_direct_convolution(maps, boundary, theirs):
    kernel = moffat_kernel(2.0, 3.0, share=0.98)
    for one, ours in zip(maps, convolve(maps, kernel, boundary), strict=True):
        np.testing.assert_allclose(ours, astropy_convolve(one, kernel, normalize_kernel=False, **theirs), atol=1e-13)


def test_against_astropy_fft_and_scipy_reflection(maps):
    kernel = gaussian_kernel(3.0, 2.0, 30.0)
    theirs = convolve_fft(maps[0], kernel, boundary="fill", normalize_kernel=False)
    np.testing.assert_allclose(convolve(maps, kernel)[0], theirs, atol=1e-13)
    np.testing.assert_allclose(
        convolve(maps, kernel, "reflect")[1], scipy.ndimage.convolve(maps[1], kernel, mode="reflect"), atol=1e-13
    )


def test_a_point_becomes_the_kernel_and_flux_stays():
    kernel = gaussian_kernel(4.0, 2.5, 20.0)
    point = np.zeros((61, 61))
    point[30, 30] = 3.0
    out = convolve(point, kernel)
    ry, rx = kernel.shape[0] // 2, kernel.shape[1] // 2
    np.testing.assert_allclose(out[30 - ry : 31 + ry, 30 - rx : 31 + rx], 3.0 * kernel, atol=1e-15)
    assert out.sum() == pytest.approx(3.0, rel=1e-13)


def test_a_large_batch_in_blocks_is_the_same_as_one_by_one():
    stack = np.random.default_rng(2).random((90, 230, 230)).astype(np.float32)
    kernel = gaussian_kernel(3.0)
    out = convolve(stack, kernel)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[[0, 40, 89]], np.stack([convolve(stack[i], kernel) for i in (0, 40, 89)]))


def test_convolve_refuses_kernels_that_do_not_fit(maps):
    with pytest.raises(ResamplingError, match="kernel of 31 × 31 pixels does not fit a map of 30 × 24"):
        convolve(maps, np.ones((31, 31)))
    with pytest.raises(ResamplingError, match=r"shape \(4, 5\) has no central pixel"):
        convolve(maps, np.ones((4, 5)))
    with pytest.raises(ResamplingError, match="not finite"):
        convolve(maps, np.full((3, 3), np.nan))
    with pytest.raises(ResamplingError, match="not 'mirror'"):
        convolve(maps, np.ones((3, 3)), boundary="mirror")
    maps[0, 0, 0] = np.inf
    with pytest.raises(ResamplingError, match="1 values are not finite"):
        convolve(maps, np.ones((3, 3)))
