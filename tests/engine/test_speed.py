"""What makes networks faster or smaller leaves them the same: names, gradients, averages, resuming."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn

from skyshift.checkpoint import CheckpointError, latest
from skyshift.engine import Method, Trainer, TrainingConfig, TrainingError
from skyshift.speed import blocks, recompute_activations
from skyshift.translate.methods.pix2pix import Pix2Pix
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.resnet import ResNet
from skyshift.translate.networks.unet import UNet


def pix2pix(dropout=0.0, norm="group"):
    return Pix2Pix(
        1,
        1,
        generator=lambda source, target: UNet(source, target, width=4, depth=2, norm=norm, dropout=dropout),
        discriminator=lambda channels: PatchGAN(channels, width=4, layers=2, norm="instance"),
    )


def run_of(folder, method=None, *, resume=False, fail_at=None, **training):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    set_seed(0)
    options = {"steps": 2, "batch_size": 2, "precision": "no", "log_every": 1, "checkpoint_every": 1, "average": 0.9}
    config = TrainingConfig(**{**options, **training})
    method = (method or pix2pix)()

    def loader(plan):
        for number in range(plan.first, plan.last):
            if number == fail_at:
                raise InterruptedError
            samples = plan.processes * config.batch_size
            first = number * samples + plan.process * config.batch_size
            maps = [
                torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(n))
                for n in range(first, first + config.batch_size)
            ]
            source, target = torch.stack(maps, dim=1)
            yield {"source": source, "target": target}

    return Trainer(method, loader, config, folder, resume=resume)


def weights_of(folder, name="model"):
    return load_file(latest(folder) / f"{name}.safetensors")


def first_gradients(folder):
    """AdamW's first moment after one step is (1 - β₁) times the gradient, β₁ = 0.5."""
    state = folder / "checkpoints" / "step_0000001" / "state"
    return {
        f"{player}.{name}": 2 * value
        for player in ("generator", "discriminator")
        for name, value in load_file(state / f"{player}.safetensors").items()
        if name.endswith("exp_avg")
    }


def assert_same_run(one, other, tolerance):
    """Gradients to ``tolerance`` of the largest; names, and weights but for what Adam makes of rounding."""
    mine, wanted = first_gradients(one), first_gradients(other)
    scale = max(float(value.abs().max()) for value in wanted.values())
    assert scale > 0
    for name, value in wanted.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=tolerance * scale)
    for file in ("model", "average"):
        mine, wanted = weights_of(one, file), weights_of(other, file)
        assert mine.keys() == wanted.keys()
        for name in wanted:
            # Two steps of Adam, of up to the learning rate either way where a gradient is rounding alone.
            torch.testing.assert_close(mine[name], wanted[name], rtol=0, atol=4 * 2e-4)
        distance = torch.cat([(mine[name].float() - wanted[name].float()).ravel() for name in wanted]).abs()
        assert float(distance.median()) < 1e-6


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run_of(folder, keep=2).run()
    return folder


# --- channels last


