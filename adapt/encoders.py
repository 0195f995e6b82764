"""Encoders of maps: a small convolutional network."""

from torch import Tensor, nn

from skyshift.adapt.classifier import SOURCE, Encoder


class SmallCNN(Encoder):
    """Convolutions with strides and group normalisation, then the mean over the map.

    No batch normalisation: what it says of a map depends on that map alone, so that processes and micro-batches add up.

    Args:
        channels: Of the maps.
        width: Channels after the first convolution; they double with each of the following.
        depth: Convolutions, each halving the map.
    """

    def __init__(self, channels: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            out = width * 2**level
            layers.append(
                nn.Sequential(
                    nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(min(8, out), out), nn.ReLU(),
                    nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(min(8, out), out), nn.ReLU(),
                )
            )  # fmt: skip
            channels = out
        self.levels = nn.ModuleList(layers)
        self.width = channels

    def forward(self, maps: Tensor, domain: int = SOURCE) -> Tensor:
        """Features (n, width) of maps (n, channels, h, w)."""
        for level in self.levels:
            maps = level(maps)
        return maps.mean((2, 3))

    def blocks(self) -> list[nn.Module]:
        """The levels."""
        return list(self.levels)
