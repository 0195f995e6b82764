"""The rows of an evaluation's table: what is measured, how maps become one number, and which rows are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Values = NDArray[np.float64]
Summary = Callable[[Values], float]


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: Column of the CSV file.
        title: With its unit.
        summary: From the values of all maps to one number; ``None`` where it is one of all maps together.
        best: Direction of better: 1 larger, -1 smaller, 0 nearer to ``ideal``.
        digits: Behind the point.
        group: image, physics, morphology, distribution or calibration.
        default: Whether it is measured without being asked for.
        ideal: The best value, where neither larger nor smaller is better.
    """

    name: str
    title: str
    summary: Summary | None
    best: int
    digits: int
    group: str = "physics"
    default: bool = True
    ideal: float = 0.0


def mean(values: Values) -> float:
    """Mean of the finite values; infinite where all others are (maps without any error, in decibels)."""
    kept = values[np.isfinite(values)]
    if not kept.size and np.isposinf(values).any():
        return float("inf")
    return float(kept.mean()) if kept.size else float("nan")


def median_size(values: Values) -> float:
    """Median of the absolute finite values."""
    kept = np.abs(values[np.isfinite(values)])
    return float(np.median(kept)) if kept.size else float("nan")


def percent(summary: Summary) -> Summary:
    """The same in per cent."""
    return lambda values: 100.0 * summary(values)


FAR = "median absolute difference"
METRICS = (
    Metric("psnr", "PSNR [dB]", mean, 1, 2, "image"),
    Metric("ssim", "SSIM", mean, 1, 4, "image"),
    Metric("ms_ssim", "MS-SSIM", mean, 1, 4, "image"),
    Metric("lpips", "LPIPS", mean, -1, 4, "image", default=False),
    Metric("total_error", "total, median absolute error [%]", percent(median_size), -1, 2),
    Metric("total_bias", "sum of all totals, error [%]", percent(mean), 0, 2),
    Metric("profile_error", "radial profile, median error [%]", percent(median_size), -1, 2),
    Metric("power_error", "P(k) at k < ½ Nyquist, median error [%]", percent(median_size), -1, 2),
    Metric("correlation", "r(k), mean up to Nyquist", mean, 1, 4),
    Metric("large_correlation", "r(k), mean at k < ½ Nyquist", mean, 1, 4),
    Metric("false_signal", "total seen where there is none [% of a mean map]", percent(mean), -1, 2),
    Metric("one_point", "one-point distribution, mean distance [dex]", mean, -1, 4),
    Metric("bright_peaks", "peaks above L/10, mean excess a map", mean, 0, 2),
    Metric("faint_peaks", "peaks above L/100, mean excess a map", mean, 0, 2),
    Metric(
        "half_mass_radius", "half-mass radius, median absolute error [%]", percent(median_size), -1, 2, "morphology"
    ),
    Metric("centre_offset", "centroid, median offset [kpc]", median_size, -1, 3, "morphology"),
    Metric("concentration", f"concentration C, {FAR}", median_size, -1, 4, "morphology"),
    Metric("asymmetry", f"asymmetry A, {FAR}", median_size, -1, 4, "morphology"),
    Metric("clumpiness", f"clumpiness S, {FAR}", median_size, -1, 4, "morphology"),
    Metric("gini", f"Gini, {FAR}", median_size, -1, 4, "morphology"),
    Metric("m20", f"M20, {FAR}", median_size, -1, 4, "morphology"),
    Metric("frechet", "Fréchet distance", None, -1, 3, "distribution", default=False),
    Metric("kernel", "kernel distance", None, -1, 3, "distribution", default=False),
    Metric("c2st", "classifier two-sample test, AUC (0.5: alike)", None, 0, 3, "distribution", False, 0.5),
    Metric("c2st_p", "classifier two-sample test, p-value", None, 1, 2, "distribution", default=False),
    Metric(
        "coverage_68", "pixels in the central 68 % of the draws [%]", percent(mean), 0, 1, "calibration", ideal=68.0
    ),
    Metric(
        "coverage_95", "pixels in the central 95 % of the draws [%]", percent(mean), 0, 1, "calibration", ideal=95.0
    ),
    Metric("crps", "CRPS [% of L]", percent(mean), -1, 4, "calibration"),
    Metric("spread_skill", "spread over error of the mean draw (1: calibrated)", mean, 0, 3, "calibration", ideal=1.0),
)
"""All that is measured. L is the dynamic range. Values of a map are estimate less truth."""

ROWS = {metric.name: metric for metric in METRICS}
GROUPS = tuple(dict.fromkeys(metric.group for metric in METRICS))
HEADLINE = ("psnr", "total_error", "correlation", "large_correlation")
"""What the checkpoint is compared with the others in; always measured."""

PRETRAINED = ("lpips", "frechet", "kernel")
"""Rows that need weights of a pretrained network."""


def choose(names: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The rows that are asked for.

    Args:
        names: Of rows or groups, ``default`` or ``all``.

    Returns:
        Names of the rows in the order of the table, and those of them asked for by their own name or group, which are
        not to be left out in silence.

    Raises:
        SkyshiftError: A name is none of these.
    """
    named: set[str] = set()
    wanted = set(HEADLINE)
    for name in names:
        if name in ROWS:
            named.add(name)
        elif name in GROUPS:
            named.update(metric.name for metric in METRICS if metric.group == name)
        elif name in ("default", "all"):
            wanted.update(metric.name for metric in METRICS if metric.default or name == "all")
        else:
            raise SkyshiftError(f"metrics: {unknown('metric', name, ['default', 'all', *GROUPS, *ROWS])}")
    wanted |= named
    return tuple(name for name in ROWS if name in wanted), frozenset(named)
