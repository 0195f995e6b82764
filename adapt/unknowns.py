"""What is of no known class: scores, a ranked table, a sheet of the most anomalous maps, and the clusters among them.

Three scores, each larger for maps that are more likely of no class of the source. With logits z, p = softmax(z),
features f, and means μ_k and the common covariance Σ of the source's features by class

    entropy     -Σ_k p_k log p_k                            from 0 to log K
    energy      -T log Σ_k exp(z_k / T)
    distance    min_k √[(f - μ_k)ᵀ Σ⁻¹ (f - μ_k)]           Mahalanobis; or min_k ‖f - μ_k‖

Σ is that within classes, shrunk towards a multiple of the identity (Ledoit & Wolf), so that it has an inverse also
where there are fewer maps than features. Where source and target differ as well, distance measures both: it is the
score to take with features that have been adapted, or to rank within one target.

The number of clusters among unknown maps is that with the largest mean silhouette, or one where none reaches 0.25
("no substantial structure", Kaufman & Rousseeuw).

References:
    Liu, Wang, Owens & Li 2020, Energy-based Out-of-distribution Detection, arXiv:2010.03759.
    Lee, Lee, Lee & Shin 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples, arXiv:1807.03888.
    Ledoit & Wolf 2004, J. Multivariate Analysis 88, 365.
    Rousseeuw 1987, J. Computational and Applied Mathematics 20, 53 (silhouettes).
    Kaufman & Rousseeuw 1990, Finding Groups in Data, doi:10.1002/9780470316801.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.metrics import silhouette_score

from skyshift.datasets.maps import Maps
from skyshift.errors import SkyshiftError
from skyshift.files import Location, write_whole
from skyshift.naming import unknown
from skyshift.plots import colours, shared_norm, unit_label

Values = NDArray[np.float64]

STRUCTURE = 0.25
"""Mean silhouette below which there is no substantial structure (Kaufman & Rousseeuw 1990)."""


class UnknownsError(SkyshiftError):
    """Scores, tables or clusters are asked for that the data cannot give."""


def entropy(logits: NDArray[np.floating]) -> Values:
    """Entropy of the predictions, nats.

    Args:
        logits: (n, K).

    Returns:
        (n,).
    """
    z = np.asarray(logits, np.float64)
    p = softmax(z, axis=1)
    return np.asarray(-np.sum(p * (z - logsumexp(z, axis=1, keepdims=True)), axis=1))


def energy(logits: NDArray[np.floating], temperature: float = 1.0) -> Values:
    """Free energy of the predictions.

    Args:
        logits: (n, K).
        temperature: T.

    Returns:
        (n,).
    """
    return np.asarray(-temperature * logsumexp(np.asarray(logits, np.float64) / temperature, axis=1))


@dataclass(frozen=True)
class KnownClusters:
    """Where the known classes lie among the features.

    Attributes:
        means: (K, width) of each class.
        precision: (width, width) inverse of the covariance within classes.
    """

    means: Values
    precision: Values

    @classmethod
    def fit(cls, features: NDArray[np.floating], labels: NDArray[np.integer], classes: int) -> "KnownClusters":
        """Means and common covariance of labelled features of the source.

        Args:
            features: (n, width).
            labels: (n,) class numbers; those below 0 do not count.
            classes: K.

        Raises:
            UnknownsError: A class has no map, or a feature is not finite.
        """
        known = labels >= 0
        f, y = np.asarray(features, np.float64)[known], np.asarray(labels)[known]
        _require_finite(f, "features of the source")
        count = np.bincount(y, minlength=classes)
        if len(count) > classes or not count.all():
            raise UnknownsError(f"clusters of {classes} known classes need maps of each, there are {count.tolist()}")
        means = np.stack([f[y == k].mean(0) for k in range(classes)])
        precision = LedoitWolf(assume_centered=True).fit(f - means[y]).precision_
        return cls(means, np.asarray(precision))

    def mahalanobis(self, features: NDArray[np.floating]) -> Values:
        """Distance (n,) of features (n, width) to the nearest class in units of the spread within classes."""
        gap = np.asarray(features, np.float64)[:, None] - self.means[None]
        return np.asarray(np.sqrt(np.einsum("nki,ij,nkj->nk", gap, self.precision, gap, optimize=True).min(1)))

    def nearest_mean(self, features: NDArray[np.floating]) -> Values:
        """Distance (n,) of features (n, width) to the nearest class mean."""
        gap = np.asarray(features, np.float64)[:, None] - self.means[None]
        return np.asarray(np.linalg.norm(gap, axis=2).min(1))


def anomaly_scores(
    logits: NDArray[np.floating], features: NDArray[np.floating], clusters: KnownClusters
) -> dict[str, Values]:
    """All scores of maps.

    Args:
        logits: (n, K).
        features: (n, width).
        clusters: Of the source's features.

    Returns:
        Name to (n,), larger where a map is more likely of no known class.

    Raises:
        UnknownsError: A logit or a feature is not finite.
    """
    _require_finite(np.asarray(logits), "logits")
    _require_finite(np.asarray(features), "features")
    return {
        "entropy": entropy(logits),
        "energy": energy(logits),
        "mahalanobis": clusters.mahalanobis(features),
        "nearest_mean": clusters.nearest_mean(features),
    }


def _require_finite(values: NDArray[np.floating], what: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise UnknownsError(
            f"{bad.sum()} of {len(bad)} rows of the {what} are not finite, the first is number {int(np.argmax(bad))}; "
            "look for NaN in its map"
        )


@dataclass(frozen=True)
class AnomalyTable:
    """Maps from the most to the least anomalous.

    Attributes:
        order: (n,) places of the maps in what was ranked.
        names: (n,) of the objects, in that order.
        views: (n,) numbers of the views in the store.
        score: (n,) by which they are ranked, falling.
        score_name: Which score that is.
        columns: Name to (n,) of what else is told of each map: other scores, predicted class, cluster.
    """

    order: NDArray[np.int64]
    names: tuple[str, ...]
    views: NDArray[np.int64]
    score: Values
    score_name: str
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def write(self, path: str | Location) -> None:
        """Write it as CSV, whole or not at all: rank, name, view, score, and the other columns."""
        with write_whole(path) as side, open(side, "w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["rank", "name", "view", self.score_name, *self.columns])
            for i, (name, view, score) in enumerate(zip(self.names, self.views, self.score, strict=True)):
                rows.writerow(
                    [i + 1, name, int(view), repr(float(score)), *(c[i].item() for c in self.columns.values())]
                )


def rank_anomalies(
    names: Sequence[str],
    views: NDArray[np.integer],
    scores: Mapping[str, NDArray[np.floating]],
    by: str = "entropy",
    columns: Mapping[str, NDArray[np.generic]] | None = None,
) -> AnomalyTable:
    """Rank maps by a score; of equal scores the one given first comes first.

    Args:
        names: (n,) of the objects.
        views: (n,) numbers of the views.
        scores: Name to (n,).
        by: Which score ranks; the others become columns.
        columns: Name to (n,) of what else the table should tell.

    Raises:
        UnknownsError: There is no such score, the lengths differ, or a score is not finite.
    """
    if by not in scores:
        raise UnknownsError(unknown("score", by, scores))
    others = {**{name: np.asarray(v) for name, v in scores.items() if name != by}, **(columns or {})}
    for what, values in {"views": views, by: scores[by], **others}.items():
        if len(values) != len(names):
            raise UnknownsError(
                f"an anomaly table of {len(names)} maps needs as many of each column, not {len(values)} {what}"
            )
    score = np.asarray(scores[by], np.float64)
    if not np.isfinite(score).all():
        bad = int(np.argmin(np.isfinite(score)))
        raise UnknownsError(
            f"the {by} of {names[bad]} (view {int(views[bad])}) is {score[bad]}; look for NaN in its map"
        )
    order = np.argsort(-score, kind="stable")
    return AnomalyTable(
        order,
        tuple(names[i] for i in order),
        np.asarray(views, np.int64)[order],
        score[order],
        by,
        {name: np.asarray(values)[order] for name, values in others.items()},
    )


def contact_sheet(
    maps: Maps, table: AnomalyTable, columns: int = 6, colour_map: str = "viridis", signed: bool = False
) -> Figure:
    """The most anomalous maps, in reading order, on one stretch with one colour bar.

    Args:
        maps: (m, height, width) the first m of the table, in its order.
        table: For names and scores.
        columns: Maps in a row.
        colour_map: Of matplotlib.
        signed: Whether values lie on both sides of zero.

    Raises:
        UnknownsError: There is no map, or more than the table has.
    """
    if not 0 < len(maps) <= len(table):
        raise UnknownsError(f"a contact sheet of a table of {len(table)} needs 1 to {len(table)} maps, not {len(maps)}")
    columns = min(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(1.7 * columns + 0.9, 1.95 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    norm = shared_norm(list(maps.values), signed)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i < len(maps):
            values = np.ma.masked_invalid(maps.values[i])
            image = axis.imshow(values, origin="lower", cmap=colours(colour_map), norm=norm, interpolation="nearest")
            axis.set_title(f"{i + 1}. {table.names[i]}\n{table.score_name} {table.score[i]:.3g}", fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(f"{maps.domain} {unit_label(maps.unit)}".strip(), fontsize=8)
    return figure


@dataclass(frozen=True)
class Clustering:
    """Clusters among unknown maps.

    Attributes:
        labels: (n,) cluster of each map, the largest cluster first.
        count: Estimated number of clusters.
        silhouettes: Number of clusters to mean silhouette, of all that were tried.
    """

    labels: NDArray[np.int64]
    count: int
    silhouettes: Mapping[int, float]


def cluster_unknowns(features: NDArray[np.floating], most: int = 8, seed: int = 0, sample: int = 5000) -> Clustering:
    """Cluster unknown maps by their features, with as many clusters as have the largest mean silhouette.

    Args:
        features: (n, width).
        most: Largest number of clusters that is tried; fewer where there are fewer maps.
        seed: Of the starts of k-means, and of the maps that silhouettes are taken of.
        sample: Number of these, at most: their cost grows with its square.

    Raises:
        UnknownsError: There are fewer than 3 maps, or a feature is not finite.
    """
    f = np.asarray(features, np.float64)
    if len(f) < 3:
        raise UnknownsError(f"{len(f)} maps cannot be clustered, three are needed; lower the threshold of the score")
    _require_finite(f, "features")
    judged = np.random.default_rng(seed).permutation(len(f))[:sample]
    different = len(np.unique(f, axis=0))  # maps that are equal cannot be told apart
    found: dict[int, tuple[float, NDArray[np.int64]]] = {}
    for k in range(2, min(most, different, len(f) - 1) + 1):
        labels = KMeans(k, n_init=10, random_state=seed).fit_predict(f)
        if 1 < len(np.unique(labels[judged])) < len(judged):
            found[k] = (float(silhouette_score(f[judged], labels[judged])), labels)
    silhouettes = {k: value for k, (value, _) in found.items()}
    best = max(silhouettes, key=lambda k: silhouettes[k], default=1)
    if silhouettes.get(best, 0.0) < STRUCTURE:
        return Clustering(np.zeros(len(f), np.int64), 1, silhouettes)
    labels = found[best][1]
    rank = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    return Clustering(rank[labels].astype(np.int64), best, silhouettes)
