"""The residual generator of CycleGAN: shrink, refine with residual blocks, grow back.

A 7x7 convolution, strided 3x3 convolutions that halve the map and double the channels, residual blocks
x + f(x), upsampling, and a 7x7 convolution to a linear output (the paper's tanh would cap the maps).

There is no skip from input to output. With ``norm="instance"`` or ``"group"``, which divide the amplitude out
of every map, the output knows little of the total of its input: where the total matters use ``norm="none"``
or the U-Net, whose level 0 is not normalised.

Layers whose features can be asked for: 0 the (padded) maps, 1 the first convolution, then each halving, then each
residual block.

References:
    Zhu, Park, Isola & Efros 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
    Networks, arXiv:1703.10593.
    Johnson, Alahi & Fei-Fei 2016, Perceptual Losses for Real-Time Style Transfer, arXiv:1603.08155.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

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


class ResidualBlock(nn.Module):
    """x + f(x) with two normalised 3x3 convolutions and no activation after the sum.

    Args:
        channels: Channels in and out.
        norm: Normalisation after each convolution.
        padding: How features continue beyond their border.
    """

    def __init__(self, channels: int, norm: Normalisation, padding: PaddingMode) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, channels, 3, 1, norm, padding),
            normalisation(norm, channels),
            nn.ReLU(),
            _convolution(channels, channels, 3, 1, norm, padding),
            normalisation(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) to the same shape, h and w at least 2."""
        return x + self.body(x)


class ResNet(nn.Module):
    """The CycleGAN generator with linear output, for maps of any size.

    Args:
        in_channels: Channels of the source maps.
        out_channels: Channels of the target maps.
        width: Channels at full resolution; they double with every halving.
        blocks: Number of residual blocks (the paper: 6 for 128 pixels, 9 for 256).
        downsamplings: Number of halvings; sides that 2^downsamplings does not divide are padded and cropped.
        norm: Normalisation after every convolution but the last.
        padding: How maps and features continue beyond their border.
        upsampling: How the resolution is doubled.

    Raises:
        ValueError: A name is unknown or a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        blocks: int = 6,
        downsamplings: int = 2,
        norm: Normalisation = "instance",
        padding: PaddingMode = "reflect",
        upsampling: Upsampling = "bilinear",
    ) -> None:
        super().__init__()
        require_name("padding", padding, PaddingMode)
        require_at_least("width", width, 1)
        require_at_least("blocks", blocks, 0)
        require_at_least("downsamplings", downsamplings, 0)
        self.padding: PaddingMode = padding
        self.stride = 2**downsamplings

        layers: list[nn.Module] = [
            _convolution(in_channels, width, 7, 1, norm, padding),
            normalisation(norm, width),
            nn.ReLU(),
        ]
        channels = width
        ends, widths = [0, len(layers)], [in_channels, width]
        for _ in range(downsamplings):
            layers += [
                _convolution(channels, 2 * channels, 3, 2, norm, padding),
                normalisation(norm, 2 * channels),
                nn.ReLU(),
            ]
            channels *= 2
            ends, widths = [*ends, len(layers)], [*widths, channels]
        layers += [ResidualBlock(channels, norm, padding) for _ in range(blocks)]
        self._ends = [*ends, *range(ends[-1] + 1, ends[-1] + 1 + blocks)]
        self.feature_channels = (*widths, *[channels] * blocks)
        for _ in range(downsamplings):
            layers += [
                upsample(upsampling, channels, channels // 2, padding),
                normalisation(norm, channels // 2),
                nn.ReLU(),
            ]
            channels //= 2
        layers.append(_convolution(channels, out_channels, 7, 1, "none", padding))
        self.layers = nn.Sequential(*layers)
        initialise(self)
        # Without a normalisation each block's sum would multiply the amplitude; shared out, they keep it.
        for block in self.layers:
            if isinstance(block, ResidualBlock):
                initialise(block.body[3], scale=blocks**-0.5)

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
        # Four pixels let the 7x7 convolutions reflect three; two on the coarse grid let the 3x3 reflect one.
        x, crop = pad_to_multiple(x, self.stride, self.padding, minimum=max(2 * self.stride, 4))
        if layers is None:
            return crop(self.layers(x))
        require_layers(layers, len(self.feature_channels), "ResNet")
        features = [x]
        for start, end in list(pairwise(self._ends))[: max(layers)]:
            features.append(self.layers[start:end](features[-1]))
        return [features[layer] for layer in layers]


def _convolution(
    before: int, after: int, kernel: int, stride: int, norm: Normalisation, padding: PaddingMode
) -> nn.Conv2d:
    """A convolution without a bias where a normalisation follows, which brings its own."""
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, padding_mode=padding, bias=norm == "none")
