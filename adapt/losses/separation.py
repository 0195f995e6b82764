"""Entropy separation: target maps become sure to be of a known class, or sure to be of none.

With the entropy H_j of the prediction of map j, a threshold ρ and a margin m around it in which nothing is decided

    L = -1/n Σ_j |H_j - ρ| [ |H_j - ρ| > m ],    H = -Σ_k p_k log p_k in nats

Entropies below ρ - m fall further (known), those above ρ + m rise (unknown). H lies between 0 and log K, so that with
ρ = ½ log K nothing is ever separated unless m < ½ log K: m = 0.4 needs at least 3 classes, m = 1.3 at least 14.

References:
    Saito, Kim, Sclaroff & Saenko 2020, Universal Domain Adaptation through Self-Supervision, arXiv:2002.07953.
    Ćiprijanović et al. 2023, DeepAstroUDA, arXiv:2302.02005.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prediction_entropy(logits: Tensor) -> Tensor:
    """Entropy of predictions in nats.

    Args:
        logits: (n, K).

    Returns:
        (n,) float32, finite also where probabilities are 0.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(1)


def entropy_separation(logits: Tensor, threshold: Tensor | float, margin: Tensor | float) -> tuple[Tensor, Tensor]:
    """The loss, a mean over maps.

    Args:
        logits: (n, K) of target maps.
        threshold: ρ, nats.
        margin: m, nats.

    Returns:
        The loss and the share of maps outside the margin, scalars in float32.
    """
    distance = (prediction_entropy(logits) - threshold).abs()
    decided = (distance > margin).float()
    return -torch.mean(distance * decided), decided.mean()
