"""What every translation method is: a trainable method that turns scaled source maps into scaled target maps."""

import abc

from torch import Tensor

from skyshift.engine import Method


class TranslationMethod(Method):
    """A method between source and target channels.

    A batch names ``source`` (batch, source_channels, height, width) and ``target`` (batch, target_channels, height,
    width), both scaled.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
    """

    needs_pairs: bool = False
    """Whether source and target of a sample must show the same view."""

    def __init__(self, source_channels: int, target_channels: int) -> None:
        super().__init__()
        self.source_channels, self.target_channels = source_channels, target_channels

    @property
    def discriminators(self) -> tuple[str, ...]:
        """Names of the players that judge maps: training needs them, translating does not."""
        return tuple(player for player in self.players if "discriminator" in player)

    @abc.abstractmethod
    def translate(self, source: Tensor) -> Tensor:
        """Scaled source maps (batch, source_channels, h, w) to scaled target maps (batch, target_channels, h, w)."""
