"""PatchNCE: a patch of the translated map is to be told by its features from all patches of the source but its own.

For unit vectors q_i (of the translated map, the queries) and k_i (of the source, the keys) at the same N places i

    L = -1/N Σ_i log [ exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) ]

The negatives j ≠ i are of the same map. Features that say nothing have L = log N, aligned ones of N different patches
L → 0 as τ → 0. Keys carry no gradient, as published.

References:
    Park, Efros, Zhang & Zhu 2020, Contrastive Learning for Unpaired Image-to-Image Translation, arXiv:2007.15651.
    Oord, Li & Vinyals 2018, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(query: Tensor, key: Tensor, temperature: float = 0.07) -> Tensor:
    """The loss, a mean over maps and patches.

    Args:
        query: (batch, patches, dimensions), unit vectors.
        key: The same of the source, at the same places.
        temperature: τ.

    Returns:
        Scalar, float32.
    """
    with torch.autocast(query.device.type, enabled=False):  # differences of 0.07 are too fine for half precision
        logits = query.float() @ key.detach().float().transpose(1, 2) / temperature
        own = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        return F.cross_entropy(logits.flatten(0, 1), own.flatten())


def sample_patches(features: Tensor, places: Tensor) -> Tensor:
    """Features (batch, channels, h, w) at flat places (patches,) as (batch, patches, channels)."""
    return features.flatten(2)[:, :, places].transpose(1, 2)
