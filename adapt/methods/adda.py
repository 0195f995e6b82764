"""ADDA: first a classifier of the source; then a target encoder, started from the source's, that passes for it.

    up to step s T      min_C  E_s[ℓ(C(x), y)]                        C = head ∘ encoder
    from there on       M_s ← encoder, frozen with the head;  M_t ← encoder
                        min_D  L_D(D(M_s(x_s)), D(M_t(x_t))),      min_{M_t}  mean softplus(-D(M_t(x_t)))

Targets are classified by the head on M_t, sources by the head on M_s. The classifier is one player throughout: at the
turn a copy of it is laid aside as the frozen source, and its encoder goes on as M_t. Whoever has nothing to learn in a
phase has the loss 0.

It assumes that the classes are as frequent in the target as in the source. Nothing ties M_t to the classes: a learning
rate that is too large for the second phase swaps them.

References:
    Tzeng, Hoffman, Saenko & Darrell 2017, Adversarial Discriminative Domain Adaptation, CVPR, arXiv:1702.05464.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skyshift.adapt.classifier import SOURCE, TARGET
from skyshift.adapt.discriminator import DomainDiscriminator
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.losses.domain_adversarial import confusion_loss, domain_loss
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, Prediction, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch, frozen
from skyshift.errors import SkyshiftError


class ADDA(AdaptationMethod):
    """Adversarial adaptation of a target encoder.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder, without batch normalisation of each domain's own: the two encoders are that.
        dropout: Share of features that the head forgets in training.
        hidden: Width of the discriminator's hidden layers.
        pretrain: Share of the steps that train on the source.

    Raises:
        SkyshiftError: The share is not between 0 and 1, or the encoder tells the domains apart itself.
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
        pretrain: float = 0.5,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if not 0 < pretrain < 1:
            raise SkyshiftError(f"pretrain is {pretrain:g}; it is the share of the steps on the source, 0 < share < 1")
        if self.classifier.encoder.domains:
            raise SkyshiftError(
                "ADDA has an encoder for each domain: take one without batch normalisation of each domain's own"
            )
        self.pretrain = pretrain
        self.source = copy.deepcopy(self.classifier).requires_grad_(False).eval()
        self.discriminator = DomainDiscriminator(self.classifier.encoder.width, hidden)
        self.register_buffer("turned", torch.tensor(False))

    turned: Tensor
    """Whether the source is frozen and the target encoder is trained."""

    def train(self, mode: bool = True) -> "ADDA":
        """Training mode for all but the frozen source, whose batch normalisation stays as it is."""
        super().train(mode)
        self.source.eval()
        return self

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Turn when it is time; features, and the loss on labels or what the discriminator has to tell apart."""
        if not self.turned and self.step >= round(self.pretrain * self.steps):
            self.source.load_state_dict(self.classifier.state_dict())
            self.turned.fill_(True)
        if not self.turned:
            features, _, supervised = source_loss(self, networks, batch)
            return {"features": features, "supervised": supervised}
        features, outputs = networks["classifier"](batch["target"], SOURCE)
        with torch.no_grad():
            wanted, _ = self.source(batch["source"], SOURCE)
        return {"features": features, "idle": 0.0 * outputs.float().sum(), "wanted": wanted}

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one player in this phase, 0 where it is idle."""
        features = shared["features"]
        if player == "discriminator":
            if "wanted" not in shared:
                return 0.0 * networks[player](features.detach()).float().sum(), {}
            logits = networks[player](torch.cat([shared["wanted"], features.detach()]))
            return domain_loss(*logits.split([len(shared["wanted"]), len(features)])), {}
        if "wanted" not in shared:
            supervised = shared["supervised"]
            return supervised, {"supervised": supervised, "confusion": torch.zeros_like(supervised)}
        with frozen(self.discriminator):
            confusion = confusion_loss(self.discriminator(features))
        return confusion + shared["idle"], {"supervised": torch.zeros_like(confusion), "confusion": confusion}

    def predict(self, maps: Tensor, domain: int = TARGET) -> Prediction:
        """Targets by the target's encoder, sources by the source's, both by the head of the source."""
        if not self.turned:
            return super().predict(maps, SOURCE)
        with torch.no_grad():
            encoder = self.source.encoder if domain == SOURCE else self.classifier.encoder
            features = encoder(maps, SOURCE).float()
            outputs = self.source.head(features).float()
            return Prediction(features, outputs, self.unknown(features, outputs))
