"""What a translation is trained and judged on: a store, its domains, its split and its scalings."""

import math
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from skyshift import __version__
from skyshift.datasets.augmentation import Augmentation, Edges
from skyshift.datasets.build import ensure_store
from skyshift.datasets.catalogue import hash_json
from skyshift.datasets.joined import JoinedStores, open_stores
from skyshift.datasets.loading import MapDataset, Split, StepSampler, fit_scalings, highest_values, split_views
from skyshift.datasets.matched import MatchedStores, require_same_pixels
from skyshift.datasets.scaling import Scaling
from skyshift.datasets.store import MapStore
from skyshift.engine import Batch, LoaderPlan, TrainingConfig
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.any_to_any import PLANES, AnyToAnyDataset, chosen
from skyshift.translate.translation import Channel, Translation


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
        domains: Train one network between any of these, at least two, instead of from source to target (see
            any_to_any.py). Source and target are then the direction that samples and validation show and the run is
            evaluated in; where they are left at the default and not among the domains, the first to the last.
        target_store: Store, or stores, of the target domains, where they are in another than the source domains: the
            mock or real observation of a simulation. Paired, views are matched by galaxy, snapshot and rotation.
            Unpaired, this store is split by its own groups, and every training map of it may stand beside any source;
            of a mock of the very galaxies, take split.by: hash, which puts both on the same side.
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
    domains: list[str] = field(default_factory=list)
    target_store: list[str] | str = ""
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
        if self.domains:
            self._check_any_to_any()
        for name in self.scaling:
            if name not in self.used:
                raise SkyshiftError(f"data.scaling: {unknown('domain', name, self.used)}")
        if self.build and not isinstance(self.store, str):
            raise SkyshiftError("data.build builds one store; build each of several before, with datasets/build.py")
        _ = self.augmentation  # refuses what cannot be

    def _check_any_to_any(self) -> None:
        if len(set(self.domains)) != len(self.domains) or len(self.domains) < 2:
            raise SkyshiftError(f"data.domains names at least two domains, each once, not {', '.join(self.domains)}")
        if not self.paired or self.target_store:
            raise SkyshiftError(
                "data.domains learns from maps of the same view in one store; leave out data.target_store and "
                "data.paired: false, or name data.source and data.target instead"
            )
        default = (self.source, self.target) == (["gas"], ["hi"])
        if default and not {"gas", "hi"} <= set(self.domains):
            self.source, self.target = self.domains[:1], self.domains[-1:]
        chosen(self.domains, self.source, self.target)

    @property
    def used(self) -> list[str]:
        """All domains that are read."""
        return list(dict.fromkeys(self.domains or [*self.source, *self.target]))

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of source and target channels of the method."""
        return (PLANES * len(self.domains), 1) if self.domains else (len(self.source), len(self.target))

    @property
    def augmentation(self) -> Augmentation:
        """What is drawn for a training sample."""
        return Augmentation(self.augment, self.shift, self.shift_edges, self.intensity_jitter)

    def open(self) -> MapStore:
        """The store, built first where that was asked for; on several processes one builds and the others wait.

        Raises:
            StoreError: It is not there, not whole, or lacks a domain; or the target store does not fit.
        """
        if self.build:
            assert isinstance(self.store, str)
            ensure_store(self.store, self.build, self.source if self.target_store else self.used, "data.build")
        store = open_stores(self.store)
        store.require_complete()
        if not self.target_store:
            store.require_domains(self.used)
            return store
        other = self.open_target()
        if self.paired:
            return MatchedStores(store, other, self.source, self.target)
        store.require_domains(self.source)
        require_same_pixels(store, other)
        return store

    def open_target(self) -> MapStore:
        """The store of the target domains alone.

        Raises:
            StoreError: It is not there, not whole, or lacks a domain.
        """
        store = open_stores(self.target_store)
        store.require_complete()
        store.require_domains(self.target)
        return store


def fingerprint(store: MapStore) -> str:
    """SHA-256 over all that a store holds: the same store, or another."""
    return store.fingerprint


def store_paths(store: MapStore) -> str | list[str]:
    """Where a store is, or where each of several is, for :func:`skyshift.datasets.joined.open_stores`.

    Of matched stores, where the one of the sources is.
    """
    if isinstance(store, MatchedStores):
        return store_paths(store.stores[0])
    return [str(one.path) for one in store.stores] if isinstance(store, JoinedStores) else str(store.path)


def open_training(translation: Translation) -> MapStore:
    """The store, or the matched stores, that a checkpoint was trained on.

    Raises:
        StoreError: One is not there or lacks a domain.
        SkyshiftError: Sources and targets were of different galaxies, so that there is no true target of a source.
    """
    facts = translation.provenance
    store = open_stores(facts["store"])
    if "target_store" not in facts:
        return store
    if not facts["matched"]:
        raise SkyshiftError(
            f"this checkpoint learned without pairs, from {facts['store']} to {facts['target_store']}: no source there "
            "has a true target to be judged by. Name a store that holds both (--store), or train with --evaluation "
            "false"
        )
    names = ([channel.domain for channel in side] for side in (translation.source, translation.target))
    return MatchedStores(store, open_stores(facts["target_store"]), *names)


@dataclass
class TranslationData:
    """A store opened for training and evaluation, split by galaxy, with scalings fitted on the training part."""

    config: DataConfig
    store: MapStore
    seed: int = 0

    @cached_property
    def target_store(self) -> MapStore | None:
        """Of the targets, where it is another store whose views are not matched."""
        return self.config.open_target() if self.config.target_store and not self.config.paired else None

    @cached_property
    def target_views(self) -> dict[str, NDArray[Any]]:
        """Of the target store, split by its own groups."""
        return {} if self.target_store is None else split_views(self.target_store.catalogue(), self.config.split)

    @property
    def has_pairs(self) -> bool:
        """Whether every source has a true target: without them nothing can be validated or evaluated."""
        return self.target_store is None

    @cached_property
    def views(self) -> dict[str, NDArray[Any]]:
        """``train``, ``validation`` and ``test`` to view numbers."""
        return split_views(self.store.catalogue(), self.config.split)

    @cached_property
    def scalings(self) -> dict[str, Scaling]:
        """Of every domain of one store; of the source domains, where the targets are of another."""
        domains = self.config.used if self.target_store is None else self.config.source
        return fit_scalings(self.store, domains, self.views["train"], self.config.scaling, self.seed, varied=True)

    @cached_property
    def target_scalings(self) -> dict[str, Scaling]:
        """Of the target domains, fitted on the training part of the store that holds them."""
        if self.target_store is None:
            return {name: self.scalings[name] for name in self.config.target}
        views = self.target_views["train"]
        domains, kinds = self.config.target, self.config.scaling
        return fit_scalings(self.target_store, domains, views, kinds, self.seed, varied=True)

    @cached_property
    def translation(self) -> Translation:
        """What a checkpoint of this run says of itself."""
        catalogue = self.store.catalogue()
        scale = catalogue["side"] / self.store.pixels

        target_store = self.target_store or self.store
        highest = {
            **highest_values(self.store, self.config.domains, self.views["train"], self.seed),
            **highest_values(target_store, self.config.target, (self.target_views or self.views)["train"], self.seed),
        }

        def channels(domains: Iterable[str], store: MapStore, scalings: dict[str, Scaling]) -> tuple[Channel, ...]:
            known = ((name, store.units[name], scalings[name], highest.get(name, math.inf)) for name in domains)
            return tuple(Channel.of(*facts) for facts in known)

        return Translation(
            channels(self.config.source, self.store, self.scalings),
            channels(self.config.target, target_store, self.target_scalings),
            (float(scale.min()), float(scale.max())),
            {
                "skyshift": __version__,
                "store": store_paths(self.store),
                "fingerprint": fingerprint(self.store),
                "pixels": self.store.pixels,
                "split": asdict(self.config.split),
                "seed": self.seed,
                **self._of_target_store(),
            },
            channels(self.config.domains, self.store, self.scalings),
        )

    def _of_target_store(self) -> dict[str, Any]:
        """What a checkpoint says of a second store; ``fingerprint`` is then of both together."""
        if not self.config.target_store:
            return {}
        both = self.store.stores if isinstance(self.store, MatchedStores) else (self.store, self.target_store)
        source, target = both
        assert target is not None
        found = [fingerprint(source), fingerprint(target)]
        return {
            "fingerprint": hash_json(found),
            "fingerprints": {"source": found[0], "target": found[1]},
            "target_store": store_paths(target),
            "matched": self.has_pairs,
        }

    def dataset(self, part: str, *, augment: bool = False) -> MapDataset | AnyToAnyDataset:
        """Samples of one part, changed as the configuration says where ``augment`` is set."""
        made = MapDataset(
            self.store,
            self.config.domains or self.config.source,
            [] if self.config.domains else self.config.target,
            self.views[part],
            self.scalings,
            self.config.paired,
            self.config.augmentation if augment else False,
            self.target_store,
            self.target_views.get(part),
            None if self.target_store is None else self.target_scalings,
        )
        return AnyToAnyDataset(made) if self.config.domains else made

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
        """The views of a batch, and their galaxies; unpaired, also those of its targets."""
        said = _named(self.store, batch["view"].tolist())
        if "target_view" in batch:
            said += f"; targets: {_named(self.target_store or self.store, batch['target_view'].tolist())}"
        return said


def _named(store: MapStore, views: Iterable[int]) -> str:
    catalogue = store.catalogue()
    name = dict(zip(catalogue["view"].tolist(), catalogue["name"].tolist(), strict=True))
    return ", ".join(f"view {view} ({name[view]})" for view in views)


def one_thread(worker: int) -> None:
    """Make a worker process one of a single thread, which a signal to the whole group does not end.

    Args:
        worker: Its number.
    """
    torch.set_num_threads(1)
    zarr.config.set({"threading.max_workers": 1})
    # Ctrl-C reaches the whole process group: the loop ends its step and saves, and needs its workers for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
