"""The commands of the adapt stage, run as a user runs them, on two small surveys of shapes."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from skyshift.adapt.adapter import Adaptation, Adapter
from skyshift.adapt.evaluate import evaluate_run
from skyshift.adapt.prior_shift import corrected, estimate_prior
from skyshift.adapt.task import Task
from skyshift.adapt.train import main as train_command
from skyshift.checkpoint import CheckpointError, load_tensors, make, save_tensors
from skyshift.command import CommandError
from skyshift.datasets.maps import MapError
from skyshift.datasets.scaling import Linear
from skyshift.datasets.store import MapStore
from skyshift.translate.translation import Channel

METHODS = "skyshift.adapt.methods"
ENCODER = {"class_path": "skyshift.adapt.encoders.SmallCNN", "init_args": {"width": 8, "depth": 3}}


def method(path, **arguments):
    return {"class_path": f"{METHODS}.{path}", "init_args": {"encoder": ENCODER, **arguments}}


def run(repository, command, *arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(repository / "adapt" / command), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def refusal(config, *arguments, capsys):
    """What the command says of what cannot be, in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(CommandError):
        train_command(["--config", str(config), *arguments])
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pair, configure, repository):
    """A run with its report."""
    folder = tmp_path_factory.mktemp("adapt")
    config = configure(
        folder / "mmd.yaml", pair, method("mmd.MMD"), evaluation=True, training={"steps": 60, "validate_every": 20}
    )
    return folder / "run", run(repository, "train.py", "--config", config).stdout


def test_a_run_reports_on_objects_that_it_has_not_seen(trained, pair):
    folder, said = trained
    report = folder / "evaluation"
    for name in ("table.md", "metrics.json", "predictions.csv", "confusion.png", "reliability.png", "curves.png"):
        assert (report / name).stat().st_size > 0, name
    assert "validator-chosen" in said
    assert "oracle" in said
    with (report / "anomalies.csv").open() as file:
        ranked = list(csv.DictReader(file))
    scores = [float(row["unknown"]) for row in ranked]
    assert scores == sorted(scores, reverse=True)
    names = set(np.asarray(MapStore(pair[1]).catalogue()["name"]).tolist())
    assert len(ranked) == 24  # a fifth of 120
    assert {row["name"] for row in ranked} <= names


def test_a_checkpoint_takes_physical_maps(trained, pair):
    """The same maps from the store and as arrays; shapes are learned well above chance (a third)."""
    adapter, store = Adapter.from_pretrained(trained[0]), MapStore(pair[0])
    said = adapter(store, side="source")
    again = adapter({"clean": store.maps("clean")}, side="source")
    np.testing.assert_allclose(said.outputs, again.outputs, atol=1e-5)
    labels = np.asarray(store.catalogue()["label"])
    assert (said.outputs.argmax(1) == labels).mean() > 0.7
    np.testing.assert_allclose(said.probabilities.sum(1), 1.0, atol=1e-12)
    broken = store.maps("clean").copy()
    broken[7, 2, 2] = np.nan
    with pytest.raises(MapError, match="map 7 of clean has values that are not finite"):
        adapter({"clean": broken}, side="source")


def test_a_checkpoint_needs_no_file_that_its_training_began_with(tmp_path):
    """Pretrained weights are in the checkpoint; a weight that is missing there is no reason to guess."""
    timm = {"class_path": "skyshift.adapt.encoders.TimmEncoder", "init_args": {"name": "test_resnet"}}
    task = Task("classification", ("disc", "spheroid"), ("disc", "spheroid"))
    config = {"class_path": f"{METHODS}.source_only.SourceOnly", "init_args": {"encoder": timm}}
    made = make(config)(1, task)
    channel = Channel("stars", "Msun / kpc2", Linear(0.0, 1.0))
    Adaptation(task, (channel,), (channel,), {}).write(tmp_path)
    save_tensors(tmp_path / "model.safetensors", made.state_dict())
    timm["init_args"]["weights"] = str(tmp_path / "gone.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": config}))
    maps = np.random.default_rng(0).random((3, 64, 64), np.float32)
    said = Adapter.from_pretrained(tmp_path)({"stars": maps})
    expected = made.eval().predict(torch.from_numpy(maps)[:, None]).outputs
    np.testing.assert_allclose(said.outputs, expected, rtol=1e-5, atol=1e-6)  # float32
    save_tensors(tmp_path / "model.safetensors", dict(list(made.state_dict().items())[1:]))
    with pytest.raises(CheckpointError, match="do not fit the networks"):
        Adapter.from_pretrained(tmp_path)


def test_bounds_give_the_gap_that_was_closed(trained, tmp_path):
    report = evaluate_run(
        trained[0],
        output=tmp_path,
        bounds={
            "source-only": str(trained[0] / "checkpoints" / "step_0000003"),  # which has hardly learned
            "target-supervised": str(trained[0]),
        },
        embeddings=(),
        resamples=50,
    )
    assert "## Gap closed" in report.table()
    shifted = evaluate_run(trained[0], output=tmp_path / "em", prior_shift="em", embeddings=(), resamples=50)
    assert "expectation maximisation" in shifted.table()


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, pair, configure, repository):
    whole = configure(tmp_path / "whole.yaml", pair, method("self_ensembling.SelfEnsembling"))
    run(repository, "train.py", "--config", whole, "--output", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    last = tmp_path / "parts" / "checkpoints" / "step_0000006"
    shutil.rmtree(last)
    run(repository, "train.py", "--config", whole, "--output", tmp_path / "parts", "--resume", "true")
    for name in ("model",):  # its teacher is the average that is used
        one, other = (
            load_tensors(tmp_path / side / "checkpoints" / "step_0000006" / f"{name}.safetensors")[0]
            for side in ("whole", "parts")
        )
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in one)


