"""What domains are made of: an amount or a quantity for every particle, from its fields, the recipes and the view.

HI in emission is optically thin and at rest within its channel (Meyer et al. 2017):

    ∫ T_b dv = N_HI / 1.823e18 cm⁻² K km/s,     N_HI = Σ_HI / m_H

in the galaxy's own frame; this is free of any depth. Spread over a channel of width Δv in that frame, and received at
redshift z, it is the temperature of Villaescusa-Navarro et al. (2018) for the depth Δχ = Δv (1 + z) / H(z):

    T_b = C h (H0/H) (1 + z)² Σ_com / (ρ_c Δχ) = C h H0 Σ_HI / (ρ_c Δv (1 + z)),     C = 189 mK,

which is defined at z = 0 as well. C is 191.0 mK from A10 = 2.884e-15 /s (``brightness: exact``). The customary 1.823e18
goes with A10 = 2.868e-15 /s: T_b Δv of the exact C is 0.5 % more than ∫ T_b dv, of the customary C 0.6 % less.

X-rays are thermal bremsstrahlung between E1 and E2 in the galaxy's frame (Rybicki & Lightman 1979, eq. 5.14 and 5.15
with a frequency-averaged Gaunt factor of 1.2, good to 20 %):

    ε = (2⁵ π e⁶ / 3 h m c³) (2π k T / 3 m)^½  n_e Σ Z² n_i  ḡ (exp(-E1/kT) - exp(-E2/kT)),

with Σ Z² n_i = ρ/m_p (hydrogen and helium, X + Y = 1, all ionised) and n_e = x_e n_H of the snapshot. Lines of metals
are left out; below some 1e7 K they outshine the continuum of gas of solar metallicity, and this is a lower limit.
Star-forming cells, whose temperature is that of an effective equation of state, do not shine. No absorption.

Starlight is what ``GFM_StellarPhotometrics`` says (Bruzual & Charlot 2003, no dust), in Lsun of the band:
L = 10^(-0.4 (M - M_sun)) with the AB magnitudes of the Sun of Willmer (2018).

Velocities are peculiar ones relative to the galaxy's, along the line of sight: the observer looks from z = +∞ upon the
rotated galaxy, x to the right and y up, and what recedes is positive, v = -v_z.

References:
    Villaescusa-Navarro et al. 2018, ApJ 866, 135 (arXiv:1804.09180); Meyer et al. 2017, PASA 34, 52 (arXiv:1705.04210).
    Rybicki & Lightman 1979, Radiative Processes in Astrophysics, ch. 5.
    Willmer 2018, ApJS 236, 47 (arXiv:1804.07788), table 3, SDSS bands.
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from astropy import constants, units
from numpy.typing import NDArray

from skyshift.datasets import hydrogen
from skyshift.datasets.galaxy import Galaxy
from skyshift.datasets.hydrogen import HydrogenRecipe, MolecularRecipe, NeutralRecipe
from skyshift.errors import SkyshiftError

Array = NDArray[np.floating]

BANDS = ("U", "B", "V", "K", "g", "r", "i", "z")
"""Columns of ``GFM_StellarPhotometrics``."""

LIGHT_BANDS = ("g", "r", "i")
"""SDSS bands of the light domains."""

SOLAR_MAGNITUDE: Mapping[str, float] = {"u": 6.39, "g": 5.11, "r": 4.65, "i": 4.53, "z": 4.50}
"""Absolute AB magnitude of the Sun in SDSS bands (Willmer 2018, table 3)."""

COLUMN_PER_BRIGHTNESS = 1.823e18
"""cm⁻² / (K km/s): N_HI of optically thin gas over ∫T_b dv."""

EINSTEIN_A10 = 2.884e-15
"""1/s, spontaneous decay of the 21 cm line."""

LINE_FREQUENCY = 1.420405751768e9
"""Hz, rest frequency of the 21 cm line (Hellwig et al. 1970, IEEE Trans. Instrum. Meas. 19, 200)."""

GAUNT_FACTOR = 1.2
"""Frequency average of the free-free Gaunt factor (Rybicki & Lightman 1979, after eq. 5.15)."""

_HYDROGEN_MASS = constants.m_p + constants.m_e


@dataclass(frozen=True)
class Recipes:
    """Choices of physics that the domains share.

    Attributes:
        molecular: How molecular hydrogen is taken off the neutral: br06, leroy08, kmt or none.
        neutral: Neutral hydrogen of gas that forms no stars: the snapshot's own, or from ionisation equilibrium. A
            snapshot without its own takes the equilibrium; the notes in the store's catalogue say for which galaxies.
        hydrogen: Hydrogen mass fraction: primordial (0.76), or of each cell (needs ``GFM_Metals``).
        channel_width: km/s in the galaxy's frame, for T_b of the 21 cm line.
        brightness: Coefficient of T_b: quoted (189 mK, as the field does) or exact (from A10).
        xray_low: keV, lower end of the X-ray band in the galaxy's frame.
        xray_high: keV, upper end.
    """

    molecular: MolecularRecipe = "br06"
    neutral: NeutralRecipe = "snapshot"
    hydrogen: HydrogenRecipe = "primordial"
    channel_width: float = 5.5
    brightness: Literal["quoted", "exact"] = "quoted"
    xray_low: float = 0.5
    xray_high: float = 2.0

    def __post_init__(self) -> None:
        if not self.channel_width > 0:
            raise SkyshiftError(f"recipes.channel_width cannot be {self.channel_width}; give km/s above 0")
        if not 0 <= self.xray_low < self.xray_high:
            raise SkyshiftError(
                f"recipes.xray_low = {self.xray_low} and xray_high = {self.xray_high} are no band; give keV, low < high"
            )


@dataclass(frozen=True)
class View:
    """How a galaxy is looked at.

    Attributes:
        rotation: (3, 3) applied to positions and velocities; the observer then looks from z = +∞.
        side: Full side of the square map, kpc.
        pixels: Pixels per side.
        depth: Full thickness along the line of sight, kpc; ``None`` keeps all.
    """

    rotation: NDArray[np.float64]
    side: float
    pixels: int
    depth: float | None = None


Quantity = Callable[[Galaxy, Recipes, View], Array]
"""Galaxy, recipes and view to one number per particle."""


SAME_IN_EVERY_VIEW: set[Quantity] = set()
"""Quantities that do not look at the view: computed once for all views of a galaxy."""


def same_in_every_view(quantity: Quantity) -> Quantity:
    """Say that a quantity does not look at the view. A quantity of which this is not said is computed anew in each."""
    SAME_IN_EVERY_VIEW.add(quantity)
    return quantity


@functools.cache
def mass(kind: str) -> Quantity:
    """Mass of every particle of ``kind``, Msun. The same function for the same kind."""
    return same_in_every_view(lambda galaxy, recipes, view: galaxy.particles[kind].mass)


def hydrogen_fields(recipes: Recipes) -> tuple[str, ...]:
    """Gas fields that HI and H2 need."""
    return hydrogen.hydrogen_fields(recipes.molecular, recipes.neutral, recipes.hydrogen)


@same_in_every_view
def hi_mass(galaxy: Galaxy, recipes: Recipes, view: View) -> Array:
    """HI of every gas cell, Msun."""
    return hydrogen.atomic_hydrogen_mass(galaxy, recipes.molecular, neutral=recipes.neutral, hydrogen=recipes.hydrogen)


@same_in_every_view
def h2_mass(galaxy: Galaxy, recipes: Recipes, view: View) -> Array:
    """H2 of every gas cell, Msun."""
    return hydrogen.molecular_hydrogen_mass(
        galaxy, recipes.molecular, neutral=recipes.neutral, hydrogen=recipes.hydrogen
    )


def column_brightness(galaxy: Galaxy, recipes: Recipes) -> float:
    """∫ T_b dv in K km/s of 1 Msun/kpc² of HI, in the galaxy's frame."""
    column = (1 * units.Msun / units.kpc**2 / _HYDROGEN_MASS).to_value("cm-2")
    return float(column / COLUMN_PER_BRIGHTNESS)


