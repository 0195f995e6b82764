"""How alike two images are, pixel by pixel: PSNR, SSIM and MS-SSIM, one number per map.

    PSNR = 10 log10(L² / mean((e − t)²)),

    SSIM = mean of (2 μ_t μ_e + c₁)(2 σ_te + c₂) / ((μ_t² + μ_e² + c₁)(σ_t² + σ_e² + c₂)),

with c₁ = (0.01 L)², c₂ = (0.03 L)² and local moments under a Gaussian window of 11 pixels, σ = 1.5. The mean
is over the windows that lie wholly inside the map, five pixels from its border, as in the paper. The dynamic
range L is never guessed from the maps: a value that moves with them cannot be compared between them.

    MS-SSIM = SSIM_M^β_M · Π_{j<M} CS_j^β_j,        CS = mean of (2 σ_te + c₂) / (σ_t² + σ_e² + c₂),

where scale j has the maps averaged over 2^(j−1) pixels, and negative means count as zero. The paper's M = 5 scales
need a window of 11 of the coarsest pixels, so 161 pixels; smaller maps get fewer scales (:func:`scales`), whose
exponents are divided by their sum so that they add up to one again. MS-SSIM of different numbers of scales cannot be
compared.

References:
    Wang, Bovik, Sheikh & Simoncelli 2004, IEEE Trans. Image Process. 13, 600, doi:10.1109/TIP.2003.819861.
    Wang, Simoncelli & Bovik 2003, Multiscale structural similarity for image quality assessment, Asilomar 37, 1398,
    doi:10.1109/ACSSC.2003.1292216.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from skyshift.errors import SkyshiftError

WINDOW = 11
SIGMA = 1.5
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales of MS-SSIM, the finest first."""
MAPS_AT_ONCE = 64
"""So many maps are compared at once, which bounds the memory of a long list."""

Maps = NDArray[np.float64]


def as_maps(*maps: ArrayLike) -> list[Maps]:
    """The arguments as float64 arrays of one shape (n, height, width).

    Raises:
        SkyshiftError: One has another number of axes, the shapes differ, or a side is empty.
    """
    arrays = [np.asarray(m, np.float64) for m in maps]
    shapes = [a.shape for a in arrays]
    if any(len(shape) != 3 or min(shape[1:]) < 1 for shape in shapes) or len(set(shapes)) > 1:
        raise SkyshiftError(
            f"maps must have one shape (n, height, width), they have {' and '.join(map(str, shapes))}. "
            "Add the first axis to a single map with map[None]; take channels one by one."
        )
    return arrays


