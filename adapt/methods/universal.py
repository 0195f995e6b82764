"""DeepAstroUDA: universal adaptation by adaptive clustering and entropy separation, in any regime of label sets.

    L = L_CE + λ (L_AC + L_ES),    λ = 0.005

    L_CE    cross-entropy on the source, weighted by class (``task.class_weights``)
    L_AC    target maps whose features rank alike are predicted alike, against a memory bank of all target maps
    L_ES    predictions of the target move away from the threshold ρ, outside a margin m

ρ and m are moved by an active tuner when the source is no longer learned better. Batch normalisation of each domain's
own is the encoder's affair (``encoder.domains``): source and target pass through it apart, and say which they are.

The public code of the paper trains DANCE instead, which is :class:`skyshift.adapt.methods.dance.DANCE`.

References:
    Ćiprijanović et al. 2023, DeepAstroUDA: Semi-Supervised Universal Domain Adaptation for Cross-Survey Galaxy
    Morphology Classification and Anomaly Detection, arXiv:2302.02005.
    Chang, You, Seo, Kwak & Han 2019, Domain-Specific Batch Normalization, arXiv:1906.03950.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skyshift.adapt.classifier import TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.losses.clustering import adaptive_clustering
from skyshift.adapt.losses.separation import entropy_separation
from skyshift.adapt.memory_bank import MemoryBank
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.adapt.tuner import ActiveTuner
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError


class Universal(AdaptationMethod):
    """Weighted cross-entropy, adaptive clustering and entropy separation.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        weight: λ.
        top: k, length of the lists of largest features that are compared; 0 for 3 up to 5 classes, 7 beyond.
        margin: m at the start, nats; ``None`` for 0.4 up to 5 classes, 1.3 beyond. Above ½ log K, as for 2 classes or
            for 6 to 13, separation rests until the tuner has lowered it: give a smaller one.
        window: Optimizer steps over which the tuner takes the accuracy on the source.
        patience: Windows without a better one after which it moves ρ and m; 0 never does.
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
        weight: float = 0.005,
        top: int = 0,
        margin: float | None = None,
        window: int = 100,
        patience: int = 3,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        width = self.classifier.encoder.width
        self.weight, self.top = weight, top or (3 if task.outputs <= 5 else 7)
        if not 1 <= self.top <= width:
            raise SkyshiftError(f"method.top is {self.top}; of {width} features that many cannot be the largest")
        self.bank = MemoryBank(features=width, probabilities=task.outputs)
        self.tuner = ActiveTuner(task.outputs, margin, window, patience)

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
        self.tuner.begin(self.step)
        _, outputs, supervised = source_loss(self, networks, batch)
        features, logits = networks["classifier"](batch["target"], TARGET)
        p, views = torch.softmax(logits.float(), dim=1), batch["target_view"]
        known, bank = self.bank.read()
        own = views[:, None] == known[None]
        clustering = adaptive_clustering(p, features, bank["probabilities"], bank["features"], own, self.top)
        separation, separated = entropy_separation(logits, self.tuner.threshold.clone(), self.tuner.margin.clone())
        self.bank.put(views, features=features, probabilities=p)
        self.tuner.see(outputs, batch["source_label"])
        return supervised + self.weight * (clustering + separation), {
            "supervised": supervised,
            "clustering": clustering,
            "separation": separation,
            "separated": separated,
            "threshold": self.tuner.threshold.clone(),
            "margin": self.tuner.margin.clone(),
        }
