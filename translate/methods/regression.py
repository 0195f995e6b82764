"""Regression: a U-Net that minimises the distance to the true target, the baseline of every other method.

    min_G E d(G(x), y),    d = |·| (l1), (·)² (l2), or Huber's, which is ½ (·)² below 1 and |·| - ½ above

x is the source, y the target of the same view. The minimum is a number per pixel: the median (l1) or the mean (l2) of
what the source allows. Where the source does not decide the target such a map is smoother than any true one. With
dropout in the network, draws with dropout left on show part of the network's uncertainty (Gal & Ghahramani 2016).

References:
    Ronneberger, Fischer & Brox 2015, U-Net, arXiv:1505.04597.
    Huber 1964, Robust Estimation of a Location Parameter, doi:10.1214/aoms/1177703732.
    Gal & Ghahramani 2016, Dropout as a Bayesian Approximation, arXiv:1506.02142.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.networks.unet import UNet

Distance = Literal["l1", "l2", "huber"]
_DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "huber": F.huber_loss,
}


class Regression(TranslationMethod):
    """Paired translation to the median or the mean of what the source allows.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        generator: Network from source to target channels.
        distance: l1, l2 or huber, between scaled maps.

    Raises:
        SkyshiftError: The distance is unknown.
    """

    players = ("generator",)
    averaged = ("generator",)
    needs_pairs = True

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        generator: Callable[[int, int], nn.Module] = lambda source, target: UNet(source, target),
        distance: Distance = "l1",
    ) -> None:
        super().__init__(source_channels, target_channels)
        if distance not in get_args(Distance):
            raise SkyshiftError(unknown("distance", distance, get_args(Distance)))
        self.generator = generator(source_channels, target_channels)
        self.distance: Distance = distance

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance, logged under its name, and the run's physics losses."""
        estimate = self.finish(batch["source"], networks["generator"](batch["source"]))
        distance = _DISTANCES[self.distance](estimate, batch["target"])
        physics, parts = self.physics_loss(estimate, batch)
        return distance + physics, {self.distance: distance, **parts}

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """One pass of the generator."""
        return self.finish(source, self.generator(source))