def psnr(truth: ArrayLike, estimate: ArrayLike, data_range: ArrayLike) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio.

    Args:
        truth: (n, height, width).
        estimate: (n, height, width), same unit.
        data_range: L, largest minus smallest possible value, same unit; one number or (n,).

    Returns:
        (n,) decibels; infinite where the maps are identical, NaN where either holds a NaN.

    Raises:
        SkyshiftError: The shapes differ or the range is not positive.
    """
    t, e = as_maps(truth, estimate)
    L = _ranges(data_range, len(t))
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(L**2 / np.mean((e - t) ** 2, axis=(1, 2)))


def ssim(truth: ArrayLike, estimate: ArrayLike, data_range: ArrayLike) -> NDArray[np.float64]:
    """Structural similarity, computed in double precision.

    Args:
        truth: (n, height, width), sides of at least 11 pixels.
        estimate: (n, height, width), same unit.
        data_range: L, largest minus smallest possible value, same unit; one number or (n,).

    Returns:
        (n,) at most 1, which identical maps reach; NaN where either holds a NaN.

    Raises:
        SkyshiftError: The shapes differ, the range is not positive, or a map is smaller than the window.
    """
    t, e = as_maps(truth, estimate)
    if min(t.shape[1:]) < WINDOW:
        raise SkyshiftError(f"SSIM needs maps of at least {WINDOW} x {WINDOW} pixels, got {t.shape[1:]}.")
    L = _ranges(data_range, len(t))[:, None, None]
    values = np.empty(len(t))
    for start in range(0, len(t), MAPS_AT_ONCE):
        part = slice(start, start + MAPS_AT_ONCE)
        values[part] = _ssim(t[part] / L[part], e[part] / L[part])
    return values


def _ssim(t: Maps, e: Maps) -> Maps:
    """SSIM of maps in units of their dynamic range."""
    similarity, _ = _moments(torch.from_numpy(np.stack([t, e], axis=1)))
    return np.asarray(similarity.numpy())


def scales(height: int, width: int) -> int:
    """How many scales of MS-SSIM maps of this size have, 0 to 5: the window fits into the coarsest."""
    return sum((WINDOW - 1) * 2**scale < min(height, width) for scale in range(len(BETAS)))


def ms_ssim(truth: ArrayLike, estimate: ArrayLike, data_range: ArrayLike) -> NDArray[np.float64]:
    """Multi-scale structural similarity in double precision, over as many scales as fit (:func:`scales`).

    Args:
        truth: (n, height, width), sides of at least 11 pixels.
        estimate: (n, height, width), same unit.
        data_range: L, largest minus smallest possible value, same unit; one number or (n,).

    Returns:
        (n,) from 0 to 1, which identical maps reach; NaN where either holds a NaN.

    Raises:
        SkyshiftError: The shapes differ, the range is not positive, or a map is smaller than the window.
    """
    t, e = as_maps(truth, estimate)
    count = scales(*t.shape[1:])
    if not count:
        raise SkyshiftError(f"MS-SSIM needs maps of at least {WINDOW} x {WINDOW} pixels, got {t.shape[1:]}.")
    L = _ranges(data_range, len(t))[:, None, None]
    values = np.empty(len(t))
    for start in range(0, len(t), MAPS_AT_ONCE):
        part = slice(start, start + MAPS_AT_ONCE)
        values[part] = _ms_ssim(t[part] / L[part], e[part] / L[part], count)
    return values


def _ms_ssim(t: Maps, e: Maps, count: int) -> Maps:
    """MS-SSIM of maps in units of their dynamic range."""
    x = torch.from_numpy(np.stack([t, e], axis=1))
    betas = np.array(BETAS[:count]) / sum(BETAS[:count])
    product = torch.ones(len(x), dtype=torch.float64)
    for scale, beta in enumerate(betas):
        if scale:
            x = torch.nn.functional.avg_pool2d(x, 2)
        similarity, contrast = _moments(x)
        product = product * torch.relu(contrast if scale < count - 1 else similarity) ** float(beta)
    return np.asarray(product.numpy())


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its contrast part of (n, 2, height, width), each (n,), averaged over the windows inside."""
    place = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-(place**2) / (2 * SIGMA**2))
    window /= window.sum()
    t, e = x[:, 0], x[:, 1]
    fields = torch.stack([t, e, t * t, e * e, t * e], dim=1).flatten(0, 1)[:, None]
    local = torch.nn.functional.conv2d(fields, window[None, None, :, None])
    local = torch.nn.functional.conv2d(local, window[None, None, None, :]).unflatten(0, (len(x), 5))[:, :, 0]
    mean_t, mean_e, tt, ee, te = local.unbind(1)
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (te - mean_t * mean_e) + c2) / (tt - mean_t**2 + ee - mean_e**2 + c2)
    similarity = (2 * mean_t * mean_e + c1) / (mean_t**2 + mean_e**2 + c1) * contrast
    return similarity.mean(dim=(1, 2)), contrast.mean(dim=(1, 2))


def _ranges(data_range: ArrayLike, n: int) -> NDArray[np.float64]:
    ranges = np.broadcast_to(np.asarray(data_range, np.float64), (n,))
    if not (ranges > 0).all():
        raise SkyshiftError("data_range must be positive: it is the largest minus the smallest possible value.")
    return ranges
