"""Validation during a run: the evaluation's own numbers, on the validation part alone; the best checkpoint is taken."""

import json

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState

from skyshift.batch_size import Trial
from skyshift.checkpoint import best
from skyshift.datasets.loading import Split
from skyshift.datasets.store import MapStore
from skyshift.launch import StopSignal
from skyshift.translate import train as training
from skyshift.translate.data import DataConfig, TranslationData
from skyshift.translate.evaluate import METRICS, evaluate
from skyshift.translate.methods.regression import Regression
from skyshift.translate.train import main as train_command
from skyshift.translate.validation import DIRECTIONS, Validator

NETWORKS = "skyshift.translate.networks"


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def write_config(path, store, **training):
    init = {
        "generator": {"class_path": f"{NETWORKS}.unet.UNet", "init_args": {"width": 4, "depth": 2}},
        "discriminator": {"class_path": f"{NETWORKS}.patchgan.PatchGAN", "init_args": {"width": 4, "layers": 2}},
    }
    config = {
        "data": {
            "store": str(store),
            "source": ["gas"],
            "target": ["hi"],
            "split": {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0},
        },
        "method": {"class_path": "skyshift.translate.methods.pix2pix.Pix2Pix", "init_args": init},
        "training": {"steps": 4, "batch_size": 2, "precision": "no", "checkpoint_every": 4, "log_every": 2, **training},
        "evaluation": False,
        "output": str(path.parent / "run"),
    }
    path.write_text(yaml.safe_dump(config))
    return ["--config", str(path)]


def test_validations_are_the_evaluations_own_numbers(tiny_store, tmp_path, monkeypatch):
    read = set()
    maps = MapStore.maps

    def watched(store, domain, views=None):
        if domain == "hi":
            read.update(int(view) for view in views)
        return maps(store, domain, views)

    monkeypatch.setattr(MapStore, "maps", watched)
    train_command(write_config(tmp_path / "run.yaml", tiny_store, validate_every=2, monitor="power_error"))
    monkeypatch.undo()
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "validation/psnr" in line}
    assert sorted(found) == [2, 4]
    chosen = best(run)
    step = min(found, key=lambda n: found[n]["validation/power_error"])
    assert chosen.name == f"step_{step:07d}"
    judged = evaluate(chosen, part="validation", output=tmp_path / "evaluation")
    summary = next(iter(judged.summary["hi"].values()))  # of the checkpoint, before its baselines
    values = {name.removeprefix("validation/"): value for name, value in found[step].items() if "validation/" in name}
    # All but what needs networks of others, all maps together, or draws.
    assert values.keys() >= {metric.name for metric in METRICS if metric.default and metric.group != "calibration"}
    for name, value in values.items():
        # The same maps through a checkpoint on disk: the same float32 operations, batched alike.
        assert value == pytest.approx(summary[name]["value"], rel=1e-6, nan_ok=True), name
    assert len(judged.groups) > 0
    # The maps that were read are of training and validation galaxies: none of the test part.
    test = evaluate(chosen, part="test", output=tmp_path / "test")
    catalogue = MapStore(tiny_store).catalogue()
    galaxy = dict(zip(catalogue["view"].tolist(), catalogue["galaxy"].tolist(), strict=True))
    assert read
    assert not {galaxy[view] for view in read} & set(test.groups.tolist())


def test_without_a_validation_part_it_is_refused(tiny_store, tmp_path, capsys):
    arguments = write_config(tmp_path / "run.yaml", tiny_store, validate_every=2)
    split = ["--data.split.train", "0.7", "--data.split.validation", "0"]
    with pytest.raises(SystemExit):
        train_command([*arguments, *split])
    assert "there is nothing to validate on" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_batch_size_finder_trains_nothing(tiny_store, tmp_path, capsys):
    train_command([*write_config(tmp_path / "run.yaml", tiny_store), "--find_batch_size", "true"])
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "batch_size.json").read_text())
    sizes = [trial["batch_size"] for trial in facts["trials"]]
    assert sizes == [2**n for n in range(len(sizes))]
    speeds = {trial["batch_size"]: trial["samples_per_second"] for trial in facts["trials"]}
    assert speeds[facts["batch_size"]] * 1.05 >= max(speeds.values())
    assert f"choose --training.batch_size {facts['batch_size']}" in printed
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["batch_size.json"]


def test_the_batch_size_finder_takes_the_steps_of_the_run(tiny_store, tmp_path, monkeypatch):
    """With its losses on physical maps and what its output keeps, which take memory and time."""
    seen = []

    class Trainer(training.Trainer):
        def trial_steps(self, batches):
            yield (self.method.conservation, self._optimizer_step(batches, StopSignal())[0])

    def find(steps_of, largest):
        seen.extend(next(steps_of(1)))
        return [Trial(1, 1.0, 0)]

    monkeypatch.setattr(training, "Trainer", Trainer)
    monkeypatch.setattr(training, "find_batch_size", find)
    asked = ["--find_batch_size", "true", "--physics.total", "1", "--conserve.total", "gas"]
    train_command([*write_config(tmp_path / "run.yaml", tiny_store), *asked])
    conserved, logged = seen
    assert conserved is not None
    assert any("total" in name for name in logged)


def test_translations_that_are_not_finite_are_never_the_best(tiny_store):
    """Means leave out what is not finite: one broken map of many would otherwise flatter the others."""
    split = Split(train=0.5, validation=0.2, test=0.3)
    validator = Validator(TranslationData(DataConfig(store=str(tiny_store), split=split), MapStore(tiny_store)))
    method = Regression(1, 1)
    assert np.isfinite(validator(method)["psnr"])
    translate = method.translate

    def broken(source, **options):
        estimate = translate(source, **options)
        estimate[0, 0, 3, 3] = float("nan")
        return estimate

    method.translate = broken
    found = validator(method)
    assert found.keys() == DIRECTIONS.keys()
    assert all(np.isnan(value) for value in found.values())
