"""Adaptive clustering, entropy separation, neighbourhood clustering and the tuner: by hand, and against NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from skyshift.adapt.losses.clustering import adaptive_clustering, same_ranks
from skyshift.adapt.losses.neighbourhood import neighbourhood_clustering
from skyshift.adapt.losses.separation import entropy_separation, prediction_entropy
from skyshift.adapt.tuner import STEPS, ActiveTuner
from skyshift.errors import SkyshiftError

ROUNDING = 2e-6  # float32 sums of tens of terms of order one


def draws(seed=0, n=6, m=9, width=5, classes=3):
    g = torch.Generator().manual_seed(seed)
    p, q = (torch.softmax(torch.randn(k, classes, generator=g), 1) for k in (n, m))
    f, h = (torch.rand(k, width, generator=g) for k in (n, m))
    return p, f, q, h


def clustering_in_loops(p, f, q, h, own, top):
    """The equation, pair by pair, in float64."""
    total = 0.0
    for j in range(len(p)):
        terms = []
        for i in range(len(q)):
            if own[j, i]:
                continue
            alike = set(np.argsort(-f[j])[:top]) == set(np.argsort(-h[i])[:top])
            agreement = float(p[j].astype(float) @ q[i].astype(float))
            terms.append(-math.log(agreement) if alike else -math.log(1 - agreement))
        total += np.mean(terms) if terms else 0.0
    return total / len(p)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_adaptive_clustering_is_its_equation(top):
    p, f, q, h = draws()
    own = torch.zeros(6, 9, dtype=torch.bool)
    own[2, 4] = own[5, 0] = True
    found = adaptive_clustering(p, f, q, h, own, top)
    assert float(found) == pytest.approx(
        clustering_in_loops(*(v.numpy() for v in (p, f, q, h, own)), top), abs=ROUNDING
    )


def test_self_pairs_change_nothing():
    """What the bank holds of a map itself has no say, whatever it is."""
    p, f, q, h = draws()
    own = torch.zeros(6, 9, dtype=torch.bool)
    own[:, 3] = True
    before = adaptive_clustering(p, f, q, h, own)
    q[3], h[3] = torch.tensor([1.0, 0.0, 0.0]), f[0]
    assert adaptive_clustering(p, f, q, h, own) == before
    assert adaptive_clustering(p, f, q, h, torch.zeros_like(own)) != before


def test_clustering_by_hand_draws_like_maps_together_and_others_apart():
    """One map, a bank of one: the loss is -log p·q for the same ranks and -log(1 - p·q) for others."""
    p = torch.tensor([[0.7, 0.3]], requires_grad=True)
    q = torch.tensor([[0.9, 0.1]])
    f, like, unlike = (
        torch.tensor([[3.0, 2.0, 0.0]]),
        torch.tensor([[20.0, 30.0, 1.0]]),
        torch.tensor([[0.0, 2.0, 3.0]]),
    )
    none = torch.zeros(1, 1, dtype=torch.bool)
    agreement = 0.7 * 0.9 + 0.3 * 0.1
    attracted = adaptive_clustering(p, f, q, like, none, 2)
    assert attracted.item() == pytest.approx(-math.log(agreement), abs=ROUNDING)
    (gradient,) = torch.autograd.grad(attracted, p)
    np.testing.assert_allclose(gradient.numpy(), [[-0.9 / agreement, -0.1 / agreement]], rtol=1e-6)
    repelled = adaptive_clustering(p, f, q, unlike, none, 2)
    assert repelled.item() == pytest.approx(-math.log(1 - agreement), abs=ROUNDING)


def test_ranks_are_kept_by_brightness_and_contrast():
    _, f, _, h = draws(n=40, m=40)
    torch.testing.assert_close(same_ranks(7 * f + 3, h, 2), same_ranks(f, h, 2))
    assert same_ranks(f, f, 2).diagonal().all()
    assert not same_ranks(f, h, 2).all()
    assert same_ranks(f, h, 5).all()  # all five features are the five largest


def test_clustering_is_finite_where_predictions_are_sure_and_zero_without_pairs():
    p = torch.eye(3, requires_grad=True)
    f = torch.eye(3)
    for bank in (torch.eye(3), torch.eye(3).roll(1, 0)):
        loss = adaptive_clustering(p, f, bank, f, torch.zeros(3, 3, dtype=torch.bool), 1)
        (gradient,) = torch.autograd.grad(loss, p)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
    assert adaptive_clustering(p, f, p, f, torch.ones(3, 3, dtype=torch.bool), 1) == 0
    empty = adaptive_clustering(p, f, torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(3, 0, dtype=torch.bool), 1)
    assert empty == 0
    empty.backward()  # a first step, before anything is in the bank


def test_micro_batches_add_up_and_order_is_nothing():
    p, f, q, h = draws()
    own = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.2
    whole = adaptive_clustering(p, f, q, h, own)
    halves = [adaptive_clustering(p[s], f[s], q, h, own[s]) for s in (slice(0, 3), slice(3, 6))]
    assert float(sum(halves) / 2) == pytest.approx(float(whole), abs=ROUNDING)
    turn = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert float(adaptive_clustering(p, f, q[turn], h[turn], own[:, turn])) == pytest.approx(float(whole), abs=ROUNDING)


def test_entropy_agrees_with_scipy_and_is_finite_at_zero():
    logits = 4 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy_entropy(torch.softmax(logits, 1).numpy(), axis=1)
    np.testing.assert_allclose(prediction_entropy(logits).numpy(), expected, rtol=2e-5, atol=1e-6)  # float32
    sure = torch.tensor([[1e4, 0.0, 0.0]], requires_grad=True)
    prediction_entropy(sure).sum().backward()
    assert float(prediction_entropy(sure)) == 0.0
    assert torch.isfinite(sure.grad).all()


def test_separation_is_its_equation():
    """Three maps: sure (below), undecided (inside the margin), uniform (above)."""
    p = torch.tensor([[0.98, 0.01, 0.01], [0.85, 0.1, 0.05], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    h = scipy_entropy(p.numpy(), axis=1)
    rho, m = math.log(3) / 2, 0.4
    assert [abs(x - rho) > m for x in h] == [True, False, True]
    logits = p.log().float().requires_grad_()
    loss, separated = entropy_separation(logits, rho, m)
    assert loss.item() == pytest.approx(-(abs(h[0] - rho) + abs(h[2] - rho)) / 3, abs=ROUNDING)
    assert float(separated) == pytest.approx(2 / 3)
    loss.backward()
    assert torch.all(logits.grad[1] == 0)  # nothing is decided inside the margin
    after = prediction_entropy(logits.detach() - 0.1 * logits.grad)
    assert after[0] < prediction_entropy(logits)[0]  # sure maps become surer


def test_unsure_maps_become_less_sure():
    logits = torch.tensor([[0.5, 0.2, 0.0]], requires_grad=True)
    entropy_separation(logits, math.log(3) / 2, 0.4)[0].backward()
    assert prediction_entropy(logits - 0.1 * logits.grad) > prediction_entropy(logits)


def test_a_margin_beyond_the_threshold_separates_nothing():
    """H lies in [0, log K]: for two classes |H - ρ| ≤ 0.35 < 0.4."""
    logits = 10 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    assert entropy_separation(logits, math.log(2) / 2, 0.4)[1] == 0
    assert entropy_separation(logits, math.log(2) / 2, 0.2)[1] > 0.5


def test_neighbourhood_clustering_is_its_equation():
    g = torch.Generator().manual_seed(0)
    f, w = torch.randn(5, 8, generator=g), torch.randn(3, 8, generator=g)
    bank = torch.randn(7, 8, generator=g)
    own = torch.zeros(5, 7, dtype=torch.bool)
    own[1, 2] = own[4, 6] = True
    unit = [v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1, keepdims=True) for v in (f, w, bank)]
    expected = []
    for i in range(5):
        others = [unit[2][j] for j in range(7) if not own[i, j]]
        similarity = np.array([*unit[1], *others]) @ unit[0][i] / 0.05
        weight = np.exp(similarity - similarity.max())
        expected.append(scipy_entropy(weight / weight.sum()))
    logits = torch.nn.functional.normalize(f, dim=1) @ torch.nn.functional.normalize(w, dim=1).T / 0.05
    found = neighbourhood_clustering(f, bank, own, logits, 0.05)
    # Similarities of up to 20 are rounded in float32 to 1e-6; their exponentials to about as much.
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-5)


def test_neighbourhood_has_the_limits_of_an_entropy():
    """All the same: log of their number. One neighbour far nearer than any other: zero. Itself: left out."""
    f = torch.ones(2, 4)
    own = torch.eye(2, dtype=torch.bool)
    assert float(neighbourhood_clustering(f, f, ~own & own, torch.full((2, 3), 20.0))) == pytest.approx(
        math.log(5), abs=1e-5
    )
    assert float(neighbourhood_clustering(f, f, own, torch.full((2, 3), 20.0))) == pytest.approx(math.log(4), abs=1e-5)
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    others = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    near = neighbourhood_clustering(apart, others, torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 1), -20.0))
    assert 0 <= float(near) < 1e-6
    leaf = apart.clone().requires_grad_()
    neighbourhood_clustering(leaf, leaf, own, torch.zeros(2, 1)).backward()
    assert torch.isfinite(leaf.grad).all()


def feed(tuner, accuracies, start=0, maps=100):
    """Windows of one step each with the accuracies given."""
    for step, accuracy in enumerate(accuracies, start):
        tuner.begin(step)
        labels = torch.zeros(maps, dtype=torch.int64)
        right = torch.arange(maps) < round(accuracy * maps)
        tuner.see(torch.stack([right.float(), (~right).float()], 1), labels)


def values(tuner):
    return float(tuner.threshold), float(tuner.margin)


@pytest.mark.parametrize(("classes", "margin"), [(2, 0.4), (3, 0.4), (5, 0.4), (6, 1.3), (10, 1.3)])
def test_the_tuner_starts_as_published(classes, margin):
    assert values(ActiveTuner(classes)) == pytest.approx((math.log(classes) / 2, margin))


def test_the_tuner_rests_while_the_source_is_learned_better():
    tuner = ActiveTuner(3, window=1, patience=2)
    feed(tuner, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    assert values(tuner) == pytest.approx((math.log(3) / 2, 0.4))


def test_the_tuner_tries_the_published_steps_in_turn_from_the_values_that_were_best():
    tuner, rho, seen = ActiveTuner(3, window=1, patience=1), math.log(3) / 2, []
    feed(tuner, [0.5])
    for step in range(1, 6):
        feed(tuner, [0.5], start=step)
        seen.append(values(tuner))
    expected = [(rho + s, max(0.0, 0.4 + s)) for s in STEPS]  # ρ - 0.5 is still above 0
    np.testing.assert_allclose(seen[1:], expected, atol=1e-6)
    assert STEPS == (0.3, -0.3, 0.5, -0.5)


def test_the_tuner_keeps_what_made_the_source_better():
    tuner, rho = ActiveTuner(3, window=1, patience=1), math.log(3) / 2
    feed(tuner, [0.5, 0.5, 0.5])  # the standstill is seen at step 2: +0.3
    assert values(tuner) == pytest.approx((rho + 0.3, 0.7))
    feed(tuner, [0.6], start=3)  # closes the window of step 2, still 0.5: -0.3 from the old values
    assert values(tuner) == pytest.approx((rho - 0.3, 0.1), abs=1e-6)
    feed(tuner, [0.6], start=4)  # closes that of step 3, which is better: kept
    feed(tuner, [0.6], start=5)  # and a standstill again: +0.5 from the new ones
    assert values(tuner) == pytest.approx((rho - 0.3 + 0.5, 0.6), abs=1e-6)


def test_the_tuner_counts_micro_batches_of_a_step_together_and_not_what_has_no_label():
    tuner = ActiveTuner(3, window=1, patience=1)
    outputs = torch.eye(3)
    for labels in ([0, 1, -1], [2, 2, 2]):
        tuner.begin(0)
        tuner.see(outputs, torch.tensor(labels))
    assert tuner.counts.tolist() == [3, 5]
    tuner.begin(1)
    assert float(tuner.best) == pytest.approx(0.6)
    assert tuner.counts.tolist() == [0, 0]


def test_a_perfect_accuracy_or_no_patience_moves_nothing():
    for tuner, accuracy in ((ActiveTuner(3, window=1, patience=1), 1.0), (ActiveTuner(3, window=1, patience=0), 0.5)):
        feed(tuner, [accuracy] * 8)
        assert values(tuner) == pytest.approx((math.log(3) / 2, 0.4))
    with pytest.raises(SkyshiftError, match="window ≥ 1"):
        ActiveTuner(3, window=0)
