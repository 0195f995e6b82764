"""Validators are held against numbers of independent code, and never see labels of the target."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import norm

from skyshift.adapt.validators import (
    DIRECTIONS,
    VALIDATORS,
    Predicted,
    ValidatorError,
    control_variate,
    density_ratio,
    require_label_free,
    validate,
)


def oracle_logits():
    g = torch.Generator().manual_seed(0)
    torch.randn(2, 32, 16, generator=g, dtype=torch.float64)
    return 2 * torch.randn(32, 3, generator=g, dtype=torch.float64).numpy()


def predicted(target_logits, seed=0):
    r = np.random.default_rng(seed)
    n, K = len(target_logits), target_logits.shape[1]
    return Predicted(
        r.normal(size=(40, 4)), r.normal(size=(40, K)), r.integers(K, size=40), r.normal(size=(n, 4)), target_logits
    )


# As printed by the independent implementations, to all their digits.
@pytest.mark.parametrize(
    ("name", "value"), [("mutual_information", 0.465554), ("snd", 1.921156), ("bnm", -0.236915), ("mcc", 0.561970)]
)
def test_numbers_of_independent_implementations(name, value):
    assert VALIDATORS[name](predicted(oracle_logits())) == pytest.approx(value, abs=5e-7)


def test_entropy_is_torchs():
    lt = oracle_logits()
    expected = torch.distributions.Categorical(logits=torch.tensor(lt)).entropy().mean().item()
    assert VALIDATORS["entropy"](predicted(lt)) == pytest.approx(expected, rel=1e-12)  # float64 both


def test_source_losses_are_torchs():
    p = predicted(oracle_logits())
    logits, labels = torch.tensor(p.source_logits), torch.tensor(p.source_labels)
    values = validate(p)
    assert values["source_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-12)
    assert values["source_accuracy"] == (logits.argmax(1) == labels).double().mean().item()


def test_a_regression_has_the_likelihood_of_its_numbers():
    r = np.random.default_rng(1)
    outputs, y = r.normal(size=(30, 2)), r.normal(size=30)
    p = Predicted(r.normal(size=(30, 3)), outputs, y, r.normal(size=(20, 3)), r.normal(size=(20, 2)), "regression")
    values = validate(p)
    assert tuple(values) == ("source_loss", "dev")
    expected = -norm.logpdf(y, outputs[:, 0], np.exp(outputs[:, 1] / 2)).mean()
    assert values["source_loss"] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValidatorError, match="needs classes"):
        validate(p, ("entropy",))


def test_order_of_the_target_changes_nothing():
    lt = oracle_logits()
    order = np.random.default_rng(2).permutation(len(lt))
    a = predicted(lt)
    b = dataclasses.replace(a, target_logits=a.target_logits[order], target_features=a.target_features[order])
    for name in VALIDATORS:
        if name != "dev":  # whose folds are drawn by position
            assert VALIDATORS[name](a) == pytest.approx(VALIDATORS[name](b), rel=1e-12), name


def test_blocks_of_the_similarities_are_the_whole(monkeypatch):
    whole = VALIDATORS["snd"](predicted(oracle_logits()))
    monkeypatch.setattr("skyshift.adapt.validators.BLOCK", 7)
    assert VALIDATORS["snd"](predicted(oracle_logits())) == pytest.approx(whole, rel=1e-12)


def test_better_predictions_are_better_in_every_direction():
    """Sharp, balanced, clustered and right predictions against scattered ones: all validators agree."""
    r = np.random.default_rng(3)
    labels = np.arange(90) % 3
    sharp = 8.0 * np.eye(3)[labels] + 0.1 * r.normal(size=(90, 3))
    vague = 1.5 * r.normal(size=(90, 3))
    features = r.normal(size=(90, 4))
    good, bad = (Predicted(features, outputs, labels, r.normal(size=(90, 4)), outputs) for outputs in (sharp, vague))
    for name, value in validate(good).items():
        assert DIRECTIONS[name] * (value - validate(bad)[name]) > 0, name


def test_the_density_ratio_is_that_of_two_normal_distributions():
    """Of N(0, 1) and N(1, 1) it is exp(z − ½), which a logistic regression can express."""
    r = np.random.default_rng(4)
    source, target = r.normal(size=(4000, 1)), r.normal(1.0, size=(2000, 1))
    w = density_ratio(source, target)
    slope, offset = np.polyfit(source[:, 0], np.log(w), 1)
    assert slope == pytest.approx(1.0, abs=0.12)  # the standard error of a fit to 4,800 maps is .035
    assert offset == pytest.approx(-0.5, abs=0.12)  # the same
    assert w.mean() == pytest.approx(1.0, abs=0.06)  # 4,000 weights of variance e − 1: standard error .02


def test_domains_far_apart_have_finite_ratios():
    r = np.random.default_rng(7)
    w = density_ratio(r.normal(size=(60, 3)), r.normal(1e4, 1.0, size=(60, 3)))
    assert np.isfinite(w).all()
    assert w.max() < 0.1
    assert np.isnan(density_ratio(np.zeros((1, 3)), np.zeros((5, 3)))).all()


def test_dev_foretells_the_loss_on_the_target():
    """The loss grows with the feature by which the target lies aside: known labels of the target give the truth."""
    r = np.random.default_rng(5)

    def domain(shift, n):
        z = r.normal(shift, 1.0, size=(n, 1))
        p = 1 / (1 + np.exp(-3 * (1 - z[:, 0])))  # of class 0, which the classifier always expects at 90 %
        labels = (r.random(n) > p).astype(int)
        return z, np.tile(np.log([0.9, 0.1]), (n, 1)), labels

    zs, ls, ys = domain(0.0, 4000)
    zt, lt, yt = domain(1.0, 4000)
    truth = float(-lt[np.arange(len(yt)), yt].mean())
    found = validate(Predicted(zs, ls, ys, zt, lt))
    assert found["dev"] == pytest.approx(truth, rel=0.1)  # standard error of the truth 1.4 %, of the estimate about 4 %
    assert found["source_loss"] < 0.6 * truth  # the source alone does not foretell it


def test_the_control_variate_is_unbiased_and_of_smaller_variance():
    r = np.random.default_rng(6)
    with_it, without = [], []
    for _ in range(300):
        z = r.normal(size=400)
        w, losses = np.exp(z - 0.5), 1.0 + 0.1 * z  # E[w ℓ] = 1.1
        with_it.append(control_variate(w, losses))
        without.append(float((w * losses).mean()))
    assert np.mean(with_it) == pytest.approx(1.1, abs=0.01)  # eta is fitted: a bias of order 1/400
    assert np.std(with_it) < 0.3 * np.std(without)


def test_equal_weights_need_no_control_variate():
    assert control_variate(np.ones(5), np.arange(5.0)) == 2.0
    assert control_variate(np.ones(1), np.ones(1)) == 1.0


@pytest.mark.parametrize(
    "name",
    ["target_accuracy", "accuracy", "target-auroc", "validation_macro_f1", "oracle", "target_anything", "h_score"],
)
def test_labelled_metrics_are_refused(name):
    with pytest.raises(ValidatorError, match="Target labels may not be used to select"):
        require_label_free(name)
    with pytest.raises(ValidatorError, match="Target labels may not be used to select"):
        validate(predicted(oracle_logits()), (name,))


def test_there_is_no_place_for_target_labels():
    names = {field.name for field in dataclasses.fields(Predicted)}
    assert not {name for name in names if "label" in name and "source" not in name}
    p = predicted(oracle_logits())
    with pytest.raises((AttributeError, TypeError)):
        p.target_labels = np.zeros(32)
    with pytest.raises(TypeError):
        Predicted(p.source_features, p.source_logits, p.source_labels, p.target_features, p.target_logits,
                  target_labels=np.zeros(32))  # fmt: skip


def test_an_unknown_validator_names_the_nearest():
    with pytest.raises(ValidatorError, match="Did you mean 'entropy'"):
        require_label_free("entropie")


def test_bad_predictions():
    p = predicted(oracle_logits())
    with pytest.raises(ValidatorError, match="different widths"):
        dataclasses.replace(p, target_logits=np.zeros((32, 4)))
    with pytest.raises(ValidatorError, match="not of the same maps"):
        dataclasses.replace(p, source_labels=np.zeros(3, int))
    with pytest.raises(ValidatorError, match="one or more"):
        dataclasses.replace(p, target_logits=np.zeros((0, 3)), target_features=np.zeros((0, 4)))
    with pytest.raises(ValidatorError, match="from 0 to 2"):
        dataclasses.replace(p, source_labels=np.full(40, -1))
    lost = p.target_logits.copy()
    lost[0] = np.nan
    assert all(np.isnan(v) for v in validate(dataclasses.replace(p, target_logits=lost)).values())


def test_certain_predictions_are_finite():
    """p = 0 exactly: 0 log 0 = 0."""
    sure = 2000.0 * np.eye(3)[np.arange(30) % 3]
    values = validate(predicted(sure))
    assert all(np.isfinite(v) for v in values.values())
    assert values["entropy"] == 0.0
    assert values["mutual_information"] == pytest.approx(np.log(3), rel=1e-12)
    assert values["mcc"] == pytest.approx(0.0, abs=1e-12)


def test_directions_are_of_all_validators():
    assert DIRECTIONS.keys() == VALIDATORS.keys()
    assert set(DIRECTIONS.values()) == {1, -1}
