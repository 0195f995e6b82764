"""Splits by object over both sides at once: an object that both surveys see is on one side of the split in both.

The source is split first, within each class, so that every part holds the classes in the same shares. An object of the
target that the source holds too (the same name) goes where it is there; the others are divided without a look at any
label of theirs. Objects are ordered by a hash of their name and the seed, so that the order of a store does not matter.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from skyshift.datasets.loading import PARTS
from skyshift.errors import SkyshiftError


@dataclass
class SplitConfig:
    """Shares of the objects.

    Attributes:
        train: Share to train on.
        validation: Share on which checkpoints are chosen, without labels of the target.
        test: Share that the report alone sees.
        seed: Of the order.
        stratify: Divide each class of the source by itself.
    """

    train: float = 0.6
    validation: float = 0.15
    test: float = 0.25
    seed: int = 0
    stratify: bool = True

    def __post_init__(self) -> None:
        shares = [self.train, self.validation, self.test]
        if min(shares) < 0 or not np.isclose(sum(shares), 1.0) or not self.train:
            raise SkyshiftError(f"the shares of a split are positive and sum to 1, not {shares}")


Parts = dict[str, NDArray[np.int64]]
"""``train``, ``validation`` and ``test`` to sorted view numbers."""


def split_source(catalogue: Table, labels: NDArray[np.int64], split: SplitConfig) -> tuple[Parts, dict[str, int]]:
    """Divide the source.

    Args:
        catalogue: Of its store.
        labels: (n,) class of each of its rows; all equal where there are none.
        split: The shares.

    Returns:
        The parts, and the number of the part of every object by name.

    Raises:
        SkyshiftError: There are too few objects.
    """
    names, member = _objects(catalogue)
    side = np.full(len(names), -1, np.int64)
    first = np.zeros(len(names), np.int64)
    first[member[::-1]] = labels[::-1]  # the class of an object's first view
    for value in np.unique(first) if split.stratify else [None]:
        of_class = np.arange(len(names)) if value is None else np.flatnonzero(first == value)
        side[of_class] = _shares([names[i] for i in of_class], split)
    return _parts(catalogue, side[member], split, "source"), _sides(catalogue, side[member])


def split_target(catalogue: Table, known: Mapping[str, int], split: SplitConfig) -> Parts:
    """Divide the target, objects of the source as there.

    Args:
        catalogue: Of its store.
        known: Part of every object of the source.
        split: The shares.

    Raises:
        SkyshiftError: There are too few objects, or one split group of the target holds objects that stand on
            different sides in the source.
    """
    names, member = _objects(catalogue)
    side = np.full(len(names), -1, np.int64)
    for row, name in zip(member.tolist(), np.asarray(catalogue["name"]).tolist(), strict=True):
        part = known.get(str(name), -1)
        if part >= 0 and side[row] not in (-1, part):
            raise SkyshiftError(
                f"the views of {names[row]} and {name} form one group of the target, but the source has them on "
                "different sides of its split: give both stores the same groups (split_group)"
            )
        side[row] = max(side[row], part)
    left = np.flatnonzero(side < 0)
    side[left] = _shares([names[i] for i in left], split)
    return _parts(catalogue, side[member], split, "target")


def _objects(catalogue: Table) -> tuple[list[str], NDArray[np.int64]]:
    """Name of each split group (its first view's), and the group of every row."""
    _, first, member = np.unique(np.asarray(catalogue["split_group"]), return_index=True, return_inverse=True)
    return [str(catalogue["name"][i]) for i in first], member


def _shares(names: Sequence[str], split: SplitConfig) -> NDArray[np.int64]:
    """Parts of objects, in the order of their hashes; shares are exact to one object."""
    key = [hashlib.sha256(f"{split.seed}:{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=lambda i: key[i])
    bounds = np.round(np.cumsum([split.train, split.validation]) * len(names)).astype(int)
    side = np.empty(len(names), np.int64)
    side[order] = np.searchsorted(bounds, np.arange(len(names)), side="right")
    return side


def _parts(catalogue: Table, side: NDArray[np.int64], split: SplitConfig, what: str) -> Parts:
    views = np.asarray(catalogue["view"], np.int64)
    parts = {part: np.sort(views[side == i]) for i, part in enumerate(PARTS)}
    for part in PARTS:
        if getattr(split, part) and not len(parts[part]):
            objects = len(np.unique(np.asarray(catalogue["split_group"])))
            raise SkyshiftError(
                f"the {what} has {objects} objects, too few for a {part} part of {getattr(split, part)}"
            )
    return parts


def _sides(catalogue: Table, side: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip((str(name) for name in catalogue["name"]), side.tolist(), strict=True))
