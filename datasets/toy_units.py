"""A toy galaxy in the code units of IllustrisTNG: ckpc/h, 1e10 Msun/h, km/s √a.

    stored = physical / (a^a_scaling h^h_scaling unit)

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.toy_galaxies import ToyGalaxy
from skyshift.datasets.toy_recipes import HUBBLE, OMEGA_MATTER

Array = NDArray[Any]

BOX_SIZE = 75000.0  # ckpc/h
LENGTH, MASS, VELOCITY = 3.085678e21, 1.989e43, 1e5  # code units in cm, g, cm/s
GAUSS = 2.60e-6  # Gauss per code unit of the magnetic field at a = h = 1


@dataclass(frozen=True)
class Unit:
    """Powers of a, h, length, mass and velocity of a field, its ``to_cgs``, and its physical unit."""

    a: float = 0.0
    h: float = 0.0
    length: float = 0.0
    mass: float = 0.0
    velocity: float = 0.0
    cgs: float = 0.0
    unit: float = 1.0
    described: bool = True

    def attributes(self) -> dict[str, float]:
        """Attributes of the stored data set."""
        if not self.described:
            return {}
        return {
            "a_scaling": self.a,
            "h_scaling": self.h,
            "length_scaling": self.length,
            "mass_scaling": self.mass,
            "to_cgs": self.cgs,
            "velocity_scaling": self.velocity,
        }

    def store(self, physical: Array, scale_factor: float) -> Array:
        """Physical values to code units, float64."""
        return np.asarray(physical / (scale_factor**self.a * HUBBLE**self.h * self.unit), np.float64)


_DISTANCE = Unit(a=1, h=-1, length=1, cgs=LENGTH)
_MASS = Unit(h=-1, mass=1, cgs=MASS, unit=1e10)
UNITS: dict[str, Unit] = {
    "Coordinates": _DISTANCE,
    "Velocities": Unit(a=0.5, velocity=1, cgs=VELOCITY),
    "Masses": _MASS,
    "Density": Unit(a=-3, h=2, length=-3, mass=1, cgs=MASS / LENGTH**3, unit=1e10),
    "InternalEnergy": Unit(velocity=2, cgs=VELOCITY**2),
    "ElectronAbundance": Unit(),
    "NeutralHydrogenAbundance": Unit(),
    "StarFormationRate": Unit(length=-1, mass=1, velocity=1, cgs=6.302760666210359e25),
    "GFM_Metallicity": Unit(),
    "MagneticField": Unit(a=-2, h=1, unit=GAUSS, described=False),
    "SubfindHsml": _DISTANCE,
    "GFM_StellarFormationTime": Unit(),
    "GFM_InitialMass": _MASS,
    "GFM_StellarPhotometrics": Unit(),
    "StellarHsml": _DISTANCE,
    "BH_Mass": _MASS,
    "ParticleIDs": Unit(),
}
"""Field to its unit. Physical units are kpc, km/s, Msun, Msun/kpc³, (km/s)², Msun/yr and Gauss. The
magnetic field has no attributes in IllustrisTNG's files either."""

_COMMON = {"Coordinates": "position", "Velocities": "velocity", "Masses": "mass"}
FIELDS: dict[int, dict[str, str]] = {
    0: _COMMON
    | {
        "Density": "density",
        "InternalEnergy": "internal_energy",
        "ElectronAbundance": "electron_abundance",
        "NeutralHydrogenAbundance": "neutral_fraction",
        "StarFormationRate": "sfr",
        "GFM_Metallicity": "metallicity",
        "MagneticField": "magnetic_field",
    },
    1: {"Coordinates": "position", "Velocities": "velocity", "SubfindHsml": "support"},
    4: _COMMON
    | {
        "GFM_StellarFormationTime": "age",
        "GFM_Metallicity": "metallicity",
        "GFM_InitialMass": "initial_mass",
        "GFM_StellarPhotometrics": "photometry",
        "StellarHsml": "support",
    },
    5: _COMMON | {"BH_Mass": "mass"},
}
"""Particle type to its stored fields and where they come from in a :class:`ToyGalaxy`."""


def formation_scale_factor(age: Array, redshift: float) -> Array:
    """Scale factor ``age`` Gyr before the snapshot, in flat ΛCDM; ages shrink with the universe's own."""
    ratio = OMEGA_MATTER / (1.0 - OMEGA_MATTER)
    hubble_time = 977.79222 / (100.0 * HUBBLE) / np.sqrt(1.0 - OMEGA_MATTER)  # Gyr, of the constant Λ

    def cosmic_time(a: float) -> float:
        return float(2.0 / 3.0 * hubble_time * np.arcsinh(np.sqrt(a**3 / ratio)))

    now, today = cosmic_time(1.0 / (1.0 + redshift)), cosmic_time(1.0)
    time = now * (1.0 - age / today)
    return np.asarray(np.cbrt(ratio * np.sinh(1.5 * time / hubble_time) ** 2))


