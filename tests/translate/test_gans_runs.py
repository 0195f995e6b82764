"""Runs of the unpaired methods: the shipped configurations, resuming bit for bit, and two processes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file

from skyshift.checkpoint import latest
from skyshift.datasets.loading import Split
from skyshift.datasets.store import MapStore
from skyshift.engine import Hooks, Trainer, TrainingConfig
from skyshift.translate.data import DataConfig, TranslationData
from skyshift.translate.methods.cut import CUT
from skyshift.translate.methods.cyclegan import CycleGAN
from skyshift.translate.methods.fastcut import FastCUT
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.unet import UNet
from skyshift.translate.train import main as train_command
from skyshift.translate.translator import Translator

SPLIT = {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0}


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate remembers the first launch of a process; each test is a launch of its own."""
    _forget_launch()
    yield
    _forget_launch()


def _forget_launch():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unet(source, target):
    return UNet(source, target, width=4, depth=2, norm="instance")


def judge(channels):
    return PatchGAN(channels, width=4, layers=2, norm="none")


def method_of(kind):
    if kind is CycleGAN:  # a buffer that is full after two steps
        return CycleGAN(1, 1, generator=unet, discriminator=judge, buffer_size=4)
    return kind(1, 1, generator=unet, discriminator=judge, nce_layers=[0, 1, 3], patches=16, dimensions=8)


def run(kind, folder, store, *, stop=None, resume=False, **training):
    _forget_launch()
    options = {"steps": 6, "batch_size": 2, "accumulate": 2, "precision": "no", "log_every": 1, "checkpoint_every": 3}
    config = TrainingConfig(**{**options, **training})
    data = TranslationData(
        DataConfig(str(store), source=["gas"], target=["hi"], split=Split(**SPLIT), paired=False), MapStore(store)
    )
    set_seed(config.seed)

    def until_stop(batches, first):
        for number, batch in enumerate(batches, start=first):
            if number == stop:
                raise InterruptedError("the power went")
            yield batch

    def loader(plan):
        return until_stop(iter(data.loader(config, plan)), plan.first)

    Trainer(method_of(kind), loader, config, folder, Hooks(identify=data.identify), resume=resume).run()


@pytest.mark.parametrize("kind", [CycleGAN, CUT, FastCUT])
def test_a_resumed_run_is_bit_for_bit_the_same(kind, tiny_store, tmp_path):
    run(kind, tmp_path / "straight", tiny_store)
    with pytest.raises(InterruptedError):
        run(kind, tmp_path / "broken", tiny_store, stop=9)
    run(kind, tmp_path / "broken", tiny_store, resume=True)
    assert contents(latest(tmp_path / "broken")) == contents(latest(tmp_path / "straight"))
    if kind is CycleGAN:
        saved = load_file(latest(tmp_path / "straight") / "model.safetensors")
        assert int(saved["buffer.seen"]) == int(saved["buffer_back.seen"]) == 24
        assert saved["buffer.maps"].shape == (4, 1, 32, 32)
        assert not torch.equal(saved["buffer.maps"], saved["buffer_back.maps"])


TINY = [
    *("--training.steps=3", "--training.batch_size=2", "--training.log_every=1"),
    *("--data.build=", "--data.split={train: 0.5, validation: 0.2, test: 0.3, seed: 0}"),
    *("--evaluation=false", "--method.init_args.generator.init_args.width=4"),
]


@pytest.mark.parametrize("name", ["regression", "cyclegan", "cut", "fastcut"])
def test_the_shipped_configuration_trains_and_translates(name, tiny_store, tmp_path, repository):
    config = repository / "configs" / "translate" / f"{name}.yaml"
    sample = f"--training.sample_every={2 if name == 'cyclegan' else 0}"
    options = ["--data.store", str(tiny_store), "--output", str(tmp_path / "run"), *TINY, sample]
    train_command(["--config", str(config), *options])
    assert f"output: runs/{name}\n" in config.read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    translator = Translator.from_pretrained(tmp_path / "run")
    maps = translator(MapStore(tiny_store), [0, 1])["hi"]
    assert maps.values.shape == (2, 32, 32)
    assert maps.values.dtype == np.float32
    assert np.isfinite(maps.values).all()
    assert maps.values.min() >= 0
    if name == "cyclegan":
        assert (tmp_path / "run" / "samples" / "step_0000002.png").is_file()
        _without_buffers(latest(tmp_path / "run"))
        again = Translator.from_pretrained(tmp_path / "run")(MapStore(tiny_store), [0, 1])["hi"]
        np.testing.assert_array_equal(again.values, maps.values)


