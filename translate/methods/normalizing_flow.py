"""A conditional normalizing flow: the exact density of the target given the source, trained by maximum likelihood.

    ln p(y|x) = ln N(f(y; x); 0, 1) + ln |det df/dy|

Many pixels are exactly zero: a density with such atoms grows without limit. Training therefore adds Gaussian noise of
σ = ``floor`` (in scaled units) to the target, and the density learned is that of y + noise. Draws are
y = f⁻¹(τ z; x); τ = 1 draws from the density (with the floor's noise), τ < 1 is narrower than the density. Physics
losses would need a draw through the inverse at every step: a run that asks for them does not begin.

References:
    Ardizzone et al. 2019, Guided Image Generation with Conditional Invertible Neural Networks, arXiv:1907.02392.
    Kingma & Dhariwal 2018, Glow, arXiv:1807.03039.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.networks.conditional_flow import ConditionalFlow


class NormalizingFlow(TranslationMethod):
    """Paired translation with draws and a likelihood.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        flow: Network with the interface of :class:`ConditionalFlow`.
        floor: σ of the training noise, scaled units.
        temperature: τ of the draws.

    Raises:
        SkyshiftError: ``floor`` or ``temperature`` is negative or not finite.
    """

    players = ("flow",)
    averaged = ("flow",)
    needs_pairs = True
    takes_physics = False
    stochastic = True
    local_networks = False

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        flow: Callable[[int, int], ConditionalFlow] = lambda source, target: ConditionalFlow(source, target),
        floor: float = 0.02,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(source_channels, target_channels)
        for name, value in (("floor", floor), ("temperature", temperature)):
            if not (math.isfinite(value) and value >= 0):
                raise SkyshiftError(f"{name} of the normalizing flow is {value}; it must be finite and at least 0.")
        self.flow = flow(source_channels, target_channels)
        self.floor, self.temperature = floor, temperature

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood in nats a (padded) pixel."""
        source, target = self.flow.pad(batch["source"])[0], self.flow.pad(batch["target"])[0]
        parts, determinant = networks[player](target + self.floor * torch.randn_like(target), source)
        nll = sum(0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1) for z in parts) - determinant
        return nll.mean() / target[0].numel(), {}

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """Invert a draw of z at the temperature."""
        noise = self._noise(noise, source)
        padded, crop = self.flow.pad(source)
        parts = [self.temperature * noise.normal(*shape) for shape in self.flow.latent_shapes(*padded.shape[-2:])]
        return self.finish(source, crop(self.flow.inverse(parts, padded)))
