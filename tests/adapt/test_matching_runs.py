"""Runs of DANN, ADDA, self-ensembling and AdaMatch: better than the source alone, exact resume, two processes as one.

Launched as a script, this file is one process of the run on two.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn

from skyshift.adapt.classifier import SOURCE, Classifier, Encoder
from skyshift.adapt.discriminator import DomainDiscriminator
from skyshift.adapt.methods.adamatch import AdaMatch
from skyshift.adapt.methods.adda import ADDA
from skyshift.adapt.methods.dann import DANN
from skyshift.adapt.methods.self_ensembling import SelfEnsembling
from skyshift.adapt.methods.source_only import SourceOnly
from skyshift.adapt.task import Task
from skyshift.checkpoint import latest
from skyshift.engine import Trainer, TrainingConfig

TASK = Task("classification", ("upper", "lower"), ("upper", "lower"))
METHODS = {
    "dann": (DANN, {"hidden": 32}),
    "cdan": (DANN, {"hidden": 32, "conditional": True, "entropy": True}),
    "adda": (ADDA, {"hidden": 32}),
    "self_ensembling": (SelfEnsembling, {"decay": 0.95}),
    "adamatch": (AdaMatch, {}),
}
COUPLED = {**METHODS, "self_ensembling": (SelfEnsembling, {"confidence": 0.7, "balance": 2.0})}
"""With something that couples samples from the first step on."""

RATE = 2e-3


class Points(Encoder):
    """A map is a point: two channels of one pixel."""

    def __init__(self, channels):
        super().__init__()
        self.width = 32
        self.layers = nn.Sequential(nn.Linear(channels, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())

    def forward(self, maps, domain=SOURCE):
        return self.layers(maps.flatten(1))


def moons(n, degrees, generator):
    """Two moons, turned."""
    label, t = torch.randint(0, 2, (n,), generator=generator), math.pi * torch.rand(n, generator=generator)
    sign = 1.0 - 2.0 * label
    points = torch.stack([sign * t.cos() + label - 0.5, sign * t.sin() + 0.5 * label - 0.25], 1)
    points = points + 0.1 * torch.randn(n, 2, generator=generator)
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    return (points @ turn)[:, :, None, None], label


def batch(number, n, degrees=30.0):
    """Of which the target is turned and unlabelled."""
    generator = torch.Generator().manual_seed(number)
    (source, label), (target, _) = moons(n, 0.0, generator), moons(n, degrees, generator)
    changed = {
        f"{name}{view}": maps + width * torch.randn(maps.shape, generator=generator)
        for name, maps in (("source", source), ("target", target))
        for view, width in (("", 0.05), ("_strong", 0.2))
    }
    return {**changed, "source_label": label}


def make(method, options, steps, certainty=1.0):
    """A method whose first predictions, and discriminator, are more or less certain."""
    set_seed(0)
    made = method(2, TASK, encoder=Points, **options)
    made.steps = steps
    for network in made.children():
        if isinstance(network, Classifier):
            network.head.weight.data *= certainty
        elif isinstance(network, DomainDiscriminator):
            for layer in network.layers[::2]:
                layer.weight.data *= certainty
    return made


def trainer(method, options, folder, n, steps, *, fail_at=None, resume=False, certainty=1.0, **training):
    made = make(method, options, steps, certainty)

    def loader(plan):
        for number in range(plan.first, plan.last):
            if number == fail_at:
                raise InterruptedError
            whole = batch(number, n * plan.processes)
            yield {name: values[plan.process * n : (plan.process + 1) * n] for name, values in whole.items()}

    options = {"learning_rate": RATE, "average": 0.9, "checkpoint_every": steps, "log_every": steps, **training}
    config = TrainingConfig(
        steps=steps, batch_size=n, schedule="constant", betas=(0.9, 0.999), precision="no", **options
    )
    return Trainer(made, loader, config, folder, resume=resume)


def accuracy(run, degrees=30.0):
    maps, label = moons(2000, degrees, torch.Generator().manual_seed(10**7))
    with run.averaged_method() as method:
        return float((method.predict(maps).outputs.argmax(1) == label).float().mean())


def taught(method, options, folder, **rates):
    """Accuracy on the turned moons after 200 steps."""
    run = trainer(method, options, folder, 128, 200, learning_rate=5e-3, **rates)
    run.run()
    return accuracy(run)


@pytest.fixture(scope="module")
def lower_bound(tmp_path_factory):
    return taught(SourceOnly, {}, tmp_path_factory.mktemp("bound"))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_better_than_the_source_alone(name, lower_bound, tmp_path):
    """Measured: .861 for the source alone, .905 to .997 for the methods; 2000 points have a standard error of .008."""
    method, options = METHODS[name]
    rates = {"learning_rates": {"classifier": 2e-3}} if method is ADDA else {}
    assert taught(method, options, tmp_path / name, **rates) > lower_bound + 0.02


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(name, tmp_path):
    """At step 4 or 8 of 12: ADDA's source is frozen at 6, which step 8 must remember; bit for bit."""
    method, options = METHODS[name]
    training = {"checkpoint_every": 4, "accumulate": 2}
    trainer(method, options, tmp_path / "straight", 8, 12, **training).run()
    for fail_at in (9, 18):  # micro-batches
        run = trainer(method, options, tmp_path / "broken", 8, 12, fail_at=fail_at, resume=True, **training)
        with pytest.raises(InterruptedError):
            run.run()
    trainer(method, options, tmp_path / "broken", 8, 12, resume=True, **training).run()
    wanted, found = (load_file(latest(tmp_path / run) / "model.safetensors") for run in ("straight", "broken"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines() if '"classifier"' in line]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, repository):
    """Every method on two processes with batches of 8, and on one with batches of 16."""
    folder = tmp_path_factory.mktemp("pair")
    configuration = str(repository / "configs" / "accelerate" / "cpu_2.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", configuration, "--main_process_port", "0")
    shared = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        [sys.executable, *launcher, __file__, str(folder)],
        env={**os.environ, **shared, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for name, (method, options) in COUPLED.items():
        trainer(method, options, folder / "one" / name, 16, 4, certainty=20.0, log_every=1).run()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COUPLED)
