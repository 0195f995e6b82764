r"""The projection kernel, and the forms in which it is put on a grid.

The kernel is the polynomial in q² = (R/H)² that ends like the Wendland C2 function W₂ and has its first three moments:

    W(R, H) = (1 - q²)⁴ (217 - 420 q² + 378 q⁴) / (33 π H²),   q < 1
    ∫ q^2n W d²R = ∫ q^2n W₂ d²R = 1, 5/36, 7/198 for n = 0, 1, 2;   W₂ = 7 (1 - q)⁴ (1 + 4q) / (π H²)

Structure larger than H therefore looks the same through both, to sixth order; alone, a particle differs by 2.2 % of
its mass, at most by 6 % of the peak, at its centre, where W₂ has a cusp. W needs no square root and is smooth at the
centre, so that a coarse lattice can carry it. It falls steadily from the centre to the edge.

Four forms, by the support H in pixels; what stands in brackets is the largest error relative to the peak (tested):

* H = 0, or wholly within a pixel: everything falls into the pixel (exact).
* H < :data:`TABLE_LIMIT` = 3: S(x, y) = ∫_0^x ∫_0^y W du dv for H = 1 as a summed-area table (Crow 1984), read
  bilinearly; a pixel gets S(x1, y1) - S(x0, y1) - S(x1, y0) + S(x0, y0), and the pixels telescope to 1 (2e-4).
* H ≤ :data:`WIDEST` = 16: the mean of W over a pixel as a function of the distance r of its centre,

      K(r) = t³ (b0 + b1 t + b2 t² + b3 t³ + b4 t⁴),   t = 1 - r²/(H + EDGE)²

  with b(H) fitted to means taken by Gaussian quadrature. The mean is round to fourth order in 1/H (5e-4).
* H > 16: on a lattice of 2^l pixels, in which 8 < H ≤ 16, and from there to the pixels as a sum of cubic B-splines,

      Σ(x, y) = Σ_ij c_ij B(x/2^l - i) B(y/2^l - j)

  whose coefficients are of the same form K(r), fitted so that the sum is W; t = 1 - r²/(H - REACH)² (1e-3). None is
  negative, nor is the sum. It reaches one lattice step, at most H/8, farther than W; there it stays below 3e-5, and
  what a kernel that touches the map's edge loses there below 1e-6 of its mass.

Values of the last two forms are divided by their sum over all of the stencil, so that mass is exact there as well:
B-splines sum to one everywhere. Halving the lattice is exact, B(x/2) = Σ_k (1, 4, 6, 4, 1)_k B(x - k) / 8, and the last
step integrates the splines over each pixel.

References:
    Wendland 1995, Adv. Comput. Math. 4, 389; Dehnen & Aly 2012, MNRAS 425, 1068 (W₂).
    Crow 1984, Computer Graphics (SIGGRAPH) 18, 207 (summed-area tables).
    Unser 1999, IEEE Signal Process. Mag. 16(6), 22 (B-splines on dyadic lattices).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import lsq_linear

TABLE_LIMIT = 3.0
"""Support in pixels below which the summed-area table is read."""

WIDEST = 16.0
"""Support in lattice steps up to which a kernel is put on that lattice; above, the next coarser one takes it."""

EDGE = 0.25
"""Pixels by which the fitted mean over a pixel reaches farther than W. The mean itself reaches 1/2 farther or more."""

REACH = 1.1
"""Lattice steps by which spline coefficients end before W. A cubic B-spline reaches 2 farther than its node."""

TABLE_CELLS = 128
"""Cells of the table along one side of the quadrant 0 ≤ x, y ≤ 1: 133 kB, which a core's own cache holds."""

MARGIN = 40
"""Cells around a lattice that take what falls beside it; no stencil is wider (2 · 16.25 + 1, rounded up to fours)."""

NODES = 25
"""Supports, evenly in 1/H, at which the coefficients of K are fitted; between them they are interpolated."""

