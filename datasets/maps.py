"""Maps outside a store: values with a domain, a unit, an extent and where they come from."""

from dataclasses import dataclass, field, replace
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
