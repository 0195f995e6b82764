"""What distances between two samples of features share: checks, precision, and squared distances between vectors."""

import torch
from torch import Tensor

from skyshift.errors import SkyshiftError


def full_precision(source: Tensor, target: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Both samples in float32, or in float64 where that is given.

    Args:
        source: (n, width).
        target: (m, width).
        least: Vectors that each sample must have.

    Raises:
        SkyshiftError: They are not matrices of the same width, or one has too few vectors.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise SkyshiftError(
            f"a distance between domains compares vectors of one width, not {tuple(source.shape)} with "
            f"{tuple(target.shape)}: give (n, width) and (m, width)"
        )
    if min(len(source), len(target)) < least:
        raise SkyshiftError(
            f"a distance between domains needs {least} maps or more of each at a time, there are {len(source)} of the "
            f"source and {len(target)} of the target: raise training.batch_size"
        )
    kind = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(kind), target.to(kind)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|² (n, m) of x (n, width) and y (m, width).

    Differences are taken before they are squared. |x|² + |y|² - 2 x·y would lose what is small beside |x|², which
    narrow kernels see.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
