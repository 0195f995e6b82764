"""Several stores read as one: units, numbers, labels, splits by common galaxies, and what does not fit together."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyshift.command import parse
from skyshift.datasets.catalogue import Failure
from skyshift.datasets.joined import JoinedStores, linked_groups, open_stores
from skyshift.datasets.loading import PARTS, Draw, MapDataset, Split, split_views
from skyshift.datasets.scaling import Linear
from skyshift.datasets.store import MapStore, StoreError, ViewRecord
from skyshift.errors import SkyshiftError
from skyshift.translate.data import DataConfig, TranslationData, fingerprint, store_paths

EYE = tuple(np.eye(3).ravel())
UNITS = {"gas": "Msun / kpc2", "hi": "Msun / kpc2"}


def write(path: Path, galaxies: list[int], **changes: Any) -> MapStore:
    """Two views a galaxy; a map of galaxy g, domain d holds 10 g + d everywhere."""
    settings: dict[str, Any] = {"units": UNITS, "pixels": 8, "labels": (), "side": 20.0, "label": -1} | changes
    groups = settings.get("groups", galaxies)
    store = MapStore.create(
        path,
        units=settings["units"],
        views=2 * len(galaxies),
        pixels=settings["pixels"],
        shard_views=4,
        labels=settings["labels"],
        plan=settings.get("plan"),
    )
    for shard in range(store.shards):
        rows = store.shard_rows(shard)
        shape = (settings["pixels"],) * 2
        maps = {
            name: np.stack([np.full(shape, 10 * galaxies[v // 2] + d, np.float32) for v in rows])
            for d, name in enumerate(settings["units"])
        }
        records = [
            ViewRecord(
                v, galaxies[v // 2], f"subhalo {galaxies[v // 2]}", groups[v // 2], 99, 0.0, EYE,
                settings["side"] * (1 + v % 2 if settings.get("varied") else 1), 0.0, settings["label"], 2,
            )
            for v in rows
        ]  # fmt: skip
        store.write_shard(shard, maps, records)
    return store


def test_two_stores_are_read_as_one(tmp_path):
    """Rows follow each other; the second holds its gas in other units, its domains in another order, one more."""
    first = write(tmp_path / "a.zarr", [0, 1, 2], labels=("disc", "merger"), label=1)
    other = {"dm": "Msun / kpc2", "hi": "Msun / kpc2", "gas": "Msun / pc2"}
    second = write(tmp_path / "b.zarr", [7, 8], units=other, labels=("spiral", "disc"), label=1)
    both = open_stores([first.path, second.path])
    assert isinstance(both, JoinedStores)
    assert (both.views, both.pixels, both.domains, both.units) == (10, 8, ("gas", "hi"), UNITS)
    assert both.complete
    both.require_complete()
    assert both.shards == first.shards + second.shards
    gas = both.maps("gas", [9, 0, 6, 6])
    np.testing.assert_allclose(gas[:, 0, 0], [82e6, 0, 72e6, 72e6], rtol=1e-6)  # 1 Msun/pc² is 1e6 Msun/kpc²
    np.testing.assert_array_equal(both.maps("hi")[:, 3, 3], [1, 1, 11, 11, 21, 21, 71, 71, 81, 81])
    table = both.catalogue()
    assert list(table["view"]) == list(range(10))
    assert list(table["galaxy"]) == [0, 0, 1, 1, 2, 2, 7, 7, 8, 8]
    assert list(table["store"]) == [0] * 6 + [1] * 4
    assert both.labels == ("disc", "merger", "spiral")
    assert list(table["label"]) == [1] * 6 + [0] * 4, "class 1 of the second is its 'disc'"
    assert list(table["flags"]) == [2] * 10, "bit 1 is hi, the second domain of both"


def test_galaxies_of_the_same_number_are_on_the_same_side(tmp_path):
    """Also where the stores hold them in another order, and where regions of space link what would be apart."""
    first = write(tmp_path / "a.zarr", list(range(30)))
    second = write(tmp_path / "b.zarr", list(range(45, 15, -1)), groups=list(range(30)))
    both = JoinedStores([first, second])
    for by in ("order", "hash"):
        parts = split_views(both.catalogue(), Split(by=by))  # type: ignore[arg-type]
        galaxy = np.asarray(both.catalogue()["galaxy"])
        held = {part: set(galaxy[views]) for part, views in parts.items()}
        assert not any(held[a] & held[b] for a in PARTS for b in PARTS if a != b)
        assert sum(map(len, parts.values())) == both.views
    linked = linked_groups(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1]), np.array([1, 2, 3, 1, 2, 9]))
    np.testing.assert_array_equal(linked, [1, 1, 3, 1, 1, 1])


def test_by_hash_a_galaxy_is_where_it_is_in_each_store_alone(tmp_path):
    first, second = write(tmp_path / "a.zarr", list(range(40))), write(tmp_path / "b.zarr", list(range(20, 60)))
    split = Split(by="hash")

    def sides(store: MapStore) -> dict[int, str]:
        galaxy = np.asarray(store.catalogue()["galaxy"])
        return {int(galaxy[v]): part for part, views in split_views(store.catalogue(), split).items() for v in views}

    together = sides(JoinedStores([first, second]))
    assert sides(first).items() <= together.items()
    assert sides(second).items() <= together.items()


def test_what_does_not_fit_together_is_refused(tmp_path):
    """The message names both stores, what differs, and the cure."""
    first = write(tmp_path / "a.zarr", [0, 1])
    cases = {
        "pixels": (
            {"pixels": 16},
            r"different grids: .*a\.zarr has 8 × 8 pixels of 2\.5 kpc, .*pixels\.zarr 16 × 16 pixels of 1\.25 kpc; .* "
            r"Build one of them anew with the pixels and field_of_view of the other",
        ),
        "side": ({"side": 21.0}, r"8 × 8 pixels of 2\.5 kpc, .*side\.zarr 8 × 8 pixels of 2\.625 kpc"),
        "varied": (
            {"side": 60.0, "varied": True},
            r"different grids: .*a\.zarr has .* 8 × 8 pixels of 7\.5 to 15 kpc \(median 11\.2\)",
        ),
        "unit": (
            {"units": {"gas": "K", "hi": "Msun / kpc2"}},
            r"a\.zarr holds gas in Msun / kpc2, .*unit\.zarr in K, which does not convert",
        ),
        "domains": (
            {"units": {"stars": "Msun / kpc2"}},
            r"no domain in common: .*a\.zarr holds gas, hi; .*holds stars",
        ),
    }
    for name, (changes, message) in cases.items():
        second = write(tmp_path / f"{name}.zarr", [0, 1], **changes)
        with pytest.raises(StoreError, match=message):
            open_stores([str(first.path), str(second.path)])
    radii = {"field_of_view": {"radii": 2.0, "of": "stars", "kpc": 0.0, "depth": 0.0}}
    fixed = {"field_of_view": {"radii": 2.0, "of": "stars", "kpc": 20.0, "depth": 0.0}}
    physics = {"recipes": {"molecular": "br06", "channel_width": 5.5}}
    makings: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
        "radii": (
            radii,
            {"field_of_view": {**radii["field_of_view"], "radii": 3.0}},
            r"made differently: .*radii\.zarr was built with field_of_view = \{'radii': 2\.0, 'of': 'stars', 'depth': "
            r"0\.0\}, .*radii2\.zarr with \{'radii': 3\.0.*Build one of them anew with the field_of_view of the other",
        ),
        "depth": (fixed, {"field_of_view": {**fixed["field_of_view"], "depth": 9.0}}, r"'depth': 0\.0.*'depth': 9\.0"),
        "recipes": (
            physics,
            {"recipes": {"molecular": "kmt", "channel_width": 5.5}},
            r"recipes\.molecular = br06, .*recipes2\.zarr with kmt",
        ),
    }
    for name, (one, other, message) in makings.items():
        paths = [
            write(tmp_path / f"{name}{end}.zarr", [0, 1], plan=plan).path for end, plan in (("", one), ("2", other))
        ]
        with pytest.raises(StoreError, match=message):
            open_stores(paths)
    same = {"field_of_view": {**fixed["field_of_view"], "radii": 7.0}}  # which kpc makes meaningless
    twins = [write(tmp_path / f"{name}.zarr", [0], plan=plan).path for name, plan in (("k", fixed), ("l", same))]
    assert open_stores([*twins, first.path]).views == 8, "and one that says nothing of it"
    mild = write(tmp_path / "mild.zarr", [0, 1], side=15.0, varied=True)
    assert open_stores([first.path, mild.path]).views == 8, "fields of view that follow the galaxies differ in detail"
    only_hi = write(tmp_path / "hi.zarr", [3], units={"hi": "Msun / kpc2"})
    with pytest.raises(StoreError, match=r"hi\.zarr: unknown domain 'gas'"):
        JoinedStores([first, only_hi]).require_domains(["hi", "gas"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"folder is no map store"):
        open_stores([first.path, tmp_path / "folder"])
    with pytest.raises(StoreError, match="no store is named"):
        open_stores([])
    with pytest.raises(StoreError, match=r"gone\.zarr is no map store; build one with datasets/build\.py"):
        open_stores(str(tmp_path / "gone.zarr"))


def test_training_data_of_several_stores(tmp_path):
    """From the command line's list to batches, scalings and provenance."""
    paths = [str(write(tmp_path / f"{name}.zarr", list(range(k, k + 12))).path) for name, k in (("a", 0), ("b", 6))]
    config, _ = parse(DataConfig, ["--store", f"[{paths[0]}, {paths[1]}]"], None, "test")
    assert config.store == paths
    single, _ = parse(DataConfig, ["--store", paths[0]], None, "test")
    assert single.store == paths[0]
    store = config.open()
    data = TranslationData(config, store)
    assert data.translation.provenance["store"] == paths == store_paths(store)
    assert store_paths(single.open()) == paths[0]
    assert fingerprint(store) != fingerprint(single.open())
    assert fingerprint(store) == fingerprint(open_stores(paths))
    sample = data.dataset("train", augment=True)[int(data.views["train"][-1])]
    assert sample["source"].shape == (1, 8, 8)
    with pytest.raises(SkyshiftError, match=r"data\.build builds one store; build each of several before"):
        DataConfig(store=paths, build="datasets/synthetic.yaml")
    with pytest.raises(SkyshiftError, match="unknown kind of edges 'none'"):
        DataConfig(shift_edges="none")  # type: ignore[arg-type]
    unpaired = MapDataset(store, ["gas"], ["hi"], np.arange(store.views), {"gas": Linear(), "hi": Linear()}, False)
    galaxy = np.asarray(store.catalogue()["galaxy"])
    for seed in range(30):
        drawn = unpaired[Draw(18, (seed,))]
        assert galaxy[drawn["target_view"]] != galaxy[18], "not the same galaxy out of the other store"


