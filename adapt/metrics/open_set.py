"""How well classes that the source lacks are told from those that it has.

An object is called unknown where its score exceeds a threshold, whatever class it would be taken for. With K known
classes and the unknown ones as one,

    OS*  mean over known classes of the share that is taken for what it is (calling it unknown is an error)
    UNK  share of unknown objects that are called unknown
    H    2 OS* UNK / (OS* + UNK)

The areas under the ROC and precision-recall curves of the score, unknown against known, need no threshold.

References:
    Panareda Busto & Gall 2017, Open Set Domain Adaptation, doi:10.1109/ICCV.2017.88 (OS*).
    Fu et al. 2020, Learning to Detect Open Classes for Universal Domain Adaptation, doi:10.1007/978-3-030-58555-6_34
    (the H-score).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skyshift.adapt.metrics.classification import (
    area_under_roc,
    average_precision,
    checked,
    completeness,
    confusion_matrix,
    mean_of_known,
    ratio,
)
from skyshift.errors import SkyshiftError

Values = NDArray[np.float64]
KEPT = 0.95
"""Share of source validation maps that the default threshold calls known."""

METRICS = ("os_star", "unk", "h_score", "anomaly_auroc", "anomaly_auprc")


def source_threshold(source_unknown: ArrayLike, kept: float = KEPT) -> float:
    """A threshold that needs no label: the quantile of the unknown score over source validation maps.

    Args:
        source_unknown: (n,) scores of source maps, all of known classes.
        kept: Share that stays known.

    Raises:
        SkyshiftError: There are no scores, or ``kept`` is no share.
    """
    scores = np.asarray(source_unknown, np.float64)
    if not len(scores) or not 0 < kept < 1:
        raise SkyshiftError(
            f"a threshold needs unknown scores of source validation maps ({len(scores)} given) and a share between 0 "
            f"and 1 ({kept} given)"
        )
    return float(np.quantile(scores, kept))


def with_unknown(predicted: ArrayLike, unknown: ArrayLike, classes: int, threshold: float) -> NDArray[np.int64]:
    """(n,) class numbers, ``classes`` where the score exceeds the threshold."""
    return np.where(np.asarray(unknown) > threshold, classes, np.asarray(predicted)).astype(np.int64)


def scores(
    labels: ArrayLike,
    predicted: ArrayLike,
    unknown: ArrayLike,
    classes: int,
    threshold: float,
    weights: ArrayLike | None = None,
) -> dict[str, Values]:
    """Every metric.

    Args:
        labels: (n,) class numbers; ``classes`` for an unknown one.
        predicted: (n,) numbers of known classes.
        unknown: (n,) score, larger for more unknown.
        classes: Number of known classes.
        threshold: Scores above it are called unknown.
        weights: (…, n).

    Returns:
        Metric to (…), all from 0 to 1; NaN where there are no objects of a side.

    Raises:
        SkyshiftError: The shapes do not fit, or a label is no class.
    """
    score = np.asarray(unknown, np.float64)
    y, w = checked(labels, len(score), classes + 1, weights)
    found = completeness(confusion_matrix(y, with_unknown(predicted, score, classes, threshold), classes + 1, w))
    known, rejected = mean_of_known(found[..., :classes]), found[..., classes]
    both = known + rejected
    H = np.where(both == 0, 0.0, ratio(2 * known * rejected, both))
    areas = area_under_roc(y == classes, score, w), average_precision(y == classes, score, w)
    return dict(zip(METRICS, (known, rejected, H, *areas), strict=True))
