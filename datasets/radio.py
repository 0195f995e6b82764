"""Simulated maps as an interferometer sees them.

A map is placed at a redshift, brought to the survey's pixels with its flux conserved, weighted by the primary beam,
convolved with the synthesised beam, and noise is added:

    line       ∫S dv [Jy km/s] = (1 + z) M_HI [Msun] / (2.356e5 D_L² [Mpc²])                      (optically thin)
    beam       I [Jy/beam] = Σ S_pixel exp(-4 ln 2 (u²/θ_maj² + v²/θ_min²))
    kelvin     T = λ² S / (2 k Ω) = 1.222e3 S [mJy/beam] / (ν² [GHz] θ_maj θ_min [arcsec]),   Ω = π θ_maj θ_min / 4 ln 2
    noise      σ = SEFD_array / √(2 Δν t) a channel;  σ √(W δv) for a sum of channels δv over a width W (Jy/beam km/s)
    field      A(r) = exp(-4 ln 2 r² / FWHM²),   FWHM = 1.2 λ / D

Velocities are those of the galaxy's frame, dv = c dν / ν with ν = ν₀ / (1 + z); with optical velocities cz the factor
would be (1 + z)² (Meyer et al. 2017). ∫T_b dv of a map is likewise the emitted one: N_HI = 1.823e18 ∫T_b dv, so both
kinds of map give the same flux. What is observed in kelvin is T_b / (1 + z).

Noise is correlated as the beam is (:mod:`skyshift.datasets.radio_beams` says why), and flat over the field before the
correction for the primary beam; after it, noise and σ rise as 1/A.

Assumptions: the synthesised beam is Gaussian (a cleaned map; :mod:`skyshift.datasets.visibilities` has dirty ones), the
line is optically thin, and all of it falls within the velocity width over which the map is summed. The sky is averaged
over the survey's pixels first, which makes a beam of five pixels look 1 % wider.

References:
    Meyer et al. 2017, PASA 34, 52 (arXiv:1705.04210) (HI masses, fluxes and velocity frames).
    Taylor, Carilli & Perley (eds.) 1999, Synthesis Imaging in Radio Astronomy II, ASP 180 (noise, beams, primary beam).
    Condon & Ransom 2016, Essential Radio Astronomy, Princeton (Rayleigh-Jeans; 1.2 λ / D).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from astropy import constants, units
from numpy.typing import NDArray

from skyshift.datasets.beams import beam_area
from skyshift.datasets.observation import Observation, ObservationError, check_map, check_seed, field_shape
from skyshift.datasets.quantities import COLUMN_PER_BRIGHTNESS as HI_COLUMN
from skyshift.datasets.quantities import LINE_FREQUENCY as HI_FREQUENCY
from skyshift.datasets.radio_beams import beam_response, check_beam, correlated_noise, primary_beam
from skyshift.datasets.resampling import convolve, rebin
from skyshift.datasets.sky import Placement, wcs_header
from skyshift.datasets.surveys import RadioSurvey, radio_survey

Array = NDArray[np.float64]

HI_FLUX = 2.356e5
"""Msun / (Mpc² Jy km/s): M_HI = HI_FLUX D_L² ∫S dv / (1 + z). The number that the field quotes; from first principles,
with A10 = 2.884e-15 /s, it is 2.343e5, 0.5 % less."""

PrimaryBeam = Literal["none", "attenuated", "corrected"]

_LIGHT = float(constants.c.to_value("km/s"))
_SMALLEST_RESPONSE = 0.1
"""Corrected maps end where the primary beam has fallen to a tenth, as those of the telescopes do."""

# Units.


def hi_flux(mass: Any, placement: Placement) -> Any:
    """Line flux of atomic hydrogen, Jy km/s, velocities in the galaxy's frame.

    Args:
        mass: Msun.
        placement: Where the galaxy is.
    """
    return np.asarray(mass) * (1.0 + placement.redshift) / (HI_FLUX * placement.luminosity_distance_mpc**2)


def surface_density_of_brightness(brightness: Any) -> Any:
    """Σ_HI in Msun/kpc² of ∫T_b dv in K km/s, emitted, optically thin."""
    per_column = float((constants.m_p + constants.m_e).to_value("Msun") * (1 / units.cm**2).to_value("kpc-2"))
    return np.asarray(brightness) * HI_COLUMN * per_column


def kelvin_per_jansky(frequency_hz: float, beam_major_arcsec: float, beam_minor_arcsec: float) -> float:
    """Brightness temperature in K of 1 Jy/beam, Rayleigh-Jeans.

    Args:
        frequency_hz: Observed, Hz.
        beam_major_arcsec: FWHM, arcsec.
        beam_minor_arcsec: FWHM, arcsec.
    """
    solid_angle = beam_area(beam_major_arcsec, beam_minor_arcsec) * units.arcsec**2
    wavelength = constants.c / (frequency_hz * units.Hz)
    kelvin = wavelength**2 / (2 * constants.k_B * solid_angle.to(units.rad**2)) * units.rad**2 * units.Jy
    return float(kelvin.to_value("K"))


def in_kelvin(observation: Observation) -> Observation:
    """An observation in Jy/beam (or Jy/beam km/s) as one in K (or K km/s).

    Raises:
        ObservationError: It has no beam or frequency, or is in other units.
    """
    beam = observation.beam_arcsec
    frequency = observation.header.get("FREQ")
    if beam is None or frequency is None:
        raise ObservationError("kelvin follow from a beam and a frequency; the header lacks BMAJ and BMIN, or FREQ")
    unit = units.Unit(observation.unit) / units.Unit("Jy / beam")
    if not (unit.is_equivalent("") or unit.is_equivalent("km/s")):
        raise ObservationError(f"only maps in Jy/beam or Jy/beam km/s can be in kelvin, not '{observation.unit}'")
    factor = np.float32(kelvin_per_jansky(float(frequency), beam[0], beam[1]))
    return Observation(
        observation.clean * factor,
        observation.noisy * factor,
        observation.sigma * factor,
        (unit * units.K).to_string(),
        observation.pixel_arcsec,
        observation.domain,
        observation.survey,
        observation.redshift,
        observation.seed,
        observation.header,
    )


def velocity_width(bandwidth_hz: float, frequency_hz: float) -> float:
    """km/s that a bandwidth spans at an observed frequency: c Δν / ν."""
    return _LIGHT * bandwidth_hz / frequency_hz


# The observation.


def observe_radio(
    values: NDArray[Any],
    unit: str,
    side_kpc: float,
    survey: str | RadioSurvey,
    redshift: float,
    *,
    seed: int,
    width_kms: float = 300.0,
    shape: tuple[int, int] | None = None,
    primary: PrimaryBeam | None = None,
    pointing: tuple[float, float] = (0.0, 0.0),
    direction: tuple[float, float] = (0.0, 0.0),
    domain: str = "",
    placement: Placement | None = None,
) -> Observation:
    """A simulated map as a radio survey sees it.

    Args:
        values: (height, width), square pixels, row 0 at the bottom.
        unit: What the map is in. ``Msun / kpc2`` (surface density of atomic hydrogen) and ``K km / s`` (∫T_b dv in the
            galaxy's frame) become a map of the line, in Jy/beam km/s; ``Jy`` (a pixel, as observed) one of the
            continuum, in Jy/beam.
        side_kpc: Width of the map, physical kpc.
        survey: Name or survey.
        redshift: Where the galaxy is placed, positive.
        seed: Of the noise.
        width_kms: Velocities over which channels of the line are summed, km/s; the noise grows as its root.
        shape: (height, width) in pixels of the survey; by default what covers the map.
        primary: ``corrected`` for the primary beam (default of a single pointing), ``attenuated`` by it, or ``none``
            (default of surveys that are mosaics).
        pointing: Where the array points, arcsec right and up of the map's centre.
        direction: Right ascension and declination of the map's centre, degrees.
        domain: Of the map, for headers; by default ``hi`` or ``continuum``.
        placement: Redshift and cosmology; instead of ``redshift``'s default cosmology.

    Raises:
        ObservationError: A map that is not finite, negative (a line) or in other units, a beam that the pixels do not
            sample, a line outside of the receiver's band, a width or side that is not positive, a field beyond the
            primary beam or of too many pixels, or a negative seed.
        SkyError: A redshift that is not positive.
        ResamplingError: The beam does not fit into the field.
        SurveyError: An unknown survey, or a bandwidth or time that is not positive.
    """
    check_seed(seed)
    arriving = arrive(values, unit, side_kpc, survey, placement or Placement(redshift), width_kms, shape, direction)
    telescope, flux, noise = arriving.survey, arriving.flux, arriving.noise
    size = (flux.shape[0], flux.shape[1])
    primary = primary or ("none" if telescope.mosaic else "corrected")
    response = _response(telescope, size, arriving.frequency_hz, pointing, primary)
    beam = (telescope.beam_major_arcsec, telescope.beam_minor_arcsec, telescope.beam_angle_deg)
    clean = convolve(flux * response, beam_response(*beam, telescope.pixel_arcsec))
    added = noise * correlated_noise(size, *beam, telescope.pixel_arcsec, seed)
    gain = 1.0 / response if primary == "corrected" else np.ones_like(response)

    return Observation(
        (clean * gain).astype(np.float32),
        ((clean + added) * gain).astype(np.float32),
        (noise * gain).astype(np.float32),
        arriving.unit,
        telescope.pixel_arcsec,
        domain or arriving.domain,
        telescope.name,
        arriving.redshift,
        seed,
        arriving.header | beam_cards(*beam) | {"PRIMBEAM": primary},
    )


@dataclass(frozen=True)
class Arrival:
    """What arrives at a telescope, before it is observed.

    Attributes:
        flux: (height, width) on the survey's pixels, Jy km/s (line) or Jy a pixel.
        line: Whether it is a line.
        frequency_hz: Observed, Hz.
        noise: Noise of the map to be, as the survey says: Jy/beam km/s (line) or Jy/beam.
        survey: The telescope.
        redshift: Of the galaxy.
        header: WCS, frequency, width, telescope.
    """

    flux: Array
    line: bool
    frequency_hz: float
    noise: float
    survey: RadioSurvey
    redshift: float
    header: dict[str, Any]

    @property
    def unit(self) -> str:
        """Of the map to be."""
        return "Jy km / (beam s)" if self.line else "Jy / beam"

    @property
    def domain(self) -> str:
        """Of the map to be, where it has no other name."""
        return "hi" if self.line else "continuum"


def arrive(
    values: NDArray[Any],
    unit: str,
    side_kpc: float,
    survey: str | RadioSurvey,
    place: Placement,
    width_kms: float,
    shape: tuple[int, int] | None,
    direction: tuple[float, float],
) -> Arrival:
    """Flux of a map on the pixels of a survey, and the noise that will meet it; see :func:`observe_radio`."""
    telescope = radio_survey(survey)
    check_beam(telescope)
    sky, line = pixel_flux(check_map(values, "map"), unit, side_kpc, place)
    frequency = HI_FREQUENCY / (1.0 + place.redshift) if line else telescope.frequency_hz
    _check_band(telescope, frequency, place.redshift)
    noise = _noise(telescope, frequency, width_kms if line else None)
    if line and (negative := int((sky < 0).sum())):
        raise ObservationError(
            f"{negative} of {sky.size} pixels of the map are negative; gas that emits a line has none: give the map "
            "without noise, not its logarithm, or set them to 0"
        )
    pixel = place.arcsec(side_kpc) / sky.shape[1]
    shape = field_shape(sky.shape, pixel, telescope.pixel_arcsec, shape, place.redshift)
    flux = rebin(sky, pixel, telescope.pixel_arcsec, shape)
    header = dict(wcs_header((flux.shape[0], flux.shape[1]), telescope.pixel_arcsec, *direction))
    header |= {"FREQ": frequency, "TELESCOP": telescope.title, "EXPTIME": telescope.time_s}
    header |= {"SIDEKPC": place.kpc(flux.shape[1] * telescope.pixel_arcsec)}
    if line:
        header |= {"RESTFRQ": HI_FREQUENCY, "VELWIDTH": width_kms, "CHANWID": telescope.bandwidth_hz}
    return Arrival(np.asarray(flux, np.float64), line, frequency, noise, telescope, place.redshift, header)


def beam_cards(major: float, minor: float, angle: float) -> dict[str, float]:
    """FITS cards of a beam in degrees, from arcsec."""
    return {"BMAJ": major / 3600.0, "BMIN": minor / 3600.0, "BPA": angle}


def pixel_flux(values: Array, unit: str, side_kpc: float, place: Placement) -> tuple[Array, bool]:
    """Flux that arrives from each pixel of a map.

    Args:
        values: (height, width), finite.
        unit: See :func:`observe_radio`.
        side_kpc: Width of the map, physical kpc.
        place: Where the galaxy is.

    Returns:
        (height, width) Jy km/s (a line) or Jy (the continuum), and whether it is a line.

    Raises:
        ObservationError: Other units, or a side that is not positive.
    """
    if not (np.isfinite(side_kpc) and side_kpc > 0):
        raise ObservationError(f"a map of {side_kpc} kpc has no size; give the width of the map in kpc")
    try:
        found = units.Unit(unit)
    except ValueError as error:
        raise ObservationError(f"'{unit}' is no unit ({error})") from None
    area = (side_kpc / values.shape[1]) ** 2
    if found.is_equivalent("Msun / kpc2"):
        return np.asarray(hi_flux(values * found.to("Msun / kpc2") * area, place)), True
    if found.is_equivalent("K km / s"):
        density = surface_density_of_brightness(values * found.to("K km / s"))
        return np.asarray(hi_flux(density * area, place)), True
    if found.is_equivalent("Jy"):
        return values * found.to("Jy"), False
    raise ObservationError(
        f"a radio observation takes maps in Msun / kpc2 or K km / s (atomic hydrogen) or Jy (continuum), not '{unit}'"
    )


def _check_band(survey: RadioSurvey, frequency: float, redshift: float) -> None:
    if not survey.band_low_hz <= frequency <= survey.band_high_hz:
        raise ObservationError(
            f"at redshift {redshift:g} the map is observed at {frequency / 1e6:.1f} MHz, outside of the band of "
            f"'{survey.name}', {survey.band_low_hz / 1e6:g} to {survey.band_high_hz / 1e6:g} MHz"
        )


def _noise(survey: RadioSurvey, frequency: float, width_kms: float | None) -> float:
    """Noise in Jy/beam, or of a sum of channels over a width in Jy/beam km/s."""
    if width_kms is None:
        return survey.noise()
    channel = velocity_width(survey.bandwidth_hz, frequency)
    if not (np.isfinite(width_kms) and width_kms >= channel):
        raise ObservationError(
            f"a line summed over {width_kms} km/s: the width must be at least one channel of '{survey.name}', "
            f"{channel:.3g} km/s at {frequency / 1e6:.1f} MHz"
        )
    return survey.noise() * channel * float(np.sqrt(width_kms / channel))


def _response(
    survey: RadioSurvey, shape: tuple[int, int], frequency: float, pointing: Sequence[float], primary: PrimaryBeam
) -> Array:
    """Attenuation of the field; 1 where there is none."""
    if primary not in ("none", "attenuated", "corrected"):
        raise ObservationError(f"the primary beam is 'none', 'attenuated' or 'corrected', not '{primary}'")
    if primary == "none":
        return np.ones(shape)
    response = primary_beam(survey, shape, frequency, (pointing[0], pointing[1]))
    if primary == "corrected" and response.min() < _SMALLEST_RESPONSE:
        raise ObservationError(
            f"the field of {shape[0]} × {shape[1]} pixels reaches to where the primary beam of '{survey.name}' has "
            f"fallen to {response.min():.1g}, below {_SMALLEST_RESPONSE}: give a smaller shape, point at it, or choose "
            "primary='attenuated' or 'none'"
        )
    return response
