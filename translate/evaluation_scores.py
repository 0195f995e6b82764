"""What is measured on each map: all metrics that compare one estimate with its truth, on physical maps.

A map whose true total is below a thousandth of the mean training one holds no signal to speak of (50 Msun of HI in an
elliptical, say): all metrics leave it out, and what is wrongly seen in it has a row of its own. Where maps have
negative values (velocities, noise), signal is the total of their sizes: a galaxy that recedes as much as it approaches
has some.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyshift.translate.metrics.image import ms_ssim, psnr, scales, ssim
from skyshift.translate.metrics.morphology import structure
from skyshift.translate.metrics.physics import (
    cross_correlation,
    power_ratio,
    power_spectrum,
    radial_profile,
    radial_profile_error,
    total_error,
)
from skyshift.translate.metrics.pixels import decades, one_point_counts, one_point_distance, peak_counts

Values = NDArray[np.float64]
Stack = NDArray[np.float32]

FAINT = 1e-3
"""Share of the mean training total below which a map holds no signal to speak of."""
SOFTENING = 1e-4
"""Share of the dynamic range below which the one-point distribution is linear."""
DIFFERENCES = ("concentration", "asymmetry", "clumpiness", "gini", "m20")
AXES = ("k", "radius", "edges")
"""Entries of :func:`curves` that are the same for all maps."""


@dataclass(frozen=True)
class Yardstick:
    """What the maps of a domain are measured by, from the training maps.

    Attributes:
        data_range: Of PSNR and SSIM, and L of the peaks: 99.9 % quantile of the lit pixels, in the maps' unit; less the
            0.1 % quantile where some are negative.
        typical_total: Mean over maps of the sum over the sizes of pixels times pixel area.
    """

    data_range: float
    typical_total: float

    @classmethod
    def fit(cls, maps: Stack, side: Values) -> "Yardstick":
        """From training maps (n, height, width) with sides (n,) in kpc."""
        lit = maps[maps != 0]
        typical = float(np.mean(totals(np.abs(maps), side)))
        if not lit.size:
            return cls(1.0, typical)
        low, high = np.quantile(lit, [0.001, 0.999])
        return cls(float(high - min(low, 0.0)), typical)

    @property
    def softening(self) -> float:
        """Of the one-point distribution, in the maps' unit."""
        return SOFTENING * self.data_range

    def faint(self, total: Values) -> NDArray[np.bool_]:
        """Whether maps whose sizes add up to these totals hold no signal to speak of."""
        return total <= FAINT * self.typical_total


def totals(maps: Stack, side: Values) -> Values:
    """Sum over pixels times pixel area of maps (n, height, width) with sides (n,), (n,)."""
    return maps.sum((1, 2), dtype=np.float64) * (side / maps.shape[-1]) ** 2


def measure(truth: Stack, estimate: Stack, side: Values, yardstick: Yardstick) -> dict[str, Values]:
    """What can be said of each map by itself; see :func:`score`, which adds what needs them all.

    Returns:
        As :func:`score` without ``total_bias``, with ``true_total`` and ``seen_total`` in its place.
    """
    k, ratio = power_ratio(truth, estimate)
    _, correlation = cross_correlation(truth, estimate)
    low = k <= 0.5
    true_total, seen_total = totals(truth, side), totals(estimate, side)
    faint = yardstick.faint(totals(np.abs(truth), side))
    # A map that is empty where the truth has structure correlates with nothing of it.
    correlation = np.where(np.isfinite(ratio) & (ratio == 0), 0.0, correlation)
    L, fits = yardstick.data_range, scales(*truth.shape[1:]) > 0
    none = np.full(len(truth), np.nan)
    relative = {
        "psnr": psnr(truth, estimate, L),
        "ssim": ssim(truth, estimate, L) if fits else none,
        "ms_ssim": ms_ssim(truth, estimate, L) if fits else none,
        "total_error": total_error(truth, estimate),
        "profile_error": radial_profile_error(truth, estimate),
        "power_error": np.abs(ratio[:, low] - 1).mean(axis=1),
        "correlation": correlation.mean(axis=1),
        "large_correlation": correlation[:, low].mean(axis=1),
        "one_point": one_point_distance(truth, estimate, yardstick.softening),
        "bright_peaks": peak_counts(estimate, L / 10) - peak_counts(truth, L / 10),
        "faint_peaks": peak_counts(estimate, L / 100) - peak_counts(truth, L / 100),
        **_built(truth, estimate, side),
    }
    false_signal = totals(np.abs(estimate), side) / yardstick.typical_total if yardstick.typical_total else none
    return {
        "true_total": true_total,
        "seen_total": seen_total,
        "false_signal": np.where(faint, false_signal, np.nan),
        **{name: np.where(faint, np.nan, values) for name, values in relative.items()},
    }


