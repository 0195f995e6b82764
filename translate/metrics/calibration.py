"""Whether the spread of a translator's draws is that of the truth: calibration, map by map.

Of M draws x_i and the truth t in one pixel, the rank of t among them, ties broken at random, is uniform on 0 … M where
they come from one distribution. u = (rank + uniform) / (M + 1) is then uniform on [0, 1] for any number of draws, and
|2u − 1| ≤ p holds for the share p of pixels: the coverage of the central interval. Quantiles of few draws would cover
too little. Further,

    CRPS = 1/M Σ_i |x_i − t| − 1/(2 M (M − 1)) Σ_ij |x_i − x_j|            (fair in M),
    spread / error = √((1 + 1/M) mean s²) / √(mean (x_mean − t)²),          1 where calibrated,

with s² the unbiased variance of the draws and means over pixels. Pixels where neither truth nor any draw exceeds a
ten-thousandth of the dynamic range in size are left out: empty sky is calibrated by itself. Truth and draws are treated
alike in that, so it keeps the ranks uniform.

References:
    Gneiting & Raftery 2007, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102, 359,
    doi:10.1198/016214506000001437.
    Ferro 2014, Fair scores for ensemble forecasts, QJRMS 140, 1917, doi:10.1002/qj.2270.
    Fortin et al. 2014, Why Should Ensemble Spread Match the RMSE of the Ensemble Mean?, J. Hydrometeorol. 15, 1708,
    doi:10.1175/JHM-D-14-0008.1.
"""

import numpy as np
from numpy.typing import NDArray

from skyshift.translate.evaluation_scores import SOFTENING

Values = NDArray[np.float64]
BINS = 20
"""Of |2u − 1|, from which coverage is drawn."""


def calibrate(
    truth: NDArray[np.floating],
    draws: NDArray[np.floating],
    lit: NDArray[np.bool_],
    views: NDArray[np.integer],
    data_range: float,
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Calibration of the draws of each map.

    Args:
        truth: (n, height, width), physical.
        draws: (draws, n, height, width), at least two, same unit.
        lit: (n,) maps with signal; the others get NaN.
        views: (n,) numbers of the maps, which seed the random breaking of ties.
        data_range: L, in the maps' unit.

    Returns:
        Rows of the table to (n,): ``coverage_68`` and ``coverage_95`` as shares, ``crps`` in units of L,
        ``spread_skill``. And what a figure needs: ``ranks`` (n, draws + 1) and ``central`` (n, bins) counts of pixels,
        ``spread`` and ``error`` (n,) in units of L.
    """
    M, n = draws.shape[:2]
    rows = {name: np.full(n, np.nan) for name in ("coverage_68", "coverage_95", "crps", "spread_skill")}
    shown = {"ranks": np.zeros((n, M + 1)), "central": np.zeros((n, BINS))}
    shown |= {name: np.full(n, np.nan) for name in ("spread", "error")}
    for i in np.flatnonzero(lit):
        # Both in double precision before the division, or equal values would no longer be ties.
        t = truth[i].ravel().astype(np.float64) / data_range
        x = draws[:, i].reshape(M, -1).astype(np.float64) / data_range
        seen = np.maximum(np.abs(t), np.abs(x).max(axis=0)) > SOFTENING
        t, x = t[seen], x[:, seen]
        if not t.size:
            continue
        generator = np.random.default_rng([0, int(views[i])])
        rank = (x < t).sum(axis=0) + generator.integers((x == t).sum(axis=0) + 1)
        central = np.abs(2.0 * (rank + generator.random(t.size)) / (M + 1) - 1.0)
        shown["ranks"][i] = np.bincount(rank, minlength=M + 1)
        shown["central"][i] = np.histogram(central, BINS, (0.0, 1.0))[0]
        rows["coverage_68"][i], rows["coverage_95"][i] = (central <= 0.68).mean(), (central <= 0.95).mean()
        rows["crps"][i] = _crps(t, x)
        shown["spread"][i] = np.sqrt((1 + 1 / M) * x.var(axis=0, ddof=1).mean())
        shown["error"][i] = np.sqrt(((x.mean(axis=0) - t) ** 2).mean())
        if shown["error"][i] > 0:
            rows["spread_skill"][i] = shown["spread"][i] / shown["error"][i]
    return rows, shown


def _crps(t: Values, x: Values) -> float:
    """Fair CRPS, the mean over pixels, of truths (pixels,) and draws (draws, pixels)."""
    M = len(x)
    # Of sorted values Σ_i<j (x_j − x_i) = Σ_i (2i − M − 1) x_i, i from 1.
    weights = 2.0 * np.arange(1, M + 1) - M - 1
    between = weights @ np.sort(x, axis=0) / (M * (M - 1))
    return float((np.abs(x - t).mean(axis=0) - between).mean())
