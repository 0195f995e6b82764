"""What explanations of many maps have in common: by radius, by the value of a map, by spatial frequency, by channel.

Every curve parts the sum of the SHAP values of a map into bins, so that its bins add up to f(x) - E f(background). A
mean over views comes with a 95 % interval from bootstrap samples of whole galaxies, since views of one galaxy are not
independent.

References:
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, ISBN 978-0-412-04231-7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.translate.metrics.physics import power_spectrum

Values = NDArray[np.float64]

RESAMPLES = 2000
RADII = 8
QUANTILES = 10
LEVEL = 0.95


@dataclass(frozen=True)
class Curve:
    """SHAP values of n views, parted into bins.

    Attributes:
        title: What the bins are of.
        labels: (bins,) for axes and tables.
        sums: (n, channels, bins) sum of the values, in the unit of the output.
        sizes: (n, channels, bins) sum of their absolute values; ``None`` where bins are no sets of pixels.
        pixels: (n, bins) share of a map's pixels in each bin; likewise.
    """

    title: str
    labels: tuple[str, ...]
    sums: Values
    sizes: Values | None = None
    pixels: Values | None = None


def by_bin(values: NDArray[np.floating], bins: NDArray[np.integer], title: str, labels: Sequence[str]) -> Curve:
    """Part values by a bin number of each pixel.

    Args:
        values: (n, channels, height, width).
        bins: (n, height, width) or (height, width), from 0.
        title: Of the curve.
        labels: One a bin.
    """
    n, channels, height, width = values.shape
    flat = np.broadcast_to(bins, (n, height, width)).reshape(n, -1)
    sums, sizes = np.zeros((n, channels, len(labels))), np.zeros((n, channels, len(labels)))
    pixels = np.stack([np.bincount(row, minlength=len(labels)) for row in flat]) / flat.shape[1]
    for i in range(n):
        for c in range(channels):
            one = values[i, c].ravel().astype(np.float64)
            sums[i, c] = np.bincount(flat[i], one, len(labels))
            sizes[i, c] = np.bincount(flat[i], np.abs(one), len(labels))
    return Curve(title, tuple(labels), sums, sizes, pixels)


def by_radius(values: NDArray[np.floating], rings: int = RADII) -> Curve:
    """Part by distance from the centre in units of half the side; the last bin holds the corners."""
    height, width = values.shape[-2:]
    y = (np.arange(height) + 0.5 - height / 2) / (width / 2)
    x = (np.arange(width) + 0.5 - width / 2) / (width / 2)
    ring = np.minimum((np.hypot(y[:, None], x) * rings).astype(np.int64), rings)
    labels = [f"{i / rings:.3g}–{(i + 1) / rings:.3g}" for i in range(rings)]
    return by_bin(values, ring, "radius / half of the side", [*labels, "corners"])


def by_quantile(values: NDArray[np.floating], maps: NDArray[np.floating], domain: str, count: int = QUANTILES) -> Curve:
    """Part by the value of a map, in quantiles of its lit pixels over all views; bin 0 holds the empty pixels.

    Args:
        values: (n, channels, height, width).
        maps: (n, height, width), physical.
        domain: Of the maps.
        count: Number of quantiles.
    """
    lit = maps[maps > 0]
    edges = np.quantile(lit, np.linspace(0, 1, count + 1)[1:-1]) if lit.size else np.zeros(count - 1)
    bins = np.where(maps > 0, np.digitize(maps, edges) + 1, 0)
    labels = ["empty", *(f"{100 * i // count}–{100 * (i + 1) // count} %" for i in range(count))]
    return by_bin(values, bins, f"quantile of true {domain}", labels)


def octaves(rings: int, pixels: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Octaves of spatial frequency: the octave of every ring, and labels by the wavelength in pixels.

    Octave 0 is the total of a map, the last lies beyond the Nyquist frequency, in the corners of the Fourier plane.

    Args:
        rings: Number of rings of |k|, ring j at j fundamentals.
        pixels: On the shorter side.
    """
    k = np.arange(rings)
    nyquist = pixels // 2
    octave = np.where(k > 0, np.floor(np.log2(np.maximum(k, 1))).astype(np.int64) + 1, 0)
    octave[k > nyquist] = octave[min(nyquist, rings - 1)] + 1
    octave[k == nyquist] = octave[min(max(nyquist - 1, 0), rings - 1)]  # Nyquist itself closes the octave below
    _, octave = np.unique(octave, return_inverse=True)
    labels = []
    for number in range(int(octave.max()) + 1):
        inside = k[octave == number]
        if number == 0:
            labels.append("total")
        elif inside.min() > nyquist:
            labels.append(f"< {pixels / nyquist:.3g} px")
        else:
            ends = sorted({f"{pixels / inside.max():.3g}", f"{pixels / inside.min():.3g}"}, key=float)
            labels.append("–".join(ends) + " px")
    return octave, tuple(labels)


