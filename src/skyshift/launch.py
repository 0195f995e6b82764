"""The processes and the hardware of a launch, as Accelerate sees them, and the wish to stop that a cluster sends."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from skyshift.training import TrainingConfig, TrainingError


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


def make_accelerator(training: TrainingConfig, folder: Path) -> Accelerator:
    """The launch as Accelerate sees it.

    Raises:
        TrainingError: The environment asks for more processes than Accelerate sees: each would train by itself; or for
            a way of dividing the networks that this loop does not have.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise TrainingError(
                f"the launch asks for {name}, which divides the weights between the processes; this loop clips, "
                "averages and saves whole weights and several players at once, so it runs on data parallel processes "
                "only. Launch with configs/accelerate/gpu_ddp.yaml or multi_node.yaml; to save memory set "
                "training.checkpoint_activations true or a smaller training.batch_size with training.accumulate"
            )
    launch_state()
    choice = {"launch": None, "auto": "bf16" if computes_bfloat16() else "no"}
    return Accelerator(
        mixed_precision=choice.get(training.precision, training.precision),
        gradient_accumulation_steps=training.accumulate,
        log_with="tensorboard",
        project_dir=folder,
    )


class StopSignal:
    """Turns SIGTERM (a cluster's warning) and the first Ctrl-C into a wish that the loop grants between steps.

    ``asked`` is this process's, ``agreed`` that of all, the same on every one.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agreed = False  # what the processes have told each other
        self._old: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
