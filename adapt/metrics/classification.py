"""How good predicted classes are.

With C_jk the number of objects of class j that are taken for class k,

    accuracy            Σ_j C_jj / Σ_jk C_jk
    completeness_k      C_kk / Σ_j C_kj          (recall)
    purity_k            C_kk / Σ_j C_jk          (precision)
    balanced_accuracy   mean over k of completeness_k
    macro_f1            mean over k of 2 C_kk / (Σ_j C_kj + Σ_j C_jk)
    auroc, auprc        mean over k of those of p_k for class k against the rest

Means run over the classes for which the number exists: those with objects, for F1 also those that are predicted. The
area under the precision-recall curve is the sum of steps (average precision), which does not interpolate.

All functions take weights of any leading shape (…, n) and give (…): the multiplicities of a thousand bootstrap samples
are a thousand sorts less than scikit-learn's functions need, with which they agree.

References:
    Davis & Goadrich 2006, The Relationship Between Precision-Recall and ROC Curves, doi:10.1145/1143844.1143874.
    Brodersen et al. 2010, The Balanced Accuracy and Its Posterior Distribution, doi:10.1109/ICPR.2010.764.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]
Labels = NDArray[np.int64]


def ratio(above: Values, below: Values) -> Values:
    """Their ratio; NaN where both are zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above / below)


def mean_of_known(values: Values) -> Values:
    """Mean over the last axis of what is not NaN; NaN where there is nothing."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1).astype(np.float64))


def checked(labels: ArrayLike, n: int, classes: int, weights: ArrayLike | None) -> tuple[Labels, Values]:
    """Labels and weights of ``n`` objects, ones where there are no weights.

    Raises:
        SkyshiftError: The shapes do not fit, or a label is no class.
    """
    y = np.asarray(labels)
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if y.shape != (n,) or w.shape[-1:] != (n,):
        raise SkyshiftError(f"labels {y.shape} and weights {w.shape} are not of the {n} predictions")
    if n and (y.min() < 0 or y.max() >= classes):
        raise SkyshiftError(
            f"labels run from {y.min()} to {y.max()}, and the classes from 0 to {classes - 1}: leave out objects "
            "without a label and of unknown classes"
        )
    return y.astype(np.int64), w


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int, weights: ArrayLike | None = None) -> Values:
    """C_jk, objects of class j that are taken for k.

    Args:
        labels: (n,) class numbers.
        predicted: (n,) class numbers.
        classes: How many there are.
        weights: (…, n).

    Returns:
        (…, classes, classes).

    Raises:
        SkyshiftError: The shapes do not fit, or a number is no class.
    """
    taken, _ = checked(predicted, len(np.asarray(predicted)), classes, None)
    y, w = checked(labels, len(taken), classes, weights)
    cells = np.eye(classes * classes)[y * classes + taken]
    return np.asarray((w @ cells).reshape(*w.shape[:-1], classes, classes))


def accuracy(confusion: Values) -> Values:
    """(…) share of objects that are taken for what they are, of confusion matrices (…, classes, classes)."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def completeness(confusion: Values) -> Values:
    """(…, classes) share of a class that is found; NaN for a class without objects."""
    return ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1))


def purity(confusion: Values) -> Values:
    """(…, classes) share of what is taken for a class that is of it; NaN for a class that is never predicted."""
    return ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-2))


def balanced_accuracy(confusion: Values) -> Values:
    """(…) mean completeness of the classes with objects."""
    return mean_of_known(completeness(confusion))


def macro_f1(confusion: Values) -> Values:
    """(…) mean F1 of the classes that have objects or are predicted."""
    both = confusion.sum(-1) + confusion.sum(-2)
    return mean_of_known(ratio(2.0 * np.diagonal(confusion, axis1=-2, axis2=-1), both))


