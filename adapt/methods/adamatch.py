"""AdaMatch: labels on two views of the source, aligned pseudo-labels from weak to strong views of the target.

    min_C  ½ (ℓ(z_s,weak, y) + ℓ(z_s,strong, y)) + μ(t) L_t

Pseudo-labels are aligned to the frequencies that the source's predictions have, so they assume that the classes are as
frequent in both. Those that are surer than c_τ = .9 times the mean certainty of the source count. All four views pass
in one batch; the sources pass once more alone, with running statistics at rest, and their logits are drawn between the
two: this ties the batch normalisation of the domains. Without batch normalisation both passes are the same, and with
one of each domain's own there is no joint batch, so the second pass is left out.

Two details are the authors' code's: the ½ before the labels, and the 10⁻⁶ in the alignment. Where that code keeps
running means of the predictions, the means here are of the batch, as in the paper.

References:
    Berthelot, Roelofs, Sohn, Carlini & Kurakin 2022, AdaMatch: A Unified Approach to Semi-Supervised Learning and
    Domain Adaptation, ICLR, arXiv:2106.04732.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skyshift.adapt.classifier import SOURCE, TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.losses.adamatch import (
    aligned,
    interpolated,
    pseudo_label_loss,
    relative_threshold,
    target_weight,
)
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder
from skyshift.adapt.task import Task
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError


class AdaMatch(AdaptationMethod):
    """Pseudo-labels with aligned frequencies.

    Args:
        channels: Of the maps.
        task: What is learned, classes.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        threshold: τ, the share of the source's mean certainty above which a pseudo-label counts.
        weight: Factor on μ(t).

    Raises:
        SkyshiftError: The weight is negative, or the threshold not between 0 and 1.
    """

    needs = ("target", "source_strong", "target_strong")
    regimes = ("closed",)
    classification_only = True

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        threshold: float = 0.9,
        weight: float = 1.0,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if weight < 0 or not 0 <= threshold <= 1:
            raise SkyshiftError(
                f"weight is {weight:g} and threshold {threshold:g}; they are not negative, the threshold at most 1"
            )
        self.threshold, self.weight = threshold, weight
        normalised = any(isinstance(part, _BatchNorm) for part in self.classifier.modules())
        self.interpolates = normalised and not self.classifier.encoder.domains

    def outputs(self, classifier: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (2n, classes) and (2m, classes) of the weak views of source and target, then of the strong ones."""
        source = torch.cat([batch["source"], batch["source_strong"]])
        target = torch.cat([batch["target"], batch["target_strong"]])
        if self.classifier.encoder.domains:
            return classifier(source, SOURCE)[1], classifier(target, TARGET)[1]
        joint = classifier(torch.cat([source, target]), SOURCE)[1]
        outputs, target_outputs = joint[: len(source)], joint[len(source) :]
        if self.interpolates:
            with resting_statistics(self.classifier):
                outputs = interpolated(outputs, classifier(source, SOURCE)[1])
        return outputs, target_outputs

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels on both views of the source, pseudo-labels on the strong view of the target."""
        source, target = self.outputs(networks[player], batch)
        weak, strong = source.chunk(2)
        target_weak, target_strong = target.chunk(2)
        labels = batch["source_label"]
        supervised = 0.5 * (self.supervised(weak, labels) + self.supervised(strong, labels))
        pseudo_labels, threshold = aligned(weak, target_weak), relative_threshold(weak, self.threshold)
        pseudo = pseudo_label_loss(target_strong, pseudo_labels, threshold)
        parts = {
            "supervised": supervised,
            "pseudo": pseudo,
            "threshold": threshold,
            "confident": (pseudo_labels.amax(1) >= threshold).float().mean(),
        }
        return supervised + self.weight * target_weight(self.progress) * pseudo, parts


@contextmanager
def resting_statistics(network: nn.Module) -> Iterator[None]:
    """Context in which batch normalisation normalises by its batch, and its running statistics rest."""
    parts = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    momenta = [part.momentum for part in parts]
    for part in parts:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(parts, momenta, strict=True):
            part.momentum = momentum
