r"""Projection of particles onto a map, with the mass in every pixel integrated rather than sampled.

A particle of weight m and kernel support H adds to each pixel of side Δ the mean of m W over that pixel:

    Σ_pixel = Σ_p m_p / Δ² ∫_pixel W(|r - r_p|, H_p) d²r
    W(R, H) = 7 / (π H²) (1 - q)⁴ (1 + 4q),    q = R/H < 1

With S(x, y) = ∫_0^x ∫_0^y W du dv for H = 1, and the pixel's corners in units of H from the particle,

    ∫_pixel W d²r = S(x1, y1) - S(x0, y1) - S(x1, y0) + S(x0, y0)

The sum over pixels telescopes to S(1, 1) - S(-1, 1) - S(1, -1) + S(-1, -1) = 1: the mass is conserved to
rounding whatever the support, also that of kernels much smaller than a pixel, which sampling at pixel centres
loses. S is a summed-area table (Crow 1984), interpolated bilinearly. Above :data:`TABLE_LIMIT` pixels of
support the mean over the pixel is W + Δ²/24 ∇²W at its centre, right to fourth order in Δ.

Assumptions: the kernel is the two-dimensional Wendland C2 function of the projected distance, not a
three-dimensional kernel integrated along the line of sight; a slab keeps or drops whole particles by their
centre; the lines of sight are parallel and optically thin.

References:
    Wendland 1995, Adv. Comput. Math. 4, 389; Dehnen & Aly 2012, MNRAS 425, 1068 (the kernel).
    Crow 1984, Computer Graphics (SIGGRAPH) 18, 207 (summed-area tables).
    Borrow & Kelly 2021, arXiv:2106.05281 (kernels smaller than a pixel).
    Shoemake 1992, Graphics Gems III, 124 (uniform random rotations).
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from skyshift.errors import SkyshiftError

TABLE_LIMIT = 32.0
"""Support in pixels up to which S is read from the table, which is right to about 1e-4 of the kernel's peak.
Above it the means to fourth order are closer (2e-5) and faster, and miss 3e-8 of the mass."""

FAINTEST = 1e-14
"""Smallest part of a particle that a pixel can get from the table. Rounding leaves ±2e-16 in the corners of
the kernel's square, which it does not reach; where nothing else lies, a weighted mean would show them."""

TABLE_CELLS = 256
"""Cells of the table along one side of the quadrant 0 ≤ x, y ≤ 1: 528 kB, which a core's own cache holds."""


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


