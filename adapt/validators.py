"""Label-free validators: by what a run may choose its checkpoint and its settings.

What is known when a classifier is adapted: the source's labels, and the target's maps without theirs. With p_i the
predicted probabilities of n target maps over K classes, H the entropy in nats and z features,

    source_accuracy     share of source validation maps that are classified correctly
    source_loss         mean negative log-likelihood of the source validation labels, in nats
    entropy             mean H(p_i)
    mutual_information  H(mean p_i) − mean H(p_i)
    snd                 mean H(s_i),  s_ij = softmax_j(p̂_iᵀp̂_j / 0.05), j ≠ i,  p̂ = p / |p|
    bnm                 −‖P‖_* / n, the nuclear norm
    mcc                 confusion between classes of p at temperature 2.5, weighted by certainty
    dev                 mean wℓ + η (mean w − 1),  η = −cov(wℓ, w) / var w,  ℓ the source loss of a map

and w(z) = p_target(z) / p_source(z) from a logistic regression that tells the domains apart, asked about maps that it
has not been fitted on; its strength of regularisation is the one that predicts best. :data:`DIRECTIONS` says which way
is better. None is right everywhere: entropy, mutual information and bnm reward confident mistakes, and the last two
expect balanced classes; snd falls for a classifier that sees one class alone; dev means little where the domains lie
apart in the features, for then no source map tells of the target.

Target labels have no place in :class:`Predicted`, and a validator by the name of a labelled metric is refused.

References:
    You et al. 2019, Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation, ICML, PMLR 97 (DEV).
    Saito et al. 2021, Tune it the Right Way, arXiv:2108.10860 (SND).
    Cui et al. 2020, Towards Discriminability and Diversity, arXiv:2003.12237 (BNM).
    Jin et al. 2020, Minimum Class Confusion, arXiv:1912.03699 (MCC).
    Musgrave et al. 2021, Unsupervised Domain Adaptation: A Reality Check, arXiv:2111.15672 (their comparison).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skyshift.adapt.metrics.regression import negative_log_likelihood
from skyshift.adapt.task import Kind
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Values = NDArray[np.float64]

SND_TEMPERATURE = 0.05
MCC_TEMPERATURE = 2.5
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of regularisation among which the classifier of domains chooses."""
FOLDS = 5
BLOCK = 1024
"""Rows of pairwise similarities that are held at a time."""

LABELLED = (
    *("accuracy", "balanced_accuracy", "macro_f1", "f1", "auroc", "auprc", "completeness", "purity", "ece", "loss"),
    *("os_star", "unk", "h_score", "anomaly_auroc", "anomaly_auprc", "rmse", "mae", "bias", "nll", "outliers"),
    *("coverage_68", "coverage_95", "gap_closed", "oracle"),
)
"""Metrics that are measured with labels of the target."""


class ValidatorError(SkyshiftError):
    """There is no such validator, or it cannot be had from what is given."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a classifier says of the validation parts. There is no place for labels of the target.

    Attributes:
        source_features: (n, width).
        source_logits: (n, classes), or (n, 2): mean and logarithm of the variance of a number.
        source_labels: (n,) class numbers from 0, or numbers in units of the task's scale.
        target_features: (m, width).
        target_logits: (m, classes) or (m, 2).
        kind: ``classification`` or ``regression``.
    """

    source_features: NDArray[np.floating]
    source_logits: NDArray[np.floating]
    source_labels: NDArray[np.integer] | NDArray[np.floating]
    target_features: NDArray[np.floating]
    target_logits: NDArray[np.floating]
    kind: Kind = "classification"

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name not in ("kind", "source_labels")):
            value = np.asarray(getattr(self, name), np.float64)
            if value.ndim != 2 or not len(value):
                raise ValidatorError(
                    f"{name} has the shape {value.shape}, and should have (maps, numbers), one or more"
                )
            object.__setattr__(self, name, value)
        n, m = len(self.source_logits), len(self.target_logits)
        shapes = [getattr(self, field.name).shape for field in fields(self) if field.name != "kind"]
        if len(self.source_features) != n or np.shape(self.source_labels) != (n,) or len(self.target_features) != m:
            raise ValidatorError(f"features, logits and labels are not of the same maps: shapes {shapes}")
        for part in ("features", "logits"):
            widths = {getattr(self, f"{side}_{part}").shape[1] for side in ("source", "target")}
            if len(widths) > 1:
                raise ValidatorError(f"{part} of source and target have different widths: shapes {shapes}")
        if self.kind == "classification":
            labels = np.asarray(self.source_labels)
            if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= self.classes:
                raise ValidatorError(
                    f"labels of the source run from {labels.min()} to {labels.max()}, and should be whole numbers "
                    f"from 0 to {self.classes - 1}: leave out maps of other classes and without a label"
                )

    @property
    def classes(self) -> int:
        """Number of logits."""
        return int(self.source_logits.shape[1])

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return all(np.isfinite(getattr(self, field.name)).all() for field in fields(self) if field.name != "kind")


