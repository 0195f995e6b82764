"""Torch datasets over a map store: paired and unpaired, scaled, split by galaxy, exactly repeatable.

A split is by ``split_group``: all rotations of one galaxy, and all regions that share space, fall on one side. A pair
is a galaxy in one rotation seen in two domains, never two rows that happen to stand beside each other.

Which views make batch number s, and how each is turned, are functions of the seed and s alone. Nothing about the
order is state: a run that resumes at step s, or splits the batch over processes, sees what it would have seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from skyshift.datasets.domains import DOMAINS
from skyshift.datasets.scaling import Scaling, fit_scaling
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError

PARTS = ("train", "validation", "test")

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of maps that are held in memory; beyond it every map is read from the store when it is wanted."""

FIT_VIEWS = 2000
"""Training views on which a scaling is fitted, at the most."""


@dataclass
class Split:
    """Shares of the galaxies.

    Attributes:
        train: Share to train on.
        validation: Share to choose on.
        test: Share that is seen only by the evaluation.
        seed: Of the shuffle.
    """

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        shares = [self.train, self.validation, self.test]
        if min(shares) < 0 or not np.isclose(sum(shares), 1.0):
            raise SkyshiftError(f"the shares of a split are positive and sum to 1, not {shares}")


def split_views(catalogue: Table, split: Split) -> dict[str, NDArray[np.int64]]:
    """Divide the views of a store by galaxy.

    Groups are taken in random order, each to the part that is furthest below its share of the views, so that groups
    of very different size still give shares close to those asked for.

    Args:
        catalogue: Of a store.
        split: The shares.

    Returns:
        ``train``, ``validation`` and ``test`` to sorted view numbers.

    Raises:
        SkyshiftError: There are too few groups for a part that is not to be empty.
    """
    groups, member = np.unique(np.asarray(catalogue["split_group"]), return_inverse=True)
    size = np.bincount(member)
    share = np.array([getattr(split, part) for part in PARTS])
    held = np.zeros(len(PARTS))
    side = np.empty(len(groups), np.int64)
    # Large groups first: a small one can still fill a gap, a large one cannot. Equal sizes stand in random order.
    shuffled = np.random.default_rng(split.seed).permutation(len(groups))
    for left, group in zip(
        range(len(groups), 0, -1), shuffled[np.argsort(-size[shuffled], kind="stable")], strict=True
    ):
        empty = (share > 0) & (held == 0)
        open_parts = empty if left <= empty.sum() else share > 0  # the last groups go where there is nothing yet
        side[group] = int(np.argmax(np.where(open_parts, share - held / len(catalogue), -np.inf)))
        held[side[group]] += size[group]
    for part, wanted, got in zip(PARTS, share, held, strict=True):
        if wanted > 0 and not got:
            raise SkyshiftError(f"{len(groups)} galaxies are too few for a {part} part of {wanted:g}")
    views = np.asarray(catalogue["view"], np.int64)
    return {part: np.sort(views[side[member] == i]) for i, part in enumerate(PARTS)}


def fit_scalings(
    store: MapStore, domains: Sequence[str], views: NDArray[np.int64], kinds: Mapping[str, str], seed: int = 0
) -> dict[str, Scaling]:
    """Fit a scaling for each domain on training maps.

    Args:
        store: Of the maps.
        domains: Which.
        views: The training views; at most :data:`FIT_VIEWS` of them, chosen at random, are read.
        kinds: Domain to the kind of scaling; the domain's own default where it is not named.
        seed: Of the choice.
    """
    if len(views) > FIT_VIEWS:
        views = np.sort(np.random.default_rng(seed).choice(views, FIT_VIEWS, replace=False))
    default = {name: DOMAINS[name].scaling if name in DOMAINS else "asinh" for name in domains}
    return {name: fit_scaling(kinds.get(name, default[name]), store.maps(name, views)) for name in domains}


