"""An image of one survey as another survey would have taken it: FIRST to NVSS, HSC to SDSS, ten years to one.

Radio, Gaussian beams with covariances A and B (both in Jy/beam of their own beam):

    K = Gaussian of covariance B - A,   map_B = (Ω_B / Ω_A) K ⊛ map_A at the centres of the new pixels,
    σ_res = σ_A (Ω_B / Ω_A) [det A / det(2B - A)]^{1/4},   σ_add² = σ_B² - σ_res²,

where the noise of A is correlated as its beam is, and the added noise as the beam B. Optical, in flux per pixel:

    K = F⁻¹[P_B P_A* / (|P_A|² + ε)],   map_B = rebin(K ⊛ map_A),   σ_res² = Σ (K ⊛ pixel)² σ_A².

B - A must be positive definite, and K must really turn one point spread function into the other: an image cannot be
made sharper. Nor can its noise be taken away: where what is left of A's noise, σ_res, is above that of B already,
nothing is added, σ is σ_res, and a warning says so. (That is so for FIRST smoothed to the beam of the NVSS, if its
noise is that of its maps: 0.9 against 0.45 mJy/beam.) For a map without noise give ``noise_in=0``.

Assumptions: maps are sampled at the pixels' centres (radio) or integrated over pixels (optical); spacings that array A
lacks are not made up: what it resolves out stays lost.

References:
    Wild 1970, Aust. J. Phys. 23, 113 (deconvolution of Gaussian beams by their covariances).
    Aniano, Draine, Gordon & Sandstrom 2011, PASP 123, 1218 (kernels between point spread functions).
"""

import warnings
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from skyshift.datasets.beams import BeamError, beam_area, matching_kernel
from skyshift.datasets.observation import Observation, ObservationError, check_map, check_seed
from skyshift.datasets.optical import UNIT, noise_sigma, psf_kernel
from skyshift.datasets.radio import beam_cards
from skyshift.datasets.radio_beams import check_beam, correlated_noise
from skyshift.datasets.resampling import convolve, rebin
from skyshift.datasets.sky import wcs_header
from skyshift.datasets.surveys import OpticalSurvey, RadioSurvey, Survey, get_survey

Array = NDArray[np.float64]

_FWHM2 = 8.0 * np.log(2.0)
_REGULARISATION = np.sqrt(1e-5)
"""ε of :func:`skyshift.datasets.beams.matching_kernel`: surveys' own models have no noise."""
_CLOSE = 0.02
"""Largest difference between K ⊛ P_A and P_B, over the peak of P_B."""


class NoisierWarning(UserWarning):
    """The image that was given is noisier than the survey that it is to imitate."""


