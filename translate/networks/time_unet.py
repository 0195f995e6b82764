"""The U-Net told a time: what bridges and flows call at every step between source and target.

The time t passes through sines and cosines of frequencies from 1 to 1,000 (Vaswani et al. 2017) and two dense layers to
a vector, from which each level of encoder and decoder takes a stretch and a shift of its channels,

    h ← h (1 + γ_l(t)) + β_l(t)                                                    (FiLM, Perez et al. 2018).

γ and β start at zero: the network begins as the plain :class:`skyshift.translate.networks.unet.UNet`.

References:
    Perez, Strub, de Vries, Dumoulin & Courville 2018, FiLM, arXiv:1709.07871.
    Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762.
    Ronneberger, Fischer & Brox 2015, U-Net, arXiv:1505.04597.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.translate.networks.blocks import Normalisation, PaddingMode, Upsampling, pad_to_multiple
from skyshift.translate.networks.unet import UNet

FREQUENCIES = 32
HIGHEST = 1000.0
"""Highest frequency, radians per unit of time."""


class TimeUNet(UNet):
    """A U-Net with linear output and a time, for maps of any size.

    Args:
        in_channels: Channels of the maps in.
        out_channels: Channels of the maps out.
        width: Channels of level 0.
        depth: Number of halvings.
        norm: Normalisation of all levels but level 0.
        padding: How maps and features continue beyond their border.
        upsampling: How the decoder doubles its resolution.
        embedding: Length of the vector that the time becomes.

    Raises:
        SkyshiftError: As for the U-Net.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        depth: int = 3,
        norm: Normalisation = "group",
        padding: PaddingMode = "reflect",
        upsampling: Upsampling = "bilinear",
        embedding: int = 64,
    ) -> None:
        super().__init__(
            in_channels, out_channels, width=width, depth=depth, norm=norm, padding=padding, upsampling=upsampling
        )
        self.embed = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        channels = self.feature_channels[1:]
        self.films = nn.ModuleList(nn.Linear(embedding, 2 * c) for c in (*channels, *reversed(channels[:-1])))
        for parameter in self.films.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        """One output for maps at a time.

        Args:
            x: (batch, in_channels, height, width), any size from 1 pixel.
            t: (batch,) times, between 0 and 1.

        Returns:
            (batch, out_channels, height, width), unlimited on both sides.
        """
        frequency = torch.logspace(0.0, math.log10(HIGHEST), FREQUENCIES, device=t.device)
        angle = t.float()[:, None] * frequency
        vector = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        films = iter(self.films)

        def told(h: Tensor) -> Tensor:
            stretch, shift = next(films)(vector)[..., None, None].chunk(2, 1)
            return h * (1.0 + stretch) + shift

        h, crop = pad_to_multiple(x, self.stride, self.padding, minimum=2 * self.stride)
        h = h.to(memory_format=torch.channels_last)
        features = []
        for level, block in enumerate(self.encoder):
            h = told(block(F.avg_pool2d(h, 2) if level else h))
            features.append(h)
        features.pop()
        for up, block in zip(self.upsamplers, self.decoder, strict=True):
            h = told(block(torch.cat([up(h), features.pop()], dim=1)))
        return crop(self.head(h))
