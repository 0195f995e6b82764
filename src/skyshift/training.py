"""How long, how fast and how exactly a run trains: the configuration of the loop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from skyshift.errors import SkyshiftError


class TrainingError(SkyshiftError):
    """A run cannot start, or had to stop."""


@dataclass
class TrainingConfig:
    """How long, how fast and how exactly to train.

    Attributes:
        steps: Optimizer steps.
        batch_size: Samples of one process in one micro-batch.
        accumulate: Micro-batches in one optimizer step.
        learning_rate: Of the optimizer.
        learning_rates: Player to a learning rate of its own.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum.
        betas: Adam's.
        momentum: Of ``sgd``.
        weight_decay: Adam's, decoupled; added to the gradient of ``sgd``.
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
        compile: Compile the networks with torch.compile: true, or one of its modes.
        channels_last: Lay convolutions' weights and the maps out with the channels last, which tensor cores want.
        checkpoint_activations: Compute the activations of each block again in the backward pass instead of keeping
            them: less memory, a forward pass more, the same gradients.
        validate_every: Steps between validations with the averaged weights; 0 for none. The best checkpoint is kept.
        patience: Validations in a row without a better one after which the run stops; 0 never stops it early.
        monitor: Name of the validation's value that decides which checkpoint is best.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 2e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.5, 0.999)
    momentum: float = 0.9
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
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    channels_last: bool = False
    checkpoint_activations: bool = False
    validate_every: int = 0
    patience: int = 0
    monitor: str = "total_error"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainingError(f"training.{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0 or not 0 <= self.average < 1 or not 0 <= self.decay <= 1:
            raise TrainingError("training needs learning_rate > 0, 0 ≤ average < 1 and 0 ≤ decay ≤ 1")
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"training.momentum is at least 0 and below 1, not {self.momentum}")
        for name in ("validate_every", "patience"):
            if getattr(self, name) < 0:
                raise TrainingError(f"training.{name} must be 0 (never) or positive, not {getattr(self, name)}")
        if self.patience and not self.validate_every:
            raise TrainingError("training.patience counts validations: set training.validate_every as well")
        if self.compile and self.checkpoint_activations:
            raise TrainingError(
                "training.compile and training.checkpoint_activations do not go together: choose speed or memory"
            )

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate of step number ``step`` (from 0)."""
        rise = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        start = self.steps * (1.0 - self.decay)
        if self.schedule == "constant" or step < start:
            return rise
        progress = (step - start) / max(1.0, self.steps - start)
        return rise * (1.0 - progress if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def make_optimizer(training: TrainingConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of one player.

    Args:
        training: Which, and its constants.
        groups: Of parameters, each with its learning rate.
    """
    if training.optimizer == "sgd":
        decay, nesterov = training.weight_decay, training.momentum > 0
        return torch.optim.SGD(groups, momentum=training.momentum, nesterov=nesterov, weight_decay=decay, fused=True)
    return torch.optim.AdamW(groups, betas=training.betas, weight_decay=training.weight_decay, fused=True)
