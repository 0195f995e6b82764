"""Fine-tuning: the classifier learns on the source, then on the few maps of the target that have labels.

    min E_source[ℓ(f(x), y)]    for a share of the steps, or in an earlier run
    min E_target[ℓ(f(x), y)]    from there, over the labelled maps

It sees labels of the target and is no unsupervised adaptation: compare it with others that see as many.

A few maps say little about many weights. So only the head and the last n blocks of the encoder may be freed, and each
block may learn more slowly than the one behind it (Howard & Ruder 2018),

    rate of block l = learning rate · d^(distance from the head),    d ≤ 1; the head has distance 0, the last block 1

with rate 0 for blocks that stay as they are (their batch normalisations, if they have some, go on following the maps).
Rates hold for a whole run. Freed blocks and layer-wise rates therefore start from ``pretrained``, the folder of an
earlier run, and not from the same run's own start, in which all blocks have to learn.

References:
    Yosinski, Clune, Bengio & Lipson 2014, How transferable are features in deep neural networks?, arXiv:1411.1792.
    Howard & Ruder 2018, Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from skyshift.adapt.adapter import Adaptation, find_adaptation
from skyshift.adapt.classifier import TARGET
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.methods.base import AdaptationMethod, MakeEncoder, source_loss
from skyshift.adapt.task import Task
from skyshift.checkpoint import CheckpointError, load_average, load_tensors
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError


class FineTune(AdaptationMethod):
    """Source first, then labelled maps of the target.

    Args:
        channels: Of the maps.
        task: What is learned.
        encoder: Makes the encoder.
        dropout: Share of features that the head forgets in training.
        pretrain: Share of the steps that are trained on the source; by default half, and none with ``pretrained``.
        pretrained: Run or checkpoint of an adaptation (of any method, on the same classes and encoder) whose classifier
            training begins with; empty to begin anew.
        blocks: How many blocks of the encoder are freed, from its end; 0 for the head alone, by default all.
        rate_decay: d, the rate of a block over that of the one behind it.

    Raises:
        SkyshiftError: A number is out of range, or freed blocks or layer-wise rates are asked for in a run that trains
            on the source first.
    """

    needs = ("labelled_target",)
    regimes = ("closed", "partial")

    def __init__(
        self,
        channels: int,
        task: Task,
        *,
        encoder: MakeEncoder = SmallCNN,
        dropout: float = 0.0,
        pretrain: float | None = None,
        pretrained: str = "",
        blocks: int | None = None,
        rate_decay: float = 1.0,
    ) -> None:
        super().__init__(channels, task, encoder=encoder, dropout=dropout)
        self.pretrain = (0.0 if pretrained else 0.5) if pretrain is None else pretrain
        self.pretrained, self.blocks, self.rate_decay = pretrained, blocks, rate_decay
        count = len(self.classifier.encoder.blocks())
        if not 0 <= self.pretrain <= 1 or not 0 < rate_decay <= 1:
            raise SkyshiftError(
                f"pretrain is a share from 0 to 1 and rate_decay a factor above 0, at most 1, not {pretrain} and "
                f"{rate_decay}"
            )
        if blocks is not None and not 0 <= blocks <= count:
            raise SkyshiftError(
                f"blocks is {blocks}, and this encoder has {count}: free from 0 (the head alone) to {count}"
            )
        if self.pretrain and (blocks is not None or rate_decay < 1):
            raise SkyshiftError(
                "blocks and rate_decay hold for the whole run, and this one trains on the source first, where every "
                "block has to learn: train a run of source_only, and give its folder as pretrained"
            )
        self._distance = self._distances()

    def _distances(self) -> dict[str, int]:
        """Distance of every parameter of the classifier from its head; what lies in no block goes with the first."""
        blocks = self.classifier.encoder.blocks()
        behind = {id(p): len(blocks) - i for i, block in enumerate(blocks) for p in block.parameters()}
        head = {id(p): 0 for p in self.classifier.head.parameters()}
        return {name: {**behind, **head}.get(id(p), len(blocks)) for name, p in self.classifier.named_parameters()}

    def rate_scale(self, player: str, parameter: str) -> float:
        """Rate decay to the power of the distance from the head; 0 for blocks that stay as they are."""
        distance = self._distance[parameter]
        freed = self.blocks is None or distance <= self.blocks
        return self.rate_decay**distance if freed else 0.0

    def prepare(self, target_views: Tensor) -> None:
        """Begin with the classifier of the earlier run: its averaged weights, where it has some.

        Raises:
            CheckpointError: There is no checkpoint, it is damaged, or of other classes or another encoder.
        """
        if not self.pretrained:
            return
        folder = find_adaptation(self.pretrained)
        task = Adaptation.read(folder).task
        if (task.kind, task.source) != (self.task.kind, self.task.source):
            raise CheckpointError(
                f"pretrained: {folder} learned {_described(task)}, this run learns {_described(self.task)}; the same "
                "classes in the same order are needed (task.source)"
            )
        tensors = load_average(folder) or load_tensors(folder / "model.safetensors")[0]
        mine = {k.removeprefix("classifier."): v for k, v in tensors.items() if k.startswith("classifier.")}
        try:
            self.classifier.load_state_dict(mine)
        except RuntimeError as error:
            raise CheckpointError(
                f"pretrained: the classifier of {folder} is another than this run's; take the same encoder and "
                f"channels ({error})"
            ) from None

    @property
    def on_source(self) -> bool:
        """Whether the current step is trained on the source."""
        return self.step < round(self.pretrain * self.steps)

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The supervised loss, on the side whose turn it is."""
        if self.on_source:
            _, _, loss = source_loss(self, networks, batch)
        else:
            _, outputs = networks["classifier"](batch["target"], TARGET)
            loss = self.supervised(outputs, batch["target_label"])
        return loss, {"supervised": loss}


def _described(task: Task) -> str:
    return f"the classes {', '.join(task.source)}" if task.kind == "classification" else "a regression"
