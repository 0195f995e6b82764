"""Self-ensembling: a student that learns the source, and agrees on targets with the running average of itself.

    min_C  E_s[ℓ(C(x), y)] + w (L_con + b L_bal),      C̄ ← d C̄ + (1 - d) C  once a step

The student sees the stronger view of a target map, the teacher C̄ the weaker one. L_con counts where the teacher is
sure (> c = .968), L_bal keeps it from giving all maps to one class. w = 3, b = .005 as published; d = .999, less in the
first steps, min(d, (1 + n)/(10 + n)) at step n. Predictions are the teacher's. Its weights are averaged, but its batch
normalisation is of the target maps that it sees.

References:
    French, Mackiewicz & Fisher 2018, Self-ensembling for Visual Domain Adaptation, ICLR, arXiv:1706.05208.
    Tarvainen & Valpola 2017, Mean teachers are better role models, NeurIPS, arXiv:1703.01780.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skyshift.adapt.classifier import SOURCE, TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.losses.ensembling import class_balance, confident, consistency
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, Prediction, source_loss
from skyshift.adapt.task import Task
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError


class SelfEnsembling(AdaptationMethod):
    """A student and its mean teacher.

    Args:
        channels: Of the maps.
        task: What is learned, classes.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        decay: d, of the teacher, a step.
        confidence: c, the probability above which the teacher is believed.
        balance: b, weight of the class balance, relative to that of the consistency.
        weight: w, of all that has no label.

    Raises:
        SkyshiftError: A weight is negative, or a share not between 0 and 1.
    """

    averaged = ()  # the teacher is the average
    needs = ("target", "target_strong")
    regimes = ("closed",)
    classification_only = True

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        decay: float = 0.999,
        confidence: float = 0.968,
        balance: float = 0.005,
        weight: float = 3.0,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        if balance < 0 or weight < 0:
            raise SkyshiftError(f"balance is {balance:g} and weight {weight:g}; neither may be negative")
        if not 0 <= decay < 1 or not 0 <= confidence < 1:
            raise SkyshiftError(f"decay is {decay:g} and confidence {confidence:g}; both are from 0 to below 1")
        self.decay, self.confidence, self.balance, self.weight = decay, confidence, balance, weight
        self.teacher = copy.deepcopy(self.classifier).requires_grad_(False)
        self.register_buffer("seen", torch.tensor(0))

    seen: Tensor
    """The step for which the teacher was last moved."""

    @torch.no_grad()
    def move_teacher(self) -> None:
        """Once a step: towards the student as the last step has left it."""
        if self.step <= int(self.seen):
            return
        rate = 1.0 - min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.classifier.parameters()), rate)
        self.seen.fill_(self.step)

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels, consistency and class balance."""
        self.move_teacher()
        _, _, supervised = source_loss(self, networks, batch)
        _, student = networks["classifier"](batch["target_strong"], TARGET)
        with torch.no_grad():
            _, teacher = self.teacher(batch["target"], TARGET)
        mask = confident(teacher, self.confidence)
        agreement, balance = consistency(student, teacher, mask), class_balance(student, mask)
        loss = supervised + self.weight * (agreement + self.balance * balance)
        parts = {"supervised": supervised, "consistency": agreement, "balance": balance, "confident": mask.mean()}
        return loss, parts

    def predict(self, maps: Tensor, domain: int = TARGET) -> Prediction:
        """What the teacher says; of sources the student where each domain has its own batch normalisation.

        The teacher sees targets alone, so that its normalisation of sources would be untrained.
        """
        by_student = domain == SOURCE and self.classifier.encoder.domains
        with torch.no_grad():
            features, outputs = (self.classifier if by_student else self.teacher)(maps, domain)
            return Prediction(features.float(), outputs.float(), self.unknown(features.float(), outputs.float()))
