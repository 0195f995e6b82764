"""Neutral, molecular and atomic hydrogen of simulated gas cells.

The neutral fraction x = n_HI+H2 / n_H of a cell in photoionisation equilibrium solves

    x (Γ_phot + Λ_T (1 - x) n_H) = α_A (1 - x)² n_H,

with the self-shielded photoionisation rate of Rahmati et al. (2013)

    Γ_phot / Γ_UVB = (1 - f) [1 + (n_H/n_0)^β]^α1 + f [1 + n_H/n_0]^α2.

IllustrisTNG stores x (``NeutralHydrogenAbundance``), but not usefully for star-forming cells, whose temperature is
that of an effective equation of state: there the equation above is solved at T = 1e4 K. The molecular part follows
from the mid-plane pressure, Blitz & Rosolowsky (2006):

    f_mol = n_H2 / (n_HI + n_H2) = R / (1 + R),   R = (P/k / 4.3e4 K cm⁻³)^0.92.

or from the dusty column that shields it, Krumholz, McKee & Tumlinson (2009) as McKee & Krumholz (2010) put it:

    f_mol = 1 - (3/4) s / (1 + s/4),   s = ln(1 + 0.6 χ + 0.01 χ²) / (0.6 τ),   χ = 0.756 (1 + 3.1 Z^0.365),
    τ = 0.066 Z Σ,   Σ = x ρ λ_J [Msun/pc²],   λ_J = (γ P / ρ)^½ / (G ρ)^½,   Z = metallicity / 0.0127.

Assumptions: electrons come from hydrogen alone in the equilibrium; the pressure of star-forming cells is their
effective pressure (γ - 1) u ρ; the column of a cell is its neutral gas over a Jeans length, as is common in
post-processing (Lagos et al. 2015; Diemer et al. 2018 find it unbiased on average, with much scatter), without
clumping below it. Temperatures take X_H = 0.76 whatever ``hydrogen`` says, as the TNG specification does.

References:
    Rahmati, Pawlik, Raičević & Schaye 2013, MNRAS 430, 2427 (arXiv:1210.7808), eq. A1, A8 and table A1.
    Faucher-Giguère, Lidz, Zaldarriaga & Hernquist 2009, ApJ 703, 1416 (arXiv:0901.4554).
    Villaescusa-Navarro et al. 2018, ApJ 866, 135 (arXiv:1804.09180), appendix A.
    Blitz & Rosolowsky 2006, ApJ 650, 933 (astro-ph/0605035).
    Leroy et al. 2008, AJ 136, 2782 (arXiv:0810.2556).
    Krumholz, McKee & Tumlinson 2009, ApJ 693, 216 (arXiv:0811.0004); McKee & Krumholz 2010, ApJ 709, 308
    (arXiv:0908.0330).
    Schaye 2001, ApJ 559, 507 (Jeans length of a cell); Diemer et al. 2018, ApJS 238, 33 (arXiv:1806.02341).
    Hui & Gnedin 1997, MNRAS 292, 27 (recombination rate); Theuns et al. 1998, MNRAS 301, 478 (collisions).
"""

from typing import Literal

import numpy as np
from astropy import constants, units
from numpy.typing import NDArray

from skyshift.datasets.galaxy import Galaxy, GalaxyError, Particles
from skyshift.naming import unknown

Array = NDArray[np.float64]

HYDROGEN_FRACTION = 0.76
"""Primordial hydrogen mass fraction X_H, used for all gas unless asked otherwise (as the TNG specification does)."""

SOLAR_METALLICITY = 0.0127
"""Metal mass fraction that IllustrisTNG calls solar (Wiersma et al. 2009)."""

ADIABATIC_INDEX = 5.0 / 3.0

MolecularRecipe = Literal["none", "br06", "leroy08", "kmt"]
NeutralRecipe = Literal["snapshot", "equilibrium"]
HydrogenRecipe = Literal["primordial", "cell"]

MOLECULAR: dict[str, tuple[str, ...]] = {
    "none": (),
    "br06": ("density", "temperature", "electron_abundance"),
    "leroy08": ("density", "temperature", "electron_abundance"),
    "kmt": ("density", "temperature", "electron_abundance", "metallicity"),
}
"""Recipe for molecular hydrogen to the gas fields that it reads."""

_PRESSURE_LAW: dict[str, tuple[float, float]] = {"br06": (4.3e4, 0.92), "leroy08": (1.7e4, 0.8)}
"""Recipe to (P0/k in K cm⁻³, exponent) of R_mol = (P/P0)^exponent."""

