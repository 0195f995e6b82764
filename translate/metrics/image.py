"""How alike two images are, pixel by pixel: PSNR and SSIM, one number per map.

    PSNR = 10 log10(L² / mean((e − t)²)),

    SSIM = mean of (2 μ_t μ_e + c₁)(2 σ_te + c₂) / ((μ_t² + μ_e² + c₁)(σ_t² + σ_e² + c₂)),

with c₁ = (0.01 L)², c₂ = (0.03 L)² and local moments under a Gaussian window of 11 pixels, σ = 1.5. The mean
is over the windows that lie wholly inside the map, five pixels from its border, as in the paper. The dynamic
range L is never guessed from the maps: a value that moves with them cannot be compared between them.

References:
    Wang, Bovik, Sheikh & Simoncelli 2004, IEEE Trans. Image Process. 13, 600, doi:10.1109/TIP.2003.819861.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from skyshift.errors import SkyshiftError

WINDOW = 11
SIGMA = 1.5
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
    _, local = structural_similarity_index_measure(
        torch.from_numpy(e)[:, None],
        torch.from_numpy(t)[:, None],
        gaussian_kernel=True,
        sigma=SIGMA,
        kernel_size=WINDOW,
        reduction="none",
        data_range=1.0,
        return_full_image=True,
    )
    # Releases of torchmetrics differ in whether they average over the reflected border as well.
    border = WINDOW // 2
    inside: Maps = local[:, 0, border:-border, border:-border].mean(dim=(1, 2)).numpy()
    return inside


def _ranges(data_range: ArrayLike, n: int) -> NDArray[np.float64]:
    ranges = np.broadcast_to(np.asarray(data_range, np.float64), (n,))
    if not (ranges > 0).all():
        raise SkyshiftError("data_range must be positive: it is the largest minus the smallest possible value.")
    return ranges