def _entropy(p: Values) -> Values:
    """H over the last axis, in nats, with 0 log 0 = 0."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def _target_probabilities(predicted: Predicted) -> Values:
    return np.asarray(softmax(predicted.target_logits, axis=1))


def source_accuracy(predicted: Predicted) -> float:
    """Share of source validation maps that are classified correctly."""
    return float(np.mean(predicted.source_logits.argmax(1) == predicted.source_labels))


def source_losses(predicted: Predicted) -> Values:
    """(n,) negative log-likelihood of the label of each source map, in nats."""
    if predicted.kind == "regression":
        mean, log_variance = predicted.source_logits.T
        return negative_log_likelihood(np.asarray(predicted.source_labels, np.float64), mean, log_variance)
    log_p = log_softmax(predicted.source_logits, axis=1)
    return np.asarray(-log_p[np.arange(len(log_p)), np.asarray(predicted.source_labels)])


def source_loss(predicted: Predicted) -> float:
    """Mean negative log-likelihood of the source validation labels, in nats."""
    return float(source_losses(predicted).mean())


def entropy(predicted: Predicted) -> float:
    """Mean entropy of the target predictions, in nats."""
    return float(_entropy(_target_probabilities(predicted)).mean())


def mutual_information(predicted: Predicted) -> float:
    """Between target maps and predicted classes, in nats: confident each by itself, diverse together."""
    p = _target_probabilities(predicted)
    return float(_entropy(p.mean(0)) - _entropy(p).mean())


def snd(predicted: Predicted) -> float:
    """Soft neighbourhood density of the target predictions, in nats; NaN for a single map."""
    p = _target_probabilities(predicted)
    if len(p) < 2:
        return float("nan")
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(unit), BLOCK):
        similarity = unit[start : start + BLOCK] @ unit.T / SND_TEMPERATURE
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf  # a map is no neighbour of itself
        total += float(_entropy(np.asarray(softmax(similarity, axis=1))).sum())
    return total / len(unit)


def bnm(predicted: Predicted) -> float:
    """Batch nuclear norm of the target predictions, as the loss that it is: −‖P‖_* / n."""
    p = _target_probabilities(predicted)
    return float(-np.linalg.svd(p, compute_uv=False).sum() / len(p))


def mcc(predicted: Predicted) -> float:
    """Minimum class confusion of the target predictions: the share of a class that is confused, mean over classes."""
    p = np.asarray(softmax(predicted.target_logits / MCC_TEMPERATURE, axis=1))
    certainty = 1.0 + np.exp(-_entropy(p))
    confusion = (p * (certainty / certainty.mean())[:, None]).T @ p
    confusion /= confusion.sum(1, keepdims=True)
    return float(1.0 - np.trace(confusion) / len(confusion))


def density_ratio(source: NDArray[np.floating], target: NDArray[np.floating], seed: int = 0) -> Values:
    """p_target / p_source at every source map, from classifiers of the domains that were not fitted on it.

    Args:
        source: (n, width) features.
        target: (m, width) features.
        seed: Of the folds.

    Returns:
        (n,) positive numbers; NaN where a domain has fewer than two maps.
    """
    n, m = len(source), len(target)
    if min(n, m) < 2:
        return np.full(n, np.nan)
    x = np.concatenate([source, target]).astype(np.float64)
    domain = np.repeat([0, 1], [n, m])
    folds = StratifiedKFold(min(FOLDS, n, m), shuffle=True, random_state=seed)
    sign = np.where(domain == 1, 1.0, -1.0)
    found: dict[float, Values] = {}
    for C in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500))
        log_odds = cross_val_predict(model, x, domain, cv=folds, method="decision_function")
        found[float(np.logaddexp(0.0, -sign * log_odds).mean())] = log_odds
    # Domains that lie far apart have odds beyond any use; they stay finite.
    return np.exp(np.clip(found[min(found)][:n], -50.0, 50.0)) * (n / m)


def control_variate(weights: Values, losses: Values) -> float:
    """Mean of w ℓ, its variance reduced with the mean of w, which is known to be 1.

    Args:
        weights: (n,) density ratios.
        losses: (n,).

    Returns:
        The risk; that without a control variate where all weights are the same.
    """
    weighted = weights * losses
    variance = weights.var(ddof=1) if len(weights) > 1 else 0.0
    eta = -np.cov(weighted, weights)[0, 1] / variance if variance > 0 else 0.0
    return float(weighted.mean() + eta * (weights.mean() - 1.0))


def dev(predicted: Predicted) -> float:
    """Deep embedded validation: the loss on the target as the source's losses and the two densities foretell it."""
    return control_variate(
        density_ratio(predicted.source_features, predicted.target_features), source_losses(predicted)
    )


