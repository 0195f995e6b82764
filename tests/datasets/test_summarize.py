"""``summarize.py``: what it says of stores, files and snapshots is what an independent look at them says."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from matplotlib.image import imread

from skyshift.datasets import summary
from skyshift.datasets.formats import write_maps
from skyshift.datasets.maps import Maps
from skyshift.datasets.store import MapStore, ViewRecord
from skyshift.datasets.summarize import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code in (1, 2)
    return capsys.readouterr().err.strip()


def store_of(path: Path, shards: int = 3) -> MapStore:
    """20 views of 5 galaxies in two snapshots; the first galaxy has no HI; only ``shards`` of 3 are built."""
    store = MapStore.create(
        path, units={"gas": "Msun / kpc2", "hi": "Msun / kpc2"}, views=20, pixels=4, shard_views=8, labels=("a", "b")
    )
    eye = tuple(np.eye(3).ravel())
    for shard in range(shards):
        rows = store.shard_rows(shard)
        gas = np.stack([np.full((4, 4), 1.0 + v, np.float32) for v in rows])
        hi = np.stack([np.full((4, 4), 0.0 if v < 4 else 5.0, np.float32) for v in rows])
        records = [
            ViewRecord(v, v // 4, f"subhalo {v // 4}", v // 4, 67 + 32 * (v >= 8), 0.5 * (v < 8), eye,
                       8.0 + v, 0.0, v % 2, 2 * (v < 4))
            for v in rows
        ]  # fmt: skip
        store.write_shard(shard, {"gas": gas, "hi": hi}, records)
    return store


def test_a_store(tmp_path, capsys):
    store_of(tmp_path / "s.zarr")
    text = run(
        capsys, str(tmp_path / "s.zarr"), "--json", str(tmp_path / "s.json"), "--figure", str(tmp_path / "s.png")
    )
    facts = json.loads((tmp_path / "s.json").read_text())
    assert facts["complete"] is True
    assert facts["catalogue"] == {
        "views": 20,
        "galaxies": 5,
        "split_groups": 5,
        "snapshots": {"67": 8, "99": 12},
        "redshift": [0.0, 0.5],
        "kpc_per_pixel": [2.0, 4.375, 6.75],
        "labels": {"a": 10, "b": 10},
    }
    gas, hi = facts["domains"]["gas"], facts["domains"]["hi"]
    assert (gas["min"], gas["50 %"], gas["max"], gas["nan"]) == (1.0, 10.5, 20.0, 0)
    assert (hi["empty maps"], hi["zero share"], hi["unit"]) == (4, 0.2, "Msun / kpc2")
    assert "store of 20 views, whole" in text
    assert "galaxies: 5 in 5 split groups" in text
    assert imread(tmp_path / "s.png").std() > 0.1


def test_an_unfinished_store_and_its_failures(tmp_path, capsys):
    store = store_of(tmp_path / "s.zarr", shards=2)
    (tmp_path / "s.zarr" / "failures.json").write_text(json.dumps([{"galaxy": 7, "message": "its file is cut off"}]))
    text = run(capsys, str(store.path))
    assert "store of 16 views, not finished, 2 of 3 shards" in text
    assert "galaxies that could not be built: 1" in text
    assert "galaxy 7: its file is cut off" in text
    empty = store_of(tmp_path / "e.zarr", shards=0)
    assert "store of 0 views, not finished, 0 of 3 shards" in run(capsys, str(empty.path))


def test_of_a_large_store_a_sample_is_read_and_said_so(tmp_path, capsys, monkeypatch):
    """Values are of the sample; maps and empty maps are of all. Large maps make the sample smaller."""
    store = store_of(tmp_path / "s.zarr")
    text = run(capsys, str(store.path), "--sample", "6", "--json", str(tmp_path / "s.json"))
    facts = json.loads((tmp_path / "s.json").read_text())["domains"]
    assert "values below are of 6 views chosen at random; maps and empty maps count all" in text
    assert (facts["hi"]["sampled"], facts["hi"]["maps"], facts["hi"]["empty maps"]) == (6, 20, 4)
    assert run(capsys, str(store.path), "--sample", "6") == text, "the same sample again"
    monkeypatch.setattr(summary, "SAMPLE_PIXELS", 3 * 16)
    assert "values below are of 3 views" in run(capsys, str(store.path))


def test_a_file_with_blank_pixels(tmp_path, capsys):
    """NaN, infinity, zeros and empty maps are counted; ranges are of what is finite; the figure draws grey."""
    values = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
    values[0, 0, 1], values[1, 2, 2], values[2] = np.nan, np.inf, 0
    path = write_maps(tmp_path / "m.hdf5", {"velocity": Maps(values, "velocity", "km / s", np.full(3, 30.0))})
    text = run(capsys, str(path), "--json", str(tmp_path / "m.json"), "--figure", str(tmp_path / "m.png"))
    facts = json.loads((tmp_path / "m.json").read_text())["domains"]["velocity"]
    finite = values[np.isfinite(values)]
    assert (facts["nan"], facts["infinite"], facts["empty maps"]) == (1, 1, 1)
    assert facts["zero share"] == pytest.approx(17 / 48)
    assert facts["99 %"] == pytest.approx(float(np.quantile(finite, 0.99)))
    assert (facts["min"], facts["max"]) == (0, 31)
    assert "sides of 30 to 30 kpc" in text
    only_blank = write_maps(tmp_path / "n.npy", {"gas": Maps(np.full((1, 4, 4), np.nan, np.float32), "gas", "K")})
    assert "–" in run(capsys, str(only_blank), "--figure", str(tmp_path / "n.png"))


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_real_telescope_files(shared: Path, tmp_path, capsys):
    """Files that say no domain and no unit, six images of one kind, a cube: each is listed with its size on the sky."""
    decals = run(capsys, str(shared / "optical/decals_cutout_59.1067_-30.4848.fits"))
    assert "6 domains" in decals
    assert "image 3: sides of 67.07 arcsec" in decals  # 256 pixels of 0.262 arcsec
    assert decals.count("not stated") == 6
    cube = run(
        capsys, str(shared / "hi/ngc6946_wsrt.fits"), "--domain", "cube", "--figure", str(tmp_path / "c.png"),
        "--columns", "3",
    )  # fmt: skip
    assert "cube: VELO -154.8 km/s … VELO 265.2 km/s" in cube
    assert "Jy / beam" in cube
    assert imread(tmp_path / "c.png").std() > 0.1
    kids = run(capsys, str(shared / "optical/sdss_kids/G265911_KiDS_fitim.fits"), "--unit", "mJy")
    assert "not stated" not in kids


def test_the_real_subbox_and_cutouts(shared: Path, capsys, tmp_path):
    """Counts of the data's own description: 24,789 gas cells, 26,060 dark matter, 266 stars, chunk 7 of 11 absent."""
    folder = shared / "tng/TNG50-4-Subbox0/output/snapdir_2332"
    text = run(capsys, str(folder), "--json", str(tmp_path / "s.json"))
    assert "1 of 11 chunks are not there" in text
    counts = json.loads((tmp_path / "s.json").read_text())["counts"]
    assert counts["PartType0 (gas)"] == 24_789
    assert counts["PartType1 (dark matter)"] == 26_060
    assert counts["PartType4 (stars and wind)"] == 266
    empty = run(capsys, str(shared / "tng/cutouts/TNG50-1_snap0_halo67_empty.hdf5"))
    assert "cutout without particles" in empty
    message = refusal(capsys, str(folder), "--figure", str(tmp_path / "s.png"))
    assert "holds no maps to draw; leave out --figure" in message
    assert not (tmp_path / "s.png").exists()


