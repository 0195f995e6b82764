"""Deletion and insertion: do the pixels that an explanation names make the output?

Deletion replaces the pixels of an input by the background, those with the highest values first; a good order makes
the output fall early. Insertion begins with the background and puts the input's pixels in, in the same order; a good
order makes it rise early. With f_q the output after a share q of the pixels (of all channels), averaged over some
background maps,

    A = ∫₀¹ f_q dq,

is low for a good deletion and high for a good insertion. Orders to compare with: random, the plain gradient (which does
not know whether the background lies above or below a pixel), and the gradient times the difference from the mean of the
background, which is what SHAP values are of a linear output.

References:
    Petsiuk, Das & Saenko 2018, RISE, BMVC, arXiv:1806.07421.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]

SHARES = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0])
"""Shares of the pixels after which the output is looked at."""

FILLS = 4
"""Background maps to average over, at the most."""


def removal_curves(
    evaluate: Callable[[Tensor], Tensor],
    inputs: Tensor,
    background: Tensor,
    scores: Mapping[str, NDArray[np.floating]],
    shares: NDArray[np.floating] = SHARES,
) -> dict[str, dict[str, Values]]:
    """Output against the share of pixels deleted and inserted.

    Args:
        evaluate: (m, channels, height, width) to (m,).
        inputs: (n, channels, height, width).
        background: (b, channels, height, width); at most :data:`FILLS` of them, evenly spread, are used.
        scores: Name of an order to (n, channels, height, width), the highest first.
        shares: (steps,) of the pixels.

    Returns:
        Order to ``deletion`` and ``insertion``, each (n, steps).
    """
    fills = background[np.unique(np.linspace(0, len(background) - 1, FILLS).astype(int))]
    found = {
        name: {mode: np.zeros((len(inputs), len(shares))) for mode in ("deletion", "insertion")} for name in scores
    }
    size = inputs[0].numel()
    counts = torch.from_numpy(np.round(np.asarray(shares) * size).astype(np.int64))
    for name, values in scores.items():
        for i, x in enumerate(inputs):
            order = torch.from_numpy(np.argsort(-values[i].ravel(), kind="stable"))
            rank = torch.empty(size, dtype=torch.int64)
            rank[order] = torch.arange(size)
            taken = (rank[None] < counts[:, None]).reshape(len(counts), 1, *x.shape)
            for mode, shown in (("deletion", ~taken), ("insertion", taken)):
                mixed = torch.where(shown, x, fills[None])
                outputs = evaluate(mixed.flatten(0, 1)).reshape(len(counts), len(fills))
                found[name][mode][i] = outputs.double().mean(1).cpu().numpy()
    return found


def area(curve: Values, shares: NDArray[np.floating] = SHARES) -> Values:
    """(n, steps) to (n,): the mean output over all shares, by the trapezoidal rule."""
    return np.trapezoid(curve, shares, axis=-1)
