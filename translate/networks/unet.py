"""The U-Net: maps in, maps of the same size out, with skips between equal resolutions.

Level l has width·min(2^l, 8) channels on a grid 2^l times coarser. The encoder averages 2x2 pixels between
levels, the decoder upsamples and joins the encoder's features of the same level, with two 3x3 convolutions on
every level of both.

A normalisation per map divides out its amplitude, and with it the total mass of the map. Level 0 is therefore
not normalised, in the encoder or the decoder: amplitude passes from the input over its skip to the output.
The output is linear, since maps have no upper limit. Dropout is the noise of Isola et al. 2017.

Layers whose features can be asked for: 0 the (padded) maps, l + 1 the encoder's level l.

References:
    Ronneberger, Fischer & Brox 2015, U-Net, arXiv:1505.04597.
    Isola, Zhu, Zhou & Efros 2017, Image-to-Image Translation with Conditional Adversarial Networks,
    arXiv:1611.07004.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.errors import SkyshiftError
from skyshift.translate.networks.blocks import (
    Normalisation,
    PaddingMode,
    Upsampling,
    initialise,
    normalisation,
    pad_to_multiple,
    require_at_least,
    require_layers,
    require_name,
    upsample,
)

MAX_WIDENING = 8
DROPOUT_LEVELS = 3
"""Dropout acts on the deepest so many levels of the decoder, as in Isola et al. 2017."""


class UNet(nn.Module):
    """A U-Net with linear output, for maps of any size.

    Args:
        in_channels: Channels of the source maps.
        out_channels: Channels of the target maps.
        width: Channels of level 0.
        depth: Number of halvings; sides that 2^depth does not divide are padded and cropped. A side below
            2·2^depth pixels is padded up to that, so that the deepest level has something to normalise over.
        norm: Normalisation of all levels but level 0.
        padding: How maps and features continue beyond their border.
        upsampling: How the decoder doubles its resolution.
        dropout: Probability that the decoder's deepest three levels forget a value, while training.
        residual: Learn the difference from the source: the output is the source plus what the network says.

    Raises:
        SkyshiftError: A name is unknown, a number is out of range, or ``residual`` with unequal channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        depth: int = 4,
        norm: Normalisation = "group",
        padding: PaddingMode = "reflect",
        upsampling: Upsampling = "bilinear",
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        require_name("padding", padding, PaddingMode)
        require_at_least("width", width, 1)
        require_at_least("depth", depth, 1)
        if residual and in_channels != out_channels:
            raise SkyshiftError(
                f"residual adds the {in_channels} source channels to {out_channels} target channels; "
                "make them equal or set residual to false."
            )
        self.padding: PaddingMode = padding
        self.stride = 2**depth
        self.residual = residual

        channels = [width * min(2**level, MAX_WIDENING) for level in range(depth + 1)]
        self.feature_channels = (in_channels, *channels)
        self.encoder = nn.ModuleList()
        before = in_channels
        for level, after in enumerate(channels):
            here: Normalisation = norm if level else "none"
            self.encoder.append(_convolutions(before, after, here, padding, slope=0.2))
            before = after
        self.upsamplers = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(depth)):
            after = channels[level]
            here = norm if level else "none"
            self.upsamplers.append(upsample(upsampling, before, after, padding))
            block = _convolutions(2 * after, after, here, padding, slope=0.0)
            if dropout and level >= depth - DROPOUT_LEVELS:
                block.append(nn.Dropout(dropout))
            self.decoder.append(block)
            before = after
        self.head = nn.Conv2d(before, out_channels, 1)
        initialise(self)

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Translate maps, or go only as far as the features of some layers.

        Args:
            x: (batch, in_channels, height, width), any size from 1 pixel.
            layers: Numbers of the layers whose features are wanted instead of the translation.

        Returns:
            (batch, out_channels, height, width), unlimited on both sides; or for each layer (batch, channels, h, w) of
            the padded maps, with its channels in ``feature_channels``.

        Raises:
            SkyshiftError: There is no such layer.
        """
        h, crop = pad_to_multiple(x, self.stride, self.padding, minimum=2 * self.stride)
        # Channels last is up to a third faster on CPUs. Only the maps are laid out so: the weights stay
        # contiguous, which is how safetensors wants them.
        features = [h.to(memory_format=torch.channels_last)]
        if layers is not None:
            require_layers(layers, len(self.feature_channels), "U-Net")
        for level, block in enumerate(self.encoder[: None if layers is None else max(layers)]):
            features.append(block(F.avg_pool2d(features[-1], 2) if level else features[-1]))
        if layers is not None:
            return [features[layer] for layer in layers]
        h = features.pop()
        for up, block in zip(self.upsamplers, self.decoder, strict=True):
            h = block(torch.cat([up(h), features.pop()], dim=1))
        y = crop(self.head(h))
        return x + y if self.residual else y


def _convolutions(before: int, after: int, norm: Normalisation, padding: PaddingMode, *, slope: float) -> nn.Sequential:
    """Two 3x3 convolutions, each normalised and activated. A normalisation brings its own bias."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, padding_mode=padding, bias=norm == "none"),
            normalisation(norm, after),
            nn.LeakyReLU(slope) if slope else nn.ReLU(),
        ]
    return nn.Sequential(*layers)
