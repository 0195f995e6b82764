"""The values of the pixels wherever they lie: the one-point distribution and the peaks.

Values span decades, so they are compared as u = asinh(x / 2s) / ln 10: decades of x far above the softening s, linear
and signed below it. The distance between the one-point distributions of two maps of N pixels is the first Wasserstein
distance, which for equally many values is the mean difference of the sorted ones,

    W₁ = 1/N Σ_i |u_t(i) − u_e(i)|        [dex].

A peak is a pixel above a threshold that none of its eight neighbours exceeds.

References:
    Villani 2009, Optimal Transport, section 2.2, doi:10.1007/978-3-540-71050-9 (one dimension).
    Jain & Van Waerbeke 2000, Statistics of Dark Matter Halos from Gravitational Lensing, ApJ 530, L1,
    doi:10.1086/312480 (peak counts).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter

from skyshift.translate.metrics.image import as_maps

Values = NDArray[np.float64]


def decades(values: ArrayLike, softening: float) -> Values:
    """Decades u of any array of values, in dex; ``softening`` in their unit."""
    return np.arcsinh(np.asarray(values, np.float64) / (2.0 * softening)) / np.log(10.0)


def one_point_distance(truth: ArrayLike, estimate: ArrayLike, softening: float) -> Values:
    """Distance between the one-point distributions.

    Args:
        truth: (n, height, width).
        estimate: (n, height, width), same unit.
        softening: Below which values count linearly, same unit.

    Returns:
        (n,) dex: 0 for the same pixels in any order, log10 c for a bright map multiplied by c.

    Raises:
        SkyshiftError: The shapes differ.
    """
    t, e = (
        np.sort(decades(m, softening).reshape(len(m), m[0].size if len(m) else 0)) for m in as_maps(truth, estimate)
    )
    return np.abs(t - e).mean(axis=1)


def one_point_counts(maps: ArrayLike, edges: ArrayLike) -> Values:
    """Pixels of each map in bins of value, (n, bins); the last bin holds what lies above it too.

    Args:
        maps: (n, height, width).
        edges: (bins + 1,) increasing, in the maps' unit.
    """
    (m,) = as_maps(maps)
    edges = np.asarray(edges, np.float64)
    clipped = np.minimum(m, np.nextafter(edges[-1], -np.inf))
    return np.array([np.histogram(one, edges)[0] for one in clipped], np.float64).reshape(len(m), len(edges) - 1)


def peak_counts(maps: ArrayLike, threshold: float) -> Values:
    """Number of peaks above a threshold in each map, (n,).

    Args:
        maps: (n, height, width).
        threshold: In the maps' unit.
    """
    (m,) = as_maps(maps)
    peaks = (m > threshold) & (m == maximum_filter(m, size=(1, 3, 3), mode="constant", cval=-np.inf))
    return peaks.sum(axis=(1, 2)).astype(np.float64)
