"""A mock observation: the map without noise, with noise, and its σ, on the survey's pixels, in FITS.

The file has three images of one shape and header, float32: ``CLEAN`` (seen through the telescope, without noise),
``NOISY`` and ``SIGMA`` (standard deviation of the noise in each pixel), with a celestial WCS, ``BUNIT``, the beam in
degrees (``BMAJ``, ``BMIN``, ``BPA``) where there is one, and ``SURVEY``, ``REDSHIFT`` and ``SEED``.

References:
    Pence et al. 2010, A&A 524, A42 (FITS 3.0); Calabretta & Greisen 2002, A&A 395, 1077 (celestial WCS).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.io import fits
from numpy.typing import NDArray

from skyshift import __version__
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.resampling import covering_shape
from skyshift.files import write_whole
from skyshift.plots import Panel

LAYERS = ("clean", "noisy", "sigma")

_MOST_PIXELS = 2**27
"""Of a field: 1 GiB in float64, and several such are needed at a time."""


class ObservationError(MapError):
    """A mock observation cannot be made as asked, or its file is none."""


@dataclass(frozen=True)
class Observation:
    """One map as a survey sees it.

    Attributes:
        clean: (height, width) float32, without noise.
        noisy: (height, width) float32, with it.
        sigma: (height, width) float32, standard deviation of the noise.
        unit: Of all three, as astropy writes it.
        pixel_arcsec: Side of a pixel, arcsec.
        domain: What was observed: a map domain, a band.
        survey: Name of the survey.
        redshift: Where the galaxy was placed; ``None`` for a map that came as an observation.
        seed: Of the noise.
        header: FITS cards: WCS, beam (degrees), frequency, exposure.
    """

    clean: NDArray[np.float32]
    noisy: NDArray[np.float32]
    sigma: NDArray[np.float32]
    unit: str
    pixel_arcsec: float
    domain: str
    survey: str
    redshift: float | None
    seed: int
    header: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in LAYERS:
            values = getattr(self, name)
            if values.ndim != 2 or values.shape != self.clean.shape or values.dtype != np.float32:
                raise ObservationError(
                    f"{name} of a mock observation is {values.dtype} of shape {values.shape}; all three are float32 "
                    f"maps of one shape, {self.clean.shape}"
                )
        try:
            units.Unit(self.unit)
        except ValueError as error:
            raise ObservationError(f"'{self.unit}' is no unit ({error})") from None

    @property
    def beam_arcsec(self) -> tuple[float, float, float] | None:
        """Major and minor FWHM in arcsec and position angle in degrees; ``None`` where the header has no beam."""
        if "BMAJ" not in self.header:
            return None
        major, minor = (3600.0 * float(self.header[key]) for key in ("BMAJ", "BMIN"))
        return major, minor, float(self.header.get("BPA", 0.0))

    @property
    def side_kpc(self) -> float | None:
        """Width of the map at the galaxy, physical kpc; ``None`` where the header does not say (``SIDEKPC``)."""
        return float(self.header["SIDEKPC"]) if "SIDEKPC" in self.header else None

    def panels(self) -> list[Panel]:
        """Clean, noisy and σ maps as panels of :func:`skyshift.plots.map_figure`; the first two share a stretch."""
        return [
            Panel(getattr(self, name), title, self.unit, "inferno", self.side_kpc, stretch)
            for name, title, stretch in (("clean", "clean", "map"), ("noisy", "noisy", "map"), ("sigma", "σ", "sigma"))
        ]

    def maps(self) -> dict[str, Maps]:
        """The three layers as maps of the domains ``<domain>_clean``, ``_noisy`` and ``_sigma``."""
        where = f"mock {self.survey} observation, seed {self.seed}"
        where += "" if self.redshift is None else f", redshift {self.redshift:g}"
        side = None if self.side_kpc is None else np.array([self.side_kpc])
        cards = {key: value for key, value in self.header.items() if key != "SIDEKPC"}
        return {
            name: Maps(getattr(self, layer)[None], name, self.unit, side, header=cards, provenance=where)
            for layer in LAYERS
            for name in [f"{self.domain}_{layer}"]
        }

    def write(self, path: str | Path) -> Path:
        """Write the FITS file, whole or not at all.

        Raises:
            ObservationError: The name does not end in ``.fits``.
        """
        path = Path(path)
        if not path.name.lower().endswith((".fits", ".fit", ".fits.gz")):
            raise ObservationError(f"{path}: a mock observation is written as FITS; end the name in .fits")
        hdus = [
            (fits.ImageHDU if i else fits.PrimaryHDU)(getattr(self, name), self._cards(name))
            for i, name in enumerate(LAYERS)
        ]
        with write_whole(path) as side:
            fits.HDUList(hdus).writeto(side)
        return path

    def _cards(self, layer: str) -> fits.Header:
        header = fits.Header()
        for key, value in self.header.items():
            header[key] = value
        header["BUNIT"] = _fits_unit(self.unit)
        header["EXTNAME"] = layer.upper()
        header["DOMAIN"] = (f"{self.domain}_{layer}", "quantity that the map shows")
        header["SURVEY"] = (self.survey, "survey that is imitated")
        header["PIXSCALE"] = (self.pixel_arcsec, "[arcsec] side of a pixel")
        if self.redshift is not None:
            header["REDSHIFT"] = (self.redshift, "where the galaxy was placed")
        header["SEED"] = (self.seed, "of the noise")
        header["CREATOR"] = f"skyshift {__version__}"
        return header


def _fits_unit(unit: str) -> str:
    """The unit as the FITS standard writes it; as astropy does where the standard has none, such as maggies."""
    try:
        return str(units.Unit(unit).to_string("fits"))
    except ValueError:
        return unit


_OWN = {"SIMPLE", "BITPIX", "EXTEND", "XTENSION", "PCOUNT", "GCOUNT", "EXTNAME", "BUNIT", "DOMAIN", "SURVEY"} | {
    "REDSHIFT", "SEED", "PIXSCALE", "CREATOR", "COMMENT", "HISTORY", ""
}  # fmt: skip


def read_observation(path: str | Path) -> Observation:
    """Read what :meth:`Observation.write` wrote.

    Raises:
        ObservationError: No such file, or it holds no mock observation.
    """
    path = Path(path)
    try:
        with fits.open(path, memmap=False) as hdus:
            found = {name: hdus[name.upper()] for name in LAYERS}
            layers = {name: np.ascontiguousarray(hdu.data, np.float32) for name, hdu in found.items()}
            cards = found["clean"].header
            return Observation(
                **layers,
                unit=str(cards["BUNIT"]),
                pixel_arcsec=float(cards["PIXSCALE"]),
                domain=str(cards["DOMAIN"]).removesuffix("_clean"),
                survey=str(cards["SURVEY"]),
                redshift=float(cards["REDSHIFT"]) if "REDSHIFT" in cards else None,
                seed=int(cards["SEED"]),
                header={key: cards[key] for key in cards if key not in _OWN and not key.startswith("NAXIS")},
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ObservationError):
            raise
        raise ObservationError(f"{path} is no mock observation that can be read: {error}") from None


def check_map(values: NDArray[Any], what: str) -> NDArray[np.float64]:
    """A map as float64, checked before it is observed.

    Args:
        values: (height, width).
        what: For messages.

    Raises:
        ObservationError: Not two axes, empty, or with values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ObservationError(f"{what}: a map has two axes, not shape {values.shape}")
    if bad := int((~np.isfinite(values)).sum()):
        raise ObservationError(
            f"{what}: {bad} of {values.size} pixels are not finite, which a beam would smear over the map; fill blank "
            "pixels or crop the map"
        )
    return values


