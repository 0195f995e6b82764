"""Mock optical images: stellar light at a redshift, through a point spread function, with the noise of a camera.

Stellar light in one rest-frame band (Lsun/kpc², solar luminosities of that band) becomes flux in nanomaggies per pixel,

    F = 10^{-0.4 (M_sun + DM(z) + K - 22.5)} Σ ℓ²,   22.5 the AB magnitude of one nanomaggy,

with K = -2.5 log10(1 + z) by default: the light is seen through its own band, stretched by (1 + z). That is exact for
that band and needs no spectrum; to imitate the band at rest, give the K correction of the spectrum instead. There is
no dust. The flux is rebinned exactly to the survey's pixels, convolved with the point spread function, and counted:

    N ~ Poisson(c F + B) + Normal(0, n R²),   c = t 10^{0.4 (ZP - 22.5)} electrons per nanomaggy,
    B = t 10^{0.4 (ZP - μ_sky)} p²,   noisy = (N - B) / c,   σ² = (c F + B + n R²) / c²,

t the exposure, ZP the AB magnitude of one electron per second, p the pixel, R the noise of each of n readouts. The sky
is known perfectly; pixels are independent (real stacks that were resampled are not). σ is that of the clean map.

References:
    Willmer 2018, ApJS 236, 47, table 3 (absolute AB magnitudes of the Sun in SDSS bands).
    Hogg, Baldry, Blanton & Eisenstein 2002, astro-ph/0210394; Blanton & Roweis 2007, AJ 133, 734 (band shifts).
    Lupton, Gunn & Szalay 1999, AJ 118, 1406, and Finkbeiner et al. 2004, AJ 128, 2577 (maggies).
    Ivezić et al. 2019, ApJ 873, 111, section 3.2 (depth from effective pixels).
    Bottrell et al. 2019, MNRAS 490, 5390 (RealSim: simulated galaxies put into real skies).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.beams import gaussian_kernel, image_kernel, kernel_fwhm, moffat_kernel
from skyshift.datasets.observation import Observation, ObservationError, check_seed, field_shape
from skyshift.datasets.quantities import SOLAR_MAGNITUDE as SOLAR_AB
from skyshift.datasets.resampling import convolve, covering_shape, rebin
from skyshift.datasets.sky import Placement, wcs_header
from skyshift.datasets.surveys import Band, OpticalSurvey, optical_survey
from skyshift.naming import unknown

Array = NDArray[np.float64]

UNIT = "nmgy"
"""Nanomaggies per pixel; one is an AB magnitude of 22.5, 3.631 µJy."""

ZERO_POINT = 22.5
"""AB magnitude of one nanomaggy."""

_FWHM_PIXELS = 3.0
"""Pixels that a profile's FWHM must span to be sampled at their centres: what is aliased is below 2e-3 of the peak."""

_FINER = 3
"""How much finer the pixels are on which the image of a star is used."""

_BRIGHTEST = 1e15
"""Electrons in a pixel that can still be drawn from a Poisson distribution and counted exactly in float64."""


def apparent_flux(
    light: NDArray[Any],
    pixel_kpc: float,
    placement: Placement,
    light_band: str,
    k_correction: float | None = None,
) -> Array:
    """Flux that arrives from stellar light, before any telescope.

    Args:
        light: (…, height, width) Lsun/kpc², finite and not negative.
        pixel_kpc: Side of a pixel of ``light``, physical kpc.
        placement: Where the galaxy is put.
        light_band: Rest-frame band of the light: u, g, r, i or z.
        k_correction: K in magnitudes, m = M + DM + K. By default that of the shifted band, -2.5 log10(1 + z).

    Returns:
        (…, height, width) nanomaggies per pixel.

    Raises:
        ObservationError: Negative or non-finite light, an unknown band, or a pixel without a size.
    """
    light = np.asarray(light, np.float64)
    if light_band not in SOLAR_AB:
        raise ObservationError(unknown("band of light", light_band, SOLAR_AB))
    if not (np.isfinite(pixel_kpc) and pixel_kpc > 0.0):
        raise ObservationError(f"a pixel of {pixel_kpc:g} kpc has no size; give the side of a light map's pixel in kpc")
    bad, negative = int(np.count_nonzero(~np.isfinite(light))), int(np.count_nonzero(light < 0.0))
    if bad or negative:
        raise ObservationError(
            f"a light map of shape {light.shape} has {bad} values that are not finite and {negative} negative ones; "
            f"light is zero or more: mask what is missing and give light in Lsun/kpc², not in magnitudes or a logarithm"
        )
    K = placement.band_shift if k_correction is None else k_correction
    magnitude = SOLAR_AB[light_band] + placement.distance_modulus + K
    return 10.0 ** (-0.4 * (magnitude - ZERO_POINT)) * pixel_kpc**2 * light


