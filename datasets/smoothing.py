"""Kernel supports: how far each particle's mass reaches.

Gas cells use 2.5 cell radii, (3V/4π)^⅓. Stars and dark matter use the radius that holds a fixed number of
neighbours (32 for stars, 64 for dark matter), from the file where it is given (``StellarHsml``,
``SubfindHsml``), else from a k-nearest-neighbour search, done once per galaxy and kept over its rotations.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (TNG data specification: StellarHsml, SubfindHsml).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyshift.datasets.galaxy import Galaxy

GAS_SUPPORT_PER_RADIUS = 2.5
NEIGHBOURS: dict[str, int] = {"gas": 32, "stars": 32, "dm": 64, "wind": 32, "black_holes": 1}


def cell_radius(mass: NDArray[np.floating], density: NDArray[np.floating]) -> NDArray[np.float64]:
    """Radius of the sphere with the cell's volume, (3V/4π)^⅓ with V = mass/density.

    Args:
        mass: (n,) Msun.
        density: (n,) Msun/kpc³.

    Returns:
        (n,) kpc.
    """
    volume = np.asarray(mass, np.float64) / np.asarray(density, np.float64)
    return np.cbrt(3.0 * volume / (4.0 * np.pi))


def neighbour_distance(position: NDArray[np.floating], neighbours: int) -> NDArray[np.float64]:
    """Distance of every particle to its ``neighbours``-th neighbour.

    Args:
        position: (n, 3) kpc.
        neighbours: How many; reduced to n - 1 where there are fewer particles.

    Returns:
        (n,) kpc; zeros for a lone particle.
    """
    count = min(neighbours, len(position) - 1)
    if count < 1:
        return np.zeros(len(position))
    distance, _ = cKDTree(position).query(position, k=[count + 1])
    return np.asarray(distance[:, 0], np.float64)


def with_support(galaxy: Galaxy, kind: str) -> Galaxy:
    """The galaxy with the kernel support of ``kind`` filled in, searched for where the file gave none."""
    particles = galaxy.require(kind)
    if particles.support is not None:
        return galaxy
    support = neighbour_distance(particles.position, NEIGHBOURS[kind])
    return galaxy.with_particles(kind, replace(particles, support=support))
