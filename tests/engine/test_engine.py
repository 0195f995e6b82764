"""The training loop: resuming bit for bit, averages, schedules, clipping, and what a failure leaves behind."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import nn

from skyshift.checkpoint import CheckpointError, latest
from skyshift.datasets.loading import Split
from skyshift.datasets.store import MapStore
from skyshift.engine import Hooks, Method, Trainer, TrainingConfig, TrainingError
from skyshift.translate.data import DataConfig, TranslationData
from skyshift.translate.methods.pix2pix import Pix2Pix
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.unet import UNet
from skyshift.translate.train import main as train_command

SPLIT = {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0}
QUICK = {"steps": 6, "batch_size": 2, "precision": "no", "log_every": 1, "checkpoint_every": 3, "average": 0.9}
# Dropout makes the weights depend on the random generators, so that a resumed run must restore these as well.
EXACTING = {"accumulate": 2, "clip": 0.5, "warm_up": 2, "schedule": "cosine", "decay": 0.8, "weight_decay": 0.01}
ENVIRONMENT = {**os.environ, "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate remembers the first launch of a process; each test is a launch of its own."""
    _forget_launch()
    yield
    _forget_launch()


def _forget_launch():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def pix2pix(dropout=0.5):
    return Pix2Pix(
        1,
        1,
        generator=lambda source, target: UNet(source, target, width=4, depth=2, norm="instance", dropout=dropout),
        discriminator=lambda channels: PatchGAN(channels, width=4, layers=2, norm="none"),
    )


def trainer_of(folder, store, *, resume=False, spoil=None, hooks=None, dropout=0.5, augment=True, **training):
    """A run of pix2pix on the tiny store. ``spoil(number, batch)`` sees every micro-batch before the loop does."""
    _forget_launch()
    config = TrainingConfig(**{**QUICK, **training})
    data = TranslationData(
        DataConfig(str(store), source=["gas"], target=["hi"], split=Split(**SPLIT), augment=augment), MapStore(store)
    )
    set_seed(config.seed)

    def spoiled(batches, first):
        for number, batch in enumerate(batches, start=first):
            spoil(number, batch)
            yield batch

    def loader(plan):
        batches = data.loader(config, plan)
        return spoiled(iter(batches), plan.first) if spoil else batches

    return Trainer(pix2pix(dropout), loader, config, folder, hooks or Hooks(identify=data.identify), resume=resume)


def contents(folder):
    """Every file below a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_of(folder):
    """The log without its clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def stop_at(micro_batch):
    def spoil(number, batch):
        if number == micro_batch:
            raise InterruptedError("the power went")

    return spoil


# --- resuming


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_straight_run_bit_for_bit(tiny_store, tmp_path, workers):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    trainer_of(straight, tiny_store, **EXACTING).run()
    with pytest.raises(InterruptedError):  # in the middle of an accumulated step, the fifth
        trainer_of(broken, tiny_store, spoil=stop_at(9), **EXACTING).run()
    assert checkpoints(broken) == ["step_0000003"]
    torch.manual_seed(999)
    trainer_of(broken, tiny_store, resume=True, workers=workers, **EXACTING).run()
    # Weights, averages, optimizers, learning rates and random generators: every file of the checkpoint.
    assert contents(latest(broken)) == contents(latest(straight))
    assert log_of(broken) == log_of(straight)
    assert [line["step"] for line in log_of(broken)] == [1, 2, 3, 4, 5, 6]


def test_dropout_makes_the_random_state_matter(tiny_store, tmp_path):
    """Else the test above would not test it."""
    trainer_of(tmp_path, tiny_store, **EXACTING).run()
    folder = latest(tmp_path)
    before = contents(folder)["model.safetensors"]
    trainer = trainer_of(tmp_path / "other", tiny_store, **EXACTING)
    torch.manual_seed(999)
    assert contents(trainer.run())["model.safetensors"] != before


def test_a_half_written_line_of_the_log_does_not_stop_a_resume(tiny_store, tmp_path):
    with pytest.raises(InterruptedError):
        trainer_of(tmp_path, tiny_store, spoil=stop_at(4)).run()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "samp')
    trainer_of(tmp_path, tiny_store, resume=True).run()
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_resuming_a_finished_run_does_nothing(tiny_store, tmp_path):
    last = trainer_of(tmp_path, tiny_store).run()
    before = contents(tmp_path)
    assert trainer_of(tmp_path, tiny_store, resume=True).run() == last
    assert contents(tmp_path) == before


