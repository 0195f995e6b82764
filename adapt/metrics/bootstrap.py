"""Intervals of metrics, of their differences, and of the gap that a method closes.

A bootstrap sample draws whole groups (all views of an object) with replacement, and is kept as the multiplicity of each
object, (samples, n): metrics take these as weights. Two classifiers that are judged on the same objects see the same
samples, so that differences are paired. Over training seeds, each sample draws seeds with replacement as well.

    gap closed = (method − source-only) / (target-supervised − source-only)

in each sample. Its interval is wide, as it must be, where the gap itself is hardly measured; samples in which the upper
bound is not above the lower one have no such number, and where they are more than the interval leaves out, neither has
the interval.

References:
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, doi:10.1007/978-1-4899-4541-9.
    Field & Welsh 2007, Bootstrapping clustered data, doi:10.1111/j.1467-9868.2007.00593.x.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 4_000_000
"""Weights that are handed to a metric at a time."""

Scores = Callable[[Values], Mapping[str, Values]]
"""Weights (…, n) to metrics (…)."""


@dataclass(frozen=True)
class Drawn:
    """A number and its bootstrap samples.

    Attributes:
        value: Of all objects.
        samples: (samples,).
        level: Of the interval.
    """

    value: float
    samples: Values
    level: float = LEVEL

    @property
    def interval(self) -> tuple[float, float]:
        """Central interval of the samples; NaN where more of them are NaN than it leaves out."""
        lost = np.isnan(self.samples)
        if not len(lost) or lost.mean() > 1 - self.level:
            return float("nan"), float("nan")
        low, high = np.quantile(self.samples[~lost], [0.5 - self.level / 2, 0.5 + self.level / 2])
        return float(low), float(high)

    def __sub__(self, other: "Drawn") -> "Drawn":
        """The paired difference: both were drawn on the same samples of the same objects."""
        if self.samples.shape != other.samples.shape:
            raise SkyshiftError("a paired difference needs the same bootstrap samples on both sides")
        return Drawn(self.value - other.value, self.samples - other.samples, self.level)

    def to_dict(self) -> dict[str, float | list[float]]:
        """For a file: ``value``, ``low`` and ``high``."""
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high}


def multiplicities(groups: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Values:
    """How often each object is in each bootstrap sample of whole groups.

    Args:
        groups: (n,) group of each, numbers or names.
        resamples: How many samples.
        seed: Of the draws; the same groups and seed give the same samples.

    Returns:
        (resamples, n).
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if not len(names):
        return np.zeros((resamples, 0))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, member].astype(np.float64)


def bootstrap(scores: Scores, weights: Values, level: float = LEVEL) -> dict[str, Drawn]:
    """Metrics with their samples.

    Args:
        scores: Weights (…, n) to metrics (…).
        weights: (samples, n), of :func:`multiplicities`.
        level: Of the intervals.

    Returns:
        Metric to its value over all objects and its samples.
    """
    rows = max(1, BLOCK // max(1, weights.shape[1]))
    point = scores(np.ones(weights.shape[1]))
    parts = [scores(weights[i : i + rows]) for i in range(0, len(weights), rows)]
    return {
        name: Drawn(float(value), np.concatenate([np.atleast_1d(part[name]) for part in parts] or [np.zeros(0)]), level)
        for name, value in point.items()
    }


def over_seeds(runs: Sequence[Drawn], seed: int = 0) -> Drawn:
    """Mean over runs with different training seeds, its samples drawn over objects and seeds.

    The same ``seed`` and number of runs draw the same runs, so that means of two methods are paired where run i of one
    belongs to run i of the other (the same split).

    Args:
        runs: On the same bootstrap samples of the same objects.
        seed: Of the draws.

    Raises:
        SkyshiftError: There are none, or their samples differ in number.
    """
    if not runs or len({run.samples.shape for run in runs}) > 1:
        raise SkyshiftError(f"a mean over seeds needs runs on the same bootstrap samples, {len(runs)} were given")
    samples = np.stack([run.samples for run in runs])
    chosen = np.random.default_rng(seed).integers(len(runs), size=samples.shape)
    mean = np.take_along_axis(samples, chosen, axis=0).mean(0)
    return Drawn(float(np.mean([run.value for run in runs])), mean, runs[0].level)


def gap_closed(method: Drawn, source_only: Drawn, target_supervised: Drawn, direction: int = 1) -> Drawn:
    """Share of the gap between the two bounds that a method closes.

    Args:
        method: A metric.
        source_only: The same of the lower bound, on the same samples.
        target_supervised: The same of the upper bound, on the same samples.
        direction: 1 where larger is better, -1 where smaller is.

    Returns:
        0 at the lower bound, 1 at the upper one; NaN where the upper bound is not better than the lower one.
    """
    gained, gap = method - source_only, target_supervised - source_only
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = np.where(gap.samples * direction > 0, gained.samples / gap.samples, np.nan)
    value = gained.value / gap.value if gap.value * direction > 0 else float("nan")
    return Drawn(value, samples, method.level)
