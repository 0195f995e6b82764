r"""Projection of particles onto a map, with the mass in every pixel integrated rather than sampled.

A particle of weight m and kernel support H adds to each pixel of side Δ the mean of m W over that pixel:

    Σ_pixel = Σ_p m_p / Δ² ∫_pixel W(|r - r_p|, H_p) d²r

W is a polynomial with the moments of the Wendland C2 function (``projection_kernel``, where the forms in which it is
evaluated are given with their errors: at most 1e-3 of a particle's peak). The mass is conserved to rounding whatever
the support, also that of kernels much smaller than a pixel, which sampling at pixel centres loses, and of kernels
much wider than one: these go to coarser lattices, so that the time for a particle does not grow with its support.
(One that is wider than 16 pixels and touches the map's edge from within may lose 1e-6 over it.)

Assumptions: the kernel is two-dimensional, a function of the projected distance, not a three-dimensional one
integrated along the line of sight; a slab keeps or drops whole particles by their centre; the lines of sight are
parallel and optically thin.

A wide kernel (H > 16 pixels) is carried by a lattice that is fixed to the map's centre. Shifting it by a pixel that is
no lattice step changes its map by the error above, not to rounding.

References:
    Borrow & Kelly 2021, arXiv:2106.05281 (kernels smaller than a pixel).
    Shoemake 1992, Graphics Gems III, 124 (uniform random rotations).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from skyshift.datasets.projection_kernel import LIMITS, MARGIN, Lattices, coefficients, level_of, quadrant
from skyshift.datasets.projection_numba import deposit, finish
from skyshift.errors import SkyshiftError

SMALL = 20_000
"""Particles below which a thread more is not worth starting."""


def random_rotations(count: int, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """Rotation matrices drawn uniformly from SO(3); none of them is the identity on purpose.

    Args:
        count: How many, at least 1.
        seed: Of :func:`numpy.random.default_rng`; a sequence such as (seed, galaxy number) gives every galaxy
            its own set.

    Returns:
        (count, 3, 3).

    Raises:
        SkyshiftError: ``count`` is below 1.
    """
    if count < 1:
        raise SkyshiftError(f"cannot draw {count} rotations, at least 1 is needed")
    matrices = Rotation.random(count, np.random.default_rng(seed)).as_matrix()
    return np.asarray(matrices, np.float64).reshape(count, 3, 3)


def rotate(position: NDArray[np.floating], rotation: NDArray[np.floating]) -> NDArray[np.float64]:
    """Positions (or velocities, or fields) turned by one rotation matrix.

    Args:
        position: (n, 3), any unit.
        rotation: (3, 3).

    Returns:
        (n, 3), the unit of ``position``.

    Raises:
        SkyshiftError: A shape is wrong.
    """
    position, rotation = np.asarray(position, np.float64), np.asarray(rotation, np.float64)
    if position.ndim != 2 or position.shape[1] != 3 or rotation.shape != (3, 3):
        raise SkyshiftError(
            f"rotate needs positions (n, 3) and one matrix (3, 3), not {position.shape} and {rotation.shape}"
        )
    return position @ rotation.T


FARTHEST = 1e100
"""Support in pixels that is no length any more but an error."""


class Canvas:
    """Maps to which particles are added chunk by chunk, in float64.

    The particles are shared out over threads in fixed parts, each with lattices of its own, which are summed at the
    end: the maps repeat bit for bit with the same chunks and threads, and differ by rounding (1e-13) between numbers
    of threads. Memory: about 1.4 (pixels + 80)² k float64 a thread and as much again in :meth:`maps`, besides the
    chunk. One canvas is filled by one thread of the caller at a time; several may be filled side by side.
    """

    def __init__(
        self,
        side: float,
        pixels: int,
        weights: int,
        *,
        depth: float | None = None,
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        """An empty canvas.

        Args:
            side: Full side length of the map, kpc.
            pixels: Number of pixels along a side.
            weights: Number k of maps.
            depth: Full thickness in kpc of the slab -depth/2 ≤ z < depth/2 that is kept; ``None`` keeps all.
            threads: Processor threads at most; small chunks use fewer.
            device: ``None`` for numba on the processor; ``"cuda"``, ``"cuda:1"``, ``"cpu"`` for torch there.

        Raises:
            SkyshiftError: The map has no extent, ``threads`` or ``weights`` is below 1, or the device is not there.
        """
        _check_map(side, pixels, depth)
        if weights < 1 or threads < 1:
            raise SkyshiftError(f"a canvas needs at least 1 weight and 1 thread, not {weights} and {threads}")
        self.side, self.pixels, self.weights, self.depth, self.threads = side, pixels, weights, depth, threads
        self._lattices = Lattices(pixels, 1)
        self._parts: list[NDArray[np.float64]] = []
        self._torch = None
        if device is not None:
            # torch takes seconds to import, which a build on the processor would wait for in every worker.
            from skyshift.datasets.projection_torch import TorchCanvas

            self._torch = TorchCanvas(side, pixels, weights, depth, device)

    def add(self, position: NDArray[np.floating], support: NDArray[np.floating], weights: NDArray[np.floating]) -> None:
        """Add particles.

        Args:
            position: (n, 3) kpc relative to the map's centre: x to the right, y up, z along the line of sight.
            support: (n,) kpc, radius at which the kernel ends.
            weights: (k, n), any unit; (n,) where k is 1.

        Raises:
            SkyshiftError: Shapes disagree, a value is not finite, or a support is negative. Nothing was added.
        """
        r, H, stacked = _plain(position), _plain(support), _plain(weights)
        _check_particles(r, H, stacked)
        stacked = np.atleast_2d(stacked)
        if len(stacked) != self.weights:
            raise SkyshiftError(f"this canvas has {self.weights} maps, but {len(stacked)} weights came")
        if not len(H):
            return
        widest = float(H.max()) / (self.side / self.pixels)
        if widest > FARTHEST:
            raise SkyshiftError(f"a support of {H.max():.4g} kpc is too wide for a map of {self.side:.4g} kpc")
        if self._torch is not None:
            self._torch.add(r, H, stacked)
            return
        self._grow(widest)
        threads = max(1, min(self.threads, len(H) // SMALL))
        while len(self._parts) < threads:
            self._parts.append(np.zeros((self.weights, int(self._lattices.starts[-1]))))
        edges = np.linspace(0, len(H), threads + 1).astype(int)
        jobs = [
            (part, r[a:b], H[a:b], stacked[:, a:b])
            for part, a, b in zip(self._parts, edges[:-1], edges[1:], strict=False)
        ]
        if threads == 1:
            self._deposit(*jobs[0])
            return
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(self._deposit, *job) for job in jobs]:
                done.result()

    def maps(self) -> NDArray[np.float64]:
        """Surface density of what was added so far.

        Returns:
            (k, pixels, pixels), unit of the weights per kpc². Columns follow x; rows follow y, row 0 lowest
            (``origin="lower"``).
        """
        if self._torch is not None:
            lattices, flat = self._torch.lattices, self._torch.flat()
        elif self._parts:
            lattices, flat = self._lattices, np.sum(self._parts, axis=0)
        else:
            return np.zeros((self.weights, self.pixels, self.pixels))
        return finish(flat, lattices) / (self.side / self.pixels) ** 2

    def _grow(self, widest: float) -> None:
        """Make room for the coarser lattices that a support of ``widest`` pixels needs."""
        grown = Lattices(self.pixels, level_of(widest) + 1)
        if grown.levels > self._lattices.levels:
            more = int(grown.starts[-1] - self._lattices.starts[-1])
            self._lattices = grown
            self._parts = [np.pad(part, ((0, 0), (0, more))) for part in self._parts]

    def _deposit(
        self,
        part: NDArray[np.float64],
        position: NDArray[np.float64],
        support: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        """Add some particles to one thread's lattices."""
        layout, depth = self._lattices, np.inf if self.depth is None else float(self.depth)
        deposit(
            part,
            layout.starts,
            layout.sizes,
            layout.half,
            position,
            support,
            np.ascontiguousarray(weights),
            self.side / self.pixels,
            depth,
            quadrant(),
            coefficients(),
            LIMITS,
            MARGIN,
        )


