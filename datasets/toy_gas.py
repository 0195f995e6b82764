"""Thermal state, ionisation, metals and magnetic field of the gas cells of a toy galaxy.

Density comes from the cells themselves, ρ = Σ m / (4/3 π r³) over the 16 nearest. Temperature:

    cold gas                              T = 1e4 K (n_H / 0.03 cm⁻³)^-0.1, 5e3 to 2e4 K
    star-forming (n_H > 0.106 cm⁻³)       T = 1.2e4 K (n_H / 0.106 cm⁻³)^1/2, an effective equation of state
    hot halo                              T = (1.5 - r/R_200) T_vir

Hot cells among cold neighbours cool and the other way round: the temperature is a blend by the share of hot
cells among the neighbours. Neutral fractions are the photoionisation equilibrium under the self-shielded
background; for star-forming cells at their effective temperature, which is as unphysical as in
IllustrisTNG: recompute it there.

    SFR = m / t⋆,   t⋆ = 2.27 Gyr (n_H / 0.106 cm⁻³)^-1/2
    |B| = B_s s / (1 + s),   s = (n_H / 0.1 cm⁻³)^2/3,   B_s = 6 to 14 µG; a seventh of that in the hot halo

References:
    Springel & Hernquist 2003, MNRAS 339, 289 (threshold, star-formation time, effective equation of state).
    Rahmati et al. 2013, MNRAS 430, 2427 (arXiv:1210.7808) (self-shielding).
    Komatsu & Seljak 2001, MNRAS 327, 1353 (slow decline of the temperature of hot haloes).
    Andrews & Martini 2013, ApJ 765, 140 (arXiv:1211.3418) (oxygen against stellar mass).
    Sánchez et al. 2014, A&A 563, A49 (arXiv:1311.7052) (gradient of -0.1 dex per effective radius).
    Beck 2015, A&A Rev. 24, 4 (fields of discs); Pakmor et al. 2020, MNRAS 498, 3125 (of their surroundings).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyshift.datasets.hydrogen import (
    HYDROGEN_FRACTION,
    SOLAR_METALLICITY,
    hydrogen_density,
    rahmati_neutral_fraction,
    temperature,
)

Array = NDArray[np.float64]

STAR_FORMATION_THRESHOLD = 0.106  # cm⁻³ of hydrogen
STAR_FORMATION_TIME = 2.27e9  # yr at the threshold
COLD_LIMIT = 1e5  # K, above which no cell forms stars
NEIGHBOURS = 16
DENSEST = 1e10  # Msun / kpc³, 300 hydrogen nuclei per cm³; beyond it the nearest neighbours are chance
_HELIUM = (1.0 - HYDROGEN_FRACTION) / (4.0 * HYDROGEN_FRACTION)  # nuclei per hydrogen nucleus


def density_and_hot_share(position: Array, mass: Array, hot: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Density (n,) in Msun/kpc³ about every cell and the share of hot cells among its nearest neighbours.

    Args:
        position: (n, 3) kpc.
        mass: (n,) Msun.
        hot: (n,) cells of the hot halo.
    """
    distance, index = cKDTree(position).query(position, k=min(NEIGHBOURS, len(position)))
    volume = 4.0 / 3.0 * np.pi * np.maximum(distance[:, -1], 1e-3) ** 3
    return np.minimum(mass[index].sum(axis=1) / volume, DENSEST), hot[index].mean(axis=1)


def electron_abundance(neutral_fraction: Array, kelvin: Array) -> Array:
    """n_e / n_H: helium is ionised once along with hydrogen, and twice above 5e4 K."""
    return (1.0 - neutral_fraction) * (1.0 + _HELIUM) + np.where(kelvin > 5e4, _HELIUM, 0.0)


def oxygen_metallicity(stars: float) -> float:
    """Metal mass fraction of the gas at the effective radius, for ``stars`` Msun (Andrews & Martini 2013)."""
    oxygen = 8.798 - np.log10(1.0 + (10.0**8.901 / stars) ** 0.640)
    return float(SOLAR_METALLICITY * 10.0 ** (oxygen - 8.69))