def command_config(path, store, **training):
    """A configuration file of the real command, with the networks of these tests."""
    networks = "skyshift.translate.networks"
    generator = {"width": 4, "depth": 2, "norm": "instance", "dropout": 0.5}
    config = {
        "data": {"store": str(store), "source": ["gas"], "target": ["hi"], "split": SPLIT},
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {"class_path": f"{networks}.unet.UNet", "init_args": generator},
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 2, "norm": "none"},
                },
            },
        },
        "training": {**QUICK, **training},
        "evaluation": False,
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_terminated_command_resumes_bit_for_bit(tiny_store, tmp_path, repository):
    config = command_config(tmp_path / "run.yaml", tiny_store, steps=60, checkpoint_every=60, keep=9, **EXACTING)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    # One number of threads: the order of a sum, and with it its last bit, depends on it.
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(repository / "translate" / "train.py"), "--config", str(config), "--output"]
    process = subprocess.Popen([*command, str(broken)], env=environment, stderr=subprocess.PIPE, text=True)
    log = broken / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in message
    step = int(latest(broken).name.removeprefix("step_"))
    assert 3 <= step < 60
    assert f"stopped as asked after step {step}; continue with --resume true" in message
    assert str(latest(broken)) in message
    assert [line["step"] for line in log_of(broken)] == list(range(1, step + 1))

    subprocess.run([*command, str(broken), "--resume", "true"], env=environment, check=True, capture_output=True)
    train_command(["--config", str(config), "--output", str(straight)])
    last, other = contents(latest(broken)), contents(latest(straight))
    assert [name for name in last if name != "config.yaml" and last[name] != other[name]] == []
    assert last.keys() == other.keys()
    assert log_of(broken) == log_of(straight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 3}, "batch_size = 2, this run has 3"),
        ({"accumulate": 2}, "accumulate = 1, this run has 2"),
        ({"seed": 1}, "seed = 0, this run has 1"),
    ],
)
def test_a_run_is_not_continued_as_another(tiny_store, tmp_path, change, says):
    trainer_of(tmp_path, tiny_store, steps=3).run()
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        trainer_of(tmp_path, tiny_store, resume=True, **change)
    assert contents(tmp_path) == before


def test_a_run_is_not_continued_with_other_processes(tiny_store, tmp_path):
    trainer_of(tmp_path, tiny_store, steps=3).run()
    progress = latest(tmp_path) / "state" / "progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "processes": 2}))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="processes = 2, this run has 1"):
        trainer_of(tmp_path, tiny_store, resume=True)
    assert contents(tmp_path) == before


def test_a_run_is_not_continued_on_another_split(tiny_store, tmp_path):
    """Galaxies that it was trained on would fall into the test part."""
    config = command_config(tmp_path / "run.yaml", tiny_store, steps=2)
    output = tmp_path / "run"
    train_command(["--config", str(config), "--output", str(output)])
    before = contents(output)
    _forget_launch()
    again = ["--config", str(config), "--output", str(output), "--resume", "true", "--training.steps", "4"]
    with pytest.raises(SystemExit) as error:
        train_command([*again, "--data.split.seed", "5"])
    assert "split" in str(error.value.__cause__)
    assert contents(output) == before


def test_a_folder_with_a_run_is_left_alone(tiny_store, tmp_path, capsys):
    config = command_config(tmp_path / "run.yaml", tiny_store, steps=2)
    output = tmp_path / "run"
    train_command(["--config", str(config), "--output", str(output)])
    before = contents(output)
    _forget_launch()
    with pytest.raises(SystemExit) as error:
        train_command(["--config", str(config), "--output", str(output), "--training.learning_rate", "0.1"])
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert f"{output} already holds a run (step_0000002); continue it with --resume true or choose another" in message
    assert contents(output) == before


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "average.safetensors", "state/generator.safetensors", "state/random_0000.safetensors"],
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_names_its_file(tiny_store, tmp_path, name, damage):
    trainer_of(tmp_path, tiny_store, steps=3).run()
    path = latest(tmp_path) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=f"{path} is {'damaged' if damage == 'cut' else 'missing'}"):
        trainer_of(tmp_path, tiny_store, resume=True)


