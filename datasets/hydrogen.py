"""Neutral, molecular and atomic hydrogen of simulated gas cells.

The neutral fraction x = n_HI+H2 / n_H of a cell in photoionisation equilibrium solves

    x (Γ_phot + Λ_T (1 - x) n_H) = α_A (1 - x)² n_H,

with the self-shielded photoionisation rate of Rahmati et al. (2013)

    Γ_phot / Γ_UVB = (1 - f) [1 + (n_H/n_0)^β]^α1 + f [1 + n_H/n_0]^α2.

IllustrisTNG stores x (``NeutralHydrogenAbundance``), but not usefully for star-forming cells, whose temperature is
that of an effective equation of state: there the equation above is solved at T = 1e4 K. The molecular part follows
from the mid-plane pressure, Blitz & Rosolowsky (2006):

    f_mol = n_H2 / (n_HI + n_H2) = R / (1 + R),   R = (P/k / 4.3e4 K cm⁻³)^0.92.

Assumptions: electrons come from hydrogen alone in the equilibrium; the pressure of star-forming cells is their
effective pressure (γ - 1) u ρ.

References:
    Rahmati, Pawlik, Raičević & Schaye 2013, MNRAS 430, 2427 (arXiv:1210.7808), eq. A1, A8 and table A1.
    Villaescusa-Navarro et al. 2018, ApJ 866, 135 (arXiv:1804.09180), appendix A.
    Blitz & Rosolowsky 2006, ApJ 650, 933 (astro-ph/0605035).
    Leroy et al. 2008, AJ 136, 2782 (arXiv:0810.2556).
    Hui & Gnedin 1997, MNRAS 292, 27 (recombination rate); Theuns et al. 1998, MNRAS 301, 478 (collisions).
"""

from typing import Literal

import numpy as np
from astropy import constants, units
from numpy.typing import NDArray

from skyshift.datasets.galaxy import Galaxy, GalaxyError

Array = NDArray[np.float64]

HYDROGEN_FRACTION = 0.76
"""Primordial hydrogen mass fraction X_H, used for all gas (as the TNG data specification does)."""

ADIABATIC_INDEX = 5.0 / 3.0

MolecularRecipe = Literal["none", "br06", "leroy08"]

_PRESSURE_LAW: dict[str, tuple[float, float]] = {"br06": (4.3e4, 0.92), "leroy08": (1.7e4, 0.8)}
"""Recipe to (P0/k in K cm⁻³, exponent) of R_mol = (P/P0)^exponent."""

# Redshift, log10 n_0 [cm⁻³], α1, α2, β, f (Rahmati et al. 2013, table A1) and Γ_UVB [1e-12 /s] (Faucher-Giguère et
# al. 2009, 2011 update, the background of IllustrisTNG; as Villaescusa-Navarro et al. 2018 use it).
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


def hydrogen_density(density: NDArray[np.floating]) -> Array:
    """Number density of hydrogen nuclei, n_H = X_H ρ / m_p, in cm⁻³, for ``density`` (n,) in Msun/kpc³."""
    return HYDROGEN_FRACTION * np.asarray(density, np.float64) * _PROTON_PER_CM3


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

    The fit's parameters and Γ_UVB are interpolated linearly in redshift between 0 and 5.

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
    log_n0, alpha1, alpha2, beta, f, rate = (
        float(np.interp(redshift, _SELF_SHIELDING[:, 0], column)) for column in _SELF_SHIELDING.T[1:]
    )
    ratio = np.asarray(hydrogen_density_cm3, np.float64) / 10.0**log_n0
    shielding = (1.0 - f) * (1.0 + ratio**beta) ** alpha1 + f * (1.0 + ratio) ** alpha2
    return rate * 1e-12 * shielding


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


def neutral_hydrogen_mass(galaxy: Galaxy) -> Array:
    """Mass of HI + H2 in every gas cell: the snapshot's value where SFR = 0, the equilibrium at 1e4 K elsewhere.

    Args:
        galaxy: With gas fields ``density``, ``sfr`` and ``neutral_fraction``.

    Returns:
        (n,) Msun.

    Raises:
        GalaxyError: A field is missing.
    """
    gas = galaxy.require("gas", ("density", "sfr", "neutral_fraction"))
    fraction = np.array(gas["neutral_fraction"], np.float64)
    forming = gas["sfr"] > 0
    n_H = hydrogen_density(gas["density"][forming])
    fraction[forming] = rahmati_neutral_fraction(n_H, np.full_like(n_H, STAR_FORMING_TEMPERATURE), galaxy.redshift)
    return HYDROGEN_FRACTION * fraction * np.asarray(gas.mass, np.float64)


def molecular_fraction(galaxy: Galaxy, recipe: MolecularRecipe = "br06") -> Array:
    """Share of the neutral hydrogen that is molecular, from the cell's pressure; for all cells.

    Args:
        galaxy: With gas fields ``density``, ``temperature`` (of the effective equation of state where the cell
            forms stars) and ``electron_abundance``.
        recipe: ``br06`` (Blitz & Rosolowsky 2006), ``leroy08`` (Leroy et al. 2008) or ``none`` (no molecules).

    Returns:
        (n,) in [0, 1].

    Raises:
        GalaxyError: The recipe is unknown or a field is missing.
    """
    gas = galaxy.require("gas", ("density", "temperature", "electron_abundance"))
    if recipe == "none":
        return np.zeros(len(gas))
    if recipe not in _PRESSURE_LAW:
        raise GalaxyError(f"no recipe '{recipe}' for molecular hydrogen; there are none, br06 and leroy08")
    scale, exponent = _PRESSURE_LAW[recipe]
    ratio = (pressure_over_k(gas["density"], gas["temperature"], gas["electron_abundance"]) / scale) ** exponent
    return ratio / (1.0 + ratio)


def atomic_hydrogen_mass(galaxy: Galaxy, recipe: MolecularRecipe = "br06") -> Array:
    """Mass of HI in every gas cell: the neutral mass less its molecular share.

    Returns:
        (n,) Msun.

    Raises:
        GalaxyError: As :func:`neutral_hydrogen_mass` and :func:`molecular_fraction`.
    """
    return neutral_hydrogen_mass(galaxy) * (1.0 - molecular_fraction(galaxy, recipe))
