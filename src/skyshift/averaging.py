"""The running average of the weights, which inference uses.

    w̄ ← d w̄ + (1 - d) w,    d = min(decay, (1 + n) / (10 + n))

after step n, so that early averages follow the weights. Every process steps from the same gradients and so keeps the
same average, or that of its share of the weights; nothing is exchanged for it.

References:
    Polyak & Juditsky 1992, Acceleration of Stochastic Approximation by Averaging, doi:10.1137/0330046.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from skyshift.method import Method

Tensors = tuple[Tensor, ...] | list[Tensor]


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """w̄ ← d w̄ + (1 - d) w with d = min(decay, (1 + n)/(10 + n)), so that early averages follow the weights."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        n = int(count)
        averaged, current = _own(averaged), _own(current)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))
        else:  # counters of batch normalisation
            torch._foreach_copy_(averaged, current)

    return update


def _own(tensors: Tensors) -> list[Tensor]:
    """What this process holds of them: its share of those that are divided."""
    return [value.to_local() if hasattr(value, "to_local") else value for value in tensors]


def make_average(method: Method, decay: float) -> AveragedModel | None:
    """The average of a method's ``averaged`` players; ``None`` where there are none or ``decay`` is 0."""
    if not (decay and method.averaged):
        return None
    return AveragedModel(averaged_networks(method), multi_avg_fn=_moving_average(decay), use_buffers=True)


def averaged_networks(method: Method) -> nn.ModuleDict:
    """The players whose average is kept, by name."""
    return nn.ModuleDict({name: getattr(method, name) for name in method.averaged})


class Averaged:
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
