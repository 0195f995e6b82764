"""The trivial translator that every method must beat: the best relation from one source pixel to one target pixel.

Two estimates from the training maps, both free of any assumed shape: the mean of the target given the source pixel,
which no other per-pixel function beats in squared error (so in PSNR), nor on average in the total mass; and the median,
which none beats in absolute error. They are tabulated in quantile bins of the source and interpolated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError


def _cuts(size: int, bins: int) -> NDArray[np.int64]:
    """Where to cut sorted pixels: equal counts, and ever fewer, down to 64, at the bright end, where the mass is."""
    last = size // bins
    tail = size - np.geomspace(max(last, 1), min(64, max(last, 1)), 24)
    cuts = np.unique(np.concatenate([np.linspace(0, size, bins + 1), tail]).astype(np.int64))
    return cuts[(cuts > 0) & (cuts < size)]


@dataclass(frozen=True)
class PixelRelation:
    """Target as a function of the source pixel.

    Attributes:
        source: (bins,) increasing source values.
        target: (bins,) target at these.
    """

    source: NDArray[np.float64]
    target: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        source: NDArray[np.floating],
        target: NDArray[np.floating],
        statistic: Literal["mean", "median"] = "mean",
        bins: int = 256,
    ) -> "PixelRelation":
        """Tabulate the relation.

        Args:
            source: Training maps, any shape.
            target: Same shape.
            statistic: Of the target in a bin.
            bins: Quantile bins; the brightest is divided further.

        Raises:
            SkyshiftError: The shapes differ or there are no pixels.
        """
        x, y = np.asarray(source, np.float64).ravel(), np.asarray(target, np.float64).ravel()
        if x.shape != y.shape or not x.size:
            raise SkyshiftError(f"a per-pixel relation needs equal numbers of pixels, not {x.size} and {y.size}")
        order = np.argsort(x, kind="stable")
        parts = np.split(order, _cuts(x.size, bins))
        reduce = np.mean if statistic == "mean" else np.median
        centres = np.array([x[part].mean() for part in parts])
        values = np.array([reduce(y[part]) for part in parts])
        # Bins of equal source value (empty sky) become one.
        unique, inverse = np.unique(centres, return_inverse=True)
        size = np.array([len(part) for part in parts], np.float64)
        weights = np.bincount(inverse, size)
        return cls(unique, np.bincount(inverse, size * values) / weights)

    def __call__(self, source: NDArray[np.floating]) -> NDArray[np.float32]:
        """Target maps for source maps of any shape; constant beyond the training range."""
        return np.interp(np.asarray(source, np.float64), self.source, self.target).astype(np.float32)