def test_two_processes_are_one(name, pair):
    one, two = (pair / which / name for which in ("one", "two"))
    for mine, wanted in zip(lines(two), lines(one), strict=True):
        # sums in another order in float32; from the second step on, also the rounding that Adam has magnified
        near = {"rel": 1e-5, "abs": 1e-6} if mine["step"] == 1 else {"rel": 1e-2, "abs": 1e-2}
        assert mine.keys() == wanted.keys()
        for key in mine.keys() - {"samples_per_second"}:
            assert mine[key] == pytest.approx(wanted[key], **near), key
    mine, wanted = (load_file(latest(run) / "model.safetensors") for run in (two, one))
    distance = torch.cat([(mine[key].double() - wanted[key].double()).ravel() for key in wanted]).abs()
    # Adam makes up to the learning rate a step of a gradient that is rounding
    assert float(distance.max()) <= 2 * 4 * RATE
    assert float(distance.median()) <= 1e-6


@pytest.mark.parametrize(("name", "part"), [("cdan", "domain"), ("self_ensembling", "balance"), ("adamatch", "pseudo")])
def test_halves_by_themselves_are_not_the_whole_batch(name, part):
    """Without gathering, two processes would log the mean over halves: ten times the tolerance away at the first step.

    That makes the test before this one able to fail.
    """
    made = make(*COUPLED[name], 4, certainty=20.0)
    networks = {player: getattr(made, player) for player in made.players}
    whole = batch(0, 16)
    halves = [{key: values[first : first + 8] for key, values in whole.items()} for first in (0, 8)]
    parts = [
        made.loss("classifier", networks, one, made.share(networks, one))[1][part].item() for one in (whole, *halves)
    ]
    assert abs(sum(parts[1:]) / 2 - parts[0]) > 1e-4 * abs(parts[0])


def on_two(folder):
    for name, (method, options) in COUPLED.items():
        run = trainer(method, options, folder / "two" / name, 8, 4, certainty=20.0, log_every=1)
        run.run()
        assert run.accelerator.num_processes == 2
    PartialState().destroy_process_group()


if __name__ == "__main__":
    on_two(Path(sys.argv[1]))