# Redshift, log10 n_0 [cm⁻³], α1, α2, β, f (Rahmati et al. 2013, table A1) and Γ_UVB [1e-12 /s] (their table 2, of
# Faucher-Giguère et al. 2009, the background of IllustrisTNG; as Villaescusa-Navarro et al. 2018 use it).
_SELF_SHIELDING = np.array(
    [
        [0.0, -2.94, -3.98, -1.09, 1.29, 0.01, 0.0399],
        [1.0, -2.29, -2.94, -0.90, 1.21, 0.03, 0.303],
        [2.0, -2.06, -2.22, -1.09, 1.75, 0.03, 0.600],
        [3.0, -2.13, -1.99, -0.88, 1.72, 0.04, 0.553],
        [4.0, -2.23, -2.05, -0.75, 1.93, 0.02, 0.431],
        [5.0, -2.35, -2.63, -0.57, 1.77, 0.01, 0.352],
    ]
)

STAR_FORMING_TEMPERATURE = 1e4
"""K, temperature given to star-forming cells, whose own is that of an effective equation of state."""

_PROTON_PER_CM3 = float((1 * units.Msun / units.kpc**3 / constants.m_p).to_value("cm-3"))


def mean_molecular_weight(electron_abundance: NDArray[np.floating]) -> Array:
    """μ = 4 / (1 + 3 X_H + 4 X_H x_e), in proton masses (TNG data specification).

    Args:
        electron_abundance: (n,) x_e = n_e / n_H.
    """
    x_e = np.asarray(electron_abundance, np.float64)
    return 4.0 / (1.0 + 3.0 * HYDROGEN_FRACTION + 4.0 * HYDROGEN_FRACTION * x_e)


def temperature(internal_energy: NDArray[np.floating], electron_abundance: NDArray[np.floating]) -> Array:
    """T = (γ - 1) u μ m_p / k_B.

    Args:
        internal_energy: (n,) u in (km/s)².
        electron_abundance: (n,) x_e = n_e / n_H.

    Returns:
        (n,) K.
    """
    per_kelvin = float((1 * units.km**2 / units.s**2 * constants.m_p / constants.k_B).to_value("K"))
    u = np.asarray(internal_energy, np.float64)
    return (ADIABATIC_INDEX - 1.0) * u * per_kelvin * mean_molecular_weight(electron_abundance)


def hydrogen_density(
    density: NDArray[np.floating], fraction: float | NDArray[np.floating] = HYDROGEN_FRACTION
) -> Array:
    """Number density of hydrogen nuclei, n_H = X_H ρ / m_p.

    Args:
        density: (n,) Msun/kpc³.
        fraction: X_H, one for all or (n,).

    Returns:
        (n,) cm⁻³.
    """
    return np.asarray(density, np.float64) * fraction * _PROTON_PER_CM3


def pressure_over_k(
    density: NDArray[np.floating],
    temperature_kelvin: NDArray[np.floating],
    electron_abundance: NDArray[np.floating],
) -> Array:
    """P / k_B = ρ T / (μ m_p), which is (γ - 1) u ρ / k_B.

    Args:
        density: (n,) Msun/kpc³.
        temperature_kelvin: (n,) K.
        electron_abundance: (n,) x_e = n_e / n_H.

    Returns:
        (n,) K cm⁻³.
    """
    particles = np.asarray(density, np.float64) * _PROTON_PER_CM3 / mean_molecular_weight(electron_abundance)
    return particles * np.asarray(temperature_kelvin, np.float64)


def photoionisation_rate(hydrogen_density_cm3: NDArray[np.floating], redshift: float) -> Array:
    """Self-shielded photoionisation rate Γ_phot (Rahmati et al. 2013, eq. A1).

    Between the tabulated redshifts 0, 1, … 5 the fit's parameters and log Γ_UVB are linear in log(1 + z). So Γ_UVB
    comes within 12 % of what Faucher-Giguère et al. tabulate in steps of 0.25 (linear in z it would be 32 % too strong
    at z = 0.5), and n_0 follows it.

    Args:
        hydrogen_density_cm3: (n,) cm⁻³.
        redshift: Of the snapshot.

    Returns:
        (n,) 1/s.

    Raises:
        GalaxyError: Outside 0 ≤ z ≤ 5, where the fit ends.
    """
    if not -1e-6 <= redshift <= _SELF_SHIELDING[-1, 0]:
        raise GalaxyError(f"the self-shielding fit covers redshifts 0 to 5, not {redshift:.3f}; leave out domain hi")
    epochs, columns = np.log1p(_SELF_SHIELDING[:, 0]), [*_SELF_SHIELDING.T[1:-1], np.log(_SELF_SHIELDING[:, -1])]
    log_n0, alpha1, alpha2, beta, f, log_rate = (
        float(np.interp(np.log1p(max(redshift, 0.0)), epochs, column)) for column in columns
    )
    ratio = np.asarray(hydrogen_density_cm3, np.float64) / 10.0**log_n0
    shielding = (1.0 - f) * (1.0 + ratio**beta) ** alpha1 + f * (1.0 + ratio) ** alpha2
    return np.exp(log_rate) * 1e-12 * shielding


