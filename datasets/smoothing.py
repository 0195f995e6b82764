"""Kernel supports: how far each particle's mass reaches.

Gas cells use 2.5 cell radii, (3V/4π)^⅓. Stars and dark matter use the radius that holds a fixed number of
neighbours (32 for stars, 64 for dark matter), from the file where it is given (``StellarHsml``,
``SubfindHsml``), else from a k-nearest-neighbour search, done once per galaxy and kept over its rotations.

What was searched for can be kept on disk (:class:`SupportCache`). A kept result is found by the SHA-256 of the very
positions that were searched, so it can be no other galaxy's and no older version's; the same galaxies in another store,
with other domains, pixels or rotations, are not searched again.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (TNG data specification: StellarHsml, SubfindHsml).
"""

import contextlib
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyshift.datasets.galaxy import Galaxy
from skyshift.files import Location, write_whole

GAS_SUPPORT_PER_RADIUS = 2.5
NEIGHBOURS: dict[str, int] = {"gas": 32, "stars": 32, "dm": 64, "wind": 32, "black_holes": 1}

VERSION = 1
"""Of the search; raised when the same positions are to give another support."""


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
    """Distance of every particle to its ``neighbours``-th neighbour, to the precision of float32.

    Within :func:`keeping` a result that was kept is taken instead of a search.

    Args:
        position: (n, 3) kpc.
        neighbours: How many; reduced to n - 1 where there are fewer particles.

    Returns:
        (n,) kpc; zeros for a lone particle.
    """
    supports = _ACTIVE.get() or SupportCache()
    return supports(position, neighbours)


def _search(position: NDArray[np.floating], neighbours: int, threads: int) -> NDArray[np.float64]:
    count = min(neighbours, len(position) - 1)
    if count < 1:
        return np.zeros(len(position))
    distance, _ = cKDTree(position).query(position, k=[count + 1], workers=threads)
    # As it is kept on disk: 6e-8 of a support is nothing, and a kept support is then the searched one, bit by bit.
    return np.asarray(distance[:, 0], np.float32).astype(np.float64)


@dataclass(frozen=True)
class SupportCache:
    """Supports that were searched for, kept as one small NPZ file each.

    Attributes:
        folder: Where they are kept, on a disk or on object storage; ``None`` keeps nothing.
        threads: Of a search.
    """

    folder: Location | None = None
    threads: int = 1

    def _file(self, position: NDArray[np.floating], neighbours: int) -> Location:
        assert self.folder is not None
        digest = hashlib.sha256(f"{VERSION} {neighbours} {position.shape}".encode())
        digest.update(np.ascontiguousarray(position, "<f8").data)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npz"

    @staticmethod
    def _read(path: Location, count: int) -> NDArray[np.float64] | None:
        """What is kept there, if it is whole (an NPZ carries checksums) and of so many particles."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                support = file["support"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        fine = support.shape == (count,) and bool(np.isfinite(support).all()) and not (support < 0).any()
        return support.astype(np.float64) if fine else None

    def __call__(self, position: NDArray[np.floating], neighbours: int) -> NDArray[np.float64]:
        """Supports of particles, as :func:`neighbour_distance`, from what is kept or searched for and then kept.

        Args:
            position: (n, 3) kpc.
            neighbours: How many.

        Returns:
            (n,) kpc.
        """
        if self.folder is None:
            return _search(position, neighbours, self.threads)
        path = self._file(position, neighbours)
        support = self._read(path, len(position))
        if support is None:
            support = _search(position, neighbours, self.threads)
            with contextlib.suppress(OSError), write_whole(path) as side:  # without it the next build searches again
                np.savez(side, support=support.astype(np.float32))
        return support


_ACTIVE: ContextVar[SupportCache | None] = ContextVar("supports", default=None)


@contextlib.contextmanager
def keeping(supports: SupportCache) -> Iterator[None]:
    """Whoever searches for supports within this block finds what was kept, and keeps what is new."""
    token = _ACTIVE.set(supports)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def with_support(galaxy: Galaxy, kind: str) -> Galaxy:
    """The galaxy with the kernel support of ``kind`` filled in, searched for where the file gave none.

    Raises:
        GalaxyError: There are no particles of that kind.
    """
    particles = galaxy.require(kind)
    if particles.support is not None:
        return galaxy
    support = neighbour_distance(particles.position, NEIGHBOURS[kind])
    return galaxy.with_particles(kind, replace(particles, support=support))