@pytest.mark.parametrize("text", ['{"step": 3', "{}", '{"step": 3, "processes": 1}'])
def test_damaged_progress_is_named(tiny_store, tmp_path, text):
    trainer_of(tmp_path, tiny_store, steps=3).run()
    (latest(tmp_path) / "state" / "progress.json").write_text(text)
    with pytest.raises(CheckpointError, match="step_0000003 cannot be continued from"):
        trainer_of(tmp_path, tiny_store, resume=True)


# --- one step, however it is divided


def first_gradients(folder, player):
    """AdamW's first moment after one step is (1 - β₁) times the gradient, β₁ = 0.5."""
    state = load_file(folder / "checkpoints" / "step_0000001" / "state" / f"{player}.safetensors")
    return {name: value / 0.5 for name, value in state.items() if name.endswith("exp_avg")}


def assert_same_tensors(found, wanted, tolerance):
    """Equal to ``tolerance`` of the largest entry of all."""
    scale = max(float(value.abs().max()) for value in wanted.values())
    assert scale > 0
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_micro_batches_are_one_batch_of_twice_the_size(tiny_store, tmp_path):
    """Losses are means over samples, no norm mixes samples, both players step last: gradients agree to rounding."""
    options = {"steps": 1, "checkpoint_every": 1, "dropout": 0.0}
    trainer_of(tmp_path / "two", tiny_store, accumulate=2, batch_size=2, **options).run()
    trainer_of(tmp_path / "one", tiny_store, accumulate=1, batch_size=4, **options).run()
    for player in ("generator", "discriminator"):
        # Sums of some 1e4 float32 terms in another order.
        assert_same_tensors(first_gradients(tmp_path / "two", player), first_gradients(tmp_path / "one", player), 1e-5)
    two, one = log_of(tmp_path / "two")[0], log_of(tmp_path / "one")[0]
    assert two == pytest.approx(one, rel=1e-5)


class Line(Method):
    """A method whose every number is known: the loss is the mean of ``slope·w``, its gradient the slope."""

    players = ("net",)
    averaged = ("net",)

    def __init__(self, slope=1.0):
        super().__init__()
        self.net = nn.Linear(3, 1, bias=False)
        self.slope = slope
        self.seen = []

    def loss(self, player, networks, batch, shared):
        self.seen.append(self.net.weight.detach().clone())
        return (networks["net"](batch["x"]) * self.slope).mean(), {}


def line_of(folder, method=None, *, resume=False, hooks=None, **training):
    _forget_launch()
    set_seed(0)
    loader = lambda plan: [{"x": torch.tensor([[1.0, 2.0, 2.0]])}] * (plan.last - plan.first)  # noqa: E731
    config = TrainingConfig(**{**QUICK, **training})
    return Trainer(method or Line(), loader, config, folder, hooks, resume=resume)


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 30.0), (50.0, 30.0), (0.25, 0.25)])
def test_clipping_bounds_the_norm_of_the_gradient(tmp_path, clip, norm):
    """The gradient is 10·(1, 2, 2), of norm 30."""
    line_of(tmp_path, Line(10.0), clip=clip, steps=1).run()
    gradient = first_gradients(tmp_path, "net")["0.exp_avg"]
    assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4)  # torch adds 1e-6 to the norm it divides by
    torch.testing.assert_close(gradient / gradient.norm(), torch.tensor([[1.0, 2.0, 2.0]]) / 3)


