"""Pseudo-labels that keep the classes' frequencies, a threshold that follows the classifier, a weight that rises.

    p̃ = normalise(p_t · E[p_s] / E[p_t])          class by class: the targets' mean becomes that of the sources
    c_τ = τ · mean_i max_k p_s,ik                  sure is what is nearly as sure as the sources are
    L_t = mean_i [max_k p̃_ik ≥ c_τ] · H(p̃_i, p(strong view of i))
    μ(t) = ½ - cos(min(π, 2πt/T)) / 2              0 at the start, 1 from the middle of the run
    z = λ z' + (1 - λ) z'',  λ ~ U(0, 1)           source logits in the joint batch, z', and in one of their own, z''

Means are over the batch of all processes; p̃ and c_τ are constants to the gradient.

References:
    Berthelot, Roelofs, Sohn, Carlini & Kurakin 2022, AdaMatch: A Unified Approach to Semi-Supervised Learning and
    Domain Adaptation, ICLR, arXiv:2106.04732.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skyshift.adapt.gathering import gathered_constant

SMALLEST = 1e-6
"""Added to mean probabilities before they divide one another."""


@torch.no_grad()
def aligned(source: Tensor, target: Tensor) -> Tensor:
    """p̃, the pseudo-labels of the targets.

    Args:
        source: (n, classes) logits of source maps.
        target: (m, classes) logits of target maps.

    Returns:
        (m, classes) probabilities.
    """
    p_s, p_t = F.softmax(source.float(), dim=1), F.softmax(target.float(), dim=1)
    wanted, found = gathered_constant(p_s).mean(0), gathered_constant(p_t).mean(0)
    p = p_t * (wanted + SMALLEST) / (found + SMALLEST)
    return p / p.sum(1, keepdim=True)


@torch.no_grad()
def relative_threshold(source: Tensor, share: float) -> Tensor:
    """c_τ.

    Args:
        source: (n, classes) logits of source maps.
        share: τ.

    Returns:
        A scalar.
    """
    return share * gathered_constant(F.softmax(source.float(), dim=1).amax(1)).mean()


def pseudo_label_loss(strong: Tensor, labels: Tensor, threshold: Tensor) -> Tensor:
    """L_t.

    Args:
        strong: (m, classes) logits of the strong views.
        labels: (m, classes) pseudo-labels of the weak views.
        threshold: A scalar; less sure labels do not count.

    Returns:
        A scalar, a mean over all samples, sure or not.
    """
    mask = (labels.amax(1) >= threshold).float()
    return (F.cross_entropy(strong.float(), labels, reduction="none") * mask).mean()


def target_weight(progress: float) -> float:
    """μ(t).

    Args:
        progress: t/T, from 0 to 1.
    """
    return 0.5 - 0.5 * math.cos(min(math.pi, 2.0 * math.pi * progress))


def interpolated(joint: Tensor, alone: Tensor) -> Tensor:
    """Logits between two batches' ones, each at a random place of its own.

    Args:
        joint: (n, classes) z'.
        alone: (n, classes) z''.

    Returns:
        (n, classes).
    """
    return torch.lerp(alone.float(), joint.float(), torch.rand_like(joint, dtype=torch.float32))