def test_labels_of_the_target_may_not_choose(tmp_path, pair, configure, capsys):
    config = configure(tmp_path / "c.yaml", pair, method("source_only.SourceOnly"))
    said = refusal(config, "--training.monitor", "target_accuracy", capsys=capsys)
    assert "Target labels may not be used to select" in said
    assert not (tmp_path / "run").exists()


def test_a_closed_method_refuses_open_label_sets(tmp_path, pair, configure, capsys):
    config = configure(tmp_path / "c.yaml", pair, method("mmd.MMD"), task={"target": ["blob", "bar"]})
    said = refusal(config, capsys=capsys)
    assert "the label sets are partial (ring of the source are absent" in said
    assert "universal or dance" in said


def test_a_translated_source_whose_checkpoint_is_gone(tmp_path, pair, configure, capsys):
    config = configure(
        tmp_path / "c.yaml", pair, method("source_only.SourceOnly"), source={"translated_by": str(tmp_path / "gone")}
    )
    said = refusal(config, capsys=capsys)
    assert "source.translated_by" in said
    assert "holds no checkpoint" in said


@pytest.mark.slow
def test_a_source_is_translated_once_and_found_again(tmp_path, pair, configure, repository, capsys):
    """By a U-Net of one step from clean to clean maps: what it makes does not matter, where it goes does."""
    store = tmp_path / "clean.zarr"
    shutil.copytree(pair[0], store)
    unet = {"class_path": "skyshift.translate.networks.unet.UNet", "init_args": {"width": 4, "depth": 1}}
    translation = {
        "data": {"store": str(store), "source": ["clean"], "target": ["clean"], "scaling": {"clean": "linear"}},
        "method": {"class_path": "skyshift.translate.methods.regression.Regression", "init_args": {"generator": unet}},
        "training": {"steps": 1, "batch_size": 4, "precision": "no"},
        "evaluation": False,
        "output": str(tmp_path / "translator"),
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(translation))
    run(repository, "../translate/train.py", "--config", tmp_path / "t.yaml")
    config = configure(
        tmp_path / "c.yaml",
        (store, pair[1]),
        method("source_only.SourceOnly"),
        source={"translated_by": str(tmp_path / "translator")},
    )
    assert "translating" in run(repository, "train.py", "--config", config).stdout
    (made,) = tmp_path.glob("clean_translated_*.zarr")
    assert list(MapStore(made).labels) == list(MapStore(store).labels)
    facts = json.loads((tmp_path / "run/checkpoints/step_0000006/adaptation.json").read_text())
    assert facts["provenance"]["source"]["plan"]["checkpoint"].startswith(str(tmp_path / "translator"))
    again = run(repository, "train.py", "--config", config, "--output", tmp_path / "second")
    assert "translating" not in again.stdout
    (tmp_path / "translator").rename(tmp_path / "moved")
    assert f"set source.store {made}" in refusal(config, "--output", str(tmp_path / "third"), capsys=capsys)


def test_a_regression_is_learned_and_reported(tmp_path, pair, configure, repository):
    """The class number as a number: what is learned beats the spread of the numbers."""
    for side, count in (("clean", 150), ("sky", 120)):
        rows = [f"{side}-{i},{100 + 10 * (i % 3)}" for i in range(count)]
        (tmp_path / f"{side}.csv").write_text("name,label\n" + "\n".join(rows))
    config = configure(
        tmp_path / "c.yaml",
        pair,
        method("source_only.SourceOnly"),
        source={"labels": str(tmp_path / "clean.csv")},
        target={"labels": str(tmp_path / "sky.csv")},
        task={"kind": "regression"},
        training={"steps": 80, "validate_every": 40},
        evaluation=True,
    )
    run(repository, "train.py", "--config", config)
    report = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert "rmse" in json.dumps(report)
    said = Adapter.from_pretrained(tmp_path / "run")(MapStore(pair[0]), side="source")
    truth = (np.asarray(MapStore(pair[0]).catalogue()["label"]) - 1) / np.sqrt(2 / 3)
    assert np.sqrt(((said.outputs[:, 0] - truth) ** 2).mean()) < 0.7


def test_other_class_frequencies_are_found_without_labels():
    """Gaussians at ±1 with exact logits: a tenth of the second class in the target, from half in the source."""
    generator = np.random.default_rng(0)
    label = generator.random(20000) < 0.1
    x = np.where(label, 1.0, -1.0) + generator.normal(size=20000)
    logits = np.stack([np.zeros_like(x), 2 * x], axis=1)  # log p(x | 1) - log p(x | 0)
    found = estimate_prior(logits, np.array([0.5, 0.5]))
    assert abs(found[1] - label.mean()) < 0.012  # three standard errors of the estimate
    right = (corrected(logits, np.array([0.5, 0.5]), found).argmax(1) == label).mean()
    assert right > (logits.argmax(1) == label).mean() + 0.05
