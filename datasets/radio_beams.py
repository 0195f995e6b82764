"""The synthesised beam of an interferometer, noise that is correlated as it is, and the primary beam of its dishes.

    beam     B(u, v) = exp(-4 ln 2 (u²/θ_maj² + v²/θ_min²)),   peak 1: Σ S_pixel B is in Jy/beam
    field    A(r) = exp(-4 ln 2 r² / FWHM²),   FWHM = 1.2 λ / D

Noise is correlated as the map's point response is: with natural weights the power of the noise in the uv plane is
proportional to the weights, whose transform is the beam, so its autocorrelation *is* the beam (and not the beam
convolved with itself, √2 wider, which white noise convolved with the beam would have; a real cube in the tests
agrees). It is therefore white noise convolved with the root of the beam, for a Gaussian one of FWHM θ/√2.

References:
    Taylor, Carilli & Perley (eds.) 1999, Synthesis Imaging in Radio Astronomy II, ASP 180 (noise, beams, primary beam).
    Condon & Ransom 2016, Essential Radio Astronomy, Princeton (1.2 λ / D).
"""

import numpy as np
from astropy import constants
from numpy.typing import NDArray

from skyshift.datasets.observation import ObservationError
from skyshift.datasets.resampling import convolve
from skyshift.datasets.surveys import RadioSurvey

Array = NDArray[np.float64]

_COARSEST = 2.0
"""Pixels that a beam must span."""


def check_beam(survey: RadioSurvey) -> None:
    """Check that a survey's pixels sample its beam.

    Raises:
        ObservationError: The beam spans fewer than two pixels: below that the map loses what the array measured, and
            a flux in Jy/beam depends on where in its pixel a source lies.
    """
    if not (survey.beam_minor_arcsec > 0 and survey.pixel_arcsec > 0):
        raise ObservationError(
            f"survey '{survey.name}': a beam of {survey.beam_major_arcsec:g} × {survey.beam_minor_arcsec:g} arcsec on "
            f"pixels of {survey.pixel_arcsec:g} arcsec is none; all three must be positive"
        )
    if survey.beam_minor_arcsec > survey.beam_major_arcsec * (1 + 1e-9):
        raise ObservationError(
            f"survey '{survey.name}': the beam's minor axis, {survey.beam_minor_arcsec:g} arcsec, is larger than its "
            f"major, {survey.beam_major_arcsec:g}; exchange them and turn the position angle by 90 degrees"
        )
    across = survey.beam_minor_arcsec / survey.pixel_arcsec
    if across < _COARSEST:
        raise ObservationError(
            f"survey '{survey.name}': the beam spans {across:.2g} pixels; a map of an interferometer needs "
            f"{_COARSEST:g} or more (pixels of at most {survey.beam_minor_arcsec / _COARSEST:g} arcsec)"
        )


def beam_response(major: float, minor: float, angle: float, pixel: float, reach: float = 2.4) -> Array:
    """A Gaussian beam at the pixels' centres, with peak 1: it turns Jy/pixel into Jy/beam.

    Values at the centres, and not integrals over the pixels, because that is what a map of an interferometer holds:
    a point source in the middle of a pixel shows its flux as its peak.

    Args:
        major: FWHM, arcsec.
        minor: FWHM, arcsec.
        angle: Position angle of the major axis, degrees from north (up) to east (left).
        pixel: arcsec.
        reach: Half a side of the kernel, in FWHM; 2.4 leaves 1e-7 of the peak outside.

    Returns:
        (size, size), odd.
    """
    half = int(np.ceil(reach * major / pixel))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * pixel
    sin, cos = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    along, across = (-sin * x + cos * y) / major, (cos * x + sin * y) / minor
    return np.asarray(np.exp(-4.0 * np.log(2.0) * (along**2 + across**2)))


def correlated_noise(
    shape: tuple[int, int], major: float, minor: float, angle: float, pixel: float, seed: int | np.random.Generator
) -> Array:
    """Noise of unit rms whose autocorrelation is a Gaussian beam.

    Args:
        shape: (height, width).
        major: FWHM of the beam, arcsec.
        minor: FWHM, arcsec.
        angle: Position angle, degrees.
        pixel: arcsec.
        seed: Whole number, or a generator.

    Returns:
        (height, width), mean 0. Its expected variance is 1 in every pixel; that of one map scatters about it.
    """
    root = beam_response(major / np.sqrt(2.0), minor / np.sqrt(2.0), angle, pixel)
    half = root.shape[0] // 2
    white = np.random.default_rng(seed).standard_normal((shape[0] + 2 * half, shape[1] + 2 * half))
    noise = convolve(white, root / np.sqrt((root**2).sum()))
    return np.asarray(noise[half : half + shape[0], half : half + shape[1]], np.float64)


def primary_beam(
    survey: RadioSurvey,
    shape: tuple[int, int],
    frequency_hz: float | None = None,
    pointing: tuple[float, float] = (0.0, 0.0),
) -> Array:
    """Response of an array to a source away from its pointing, A = 1 at the centre.

    Dishes are Gaussian with FWHM 1.2 λ / D. A baseline's response is the product of its dishes' voltage patterns √A;
    in an array of several kinds baselines count with their weight 1 / (SEFD_i SEFD_j).

    Args:
        survey: The array.
        shape: (height, width) on the survey's pixels.
        frequency_hz: Observed; by default the survey's.
        pointing: Where the array points, arcsec right and up of the map's centre.

    Returns:
        (height, width).
    """
    frequency = survey.frequency_hz if frequency_hz is None else frequency_hz
    y, x = (
        (np.arange(side) - 0.5 * (side - 1)) * survey.pixel_arcsec - offset
        for side, offset in zip(shape, (pointing[1], pointing[0]), strict=True)
    )
    squared = x[None, :] ** 2 + y[:, None] ** 2
    voltage, total = np.zeros(shape), 0.0
    for kind in survey.dishes:
        fwhm = float(np.rad2deg(1.2 * constants.c.value / frequency / kind.diameter_m)) * 3600.0
        weight = kind.count / kind.sefd_jy
        voltage += weight * np.exp(-2.0 * np.log(2.0) * squared / fwhm**2)
        total += weight
    return np.asarray((voltage / total) ** 2)
