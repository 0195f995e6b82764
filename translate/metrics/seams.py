"""Artefacts of place: seams where tiles met, and errors that grow towards the border of a map.

    seam excess    mean |jump| across the lines where tiles begin, over the mean |jump| elsewhere, less 1
    border error   root mean square error of the pixels at each distance from the border

A map without seams has a seam excess about 0; one of flat tiles that do not fit, far above it. Beside the border a
network sees its padding instead of the sky; how far the error reaches inwards shows how far it sees.

References:
    Alsallakh et al. 2021, Mind the Pad, arXiv:2010.02178 (artefacts of padding).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skyshift.translate.metrics.image import as_maps

Values = NDArray[np.float64]

INTERIOR = 0.25
"""Pixels farther from the border than this share of the shorter side are the interior."""


def seam_excess(maps: ArrayLike, starts: Sequence[int]) -> float:
    """How much larger jumps between neighbouring pixels are where tiles begin than elsewhere.

    Args:
        maps: (n, height, width) or (height, width).
        starts: First rows and columns of the tiles but the first: jumps between pixel ``s - 1`` and ``s``.

    Returns:
        0 where there are no seams; NaN where nothing jumps elsewhere.
    """
    (m,) = as_maps(maps if np.ndim(maps) == 3 else np.asarray(maps)[None])
    on, off = [], []
    for axis in (1, 2):
        jumps = np.moveaxis(np.abs(np.diff(m, axis=axis)), axis, 0)
        lines = [start - 1 for start in starts if 1 <= start < m.shape[axis]]
        on.append(jumps[lines].ravel())
        off.append(np.delete(jumps, lines, axis=0).ravel())
    seams, others = np.concatenate(on), np.concatenate(off)
    if not seams.size or not others.size or others.mean() == 0:
        return float("nan")
    return float(seams.mean() / others.mean() - 1.0)


def border_error(truth: ArrayLike, estimate: ArrayLike) -> tuple[NDArray[np.int64], Values, float]:
    """Error against the distance from the border.

    Args:
        truth: (n, height, width).
        estimate: Same shape and unit.

    Returns:
        Distances in pixels (0: the outermost), the root mean square error at each, and how much larger that of the
        outermost pixels is than that of the interior (0: no border artefact; NaN where the interior has no error).

    Raises:
        SkyshiftError: The shapes differ.
    """
    t, e = as_maps(truth, estimate)
    rows, columns = (np.minimum(np.arange(size), np.arange(size)[::-1]) for size in t.shape[1:])
    place = np.minimum(rows[:, None], columns[None]).ravel()
    squares = ((e - t) ** 2).mean(axis=0).ravel()
    error = np.sqrt(np.bincount(place, squares) / np.bincount(place))
    inside = place >= INTERIOR * min(t.shape[1:])
    interior = float(np.sqrt(squares[inside].mean()))
    return np.arange(len(error)), error, float(error[0] / interior - 1.0) if interior > 0 else float("nan")