def project(
    position: NDArray[np.floating],
    support: NDArray[np.floating],
    weights: NDArray[np.floating],
    *,
    side: float,
    pixels: int,
    depth: float | None = None,
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

    Returns:
        (pixels, pixels) or (k, pixels, pixels), unit of ``weights`` per kpc². Columns follow x; rows follow
        y, row 0 lowest (``origin="lower"``).

    Raises:
        SkyshiftError: Shapes disagree, a value is not finite, a support is negative, or the map has no extent.
    """
    position, support, weights = (np.asarray(a, np.float64) for a in (position, support, weights))
    _check(position, support, weights, side, pixels, depth)
    stacked = np.atleast_2d(weights)
    if depth is not None:
        kept = (position[:, 2] >= -depth / 2) & (position[:, 2] < depth / 2)
        position, support, stacked = position[kept], support[kept], stacked[:, kept]
    pixel = side / pixels
    image = np.zeros((len(stacked), pixels, pixels))
    _deposit(
        image,
        position[:, 0] / pixel + pixels / 2,
        position[:, 1] / pixel + pixels / 2,
        support / pixel,
        np.ascontiguousarray(stacked),
        _quadrant(),
    )
    image /= pixel**2
    return image.reshape(*weights.shape[:-1], pixels, pixels)


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


def _check(
    position: NDArray[np.float64],
    support: NDArray[np.float64],
    weights: NDArray[np.float64],
    side: float,
    pixels: int,
    depth: float | None,
) -> None:
    """Raise ValueError on anything that would give a wrong map or none."""
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
    if pixels < 1:
        raise SkyshiftError(f"a map needs at least 1 pixel along a side, not {pixels}")
    if not 0 < side < np.inf:
        raise SkyshiftError(f"the map's side must be positive and finite, not {side} kpc")
    if depth is not None and not depth > 0:
        raise SkyshiftError(f"the slab's depth must be positive, not {depth} kpc; None keeps all particles")


@cache
def _quadrant() -> NDArray[np.float64]:
    """S(x, y) at the nodes of the quadrant 0 ≤ x, y ≤ 1, (TABLE_CELLS + 1, TABLE_CELLS + 1).

    S is odd in x and in y, so that one quadrant holds all of it and the four are symmetric to the last bit.
    """
    n = TABLE_CELLS
    nodes, gauss = np.polynomial.legendre.leggauss(4)
    x = ((np.arange(n)[:, None] + 0.5 + 0.5 * nodes) / n).ravel()
    per_x = np.tile(gauss, n)
    q = np.minimum(np.hypot(x[:, None], x), 1.0)
    kernel = (1 - q) ** 4 * (1 + 4 * q) * per_x[:, None] * per_x
    cells = kernel.reshape(n, 4, n, 4).sum(axis=(1, 3))
    table = np.zeros((n + 1, n + 1))
    table[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    table = (table + table.T) / 2
    return table / (4 * table[-1, -1])  # a quadrant holds exactly a quarter


@njit(cache=True, fastmath=False)
def _deposit(
    image: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    support: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: NDArray[np.float64],
) -> None:
    """Add every particle to ``image``, (k, pixels, pixels).

    ``x``, ``y`` and ``support``, each (n,), are in pixels from the map's lower left; ``weights`` is (k, n).
    """
    pixels = image.shape[1]
    rows, columns = np.empty((3, pixels + 1)), np.empty((3, pixels + 1))
    for p in range(x.size):
        H = support[p]
        # Floats until clipped to the map: the pixel number of a far particle need not fit an integer.
        left, right = np.floor(x[p] - H), np.floor(x[p] + H)
        bottom, top = np.floor(y[p] - H), np.floor(y[p] + H)
        if right < 0 or left >= pixels or top < 0 or bottom >= pixels:
            continue
        weight = weights[:, p]
        if left == right and bottom == top:  # also where H is 0 or lost in the rounding of the position
            image[:, int(bottom), int(left)] += weight
            continue
        j0, j1 = int(max(bottom, 0.0)), int(min(top + 1, pixels))
        if H > TABLE_LIMIT:
            _add_means(image, x[p], y[p], H, weight, j0, j1, rows[0])
        else:
            i0, i1 = int(max(left, 0.0)), int(min(right + 1, pixels))
            _add_integrals(image, x[p], y[p], H, weight, i0, i1, j0, j1, table, rows, columns)


@njit(cache=True, fastmath=False)
def _add_row(
    image: NDArray[np.float64],
    weight: NDArray[np.float64],
    share: NDArray[np.float64],
    j: int,
    i0: int,
    i1: int,
) -> None:
    """Add ``share``, which starts at column i0, of each of the k weights to columns i0 ≤ i < i1 of row j."""
    for k in range(weight.size):
        row, w = image[k, j, i0:i1], weight[k]
        for i in range(row.size):
            row[i] += w * share[i]


@njit(cache=True, fastmath=False)
def _add_means(
    image: NDArray[np.float64],
    x: float,
    y: float,
    H: float,
    weight: NDArray[np.float64],
    j0: int,
    j1: int,
    share: NDArray[np.float64],
) -> None:
    """Add W + ∇²W/24, the kernel's mean over a pixel to fourth order, in rows j0 ≤ j < j1 of the support."""
    pixels = image.shape[2]
    per_H = 1.0 / H
    norm = 7.0 / np.pi * per_H * per_H
    for j in range(j0, j1):
        dy = j + 0.5 - y
        if abs(dy) >= H:
            continue
        chord = np.sqrt(H * H - dy * dy)
        i0 = int(min(max(np.ceil(x - chord - 0.5), 0.0), pixels))
        i1 = int(min(max(np.floor(x + chord + 0.5), 0.0), pixels))
        for i in range(max(i1 - i0, 0)):
            dx = i + (i0 + 0.5 - x)
            q = np.sqrt(dx * dx + dy * dy) * per_H
            p2 = (1.0 - q) * (1.0 - q)
            laplacian = p2 * (100.0 * q - 40.0) * per_H * per_H  # 60 q - 40 (1 - q) in brackets
            share[i] = norm * (p2 * p2 * (1.0 + 4.0 * q) + laplacian / 24.0)
        _add_row(image, weight, share, j, i0, i1)


@njit(cache=True, fastmath=False)
def _locate(offset: float, H: float) -> tuple[int, float, float]:
    """Table cell of a pixel edge ``offset`` pixels from the particle, and the signed weights of its ends."""
    u = min(abs(offset) / H, 1.0) * TABLE_CELLS
    cell = min(int(u), TABLE_CELLS - 1)
    sign = 1.0 if offset >= 0 else -1.0
    return cell, sign * (cell + 1 - u), sign * (u - cell)


@njit(cache=True, fastmath=False)
def _add_integrals(
    image: NDArray[np.float64],
    x: float,
    y: float,
    H: float,
    weight: NDArray[np.float64],
    i0: int,
    i1: int,
    j0: int,
    j1: int,
    table: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
) -> None:
    """Add the kernel's integral over each pixel of columns i0 ≤ i < i1 and rows j0 ≤ j < j1."""
    share, lower, upper = rows[0], rows[1], rows[2]  # lower, upper: S at the corners below and above a row
    cell, near, far = columns[0], columns[1], columns[2]  # of every corner's x, as _locate gives them
    for i in range(i1 - i0 + 1):
        cell[i], near[i], far[i] = _locate(i0 + i - x, H)
    for j in range(j0, j1 + 1):
        m, below, above = _locate(j - y, H)
        for i in range(i1 - i0 + 1):
            n = int(cell[i])
            upper[i] = below * (table[m, n] * near[i] + table[m, n + 1] * far[i])
            upper[i] += above * (table[m + 1, n] * near[i] + table[m + 1, n + 1] * far[i])
        if j > j0:
            for i in range(i1 - i0):
                integral = (upper[i + 1] - lower[i + 1]) - (upper[i] - lower[i])
                share[i] = integral if integral > FAINTEST else 0.0
            _add_row(image, weight, share, j - 1, i0, i1)
        lower, upper = upper, lower
