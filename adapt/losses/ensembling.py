"""A student that is to agree with its teacher where the teacher is sure, and to use all classes.

    L_con = mean_i [max_k q_ik > c] · mean_k (p_ik - q_ik)²
    L_bal = m Σ_k BCE(p̄_k, 1/K),   BCE(a, b) = -b log a - (1 - b) log(1 - a)

p is the student's prediction, q the teacher's for another view of the same map, p̄ the mean of p over the batch of all
processes, m the share of that batch of which the teacher is sure, K the number of classes. The teacher is a constant.

References:
    French, Mackiewicz & Fisher 2018, Self-ensembling for Visual Domain Adaptation, ICLR, arXiv:1706.05208.
"""

import torch.nn.functional as F
from torch import Tensor

from skyshift.adapt.gathering import gathered, gathered_constant

SMALLEST = 1e-6
"""Added inside logarithms."""


def confident(teacher: Tensor, threshold: float) -> Tensor:
    """Of which samples the teacher is sure.

    Args:
        teacher: (n, classes) logits.
        threshold: c, a probability.

    Returns:
        (n,) ones and zeros.
    """
    return (F.softmax(teacher.detach().float(), dim=1).amax(1) > threshold).float()


def consistency(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """L_con.

    Args:
        student: (n, classes) logits.
        teacher: (n, classes) logits, constants.
        mask: (n,) ones where the teacher is sure, else zeros.

    Returns:
        A scalar, a mean over all samples, sure or not.
    """
    p, q = F.softmax(student.float(), dim=1), F.softmax(teacher.detach().float(), dim=1)
    return ((p - q).square().mean(1) * mask).mean()


def class_balance(student: Tensor, mask: Tensor) -> Tensor:
    """L_bal of the whole batch, the same on every process.

    Args:
        student: (n, classes) logits of one process's share.
        mask: (n,) ones where the teacher is sure, else zeros.

    Returns:
        A scalar.
    """
    mean = gathered(F.softmax(student.float(), dim=1)).mean(0)
    wanted = 1.0 / len(mean)
    loss = -(wanted * (mean + SMALLEST).log() + (1.0 - wanted) * (1.0 - mean + SMALLEST).log())
    return loss.sum() * gathered_constant(mask).mean()