def test_moving_average_follows_its_closed_form(tmp_path):
    """w̄₁ = w₁, then w̄ ← d w̄ + (1 - d) w with d = min(decay, (1 + n)/(10 + n))."""
    method = Line()
    trainer = line_of(tmp_path, method, steps=60, average=0.8, learning_rate=0.1, checkpoint_every=60)
    trainer.run()
    weights = [w.double() for w in [*method.seen[1:], method.net.weight.detach()]]
    wanted = weights[0]
    for n, weight in enumerate(weights[1:], start=1):
        decay = min(0.8, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * weight
    saved = load_file(latest(tmp_path) / "average.safetensors")["module.net.weight"]
    torch.testing.assert_close(saved.double(), wanted, rtol=1e-6, atol=0)  # 60 roundings of float32
    with trainer.averaged_method() as averaged:
        torch.testing.assert_close(averaged.net.weight.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(method.net.weight.double(), weights[-1], rtol=0, atol=0)


def test_the_first_average_is_the_weights(tmp_path):
    line_of(tmp_path, steps=1).run()
    folder = latest(tmp_path)
    weights, average = load_file(folder / "model.safetensors"), load_file(folder / "average.safetensors")
    assert torch.equal(average["module.net.weight"], weights["net.weight"])


def test_no_average_is_kept_where_none_is_wanted(tmp_path):
    line_of(tmp_path, average=0.0).run()
    assert not (latest(tmp_path) / "average.safetensors").exists()
    line_of(tmp_path, average=0.0, resume=True, steps=8).run()


# --- learning rates


def rates_of_torch(make, steps=12):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_learning_rates_are_those_of_torch():
    schedulers = torch.optim.lr_scheduler
    linear = TrainingConfig(steps=12, schedule="linear", decay=1.0)
    wanted = rates_of_torch(lambda o: schedulers.LinearLR(o, 1.0, 0.0, total_iters=12))
    assert [linear.rate_factor(step) for step in range(12)] == pytest.approx(wanted, abs=1e-12)
    cosine = TrainingConfig(steps=12, schedule="cosine", decay=1.0)
    wanted = rates_of_torch(lambda o: schedulers.CosineAnnealingLR(o, T_max=12))
    assert [cosine.rate_factor(step) for step in range(12)] == pytest.approx(wanted, abs=1e-12)
    warm = TrainingConfig(steps=12, schedule="constant", warm_up=4)
    wanted = rates_of_torch(lambda o: schedulers.LinearLR(o, 0.25, 1.0, total_iters=3))
    assert [warm.rate_factor(step) for step in range(12)] == pytest.approx(wanted, abs=1e-12)


def test_the_rate_falls_over_the_last_share_only():
    for schedule, middle in (("linear", 0.5), ("cosine", 0.5)):
        config = TrainingConfig(steps=100, schedule=schedule, decay=0.4)
        assert [config.rate_factor(step) for step in (0, 59, 60)] == [1.0, 1.0, 1.0]
        assert config.rate_factor(80) == pytest.approx(middle)
        assert config.rate_factor(100) == pytest.approx(0.0, abs=1e-12)
        assert TrainingConfig(steps=100, schedule=schedule, decay=0.0).rate_factor(99) == 1.0


def test_the_optimizer_is_given_these_rates(tmp_path):
    options = {"schedule": "cosine", "decay": 1.0, "warm_up": 3, "learning_rates": {"net": 0.5}, "learning_rate": 0.1}
    trainer = line_of(tmp_path, **options)
    trainer.run()
    factors = [min(1, (n + 1) / 3) * 0.5 * (1 + math.cos(math.pi * n / 6)) for n in range(6)]
    assert trainer.optimizers["net"].param_groups[0]["lr"] == pytest.approx(0.5 * factors[-1])
    assert [line["learning_rate"] for line in log_of(tmp_path)] == pytest.approx([0.1 * f for f in factors])


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(TrainingError, match=rf"training\.{name} must be at least 1, not 0"):
        TrainingConfig(**{name: 0})


# --- precision


def test_bfloat16_is_close_to_float32(tiny_store, tmp_path):
    trainer_of(tmp_path / "no", tiny_store, dropout=0.0).run()
    trainer_of(tmp_path / "bf16", tiny_store, dropout=0.0, precision="bf16").run()
    for half, full in zip(log_of(tmp_path / "bf16"), log_of(tmp_path / "no"), strict=True):
        # Eight bits of mantissa: 0.4 % an operation, and some ten layers whose errors do not add up alike.
        assert half["l1"] == pytest.approx(full["l1"], rel=0.02)
    weights = load_file(latest(tmp_path / "bf16") / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert log_of(tmp_path / "bf16") != log_of(tmp_path / "no")


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 is a GPU's")
def test_float16_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        line_of(tmp_path, precision="fp16")


# --- what must stop a run


def spoil_target(at, value=math.nan):
    def spoil(number, batch):
        if number == at:
            batch["target"][0, 0, 0, 0] = value

    return spoil


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights(tiny_store, tmp_path, value):
    with pytest.raises(InterruptedError):
        trainer_of(tmp_path, tiny_store, spoil=stop_at(4)).run()
    before = contents(latest(tmp_path))
    trainer = trainer_of(tmp_path, tiny_store, resume=True, spoil=spoil_target(4, value))
    with pytest.raises(TrainingError) as error:
        trainer.run()
    message = str(error.value)
    assert "loss of the discriminator is" in message
    assert "at step 4" in message
    assert f"the last good checkpoint is {latest(tmp_path)}" in message
    named = message.partition("samples: ")[2].partition(";")[0].split(", ")
    assert len(named) == 2
    assert all(name.startswith("view ") and "(subhalo " in name for name in named)
    assert all(torch.isfinite(weight).all() for weight in trainer.method.state_dict().values())
    assert latest(tmp_path).name == "step_0000003"
    assert contents(latest(tmp_path)) == before
    # Once the map is mended the run goes on as though nothing had been.
    trainer_of(tmp_path, tiny_store, resume=True).run()
    trainer_of(tmp_path / "straight", tiny_store).run()
    assert contents(latest(tmp_path)) == contents(latest(tmp_path / "straight"))


class Root(Line):
    """√w·x at w·x = 0: the loss is finite, its gradient is not."""

    def loss(self, player, networks, batch, shared):
        return (networks["net"](batch["x"]) * 0.0).sqrt().mean(), {}


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights(tmp_path, clip):
    line_of(tmp_path, steps=3).run()
    before = contents(tmp_path / "checkpoints")
    trainer = line_of(tmp_path, Root(), resume=True, checkpoint_every=1, clip=clip)
    with pytest.raises(TrainingError, match=r"gradient of the net is not finite at step 3.*step_0000003"):
        trainer.run()
    assert torch.isfinite(trainer.method.net.weight).all()
    assert contents(tmp_path / "checkpoints") == before


def test_more_processes_asked_than_seen_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        TrainingError, match=r"asks for 2 processes, Accelerate sees 1.*ACCELERATE_USE_CPU=true torchrun"
    ):
        line_of(tmp_path)
    assert not contents(tmp_path)


def test_a_signal_is_granted_between_steps(tiny_store, tmp_path):
    def spoil(number, batch):
        if number == 3:  # in the middle of the second step
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        TrainingError, match=r"stopped as asked after step 2; continue with --resume true from .*0000002"
    ):
        trainer_of(tmp_path, tiny_store, spoil=spoil, **EXACTING).run()
    assert signal.getsignal(signal.SIGTERM) is before
    trainer_of(tmp_path, tiny_store, resume=True, **EXACTING).run()
    trainer_of(tmp_path / "straight", tiny_store, **EXACTING).run()
    assert contents(latest(tmp_path)) == contents(latest(tmp_path / "straight"))


# --- what a run leaves behind


def test_a_run_leaves_logs_and_figures(tmp_path):
    seen = []

    def sample(method):
        seen.append((method.training, method.net.weight.detach().clone()))
        return Figure(figsize=(1, 1))

    trainer = line_of(tmp_path, hooks=Hooks(sample=sample), sample_every=2, log_every=2)
    trainer.run()
    assert [line["step"] for line in log_of(tmp_path)] == [2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step_000000{step}.png" for step in (2, 4, 6)
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "samples").iterdir())
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    assert not any(training for training, _ in seen)
    assert torch.equal(seen[-1][1], load_file(latest(tmp_path) / "average.safetensors")["module.net.weight"])


