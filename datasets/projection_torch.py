"""Particles onto lattices with torch, on a GPU or the processor: the kernel of ``projection_kernel`` in whole batches.

Particles are sorted by level and stencil; those that share both make batches of equal stencils, which are added with
``index_add_`` in float64, so that mass is as exact as on the processor. The order in which a GPU adds is not fixed:
two runs may differ by rounding.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from skyshift.datasets.projection_kernel import (
    EDGE,
    MARGIN,
    REACH,
    TABLE_CELLS,
    TABLE_LIMIT,
    WIDEST,
    Lattices,
    coefficients,
    level_of,
    quadrant,
)
from skyshift.errors import SkyshiftError

BATCH = 4_000_000
"""Stencil cells in flight; about ten arrays of so many float64 exist at a time (320 MB)."""


def find_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        SkyshiftError: The name means nothing to torch, or the device is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SkyshiftError(f"'{name}' is no torch device; 'cuda', 'cuda:1' and 'cpu' are") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise SkyshiftError(
            f"device '{name}' is not there, torch sees {found} GPUs; leave device out for the processor"
        )
    if device.type not in ("cuda", "cpu"):
        raise SkyshiftError(f"device '{name}' lacks float64, which exact mass needs; 'cuda' and 'cpu' have it")
    return device


class TorchCanvas:
    """What :class:`skyshift.datasets.projection.Canvas` fills when it is given a device.

    Attributes:
        lattices: Layout of the levels so far.
    """

    def __init__(self, side: float, pixels: int, weights: int, depth: float | None, device: str) -> None:
        self.side, self.pixels, self.depth, self.device = side, pixels, depth, find_device(device)
        self.lattices = Lattices(pixels, 1)
        self._flat = torch.zeros(weights, int(self.lattices.starts[-1]), dtype=torch.float64, device=self.device)
        self._table = torch.from_numpy(quadrant()).to(self.device)
        self._fitted = torch.from_numpy(coefficients()).to(self.device)

    def flat(self) -> NDArray[np.float64]:
        """Weights on all levels, (k, length)."""
        return self._flat.cpu().numpy()

    def add(self, position: NDArray[np.float64], support: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Add checked particles: (n, 3), (n,) and (k, n)."""
        r, H, w = (torch.from_numpy(a).to(self.device) for a in (position, support, weights))
        if self.depth is not None:
            kept = (r[:, 2] >= -self.depth / 2) & (r[:, 2] < self.depth / 2)
            r, H, w = r[kept], H[kept], w[:, kept]
        if not len(H):
            return
        pixel = self.side / self.pixels
        H = H / pixel
        self._grow(float(H.max()))
        level = torch.zeros_like(H, dtype=torch.int64)
        halved = H.clone()
        while bool((halved > WIDEST).any()):
            wide = halved > WIDEST
            halved[wide] *= 0.5
            level[wide] += 1
        small = H < TABLE_LIMIT
        self._small(r[small, :2] / pixel + self.pixels / 2, H[small], w[:, small])
        for number in torch.unique(level).tolist():
            chosen = (level == number) & ~small
            middle = float(self.lattices.half[number]) if number else (self.pixels - 1) / 2
            self._fitted_forms(number, r[chosen, :2] / (pixel * 2.0**number) + middle, halved[chosen], w[:, chosen])

    def _grow(self, widest: float) -> None:
        """Make room for the lattices that a support of ``widest`` pixels needs."""
        grown = Lattices(self.pixels, level_of(widest) + 1)
        if grown.levels > self.lattices.levels:
            more = int(grown.starts[-1] - self.lattices.starts[-1])
            self.lattices, self._flat = grown, torch.nn.functional.pad(self._flat, (0, more))

    def _put(self, level: int, first: torch.Tensor, share: torch.Tensor, weights: torch.Tensor) -> None:
        """Add shares (n, rows, columns) of weights (k, n) from the cells ``first`` (n, 2), x before y, on."""
        padded = int(self.lattices.sizes[level]) + 2 * MARGIN
        rows, columns = (torch.arange(size, device=self.device) for size in share.shape[1:])
        j, i = first[:, 1, None] + MARGIN + rows, first[:, 0, None] + MARGIN + columns
        cells = (int(self.lattices.starts[level]) + j[:, :, None] * padded + i[:, None, :]).reshape(-1)
        for k in range(len(weights)):
            self._flat[k].index_add_(0, cells, (share * weights[k, :, None, None]).reshape(-1))

    def _fitted_forms(self, level: int, at: torch.Tensor, H: torch.Tensor, weights: torch.Tensor) -> None:
        """K on one level: positions (n, 2) and supports (n,) in its steps."""
        size, reach = int(self.lattices.sizes[level]), H - REACH if level else H + EDGE
        inside = ((at + reach[:, None] >= 0) & (at - reach[:, None] <= size - 1)).all(1)
        at, H, reach, weights = at[inside], H[inside], reach[inside], weights[:, inside]
        lowest = WIDEST / 2 if level else TABLE_LIMIT
        fitted = self._fitted[min(level, 1)]
        far = (1 / H - 1 / WIDEST) / (1 / lowest - 1 / WIDEST) * (len(fitted) - 1)
        node = far.long().clamp(0, len(fitted) - 2)
        b = torch.lerp(fitted[node], fitted[node + 1], (far - node)[:, None])
        first = torch.ceil(at - reach[:, None])
        for width, part in _batches(2 * reach.ceil().long() + 1):
            cells = torch.arange(width, device=self.device)
            square = ((first[part, :, None] + cells - at[part, :, None]) / reach[part, None, None]) ** 2
            t = (1 - square[:, 1, :, None] - square[:, 0, None, :]).clamp(min=0)
            b0, b1, b2, b3, b4 = b[part, :, None, None].unbind(1)
            share = t**3 * (b0 + t * (b1 + t * (b2 + t * (b3 + t * b4))))
            share /= share.sum((1, 2), keepdim=True) * 4.0**level
            self._put(level, first[part].long(), share, weights[:, part])

    def _small(self, at: torch.Tensor, H: torch.Tensor, weights: torch.Tensor) -> None:
        """The summed-area table: positions (n, 2) and supports (n,) in pixels from the lower left corner."""
        first, last = torch.floor(at - H[:, None]), torch.floor(at + H[:, None])
        inside = ((last >= 0) & (first < self.pixels)).all(1)
        at, H, first, last, weights = at[inside], H[inside], first[inside], last[inside], weights[:, inside]
        points = (first == last).all(1)  # whole in one pixel, also where H is 0
        one = torch.ones(int(points.sum()), 1, 1, dtype=torch.float64, device=self.device)
        self._put(0, first[points].long(), one, weights[:, points])
        width = torch.where(points, 0, (last - first).amax(1).long() + 1)
        for columns, part in _batches(width):
            if columns:
                corners = first[part, :, None] + torch.arange(columns + 1, device=self.device) - at[part, :, None]
                S = self._summed(
                    corners[:, 0, None, :] / H[part, None, None], corners[:, 1, :, None] / H[part, None, None]
                )
                share = (S[:, 1:, 1:] - S[:, :-1, 1:]) - (S[:, 1:, :-1] - S[:, :-1, :-1])
                share = torch.where(share > 1e-14, share, 0.0)  # as in the numba code: no dust beside the kernel
                self._put(0, first[part].long(), share, weights[:, part])

    def _summed(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """S(x, y) from the table, of broadcasting x and y."""
        (m, v), (n, u) = (
            (u.long().clamp(max=TABLE_CELLS - 1), u)
            for u in (y.abs().clamp(max=1) * TABLE_CELLS, x.abs().clamp(max=1) * TABLE_CELLS)
        )
        v, u = v - m, u - n
        table = self._table
        lower = table[m, n] * (1 - u) + table[m, n + 1] * u
        upper = table[m + 1, n] * (1 - u) + table[m + 1, n + 1] * u
        return (lower * (1 - v) + upper * v) * torch.where(x < 0, -1.0, 1.0) * torch.where(y < 0, -1.0, 1.0)


def _batches(widths: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Numbers of the particles of each stencil width, in batches that stay under BATCH cells."""
    order = torch.argsort(widths, stable=True)
    values, counts = torch.unique_consecutive(widths[order], return_counts=True)
    return [
        (width, part)
        for width, group in zip(values.tolist(), torch.split(order, counts.tolist()), strict=True)
        for part in torch.split(group, max(1, BATCH // max(width, 1) ** 2))
    ]
