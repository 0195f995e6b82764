"""Maps on another grid: exact rebinning by the overlap of pixels, and convolution.

Pixels are squares, so the share of an input pixel that falls into an output pixel is the product of the shares along
the two axes, and rebinning is two small matrix products:

    F_out = O_y F_in O_xᵀ,   O[i, j] = |input pixel j ∩ output pixel i| / |input pixel j|.

Both grids share their centre. Nothing is interpolated: all flux that falls on the output grid arrives there, for any
ratio of the pixels, finer or coarser. What the output grid does not cover is left out; what the input does not cover
counts as empty.
"""

from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError

Conserve = Literal["flux", "surface_brightness"]
Boundary = Literal["zero", "reflect", "nearest", "wrap"]

_PAD: dict[str, str] = {"reflect": "symmetric", "nearest": "edge", "wrap": "wrap"}
"""Boundary to numpy's name for it; ``reflect`` repeats the edge pixel, as in scipy."""

_BLOCK = 2**22
"""Numbers transformed at once: 32 MiB in float64."""


class ResamplingError(SkyshiftError):
    """A map cannot be brought to another grid, or not convolved, as asked."""


def _require_maps(maps: NDArray[Any], what: str) -> NDArray[np.floating[Any]]:
    maps = np.asarray(maps)
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ResamplingError(f"cannot {what} an array of shape {maps.shape}: maps are (…, height, width)")
    if not np.issubdtype(maps.dtype, np.floating):
        maps = maps.astype(np.float64)
    bad = int(np.count_nonzero(~np.isfinite(maps)))
    if bad:
        raise ResamplingError(
            f"cannot {what} maps of shape {maps.shape}: {bad} values are not finite and would spread over their "
            f"neighbours; replace or mask them first"
        )
    return maps


def _overlap(pixels_in: int, pixel_in: float, pixels_out: int, pixel_out: float) -> NDArray[np.float64]:
    """(pixels_out, pixels_in) share of every input interval in every output interval, both grids centred on 0."""
    edges_in = (np.arange(pixels_in + 1) - 0.5 * pixels_in) * pixel_in
    edges_out = (np.arange(pixels_out + 1) - 0.5 * pixels_out) * pixel_out
    upper = np.minimum(edges_out[1:, None], edges_in[None, 1:])
    lower = np.maximum(edges_out[:-1, None], edges_in[None, :-1])
    return np.maximum(upper - lower, 0.0) / pixel_in


def covering_shape(shape: tuple[int, ...], from_pixel: float, to_pixel: float) -> tuple[int, int]:
    """(height, width) of the smallest grid of ``to_pixel`` that covers maps of ``shape`` (…, height, width)."""
    # The tolerance keeps an exact ratio, such as 64 pixels of 0.3 to pixels of 0.6, from growing by a pixel.
    height, width = (max(1, int(np.ceil(side * from_pixel / to_pixel - 1e-9))) for side in shape[-2:])
    return height, width


def rebin(
    maps: NDArray[Any],
    from_pixel: float,
    to_pixel: float,
    shape: tuple[int, int] | None = None,
    conserve: Conserve = "flux",
) -> NDArray[np.floating[Any]]:
    """Bring maps to other pixels, exactly, about the same centre.

    Args:
        maps: (…, height, width), finite.
        from_pixel: Side of an input pixel, in any unit of length or angle.
        to_pixel: Side of an output pixel, in the same unit.
        shape: (height, width) of the output. By default as many pixels as cover the input.
        conserve: ``flux`` where a value is an amount per pixel: sums are kept. ``surface_brightness`` where it is an
            amount per area: sums times the pixel's area are kept.

    Returns:
        (…, height, width) of the dtype of ``maps``; the sums are taken in float64.

    Raises:
        ResamplingError: A pixel or shape is not positive, or a value is not finite.
    """
    maps = _require_maps(maps, "rebin")
    if not (np.isfinite(from_pixel) and np.isfinite(to_pixel) and from_pixel > 0.0 and to_pixel > 0.0):
        raise ResamplingError(f"pixels of {from_pixel:g} and {to_pixel:g} have no size; give sides above 0")
    if conserve not in ("flux", "surface_brightness"):
        raise ResamplingError(f"rebinning conserves 'flux' or 'surface_brightness', not '{conserve}'")
    height, width = maps.shape[-2:]
    if shape is None:
        shape = covering_shape((height, width), from_pixel, to_pixel)
    if min(shape) < 1:
        raise ResamplingError(f"cannot rebin to {shape[0]} × {shape[1]} pixels; give at least one a side")
    if from_pixel == to_pixel and tuple(shape) == (height, width):
        return maps.copy()
    rows = _overlap(height, from_pixel, shape[0], to_pixel)
    columns = _overlap(width, from_pixel, shape[1], to_pixel)
    flux = rows @ maps.astype(np.float64) @ columns.T
    if conserve == "surface_brightness":
        flux *= (from_pixel / to_pixel) ** 2
    return flux.astype(maps.dtype)