def gradient(x: Array) -> Array:
    """Change in log metallicity at ``x`` effective radii: -0.1 per radius, 0 at one, flat beyond 2.5."""
    return -0.1 * (np.minimum(x, 2.5) - 1.0)


def gas_state(
    rng: np.random.Generator,
    position: Array,
    mass: Array,
    hot: NDArray[np.bool_],
    effective_radii: Array,
    azimuth: Array,
    stars: float,
    virial_temperature: float,
    virial_radius: float,
    redshift: float,
) -> dict[str, Array]:
    """Everything about the cells but where they are and how they move.

    Args:
        rng: Random numbers.
        position: (n, 3) kpc from the centre of the halo.
        mass: (n,) Msun.
        hot: (n,) cells of the hot halo.
        effective_radii: (n,) distance from the centre of the cell's component in its effective radii.
        azimuth: (n, 3) unit vectors along the rotation.
        stars: Stellar mass of the galaxy in Msun.
        virial_temperature: K.
        virial_radius: kpc.
        redshift: Of the ultraviolet background.

    Returns:
        ``density`` in Msun/kpc³, ``internal_energy`` in (km/s)², ``electron_abundance``,
        ``neutral_fraction``, ``sfr`` in Msun/yr, ``metallicity`` as mass fraction, all (n,), and
        ``magnetic_field`` (n, 3) in Gauss.
    """
    n = len(mass)
    density, hot_share = density_and_hot_share(position, mass, hot)
    n_H = hydrogen_density(density)
    blend = np.clip((hot_share - 0.5) / 0.4, 0.0, 1.0)

    # temperature
    cold = np.clip(1e4 * (n_H / 0.03) ** -0.1 * 10.0 ** rng.normal(0.0, 0.1, n), 5e3, 2e4)
    decline = 1.5 - np.linalg.norm(position, axis=1) / virial_radius
    hottest = np.maximum(virial_temperature * decline * 10.0 ** rng.normal(0.0, 0.08, n), 1.5 * COLD_LIMIT)
    kelvin = cold ** (1.0 - blend) * hottest**blend
    forming = (n_H > STAR_FORMATION_THRESHOLD) & (kelvin < COLD_LIMIT)
    excess = np.maximum(n_H / STAR_FORMATION_THRESHOLD, 1.0)
    kelvin = np.where(forming, np.minimum(1.2e4 * np.sqrt(excess), 0.9 * COLD_LIMIT), kelvin)

    # ionisation
    neutral = rahmati_neutral_fraction(n_H, kelvin, redshift)
    x_e = electron_abundance(neutral, kelvin)

    # metals
    log_cold = np.log10(oxygen_metallicity(stars)) + gradient(effective_radii) + rng.normal(0.0, 0.08, n)
    log_hot = np.log10(0.3 * SOLAR_METALLICITY) + rng.normal(0.0, 0.15, n)

    # magnetic field
    s = (n_H / 0.1) ** (2.0 / 3.0)
    strength = rng.uniform(6e-6, 14e-6) * s / (1.0 + s) * (1.0 / 7.0) ** blend * 10.0 ** rng.normal(0.0, 0.1, n)
    vector = azimuth * (1.0 - blend)[:, None] + (0.35 + 0.65 * blend)[:, None] * rng.normal(size=(n, 3))
    vector /= np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-9)
    return {
        "density": density,
        "internal_energy": kelvin / temperature(np.ones(n), x_e),
        "electron_abundance": x_e,
        "neutral_fraction": neutral,
        "sfr": np.where(forming, mass / STAR_FORMATION_TIME * np.sqrt(excess), 0.0),
        "metallicity": np.clip(10.0 ** (log_cold * (1.0 - blend) + log_hot * blend), 1e-5, 0.06),
        "magnetic_field": strength[:, None] * vector,
    }
