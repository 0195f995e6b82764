"""A conditional variational autoencoder's networks, with latents that keep their place on the map.

A prior p(z|x) and a recognition network q(z|x, y) give means and log variances on a grid 2^depth times coarser; a
U-Net decodes the source beside z, upsampled, to a mean and a σ a pixel. Spatial latents, unlike the one global vector
of Kohl et al. 2018, vary from place to place and serve maps of any size.

References:
    Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS.
    Kohl et al. 2018, A Probabilistic U-Net, arXiv:1806.05034.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.translate.networks.blocks import initialise, pad_to_multiple, require_at_least
from skyshift.translate.networks.unet import UNet

LOG_SIGMA = (-5.0, 1.0)
"""ln σ of a pixel stays between these: the lower is the floor of e^-5 = 0.007 scaled units, without which empty sky,
which is known exactly, would be a density without limit."""

LOG_VARIANCE = 7.0
"""Log variances of latents stay within ± this: e^3.5 = 33 is wider than any code needs."""


class LatentUNet(nn.Module):
    """Prior, recognition network and decoder.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        width: Channels at full resolution.
        depth: Halvings between map and latent, and of the decoder; other sizes are padded and cropped.
        latent_channels: Channels of z.
    """

    def __init__(
        self, source_channels: int, target_channels: int, *, width: int = 16, depth: int = 3, latent_channels: int = 4
    ) -> None:
        super().__init__()
        require_at_least("width", width, 1)
        require_at_least("depth", depth, 1)
        require_at_least("latent_channels", latent_channels, 1)
        self.stride = 2**depth
        self.prior = _pyramid(source_channels, width, depth, latent_channels)
        self.recognition = _pyramid(source_channels + target_channels, width, depth, latent_channels)
        self.decoder = UNet(source_channels + latent_channels, 2 * target_channels, width=width, depth=depth)

    def forward(
        self, source: Tensor, target: Tensor | None = None, epsilon: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode a draw of z.

        Args:
            source: (batch, source_channels, h, w).
            target: (batch, target_channels, h, w) to draw from q(z|x, y), None to draw from p(z|x).
            epsilon: Unit normal numbers of :meth:`latent_shape`; drawn by torch where None.

        Returns:
            Mean (batch, target_channels, h, w), log σ of the same shape, and KL(q, p) (batch,) in nats a map, 0 without
            a target.
        """
        padded, crop = pad_to_multiple(source, self.stride, "reflect")
        mean, log_variance = _gaussian(self.prior(padded))
        kl = source.new_zeros(len(source))
        if target is not None:
            joined = torch.cat([padded, pad_to_multiple(target, self.stride, "reflect")[0]], 1)
            posterior = _gaussian(self.recognition(joined))
            kl = gaussian_kl(*posterior, mean, log_variance).flatten(1).sum(1)
            mean, log_variance = posterior
        epsilon = torch.randn_like(mean) if epsilon is None else epsilon
        z = mean + (0.5 * log_variance).exp() * epsilon
        z = F.interpolate(z, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        estimate, sigma = crop(self.decoder(torch.cat([padded, z], 1))).float().chunk(2, 1)
        low, high = LOG_SIGMA
        return estimate, low + (high - low) * torch.sigmoid(sigma), kl

    def latent_shape(self, source: Tensor) -> tuple[int, int, int]:
        """Channels, height and width of z for a source (batch, source_channels, h, w)."""
        final = self.prior[-1]
        assert isinstance(final, nn.Conv2d)
        height, width = source.shape[-2:]
        return final.out_channels // 2, -(-height // self.stride), -(-width // self.stride)


def gaussian_kl(mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) || N(prior_mean, e^prior_log_variance)), elementwise, nats."""
    spread = (log_variance.exp() + (mean - prior_mean).square()) * (-prior_log_variance).exp()
    return 0.5 * (prior_log_variance - log_variance + spread - 1.0)


def _gaussian(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = parameters.float().chunk(2, 1)
    return mean, LOG_VARIANCE * torch.tanh(log_variance / LOG_VARIANCE)


def _pyramid(before: int, width: int, depth: int, latent: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for level in range(depth):
        after = width * 2 ** min(level, 2)
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(after, after, 3, padding=1), nn.LeakyReLU(0.2)]
        before = after
    layers.append(nn.Conv2d(before, 2 * latent, 1))
    pyramid = nn.Sequential(*layers)
    initialise(pyramid)
    initialise(layers[-1], scale=0.1)
    return pyramid
