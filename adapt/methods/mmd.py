"""Distance matching: the classifier learns on the source while the features of both domains are drawn together.

    min  L_s + λ_D D(z_s, z_t) [+ λ_F tr S_w / tr S_b] [+ λ_H mean H(p_t)]

L_s is the loss on the source's labels, z the features before the head, D one of

    unbiased   MMD², U over Gaussian kernels as wide as the data        (:mod:`skyshift.adapt.losses.mmd`)
    biased     the same, V
    merger     the 19 fixed kernels of the galaxy-merger papers
    coral      the difference between covariances                       (:mod:`skyshift.adapt.losses.coral`)
    sinkhorn   debiased optimal transport                               (:mod:`skyshift.adapt.losses.sinkhorn`)

The optional Fisher term (:mod:`skyshift.adapt.losses.fisher`) pulls labelled source features of one class together; the
optional entropy term (:mod:`skyshift.adapt.losses.entropy`) makes predictions on the target certain. The galaxy-merger
papers took weights of 1 (D), 0.01 (Fisher) and 0.05 (entropy).

All of D and the Fisher term are functions of the whole batch, gathered over processes. Micro-batches of an accumulated
step are batches of their own: what couples samples sees each alone, and their mean is taken.

A distance moves whole distributions. Where the two sides hold other classes, or the same ones in other proportions, it
draws a class of one onto another of the other; so the method is for closed label sets.

References:
    Long, Cao, Wang & Jordan 2015, Learning Transferable Features with Deep Adaptation Networks, arXiv:1502.02791.
    Sun & Saenko 2016, Deep CORAL, arXiv:1607.01719.
    Ćiprijanović et al. 2020, Domain Adaptation Techniques for Improved Cross-Domain Study of Galaxy Mergers,
    arXiv:2011.03591; and 2021, DeepMerge II, arXiv:2103.01373.
    Pandya et al. 2025, SIDDA: SInkhorn Dynamic Domain Adaptation, arXiv:2501.14048.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from skyshift.adapt.classifier import TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.gathering import gathered, gathered_constant
from skyshift.adapt.losses.coral import coral
from skyshift.adapt.losses.entropy import entropy
from skyshift.adapt.losses.fisher import fisher
from skyshift.adapt.losses.mmd import mmd_biased, mmd_merger, mmd_unbiased
from skyshift.adapt.losses.sinkhorn import sinkhorn_divergence
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Distance = Literal["unbiased", "biased", "merger", "coral", "sinkhorn"]

DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unbiased": mmd_unbiased,
    "biased": mmd_biased,
    "merger": mmd_merger,
    "coral": coral,
    "sinkhorn": sinkhorn_divergence,
}


class MMD(AdaptationMethod):
    """Distance matching.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        distance: ``unbiased``, ``biased``, ``merger``, ``coral`` or ``sinkhorn``.
        weight: λ_D.
        fisher: λ_F; 0 for no Fisher term.
        entropy: λ_H; 0 for no entropy term.

    Raises:
        SkyshiftError: The distance is unknown, a weight is below 0, or a term that needs classes is asked for in a
            regression.
    """

    regimes = ("closed",)

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        distance: Distance = "unbiased",
        weight: float = 1.0,
        fisher: float = 0.0,
        entropy: float = 0.0,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if distance not in DISTANCES:
            raise SkyshiftError(unknown("distance", distance, DISTANCES))
        for name, value in {"weight": weight, "fisher": fisher, "entropy": entropy}.items():
            if not value >= 0:
                raise SkyshiftError(f"{name} is the weight of a term of the loss, 0 or more, not {value}")
        if task.kind == "regression" and (fisher or entropy):
            raise SkyshiftError("the Fisher and entropy terms need classes: set both to 0 in a regression")
        self.distance, self.weight = distance, weight
        self.fisher_weight, self.entropy_weight = fisher, entropy

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each of its terms before its weight."""
        source, _, supervised = source_loss(self, networks, batch)
        target, outputs = networks["classifier"](batch["target"], TARGET)
        whole = gathered(source)
        distance = DISTANCES[self.distance](whole, gathered(target))
        loss = supervised + self.weight * distance
        parts = {"supervised": supervised, "distance": distance}
        if self.fisher_weight:
            labels = gathered_constant(batch["source_label"])
            parts["fisher"] = fisher(whole, labels, len(self.task.source))
            loss = loss + self.fisher_weight * parts["fisher"]
        if self.entropy_weight:
            parts["entropy"] = entropy(outputs).mean()
            loss = loss + self.entropy_weight * parts["entropy"]
        return loss, parts
