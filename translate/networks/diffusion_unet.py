"""The U-Net of diffusion models: diffusers' ``UNet2DModel``, for maps of any size and times of any real value.

Level l has width·min(2^l, 4) channels on a grid 2^l times coarser, with residual blocks that are told the time: its
sines and cosines (periods from 2π to 2π·10^4, so times of 0 to about 1000 are told apart) pass a small network and are
added to the features of every block. Every block is normalised per group of channels and map, and joined to its input.

Maps whose sides 2^depth does not divide are padded and cropped. diffusers' convolutions take zeros beyond the border,
by which a network tells the border from the middle, and after a short training speckles it. They are told to continue
the features as the maps are continued instead; zeros remain a choice.

References:
    Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    Dhariwal & Nichol 2021, Diffusion Models Beat GANs on Image Synthesis, arXiv:2105.05233.
    Wu & He 2018, Group Normalization, arXiv:1803.08494.
"""

from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from skyshift.translate.networks.blocks import (
    MAX_GROUPS,
    PaddingMode,
    pad_to_multiple,
    require_at_least,
    require_name,
)

MAX_WIDENING = 4


class DiffusionUNet(nn.Module):
    """A time-conditioned U-Net with linear output, zero before training.

    Args:
        in_channels: Channels of all that it sees: the noisy target, the source, …
        out_channels: Channels of what it predicts.
        width: Channels of level 0, at least 4; an odd number is made even.
        depth: Number of halvings.
        blocks: Residual blocks of a level of the encoder; the decoder has one more.
        dropout: Probability that a residual block forgets a value, while training.
        attention: Self-attention at the deepest level: every place sees the whole map, so that large maps cannot be
            translated tile by tile.
        padding: How maps (to a size that 2^depth divides) and features continue beyond their border.

    Attributes:
        attention: Whether places far apart see each other.

    Raises:
        SkyshiftError: A name is unknown or a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        depth: int = 3,
        blocks: int = 1,
        dropout: float = 0.0,
        attention: bool = False,
        padding: PaddingMode = "reflect",
    ) -> None:
        super().__init__()
        require_name("padding", padding, PaddingMode)
        require_at_least("width", width, 4)
        require_at_least("depth", depth, 1)
        require_at_least("blocks", blocks, 1)
        width += width % 2  # half of the level's channels are sines of the time, half cosines
        self.depth, self.attention, self.padding = depth, attention, padding
        self.stride = 2**depth
        network: Any = UNet2DModel(  # diffusers' classes look untyped to a checker
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(width * min(2**level, MAX_WIDENING) for level in range(depth + 1)),
            down_block_types=("DownBlock2D",) * (depth + 1),
            up_block_types=("UpBlock2D",) * (depth + 1),
            layers_per_block=blocks,
            norm_num_groups=max(groups for groups in range(1, MAX_GROUPS + 1) if width % groups == 0),
            dropout=dropout,
            add_attention=attention,
        )
        nn.init.zeros_(network.conv_out.weight)
        nn.init.zeros_(network.conv_out.bias)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
                layer.padding_mode = padding
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at a time.

        Args:
            x: (batch, in_channels, h, w), any size.
            t: (batch,), any real numbers; the embedding is made for 0 to about 1000.

        Returns:
            (batch, out_channels, h, w).
        """
        x, crop = pad_to_multiple(x, 2**self.depth, self.padding, minimum=2 ** (self.depth + 1))
        prediction: Tensor = self.network(x, t.float(), return_dict=False)[0]
        return crop(prediction)
