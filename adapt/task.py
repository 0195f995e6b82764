"""What is learned: classes or a number, and which classes each side of the adaptation holds.

One declaration names the classes of the source (those that are trained on) and those of the target (those that are
expected there). The two sets decide the regime (You et al. 2019):

    closed          source = target
    partial         source ⊃ target
    open            source ⊂ target
    open-partial    neither holds the other

Classes of the target that the source lacks are *unknown*: a classifier should say so, not guess.

References:
    You et al. 2019, Universal Domain Adaptation, CVPR (doi:10.1109/CVPR.2019.00283).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Regime = Literal["closed", "partial", "open", "open-partial"]
Kind = Literal["classification", "regression"]

UNLABELLED = -1
"""Class number of a map without a label."""


class TaskError(SkyshiftError):
    """Labels or their declaration do not fit together."""


@dataclass
class TaskConfig:
    """What is learned.

    Attributes:
        kind: ``classification``, or ``regression`` of one number with its uncertainty.
        source: Classes that are trained on, by name; all of the source store where there are none.
        target: Classes that are expected in the target; those of the source where there are none.
        regime: The regime that is meant, checked against the two sets; empty for whichever they are.
        class_weights: Weigh classes by the inverse of their frequency in the source.
    """

    kind: Kind = "classification"
    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    regime: str = ""
    class_weights: bool = False


@dataclass(frozen=True)
class Task:
    """A checked task.

    Attributes:
        kind: ``classification`` or ``regression``.
        source: Classes of the source, in the order of the network's outputs; none for a regression.
        target: Classes that are expected in the target.
        weights: One a class of the source, mean 1; empty for equal ones.
        mean: Of the number to regress, over the source's training part.
        scale: Its standard deviation there. Networks see (number - mean) / scale.
    """

    kind: Kind = "classification"
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise TaskError(unknown("kind of task", self.kind, get_args(Kind)))
        if self.kind == "classification" and len(self.source) < 2:
            raise TaskError(f"a classifier needs at least two classes of the source, there is {list(self.source)}")
        for side in (self.source, self.target):
            if len(set(side)) < len(side):
                raise TaskError(f"classes are named twice: {list(side)}")

    @property
    def outputs(self) -> int:
        """Of the network: one logit a class, or a mean and a logarithm of the variance."""
        return len(self.source) if self.kind == "classification" else 2

    @property
    def regime(self) -> Regime:
        """How the two sets of classes lie."""
        source, target = set(self.source), set(self.target)
        if source == target:
            return "closed"
        if target < source:
            return "partial"
        return "open" if source < target else "open-partial"

    @property
    def unknown(self) -> tuple[str, ...]:
        """Classes of the target that the source lacks."""
        return tuple(name for name in self.target if name not in self.source)

    def source_numbers(self, labels: NDArray[np.integer], names: Sequence[str], where: str) -> NDArray[np.int64]:
        """Class numbers of a store as outputs of the network.

        Args:
            labels: (n,) numbers in the store; -1 for none.
            names: Of the store's classes.
            where: Of the store, for messages.

        Returns:
            (n,) numbers in ``source``; :data:`UNLABELLED` for classes that are not trained on, and for none.

        Raises:
            TaskError: A number has no name.
        """
        return _renumbered(labels, names, self.source, where)

    def target_numbers(self, labels: NDArray[np.integer], names: Sequence[str], where: str) -> NDArray[np.int64]:
        """Class numbers of a target store, for the final report alone.

        Returns:
            (n,) numbers in ``source``, ``len(source)`` for the unknown classes, -1 where there is no label.

        Raises:
            TaskError: A number has no name, or a class is in neither declared set.
        """
        labels = np.asarray(labels, np.int64)
        for number in np.unique(labels[labels >= 0]).tolist():
            if number < len(names) and names[number] not in self.target:
                raise TaskError(
                    f"{where}: the label {names[number]} is outside the declared classes of the target "
                    f"({', '.join(self.target)}); add it to task.target"
                )
        known = _renumbered(labels, names, self.source, where)
        return np.where((known < 0) & (labels >= 0), len(self.source), known)

    def require_regime(self, regimes: Sequence[Regime], method: str) -> None:
        """Refuse a regime that a method is not made for.

        Raises:
            TaskError: It is another; the message names the classes and methods that are made for it.
        """
        if self.kind == "regression" or self.regime in regimes:
            return
        absent = [name for name in self.source if name not in self.target]
        facts = [f"{', '.join(absent)} of the source are absent from the target's declaration"] if absent else []
        facts += [f"{', '.join(self.unknown)} of the target are absent from the source"] if self.unknown else []
        raise TaskError(
            f"the label sets are {self.regime} ({'; '.join(facts)}), {method} is made for {', '.join(regimes)}: it "
            "would align classes that are not there. Take universal or dance, or declare other classes in task"
        )


def _renumbered(
    labels: NDArray[np.integer], names: Sequence[str], wanted: Sequence[str], where: str
) -> NDArray[np.int64]:
    labels = np.asarray(labels, np.int64)
    outside = labels[(labels < UNLABELLED) | (labels >= len(names))]
    if len(outside):
        raise TaskError(f"{where}: the label {outside[0]} is outside the {len(names)} classes ({', '.join(names)})")
    table = np.array([wanted.index(name) if name in wanted else UNLABELLED for name in names] + [UNLABELLED])
    return np.asarray(table[labels], np.int64)


def make_task(config: TaskConfig, names: Sequence[str], labels: NDArray[np.integer], where: str) -> Task:
    """Check a declaration against the source's training part.

    Args:
        config: The declaration.
        names: Classes of the source store.
        labels: (n,) class numbers of the training part, in ``names``.
        where: Of the store, for messages.

    Raises:
        TaskError: A declared class is not in the store or has no map; there is one class alone; or the regime is
            not the one that was meant.
    """
    source = tuple(config.source or names)
    for name in source:
        if name not in names:
            raise TaskError(f"task.source: {unknown('class', name, list(names))} ({where})")
    task = Task("classification", source, tuple(config.target or source))
    numbers = task.source_numbers(labels, names, where)
    count = np.bincount(numbers[numbers >= 0], minlength=len(source))
    if (count == 0).any():
        absent = [name for name, n in zip(source, count, strict=True) if not n]
        raise TaskError(
            f"{where}: there is no training map of class {', '.join(absent)}; of the others: "
            f"{dict(zip(source, count.tolist(), strict=True))}. Leave it out of task.source, or enlarge the split"
        )
    if config.regime and config.regime != task.regime:
        if config.regime not in get_args(Regime):
            raise TaskError(f"task.regime: {unknown('regime', config.regime, get_args(Regime))}")
        absent = [name for name in task.source if name not in task.target]
        raise TaskError(
            f"task.regime is {config.regime}, but the declared classes are {task.regime}: absent from the target: "
            f"{', '.join(absent) or 'none'}; absent from the source: {', '.join(task.unknown) or 'none'}"
        )
    weights = tuple((count.sum() / (len(count) * count)).tolist()) if config.class_weights else ()
    return Task("classification", task.source, task.target, weights)


def task_to_dict(task: Task) -> dict[str, object]:
    """For a checkpoint."""
    return {name: list(v) if isinstance(v := getattr(task, name), tuple) else v for name in task.__dataclass_fields__}


def task_from_dict(saved: Mapping[str, object]) -> Task:
    """Undo :func:`task_to_dict`.

    Raises:
        TaskError: It is damaged.
    """
    try:
        return Task(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})  # type: ignore[arg-type]
    except TypeError as error:
        raise TaskError(f"the task of the checkpoint is damaged ({error})") from None