def degrade(
    values: NDArray[Any],
    from_survey: str | Survey,
    to_survey: str | Survey,
    *,
    seed: int,
    noise_in: float | None = None,
    band: str | tuple[str, str] = "r",
    shape: tuple[int, int] | None = None,
    direction: tuple[float, float] = (0.0, 0.0),
    domain: str = "",
) -> Observation:
    """Turn an image of one survey into one of another.

    Args:
        values: (height, width) on the pixels of ``from_survey``: Jy/beam, or nanomaggies per pixel.
        from_survey: Survey that the image is of, name or survey.
        to_survey: Survey to imitate, of the same kind, with a wider beam.
        seed: Of the added noise.
        noise_in: σ of the image's noise in its own unit; by default that of its survey, 0 for a map without noise.
        band: Of optical surveys; a pair where the two call it differently.
        shape: (height, width) in the new pixels, about the same centre; by default what the image covers wholly.
        direction: Right ascension and declination of the centre, degrees.
        domain: For headers; by default ``continuum`` or the band.

    Returns:
        ``clean`` is the image in the new beam and pixels (with what is left of its own noise), ``noisy`` has the noise
        that was missing added, ``sigma`` is the noise of that.

    Raises:
        ObservationError: Surveys of different kinds, a beam that is narrower than the first, values that are not
            finite, or a field smaller than a new pixel.
        SurveyError: An unknown survey or band.
    """
    first = get_survey(from_survey) if isinstance(from_survey, str) else from_survey
    second = get_survey(to_survey) if isinstance(to_survey, str) else to_survey
    check_seed(seed)
    image = check_map(values, f"image of {first.name}")
    if noise_in is not None and not (np.isfinite(noise_in) and noise_in >= 0.0):
        raise ObservationError(f"an image cannot have noise of {noise_in}; give its σ, or 0 for none")
    size = shape or _covered(image, first.pixel_arcsec, second.pixel_arcsec)
    if isinstance(first, RadioSurvey) and isinstance(second, RadioSurvey):
        clean, added, sigma, cards = _radio(image, first, second, size, seed, noise_in)
        unit, name = "Jy / beam", domain or "continuum"
    elif isinstance(first, OpticalSurvey) and isinstance(second, OpticalSurvey):
        bands = (band, band) if isinstance(band, str) else band
        clean, added, sigma, cards = _optical(image, first, second, bands, size, seed, noise_in)
        unit, name = UNIT, domain or f"{second.name}_{bands[1]}"
    else:
        raise ObservationError(
            f"'{first.name}' and '{second.name}' are not both radio or both optical surveys; light and radio waves "
            "come from different things"
        )
    header = dict(wcs_header(size, second.pixel_arcsec, *direction)) | cards | {"FROMSURV": first.name}
    return Observation(
        clean.astype(np.float32),
        (clean + added).astype(np.float32),
        sigma.astype(np.float32),
        unit,
        second.pixel_arcsec,
        name,
        second.name,
        None,
        seed,
        header,
    )


def _covered(image: Array, from_pixel: float, to_pixel: float) -> tuple[int, int]:
    """Whole new pixels that lie within the image."""
    rows, columns = (int(np.floor(side * from_pixel / to_pixel + 1e-9)) for side in image.shape)
    if min(rows, columns) < 1:
        raise ObservationError(
            f"an image of {image.shape[0]} × {image.shape[1]} pixels of {from_pixel:g} arcsec is smaller than a pixel "
            f"of {to_pixel:g} arcsec; give a larger field"
        )
    return rows, columns


# Radio.


def beam_covariance(major: float, minor: float, angle: float) -> Array:
    """Covariance of a Gaussian beam, (x right, y up), arcsec².

    Args:
        major: FWHM, arcsec.
        minor: FWHM, arcsec.
        angle: Position angle, degrees from north (up) to east (left).
    """
    turn = np.deg2rad(angle)
    along, across = np.array([-np.sin(turn), np.cos(turn)]), np.array([np.cos(turn), np.sin(turn)])
    return np.asarray((major**2 * np.outer(along, along) + minor**2 * np.outer(across, across)) / _FWHM2)


def matching_beam(from_survey: RadioSurvey, to_survey: RadioSurvey) -> Array:
    """Covariance B - A of the Gaussian that turns one beam into the other, arcsec²; zero for equal beams.

    Raises:
        ObservationError: The second beam is narrower than the first in some direction.
    """
    first, second = (
        beam_covariance(survey.beam_major_arcsec, survey.beam_minor_arcsec, survey.beam_angle_deg)
        for survey in (from_survey, to_survey)
    )
    difference = second - first
    least, most = np.linalg.eigvalsh(difference)
    if max(abs(least), abs(most)) < 1e-9 * np.trace(second):
        return np.zeros((2, 2))
    if least <= 0:
        raise ObservationError(
            f"the beam of '{to_survey.name}', {to_survey.beam_major_arcsec:g} × {to_survey.beam_minor_arcsec:g} arcsec "
            f"at {to_survey.beam_angle_deg:g} degrees, does not contain that of '{from_survey.name}', "
            f"{from_survey.beam_major_arcsec:g} × {from_survey.beam_minor_arcsec:g} at {from_survey.beam_angle_deg:g}: "
            "an image can be smoothed, not sharpened; degrade to a beam that is wider in every direction"
        )
    return difference


