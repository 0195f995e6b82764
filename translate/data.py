"""What a translation is trained and judged on: a store, its domains, its split and its scalings."""

import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from skyshift import __version__
from skyshift.command import parse, shipped_config
from skyshift.datasets.augmentation import Augmentation, Edges
from skyshift.datasets.build import build_store
from skyshift.datasets.joined import JoinedStores, open_stores
from skyshift.datasets.loading import MapDataset, Split, StepSampler, fit_scalings, split_views
from skyshift.datasets.scaling import Scaling
from skyshift.datasets.shards import BuildConfig
from skyshift.datasets.sources import GalaxySource
from skyshift.datasets.store import MapStore
from skyshift.engine import Batch, LoaderPlan, TrainingConfig, launch_state
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.translator import Channel, Translation


@dataclass
class DataConfig:
    """Data of a translation.

    Attributes:
        store: Folder of the store, or a list of stores that are trained on together (the same domains on the same
            grid; a galaxy that several hold is on one side of the split).
        build: Configuration from which the store is built where it is not there or not whole: a file, or the name of
            one that ships with the package (``datasets/synthetic.yaml``); empty to build nothing.
        source: Domains to translate from.
        target: Domains to translate to.
        split: Shares of the galaxies.
        scaling: Domain to linear, asinh, log or power, where the domain's own default is not wanted.
        paired: Whether source and target of a sample show the same view.
        augment: Turn and flip training samples by the 8 symmetries of the square.
        shift: Move training samples by up to so many pixels, mass conserved, source and target alike; 0 for none. It
            smooths by a pixel (see datasets/augmentation.py).
        shift_edges: What enters at the edges: zero (nothing is there) or periodic (a box).
        intensity_jitter: Multiply training samples by up to so many dex; 0 for none. The maps are then no longer in
            their units.
    """

    store: list[str] | str = "data/synthetic/maps.zarr"
    build: str = ""
    source: list[str] = field(default_factory=lambda: ["gas"])
    target: list[str] = field(default_factory=lambda: ["hi"])
    split: Split = field(default_factory=Split)
    scaling: dict[str, str] = field(default_factory=dict)
    paired: bool = True
    augment: bool = True
    shift: float = 0.0
    shift_edges: Edges = "zero"
    intensity_jitter: float = 0.0

    def __post_init__(self) -> None:
        if not self.source or not self.target:
            raise SkyshiftError("data.source and data.target name at least one domain each")
        for name in self.scaling:
            if name not in [*self.source, *self.target]:
                raise SkyshiftError(f"data.scaling: {unknown('domain', name, [*self.source, *self.target])}")
        if self.build and not isinstance(self.store, str):
            raise SkyshiftError("data.build builds one store; build each of several before, with datasets/build.py")
        _ = self.augmentation  # refuses what cannot be

    @property
    def augmentation(self) -> Augmentation:
        """What is drawn for a training sample."""
        return Augmentation(self.augment, self.shift, self.shift_edges, self.intensity_jitter)

    def open(self) -> MapStore:
        """The store, built first where that was asked for; on several processes one builds and the others wait.

        Raises:
            StoreError: It is not there, not whole, or lacks a domain.
        """
        if self.build:
            with launch_state().main_process_first():
                self._build()
        store = open_stores(self.store)
        store.require_complete()
        store.require_domains([*self.source, *self.target])
        return store

    def _build(self) -> None:
        assert isinstance(self.store, str)
        try:
            if MapStore(self.store).complete:
                return
        except SkyshiftError:
            pass
        path = Path(self.build) if Path(self.build).is_file() else shipped_config(self.build)
        if not path.is_file():
            raise SkyshiftError(f"data.build: there is no file {self.build}, nor a shipped configuration of that name")
        arguments = ["--config", str(path), "--store", self.store]
        config, _ = parse(BuildConfig, arguments, None, "data.build", (GalaxySource,))
        for name in [*self.source, *self.target]:
            if name not in config.domains:
                raise SkyshiftError(f"{self.build} builds no such maps: {unknown('domain', name, config.domains)}")
        if launch_state().is_main_process:
            print(f"{self.store} is not there or not whole: building it from {path}", flush=True)
        build_store(config)


def fingerprint(store: MapStore) -> str:
    """SHA-256 over all that a store holds: the same store, or another."""
    return store.fingerprint


def store_paths(store: MapStore) -> str | list[str]:
    """Where a store is, or where each of several is, for :func:`skyshift.datasets.joined.open_stores`."""
    return [str(one.path) for one in store.stores] if isinstance(store, JoinedStores) else str(store.path)


@dataclass
class TranslationData:
    """A store opened for training and evaluation, split by galaxy, with scalings fitted on the training part."""

    config: DataConfig
    store: MapStore
    seed: int = 0

    @cached_property
    def views(self) -> dict[str, NDArray[Any]]:
        """``train``, ``validation`` and ``test`` to view numbers."""
        return split_views(self.store.catalogue(), self.config.split)

    @cached_property
    def scalings(self) -> dict[str, Scaling]:
        """Of every domain."""
        domains = list(dict.fromkeys([*self.config.source, *self.config.target]))
        return fit_scalings(self.store, domains, self.views["train"], self.config.scaling, self.seed)

    @cached_property
    def translation(self) -> Translation:
        """What a checkpoint of this run says of itself."""
        catalogue = self.store.catalogue()
        scale = catalogue["side"] / self.store.pixels

        def channels(domains: Iterable[str]) -> tuple[Channel, ...]:
            return tuple(Channel.of(name, self.store.units[name], self.scalings[name]) for name in domains)

        return Translation(
            channels(self.config.source),
            channels(self.config.target),
            (float(scale.min()), float(scale.max())),
            {
                "skyshift": __version__,
                "store": store_paths(self.store),
                "fingerprint": fingerprint(self.store),
                "pixels": self.store.pixels,
                "split": asdict(self.config.split),
                "seed": self.seed,
            },
        )

    def dataset(self, part: str, *, augment: bool = False) -> MapDataset:
        """Samples of one part, changed as the configuration says where ``augment`` is set."""
        return MapDataset(
            self.store,
            self.config.source,
            self.config.target,
            self.views[part],
            self.scalings,
            self.config.paired,
            self.config.augmentation if augment else False,
        )

    def loader(self, training: TrainingConfig, plan: LoaderPlan) -> Iterable[Batch]:
        """The micro-batches of one process."""
        sampler = StepSampler(
            self.views["train"],
            training.batch_size,
            plan.last,
            first=plan.first,
            seed=training.seed,
            process=plan.process,
            processes=plan.processes,
        )
        return DataLoader(
            self.dataset("train", augment=True),
            batch_sampler=sampler,
            num_workers=training.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_thread if training.workers else None,
            persistent_workers=training.workers > 0,
        )

    def identify(self, batch: Batch) -> str:
        """The views of a batch, and their galaxies."""
        catalogue = self.store.catalogue()
        name = dict(zip(catalogue["view"].tolist(), catalogue["name"].tolist(), strict=True))
        return ", ".join(f"view {view} ({name[view]})" for view in batch["view"].tolist())


def one_thread(worker: int) -> None:
    """Make a worker process one of a single thread, which a signal to the whole group does not end.

    Args:
        worker: Its number.
    """
    torch.set_num_threads(1)
    zarr.config.set({"threading.max_workers": 1})
    # Ctrl-C reaches the whole process group: the loop ends its step and saves, and needs its workers for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
