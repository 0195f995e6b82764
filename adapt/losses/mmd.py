"""Maximum mean discrepancy: how far apart two distributions are, seen through Gaussian kernels.

    k_s(x, y) = exp(-|x - y|² / 2s)
    MMD²      = E k(x, x') + E k(y, y') - 2 E k(x, y)

    V  biased     means over all pairs, those of a vector with itself included; never below 0
    U  unbiased   those left out; 0 on average where the distributions agree, and so at times below 0

With several kernels both are the mean over kernels. Where no bandwidths are given, they are ¼, ½, 1, 2 and 4 times half
the mean squared distance between two different vectors of the two samples together, which is not differentiated.

The papers on galaxy mergers sum V over 19 fixed kernels and keep the sum above 10⁻⁴:

    max(Σ_i V(s_i), 10⁻⁴),   s = 10⁻⁶ … 10⁶

Its bandwidths are fixed: it sees features of the order of 1 well, and of others only their widest or narrowest kernels.

Everything is computed in float32 (in float64 where that is given), outside autocast.

References:
    Gretton, Borgwardt, Rasch, Schölkopf & Smola 2012, A Kernel Two-Sample Test, JMLR 13, 723.
    Long, Cao, Wang & Jordan 2015, Learning Transferable Features with Deep Adaptation Networks, arXiv:1502.02791.
    Ćiprijanović et al. 2020, Domain Adaptation Techniques for Improved Cross-Domain Study of Galaxy Mergers,
    arXiv:2011.03591.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from skyshift.adapt.losses.two_samples import full_precision, squared_distances
from skyshift.errors import SkyshiftError

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths in units of half the mean squared distance."""

MERGER_BANDWIDTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
"""Those of the papers on galaxy mergers."""

MERGER_FLOOR = 1e-4
"""Below which their sum of V is not followed."""

Bandwidths = Sequence[float | Tensor]


def mmd_biased(source: Tensor, target: Tensor, bandwidths: Bandwidths | None = None) -> Tensor:
    """V, the mean over kernels.

    Args:
        source: (n, width).
        target: (m, width).
        bandwidths: s of each kernel, in squared units of the features; none for those of the data.

    Returns:
        Scalar, at least 0 but for rounding.

    Raises:
        SkyshiftError: The samples do not fit together or are too small, or a bandwidth is not above 0.
    """
    return _mmd(source, target, bandwidths, own_pairs=True)


def mmd_unbiased(source: Tensor, target: Tensor, bandwidths: Bandwidths | None = None) -> Tensor:
    """U, the mean over kernels; arguments and errors as of :func:`mmd_biased`, with two vectors of each at least."""
    return _mmd(source, target, bandwidths, own_pairs=False)


def mmd_merger(source: Tensor, target: Tensor) -> Tensor:
    """The sum of V over the 19 kernels of the galaxy-merger papers, kept above 10⁻⁴; arguments as above."""
    total = len(MERGER_BANDWIDTHS) * mmd_biased(source, target, MERGER_BANDWIDTHS)
    return total.clamp(min=MERGER_FLOOR)


def data_bandwidths(source: Tensor, target: Tensor) -> list[Tensor]:
    """Half the mean squared distance between two different vectors of both samples, times :data:`FACTORS`.

    The mean needs no pairs: it is twice the sum of the variances of the features.
    """
    both = torch.cat(full_precision(source, target)).detach()
    half_mean = both.var(0).sum().clamp(min=torch.finfo(both.dtype).eps)
    return [factor * half_mean for factor in FACTORS]


def _mmd(source: Tensor, target: Tensor, bandwidths: Bandwidths | None, own_pairs: bool) -> Tensor:
    x, y = full_precision(source, target, least=1 if own_pairs else 2)
    if bandwidths is None:
        bandwidths = data_bandwidths(x, y)
    elif not bandwidths or any(isinstance(s, int | float) and s <= 0 for s in bandwidths):
        raise SkyshiftError(f"bandwidths of kernels are numbers above 0, one at least, not {list(bandwidths)}")
    with torch.autocast(x.device.type, enabled=False):
        xx, yy, xy = squared_distances(x, x), squared_distances(y, y), squared_distances(x, y)
        values = [
            _mean(torch.exp(-xx / (2 * s)), own_pairs)
            + _mean(torch.exp(-yy / (2 * s)), own_pairs)
            - 2 * torch.exp(-xy / (2 * s)).mean()
            for s in bandwidths
        ]
        return torch.stack(values).mean()


def _mean(kernel: Tensor, own_pairs: bool) -> Tensor:
    """Mean of a kernel (n, n) over all pairs, or over pairs of two different vectors."""
    n = len(kernel)
    return kernel.mean() if own_pairs else (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
