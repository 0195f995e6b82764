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

Losses and gradients are looked at once a step, after the last backward pass and before any optimizer moves: one wait
for the device and one exchange between processes, and nothing that is not finite reaches the weights.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm

from skyshift import run_log
from skyshift.averaging import averaged_networks, make_average
from skyshift.checkpoint import CheckpointError, checkpoints, latest, random_state
from skyshift.files import write_folder_whole, write_whole
from skyshift.launch import StopSignal, computes_bfloat16, launch_state, make_accelerator
from skyshift.method import Batch, Hooks, LoaderPlan, Method, frozen
from skyshift.naming import unknown
from skyshift.run_state import gathered_state, read_facts, read_random_state, read_weights, require_free, write_state
from skyshift.sharding import make_replicas, whole
from skyshift.speed import prepare_network, to_channels_last
from skyshift.training import TrainingConfig, TrainingError, make_optimizer
from skyshift.validation import Watch

__all__ = [
    "Accelerator",
    "Batch",
    "Hooks",
    "LoaderPlan",
    "Method",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "computes_bfloat16",
    "frozen",
    "launch_state",
    "make_accelerator",
    "require_free",
]


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
        self.watch = Watch.of(training, self.hooks.directions, self.hooks.validate is not None)
        layout = {"memory_format": torch.channels_last} if training.channels_last else {}
        self.method = method.to(self.accelerator.device, **layout)
        self.loader = loader
        self.replicas = make_replicas(self.accelerator, method)
        self.average = make_average(method, training.average)
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._prepare_players()
        self._seen: list[tuple[str, Tensor, Batch]] = []  # losses of this step that have not been looked at
        # Different on each process: dropout and noise must differ. Weights were drawn before, from one seed.
        set_seed(training.seed, device_specific=True)
        if found:
            self._restore(found)

    def _base_rate(self, player: str) -> float:
        return self.training.learning_rates.get(player, self.training.learning_rate)

    def _groups(self, player: str) -> list[dict[str, Any]]:
        """Parameters with the same share of the player's learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in getattr(self.method, player).named_parameters():
            groups.setdefault(self.method.rate_scale(player, name), []).append(parameter)
        rate = self._base_rate(player)
        return [{"params": params, "lr": rate * scale, "rate_scale": scale} for scale, params in groups.items()]

    def _prepare_players(self) -> None:
        """Optimizers, and networks as wrapped for the launch."""
        training, recomputed = self.training, 0
        for player in self.method.players:
            network = getattr(self.method, player)
            recomputed += prepare_network(network, training)
            self.networks[player] = self.replicas.wrap(network)
            self.optimizers[player] = make_optimizer(training, self._groups(player))
        if self.average is not None:
            for network in self.average.module.children():
                self.replicas.divide(network)
        if training.checkpoint_activations and not recomputed:
            raise TrainingError(
                "training.checkpoint_activations: no network of this method has blocks (in module lists or sequences, "
                "without batch normalisation) that could be computed again; set it to false"
            )

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the last step.

        Returns:
            The last checkpoint.

        Raises:
            TrainingError: A loss was not finite, the monitored value of all of ``patience`` validations was not, or the
                run was asked to stop; the message names the last checkpoint.
        """
        training, accelerator = self.training, self.accelerator
        if self.step >= training.steps or (self.watch and self.watch.exhausted):
            accelerator.print(f"{self.folder} is trained already, to step {self.step}")
            return self._ended()
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
        with bar, StopSignal() as stop:
            window: list[dict[str, Tensor]] = []
            started, started_at = time.perf_counter(), self.step
            while self.step < training.steps:
                window += self._optimizer_step(batches, stop)
                bar.update()
                if self.step % training.log_every == 0 or self.step == training.steps:
                    seconds = time.perf_counter() - started
                    bar.set_postfix(self._log(window, (self.step - started_at) / seconds))
                    window, started, started_at = [], time.perf_counter(), self.step
                if training.sample_every and self.step % training.sample_every == 0:
                    self._sample()
                best = self.watch is not None and self.step % training.validate_every == 0 and self._validate()
                enough = self.step == training.steps or (self.watch is not None and self.watch.exhausted)
                stopped = stop.agreed and not enough
                if self.step % training.checkpoint_every == 0 or enough or stopped or best:
                    self._save()
                if stopped:
                    raise TrainingError(
                        f"stopped as asked after step {self.step}; continue with --resume true from "
                        f"{self._last_checkpoint()}"
                    )
                if enough:
                    break
        if self.step < training.steps and self.watch and not self.watch.hopeless:
            accelerator.print(
                f"stopped early at step {self.step}: {self.watch.monitor} was best at step {self.watch.step} "
                f"({self.watch.best}) and {self.watch.since} validations have not been better"
            )
        for tracker in accelerator.trackers:  # not end_training(), which would end the process group as well
            tracker.finish()
        return self._ended()

    def _ended(self) -> Path:
        """The last checkpoint, unless validation says that none is worth taking."""
        if self.watch and (hopeless := self.watch.hopeless):
            if self.watch.exhausted:
                raise TrainingError(f"stopped at step {self.step}: {hopeless}. {self._kept()}")
            self.accelerator.print(f"{hopeless}. {self._kept()}, and is taken")
        return self._last_checkpoint()

    def trial_steps(self, batches: Iterator[Batch]) -> Iterator[None]:
        """Optimizer steps that leave nothing behind but changed weights, to be timed; one for each item.

        The first is of this process alone and leaves the weights as they are: what it needs in memory is that of a
        step, and where it fails no other process waits for it. Divided weights ask for the others all the same.
        """
        self.method.train()
        self._step_alone(batches)
        yield
        while True:
            self._optimizer_step(batches, StopSignal())
            yield

    def _step_alone(self, batches: Iterator[Batch]) -> None:
        """Activations, gradients and optimizer states of a step at a learning rate of zero."""
        wrapped, self.networks = self.networks, {player: getattr(self.method, player) for player in self.networks}
        self._micro_step(next(batches))
        self.networks = wrapped
        self._seen.clear()
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # every step sets it
        self._step_optimizers()

    def _step_optimizers(self) -> None:
        """Move all players, each by its gradients, and forget these."""
        scaler = self.accelerator.scaler
        for optimizer in self.optimizers.values():
            if scaler:
                scaler.step(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad()
        if scaler:
            scaler.update()

    def _optimizer_step(self, batches: Iterator[Batch], stop: StopSignal) -> list[dict[str, Tensor]]:
        """One step of every player; what each micro-batch has to log."""
        self._set_rates()
        self.method.step = self.step
        logs = [self._micro_step(next(batches)) for _ in range(self.training.accumulate)]
        self._move(stop)
        if self.average is not None:
            self.average.update_parameters(averaged_networks(self.method))
        self.step += 1
        return logs

    def _micro_step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward and backward of every player; the losses and their parts, to log."""
        accelerator, method = self.accelerator, self.method
        batch = {
            k: v.to(accelerator.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
        }
        if self.training.channels_last:
            batch = to_channels_last(batch)
        logs: dict[str, Tensor] = {}
        with accelerator.accumulate(*self.networks.values()):
            with accelerator.autocast():
                shared = method.share(self.networks, batch)
            for player in method.players:
                with accelerator.autocast():
                    loss, parts = method.loss(player, self.networks, batch, shared)
                self._seen.append((player, loss.detach(), batch))
                accelerator.backward(loss)
                logs.update({name: value.detach() for name, value in {player: loss, **parts}.items()})
        return logs

    def _move(self, stop: StopSignal) -> None:
        """Clip and step every player. With float16 their losses share a scale, which changes once all have stepped."""
        scaler = self.accelerator.scaler
        norms = {}
        for player, optimizer in self.optimizers.items():
            if scaler:
                scaler.unscale_(optimizer)
            if self.training.clip or not scaler:
                parameters = getattr(self.method, player).parameters()
                norms[player] = whole(nn.utils.clip_grad_norm_(parameters, self.training.clip or math.inf))
        # With float16 the scaler leaves out a step whose gradient is not finite, and lowers its scale.
        self._require_finite({} if scaler else norms, stop)
        self._step_optimizers()

    def _kept(self) -> str:
        found = latest(self.folder)
        return f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"

    def _require_finite(self, norms: Mapping[str, Tensor], stop: StopSignal) -> None:
        """Stop before a loss or a gradient that is not finite reaches the weights, on every process at once."""
        values = torch.stack([*(loss.float() for _, loss, _ in self._seen), *(norm.float() for norm in norms.values())])
        wrong = torch.cat([~torch.isfinite(values), torch.tensor([stop.asked], device=values.device)]).float()
        if self.accelerator.num_processes > 1:
            wrong = torch.stack([wrong, self.accelerator.reduce(wrong, "sum")])
        flags = wrong.reshape(-1, len(values) + 1).tolist()
        mine, anywhere = flags[0], flags[-1]
        stop.agreed = anywhere[-1] > 0
        seen, self._seen = self._seen, []
        for (player, loss, batch), here, somewhere in zip(seen, mine, anywhere, strict=False):
            if somewhere:
                whose = f"samples: {self.hooks.identify(batch)}" if here else "in another process's batch"
                raise TrainingError(
                    f"the loss of the {player} is {loss.item():.4g} at step {self.step}, {whose}; {self._kept()}. "
                    "Look at these maps, lower training.learning_rate or set training.clip"
                )
        for player, somewhere in zip(norms, anywhere[len(seen) :], strict=False):
            if somewhere:
                raise TrainingError(
                    f"the gradient of the {player} is not finite at step {self.step}, though its loss is; "
                    f"{self._kept()}. Lower training.learning_rate, or look for a root or a logarithm of zero in the "
                    "loss"
                )

    def _set_rates(self) -> None:
        factor = self.training.rate_factor(self.step)
        for player, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._base_rate(player) * group.get("rate_scale", 1.0) * factor

    # -- what a run leaves behind -------------------------------------------------------------------------------

    def _open_log(self) -> None:
        if self.accelerator.is_main_process:
            run_log.open_log(self.folder, self.step)
        again = {"purge_step": self.step + 1}  # tensorboard hides what it has seen of steps that are done again
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": again})

    def _record(self, line: Mapping[str, Any]) -> None:
        """A line to tensorboard and to the log."""
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.step)
        if self.accelerator.is_main_process:
            run_log.append(self.folder, line)

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
        self._record(line)
        return {"maps/s": f"{line['samples_per_second']:.0f}", **{k: f"{v:.3g}" for k, v in values.items()}}

    def averaged_method(self) -> AbstractContextManager[Method]:
        """Context, entered by all processes, in which the main one has the averaged method in evaluation mode."""
        return self.replicas.averaged(self.method, self.average)

    def _validate(self) -> bool:
        """Judge the averaged weights, on the main process; whether they are the best so far, the same everywhere."""
        assert self.watch is not None
        assert self.hooks.validate is not None
        found: list[Any] = [None]
        with self.averaged_method() as method:
            if self.accelerator.is_main_process:
                devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
                with torch.no_grad(), torch.random.fork_rng(devices):
                    found = [{name: float(value) for name, value in self.hooks.validate(method).items()}]
        values = broadcast_object_list(found)[0]
        self._record({"step": self.step, **{f"validation/{name}": value for name, value in values.items()}})
        return self.watch.see(self.step, values[self.watch.monitor])

    def _sample(self) -> None:
        if self.hooks.sample is None:
            return
        with self.averaged_method() as method:
            figure = self.hooks.sample(method) if self.accelerator.is_main_process else None
        if figure is None:
            return
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
            "validation": self.watch.state() if self.watch else None,
        }

    def _save(self) -> None:
        """Write a checkpoint whole, name the best one, then drop those beyond ``keep``, but never the best.

        Raises:
            TrainingError: It cannot be written; those before it are kept.
        """
        states = gather_object([random_state()])
        files = gathered_state(self.method, self.average, self.optimizers)
        if self.accelerator.is_main_process:
            try:
                with write_folder_whole(self.folder / "checkpoints" / f"step_{self.step:07d}") as folder:
                    self.hooks.describe(folder)
                    write_state(folder, files, states, self._facts())
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"the checkpoint of step {self.step} cannot be written ({error}); {self._kept()}. Make room and "
                    "continue with --resume true"
                ) from error
            if self.watch:
                self.watch.mark(self.folder)
            best = f"step_{self.watch.step:07d}" if self.watch and self.watch.best is not None else ""
            for old in checkpoints(self.folder)[: -self.training.keep]:
                if old.name != best:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        """Continue from a checkpoint, exactly where it is launched as before."""
        facts, note = read_facts(folder, self._facts())
        read_weights(folder, self.method, self.average, self.optimizers)
        if facts["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        if facts["validation"] and self.watch:
            self.watch.restore(facts["validation"])
            if self.accelerator.is_main_process:
                self.watch.mark(self.folder)  # which a crash may have left undone
        self.step = facts["step"]
        read_random_state(folder, self.accelerator.process_index, facts)
        if note:
            self.accelerator.print(note)
