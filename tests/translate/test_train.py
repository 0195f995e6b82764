"""The training command: what it refuses before any work, and what a run may be continued with."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from skyshift.translate.train import main

TINY = [
    "--training.batch_size=2",
    "--training.checkpoint_every=2",
    "--training.log_every=1",
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


def train(store: Path, output: Path, *options: str) -> None:
    main(["--data.store", str(store), "--data.build=", "--output", str(output), *TINY, *options])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command printed to the error stream last, without the progress bars."""
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "run"
    train(tiny_store, output, "--training.steps=2")
    return output


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--training.steps=4", "training.steps = 2, this run has 4"),
        ("--training.learning_rate=0.1", "training.learning_rate = 0.0007, this run has 0.1"),
        ("--method.init_args.l1_weight=1", "method.init_args.l1_weight = 100.0, this run has 1.0"),
        ("--data.augment=false", "data.augment = True, this run has False"),
        ("--training.clip=1", "training.clip = 0.0, this run has 1.0"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(run, tiny_store, capsys, option, name):
    before = (run / "config.yaml").read_bytes()
    steps = [] if "steps" in option else ["--training.steps=2"]
    with pytest.raises(SystemExit) as error:
        train(tiny_store, run, *steps, option, "--resume=true")
    assert error.value.code == 1
    assert f"was trained with {name}; a run continues exactly or not at all" in refusal(capsys)
    assert (run / "config.yaml").read_bytes() == before


def test_how_a_run_is_watched_may_change(run, tiny_store):
    train(tiny_store, run, "--training.steps=2", "--training.log_every=7", "--training.keep=5", "--resume=true")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.learning_rates={generater: 0.1}"], "unknown player 'generater'. Did you mean 'generator'?"),
        (["--data.scaling={hii: log}"], "unknown domain 'hii'. Did you mean 'hi'?"),
        (["--data.source=[gass]"], "unknown domain 'gass'. Did you mean 'gas'?"),
        (["--data.paired=false"], "Pix2Pix learns from pairs; set data.paired true"),
        (["--data.split={train: 0.5, validation: 0.1, test: 0.1}"], "the shares of a split are positive and sum to 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(tiny_store, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        train(tiny_store, tmp_path / "run", "--training.steps=2", *options)
    assert error.value.code in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_domain_that_is_not_built_is_refused_before_the_simulation(tmp_path, capsys):
    build = tmp_path / "build.yaml"
    simulation = {"galaxies": 3, "gas_cells": 100, "dm_particles": 100, "star_particles": 100}
    source = {
        "class_path": "skyshift.datasets.sources.SyntheticSource",
        "init_args": {"path": str(tmp_path / "toy"), "simulation": simulation},
    }
    build.write_text(json.dumps({"source": source, "domains": ["gas", "hi"]}))  # JSON is YAML
    with pytest.raises(SystemExit):
        main(
            [
                *("--data.store", str(tmp_path / "m.zarr"), "--data.build", str(build), "--data.source=[stars]"),
                *("--output", str(tmp_path / "run"), *TINY),
            ]
        )
    assert "builds no such maps: unknown domain 'stars'. " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.yaml"]
