"""Adversarial losses on the logits of a discriminator: least squares, non-saturating cross-entropy, hinge.

For logits D and real, translated (fake) pairs:

    lsgan     discriminator ½ E[(D_real - 1)²] + ½ E[D_fake²]            translator E[(D_fake - 1)²]
    vanilla   discriminator ½ E[softplus(-D_real)] + ½ E[softplus(D_fake)]   translator E[softplus(-D_fake)]
    hinge     discriminator ½ E[max(0, 1 - D_real)] + ½ E[max(0, 1 + D_fake)]  translator -E[D_fake]

The discriminator's is halved, which slows it relative to the translator (Isola et al. 2017, section 3.3).

References:
    Goodfellow et al. 2014, Generative Adversarial Nets, arXiv:1406.2661 (vanilla).
    Mao et al. 2017, Least Squares Generative Adversarial Networks, arXiv:1611.04076 (lsgan).
    Lim & Ye 2017, Geometric GAN, arXiv:1705.02894 (hinge).
    Isola, Zhu, Zhou & Efros 2017, Image-to-Image Translation with Conditional Adversarial Networks, arXiv:1611.07004.
"""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Adversarial = Literal["lsgan", "vanilla", "hinge"]


def require_adversarial(kind: str) -> None:
    """Check the name of a loss.

    Raises:
        SkyshiftError: There is none such; the message names the nearest.
    """
    if kind not in get_args(Adversarial):
        raise SkyshiftError(unknown("adversarial loss", kind, get_args(Adversarial)))


def discriminator_loss(kind: Adversarial, real: Tensor, fake: Tensor) -> Tensor:
    """Scalar loss of the discriminator for its logits (any shape) of real and fake pairs."""
    real, fake = real.float(), fake.float()
    if kind == "lsgan":
        return 0.5 * ((real - 1.0).square().mean() + fake.square().mean())
    if kind == "vanilla":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def translator_loss(kind: Adversarial, fake: Tensor) -> Tensor:
    """Scalar loss of the translator for the discriminator's logits (any shape) of its fakes."""
    fake = fake.float()
    if kind == "lsgan":
        return (fake - 1.0).square().mean()
    if kind == "vanilla":
        return F.softplus(-fake).mean()
    return -fake.mean()
