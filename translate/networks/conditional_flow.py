"""A conditional multi-scale normalizing flow on FrEIA's coupling blocks.

Each level folds 2x2 pixels into channels, runs affine coupling blocks whose networks also see features of the source at
that level, and hands half of its channels out as part of z (Dinh et al. 2017; Ardizzone et al. 2019).

References:
    Kingma & Dhariwal 2018, Glow, arXiv:1807.03039.
    Ardizzone et al. 2019, Guided Image Generation with Conditional Invertible Neural Networks, arXiv:1907.02392.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.errors import SkyshiftError
from skyshift.translate.networks.blocks import initialise, pad_to_multiple, require_at_least

try:
    from FrEIA.modules import AllInOneBlock
except ImportError as error:
    raise SkyshiftError("normalizing flows need FrEIA: pip install 'FrEIA>=0.2'") from error


class ConditionalFlow(nn.Module):
    """z = f(y; x), exactly invertible in y.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        width: Channels of the condition and of the coupling networks.
        levels: Halvings; other sizes are padded and cropped.
        blocks: Coupling blocks a level.
    """

    def __init__(
        self, source_channels: int, target_channels: int, *, width: int = 32, levels: int = 3, blocks: int = 4
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("levels", levels), ("blocks", blocks)):
            require_at_least(name, value, 1)
        self.stride, self.target_channels = 2**levels, target_channels
        self.conditions, self.flows = nn.ModuleList(), nn.ModuleList()
        before, channels = source_channels, target_channels
        for level in range(levels):
            condition = nn.Sequential(
                nn.Conv2d(before, width, 4, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
            )
            initialise(condition)
            self.conditions.append(condition)
            before, channels = width, 4 * channels
            self.flows.append(nn.ModuleList(_block(channels, width) for _ in range(blocks)))
            channels = channels // 2 if level < levels - 1 else channels

    def forward(self, target: Tensor, source: Tensor) -> tuple[list[Tensor], Tensor]:
        """The parts of z, and ln |det dz/dy| (batch,). Sides must be multiples of ``stride``."""
        determinant, parts, h = source.new_zeros(len(source)), [], target
        for level, (features, flow) in enumerate(zip(self._features(source), self.flows, strict=True)):
            h = F.pixel_unshuffle(h, 2)
            assert isinstance(flow, nn.ModuleList)
            for block in flow:
                (h,), change = block([h], [features])
                determinant = determinant + change
            if level < len(self.flows) - 1:
                out, h = h.chunk(2, 1)
                parts.append(out)
        return [*parts, h], determinant

    def inverse(self, parts: list[Tensor], source: Tensor) -> Tensor:
        """The target (batch, target_channels, h, w) of the parts of z."""
        h = parts[-1]
        features = self._features(source)
        for level in reversed(range(len(self.flows))):
            h = h if level == len(self.flows) - 1 else torch.cat([parts[level], h], 1)
            flow = self.flows[level]
            assert isinstance(flow, nn.ModuleList)
            for block in reversed(list(flow)):
                (h,), _ = block([h], [features[level]], rev=True)
            h = F.pixel_shuffle(h, 2)
        return h

    def latent_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Shapes of the parts of z for padded maps of these sides."""
        shapes, channels = [], self.target_channels
        for level in range(len(self.flows)):
            height, width, channels = height // 2, width // 2, 4 * channels
            channels = channels // 2 if level < len(self.flows) - 1 else channels
            shapes.append((channels, height, width))
        return shapes

    def pad(self, maps: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Maps padded to multiples of ``stride``, and the function that crops them back."""
        return pad_to_multiple(maps, self.stride, "reflect")

    def _features(self, source: Tensor) -> list[Tensor]:
        features = []
        for condition in self.conditions:
            source = condition(source)
            features.append(source)
        return features


def _block(channels: int, width: int) -> nn.Module:
    def subnet(before: int, after: int) -> nn.Sequential:
        layers = nn.Sequential(
            nn.Conv2d(before, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, after, 3, padding=1),
        )
        initialise(layers)
        final = layers[-1]
        assert isinstance(final, nn.Conv2d)
        nn.init.zeros_(final.weight)  # the block begins as a permutation and a scale (Glow)
        return layers

    return AllInOneBlock(
        [(channels, 2, 2)], dims_c=[(width, 2, 2)], subnet_constructor=subnet, permute_soft=channels <= 64
    )