def _built(truth: Stack, estimate: Stack, side: Values) -> dict[str, Values]:
    """Differences in structure, estimate less truth: radius as a share, offset in the unit of ``side``."""
    t, e = structure(truth), structure(estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "half_mass_radius": e["half_mass_radius"] / t["half_mass_radius"] - 1,
            "centre_offset": np.hypot(e["row"] - t["row"], e["column"] - t["column"]) * side / truth.shape[-1],
            **{name: e[name] - t[name] for name in DIFFERENCES},
        }


def complete(measured: dict[str, Values]) -> dict[str, Values]:
    """Add what needs all maps: ``total_bias``, whose mean over maps is the error of the sum of their totals."""
    scores = dict(measured)
    true_total, seen_total = scores.pop("true_total"), scores.pop("seen_total")
    typical = true_total.mean()
    bias = (seen_total - true_total) / typical if typical else np.full(len(true_total), np.nan)
    return {"total_bias": bias, **scores}


def score(truth: Stack, estimate: Stack, side: Values, yardstick: Yardstick) -> dict[str, Values]:
    """All metrics of every map.

    Args:
        truth: (n, height, width), physical.
        estimate: Same shape and unit.
        side: (n,) kpc.
        yardstick: Dynamic range and typical total.

    Returns:
        Metric to (n,) values; NaN where a map has none: ``false_signal`` where there is signal, but for ``total_bias``
        all others where there is none.
    """
    return complete(measure(truth, estimate, side, yardstick))


def curves(truth: Stack, estimate: Stack, yardstick: Yardstick) -> dict[str, Values]:
    """What :mod:`skyshift.translate.figures` draws: (n, …) of each map, and :data:`AXES`."""
    radius, true_profile = radial_profile(truth, 2.0)
    _, profile = radial_profile(estimate, 2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(true_profile > 0, profile / true_profile, np.nan)
    k, power = power_ratio(truth, estimate)
    edges = yardstick.data_range * np.geomspace(1e-5, 10.0, 49)
    return {
        "k": k,
        "power_ratio": power,
        "correlation": cross_correlation(truth, estimate)[1],
        "radius": radius,
        "profile_ratio": ratio,
        "edges": edges,
        "true_pixels": one_point_counts(truth, edges),
        "pixels": one_point_counts(estimate, edges),
    }


def physical_features(maps: Stack, yardstick: Yardstick) -> Values:
    """What the classifier two-sample test sees of each map.

    Args:
        maps: (n, height, width), physical.
        yardstick: Of their domain.

    Returns:
        (n, features): total and power in six bins of wave number [dex], nine deciles of the pixels [dex], structure,
        numbers of peaks. Zero where a map has none.
    """
    L = yardstick.data_range
    _, power = power_spectrum(maps, bins=min(6, max(maps.shape[1:]) // 2))
    built = structure(maps)
    spread = decades(maps, yardstick.softening).reshape(len(maps), maps[0].size if len(maps) else 1)
    with np.errstate(divide="ignore"):
        columns = [
            decades(maps.mean((1, 2), dtype=np.float64), yardstick.softening)[:, None],
            np.log10(np.maximum(power, np.finfo(np.float64).tiny)),
            np.quantile(spread, np.linspace(0.1, 0.9, 9), axis=1).T,
            np.stack([built[name] for name in ("half_mass_radius", *DIFFERENCES)], axis=1),
            np.sqrt(np.stack([peak_counts(maps, L / 10), peak_counts(maps, L / 100)], axis=1)),
        ]
    return np.nan_to_num(np.concatenate(columns, axis=1), nan=0.0, posinf=0.0, neginf=0.0)
