"""Entropy of predictions: pushes the boundary between classes away from unlabelled maps.

    H(p) = -Σ_k p_k log p_k,   0 log 0 = 0

in nats: 0 for a certain prediction, log K for one that knows nothing.

References:
    Grandvalet & Bengio 2004, Semi-supervised Learning by Entropy Minimization, NeurIPS 17.
"""

import torch
from torch import Tensor

SMALLEST_LOG = -100.0
"""log p is kept above this. p log p is then below 10⁻⁴¹, and its gradient is finite where p is 0."""


def entropy(logits: Tensor) -> Tensor:
    """H(softmax(logits)) of each map.

    Args:
        logits: (n, classes); -∞ for classes that are ruled out.

    Returns:
        (n,) in nats, float32 (float64 where that is given), with finite gradients.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = torch.log_softmax(logits, 1).clamp(min=SMALLEST_LOG)
    return -(torch.softmax(logits, 1) * log_p).sum(1)