def test_channels_last_is_the_same_run(plain, tmp_path):
    trainer = run_of(tmp_path, channels_last=True, keep=2)
    trainer.run()
    assert_same_run(tmp_path, plain, 1e-5)  # sums of some 1e4 float32 terms in another order
    weight = trainer.method.discriminator.layers[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert all(value.is_contiguous() for value in weights_of(tmp_path).values())


def test_channels_last_resumes_bit_for_bit(tmp_path):
    """The optimizer's moments are laid out as its weights again: fused Adam walks both in memory order."""
    run_of(tmp_path / "straight", channels_last=True, steps=3).run()
    with pytest.raises(InterruptedError):
        run_of(tmp_path / "broken", channels_last=True, steps=3, fail_at=1).run()
    run_of(tmp_path / "broken", channels_last=True, steps=3, resume=True).run()
    for name in ("model.safetensors", "average.safetensors", "state/generator.safetensors"):
        straight, broken = (latest(tmp_path / run) / name for run in ("straight", "broken"))
        assert straight.read_bytes() == broken.read_bytes()


# --- activations computed again


def test_recomputed_activations_give_the_same_run(plain, tmp_path):
    trainer = run_of(tmp_path, checkpoint_activations=True, keep=2)
    trainer.run()
    assert_same_run(tmp_path, plain, 1e-6)  # the same operations in the same order


def test_recomputed_activations_draw_the_same_dropout(tmp_path):
    for name, again in (("kept", False), ("again", True)):
        run_of(tmp_path / name, lambda: pix2pix(dropout=0.5), checkpoint_activations=again).run()
    for name, value in weights_of(tmp_path / "kept").items():
        torch.testing.assert_close(weights_of(tmp_path / "again")[name], value, rtol=0, atol=1e-6)


def kept_bytes(network, x):
    """Bytes that autograd keeps of a forward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = network(x)
    return sum(storages.values()), y


@pytest.mark.parametrize(
    ("make", "share"),
    # Kept are the inputs of blocks: in a U-Net (two convolutions, normalised and activated, a block) about a third.
    [(lambda: UNet(1, 1, width=8, depth=3), 0.5), (lambda: ResNet(1, 1, width=8, blocks=6), 0.5)],
    ids=["unet", "resnet"],
)
def test_recomputed_activations_take_less_memory(make, share):
    torch.manual_seed(0)
    network, x = make(), torch.rand(2, 1, 64, 64)
    before, y = kept_bytes(network, x)
    y.square().mean().backward()
    wanted = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    assert recompute_activations(network) > 3
    after, y = kept_bytes(network, x)
    y.square().mean().backward()
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-6)
    assert after < share * before, f"{after} of {before}"


def test_batch_normalisation_is_not_counted_twice():
    assert not list(blocks(PatchGAN(1, width=4, layers=2, norm="batch")))
    assert len(list(blocks(PatchGAN(1, width=4, layers=2, norm="none")))) == 1


class Line(Method):
    players = averaged = ("net",)

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def loss(self, player, networks, batch, shared):
        return networks["net"](batch["source"][:, 0, 0, :1]).mean(), {}


def test_a_network_without_blocks_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no network of this method has blocks"):
        run_of(tmp_path, Line, checkpoint_activations=True)


# --- compiling


def test_compiling_and_recomputing_together_is_refused():
    with pytest.raises(TrainingError, match="do not go together"):
        TrainingConfig(compile=True, checkpoint_activations=True)


class Small(Method):
    """One convolution, which compiles in seconds."""

    players = averaged = ("net",)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(0.2))

    def loss(self, player, networks, batch, shared):
        return networks["net"](batch["source"]).square().mean(), {}


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path):
    """With plain names, and averaged weights that a plain run could go on from."""
    for name, compiled in (("plain", False), ("compiled", True)):
        run_of(tmp_path / name, Small, compile=compiled, steps=3).run()
    for file in ("model", "average"):
        mine, wanted = (weights_of(tmp_path / name, file) for name in ("compiled", "plain"))
        assert mine.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)  # fused operations round differently
    run_of(tmp_path / "compiled", Small, resume=True, steps=4).run()


NO_COMPILER = """
    from skyshift.speed import require_compiler
    require_compiler()
"""


def test_no_compiler_is_said(tmp_path):
    """On a path without one, with an empty cache of compiled code."""
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": "", "CC": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_COMPILER)], env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "training.compile: torch cannot compile here (" in result.stderr
    assert "install a C++ compiler" in result.stderr


# --- the same samples a step, divided otherwise


@pytest.mark.parametrize("division", [{"batch_size": 4}, {"batch_size": 1, "accumulate": 4}])
def test_a_run_goes_on_with_its_steps_divided_otherwise(tmp_path, division, capsys):
    options = {"steps": 4, "batch_size": 2, "accumulate": 2, "checkpoint_every": 2}
    run_of(tmp_path / "straight", **options).run()
    with pytest.raises(InterruptedError):
        run_of(tmp_path / "broken", fail_at=4, **options).run()
    run_of(tmp_path / "broken", resume=True, **{**options, "accumulate": 1, **division}).run()
    assert "the same 4 samples a step, in the same order, but not bit for bit" in capsys.readouterr().out
    mine, wanted = weights_of(tmp_path / "broken"), weights_of(tmp_path / "straight")
    for name, value in wanted.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=4 * 2e-4)  # two steps of Adam after it
    distance = torch.cat([(mine[name] - value).ravel() for name, value in wanted.items()]).abs()
    assert float(distance.median()) < 1e-6  # and nearly all of them alike: the samples were the same


def test_a_step_of_other_samples_is_refused(tmp_path):
    run_of(tmp_path, steps=1).run()
    says = r"batch_size = 2, this run has 3; a step of this run has 2 samples .* is to have 3"
    with pytest.raises(CheckpointError, match=says):
        run_of(tmp_path, resume=True, batch_size=3)


def test_another_method_is_refused_and_nothing_is_lost(tmp_path):
    run_of(tmp_path, steps=1).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for method in (Line, lambda: pix2pix(norm="none")):
        with pytest.raises(CheckpointError, match="is of another method or other networks"):
            run_of(tmp_path, method, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "training", "says"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "the launch asks for DEEPSPEED, which this loop does not have"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "the launch asks for MEGATRON_LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP of version 1, this loop has version 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, {}, "does not have fsdp_offload_params: true"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "training.checkpoint_activations instead"),
        ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, {}, "does not have fsdp_reshard_after_forward: false"),
        (FSDP, {"channels_last": True}, "does not have training.channels_last"),
        (FSDP, {"precision": "fp16"}, "does not have training.precision fp16"),
    ],
)
def test_what_a_launch_cannot_have_is_refused(tmp_path, monkeypatch, environment, training, says):
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=says):
        run_of(tmp_path, **training)
    assert not list(tmp_path.iterdir())


def test_one_process_has_nothing_to_divide(plain, tmp_path, monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    run_of(tmp_path, keep=2).run()
    assert all(torch.equal(value, weights_of(plain)[name]) for name, value in weights_of(tmp_path).items())


def test_blocks_of_lists_in_lists_are_found_and_empty_places_are_not():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    network = nn.Module()
    network.parts = nn.ModuleList([nn.ModuleList([one, two]), nn.ModuleList([None])])
    assert list(blocks(network)) == [one, two]
