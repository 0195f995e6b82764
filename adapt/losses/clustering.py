"""Adaptive clustering: target maps whose features rank alike are to be predicted alike.

Two maps are taken to be of one cluster where their k largest features are the same ones (in any order): ranks are kept
by changes of brightness or contrast that move the values. With the class probabilities p_j of a target map j and p_i
of map i of the memory bank

    L = -1/n Σ_j 1/N_j Σ_{i ≠ j} s_ij log p_iᵀp_j + (1 - s_ij) log(1 - p_iᵀp_j),
    s_ij = 1 where top-k(z_i) = top-k(z_j), else 0

with N_j the number of maps in the bank beside j itself. No label of the target is used, and no class of the source has
to be among the clusters, so that unknown maps gather as well. What is in the bank carries no gradient. The published
loss is the sum over pairs; the mean is taken here, so that weights do not depend on the size of the bank, and
micro-batches and processes add up.

References:
    Ćiprijanović et al. 2023, DeepAstroUDA, arXiv:2302.02005 (k = 3 for 3 classes, 7 for 10).
    Han et al. 2020, Automatically Discovering and Learning New Visual Categories with Ranking Statistics,
    arXiv:2002.05714.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def same_ranks(features: Tensor, others: Tensor, top: int) -> Tensor:
    """Whether the ``top`` largest features are the same ones, whatever their order.

    Args:
        features: (n, width).
        others: (m, width).
        top: k, at most ``width``.

    Returns:
        (n, m) bool.
    """
    both = torch.cat([features.detach(), others.detach()]).float()
    ranks = both.topk(top, dim=1).indices.sort(dim=1).values
    _, group = torch.unique(ranks, dim=0, return_inverse=True)
    return group[: len(features), None] == group[None, len(features) :]


def adaptive_clustering(
    probabilities: Tensor,
    features: Tensor,
    bank_probabilities: Tensor,
    bank_features: Tensor,
    own: Tensor,
    top: int = 3,
) -> Tensor:
    """The loss, a mean over maps of the mean over their pairs.

    Args:
        probabilities: (n, classes) of target maps.
        features: (n, width) of the same.
        bank_probabilities: (m, classes) of the memory bank.
        bank_features: (m, width).
        own: (n, m) bool, the pairs of a map with itself, which do not count.
        top: k.

    Returns:
        Scalar, float32; 0 where there are no pairs.
    """
    with torch.autocast(probabilities.device.type, enabled=False):
        alike = same_ranks(features, bank_features, top).float()
        agreement = (probabilities.float() @ bank_probabilities.detach().float().T).clamp(0.0, 1.0)
        # Its logarithms end at -100, so that predictions that are sure give a finite loss.
        loss = F.binary_cross_entropy(agreement, alike, reduction="none")
        pairs = ~own
        return ((loss * pairs).sum(1) / pairs.sum(1).clamp(min=1)).mean()