def _gaussian(covariance: Array, pixel: float) -> Array:
    """Kernel with the transform exp(-½ (2πk)ᵀ C (2πk)), sum 1: right for a kernel narrower than a pixel as well."""
    widths = np.sqrt(np.diag(covariance)) / pixel
    half = [int(np.ceil(6.0 * width)) + 4 for width in (widths[1], widths[0])]
    ky, kx = (scipy.fft.fftfreq(2 * side + 1, pixel)[:, None] * 2.0 * np.pi for side in half)
    kx = kx.T
    exponent = covariance[0, 0] * kx**2 + 2.0 * covariance[0, 1] * kx * ky + covariance[1, 1] * ky**2
    return np.asarray(np.fft.fftshift(scipy.fft.ifft2(np.exp(-0.5 * exponent)).real))


def residual_noise(from_survey: RadioSurvey, to_survey: RadioSurvey, noise_in: float) -> float:
    """Noise that is left after smoothing, Jy/beam of the second survey; the noise was correlated as the first beam is.

    Args:
        from_survey: Survey of the image.
        to_survey: Survey to imitate.
        noise_in: Of the image, Jy/beam.
    """
    first, second = (
        beam_covariance(survey.beam_major_arcsec, survey.beam_minor_arcsec, survey.beam_angle_deg)
        for survey in (from_survey, to_survey)
    )
    left = (np.linalg.det(first) / np.linalg.det(2.0 * second - first)) ** 0.25
    return float(noise_in * left * _beam_ratio(from_survey, to_survey))


def _beam_ratio(first: RadioSurvey, second: RadioSurvey) -> float:
    area = [beam_area(survey.beam_major_arcsec, survey.beam_minor_arcsec) for survey in (first, second)]
    return area[1] / area[0]


Parts = tuple[Array, Array, Array, dict[str, Any]]


