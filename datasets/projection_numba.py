"""Particles onto lattices with numba, one thread a call; what is put there is described in ``projection_kernel``.

Every function lets go of the interpreter's lock, so that plain Python threads run them side by side, each on lattices
of its own. No threading layer of numba is started: nothing global changes, and a forked worker is safe.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skyshift.datasets.projection_kernel import Lattices

FAINTEST = 1e-14
"""Smallest part of a particle that a pixel can get from the table. Rounding leaves ±2e-16 in the corners of
the kernel's square, which it does not reach; where nothing else lies, a weighted mean would show them."""

ROW = 40
"""Length of a buffer for one row of the widest stencil."""


def finish(flat: NDArray[np.float64], lattices: Lattices) -> NDArray[np.float64]:
    """Weight in every pixel, from that on all levels.

    Args:
        flat: (k, length), as :func:`deposit` fills it.
        lattices: Its layout.

    Returns:
        (k, pixels, pixels), the unit of the weights.
    """
    coarse: NDArray[np.float64] | None = None
    for level in range(lattices.levels - 1, 0, -1):
        own = lattices.level(flat, level)
        coarse = own if coarse is None else own + coarse
        first, taps = lattices.refinement(level)
        coarse = np.stack([_refine(np.ascontiguousarray(one), first, taps) for one in coarse])
    fine = lattices.level(flat, 0)
    return np.array(fine) if coarse is None else fine + coarse


