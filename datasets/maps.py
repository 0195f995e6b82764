"""Maps outside a store: values with a domain, a unit, an extent and where they come from."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError


class MapError(SkyshiftError):
    """Maps are not what they claim to be, or not what is asked for."""


@dataclass(frozen=True)
class Maps:
    """A stack of maps of one domain.

    Attributes:
        values: (n, height, width) float32, row 0 at the bottom.
        domain: Name of the domain.
        unit: As astropy writes it.
        side: (n,) kpc, side of each map along its rows; ``None`` where only a WCS is known.
        names: (n,) names of the maps; empty where there are none.
        header: FITS cards to keep: WCS, object, telescope.
        provenance: Where the maps come from, in words.
    """

    values: NDArray[np.float32]
    domain: str
    unit: str
    side: NDArray[np.float64] | None = None
    names: tuple[str, ...] = ()
    header: dict[str, Any] = field(default_factory=dict)
    provenance: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 3:
            raise MapError(f"{self.domain}: maps have shape (n, height, width), not {self.values.shape}")
        if self.values.dtype != np.float32:
            raise MapError(f"{self.domain}: maps are float32, not {self.values.dtype}")
        for what, entries in (("sides", self.side), ("names", self.names or None)):
            if entries is not None and len(entries) != len(self.values):
                raise MapError(f"{self.domain}: {len(entries)} {what} for {len(self.values)} maps")
        try:
            units.Unit(self.unit)
        except ValueError as error:
            raise MapError(f"{self.domain}: '{self.unit}' is no unit ({error})") from None

    def __len__(self) -> int:
        return len(self.values)

    def to(self, unit: str) -> "Maps":
        """The same maps in another unit.

        Raises:
            MapError: The units measure different things, or ``unit`` is none.
        """
        try:
            if units.Unit(unit) == units.Unit(self.unit):
                return replace(self, unit=unit)
            factor = units.Unit(self.unit).to(units.Unit(unit))
        except units.UnitConversionError:
            raise MapError(f"maps of '{self.domain}' are in {self.unit}, which is not convertible to {unit}") from None
        except ValueError as error:
            raise MapError(f"{self.domain}: '{unit}' is no unit ({error})") from None
        return replace(self, values=(self.values * np.float64(factor)).astype(np.float32), unit=unit)

    def require_finite(self) -> None:
        """Check the values.

        Raises:
            MapError: A map holds NaN or infinity; the message counts them and names the first.
        """
        bad = ~np.isfinite(self.values).all(axis=(1, 2))
        if bad.any():
            first = int(np.argmax(bad))
            name = self.names[first] if self.names else f"number {first}"
            raise MapError(
                f"{bad.sum()} of {len(self)} maps of '{self.domain}' hold values that are not finite, first map "
                f"{name}; blank pixels must be filled or the map cropped"
            )


_OLD_UNITS = {"JY/BEAM": "Jy / beam", "JY": "Jy", "MJY/SR": "MJy / sr", "KELVIN": "K", "K.KM/S": "K km / s"}
"""Spellings of radio telescopes' files, in capitals, as AIPS and GIPSY write them."""


def _known_unit(path: Path, found: str, given: str | None) -> str | None:
    """The file's unit as astropy reads it; what the caller names stands in for one that astropy does not know."""
    for text in (found, _OLD_UNITS.get(found.upper(), found)):
        try:
            units.Unit(text)
        except ValueError:
            continue
        return text
    if given:
        return None
    raise MapError(f"{path}: '{found}' is no unit that astropy knows; name it with --unit")


def stated(path: Path, what: str, found: Any, given: str | None) -> str:
    """What a file says of its maps, else what the caller says; a contradiction is an error.

    Args:
        path: Of the file, for messages.
        what: ``domain`` or ``unit``.
        found: What the file says; nothing or empty where it does not.
        given: What the caller says.

    Raises:
        MapError: Neither says it, they disagree, or the unit is none.
    """
    found = str(found).strip() if found else None
    if found and what == "unit":
        found = _known_unit(path, found, given)
    same = found == given or (what == "unit" and found and given and units.Unit(found) == units.Unit(given))
    if found and given and not same:
        raise MapError(f"{path} holds maps of {what} '{found}', not '{given}'")
    if not (found or given):
        raise MapError(f"{path} does not say the {what} of its maps; name it with --{what}")
    return found or str(given)


def as_stack(path: Path, values: NDArray[Any]) -> NDArray[np.float32]:
    """An image or a stack of images as (n, height, width) float32.

    Raises:
        MapError: It has another number of axes, or complex values.
    """
    values = np.asarray(values)
    if np.iscomplexobj(values):
        raise MapError(f"{path}: the values are complex; maps are real: save their real part or modulus")
    if values.ndim not in (2, 3):
        raise MapError(f"{path}: maps have two axes, stacks of maps three, not {values.ndim}")
    return np.ascontiguousarray(values.reshape((-1, *values.shape[-2:])), np.float32)