def electrons_per_nanomaggy(band: Band) -> float:
    """Electrons that a nanomaggy leaves over the whole exposure, c = t 10^{0.4 (ZP - 22.5)}."""
    return float(band.exposure_s * 10.0 ** (0.4 * (band.zero_point_mag - ZERO_POINT)))


def sky_electrons(band: Band, pixel_arcsec: float) -> float:
    """Electrons that the sky leaves in a pixel over the whole exposure."""
    return float(band.exposure_s * 10.0 ** (0.4 * (band.zero_point_mag - band.sky_mag)) * pixel_arcsec**2)


def noise_sigma(flux: NDArray[Any], survey: str | OpticalSurvey, band: str) -> Array:
    """σ of every pixel: source, sky and readouts.

    Args:
        flux: (…, height, width) nanomaggies per pixel of the survey, without noise.
        survey: Its name, or the survey itself.
        band: One of its bands.

    Returns:
        (…, height, width) nanomaggies.

    Raises:
        SurveyError: An unknown survey or band; the message names the nearest.
    """
    survey = optical_survey(survey)
    found = survey.band(band)
    c = electrons_per_nanomaggy(found)
    counted = np.maximum(c * np.asarray(flux, np.float64) + sky_electrons(found, survey.pixel_arcsec), 0.0)
    return np.sqrt(counted + found.exposures * found.read_noise_e**2) / c


def psf_kernel(survey: str | OpticalSurvey, band: str, pixel_arcsec: float | None = None) -> Array:
    """The band's point spread function on pixels: Moffat where the survey has a β, else Gaussian.

    A Moffat is cut where 0.999 of its light is inside; below β = 2.5, where that is a hundred widths, at 0.99.

    Args:
        survey: Its name, or the survey itself.
        band: One of its bands.
        pixel_arcsec: Side of a pixel; by default the survey's.

    Returns:
        (size, size) odd, sum 1.
    """
    survey = optical_survey(survey)
    found = survey.band(band)
    return _star(found, found.fwhm_arcsec, survey.pixel_arcsec if pixel_arcsec is None else pixel_arcsec)


def _star(band: Band, fwhm: float, pixel: float, sampled: bool = False) -> Array:
    if band.beta is None:
        return gaussian_kernel(fwhm, pixel=pixel, sampled=sampled)
    return moffat_kernel(fwhm, band.beta, pixel, share=0.999 if band.beta >= 2.5 else 0.99, sampled=sampled)


