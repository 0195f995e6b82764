"""Galaxies that cannot be built: written down and left out, and the rest is as if they had never been there."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from skyshift.datasets.build import build_store, main
from skyshift.datasets.galaxy import GalaxyError
from skyshift.datasets.loading import MapDataset, Split, split_views
from skyshift.datasets.scaling import fit_scaling
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import CutoutSource
from skyshift.datasets.store import Failure, MapStore, StoreError
from skyshift.errors import SkyshiftError

GALAXIES, BAD = 12, {2: "not finite", 5: "Can't synchronously read data", 7: "asked for", 8: "negative 'mass'"}
MINIMUM = {"gas": 20}


def corrupt_chunk(path: Path) -> None:
    """Compress the masses of the gas, and spoil the bytes of their only chunk."""
    with h5py.File(path, "r+") as file:
        group = file["PartType0"]
        values, attributes = group["Masses"][()], dict(group["Masses"].attrs)
        del group["Masses"]
        made = group.create_dataset("Masses", data=values, chunks=values.shape, compression="gzip")
        made.attrs.update(attributes)
        where = made.id.get_chunk_info(0)
        start, size = where.byte_offset, where.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory, write_cutout, arrays_of_a_cutout) -> Path:
    """Twelve cutout files: one with NaN, one with a corrupt chunk, one of too few cells, one of negative mass."""
    folder = tmp_path_factory.mktemp("cutouts")
    for number in range(GALAXIES):
        arrays = arrays_of_a_cutout(number)
        if number == 2:
            arrays["PartType0"]["Masses"][5] = np.nan
        if number == 7:
            arrays["PartType0"] = {name: value[:19] for name, value in arrays["PartType0"].items()}
        if number == 8:
            arrays["PartType0"]["Masses"][5] = -1.0
        path = write_cutout(folder / f"c{number:02d}.hdf5", arrays, header={"CutoutID": number})
        if number == 5:
            corrupt_chunk(path)
    return folder


def config(cutouts: Path, store: Path, only_good: bool = False, **changes) -> BuildConfig:
    files = [str(cutouts / f"c{n:02d}.hdf5") for n in range(GALAXIES) if not (only_good and n in BAD)]
    values = {"domains": ["gas", "temperature"], "pixels": 8, "rotations": 2, "max_failed_share": 0.4, "retries": 0}
    return BuildConfig(
        CutoutSource(files, MINIMUM), str(store), field_of_view=FieldOfView(2.0, "gas"), **(values | changes)
    )


@pytest.fixture(scope="module")
def with_holes(cutouts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("holes") / "maps.zarr"
    build_store(config(cutouts, path), progress=False)
    return path


def test_the_rest_is_as_if_they_had_never_been_there(with_holes, cutouts, tmp_path):
    """Maps and rows of the other eight galaxies, bit by bit, but for the number of the row; and all are there."""
    store = MapStore(with_holes)
    good = build_store(config(cutouts, tmp_path / "good.zarr", only_good=True), progress=False)
    assert store.complete
    table, wanted = store.catalogue(), good.catalogue()
    assert table["view"].tolist() == [view for view in range(24) if view // 2 not in BAD]
    assert len(table) == len(store.records()) == len(wanted) == 16
    for name in set(table.colnames) - {"view", "split_group"}:  # the split group is the number of the file in the list
        np.testing.assert_array_equal(table[name], wanted[name])
    for domain in store.domains:
        maps = store.maps(domain, table["view"])
        np.testing.assert_array_equal(maps, good.maps(domain))
        np.testing.assert_array_equal(maps, store.maps(domain)), "without a choice: all that there are"


def test_what_is_missing_is_no_map_of_zeros(with_holes):
    """NaN for who reads the array with another reader, and a refusal with the reason for who asks this package."""
    store = MapStore(with_holes)
    raw = zarr.open_group(with_holes, mode="r")["maps/gas"][:]
    assert np.isnan(raw).all(axis=(1, 2)).tolist() == [view // 2 in BAD for view in range(24)]
    assert np.isfinite(raw[~np.isnan(raw)]).all()
    for galaxy, reason in BAD.items():
        with pytest.raises(StoreError, match=rf"there is no view {2 * galaxy + 1}: galaxy {galaxy} of the source") as e:
            store.maps("gas", [0, 2 * galaxy + 1])
        assert reason in str(e.value)


def test_every_reason_is_written_down(with_holes, capsys):
    entries = json.loads((with_holes / "failures.json").read_text())
    assert [entry["galaxy"] for entry in entries] == list(BAD)
    for entry, (galaxy, reason) in zip(entries, BAD.items(), strict=True):
        assert (entry["shard"], entry["views"]) == (galaxy, [2 * galaxy, 2 * galaxy + 1])
        assert reason in entry["message"]
        assert entry["error"].endswith("Error")
        assert entry["time"].endswith("+00:00")
    assert [(f.galaxy, f.message) for f in MapStore(with_holes).failures()] == [
        (entry["galaxy"], entry["message"]) for entry in entries
    ]


def test_the_command_ends_well_and_loud(cutouts, tmp_path, capsys):
    values = ["--domains", "[gas]", "--pixels", "8", "--rotations", "2", "--field_of_view", '{"radii": 2, "of": "gas"}']
    source = ["--source", "CutoutSource", "--source.files", f'["{cutouts}/*.hdf5"]']
    source += ["--source.minimum_particles", '{"gas": 20}', "--store", str(tmp_path / "m.zarr")]
    (tmp_path / "none.yaml").write_text("retries: 0\n")
    arguments = ["--config", str(tmp_path / "none.yaml"), *source, *values, "--max_failed_share", "0.34"]
    main(arguments)
    first = capsys.readouterr()
    assert "m.zarr: 16 views of gas, 8 pixels a side" in first.out
    assert "WARNING: 4 of 12 galaxies could not be built and are left out" in first.err
    assert "Galaxy 2 of the source: GalaxyError: subhalo 2: 'mass' of gas is not finite" in first.err
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "m.zarr").rglob("part-*")}
    main(arguments)
    assert "WARNING: 4 of 12 galaxies" in capsys.readouterr().err, "it is said each time"
    assert {p: p.stat().st_mtime_ns for p in before} == before, "but not tried each time"


def test_too_many_failures_are_refused_and_tried_again(cutouts, tmp_path):
    """Nothing built is lost, the store does not pass for whole, and a larger share, or mended files, make it so."""
    strict = config(cutouts, tmp_path / "m.zarr", max_failed_share=0.2)
    with pytest.raises(
        StoreError, match=r"3 of 12 galaxies could not be built, max_failed_share is 0\.2\. Galaxy 2 of"
    ):
        build_store(strict, progress=False)
    store = MapStore(tmp_path / "m.zarr")
    assert store.done_shards() == [0, 1, 3, 4, 6]
    assert not store.complete
    with pytest.raises(StoreError, match="7 of 12 shards are missing"):
        store.require_complete()
    with pytest.raises(StoreError, match="3 of 12 galaxies could not be built"):
        build_store(strict, progress=False)
    assert build_store(config(cutouts, tmp_path / "m.zarr"), progress=False).complete


def test_a_wrong_configuration_stops_early(cutouts, tmp_path):
    """Where nothing can be built at all, twenty galaxies are enough to see it, whatever share may fail."""
    one = str(cutouts / "c00.hdf5")
    copies = [tmp_path / f"{n:02d}.hdf5" for n in range(30)]
    for path in copies:
        path.write_bytes(Path(one).read_bytes())
    source, view = CutoutSource([str(path) for path in copies]), FieldOfView(1.0, "comets")
    hopeless = BuildConfig(source, str(tmp_path / "m.zarr"), ["gas"], 8, 1, view, max_failed_share=1.0)
    with pytest.raises(StoreError, match=r"20 of 30 galaxies could not be built.*half-mass radius of 'comets'"):
        build_store(hopeless, progress=False)


def test_mended_galaxies_are_built_when_asked(cutouts, tmp_path, write_cutout, arrays_of_a_cutout):
    """The store with one galaxy mended is, in all its files, the one that was never broken there."""
    folder = tmp_path / "files"
    folder.mkdir()
    for path in cutouts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    build_store(config(folder, tmp_path / "m.zarr"), progress=False)
    before = MapStore(tmp_path / "m.zarr").fingerprint
    for number in BAD:
        write_cutout(folder / f"c{number:02d}.hdf5", arrays_of_a_cutout(number), header={"CutoutID": number})
    assert len(build_store(config(folder, tmp_path / "m.zarr"), progress=False).catalogue()) == 16, "only when asked"
    again = build_store(config(folder, tmp_path / "m.zarr", retry_failed=True), progress=False)
    assert len(again.catalogue()) == 24
    assert not again.failures()
    assert not (tmp_path / "m.zarr/failures.json").exists()
    fresh = build_store(config(folder, tmp_path / "fresh.zarr"), progress=False)
    assert again.fingerprint == fresh.fingerprint != before
    assert MapStore(tmp_path / "m.zarr").verify() == {}


def test_splits_and_loaders_take_a_store_with_holes(with_holes):
    store = MapStore(with_holes)
    parts = split_views(store.catalogue(), Split(0.5, 0.25, 0.25))
    assert sorted(view for views in parts.values() for view in views) == store.catalogue()["view"].tolist()
    scalings = {name: fit_scaling("asinh", store.maps(name, parts["train"])) for name in store.domains}
    data = MapDataset(store, ["gas"], ["temperature"], parts["train"], scalings)
    for view in parts["train"]:
        assert np.isfinite(data[int(view)]["source"].numpy()).all()


def test_a_failure_must_account_for_its_views(tmp_path):
    """A shard takes all its views, as maps or as failures; what is neither is refused."""
    store = MapStore.create(tmp_path / "m.zarr", units={"gas": "Msun / kpc2"}, views=4, pixels=4, shard_views=4)
    lost = Failure(0, (0, 1), "GalaxyError", "broken")
    with pytest.raises(StoreError, match="shard 0 holds views 0 to 3, not those given"):
        store.write_shard(0, {"gas": np.zeros((0, 4, 4))}, [], [lost])
    store.write_shard(0, {"gas": np.zeros((0, 4, 4))}, [], [lost, Failure(1, (2, 3), "GalaxyError", "broken too")])
    assert store.complete
    assert len(store.catalogue()) == 0
    assert store.maps("gas").shape == (0, 4, 4)


def test_stopping_at_the_first(cutouts, tmp_path):
    """The error of the galaxy itself; one that is not this package's is put into words."""
    with pytest.raises(GalaxyError, match="subhalo 2: 'mass' of gas is not finite"):
        build_store(config(cutouts, tmp_path / "m.zarr", skip_failed=False), progress=False)
    source = CutoutSource([str(cutouts / "c05.hdf5")])
    view = FieldOfView(2.0, "gas")
    corrupt = BuildConfig(source, str(tmp_path / "c.zarr"), ["gas"], 8, 1, view, skip_failed=False, retries=0)
    with pytest.raises(SkyshiftError, match=r"(c05|galaxy 0 of the source cannot be built).*"):
        build_store(corrupt, progress=False)


