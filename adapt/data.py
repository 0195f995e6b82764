"""What an adaptation is trained on: a labelled source and an unlabelled target, split by object over both.

Samples of the two sides are drawn without regard to each other: a batch never pairs the two images of one object,
which would carry its label over. Labels of the target are read for methods that declare that they need some
(fine-tuning on a few, the target-supervised bound) and by the report, by nothing else.
"""

import csv
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from skyshift.adapt.splits import Parts, SplitConfig, split_source, split_target
from skyshift.adapt.strong import Strong
from skyshift.adapt.task import UNLABELLED, Task, TaskConfig, TaskError, make_task
from skyshift.adapt.translated import translated_store
from skyshift.command import parse, shipped_config
from skyshift.datasets.augmentation import Augmentation
from skyshift.datasets.build import ensure_store
from skyshift.datasets.collect import CollectConfig, collect
from skyshift.datasets.joined import open_stores
from skyshift.datasets.loading import Draw, MapDataset, StepSampler, fit_scalings
from skyshift.datasets.observe import observe_store
from skyshift.datasets.observe_config import ObserveConfig
from skyshift.datasets.scaling import Scaling
from skyshift.datasets.store import MapStore
from skyshift.engine import Batch, LoaderPlan, TrainingConfig, launch_state
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.data import one_thread
from skyshift.translate.translation import Channel

Made = TypeVar("Made")

ALARM = 0.25
"""Scaled quantiles of the two sides that lie further apart than this share of the source's range raise the alarm."""


@dataclass
class SideConfig:
    """One side.

    Attributes:
        store: Folder of the store, or a list of stores that are taken together.
        build: Configuration from which a store of simulated maps is built where it is not there: a file, or the name
            of one that ships with the package.
        observe: Configuration (datasets/observe.py) by which another store is observed into this one, where it is not
            there: a file, or the name of one that ships with the package.
        collect: Configuration (datasets/collect.py) by which images (FITS, HDF5, NPY or NPZ) are gathered into the
            store, where it is not there.
        domains: Of the store, the channels in order.
        scaling: Domain to linear, asinh, log or power, where the domain's own default is not wanted.
        labels: CSV file with columns ``name`` and ``label`` (a class, or the number to regress), instead of the
            labels of the store.
        limit: Take so many training objects alone; 0 for all.
    """

    store: list[str] | str = ""
    build: str = ""
    observe: str = ""
    collect: str = ""
    domains: list[str] = field(default_factory=list)
    scaling: dict[str, str] = field(default_factory=dict)
    labels: str = ""
    limit: int = 0

    def __post_init__(self) -> None:
        if self.build and not isinstance(self.store, str):
            raise SkyshiftError("build makes one store; build each of several before, with datasets/build.py")
        for name in self.scaling:
            if name not in self.domains:
                raise SkyshiftError(f"scaling: {unknown('domain', name, self.domains)}")

    def open(self, side: str) -> MapStore:
        """The store, made first where that was asked for.

        Raises:
            StoreError: It is not there, not whole, or lacks a domain.
        """
        if not self.store or not self.domains:
            raise SkyshiftError(f"{side}.store and {side}.domains are missing: name a store and at least one domain")
        if self.build:
            assert isinstance(self.store, str)
            ensure_store(self.store, self.build, self.domains if not self._translated else [], f"{side}.build")
        if self.observe:
            self._make(side, "observe", ObserveConfig, observe_store)
        if self.collect:
            self._make(side, "collect", CollectConfig, collect)
        store = self._translate() if self._translated else open_stores(self.store)
        store.require_complete()
        store.require_domains(self.domains)
        return store

    @property
    def _translated(self) -> bool:
        return False

    def _translate(self) -> MapStore:
        raise NotImplementedError

    def _make(self, side: str, key: str, kind: type[Made], make: Callable[[Made], MapStore]) -> None:
        """Run a command of the datasets stage into the store, on the main process while others wait."""
        name = getattr(self, key)
        path = Path(name) if Path(name).is_file() else shipped_config(name)
        if not path.is_file():
            raise SkyshiftError(f"{side}.{key}: there is no file {name}, nor a shipped configuration of that name")
        config, _ = parse(kind, ["--config", str(path), "--output", str(self.store)], None, f"{side}.{key}")
        launch = launch_state()
        with launch.main_process_first():
            if launch.is_main_process:
                make(config)


@dataclass
class SourceConfig(SideConfig):
    """The labelled side.

    Attributes:
        translated_by: Checkpoint of the translate stage (a folder, a run, or ``owner/name``) that the maps go through
            first; ``domains`` are then those that it makes. They are kept beside the store.
        trust_remote_code: Allow that checkpoint to name classes from outside this package.
        balanced: Draw the classes equally often.
    """

    translated_by: str = ""
    trust_remote_code: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.translated_by and not isinstance(self.store, str):
            raise SkyshiftError("source.translated_by translates one store; join several before")

    @property
    def _translated(self) -> bool:
        return bool(self.translated_by)

    def _translate(self) -> MapStore:
        return translated_store(str(self.store), self.translated_by, trust_remote_code=self.trust_remote_code)