def brightness_coefficient(recipe: Literal["quoted", "exact"]) -> float:
    """C in mK: mean T_b at z = 0, h = 1 of a universe whose critical density is HI.

    ``exact`` is 3 h c³ A10 / (32 π k ν² H0) ρ_c/m_H at H0 = 100 km/s/Mpc.
    """
    if recipe == "quoted":
        return 189.0
    H0 = 100 * units.km / units.s / units.Mpc
    critical = 3 * H0**2 / (8 * np.pi * constants.G)
    A10, nu = EINSTEIN_A10 / units.s, LINE_FREQUENCY * units.Hz
    line = 3 * constants.h * constants.c**3 * A10 / (32 * np.pi * constants.k_B * nu**2)
    return float((line * critical / _HYDROGEN_MASS / H0).to_value("mK"))


def channel_brightness(galaxy: Galaxy, recipes: Recipes) -> float:
    """T_b in mK, as received, of 1 Msun/kpc² of HI in one channel. h cancels."""
    H0 = 100 * units.km / units.s / units.Mpc
    critical = 3 * H0**2 / (8 * np.pi * constants.G)
    width = recipes.channel_width * units.km / units.s * (1.0 + galaxy.redshift)
    share = (H0 / width * (1 * units.Msun / units.kpc**2) / critical).to_value("")
    return float(brightness_coefficient(recipes.brightness) * share)


