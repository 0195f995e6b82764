"""Beams and point spread functions as kernels on pixels.

    Gaussian  P(u, v) ∝ exp(-4 ln 2 (u²/a² + v²/b²)),   u along the major axis, a and b the FWHM
    Moffat    P(r) ∝ (1 + r²/α²)^-β,   α = FWHM / (2 √(2^{1/β} - 1))

A kernel holds the integral of the profile over each pixel, not its value at the pixel's centre, so that it is right
for beams narrower than a pixel as well; it sums to 1, has odd sides, and is cut where a stated share of the flux is
inside. What is convolved with it is as if it had been points: a map that is integrated over its pixels already would
count the pixel twice, and takes a ``sampled`` kernel instead. Position angles are the sky's: from north (up, rows) to
east (left, against columns).

References:
    Moffat 1969, A&A 3, 455.
    Boucaud, Bocchio, Abergel, Orieux, Dole & Hadj-Youcef 2016, A&A 596, A63 (regularised matching kernels).
    Trujillo, Aguerri, Cepa & Gutiérrez 2001, MNRAS 328, 977 (Moffat profiles and their flux).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from skyshift.datasets.resampling import rebin
from skyshift.errors import SkyshiftError

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_CELLS_PER_FWHM = 3
"""Cells of five Gauss-Legendre nodes a FWHM: integrates a Gaussian and a Moffat to better than 1e-6 of the peak."""

_LARGEST = 4095
"""Pixels a side of the largest kernel that is made."""


class BeamError(SkyshiftError):
    """A beam or point spread function is none."""


def _require_beam(pixel: float, **lengths: float) -> None:
    for name, value in {**lengths, "pixel": pixel}.items():
        if not (np.isfinite(value) and value > 0.0):
            raise BeamError(
                f"a {name} of {value:g} arcsec is none; give an angle above 0 (for no beam, do not convolve)"
            )


def beam_area(fwhm_major: float, fwhm_minor: float | None = None) -> float:
    """Solid angle π a b / (4 ln 2) of a Gaussian beam.

    Args:
        fwhm_major: FWHM along the major axis, arcsec.
        fwhm_minor: Along the minor axis; by default the same.

    Returns:
        arcsec² (the square of whatever unit the arguments have).

    Raises:
        BeamError: A width is not positive.
    """
    minor = fwhm_major if fwhm_minor is None else fwhm_minor
    _require_beam(1.0, fwhm_major=fwhm_major, fwhm_minor=minor)
    return float(np.pi / (4.0 * np.log(2.0)) * fwhm_major * minor)


def _on_pixels(
    profile: Callable[[Array, Array], Array], half: tuple[int, int], pixel: float, fwhm: float, sampled: bool
) -> Array:
    """Kernel of ``profile(x, y)``, integrated over each pixel or at its centre, normalised; (2 half + 1) pixels."""
    if sampled and fwhm < 2.0 * pixel:
        raise BeamError(
            f"a FWHM of {fwhm:g} arcsec cannot be sampled on pixels of {pixel:g}: it needs two pixels or more; take "
            f"smaller pixels"
        )
    if max(half) > _LARGEST // 2:
        raise BeamError(
            f"a kernel of {2 * max(half) + 1} pixels a side is too large (at most {_LARGEST}): "
            f"a FWHM of {fwhm:g} arcsec on pixels of {pixel:g}; take larger pixels or a smaller share of the flux"
        )
    cells = int(np.clip(np.ceil(_CELLS_PER_FWHM * pixel / fwhm), 1, 32))
    offset = (np.arange(cells)[:, None] + 0.5 * (_NODES + 1.0)).ravel() / cells - 0.5
    weight = np.tile(_WEIGHTS, cells)
    if sampled:
        offset, weight = np.zeros(1), np.ones(1)
    x = ((np.arange(-half[1], half[1] + 1)[:, None] + offset) * pixel).ravel()
    columns = np.tile(weight, 2 * half[1] + 1)
    kernel = np.empty((2 * half[0] + 1, 2 * half[1] + 1))
    for row in range(-half[0], half[0] + 1):
        values = profile(x[None, :], ((row + offset) * pixel)[:, None])
        kernel[row + half[0]] = (weight @ values * columns).reshape(2 * half[1] + 1, -1).sum(axis=1)
    return kernel / kernel.sum()


def _require_share(share: float) -> None:
    if not 0.0 < share < 1.0:
        raise BeamError(f"a kernel can hold a share of the flux between 0 and 1, not {share:g}; for instance 0.999")


def gaussian_kernel(
    fwhm_major: float,
    fwhm_minor: float | None = None,
    position_angle: float = 0.0,
    pixel: float = 1.0,
    share: float = 1.0 - 1e-6,
    sampled: bool = False,
) -> Array:
    """Gaussian beam, elliptical, integrated over pixels.

    Args:
        fwhm_major: FWHM along the major axis, arcsec.
        fwhm_minor: Along the minor axis; by default the same.
        position_angle: Of the major axis, degrees from north (up) to east (left).
        pixel: Side of a pixel, arcsec.
        share: Share of the flux inside the ellipse that the kernel just covers.
        sampled: Values at the pixels' centres instead of integrals, for maps that are integrated already.

    Returns:
        (height, width) both odd, sum 1.

    Raises:
        BeamError: A width, the pixel or the share is not positive, or the kernel is too large or not sampled.
    """
    minor = fwhm_major if fwhm_minor is None else fwhm_minor
    _require_beam(pixel, fwhm_major=fwhm_major, fwhm_minor=minor)
    _require_share(share)
    angle = np.deg2rad(position_angle)
    sin, cos = float(np.sin(angle)), float(np.cos(angle))
    # Flux inside the ellipse of t σ is 1 - exp(-t²/2); its bounding box has half sides t √(Σ (σ_i n_i)²).
    reach = np.sqrt(-2.0 * np.log1p(-share)) / np.sqrt(8.0 * np.log(2.0))
    half_x = reach * np.hypot(fwhm_major * sin, minor * cos)
    half_y = reach * np.hypot(fwhm_major * cos, minor * sin)
    half = (int(np.ceil(half_y / pixel)), int(np.ceil(half_x / pixel)))

    def profile(x: Array, y: Array) -> Array:
        u = (-sin * x + cos * y) / fwhm_major
        v = (cos * x + sin * y) / minor
        return np.exp(-4.0 * np.log(2.0) * (u * u + v * v))

    return _on_pixels(profile, half, pixel, min(fwhm_major, minor), sampled)


def moffat_kernel(fwhm: float, beta: float, pixel: float = 1.0, share: float = 0.999, sampled: bool = False) -> Array:
    """Round Moffat point spread function, integrated over pixels.

    Args:
        fwhm: arcsec.
        beta: Slope of the wings, above 1; 2.5 to 4.8 describe seeing.
        pixel: Side of a pixel, arcsec.
        share: Share of the flux inside the circle that the kernel just covers. Its wings are long: the radius grows
            as (1 - share)^(-1 / (2β - 2)).
        sampled: Values at the pixels' centres instead of integrals, for maps that are integrated already.

    Returns:
        (size, size) odd, sum 1.

    Raises:
        BeamError: The width, slope, pixel or share is none, or the kernel is too large.
    """
    _require_beam(pixel, fwhm=fwhm)
    _require_share(share)
    if not (np.isfinite(beta) and beta > 1.0):
        raise BeamError(f"a Moffat profile of β = {beta:g} has no finite flux; β lies above 1 (seeing: 2.5 to 4.8)")
    alpha = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    radius = alpha * np.sqrt((1.0 - share) ** (1.0 / (1.0 - beta)) - 1.0)
    half = int(np.ceil(radius / pixel))
    return _on_pixels(lambda x, y: (1.0 + (x * x + y * y) / alpha**2) ** -beta, (half, half), pixel, fwhm, sampled)


def image_kernel(psf: NDArray[Any], psf_pixel: float, pixel: float) -> Array:
    """Kernel from an image of a point source.

    The image's geometric centre is the centre of the kernel, and its values count as integrated over its pixels, as
    those of an observed star are. To larger pixels it is rebinned by exact overlap; to smaller ones it is
    interpolated by cubic splines. Nothing is clipped: the small negative lobes of real images stay.

    Args:
        psf: (height, width), finite, with a positive sum.
        psf_pixel: Side of its pixels, arcsec.
        pixel: Side of the pixels of the maps, arcsec.

    Returns:
        (height, width) both odd, sum 1.

    Raises:
        BeamError: The image or a pixel is none.
    """
    psf = np.asarray(psf, np.float64)
    _require_beam(pixel, psf_pixel=psf_pixel)
    if psf.ndim != 2 or psf.size == 0 or not np.isfinite(psf).all() or not psf.sum() > 0.0:
        raise BeamError(
            f"a point spread function of shape {psf.shape} is none: it is an image (height, width) of finite values "
            f"with a positive sum; cut out a star, subtract its background and fill its gaps with 0"
        )
    # The nearest odd size that covers the image: an even one would have no central pixel.
    size = [2 * int(np.ceil(0.5 * (side * psf_pixel / pixel - 1.0) - 1e-9)) + 1 for side in psf.shape]
    size = [max(1, side) for side in size]
    if pixel >= psf_pixel:
        kernel = rebin(psf, psf_pixel, pixel, shape=(size[0], size[1]))
    else:
        rows, columns = (
            (np.arange(side) - 0.5 * (side - 1)) * pixel / psf_pixel + 0.5 * (old - 1)
            for side, old in zip(size, psf.shape, strict=True)
        )
        grid = np.meshgrid(rows, columns, indexing="ij")
        kernel = map_coordinates(psf, grid, order=3, mode="constant")
    return np.asarray(kernel / kernel.sum(), np.float64)


def kernel_fwhm(kernel: NDArray[Any], pixel: float = 1.0) -> float:
    """FWHM of a kernel: the diameter of the circle whose area is that above half of its maximum.

    Args:
        kernel: (height, width).
        pixel: Side of a pixel, arcsec.

    Returns:
        arcsec; the kernel is interpolated tenfold by cubic splines before it is counted.
    """
    fine = image_kernel(kernel, 10.0, 1.0)
    return float(2.0 * np.sqrt(np.count_nonzero(fine >= 0.5 * fine.max()) / np.pi) / 10.0 * pixel)


def matching_kernel(from_kernel: NDArray[Any], to_kernel: NDArray[Any], regularisation: float = 1e-4) -> Array:
    """Kernel that turns one point spread function into a broader one (Boucaud et al. 2016).

    The ratio of their transforms, with the inverse held down where the narrower one has no signal left,

        K̂ = T̂ F̂* / (|F̂|² + ε²),   F̂(0) = T̂(0) = 1.

    Args:
        from_kernel: (height, width) both odd, the narrower one, sum not zero.
        to_kernel: (height, width) both odd, the broader one, on the same pixels.
        regularisation: ε, the transform below which the narrower kernel counts as lost; larger for noisy images of
            stars.

    Returns:
        (height, width) both odd, sum 1, as large as the larger one along each axis.

    Raises:
        BeamError: A kernel is none, or the second one is narrower than the first.
    """
    kernels = []
    for kernel in (np.asarray(from_kernel, np.float64), np.asarray(to_kernel, np.float64)):
        if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape) or not np.isfinite(kernel).all():
            raise BeamError(f"a kernel to match has two odd sides and finite values, not shape {kernel.shape}")
        if not kernel.sum() > 0.0:
            raise BeamError(f"a kernel to match has a positive sum, not {kernel.sum():g}")
        kernels.append(kernel / kernel.sum())
    narrow, broad = (kernel_fwhm(kernel) for kernel in kernels)
    if broad < narrow:
        raise BeamError(
            f"a point spread function of {narrow:.3g} pixels cannot be sharpened to one of {broad:.3g}; "
            f"match the sharper survey to the broader one"
        )
    size = [max(sides) for sides in zip(*(kernel.shape for kernel in kernels), strict=True)]
    # Twice the size, so that the wings of a kernel do not come back at the other side.
    padded = [2 * side + 1 for side in size]
    F, T = (np.fft.rfft2(np.fft.ifftshift(_centred(kernel, padded))) for kernel in kernels)
    ratio = T * np.conj(F) / (np.abs(F) ** 2 + regularisation**2)
    whole = np.fft.fftshift(np.fft.irfft2(ratio, padded))
    first = [(large - small) // 2 for large, small in zip(padded, size, strict=True)]
    kernel = whole[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    return np.asarray(kernel / kernel.sum(), np.float64)


def _centred(kernel: Array, shape: list[int]) -> Array:
    """The kernel in the middle of a larger array of zeros; all sides odd."""
    margin = [(large - small) // 2 for large, small in zip(shape, kernel.shape, strict=True)]
    return np.pad(kernel, [(width, width) for width in margin])
