"""Two stores read as one, view by view: sources from a simulation, targets from its mock or real observation.

A view of the one is the view of the other where galaxy, snapshot and rotation are the same; the rotation is compared as
a matrix, to :data:`ROTATION`. Only views that both hold count, under the numbers that the first store gives them, and
with its split groups, so that both sides of a pair are on one side of a split. Two maps of a pair must show the same
field of view on the same number of pixels.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from skyshift.datasets.catalogue import hash_json
from skyshift.datasets.joined import JoinedStores
from skyshift.datasets.store import MapStore, StoreError

ROTATION = 1e-6
"""Elements of two rotation matrices that differ by more are different views."""

SIDE = 0.01
"""Relative difference of the sides of two maps from which on they are not of the same field: beyond it, a pixel at the
edge of a 64 pixel map is a third of a pixel away from its partner."""


def require_same_pixels(source: MapStore, target: MapStore) -> None:
    """Check that maps of two stores have the same size.

    Raises:
        StoreError: They do not; the message names both and the cure.
    """
    if source.pixels != target.pixels:
        raise StoreError(
            f"maps of different sizes: {source.path} has {source.pixels} × {source.pixels} pixels, {target.path} "
            f"{target.pixels} × {target.pixels}; build or observe one of them anew with the pixels of the other "
            f"(--pixels {source.pixels})"
        )


class MatchedStores(JoinedStores):
    """Source domains of one store and target domains of another, matched by view, to read.

    Args:
        source: Holds the source domains.
        target: Holds the target domains.
        source_domains: Which are read from the first.
        target_domains: Which are read from the second.

    Raises:
        StoreError: A domain is missing or on both sides, sizes or fields of view differ, or no view is in both.
    """

    def __init__(
        self, source: MapStore, target: MapStore, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        source.require_domains(source_domains)
        target.require_domains(target_domains)
        both = [name for name in source_domains if name in target_domains]
        if both:
            raise StoreError(
                f"{both[0]} is a source domain of {source.path} and a target domain of {target.path}; matched maps are "
                "told apart by their names. Build one of the stores with another name, or train with paired: false"
            )
        require_same_pixels(source, target)
        self.stores = (source, target)
        self._path = Path(f"{source.path} with {target.path}")
        self._of = dict.fromkeys(source_domains, source) | dict.fromkeys(target_domains, target)
        self.units = {name: store.units[name] for name, store in self._of.items()}
        self.pixels, self.labels, self.views = source.pixels, source.labels, source.views
        self.plan = {"source": source.plan, "target": target.plan}
        self._process, self._arrays = os.getpid(), {}
        self._catalogue, self._partner = self._match()

    def _match(self) -> tuple[Table, NDArray[np.int64]]:
        """The matched rows of the first catalogue, and for every view of the first store that of the second, or -1."""
        source, target = (store.catalogue() for store in self.stores)
        rows = _partners(source, target)
        matched = rows >= 0
        if not matched.any():
            raise StoreError(
                f"no view of {self.stores[0].path} is in {self.stores[1].path} too (the same galaxy, snapshot and "
                "rotation); observe the one to get the other, or train without pairs (data.paired: false)"
            )
        ours, theirs = np.asarray(source["side"][matched], float), np.asarray(target["side"][rows[matched]], float)
        wrong = ~(np.abs(theirs - ours) <= SIDE * ours)
        if wrong.any():
            raise StoreError(
                f"fields of view differ: view {source['view'][matched][wrong][0]} of {self.stores[0].path} is "
                f"{ours[wrong][0]:.4g} kpc wide, its partner in {self.stores[1].path} {theirs[wrong][0]:.4g} kpc, so "
                "their pixels do not belong together. Observe with --include and train on that one store, or train "
                "without pairs (data.paired: false)"
            )
        partner = np.full(self.stores[0].views, -1, np.int64)
        partner[np.asarray(source["view"][matched])] = np.asarray(target["view"])[rows[matched]]
        return source[matched], partner

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the two stores hold, source first."""
        return hash_json([store.fingerprint for store in self.stores])

    def require_domains(self, names: Sequence[str]) -> None:
        """Check that these domains are read.

        Raises:
            StoreError: One is not; the message names the nearest.
        """
        MapStore.require_domains(self, names)

    def maps(self, domain: str, views: Sequence[int] | NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Maps of one domain, from the store that it is read from; see :meth:`MapStore.maps`.

        Raises:
            StoreError: The domain is not read, or a view is not in both stores.
        """
        self.require_domains([domain])
        rows: NDArray[np.int64] = np.asarray(self.catalogue()["view"] if views is None else views, np.int64)
        self._require_views(rows)
        partners = self._partner[rows]
        if (partners < 0).any():
            raise StoreError(f"{self.path}: view {rows[partners < 0][0]} is not in both stores")
        store = self._of[domain]
        return store.maps(domain, rows if store is self.stores[0] else partners)


def _partners(source: Table, target: Table) -> NDArray[np.int64]:
    """For each row of the first catalogue that of the second which shows the same view, or -1; each is taken once."""
    offered: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(target["galaxy"].tolist(), target["snapshot"].tolist(), strict=True)):
        offered[key].append(row)
    ours, theirs = (np.asarray(c["rotation"], np.float64).reshape(len(c), -1) for c in (source, target))
    found = np.full(len(source), -1, np.int64)
    for number, key in enumerate(zip(source["galaxy"].tolist(), source["snapshot"].tolist(), strict=True)):
        left = offered.get(key, [])
        for place, row in enumerate(left):
            if np.abs(theirs[row] - ours[number]).max() <= ROTATION:
                found[number] = left.pop(place)
                break
    return found