def _cumulated(positive: NDArray[np.bool_], score: Values, weights: Values) -> tuple[Values, Values]:
    """Weights of positive and negative objects above each distinct score, from the highest: two (…, thresholds)."""
    order = np.argsort(-score, kind="stable")
    ordered, w = score[order], weights[..., order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of each run of equal scores
    found = np.cumsum(w * positive[order], axis=-1)[..., last]
    return found, np.cumsum(w, axis=-1)[..., last] - found


def _areas(positive: ArrayLike, score: ArrayLike, weights: ArrayLike | None) -> tuple[Values, Values]:
    """Both areas, of one sort: two (…)."""
    s = np.asarray(score, np.float64)
    y, w = checked(positive, len(s), 2, weights)
    if not len(s):
        return np.full(w.shape[:-1], np.nan), np.full(w.shape[:-1], np.nan)
    TP, FP = _cumulated(y > 0, s, w)
    gained = np.diff(TP, axis=-1, prepend=0.0)
    roc = (np.diff(FP, axis=-1, prepend=0.0) * (TP - 0.5 * gained)).sum(-1)
    precision = np.divide(TP, TP + FP, out=np.zeros_like(TP), where=TP + FP > 0)
    return ratio(roc, TP[..., -1] * FP[..., -1]), ratio((gained * precision).sum(-1), TP[..., -1])


def area_under_roc(positive: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Chance that a positive object has a higher score than a negative one, equal ones counting half.

    Args:
        positive: (n,) booleans.
        score: (n,).
        weights: (…, n).

    Returns:
        (…); NaN where one side is missing.
    """
    return _areas(positive, score, weights)[0]


def average_precision(positive: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Sum over distinct scores of precision times the recall that is gained there.

    Args:
        positive: (n,) booleans.
        score: (n,).
        weights: (…, n).

    Returns:
        (…); NaN where there is no positive object.
    """
    return _areas(positive, score, weights)[1]


def curves(
    positive: ArrayLike, score: ArrayLike, grid: Values, weights: ArrayLike | None = None
) -> tuple[Values, Values]:
    """ROC and precision-recall curves on a grid.

    Args:
        positive: (n,) booleans.
        score: (n,).
        grid: (g,) false positive rates of the one, recalls of the other, from 0 to 1.
        weights: (…, n).

    Returns:
        (…, g) true positive rate, linear between scores, and (…, g) precision at the highest score that reaches the
        recall; NaN where there are no objects of one side.
    """
    s = np.asarray(score, np.float64)
    y, w = checked(positive, len(s), 2, weights)
    flat = w.reshape(-1, len(s))
    rate, precision = (np.full((len(flat), len(grid)), np.nan) for _ in range(2))
    if len(s):
        for i, (TP, FP) in enumerate(zip(*_cumulated(y > 0, s, flat), strict=True)):
            if TP[-1] > 0 and FP[-1] > 0:
                recall = TP / TP[-1]
                rate[i] = np.interp(grid, np.append(0.0, FP / FP[-1]), np.append(0.0, recall))
                taken = TP + FP > 0
                at = np.searchsorted(recall[taken], np.minimum(grid, 1.0) - 1e-12)
                precision[i] = (TP[taken] / (TP + FP)[taken])[at]
    shape = (*w.shape[:-1], len(grid))
    return rate.reshape(shape), precision.reshape(shape)


def one_against_rest(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Values, Values]:
    """Areas under the ROC and the precision-recall curve of each class.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, classes).
        weights: (…, n).

    Returns:
        Two (…, classes); NaN for a class without objects.
    """
    p = np.asarray(probabilities, np.float64)
    y, w = checked(labels, len(p), p.shape[1], weights)
    pairs = [_areas(y == k, p[:, k], w) for k in range(p.shape[1])]
    return np.stack([a for a, _ in pairs], -1), np.stack([b for _, b in pairs], -1)


METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc")
"""One number each."""
OF_A_CLASS = ("completeness", "purity", "auroc", "auprc")
"""One number a class each."""


def scores(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> dict[str, Values]:
    """Every metric; those of a class are named ``completeness of <number>``.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, classes).
        weights: (…, n).

    Returns:
        Metric to (…).

    Raises:
        SkyshiftError: The shapes do not fit, or a label is no class.
    """
    p = np.asarray(probabilities, np.float64)
    y, w = checked(labels, len(p), p.shape[1], weights)
    C = confusion_matrix(y, p.argmax(1), p.shape[1], w)
    roc, pr = one_against_rest(y, p, w)
    found = {"accuracy": accuracy(C), "balanced_accuracy": balanced_accuracy(C), "macro_f1": macro_f1(C)}
    found |= {"auroc": mean_of_known(roc), "auprc": mean_of_known(pr)}
    for name, values in zip(OF_A_CLASS, (completeness(C), purity(C), roc, pr), strict=True):
        found |= {f"{name} of {k}": values[..., k] for k in range(p.shape[1])}
    return found
