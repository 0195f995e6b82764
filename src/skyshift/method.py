"""What the loop trains: a method, that is networks (its players) and their losses; and what a stage adds to it."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

Batch = Mapping[str, Any]


class Method(nn.Module, abc.ABC):
    """Networks and their losses. Every network that is trained is a *player* with an optimizer of its own."""

    players: tuple[str, ...] = ()
    """Attribute names of the trained networks, in the order in which their losses are computed."""

    averaged: tuple[str, ...] = ()
    """Those whose running average is kept and used for inference."""

    step: int = 0
    """Number of the optimizer step that losses are for, from 0; the loop sets it, for schedules of a method's own."""

    def rate_scale(self, player: str, parameter: str) -> float:
        """Factor on the player's learning rate for one of its parameters, asked once before the first step.

        Args:
            player: Whose.
            parameter: Its name within the player.
        """
        return 1.0

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Work that the losses of several players need, done once a micro-batch; by default none.

        Args:
            networks: The players as wrapped for the launch. A forward pass that is to be trained goes through these.
            batch: Named tensors.
        """
        return {}

    @abc.abstractmethod
    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one player and the parts to log, as scalars averaged over the batch.

        Args:
            player: Whose.
            networks: As in :meth:`share`. A player that is only looked through is reached as an attribute of the
                method, frozen (:func:`frozen`).
            batch: Named tensors.
            shared: What :meth:`share` gave.
        """


class frozen:  # noqa: N801
    """Context in which a network passes gradients on but collects none."""

    def __init__(self, network: nn.Module) -> None:
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class LoaderPlan:
    """Which micro-batches a process is to load: number ``first`` to ``last`` - 1 of its rank's share."""

    first: int
    last: int
    process: int
    processes: int


@dataclass
class Hooks:
    """What a stage adds to the loop.

    Attributes:
        describe: Writes into a checkpoint's folder all that inference needs beside the weights.
        sample: Makes a figure from the averaged method.
        identify: Names the samples of a batch, for the message of a loss that is not finite.
        validate: Judges the averaged method: name to value, on data that is neither trained nor tested on.
        directions: Name of every such value to the direction of better: 1 larger, -1 smaller, 0 nearer to zero.
    """

    describe: Callable[[Path], None] = lambda folder: None
    sample: Callable[[nn.Module], Figure] | None = None
    identify: Callable[[Batch], str] = lambda batch: "an unnamed batch"
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    directions: Mapping[str, int] = field(default_factory=dict)
