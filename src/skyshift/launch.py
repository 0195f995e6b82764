"""The processes and the hardware of a launch, as Accelerate sees them, and the wish to stop that a cluster sends."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, patch_environment

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


def asks_for_fsdp() -> bool:
    """Whether the launch asks for weights that are divided between the processes."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def _require_possible(training: TrainingConfig) -> None:
    """Refuse ways of dividing the networks that this loop does not have.

    Raises:
        TrainingError: The launch or the configuration asks for one.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise TrainingError(
                f"the launch asks for {name}, which this loop does not have; launch with "
                "configs/accelerate/gpu_ddp.yaml, multi_node.yaml or, to divide the weights between the processes, "
                "gpu_fsdp.yaml"
            )
    if not asks_for_fsdp():
        return
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise TrainingError(
            f"the launch asks for FSDP of version {version}, this loop has version 2; launch with "
            "configs/accelerate/gpu_fsdp.yaml, or set fsdp_version: 2 under fsdp_config"
        )
    refused = {
        "fsdp_offload_params: true": parse_flag_from_env("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing: true (set training.checkpoint_activations instead)": parse_flag_from_env(
            "FSDP_ACTIVATION_CHECKPOINTING"
        ),
        "fsdp_reshard_after_forward: false": not parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True),
        "training.precision fp16 (take bf16)": training.precision == "fp16",
        "training.channels_last, for FSDP divides contiguous weights only": training.channels_last,
    }
    for name, asked in refused.items():
        if asked:
            raise TrainingError(
                f"under FSDP this loop does not have {name}; leave it out, or launch with "
                "configs/accelerate/gpu_ddp.yaml"
            )


def make_accelerator(training: TrainingConfig, folder: Path) -> Accelerator:
    """The launch as Accelerate sees it, which is not told of FSDP: see :mod:`skyshift.sharding`.

    Raises:
        TrainingError: The environment asks for more processes than Accelerate sees: each would train by itself; or for
            a way of dividing the networks that this loop does not have.
    """
    _require_possible(training)
    launch_state()
    choice = {"launch": None, "auto": "bf16" if computes_bfloat16() else "no"}
    with patch_environment(ACCELERATE_USE_FSDP="false"):
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
