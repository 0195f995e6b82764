"""Several stores read as one: the same domains on the same grid, split by the galaxies that they share.

Views are numbered through: those of the second store follow the rows of the first. Units are those of the first store;
maps of the others are converted. Galaxies of the same number count as the same galaxy, whichever store they come from,
and so do groups that share one: stores of one simulation (other rotations) never have a galaxy on two
sides of a split. Of two simulations, galaxies that share nothing but their number then fall on the same side, which
costs nothing but some freedom.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from astropy import units
from astropy.table import Table, vstack
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skyshift.datasets.catalogue import Failure, hash_json
from skyshift.datasets.store import MapStore, StoreError

SCALE_RATIO = 2.0
"""Stores whose pixels differ by more than this factor (medians, kpc) are different grids. One store whose fields of
view follow the size of each galaxy spans more than that; it is the typical pixel that must agree."""


def open_stores(paths: str | Path | Sequence[str | Path]) -> MapStore:
    """One store, or several as one.

    Raises:
        StoreError: One is absent, or they do not fit together.
    """
    if not isinstance(paths, list | tuple):
        return MapStore(paths)  # type: ignore[arg-type]
    if not paths:
        raise StoreError("no store is named")
    opened = [MapStore(path) for path in paths]
    return opened[0] if len(opened) == 1 else JoinedStores(opened)


class JoinedStores(MapStore):
    """Several stores as one, to read.

    Args:
        stores: At least one; in their order the views are numbered.

    Raises:
        StoreError: They have no domain in common, a domain in units that do not convert, different grids, or were built
            with different fields of view or recipes.
    """

    def __init__(self, stores: Sequence[MapStore]) -> None:
        self.stores = tuple(stores)
        first = self.stores[0]
        self._path = Path("; ".join(str(store.path) for store in self.stores))
        self.units = {name: unit for name, unit in first.units.items() if all(name in s.units for s in self.stores)}
        if not self.units:
            held = "; ".join(f"{store.path} holds {', '.join(store.domains)}" for store in self.stores)
            raise StoreError(f"these stores have no domain in common: {held}")
        self._factors = [{name: _factor(first, store, name) for name in self.units} for store in self.stores]
        self._first = np.cumsum([0, *(store.views for store in self.stores)])
        self.views = int(self._first[-1])
        self.pixels = first.pixels
        self.labels = tuple(dict.fromkeys(label for store in self.stores for label in store.labels))
        self.plan = {"stores": [store.plan for store in self.stores]}
        self._process, self._arrays = os.getpid(), {}
        self._catalogue: Table | None = None
        _require_same_making(self.stores)
        _require_same_grid(self.stores)

    def _of_one(self, *_: object, **__: object) -> NoReturn:
        """What is asked of the parts of one store.

        Raises:
            StoreError: Always: shards and parts of several stores have no common number.
        """
        raise StoreError(
            f"{self.path} are {len(self.stores)} stores read as one, which have no shards, parts or hashes in common; "
            "ask each store by itself (JoinedStores.stores)"
        )

    shard_rows = is_done = is_pending = done_shards = pending_shards = _of_one
    part = records = manifest = verify = write_shard = forget = accept = _of_one
    shard_views = property(_of_one)

    @property
    def shards(self) -> int:
        """Shards of all stores."""
        return sum(store.shards for store in self.stores)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the stores hold, in their order."""
        return hash_json([store.fingerprint for store in self.stores])

    @property
    def complete(self) -> bool:
        """Whether all stores are whole."""
        return all(store.complete for store in self.stores)

    def failures(self, shard: int | None = None) -> list[Failure]:
        """The galaxies that are missing from all stores, with their views numbered through.

        Raises:
            StoreError: A shard is named; shards of several stores have no common number.
        """
        if shard is not None:
            self._of_one()
        return [
            replace(failure, views=tuple(int(first) + view for view in failure.views))
            for first, store in zip(self._first[:-1], self.stores, strict=True)
            for failure in store.failures()
        ]

    def require_complete(self) -> None:
        """Check that all stores are whole.

        Raises:
            StoreError: Shards of one are missing.
        """
        for store in self.stores:
            store.require_complete()

    def require_domains(self, names: Sequence[str]) -> None:
        """Check that every store holds these domains.

        Raises:
            StoreError: One lacks one; the message names both.
        """
        for store in self.stores:
            store.require_domains(names)

    def maps(self, domain: str, views: Sequence[int] | NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Maps of one domain in the first store's unit; see :meth:`MapStore.maps`."""
        self.require_domains([domain])
        rows: NDArray[np.int64] = np.asarray(self.catalogue()["view"] if views is None else views, np.int64)
        self._require_views(rows)
        result = np.empty((len(rows), self.pixels, self.pixels), np.float32)
        member = np.searchsorted(self._first, rows, side="right") - 1
        for index in np.unique(member):
            chosen = np.flatnonzero(member == index)
            maps = self.stores[index].maps(domain, rows[chosen] - self._first[index])
            factor = self._factors[index][domain]
            result[chosen] = maps if factor == 1 else maps * np.float64(factor)
        return result

    def catalogue(self) -> Table:
        """The rows of all stores; ``split_group`` is common to them, ``store`` is the number of the store."""
        if self._catalogue is None:
            self._catalogue = self._join()
        return self._catalogue.copy()

    def _join(self) -> Table:
        tables = []
        for index, store in enumerate(self.stores):
            table = store.catalogue()
            table["view"] = np.asarray(table["view"], np.int64) + self._first[index]
            table["store"] = np.full(len(table), index)
            new = np.array([self.labels.index(label) for label in store.labels], np.int32)
            label = np.asarray(table["label"])
            if len(new):
                table["label"] = np.where(label >= 0, new[np.clip(label, 0, None)], -1).astype(np.int32)
            flags, moved = np.asarray(table["flags"], np.int64), np.zeros(len(table), np.int64)
            for bit, name in enumerate(self.units):
                moved |= ((flags >> store.domains.index(name)) & 1) << bit
            table["flags"] = moved
            tables.append(table)
        joined = vstack(tables, metadata_conflicts="silent")
        joined["split_group"] = linked_groups(*(np.asarray(joined[n]) for n in ("store", "split_group", "galaxy")))
        joined.meta["labels"] = list(self.labels)
        return joined


def linked_groups(
    store: NDArray[np.integer], group: NDArray[np.integer], galaxy: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Split groups of several stores: groups that hold a galaxy of the same number are one.

    Args:
        store: (n,) number of the store of each view.
        group: (n,) its split group there.
        galaxy: (n,) its galaxy.

    Returns:
        (n,) the smallest number of a galaxy in the group.
    """
    _, own = np.unique(np.stack([store, group]), axis=1, return_inverse=True)
    numbers, shown = np.unique(galaxy, return_inverse=True)
    own = own.ravel()
    count = int(own.max(initial=-1)) + 1
    edges = (np.ones(len(own)), (own, count + shown.ravel()))
    _, part = connected_components(coo_array(edges, shape=(count + len(numbers),) * 2), directed=False)
    smallest = np.full(part.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, part[count:], numbers)
    return smallest[part[own]]


def _factor(first: MapStore, store: MapStore, domain: str) -> float:
    try:
        return float(units.Unit(store.units[domain]).to(units.Unit(first.units[domain])))
    except units.UnitConversionError:
        raise StoreError(
            f"{first.path} holds {domain} in {first.units[domain]}, {store.path} in {store.units[domain]}, which does "
            "not convert; name them as different domains, or build one anew"
        ) from None


def _making(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how the maps of a domain are made, as far as the plan says it."""
    making: dict[str, Any] = {f"recipes.{name}": choice for name, choice in plan.get("recipes", {}).items()}
    if view := plan.get("field_of_view"):
        names = ("kpc", "depth") if view.get("kpc") else ("radii", "of", "depth")  # a length, or half-mass radii
        making["field_of_view"] = {name: view.get(name, 0.0) for name in names}
    return making


def _require_same_making(stores: Sequence[MapStore]) -> None:
    """Maps of one domain must be made alike: the same fields of view, the same physics."""
    first = stores[0]
    ours = _making(first.plan)
    for store in stores[1:]:
        theirs = _making(store.plan)
        for key in [key for key in ours if key in theirs and ours[key] != theirs[key]]:
            raise StoreError(
                f"maps made differently: {first.path} was built with {key} = {ours[key]}, {store.path} with "
                f"{theirs[key]}; maps of both cannot train one network. Build one of them anew with the {key} of the "
                "other"
            )


def _require_same_grid(stores: Sequence[MapStore]) -> None:
    """One pixel of one store must mean what it means in the others."""
    grids = []
    for store in stores:
        side = np.asarray(store.catalogue()["side"], np.float64) / store.pixels
        grids.append(side if len(side) else np.ones(1))
    first = grids[0]
    for store, scale in zip(stores[1:], grids[1:], strict=True):
        fixed = np.ptp(first) == 0 and np.ptp(scale) == 0
        ratio = float(np.median(scale) / np.median(first))
        fits = np.isclose(ratio, 1, rtol=1e-6) if fixed else 1 / SCALE_RATIO <= ratio <= SCALE_RATIO
        if store.pixels != stores[0].pixels or not fits:
            raise StoreError(
                f"different grids: {stores[0].path} has {_grid(stores[0], first)}, {store.path} {_grid(store, scale)}; "
                "maps of both cannot train one network. Build one of them anew with the pixels and field_of_view of "
                "the other"
            )


def _grid(store: MapStore, scale: NDArray[np.float64]) -> str:
    kpc = f"{scale[0]:.4g}" if np.ptp(scale) == 0 else f"{scale.min():.3g} to {scale.max():.3g}"
    middle = "" if np.ptp(scale) == 0 else f" (median {np.median(scale):.3g})"
    return f"{store.pixels} × {store.pixels} pixels of {kpc} kpc{middle}"
