"""Source only: the classifier is trained on labelled source maps, and is taken to the target as it is.

    min E_source[ℓ(f(x), y)]

The lower bound that every adaptation has to beat. With ``side: target`` it is trained on labelled target maps instead:
the upper bound (target-supervised), on the same encoder, steps and number of maps a step.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from skyshift.adapt.classifier import TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Side = Literal["source", "target"]


class SourceOnly(AdaptationMethod):
    """Supervised training on one side alone.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        side: ``source``, or ``target`` for the upper bound, which sees target labels and is no adaptation.
    """

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        side: Side = "source",
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if side not in get_args(Side):
            raise SkyshiftError(unknown("side", side, get_args(Side)))
        self.side = side
        self.needs = ("labelled_target",) if side == "target" else ()

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The supervised loss."""
        if self.side == "target":
            _, outputs = networks["classifier"](batch["target"], TARGET)
            loss = self.supervised(outputs, batch["target_label"])
        else:
            _, _, loss = source_loss(self, networks, batch)
        return loss, {"supervised": loss}
