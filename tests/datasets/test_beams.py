import numpy as np
import pytest
from astropy.convolution import Gaussian2DKernel
from astropy.io import fits
from scipy.special import erf

from skyshift.datasets.beams import (
    BeamError,
    beam_area,
    gaussian_kernel,
    image_kernel,
    kernel_fwhm,
    matching_kernel,
    moffat_kernel,
)
from skyshift.datasets.resampling import convolve, rebin

SIGMA = 1.0 / np.sqrt(8.0 * np.log(2.0))


def moments(kernel, pixel=1.0):
    y, x = (np.arange(side) - side // 2 for side in kernel.shape)
    x, y = np.meshgrid(x * pixel, y * pixel)
    return np.array([(kernel * a).sum() for a in (x, y, x * x, y * y, x * y)])


@pytest.mark.parametrize("fwhm", [0.05, 0.3, 1.0, 4.0])
def test_round_gaussian_is_a_product_of_error_functions(fwhm):
    """Exact integral over each pixel, also where the beam is far narrower than a pixel."""
    kernel = gaussian_kernel(fwhm)
    edges = np.arange(-(kernel.shape[0] // 2) - 0.5, kernel.shape[0] // 2 + 1)
    column = np.diff(erf(edges / (fwhm * SIGMA * np.sqrt(2)))) / 2
    expected = np.outer(column, column)
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-7 * expected.max())


def test_moments_of_an_elliptical_gaussian():
    """Second moments are σ² of the beam plus 1/12 of the pixel; the major axis lies at PA from up to the left."""
    pixel, major, minor = 2.0, 15.0, 8.0
    kernel = gaussian_kernel(major, minor, 30.0, pixel, share=1 - 1e-12)
    a, b = (major * SIGMA) ** 2, (minor * SIGMA) ** 2
    sin, cos = np.sin(np.pi / 6), np.cos(np.pi / 6)
    expected = [
        0,
        0,
        a * sin**2 + b * cos**2 + pixel**2 / 12,
        a * cos**2 + b * sin**2 + pixel**2 / 12,
        (b - a) * sin * cos,
    ]
    np.testing.assert_allclose(moments(kernel, pixel), expected, atol=1e-6)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-14)


def test_a_turn_by_90_degrees_turns_the_kernel():
    np.testing.assert_allclose(gaussian_kernel(5, 2, 115.0), np.rot90(gaussian_kernel(5, 2, 25.0)), atol=1e-15)


def test_against_astropy_kernel_integrated():
    ours = gaussian_kernel(4.0)
    theirs = Gaussian2DKernel(4.0 * SIGMA, x_size=ours.shape[0], mode="oversample", factor=20).array
    # Theirs: the midpoint rule of 20² points a pixel: its error is the curvature times (1/20)² / 24, 1e-4 of the peak
    np.testing.assert_allclose(ours, theirs / theirs.sum(), atol=1e-4 * ours.max())


@pytest.mark.parametrize(
    ("fwhm", "beta", "pixel"), [(0.8, 3.0, 0.2), (0.8, 4.765, 0.2), (1.43, 2.5, 0.396), (0.3, 3.0, 0.3)]
)
def test_moffat_against_galsim(fwhm, beta, pixel):
    galsim = pytest.importorskip("galsim", reason="GalSim is not installed")
    kernel = moffat_kernel(fwhm, beta, pixel)
    accurate = galsim.GSParams(
        folding_threshold=1e-4, maxk_threshold=1e-5, kvalue_accuracy=1e-7, maximum_fft_size=20000
    )
    image = galsim.Moffat(beta=beta, fwhm=fwhm, gsparams=accurate)
    theirs = image.drawImage(nx=kernel.shape[1], ny=kernel.shape[0], scale=pixel, dtype=float).array
    # GalSim integrates over pixels by a Fourier transform, to some 1e-5 of the peak at these settings.
    np.testing.assert_allclose(kernel, theirs / theirs.sum(), atol=2e-5 * kernel.max())


@pytest.mark.parametrize(("major", "minor", "angle", "pixel"), [(15.0, 8.0, 30.0, 4.0), (1.0, 1.0, 0.0, 0.7)])
def test_gaussian_against_galsim(major, minor, angle, pixel):
    galsim = pytest.importorskip("galsim", reason="GalSim is not installed")
    kernel = gaussian_kernel(major, minor, angle, pixel)
    profile = galsim.Gaussian(fwhm=np.sqrt(major * minor)).shear(q=minor / major, beta=(90 + angle) * galsim.degrees)
    theirs = profile.drawImage(nx=kernel.shape[1], ny=kernel.shape[0], scale=pixel, dtype=float).array
    np.testing.assert_allclose(kernel, theirs / theirs.sum(), atol=1e-4 * kernel.max())


def test_moffat_holds_the_share_that_it_says():
    """F(<R) = 1 - (1 + R²/α²)^(1-β); the kernel just covers the circle of that R."""
    big, small = moffat_kernel(4.0, 3.0, share=0.99999), moffat_kernel(4.0, 3.0, share=0.95)
    n = big.shape[0] // 2
    radius = 4.0 / (2 * np.sqrt(2 ** (1 / 3) - 1)) * np.sqrt(0.05**-0.5 - 1)
    assert small.shape[0] == 2 * np.ceil(radius) + 1
    away = np.hypot(np.arange(-n, n + 1)[:, None], np.arange(-n, n + 1))
    # Pixels are in or out whole: half a pixel at the rim holds 2 %.
    assert big[away <= radius].sum() == pytest.approx(0.95, abs=0.01)
    assert kernel_fwhm(big) == pytest.approx(4.0, rel=0.03)  # the pixel widens it by 1/12 / σ²


def test_sampled_kernels_hold_the_profile_at_the_centres():
    kernel = moffat_kernel(4.0, 3.0, sampled=True)
    n = kernel.shape[0] // 2
    alpha = 4.0 / (2 * np.sqrt(2 ** (1 / 3) - 1))
    r2 = np.arange(-n, n + 1.0)[:, None] ** 2 + np.arange(-n, n + 1.0) ** 2
    expected = (1 + r2 / alpha**2) ** -3.0
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-12)
    assert kernel[n, n + 2] / kernel[n, n] == pytest.approx(0.5)
    with pytest.raises(BeamError, match=r"FWHM of 1\.5 arcsec cannot be sampled on pixels of 1"):
        gaussian_kernel(1.5, sampled=True)


