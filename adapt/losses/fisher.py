"""Fisher term: features of one class close together, classes far apart.

    tr S_w / tr S_b
    S_w = 1/n Σ_c Σ_{i in c} (z_i - μ_c)(z_i - μ_c)ᵀ,   S_b = Σ_c n_c/n (μ_c - μ)(μ_c - μ)ᵀ

over the labelled maps of a batch. S_w + S_b is the covariance of the batch, and the ratio is (n - K) / (K - 1) over the
Calinski-Harabasz index. The papers on galaxy mergers learn the centres μ_c as parameters of their own and do not divide
by n; here the centres are the means of the batch, so that nothing is trained beside the classifier and the term does
not grow with the batch. A batch that holds one class alone has no S_b and adds nothing.

References:
    Zhang, Zhang & Yang 2020, Fisher Deep Domain Adaptation, arXiv:2003.05636.
    Ćiprijanović et al. 2020, Domain Adaptation Techniques for Improved Cross-Domain Study of Galaxy Mergers,
    arXiv:2011.03591; and 2021, DeepMerge II, arXiv:2103.01373.
"""

import torch
from torch import Tensor

LARGEST = 1e6
"""The ratio is kept below this: S_b is never taken smaller than the 10⁻⁶th part of the whole scatter."""


def fisher(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Tr S_w / tr S_b.

    Args:
        features: (n, width).
        labels: (n,) class numbers; below 0 for maps that do not count.
        classes: How many there are.

    Returns:
        Scalar, float32 (float64 where that is given); 0 where fewer than two classes are there.
    """
    z = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(z.device.type, enabled=False):
        member = (labels[:, None] == torch.arange(classes, device=labels.device)).to(z.dtype)  # (n, classes)
        count = member.sum(0)
        n = count.sum().clamp(min=1)
        means = member.T @ z / count.clamp(min=1)[:, None]
        mean = (member.sum(1) @ z) / n
        within = ((z[:, None] - means[None]).square().sum(2) * member).sum() / n
        between = ((means - mean).square().sum(1) * count).sum() / n
        smallest = 1e-30 if z.dtype == torch.float64 else 1e-20
        ratio = within / torch.maximum(between, ((within + between) / LARGEST).detach()).clamp(min=smallest)
        return torch.where((count > 0).sum() > 1, ratio, torch.zeros_like(ratio))