Validator = Callable[[Predicted], float]

VALIDATORS: Mapping[str, Validator] = {
    "source_accuracy": source_accuracy,
    "source_loss": source_loss,
    "entropy": entropy,
    "mutual_information": mutual_information,
    "snd": snd,
    "dev": dev,
    "bnm": bnm,
    "mcc": mcc,
}
"""Name of every validator to its function."""

DIRECTIONS: Mapping[str, int] = {
    "source_accuracy": 1,
    "source_loss": -1,
    "entropy": -1,
    "mutual_information": 1,
    "snd": 1,
    "dev": -1,
    "bnm": -1,
    "mcc": -1,
}
"""Name of every validator to the direction of better: 1 larger, -1 smaller."""

OF_NUMBERS = ("source_loss", "dev")
"""Validators of a regression: the others need classes."""


def validators(kind: Kind) -> tuple[str, ...]:
    """Names of the validators of a kind of task."""
    return tuple(VALIDATORS) if kind == "classification" else OF_NUMBERS


def require_label_free(name: str, kind: Kind = "classification") -> str:
    """A validator's name, where it is one of this kind of task.

    Args:
        name: What a configuration asks for (``training.monitor``), or a search over settings.
        kind: Of the task.

    Raises:
        ValidatorError: The name is that of a metric that needs labels of the target, the validator needs classes and
            the task is a regression, or there is none of that name.
    """
    known = validators(kind)
    if name in known:
        return name
    metric = name.casefold().replace("-", "_")
    for prefix in ("test_", "validation_", "target_"):
        metric = metric.removeprefix(prefix)
    if metric in LABELLED or name.casefold().startswith("target"):
        raise ValidatorError(
            f"'{name}' is measured with labels of the target. Target labels may not be used to select a checkpoint or "
            f"a setting: they serve the final report alone. Choose a label-free validator: {', '.join(known)}"
        )
    if name in VALIDATORS:
        raise ValidatorError(
            f"the validator '{name}' needs classes, and a regression has none; take {' or '.join(known)}"
        )
    raise ValidatorError(unknown("validator", name, known))


def validate(predicted: Predicted, names: tuple[str, ...] | None = None) -> dict[str, float]:
    """Validator to its value.

    Args:
        predicted: Of the validation parts.
        names: Which; all of the kind of task where there are none.

    Returns:
        In the order of ``names``. NaN for all where a prediction is not finite: such a checkpoint is never the best.

    Raises:
        ValidatorError: See :func:`require_label_free`.
    """
    names = validators(predicted.kind) if names is None else names
    for name in names:
        require_label_free(name, predicted.kind)
    if not predicted.finite:
        return {name: float("nan") for name in names}
    return {name: VALIDATORS[name](predicted) for name in names}
