"""The search for settings: spaces that cannot be, a missing library, and a small search that goes on."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from skyshift.translate.sweep import SweepConfig, SweepError, arguments_of, main, propose, sweep


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "space names nothing to vary"),
        ({"a": {"low": 2.0, "high": 1.0}}, r"space\.a needs numbers low < high"),
        ({"a": {"low": 0.0, "high": 1.0, "log": True}}, "a logarithmic range begins above 0"),
        ({"a": {"lwo": 1}}, "unknown entry 'lwo'"),
        ({"a": {"choices": []}}, "at least one value"),
        ({"a": {"low": 1.0, "high": 2.0, "step": 0.5, "log": True}}, "not of a logarithmic range"),
        ({"a": {"low": 1, "high": 2, "step": 0}}, "step is a number above 0"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space, says):
    with pytest.raises(SweepError, match=says):
        SweepConfig(space=space)


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as Python itself marks what cannot be imported
    with pytest.raises(SweepError, match=r"pip install skyshift\[sweep\]"):
        sweep(SweepConfig(space={"training.learning_rate": {"choices": [1e-3]}}))


def test_proposals_are_within_their_space(tmp_path):
    optuna = pytest.importorskip("optuna")
    space = {
        "rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "width": {"low": 8, "high": 32, "step": 8},
        "kind": {"choices": ["linear", "cosine"]},
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [propose(study.ask(), space) for _ in range(40)]
    rates = sorted(one["rate"] for one in drawn)
    assert 1e-4 <= rates[0] < rates[-1] <= 1e-2
    # Even in the logarithm: half of 40 are expected below the geometric mean, with a deviation of 3.2.
    assert 10 <= sum(rate < 1e-3 for rate in rates) <= 30
    assert {one["width"] for one in drawn} == {8, 16, 24, 32}
    assert {one["kind"] for one in drawn} == {"linear", "cosine"}
    arguments = arguments_of(SweepConfig(space=space), drawn[0], tmp_path)
    assert float(arguments[arguments.index("--rate") + 1]) == pytest.approx(drawn[0]["rate"])
    assert arguments[arguments.index("--kind") + 1] == drawn[0]["kind"]


def configuration(folder, store, **sweeping):
    networks = "skyshift.translate.networks"
    base = {
        "data": {
            "store": str(store),
            "source": ["gas"],
            "target": ["hi"],
            "split": {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0},
        },
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {"class_path": f"{networks}.unet.UNet", "init_args": {"width": 4, "depth": 2}},
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 2},
                },
            },
        },
        "training": {"steps": 4, "batch_size": 2, "precision": "no", "validate_every": 2, "monitor": "power_error"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    space = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    settings = {"base": str(folder / "base.yaml"), "space": space, "output": str(folder / "sweep"), **sweeping}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "sweep.yaml")


def test_an_unknown_key_is_refused_before_any_trial(tiny_store, tmp_path):
    pytest.importorskip("optuna")
    config = configuration(tmp_path, tiny_store, space={"training.lerning_rate": {"choices": [1e-3]}})
    with pytest.raises(SystemExit):
        main(["--config", config])
    assert not (tmp_path / "sweep").exists()


@pytest.fixture
def untrained(monkeypatch):
    """Trials whose run is a log line alone: what is tested is the search, not the training."""
    pytest.importorskip("optuna")
    tried = []

    def run(config, trial, folder, monitor):
        tried.append(propose(trial, config.space))
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}")
        (folder / "log.jsonl").write_text(json.dumps({"step": 2, f"validation/{monitor}": len(tried)}) + "\n")
        return False

    monkeypatch.setattr("skyshift.translate.sweep._run", run)
    return tried


def test_a_search_that_goes_on_proposes_what_is_new(tiny_store, tmp_path, untrained):
    for trials in (2, 4, 6):
        main(["--config", configuration(tmp_path, tiny_store, trials=trials)])
    assert len({one["training.learning_rate"] for one in untrained}) == 6


@pytest.mark.parametrize("change", ["monitor", "space"])
def test_a_search_goes_on_with_what_can_be_compared_alone(tiny_store, tmp_path, untrained, capsys, change):
    main(["--config", configuration(tmp_path, tiny_store, trials=1)])
    config = configuration(
        tmp_path,
        tiny_store,
        trials=2,
        **({"space": {"training.learning_rate": {"choices": [1e-3]}}} if change == "space" else {}),
    )
    if change == "monitor":
        base = yaml.safe_load((tmp_path / "base.yaml").read_text())
        base["training"]["monitor"] = "psnr"
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    with pytest.raises(SystemExit):
        main(["--config", config])
    assert "is a sweep with another" in capsys.readouterr().err
    assert len(untrained) == 1


class Process:
    """A trial's training: leaves a log, or ends with an error, as its number says."""

    failing: tuple[int, ...] = ()
    unseen: tuple[int, ...] = ()

    def __init__(self, command, stdout, stderr):
        folder = Path(command[command.index("--output") + 1])
        number = int(folder.name.removeprefix("trial_"))
        self.returncode = int(number in self.failing)
        if self.returncode:
            stdout.write("  3/4 steps\nerror: the loss of the generator is nan at step 3\n")
        value = float("nan") if number in self.unseen else 1.0 + number
        (folder / "config.yaml").write_text("{}")
        (folder / "log.jsonl").write_text(json.dumps({"step": 2, "validation/power_error": value}) + "\n")

    def poll(self):
        return self.returncode


