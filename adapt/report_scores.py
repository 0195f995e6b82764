"""What a report measures of a checkpoint on the test part, from arrays alone.

Labels of the target serve the report, and nothing before it: temperatures and thresholds come from the source's
validation part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from skyshift.adapt.metrics import calibration, classification, open_set, regression
from skyshift.adapt.metrics.bootstrap import Drawn, bootstrap
from skyshift.adapt.metrics.latent import a_distance, silhouette
from skyshift.adapt.task import Task
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Values = NDArray[np.float64]

Choice = Literal["validator", "last", "oracle"]
CHOICES: Mapping[Choice, str] = {
    "validator": "validator-chosen",
    "last": "last",
    "oracle": "oracle",
}
"""How a checkpoint was chosen, to its name in a report."""


class ReportError(SkyshiftError):
    """What a report is made of does not fit together."""


@dataclass(frozen=True)
class Part:
    """What a classifier says of some maps of one domain, and what they are.

    Attributes:
        names: (n,) of the objects.
        groups: (n,) split group of each: views of an object share it.
        labels: (n,) class numbers of the task, ``len(task.source)`` for unknown classes, -1 for none; numbers in their
            own unit for a regression, NaN for none.
        logits: (n, classes); for a regression (n, 2), mean and logarithm of the variance in units of the task's scale.
        unknown: (n,) score of being of no class of the source.
        features: (n, width).
    """

    names: Sequence[str]
    groups: NDArray[Any]
    labels: NDArray[np.integer] | NDArray[np.floating]
    logits: NDArray[np.floating]
    unknown: NDArray[np.floating]
    features: NDArray[np.floating]

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ReportError(f"arrays of one part are not of the same maps: {lengths}")
        for name in ("logits", "features"):
            value = np.asarray(getattr(self, name), np.float64)
            if value.ndim != 2 or not np.isfinite(value).all():
                raise ReportError(
                    f"{name} of shape {value.shape} should be (maps, numbers), all finite; "
                    f"{int((~np.isfinite(value)).sum())} are not: the checkpoint has diverged, or maps hold NaN"
                )
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and what it says of the two domains.

    Attributes:
        choice: ``validator`` (label-free), ``last`` or ``oracle`` (by target labels: an upper bound, not a result).
        step: Optimizer step.
        source_validation: For temperature and threshold.
        source: Test part of the source.
        target: Test part of the target.
        monitor: Validator by which it was chosen; for the oracle the labelled metric.
        validators: Label-free values on the validation parts.
    """

    choice: Choice
    step: int
    source_validation: Part
    source: Part
    target: Part
    monitor: str = ""
    validators: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.choice not in get_args(Choice):
            raise ReportError(unknown("choice of a checkpoint", self.choice, get_args(Choice)))

    @property
    def title(self) -> str:
        """Its name in a report."""
        return CHOICES[self.choice]

    @property
    def used_target_labels(self) -> bool:
        """Whether labels of the target were used to choose it."""
        return self.choice == "oracle"

    @property
    def explanation(self) -> str:
        """By what it was chosen, in words."""
        return {
            "validator": f"chosen by {self.monitor or 'a label-free validator'}, without target labels",
            "last": "the end of the run, nothing was chosen",
            "oracle": f"chosen WITH target labels ({self.monitor or 'accuracy'}): a bound, not a result",
        }[self.choice]


def labelled(part: Part, task: Task) -> NDArray[np.bool_]:
    """(n,) maps whose label is known, of a known or an unknown class."""
    labels = np.asarray(part.labels)
    return np.isfinite(labels) if task.kind == "regression" else np.asarray(labels >= 0)


def check_labels(part: Part, task: Task, where: str) -> None:
    """Refuse what is no label or no output of the task.

    Raises:
        ReportError: See above.
    """
    if part.logits.shape[1] != task.outputs:
        raise ReportError(f"{where}: there are {part.logits.shape[1]} outputs, the task has {task.outputs}")
    if task.kind == "classification" and len(part):
        labels = np.asarray(part.labels)
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < -1 or labels.max() > len(task.source):
            raise ReportError(
                f"{where}: labels run from {labels.min()} to {labels.max()}, and should be whole numbers from 0 to "
                f"{len(task.source)} (unknown classes), -1 for none"
            )


