"""Torch datasets over a map store: paired and unpaired, scaled, split by galaxy, exactly repeatable.

A split is by ``split_group``: all rotations of one galaxy, and all regions that share space, fall on one side. A pair
is a galaxy in one rotation seen in two domains, never two rows that happen to stand beside each other.

Which views make batch number s, and how each is changed, are functions of the seed and s alone. Nothing about the
order is state: a run that resumes at step s, or splits the batch over processes, sees what it would have seen.

Memory: maps that fit into :data:`MEMORY_LIMIT` are read once and kept. Of a larger store, each batch reads its own
maps, one call a domain, and nothing but the catalogue grows with the store.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from skyshift.datasets.augmentation import Augmentation, Change, shifted, turned
from skyshift.datasets.domains import DOMAINS
from skyshift.datasets.scaling import Scaling, fit_scaling
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

PARTS = ("train", "validation", "test")

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of maps that a dataset holds in memory; beyond it every map is read from the store when it is wanted."""

CHUNK = 16 * 1024**2
"""Bytes of maps that are read and scaled at once when a dataset is filled."""

FIT_VIEWS = 2000
"""Training views on which a scaling is fitted, at the most."""

FIT_PIXELS = 2**25
"""Pixels on which a scaling is fitted, at the most: maps of more than 128² pixels are fitted on fewer views."""

By = Literal["order", "hash"]


@dataclass
class Split:
    """Shares of the galaxies.

    Attributes:
        train: Share to train on.
        validation: Share to choose on.
        test: Share that is seen only by the evaluation.
        seed: Of the shuffle.
        by: ``order`` shuffles the galaxies of the store: shares are as asked for, but galaxies that are added to the
            store move others to another side. ``hash`` places each galaxy by its number and the seed alone: the same
            galaxy is on the same side in every store, whatever else is in it; shares are as asked for on average.
    """

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    by: By = "order"

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise SkyshiftError(unknown("kind of split", self.by, get_args(By)))
        shares = [self.train, self.validation, self.test]
        if min(shares) < 0 or not np.isclose(sum(shares), 1.0):
            raise SkyshiftError(f"the shares of a split are positive and sum to 1, not {shares}")


def split_views(catalogue: Table, split: Split) -> dict[str, NDArray[np.int64]]:
    """Divide the views of a store by galaxy.

    Args:
        catalogue: Of a store.
        split: The shares.

    Returns:
        ``train``, ``validation`` and ``test`` to sorted view numbers.

    Raises:
        SkyshiftError: There are too few groups for a part that is not to be empty.
    """
    groups, member = np.unique(np.asarray(catalogue["split_group"]), return_inverse=True)
    size = np.bincount(member, minlength=len(groups))
    if split.by == "hash":
        key = np.full(len(groups), np.iinfo(np.int64).max)
        np.minimum.at(key, member, np.asarray(catalogue["galaxy"], np.int64))
        side = _hashed_sides(key, split)
    else:
        side = _ordered_sides(size, split)
    held = np.bincount(side, weights=size, minlength=len(PARTS))
    for part, got in zip(PARTS, held, strict=True):
        wanted = getattr(split, part)
        if wanted > 0 and not got:
            cure = ": take more galaxies, another seed, or by: order" if split.by == "hash" else ""
            raise SkyshiftError(f"{len(groups)} galaxies are too few for a {part} part of {wanted:g}{cure}")
    views = np.asarray(catalogue["view"], np.int64)
    return {part: np.sort(views[side[member] == i]) for i, part in enumerate(PARTS)}


