"""Intervals hold the truth as often as they say; the gap, numbers and the space of features."""

import importlib.util

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk

from skyshift.adapt.metrics import latent, regression
from skyshift.adapt.metrics.bootstrap import Drawn, bootstrap, gap_closed, multiplicities, over_seeds
from skyshift.errors import SkyshiftError


def mean_of(x):
    return lambda w: {"mean": w @ x / w.sum(-1)}


def test_samples_are_of_whole_groups():
    groups = np.array(["a", "b", "a", "c", "c", "c"])
    w = multiplicities(groups, 500, seed=1)
    assert w.shape == (500, 6)
    np.testing.assert_array_equal(w[:, 0], w[:, 2])
    np.testing.assert_array_equal(w[:, 3], w[:, 5])
    np.testing.assert_array_equal(w[:, [0, 1, 3]].sum(1), 3)
    np.testing.assert_array_equal(w, multiplicities(groups, 500, seed=1))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Means of 60 groups of 4 nearly equal views: 95 % intervals, and those that take views for objects fail."""
    r = np.random.default_rng(0)
    held = {"groups": 0, "views": 0}
    for trial in range(300):
        x = np.repeat(r.normal(size=60), 4) + 0.1 * r.normal(size=240)
        for name, groups in (("groups", np.repeat(np.arange(60), 4)), ("views", np.arange(240))):
            low, high = bootstrap(mean_of(x), multiplicities(groups, 300, trial))["mean"].interval
            held[name] += low < 0 < high
    # Binomial standard error of 300 trials 1.3 %; percentile intervals of 60 groups cover 94 %.
    assert held["groups"] / 300 == pytest.approx(0.94, abs=0.04)
    assert held["views"] / 300 < 0.8


def test_the_interval_of_a_mean_is_the_normal_one():
    x = np.random.default_rng(1).normal(size=1000)
    found = bootstrap(mean_of(x), multiplicities(np.arange(1000), 2000))["mean"]
    assert found.value == pytest.approx(x.mean(), rel=1e-12)
    half = norm.ppf(0.975) * x.std() / np.sqrt(1000)
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)  # quantiles of 2,000 samples: 3 %


def test_blocks_of_samples_are_the_whole(monkeypatch):
    x = np.random.default_rng(2).normal(size=50)
    w = multiplicities(np.arange(50), 40)
    whole = bootstrap(mean_of(x), w)["mean"].samples
    monkeypatch.setattr("skyshift.adapt.metrics.bootstrap.BLOCK", 333)
    np.testing.assert_allclose(bootstrap(mean_of(x), w)["mean"].samples, whole, rtol=1e-12)


def test_paired_differences_cancel_what_is_common():
    r = np.random.default_rng(3)
    common = r.normal(size=400)
    w = multiplicities(np.arange(400), 500)
    a, b = (bootstrap(mean_of(common + 0.1 * r.normal(size=400) + shift), w)["mean"] for shift in (0.1, 0.0))
    assert (a - b).interval[0] > 0  # .1 at a standard error of .007, where each alone has .05
    assert a.interval[0] < b.interval[1]
    with pytest.raises(SkyshiftError, match="same bootstrap samples"):
        a - Drawn(0.0, np.zeros(3))


def test_the_gap_that_is_closed():
    r = np.random.default_rng(4)
    x = r.normal(size=500)
    w = multiplicities(np.arange(500), 400)
    low, mid, high = (bootstrap(mean_of(x + shift), w)["mean"] for shift in (0.5, 0.7, 0.9))
    found = gap_closed(mid, low, high)
    assert found.value == pytest.approx(0.5, rel=1e-9)
    np.testing.assert_allclose(found.interval, 0.5, rtol=1e-9)  # the scatter is common, and cancels
    assert gap_closed(low, low, high).value == 0.0
    assert gap_closed(high, low, high).value == 1.0
    falling = gap_closed(mid, high, low, direction=-1)  # an error, which the upper bound has least of
    assert falling.value == pytest.approx(0.5, rel=1e-9)


def test_without_a_gap_there_is_no_share_of_it():
    r = np.random.default_rng(5)
    w = multiplicities(np.arange(50), 400)
    a, b, c = (bootstrap(mean_of(r.normal(size=50)), w)["mean"] for _ in range(3))
    worse = gap_closed(a, *sorted((b, c), key=lambda d: -d.value))
    assert np.isnan(worse.value)
    assert np.isnan(worse.interval).all()


def test_means_over_seeds_hold_the_scatter_of_both():
    r = np.random.default_rng(6)
    w = multiplicities(np.arange(200), 4000)
    x = r.normal(size=200)
    runs = [bootstrap(mean_of(x + shift), w)["mean"] for shift in r.normal(0, 0.2, size=8)]
    mean = over_seeds(runs)
    assert mean.value == pytest.approx(np.mean([run.value for run in runs]), rel=1e-12)
    between = np.std([run.value for run in runs]) / np.sqrt(8)
    expected = np.hypot(x.std() / np.sqrt(200), between)
    assert mean.samples.std() == pytest.approx(expected, rel=0.05)  # of 4,000 samples: 1.1 %
    with pytest.raises(SkyshiftError, match="a mean over seeds"):
        over_seeds([])


def test_numbers_are_scikit_learns():
    r = np.random.default_rng(7)
    y, m, s = r.normal(size=200), r.normal(size=200), r.normal(size=200)
    w = r.multinomial(200, np.full(200, 1 / 200), size=3).astype(float)
    found = regression.scores(y, m, s, w)
    for i in range(3):
        assert found["rmse"][i] == pytest.approx(sk.root_mean_squared_error(y, m, sample_weight=w[i]), rel=1e-12)
        assert found["mae"][i] == pytest.approx(sk.mean_absolute_error(y, m, sample_weight=w[i]), rel=1e-12)
        expected = -np.average(norm.logpdf(y, m, np.exp(s / 2)), weights=w[i])
        assert found["nll"][i] == pytest.approx(expected, rel=1e-12)
        assert found["bias"][i] == pytest.approx(np.average(m - y, weights=w[i]), rel=1e-9)


def test_calibrated_numbers_are_covered():
    r = np.random.default_rng(8)
    s = r.normal(size=100_000)
    m = r.normal(size=100_000)
    found = regression.scores(m + np.exp(s / 2) * r.normal(size=100_000), m, s)
    assert found["coverage_68"] == pytest.approx(0.68, abs=0.005)  # binomial standard error .0015
    assert found["coverage_95"] == pytest.approx(0.95, abs=0.003)  # .0007
    plain = regression.scores(r.normal(size=100_000), np.zeros(100_000), np.zeros(100_000))
    assert plain["outliers"] == pytest.approx(2 * norm.sf(3), abs=0.0007)  # .0027, its standard error .00016
    assert all(np.isnan(v) for v in regression.scores([], [], []).values())
    with pytest.raises(SkyshiftError, match="do not fit"):
        regression.scores([1.0], [1.0, 2.0], [0.0])


def test_the_a_distance_of_one_distribution_and_of_two():
    r = np.random.default_rng(9)
    x = r.normal(size=(1000, 8))
    assert latent.a_distance(x[:500], x[500:]) == pytest.approx(0.0, abs=0.2)  # 2 · 2 · standard error .016 · 3
    assert latent.a_distance(x[:500], x[500:] + 10) == 2.0
    shifted = x[500:].copy()
    shifted[:, 0] += 1.0  # the best error is Φ(−½)
    assert latent.a_distance(x[:500], shifted) == pytest.approx(2 - 4 * norm.cdf(-0.5), abs=0.2)
    assert np.isnan(latent.a_distance(x[:1], x[1:]))


def test_views_of_an_object_do_not_tell_the_domain():
    """Objects of one distribution in eight views each: a classifier that may learn objects by heart tells too much."""
    r = np.random.default_rng(10)
    a, b = (np.repeat(r.normal(size=(15, 40)), 8, axis=0) + 0.05 * r.normal(size=(120, 40)) for _ in range(2))
    groups = np.repeat(np.arange(15), 8)
    apart = latent.a_distance(a, b, [f"a{g}" for g in groups], [f"b{g}" for g in groups])
    assert latent.a_distance(a, b) > 1.9
    assert apart < 1.2


def test_silhouettes():
    r = np.random.default_rng(11)
    x = r.normal(size=(200, 3))
    labels = np.arange(200) % 2
    assert latent.silhouette(x, labels) == pytest.approx(0.0, abs=0.02)
    assert latent.silhouette(x + 100 * labels[:, None], labels) > 0.9
    assert np.isnan(latent.silhouette(x, np.zeros(200)))


@pytest.mark.parametrize("kind", ["tsne", "isomap", "umap"])
def test_embeddings_keep_groups_apart_and_have_seeds(kind):
    if kind == "umap" and not importlib.util.find_spec("umap"):
        with pytest.raises(SkyshiftError, match="umap-learn"):
            latent.embed(np.zeros((10, 3)), kind)
        return
    r = np.random.default_rng(12)
    labels = np.arange(90) % 3
    x = r.normal(size=(90, 60)) + 8 * np.eye(60)[labels]
    found = latent.embed(x, kind, seed=3)
    assert found.shape == (90, 2)
    assert sk.silhouette_score(found, labels) > 0.5
    np.testing.assert_array_equal(found, latent.embed(x, kind, seed=3))


def test_embeddings_by_another_name_and_of_too_few():
    with pytest.raises(SkyshiftError, match="Did you mean 'tsne'"):
        latent.embed(np.zeros((10, 3)), "t-sne")
    with pytest.raises(SkyshiftError, match="at least five"):
        latent.embed(np.zeros((2, 3)))
