"""Several processes: the shipped launch files, the same averages and decisions on every rank, fewer at resume."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import yaml
from safetensors.torch import load_file

from skyshift.checkpoint import latest

RUN = """
    import hashlib, json, os, sys
    from pathlib import Path
    import torch
    from accelerate import PartialState
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import set_seed
    from skyshift.engine import Hooks, Trainer, TrainingConfig, TrainingError
    from skyshift.translate.methods.pix2pix import Pix2Pix
    from skyshift.translate.networks.patchgan import PatchGAN
    from skyshift.translate.networks.unet import UNet

    out = Path(sys.argv[1])

    def sample(number):
        return torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(number))

    def run(name, steps=4, fail_at=None, resume=False, batch_size=2, **training):
        options = {"precision": "no", "log_every": 1, "checkpoint_every": 2, "average": 0.9, "clip": 0.5, "keep": 9}
        config = TrainingConfig(steps=steps, batch_size=batch_size, schedule="constant", **{**options, **training})
        set_seed(0)
        method = Pix2Pix(1, 1, generator=lambda s, t: UNet(s, t, width=4, depth=2, norm="group"),
                         discriminator=lambda c: PatchGAN(c, width=4, layers=2, norm="none"))
        def loader(plan):
            for number in range(plan.first, plan.last):
                if number == fail_at:
                    raise InterruptedError
                first = (number * plan.processes + plan.process) * batch_size
                source, target = torch.stack([sample(n) for n in range(first, first + batch_size)], dim=1)
                yield {"source": source, "target": target}
        # Only the main process validates: what it finds, all have to follow.
        rising = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        hooks = Hooks(validate=lambda averaged: {"error": next(rising)}, directions={"error": -1})
        trainer = Trainer(method, loader, config, out / name, hooks, resume=resume)
        try:
            trainer.run()
        except InterruptedError:
            pass
        digest = hashlib.sha256()
        for value in trainer.average.module.state_dict().values():
            digest.update(value.numpy().tobytes())
        rank = trainer.accelerator.process_index
        (out / f"{name}_{rank}.json").write_text(json.dumps({"average": digest.hexdigest(), "step": trainer.step}))
"""
TWO = """
    run("together")
    run("fewer", fail_at=2)
    run("early", steps=6, validate_every=1, patience=2, monitor="error")
    PartialState().destroy_process_group()
"""
ONE = """
    run("alone", batch_size=4)
    run("fewer", batch_size=2, accumulate=2, resume=True)
"""


def launch(script, folder, *launcher, **environment):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(RUN) + textwrap.dedent(script))
    shared = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [sys.executable, *launcher, str(path), str(folder)],
        env={**os.environ, **shared, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository):
    """All runs: on two processes by the shipped launch file, then one, which continues what two began."""
    folder = tmp_path_factory.mktemp("runs")
    configuration = str(repository / "configs" / "accelerate" / "cpu_2.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", configuration, "--main_process_port", "0")
    result = launch(TWO, folder, *launcher, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    result = launch(ONE, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def close(one, other, name, steps):
    """The same but for rounding, which Adam makes up to the learning rate a step of where a gradient is rounding."""
    mine, wanted = load_file(one / name), load_file(other / name)
    assert mine.keys() == wanted.keys()
    distance = torch.cat([(mine[key].double() - wanted[key].double()).ravel() for key in wanted]).abs()
    assert float(distance.max()) <= 2 * steps * 2e-4
    assert float(distance.median()) <= 1e-6


@pytest.mark.slow
def test_the_average_is_that_of_one_process(runs):
    folder, _ = runs
    first, second = (json.loads((folder / f"together_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # bit for bit, on either rank
    assert latest(folder / "together").name == "step_0000004"
    for name in ("model.safetensors", "average.safetensors"):
        close(latest(folder / "together"), latest(folder / "alone"), name, 4)


@pytest.mark.slow
def test_one_process_continues_what_two_began(runs):
    """Two processes with batches of 2, then one with two micro-batches of 2: the straight run but for rounding."""
    folder, said = runs
    assert "continuing with processes 1, accumulate 2 instead of processes 2, accumulate 1" in said
    facts = [
        json.loads((path / "state" / "progress.json").read_text())
        for path in sorted((folder / "fewer" / "checkpoints").iterdir())
    ]
    assert [(fact["step"], fact["processes"]) for fact in facts] == [(2, 2), (4, 1)]
    for name in ("model.safetensors", "average.safetensors"):
        close(latest(folder / "fewer"), latest(folder / "together"), name, 4)


@pytest.mark.slow
def test_every_process_stops_early_together(runs):
    folder, _ = runs
    steps = [json.loads((folder / f"early_{rank}.json").read_text())["step"] for rank in (0, 1)]
    assert steps == [3, 3]  # best at the first, and two that were not better
    assert json.loads((folder / "early" / "best.json").read_text())["step"] == 1


def test_launch_files_are_what_accelerate_reads(repository):
    from accelerate.commands.config.config_args import ClusterConfig

    found = {path.name: path for path in (repository / "configs" / "accelerate").glob("*.yaml")}
    assert set(found) == {"cpu_2.yaml", "gpu_1.yaml", "gpu_ddp.yaml", "gpu_fsdp.yaml", "multi_node.yaml"}
    for path in found.values():
        config = ClusterConfig.from_yaml_file(str(path))  # unknown keys are refused
        assert config.num_processes >= 1
        assert "training.precision: launch" in path.read_text()
        assert str(config.mixed_precision) in ("no", "bf16")
        assert yaml.safe_load(path.read_text())["main_training_function"] == "main"
