"""How good predicted numbers and their uncertainties are.

With y the truth, μ the predicted mean, σ² = exp(s) the predicted variance, and r = μ − y,

    rmse = √(mean r²)      mae = mean |r|      bias = mean r      nll = mean ½ (s + r² / σ² + ln 2π)

``coverage_68`` and ``coverage_95`` are the shares of truths within the central 68 and 95 % intervals of the normal
distribution (μ, σ). ``outliers`` is the share with |r − median r| > 3 · 1.4826 · median |r − median r|: 0.27 % where
residuals are normal; the limit is that of the sample as it is, in bootstrap samples too.

Every number can be had with weights of any leading shape (…, n), such as the multiplicities of many bootstrap samples.

References:
    Nix & Weigend 1994, Estimating the mean and variance of the target probability distribution,
    doi:10.1109/ICNN.1994.374138.
    Hoaglin, Mosteller & Tukey 1983, Understanding Robust and Exploratory Data Analysis (the 1.4826).
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]
NORMAL_MAD = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""


def negative_log_likelihood(truth: Values, mean: Values, log_variance: Values) -> Values:
    """Of each number under the normal distribution that was predicted for it, in nats.

    Args:
        truth: (n,).
        mean: (n,), same unit.
        log_variance: (n,) natural logarithms of squares of that unit.
    """
    return 0.5 * (log_variance + (truth - mean) ** 2 * np.exp(-log_variance) + np.log(2 * np.pi))


def _mean(values: Values, weights: Values) -> Values:
    total = weights.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ values / total)


def _covered(level: float) -> Callable[[Values, Values, Values], Values]:
    limit = norm.ppf(0.5 + level / 2)

    def inside(y: Values, m: Values, s: Values) -> Values:
        return (np.abs(m - y) <= limit * np.exp(0.5 * s)).astype(np.float64)

    return inside


def outlying(truth: Values, mean: Values) -> NDArray[np.bool_]:
    """(n,) which residuals lie further than three robust standard deviations from their median."""
    r = mean - truth
    if not len(r):
        return np.zeros(0, bool)
    away = np.abs(r - np.median(r))
    return np.asarray(away > 3 * NORMAL_MAD * np.median(away))


_OF_EACH: Mapping[str, Callable[[Values, Values, Values], Values]] = {
    "rmse": lambda y, m, s: (m - y) ** 2,
    "mae": lambda y, m, s: np.abs(m - y),
    "bias": lambda y, m, s: m - y,
    "nll": negative_log_likelihood,
    "coverage_68": _covered(0.68),
    "coverage_95": _covered(0.95),
    "outliers": lambda y, m, s: outlying(y, m).astype(np.float64),
}
METRICS = tuple(_OF_EACH)
"""Names of what :func:`scores` gives."""


def scores(
    truth: ArrayLike, mean: ArrayLike, log_variance: ArrayLike, weights: ArrayLike | None = None
) -> dict[str, Values]:
    """Every metric.

    Args:
        truth: (n,) numbers.
        mean: (n,) predicted, same unit.
        log_variance: (n,) natural logarithms of squares of that unit.
        weights: (…, n); ones where there are none.

    Returns:
        Metric to (…): ``rmse``, ``mae`` and ``bias`` in the numbers' unit, ``nll`` in nats, shares for the others; NaN
        where the weights are all zero.

    Raises:
        SkyshiftError: The shapes do not fit.
    """
    y, m, s = (np.asarray(v, np.float64) for v in (truth, mean, log_variance))
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if not y.shape == m.shape == s.shape == w.shape[-1:]:
        raise SkyshiftError(
            f"truth, mean, log variance and weights do not fit: {y.shape}, {m.shape}, {s.shape}, {w.shape}"
        )
    found = {name: _mean(of_each(y, m, s), w) for name, of_each in _OF_EACH.items()}
    found["rmse"] = np.sqrt(found["rmse"])
    return found
