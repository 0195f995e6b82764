"""Whether a map is right as physics: its total, its radial profile, its power on every scale.

All functions take physical maps, not scaled ones, and give one value or one curve per map, NaN where it is
not defined (a map of zeros has no relative error). Pixels are square; ``side`` is the length of a map's last
axis.

Power spectrum. With the discrete Fourier transform F of a map m of N pixels and area A,

    P(k) = A / N² · mean of |F|² over the modes in the bin,    k = 2π / wavelength,

in unit(m)² · unit(side)². It keeps Parseval's theorem: summed over all modes, Σ P / A is the mean of m². The
mode k = 0, which is the total, and the corners of the Fourier plane beyond the Nyquist frequency are left
out, so Σ_bins modes · P / A is the variance that lies between the fundamental and the Nyquist frequency
(:func:`mode_count` gives the modes). No window is applied: a map that does not fade to its border has power
from the jump there, in the truth and in the estimate alike.

References:
    Peebles 1980, The Large-Scale Structure of the Universe, section 41, ISBN 978-0-691-08240-0.
    Villaescusa-Navarro et al. 2021, The CAMELS Project, arXiv:2010.00619 (spectra and r(k) of generated
    maps).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skyshift.errors import SkyshiftError
from skyshift.translate.metrics.image import Maps, as_maps

Values = NDArray[np.float64]
Bins = NDArray[np.intp]


def total_error(truth: ArrayLike, estimate: ArrayLike) -> Values:
    """Relative error of the total, (Σe − Σt) / Σt.

    Args:
        truth: (n, height, width).
        estimate: (n, height, width), same unit.

    Returns:
        (n,), 0 where the total is right, NaN where the truth's is zero.

    Raises:
        SkyshiftError: The shapes differ.
    """
    t, e = as_maps(truth, estimate)
    total = t.sum(axis=(1, 2))
    return _divide(e.sum(axis=(1, 2)) - total, total)


def radial_profile(maps: ArrayLike, side: ArrayLike | None = None, bins: int | None = None) -> tuple[Values, Values]:
    """Mean of each map in rings about its centre.

    Args:
        maps: (n, height, width).
        side: Length of the last axis, one number or (n,); ``None`` for lengths in pixels.
        bins: Number of rings of equal width out to the nearest border; ``None`` for rings one pixel wide.

    Returns:
        Radii in the unit of ``side``, the mean over each ring's pixels, (bins,) or (n, bins) as ``side``; and
        the profile, (n, bins), in the unit of the maps. NaN for a ring that holds no pixel centre.

    Raises:
        SkyshiftError: The shape is not (n, height, width), or ``bins`` or ``side`` is not positive.
    """
    (m,) = as_maps(maps)
    radius, ring, bins = _rings(m.shape[1:], bins)
    pixels = _bin_sums(np.ones_like(radius)[None], ring, bins)
    mean_radius = _divide(_bin_sums(radius[None], ring, bins), pixels)[0]
    pixel = 1.0 if side is None else _lengths(side, len(m)) / m.shape[2]
    return np.multiply.outer(pixel, mean_radius), _divide(_bin_sums(m, ring, bins), pixels)


def radial_profile_error(truth: ArrayLike, estimate: ArrayLike, bins: int | None = None) -> Values:
    """Area-weighted error of the radial profile, Σ A |p_e − p_t| / Σ A |p_t| over rings of area A.

    Weighting by area makes it the fraction of the total that sits at the wrong radius, so faint outskirts,
    where relative errors run away, count by what they hold.

    Args:
        truth: (n, height, width).
        estimate: (n, height, width), same unit.
        bins: Number of rings; ``None`` for rings one pixel wide.

    Returns:
        (n,), 0 where the profiles agree, NaN where the truth is zero in all rings.

    Raises:
        SkyshiftError: The shapes differ or ``bins`` is not positive.
    """
    t, e = as_maps(truth, estimate)
    _, ring, bins = _rings(t.shape[1:], bins)
    sums_t, sums_e = _bin_sums(t, ring, bins), _bin_sums(e, ring, bins)
    return _divide(np.abs(sums_e - sums_t).sum(axis=1), np.abs(sums_t).sum(axis=1))


def power_spectrum(maps: ArrayLike, side: ArrayLike | None = None, bins: int | None = None) -> tuple[Values, Values]:
    """Isotropically averaged power spectrum, normalised as the module says.

    Args:
        maps: (n, height, width), sides of at least 2 pixels.
        side: Length of the last axis, one number or (n,); ``None`` for lengths in pixels.
        bins: Number of bins of equal width; ``None`` for one per multiple of the longer side's fundamental.

    Returns:
        k, the mean over each bin's modes, (bins,) or (n, bins) as ``side``, in radians per unit of ``side``,
        or as a fraction of the Nyquist frequency where ``side`` is ``None``; and P, (n, bins). NaN for a bin
        without modes.

    Raises:
        SkyshiftError: The shape is not (n, height, width), a map is too small, or ``bins`` or ``side`` is not
            positive.
    """
    (m,) = as_maps(maps)
    k, (power,) = _spectra(side, bins, m)
    pixel = 1.0 if side is None else _lengths(side, len(m))[..., None] / m.shape[2]
    return k, power * pixel**2 / (m.shape[1] * m.shape[2])


def power_ratio(
    truth: ArrayLike, estimate: ArrayLike, side: ArrayLike | None = None, bins: int | None = None
) -> tuple[Values, Values]:
    """Power of the estimate over that of the truth: below 1 where structure of that scale is missing.

    Args:
        truth: (n, height, width).
        estimate: (n, height, width), same unit.
        side: As in :func:`power_spectrum`.
        bins: As in :func:`power_spectrum`.

    Returns:
        k as in :func:`power_spectrum`, and P_e / P_t, (n, bins), NaN where the truth has no power.

    Raises:
        SkyshiftError: As in :func:`power_spectrum`, or the shapes differ.
    """
    t, e = as_maps(truth, estimate)
    k, (P_t, P_e) = _spectra(side, bins, t, e)
    return k, _divide(P_e, P_t)


def cross_correlation(
    truth: ArrayLike, estimate: ArrayLike, side: ArrayLike | None = None, bins: int | None = None
) -> tuple[Values, Values]:
    """Correlation of the two maps' modes, r(k) = P_te / √(P_tt P_ee).

    It asks whether structure is in the right place and ignores how strong it is: 1 for any positive multiple
    of the truth, near 0 for the right power with random phases.

    Args:
        truth: (n, height, width).
        estimate: (n, height, width), any unit.
        side: As in :func:`power_spectrum`.
        bins: As in :func:`power_spectrum`.

    Returns:
        k as in :func:`power_spectrum`, and r, (n, bins), from -1 to 1, NaN where either map has no power.

    Raises:
        SkyshiftError: As in :func:`power_spectrum`, or the shapes differ.
    """
    t, e = as_maps(truth, estimate)
    k, (P_tt, P_ee, P_te) = _spectra(side, bins, t, e, cross=True)
    return k, _divide(P_te, np.sqrt(P_tt) * np.sqrt(P_ee))


def mode_count(height: int, width: int, bins: int | None = None) -> Values:
    """Number of Fourier modes in every bin of :func:`power_spectrum`, (bins,)."""
    _, ring, bins = _modes((height, width), bins)
    return _bin_sums(np.ones((1, ring.size)), ring, bins)[0]


def _spectra(side: ArrayLike | None, bins: int | None, *maps: Maps, cross: bool = False) -> tuple[Values, list[Values]]:
    """k, and the mean |F|² per bin of each map (then of their product), each (n, bins)."""
    n, height, width = maps[0].shape
    frequency, ring, bins = _modes((height, width), bins)
    modes = _bin_sums(np.ones((1, ring.size)), ring, bins)
    # 2 cycles per pixel · frequency is the fraction of Nyquist; 2π · frequency / pixel is the wavenumber.
    unit = 2.0 if side is None else 2.0 * np.pi * width / _lengths(side, n)
    k = np.multiply.outer(unit, _divide(_bin_sums(frequency[None], ring, bins), modes)[0])
    with np.errstate(invalid="ignore"):
        F = [np.fft.fft2(m).reshape(n, m.shape[1] * m.shape[2]) for m in maps]
        spectra = [_divide(_bin_sums(np.abs(f) ** 2, ring, bins), modes) for f in F]
        for power, m in zip(spectra, maps, strict=True):
            # Below the rounding of the transform (the mean |F|² is Σm²) is no power: a constant map has none.
            floor = (64.0 * np.finfo(np.float64).eps) ** 2 * (m**2).sum(axis=(1, 2))
            power[power <= floor[:, None]] = 0.0
        if cross:
            spectra.append(_divide(_bin_sums((F[0].conj() * F[1]).real, ring, bins), modes))
    return k, spectra


def _modes(shape: tuple[int, ...], bins: int | None) -> tuple[Values, Bins, int]:
    """Frequency of every mode in cycles per pixel, its bin (``bins`` for none), and the number of bins."""
    height, width = shape
    longest = max(shape)
    if min(shape) < 2:
        raise SkyshiftError(f"a power spectrum needs maps of at least 2 x 2 pixels, got {height} x {width}.")
    bins = _count(longest // 2 if bins is None else bins)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)).ravel()
    # In units of the fundamental the bins run from 1/2 to 1/2 more than Nyquist, whose modes are the last.
    place = (frequency * longest - 0.5) * bins / (longest // 2)
    inside = (frequency > 0) & (frequency <= 0.5 * (1.0 + 1e-12))
    ring = np.where(inside, np.clip(place.astype(np.intp), 0, bins - 1), bins)
    return frequency, ring, bins


def _rings(shape: tuple[int, ...], bins: int | None) -> tuple[Values, Bins, int]:
    """Radius of every pixel in pixels, its ring (``bins`` for none), and the number of rings."""
    height, width = shape
    bins = _count(max(min(shape) // 2, 1) if bins is None else bins)
    radius = np.hypot(np.arange(height)[:, None] - (height - 1) / 2.0, np.arange(width) - (width - 1) / 2.0).ravel()
    place = (radius * bins / (min(shape) / 2.0)).astype(np.intp)
    return radius, np.minimum(place, bins), bins


def _bin_sums(values: Values, index: Bins, bins: int) -> Values:
    """Sums of (n, ...) values over the bins that ``index`` names, (n, bins). Index ``bins`` is dropped."""
    n = len(values)
    flat = index + (bins + 1) * np.arange(n)[:, None]
    sums = np.asarray(np.bincount(flat.ravel(), values.ravel(), minlength=n * (bins + 1)), np.float64)
    return sums.reshape(n, bins + 1)[:, :bins]


def _divide(numerator: Values, denominator: Values) -> Values:
    """The quotient, NaN without a warning where the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def _lengths(side: ArrayLike, n: int) -> Values:
    """``side`` as one number or (n,)."""
    lengths = np.asarray(side, np.float64)
    if lengths.shape not in ((), (n,)) or not (lengths > 0).all():
        raise SkyshiftError(f"side must be one positive length or {n} of them, one a map; got {side!r}.")
    return lengths


def _count(bins: int) -> int:
    if bins < 1:
        raise SkyshiftError(f"bins is {bins}; at least one is needed.")
    return bins
