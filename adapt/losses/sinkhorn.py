"""Sinkhorn divergence: optimal transport between two samples of features, blurred, and without the bias of the blur.

    OT_ε(x, y) = min_π Σ_ij π_ij c_ij + ε KL(π | 1/nm),   c_ij = ½ |x_i - y_j|²,   π with marginals 1/n and 1/m
    S_ε(x, y)  = OT_ε(x, y) - ½ OT_ε(x, x) - ½ OT_ε(y, y)

S_ε ≥ 0, 0 for equal samples; it goes to half the squared Wasserstein distance for ε → 0 and to half the squared
distance between the means for ε → ∞. A sample and the same one moved by v are ½ |v|² apart for every ε.

The dual potentials are found by Sinkhorn's iteration on logarithms,

    f_i ← -ε log Σ_j exp((g_j - c_ij) / ε) / m,   and g likewise,

without gradient. By the envelope theorem the gradient of OT_ε to the cost is the plan π itself, so that nothing is
differentiated through the iteration. ε is a share of the mean cost between the two samples (which is not
differentiated): the same setting does for features of any scale. Computed in float32 (in float64 where that is given),
outside autocast.

References:
    Cuturi 2013, Sinkhorn Distances, arXiv:1306.0895.
    Genevay, Peyré & Cuturi 2018, Learning Generative Models with Sinkhorn Divergences, arXiv:1706.00292.
    Feydy et al. 2019, Interpolating between Optimal Transport and MMD using Sinkhorn Divergences, arXiv:1810.08278.
"""

import math

import torch
from torch import Tensor

from skyshift.adapt.losses.two_samples import full_precision, squared_distances
from skyshift.errors import SkyshiftError


def sinkhorn_divergence(source: Tensor, target: Tensor, blur: float = 0.05, iterations: int = 50) -> Tensor:
    """S_ε of two samples.

    Args:
        source: (n, width).
        target: (m, width).
        blur: ε as a share of the mean cost between the samples.
        iterations: Of Sinkhorn. Small blurs need more: of the order of 1 / blur.

    Returns:
        Scalar, in squared units of the features.

    Raises:
        SkyshiftError: The samples do not fit together, or ``blur`` or ``iterations`` are not above 0.
    """
    if not blur > 0 or iterations < 1:
        raise SkyshiftError(f"Sinkhorn needs a blur above 0 and an iteration or more, not {blur} and {iterations}")
    x, y = full_precision(source, target)
    with torch.autocast(x.device.type, enabled=False):
        cost = squared_distances(x, y) / 2
        epsilon = blur * cost.detach().mean().clamp(min=torch.finfo(cost.dtype).eps)
        across = _transport(cost, *potentials(cost.detach(), epsilon, iterations), epsilon)
        return across - (_to_itself(x, epsilon, iterations) + _to_itself(y, epsilon, iterations)) / 2


def _to_itself(x: Tensor, epsilon: Tensor, iterations: int) -> Tensor:
    cost = squared_distances(x, x) / 2
    f = symmetric_potential(cost.detach(), epsilon, iterations)
    return _transport(cost, f, f, epsilon)


def _transport(cost: Tensor, f: Tensor, g: Tensor, epsilon: Tensor) -> Tensor:
    """OT_ε of a cost (n, m) with its potentials: the value, and the plan as its gradient to the cost."""
    total = f[:, None] + g[None, :]
    plan = ((total - cost.detach()) / epsilon).exp() / cost.numel()
    # Σ π (c + ε log nmπ), of which c alone is differentiated
    return (plan * (cost - cost.detach() + total)).sum()


def _soft_minimum(cost: Tensor, epsilon: Tensor) -> Tensor:
    """-ε log mean_j exp(-c_ij / ε), (n,) of a cost (n, m)."""
    return -epsilon * (torch.logsumexp(-cost / epsilon, 1) - math.log(cost.shape[1]))


def _blurs(cost: Tensor, epsilon: Tensor, iterations: int) -> list[Tensor]:
    """ε of each iteration: falls from the largest cost over the first half, which carries potentials far at once."""
    start = torch.maximum(cost.max(), epsilon)
    shares = [min(1.0, 2 * number / iterations) for number in range(iterations)]
    return [start ** (1 - share) * epsilon**share for share in shares]


@torch.no_grad()
def potentials(cost: Tensor, epsilon: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Dual potentials f (n,) and g (m,) of a cost (n, m), each from the other in turn."""
    g = torch.zeros_like(cost[0])
    f = torch.zeros_like(cost[:, 0])
    for eps in [*_blurs(cost, epsilon, iterations), epsilon]:
        f = _soft_minimum(cost - g[None, :], eps)
        g = _soft_minimum((cost - f[:, None]).T, eps)
    return f, g


@torch.no_grad()
def symmetric_potential(cost: Tensor, epsilon: Tensor, iterations: int) -> Tensor:
    """The one potential (n,) of a symmetric cost (n, n): the mean of itself and its update, which converges faster."""
    f = torch.zeros_like(cost[0])
    for eps in [*_blurs(cost, epsilon, iterations), epsilon]:
        f = (f + _soft_minimum(cost - f[None, :], eps)) / 2
    return f