def _radio(
    image: Array, first: RadioSurvey, second: RadioSurvey, size: tuple[int, int], seed: int, noise_in: float | None
) -> Parts:
    """Image in the new beam, noise to add, σ, and cards."""
    check_beam(first)
    check_beam(second)
    covariance = matching_beam(first, second)
    smooth = image
    if covariance.any():
        kernel = _gaussian(covariance, first.pixel_arcsec)
        # Beyond the image the sky is taken as empty; a kernel wider than it reaches into that.
        pad = [max(0, (k - side + 1) // 2) for k, side in zip(kernel.shape, image.shape, strict=True)]
        padded = convolve(np.pad(image, [(pad[0], pad[0]), (pad[1], pad[1])]), kernel)
        smooth = np.asarray(padded[pad[0] : pad[0] + image.shape[0], pad[1] : pad[1] + image.shape[1]], np.float64)
    rows, columns = (
        (np.arange(new) - 0.5 * (new - 1)) * second.pixel_arcsec / first.pixel_arcsec + 0.5 * (old - 1)
        for new, old in zip(size, image.shape, strict=True)
    )
    grid = np.meshgrid(rows, columns, indexing="ij")
    clean = map_coordinates(smooth, grid, order=3, mode="nearest") * _beam_ratio(first, second)
    left = residual_noise(first, second, first.noise() if noise_in is None else noise_in)
    missing = _missing(left**2, second.noise() ** 2, first, second, "Jy/beam")
    beam = (second.beam_major_arcsec, second.beam_minor_arcsec, second.beam_angle_deg)
    added = np.sqrt(missing) * correlated_noise(size, *beam, second.pixel_arcsec, seed)
    cards = beam_cards(*beam) | {"FREQ": second.frequency_hz, "NOISEADD": float(np.sqrt(missing))}
    return clean, added, np.full(size, np.sqrt(left**2 + missing)), cards


def _missing(left: Any, wanted: Any, first: Survey, second: Survey, unit: str) -> Any:
    """Variance to add; warns where there is too much already."""
    if np.any(left > wanted * (1 + 1e-9)):
        warnings.warn(
            f"what is left of the noise of '{first.name}', {float(np.sqrt(np.max(left))):.3g} {unit}, is above that of "
            f"'{second.name}', {float(np.sqrt(np.max(wanted))):.3g}: it cannot be taken away, so nothing is added",
            NoisierWarning,
            stacklevel=4,
        )
    return np.maximum(wanted - left, 0.0)


# Optical.


def _matching(first: Array, second: Array) -> Array:
    """Kernel from one point spread function to another on the same pixels; a single pixel where they are equal.

    Raises:
        ObservationError: No kernel does it to 2 % of the peak: the second is narrower than the first.
    """
    size = max(*first.shape, *second.shape)
    first, second = (np.pad(psf, [((size - side) // 2,) * 2 for side in psf.shape]) for psf in (first, second))
    if np.abs(first - second).max() < 1e-6 * second.max():
        return np.ones((1, 1))
    try:
        kernel = matching_kernel(first, second, _REGULARISATION)
    except BeamError as error:
        raise ObservationError(
            f"no kernel turns the first point spread function into the second: {error}. An image can be smoothed, not "
            "sharpened; degrade to a survey with a wider one"
        ) from None
    edge = size // 2 + 1
    difference = float(np.abs(convolve(np.pad(first, edge), kernel) - np.pad(second, edge)).max() / second.max())
    if difference > _CLOSE:
        raise ObservationError(
            "no kernel turns the first point spread function into the second: the best is off by "
            f"{100 * difference:.0f} % of the peak. An image can be smoothed, not sharpened; degrade to a survey "
            "with a wider one"
        )
    return kernel


def _optical(
    image: Array,
    first: OpticalSurvey,
    second: OpticalSurvey,
    bands: tuple[str, str],
    size: tuple[int, int],
    seed: int,
    noise_in: float | None,
) -> Parts:
    """Image through the new point spread function, noise to add, σ, and cards."""
    second.band(bands[1])
    pixel, ratio = first.pixel_arcsec, second.pixel_arcsec / first.pixel_arcsec
    kernel = _matching(psf_kernel(first, bands[0]), psf_kernel(second, bands[1], pixel))
    smooth = convolve(image, kernel) if kernel.size > 1 else image
    clean = np.asarray(rebin(smooth, pixel, second.pixel_arcsec, size), np.float64)
    before = noise_sigma(image, first, bands[0]) ** 2 if noise_in is None else np.full(image.shape, noise_in**2)
    left = _carried(before, kernel, ratio, pixel, second.pixel_arcsec, size)
    missing = _missing(left, noise_sigma(clean, second, bands[1]) ** 2, first, second, UNIT)
    added = np.sqrt(missing) * np.random.default_rng(seed).standard_normal(size)
    cards = {"FILTER": bands[1], "MAGZERO": 22.5, "PSFFWHM": second.band(bands[1]).fwhm_arcsec}
    return clean, added, np.sqrt(left + missing), cards


def _carried(
    before: Array, kernel: Array, ratio: float, pixel: float, new_pixel: float, size: tuple[int, int]
) -> Array:
    """Variance in the new pixels of independent noise in the old ones: Σ (K ⊛ new pixel)² σ²."""
    half = int(np.ceil(0.5 * (ratio - 1.0) - 1e-9))
    edge = np.clip(0.5 * ratio - np.abs(np.arange(-half, half + 1)) + 0.5, 0.0, 1.0)
    grow = kernel.shape[0] // 2 + half
    both = convolve(np.pad(kernel, half + grow), np.outer(edge, edge))
    squared = both[grow : both.shape[0] - grow, grow : both.shape[1] - grow] ** 2
    pad = [max(0, (squared.shape[0] - side + 1) // 2) for side in before.shape]
    padded = convolve(np.pad(before, [(pad[0], pad[0]), (pad[1], pad[1])], mode="edge"), squared, "nearest")
    carried = padded[pad[0] : pad[0] + before.shape[0], pad[1] : pad[1] + before.shape[1]]
    mean = rebin(carried, pixel, new_pixel, size, conserve="surface_brightness")
    return np.maximum(np.asarray(mean, np.float64), 0.0)