@dataclass
class TargetConfig(SideConfig):
    """The unlabelled side.

    Attributes:
        labelled: Training objects whose labels methods that need some may see; 0 for all. Others see none.
    """

    labelled: int = 0


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


class Side:
    """One side, opened: store, parts, scalings and labels by view.

    Args:
        name: ``source`` or ``target``.
        config: Of the side.
        store: Opened.
        seed: Of the views on which scalings are fitted.
    """

    def __init__(self, name: str, config: SideConfig, store: MapStore, seed: int) -> None:
        self.name, self.config, self.store, self.seed = name, config, store, seed
        self.parts: Parts = {}

    @property
    def domains(self) -> list[str]:
        """Channels in order."""
        return self.config.domains

    @cached_property
    def views(self) -> NDArray[np.int64]:
        """All views of the catalogue, in its order."""
        return np.asarray(self.store.catalogue()["view"], np.int64)

    @cached_property
    def scalings(self) -> dict[str, Scaling]:
        """Of every domain, fitted on the training part."""
        return fit_scalings(self.store, self.domains, self.parts["train"], self.config.scaling, self.seed, varied=True)

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """What a checkpoint says of the side's maps."""
        return tuple(Channel.of(name, self.store.units[name], self.scalings[name]) for name in self.domains)

    def class_numbers(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(n,) class of each view, -1 for none, and the names of the classes.

        Raises:
            TaskError: The file of labels cannot be read.
        """
        if not self.config.labels:
            return np.asarray(self.store.catalogue()["label"], np.int64), tuple(self.store.labels)
        found = self._listed()
        names = tuple(self.store.labels) or tuple(sorted(set(found.values())))
        for value in found.values():
            if value not in names:
                raise TaskError(f"{self.config.labels}: {unknown('class', value, names)}")
        objects = [str(name) for name in self.store.catalogue()["name"]]
        return np.array([names.index(found[n]) if n in found else UNLABELLED for n in objects], np.int64), names

    def numbers(self) -> NDArray[np.float64]:
        """(n,) the number to regress of each view, NaN where there is none.

        Raises:
            TaskError: There is no file of them, or it cannot be read.
        """
        if not self.config.labels:
            raise TaskError(f"{self.name}.labels: a regression needs a CSV file with columns name and label")
        found = self._listed()
        try:
            values = {name: float(value) for name, value in found.items()}
        except ValueError as error:
            raise TaskError(f"{self.config.labels}: {error}; a regression needs numbers") from None
        return np.array([values.get(str(name), np.nan) for name in self.store.catalogue()["name"]])

    def _listed(self) -> dict[str, str]:
        try:
            with Path(self.config.labels).open(encoding="utf-8", newline="") as file:
                return {row["name"]: row["label"] for row in csv.DictReader(file)}
        except (OSError, KeyError, UnicodeDecodeError) as error:
            raise TaskError(
                f"{self.name}.labels {self.config.labels} cannot be read, or lacks the columns name and label "
                f"({error!r})"
            ) from None

    def of_views(self, values: NDArray[Any], views: NDArray[np.int64]) -> NDArray[Any]:
        """Entries of ``values`` (one a row of the catalogue) of some views."""
        order = np.argsort(self.views)
        return values[order[np.searchsorted(self.views, views, sorter=order)]]

    def limited(self, count: int) -> NDArray[np.int64]:
        """The training views of the first ``count`` objects of the split; all for 0."""
        views = self.parts["train"]
        if not count:
            return views
        groups = self.of_views(np.asarray(self.store.catalogue()["split_group"]), views)
        chosen = np.random.default_rng(self.seed).permutation(np.unique(groups))[:count]
        return views[np.isin(groups, chosen)]

    def dataset(self, views: NDArray[np.int64], augment: Augmentation | bool = False) -> MapDataset:
        """Samples of some views, scaled."""
        return MapDataset(self.store, self.domains, [], views, self.scalings, True, augment)

    def maps(self, views: NDArray[np.int64]) -> torch.Tensor:
        """(n, channels, height, width), scaled."""
        return torch.stack([sample["source"] for sample in self.dataset(views).__getitems__(views.tolist())])

    def names(self, views: Iterable[int]) -> str:
        """Of views, for messages."""
        listed = dict(zip(self.views.tolist(), self.store.catalogue()["name"].tolist(), strict=True))
        return ", ".join(f"view {view} ({listed[view]})" for view in views)


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