def test_the_log_holds_means_over_its_window(tmp_path):
    """Samples are counted, and a line is the mean of the losses since the last one."""
    method = Line()
    line_of(tmp_path, method, log_every=3, batch_size=5, learning_rate=0.1).run()
    losses = [float((w * torch.tensor([1.0, 2.0, 2.0])).sum()) for w in method.seen]
    lines = log_of(tmp_path)
    assert [line["net"] for line in lines] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-5)
    assert [line["samples"] for line in lines] == [15, 30]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    line_of(tmp_path, checkpoint_every=1, keep=2).run()
    assert checkpoints(tmp_path) == ["step_0000005", "step_0000006"]


def test_the_newest_checkpoint_has_the_largest_step(tmp_path):
    """By number: beyond seven digits the order of names is another."""
    for step in (9_999_999, 10_000_000):
        (tmp_path / "checkpoints" / f"step_{step:07d}").mkdir(parents=True)
    assert latest(tmp_path).name == "step_10000000"


def test_a_full_disk_leaves_the_last_checkpoint(tiny_store, tmp_path, monkeypatch):
    from skyshift import run_state

    with pytest.raises(InterruptedError):
        trainer_of(tmp_path, tiny_store, spoil=stop_at(4)).run()
    before = contents(tmp_path / "checkpoints")
    save = run_state.save_tensors

    def full(path, *rest):
        if path.name == "discriminator.safetensors":
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(path, *rest)

    monkeypatch.setattr(run_state, "save_tensors", full)
    message = r"step 6 cannot be written \(.*No space left on device\); the last good checkpoint is .*step_0000003"
    with pytest.raises(TrainingError, match=message):
        trainer_of(tmp_path, tiny_store, resume=True).run()
    assert contents(tmp_path / "checkpoints") == before
    monkeypatch.undo()
    trainer_of(tmp_path, tiny_store, resume=True).run()
    trainer_of(tmp_path / "straight", tiny_store).run()
    assert contents(latest(tmp_path)) == contents(latest(tmp_path / "straight"))