def see(
    flux: NDArray[Any],
    pixel_arcsec: float,
    survey: str | OpticalSurvey,
    band: str,
    shape: tuple[int, int] | None = None,
    psf: NDArray[Any] | None = None,
    psf_pixel_arcsec: float | None = None,
) -> Array:
    """Flux on the survey's pixels through its point spread function, without noise.

    The map is convolved on pixels that are ``n`` times finer where the point spread function needs it, and the pixel is
    counted once: analytic profiles are sampled at the pixels' centres, since the map is integrated over them. The image
    of a star has its own pixel in it; where that is the survey's, the middle one of the finer pixels is taken instead
    of their sum.

    Args:
        flux: (…, height, width) nanomaggies per pixel.
        pixel_arcsec: Side of a pixel of ``flux``, arcsec.
        survey: Its name, or the survey itself.
        band: One of its bands.
        shape: (height, width) of the output, about the same centre; by default what covers the input.
        psf: (height, width) image of a point source to use instead of the survey's; two pixels or more a FWHM, since
            what lies between its pixels is interpolated.
        psf_pixel_arcsec: Side of its pixels; by default the survey's.

    Returns:
        (…, height, width) nanomaggies per pixel. Flux that the point spread function throws out of the map is lost.

    Raises:
        ResamplingError: The point spread function does not fit the map, or a value is not finite.
        BeamError: ``psf`` is none.
    """
    survey = optical_survey(survey)
    found = survey.band(band)
    flux = np.asarray(flux, np.float64)
    pixel = survey.pixel_arcsec
    if psf is None:
        n = max(1, 2 * int(np.ceil(0.5 * (_FWHM_PIXELS * pixel / found.fwhm_arcsec - 1.0))) + 1)
        kernel = _star(found, found.fwhm_arcsec, pixel / n, sampled=True)
        middle = False
    else:
        star_pixel = pixel if psf_pixel_arcsec is None else psf_pixel_arcsec
        n, middle = _FINER, star_pixel > 0.99 * pixel
        kernel = image_kernel(psf, star_pixel, pixel / n)
    if shape is None:
        shape = covering_shape(flux.shape, pixel_arcsec, pixel)
    fine = convolve(rebin(flux, pixel_arcsec, pixel / n, (n * shape[0], n * shape[1])), kernel)
    if middle:
        return np.asarray(fine[..., n // 2 :: n, n // 2 :: n] * n**2)
    return np.asarray(rebin(fine, pixel / n, pixel, shape))


def add_noise(
    clean: NDArray[Any],
    survey: str | OpticalSurvey,
    band: str,
    seeds: Sequence[int | Sequence[int]],
    sky_image: NDArray[Any] | None = None,
    sky_sigma: float | NDArray[Any] | None = None,
) -> tuple[Array, Array]:
    """Counts of source, sky and readouts, with the mean sky taken off; or a real sky instead.

    Args:
        clean: (n, height, width) nanomaggies per pixel.
        survey: Its name, or the survey itself.
        band: One of its bands.
        seeds: n seeds, one a map, so that a map's noise does not depend on what it is drawn together with.
        sky_image: (height, width) real image of the survey, sky subtracted, nanomaggies per pixel. It brings its own
            sky and readout noise, and its neighbours; only the noise of the source is drawn.
        sky_sigma: Its σ, a number or (height, width); by default 1.4826 times its median absolute deviation.

    Returns:
        noisy, sigma: each (n, height, width) nanomaggies per pixel.

    Raises:
        ObservationError: Wrong shapes, a sky image that is not finite, or a source too bright to count.
    """
    survey = optical_survey(survey)
    found = survey.band(band)
    clean = np.asarray(clean, np.float64)
    if clean.ndim != 3 or len(seeds) != len(clean):
        raise ObservationError(f"noise needs maps (n, height, width) and n seeds, not {clean.shape} and {len(seeds)}")
    c = electrons_per_nanomaggy(found)
    sky = sky_electrons(found, survey.pixel_arcsec)
    fixed: Array = np.asarray(found.exposures * found.read_noise_e**2)
    background: Array = np.zeros(())
    if sky_image is not None:
        sky, background = 0.0, np.asarray(sky_image, np.float64)
        if background.shape != clean.shape[1:] or not np.isfinite(background).all():
            raise ObservationError(
                f"a sky image of shape {background.shape} cannot lie under maps of {clean.shape[1:]}: cut it to their "
                f"size, on the survey's pixels, and choose a part without gaps"
            )
        deviation = 1.4826 * float(np.median(np.abs(background - np.median(background))))
        fixed = (c * np.asarray(deviation if sky_sigma is None else sky_sigma, np.float64)) ** 2
    counted = np.maximum(c * clean + sky, 0.0)
    if counted.max(initial=0.0) > _BRIGHTEST:
        raise ObservationError(
            f"a pixel of {counted.max():.2g} electrons is too bright to count; is the light in Lsun/kpc², and the "
            f"redshift not tiny?"
        )
    noisy = np.empty_like(clean)
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        noisy[row] = rng.poisson(counted[row])
        if sky_image is None:
            noisy[row] += rng.normal(0.0, np.sqrt(fixed), clean.shape[1:])
    return (noisy - sky) / c + background, np.sqrt(counted + fixed) / c


def observe_optical(
    light: NDArray[Any],
    side_kpc: float,
    survey: str | OpticalSurvey,
    band: str,
    redshift: float | Placement,
    *,
    seed: int = 0,
    shape: tuple[int, int] | None = None,
    light_band: str | None = None,
    k_correction: float | None = None,
    psf: NDArray[Any] | None = None,
    psf_pixel_arcsec: float | None = None,
    sky_image: NDArray[Any] | None = None,
    ra: float = 0.0,
    dec: float = 0.0,
) -> Observation:
    """One light map as a survey would see it.

    Args:
        light: (height, width) stellar light, Lsun/kpc².
        side_kpc: Width of the map, physical kpc.
        survey: Its name, or the survey itself.
        band: One of its bands.
        redshift: Where to put the galaxy, or a placement with another cosmology.
        seed: Of the noise.
        shape: (height, width) of the image, in the survey's pixels; by default what covers the map.
        light_band: Rest-frame band of ``light``; by default what the survey's band says.
        k_correction: See :func:`apparent_flux`.
        psf: See :func:`see`.
        psf_pixel_arcsec: See :func:`see`.
        sky_image: See :func:`add_noise`.
        ra: Right ascension of the centre, degrees.
        dec: Declination of the centre, degrees.

    Returns:
        Clean, noisy and σ maps in nanomaggies per pixel, with WCS, zero point and width of the PSF.

    Raises:
        ObservationError: The map, its size, the seed or the sky image is none, or the field has too many pixels.
        SkyError: The redshift is not positive.
        SurveyError: An unknown survey or band.
        ResamplingError: The point spread function does not fit the image.
    """
    survey = optical_survey(survey)
    found = survey.band(band)
    placement = redshift if isinstance(redshift, Placement) else Placement(redshift)
    light = np.asarray(light)
    if light.ndim != 2 or light.size == 0:
        raise ObservationError(f"one light map is (height, width) with pixels, not of shape {light.shape}")
    check_seed(seed)
    pixel_kpc = side_kpc / light.shape[1]
    flux = apparent_flux(light, pixel_kpc, placement, light_band or found.light or band, k_correction)
    pixel_arcsec = placement.arcsec(pixel_kpc)
    shape = field_shape(light.shape, pixel_arcsec, survey.pixel_arcsec, shape, placement.redshift)
    clean = see(flux, pixel_arcsec, survey, band, shape, psf, psf_pixel_arcsec)
    noisy, sigma = add_noise(clean[None], survey, band, [seed], sky_image)
    header = dict(wcs_header(clean.shape, survey.pixel_arcsec, ra, dec))
    pixel = survey.pixel_arcsec
    width = found.fwhm_arcsec
    if psf is not None:
        width = kernel_fwhm(psf, pixel if psf_pixel_arcsec is None else psf_pixel_arcsec)
    header |= {
        "FILTER": band,
        "MAGZERO": ZERO_POINT,
        "EXPTIME": found.exposure_s,
        "GAIN": electrons_per_nanomaggy(found),
        "PSFFWHM": width,
        "SIDEKPC": placement.kpc(clean.shape[1] * pixel),
    }
    return Observation(
        clean.astype(np.float32),
        noisy[0].astype(np.float32),
        sigma[0].astype(np.float32),
        unit=UNIT,
        pixel_arcsec=pixel,
        domain=f"light_{band}",
        survey=survey.name,
        redshift=placement.redshift,
        seed=seed,
        header=header,
    )


def _exponential(half_light: float, pixel: float, half: int) -> Array:
    """(2 half + 1)² exponential disc on pixels, by its values at 5 × 5 points of each; sum 1."""
    points = (np.arange(5 * (2 * half + 1)) - 2.5 * (2 * half + 1) + 0.5) * pixel / 5.0
    # Half the light of an exponential lies within 1.67835 scale lengths.
    profile = np.exp(-1.67835 / half_light * np.hypot(points[:, None], points[None, :]))
    disc = rebin(profile, 1.0, 5.0)
    return disc / disc.sum()


def limiting_magnitude(survey: str | OpticalSurvey, band: str, significance: float = 5.0) -> float:
    """AB magnitude that the band reaches, of what its published depth is of.

    With profile P_i (sum 1) the noise of a fitted flux is that of 1 / Σ P² pixels (Ivezić et al. 2019); in an aperture
    it is that of its pixels, and the source is the share f of its light inside:

        significance = f F / √(f F + n_eff v),   v = B + n R² electrons.

    Args:
        survey: Its name, or the survey itself.
        band: One of its bands.
        significance: In σ.

    Returns:
        AB magnitude.
    """
    survey = optical_survey(survey)
    found = survey.band(band)
    pixel, width = survey.pixel_arcsec, found.depth_fwhm_arcsec or found.fwhm_arcsec
    share = 1.0
    profile = _star(found, width, pixel)
    if found.depth_half_light_arcsec is not None:
        half = max(profile.shape[0] // 2, int(np.ceil(8.0 * found.depth_half_light_arcsec / pixel)))
        disc = _exponential(found.depth_half_light_arcsec, pixel, half)
        profile = np.asarray(convolve(np.pad(disc, profile.shape[0] // 2), profile), np.float64)
    pixels = 1.0 / float((profile**2).sum())
    if found.depth_aperture_arcsec is not None:
        radius = 0.5 * found.depth_aperture_arcsec
        fine = pixel / 15.0
        star = _star(found, width, fine)
        away = np.arange(star.shape[0]) - star.shape[0] // 2
        share = float(star[np.hypot(away[:, None], away[None, :]) * fine <= radius].sum())
        pixels = np.pi * (radius / pixel) ** 2
    variance = pixels * (sky_electrons(found, pixel) + found.exposures * found.read_noise_e**2)
    s2 = significance**2
    electrons = 0.5 * (s2 + np.sqrt(s2 * s2 + 4.0 * s2 * variance)) / share
    return ZERO_POINT - 2.5 * float(np.log10(electrons / electrons_per_nanomaggy(found)))