def _ordered_sides(size: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Groups in random order, each to the part that is furthest below its share of the views.

    So groups of very different size still give shares close to those asked for.
    """
    total, share = int(size.sum()), [float(getattr(split, part)) for part in PARTS]
    held = [0.0] * len(PARTS)
    side = np.empty(len(size), np.int64)
    # Large groups first: a small one can still fill a gap, a large one cannot. Equal sizes stand in random order.
    shuffled = np.random.default_rng(split.seed).permutation(len(size))
    order = shuffled[np.argsort(-size[shuffled], kind="stable")]
    for left, group in zip(range(len(size), 0, -1), order.tolist(), strict=True):
        wanted = [i for i, part in enumerate(share) if part > 0]
        empty = [i for i in wanted if held[i] == 0]
        if left <= len(empty):
            wanted = empty  # the last groups go where there is nothing yet
        side[group] = max(wanted, key=lambda i: share[i] - held[i] / total)
        held[side[group]] += int(size[group])
    return side


def _hashed_sides(key: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Each group by a uniform number in [0, 1) that its key and the seed alone decide."""
    digests = (hashlib.sha256(f"{split.seed}:{number}".encode()).digest() for number in key.tolist())
    uniform = np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])
    bounds = np.cumsum([split.train, split.validation])
    side = np.searchsorted(bounds, uniform, side="right")
    last = 2 if split.test else 1 if split.validation else 0
    return np.minimum(side, last)  # the shares sum to 1 but for rounding


def fit_scalings(
    store: MapStore,
    domains: Sequence[str],
    views: NDArray[np.int64],
    kinds: Mapping[str, str],
    seed: int = 0,
    *,
    varied: bool = False,
) -> dict[str, Scaling]:
    """Fit a scaling for each domain on training maps.

    Args:
        store: Of the maps.
        domains: Which.
        views: The training views; at most :data:`FIT_VIEWS` of them and :data:`FIT_PIXELS` pixels, chosen at random,
            are read.
        kinds: Domain to the kind of scaling; the domain's own default where it is not named.
        seed: Of the choice.
        varied: Refuse a domain that has one value alone in all of these maps.

    Raises:
        SkyshiftError: A map holds what is not finite, or is refused.
    """
    views = _fit_views(store, views, seed)
    default = {name: DOMAINS[name].scaling if name in DOMAINS else "asinh" for name in domains}
    fitted = {}
    for name in domains:
        maps = store.maps(name, views)
        _require_finite(store, name, views, maps)
        if varied:
            _require_varied(store, name, maps)
        fitted[name] = fit_scaling(kinds.get(name, default[name]), maps)
    return fitted


