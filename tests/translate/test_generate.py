"""The command that translates many maps: nothing that belongs to a map is lost, and nothing that was there."""

import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from astropy.io import fits
from astropy.wcs import WCS

from skyshift.datasets.formats import read_maps, write_maps
from skyshift.datasets.store import Failure, MapStore, StoreError
from skyshift.files import location
from skyshift.translate.generate import main as generate
from skyshift.translate.train import main as train_command
from skyshift.translate.translator import Translator, store_maps

UNIT = "Msun / kpc2"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Maps are compared bit for bit, and sums of one thread and of two differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    return train(tmp_path_factory.mktemp("generate") / "run", tiny_store)


def train(folder, store, *options):
    """From gas to HI; the weights need not be good, but no constant."""
    AcceleratorState._reset_state(reset_partial_state=True)
    networks = "skyshift.translate.networks"
    config = {
        "data": {"store": str(store), "source": ["gas"], "target": ["hi"]},
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {"class_path": f"{networks}.unet.UNet", "init_args": {"width": 8, "depth": 2}},
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 2, "norm": "none"},
                },
            },
        },
        "training": {"steps": 20, "batch_size": 4, "precision": "no", "learning_rate": 0.001, "average": 0.9},
        "evaluation": False,
        "output": str(folder),
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    train_command(["--config", str(path), *options])
    return folder


@pytest.fixture(scope="module")
def hi(run, tiny_store):
    """What the maps of the store become."""
    values = Translator.from_pretrained(run)(MapStore(tiny_store))["hi"].values
    assert len(np.unique(values)) > 256
    return values


def go(run, source, output, *options):
    generate(["--checkpoint", str(run), "--input", str(source), "--output", str(output), *options])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        go(*arguments)
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def contents(path):
    """Every file of a folder, or of a file's folder, byte for byte."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def assert_same_maps(found, wanted):
    """Batches of another size are summed in another order."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


# --- stores


@pytest.fixture(scope="module")
def made(run, tiny_store, tmp_path_factory, repository):
    """A store that the real command made."""
    output = tmp_path_factory.mktemp("made") / "hi.zarr"
    script = repository / "translate" / "generate.py"
    options = ["--checkpoint", run, "--input", tiny_store, "--output", output]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, script, *options],
        env=environment,
        cwd=output.parent,
        check=True,
        text=True,
        capture_output=True,
    )
    assert f"{output}: {MapStore(tiny_store).views} maps of hi [{UNIT}], float32" in result.stdout
    return output


def test_a_store_becomes_a_store_with_the_same_catalogue(made, tiny_store, hi):
    old, new = MapStore(tiny_store), MapStore(made)
    assert new.complete
    assert new.units == {"hi": UNIT}
    assert (new.views, new.pixels, new.labels, new.shards) == (old.views, old.pixels, old.labels, old.shards)
    before, after = old.catalogue(), new.catalogue()
    assert before.colnames == after.colnames
    for name in before.colnames:
        if name != "flags":
            np.testing.assert_array_equal(np.asarray(before[name]), np.asarray(after[name]), err_msg=name)
    found = new.maps("hi")
    assert_same_maps(found, hi)
    np.testing.assert_array_equal(after["flags"] & 1, ~found.any(axis=(1, 2)))


def test_a_store_remembers_where_it_comes_from(made, tiny_store, run):
    plan = MapStore(made).plan
    assert plan["translated_from"] == str(tiny_store)
    assert plan["checkpoint"] == str(run / "checkpoints" / "step_0000020")
    assert plan["training"]["store"] == str(tiny_store)
    assert plan["plan"] == MapStore(tiny_store).plan


