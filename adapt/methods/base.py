"""What every adaptation method is: a classifier of maps, trained on a labelled source and an unlabelled target.

A batch names

    source, source_label         labelled maps of the source (batch, channels, h, w), and class numbers or numbers
    target                       unlabelled maps of the target, drawn without regard to the source's
    source_strong, target_strong the same maps once more, changed more strongly, for methods that ask for them
    target_label                 only for methods that ask for ``labelled_target`` (bounds and fine-tuning)

The loop gives each process its share of a step. Losses that couple samples go through
:func:`skyshift.adapt.gathering.gathered`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.adapt.classifier import SOURCE, TARGET, Classifier, Encoder
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.task import Regime, Task, TaskError
from skyshift.engine import Batch, Method

MakeEncoder = Callable[[int], Encoder]
"""Number of channels to an encoder."""

EVERY_REGIME: tuple[Regime, ...] = ("closed", "partial", "open", "open-partial")


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of maps.

    Attributes:
        features: (n, width).
        outputs: (n, outputs): logits, or mean and logarithm of the variance in units of the task's scale.
        unknown: (n,) score of being of no class of the source: larger is more so.
    """

    features: Tensor
    outputs: Tensor
    unknown: Tensor


class AdaptationMethod(Method):
    """A classifier and how it is trained.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.

    Raises:
        TaskError: The method needs classes, and the task is a regression.
    """

    players: tuple[str, ...] = ("classifier",)
    averaged: tuple[str, ...] = ("classifier",)

    needs: tuple[str, ...] = ("target",)
    """What a batch must hold beside ``source`` and ``source_label``: ``target``, ``source_strong``,
    ``target_strong``, ``labelled_target`` (then with ``target_label``)."""

    regimes: tuple[Regime, ...] = EVERY_REGIME
    """Label-set regimes that the method is made for."""

    classification_only: bool = False
    """Whether the method needs classes: a regression is then refused."""

    steps: int = 1
    """Optimizer steps of the whole run, set by the run, for schedules."""

    def __init__(self, channels: int, task: Task, *, encoder: MakeEncoder = SmallCNN, dropout: float = 0.0) -> None:
        super().__init__()
        if self.classification_only and task.kind != "classification":
            raise TaskError(
                f"{type(self).__name__} works on classes, and a regression has none: take source_only, fine_tune, mmd, "
                "dann or adda"
            )
        self.channels, self.task = channels, task
        self.classifier = Classifier(encoder(channels), task.outputs, dropout)
        self.register_buffer("class_weights", torch.tensor(task.weights or [1.0] * task.outputs), persistent=False)

    class_weights: Tensor

    def supervised(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss on labels, a mean over the batch.

            classes   Σ_i w_y(i) · (-log p_i,y(i)) / n
            numbers   ½ mean(s + (y - μ)² e^-s),  s the logarithm of the variance

        The weights are those of the classes (their mean over the source's training maps is 1), and the sum is divided
        by the number of samples, not by the sum of their weights, so that micro-batches and processes add up.

        Args:
            outputs: (n, outputs).
            labels: (n,) class numbers, or numbers in units of the task's scale. Class numbers below 0 do not count.
        """
        outputs = outputs.to(self.class_weights.dtype)  # that of the weights: no loss is taken in half precision
        if self.task.kind == "regression":
            mean, log_variance = outputs[:, 0], outputs[:, 1].clamp(-10.0, 10.0)
            return 0.5 * (log_variance + (labels.float() - mean) ** 2 * torch.exp(-log_variance)).mean()
        known = labels >= 0
        loss = F.cross_entropy(outputs, labels.clamp(min=0), weight=self.class_weights, reduction="none")
        return (loss * known).sum() / len(labels)

    def prepare(self, target_views: Tensor) -> None:
        """Called once before the first step, for methods that remember the target's maps one by one.

        Args:
            target_views: (n,) int64, sorted numbers of the target's training views; batches name theirs in
                ``target_view``.
        """

    @property
    def progress(self) -> float:
        """From 0 at the first step of the run to 1 at its end."""
        return min(1.0, self.step / max(1, self.steps))

    def predict(self, maps: Tensor, domain: int = TARGET) -> Prediction:
        """What the classifier says, in evaluation mode; no gradients.

        Args:
            maps: (n, channels, h, w), scaled.
            domain: :data:`SOURCE` or :data:`TARGET`.
        """
        with torch.no_grad():
            features, outputs = self.classifier(maps, domain)
            return Prediction(features.float(), outputs.float(), self.unknown(features.float(), outputs.float()))

    def unknown(self, features: Tensor, outputs: Tensor) -> Tensor:
        """(n,) score of being of no class of the source: the entropy of the prediction, in nats; 0 for numbers."""
        if self.task.kind == "regression":
            return torch.zeros(len(outputs))
        log_p = F.log_softmax(outputs, dim=1)
        return -(log_p.exp() * log_p).sum(1)


def source_loss(
    method: AdaptationMethod, networks: Mapping[str, nn.Module], batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, outputs and supervised loss of the source maps of a batch."""
    features, outputs = networks["classifier"](batch["source"], SOURCE)
    return features, outputs, method.supervised(outputs, batch["source_label"])