def _fit_views(store: MapStore, views: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Those of the training views that are read for a fit."""
    most = max(1, min(FIT_VIEWS, FIT_PIXELS // store.pixels**2))
    if len(views) <= most:
        return views
    return np.sort(np.random.default_rng(seed).choice(views, most, replace=False))


def highest_values(
    store: MapStore, domains: Sequence[str], views: NDArray[np.int64], seed: int = 0
) -> dict[str, float]:
    """The highest value of each domain, in its unit, in the maps that :func:`fit_scalings` reads."""
    views = _fit_views(store, views, seed)
    return {name: float(store.maps(name, views).max()) for name in domains}


def _require_finite(store: MapStore, domain: str, views: NDArray[np.int64], maps: NDArray[np.float32]) -> None:
    wrong = ~np.isfinite(maps.sum(axis=(1, 2), dtype=np.float64))  # a sum needs no memory of the size of the maps
    if wrong.any():
        raise SkyshiftError(
            f"{store.path}: the map of {domain} in view {views[wrong][0]} holds values that are not finite (so do "
            f"{int(wrong.sum())} of {len(views)} training maps); look at it, and build the store anew"
        )


def _require_varied(store: MapStore, domain: str, maps: NDArray[np.float32]) -> None:
    if len(maps) and maps.min() == maps.max():
        raise SkyshiftError(
            f"{store.path}: every pixel of {domain} is {maps.min():.6g} {store.units[domain]} in all {len(maps)} "
            f"training maps that were looked at; there is nothing to learn from it. Take another domain, "
            f"or look why {domain} is empty and build the store anew"
        )


class _Reader:
    """Maps of some views, from memory where they fit and from the store where they do not.

    They are scaled, or physical where they are to be changed before they are scaled.
    """

    def __init__(
        self,
        store: MapStore,
        domains: Sequence[str],
        views: NDArray[np.int64],
        scalings: Mapping[str, Scaling],
        *,
        physical: bool,
        hold: bool,
    ) -> None:
        self.store, self.domains, self.scalings, self.physical = store, tuple(domains), scalings, physical
        self._order = np.argsort(views, kind="stable")
        self._views = views[self._order]
        self._held: NDArray[np.float32] | None = self._fill(views) if hold else None

    def _fill(self, views: NDArray[np.int64]) -> NDArray[np.float32]:
        pixels = self.store.pixels
        held = np.empty((len(views), len(self.domains), pixels, pixels), np.float32)
        step = max(1, CHUNK // (4 * max(1, len(self.domains)) * pixels**2))
        for start in range(0, len(views), step):
            held[start : start + step] = self._read(views[start : start + step])
        return held

    def _read(self, views: NDArray[np.int64]) -> NDArray[np.float32]:
        if not self.domains:
            return np.empty((len(views), 0, self.store.pixels, self.store.pixels), np.float32)
        maps = [self.store.maps(name, views) for name in self.domains]
        if not self.physical:
            maps = [self._scaled(name, values) for name, values in zip(self.domains, maps, strict=True)]
        return np.stack(maps, axis=1)

    def _scaled(self, name: str, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.scalings[name].forward(maps), np.float32)

    def scaled(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Physical maps (channels, height, width) as the network sees them."""
        scaled = [self._scaled(name, maps[i]) for i, name in enumerate(self.domains)]
        return np.stack(scaled) if scaled else maps

    def rows(self, views: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the views of this reader these stand.

        Raises:
            SkyshiftError: A view is not one of this reader's.
        """
        wanted = np.asarray(views, np.int64)
        place = np.minimum(np.searchsorted(self._views, wanted), len(self._views) - 1)
        known = self._views[place] == wanted
        if not known.all():
            raise SkyshiftError(f"{self.store.path}: view {wanted[~known][0]} is not among those of this data set")
        return self._order[place]

    def __call__(self, views: Sequence[int]) -> NDArray[np.float32]:
        """(n, channels, height, width)."""
        rows = self.rows(views)
        return self._read(np.asarray(views, np.int64)) if self._held is None else self._held[rows]


@dataclass(frozen=True)
class Draw:
    """One sample that a batch asks for: which view, and the seed of its augmentation and partner."""

    view: int
    seed: tuple[int, ...] = ()


@dataclass
class MapDataset(Dataset[dict[str, Any]]):
    """Samples of source and target maps, by :class:`Draw` or by view number.

    A sample holds ``source`` and ``target`` (channels, height, width) float32, scaled, and ``view``; unpaired, also
    ``target_view``, drawn from another split group, or from another store.

    Attributes:
        store: Of the maps.
        source: Domains of the source channels.
        target: Domains of the target channels; there may be none.
        views: Views to take.
        scalings: Of every domain.
        paired: Source and target show the same view; else the target shows another galaxy.
        augment: How each sample is changed, drawn from its seed; ``True`` for the 8 symmetries of the square.
        target_store: Unpaired, of the target maps, where that is another store.
        target_views: The views of that store to take.
        target_scalings: Of its domains, which may be called like domains of the first store.
    """

    store: MapStore
    source: Sequence[str]
    target: Sequence[str]
    views: NDArray[np.int64]
    scalings: Mapping[str, Scaling]
    paired: bool = True
    augment: Augmentation | bool = False
    target_store: MapStore | None = None
    target_views: NDArray[np.int64] | None = None
    target_scalings: Mapping[str, Scaling] | None = None

    def __post_init__(self) -> None:
        others = self.store if self.target_store is None else self.target_store
        other_views = self.views if self.target_views is None else self.target_views
        self.store.require_domains(self.source)
        others.require_domains(self.target)
        for store, views in ((self.store, self.views), (others, other_views)):
            if not len(views):
                raise SkyshiftError(f"{store.path}: there are no views to take")
        chosen = self.augment
        self._augment = chosen if isinstance(chosen, Augmentation) else Augmentation(symmetries=chosen)
        channels = len(self.views) * len(self.source) + len(other_views) * len(self.target)
        hold = 4 * channels * self.store.pixels**2 <= MEMORY_LIMIT
        self._source, self._target = (
            _Reader(store, names, views, scalings, physical=self._augment.physical, hold=hold)
            for store, names, views, scalings in (
                (self.store, self.source, self.views, self.scalings),
                (others, self.target, other_views, self.target_scalings or self.scalings),
            )
        )
        if self.target_store is not None and self.paired:
            raise SkyshiftError("a second store gives unpaired targets; pairs of two stores are matched before")
        if not self.paired and self.target_store is None:
            self._group = self._groups()
            if len(np.unique(self._group)) < 2:
                raise SkyshiftError("unpaired samples need at least two galaxies")

    def _groups(self) -> NDArray[np.int64]:
        """(n,) split group of each of ``views``."""
        catalogue = self.store.catalogue()
        listed = np.asarray(catalogue["view"], np.int64)
        order = np.argsort(listed)
        rows = order[np.searchsorted(listed, self.views, sorter=order)]
        return np.asarray(catalogue["split_group"], np.int64)[rows]

    def __len__(self) -> int:
        return len(self.views)

    def _partner(self, view: int, generator: np.random.Generator) -> int:
        if self.target_views is not None:
            return int(self.target_views[int(generator.integers(len(self.target_views)))])
        group = self._group[self._source.rows([view])[0]]
        while True:
            other = int(generator.integers(len(self.views)))
            if self._group[other] != group:
                return int(self.views[other])

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[dict[str, Any]]:
        """The samples of a batch; its maps are read together, one call a domain.

        Args:
            draws: Each by its draw, or by its view number.
        """
        asked = [draw if isinstance(draw, Draw) else Draw(int(draw), (0, int(draw))) for draw in draws]
        generators = [np.random.default_rng(draw.seed) for draw in asked]
        views = [draw.view for draw in asked]
        if self.paired:
            targets = views
        else:
            targets = [self._partner(view, generator) for view, generator in zip(views, generators, strict=True)]
        changes = [self._augment.draw(generator, 1 if self.paired else 2) for generator in generators]
        sources = self._changed(self._source, views, [change[0] for change in changes])
        others = self._changed(self._target, targets, [change[-1] for change in changes])
        samples: list[dict[str, Any]] = [
            {"source": source, "target": target, "view": view}
            for source, target, view in zip(sources, others, views, strict=True)
        ]
        if not self.paired:
            for sample, target_view in zip(samples, targets, strict=True):
                sample["target_view"] = target_view
        return samples

    def _changed(self, reader: _Reader, views: Sequence[int], changes: Sequence[Change]) -> list[torch.Tensor]:
        """Read, then shift and multiply what is physical, then scale, then turn."""
        result = []
        for maps, change in zip(reader(views), changes, strict=True):
            if reader.physical:
                maps = shifted(maps, change.shift, self._augment.edges) * np.float32(change.factor)
                maps = reader.scaled(maps)
            result.append(torch.from_numpy(np.ascontiguousarray(turned(maps, change.symmetry))))
        return result


class StepSampler(Sampler[list[Draw]]):
    """The views of each micro-batch of one process, from ``first`` on, without end of epoch.

    Views are shuffled anew each epoch; batches run on across epochs, so none is short. Batch number s of ``processes``
    processes with ``batch_size`` views each holds exactly the views of batch s of one process with
    ``processes × batch_size`` views.

    Args:
        views: All views.
        batch_size: Views of one process in one micro-batch.
        steps: Number of the micro-batch at which to stop.
        first: Number of the micro-batch to begin with.
        seed: Of the shuffles and augmentations.
        process: Rank of this process.
        processes: World size.
    """

    def __init__(
        self,
        views: NDArray[np.int64],
        batch_size: int,
        steps: int,
        *,
        first: int = 0,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.views, self.batch_size, self.steps, self.first = views, batch_size, steps, first
        self.seed, self.process, self.processes = seed, process, processes

    def __len__(self) -> int:
        return max(0, self.steps - self.first)

    def __iter__(self) -> Iterator[list[Draw]]:
        count = len(self.views)
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.first, self.steps):
            start = (step * self.processes + self.process) * self.batch_size
            batch = []
            for position in range(start, start + self.batch_size):
                if position // count != epoch:
                    epoch = position // count
                    order = np.random.default_rng([self.seed, epoch]).permutation(count)
                batch.append(Draw(int(self.views[order[position % count]]), (self.seed, 1, position)))
            yield batch