def _without_buffers(checkpoint):
    """As for inference: what only training needs is left out."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    assert {key for key in weights if key.startswith("buffer")}
    save_file({key: value for key, value in weights.items() if key.startswith("generators.")}, path)


# --- two processes

TWO = """
    import sys
    from pathlib import Path
    import torch
    from accelerate.utils import set_seed
    from torch import nn
    from skyshift.engine import Trainer, TrainingConfig
    from skyshift.translate.methods.cut import CUT
    from skyshift.translate.methods.cyclegan import CycleGAN
    from skyshift.translate.networks.patchgan import PatchGAN
    from skyshift.translate.networks.resnet import ResNet

    def judge(channels):
        return PatchGAN(channels, width=4, layers=2, norm="none")

    def resnet(source, target):
        return ResNet(source, target, width=4, blocks=1, norm="instance")

    def cyclegan():
        return CycleGAN(1, 1, generator=resnet, discriminator=judge, buffer_size=6)

    def cut():  # all places are compared, so that nothing depends on which are drawn
        return CUT(1, 1, generator=resnet, discriminator=judge, nce_layers=[1, 3], patches=4096, dimensions=8)

    def run(make, folder, processes, **training):
        config = TrainingConfig(precision="no", log_every=1, checkpoint_every=1, keep=9, average=0.9, **training)
        set_seed(0)

        def loader(plan):
            assert plan.processes == processes
            for step in range(plan.first, plan.last):
                maps = torch.rand(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(step))
                mine = slice(plan.process * config.batch_size, (plan.process + 1) * config.batch_size)
                yield {"source": maps[0, mine], "target": maps[1, mine]}

        trainer = Trainer(make(), loader, config, folder)
        assert trainer.accelerator.num_processes == processes
        assert isinstance(trainer.networks["discriminator"], nn.parallel.DistributedDataParallel) == (processes > 1)
        trainer.run()
"""

LAUNCHED = """
    run(cyclegan, Path(sys.argv[1]) / "cyclegan", 2, steps=5, batch_size=2)
    run(cut, Path(sys.argv[1]) / "cut", 2, steps=1, batch_size=2)
    torch.distributed.destroy_process_group()
"""


def first_gradients(folder, player):
    """AdamW's first moment after one step is (1 - β₁) times the gradient, β₁ = 0.5."""
    state = load_file(folder / "checkpoints" / "step_0000001" / "state" / f"{player}.safetensors")
    return {name: value / 0.5 for name, value in state.items() if name.endswith("exp_avg")}


@pytest.mark.slow
def test_two_processes_are_one_with_batches_of_twice_the_size(tmp_path):
    """Gradients of every player at the first step, and the history of the buffers over five."""
    script, space = tmp_path / "script.py", {}
    script.write_text(textwrap.dedent(TWO) + textwrap.dedent(LAUNCHED))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        **{
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "ACCELERATE_USE_CPU": "true",
        },
    }
    result = subprocess.run(
        [*command, script, tmp_path / "two"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
    exec(textwrap.dedent(TWO), space)
    for name, steps, players in (
        ("cyclegan", 5, ("discriminator", "discriminator_back", "generators")),
        ("cut", 1, ("discriminator", "projection", "generator")),
    ):
        _forget_launch()
        space["run"](space[name], tmp_path / "one" / name, 1, steps=steps, batch_size=4)
        two, one = tmp_path / "two" / name, tmp_path / "one" / name
        assert json.loads((latest(two) / "state" / "progress.json").read_text())["processes"] == 2
        for player in players:
            found, wanted = first_gradients(two, player), first_gradients(one, player)
            scale = max(float(value.abs().max()) for value in wanted.values())
            for key, value in wanted.items():  # sums of some 1e4 float32 terms in another order
                torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5 * scale)
    _require_same_buffers(Path(tmp_path / "two" / "cyclegan"), Path(tmp_path / "one" / "cyclegan"))


def _require_same_buffers(two, one):
    """Twenty maps went through a buffer of six: the same ones are kept, to the rounding that five steps enlarge."""
    ours, wanted = (load_file(latest(folder) / "model.safetensors") for folder in (two, one))
    for name in ("buffer", "buffer_back"):
        assert int(ours[f"{name}.seen"]) == int(wanted[f"{name}.seen"]) == 20
        torch.testing.assert_close(ours[f"{name}.maps"], wanted[f"{name}.maps"], rtol=1e-3, atol=1e-3)
        assert float(wanted[f"{name}.maps"].std(0).mean()) > 0.1  # so that another choice would be seen
