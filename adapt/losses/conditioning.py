"""What CDAN shows its discriminator: features together with the prediction, and how much each sample counts.

    h = f ⊗ p             the multilinear map: one copy of the features a class, times the class's probability
    w = (1 + e^(-H(p))) / mean(1 + e^(-H(p)))      easy samples, of small entropy H, count up to twice

p and w are constants to the gradient, as in the authors' library. The product is taken whole, not through random
projections, which the authors take beyond 4096 of its numbers.

References:
    Long, Cao, Wang & Jordan 2018, Conditional Adversarial Domain Adaptation, NeurIPS, arXiv:1705.10667.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from skyshift.adapt.gathering import gathered_constant


def multilinear(features: Tensor, logits: Tensor) -> Tensor:
    """Features times probabilities.

    Args:
        features: (n, width); the gradient goes to these alone.
        logits: (n, classes).

    Returns:
        (n, classes × width), class by class.
    """
    p = F.softmax(logits.detach().float(), dim=1)
    return (p[:, :, None] * features.float()[:, None, :]).flatten(1)


@torch.no_grad()
def entropy_weights(logits: Tensor) -> Tensor:
    """Weights of one domain's samples, of mean 1 over the batch of all processes.

    Args:
        logits: (n, classes).

    Returns:
        (n,), without gradient.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    entropy = -(log_p.exp() * log_p).sum(1)
    weights = 1.0 + torch.exp(-entropy)
    return weights / gathered_constant(weights).mean()