LIMITED = """
    import resource, sys
    from pathlib import Path
    import torch
    from torch import nn
    from skyshift.engine import Method, Trainer, TrainingConfig

    class Wide(Method):
        players = averaged = ("net",)
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(400, 400)  # 640 kB; a file may later take 400 kB
        def loss(self, player, networks, batch, shared):
            return networks["net"](batch["x"]).square().mean(), {}

    def loader(plan):
        for number in range(plan.first, plan.last):
            if number == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
            yield {"x": torch.ones(1, 400)}

    config = TrainingConfig(steps=6, batch_size=1, checkpoint_every=3, log_every=1, precision="no")
    Trainer(Wide(), loader, config, Path(sys.argv[1])).run()
"""


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path):
    """The system itself refuses the rest of a file, as a full disk or a quota does."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(LIMITED))
    run = tmp_path / "run"
    result = subprocess.run([sys.executable, script, run], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "File too large" in result.stderr
    assert checkpoints(run) == ["step_0000003"]
    weights = load_file(latest(run) / "model.safetensors")
    assert weights["net.weight"].shape == (400, 400)


def test_a_checkpoint_holds_no_pickle(tiny_store, tmp_path, repository):
    """safetensors, JSON and YAML alone: neither a pickle nor the zip file in which torch.save hides one."""
    trainer_of(tmp_path, tiny_store, steps=1).run()
    files = contents(tmp_path / "checkpoints")
    assert {Path(name).suffix for name in files} == {".safetensors", ".json"}
    for name, data in files.items():
        assert not data.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), name
        if name.endswith(".safetensors"):  # eight bytes of length, then a JSON header
            length = int.from_bytes(data[:8], "little")
            assert json.loads(data[8 : 8 + length])
    banned = ("torch.load(", "torch.save(", "import pickle", "pickle.load", "allow_pickle=True", "yaml.load(", "joblib")
    for folder in ("src/skyshift", "datasets", "translate", "adapt"):
        for path in (repository / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.name == "pretrained.py":
                # Weights of other people's networks come as torch files: tensors alone are read of them, by the reader
                # that builds no objects, and handed on in memory.
                calls = [line for line in text.splitlines() if "torch.load(" in line]
                assert all("weights_only=True" in line for line in calls), path
                assert text.count("torch.save(") == text.count("copy = io.BytesIO()") == 1
                text = text.replace("torch.load(", "").replace("torch.save(", "")
            assert not [word for word in banned if word in text], path


# --- several processes


def launch(command, **environment):
    """Run to the end; the launcher's own processes end with it."""
    return subprocess.run(
        command,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]