def test_an_interrupted_translation_goes_on_where_it_stopped(made, run, tiny_store, tmp_path):
    output = shutil.copytree(made, tmp_path / "hi.zarr")
    wanted = MapStore(made).maps("hi")
    store = MapStore(output)
    parts = sorted((output / "catalogue").iterdir())
    lost = 3
    parts[lost].unlink()
    marked = store.shard_rows(0)
    store._array("hi")[marked.start : marked.stop] = 7.0  # to see that a finished shard is left alone
    rows = store.shard_rows(lost)
    store._array("hi")[rows.start : rows.stop] = 0.0
    before = contents(output)
    with pytest.raises(Exception, match="is not finished: 1 of"):
        store.require_complete()
    go(run, tiny_store, output)
    after = MapStore(output).maps("hi")
    assert MapStore(output).complete
    assert (after[marked.start : marked.stop] == 7.0).all()
    np.testing.assert_array_equal(after[rows.start :], wanted[rows.start :])
    changed = {name for name, data in contents(output).items() if before.get(name) != data}
    assert len(changed) == 2  # the maps and the catalogue part of that shard


@pytest.mark.slow
def test_two_processes_make_the_store_of_one_and_go_on_with_what_one_began(made, run, tiny_store, tmp_path, repository):
    output = tmp_path / "two.zarr"
    go(run, tiny_store, output)
    begun = MapStore(output)
    for shard in range(1, begun.shards):
        begun.forget(shard)
    kept = (output / "catalogue").stat().st_mtime_ns, begun.done_shards()
    assert kept[1] == [0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--checkpoint", run, "--input", tiny_store, "--output", output]
    environment = {
        **os.environ,
        **{"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TQDM_DISABLE": "1"},
    }
    result = subprocess.run(
        [*torchrun, repository / "translate" / "generate.py", *options], env=environment, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "float32, by 2 processes" in result.stdout
    assert result.stdout.count(str(output)) == 1
    assert MapStore(output).complete
    assert MapStore(output).fingerprint == MapStore(made).fingerprint
    # A file cannot be shared.
    refused = subprocess.run(
        [*torchrun, repository / "translate" / "generate.py", *options[:-1], tmp_path / "hi.fits"],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert refused.returncode != 0
    assert "is one file, which 2 processes cannot share" in refused.stderr
    assert not (tmp_path / "hi.fits").exists()


def test_a_finished_translation_is_left_alone(made, run, tiny_store):
    before = contents(made)
    go(run, tiny_store, made)
    assert contents(made) == before


def test_a_run_that_was_moved_is_the_same(made, run, tiny_store, tmp_path):
    before = contents(made)
    go(shutil.copytree(run, tmp_path / "moved"), tiny_store, made)
    assert contents(made) == before


@pytest.mark.parametrize("place", ["another", "the same"])
def test_another_checkpoint_is_refused(capsys, made, run, tiny_store, tmp_path, place):
    """Also one that was trained anew in the place of the first: half of the maps would be of each."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    output = tmp_path / "hi.zarr"
    go(folder, tiny_store, output)
    sorted((output / "catalogue").iterdir())[0].unlink()
    before = contents(output)
    if place == "the same":
        shutil.rmtree(folder)
    else:
        folder = tmp_path / "other"
    train(folder, tiny_store, "--training.learning_rate", "0.002")
    capsys.readouterr()
    message = refused(capsys, folder, tiny_store, output)
    assert f"{output} was made from another store or checkpoint; choose another output or delete this one" in message
    assert contents(output) == before


def test_another_precision_is_refused(capsys, made, run, tiny_store):
    before = contents(made)
    assert "was made from another store or checkpoint" in refused(capsys, run, tiny_store, made, "--precision", "bf16")
    assert contents(made) == before


def test_what_is_no_store_is_not_written_over(capsys, run, tiny_store, tmp_path):
    output = tmp_path / "mine.zarr"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    assert f"{output} is no map store" in refused(capsys, run, tiny_store, output)
    assert contents(output) == {"thesis.txt": b"mine"}


def test_an_unfinished_store_is_refused(capsys, run, tiny_store, tmp_path):
    source = shutil.copytree(tiny_store, tmp_path / "source.zarr")
    sorted((source / "catalogue").iterdir())[1].unlink()
    for output in (tmp_path / "hi.zarr", tmp_path / "hi.fits"):
        assert f"{source} is not finished: 1 of" in refused(capsys, run, source, output)
        assert not output.exists()


def test_a_store_becomes_a_file(run, tiny_store, tmp_path, hi):
    output = tmp_path / "hi.fits"
    go(run, tiny_store, output)
    maps = read_maps(output)["hi"]
    assert_same_maps(maps.values, hi)
    assert maps.unit == UNIT
    catalogue = MapStore(tiny_store).catalogue()
    np.testing.assert_array_equal(maps.side, np.asarray(catalogue["side"]))
    assert maps.names == tuple(f"{name} view {view}" for name, view in catalogue["name", "view"])
    with fits.open(output) as hdus:
        assert hdus[0].header["BITPIX"] == -32


# --- files


@pytest.fixture
def image(tiny_store, tmp_path):
    """A telescope's image of one map: a celestial WCS, an object, a unit that is not the checkpoint's."""
    maps = store_maps(MapStore(tiny_store), ["gas"], [8])["gas"].to("g / cm2")
    header = fits.Header()
    header["BUNIT"] = "g / cm2"
    header["OBJECT"] = "NGC 2403"
    header["TELESCOP"] = "WSRT"
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"], header["CRPIX2"] = 16.5, 16.5
    header["CRVAL1"], header["CRVAL2"] = 114.214, 65.603
    header["CDELT1"], header["CDELT2"] = -0.001, 0.001
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    path = tmp_path / "galaxy.fits"
    fits.writeto(path, maps.values[0], header)
    return path


def test_an_image_keeps_its_place_on_the_sky(run, image, tmp_path, hi):
    output = tmp_path / "galaxy_hi.fits"
    go(run, image, output, "--domain", "gas")
    with fits.open(image) as before, fits.open(output) as after:
        header, values = after[0].header, after[0].data
        assert (header["BITPIX"], values.shape) == (-32, (32, 32))
        assert (header["BUNIT"], header["DOMAIN"]) == (UNIT, "hi")
        assert (header["OBJECT"], header["TELESCOP"]) == ("NGC 2403", "WSRT")
        corners = np.array([[0, 0], [31, 0], [0, 31], [31, 31]])
        skies = [WCS(hdus[0].header).all_pix2world(corners, 0) for hdus in (before, after)]
        np.testing.assert_array_equal(*skies)
        assert_same_maps(values.astype(np.float32), hi[8])
        assert len(np.unique(values)) > 256  # not of eight bits


@pytest.mark.parametrize("suffix", [".hdf5", ".npy", ".fits", ".fits.gz"])
def test_a_file_becomes_a_file_of_its_kind(run, tiny_store, tmp_path, hi, suffix):
    source, output = tmp_path / f"gas{suffix}", tmp_path / f"hi{suffix}"
    given = store_maps(MapStore(tiny_store), ["gas"], [2, 8, 9])
    write_maps(source, given)
    go(run, source, output)
    maps = read_maps(output)["hi"]
    assert_same_maps(maps.values, hi[[2, 8, 9]])
    assert (maps.unit, maps.names) == (UNIT, given["gas"].names)
    np.testing.assert_array_equal(maps.side, given["gas"].side)
    assert maps.provenance.startswith("translated from gas (")
    if suffix == ".hdf5":
        with h5py.File(output) as file:
            assert file["hi"].dtype == np.float32


def test_a_bare_array_needs_its_domain_and_unit(capsys, run, tmp_path, tiny_store, hi):
    source, output = tmp_path / "gas.npy", tmp_path / "hi.hdf5"
    np.save(source, MapStore(tiny_store).maps("gas", [8])[0])
    assert "does not say the domain of its maps; name it with --domain" in refused(capsys, run, source, output)
    message = refused(capsys, run, source, output, "--domain", "gas")
    assert f"{source} does not say the unit of its maps; name it with --unit" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gas.npy"]
    go(run, source, output, "--domain", "gas", "--unit", UNIT)
    assert_same_maps(read_maps(output)["hi"].values, hi[[8]])


@pytest.mark.parametrize("name", ["hi.fits", "hi.hdf5", "hi.npy"])
def test_an_output_that_is_there_is_left_alone(capsys, run, image, tmp_path, name):
    output = tmp_path / name
    output.write_text("mine")
    before = contents(tmp_path)
    message = refused(capsys, run, image, output, "--domain", "gas")
    assert f"{output} exists already; choose another output or delete it" in message
    assert contents(tmp_path) == before


def test_the_description_of_another_array_is_left_alone(capsys, run, image, tmp_path):
    (tmp_path / "hi.json").write_text("mine")
    before = contents(tmp_path)
    message = refused(capsys, run, image, tmp_path / "hi.npy", "--domain", "gas")
    assert f"{tmp_path / 'hi.json'} exists already" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["hi.png", "hi", "hi.jpg", "hi.fits.bz2"])
def test_an_unknown_kind_of_file_is_refused_before_the_work(capsys, image, tmp_path, name):
    message = refused(capsys, tmp_path / "no_checkpoint", image, tmp_path / name)
    assert "maps are read from and written to .fits" in message
    assert not (tmp_path / name).exists()


def test_what_cannot_be_is_refused_before_the_work(capsys, image, tmp_path):
    nothing = tmp_path / "no_checkpoint"
    assert "it has no catalogue for a store" in refused(capsys, nothing, image, tmp_path / "hi.zarr")
    missing = tmp_path / "missing.zarr"
    assert f"there is no {missing} to translate" in refused(capsys, nothing, missing, tmp_path / "hi.zarr")
    assert f"{nothing} holds no checkpoint" in refused(capsys, nothing, image, tmp_path / "hi.fits")
    with pytest.raises(SystemExit):
        generate(["--checkpoint", str(nothing), "--output", str(tmp_path / "hi.fits")])
    assert "name what to translate (--input) and where to write it (--output)" in capsys.readouterr().err


def test_blank_pixels_are_refused_and_nothing_is_written(capsys, run, image, tmp_path):
    with fits.open(image, mode="update") as hdus:
        hdus[0].data[4, 5] = np.nan
    assert "1 of 1 maps of 'gas' hold values that are not finite" in refused(
        capsys, run, image, tmp_path / "hi.fits", "--domain", "gas"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["galaxy.fits"]


def test_stores_on_object_storage(run, tiny_store, tmp_path, hi, capsys):
    """From and to an address, and going on there; files are on a disk."""
    place = location("memory://generate/maps.zarr")
    place.fs.put(str(tiny_store), place.path, recursive=True)
    go(run, place, "memory://generate/hi.zarr")
    go(run, place, "memory://generate/hi.zarr")
    assert capsys.readouterr().out.count("memory://generate/hi.zarr: 24 maps of hi") == 2
    made = MapStore("memory://generate/hi.zarr")
    assert made.complete
    assert_same_maps(made.maps("hi"), hi)
    go(run, place, tmp_path / "hi.npy")
    assert_same_maps(np.load(tmp_path / "hi.npy"), hi)
    only = "only stores are on object storage; files are read and written on a disk"
    assert f"memory://generate/hi.fits (--output): {only}" in refused(capsys, run, place, "memory://generate/hi.fits")
    assert "there is no memory://generate/none.zarr to translate" in refused(
        capsys, run, "memory://generate/none.zarr", tmp_path / "x.zarr"
    )


def test_galaxies_that_are_missing_stay_missing(run, tiny_store, tmp_path, hi, capsys):
    """A store of which a galaxy could not be built: the others are translated as ever, and its reason goes along."""
    store = MapStore(shutil.copytree(tiny_store, tmp_path / "maps.zarr"))
    lost = Failure(3, (6, 7), "GalaxyError", "subhalo 3 is broken")
    store.write_shard(3, {name: np.zeros((0, 32, 32)) for name in store.domains}, [], [lost])
    there = [view for view in range(24) if view not in lost.views]
    go(run, store.path, tmp_path / "hi.zarr")
    assert "hi.zarr: 22 maps of hi" in capsys.readouterr().out
    made = MapStore(tmp_path / "hi.zarr")
    assert made.complete
    assert made.failures() == [lost]
    assert made.catalogue()["view"].tolist() == there
    assert_same_maps(made.maps("hi", there), hi[there])
    with pytest.raises(StoreError, match=r"there is no view 6: galaxy 3 of the source could not be built .*is broken"):
        made.maps("hi", [6])
    go(run, store.path, tmp_path / "hi.fits")
    assert len(read_maps(tmp_path / "hi.fits")["hi"].values) == 22
