"""DANCE: universal adaptation by neighbourhood clustering and entropy separation, in any regime of label sets.

    L = L_CE + η (L_NC + L_ES),    η = 0.05

    L_CE    cross-entropy on the source, of logits w_kᵀf / τ with unit prototypes w and features f, τ = 0.05
    L_NC    entropy of a target map's similarity to all other target maps (memory bank) and to the prototypes
    L_ES    predictions of the target move away from ρ = ½ log K, outside a margin m = 0.5

It is also what the public code of DeepAstroUDA trains (see :mod:`skyshift.adapt.methods.universal` for what its paper
says). As there, m = 0.5 separates nothing for 2 classes, whose ρ is 0.35: give a smaller one. It was made for encoders
that are trained on other images first: from random weights unknown maps soon lie as close to a prototype as known ones,
and are then drawn to it.

References:
    Saito, Kim, Sclaroff & Saenko 2020, Universal Domain Adaptation through Self-Supervision, arXiv:2002.07953.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.adapt.classifier import TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.gathering import gathered, gathered_constant
from skyshift.adapt.losses.neighbourhood import neighbourhood_clustering
from skyshift.adapt.losses.separation import entropy_separation
from skyshift.adapt.memory_bank import MemoryBank
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError


class Prototypes(nn.Linear):
    """One unit vector a class; logits are their cosines with the features, divided by the temperature.

    Args:
        width: Of the features.
        classes: K.
        temperature: τ.
    """

    def __init__(self, width: int, classes: int, temperature: float) -> None:
        super().__init__(width, classes, bias=False)
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:
        """Logits (n, K), float32, of features (n, width)."""
        with torch.autocast(input.device.type, enabled=False):
            cosine = F.linear(F.normalize(input.float(), dim=1), F.normalize(self.weight.float(), dim=1))
            return cosine / self.temperature


class DANCE(AdaptationMethod):
    """Cross-entropy on prototypes, neighbourhood clustering and entropy separation.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        weight: η.
        temperature: τ.
        margin: m, nats.
    """

    needs = ("target",)
    classification_only = True

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        weight: float = 0.05,
        temperature: float = 0.05,
        margin: float = 0.5,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if not temperature > 0:
            raise SkyshiftError(f"method.temperature must be above 0, not {temperature}")
        width = self.classifier.encoder.width
        self.weight, self.temperature, self.margin = weight, temperature, margin
        self.threshold = math.log(task.outputs) / 2
        self.classifier.head = Prototypes(width, task.outputs, temperature)
        self.bank = MemoryBank(features=width)

    def prepare(self, target_views: Tensor) -> None:
        """Make room in the memory bank.

        Args:
            target_views: (n,) numbers of the target's training views, ascending.
        """
        self.bank.prepare(target_views)

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Supervised loss, clustering and separation; ``separated`` is the share of target maps outside the margin."""
        self.bank.begin(self.step)
        _, _, supervised = source_loss(self, networks, batch)
        features, logits = networks["classifier"](batch["target"], TARGET)
        features = F.normalize(features.float(), dim=1)
        clustering = self._clustering(features, logits, batch["target_view"])
        separation, separated = entropy_separation(logits, self.threshold, self.margin)
        self.bank.put(batch["target_view"], features=features)
        return supervised + self.weight * (clustering + separation), {
            "supervised": supervised,
            "clustering": clustering,
            "separation": separation,
            "separated": separated,
        }

    def _clustering(self, features: Tensor, logits: Tensor, views: Tensor) -> Tensor:
        """Of the whole batch of all processes. Its own maps are compared as they are now, the others from the bank."""
        features, logits, views = gathered(features), gathered(logits), gathered_constant(views)
        known, bank = self.bank.read()
        elsewhere = ~torch.isin(known, views)
        others = torch.cat([features, bank["features"][elsewhere]])
        own = views[:, None] == torch.cat([views, known[elsewhere]])[None]
        return neighbourhood_clustering(features, others, own, logits, self.temperature)
