"""Adaptive batch normalisation: trained on the source, normalised by the target's statistics where that is met.

    source   y = γ (x - μ_s) / σ_s + β
    target   y = γ (x - μ_t) / σ_t + β

The weights, γ and β among them, learn from labelled source maps alone. In every step the encoder also reads the
target's maps, without loss and gradient, so that its batch normalisations learn the target's mean and variance; these
serve when the target is predicted. What shifts and stretches the features of one survey against those of
the other (sensitivity, background, noise) is taken out layer by layer, without any knob to turn. What a class looks
like must stay the same.

The statistics are running averages (momentum of the layers), over all processes. They depend on which classes a batch
of the target holds: in proportions unlike the source's they are off.

References:
    Li, Wang, Shi, Liu & Hou 2016, Revisiting Batch Normalization For Practical Domain Adaptation, arXiv:1603.04779.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skyshift.adapt.classifier import TARGET, Encoder
from skyshift.adapt.domain_norm import DomainBatchNorm2d
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError


class BNAdapt(AdaptationMethod):
    """Adaptive batch normalisation.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder, with batch normalisation of each domain's own (``domain_norm: true``).
        dropout: Share of features that the head forgets in training.

    Raises:
        SkyshiftError: The encoder has no batch normalisation of each domain's own.
    """

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = lambda channels: SmallCNN(channels, domain_norm=True),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        share_affine(self.classifier.encoder)

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The supervised loss on the source; the target is only looked at, before it."""
        with torch.no_grad():
            networks["classifier"](batch["target"], TARGET)
        _, _, loss = source_loss(self, networks, batch)
        return loss, {"supervised": loss}


def share_affine(encoder: Encoder) -> None:
    """Give both domains the γ and β of the source, which alone are trained; statistics stay each domain's own.

    Raises:
        SkyshiftError: The encoder has no layer that knows both domains.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, DomainBatchNorm2d) and layer.domains > TARGET]
    if not layers:
        raise SkyshiftError(
            f"bn_adapt adapts the statistics of batch normalisation, and {type(encoder).__name__} has none of each "
            "domain's own: set domain_norm: true in its init_args, or take an encoder that has (SmallCNN, or "
            "TimmEncoder of a resnet, efficientnet or densenet)"
        )
    for layer in layers:
        if layer.affine:
            layer.weight, layer.bias = nn.Parameter(layer.weight[:1].detach()), nn.Parameter(layer.bias[:1].detach())