def test_beam_area_is_the_integral_of_a_unit_gaussian():
    kernel = gaussian_kernel(12.0, 7.0, 20.0, sampled=True)
    assert beam_area(12.0, 7.0) == pytest.approx(kernel.sum() / kernel.max(), rel=1e-5)
    assert beam_area(10.0) == pytest.approx(113.309, rel=1e-5)  # 1.13309 θ²


def test_image_kernel_rebins_centres_and_normalises():
    star = gaussian_kernel(6.0, pixel=0.5) * 7.0
    for pixel in (0.5, 1.0, 1.3):
        kernel = image_kernel(star, 0.5, pixel)
        assert kernel.sum() == pytest.approx(1.0, abs=1e-14)
        assert kernel.shape[0] % 2 == 1
        np.testing.assert_allclose(moments(kernel)[:2], 0.0, atol=1e-12)
        np.testing.assert_allclose(
            kernel,
            gaussian_kernel(6.0, pixel=pixel, share=1 - 1e-9)[_middle(6.0, pixel, kernel.shape[0])],
            atol=0.02 * kernel.max(),
        )
    np.testing.assert_allclose(image_kernel(star, 0.5, 0.5), star / star.sum(), rtol=1e-14)


def _middle(fwhm, pixel, size):
    half = gaussian_kernel(fwhm, pixel=pixel, share=1 - 1e-9).shape[0] // 2
    cut = slice(half - size // 2, half + size // 2 + 1)
    return cut, cut


def test_image_kernel_on_finer_pixels_follows_the_profile():
    """A sampled star, interpolated to thirds of a pixel, is the same star sampled there."""
    star = gaussian_kernel(4.0, sampled=True)
    kernel = image_kernel(star, 1.0, 1 / 3)
    exact = gaussian_kernel(4.0, pixel=1 / 3, sampled=True)
    n, m = kernel.shape[0] // 2, exact.shape[0] // 2
    reach = min(n, m) - 3
    np.testing.assert_allclose(
        kernel[n - reach : n + reach + 1, n - reach : n + reach + 1],
        exact[m - reach : m + reach + 1, m - reach : m + reach + 1],
        atol=2e-3 * exact.max(),  # of the cubic spline, at 4 pixels a FWHM
    )


def test_even_images_of_stars_are_centred():
    y, x = np.mgrid[-7.5:8, -7.5:8]
    star = np.exp(-0.5 * (x**2 + y**2) / 4.0)
    kernel = image_kernel(star, 1.0, 1.0)
    assert kernel.shape == (17, 17)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], rtol=1e-9)