LIMITS = np.array([TABLE_LIMIT, WIDEST, EDGE, REACH])

COEFFICIENTS = np.array([217.0, -420.0, 378.0]) / (33.0 * np.pi)


def kernel(q: NDArray[np.float64]) -> NDArray[np.float64]:
    """W H², the projection kernel for H = 1, of the distance q in units of the support; 0 from q = 1 on."""
    s = np.minimum(np.square(q), 1.0)
    a, b, c = COEFFICIENTS
    return (1 - s) ** 4 * (a + s * (b + s * c))


@cache
def quadrant() -> NDArray[np.float64]:
    """S(x, y) at the nodes of the quadrant 0 ≤ x, y ≤ 1, (TABLE_CELLS + 1, TABLE_CELLS + 1).

    S is odd in x and in y, so that one quadrant holds all of it and the four are symmetric to the last bit.
    """
    n = TABLE_CELLS
    nodes, gauss = np.polynomial.legendre.leggauss(4)
    x = ((np.arange(n)[:, None] + 0.5 + 0.5 * nodes) / n).ravel()
    per_x = np.tile(gauss, n)
    values = kernel(np.hypot(x[:, None], x)) * per_x[:, None] * per_x
    cells = values.reshape(n, 4, n, 4).sum(axis=(1, 3))
    table = np.zeros((n + 1, n + 1))
    table[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    table = (table + table.T) / 2
    return table / (4 * table[-1, -1])  # a quadrant holds exactly a quarter


@cache
def coefficients() -> NDArray[np.float64]:
    """b0 to b4 of K on the pixels (first) and on a coarser lattice (second), (2, NODES, 5).

    Node n is at 1/H = 1/WIDEST + n (1/lowest - 1/WIDEST) / (NODES - 1), lowest = TABLE_LIMIT and WIDEST / 2.
    """
    fits = ((_mean_fit, TABLE_LIMIT), (_spline_fit, WIDEST / 2))
    fitted = [[fit(H) for H in 1 / np.linspace(1 / WIDEST, 1 / low, NODES)] for fit, low in fits]
    return np.round(np.array(fitted), 9)  # LAPACK's last bits differ between processes, maps need not


def level_of(support: float) -> int:
    """Lattice that carries a kernel of ``support`` pixels, the first in whose steps it is no wider than WIDEST."""
    level = 0
    while support > WIDEST:
        support, level = support / 2, level + 1
    return level


def powers(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """t³ to t⁷ along a new last axis."""
    return np.maximum(t, 0.0)[..., None] ** np.arange(3, 8)


def _offsets() -> list[tuple[float, float]]:
    """Positions of a particle relative to the nearest node that stand for all: the rest follows by symmetry."""
    steps = (0.04, 0.17, 0.33, 0.46)
    return [(x, y) for x in steps for y in steps if x <= y]


def _mean_fit(H: float) -> NDArray[np.float64]:
    """Coefficients of K for the mean of W over a pixel."""
    nodes, gauss = np.polynomial.legendre.leggauss(6)
    cells = np.arange(-int(H) - 2, int(H) + 3)
    terms, means = [], []
    for x, y in _offsets():
        fine_x, fine_y = ((cells[:, None] - o + nodes / 2).ravel() for o in (x, y))
        values = kernel(np.hypot(fine_x, fine_y[:, None]) / H).reshape(len(cells), 6, len(cells), 6)
        means.append(np.einsum("jbia,a,b->ji", values, gauss / 2, gauss / 2).ravel())
        terms.append(powers(1 - ((cells - x) ** 2 + ((cells - y) ** 2)[:, None]) / (H + EDGE) ** 2).reshape(-1, 5))
    return _fit(terms, means)


def _spline_fit(H: float) -> NDArray[np.float64]:
    """Coefficients of K for the B-spline coefficients of W on a lattice of step 1."""
    nodes = np.arange(-int(H) - 3, int(H) + 4)
    fine = np.arange(-H - 1, H + 1, 0.35)
    spline = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    spread = np.nan_to_num(spline(fine[:, None] - nodes))
    terms, values = [], []
    for x, y in _offsets():
        lattice = powers(1 - ((nodes - x) ** 2 + ((nodes - y) ** 2)[:, None]) / (H - REACH) ** 2)
        terms.append(np.einsum("aj,jin,bi->abn", spread, lattice, spread, optimize=True).reshape(-1, 5))
        values.append(kernel(np.hypot(fine - x, (fine - y)[:, None]) / H).ravel())
    return _fit(terms, values)


def _fit(terms: list[NDArray[np.float64]], values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Least squares with b0 ≥ 0: t³ leads where K ends, and no pixel may get a negative part."""
    lowest = [0.0, -np.inf, -np.inf, -np.inf, -np.inf]
    return np.asarray(lsq_linear(np.concatenate(terms), np.concatenate(values), (lowest, np.inf)).x)


@dataclass(frozen=True)
class Lattices:
    """The pixels of a map (level 0) and the coarser lattices around its centre, one after another in one array.

    Level l ≥ 1 has nodes every 2^l pixels, one of them at the map's centre; they reach two steps beyond the map. All
    levels have MARGIN cells more on each side.

    Attributes:
        pixels: Pixels along a side of the map.
        levels: Number of levels, at least 1.
    """

    pixels: int
    levels: int

    @property
    def half(self) -> NDArray[np.int64]:
        """Nodes on either side of the central one, for each level; that of level 0 has no meaning."""
        return np.array([-(-self.pixels // 2 ** (level + 1)) + 2 for level in range(self.levels)], np.int64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Cells along a side of each level, without the margin."""
        return np.concatenate([[self.pixels], 2 * self.half[1:] + 1]).astype(np.int64)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each level begins in an array of one weight; the last entry is that array's length."""
        return np.concatenate([[0], np.cumsum((self.sizes + 2 * MARGIN) ** 2)]).astype(np.int64)

    def level(self, flat: NDArray[np.float64], level: int) -> NDArray[np.float64]:
        """View of one level of (k, length) without its margin, (k, size, size)."""
        size, start = int(self.sizes[level]), int(self.starts[level])
        padded = size + 2 * MARGIN
        square = flat[:, start : start + padded**2].reshape(-1, padded, padded)
        return square[:, MARGIN:-MARGIN, MARGIN:-MARGIN]

    def refinement(self, level: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """How level ``level`` ≥ 1 gives the next finer one along an axis: first node, (n,), and taps, (n, 3 or 5)."""
        coarse = int(self.half[level])
        if level > 1:
            fine = np.arange(-int(self.half[level - 1]), int(self.half[level - 1]) + 1)
            first = -(-(fine - 2) // 2)
            away = np.abs(fine[:, None] - 2 * (first[:, None] + np.arange(3)))
            return first + coarse, np.array([6.0, 4.0, 1.0, 0.0])[away] / 8
        edges = (np.arange(self.pixels + 1) - self.pixels / 2) / 2  # in steps of level 1
        first = np.floor(edges[:-1] - 2).astype(np.int64) + 1
        integral = BSpline.basis_element(np.arange(-2.0, 3.0)).antiderivative()
        ends = (np.clip(edges[at, None] - first[:, None] - np.arange(5), -2, 2) for at in (slice(1, None), slice(-1)))
        upper, lower = (integral(end) for end in ends)
        taps = 2 * (upper - lower)
        last = 2 * coarse + 1 - 5  # so that all five taps lie on the lattice; those that move are zero
        moved = np.maximum(first + coarse - last, 0)
        for row in np.flatnonzero(moved):
            taps[row] = np.roll(taps[row], moved[row])
        return first + coarse - moved, taps
