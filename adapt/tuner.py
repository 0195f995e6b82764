"""The active tuner of entropy separation: it moves ρ and m while training, when the source is no longer learned better.

After every ``window`` optimizer steps the accuracy on the source maps of the window is compared with the best so far.
``patience`` windows in a row without a better one are a standstill; then the next of the steps +0.3, -0.3, +0.5, -0.5
is tried, added to both ρ and m. Where accuracy becomes better than ever the values that did so are kept, and the next
standstill starts from them; else it starts from the old ones. Labels of the target are never looked at. Accuracy that
is perfect moves nothing, for no value could then be told from a better one.

    ρ₀ = ½ log K,    m₀ = 0.4 for K ≤ 5 classes, else 1.3;    0 ≤ ρ ≤ log K, m ≥ 0

References:
    Ćiprijanović et al. 2023, DeepAstroUDA, arXiv:2302.02005.
"""

import math

import torch
from torch import Tensor, nn

from skyshift.adapt.gathering import gathered_constant
from skyshift.errors import SkyshiftError

STEPS = (0.3, -0.3, 0.5, -0.5)
"""What is added to ρ and m, in turn, nats."""


class ActiveTuner(nn.Module):
    """ρ and m, and what has been seen of the source. All are buffers, so that a resumed run goes on exactly.

    Args:
        classes: K.
        margin: m₀; ``None`` for the published one.
        window: Optimizer steps over which accuracy is taken.
        patience: Windows without a better accuracy that make a standstill; 0 never moves anything.
    """

    threshold: Tensor
    margin: Tensor
    kept: Tensor
    best: Tensor
    idle: Tensor
    trial: Tensor
    counts: Tensor

    def __init__(self, classes: int, margin: float | None = None, window: int = 100, patience: int = 3) -> None:
        super().__init__()
        if window < 1 or patience < 0:
            raise SkyshiftError(f"the tuner needs window ≥ 1 and patience ≥ 0, not {window} and {patience}")
        self.window, self.patience, self.highest = window, patience, math.log(classes)
        start = (0.4 if classes <= 5 else 1.3) if margin is None else margin
        self.register_buffer("threshold", torch.tensor(self.highest / 2))
        self.register_buffer("margin", torch.tensor(float(start)))
        self.register_buffer("kept", torch.tensor([self.highest / 2, start]))
        self.register_buffer("best", torch.tensor(-1.0))
        self.register_buffer("idle", torch.tensor(0))
        self.register_buffer("trial", torch.tensor(0))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))  # right, seen
        self._step = -1

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Close a window where one is full; call it before ρ and m are read.

        Args:
            step: Number of the optimizer step.
        """
        if self.patience and step != self._step and step % self.window == 0 and int(self.counts[1]):
            right, seen = self.counts.tolist()
            self._judge(right / seen)
            self.counts.zero_()
        self._step = step

    @torch.no_grad()
    def see(self, outputs: Tensor, labels: Tensor) -> None:
        """Count what the network got right, on all processes.

        Args:
            outputs: (n, K) logits of source maps.
            labels: (n,) their classes; those below 0 do not count.
        """
        known = labels >= 0
        right = known & (outputs.argmax(1) == labels)
        self.counts += gathered_constant(torch.stack([right.sum(), known.sum()])[None]).sum(0)

    def _judge(self, accuracy: float) -> None:
        if accuracy > float(self.best):
            self.best.fill_(accuracy)
            self.kept.copy_(torch.stack([self.threshold, self.margin]))
            self.idle.zero_()
            return
        self.idle += 1
        if int(self.idle) < self.patience or float(self.best) >= 1.0:
            return
        change = STEPS[int(self.trial) % len(STEPS)]
        self.threshold.copy_((self.kept[0] + change).clamp(0.0, self.highest))
        self.margin.copy_((self.kept[1] + change).clamp(min=0.0))
        self.trial += 1
        self.idle.zero_()