def check_seed(seed: int) -> None:
    """Check the seed of a mock observation.

    Raises:
        ObservationError: It is negative or no whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ObservationError(f"noise cannot be drawn with the seed {seed!r}; give a whole number, 0 or more")


def field_shape(
    shape: tuple[int, ...], from_pixel: float, to_pixel: float, wanted: tuple[int, int] | None, redshift: float
) -> tuple[int, int]:
    """(height, width) of an observation in the survey's pixels, checked before it is made.

    Args:
        shape: (height, width) of the map.
        from_pixel: Side of its pixels on the sky, arcsec.
        to_pixel: Side of the survey's, arcsec.
        wanted: What the caller asks for; ``None`` for what covers the map.
        redshift: Of the galaxy, for the message.

    Raises:
        ObservationError: It has no pixel, or more than fit into memory.
    """
    found = wanted or covering_shape(shape, from_pixel, to_pixel)
    if min(found) < 1:
        raise ObservationError(f"a field of {found[0]} × {found[1]} pixels is none; give one or more a side")
    if found[0] * found[1] > _MOST_PIXELS:
        raise ObservationError(
            f"a field of {found[0]} × {found[1]} pixels of {to_pixel:g} arcsec is too large to be made (the map spans "
            f"{shape[-1] * from_pixel:.4g} arcsec at redshift {redshift:g}); give a smaller shape (--pixels) or a "
            "larger redshift"
        )
    return found
