"""Metrics of classes agree with scikit-learn and torchmetrics, with the weights of bootstrap samples as well."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_calibration_error,
)

from skyshift.adapt.metrics import calibration, open_set
from skyshift.adapt.metrics import classification as mine
from skyshift.errors import SkyshiftError


@pytest.fixture(scope="module")
def sample():
    """Labels, probabilities rounded so that there are ties, and multiplicities of five samples."""
    r = np.random.default_rng(0)
    labels = r.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=300)
    p = softmax(1.2 * np.eye(4)[labels] + r.normal(size=(300, 4)), axis=1)
    p = np.round(p, 2)
    return labels, p, r.multinomial(300, np.full(300, 1 / 300), size=5).astype(float)


# float64 sums of 300 terms in another order.
CLOSE = {"rel": 1e-12, "abs": 1e-12}


def test_scores_are_scikit_learns(sample):
    labels, p, weights = sample
    found = mine.scores(labels, p, np.concatenate([np.ones((1, 300)), weights]))
    for i, w in enumerate(np.concatenate([np.ones((1, 300)), weights])):
        said = p.argmax(1)
        assert found["accuracy"][i] == pytest.approx(sk.accuracy_score(labels, said, sample_weight=w), **CLOSE)
        expected = sk.balanced_accuracy_score(labels, said, sample_weight=w)
        assert found["balanced_accuracy"][i] == pytest.approx(expected, **CLOSE)
        expected = sk.f1_score(labels, said, average="macro", sample_weight=w)
        assert found["macro_f1"][i] == pytest.approx(expected, **CLOSE)
        precision, recall, _, _ = sk.precision_recall_fscore_support(
            labels, said, sample_weight=w, zero_division=np.nan
        )
        for k in range(4):
            assert found[f"completeness of {k}"][i] == pytest.approx(recall[k], **CLOSE)
            assert found[f"purity of {k}"][i] == pytest.approx(precision[k], nan_ok=True, **CLOSE)
            expected = sk.roc_auc_score(labels == k, p[:, k], sample_weight=w)
            assert found[f"auroc of {k}"][i] == pytest.approx(expected, **CLOSE)
            expected = sk.average_precision_score(labels == k, p[:, k], sample_weight=w)
            assert found[f"auprc of {k}"][i] == pytest.approx(expected, **CLOSE)
        assert found["auroc"][i] == pytest.approx(np.mean([found[f"auroc of {k}"][i] for k in range(4)]), **CLOSE)


def test_areas_are_torchmetrics(sample):
    labels, p, _ = sample
    found = mine.scores(labels, p)
    logits = torch.tensor(p)
    assert found["auroc"] == pytest.approx(
        multiclass_auroc(logits, torch.tensor(labels), 4).item(), abs=1e-6
    )  # float32
    expected = multiclass_average_precision(logits, torch.tensor(labels), 4).item()
    assert found["auprc"] == pytest.approx(expected, abs=1e-6)  # float32


def test_the_confusion_matrix_is_scikit_learns(sample):
    labels, p, weights = sample
    found = mine.confusion_matrix(labels, p.argmax(1), 4, weights)
    for C, w in zip(found, weights, strict=True):
        np.testing.assert_array_equal(C, sk.confusion_matrix(labels, p.argmax(1), sample_weight=w))


def test_weights_are_repetitions(sample):
    labels, p, weights = sample
    rows = np.repeat(np.arange(300), weights[0].astype(int))
    for module in (mine.scores, lambda *a: {"ece": calibration.expected_calibration_error(*a)}):
        once, repeated = module(labels, p, weights[0]), module(labels[rows], p[rows])
        for name, value in once.items():
            assert value == pytest.approx(repeated[name], nan_ok=True, **CLOSE), name


def test_a_class_without_objects_does_not_count(sample):
    labels, p, _ = sample
    rows = labels != 3
    found = mine.scores(labels[rows], p[rows])
    assert np.isnan(found["auroc of 3"])
    assert np.isnan(found["completeness of 3"])
    expected = [sk.roc_auc_score(labels[rows] == k, p[rows, k]) for k in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(expected), **CLOSE)


def test_nothing_to_judge_is_no_number():
    found = mine.scores(np.zeros(0, int), np.zeros((0, 3)))
    assert all(np.isnan(value) for value in found.values())
    assert np.isnan(calibration.expected_calibration_error(np.zeros(0, int), np.zeros((0, 3))))


def test_curves_hold_the_areas():
    r = np.random.default_rng(1)
    y = r.random(4000) < 0.3
    s = r.normal(size=4000) + y
    grid = np.linspace(0, 1, 2001)
    rate, precision = mine.curves(y, s, grid)
    # Trapezia of a grid of 2,000 cells against the exact steps: half a cell.
    assert np.trapezoid(rate, grid) == pytest.approx(sk.roc_auc_score(y, s), abs=5e-4)
    assert np.trapezoid(precision, grid) == pytest.approx(sk.average_precision_score(y, s), abs=2e-3)
    assert rate[-1] == 1.0
    assert precision[-1] == pytest.approx(sk.precision_score(y, s >= s[y].min()), **CLOSE)


def test_labels_that_are_no_class_are_refused(sample):
    labels, p, _ = sample
    with pytest.raises(SkyshiftError, match="leave out objects"):
        mine.scores(np.where(labels == 0, -1, labels), p)
    with pytest.raises(SkyshiftError, match="are not of the 300"):
        mine.scores(labels[:10], p)


@pytest.mark.parametrize("bins", [5, 15])
def test_ece_is_torchmetrics(sample, bins):
    labels, p, _ = sample
    p = softmax(p + np.random.default_rng(1).normal(size=p.shape), axis=1)  # none on the edge of a bin
    sure = np.concatenate([p, np.eye(4)[labels[:40]]])  # with confidences of exactly 1
    y = np.concatenate([labels, labels[:40][::-1]])
    expected = multiclass_calibration_error(torch.tensor(sure), torch.tensor(y), 4, n_bins=bins).item()
    assert calibration.expected_calibration_error(y, sure, bins=bins) == pytest.approx(expected, abs=1e-6)  # float32


def test_calibrated_probabilities_have_no_calibration_error():
    r = np.random.default_rng(2)
    p = softmax(1.5 * r.normal(size=(200_000, 3)), axis=1)
    labels = (r.random((200_000, 1)) > p.cumsum(1)).sum(1).clip(max=2)
    found = calibration.expected_calibration_error(labels, p)
    assert found < 0.005  # the noise of 15 bins: .3 · √(15 / 200,000) = .0026, twice that
    confidence, right, count = calibration.reliability(labels, p)
    full = count > 1000
    np.testing.assert_allclose(right[full], confidence[full], atol=0.05)  # 3 standard errors of 1,000
    assert count.sum() == 200_000


def test_the_temperature_undoes_overconfidence():
    r = np.random.default_rng(3)
    logits = 1.5 * r.normal(size=(50_000, 3))
    labels = (r.random((50_000, 1)) > softmax(logits, axis=1).cumsum(1)).sum(1).clip(max=2)
    # Fisher information of log T here is about .5 a map: standard error .006.
    assert calibration.fit_temperature(3.0 * logits, labels) == pytest.approx(3.0, rel=0.03)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(1.0, rel=0.03)
    with pytest.raises(SkyshiftError, match="there are none"):
        calibration.fit_temperature(np.zeros((0, 3)), np.zeros(0, int))


def test_open_set_scores_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])  # 2 is unknown
    predicted = np.array([0, 0, 0, 1, 1, 1, 0, 1])
    unknown = np.array([0.1, 0.2, 0.9, 0.1, 0.3, 0.4, 0.8, 0.35])
    found = open_set.scores(labels, predicted, unknown, 2, 0.5)
    os_star, unk = (2 / 4 + 2 / 2) / 2, 1 / 2
    assert found["os_star"] == os_star
    assert found["unk"] == unk
    assert found["h_score"] == pytest.approx(2 * os_star * unk / (os_star + unk), **CLOSE)
    assert found["anomaly_auroc"] == pytest.approx(sk.roc_auc_score(labels == 2, unknown), **CLOSE)
    assert found["anomaly_auprc"] == pytest.approx(sk.average_precision_score(labels == 2, unknown), **CLOSE)


def test_limits_of_the_threshold():
    r = np.random.default_rng(4)
    labels, predicted, unknown = r.integers(4, size=200), r.integers(3, size=200), r.random(200)
    all_known = open_set.scores(labels, predicted, unknown, 3, np.inf)
    assert all_known["unk"] == 0
    assert all_known["h_score"] == 0
    known = labels < 3
    assert all_known["os_star"] == pytest.approx(sk.balanced_accuracy_score(labels[known], predicted[known]), **CLOSE)
    none_known = open_set.scores(labels, predicted, unknown, 3, -1.0)
    assert (none_known["unk"], none_known["os_star"], none_known["h_score"]) == (1, 0, 0)
    assert np.mean(unknown > open_set.source_threshold(unknown, 0.9)) == pytest.approx(0.1, abs=0.005)  # one of 200
    with pytest.raises(SkyshiftError, match="needs unknown scores"):
        open_set.source_threshold([])
