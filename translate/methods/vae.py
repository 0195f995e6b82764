"""A conditional variational autoencoder: draws of the target from a latent of the source.

    p(y|x) = ∫ N(y; f, σ²) p(z|x) dz,    ELBO = E_q(z|x,y) ln N(y; f, σ²) − β KL(q(z|x, y) || p(z|x)),    f, σ of (x, z)

σ is learned, one a pixel (empty sky is known far better than a disc), so the weight between distance and KL is the
likelihood's and no free λ. β = 1 is the bound; it rises linearly from 0 over the first ``warm_up`` optimizer steps,
lest z be ignored. Draws carry pixel noise of σ by default: without it they lack the variance that the likelihood says
they have, and intervals would be too narrow.

References:
    Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv:1312.6114.
    Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS.
"""

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.networks.latent import LatentUNet


class VAE(TranslationMethod):
    """Paired translation with draws.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        autoencoder: Network with the interface of :class:`LatentUNet`.
        beta: β, weight of the KL divergence; 1 is the bound.
        warm_up: Optimizer steps over which β rises from zero.
        pixel_noise: Whether draws carry the likelihood's noise.

    Raises:
        SkyshiftError: β or ``warm_up`` is negative or not finite.
    """

    players = ("autoencoder",)
    averaged = ("autoencoder",)
    needs_pairs = True
    stochastic = True
    local_networks = False

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        autoencoder: Callable[[int, int], LatentUNet] = lambda source, target: LatentUNet(source, target),
        beta: float = 1.0,
        warm_up: int = 200,
        pixel_noise: bool = True,
    ) -> None:
        super().__init__(source_channels, target_channels)
        for name, value in (("beta", beta), ("warm_up", warm_up)):
            if not (math.isfinite(value) and value >= 0):
                raise SkyshiftError(f"{name} of the vae is {value}; it must be a finite number, at least 0.")
        self.autoencoder = autoencoder(source_channels, target_channels)
        self.beta, self.warm_up, self.pixel_noise = beta, warm_up, pixel_noise

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative ELBO in nats a pixel, with its ``nll`` and ``kl``."""
        source, target = batch["source"], batch["target"]
        estimate, log_sigma, kl = networks[player](source, target)
        estimate = self.finish(source, estimate)
        nll = 0.5 * ((target - estimate) / log_sigma.exp()).square() + log_sigma + 0.5 * math.log(2 * math.pi)
        beta = self.beta * min(1.0, self.step / self.warm_up) if self.warm_up else self.beta
        physics, parts = self.physics_loss(estimate, batch)
        divergence = kl.mean() / target[0].numel()
        return nll.mean() + beta * divergence + physics, {"nll": nll.mean(), "kl": divergence, **parts}

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """Decode a draw from the prior."""
        noise = self._noise(noise, source)
        epsilon = noise.normal(*self.autoencoder.latent_shape(source))
        estimate, log_sigma, _ = self.autoencoder(source, None, epsilon)
        if self.pixel_noise:
            estimate = estimate + log_sigma.exp() * noise.normal(*estimate.shape[1:])
        return self.finish(source, estimate)