def require_kernel(kernel: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The kernel in float64, if it has a centre and fits maps of ``shape``.

    Args:
        kernel: (height, width).
        shape: (…, height, width) of the maps.

    Raises:
        ResamplingError: The kernel is not two-dimensional, not odd, not finite, or larger than the maps.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ResamplingError(
            f"a kernel of shape {kernel.shape} has no central pixel; it needs two odd sides (see beams.image_kernel)"
        )
    if not np.isfinite(kernel).all():
        raise ResamplingError("a kernel has values that are not finite; replace them, by 0 at its edges for instance")
    if kernel.shape[0] > shape[-2] or kernel.shape[1] > shape[-1]:
        raise ResamplingError(
            f"a kernel of {kernel.shape[0]} × {kernel.shape[1]} pixels does not fit a map of {shape[-2]} × {shape[-1]}"
            f" pixels; take a larger field, a larger pixel, or cut the kernel (share) to at most the map's size"
        )
    return kernel


def convolve(maps: NDArray[Any], kernel: NDArray[Any], boundary: Boundary = "zero") -> NDArray[np.floating[Any]]:
    """Convolve maps with one kernel, by fast Fourier transforms in float64.

    Args:
        maps: (…, height, width), finite.
        kernel: (k, l), odd sides not larger than the maps'. Its sum is not touched.
        boundary: What lies beyond a map: ``zero``; ``reflect`` (mirrored at the edge), ``nearest`` or ``wrap``.

    Returns:
        (…, height, width) of the dtype of ``maps``.

    Raises:
        ResamplingError: The kernel does not fit or has no centre, or a value is not finite.
    """
    maps = _require_maps(maps, "convolve")
    kernel = require_kernel(kernel, maps.shape)
    if boundary != "zero" and boundary not in _PAD:
        raise ResamplingError(f"beyond a map lies 'zero', 'reflect', 'nearest' or 'wrap', not '{boundary}'")
    half = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    height, width = maps.shape[-2:]
    # Beyond a padded map nothing need be zero: what wraps around falls on the padding, which is cut away.
    padded = (height + 2 * half[0], width + 2 * half[1])
    size = [scipy.fft.next_fast_len(side, real=True) for side in padded]
    transfer = scipy.fft.rfft2(kernel, size)
    stack = maps.reshape(-1, height, width)
    result = np.empty(stack.shape, maps.dtype)
    step = max(1, _BLOCK // (size[0] * size[1]))
    for start in range(0, len(stack), step):
        block = stack[start : start + step].astype(np.float64)
        first = half
        if boundary != "zero":
            block = np.pad(block, ((0, 0), (half[0],) * 2, (half[1],) * 2), mode=_PAD[boundary])  # type: ignore[call-overload]
            first = (2 * half[0], 2 * half[1])
        spectrum = scipy.fft.rfft2(block, size, workers=1)
        spectrum *= transfer
        whole = scipy.fft.irfft2(spectrum, size, workers=1)
        result[start : start + step] = whole[:, first[0] : first[0] + height, first[1] : first[1] + width]
    return result.reshape(maps.shape)