def by_frequency(spectrum: NDArray[np.floating], pixels: int) -> Curve:
    """Part by spatial frequency, in octaves of wavelength.

    Args:
        spectrum: (n, channels, rings), of :class:`skyshift.attribution.Attribution`.
        pixels: On the shorter side of the maps.
    """
    octave, labels = octaves(spectrum.shape[-1], pixels)
    sums = np.zeros((*spectrum.shape[:2], len(labels)))
    for ring, number in enumerate(octave):
        sums[..., number] += spectrum[..., ring]
    return Curve("wavelength", labels, sums)


def power_shares(values: NDArray[np.floating]) -> tuple[Values, Values]:
    """How the power of SHAP maps is spread over spatial frequency.

    Args:
        values: (n, channels, height, width).

    Returns:
        (bins,) k / Nyquist, and (n, channels, bins) share of the power per bin; NaN where a map is empty.
    """
    n, channels = values.shape[:2]
    k, power = power_spectrum(values.reshape(-1, *values.shape[-2:]).astype(np.float64))
    power = power * np.arange(1, power.shape[-1] + 1)  # modes in a ring grow with its radius
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = power / power.sum(-1, keepdims=True)
    return k, shares.reshape(n, channels, -1)


def channel_shares(values: NDArray[np.floating]) -> Values:
    """(n, channels) share of the sum of |SHAP|; NaN where all are zero."""
    size = np.abs(values).sum((2, 3), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return size / size.sum(1, keepdims=True)


def outside_boxes(values: NDArray[np.floating], boxes: Sequence[tuple[int, int, int, int]]) -> Values:
    """Share of |SHAP| outside the pixels that each output sees directly, over all outputs.

    Args:
        values: (n, outputs, channels, height, width).
        boxes: Bottom, top, left and right of each output, top and right excluded; may reach beyond the map.

    Returns:
        (n,) shares; NaN where all values are zero.
    """
    size = np.abs(values).sum(2, dtype=np.float64)
    total = size.sum((1, 2, 3))
    for k, (bottom, top, left, right) in enumerate(boxes):
        size[:, k, max(bottom, 0) : max(top, 0), max(left, 0) : max(right, 0)] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(size.sum((1, 2, 3)) / total)


@dataclass(frozen=True)
class Mean:
    """A mean over views with its 95 % interval over galaxies.

    Attributes:
        value: Any shape.
        low: Same shape.
        high: Same shape.
    """

    value: Values
    low: Values
    high: Values

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Where the interval holds no zero."""
        return (self.low > 0) | (self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name).tolist() for name in ("value", "low", "high")}


def bootstrap_mean(values: NDArray[np.floating], groups: NDArray[np.integer], seed: int = 0) -> Mean:
    """Mean over views, and the central 95 % of the means of bootstrap samples of whole groups.

    Args:
        values: (n, …); views with NaN are left out, entry by entry.
        groups: (n,) galaxy of each view.
        seed: Of the samples.
    """
    values = np.asarray(values, np.float64)
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    seen = np.isfinite(values)
    sums, sizes = np.zeros((count, *values.shape[1:])), np.zeros((count, *values.shape[1:]))
    np.add.at(sums, member, np.where(seen, values, 0.0))
    np.add.at(sizes, member, seen.astype(np.float64))
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.tensordot(weights, sums, 1) / np.tensordot(weights, sizes, 1)
        mean = sums.sum(0) / sizes.sum(0)
    edge = (1 - LEVEL) / 2
    low, high = _nanquantile(drawn, edge), _nanquantile(drawn, 1 - edge)
    return Mean(np.asarray(mean), low, high)


def _nanquantile(drawn: Values, q: float) -> Values:
    """Along the first axis; NaN, without a warning, where there is nothing."""
    empty = ~np.isfinite(drawn).any(0)
    return np.where(empty, np.nan, np.nanquantile(np.where(empty, 0.0, drawn), q, axis=0))


def curves_of(
    values: NDArray[np.floating],
    spectrum: NDArray[np.floating] | None,
    maps: Mapping[str, NDArray[np.floating]],
) -> dict[str, Curve]:
    """All curves of the explanations of one probe.

    Args:
        values: (n, channels, height, width).
        spectrum: (n, channels, rings), or ``None``.
        maps: Domain to physical maps (n, height, width) for the quantiles.
    """
    found = {"radius": by_radius(values)}
    for domain, stack in maps.items():
        found[f"quantile_{domain}"] = by_quantile(values, stack, domain)
    if spectrum is not None:
        found["frequency"] = by_frequency(spectrum, min(values.shape[-2:]))
    return found
