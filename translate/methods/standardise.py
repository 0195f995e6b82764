"""Maps shifted and stretched to zero mean and unit variance per channel, by numbers that are measured once.

    z = (x - m) / d,    m and d of the first batch of training, over all processes, or given

The numbers are buffers: they are saved with the weights, a resumed run has them, and they never change once they are
there. Before they are measured, and unless given, m = 0 and d = 1.
"""

import math

import torch
from torch import Tensor, distributed, nn

from skyshift.errors import SkyshiftError


class Standardise(nn.Module):
    """An invertible shift and stretch per channel.

    Args:
        channels: Channels of the maps.
        mean: m of every channel; measured by default.
        deviation: d of every channel; measured by default.

    Raises:
        SkyshiftError: A number is not finite, or the deviation not positive, or only one of them is given.
    """

    centre: Tensor
    spread: Tensor
    known: Tensor

    def __init__(self, channels: int, mean: float | None = None, deviation: float | None = None) -> None:
        super().__init__()
        if (mean is None) != (deviation is None):
            raise SkyshiftError("give both the mean and the deviation of the maps, or neither")
        m, d = (0.0, 1.0) if mean is None or deviation is None else (mean, deviation)
        if not (math.isfinite(m) and math.isfinite(d) and d > 0):
            raise SkyshiftError(f"maps cannot have mean {m} and deviation {d}: both finite, the deviation positive")
        self.register_buffer("centre", torch.full((1, channels, 1, 1), float(m)))
        self.register_buffer("spread", torch.full((1, channels, 1, 1), float(d)))
        self.register_buffer("known", torch.tensor(mean is not None))

    @torch.no_grad()
    def measure(self, maps: Tensor) -> None:
        """Take the numbers from the batches of all processes, unless they are known. A constant channel keeps d = 1."""
        if self.known:
            return
        maps = maps.float()
        mean = _mean(maps)
        deviation = _mean((maps - mean).square()).sqrt()
        varies = deviation > 1e-6 * mean.abs().clamp(min=1e-3)  # of a constant, float32 leaves 1e-7
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(varies, deviation, 1.0))
        self.known.fill_(True)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, h, w) to zero mean and unit variance."""
        return (maps - self.centre) / self.spread

    def undo(self, standard: Tensor) -> Tensor:
        """The inverse."""
        return standard * self.spread + self.centre


def _mean(maps: Tensor) -> Tensor:
    """Over maps, pixels and processes, (1, channels, 1, 1)."""
    mean = maps.mean((0, 2, 3), keepdim=True)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean
