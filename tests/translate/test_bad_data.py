"""Data that cannot be trained on: constant domains, maps that are not finite, sizes that differ. Nothing is lost."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from accelerate.state import AcceleratorState

from skyshift.datasets import loading
from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.store import MapStore
from skyshift.translate.train import main

TINY = [
    "--data.build=",
    "--training.batch_size=2",
    "--training.checkpoint_every=1",
    "--training.sample_every=0",
    "--method.init_args.generator.init_args.width=4",
    "--method.init_args.discriminator.init_args.width=4",
    "--evaluation=false",
]


@pytest.fixture(autouse=True, scope="module")
def launch():
    """Accelerate keeps the launch for the whole process; these runs have one of their own."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def copy(tiny_store, tmp_path) -> Path:
    """The tiny store, to be spoilt."""
    return Path(shutil.copytree(tiny_store, tmp_path / "maps.zarr"))


def spoil(store: Path, domain: str, view: int, value: float) -> None:
    """Write into the array itself, as a store would never be written."""
    array = zarr.open_array(store / "maps" / domain, mode="r+")
    maps = np.asarray(array[view])
    maps[3:20, 4] = value  # not the first pixel, by which a store marks what it lacks
    array[view] = maps


def constant(store: MapStore, path: Path, domain: str, value: float) -> Path:
    """The same store of gas and hi, with one value in all pixels of a domain."""
    units = {name: store.units[name] for name in ("gas", "hi")}
    made = MapStore.create(path, units=units, views=store.views, pixels=store.pixels, shard_views=store.views)
    maps = {name: store.maps(name) for name in units}
    maps[domain] = np.full_like(maps[domain], value)
    made.write_shard(0, maps, [replace(record, flags=0) for record in store.records()])
    return path


def refused(capsys, store: Path, output: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(["--data.store", str(store), "--output", str(output), *TINY, *options])
    assert error.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(("domain", "value"), [("hi", 0.0), ("gas", 2.5e6)])
def test_a_constant_domain_is_refused_before_training(tiny_store, tmp_path, capsys, domain, value):
    store = constant(MapStore(tiny_store), tmp_path / "constant.zarr", domain, value)
    said = refused(capsys, store, tmp_path / "run", "--training.steps=2")
    assert f"every pixel of {domain} is {value:.6g} Msun / kpc2 in all" in said
    assert "Take another domain, or look why" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_one_training_map_that_is_not_finite_is_named_before_training(copy, tmp_path, capsys):
    view = int(split_views(MapStore(copy).catalogue(), Split())["train"][2])
    spoil(copy, "gas", view, np.inf)
    said = refused(capsys, copy, tmp_path / "run", "--training.steps=2")
    assert f"the map of gas in view {view} holds values that are not finite (so do 1 of" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_batch_that_is_not_finite_stops_the_run_and_loses_nothing(copy, tmp_path, capsys, monkeypatch):
    """In a large store scalings are fitted on some views; here on one, and any of the others is not a number."""
    monkeypatch.setattr(loading, "FIT_VIEWS", 1)
    run, training = tmp_path / "run", split_views(MapStore(copy).catalogue(), Split())["train"]
    fitted = int(np.random.default_rng(0).choice(training, 1, replace=False)[0])
    main(
        [
            "--data.store",
            str(copy),
            "--output",
            str(run),
            *TINY,
            "--training.steps=20",
            "--training.checkpoint_every=20",
        ]
    )
    kept = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    bad = [int(view) for view in training if view != fitted]
    for view in bad:
        spoil(copy, "hi", view, np.nan)
    other = tmp_path / "other"
    said = refused(capsys, copy, other, "--training.steps=2")
    assert "is nan at step 0" in said or "not finite at step 0" in said
    assert any(f"view {view} (" in said for view in bad)
    assert "there is no checkpoint yet" in said
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_run_that_meets_such_a_batch_keeps_its_last_checkpoint(copy, tmp_path, capsys, monkeypatch):
    """The run is resumed after the maps were spoilt: the message names the view and the checkpoint that is there."""
    monkeypatch.setattr(loading, "FIT_VIEWS", 1)
    training = split_views(MapStore(copy).catalogue(), Split())["train"]
    fitted = int(np.random.default_rng(0).choice(training, 1, replace=False)[0])
    run = tmp_path / "run"
    main(["--data.store", str(copy), "--output", str(run), *TINY, "--training.steps=1"])
    last = run / "checkpoints" / "step_0000001"
    text = yaml.safe_load((last / "config.yaml").read_text())
    text["training"]["steps"] = 3  # a run that was stopped after its first of three steps
    (last / "config.yaml").write_text(yaml.safe_dump(text))
    before = {path: path.read_bytes() for path in last.iterdir() if path.is_file()}
    for view in training:
        if view != fitted:
            spoil(copy, "hi", int(view), np.nan)
    said = refused(capsys, copy, run, "--training.steps=3", "--resume=true")
    assert any(f"view {view} (" in said for view in training if view != fitted)
    assert "the last good checkpoint is" in said
    assert "step_0000001" in said
    assert {path: path.read_bytes() for path in before} == before
