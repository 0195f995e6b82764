"""What every translation method is: a trainable method that turns scaled source maps into scaled target maps.

A method may be deterministic (one target for a source) or draw from the targets that a source allows. Draws take their
random numbers from :class:`Noise`, one generator a map, so that a draw depends on its seed alone: not on the other maps
of the batch, the process, or the device.
"""

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skyshift.engine import Batch, Method
from skyshift.errors import SkyshiftError


class Noise:
    """Standard normal numbers, one generator a map.

    Args:
        seeds: One a map of the batch.
        device: Where the numbers are wanted. They are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> Tensor:
        """(maps, *shape) float32 of unit variance; every call gives new numbers."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """(maps, *shape) float32 in [0, 1); every call gives new numbers."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators]).to(self.device)


PhysicsLoss = Callable[[Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]
"""Estimate (batch, target_channels, h, w), scaled, and its batch, to a weighted loss and its parts to log."""

Conservation = Callable[[Tensor, Tensor], Tensor]
"""Scaled source and scaled estimate to the scaled estimate that keeps what is to be kept."""


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

    takes_physics: bool = True
    """Whether training makes an estimate of the target that losses on physical maps can judge."""

    stochastic: bool = False
    """Whether translations of one source differ from draw to draw."""

    local_networks: bool = True
    """Whether every network that :meth:`translate` calls takes (batch, channels, h, w), and arguments without a place
    (times, say), to one tensor of the same h and w: large maps can then be translated tile by tile within each call."""

    training_only: tuple[str, ...] = ()
    """Names of parts, beside discriminators, that translating does without: a shared checkpoint leaves them out."""

    calls: int = 1
    """Network evaluations of one translation, where :meth:`translate` is not told another number."""

    physics: PhysicsLoss | None = None
    """Set by the run: losses on physical maps, beside the method's own."""

    conservation: Conservation | None = None
    """Set by the run: what the output is made to keep."""

    def __init__(self, source_channels: int, target_channels: int) -> None:
        super().__init__()
        self.source_channels, self.target_channels = source_channels, target_channels

    @property
    def discriminators(self) -> tuple[str, ...]:
        """Names of the players that judge maps: training needs them, translating does not."""
        return tuple(player for player in self.players if "discriminator" in player)

    @abc.abstractmethod
    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """Translate scaled maps.

        Args:
            source: (batch, source_channels, h, w).
            noise: Of the draws; by default of seeds 0, 1, 2, … A deterministic method ignores it.
            calls: Network evaluations a map; by default :attr:`calls`. A method of one call ignores it.

        Returns:
            (batch, target_channels, h, w), scaled, float32.
        """

    def translate_back(self, target: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """The other way, for methods that learn both.

        Raises:
            SkyshiftError: This one does not.
        """
        raise SkyshiftError(
            f"{type(self).__name__} translates one way only; train it with data.source and data.target swapped, or "
            "take cyclegan"
        )

    def finish(self, source: Tensor, estimate: Tensor) -> Tensor:
        """An estimate as it leaves the method: float32, keeping what the run wants kept. Scaled in and out."""
        estimate = estimate.float()
        return estimate if self.conservation is None else self.conservation(source, estimate)

    def physics_loss(self, estimate: Tensor, batch: Batch) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The run's losses on physical maps of an estimate with gradients, and their parts; 0 where there are none."""
        return (0.0, {}) if self.physics is None else self.physics(estimate, batch)

    def _noise(self, noise: Noise | None, source: Tensor) -> Noise:
        return noise if noise is not None else Noise(range(len(source)), source.device)

    def _calls(self, calls: int | None, least: int = 1) -> int:
        """The number of network evaluations, checked.

        Raises:
            SkyshiftError: It is too small.
        """
        calls = self.calls if calls is None else calls
        if calls < least:
            raise SkyshiftError(
                f"a translation of {type(self).__name__} takes at least {least} network call(s), not {calls}"
            )
        return calls
