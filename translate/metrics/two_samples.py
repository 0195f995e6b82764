"""Whether two sets of maps come from one distribution, whichever map belongs to which.

Fréchet distance of features x (truth) and y, of Gaussians with their means and covariances,

    d² = |μ_x − μ_y|² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½),

on features of Inception-v3 known as FID, and on no other. With few maps it is biased upwards (n maps span n − 1
dimensions): compare equal numbers only. With A, B the centred features over √(n − 1), Σ_x = AᵀA and Σ_y = BᵀB, the last
trace is the sum of the singular values of A Bᵀ: exact, also where covariances are singular.

Kernel distance (KID on Inception features): the unbiased squared maximum mean discrepancy under
k(x, y) = (xᵀy / d + 1)³, zero on average for one distribution, and sometimes below.

Classifier two-sample test: a classifier is trained to tell truth from estimate on some galaxies and asked on others.
Its AUC is 0.5 where nothing tells them apart, 1 where it is always right. Here it is a linear discriminant with shrunk
covariance on standardised features and their squares, which is the best there is for Gaussians; five folds of whole
galaxies. The p-value exchanges truth and estimate of whole galaxies at random and trains anew.

References:
    Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500 (FID).
    Bińkowski et al. 2018, Demystifying MMD GANs, arXiv:1801.01401 (KID).
    Lopez-Paz & Oquab 2017, Revisiting Classifier Two-Sample Tests, arXiv:1610.06545.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]
Groups = NDArray[np.int64]
FOLDS = 5


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Values, Values]:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise SkyshiftError(f"two sets of features have shapes (n, d) and (m, d), not {a.shape} and {b.shape}")
    return a, b


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """d² between two sets of features.

    Args:
        x: (n, d).
        y: (m, d).

    Returns:
        Zero or more, in squared units of the features; NaN with fewer than two of either.

    Raises:
        SkyshiftError: The shapes do not fit.
    """
    a, b = _pair(x, y)
    if min(len(a), len(b)) < 2:
        return float("nan")
    shift = a.mean(axis=0) - b.mean(axis=0)
    A, B = ((m - m.mean(axis=0)) / np.sqrt(len(m) - 1) for m in (a, b))
    product = A @ B.T
    if min(product.shape) > a.shape[1]:  # more maps than features: the same singular values from two triangles
        product = np.linalg.qr(A)[1] @ np.linalg.qr(B)[1].T
    cross = np.linalg.svd(product, compute_uv=False).sum()
    return float(max(shift @ shift + (A**2).sum() + (B**2).sum() - 2.0 * cross, 0.0))


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased squared discrepancy of two sets of features under the cubic kernel.

    Args:
        x: (n, d).
        y: (m, d).

    Returns:
        A number near or above zero; NaN with fewer than two of either.

    Raises:
        SkyshiftError: The shapes do not fit.
    """
    a, b = _pair(x, y)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return float("nan")
    xx, yy, xy = ((p @ q.T / a.shape[1] + 1.0) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    of_one = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(of_one - 2.0 * xy.mean())


def classifier_scores(truth: ArrayLike, estimate: ArrayLike, groups: ArrayLike) -> Values:
    """How much the classifier takes each map for a true one, by classifiers that have not seen its galaxy.

    Args:
        truth: (n, d) features, finite.
        estimate: (n, d), of the same maps.
        groups: (n,) galaxy of each.

    Returns:
        (2, n) log odds less those of the fold, of truths and estimates; NaN with fewer than two galaxies.

    Raises:
        SkyshiftError: The shapes do not fit.
    """
    a, b = _pair(truth, estimate)
    galaxies, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(galaxies) < 2:
        return np.full((2, len(a)), np.nan)
    fold = np.random.default_rng(0).permutation(len(galaxies))[member] % min(FOLDS, len(galaxies))
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # slow to import, and not always needed

    scores = np.empty((2, len(a)))
    for number in np.unique(fold):
        known, asked = fold != number, fold == number
        x = np.concatenate([a[known], b[known]])
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        deviation[deviation <= 1e-12 * (1.0 + np.abs(mean))] = np.inf  # a constant tells nothing

        def inputs(values: Values, mean: Values = mean, deviation: Values = deviation) -> Values:
            z = np.clip((values - mean) / deviation, -5.0, 5.0)
            return np.concatenate([z, z**2], axis=1)

        label = np.repeat([1, 0], known.sum())
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(inputs(x), label)
        for row, values in enumerate((a, b)):
            scores[row, asked] = model.decision_function(inputs(values[asked]))
    return scores


def area_under_curve(scores: Values) -> float:
    """Chance that a truth has a higher score than an estimate, equal ones counting half; NaN where there are none."""
    if not scores.size or not np.isfinite(scores).all():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.repeat([1, 0], scores.shape[1]), scores.ravel()))


def classifier_p_value(
    truth: ArrayLike, estimate: ArrayLike, groups: ArrayLike, permutations: int = 49, seed: int = 0
) -> float:
    """Chance of so large an AUC if truth and estimate of a galaxy were exchangeable.

    Args:
        truth: (n, d) features, finite.
        estimate: (n, d), of the same maps.
        groups: (n,) galaxy of each.
        permutations: Random exchanges; the smallest p-value is one over one more.
        seed: Of these.

    Returns:
        From 1 / (permutations + 1) to 1; NaN with fewer than two galaxies.

    Raises:
        SkyshiftError: The shapes do not fit.
    """
    a, b = _pair(truth, estimate)
    found = area_under_curve(classifier_scores(a, b, groups))
    if not np.isfinite(found):
        return float("nan")
    galaxies, member = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    as_large = 1
    for _ in range(permutations):
        swap = (generator.integers(2, size=len(galaxies)) > 0)[member][:, None]
        drawn = area_under_curve(classifier_scores(np.where(swap, b, a), np.where(swap, a, b), groups))
        as_large += drawn >= found - 1e-12
    return as_large / (permutations + 1)
