"""Self-ensembling's and AdaMatch's losses against NumPy and by their limits."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from skyshift.adapt.losses.adamatch import (
    aligned,
    interpolated,
    pseudo_label_loss,
    relative_threshold,
    target_weight,
)
from skyshift.adapt.losses.ensembling import class_balance, confident, consistency

EXACT = {"rtol": 2e-6, "atol": 1e-7}  # the losses are computed in float32


def logits(n, classes=3, seed=0, scale=3.0):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_consistency_and_balance_are_those_of_numpy():
    student, teacher = logits(8), logits(8, seed=1)
    p, q = softmax(student.numpy(), axis=1), softmax(teacher.numpy(), axis=1)
    sure = q.max(1) > 0.8
    assert 0 < sure.sum() < 8
    mask = confident(teacher, 0.8)
    np.testing.assert_array_equal(mask.numpy(), sure)
    wanted = np.mean([((p[i] - q[i]) ** 2).mean() if sure[i] else 0.0 for i in range(8)])
    np.testing.assert_allclose(float(consistency(student, teacher, mask)), wanted, **EXACT)
    mean = p.mean(0)
    wanted = sure.mean() * sum(-(np.log(m + 1e-6) / 3 + 2 * np.log(1 - m + 1e-6) / 3) for m in mean)
    np.testing.assert_allclose(float(class_balance(student, mask)), wanted, **EXACT)


def test_a_student_that_agrees_has_no_consistency_loss_and_the_teacher_no_gradient():
    student, teacher = logits(5).requires_grad_(), logits(5, seed=1).requires_grad_()
    ones = torch.ones(5)
    assert consistency(student, student, ones).item() == 0.0
    consistency(student, teacher, ones).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_balance_is_least_where_all_classes_are_used_alike():
    """By hand: every class at 1/K gives K times the entropy of 1/K; all in one class is finite and worse."""
    ones = torch.ones(3)
    even = float(class_balance(10.0 * torch.eye(3), ones))
    h = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert even == pytest.approx(3 * h, rel=1e-5)  # 1e-6 in the logarithms
    collapsed = float(class_balance(torch.tensor([[1e4, 0.0, 0.0]] * 3), ones))
    assert even < collapsed < math.inf
    assert float(class_balance(logits(3), torch.zeros(3))) == 0.0


def test_pseudo_labels_are_aligned_class_by_class():
    source, target = logits(6), logits(9, seed=1)
    p_s, p_t = softmax(source.numpy(), axis=1), softmax(target.numpy(), axis=1)
    wanted = p_t * (p_s.mean(0) + 1e-6) / (p_t.mean(0) + 1e-6)
    wanted /= wanted.sum(1, keepdims=True)
    found = aligned(source, target)
    np.testing.assert_allclose(found.numpy(), wanted, **EXACT)
    # the same maps on both sides: nothing to align
    np.testing.assert_allclose(aligned(source, source).numpy(), p_s, **EXACT)


def test_alignment_undoes_a_bias_of_the_target():
    """Targets of which all lean to class 0 get labels that are as frequent as the sources' predictions."""
    source = 4.0 * torch.eye(2).repeat(4, 1)
    target = torch.tensor([[3.0, 0.0], [2.9, 0.0], [1.1, 0.0], [1.0, 0.0]])
    assert (target.argmax(1) == 0).all()
    assert aligned(source, target).argmax(1).tolist() == [0, 0, 1, 1]


def test_the_threshold_follows_the_certainty_of_the_source():
    source = logits(7)
    wanted = 0.9 * softmax(source.numpy(), axis=1).max(1).mean()
    np.testing.assert_allclose(float(relative_threshold(source, 0.9)), wanted, **EXACT)
    assert float(relative_threshold(torch.zeros(4, 5), 0.9)) == pytest.approx(0.9 / 5, rel=1e-6)


def test_the_pseudo_label_loss_is_that_of_numpy_and_only_the_strong_view_learns():
    strong, labels = logits(6, seed=2).requires_grad_(), torch.as_tensor(softmax(logits(6, seed=1).numpy(), axis=1))
    threshold = torch.tensor(0.85)
    sure = labels.numpy().max(1) >= 0.85
    assert 0 < sure.sum() < 6
    wanted = -(labels.numpy() * log_softmax(strong.detach().numpy(), axis=1)).sum(1)
    loss = pseudo_label_loss(strong, labels, threshold)
    np.testing.assert_allclose(float(loss), (wanted * sure).mean(), **EXACT)
    loss.backward()
    # dH/dz = softmax(z) - p̃, for the sure ones alone
    by_hand = (softmax(strong.detach().numpy(), axis=1) - labels.numpy()) * sure[:, None] / 6
    np.testing.assert_allclose(strong.grad.numpy(), by_hand, **EXACT)
    source, weak = logits(4).requires_grad_(), logits(4, seed=1).requires_grad_()
    assert not aligned(source, weak).requires_grad
    assert not relative_threshold(source, 0.9).requires_grad


def test_the_weight_of_targets_rises_until_the_middle():
    # by hand: ½ - cos(π/2)/2 at a quarter of the run
    assert [target_weight(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 1.0], abs=1e-15
    )


def test_interpolated_logits_lie_between_the_two_each_at_its_own_place():
    joint, alone = logits(500), logits(500, seed=1)
    torch.manual_seed(0)
    place = (interpolated(joint, alone).double() - alone) / (joint - alone)
    clear = (joint - alone).abs() > 0.1
    assert float(place[clear].min()) >= -1e-5  # rounding of float32 over differences of .1
    assert float(place[clear].max()) <= 1 + 1e-5
    # uniform: mean ½ and variance 1/12, of about 1500 draws; five standard errors
    assert float(place[clear].mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / 1400))
    assert float(place[clear].var()) == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / 1400))
    same = logits(4)
    torch.testing.assert_close(interpolated(same, same), same.float(), rtol=0, atol=0)
