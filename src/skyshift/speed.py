"""What makes a network faster or smaller without making it another one: compiling, layout, recomputed activations.

None of these changes the names of parameters, so that checkpoints are the same with and without.

References:
    Chen, Xu, Zhang & Guestrin 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skyshift.training import TrainingConfig, TrainingError


def prepare_network(network: nn.Module, training: TrainingConfig) -> int:
    """Make a network as fast, or as small, as asked for; in place, after its running average was made.

    Returns:
        The number of blocks whose activations are recomputed.

    Raises:
        TrainingError: There is no compiler.
    """
    if training.compile:
        mode = "default" if training.compile is True else training.compile
        require_compiler()
        network.compile(mode=mode)  # in place: wrapped by torch.compile(), its parameters would have other names
    return recompute_activations(network) if training.checkpoint_activations else 0


def require_compiler() -> None:
    """Compile something small.

    Raises:
        TrainingError: It cannot be done here.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing: a C++ compiler, Triton, Python's headers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"training.compile: torch cannot compile here ({reason}); install a C++ compiler (g++ or clang, on a GPU "
            "Triton), or set training.compile false"
        ) from error


def to_channels_last(values: dict[str, Any]) -> dict[str, Any]:
    """The maps (batch, channels, height, width) among named tensors, with the channels last in memory."""
    return {
        key: value.contiguous(memory_format=torch.channels_last)
        if isinstance(value, Tensor) and value.ndim == 4
        else value
        for key, value in values.items()
    }


def lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's loaded state the layout of its parameters: fused kernels walk both in memory order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network whose activations can be recomputed one by one.

    These are the entries of its outermost module lists, and of its outermost sequences the parts that have parts, or
    the sequence itself where none has. Parts with batch normalisation are left out: a second pass would count the
    batch twice.
    """
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            found = list(_entries(child))
        elif isinstance(child, nn.Sequential):
            found = [part for part in child if next(part.children(), None) is not None] or [child]
        else:
            yield from blocks(child)
            continue
        for block in found:
            if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in block.modules()):
                yield block


def _entries(modules: nn.ModuleList) -> Iterator[nn.Module]:
    """What is called of a list: its entries, and those of the lists in it; a place may be empty."""
    for entry in modules.children():
        if isinstance(entry, nn.ModuleList):
            yield from _entries(entry)
        else:
            yield entry


def recompute_activations(network: nn.Module) -> int:
    """Have each block of a network compute its activations again in the backward pass; in place.

    Returns:
        The number of such blocks.
    """
    count = 0
    for count, block in enumerate(blocks(network), start=1):  # noqa: B007
        block.forward = _recomputed(block, block.forward)
    return count


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def call(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        held = [p for p in block.parameters() if not p.requires_grad]

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _held(held)

        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    return call


@contextmanager
def _held(parameters: list[nn.Parameter]) -> Iterator[None]:
    """What was frozen in the forward pass is frozen when it is done again, or other tensors would be kept."""
    again = [p for p in parameters if p.requires_grad]
    for parameter in again:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in again:
            parameter.requires_grad_(True)
