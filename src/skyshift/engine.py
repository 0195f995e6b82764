"""The one training loop, on Accelerate, for every method of every stage.

A method knows its networks and losses; the loop knows devices, processes, precision, accumulation, clipping, averaging,
checkpoints, resuming, logs and progress. One optimizer step in phases:

    for each micro-batch:   networks once (shared work), then for each player its loss and backward pass
    after the last of them: clip the gradients and step, all players from the same weights
    after the step:         move the averaged weights, log, sample, checkpoint

That all players step together makes n micro-batches of b samples, or n processes, one batch of n b samples, for
networks that treat each sample by itself (no batch normalisation) and draw no random numbers (no dropout).

What a run has done is a function of its configuration and the step alone: batches are numbered (their content depends
on the seed and the number), the learning rate is computed from the step, and weights, optimizers, averages and random
number generators of every process are in the checkpoint. A resumed run therefore continues bit for bit, on a GPU where
its kernels are deterministic (``training.deterministic``).
"""

import abc
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from matplotlib.figure import Figure
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from skyshift.checkpoint import (
    CheckpointError,
    checkpoints,
    latest,
    load_tensors,
    pack_optimizer,
    random_state,
    save_tensors,
    set_random_state,
    unpack_optimizer,
)
from skyshift.errors import SkyshiftError
from skyshift.files import write_folder_whole, write_text, write_whole
from skyshift.naming import unknown

Batch = Mapping[str, Any]
Tensors = tuple[Tensor, ...] | list[Tensor]


class TrainingError(SkyshiftError):
    """A run cannot start, or had to stop."""


class Method(nn.Module, abc.ABC):
    """Networks and their losses. Every network that is trained is a *player* with an optimizer of its own."""

    players: tuple[str, ...] = ()
    """Attribute names of the trained networks, in the order in which their losses are computed."""

    averaged: tuple[str, ...] = ()
    """Those whose running average is kept and used for inference."""

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Work that the losses of several players need, done once a micro-batch; by default none.

        Args:
            networks: The players as wrapped for the launch. A forward pass that is to be trained goes through these.
            batch: Named tensors.
        """
        return {}

    @abc.abstractmethod
    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one player and the parts to log, as scalars averaged over the batch.

        Args:
            player: Whose.
            networks: As in :meth:`share`. A player that is only looked through is reached as an attribute of the
                method, frozen (:func:`frozen`).
            batch: Named tensors.
            shared: What :meth:`share` gave.
        """


class frozen:  # noqa: N801
    """Context in which a network passes gradients on but collects none."""

    def __init__(self, network: nn.Module) -> None:
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