@pytest.fixture(scope="module")
def one_process(tiny_store, tmp_path_factory):
    """One process with batches of four, without dropout, whose draws differ between processes."""
    folder = tmp_path_factory.mktemp("one")
    trainer_of(folder, tiny_store, batch_size=4, dropout=0.0, steps=4, clip=0.5, checkpoint_every=1, keep=4).run()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_are_one_with_batches_of_twice_the_size(launcher, one_process, tiny_store, tmp_path, repository):
    config = command_config(tmp_path / "run.yaml", tiny_store, steps=4, clip=0.5, checkpoint_every=1, keep=4)
    output = tmp_path / "run"
    options = ["--output", output, "--method.init_args.generator.init_args.dropout", "0"]
    if launcher is TORCHRUN:
        options += ["--evaluation", "true"]  # by the main process alone, while the other waits
    script = repository / "translate" / "train.py"
    result = launch([*launcher, script, "--config", config, *options], ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((latest(output) / "state" / "progress.json").read_text())["processes"] == 2
    assert (latest(output) / "state" / "random_0001.safetensors").is_file()
    assert (output / "evaluation" / "table.md").is_file() == (launcher is TORCHRUN)
    ours, wanted = log_of(output), log_of(one_process)
    assert len(ours) == len(wanted) == 4
    for two, one in zip(ours, wanted, strict=True):
        assert two == pytest.approx(one, rel=1e-4)  # rounding, which four steps of Adam enlarge
    # Gradients are compared at the first step, where both have the same weights. Later a gradient is no measure: it
    # jumps where a weight that differs in its last bit puts an activation on the other side of a ReLU's kink.
    for player in ("generator", "discriminator"):
        # Sums of some 1e4 float32 terms in another order.
        assert_same_tensors(first_gradients(output, player), first_gradients(one_process, player), 1e-5)
    # Adam divides by the gradient's size: a bias before a normalisation, whose gradient is rounding alone, moves by
    # up to the learning rate a step. These few are small beside the weights.
    two, one = (
        torch.cat([value.ravel() for value in load_file(latest(folder) / "model.safetensors").values()])
        for folder in (output, one_process)
    )
    assert float((two - one).abs().max()) <= 4 * 2e-4
    assert float((two - one).abs().median()) <= 1e-7


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="several GPUs are seen without being told")
def test_a_launch_that_would_train_twice_is_refused(tiny_store, tmp_path, repository):
    config = command_config(tmp_path / "run.yaml", tiny_store)
    script = repository / "translate" / "train.py"
    result = launch([*TORCHRUN, script, "--config", config, "--output", tmp_path / "run"])
    assert result.returncode != 0
    assert "the launch asks for 2 processes, Accelerate sees 1" in result.stderr
    assert "ACCELERATE_USE_CPU=true torchrun" in result.stderr
    assert not (tmp_path / "run").exists()


TWO = """
    import json, math, sys
    from pathlib import Path
    import torch
    from accelerate import PartialState
    from accelerate.utils import set_seed
    from skyshift.engine import Trainer, TrainingConfig, TrainingError, Hooks
    from skyshift.translate.methods.pix2pix import Pix2Pix
    from skyshift.translate.networks.patchgan import PatchGAN
    from skyshift.translate.networks.unet import UNet

    out, seen = Path(sys.argv[1]), {}

    def run(name, *, resume=False, spoil=lambda number, rank, batch: None, accumulate=2):
        config = TrainingConfig(steps=6, batch_size=2, precision="no", log_every=1, checkpoint_every=3, average=0.9,
                                accumulate=accumulate, clip=0.5, warm_up=2, schedule="cosine")
        set_seed(0)
        method = Pix2Pix(1, 1, generator=lambda s, t: UNet(s, t, width=4, depth=2, norm="batch", dropout=0.5),
                         discriminator=lambda c: PatchGAN(c, width=4, layers=2, norm="none"))
        def loader(plan):
            for number in range(plan.first, plan.last):
                maps = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(2 * number + plan.process))
                batch = {"source": maps[0], "target": maps[1]}
                spoil(number, plan.process, batch)
                yield batch
        hooks = Hooks(identify=lambda batch: f"a batch of process {PartialState().process_index}")
        trainer = Trainer(method, loader, config, out / name, hooks, resume=resume)
        assert trainer.accelerator.num_processes == 2
        trainer.run()

    def stop(number, rank, batch):
        if number == 9:
            raise InterruptedError

    def poison(number, rank, batch):
        if number == 4 and rank == 1:
            batch["target"][0, 0, 0, 0] = math.nan

    run("straight")
    try:
        run("broken", spoil=stop)
    except InterruptedError:
        pass
    run("broken", resume=True)
    try:
        run("poisoned", spoil=poison, accumulate=1)
        message = "not stopped"
    except TrainingError as error:
        message = str(error)
    (out / f"message_{PartialState().process_index}").write_text(message)
    PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit_and_stop_together(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TWO))
    result = launch([*TORCHRUN, script, tmp_path], ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert contents(latest(broken)) == contents(latest(straight))
    assert log_of(broken) == log_of(straight)
    state = latest(straight) / "state"
    # Dropout differs between the processes.
    assert (state / "random_0000.safetensors").read_bytes() != (state / "random_0001.safetensors").read_bytes()
    fine, poisoned = ((tmp_path / f"message_{rank}").read_text() for rank in (0, 1))
    assert "is nan at step 4, samples: a batch of process 1; the last good checkpoint is" in poisoned
    assert "at step 4, in another process's batch; the last good checkpoint is" in fine
    assert checkpoints(tmp_path / "poisoned") == ["step_0000003"]
