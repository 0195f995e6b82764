"""FSDP: divided weights train as whole ones do, in every method, and leave the same checkpoints behind."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skyshift.checkpoint import latest
from skyshift.datasets.store import MapStore
from skyshift.translate.translator import Translator

RUN = """
    import json, os, signal, sys
    from pathlib import Path
    import torch
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed
    from matplotlib.figure import Figure
    from torch.distributed.tensor import DTensor
    from skyshift.engine import Hooks, Trainer, TrainingConfig, TrainingError
    from skyshift.translate.methods.cut import CUT
    from skyshift.translate.methods.cyclegan import CycleGAN
    from skyshift.translate.methods.diffusion import Diffusion
    from skyshift.translate.methods.flow import Flow
    from skyshift.translate.methods.normalizing_flow import NormalizingFlow
    from skyshift.translate.methods.pix2pix import Pix2Pix
    from skyshift.translate.methods.vae import VAE
    from skyshift.translate.networks.conditional_flow import ConditionalFlow
    from skyshift.translate.networks.diffusion_unet import DiffusionUNet
    from skyshift.translate.networks.latent import LatentUNet
    from skyshift.translate.networks.patchgan import PatchGAN
    from skyshift.translate.networks.resnet import ResNet
    from skyshift.translate.networks.time_unet import TimeUNet
    from skyshift.translate.networks.unet import UNet

    out = Path(sys.argv[1])
    unet = lambda s, t: UNet(s, t, width=5, depth=2, norm="none")
    resnet = lambda s, t: ResNet(s, t, width=4, blocks=2, downsamplings=1, norm="none")
    timed = lambda s, t: TimeUNet(s, t, width=4, depth=2, norm="none")
    judge = lambda c: PatchGAN(c, width=5, layers=2, norm="none")
    features = {"nce_layers": [0, 1, 2], "patches": 16, "dimensions": 8}
    METHODS = {
        "pix2pix": lambda: Pix2Pix(1, 1, generator=unet, discriminator=judge),
        "cyclegan": lambda: CycleGAN(1, 1, generator=resnet, discriminator=judge, buffer_size=4),
        "cut": lambda: CUT(1, 1, generator=unet, discriminator=judge, **features),
        "diffusion": lambda: Diffusion(1, 1, denoiser=lambda s, t: DiffusionUNet(s, t, width=8, depth=1)),
        "flow": lambda: Flow(1, 1, velocity=timed),
        "normalizing_flow": lambda: NormalizingFlow(
            1, 1, flow=lambda s, t: ConditionalFlow(s, t, width=8, levels=2, blocks=2)
        ),
        "vae": lambda: VAE(1, 1, autoencoder=lambda s, t: LatentUNet(s, t, width=4, depth=2)),
    }

    def sample(number):
        return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(number))

    def trainer_of(name, method="pix2pix", batch_size=2, at=None, happens=None, resume=False, hooks=None, **training):
        options = {"steps": 2, "precision": "no", "log_every": 1, "checkpoint_every": 2, "average": 0.9, "clip": 0.5,
                   "keep": 9, "accumulate": 2, "learning_rate": 1e-4, "schedule": "constant"}
        config = TrainingConfig(batch_size=batch_size, **{**options, **training})
        AcceleratorState._reset_state()  # or the first run's precision would be that of all
        set_seed(0)
        def loader(plan):
            assert plan.processes == int(os.environ.get("WORLD_SIZE", "1"))
            for number in range(plan.first, plan.last):
                first = (number * plan.processes + plan.process) * batch_size
                source, target = torch.stack([sample(n) for n in range(first, first + batch_size)], dim=1)
                if number == at:
                    source = happens(plan, source)
                yield {"source": source, "target": target}
        return Trainer(METHODS[method](), loader, config, out / name, hooks, resume=resume)

    def run(name, *arguments, **options):
        trainer = trainer_of(name, *arguments, **options)
        try:
            trainer.run()
        except (InterruptedError, TrainingError) as error:
            return trainer, str(error)
        return trainer, ""

    def power_cut(plan, source):
        raise InterruptedError("the power went")
"""

ALL = """
    for method in METHODS:
        run(f"{sys.argv[2]}_{method}", method)
    run(f"{sys.argv[2]}_bf16", precision="bf16", accumulate=1)
