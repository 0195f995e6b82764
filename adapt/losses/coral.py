"""CORAL: how far apart the covariances of two samples of features are.

    ‖C_s - C_t‖²_F / 4 d²

with the unbiased covariances C and d features. Means are not compared. Computed in float32 (in float64 where that is
given), outside autocast.

References:
    Sun & Saenko 2016, Deep CORAL: Correlation Alignment for Deep Domain Adaptation, arXiv:1607.01719.
"""

import torch
from torch import Tensor

from skyshift.adapt.losses.two_samples import full_precision


def coral(source: Tensor, target: Tensor) -> Tensor:
    """The distance between covariances.

    Args:
        source: (n, d).
        target: (m, d).

    Returns:
        Scalar, in units of the features to the fourth power.

    Raises:
        SkyshiftError: The widths differ, or a sample has fewer than two vectors.
    """
    x, y = full_precision(source, target, least=2)
    with torch.autocast(x.device.type, enabled=False):
        return (_covariance(x) - _covariance(y)).square().sum() / (4 * x.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    """Unbiased covariance (d, d) of x (n, d)."""
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)