def test_a_trial_that_diverges_does_not_end_the_search(tiny_store, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(Process, "failing", (0,))
    monkeypatch.setattr(Process, "unseen", (1,))
    monkeypatch.setattr("skyshift.translate.sweep.subprocess.Popen", Process)
    main(["--config", configuration(tmp_path, tiny_store, trials=4)])
    rows = json.loads((tmp_path / "sweep" / "trials.json").read_text())["trials"]
    assert [(row["state"], row["cost"]) for row in rows] == [("fail", None)] * 2 + [
        ("complete", 3.0),
        ("complete", 4.0),
    ]
    assert "error: the loss of the generator is nan at step 3" in rows[0]["error"]
    assert rows[1]["error"] == "power_error was not finite in any of 1 validations"
    assert "error" not in rows[2]
    assert "trial 0: power_error failed" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())["evaluation"]
    main(["--config", configuration(tmp_path, tiny_store, trials=4)])  # is done: trials that failed count
    assert len(json.loads((tmp_path / "sweep" / "trials.json").read_text())["trials"]) == 4


def test_a_search_whose_trials_all_fail_is_an_error(tiny_store, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(Process, "failing", (0, 1))
    monkeypatch.setattr("skyshift.translate.sweep.subprocess.Popen", Process)
    with pytest.raises(SystemExit):
        main(["--config", configuration(tmp_path, tiny_store, trials=2)])
    said = capsys.readouterr().err
    assert "all 2 trials failed, the last with: 3/4 steps error: the loss of the generator is nan at step 3" in said
    assert len(json.loads((tmp_path / "sweep" / "trials.json").read_text())["trials"]) == 2
    assert not (tmp_path / "sweep" / "best.yaml").exists()


@pytest.mark.slow
def test_a_small_search_goes_on_and_writes_the_best(tiny_store, tmp_path):
    pytest.importorskip("optuna")
    main(["--config", configuration(tmp_path, tiny_store, trials=1)])
    main(["--config", configuration(tmp_path, tiny_store, trials=2)])  # goes on after the first
    rows = json.loads((tmp_path / "sweep" / "trials.json").read_text())
    assert rows["monitor"] == "power_error"
    assert [row["trial"] for row in rows["trials"]] == [0, 1]
    best = min(rows["trials"], key=lambda row: row["cost"])
    folder = tmp_path / "sweep" / f"trial_{best['trial']:04d}"
    # The cost is the best validation value of the trial's own run, in percent, smaller is better.
    assert best["cost"] == json.loads((folder / "best.json").read_text())["best"]
    written = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert written["training"]["learning_rate"] == best["values"]["training.learning_rate"]
    assert written["method"]["init_args"]["generator"]["init_args"]["width"] == 4  # the whole configuration
