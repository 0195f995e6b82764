"""Scores of unknown maps, their table, their sheet and their clusters: against SciPy, scikit-learn and torch."""

import csv
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from skyshift.adapt.unknowns import (
    KnownClusters,
    UnknownsError,
    anomaly_scores,
    cluster_unknowns,
    contact_sheet,
    energy,
    entropy,
    rank_anomalies,
)
from skyshift.datasets.maps import Maps


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_entropy_and_energy_agree_with_others_and_stay_finite(random):
    z = 5 * random.normal(size=(40, 6))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(entropy(z), scipy_entropy(p, axis=1), rtol=1e-10, atol=1e-12)
    for t in (0.5, 1.0, 3.0):
        np.testing.assert_allclose(energy(z, t), -t * torch.logsumexp(torch.from_numpy(z) / t, 1).numpy(), rtol=1e-12)
    assert entropy(np.array([[1e5, 0.0]])) == 0.0
    assert entropy(np.zeros((1, 4))) == pytest.approx(math.log(4))
    np.testing.assert_allclose(energy(z + 7), energy(z) - 7)  # which entropy does not see
    np.testing.assert_allclose(entropy(z + 7), entropy(z))


def test_distances_agree_with_scipy(random):
    labels = np.arange(300) % 3
    f = random.normal(size=(300, 4)) * [1.0, 2.0, 0.5, 3.0] + 5 * np.eye(3, 4)[labels]
    known = KnownClusters.fit(f, labels, 3)
    x = random.normal(size=(20, 4)) * 4
    np.testing.assert_allclose(known.nearest_mean(x), cdist(x, known.means).min(1))
    expected = cdist(x, known.means, "mahalanobis", VI=known.precision).min(1)
    np.testing.assert_allclose(known.mahalanobis(x), expected, rtol=1e-10)
    # The spread within classes is the one that was drawn, to the error of 300 maps (8 %) and its shrinkage.
    spread = np.sqrt(np.diag(np.linalg.inv(known.precision)))
    np.testing.assert_allclose(spread, [1.0, 2.0, 0.5, 3.0], rtol=0.25)


def test_maps_without_a_label_do_not_shift_the_classes(random):
    labels, f = np.arange(60) % 2, random.normal(size=(60, 3))
    more = KnownClusters.fit(np.concatenate([f, 100 + f]), np.concatenate([labels, np.full(60, -1)]), 2)
    np.testing.assert_array_equal(more.means, KnownClusters.fit(f, labels, 2).means)


def test_distance_has_an_inverse_with_fewer_maps_than_features(random):
    f = random.normal(size=(10, 50))
    assert np.isfinite(KnownClusters.fit(f, np.arange(10) % 2, 2).mahalanobis(f)).all()


def test_every_score_finds_what_is_far_from_the_known(random):
    labels = np.arange(200) % 2
    centres = np.array([[6.0, 0.0, 0.0], [-6.0, 0.0, 0.0]])
    f = centres[labels] + random.normal(size=(200, 3))
    strange = np.array([0.0, 12.0, 0.0]) + random.normal(size=(50, 3))
    maps = np.concatenate([f, strange])
    logits = maps @ centres.T  # of the known classes: large near them
    scores = anomaly_scores(logits, maps, KnownClusters.fit(f, labels, 2))
    assert set(scores) == {"entropy", "energy", "mahalanobis", "nearest_mean"}
    for score in scores.values():
        assert roc_auc_score(np.arange(250) >= 200, score) > 0.99


def test_damaged_features_and_absent_classes_are_named(random):
    f, labels = random.normal(size=(6, 2)), np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(UnknownsError, match=r"need maps of each, there are \[3, 3, 0\]"):
        KnownClusters.fit(f, labels, 3)
    with pytest.raises(UnknownsError, match="need maps of each"):
        KnownClusters.fit(f, labels + 1, 2)
    known = KnownClusters.fit(f, labels, 2)
    f[4, 1] = np.nan
    with pytest.raises(UnknownsError, match="1 of 6 rows of the features are not finite, the first is number 4"):
        anomaly_scores(np.zeros((6, 2)), f, known)
    with pytest.raises(UnknownsError, match="features of the source"):
        KnownClusters.fit(f, labels, 2)