@njit(cache=True, nogil=True, fastmath=True)
def _refine(coarse: NDArray[np.float64], first: NDArray[np.int64], taps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coarse values carried to a finer lattice along both axes, (n, n) from (m, m)."""
    m, n, width = coarse.shape[0], first.size, taps.shape[1]
    across = np.zeros((m, n))
    for j in range(m):
        row = coarse[j]
        for i in range(n):
            for k in range(width):
                across[j, i] += taps[i, k] * row[first[i] + k]
    fine = np.zeros((n, n))
    for j in range(n):
        row = fine[j]
        for k in range(width):
            tap, other = taps[j, k], across[first[j] + k]
            for i in range(n):
                row[i] += tap * other[i]
    return fine


@njit(cache=True, nogil=True)
def deposit(
    flat: NDArray[np.float64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    half: NDArray[np.int64],
    position: NDArray[np.float64],
    support: NDArray[np.float64],
    weights: NDArray[np.float64],
    pixel: float,
    depth: float,
    table: NDArray[np.float64],
    fitted: NDArray[np.float64],
    limits: NDArray[np.float64],
    margin: int,
) -> None:
    """Add every particle to the lattices.

    Constants of ``projection_kernel`` come as arguments: numba's cache on disk would keep old values of globals.

    Args:
        flat: (k, length) lattices of k weights.
        starts: Of ``Lattices``, as ``sizes`` and ``half``.
        sizes: See ``starts``.
        half: See ``starts``.
        position: (n, 3), relative to the map's centre.
        support: (n,), the unit of ``position``.
        weights: (k, n).
        pixel: Side of a pixel, the unit of ``position``.
        depth: Particles with -depth/2 ≤ z < depth/2 are kept; infinite keeps all.
        table: From ``quadrant``.
        fitted: From ``coefficients``.
        limits: ``LIMITS``, the four lengths at which the form of the kernel changes.
        margin: ``MARGIN``.
    """
    table_limit, widest, edge, inset = limits
    share = np.empty(ROW * ROW)
    near, cells = np.empty((3, ROW)), np.empty(ROW, np.int64)
    pixels = sizes[0]
    for p in range(support.size):
        if not -depth / 2 <= position[p, 2] < depth / 2:
            continue
        h = support[p] / pixel
        if h < table_limit:
            x, y = position[p, 0] / pixel + pixels / 2, position[p, 1] / pixel + pixels / 2
            # Floats until clipped to the map: the pixel number of a far particle need not fit an integer.
            left, right, bottom, top = np.floor(x - h), np.floor(x + h), np.floor(y - h), np.floor(y + h)
            if right < 0 or left >= pixels or top < 0 or bottom >= pixels:
                continue
            i0, columns, j0, rows = int(left), int(right - left) + 1, int(bottom), int(top - bottom) + 1
            if columns == 1 and rows == 1:  # also where h is 0 or lost in the rounding of the position
                share[0] = 1.0
            else:
                _integrals(share, near, cells, i0 - x, j0 - y, h, columns, rows, table)
            begin = (j0 + margin) * (pixels + 2 * margin) + i0 + margin
            _add(flat, begin, pixels + 2 * margin, columns, rows, share, weights, p, 1.0)
            continue
        level, step = 0, 1.0
        while h > widest:
            h *= 0.5
            step *= 2.0
            level += 1
        middle = half[level] if level else (pixels - 1) / 2
        x, y = position[p, 0] / (pixel * step) + middle, position[p, 1] / (pixel * step) + middle
        reach = h - inset if level else h + edge
        size = sizes[level]
        if x + reach < 0 or x - reach > size - 1 or y + reach < 0 or y - reach > size - 1:
            continue
        i0, j0 = int(np.ceil(x - reach)), int(np.ceil(y - reach))
        columns, rows = int(np.floor(x + reach)) - i0 + 1, int(np.floor(y + reach)) - j0 + 1
        wide = (columns + 3) // 4 * 4  # whole vector registers; the margin takes the zeros beyond the kernel
        lowest = widest / 2 if level else table_limit
        far = (1 / h - 1 / widest) / (1 / lowest - 1 / widest)
        total = _means(share, near[0], i0 - x, j0 - y, reach, wide, rows, fitted[min(level, 1)], far)
        begin, scale = starts[level] + (j0 + margin) * (size + 2 * margin) + i0 + margin, 1 / (total * step * step)
        _add(flat, begin, size + 2 * margin, wide, rows, share, weights, p, scale)


@njit(cache=True, nogil=True, fastmath=True)
def _add(
    flat: NDArray[np.float64],
    begin: int,
    padded: int,
    columns: int,
    rows: int,
    share: NDArray[np.float64],
    weights: NDArray[np.float64],
    p: int,
    scale: float,
) -> None:
    """Add ``share``, (rows, columns) in one line, of every weight of particle p from cell ``begin`` on.

    ``padded`` is the length of a row of the lattice.
    """
    for k in range(weights.shape[0]):
        w = weights[k, p] * scale
        for j in range(rows):
            first = begin + j * padded
            row, part = flat[k, first : first + columns], share[j * columns : (j + 1) * columns]
            for i in range(columns):
                row[i] += w * part[i]


@njit(cache=True, nogil=True, fastmath=True)
def _means(
    share: NDArray[np.float64],
    across: NDArray[np.float64],
    dx: float,
    dy: float,
    reach: float,
    columns: int,
    rows: int,
    fitted: NDArray[np.float64],
    far: float,
) -> float:
    """Write K to ``share``, (rows, columns) in one line, and give its sum.

    dx and dy: first node from the particle; far: where its coefficients lie, 0 at the first fit and 1 at the last.
    """
    far *= fitted.shape[0] - 1
    node = min(max(int(far), 0), fitted.shape[0] - 2)
    far -= node
    here, there = fitted[node], fitted[node + 1]
    b0 = here[0] + far * (there[0] - here[0])
    b1 = here[1] + far * (there[1] - here[1])
    b2 = here[2] + far * (there[2] - here[2])
    b3 = here[3] + far * (there[3] - here[3])
    b4 = here[4] + far * (there[4] - here[4])
    per_reach = 1 / reach
    for i in range(columns):
        u = (dx + i) * per_reach
        across[i] = u * u
    total = 0.0
    for j in range(rows):
        u = (dy + j) * per_reach
        left = 1 - u * u
        row = share[j * columns : (j + 1) * columns]
        for i in range(columns):
            t = max(left - across[i], 0.0)
            K = t * t * t * (b0 + t * (b1 + t * (b2 + t * (b3 + t * b4))))
            row[i] = K
            total += K
    return total


@njit(cache=True, nogil=True)
def _locate(offset: float, H: float, last: int) -> tuple[int, float, float]:
    """Table cell of a pixel edge ``offset`` pixels from the particle, and the signed weights of its ends."""
    u = min(abs(offset) / H, 1.0) * last
    cell = min(int(u), last - 1)
    sign = 1.0 if offset >= 0 else -1.0
    return cell, sign * (cell + 1 - u), sign * (u - cell)


@njit(cache=True, nogil=True)
def _integrals(
    share: NDArray[np.float64],
    near: NDArray[np.float64],
    cells: NDArray[np.int64],
    dx: float,
    dy: float,
    H: float,
    columns: int,
    rows: int,
    table: NDArray[np.float64],
) -> None:
    """Write the kernel's integral over each pixel to ``share``, (rows, columns) in one line.

    dx and dy: lower left corner of the first pixel from the particle. The outermost corners lie beyond the kernel.
    """
    last, lower, low, high = table.shape[0] - 1, near[0], near[1], near[2]
    for i in range(1, columns):
        cells[i], low[i], high[i] = _locate(dx + i, H, last)
        lower[i] = -(table[last, cells[i]] * low[i] + table[last, cells[i] + 1] * high[i])  # S(x, -1)
    lower[0], lower[columns] = 0.25, -0.25
    for j in range(1, rows + 1):
        m, below, above = _locate(dy + j, H, last)
        edge = below * table[m, last] + above * table[m + 1, last]  # S(1, y)
        upper = -edge
        left = upper - lower[0]
        lower[0] = upper
        for i in range(1, columns + 1):
            if i == columns:
                upper = edge
            else:
                n = cells[i]
                upper = below * (table[m, n] * low[i] + table[m, n + 1] * high[i])
                upper += above * (table[m + 1, n] * low[i] + table[m + 1, n + 1] * high[i])
            right = upper - lower[i]
            lower[i] = upper
            integral = right - left
            left = right
            share[(j - 1) * columns + i - 1] = integral if integral > FAINTEST else 0.0
