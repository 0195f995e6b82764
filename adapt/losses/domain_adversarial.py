"""What a discriminator of domains, and an encoder that is to mislead it, are trained on.

    L_D = ½ (mean w_s softplus(-D(f_s)) + mean w_t softplus(D(f_t)))      D > 0 says source
    L_C = mean softplus(-D(f_t))                                          a target is to pass for a source

L_D is the cross-entropy of the domains; behind a gradient reversal it trains the encoder of DANN. L_C has the labels
inverted, as ADDA's target encoder wants: its gradient does not vanish where the discriminator is sure. A discriminator
that cannot tell has L_D = L_C = ln 2.

References:
    Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, JMLR 17, arXiv:1505.07818.
    Tzeng, Hoffman, Saenko & Darrell 2017, Adversarial Discriminative Domain Adaptation, CVPR, arXiv:1702.05464.
"""

import torch.nn.functional as F
from torch import Tensor


def domain_loss(
    source: Tensor, target: Tensor, source_weights: Tensor | None = None, target_weights: Tensor | None = None
) -> Tensor:
    """L_D, a mean over the samples of each domain, both counting the same.

    Args:
        source: (n, 1) or (n,) logits of source samples, larger for source.
        target: The same of target samples.
        source_weights: (n,) of mean 1 over the whole batch; ones where there are none.
        target_weights: The same of target samples.

    Returns:
        A scalar.
    """
    mine, other = F.softplus(-source.float().flatten()), F.softplus(target.float().flatten())
    if source_weights is not None:
        mine = mine * source_weights
    if target_weights is not None:
        other = other * target_weights
    return 0.5 * (mine.mean() + other.mean())


def confusion_loss(target: Tensor) -> Tensor:
    """L_C, for the encoder of the target.

    Args:
        target: (n, 1) or (n,) logits of target samples, larger for source.

    Returns:
        A scalar.
    """
    return F.softplus(-target.float()).mean()
