"""Who holds the weights: every process all of them, or each its share (FSDP, version 2).

Data parallel processes hold whole networks. Where the launch asks for FSDP, every process keeps one part in n of each
parameter, of its gradient, its Adam moments and its running average, cut along the first axis. The blocks of a network
(:func:`skyshift.speed.blocks`) are put together one by one when a pass comes to them and are dropped again behind it;
gradients are averaged and divided as the backward pass leaves a block. The numbers are those of data parallel processes
but for the order of sums.

``torch.distributed.fsdp.fully_shard`` does it in place: parameters become ``DTensor`` under their old names, and a
method's attribute and the network that the loop calls are one object. Accelerate's own preparation takes one network
together with its optimizer, where a method has several, so it is told nothing of FSDP and does all the rest.

What leaves a run is whole: checkpoints are the same files, with the same content, as those of one process. For them the
tensors are put together one by one, on every process, and kept on the CPU of the main one. The main process also keeps
a whole copy of the method, on its CPU, which the averaged weights are put into for validation and samples: it runs
these alone, while the others wait.

References:
    Rajbhandari, Rasley, Ruwase & He 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models,
    arXiv:1910.02054.
    Zhao et al. 2023, PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, arXiv:2304.11277.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from skyshift.averaging import Averaged
from skyshift.launch import asks_for_fsdp
from skyshift.method import Method
from skyshift.speed import blocks
from skyshift.training import TrainingError


class Replicas:
    """Whole networks on every process, be it one or many.

    Args:
        accelerator: The launch.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def divide(self, network: nn.Module) -> None:
        """Leave each process its share of the parameters; here all of them."""

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as the loop is to call it; before its optimizer is made."""
        wrapped: nn.Module = self.accelerator.prepare(network)
        return wrapped

    def averaged(self, method: Method, average: AveragedModel | None) -> AbstractContextManager[Method]:
        """Context, entered by all processes, in which the main one has the method with averaged weights to run."""
        return Averaged(method, average)


class Shards(Replicas):
    """Each process holds its share of every network.

    Args:
        accelerator: The launch, of several processes.
        method: Still whole. Every process takes the players' weights of the main one.
    """

    def __init__(self, accelerator: Accelerator, method: Method) -> None:
        super().__init__(accelerator)
        from torch.distributed.device_mesh import init_device_mesh

        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self._whole = copy.deepcopy(method).cpu() if accelerator.is_main_process else None
        for player in method.players:
            network = getattr(method, player)
            for parameter in network.parameters():
                parameter.data = parameter.data.contiguous()  # others can be neither sent nor divided
            for value in network.state_dict().values():
                torch.distributed.broadcast(value, src=0)

    def divide(self, network: nn.Module) -> None:
        """Leave each process its share of the parameters, in place.

        Raises:
            TrainingError: A parameter is a single number without an axis, which cannot be divided.
        """
        from torch.distributed.fsdp import fully_shard

        for name, parameter in network.named_parameters():
            if not parameter.ndim:
                raise TrainingError(
                    f"the parameter {name} of {type(network).__name__} has no axis along which FSDP could divide it; "
                    "give it the shape (1,), or launch with configs/accelerate/gpu_ddp.yaml"
                )
        for block in blocks(network):
            if next(block.parameters(), None) is not None:
                fully_shard(block, mesh=self._mesh, reshard_after_forward=True)
        # Divided behind every pass, so that what `frozen` and the averages see between passes are always the shares.
        fully_shard(network, mesh=self._mesh, reshard_after_forward=True)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The very network, divided."""
        self.divide(network)
        return network

    @contextmanager
    def averaged(self, method: Method, average: AveragedModel | None) -> Iterator[Method]:
        """The main process's whole copy with the averaged weights; the others only help to put it together."""
        values = method.state_dict()
        if average is not None:
            values |= average.module.state_dict()  # named by player, as in the method
        values = gathered(values)
        if self._whole is None:
            yield method
            return
        self._whole.load_state_dict(values)
        try:
            yield self._whole.to(self.accelerator.device).eval()
        finally:
            self._whole.cpu()


def make_replicas(accelerator: Accelerator, method: Method) -> Replicas:
    """Whole networks or shares, as the launch asks for. One process has nothing to share."""
    if asks_for_fsdp() and accelerator.num_processes > 1:
        return Shards(accelerator, method)
    return Replicas(accelerator)


def is_divided(value: Tensor) -> bool:
    """Whether it is a ``DTensor``, asked without importing what makes them: most of a second of every start."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """A tensor that may be divided, put together on every process; all take part."""
    return value.full_tensor() if is_divided(value) else value  # type: ignore[attr-defined]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to be written. All processes take part.

    Returns:
        Those that were divided whole, on the CPU of the main process and on no other; those that were not as they are.
    """
    found = {}
    for name, value in tensors.items():
        one = whole(value.detach())
        if not is_divided(value):
            found[name] = one
        elif value.device_mesh.get_rank() == 0:  # type: ignore[attr-defined]
            found[name] = one.cpu()
    return found


def divided(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors that were read, cut as those of the same name and shape are; each process keeps its share."""
    found = dict(tensors)
    for name, value in tensors.items():
        mine = like.get(name)
        if mine is not None and is_divided(mine) and mine.shape == value.shape:
            from torch.distributed.tensor import distribute_tensor

            # Every process has read the whole: it cuts out its own share, without asking the main one.
            mesh, placements = mine.device_mesh, mine.placements  # type: ignore[attr-defined]
            found[name] = distribute_tensor(value, mesh, placements, src_data_rank=None)
    return found