def ranked():
    scores = {"entropy": np.array([0.2, 0.9, 0.2, 0.5]), "energy": np.array([1.0, 2.0, 3.0, 4.0])}
    names = ["J0001, a", "J0002", "J0003", "J0004"]
    return rank_anomalies(
        names, np.array([7, 1, 3, 2]), scores, "entropy", {"predicted": np.array(["x", "y", "x", "y"])}
    )


def test_the_table_falls_and_keeps_the_order_of_equal_scores(tmp_path):
    table = ranked()
    assert table.names == ("J0002", "J0004", "J0001, a", "J0003")
    assert table.order.tolist() == [1, 3, 0, 2]
    path = tmp_path / "there" / "anomalies.csv"
    table.write(path)
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["rank", "name", "view", "entropy", "energy", "predicted"]
    assert rows[1] == ["1", "J0002", "1", "0.9", "2.0", "y"]
    assert rows[3] == ["3", "J0001, a", "7", "0.2", "1.0", "x"]
    assert len(rows) == 5
    assert [p.name for p in path.parent.iterdir()] == ["anomalies.csv"]  # no side file is left


def test_a_table_of_what_is_not_there_is_refused():
    names, views = ["a", "b"], np.array([0, 1])
    with pytest.raises(UnknownsError, match="Did you mean 'entropy'"):
        rank_anomalies(names, views, {"entropy": np.zeros(2)}, "entrpy")
    with pytest.raises(UnknownsError, match="not 3 energy"):
        rank_anomalies(names, views, {"entropy": np.zeros(2), "energy": np.zeros(3)})
    with pytest.raises(UnknownsError, match=r"the entropy of b \(view 1\) is nan"):
        rank_anomalies(names, views, {"entropy": np.array([0.0, np.nan])})


def test_the_sheet_shows_names_on_one_stretch_with_one_bar(random, tmp_path):
    table = ranked()
    values = random.exponential(size=(4, 8, 8)).astype(np.float32) * np.float32([1, 10, 1, 1])[:, None, None]
    values[2, 3, 3] = np.nan
    figure = contact_sheet(Maps(values, "radio", "Jy / beam"), table, columns=3)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 4
    assert [axis.get_title().split("\n")[0] for axis in shown] == ["1. J0002", "2. J0004", "3. J0001, a", "4. J0003"]
    assert len({id(axis.images[0].norm) for axis in shown}) == 1
    assert len(figure.axes) == 2 * 3 + 1  # two rows of three places, and one colour bar
    assert "radio" in figure.axes[-1].get_ylabel()
    figure.savefig(tmp_path / "sheet.png")
    with pytest.raises(UnknownsError, match="needs 1 to 4 maps, not 5"):
        contact_sheet(Maps(np.zeros((5, 8, 8), np.float32), "radio", "Jy / beam"), table)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_clusters_is_found(random, count):
    truth = np.arange(150) % count
    f = 10 * np.eye(count, 6)[truth] + random.normal(size=(150, 6))
    found = cluster_unknowns(f)
    assert found.count == count
    assert adjusted_rand_score(truth, found.labels) == pytest.approx(1.0)
    assert max(found.silhouettes, key=found.silhouettes.get) == count


def test_the_largest_cluster_comes_first(random):
    truth = np.repeat([0, 1, 2], [10, 60, 30])
    found = cluster_unknowns(10 * np.eye(3)[truth] + random.normal(size=(100, 3)))
    assert np.bincount(found.labels).tolist() == [60, 30, 10]


def test_without_structure_there_is_one_cluster(random):
    found = cluster_unknowns(random.normal(size=(200, 20)))
    assert found.count == 1
    assert set(found.labels.tolist()) == {0}
    assert max(found.silhouettes.values()) < 0.25
    assert cluster_unknowns(np.ones((10, 3))).count == 1  # maps that are all equal


def test_clusters_of_many_maps_are_judged_on_a_sample(random):
    truth = np.arange(600) % 3
    found = cluster_unknowns(10 * np.eye(3)[truth] + random.normal(size=(600, 3)), sample=100)
    assert found.count == 3
    assert len(found.labels) == 600


def test_too_few_maps_are_refused():
    with pytest.raises(UnknownsError, match="2 maps cannot be clustered"):
        cluster_unknowns(np.zeros((2, 3)))