FLAKY = """
from pathlib import Path
from skyshift.datasets.domains import Domain

def quantity(galaxy, recipes, view):
    marker = Path(__file__).with_name(f"tried{galaxy.number}")
    if galaxy.number in (1, 3) and len(list(marker.parent.glob(marker.name + "*"))) < galaxy.number:
        marker.with_name(marker.name + "x" * len(list(marker.parent.glob(marker.name + "*")))).touch()
        raise OSError(5, "Input/output error")
    return galaxy.particles["gas"].mass

DOMAINS = [Domain("flaky", "Flaky", "Msun / kpc2", "gas", quantity)]
"""


def test_what_the_file_system_refuses_for_a_moment_is_tried_again(cutouts, tmp_path):
    """Galaxy 1 fails once and galaxy 3 three times with an input/output error: one retry builds the first, and not the
    second, whose error is written down. A domain file is part of what a store is."""
    (tmp_path / "flaky.py").write_text(FLAKY)
    source, view = CutoutSource([str(cutouts / f"c{number:02d}.hdf5") for number in (0, 1, 3, 4)]), FieldOfView(kpc=20)
    settings = {"domain_files": [str(tmp_path / "flaky.py")], "retries": 1, "max_failed_share": 0.5}
    config = BuildConfig(source, str(tmp_path / "m.zarr"), ["flaky"], 8, 1, view, **settings)
    store = build_store(config, progress=False)
    (failure,) = store.failures()
    assert (failure.galaxy, failure.error, failure.message) == (2, "OSError", "[Errno 5] Input/output error")
    assert store.catalogue()["galaxy"].tolist() == [0, 1, 4]
    (tmp_path / "flaky.py").write_text(FLAKY + "\n# another recipe\n")
    with pytest.raises(StoreError, match=r"was built with domain_files = \{'flaky.py': "):
        build_store(config, progress=False)