def probabilities(logits: NDArray[np.floating], temperature: float = 1.0) -> Values:
    """(n, classes) softmax at a temperature."""
    return np.asarray(softmax(logits / temperature, axis=1))


def physical(part: Part, task: Task) -> tuple[Values, Values]:
    """Predicted numbers in their unit, and logarithms of their variance in its square: two (n,)."""
    mean, log_variance = part.logits.T
    return mean * task.scale + task.mean, log_variance + 2 * np.log(task.scale)


@dataclass(frozen=True)
class Setting:
    """What is fitted to the source's validation part.

    Attributes:
        temperature: Of the logits.
        threshold: Of the unknown score.
        origin: Where the threshold comes from, in words.
    """

    temperature: float = 1.0
    threshold: float = float("inf")
    origin: str = ""

    @classmethod
    def fitted(cls, validation: Part, task: Task, threshold: float | None) -> "Setting":
        """Fit temperature and, where it is not given, threshold to labelled source validation maps.

        Raises:
            ReportError: There is none.
        """
        if task.kind == "regression":
            return cls()
        rows = labelled(validation, task) & (np.asarray(validation.labels) < len(task.source))
        if not rows.any():
            raise ReportError("the validation part of the source has no labelled map to fit a temperature to")
        T = calibration.fit_temperature(validation.logits[rows], np.asarray(validation.labels)[rows])
        if threshold is not None:
            return cls(T, threshold, "as given")
        limit = open_set.source_threshold(np.asarray(validation.unknown)[rows])
        return cls(T, limit, f"of source validation maps {open_set.KEPT:.0%} lie below it")


def measure(part: Part, task: Task, setting: Setting, weights: Values, level: float) -> dict[str, Drawn]:
    """Every metric that needs labels.

    Args:
        part: Of the test maps.
        task: What was learned.
        setting: Fitted to the source's validation part.
        weights: (samples, n), bootstrap multiplicities of the maps.
        level: Of the intervals.

    Returns:
        Metric to its value and samples, all NaN where no map is labelled. Metrics of known classes leave unknown ones
        out; those of open sets are there where the task has unknown classes.
    """
    known = labelled(part, task)
    labels, logits, score = np.asarray(part.labels), part.logits, np.asarray(part.unknown, np.float64)
    if task.kind == "regression":
        mean, log_variance = (v[known] for v in physical(part, task))
        return bootstrap(lambda w: regression.scores(labels[known], mean, log_variance, w), weights[:, known], level)
    K = len(task.source)
    rows = known & (labels < K)
    p, calm = probabilities(logits[rows]), probabilities(logits[rows], setting.temperature)

    def closed(w: Values) -> dict[str, Values]:
        return classification.scores(labels[rows], p, w) | {
            "ece": calibration.expected_calibration_error(labels[rows], p, w),
            "ece_scaled": calibration.expected_calibration_error(labels[rows], calm, w),
        }

    found = bootstrap(closed, weights[:, rows], level)
    if task.unknown:
        said = logits[known].argmax(1)

        def opened(w: Values) -> dict[str, Values]:
            return open_set.scores(labels[known], said, score[known], K, setting.threshold, w)

        found |= bootstrap(opened, weights[:, known], level)
    return found


def latent_facts(checkpoint: Checkpoint, task: Task, seed: int) -> dict[str, float]:
    """How the domains lie in the space of features: numbers without an interval."""
    source, target = checkpoint.source, checkpoint.target
    x = np.concatenate([source.features, target.features])
    facts = {
        "a_distance": a_distance(source.features, target.features, source.groups, target.groups, seed),
        "silhouette of domains": silhouette(x, np.repeat([0, 1], [len(source), len(target)]), seed),
    }
    if task.kind == "classification":
        for name, part in (("source", source), ("target", target)):
            rows = labelled(part, task)
            facts[f"silhouette of classes, {name}"] = silhouette(
                part.features[rows], np.asarray(part.labels)[rows], seed
            )
    return facts
