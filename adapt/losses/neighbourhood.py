"""Neighbourhood clustering: every target map is to be near to few others, or to one prototype of a known class.

For unit vectors f_i of target maps, V_j of the other target maps (the memory bank, the batch's own as they are now) and
w_k, prototypes of the K known classes

    p_ij = exp(F_jᵀf_i / τ) / Z_i,  F = [V, w],  j ≠ i,    L = -1/n Σ_i Σ_j p_ij log p_ij

A small entropy means few neighbours. A map of a known class is drawn to its prototype or to neighbours that are, one of
no known class to neighbours of its own kind: nothing forces it to a prototype, which is why no regime has to be known.

References:
    Saito, Kim, Sclaroff & Saenko 2020, Universal Domain Adaptation through Self-Supervision (DANCE), arXiv:2002.07953.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from skyshift.adapt.losses.separation import prediction_entropy


def neighbourhood_clustering(
    features: Tensor, others: Tensor, own: Tensor, logits: Tensor, temperature: float = 0.05
) -> Tensor:
    """The loss, a mean over maps.

    Args:
        features: (n, width) of target maps, of any length.
        others: (m, width) of what may be their neighbours.
        own: (n, m) bool, the pairs of a map with itself, which are left out.
        logits: (n, K) similarities to the prototypes, divided by the temperature already.
        temperature: τ.

    Returns:
        Scalar, float32, between 0 and log(m + K).
    """
    with torch.autocast(features.device.type, enabled=False):  # differences of 0.05 are too fine for half precision
        near = F.normalize(features.float(), dim=1) @ F.normalize(others.float(), dim=1).T / temperature
        # The least similarity there is, less a hundred: its probability is 0 in float32, its logarithm finite.
        near = near.masked_fill(own, -1.0 / temperature - 100.0)
        return prediction_entropy(torch.cat([logits.float(), near], dim=1)).mean()
