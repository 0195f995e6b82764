"""What an adaptation is trained on: a labelled source and an unlabelled target, split by object over both.

Samples of the two sides are drawn without regard to each other: a batch never pairs the two images of one object,
which would carry its label over. Labels of the target are read for methods that declare that they need some
(fine-tuning on a few, the target-supervised bound) and by the report, by nothing else.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from skyshift.adapt.sides import Side, SourceConfig, TargetConfig
from skyshift.adapt.splits import SplitConfig, split_source, split_target
from skyshift.adapt.strong import Strong
from skyshift.adapt.task import Task, TaskConfig, TaskError, make_task
from skyshift.datasets.augmentation import Augmentation
from skyshift.datasets.loading import Draw, StepSampler
from skyshift.engine import Batch, LoaderPlan, TrainingConfig
from skyshift.errors import SkyshiftError
from skyshift.translate.data import one_thread

ALARM = 0.25
"""Scaled quantiles of the two sides that lie further apart than this share of the source's range raise the alarm."""


@dataclass
class AugmentConfig:
    """How training maps are changed.

    Attributes:
        symmetries: Turn and flip by the 8 symmetries of the square.
        shift: Move by up to so many pixels, mass conserved, zeros coming in; 0 for none.
        noise: Largest noise of the strong view, in scaled units.
        cutout: Side of the square that the strong view blanks, as a share of the map.
    """

    symmetries: bool = True
    shift: float = 0.0
    noise: float = 0.1
    cutout: float = 0.25