def test_matching_gaussians_is_known_exactly():
    """The kernel between two Gaussians is one of the difference of the squares; pixels cancel in the ratio."""
    kernel = matching_kernel(gaussian_kernel(3.0), gaussian_kernel(5.0))
    n = kernel.shape[0] // 2
    r2 = np.arange(-n, n + 1.0)[:, None] ** 2 + np.arange(-n, n + 1.0) ** 2
    exact = np.exp(-4 * np.log(2) * r2 / 16.0)
    np.testing.assert_allclose(kernel, exact / exact.sum(), atol=1e-5 * kernel.max())


def test_matching_moffats_takes_one_to_the_other():
    narrow, broad = moffat_kernel(3.0, 4.765, share=0.9999), moffat_kernel(4.2, 4.765, share=0.9999)
    kernel = matching_kernel(narrow, broad)
    edge = (broad.shape[0] - narrow.shape[0]) // 2
    result = convolve(np.pad(narrow, edge), kernel)
    # What is cut off the wings, 1e-4 of the flux, is all that is missing.
    np.testing.assert_allclose(result, broad, atol=1e-3 * broad.max())


def test_matching_refuses_to_sharpen_and_what_is_no_kernel():
    with pytest.raises(BeamError, match="cannot be sharpened"):
        matching_kernel(gaussian_kernel(5.0), gaussian_kernel(3.0))
    with pytest.raises(BeamError, match=r"two odd sides and finite values, not shape \(4, 4\)"):
        matching_kernel(np.ones((4, 4)), gaussian_kernel(3.0))
    with pytest.raises(BeamError, match="positive sum, not 0"):
        matching_kernel(np.zeros((3, 3)), gaussian_kernel(3.0))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_beams_without_a_size_are_refused(bad):
    for make in (lambda: gaussian_kernel(bad), lambda: moffat_kernel(bad, 3.0), lambda: beam_area(bad),
                 lambda: gaussian_kernel(2.0, bad), lambda: gaussian_kernel(2.0, pixel=bad),
                 lambda: image_kernel(np.ones((3, 3)), bad, 1.0)):  # fmt: skip
        with pytest.raises(BeamError, match=r"arcsec is none; give an angle above 0"):
            make()


def test_other_kernels_that_are_none():
    with pytest.raises(BeamError, match="β = 1 has no finite flux"):
        moffat_kernel(1.0, 1.0)
    with pytest.raises(BeamError, match="between 0 and 1, not 1"):
        gaussian_kernel(1.0, share=1.0)
    with pytest.raises(BeamError, match=r"too large \(at most 4095\)"):
        gaussian_kernel(1e4)
    with pytest.raises(BeamError, match="positive sum; cut out a star"):
        image_kernel(np.zeros((5, 5)), 1.0, 1.0)
    with pytest.raises(BeamError, match="finite values"):
        image_kernel(np.full((5, 5), np.nan), 1.0, 1.0)


def test_real_hubble_stars(shared):
    """ACS F814W on 0.03 arcsec: FWHM 0.10 to 0.11; on LSST pixels the flux and the centre stay."""
    with fits.open(shared / "optical/hst/btk_real_galaxy_PSF_images_extension.fits") as hdus:
        stars = [np.asarray(hdu.data, np.float64) for hdu in hdus]
    assert len(stars) == 100
    widths = [kernel_fwhm(star, 0.03) for star in stars[::20]]
    assert all(0.095 < width < 0.115 for width in widths)
    for star in stars[::20]:
        kernel = image_kernel(star, 0.03, 0.2)
        assert kernel.sum() == pytest.approx(1.0, abs=1e-13)
        # 65 × 51 pixels of 0.03 in pixels of 0.2: 9.75 × 7.65, so 11 × 9.
        assert kernel.shape == (11, 9)
        assert kernel[5, 4] == kernel.max()
        assert rebin(star, 0.03, 0.2).sum() == pytest.approx(star.sum(), rel=1e-12)