@same_in_every_view
def temperature(galaxy: Galaxy, recipes: Recipes, view: View) -> Array:
    """K; star-forming cells carry the pressure of an effective equation of state and count as 1e4 K."""
    gas = galaxy.particles["gas"]
    return np.where(gas["sfr"] > 0, hydrogen.STAR_FORMING_TEMPERATURE, gas["temperature"])


@same_in_every_view
def field_strength(galaxy: Galaxy, recipes: Recipes, view: View) -> Array:
    """|B| of every gas cell, µG."""
    return np.linalg.norm(galaxy.particles["gas"]["magnetic_field"], axis=1) * 1e6


def of_gas(name: str) -> Quantity:
    """A field of the gas as it is."""
    return same_in_every_view(lambda galaxy, recipes, view: galaxy.particles["gas"][name])


@functools.cache
def recession(kind: str) -> Quantity:
    """Line-of-sight velocity of every particle of ``kind`` relative to the galaxy, km/s, positive away from us."""
    return lambda galaxy, recipes, view: (galaxy.velocity - galaxy.particles[kind]["velocity"]) @ view.rotation[2]


def light(band: str) -> Quantity:
    """Luminosity of every star particle in ``band`` (g, r or i), Lsun of that band."""
    column, sun = BANDS.index(band), SOLAR_MAGNITUDE[band]
    return same_in_every_view(
        lambda galaxy, recipes, view: 10.0 ** (-0.4 * (galaxy.particles["stars"]["photometry"][:, column] - sun))
    )


def _bremsstrahlung() -> float:
    """(2⁵ π e⁶ / 3 h m c³) (2π k / 3 m)^½ in erg cm³ s⁻¹ K^-½, 1.43e-27."""
    e = constants.e.esu.value  # g^½ cm^3/2 s^-1
    h, m, c, k = (q.cgs.value for q in (constants.h, constants.m_e, constants.c, constants.k_B))
    return float(2**5 * np.pi * e**6 / (3 * h * m * c**3) * np.sqrt(2 * np.pi * k / (3 * m)))


_BREMSSTRAHLUNG = _bremsstrahlung()
_PROTONS_PER_MSUN = float((1 * units.Msun / constants.m_p).to_value(""))
_KELVIN_PER_KEV = float((1 * units.keV / constants.k_B).to_value("K"))


@same_in_every_view
def xray_luminosity(galaxy: Galaxy, recipes: Recipes, view: View) -> Array:
    """Bremsstrahlung of every gas cell in the X-ray band, erg/s."""
    gas = galaxy.particles["gas"]
    T = np.maximum(np.asarray(gas["temperature"], np.float64), 1.0)
    n_e = gas["electron_abundance"] * hydrogen.hydrogen_density(gas["density"])
    nuclei = np.asarray(gas.mass, np.float64) * _PROTONS_PER_MSUN  # ∫ Σ Z² n_i dV = M / m_p
    band = np.exp(-recipes.xray_low * _KELVIN_PER_KEV / T) - np.exp(-recipes.xray_high * _KELVIN_PER_KEV / T)
    shining = gas["sfr"] <= 0
    return np.where(shining, _BREMSSTRAHLUNG * GAUNT_FACTOR * np.sqrt(T) * n_e * nuclei * band, 0.0)