"""
PLAIN = f"""{ALL}
    assert not any(isinstance(p, DTensor) for p in trainer_of("plain").method.parameters())
    run("forth", steps=3, at=4, happens=power_cut)
    run("whole", steps=3)
    torch.distributed.destroy_process_group()
"""
DIVIDED = f"""{ALL}
    run("fsdp_recomputed", checkpoint_activations=True)
    run("back", steps=3, at=4, happens=power_cut)
    run("alone", steps=3, at=4, happens=power_cut)
    run("broken", steps=3, at=4, happens=power_cut)
    run("broken", steps=3, resume=True)
    run("forth", steps=3, resume=True)
    run("longer", steps=3)

    # What each process holds: of the weights, of their average, of Adam's moments.
    trainer, _ = run("held", steps=1)
    rank, held = trainer.accelerator.process_index, {{}}
    for name, tensors in {{
        "weights": trainer.method.parameters(),
        "average": trainer.average.module.parameters(),
        "moments": (s["exp_avg"] for o in trainer.optimizers.values() for s in o.state.values()),
        "squares": (s["exp_avg_sq"] for o in trainer.optimizers.values() for s in o.state.values()),
    }}.items():
        tensors = list(tensors)
        held[name] = [sum(t.to_local().numel() for t in tensors), sum(t.numel() for t in tensors)]

    # Exit paths: one process is asked to stop, one has a bad map, one process alone judges and draws.
    def asked(plan, source):
        if plan.process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return source
    def bad(plan, source):
        return source * float("nan") if plan.process == 1 else source
    said = [run("stopped", at=0, happens=asked)[1], run("bad", at=2, happens=bad)[1]]
    seen = []
    def validate(method):
        assert not method.training
        seen.append({{name: value.clone() for name, value in method.state_dict().items()}})
        return {{"error": float(method.translate(torch.ones(1, 1, 16, 16)).mean())}}
    hooks = Hooks(sample=lambda method: Figure(), validate=validate, directions={{"error": -1}})
    trainer, _ = run("judged", hooks=hooks, validate_every=2, sample_every=2, monitor="error")
    if rank == 0:
        from safetensors.torch import load_file
        saved = load_file(out / "judged/checkpoints/step_0000002/average.safetensors")
        for name, value in saved.items():
            if name.startswith("module."):
                assert torch.equal(seen[0][name.removeprefix("module.")], value), name
    (out / f"held_{{rank}}.json").write_text(json.dumps({{"held": held, "said": said, "judged": len(seen)}}))
    torch.distributed.destroy_process_group()
"""
BACK = """
    run("back", resume=True, steps=3)
    torch.distributed.destroy_process_group()
"""
ALONE = """
    run("one_pix2pix", batch_size=4)
    run("one_cyclegan", "cyclegan", batch_size=4)
    run("alone", batch_size=4, steps=3, resume=True)
"""
METHODS = ["pix2pix", "cyclegan", "cut", "diffusion", "flow", "normalizing_flow", "vae"]
QUIET = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def launch(command, **environment):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, **QUIET, **environment},
        capture_output=True,
        text=True,
        timeout=300,  # a deadlock would end here
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs: on two data parallel processes, on two that divide the weights, and on one."""
    folder = tmp_path_factory.mktemp("runs")
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for name, script, kind, launcher, environment in (
        ("plain", PLAIN, "ddp", two, {}),
        ("divided", DIVIDED, "fsdp", two, fsdp),
        ("back", BACK, "ddp", two, {}),
        ("alone", ALONE, "one", (), {}),
    ):
        path = folder / f"{name}.py"
        path.write_text(textwrap.dedent(RUN) + textwrap.dedent(script))
        launch([*launcher, path, folder, kind], ACCELERATE_USE_CPU="true", **environment)
    return folder


def contents(folder):
    """Weights, average, optimizers: file and name to tensor."""
    files = [path for path in latest(folder).rglob("*.safetensors") if not path.name.startswith("random")]
    return {f"{path.name} {key}": value for path in files for key, value in load_file(path).items()}


