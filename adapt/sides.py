"""One side of an adaptation, opened: a store that is there or is made, its parts, scalings and labels."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from skyshift.adapt.splits import Parts
from skyshift.adapt.task import UNLABELLED, TaskError
from skyshift.adapt.translated import translated_store
from skyshift.command import parse, shipped_config
from skyshift.datasets.augmentation import Augmentation
from skyshift.datasets.build import ensure_store
from skyshift.datasets.collect import CollectConfig, collect
from skyshift.datasets.joined import open_stores
from skyshift.datasets.loading import MapDataset, fit_scalings
from skyshift.datasets.observe import observe_store
from skyshift.datasets.observe_config import ObserveConfig
from skyshift.datasets.scaling import Scaling
from skyshift.datasets.store import MapStore
from skyshift.engine import launch_state
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.translation import Channel

Made = TypeVar("Made")


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
            ensure_store(self.store, self.build, self._built, f"{side}.build")
        if self.observe:
            self._make(side, "observe", ObserveConfig, observe_store)
        if self.collect:
            self._make(side, "collect", CollectConfig, collect)
        store = self._opened()
        store.require_complete()
        store.require_domains(self.domains)
        return store

    @property
    def _built(self) -> list[str]:
        """Domains that a build must make."""
        return self.domains

    def _opened(self) -> MapStore:
        return open_stores(self.store)

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
    def _built(self) -> list[str]:
        return [] if self.translated_by else self.domains

    def _opened(self) -> MapStore:
        if not self.translated_by:
            return super()._opened()
        return translated_store(str(self.store), self.translated_by, trust_remote_code=self.trust_remote_code)


@dataclass
class TargetConfig(SideConfig):
    """The unlabelled side.

    Attributes:
        labelled: Training objects whose labels methods that need some may see; 0 for all. Others see none.
    """

    labelled: int = 0


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
