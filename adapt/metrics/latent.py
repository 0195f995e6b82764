"""How source and target lie in the space of features.

Proxy A-distance: a linear classifier is trained to tell the domains apart and asked about objects that it has not seen.
With ε its balanced error,

    d_A = 2 (1 − 2 ε),

0 where it can only guess and 2 where it never errs. Groups (views of an object) are never on both sides.

Silhouette of labels: (b − a) / max(a, b), the mean over objects, with a the mean distance to objects of the same label
and b that to those of the nearest other one; 1 for separate clusters, 0 for mixed ones. Of domains it should be near 0,
of classes near 1.

Pictures of the space are t-SNE, isomap and (where umap-learn is installed) UMAP. They show neighbours; distances
between groups and their sizes mean little. All have seeds.

References:
    Ben-David et al. 2010, A theory of learning from different domains, doi:10.1007/s10994-009-5152-4.
    Rousseeuw 1987, Silhouettes, doi:10.1016/0377-0427(87)90125-7.
    van der Maaten & Hinton 2008, Visualizing Data using t-SNE, JMLR 9, 2579.
    Tenenbaum, de Silva & Langford 2000, doi:10.1126/science.290.5500.2319 (isomap).
    McInnes, Healy & Melville 2018, UMAP, arXiv:1802.03426.
"""

import importlib
import importlib.util
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE, Isomap
from sklearn.metrics import balanced_accuracy_score, silhouette_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Values = NDArray[np.float64]

FOLDS = 5
COMPONENTS = 50
"""Principal components that are left of wide features before they are embedded, as is usual for t-SNE."""
NEIGHBOURS = 15
"""Of each object, for isomap and UMAP."""
MOST = 2000
"""Objects whose pairwise distances are taken."""

EMBEDDINGS = ("tsne", "isomap", "umap")
TITLES = {"tsne": "t-SNE", "isomap": "Isomap", "umap": "UMAP"}


def embeddings() -> tuple[str, ...]:
    """Those that can be had: UMAP needs umap-learn."""
    return EMBEDDINGS if importlib.util.find_spec("umap") else EMBEDDINGS[:2]


def a_distance(
    source: ArrayLike,
    target: ArrayLike,
    source_groups: ArrayLike | None = None,
    target_groups: ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Proxy A-distance.

    Args:
        source: (n, width) features.
        target: (m, width) features.
        source_groups: (n,) group of each, numbers or names; each alone where there are none.
        target_groups: (m,). An object of both domains has the same group in both.
        seed: Of the folds.

    Returns:
        From 0 to 2, and below 0 by chance; NaN with fewer than two groups of a domain.

    Raises:
        SkyshiftError: The shapes do not fit.
    """
    a, b = (np.asarray(v, np.float64) for v in (source, target))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise SkyshiftError(
            f"features of two domains have shapes (n, width) and (m, width), not {a.shape} and {b.shape}"
        )
    of_a = (
        [f"source {i}" for i in range(len(a))] if source_groups is None else [str(g) for g in np.asarray(source_groups)]
    )
    of_b = (
        [f"target {i}" for i in range(len(b))] if target_groups is None else [str(g) for g in np.asarray(target_groups)]
    )
    least = min(len(set(of_a)), len(set(of_b)))
    if least < 2:
        return float("nan")
    domain = np.repeat([0, 1], [len(a), len(b)])
    folds = StratifiedGroupKFold(min(FOLDS, least), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
    x, groups = np.concatenate([a, b]), np.array(of_a + of_b)
    said = cross_val_predict(model, x, domain, groups=groups, cv=folds)
    return float(2.0 * (1.0 - 2.0 * (1.0 - balanced_accuracy_score(domain, said))))


def some(n: int, most: int = MOST, seed: int = 0) -> NDArray[np.int64]:
    """At most so many of n rows, drawn without replacement, in order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def silhouette(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> float:
    """Mean silhouette.

    Args:
        features: (n, width).
        labels: (n,) domains or classes.
        seed: Of the choice of :data:`MOST` objects, where there are more.

    Returns:
        From -1 to 1; NaN with fewer than two labels, or as many as objects.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    rows = some(len(x), seed=seed)
    x, y = x[rows], y[rows]
    if not 2 <= len(np.unique(y)) < len(y):
        return float("nan")
    return float(silhouette_score(x, y))


def embed(features: ArrayLike, kind: str = "tsne", seed: int = 0) -> Values:
    """Features in two dimensions.

    Args:
        features: (n, width), at least five objects.
        kind: One of :data:`EMBEDDINGS`.
        seed: Of all random numbers.

    Returns:
        (n, 2), without a unit.

    Raises:
        SkyshiftError: There is no such embedding, umap-learn is not installed, or there are too few objects.
    """
    x = np.asarray(features, np.float64)
    if kind not in EMBEDDINGS:
        raise SkyshiftError(unknown("embedding", kind, EMBEDDINGS))
    if kind not in embeddings():
        raise SkyshiftError("UMAP needs umap-learn: pip install 'skyshift[umap]', or take tsne or isomap")
    if len(x) < 5:
        raise SkyshiftError(f"an embedding needs at least five objects, there are {len(x)}")
    if x.shape[1] > COMPONENTS and len(x) > COMPONENTS:
        x = PCA(COMPONENTS, svd_solver="full").fit_transform(x)
    neighbours = min(NEIGHBOURS, len(x) - 1)
    if kind == "tsne":
        model = TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=seed)
    elif kind == "isomap":
        model = Isomap(n_neighbors=neighbours)  # nothing in it is random
    else:
        model = importlib.import_module("umap").UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        # Isomap joins neighbourhoods that do not touch, and says so.
        warnings.filterwarnings("ignore", message="The number of connected components")
        warnings.filterwarnings("ignore", category=Warning, module="sklearn.manifold")
        warnings.filterwarnings("ignore", category=Warning, module="scipy.sparse")
        return np.asarray(model.fit_transform(x), np.float64)
