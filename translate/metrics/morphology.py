"""How a galaxy is built: centre, half-mass radius, concentration, asymmetry, clumpiness, Gini, M20.

With f the pixels of a map, all of them inside a fixed aperture, r the distance from the fixed centre and r_s the radius
that holds the share s of the aperture's total:

    C   = 5 log10(r_80 / r_20),
    A   = Σ |f − f_180| / Σ |f|,                      f_180: the map turned by 180° about the centre,
    S   = Σ max(f − f_box, 0) / Σ f,                  f_box: the map under a boxcar; its centre is left out,
    G   = Σ_i (2i − n − 1) |f_i| / (|f|_mean n (n−1)),   |f_i| in increasing order, i from 1 to n,
    M20 = log10(Σ_brightest f d² / Σ f d²),           over the brightest pixels that hold 20 % of the total,
                                                      d the distance from the centroid.

These are the definitions of Lotz et al. (A without Conselice's ½, S without his factor 10), but for what they are taken
on. A Petrosian radius and an asymmetry centre of each map's own would move the aperture between a map and its estimate,
and the difference of the two would mix what changed with where it was looked for. So centre and aperture are the map's:
the circle inscribed in it. The maps have no noise to subtract. Values are therefore to be compared between maps of one
domain and field of view, not with catalogues.

References:
    Conselice 2003, The Relationship between Stellar Light Distributions of Galaxies and Their Formation Histories,
    ApJS 147, 1, doi:10.1086/375001.
    Lotz, Primack & Madau 2004, A New Nonparametric Approach to Galaxy Morphological Classification, AJ 128, 163,
    doi:10.1086/421849.
    Rodriguez-Gomez et al. 2019, The optical morphologies of galaxies in the IllustrisTNG simulation (statmorph),
    MNRAS 483, 4140, doi:10.1093/mnras/sty3345.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from skyshift.translate.metrics.image import as_maps

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

BOX = 0.1
"""Width of the boxcar of S, and radius of the centre left out of it, in radii of the aperture."""


def distances(shape: tuple[int, ...]) -> Values:
    """Distance of every pixel of (height, width) from the centre, in pixels."""
    height, width = shape[-2:]
    return np.hypot(np.arange(height)[:, None] - (height - 1) / 2.0, np.arange(width) - (width - 1) / 2.0)


def aperture(shape: tuple[int, ...]) -> Mask:
    """Pixels of (height, width) whose centres lie in the inscribed circle."""
    return distances(shape) <= min(shape[-2:]) / 2.0


def centroid(maps: ArrayLike, inside: Mask | None = None) -> Values:
    """Mean position weighted by the map.

    Args:
        maps: (n, height, width).
        inside: (height, width), by default the inscribed circle.

    Returns:
        (n, 2), row and column in pixels from the centre of the map; NaN where the total is not positive.
    """
    (m,) = as_maps(maps)
    weights = m * _mask(m, inside)
    total = _positive(weights.sum(axis=(1, 2)))
    y, x = (np.arange(size) - (size - 1) / 2.0 for size in m.shape[1:])
    return np.stack([weights.sum(axis=2) @ y, weights.sum(axis=1) @ x], axis=1) / total[:, None]


def radii(maps: ArrayLike, shares: ArrayLike) -> Values:
    """Radii about the centre that hold given shares of the total in the inscribed circle.

    The cumulated sum is taken pixel by pixel outwards and interpolated in area, so that half pixels come out right.

    Args:
        maps: (n, height, width).
        shares: (k,) between 0 and 1.

    Returns:
        (n, k) in pixels; NaN where the total is not positive.
    """
    (m,) = as_maps(maps)
    inside = aperture(m.shape)
    order = np.argsort(distances(m.shape)[inside], kind="stable")
    sums = np.cumsum(m[:, inside][:, order], axis=1)
    total = _positive(sums[:, -1])
    area = np.arange(order.size + 1.0)
    wanted = np.asarray(shares, np.float64)
    found = np.full((len(m), wanted.size), np.nan)
    for i in np.flatnonzero(np.isfinite(total)):
        share = np.maximum.accumulate(np.concatenate([[0.0], sums[i] / total[i]]))
        # Where nothing is added (a hole), the innermost radius.
        rising = np.concatenate([[True], np.diff(share) > 0])
        found[i] = np.sqrt(np.interp(wanted, share[rising], area[rising]) / np.pi)
    return found


def asymmetry(maps: ArrayLike, inside: Mask | None = None) -> Values:
    """A about the map's centre.

    Args:
        maps: (n, height, width).
        inside: (height, width), by default the inscribed circle.

    Returns:
        (n,): 0 for a map that a half turn leaves as it is, 2 where nothing lies opposite to anything; NaN for zeros.
    """
    (m,) = as_maps(maps)
    mask = _mask(m, inside)
    return (np.abs(m - m[:, ::-1, ::-1]) * mask).sum(axis=(1, 2)) / _positive((np.abs(m) * mask).sum(axis=(1, 2)))


def clumpiness(maps: ArrayLike, box: int | None = None, inside: Mask | None = None) -> Values:
    """S, the share of the total in structure narrower than a boxcar.

    Args:
        maps: (n, height, width).
        box: Width of the boxcar in pixels; by default a tenth of the aperture's radius, at least 3.
        inside: (height, width), by default the inscribed circle without a disc of :data:`BOX` of its radius.

    Returns:
        (n,); NaN where the total is not positive.
    """
    (m,) = as_maps(maps)
    radius = min(m.shape[1:]) / 2.0
    box = max(3, round(BOX * radius)) if box is None else box
    mask = aperture(m.shape) & (distances(m.shape) >= BOX * radius) if inside is None else inside
    smooth = uniform_filter(m, size=(0, box, box))
    return (np.maximum(m - smooth, 0.0) * mask).sum(axis=(1, 2)) / _positive((m * mask).sum(axis=(1, 2)))


def gini(maps: ArrayLike, inside: Mask | None = None) -> Values:
    """G, how unequally the pixels share the total.

    Args:
        maps: (n, height, width).
        inside: (height, width), by default the inscribed circle.

    Returns:
        (n,): 0 where all pixels are equal, 1 where one holds everything; NaN for zeros.
    """
    (m,) = as_maps(maps)
    values = np.sort(np.abs(m[:, _mask(m, inside)]), axis=1)
    n = values.shape[1]
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    return values @ weights / _positive(values.mean(axis=1) * n * max(n - 1, 1))


def m20(maps: ArrayLike, inside: Mask | None = None) -> Values:
    """M20, how far out the brightest fifth of the total lies.

    Args:
        maps: (n, height, width).
        inside: (height, width), by default the inscribed circle.

    Returns:
        (n,), negative; NaN where the total is not positive or all of it is in one place.
    """
    (m,) = as_maps(maps)
    mask = _mask(m, inside)
    y, x = (np.arange(size) - (size - 1) / 2.0 for size in m.shape[1:])
    found = np.full(len(m), np.nan)
    for i, centre in enumerate(centroid(m, mask)):
        if not np.isfinite(centre).all():
            continue
        squares = ((y - centre[0])[:, None] ** 2 + (x - centre[1]) ** 2)[mask]
        flux = m[i][mask]
        moment = float(flux @ squares)
        order = np.argsort(-flux, kind="stable")
        brightest = order[np.cumsum(flux[order]) < 0.2 * flux.sum()]
        part = float(flux[brightest] @ squares[brightest])
        found[i] = np.log10(part / moment) if moment > 0 and part > 0 else np.nan
    return found


def structure(maps: ArrayLike) -> dict[str, Values]:
    """All of these on the fixed centre and aperture.

    Args:
        maps: (n, height, width).

    Returns:
        ``row`` and ``column`` of the centroid and ``half_mass_radius`` in pixels, ``concentration``, ``asymmetry``,
        ``clumpiness``, ``gini`` and ``m20``, each (n,).
    """
    (m,) = as_maps(maps)
    centre = centroid(m)
    r20, r50, r80 = radii(m, (0.2, 0.5, 0.8)).T
    return {
        "row": centre[:, 0],
        "column": centre[:, 1],
        "half_mass_radius": r50,
        "concentration": 5.0 * np.log10(r80 / r20),
        "asymmetry": asymmetry(m),
        "clumpiness": clumpiness(m),
        "gini": gini(m),
        "m20": m20(m),
    }


def _mask(maps: Values, inside: Mask | None) -> Mask:
    return aperture(maps.shape) if inside is None else inside


def _positive(total: Values) -> Values:
    """A total to divide by; NaN where it is none."""
    return np.where(total > 0, total, np.nan)
