"""What an interferometer samples of the uv plane, and the dirty map and noise that follow.

Antennas turn under the sky. A baseline (east, north, up) B at latitude φ, seen from hour angle H and declination δ, is

    X = -N sin φ + U cos φ,   Y = E,   Z = N cos φ + U sin φ,
    u = (X sin H + Y cos H) / λ,   v = (-X sin δ cos H + Y sin δ sin H + Z cos δ) / λ.

Samples are counted in cells of the map's Fourier grid, c; with weights w (natural w = c, uniform w = 1 where c > 0,
times a taper) the dirty beam and the dirty map of a sky in Jy/pixel are

    B = F⁻¹[w] N / Σw   (peak 1),      D = B ⊛ sky = F⁻¹[w F[sky]] N / Σw   (Jy/beam),

and the noise has the power w² / c, so that with natural weights its autocorrelation is the dirty beam. The cell at the
origin is empty (no baseline is zero long): the sum of a dirty map is zero.

Assumptions: the field is small (no w term), one channel, cells and not gridding kernels; the transform is periodic, so
a sky should be padded with empty pixels to twice its width (:func:`observe_dirty` does).

Layouts ``vla_d``, ``vla_b`` follow the power law of the VLA's arms, r_n = r_1 n^1.716 (Thompson et al. 1980), with arms
at azimuths 355, 115 and 236 degrees (D without n = 1, where antennas would touch); ``wsrt`` the regular spacing of its
ten fixed dishes with the movable ones of one standard configuration. ``meerkat`` and ``ska_mid_*`` are
**approximations**: random positions (always the same) with about the extent and concentration of the arrays, not the
positions of their dishes. For real ones give a table.

References:
    Thompson, Moran & Swenson 2017, Interferometry and Synthesis in Radio Astronomy, 3rd ed., Springer, ch. 4 and 10.
    Thompson, Clark, Wade & Napier 1980, ApJS 44, 151 (the VLA).
    SARAO, MeerKAT specifications (baselines 29 m to 7.7 km); SKA-TEL-INSA-0000537 (SKA1-Mid).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.fft
from astropy import constants
from numpy.typing import NDArray
from scipy.ndimage import label

from skyshift.datasets.observation import Observation, ObservationError, check_map, check_seed
from skyshift.datasets.radio import arrive, beam_cards
from skyshift.datasets.sky import Placement
from skyshift.datasets.surveys import LAYOUTS, RadioSurvey, radio_survey
from skyshift.naming import unknown

Array = NDArray[np.float64]
Weighting = Literal["natural", "uniform"]

_STEPS = 240
"""Samples along a track."""


def antenna_layout(name: str) -> Array:
    """Antenna positions of an array; see the module for what they are.

    Args:
        name: One of :data:`skyshift.datasets.surveys.LAYOUTS`, or the path of a text
            table with columns east, north and, if there is one, up, in m.

    Returns:
        (antennas, 3) m east, north, up.

    Raises:
        ObservationError: Neither a layout nor a table of two antennas or more.
    """
    if name in LAYOUTS:
        east_north = {
            "vla_d": lambda: _wye(13.64, first=2),
            "vla_b": lambda: _wye(13.64 * 4.0**1.716),
            "wsrt": _east_west,
            "meerkat": lambda: _cluster(64),
            "ska_mid_aa_star": lambda: _spiral(_cluster(64), 80, 18e3),
            "ska_mid_aa4": lambda: _spiral(_cluster(64), 133, 75e3),
        }[name]()
        return np.column_stack([east_north, np.zeros(len(east_north))])
    if not Path(name).is_file():
        raise ObservationError(
            f"{unknown('antenna layout', name, LAYOUTS)} It may also be a text file: east north [up], m."
        )
    try:
        table = np.loadtxt(name, ndmin=2)
    except ValueError as error:
        raise ObservationError(f"{name} is no table of antenna positions: {error}") from None
    if table.shape[1] not in (2, 3) or len(table) < 2 or not np.isfinite(table).all():
        raise ObservationError(f"{name}: antennas are two or more rows 'east north [up]' in m, not {table.shape}")
    return np.column_stack([table, np.zeros((len(table), 3 - table.shape[1]))])


def _wye(r_1: float, first: int = 1) -> Array:
    """Antennas n = ``first`` to 9 of the law on three arms."""
    radius = r_1 * np.arange(first, 10) ** 1.716
    azimuth = np.deg2rad(np.array([355.0, 115.0, 236.0]))[:, None]
    return np.column_stack([(radius * np.sin(azimuth)).ravel(), (radius * np.cos(azimuth)).ravel()])


def _east_west() -> Array:
    """Ten dishes 144 m apart, and four at 36, 108, 1260 and 1332 m beyond the last."""
    east = np.concatenate([144.0 * np.arange(10), 1296.0 + np.array([36.0, 108.0, 1260.0, 1332.0])])
    return np.column_stack([east, np.zeros(14)])


def _cluster(count: int) -> Array:
    """70 % of the dishes in a core of 300 m dispersion in baselines, the others of 2500 m, 29 m to 7.7 km apart."""
    rng = np.random.default_rng(64)
    placed: list[Array] = []
    while len(placed) < count:
        spread = 300.0 if len(placed) < 0.7 * count else 2500.0
        at = rng.normal(0.0, spread / np.sqrt(2.0), 2)
        if np.hypot(*at) < 3850.0 and all(np.hypot(*(at - other)) > 29.0 for other in placed):
            placed.append(at)
    return np.array(placed)


def _spiral(placed: Array, count: int, reach: float) -> Array:
    """More dishes: half within 1 km, 29 m apart, the others evenly in log radius on three arms out to ``reach`` m."""
    rng = np.random.default_rng(15)
    core = count // 2
    while core:
        radius, angle = 1000.0 * np.sqrt(rng.uniform()), rng.uniform(0.0, 2.0 * np.pi)
        at = radius * np.array([np.sin(angle), np.cos(angle)])
        if np.hypot(*(placed - at).T).min() > 29.0:
            placed, core = np.vstack([placed, at]), core - 1
    arms = count - count // 2
    far = np.geomspace(1200.0, reach, arms)
    turn = 2.0 * np.pi * (np.arange(arms) % 3) / 3.0 + np.log(far / 1000.0)
    return np.vstack([placed, np.column_stack([far * np.sin(turn), far * np.cos(turn)])])


def uv_tracks(
    layout: NDArray[Any],
    latitude_deg: float,
    declination_deg: float,
    frequency_hz: float,
    hours: float,
    steps: int = _STEPS,
    lowest_deg: float = 15.0,
) -> Array:
    """Baselines as the source sees them while the Earth turns.

    Args:
        layout: (antennas, 3) m east, north, up.
        latitude_deg: Of the array, degrees.
        declination_deg: Of the source, degrees.
        frequency_hz: Observed, Hz.
        hours: Length of the track about transit, h; 0 is a snapshot.
        steps: Samples along it.
        lowest_deg: Samples with the source below this elevation are left out, degrees.

    Returns:
        (samples, 2) u east and v north, wavelengths; one sign of each baseline.

    Raises:
        ObservationError: The source stays below ``lowest_deg``, or a length or frequency is not positive.
    """
    if not (0.0 <= hours <= 24.0 and steps >= 1 and frequency_hz > 0.0):
        raise ObservationError(
            f"a track of {hours} h in {steps} steps at {frequency_hz} Hz is none; give 0 to 24 h, a step or more, "
            "and a positive frequency"
        )
    phi, delta = np.deg2rad(latitude_deg), np.deg2rad(declination_deg)
    angle = np.deg2rad(15.0) * (np.linspace(-0.5, 0.5, steps) * hours if steps > 1 else np.zeros(1))
    elevation = np.arcsin(np.sin(phi) * np.sin(delta) + np.cos(phi) * np.cos(delta) * np.cos(angle))
    seen = angle[elevation >= np.deg2rad(lowest_deg)]
    if seen.size == 0:
        raise ObservationError(
            f"a source at declination {declination_deg:g} stays below {lowest_deg:g} degrees of elevation at latitude "
            f"{latitude_deg:g}; at best it reaches {np.rad2deg(elevation.max()):.1f}"
        )
    first, second = np.triu_indices(len(layout), 1)
    east, north, up = (np.asarray(layout, np.float64)[first] - np.asarray(layout, np.float64)[second]).T
    x, z = -north * np.sin(phi) + up * np.cos(phi), north * np.cos(phi) + up * np.sin(phi)
    sin, cos = np.sin(seen)[:, None], np.cos(seen)[:, None]
    u = x * sin + east * cos
    v = np.sin(delta) * (east * sin - x * cos) + z * np.cos(delta)
    return np.column_stack([u.ravel(), v.ravel()]) * (frequency_hz / constants.c.value)


@dataclass(frozen=True)
class Coverage:
    """Sampling of the Fourier grid of a map.

    Attributes:
        counts: (height, width) samples in each cell, in the order of ``numpy.fft``, both signs of each baseline.
        weights: (height, width) their weights.
    """

    counts: Array
    weights: Array

    def beam(self) -> Array:
        """(height, width) dirty beam, peak 1 at pixel (height // 2, width // 2)."""
        beam = scipy.fft.ifft2(self.weights).real * (self.weights.size / self.weights.sum())
        return np.asarray(np.fft.fftshift(beam))

    def image(self, sky: NDArray[Any]) -> Array:
        """Dirty map in Jy/beam of a sky in Jy/pixel, of the same shape.

        Raises:
            ObservationError: Another shape, or values that are not finite.
        """
        sky = check_map(sky, "sky")
        if sky.shape != self.weights.shape:
            raise ObservationError(f"a sky of {sky.shape} pixels on a uv coverage of {self.weights.shape}")
        scale = self.weights.size / self.weights.sum()
        return np.asarray(scipy.fft.ifft2(scipy.fft.fft2(sky) * self.weights).real * scale)

    def noise_factor(self) -> float:
        """Noise over that of natural weights, √(Σw²/c Σc) / Σw; 1 for natural weights."""
        held = self.counts > 0
        power = (self.weights[held] ** 2 / self.counts[held]).sum()
        return float(np.sqrt(power * self.counts.sum()) / self.weights.sum())

    def noise(self, seed: int | np.random.Generator) -> Array:
        """(height, width) noise of unit rms, with the power that the samples and their weights give it."""
        held = self.counts > 0
        power = np.zeros_like(self.weights)
        power[held] = self.weights[held] ** 2 / self.counts[held]
        white = np.random.default_rng(seed).standard_normal(self.weights.shape)
        noise = scipy.fft.ifft2(scipy.fft.fft2(white) * np.sqrt(power)).real
        return np.asarray(noise * np.sqrt(power.size / power.sum()))


def uv_coverage(
    uv: NDArray[Any],
    shape: tuple[int, int],
    pixel_arcsec: float,
    weighting: Weighting = "natural",
    taper_arcsec: float = 0.0,
) -> Coverage:
    """Count samples in the cells of a map's Fourier grid.

    Args:
        uv: (samples, 2) wavelengths, one sign of each baseline.
        shape: (height, width) of the map.
        pixel_arcsec: Of the map. Baselines beyond 1 / (2 pixels) are not represented and left out.
        weighting: ``natural`` or ``uniform``.
        taper_arcsec: FWHM of the Gaussian that the taper alone would give as a beam; 0 for none.

    Raises:
        ObservationError: No baseline falls on the grid, or an unknown weighting.
    """
    if weighting not in ("natural", "uniform"):
        raise ObservationError(f"visibilities are weighted 'natural' or 'uniform', not '{weighting}'")
    if not (pixel_arcsec > 0.0 and taper_arcsec >= 0.0):
        raise ObservationError(f"pixels of {pixel_arcsec:g} arcsec and a taper of {taper_arcsec:g} arcsec are none")
    pixel = np.deg2rad(pixel_arcsec / 3600.0)
    # East is to the left: columns count against u.
    column = np.rint(-uv[:, 0] * pixel * shape[1]).astype(int)
    row = np.rint(uv[:, 1] * pixel * shape[0]).astype(int)
    inside = (np.abs(column) <= (shape[1] - 1) // 2) & (np.abs(row) <= (shape[0] - 1) // 2)
    inside &= (column != 0) | (row != 0)
    if not inside.any():
        raise ObservationError(
            f"no baseline falls on the uv grid of {shape[0]} × {shape[1]} pixels of {pixel_arcsec:g} arcsec: they are "
            f"{np.hypot(*uv.T).min():.3g} to {np.hypot(*uv.T).max():.3g} wavelengths, the grid reaches from "
            f"{1 / (max(shape) * pixel):.3g} to {0.5 / pixel:.3g}; take smaller pixels or a wider field"
        )
    counts = np.zeros(shape)
    for sign in (1, -1):
        np.add.at(counts, (sign * row[inside] % shape[0], sign * column[inside] % shape[1]), 1.0)
    weights = counts.copy() if weighting == "natural" else (counts > 0).astype(np.float64)
    if taper_arcsec > 0.0:
        u, v = np.fft.fftfreq(shape[1], pixel), np.fft.fftfreq(shape[0], pixel)
        width = np.deg2rad(taper_arcsec / 3600.0)
        weights *= np.exp(-((np.pi * width) ** 2) / (4.0 * np.log(2.0)) * (u[None, :] ** 2 + v[:, None] ** 2))
    return Coverage(counts, weights)


def observe_dirty(
    values: NDArray[Any],
    unit: str,
    side_kpc: float,
    survey: str | RadioSurvey,
    redshift: float,
    *,
    seed: int,
    hours: float = 8.0,
    direction: tuple[float, float] = (0.0, -30.0),
    layout: str = "",
    weighting: Weighting = "natural",
    taper_arcsec: float = 0.0,
    width_kms: float = 300.0,
    shape: tuple[int, int] | None = None,
    domain: str = "",
    placement: Placement | None = None,
) -> Observation:
    """A simulated map as the dirty map of an array: what its baselines sample, and no more. No primary beam.

    The noise is that of the radiometer equation for the part of the track in which the source is up; an rms that was
    measured in the survey's maps, with other weights and times, is not used.

    Args:
        values: (height, width); see :func:`skyshift.datasets.radio.observe_radio`, as for all that is not said here.
        unit: Of the map.
        side_kpc: Width of the map, physical kpc.
        survey: Name or survey; its pixels, system, latitude and, by default, layout. Its own beam is not used.
        redshift: Where the galaxy is placed.
        seed: Of the noise.
        hours: Length of the track about transit; 0 for a snapshot, which lasts as long as the survey observes.
        direction: Right ascension and declination of the map's centre, degrees.
        layout: See :func:`antenna_layout`.
        weighting: See :func:`uv_coverage`.
        taper_arcsec: See :func:`uv_coverage`.
        width_kms: Velocities over which a line is summed, km/s.
        shape: (height, width) in pixels of the survey; the sky is padded to twice that.
        domain: For headers.
        placement: Redshift and cosmology; instead of ``redshift``'s default cosmology.

    Returns:
        Dirty maps without and with noise, and its σ, in Jy/beam (or Jy/beam km/s) of the dirty beam. ``BMAJ`` and
        ``BMIN`` are the diameter of the circle with the area over which the dirty beam is above ½; ``EXPTIME`` is the
        time for which the source was up.

    Raises:
        ObservationError: As :func:`skyshift.datasets.radio.observe_radio`, :func:`uv_tracks` and :func:`uv_coverage`.
    """
    check_seed(seed)
    telescope = replace(radio_survey(survey), rms_jy=None)
    if not (layout or telescope.layout):
        raise ObservationError(f"survey '{telescope.name}' names no antenna layout, which a dirty map needs")
    place = placement or Placement(redshift)
    arriving = arrive(values, unit, side_kpc, telescope, place, width_kms, shape, direction)
    flux = arriving.flux
    antennas = antenna_layout(layout or telescope.layout)
    uv = uv_tracks(antennas, telescope.latitude_deg, direction[1], arriving.frequency_hz, hours)
    up = len(uv) / (_STEPS * (len(antennas) * (len(antennas) - 1) // 2))
    time_s = 3600.0 * hours * up if hours > 0.0 else telescope.time_s
    height, width = flux.shape
    coverage = uv_coverage(uv, (2 * height, 2 * width), telescope.pixel_arcsec, weighting, taper_arcsec)
    # The noise is that of all baselines for the survey's time; those beyond the grid are left out.
    used = float(np.sqrt(2.0 * len(uv) / coverage.counts.sum() * telescope.time_s / time_s))
    sigma = arriving.noise * used * coverage.noise_factor()
    clean = coverage.image(np.pad(flux, ((0, height), (0, width))))[:height, :width]
    noisy = clean + sigma * coverage.noise(seed)[:height, :width]
    above = coverage.beam() > 0.5
    core, _ = label(above)
    across = 2.0 * np.sqrt((core == core[height, width]).sum() / np.pi) * telescope.pixel_arcsec
    cards = beam_cards(across, across, 0.0) | {"BTYPE": "dirty", "WEIGHTS": weighting, "HOURS": hours}
    cards |= {"EXPTIME": time_s}
    return Observation(
        clean.astype(np.float32),
        noisy.astype(np.float32),
        np.full(flux.shape, sigma, np.float32),
        arriving.unit,
        telescope.pixel_arcsec,
        domain or arriving.domain,
        telescope.name,
        arriving.redshift,
        seed,
        arriving.header | cards,
    )