@dataclass
class AdaptData:
    """Both sides, opened, split, with the task checked against them."""

    source: Side
    target: Side
    task: Task
    augment: AugmentConfig
    balanced: bool
    labelled: int
    seed: int
    source_labels: NDArray[Any]
    """One a row of the source's catalogue: class numbers as outputs of the network, or scaled numbers."""

    @classmethod
    def open(
        cls,
        source: SourceConfig,
        target: TargetConfig,
        task: TaskConfig,
        split: SplitConfig,
        augment: AugmentConfig,
        seed: int,
    ) -> "AdaptData":
        """Open, split and check.

        Raises:
            StoreError: A store is not there, not whole, or lacks a domain.
            TaskError: Labels and their declaration do not fit.
            SkyshiftError: The sides have different numbers of channels, or too few objects.
        """
        if len(source.domains) != len(target.domains):
            raise SkyshiftError(
                f"the source has {len(source.domains)} channels ({', '.join(source.domains)}), the target "
                f"{len(target.domains)} ({', '.join(target.domains)}): one network reads both, so name as many"
            )
        made = Side("source", source, source.open("source"), seed)
        other = Side("target", target, target.open("target"), seed)
        catalogue = made.store.catalogue()
        labels: NDArray[Any]
        names: tuple[str, ...] = ()
        if task.kind == "regression":
            labels = made.numbers()
            made.parts, known = split_source(catalogue, np.zeros(len(catalogue), np.int64), split)
        else:
            labels, names = made.class_numbers()
            made.parts, known = split_source(catalogue, labels, split)
        other.parts = split_target(other.store.catalogue(), known, split)
        checked, labels = _checked(task, made, names, labels)
        trained = np.isfinite(labels) if checked.kind == "regression" else labels >= 0
        for part, views in made.parts.items():
            made.parts[part] = views[made.of_views(trained, views)]
        made.parts["train"], other.parts["train"] = made.limited(source.limit), other.limited(target.limit)
        return cls(made, other, checked, augment, source.balanced, target.labelled, seed, labels)

    def target_labels(self, views: NDArray[np.int64]) -> NDArray[Any]:
        """Labels of target views, for the report and for methods that declare that they need some.

        Returns:
            (n,) class numbers as outputs of the network, ``len(task.source)`` for unknown classes, -1 for no label; or
            scaled numbers, NaN for none.

        Raises:
            TaskError: A label is outside the declared classes.
        """
        if self.task.kind == "regression":
            return self.target.of_views((self.target.numbers() - self.task.mean) / self.task.scale, views)
        numbers, names = self.target.class_numbers()
        return self.task.target_numbers(self.target.of_views(numbers, views), names, str(self.target.store.path))

    def range_alarm(self, views: int = 256) -> list[str]:
        """What differs between the scaled values of the two sides, in words; nothing where they agree.

        The 5 %, 50 %, 95 % and 99.9 % quantiles of the pixels of each channel are compared.
        """
        said = []
        ask = (0.05, 0.5, 0.95, 0.999)
        quantiles = [
            np.quantile(side.maps(_some(side.parts["train"], views)).numpy(), ask, axis=(0, 2, 3))
            for side in (self.source, self.target)
        ]
        for channel, (ours, theirs) in enumerate(zip(*(found.T for found in quantiles), strict=True)):
            span = max(float(ours[-1] - ours[0]), 1e-6)
            far = int(np.argmax(np.abs(ours - theirs)))
            if abs(ours[far] - theirs[far]) > ALARM * span:
                said.append(
                    f"channel {channel} ({self.source.domains[channel]} and {self.target.domains[channel]}): the "
                    f"{100 * ask[far]:g} % quantile of the scaled pixels is {ours[far]:.3g} in the source and "
                    f"{theirs[far]:.3g} in the target; a network can tell the sides apart by that alone. Look at "
                    "units, background and noise, or choose other scalings"
                )
        return said

    def loader(self, training: TrainingConfig, plan: LoaderPlan, needs: Sequence[str]) -> Iterable[Batch]:
        """The micro-batches of one process.

        Args:
            training: Batch size, workers and seed.
            plan: Which batches.
            needs: What the method asks of a batch (:class:`skyshift.adapt.methods.base.AdaptationMethod`).

        Raises:
            SkyshiftError: A side has fewer training maps than a batch of all processes.
            TaskError: The method needs labels of the target, and there are none.
        """
        labelled = "labelled_target" in needs
        views = {
            "source": self._balanced(self.source.parts["train"]) if self.balanced else self.source.parts["train"],
            "target": self.target.limited(self.labelled) if labelled else self.target.parts["train"],
        }
        labels = None
        if labelled:
            labels = self.target_labels(views["target"])
            known = np.isfinite(labels) if self.task.kind == "regression" else labels >= 0
            known &= labels != len(self.task.source)
            if not known.any():
                raise TaskError(
                    f"{self.target.store.path}: this method learns from labelled maps of the target, and no training "
                    "map there has a label of a class of the source"
                )
            views["target"], labels = views["target"][known], labels[known]
        size = training.batch_size * plan.processes
        for name, held in views.items():
            if len(held) < size and not (labelled and name == "target"):
                raise SkyshiftError(
                    f"the {name} has {len(held)} training maps, fewer than a batch of {size}: lower "
                    "training.batch_size, or take more maps"
                )
        samplers = [
            StepSampler(
                held,
                training.batch_size,
                plan.last,
                first=plan.first,
                seed=training.seed + shift,  # the two orders have nothing in common
                process=plan.process,
                processes=plan.processes,
            )
            for held, shift in zip(views.values(), (0, 1_000_003), strict=True)
        ]
        return DataLoader(
            PairedSides(self, views, labels, needs),
            batch_sampler=_Both(*samplers),
            num_workers=training.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_thread if training.workers else None,
            persistent_workers=training.workers > 0,
        )

    def _balanced(self, views: NDArray[np.int64]) -> NDArray[np.int64]:
        """Views repeated so that each class has as many as the largest."""
        if self.task.kind == "regression":
            raise TaskError("source.balanced draws classes equally often; a regression has none")
        labels = self.source.of_views(self.source_labels, views)
        most = int(np.bincount(labels).max())
        generator = np.random.default_rng(self.seed)
        repeated = [np.resize(generator.permutation(views[labels == k]), most) for k in np.unique(labels)]
        return np.concatenate(repeated)

    def identify(self, batch: Batch) -> str:
        """The views of a batch, and their objects."""
        said = f"source: {self.source.names(batch['source_view'].tolist())}"
        return f"{said}; target: {self.target.names(batch['target_view'].tolist())}" if "target_view" in batch else said