def test_what_only_one_store_has_is_not_made_up(tmp_path):
    """Shards have no common number: a StoreError, not an answer about none of them."""
    stores = [write(tmp_path / f"{name}.zarr", [0, 1]) for name in "ab"]
    both = JoinedStores(stores)
    before = stores[1].fingerprint
    asked = [both.records, both.done_shards, both.pending_shards, both.verify, both.manifest, lambda: both.shard_views]
    asked += [functools.partial(ask, 0) for ask in (both.part, both.is_done, both.is_pending, both.shard_rows)]
    asked += [functools.partial(ask, 0) for ask in (both.forget, both.accept, both.failures)]
    asked += [lambda: both.write_shard(0, {}, [])]
    for ask in asked:
        with pytest.raises(
            StoreError, match=r"a\.zarr; .*b\.zarr are 2 stores read as one, .* ask each store by itself"
        ):
            ask()
    with pytest.raises(StoreError, match="there is no view 8; its views are 0 to 7"):
        both.maps("gas", [8])
    with pytest.raises(StoreError, match="there is no view -1"):
        both.maps("gas", [-1])
    assert stores[1].fingerprint == MapStore(stores[1].path).fingerprint == before
    maps = {name: np.ones((2, 8, 8), np.float32) for name in UNITS}
    stores[1].write_shard(0, maps, stores[1].records()[:2], [Failure(1, (2, 3), "GalaxyError", "no gas")])
    assert [failure.views for failure in JoinedStores(stores).failures()] == [(6, 7)], "numbered through"


def test_one_store_in_a_list_is_that_store(tmp_path):
    store = write(tmp_path / "a.zarr", [0, 1])
    assert type(open_stores([store.path])) is MapStore
