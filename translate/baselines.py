"""The trivial translators that every method must beat: the source as it is, and the best relation from pixel to pixel.

Two estimates from the training maps, both free of any assumed shape: the mean of the target given the source pixel,
which no other per-pixel function beats in squared error (so in PSNR), nor on average in the total mass; and the median,
which none beats in absolute error. They are tabulated in quantile bins of the source and interpolated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from astropy import units
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


@dataclass(frozen=True)
class Proportional:
    """A constant multiple of the source: the map as it is, or scaled.

    Attributes:
        factor: Of target unit per source unit.
    """

    factor: float

    @classmethod
    def fit(cls, source: NDArray[np.floating], target: NDArray[np.floating]) -> "Proportional":
        """The factor of least squares, Σ s t / Σ s²; 0 where the source is empty."""
        s, t = np.asarray(source, np.float64).ravel(), np.asarray(target, np.float64).ravel()
        power = float(s @ s)
        return cls(float(s @ t) / power if power else 0.0)

    def __call__(self, source: NDArray[np.floating]) -> NDArray[np.float32]:
        """Target maps for source maps of any shape."""
        return (np.asarray(source, np.float64) * self.factor).astype(np.float32)


Relation = PixelRelation | Proportional


def simple_relations(
    source: NDArray[np.floating], target: NDArray[np.floating], source_unit: str, target_unit: str
) -> dict[str, Relation]:
    """The trivial translators from one source domain, fitted on training maps.

    Args:
        source: (n, height, width) in ``source_unit``.
        target: Same shape, in ``target_unit``.
        source_unit: As astropy writes it.
        target_unit: As astropy writes it.

    Returns:
        Name to translator: the per-pixel mean and median, and ``identity`` where one unit converts to the other, else
        ``scaled source``, the source times the factor of least squares.
    """
    relations: dict[str, Relation] = {
        "per-pixel mean": PixelRelation.fit(source, target, "mean"),
        "per-pixel median": PixelRelation.fit(source, target, "median"),
    }
    try:
        relations["identity"] = Proportional(float(units.Unit(source_unit).to(units.Unit(target_unit))))
    except units.UnitConversionError:
        relations["scaled source"] = Proportional.fit(source, target)
    return relations
