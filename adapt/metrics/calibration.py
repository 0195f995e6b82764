"""Whether a classifier is right as often as it says.

Objects are binned by confidence, the largest probability, in equal bins from 0 to 1; with n_b objects in bin b, of
which the share acc_b is right, at mean confidence conf_b,

    ECE = Σ_b n_b / N · |acc_b − conf_b|.

A bin holds its lower edge, and a confidence of exactly 1 has one of its own, as in torchmetrics. ECE is biased upwards
by the noise of its bins: a calibrated classifier has about √(bins / N) · 0.2 to 0.3, not 0.

A temperature T divides the logits so that the likelihood of **source** validation labels is largest. No label of the
target is used, so what miscalibration the change of domains brings is left.

References:
    Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.
    Kumar et al. 2019, Verified Uncertainty Calibration, arXiv:1909.10155 (the bias).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from skyshift.adapt.metrics.classification import checked, ratio
from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]
BINS = 15
RANGE = (0.05, 20.0)
"""Of temperatures: outside of it there is nothing to fit, such as where every label is predicted with certainty."""


def _of_bins(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None, bins: int
) -> tuple[Values, Values, Values]:
    """Weight, right weight and weighted confidence of each bin: three (…, bins + 1), the last for exactly 1."""
    p = np.asarray(probabilities, np.float64)
    y, w = checked(labels, len(p), p.shape[1], weights)
    confidence = p.max(1)
    edges = np.linspace(0.0, 1.0, bins + 1)
    member = np.eye(bins + 1)[np.digitize(confidence, edges) - 1]
    right = (p.argmax(1) == y).astype(np.float64)
    return w @ member, (w * right) @ member, (w * confidence) @ member


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None, bins: int = BINS
) -> Values:
    """ECE.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, classes).
        weights: (…, n).
        bins: From 0 to 1.

    Returns:
        (…), from 0 to 1; NaN where there is no object.

    Raises:
        SkyshiftError: The shapes do not fit, or a label is no class.
    """
    count, right, confidence = _of_bins(labels, probabilities, weights, bins)
    return ratio(np.abs(right - confidence).sum(-1), count.sum(-1))


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None, bins: int = BINS
) -> tuple[Values, Values, Values]:
    """The reliability curve.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, classes).
        weights: (…, n).
        bins: From 0 to 1; a confidence of exactly 1 belongs to the last.

    Returns:
        Three (…, bins): mean confidence and share that is right, NaN in empty bins, and the weight.
    """
    parts = _of_bins(labels, probabilities, weights, bins)
    count, right, confidence = (
        np.concatenate([v[..., : bins - 1], v[..., bins - 1 :].sum(-1, keepdims=True)], -1) for v in parts
    )
    return ratio(confidence, count), ratio(right, count), count


def fit_temperature(source_logits: ArrayLike, source_labels: ArrayLike) -> float:
    """The temperature under which the source validation labels are likeliest.

    Args:
        source_logits: (n, classes).
        source_labels: (n,) class numbers of the **source**.

    Returns:
        T within :data:`RANGE`; above 1 the classifier was too confident.

    Raises:
        SkyshiftError: There is no map, the shapes do not fit, or a label is no class.
    """
    z = np.asarray(source_logits, np.float64)
    if not len(z):
        raise SkyshiftError("a temperature is fitted to labelled source validation maps, and there are none")
    y, _ = checked(source_labels, len(z), z.shape[1], None)

    def loss(log_T: float) -> float:
        return float(-log_softmax(z / np.exp(log_T), axis=1)[np.arange(len(y)), y].mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