def rahmati_neutral_fraction(
    hydrogen_density_cm3: NDArray[np.floating], temperature_kelvin: NDArray[np.floating], redshift: float
) -> Array:
    """Neutral fraction (n_HI + 2 n_H2) / n_H in ionisation equilibrium (Rahmati et al. 2013, eq. A8).

    Args:
        hydrogen_density_cm3: (n,) cm⁻³, positive.
        temperature_kelvin: (n,) K.
        redshift: Of the snapshot, 0 to 5.

    Returns:
        (n,) in [0, 1].
    """
    n_H = np.asarray(hydrogen_density_cm3, np.float64)
    T = np.asarray(temperature_kelvin, np.float64)
    lam = 315614.0 / T
    alpha_A = 1.269e-13 * lam**1.503 / (1.0 + (lam / 0.522) ** 0.47) ** 1.923
    lambda_T = 1.17e-10 * np.sqrt(T) * np.exp(-157809.0 / T) / (1.0 + np.sqrt(T / 1e5))
    a = alpha_A + lambda_T
    b = 2.0 * alpha_A + lambda_T + photoionisation_rate(n_H, redshift) / n_H
    # 2c / (b + root) instead of (b - root) / 2a: no cancellation where the gas is almost all ionised.
    return 2.0 * alpha_A / (b + np.sqrt(b * b - 4.0 * a * alpha_A))


def hydrogen_fraction(gas: Particles, recipe: HydrogenRecipe = "primordial") -> float | Array:
    """Hydrogen mass fraction X_H: 0.76 for all, or (n,) of each cell from its elements (``cell``)."""
    return HYDROGEN_FRACTION if recipe == "primordial" else np.asarray(gas["hydrogen_fraction"], np.float64)


def hydrogen_fields(molecular: MolecularRecipe, neutral: NeutralRecipe, hydrogen: HydrogenRecipe) -> tuple[str, ...]:
    """The gas fields that the recipes read for masses of HI and H2."""
    fields = ["density", "sfr", "temperature" if neutral == "equilibrium" else "neutral_fraction"]
    return tuple(dict.fromkeys([*fields, *MOLECULAR[molecular], *(["hydrogen_fraction"] * (hydrogen == "cell"))]))


def neutral_fraction(
    galaxy: Galaxy, neutral: NeutralRecipe = "snapshot", hydrogen: HydrogenRecipe = "primordial"
) -> Array:
    """Share of each cell's hydrogen that is HI or H2.

    Args:
        galaxy: With gas fields ``density``, ``sfr``, and ``neutral_fraction`` or ``temperature``.
        neutral: ``snapshot``: its own value where SFR = 0; ``equilibrium``: that of Rahmati et al. (2013) at the
            cell's own temperature. Star-forming cells take the equilibrium at 1e4 K either way.
        hydrogen: Where X_H comes from.

    Returns:
        (n,) in [0, 1].

    Raises:
        GalaxyError: A field is missing, or the redshift is beyond the fit.
    """
    gas = galaxy.require("gas", hydrogen_fields("none", neutral, hydrogen))
    forming = gas["sfr"] > 0
    if neutral == "snapshot":
        fraction = np.array(gas["neutral_fraction"], np.float64)
        solve = forming
    else:
        fraction, solve = np.empty(len(gas)), np.ones(len(gas), bool)
    if solve.any():
        n_H = hydrogen_density(gas["density"], hydrogen_fraction(gas, hydrogen))[solve]
        kelvin = np.full(len(gas), STAR_FORMING_TEMPERATURE)
        if neutral == "equilibrium":
            kelvin[~forming] = gas["temperature"][~forming]
        fraction[solve] = rahmati_neutral_fraction(n_H, kelvin[solve], galaxy.redshift)
    return fraction


def neutral_hydrogen_mass(
    galaxy: Galaxy, *, neutral: NeutralRecipe = "snapshot", hydrogen: HydrogenRecipe = "primordial"
) -> Array:
    """Mass of HI + H2 in every gas cell; arguments and errors as :func:`neutral_fraction`.

    Returns:
        (n,) Msun.
    """
    fraction = neutral_fraction(galaxy, neutral, hydrogen)
    gas = galaxy.particles["gas"]
    return hydrogen_fraction(gas, hydrogen) * fraction * np.asarray(gas.mass, np.float64)


