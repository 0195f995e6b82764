"""The map store: exact, few files, whole shards or none whatever interrupts a build, and clear refusals."""

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from skyshift.datasets import store as store_module
from skyshift.datasets.build import build_store
from skyshift.datasets.catalogue import Failure, read_part
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
from skyshift.datasets.store import LARGEST_SHARD, SHARD_BYTES, MapStore, StoreError, ViewRecord, shard_size

UNITS = {"gas": "Msun / kpc2", "temperature": "K"}
FEW = {"gas": 10, "dm": 10, "stars": 10}


def record(view: int, **changes: Any) -> ViewRecord:
    row = {
        "view": view,
        "galaxy": view // 2,
        "name": f"subhalo {view // 2}",
        "split_group": view // 2,
        "snapshot": 99,
        "redshift": 0.25,
        "rotation": tuple(np.eye(3).ravel().tolist()),
        "side": 50.0 + view,
        "depth": 0.0,
        "label": view % 3,
        "flags": 0,
    }
    return ViewRecord(**(row | changes))


def empty_store(path: Path, views: int = 10, shard_views: int = 4, pixels: int = 8) -> MapStore:
    return MapStore.create(
        path, units=UNITS, views=views, pixels=pixels, shard_views=shard_views, labels=["disc", "merger"], plan={"a": 1}
    )


def random_maps(count: int, seed: int = 0, pixels: int = 8) -> dict[str, np.ndarray]:
    """float32 of every size, with zeros, subnormals and the largest."""
    rng = np.random.default_rng(seed)
    maps = {}
    for name in UNITS:
        values = (10 ** rng.uniform(-30, 30, (count, pixels, pixels))).astype(np.float32)
        values.flat[:3] = 0, np.float32(1e-45), np.finfo(np.float32).max
        maps[name] = values
    return maps


def fill(store: MapStore, maps: dict[str, np.ndarray], shards: range | None = None) -> None:
    for shard in shards if shards is not None else range(store.shards):
        rows = store.shard_rows(shard)
        store.write_shard(shard, {k: v[rows.start : rows.stop] for k, v in maps.items()}, [record(v) for v in rows])


