"""The build command as a person runs it: a real process, its stores, and what it says when it cannot."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from skyshift.command import parse
from skyshift.datasets.build import build_store, main
from skyshift.datasets.galaxy import GalaxyError
from skyshift.datasets.shards import BuildConfig, FieldOfView, build_shard
from skyshift.datasets.sources import CutoutSource, GalaxySource, RegionSource, SnapshotSource, SyntheticSource
from skyshift.datasets.store import MapStore, StoreError
from skyshift.errors import SkyshiftError

FEW = {"gas": 10, "dm": 10, "stars": 10}
SUBBOX = "tng/TNG50-4-Subbox0/output/snapdir_2332"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_config(path: Path, simulation: Path, **changes: object) -> Path:
    settings = {
        "source": {
            "class_path": "SnapshotSource",
            "init_args": {"base_path": str(simulation / "output"), "snapshot": 99, "minimum_particles": FEW},
        },
        "pixels": 32,
        "rotations": 2,
        "field_of_view": {"radii": 4.0, "of": "stars"},
        "store": str(path.parent / "maps.zarr"),
    } | changes
    path.write_text(yaml.safe_dump(settings))
    return path


def run(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "datasets/build.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


# the command


def test_two_workers_build_the_same_bytes_as_one(repository, tmp_path, tiny_simulation, tiny_store):
    """Maps, catalogue and description: the number of processes is not part of the plan."""
    config = write_config(tmp_path / "my.yaml", tiny_simulation)
    done = run(repository, tmp_path, "--config", str(config), "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "maps.zarr: 24 views of dm, gas, stars, hi, temperature, bfield, 32 pixels a side" in done.stdout
    assert files_of(tmp_path / "maps.zarr") == files_of(tiny_store)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "maps.zarr").rglob("*")}
    main(["--config", str(config)])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "maps.zarr").rglob("*")} == before, "nothing is built twice"


def test_the_shipped_default_with_its_parameters_turned_down(repository, tmp_path):
    """No configuration named: the toy simulation is written where it is told, and its maps are made."""
    small = {"galaxies": 4, "gas_cells": 64, "dm_particles": 64, "star_particles": 64}
    simulation = [f"--source.init_args.simulation.{key}={value}" for key, value in small.items()]
    least = '--source.init_args.minimum_particles={"gas": 10, "dm": 10, "stars": 10}'
    where = ["--source.init_args.path", "toy", "--store", "maps.zarr"]
    done = run(repository, tmp_path, *simulation, least, *where, "--pixels", "8", "--workers", "1")
    assert done.returncode == 0, done.stderr
    store = MapStore(tmp_path / "maps.zarr")
    store.require_complete()
    assert (store.views, store.pixels) == (16, 8)
    assert store.labels == ("disc", "spheroid", "merger")
    assert {p.name for p in tmp_path.iterdir()} == {"toy", "maps.zarr"}


def test_a_source_brings_its_own_defaults_along(repository, tmp_path):
    """Of the shipped configuration of cutouts: no least numbers of particles, which are those of a snapshot alone."""
    shipped = {}
    for path in sorted((repository / "configs/datasets").glob("*.yaml")):
        if path.stem.startswith(("download", "observe", "collect")):  # of other commands
            continue
        config, _ = parse(BuildConfig, ["--config", str(path)], None, "", (GalaxySource,))
        shipped[path.stem] = config.source
        assert not path.name.startswith("tng") or not isinstance(config.source, SyntheticSource)
    assert shipped["tng_cutouts"] == CutoutSource(["data/cutouts/*.hdf5"])
    assert isinstance(shipped["tng50_regions"], RegionSource)
    assert isinstance(shipped["synthetic"], SyntheticSource)
    bare = tmp_path / "bare.yaml"
    bare.write_text("pixels: 8\n")
    with pytest.raises(SystemExit):
        main(["--config", str(bare)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--domains", "[gas, temprature]"], r"unknown domain 'temprature'. Did you mean 'temperature'?"),
        (["--pixel", "8"], "did you mean 'pixels'"),
        (["--field_of_view.radius", "2"], "did you mean"),
        (["--source", "SnapshotSorce"], "did you mean 'SnapshotSource'"),
        (["--source.init_args.minimum_particle", "3"], "did you mean 'minimum_particles'"),
        (["--source.init_args.minimum_particles", '{"star": 10}'], "unknown kind of particle 'star'. Did you mean 'st"),
        (["--pixels", "many"], "pixels"),
        (["--pixels", "0"], "pixels must be at least 1, not 0"),
        (["--domains", "[]"], "domains is empty; name at least one"),
        (["--source.init_args.base_path", "nowhere"], "nowhere/snapdir_099 does not exist"),
        (["--field_of_view.of", "star"], "has no half-mass radius of 'star'"),
        (["--field_of_view.radii", "-1"], "radii"),
        (["--seed", "-1"], "seed"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (["--chunk_particles", "0"], "chunk_particles must be at least 1"),
        (["--retries", "-1"], "retries must be at least 0"),
        (["--max_failed_share", "5"], "max_failed_share is a share of the galaxies, 0 to 1, not 5"),
        (["--schedular", "tcp://there:1"], "did you mean 'scheduler'"),
        (["--store", "foo://bucket/maps.zarr"], "foo:// cannot be reached"),
        (["--recipes.molecular", "br60"], "br06"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_breath(capsys, tmp_path, tiny_simulation, arguments, message):
    """Status not 0, the message with the nearest name, no shard built. In this process; the next test runs one."""
    config = write_config(tmp_path / "my.yaml", tiny_simulation)
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(config), *arguments])
    assert caught.value.code not in (0, None)
    output = capsys.readouterr()
    assert message in output.err
    assert not list(tmp_path.rglob("part-*")), "no shard was built"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotatoins": 3}, "did you mean 'rotations'"),
        ({"source": {"class_path": "RegionSorce"}}, "did you mean 'RegionSource'"),
        ({"domains": ["gas", "bfeild"]}, "Did you mean 'bfield'?"),
    ],
)
def test_a_typing_error_in_the_file_is_no_traceback(repository, tmp_path, tiny_simulation, changes, message):
    config = write_config(tmp_path / "my.yaml", tiny_simulation, **changes)
    done = run(repository, tmp_path, "--config", str(config))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["my.yaml"]


def test_a_galaxy_that_cannot_be_read_stops_the_build_and_keeps_the_rest(tmp_path, write_cutout, arrays_of_a_cutout):
    """The third of four cutouts holds NaN: the error names it, the two before stay, and it goes on once mended."""
    for number in range(4):
        arrays = arrays_of_a_cutout(number)
        if number == 2:
            arrays["PartType0"]["Masses"][5] = np.nan
        write_cutout(tmp_path / f"c{number}.hdf5", arrays, header={"CutoutID": number})
    source = CutoutSource([str(tmp_path / "c*.hdf5")])
    view = FieldOfView(2.0, "gas")
    config = BuildConfig(source, str(tmp_path / "m.zarr"), ["gas", "stars"], 8, 2, view, skip_failed=False)
    with pytest.raises(GalaxyError, match=r"subhalo 2: 'mass' of gas is not finite in 1 of 40.*c2\.hdf5"):
        build_store(config, progress=False)
    store = MapStore(config.store)
    assert [store.is_done(shard) for shard in range(4)] == [True, True, False, False]
    with pytest.raises(StoreError, match="2 of 4 shards are missing"):
        store.require_complete()
    write_cutout(tmp_path / "c2.hdf5", arrays_of_a_cutout(2), header={"CutoutID": 2})
    assert build_store(config, progress=False).complete


def test_an_error_in_a_worker_is_the_same_error(repository, tmp_path, write_cutout, arrays_of_a_cutout):
    for number in range(3):
        arrays = arrays_of_a_cutout(number)
        if number == 1:
            arrays["PartType0"]["Masses"][5] = -1
        write_cutout(tmp_path / f"c{number}.hdf5", arrays, header={"CutoutID": number})
    source = {"class_path": "CutoutSource", "init_args": {"files": ["c*.hdf5"]}}
    view = {"radii": 2.0, "of": "gas"}
    settings = {"source": source, "domains": ["gas"], "rotations": 1, "field_of_view": view, "workers": 2}
    config = write_config(tmp_path / "my.yaml", tmp_path, **settings, store="m.zarr")
    done = run(repository, tmp_path, "--config", str(config), "--skip_failed", "false")
    assert done.returncode == 1
    assert "error: subhalo 1: negative 'mass' in 1 of 40 gas particles" in done.stderr
    assert "Traceback" not in done.stderr
    assert not MapStore(tmp_path / "m.zarr").is_done(1)


def test_cutouts_without_a_number_can_be_built(tmp_path, write_cutout, arrays_of_a_cutout):
    for name in ("one", "two"):
        write_cutout(tmp_path / f"{name}.hdf5", arrays_of_a_cutout(), without=("CutoutID",))
    source = CutoutSource([str(tmp_path / "*.hdf5")])
    config = BuildConfig(source, str(tmp_path / "m.zarr"), ["gas"], 8, 2, FieldOfView(2.0, "gas"))
    table = build_store(config, progress=False).catalogue()
    assert table["name"].tolist() == ["one", "one", "two", "two"]
    assert len(np.unique(np.asarray(table["rotation"])[:, 0, 0])) == 4


# what a store holds


def source_of(simulation: Path, **changes: object) -> SnapshotSource:
    return SnapshotSource(str(simulation / "output"), 99, **({"minimum_particles": FEW} | changes))  # type: ignore[arg-type]


def test_a_galaxy_has_its_rotations_whatever_shard_it_stands_in(tmp_path, tiny_simulation, tiny_store):
    """Galaxy 7 alone is galaxy 7 among twelve: the same views, the same maps, bit by bit."""
    alone = BuildConfig(
        source_of(tiny_simulation, galaxies=[7]), str(tmp_path / "m.zarr"), pixels=32, rotations=2,
        field_of_view=FieldOfView(4.0, "stars"),
    )  # fmt: skip
    one, all_twelve = build_store(alone, progress=False), MapStore(tiny_store)
    np.testing.assert_array_equal(one.catalogue()["rotation"], all_twelve.catalogue()["rotation"][14:16])
    for domain in one.domains:
        np.testing.assert_array_equal(one.maps(domain), all_twelve.maps(domain, [14, 15]))


def test_the_order_of_a_mapping_is_no_other_plan(tiny_simulation, tiny_store):
    """``minimum_particles`` of a YAML file stands in any order; the store is the same and is not built again."""
    backwards = dict(reversed(FEW.items()))
    config = BuildConfig(
        source_of(tiny_simulation, minimum_particles=backwards), str(tiny_store), pixels=32, rotations=2,
        field_of_view=FieldOfView(4.0, "stars"),
    )  # fmt: skip
    assert build_store(config, progress=False).complete


def test_more_rotations_and_other_seeds(tmp_path, tiny_simulation):
    base = BuildConfig(
        source_of(tiny_simulation, limit=3), str(tmp_path / "a.zarr"), ["stars"], 8, 3, FieldOfView(4.0, "stars")
    )
    first = build_store(base, progress=False).catalogue()["rotation"]
    other = build_store(replace(base, seed=1, store=str(tmp_path / "b.zarr")), progress=False).catalogue()["rotation"]
    assert not np.isclose(first, other).all(axis=(1, 2)).any()
    assert len(np.unique(np.round(first[:, 0], 9), axis=0)) == 9


def test_shards_in_any_order_give_the_same_store(tmp_path, tiny_simulation, tiny_store):
    """As when several machines build: last shard first, twice the same one."""
    config = BuildConfig(
        source_of(tiny_simulation), str(tmp_path / "m.zarr"), pixels=32, rotations=2,
        field_of_view=FieldOfView(4.0, "stars"),
    )  # fmt: skip
    items = config.source.items()
    whole = MapStore(tiny_store)
    store = MapStore.create(
        config.store, units=whole.units, views=24, pixels=32, shard_views=2, labels=whole.labels, plan=whole.plan
    )
    for shard in [*reversed(range(store.shards)), 3]:
        build_shard(config, items[shard : shard + 1], shard)
    build_store(config, progress=False)
    assert files_of(tmp_path / "m.zarr") == files_of(tiny_store)


def test_field_of_view_in_half_mass_radii_and_in_kpc(tmp_path, tiny_simulation):
    source = source_of(tiny_simulation, limit=3)
    radii = source._open().subhalos.half_mass_radius[:3]
    for of, column in (("gas", 0), ("dm", 1), ("stars", 4)):
        config = BuildConfig(source, str(tmp_path / f"{of}.zarr"), ["stars"], 8, 1, FieldOfView(1.5, of))
        side = build_store(config, progress=False).catalogue()["side"]
        np.testing.assert_allclose(side, 2 * 1.5 * radii[:, column], rtol=1e-14)
    config = BuildConfig(source, str(tmp_path / "kpc.zarr"), ["stars"], 8, 1, FieldOfView(kpc=30.0, depth=5.0))
    table = build_store(config, progress=False).catalogue()
    assert table["side"].tolist() == [30.0] * 3
    assert table["depth"].tolist() == [5.0] * 3
    # By definition half of the mass is within the half-mass radius in space, and more in projection
    config = BuildConfig(source, str(tmp_path / "half.zarr"), ["stars"], 64, 1, FieldOfView(1.0, "stars"))
    store = build_store(config, progress=False)
    y, x = (np.indices((64, 64)) + 0.5) / 32 - 1
    for number, image in enumerate(store.maps("stars")):
        pixel = (2 * radii[number, 4] / 64) ** 2
        disc = image[np.hypot(x, y) < 1].sum(dtype=np.float64) * pixel
        total = source.read(number, {"stars": set()}).particles["stars"].mass.sum()
        assert 0.48 < disc / total < 0.85  # kernels and pixels carry a few per cent across the rim


def test_fields_of_view_that_cannot_be():
    for view in ({"radii": 0.0}, {"radii": -1.0}, {"kpc": -5.0}, {"depth": -1.0}):
        (name,) = view
        with pytest.raises(SkyshiftError, match=f"field_of_view.{name}"):
            FieldOfView(**view)


def test_regions_of_the_real_subbox(shared, tmp_path):
    """Real gas, dark matter, HI and temperatures of density peaks: finite, positive, and of a galaxy's order."""
    source = RegionSource(str(shared / SUBBOX), limit=6, partial=True)
    config = BuildConfig(source, str(tmp_path / "m.zarr"), ["dm", "gas", "hi", "temperature", "bfield"], 32, 4)
    store = build_store(config, progress=False)
    assert store.views == 24
    table = store.catalogue()
    assert set(table["side"]) == set(table["depth"]) == {source.side} == {200.0}
    gas, hi, kelvin = (store.maps(name) for name in ("gas", "hi", "temperature"))
    assert (gas > 0).all(), "a box of gas has no empty line of sight"
    assert (hi <= 0.76 * gas * (1 + 1e-6)).all()
    assert kelvin.min() > 100
    assert kelvin.max() < 1e8
    # Seen from four sides, the gas of one region is the same but for the corners of the cube: within 40 %
    for number in range(6):
        mass = gas[4 * number : 4 * number + 4].sum(axis=(1, 2))
        assert np.ptp(mass) < 0.4 * mass.mean()
    assert not table["flags"].any()
