"""The map domains: which particles, which quantity, which unit. A new domain is one entry of :data:`DOMAINS`.

A domain is a moment of what its particles carry, Σ over the line of sight with each particle's kernel W:

    0, a column       Σ a W                                      amount a per kpc²
    1, a mean         q̄ = Σ w q W / Σ w W                        weight w, by default the particle's mass
    2, a dispersion   (Σ w q² W / Σ w W - q̄²)^½                  about the mean of the same pixel

A mean or dispersion holds 0 where no weight lies on the line of sight. ``velocity`` and ``dispersion`` are moments 1
and 2 of the HI line: weighted with HI mass. The dispersion is that of the bulk motions. Thermal broadening is left
out, because the gas that holds most HI has no temperature of its own in these simulations (it follows an effective
equation of state); at 1e4 K it would add 9.1 km/s in quadrature.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from astropy.units import Unit

from skyshift.datasets import quantities
from skyshift.datasets.galaxy import PARTICLE_TYPES, Galaxy
from skyshift.datasets.quantities import Quantity, Recipes, mass
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown


class DomainError(SkyshiftError):
    """There is no such domain, or what was given is none."""


@dataclass(frozen=True)
class Domain:
    """One kind of map.

    Attributes:
        name: As in configurations and stores.
        title: For figures.
        unit: Of the map, as astropy writes it.
        kind: The particles it is made from.
        quantity: Galaxy, recipes and view to one number per particle: the amount of a column, else what is averaged.
        fields: Fields of the particles that quantity and weight read; may depend on the recipes.
        moment: 0 column, 1 mean, 2 dispersion.
        weight: Of a mean or dispersion, one number ≥ 0 per particle; by default the mass.
        factor: From the amount per kpc² of a column to ``unit``, one number for a galaxy.
        scaling: Default value scaling for networks.
        colour_map: Perceptually uniform matplotlib colour map; a diverging one where values have two signs.
        minimum: Lowest physical value; translated maps are clipped there. -∞ where values have two signs.
    """

    name: str
    title: str
    unit: str
    kind: str
    quantity: Quantity
    fields: tuple[str, ...] | Callable[[Recipes], tuple[str, ...]] = ()
    moment: Literal[0, 1, 2] = 0
    weight: Quantity | None = None
    factor: Callable[[Galaxy, Recipes], float] | None = None
    scaling: str = "asinh"
    colour_map: str = "inferno"
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise DomainError(f"'{self.name}' cannot name a domain; use letters, digits and _")
        if self.kind not in PARTICLE_TYPES:
            raise DomainError(f"domain '{self.name}': " + unknown("kind of particle", self.kind, PARTICLE_TYPES))
        if self.moment not in (0, 1, 2):
            raise DomainError(f"domain '{self.name}': moment is 0, 1 or 2, not {self.moment}")
        try:
            Unit(self.unit)
        except (ValueError, TypeError) as error:
            raise DomainError(f"domain '{self.name}': '{self.unit}' is no unit that astropy knows ({error})") from None

    @property
    def signed(self) -> bool:
        """Whether values have two signs."""
        return self.minimum < 0

    def needs(self, recipes: Recipes) -> tuple[str, ...]:
        """Fields of its particles that it reads."""
        return self.fields(recipes) if callable(self.fields) else self.fields


def _hydrogen_and_velocity(recipes: Recipes) -> tuple[str, ...]:
    return (*quantities.hydrogen_fields(recipes), "velocity")


_SURFACE = "Msun / kpc2"

DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain("dm", "Dark matter", _SURFACE, "dm", mass("dm"), colour_map="magma"),
        Domain("gas", "Gas", _SURFACE, "gas", mass("gas"), colour_map="viridis"),
        Domain("stars", "Stars", _SURFACE, "stars", mass("stars")),
        Domain(
            "hi",
            "HI",
            _SURFACE,
            "gas",
            quantities.hi_mass,
            fields=quantities.hydrogen_fields,
            # HI saturates near 10 Msun/pc² (above, it turns molecular): a square root spans what is there, and errors
            # count where the mass is.
            scaling="power",
            colour_map="cividis",
        ),
        Domain(
            "h2", "H2", _SURFACE, "gas", quantities.h2_mass, fields=quantities.hydrogen_fields, colour_map="cividis"
        ),
        Domain(
            "hi21cm",
            "21 cm line, integrated",
            "K km / s",
            "gas",
            quantities.hi_mass,
            fields=quantities.hydrogen_fields,
            factor=quantities.column_brightness,
            scaling="power",
            colour_map="cividis",
        ),
        Domain(
            "tb21cm",
            "21 cm line, one channel",
            "mK",
            "gas",
            quantities.hi_mass,
            fields=quantities.hydrogen_fields,
            factor=quantities.channel_brightness,
            scaling="power",
            colour_map="cividis",
        ),
        Domain(
            "temperature",
            "Temperature",
            "K",
            "gas",
            quantities.temperature,
            fields=("temperature", "sfr"),
            moment=1,
            scaling="log",
        ),
        Domain(
            "metallicity",
            "Metal mass fraction",
            "1",
            "gas",
            quantities.of_gas("metallicity"),
            fields=("metallicity",),
            moment=1,
            scaling="log",
            colour_map="viridis",
        ),
        Domain(
            "bfield",
            "Magnetic field",
            "uG",
            "gas",
            quantities.field_strength,
            fields=("magnetic_field",),
            moment=1,
            colour_map="plasma",
        ),
        Domain("sfr", "Star formation", "Msun / (yr kpc2)", "gas", quantities.of_gas("sfr"), fields=("sfr",)),
        Domain(
            "velocity",
            "HI velocity",
            "km / s",
            "gas",
            quantities.recession("gas"),
            fields=_hydrogen_and_velocity,
            moment=1,
            weight=quantities.hi_mass,
            scaling="linear",
            colour_map="RdBu_r",
            minimum=-np.inf,
        ),
        Domain(
            "dispersion",
            "HI dispersion",
            "km / s",
            "gas",
            quantities.recession("gas"),
            fields=_hydrogen_and_velocity,
            moment=2,
            weight=quantities.hi_mass,
            scaling="linear",
            colour_map="viridis",
        ),
        Domain(
            "velocity_stars",
            "Stellar velocity",
            "km / s",
            "stars",
            quantities.recession("stars"),
            fields=("velocity",),
            moment=1,
            scaling="linear",
            colour_map="RdBu_r",
            minimum=-np.inf,
        ),
        Domain(
            "dispersion_stars",
            "Stellar dispersion",
            "km / s",
            "stars",
            quantities.recession("stars"),
            fields=("velocity",),
            moment=2,
            scaling="linear",
            colour_map="viridis",
        ),
        Domain(
            "xray",
            "X-ray luminosity",
            "erg / (s pc2)",  # of kpc², the cores of clusters would overflow float32
            "gas",
            quantities.xray_luminosity,
            fields=("density", "temperature", "electron_abundance", "sfr"),
            factor=lambda galaxy, recipes: 1e-6,  # pc⁻² of kpc⁻²
            colour_map="magma",
        ),
        *(
            Domain(
                f"light_{band}", f"Starlight, {band}", "Lsun / kpc2", "stars", quantities.light(band), ("photometry",)
            )
            for band in quantities.LIGHT_BANDS
        ),
    )
}
"""All domains by name."""
