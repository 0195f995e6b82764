"""What a checkpoint holds of a run, and how a run goes on from it.

A run that is launched as before continues bit for bit. One with other processes, batches or micro-batches, but with as
many samples in a step (processes × batch_size × accumulate), sees the same samples in the same steps, because their
order depends on the number of the sample alone. It is then the same run but for rounding, random numbers that a method
draws in training (dropout, noise), and normalisations or losses that mix the samples of a batch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from skyshift.checkpoint import (
    CheckpointError,
    latest,
    load_tensors,
    pack_optimizer,
    save_tensors,
    set_random_state,
    unpack_optimizer,
)
from skyshift.method import Method
from skyshift.sharding import divided, gathered
from skyshift.speed import lay_out_like_parameters
from skyshift.training import TrainingError

Optimizers = Mapping[str, torch.optim.Optimizer]
Packed = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors and JSON: the content of a file."""

DIVISION = ("processes", "batch_size", "accumulate")
"""How the samples of a step are divided."""


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


def gathered_state(method: Method, average: AveragedModel | None, optimizers: Optimizers) -> dict[str, Packed]:
    """What the files of a checkpoint hold, by their names in its folder: whole on the main process.

    All processes take part.
    """
    files: dict[str, Packed] = {"model": (method.state_dict(), {})}
    if average is not None:
        files["average"] = (average.state_dict(), {})
    files |= {f"state/{player}": pack_optimizer(optimizer) for player, optimizer in optimizers.items()}
    return {f"{name}.safetensors": (gathered(tensors), facts) for name, (tensors, facts) in files.items()}


def write_state(
    folder: Path, files: Mapping[str, Packed], random_states: Sequence[Packed], facts: Mapping[str, Any]
) -> None:
    """Fill the folder of a checkpoint: weights, and under ``state`` what resuming needs besides."""
    (folder / "state").mkdir()
    for name, packed in files.items():
        save_tensors(folder / name, *packed)
    for rank, state in enumerate(random_states):
        save_tensors(folder / "state" / f"random_{rank:04d}.safetensors", *state)
    (folder / "state" / "progress.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def read_facts(folder: Path, mine: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How far a run had come.

    Args:
        folder: Of the checkpoint.
        mine: The same facts of the run that is to continue.

    Returns:
        The facts, and a note where the run does not continue bit for bit.

    Raises:
        CheckpointError: It is damaged, or was trained otherwise.
    """
    try:
        facts = json.loads((folder / "state" / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be continued from: {error}") from None
    if isinstance(facts, dict):
        facts.setdefault("validation", None)  # which early versions had not
    if not isinstance(facts, dict) or facts.keys() != mine.keys():
        raise CheckpointError(f"{folder} cannot be continued from: state/progress.json is damaged")
    for name in ("seed", "precision"):
        if facts[name] != mine[name]:
            raise _other(folder, name, facts, mine, "a run continues exactly or not at all")
    changed = [name for name in DIVISION if facts[name] != mine[name]]
    if changed and _step_size(facts) != _step_size(mine):
        cure = (
            f"a step of this run has {_step_size(facts)} samples (processes × batch_size × accumulate) and is to have "
            f"{_step_size(mine)}: choose them so that it is the same"
        )
        raise _other(folder, changed[0], facts, mine, cure)
    if not changed:
        return facts, ""
    before, now = (", ".join(f"{name} {source[name]}" for name in changed) for source in (facts, mine))
    return facts, (
        f"continuing with {now} instead of {before}: the same {_step_size(facts)} samples a step, in the same order, "
        "but not bit for bit, for sums are taken in another order and methods with dropout or noise draw other numbers"
    )


def _step_size(facts: Mapping[str, Any]) -> int:
    return int(facts["processes"]) * int(facts["batch_size"]) * int(facts["accumulate"])


def _other(folder: Path, name: str, facts: Mapping[str, Any], mine: Mapping[str, Any], cure: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} was trained with {name} = {facts[name]}, this run has {mine[name]}; {cure}. Start a new one, or "
        "launch it as before."
    )


def read_weights(folder: Path, method: Method, average: AveragedModel | None, optimizers: Optimizers) -> None:
    """Load weights, their average and the optimizers.

    Raises:
        CheckpointError: They are damaged, or of other networks. Nothing on disk is changed.
    """
    try:
        method.load_state_dict(divided(load_tensors(folder / "model.safetensors")[0], method.state_dict()))
        if average is not None:
            average.load_state_dict(divided(load_tensors(folder / "average.safetensors")[0], average.state_dict()))
        for player, optimizer in optimizers.items():
            tensors, facts = load_tensors(folder / "state" / f"{player}.safetensors")
            unpack_optimizer(optimizer, divided(tensors, _parameters(optimizer, tensors)), facts)
            lay_out_like_parameters(optimizer)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder} is of another method or other networks: {error}") from None


def _parameters(optimizer: torch.optim.Optimizer, tensors: Iterable[str]) -> dict[str, Tensor]:
    """Name of each tensor of an optimizer's state to the parameter that it is of."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    indices = {name: int(name.split(".", 1)[0]) for name in tensors}
    return {name: parameters[index] for name, index in indices.items() if index in parameters}


def read_random_state(folder: Path, rank: int, facts: Mapping[str, Any]) -> None:
    """Set this process's generators as they were; those of a process that was not there are seeded anew."""
    if rank >= facts["processes"]:
        set_seed(facts["seed"] + facts["step"], device_specific=True)
        return
    set_random_state(*load_tensors(folder / "state" / f"random_{rank:04d}.safetensors"))