def require_close(mine, wanted):
    """Of the same names and to 1e-5, a twentieth of what Adam moves a weight by in two steps of 1e-4.

    Sums in another order alone make some 1e-7; weights whose gradient is no more than that follow Adam's sign.
    """
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-5, msg=lambda said, n=name: f"{n}: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_divided_weights_train_as_whole_ones(runs, method):
    """Weights, averages and moments after two clipped steps of two micro-batches each."""
    require_close(contents(runs / f"fsdp_{method}"), contents(runs / f"ddp_{method}"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pix2pix", "cyclegan"])
def test_they_train_as_one_process_with_batches_of_twice_the_size(runs, method):
    require_close(contents(runs / f"fsdp_{method}"), contents(runs / f"one_{method}"))


@pytest.mark.slow
def test_bfloat16_and_recomputed_activations_are_the_same(runs):
    require_close(contents(runs / "fsdp_recomputed"), contents(runs / "fsdp_pix2pix"))
    # The same casts of the same weights; only the sum of squares for the clip is in another order.
    require_close(contents(runs / "fsdp_bf16"), contents(runs / "ddp_bf16"))


@pytest.mark.slow
def test_a_run_goes_on_with_either_launch(runs):
    """FSDP to data parallel, to one process and to itself; data parallel to FSDP."""
    straight = contents(runs / "longer")
    for name in ("back", "alone", "forth"):
        assert [path.name for path in sorted((runs / name / "checkpoints").iterdir())] == [
            "step_0000002",
            "step_0000003",
        ]
        # Compared with the straight run of the launch that began it, so that both are bit for bit the same until then.
        require_close(contents(runs / name), contents(runs / "whole") if name == "forth" else straight)
    again = contents(runs / "broken")
    assert again.keys() == straight.keys()
    assert all(torch.equal(again[name], value) for name, value in straight.items())  # bit for bit


@pytest.mark.slow
def test_no_process_holds_all_of_anything(runs):
    held = [json.loads((runs / f"held_{rank}.json").read_text())["held"] for rank in (0, 1)]
    for name, (_, total) in held[0].items():
        shares = [one[name][0] for one in held]
        assert sum(shares) == total  # each number is held once
        # Along the first axis, of which odd lengths leave one row more on the first process.
        assert max(shares) < 0.65 * total


@pytest.mark.slow
def test_processes_end_together(runs):
    """One was asked to stop, one had a map that was not finite; and the main one alone judges whole weights."""
    said = [json.loads((runs / f"held_{rank}.json").read_text()) for rank in (0, 1)]
    assert all("stopped as asked after step 1" in one["said"][0] for one in said)
    assert "not finite" in said[1]["said"][1] or "is nan at step 1" in said[1]["said"][1]
    assert "in another process's batch" in said[0]["said"][1]
    assert [one["judged"] for one in said] == [1, 0]
    assert (runs / "judged" / "samples" / "step_0000002.png").is_file()


@pytest.mark.slow
def test_the_shipped_launch_file_runs_the_command(tiny_store, tmp_path, repository):
    """Validated, sampled and evaluated; then read by one process, which translates."""
    launcher = repository / "configs" / "accelerate" / "gpu_fsdp.yaml"
    small = [
        "--training.steps=2",
        "--training.batch_size=2",
        "--training.sample_every=2",
        "--training.validate_every=2",
    ]
    split = "--data.split={train: 0.5, validation: 0.2, test: 0.3, seed: 0}"
    launch(
        [
            *("-m", "accelerate.commands.launch", "--config_file", launcher),
            *("--num_processes", "2", "--main_process_port", "0", repository / "translate" / "train.py"),
            *("--data.store", tiny_store, "--data.build=", split, "--output", tmp_path / "run", *small),
            "--method.init_args.generator.init_args.width=4",
        ],
        ACCELERATE_USE_CPU="true",
    )
    facts = json.loads((latest(tmp_path / "run") / "state" / "progress.json").read_text())
    assert facts["processes"] == 2
    assert (tmp_path / "run" / "evaluation").is_dir()
    assert list((tmp_path / "run" / "samples").iterdir())
    maps = Translator.from_pretrained(tmp_path / "run")(MapStore(tiny_store), [0, 1])["hi"]
    assert np.isfinite(maps.values).all()
    assert maps.values.std() > 0
    shutil.rmtree(tmp_path / "run")