@dataclass
class TrainingConfig:
    """How long, how fast and how exactly to train.

    Attributes:
        steps: Optimizer steps.
        batch_size: Samples of one process in one micro-batch.
        accumulate: Micro-batches in one optimizer step.
        learning_rate: Adam's.
        learning_rates: Player to a learning rate of its own.
        betas: Adam's.
        weight_decay: Adam's, decoupled.
        schedule: ``constant``; ``linear`` or ``cosine`` fall to zero over the last ``decay`` of the run.
        decay: Share of the run over which the learning rate falls.
        warm_up: Steps over which it rises from zero.
        clip: Largest norm of a player's gradient; 0 leaves it.
        precision: ``no`` (float32), ``bf16``, ``fp16``, ``auto`` (bf16 where the hardware computes it, else float32),
            or ``launch`` for what ``accelerate launch`` was told.
        average: Decay of the averaged weights a step, reached gradually; 0 keeps no average.
        log_every: Steps between lines of the log.
        sample_every: Steps between sample figures; 0 for none.
        checkpoint_every: Steps between checkpoints; the last step always writes one.
        keep: Checkpoints to keep, the newest.
        workers: Loader processes.
        seed: Of weights, order and augmentation.
        deterministic: Ask torch for deterministic kernels, which a bit-identical resume needs on a GPU.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    decay: float = 0.5
    warm_up: int = 0
    clip: float = 0.0
    precision: Literal["no", "bf16", "fp16", "auto", "launch"] = "auto"
    average: float = 0.999
    log_every: int = 20
    sample_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    workers: int = 0
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainingError(f"training.{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0 or not 0 <= self.average < 1 or not 0 <= self.decay <= 1:
            raise TrainingError("training needs learning_rate > 0, 0 ≤ average < 1 and 0 ≤ decay ≤ 1")

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate of step number ``step`` (from 0)."""
        rise = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        start = self.steps * (1.0 - self.decay)
        if self.schedule == "constant" or step < start:
            return rise
        progress = (step - start) / max(1.0, self.steps - start)
        return rise * (1.0 - progress if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class LoaderPlan:
    """Which micro-batches a process is to load: number ``first`` to ``last`` - 1 of its rank's share."""

    first: int
    last: int
    process: int
    processes: int


@dataclass
class Hooks:
    """What a stage adds to the loop.

    Attributes:
        describe: Writes into a checkpoint's folder all that inference needs beside the weights.
        sample: Makes a figure from the averaged method.
        identify: Names the samples of a batch, for the message of a loss that is not finite.
    """

    describe: Callable[[Path], None] = lambda folder: None
    sample: Callable[[nn.Module], Figure] | None = None
    identify: Callable[[Batch], str] = lambda batch: "an unnamed batch"


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """w̄ ← d w̄ + (1 - d) w with d = min(decay, (1 + n)/(10 + n)), so that early averages follow the weights."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        n = int(count)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))
        else:  # counters of batch normalisation
            torch._foreach_copy_(averaged, current)

    return update


def computes_bfloat16() -> bool:
    """Whether the GPU, or without one the CPU (AVX512-BF16 or AMX), computes in bfloat16; elsewhere it is emulated."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def launch_state() -> PartialState:
    """The processes of this launch as Accelerate sees them, before there is an ``Accelerator``.

    Raises:
        TrainingError: The environment asks for more processes than Accelerate sees: each would train by itself.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    asked, seen = int(os.environ.get("WORLD_SIZE", "1")), state.num_processes
    if asked != seen:
        raise TrainingError(
            f"the launch asks for {asked} processes, Accelerate sees {seen}: each would train "
            "alone. Without a GPU set ACCELERATE_USE_CPU=true, e.g. ACCELERATE_USE_CPU=true torchrun --standalone "
            f"--nproc_per_node {asked} translate/train.py"
        )
    return state


def require_free(folder: Path, resume: bool) -> Path | None:
    """The checkpoint of a run's folder to continue from, if there is one.

    Raises:
        TrainingError: There is one, and it is not to be continued from.
    """
    found = latest(folder)
    if found and not resume:
        raise TrainingError(
            f"{folder} already holds a run ({found.name}); continue it with --resume true or choose another output"
        )
    return found


def make_accelerator(training: TrainingConfig, folder: Path) -> Accelerator:
    """The launch as Accelerate sees it.

    Raises:
        TrainingError: The environment asks for more processes than Accelerate sees: each would train by itself.
    """
    launch_state()
    choice = {"launch": None, "auto": "bf16" if computes_bfloat16() else "no"}
    return Accelerator(
        mixed_precision=choice.get(training.precision, training.precision),
        gradient_accumulation_steps=training.accumulate,
        log_with="tensorboard",
        project_dir=folder,
    )


class Trainer:
    """A run: a method, its data and its folder.

    The folder holds ``log.jsonl``, ``tensorboard/``, ``samples/`` and ``checkpoints/step_…``.

    Args:
        method: What to train.
        loader: Gives the micro-batches of a plan.
        training: How.
        folder: Of the run.
        hooks: What the stage adds.
        resume: Continue from the folder's last checkpoint, if it has one.

    Raises:
        TrainingError: The folder holds a run that is not to be continued, or the launch is not what it seems.
        CheckpointError: The checkpoint cannot be continued from.
    """

    def __init__(
        self,
        method: Method,
        loader: Callable[[LoaderPlan], Iterable[Batch]],
        training: TrainingConfig,
        folder: Path,
        hooks: Hooks | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self.training, self.folder, self.hooks = training, Path(folder), hooks or Hooks()
        found = require_free(self.folder, resume)
        self.accelerator = make_accelerator(training, self.folder)
        if training.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
            torch.use_deterministic_algorithms(True, warn_only=True)
        if self.accelerator.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            raise TrainingError("fp16 needs a GPU, on a CPU it would be float32 in silence; use bf16, no or auto")
        for player in training.learning_rates:
            if player not in method.players:
                raise TrainingError(f"training.learning_rates: {unknown('player', player, method.players)}")
        self.step = 0
        self.method = method.to(self.accelerator.device)
        self.loader = loader
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for player in method.players:
            network = getattr(method, player)
            optimizer = torch.optim.AdamW(
                network.parameters(),
                lr=self._base_rate(player),
                betas=training.betas,
                weight_decay=training.weight_decay,
                fused=True,
            )
            self.networks[player] = self.accelerator.prepare(network)
            self.optimizers[player] = optimizer
        self.average = self._make_average()
        # Different on each process: dropout and noise must differ. Weights were drawn before, from one seed.
        set_seed(training.seed, device_specific=True)
        if found:
            self._restore(found)

    def _base_rate(self, player: str) -> float:
        return self.training.learning_rates.get(player, self.training.learning_rate)

    def _make_average(self) -> AveragedModel | None:
        if not (self.training.average and self.method.averaged):
            return None
        networks = nn.ModuleDict({name: getattr(self.method, name) for name in self.method.averaged})
        return AveragedModel(networks, multi_avg_fn=_moving_average(self.training.average), use_buffers=True)

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the last step.

        Returns:
            The last checkpoint.

        Raises:
            TrainingError: A loss was not finite, or the run was asked to stop; the message names the last checkpoint.
        """
        training, accelerator = self.training, self.accelerator
        if self.step >= training.steps:
            accelerator.print(f"{self.folder} is trained already, to step {self.step}")
            return self._last_checkpoint()
        self._open_log()
        plan = LoaderPlan(
            self.step * training.accumulate,
            training.steps * training.accumulate,
            accelerator.process_index,
            accelerator.num_processes,
        )
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed, which a resumed run would draw once more
            batches = iter(self.loader(plan))
        self.method.train()
        bar = tqdm(
            total=training.steps,
            initial=self.step,
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        with bar, _StopSignal() as stop:
            window: list[dict[str, Tensor]] = []
            started, started_at = time.perf_counter(), self.step
            while self.step < training.steps:
                self._set_rates()
                for _ in range(training.accumulate):
                    window.append(self._micro_step(next(batches)))
                self._move()
                if self.average is not None:
                    self.average.update_parameters(
                        nn.ModuleDict({name: getattr(self.method, name) for name in self.method.averaged})
                    )
                self.step += 1
                bar.update()
                if self.step % training.log_every == 0 or self.step == training.steps:
                    seconds = time.perf_counter() - started
                    bar.set_postfix(self._log(window, (self.step - started_at) / seconds))
                    window, started, started_at = [], time.perf_counter(), self.step
                if training.sample_every and self.step % training.sample_every == 0:
                    self._sample()
                stopped = self._anywhere(stop.asked) and self.step < training.steps
                if self.step % training.checkpoint_every == 0 or self.step == training.steps or stopped:
                    self._save()
                if stopped:
                    raise TrainingError(
                        f"stopped as asked after step {self.step}; continue with --resume true from "
                        f"{self._last_checkpoint()}"
                    )
        for tracker in accelerator.trackers:  # not end_training(), which would end the process group as well
            tracker.finish()
        return self._last_checkpoint()

    def _micro_step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward and backward of every player; the losses and their parts, to log."""
        accelerator, method = self.accelerator, self.method
        batch = {
            k: v.to(accelerator.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
        }
        logs: dict[str, Tensor] = {}
        with accelerator.accumulate(*self.networks.values()):
            with accelerator.autocast():
                shared = method.share(self.networks, batch)
            for player in method.players:
                with accelerator.autocast():
                    loss, parts = method.loss(player, self.networks, batch, shared)
                self._require_finite(player, loss, batch)
                accelerator.backward(loss)
                logs.update({name: value.detach() for name, value in {player: loss, **parts}.items()})
        return logs

    def _move(self) -> None:
        """Clip and step every player. With float16 their losses share a scale, which changes once all have stepped."""
        scaler = self.accelerator.scaler
        for player, optimizer in self.optimizers.items():
            if scaler:
                scaler.unscale_(optimizer)
            self._clip(player)
        for optimizer in self.optimizers.values():
            if scaler:
                scaler.step(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad()
        if scaler:
            scaler.update()

    def _clip(self, player: str) -> None:
        """Bound a gradient, the same on every process; stop before one that is not finite reaches the weights."""
        if self.accelerator.scaler and not self.training.clip:
            return
        norm = nn.utils.clip_grad_norm_(getattr(self.method, player).parameters(), self.training.clip or math.inf)
        # With float16 the scaler leaves out such a step and lowers its scale.
        if not self.accelerator.scaler and not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"the gradient of the {player} is not finite at step {self.step}, though its loss is; {self._kept()}. "
                "Lower training.learning_rate, or look for a root or a logarithm of zero in the loss"
            )

    def _kept(self) -> str:
        found = latest(self.folder)
        return f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"

    def _require_finite(self, player: str, loss: Tensor, batch: Batch) -> None:
        """Stop before a loss that is not finite reaches the weights, on every process at once."""
        finite = bool(torch.isfinite(loss))
        if self._anywhere(not finite):
            whose = f"samples: {self.hooks.identify(batch)}" if not finite else "in another process's batch"
            raise TrainingError(
                f"the loss of the {player} is {loss.item():.4g} at step {self.step}, {whose}; {self._kept()}. "
                "Look at these maps, lower training.learning_rate or set training.clip"
            )

    def _anywhere(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        count = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, "sum")[0] > 0)

    def _set_rates(self) -> None:
        factor = self.training.rate_factor(self.step)
        for player, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._base_rate(player) * factor

    # -- what a run leaves behind -------------------------------------------------------------------------------

    def _open_log(self) -> None:
        """Drop what a killed run left unfinished, and the log's lines of steps that will be done again."""
        if self.accelerator.is_main_process:
            for unfinished in (self.folder / "checkpoints").glob(".step_*.partial"):
                shutil.rmtree(unfinished)
            path = self.folder / "log.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            # A line that a crash cut short is of a step that will be done again.
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            write_text(path, "".join(line + "\n" for line in kept))
        again = {"purge_step": self.step + 1}  # tensorboard hides what it has seen of steps that are done again
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": again})

    def _log(self, window: list[dict[str, Tensor]], steps_a_second: float) -> dict[str, str]:
        """Means over the window and over processes, to the log and to tensorboard."""
        names = list(window[0])
        means = torch.stack([torch.stack([entry[n].float() for entry in window]).mean() for n in names])
        means = self.accelerator.reduce(means, "mean")
        values = dict(zip(names, means.tolist(), strict=True))
        per_step = self.training.batch_size * self.training.accumulate * self.accelerator.num_processes
        line = {
            "step": self.step,
            "samples": self.step * per_step,
            "samples_per_second": round(steps_a_second * per_step, 2),
            "learning_rate": self.training.learning_rate * self.training.rate_factor(self.step - 1),
            **values,
        }
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.step)
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return {"maps/s": f"{line['samples_per_second']:.0f}", **{k: f"{v:.3g}" for k, v in values.items()}}

    def averaged_method(self) -> "_Averaged":
        """Context in which the method carries the averaged weights, in evaluation mode."""
        return _Averaged(self.method, self.average)

    def _sample(self) -> None:
        if self.hooks.sample is None or not self.accelerator.is_main_process:
            return
        with self.averaged_method() as method:
            figure = self.hooks.sample(method)
        with write_whole(self.folder / "samples" / f"step_{self.step:07d}.png") as path:
            figure.savefig(path, dpi=110)

    def _last_checkpoint(self) -> Path:
        found = latest(self.folder)
        if found is None:
            raise CheckpointError(f"{self.folder} has no checkpoint")
        return found

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "processes": self.accelerator.num_processes,
            "batch_size": self.training.batch_size,
            "accumulate": self.training.accumulate,
            "seed": self.training.seed,
            "precision": self.accelerator.mixed_precision,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }

    def _save(self) -> None:
        """Write a checkpoint whole, then drop those beyond ``keep``.

        Raises:
            TrainingError: It cannot be written; those before it are kept.
        """
        states = gather_object([random_state()])
        if self.accelerator.is_main_process:
            try:
                with write_folder_whole(self.folder / "checkpoints" / f"step_{self.step:07d}") as folder:
                    self._write(folder, states)
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"the checkpoint of step {self.step} cannot be written ({error}); {self._kept()}. Make room and "
                    "continue with --resume true"
                ) from error
            for old in checkpoints(self.folder)[: -self.training.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, states: list[Any]) -> None:
        """Fill the folder of a checkpoint: what inference needs, and under ``state`` what resuming needs besides."""
        self.hooks.describe(folder)
        save_tensors(folder / "model.safetensors", self.method.state_dict())
        if self.average is not None:
            save_tensors(folder / "average.safetensors", self.average.state_dict())
        (folder / "state").mkdir()
        for player, optimizer in self.optimizers.items():
            save_tensors(folder / "state" / f"{player}.safetensors", *pack_optimizer(optimizer))
        for rank, state in enumerate(states):
            save_tensors(folder / "state" / f"random_{rank:04d}.safetensors", *state)
        (folder / "state" / "progress.json").write_text(json.dumps(self._facts(), indent=2), encoding="utf-8")

    def _restore(self, folder: Path) -> None:
        """Continue from a checkpoint, exactly."""
        try:
            facts = json.loads((folder / "state" / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} cannot be continued from: {error}") from None
        mine = self._facts()
        if not isinstance(facts, dict) or facts.keys() != mine.keys():
            raise CheckpointError(f"{folder} cannot be continued from: state/progress.json is damaged")
        for name in ("processes", "batch_size", "accumulate", "seed", "precision"):
            if facts[name] != mine[name]:
                raise CheckpointError(
                    f"{folder} was trained with {name} = {facts[name]}, this run has {mine[name]}; a run continues "
                    "exactly or not at all. Start a new one, or launch it as before."
                )
        try:
            self.method.load_state_dict(load_tensors(folder / "model.safetensors")[0])
            if self.average is not None:
                self.average.load_state_dict(load_tensors(folder / "average.safetensors")[0])
            for player, optimizer in self.optimizers.items():
                unpack_optimizer(optimizer, *load_tensors(folder / "state" / f"{player}.safetensors"))
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder} is of another method or other networks: {error}") from None
        if facts["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.step = facts["step"]
        rank = self.accelerator.process_index
        set_random_state(*load_tensors(folder / "state" / f"random_{rank:04d}.safetensors"))


class _Averaged:
    """Swap the averaged weights in, and out again."""

    def __init__(self, method: Method, average: AveragedModel | None) -> None:
        self.method, self.average = method, average

    def _swap(self) -> None:
        if self.average is None:
            return
        for name in self.method.averaged:
            mine = getattr(self.method, name).state_dict()
            other = self.average.module[name].state_dict()  # type: ignore[index]
            for key, value in mine.items():
                kept = value.clone()
                value.copy_(other[key])
                other[key].copy_(kept)

    @torch.no_grad()
    def __enter__(self) -> Method:
        self._swap()
        return self.method.eval()

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        self._swap()
        self.method.train()


class _StopSignal:
    """Turns SIGTERM (a cluster's warning) and the first Ctrl-C into a wish that the loop grants between steps."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "_StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
