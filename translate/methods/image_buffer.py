"""The buffer of translated maps that a discriminator learns from: the newest and some of its past.

Of the n-th map (from 0) with a buffer of N maps:

    n < N    it is kept, and given back
    n ≥ N    with probability ½ it is given back; else a kept one, drawn evenly, which makes room for it

so that a discriminator does not forget what the generator did some hundred maps ago.

The buffer is one for all processes: each puts in the maps of every process, in the order in which one process would see
them, and takes out its own. Which map is exchanged depends on the buffer's seed and the map's number alone, so that

- two processes with batches of b, or two micro-batches of b, do what one batch of 2b does,
- the buffer of the main process, which a checkpoint holds, is that of all, and a run resumes bit for bit.

What it costs: the translated maps of all processes are gathered once a micro-batch, and N maps are in the checkpoint.

References:
    Shrivastava et al. 2017, Learning from Simulated and Unsupervised Images through Adversarial Training, section 2.3,
    arXiv:1612.07828.
    Zhu, Park, Isola & Efros 2017, arXiv:1703.10593 (50 maps).
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from skyshift.errors import SkyshiftError


class ImageBuffer(nn.Module):
    """A history of maps, kept with the weights.

    Args:
        size: Maps to keep; 0 gives every map back as it is.

    Raises:
        SkyshiftError: The size is negative.
    """

    maps: Tensor
    seen: Tensor
    seed: Tensor

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        if size < 0:
            raise SkyshiftError(f"buffer_size is {size}; it is a number of maps, or 0 for no buffer")
        self.size = size
        self.register_buffer("maps", torch.empty(0))  # its shape is known with the first maps
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        # Weights are drawn from one seed on every process, and so is this.
        self.register_buffer("seed", torch.randint(2**31, ()))

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        """Exchange maps.

        Args:
            maps: (batch, channels, height, width), new ones of this process; as many on every process.

        Returns:
            The same number of maps, new or kept, float32, without gradient.

        Raises:
            SkyshiftError: They have another shape than those kept.
        """
        maps = maps.detach().float()
        if not self.size:
            return maps
        if not len(self.maps):
            self.maps = maps.new_zeros(self.size, *maps.shape[1:])
        if maps.shape[1:] != self.maps.shape[1:]:
            raise SkyshiftError(
                f"the image buffer keeps maps of shape {tuple(self.maps.shape[1:])} and got {tuple(maps.shape[1:])}; "
                "train on maps of one size, or set buffer_size to 0"
            )
        everyone, mine = _gather(maps)
        seen = int(self.seen)
        back = [self._exchange(one, seen + i) for i, one in enumerate(everyone)]
        self.seen += len(everyone)
        return torch.stack(back[mine])

    def _exchange(self, one: Tensor, number: int) -> Tensor:
        if number < self.size:
            self.maps[number] = one
            return one
        generator = torch.Generator().manual_seed(int(self.seed) + number)
        if torch.rand((), generator=generator) < 0.5:
            return one
        place = int(torch.randint(self.size, (), generator=generator))
        kept = self.maps[place].clone()
        self.maps[place] = one
        return kept

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the saved shape; a checkpoint for inference may lack the buffer."""
        for name in ("maps", "seen", "seed"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        self.maps = self.maps.new_zeros(state_dict[prefix + "maps"].shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _gather(maps: Tensor) -> tuple[Tensor, slice]:
    """The maps of all processes in the order of their ranks, and where those of this one stand."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return maps, slice(None)
    maps = maps.contiguous()
    everyone = [torch.empty_like(maps) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, maps)
    first = distributed.get_rank() * len(maps)
    return torch.cat(everyone), slice(first, first + len(maps))