def wrapped(position: Array, scale_factor: float) -> Array:
    """Physical kpc to ckpc/h in the periodic box, float64 in [0, BOX_SIZE)."""
    inside = np.mod(UNITS["Coordinates"].store(position, scale_factor), BOX_SIZE)
    return np.where(inside >= BOX_SIZE, 0.0, inside)  # a tiny negative number rounds up to the box size


def particle_types(galaxy: ToyGalaxy) -> dict[int, dict[str, Array]]:
    """The galaxy's particles by the number of their type; type 4 holds stars and wind."""
    return {0: galaxy.gas, 1: galaxy.dm, 4: galaxy.stars, 5: galaxy.black_holes}


def particle_arrays(galaxy: ToyGalaxy, centre: Array, drift: Array, redshift: float) -> dict[int, dict[str, Array]]:
    """Stored arrays of every particle type.

    Args:
        galaxy: The galaxy.
        centre: (3,) kpc in the box.
        drift: (3,) km/s, its peculiar velocity.
        redshift: Of the snapshot.
    """
    a = 1.0 / (1.0 + redshift)
    stored: dict[int, dict[str, Array]] = {}
    for kind, particles in particle_types(galaxy).items():
        fields = {}
        for field, name in FIELDS[kind].items():
            value = particles[name]
            if field == "Coordinates":
                fields[field] = wrapped(value + centre, a)
                continue
            if field == "Velocities":
                value = value + drift
            elif field == "GFM_StellarFormationTime":
                value = np.where(value >= 0, formation_scale_factor(np.maximum(value, 0.0), redshift), value)
            fields[field] = UNITS[field].store(value, a).astype(np.float32)
        first = ((galaxy.recipe.number + 1) << 32) + (kind << 28)
        fields["ParticleIDs"] = np.arange(len(particles["mass"]), dtype=np.uint64) + np.uint64(first)
        stored[kind] = fields
    return stored


def subhalo_row(galaxy: ToyGalaxy, centre: Array, drift: Array, redshift: float) -> dict[str, Any]:
    """The galaxy's entries in the catalogue of subhaloes, but for its place there. Arguments as above.

    Masses and half-mass radii count wind particles as gas, lengths count them as stars, as IllustrisTNG does.
    """
    a = 1.0 / (1.0 + redshift)
    kinds = particle_types(galaxy)
    wind = galaxy.stars["age"] < 0
    position = np.concatenate([held["position"] for held in kinds.values()])
    weights = np.concatenate([held["mass"] for held in kinds.values()])
    matter = {kind: np.full(len(held["mass"]), kind) for kind, held in kinds.items()}
    matter[4] = np.where(wind, 0, 4)
    counted_as = np.concatenate(list(matter.values()))
    mass, radius, length = np.zeros(6), np.zeros(6), np.zeros(6, np.int32)
    for kind, held in kinds.items():
        mine = counted_as == kind
        mass[kind], radius[kind] = weights[mine].sum(), _half_mass_radius(position[mine], weights[mine])
        length[kind] = len(held["mass"])
    centre_of_mass = centre + np.average(position, axis=0, weights=weights)
    row: dict[str, Array] = {
        "SubhaloPos": wrapped(centre, a),
        "SubhaloCM": wrapped(centre_of_mass, a),
        "SubhaloVel": drift,
        "SubhaloMass": _MASS.store(np.asarray(mass.sum()), a),
        "SubhaloMassType": _MASS.store(mass, a),
        "SubhaloHalfmassRad": _DISTANCE.store(np.asarray(_half_mass_radius(position, weights)), a),
        "SubhaloHalfmassRadType": _DISTANCE.store(radius, a),
        "SubhaloSFR": galaxy.gas["sfr"].sum(),
    }
    row = {name: np.asarray(value, np.float32) for name, value in row.items()}
    return row | {
        "SubhaloLenType": length,
        "SubhaloLen": length.sum(dtype=np.int32),
        "SubhaloMorphology": np.int32(galaxy.recipe.label),
    }


def group_row(galaxy: ToyGalaxy, subhalo: Mapping[str, Array], redshift: float) -> dict[str, Array]:
    """The entries of the galaxy's group, whose only subhalo is ``subhalo``."""
    a = 1.0 / (1.0 + redshift)
    recipe = galaxy.recipe
    row = {
        "GroupPos": subhalo["SubhaloPos"],
        "GroupVel": subhalo["SubhaloVel"] * a,
        "GroupMass": subhalo["SubhaloMass"],
        "GroupMassType": subhalo["SubhaloMassType"],
        "Group_M_Crit200": _MASS.store(np.asarray(recipe.halo_mass), a),
        "Group_R_Crit200": _DISTANCE.store(np.asarray(recipe.virial_radius), a),
        "GroupSFR": subhalo["SubhaloSFR"],
    }
    row = {name: np.asarray(value, np.float32) for name, value in row.items()}
    return row | {"GroupLenType": subhalo["SubhaloLenType"], "GroupLen": subhalo["SubhaloLen"]}


def _half_mass_radius(position: Array, mass: Array) -> float:
    radius = np.linalg.norm(position, axis=1)
    order = np.argsort(radius)
    inside = np.cumsum(mass[order])
    return float(radius[order][np.searchsorted(inside, 0.5 * inside[-1])])