def jeans_column(
    density: NDArray[np.floating], temperature_kelvin: NDArray[np.floating], electron_abundance: NDArray[np.floating]
) -> Array:
    """ρ λ_J = (γ P / G)^½, the column of gas over a Jeans length (Schaye 2001).

    Args:
        density: (n,) Msun/kpc³.
        temperature_kelvin: (n,) K.
        electron_abundance: (n,) x_e = n_e / n_H.

    Returns:
        (n,) Msun/pc², helium included.
    """
    per_pressure = ADIABATIC_INDEX * constants.k_B * units.K / units.cm**3 / constants.G
    pressure = pressure_over_k(density, temperature_kelvin, electron_abundance)
    return np.sqrt(pressure * per_pressure.to_value("Msun2 / pc4"))


def shielded_molecular_fraction(column: NDArray[np.floating], metallicity: NDArray[np.floating]) -> Array:
    """Molecular share of neutral gas behind dust (McKee & Krumholz 2010, two-phase equilibrium).

    Args:
        column: (n,) Msun/pc² of neutral gas, helium included.
        metallicity: (n,) in solar units.

    Returns:
        (n,) in [0, 1); 0 where s ≥ 2.
    """
    Z = np.asarray(metallicity, np.float64)
    chi = 3.1 / 4.1 * (1.0 + 3.1 * Z**0.365)
    radiation = np.log(1.0 + 0.6 * chi + 0.01 * chi**2)
    dust = 0.6 * 0.066 * Z * np.asarray(column, np.float64)
    # s = radiation / dust put into 1 - (3/4) s / (1 + s/4): no division by dust, which may be zero
    return np.maximum(0.0, 1.0 - 0.75 * radiation / (dust + 0.25 * radiation))


def molecular_fraction(
    galaxy: Galaxy,
    recipe: MolecularRecipe = "br06",
    *,
    neutral: NeutralRecipe = "snapshot",
    hydrogen: HydrogenRecipe = "primordial",
) -> Array:
    """Share of the neutral hydrogen that is molecular; for all cells.

    Args:
        galaxy: With the gas fields of the recipe (:data:`MOLECULAR`), the temperature being that of the effective
            equation of state where the cell forms stars.
        recipe: ``br06`` (Blitz & Rosolowsky 2006) or ``leroy08`` (Leroy et al. 2008), from the cell's pressure;
            ``kmt`` (McKee & Krumholz 2010), from its column and metallicity; ``none`` (no molecules).
        neutral: As for :func:`neutral_fraction`; ``kmt`` alone needs it.
        hydrogen: Likewise.

    Returns:
        (n,) in [0, 1].

    Raises:
        GalaxyError: The recipe is unknown or a field is missing.
    """
    if recipe not in MOLECULAR:
        raise GalaxyError(unknown("recipe for molecular hydrogen", recipe, MOLECULAR))
    gas = galaxy.require("gas", MOLECULAR[recipe])
    if recipe == "none":
        return np.zeros(len(gas))
    state = gas["density"], gas["temperature"], gas["electron_abundance"]
    if recipe == "kmt":
        column = neutral_fraction(galaxy, neutral, hydrogen) * jeans_column(*state)
        return shielded_molecular_fraction(column, gas["metallicity"] / SOLAR_METALLICITY)
    scale, exponent = _PRESSURE_LAW[recipe]
    ratio = (pressure_over_k(*state) / scale) ** exponent
    return ratio / (1.0 + ratio)


def atomic_hydrogen_mass(
    galaxy: Galaxy,
    recipe: MolecularRecipe = "br06",
    *,
    neutral: NeutralRecipe = "snapshot",
    hydrogen: HydrogenRecipe = "primordial",
) -> Array:
    """Mass of HI in every gas cell: the neutral mass less its molecular share.

    Returns:
        (n,) Msun.

    Raises:
        GalaxyError: As :func:`neutral_fraction` and :func:`molecular_fraction`.
    """
    share = molecular_fraction(galaxy, recipe, neutral=neutral, hydrogen=hydrogen)
    return neutral_hydrogen_mass(galaxy, neutral=neutral, hydrogen=hydrogen) * (1.0 - share)


def molecular_hydrogen_mass(
    galaxy: Galaxy,
    recipe: MolecularRecipe = "br06",
    *,
    neutral: NeutralRecipe = "snapshot",
    hydrogen: HydrogenRecipe = "primordial",
) -> Array:
    """Mass of H2 in every gas cell, (n,) Msun: the molecular share of the neutral mass. Errors as above."""
    share = molecular_fraction(galaxy, recipe, neutral=neutral, hydrogen=hydrogen)
    return neutral_hydrogen_mass(galaxy, neutral=neutral, hydrogen=hydrogen) * share