def test_a_cutout_and_any_other_hdf5_file(write_cutout, tmp_path, capsys):
    text = run(capsys, str(write_cutout(tmp_path / "c.hdf5")))
    assert "cutout, 1 file" in text
    assert "PartType0 (gas): 40" in text
    assert "SimulationName: L75n1820TNG" in text
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["weights/a"] = np.ones(7)
    assert "weights/a" in run(capsys, str(tmp_path / "other.hdf5"))


def test_a_stack_of_no_maps_has_no_contact_sheet(tmp_path, capsys):
    np.save(tmp_path / "m.npy", np.zeros((0, 8, 8), np.float32))
    assert "0" in run(capsys, str(tmp_path / "m.npy"))
    figure = tmp_path / "m.png"
    message = refusal(capsys, str(tmp_path / "m.npy"), "--figure", str(figure))
    assert "m.npy holds no maps to draw; leave out --figure" in message
    assert not figure.exists()


def test_what_is_none_of_these(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "cut.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "none.fits")
    np.save(tmp_path / "line.npy", np.arange(4))
    foreign = tmp_path / "foreign.zarr"
    foreign.mkdir()
    (foreign / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for path, message in (
        ("gone.fits", "there is no "),
        ("folder", "neither a store of maps (it has no zarr.json) nor a snapshot"),
        ("x.png", "maps are read from and written to .fits"),
        ("cut.hdf5", "cut.hdf5 cannot be read"),
        ("none.fits", "none.fits holds no maps"),
        ("line.npy", "maps have two axes, stacks of maps three, not 1"),
        ("foreign.zarr", "is a Zarr group, but not one that skyshift wrote"),
    ):
        assert message in refusal(capsys, str(tmp_path / path)), path
    assert "name what to summarize" in refusal(capsys)
    assert "--sample is 1 or more, not 0" in refusal(capsys, str(tmp_path), "--sample", "0")
