"""DANN: features from which a discriminator cannot tell the domains; CDAN: nor with the prediction beside them.

    min_C  E_s[ℓ(C(x), y)] - λ(p) L_D,      min_D  L_D

L_D is the cross-entropy of the domains, of the features f (DANN) or of f ⊗ p (CDAN), there also weighted by the
certainty of each prediction (CDAN+E). The classifier's gradient comes through a reversal, the discriminator learns from
the same features as a player of its own: both step from the same weights, which is what one descent through the
reversal does.

It assumes that the classes are as frequent in the target as in the source: where they are not, features that agree
mix classes.

References:
    Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, JMLR 17, arXiv:1505.07818.
    Long, Cao, Wang & Jordan 2018, Conditional Adversarial Domain Adaptation, NeurIPS, arXiv:1705.10667.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skyshift.adapt.classifier import TARGET
from skyshift.adapt.discriminator import DomainDiscriminator
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.losses.conditioning import entropy_weights, multilinear
from skyshift.adapt.losses.domain_adversarial import domain_loss
from skyshift.adapt.losses.reversal import reversal_strength, reverse
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch, frozen
from skyshift.errors import SkyshiftError


class DANN(AdaptationMethod):
    """Adversarial adaptation by gradient reversal.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        hidden: Width of the discriminator's hidden layers.
        weight: Factor on λ(p), the strength of the reversal.
        conditional: Show the discriminator features times predictions (CDAN). Needs classes.
        entropy: Weigh samples by the certainty of their prediction (CDAN+E). Needs ``conditional``.

    Raises:
        SkyshiftError: The weight is negative, or the options do not go together or with the task.
    """

    players = ("classifier", "discriminator")
    regimes = ("closed",)

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        hidden: int = 256,
        weight: float = 1.0,
        conditional: bool = False,
        entropy: bool = False,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if weight < 0:
            raise SkyshiftError(f"weight is {weight:g}; the reversal's strength may not be negative")
        if entropy and not conditional:
            raise SkyshiftError("entropy weighs samples for the conditional discriminator: set conditional to true")
        if conditional and task.kind == "regression":
            raise SkyshiftError("conditional needs classes, the task is a regression: set conditional to false")
        self.weight, self.conditional, self.entropy = weight, conditional, entropy
        self.classification_only = conditional
        width = self.classifier.encoder.width * (task.outputs if conditional else 1)
        self.discriminator = DomainDiscriminator(width, hidden)

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """The supervised loss, and what the discriminator sees of each domain."""
        features, outputs, supervised = source_loss(self, networks, batch)
        target_features, target_outputs = networks["classifier"](batch["target"], TARGET)
        shared = {"supervised": supervised, "source": features, "target": target_features}
        if self.conditional:
            shared |= {
                "source": multilinear(features, outputs),
                "target": multilinear(target_features, target_outputs),
            }
        if self.entropy:
            shared |= {
                "source_weights": entropy_weights(outputs),
                "target_weights": entropy_weights(target_outputs),
            }
        return shared

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The classifier's loss, of which the part of the domains is reversed; or the discriminator's."""
        if player == "discriminator":
            return self._domain_loss(networks[player], shared["source"].detach(), shared["target"].detach(), shared), {}
        strength = self.weight * reversal_strength(self.progress)
        with frozen(self.discriminator):
            reversed_pair = (reverse(shared["source"], strength), reverse(shared["target"], strength))
            domain = self._domain_loss(self.discriminator, *reversed_pair, shared)
        supervised = shared["supervised"]
        parts = {"supervised": supervised, "domain": domain, "reversal": supervised.new_tensor(strength)}
        return supervised + domain, parts

    def _domain_loss(
        self, discriminator: nn.Module, source: Tensor, target: Tensor, shared: Mapping[str, Tensor]
    ) -> Tensor:
        logits = discriminator(torch.cat([source, target]))
        weights = shared.get("source_weights"), shared.get("target_weights")
        return domain_loss(logits[: len(source)], logits[len(source) :], *weights)