def project(
    position: NDArray[np.floating],
    support: NDArray[np.floating],
    weights: NDArray[np.floating],
    *,
    side: float,
    pixels: int,
    depth: float | None = None,
    threads: int = 1,
    device: str | None = None,
) -> NDArray[np.float64]:
    """Surface density of one or more weights on a square map seen along z.

    A particle partly outside the map deposits the part inside. One of support 0 is a point mass, which falls
    whole into its pixel; a pixel owns its left and lower edge, as far as rounded positions can tell.

    Args:
        position: (n, 3) kpc relative to the map's centre: x to the right, y up, z along the line of sight.
        support: (n,) kpc, radius at which the kernel ends.
        weights: (n,) or (k, n), any unit; all k share one evaluation of the kernel, so that the ratio of two
            maps is a mean.
        side: Full side length of the map, kpc.
        pixels: Number of pixels along a side.
        depth: Full thickness in kpc of the slab -depth/2 ≤ z < depth/2 that is kept; ``None`` keeps all.
        threads: Processor threads at most.
        device: As in :class:`Canvas`.

    Returns:
        (pixels, pixels) or (k, pixels, pixels), unit of ``weights`` per kpc². Columns follow x; rows follow
        y, row 0 lowest (``origin="lower"``).

    Raises:
        SkyshiftError: Shapes disagree, a value is not finite, a support is negative, the map has no extent, or the
            device is not there.
    """
    weights = np.asarray(weights, np.float64)
    count = len(weights) if weights.ndim == 2 else 1
    if not count:
        raise SkyshiftError(f"weights of shape {weights.shape} make no map, at least one weight is needed")
    canvas = Canvas(side, pixels, count, depth=depth, threads=threads, device=device)
    canvas.add(position, support, weights)
    return canvas.maps().reshape(*weights.shape[:-1], pixels, pixels)


