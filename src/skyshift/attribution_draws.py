"""Where gradients are taken: points on the straight paths from backgrounds to a sample.

Expected gradients average over backgrounds b and places α on the path b + α (x - b), both uniform.

Paths are not smooth. Instance normalisation makes a network blind to the amplitude of a map, so that all of the change
on the way from an empty map happens within α < 0.01, where independent uniform draws rarely come: their completeness
error can exceed 1 after hundreds of draws. Therefore every background is drawn equally often, α is stratified, and from
four draws a background on half of them are for the ends of the path, α < a and α > 1 - a with a = 0.05, spread evenly
in ln(δ + α) with δ = 1e-4 and weighted by the inverse of that density; the others are even between the ends. The
weights of the even ones are multiplied by (1 - Σ w_ends) / (1 - 2a), whose mean is 1 and which does not depend on where
they are: the estimate stays unbiased and is exact where f is linear. Independent uniform draws, whose error falls as
1/√draws, are there to compare with (``random``).

References:
    McKay, Beckman & Conover 1979, A Comparison of Three Methods for Selecting Values of Input Variables, Technometrics
    21, 239 (stratified and Latin hypercube sampling).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Sampling = Literal["stratified", "random"]

END = 0.05
"""a: length of either end of a path."""

FLOOR = 1e-4
"""δ: distance from the very end below which α is drawn evenly again."""

FEWEST_CELLS = 4
"""With fewer draws a background all of them are even."""


@dataclass(frozen=True)
class Draws:
    """Points on the paths from backgrounds to one sample.

    Attributes:
        background: (draws,) numbers of backgrounds.
        alpha: (draws,) places on the paths, 0 at the background.
        weight: (draws,), of mean 1.
    """

    background: NDArray[np.int64]
    alpha: Numbers
    weight: Numbers


def draw(sampling: Sampling, seed: tuple[int, int], samples: int, backgrounds: int) -> Draws:
    """The draws of one sample, fixed by a seed and their number.

    Stratified, there are as many for each background: ``samples`` rounded up to a multiple of ``backgrounds``, or one
    each for a random choice of backgrounds where there are fewer samples.
    """
    generator = np.random.default_rng([*seed, samples])
    if sampling == "random":
        which = generator.integers(backgrounds, size=samples)
        return Draws(which, generator.random(samples), np.ones(samples))
    chosen = generator.permutation(backgrounds)[: min(samples, backgrounds)]
    cells = -(-samples // len(chosen))
    # In each cell the draws of all backgrounds stand at different places: a Latin square.
    places = generator.permuted(np.tile(np.arange(len(chosen)), (cells, 1)), axis=1).T
    inside = (places + generator.random(places.shape)) / len(chosen)  # (backgrounds, cells), in [0, 1)
    ends = cells // 4 if cells >= FEWEST_CELLS else 0
    alpha, weight = np.empty_like(inside), np.empty_like(inside)
    low, high, middle = np.s_[:, :ends], np.s_[:, ends : 2 * ends], np.s_[:, 2 * ends :]
    for number, end in enumerate((low, high)):
        if ends:
            distance = FLOOR * np.expm1((np.arange(ends) + inside[end]) / ends * np.log1p(END / FLOOR))
            alpha[end] = distance if number == 0 else 1.0 - distance
            weight[end] = (FLOOR + distance) * np.log1p(END / FLOOR) / ends
    edge = END if ends else 0.0
    even = cells - 2 * ends
    alpha[middle] = edge + (1.0 - 2 * edge) * (np.arange(even) + inside[middle]) / even
    weight[middle] = (1.0 - weight[:, : 2 * ends].sum(1, keepdims=True)) / even
    return Draws(np.repeat(chosen, cells), alpha.ravel(), weight.ravel() * cells)
