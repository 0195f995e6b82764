"""Draws of translations: their random numbers, and what many of them say of one map.

The random numbers of draw d of a map are a function of the seed, of d and of the map (its view in a store, else its
place in the stack) alone: the same in any batch, order, process or device.

Of a deterministic method whose network holds dropout, draws are those of Monte Carlo dropout (Gal & Ghahramani 2016):
the layers forget at inference too, an approximation of the posterior of the weights. It says how unsure the weights
are, not how far targets of one source differ from each other.

References:
    Gal & Ghahramani 2016, Dropout as a Bayesian Approximation, arXiv:1506.02142.
    Welford 1962, Technometrics 4, 419 (running mean and variance).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from skyshift.datasets.maps import Maps
from skyshift.translate.methods.base import Noise

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


@dataclass(frozen=True)
class Uncertain:
    """What many draws say of each map.

    Attributes:
        mean: Of the draws.
        sigma: Their standard deviation (unbiased), in the same unit.
        draws: How many there were.
    """

    mean: Maps
    sigma: Maps
    draws: int


class Moments:
    """Running mean and variance of arrays of one shape, in float64 (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(())
        self._squares: NDArray[np.float64] = np.zeros(())

    def add(self, values: NDArray[np.floating]) -> None:
        """One more array."""
        self.count += 1
        change = values.astype(np.float64) - self.mean
        self.mean = self.mean + change / self.count
        self._squares = self._squares + change * (values - self.mean)

    @property
    def sigma(self) -> NDArray[np.float64]:
        """Unbiased standard deviation; NaN of a single array."""
        if self.count < 2:
            return np.full(self.mean.shape, np.nan)
        return np.asarray(np.sqrt(np.maximum(self._squares, 0.0) / (self.count - 1)))


def draw_seeds(seed: int, draw: int, keys: Sequence[int] | NDArray[np.integer]) -> list[int]:
    """One 64-bit seed a map.

    Args:
        seed: Of all draws.
        draw: Number of the draw, from 0.
        keys: What tells the maps apart, non-negative.
    """
    states = (np.random.SeedSequence([seed, draw, int(key)]).generate_state(1, np.uint64)[0] for key in keys)
    return [int(state) >> 1 for state in states]  # torch takes signed numbers


def forgets(network: nn.Module) -> bool:
    """Whether a network holds a dropout layer that does something."""
    return any(isinstance(module, _DROPOUTS) and module.p > 0 for module in network.modules())


@contextmanager
def forgetting(network: nn.Module, noise: Noise) -> Iterator[None]:
    """Context in which the dropout layers of a network forget, by random numbers of ``noise``.

    Args:
        network: In evaluation mode.
        noise: As many generators as there are maps in the batch.
    """
    layers = [module for module in network.modules() if isinstance(module, _DROPOUTS) and module.p > 0]

    def forward_of(layer: nn.Module) -> object:
        whole = not isinstance(layer, nn.Dropout)  # the others forget whole channels

        def forward(x: Tensor) -> Tensor:
            shape = (x.shape[1], *[1] * (x.dim() - 2)) if whole else x.shape[1:]
            kept = noise.uniform(*shape) >= layer.p  # type: ignore[operator]
            return x * kept.to(x.device) / (1.0 - layer.p)  # type: ignore[operator]

        return forward

    for layer in layers:
        layer.forward = forward_of(layer)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