def _some(views: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return views[np.unique(np.linspace(0, len(views) - 1, min(most, len(views))).astype(np.int64))]


def _checked(config: TaskConfig, source: Side, names: Sequence[str], labels: NDArray[Any]) -> tuple[Task, NDArray[Any]]:
    """The task, and the labels of the source as the network sees them."""
    trained = source.of_views(labels, source.parts["train"])
    if config.kind == "regression":
        trained = trained[np.isfinite(trained)]
        if not len(trained) or trained.std() == 0:
            raise TaskError(f"{source.config.labels}: the training part of the source has no two different numbers")
        task = Task("regression", mean=float(trained.mean()), scale=float(trained.std()))
        return task, (labels - task.mean) / task.scale
    where = str(source.store.path)
    task = make_task(config, names, trained, where)
    return task, task.source_numbers(labels, names, where)


class _Both(Sampler[list[tuple[Draw, Draw]]]):
    """Two samplers side by side."""

    def __init__(self, source: StepSampler, target: StepSampler) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[list[tuple[Draw, Draw]]]:
        for ours, theirs in zip(self.source, self.target, strict=True):
            yield list(zip(ours, theirs, strict=True))


class PairedSides(Dataset[dict[str, Any]]):
    """Samples that hold a map of each side, drawn by themselves.

    Args:
        data: Both sides.
        views: ``source`` and ``target`` to the training views.
        target_labels: Of the target views, where the method may see them.
        needs: What the method asks of a batch.
    """

    def __init__(
        self,
        data: AdaptData,
        views: Mapping[str, NDArray[np.int64]],
        target_labels: NDArray[Any] | None,
        needs: Sequence[str],
    ) -> None:
        chosen = Augmentation(symmetries=data.augment.symmetries, shift=data.augment.shift)
        self._strong = Strong(data.augment.noise, data.augment.cutout)
        self._needs = needs
        self._with_target = any(need.startswith(("target", "labelled")) for need in needs)
        self._sides = {"source": data.source.dataset(np.unique(views["source"]), chosen)}
        if self._with_target:
            self._sides["target"] = data.target.dataset(views["target"], chosen)
        ours = data.source.of_views(data.source_labels, views["source"])
        self._labels = {"source": dict(zip(views["source"].tolist(), ours.tolist(), strict=True))}
        if target_labels is not None:
            self._labels["target"] = dict(zip(views["target"].tolist(), target_labels.tolist(), strict=True))

    def __getitem__(self, draw: tuple[Draw, Draw]) -> dict[str, Any]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[tuple[Draw, Draw]]) -> list[dict[str, Any]]:
        """The samples of a batch."""
        samples: list[dict[str, Any]] = [{} for _ in draws]
        for place, (name, dataset) in enumerate(self._sides.items()):
            mine = [draw[place] for draw in draws]
            for sample, made in zip(samples, dataset.__getitems__(mine), strict=True):
                sample[name], sample[f"{name}_view"] = made["source"], made["view"]
                if name in self._labels:
                    sample[f"{name}_label"] = self._labels[name][made["view"]]
            if f"{name}_strong" in self._needs:
                again = [Draw(draw.view, (*draw.seed, 2)) for draw in mine]
                for sample, made, draw in zip(samples, dataset.__getitems__(again), again, strict=True):
                    sample[f"{name}_strong"] = self._strong(made["source"], (*draw.seed, 3))
        return samples


def warn_of_ranges(data: AdaptData) -> list[str]:
    """Say what differs between the scaled values of the two sides, and give it back."""
    said = data.range_alarm()
    for line in said:
        warnings.warn(line, stacklevel=2)
    return said
