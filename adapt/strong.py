"""The second, stronger change of a map, for methods that want two views of it.

A map is turned and shifted anew, then white noise is added and a square of it is blanked (set to its lowest value),
all on scaled values. The choice is a function of the sample's seed alone.

References:
    DeVries & Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv:1708.04552.
"""

from dataclasses import dataclass

import numpy as np
import torch

from skyshift.errors import SkyshiftError


@dataclass(frozen=True)
class Strong:
    """How strongly.

    Attributes:
        noise: Largest standard deviation of the noise, in units of the scaled map; drawn uniformly from 0.
        cutout: Side of the blanked square as a share of the map's.
    """

    noise: float = 0.1
    cutout: float = 0.25

    def __post_init__(self) -> None:
        if not self.noise >= 0 or not 0 <= self.cutout <= 1:
            raise SkyshiftError(f"strong needs noise ≥ 0 and 0 ≤ cutout ≤ 1, not {self.noise} and {self.cutout}")

    def __call__(self, maps: torch.Tensor, seed: tuple[int, ...]) -> torch.Tensor:
        """One sample, (channels, height, width), changed; the argument is left as it is."""
        generator = np.random.default_rng(seed)
        sigma = generator.uniform(0.0, self.noise)
        changed = maps + torch.from_numpy(generator.normal(0.0, 1.0, maps.shape).astype(np.float32)) * float(sigma)
        height, width = maps.shape[-2:]
        side = (round(self.cutout * height), round(self.cutout * width))
        top, left = (int(generator.integers(0, n - s + 1)) for n, s in zip((height, width), side, strict=True))
        lowest = maps.amin((1, 2), keepdim=True)
        changed[:, top : top + side[0], left : left + side[1]] = lowest
        return changed