class _Reader:
    """Maps of some views, scaled, from memory where they fit and from the store where they do not."""

    def __init__(
        self,
        store: MapStore,
        domains: Sequence[str],
        views: NDArray[np.int64],
        scalings: Mapping[str, Scaling],
    ) -> None:
        self.store, self.domains, self.scalings = store, tuple(domains), scalings
        self._row = {int(view): row for row, view in enumerate(views)}
        size = 4 * len(views) * len(self.domains) * store.pixels**2
        self._held: dict[str, NDArray[np.float32]] | None = None
        if size <= MEMORY_LIMIT:
            self._held = {name: self._scale(name, store.maps(name, views)) for name in self.domains}

    def _scale(self, name: str, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.scalings[name].forward(maps), np.float32)

    def __call__(self, view: int) -> NDArray[np.float32]:
        """(channels, height, width), scaled."""
        if self._held is not None:
            return np.stack([self._held[name][self._row[view]] for name in self.domains])
        return np.stack([self._scale(name, self.store.maps(name, [view]))[0] for name in self.domains])


@dataclass(frozen=True)
class Draw:
    """One sample that a batch asks for: which view, and the seed of its augmentation and partner."""

    view: int
    seed: tuple[int, ...] = ()


def _symmetry(maps: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    """One of the 8 symmetries of the square, for (channels, height, width)."""
    turned = np.rot90(maps, index % 4, axes=(1, 2))
    return turned[:, :, ::-1] if index >= 4 else turned


@dataclass
class MapDataset(Dataset[dict[str, Any]]):
    """Samples of source and target maps, by :class:`Draw` or by view number.

    A sample holds ``source`` and ``target`` (channels, height, width) float32, scaled, and ``view``; unpaired, also
    ``target_view``, drawn from another split group.

    Attributes:
        store: Of the maps.
        source: Domains of the source channels.
        target: Domains of the target channels.
        views: Views to take.
        scalings: Of every domain.
        paired: Source and target show the same view; else the target shows another galaxy.
        augment: Turn and flip each sample by one of the 8 symmetries of the square, drawn from its seed.
    """

    store: MapStore
    source: Sequence[str]
    target: Sequence[str]
    views: NDArray[np.int64]
    scalings: Mapping[str, Scaling]
    paired: bool = True
    augment: bool = False
    _groups: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.store.require_domains([*self.source, *self.target])
        if not len(self.views):
            raise SkyshiftError(f"{self.store.path}: there are no views to take")
        self._source = _Reader(self.store, self.source, self.views, self.scalings)
        self._target = _Reader(self.store, self.target, self.views, self.scalings)
        if not self.paired:
            catalogue = self.store.catalogue()
            self._groups = dict(zip(catalogue["view"].tolist(), catalogue["split_group"].tolist(), strict=True))
            if len({self._groups[int(view)] for view in self.views}) < 2:
                raise SkyshiftError("unpaired samples need at least two galaxies")

    def __len__(self) -> int:
        return len(self.views)

    def _partner(self, view: int, generator: np.random.Generator) -> int:
        while True:
            other = int(generator.choice(self.views))
            if self._groups[other] != self._groups[view]:
                return other

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        if not isinstance(draw, Draw):
            draw = Draw(int(draw), (0, int(draw)))
        generator = np.random.default_rng(draw.seed)
        target_view = draw.view if self.paired else self._partner(draw.view, generator)
        source, target = self._source(draw.view), self._target(target_view)
        if self.augment:
            first = int(generator.integers(8))
            second = first if self.paired else int(generator.integers(8))
            source, target = _symmetry(source, first), _symmetry(target, second)
        sample = {
            "source": torch.from_numpy(np.ascontiguousarray(source)),
            "target": torch.from_numpy(np.ascontiguousarray(target)),
            "view": draw.view,
        }
        return sample if self.paired else {**sample, "target_view": target_view}


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