def config(simulation: Path, path: Path, **changes: Any) -> BuildConfig:
    """Twelve galaxies, 24 views in 12 shards."""
    source = SnapshotSource(str(simulation / "output"), 99, minimum_particles=FEW)
    settings = {"pixels": 32, "rotations": 2, "field_of_view": FieldOfView(4.0, "stars")} | changes
    return BuildConfig(source, str(path), **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# what is written is what is read


def test_round_trip_is_exact(tmp_path):
    store = empty_store(tmp_path / "maps.zarr")
    maps = random_maps(10)
    fill(store, maps)
    again = MapStore(tmp_path / "maps.zarr")
    for name, values in maps.items():
        read = again.maps(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values)
        # any order, repeated, across shards, none
        for views in ([3], [2, 3, 4], [9, 0, 4, 4], list(range(1, 9)), [7, 6, 5]):
            np.testing.assert_array_equal(again.maps(name, views), values[views])
        assert again.maps(name, []).shape == (0, 8, 8)
    assert again.domains == ("gas", "temperature")
    assert again.units == UNITS
    assert again.labels == ("disc", "merger")
    assert again.plan == {"a": 1}
    assert (again.views, again.pixels, again.shards) == (10, 8, 3)


def test_any_zarr_reader_can_read_it(tmp_path):
    """Through zarr alone, without this package: values, unit and names of the axes."""
    maps = random_maps(10)
    fill(empty_store(tmp_path / "maps.zarr"), maps)
    array = zarr.open_group(tmp_path / "maps.zarr", mode="r")["maps/temperature"]
    np.testing.assert_array_equal(array[:], maps["temperature"])
    assert array.attrs["unit"] == "K"
    assert array.metadata.dimension_names == ("view", "height", "width")


def test_one_chunk_a_map_and_one_file_a_shard(tmp_path):
    store = empty_store(tmp_path / "maps.zarr")
    fill(store, random_maps(10))
    metadata = json.loads((tmp_path / "maps.zarr/maps/gas/zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["data_type"] == "float32"
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [4, 8, 8]  # the shard
    (codec,) = metadata["codecs"]
    assert codec["name"] == "sharding_indexed"
    assert codec["configuration"]["chunk_shape"] == [1, 8, 8]  # the map
    files = [p for p in (tmp_path / "maps.zarr").rglob("*") if p.is_file()]
    # 3 shards of 2 domains, 3 parts, and zarr.json of the group, of maps and of each domain
    assert len(files) == 3 * 2 + 3 + 4


@pytest.mark.parametrize("rotations", [1, 4, 8, 100])
@pytest.mark.parametrize("domains", [1, 6, 8])
def test_a_million_maps_are_fewer_than_ten_thousand_files(rotations, domains):
    """Counted as the test above found it: a file a shard and domain, a part a shard, and one zarr.json an array."""
    views = 1_000_000
    size = shard_size(views, rotations)
    assert size % rotations == 0, "no galaxy lies in two shards"
    assert size < LARGEST_SHARD + rotations
    shards = -(-views // size)
    assert shards * (domains + 1) + domains + 2 < 10_000


@pytest.mark.parametrize("views", [1, 7, 64, 500, 10**5])
@pytest.mark.parametrize("rotations", [1, 3, 16])
def test_small_stores_are_divided_so_that_many_processes_can_build(views, rotations):
    size = shard_size(views * rotations, rotations)
    assert size % rotations == 0
    assert size <= LARGEST_SHARD + rotations
    if views >= 64 and views * rotations <= 64 * LARGEST_SHARD:
        assert 32 <= -(-views * rotations // size) <= 64


@pytest.mark.parametrize(("pixels", "domains"), [(64, 6), (128, 19), (512, 19), (2048, 19)])
@pytest.mark.parametrize("rotations", [1, 4, 16])
def test_a_worker_never_holds_more_than_a_quarter_gib(pixels, domains, rotations):
    """Of maps; but whole galaxies, so one galaxy at the least. At 64 pixels nothing changes."""
    size = shard_size(10**6, rotations, pixels, domains)
    galaxy = 4 * pixels**2 * domains * rotations
    assert size % rotations == 0
    assert size * galaxy // rotations <= max(SHARD_BYTES, galaxy)
    if pixels == 64:
        assert size == shard_size(10**6, rotations) == LARGEST_SHARD
    elif galaxy < SHARD_BYTES:
        assert size * galaxy // rotations > SHARD_BYTES - galaxy, "no smaller than it must be"


def test_empty_maps_are_written_after_a_read(tmp_path):
    """An array that was opened to read writes its all-zero shards too: files that are not there were lost."""
    path = tmp_path / "maps.zarr"
    fill(empty_store(path), random_maps(10))
    store = MapStore(path)
    store.maps("gas", [0, 5])
    store.write_shard(1, {name: np.zeros((4, 8, 8)) for name in UNITS}, [record(view) for view in range(4, 8)])
    assert (path / "maps/gas/c/1/0/0").is_file()
    again = MapStore(path)
    assert again.complete
    assert again.verify() == {}
    assert not again.maps("gas", range(4, 8)).any()
    assert again.maps("gas", range(4)).any()


def test_a_store_is_opened_anew_in_another_process(tmp_path):
    """What is open stays behind when a store is sent there."""
    store = empty_store(tmp_path / "maps.zarr")
    maps = random_maps(10)
    fill(store, maps)
    np.testing.assert_array_equal(store.maps("gas", [7]), maps["gas"][[7]])
    with multiprocessing.get_context("fork").Pool(1) as forked:
        np.testing.assert_array_equal(forked.apply(store.maps, ("gas", [3, 9])), maps["gas"][[3, 9]])
    with multiprocessing.get_context("spawn").Pool(1) as spawned:
        np.testing.assert_array_equal(spawned.apply(store.maps, ("gas", [0, 8])), maps["gas"][[0, 8]])


def test_catalogue(tmp_path):
    store = empty_store(tmp_path / "maps.zarr")
    fill(store, random_maps(10))
    table = store.catalogue()
    expected = [record(view) for view in range(10)]
    assert store.records() == expected
    assert set(table.colnames) == set(ViewRecord.__dataclass_fields__)
    assert table["view"].tolist() == list(range(10))
    assert table["name"].tolist() == [row.name for row in expected]
    assert table["rotation"].shape == (10, 3, 3)
    np.testing.assert_array_equal(table["rotation"][4], np.eye(3))
    assert (str(table["side"].unit), str(table["depth"].unit)) == ("kpc", "kpc")
    assert table.meta["labels"] == ["disc", "merger"]
    assert table["label"].tolist() == [view % 3 for view in range(10)]


def test_the_catalogue_of_a_built_store(tiny_store, tiny_simulation):
    """Every galaxy in every rotation, labels and fields of view of the group catalogue, proper rotations."""
    store = MapStore(tiny_store)
    table = store.catalogue()
    assert len(table) == store.views == 24
    assert table["galaxy"].tolist() == table["split_group"].tolist() == [n // 2 for n in range(24)]
    with h5py.File(tiny_simulation / "output/groups_099/fof_subhalo_tab_099.0.hdf5") as file:
        label = file["Subhalo/SubhaloMorphology"][()]
        radius = file["Subhalo/SubhaloHalfmassRadType"][:, 4].astype(np.float64) / 0.6774
    assert table["label"][::2].tolist()[: len(label)] == label.tolist()
    np.testing.assert_allclose(table["side"][::2][: len(radius)], 2 * 4.0 * radius, rtol=1e-12)
    rotation = np.asarray(table["rotation"])
    # SO(3), to the rounding of nine products
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (24, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-14)
    assert len(np.unique(rotation[:, 0, 0])) == 24, "each galaxy has its own rotations"
    assert store.complete
    store.require_complete()


def test_flags_name_the_empty_maps(tmp_path, tiny_simulation):
    """Bit i of ``flags`` is domain i. A field of a tenth of a parsec at the centre sees no particle of some kinds."""
    narrow = config(tiny_simulation, tmp_path / "maps.zarr", domains=["stars", "gas", "bfield"], pixels=4)
    narrow.field_of_view = FieldOfView(kpc=1e5, depth=1e-9)
    store = build_store(narrow, progress=False)
    maps = {name: store.maps(name) for name in store.domains}
    flags = store.catalogue()["flags"].tolist()
    for view, flag in enumerate(flags):
        empty = [not maps[name][view].any() for name in store.domains]
        assert flag == sum(1 << bit for bit, is_empty in enumerate(empty) if is_empty)
    assert max(flags) > 0


# interrupts


def test_the_part_is_written_last(tmp_path, monkeypatch):
    """If the catalogue part fails, the maps are there but the shard is not; the second try makes it whole."""
    store = empty_store(tmp_path / "maps.zarr")
    maps = random_maps(10)
    fill(store, maps, range(1))

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fail)
        with pytest.raises(KeyboardInterrupt):
            fill(store, maps, range(1, 2))
    np.testing.assert_array_equal(store.maps("gas", range(4, 8)), maps["gas"][4:8])
    assert [store.is_done(shard) for shard in range(3)] == [True, False, False]
    assert len(store.catalogue()) == len(store.records()) == 4
    assert [p.name for p in (tmp_path / "maps.zarr/catalogue").iterdir()] == ["part-00000.parquet"], "no half file"
    fill(store, maps, range(1, 3))
    assert store.complete
    np.testing.assert_array_equal(store.maps("gas"), maps["gas"])


def test_an_incomplete_store_says_how_to_go_on(tmp_path):
    store = empty_store(tmp_path / "maps.zarr")
    fill(store, random_maps(10), range(1, 2))
    assert not store.complete
    with pytest.raises(
        StoreError, match=r"not finished: 2 of 3 shards are missing, first shard 0; run the build again"
    ):
        store.require_complete()


@pytest.mark.parametrize("empty", [False, True])
def test_a_lost_file_of_maps_is_seen(tmp_path, empty):
    """Zarr reads a shard that is not there as zeros; a store knows that it once was, also where the maps are empty."""
    store = empty_store(tmp_path / "maps.zarr")
    maps = {name: values * (0 if empty else 1) for name, values in random_maps(10).items()}
    fill(store, maps)
    assert store.complete
    (tmp_path / "maps.zarr/maps/temperature/c/1/0/0").unlink()
    assert [store.is_done(shard) for shard in range(3)] == [True, False, True]
    with pytest.raises(StoreError, match="1 of 3 shards are missing, first shard 1; run the build again"):
        store.require_complete()
    fill(store, maps, range(1, 2))
    np.testing.assert_array_equal(MapStore(tmp_path / "maps.zarr").maps("temperature"), maps["temperature"])


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from skyshift.datasets.build import build_store
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
simulation, path, when, where = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
write, calls = pq.write_table, []
def write_table(table, side):
    calls.append(side)
    if len(calls) == when:
        if where == "half a part":
            write(table, side)
            content = Path(side).read_bytes()
            Path(side).write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, side)
pq.write_table = write_table
source = SnapshotSource(simulation + "/output", 99, minimum_particles={"gas": 10, "dm": 10, "stars": 10})
build_store(BuildConfig(source, path, pixels=32, rotations=2, field_of_view=FieldOfView(4.0, "stars")), progress=False)
"""


@pytest.mark.parametrize("where", ["no part", "half a part"])
def test_a_killed_build_goes_on_and_ends_the_same(tmp_path, tiny_simulation, tiny_store, where):
    """SIGKILL in the fifth of twelve shards: four stay, the rest comes out byte by byte as if uninterrupted."""
    path = tmp_path / "maps.zarr"
    arguments = [sys.executable, "-c", KILLED, str(tiny_simulation), str(path), "5", where]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = MapStore(path)
    assert [store.is_done(shard) for shard in range(store.shards)] == [True] * 4 + [False] * 8
    with pytest.raises(StoreError, match="8 of 12 shards are missing"):
        store.require_complete()
    finished = [path / f"catalogue/part-{shard:05d}.parquet" for shard in range(4)]
    finished += [path / f"maps/{domain}/c/{shard}/0/0" for domain in store.domains for shard in range(4)]
    before = {p: p.stat().st_mtime_ns for p in finished}
    build_store(config(tiny_simulation, path), progress=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "shards that were done are not written again"
    rebuilt, whole = files_of(path), files_of(tiny_store)
    remains = {name for name in rebuilt if Path(name).name.startswith(".")}  # what the kill left beside the part
    assert len(remains) == (where == "half a part")
    assert {name: data for name, data in rebuilt.items() if name not in remains} == whole


FULL = """
import resource, signal, sys
from skyshift.datasets.build import build_store
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
from skyshift.command import command
simulation, path, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
source = SnapshotSource(simulation + "/output", 99, minimum_particles={"gas": 10, "dm": 10, "stars": 10})
config = BuildConfig(source, path, pixels=32, rotations=2, field_of_view=FieldOfView(4.0, "stars"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
command(build_store)(config, progress=False)
"""


@pytest.mark.parametrize("limit", [7000, 3000, 500])
def test_a_full_disk(tmp_path, tiny_simulation, tiny_store, limit):
    """No file may grow beyond ``limit`` bytes: maps of 8 kB fail, or all of it, or the store's own description.

    The build says so and stops; nothing that is half written is taken for whole; with room it is built as if nothing
    had happened.
    """
    path = tmp_path / "maps.zarr"
    arguments = [sys.executable, "-c", FULL, str(tiny_simulation), str(path), str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    if limit > 2000:
        assert done.stderr.startswith(f"error: {path}: shard ")
        assert "make room and run the build again" in done.stderr
        assert "Traceback" not in done.stderr
        store = MapStore(path)
        whole = MapStore(tiny_store)
        assert not store.complete
        for shard in range(store.shards):
            if store.is_done(shard):
                rows = list(store.shard_rows(shard))
                np.testing.assert_array_equal(store.maps("gas", rows), whole.maps("gas", rows))
    else:
        assert not path.exists(), "a store that could not be described is not there at all"
    build_store(config(tiny_simulation, path), progress=False)
    assert files_of(path) == files_of(tiny_store)


# refusals


def test_a_newer_format_is_refused_and_kept(tmp_path, tiny_simulation):
    path = tmp_path / "maps.zarr"
    fill(empty_store(path), random_maps(10))
    group = zarr.open_group(path, mode="r+")
    group.attrs["skyshift_format"] = 2
    before = files_of(path)
    message = r"has store format 2, this skyshift reads up to 1; update skyshift"
    with pytest.raises(StoreError, match=message):
        MapStore(path)
    with pytest.raises(StoreError, match=message):
        build_store(config(tiny_simulation, path), progress=False)
    assert files_of(path) == before


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("pixels", {"pixels": 16}, r"was built with pixels = 32, this configuration says 16; choose another store"),
        ("rotations", {"rotations": 3}, r"rotations = 2, this configuration says 3"),
        ("seed", {"seed": 1}, r"seed = 0, this configuration says 1"),
        ("domains", {"domains": ["gas"]}, r"domains = \['dm', 'gas'.*this configuration says \['gas'\]"),
        ("field_of_view", {"field_of_view": FieldOfView(2.0)}, r"field_of_view = \{'radii': 4\.0.*'radii': 2\.0"),
    ],
)
def test_another_plan_is_refused_by_its_key(tiny_simulation, tiny_store, key, changes, message):
    before = files_of(tiny_store)
    with pytest.raises(StoreError, match=message):
        build_store(config(tiny_simulation, tiny_store, **changes), progress=False)
    assert files_of(tiny_store) == before


def test_another_choice_of_galaxies_is_refused(tiny_simulation, tiny_store):
    other = config(tiny_simulation, tiny_store)
    assert isinstance(other.source, SnapshotSource)
    other.source.limit = 3
    with pytest.raises(StoreError, match=r"was built with settings = .*'limit': '0'.*'limit': '3'"):
        build_store(other, progress=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_not_written(tmp_path, bad):
    store = empty_store(tmp_path / "maps.zarr")
    before = files_of(store.path)
    maps = random_maps(4)
    maps["temperature"][2, 1, 1] = bad
    with pytest.raises(StoreError, match="shard 0: a map of temperature holds values that are not finite"):
        store.write_shard(0, maps, [record(view) for view in range(4)])
    assert files_of(store.path) == before, "not even the domain that was fine"
    assert not store.is_done(0)


def test_maps_that_do_not_fit_are_not_written(tmp_path):
    store = empty_store(tmp_path / "maps.zarr")
    before = files_of(store.path)
    records = [record(view) for view in range(4)]
    with pytest.raises(StoreError, match="shard 0 needs maps of gas, temperature, not of gas"):
        store.write_shard(0, {"gas": random_maps(4)["gas"]}, records)
    with pytest.raises(StoreError, match=r"shard 0, gas: shape \(3, 8, 8\), not \(4, 8, 8\)"):
        store.write_shard(0, random_maps(3), records)
    with pytest.raises(StoreError, match="shard 1 holds views 4 to 7, not those given"):
        store.write_shard(1, random_maps(4), records)
    assert files_of(store.path) == before


def test_paths_that_are_no_store(tmp_path, tiny_simulation):
    with pytest.raises(StoreError, match=r"nowhere is no map store; build one with datasets/build\.py"):
        MapStore(tmp_path / "nowhere")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="is a Zarr group, but not one that skyshift wrote"):
        MapStore(tmp_path / "other.zarr")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    for taken in (tmp_path / "mine", tmp_path / "mine/thesis.txt"):
        with pytest.raises(StoreError, match="exists already; choose another path or delete it"):
            empty_store(taken)
        with pytest.raises(StoreError, match="exists already; choose another path or delete it"):
            build_store(config(tiny_simulation, taken), progress=False)
    with pytest.raises(StoreError, match="is a Zarr group, but not one that skyshift wrote"):
        build_store(config(tiny_simulation, tmp_path / "other.zarr"), progress=False)
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "does not describe a map store"),
        (lambda text: text.replace('"skyshift_format": 1', '"skyshift_format": "one"'), "skyshift_format is 'one'"),
        (lambda text: text.replace('"skyshift_format": 1', '"skyshift_format": null'), "skyshift_format is None"),
        (lambda text: text.replace('"skyshift":', '"other":'), "it lacks 'skyshift'"),
        (lambda text: text.replace('"shard_views":', '"other":'), "it lacks 'shard_views'"),
        (lambda text: text.replace('"plan": {', '"plan": 3, "other": {'), "does not describe a map store"),
        (lambda text: text.replace('"zarr_format": 3', '"zarr_format": 7'), "does not describe a map store"),
        (lambda text: "[]", "does not describe a map store"),
    ],
)
def test_a_damaged_description_is_no_traceback(tmp_path, tiny_simulation, change, message):
    path = tmp_path / "maps.zarr"
    fill(empty_store(path), random_maps(10))
    text = (path / "zarr.json").read_text()
    damaged = change(text)
    assert damaged != text
    (path / "zarr.json").write_text(damaged)
    before = files_of(path)
    wanted = rf"maps\.zarr/zarr\.json .*{message}.*; bring the file back from a copy, or delete the store"
    with pytest.raises(StoreError, match=wanted):
        MapStore(path)
    with pytest.raises(StoreError, match=wanted):
        build_store(config(tiny_simulation, path), progress=False)
    assert files_of(path) == before
    (path / "zarr.json").write_text(text)
    (path / "maps/gas/zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"maps/gas/zarr\.json does not describe an array of maps"):
        MapStore(path).maps("gas", [1])


@pytest.mark.parametrize("view", [-1, 24, 99])
def test_views_that_are_not_there(tiny_store, view):
    with pytest.raises(StoreError, match=rf"there is no view {view}; its views are 0 to 23"):
        MapStore(tiny_store).maps("hi", [3, view])


def test_a_shard_is_accepted_once(tmp_path, monkeypatch):
    """Two builders that end together accept the same shard; the second finds it done, at whatever moment."""
    store = empty_store(tmp_path / "maps.zarr")
    failures = [Failure(1, (2, 3), "GalaxyError", "no gas")]
    store.write_shard(0, random_maps(2), [record(0), record(1)], failures, pending=True)
    assert store.pending_shards() == [0]
    other = MapStore(store.path)
    store.accept(0)
    other.accept(0)
    assert (store.is_done(0), store.pending_shards()) == (True, [])
    # And where the other finishes between our look and our reading.
    store.forget(0)
    store.write_shard(0, random_maps(2), [record(0), record(1)], failures, pending=True)

    def late(path):
        monkeypatch.undo()
        other.accept(0)
        return read_part(path)

    monkeypatch.setattr(store_module, "read_part", late)
    store.accept(0)
    assert store.part(0).failures == tuple(failures)
    with pytest.raises(StoreError, match="shard 1 cannot be written"):
        store.accept(1)


def test_unknown_domains_name_the_nearest(tiny_store):
    store = MapStore(tiny_store)
    with pytest.raises(StoreError, match=r"unknown domain 'bfeild'\. Did you mean 'bfield'\? Known: dm, gas"):
        store.maps("bfeild")
    with pytest.raises(StoreError, match=r"unknown domain 'HI'\. Did you mean 'hi'"):
        store.require_domains(["gas", "HI"])


def test_a_store_can_be_moved_and_read_where_nothing_may_be_written(tmp_path, tiny_store):
    """Nothing in it holds a path. (As root the mode bits do not bind; then this is the move alone.)"""
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_store, moved)
    for path in [moved, *moved.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        store = MapStore(moved)
        np.testing.assert_array_equal(store.maps("hi"), MapStore(tiny_store).maps("hi"))
        assert len(store.catalogue()) == 24
    finally:
        for path in [moved, *moved.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_parts_are_plain_parquet(tiny_store):
    table = pq.read_table(tiny_store / "catalogue")
    assert table.num_rows == 24
    assert {path.suffix for path in (tiny_store / "catalogue").iterdir()} == {".parquet"}


# fingerprints


def test_a_fingerprint_is_of_the_content(tmp_path):
    """The same maps at another place and under another plan are the same; one bit of one map, or a row, is not."""
    maps = random_maps(10)
    first = empty_store(tmp_path / "a.zarr")
    assert first.fingerprint != empty_store(tmp_path / "b.zarr", views=9).fingerprint
    fill(first, maps)
    moved = MapStore.create(
        tmp_path / "c.zarr", units=UNITS, views=10, pixels=8, shard_views=4, labels=["disc", "merger"], plan={"a": 2}
    )
    fill(moved, maps)
    assert moved.fingerprint == first.fingerprint == MapStore(tmp_path / "a.zarr").fingerprint
    assert moved.manifest()["shards"] == first.manifest()["shards"]
    bits = maps["gas"].view(np.uint32)
    bits[9, 7, 7] ^= 1
    other = empty_store(tmp_path / "d.zarr")
    fill(other, maps)
    same = [a == b for a, b in zip(other.manifest()["shards"], first.manifest()["shards"], strict=True)]
    assert same == [True, True, False]
    assert other.fingerprint != first.fingerprint
    row = empty_store(tmp_path / "e.zarr")
    for shard in range(3):
        rows = row.shard_rows(shard)
        some = {name: values[rows.start : rows.stop] for name, values in maps.items()}
        row.write_shard(shard, some, [record(v, label=0 if v else 1) for v in rows])
    assert row.fingerprint not in (first.fingerprint, other.fingerprint)


@pytest.mark.parametrize("where", ["maps/hi/c/7/0/0", "catalogue/part-00007.parquet"])
def test_a_flipped_bit_is_found_and_built_again(tmp_path, tiny_simulation, tiny_store, where):
    """In a map or in a row, wherever it is: the shard is named, and ``verify`` builds that one alone again."""
    path = tmp_path / "maps.zarr"
    shutil.copytree(tiny_store, path)
    assert MapStore(path).verify() == {}
    content = (path / where).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 5):
        spoilt = bytearray(content)
        spoilt[position] ^= 0x10
        (path / where).write_bytes(spoilt)
        damaged = MapStore(path).verify()
        if damaged:  # a byte of padding or of Parquet's own notes says nothing of the galaxies
            assert set(damaged) == {7}
        else:
            assert where.startswith("catalogue")
            assert MapStore(path).records() == MapStore(tiny_store).records()
    spoilt = bytearray(content)
    spoilt[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    (path / where).write_bytes(spoilt)
    assert set(MapStore(path).verify()) == {7}
    if where.startswith("maps"):
        with pytest.raises(StoreError, match=r"the maps of hi cannot be read .*run the build again with --verify true"):
            MapStore(path).maps("hi", [14, 15])
    before = {p: p.stat().st_mtime_ns for p in path.rglob("part-*") if "00007" not in p.name}
    build_store(config(tiny_simulation, path, verify=True), progress=False)
    assert files_of(path) == files_of(tiny_store)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_part_that_cannot_be_read_says_what_to_do(tmp_path):
    store = empty_store(tmp_path / "maps.zarr")
    fill(store, random_maps(10))
    (tmp_path / "maps.zarr/catalogue/part-00001.parquet").write_bytes(b"PAR1 half a part")
    with pytest.raises(StoreError, match=r"part-00001\.parquet cannot be read .*delete it and run the build again"):
        store.records()


def test_parts_of_the_first_version_are_read(tmp_path):
    """Without hashes: rows and maps as ever; nothing to verify them with."""
    store = empty_store(tmp_path / "maps.zarr")
    maps = random_maps(10)
    fill(store, maps)
    for part in (tmp_path / "maps.zarr/catalogue").iterdir():
        pq.write_table(pq.read_table(part).replace_schema_metadata(), part)
    old = MapStore(tmp_path / "maps.zarr")
    assert old.complete
    assert old.records() == [record(view) for view in range(10)]
    assert len(old.catalogue()) == 10
    assert old.failures() == []
    assert old.verify() == {}
    assert len(old.fingerprint) == 64