def weighted_mean(numerator_map: NDArray[np.floating], denominator_map: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of a quantity over each pixel's weight, from two maps of one :func:`project` call.

    Args:
        numerator_map: (..., pixels, pixels), map of weight times quantity.
        denominator_map: (..., pixels, pixels), map of the weight; it broadcasts against the numerator.

    Returns:
        (..., pixels, pixels), unit of the quantity; 0 where the denominator is 0.
    """
    numerator = np.asarray(numerator_map, np.float64)
    numerator, denominator = np.broadcast_arrays(numerator, np.asarray(denominator_map, np.float64))
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def _plain(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Float64, C order, writeable: numba compiles once for each kind of array. A copy only where one is needed."""
    return np.asarray(np.require(values, np.float64, ["C", "W"]), np.float64)


def _check_particles(position: NDArray[np.float64], support: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
    """Raise on particles that would give a wrong map or none."""
    n = len(position) if position.ndim else 0
    if position.ndim != 2 or position.shape[1] != 3:
        raise SkyshiftError(f"positions must have shape (n, 3), not {position.shape}")
    if support.shape != (n,):
        raise SkyshiftError(f"{n} positions need supports of shape ({n},), not {support.shape}")
    if weights.ndim not in (1, 2) or weights.shape[-1] != n:
        raise SkyshiftError(f"{n} positions need weights of shape ({n},) or (k, {n}), not {weights.shape}")
    for name, value in (("position", position), ("support", support), ("weights", weights)):
        if not np.isfinite(value).all():
            raise SkyshiftError(f"'{name}' holds {np.sum(~np.isfinite(value))} values that are not finite")
    if (support < 0).any():
        raise SkyshiftError(f"{np.sum(support < 0)} supports are negative, lowest {support.min():.4g} kpc")


def _check_map(side: float, pixels: int, depth: float | None) -> None:
    """Raise on a map without extent."""
    if pixels < 1:
        raise SkyshiftError(f"a map needs at least 1 pixel along a side, not {pixels}")
    if not 0 < side < np.inf:
        raise SkyshiftError(f"the map's side must be positive and finite, not {side} kpc")
    if depth is not None and not depth > 0:
        raise SkyshiftError(f"the slab's depth must be positive, not {depth} kpc; None keeps all particles")
