"""The whole batch of a step, from all processes, with its gradient.

Losses that couple the samples of a batch (distances between distributions, clusterings) are functions of the whole
batch. Each process computes them on all samples; the gradient of what it gave is summed over processes, each of which
computed the same loss, and the mean that data parallelism takes over processes makes it the gradient of one loss again.
"""

import torch
from torch import Tensor
from torch import distributed as dist


def processes() -> int:
    """How many there are; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(values: Tensor) -> Tensor:
    """Samples of all processes, in the order of their ranks, with gradients to each.

    Args:
        values: (n, …), the same shape on every process.

    Returns:
        (n × processes, …); ``values`` itself where there is one process.
    """
    if processes() == 1:
        return values
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values.contiguous()))


@torch.no_grad()
def gathered_constant(values: Tensor) -> Tensor:
    """The same of what carries no gradient: labels, numbers, banks."""
    if processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
