"""Gradient reversal: the identity forwards, the gradient times -λ backwards.

    R(x) = x,    dR/dx = -λ,    λ(p) = 2 / (1 + e^(-10 p)) - 1

What lies behind the reversal is trained against what lies before it, by one descent of both. λ rises from 0 to 1 over
the progress p of a run, so that noisy early discriminators disturb the features little.

References:
    Ganin & Lempitsky 2015, Unsupervised Domain Adaptation by Backpropagation, ICML, arXiv:1409.7495.
    Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, JMLR 17, arXiv:1505.07818.
"""

import math
from typing import Any

from torch import Tensor
from torch.autograd import Function


class _Reversal(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse(values: Tensor, strength: float) -> Tensor:
    """The values themselves, whose gradient is ``-strength`` times what comes back.

    Args:
        values: Of any shape.
        strength: λ.
    """
    return _Reversal.apply(values, strength)


def reversal_strength(progress: float) -> float:
    """λ(p), from 0 at the start of a run towards 1.

    Args:
        progress: p, from 0 to 1.
    """
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0
