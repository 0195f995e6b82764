"""Reversal, cross-entropy of the domains, multilinear map and entropy weights, against NumPy and by their limits."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from skyshift.adapt.losses.conditioning import entropy_weights, multilinear
from skyshift.adapt.losses.domain_adversarial import confusion_loss, domain_loss
from skyshift.adapt.losses.reversal import reversal_strength, reverse


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.86, 1.0])
def test_the_reversed_gradient_is_exactly_minus_strength_times_the_plain_one(strength):
    values = normal(5, 3).requires_grad_()
    plain = torch.autograd.grad((values**3).sum(), values)[0]
    reversed_values = reverse(values, strength)
    assert torch.equal(reversed_values, values)
    # one product in either, so bit for bit
    assert torch.equal(torch.autograd.grad((reversed_values**3).sum(), values)[0], -strength * plain)


def test_the_strength_rises_from_zero_to_one():
    # by hand: 2 / (1 + e^-5) - 1 = tanh(2.5)
    assert reversal_strength(0.0) == 0.0
    assert reversal_strength(0.5) == pytest.approx(math.tanh(2.5), rel=1e-14)
    assert reversal_strength(1.0) == pytest.approx(1.0, abs=1e-4)
    strengths = [reversal_strength(p) for p in np.linspace(0, 1, 50)]
    assert strengths == sorted(strengths)


def test_the_domain_loss_is_the_cross_entropy_of_the_domains():
    source, target = normal(7, 1), normal(4, 1, seed=1)
    p_s, p_t = (1.0 / (1.0 + np.exp(-side.numpy())) for side in (source, target))
    wanted = 0.5 * (-np.log(p_s).mean() - np.log(1 - p_t).mean())
    assert float(domain_loss(source, target)) == pytest.approx(wanted, rel=1e-6)  # float32 inside
    assert float(confusion_loss(target)) == pytest.approx(-np.log(p_t).mean(), rel=1e-6)


def test_a_discriminator_that_cannot_tell_loses_ln_2():
    nothing = torch.zeros(6, 1)
    assert float(domain_loss(nothing, nothing)) == pytest.approx(math.log(2), rel=1e-6)
    assert float(confusion_loss(nothing)) == pytest.approx(math.log(2), rel=1e-6)


def test_weights_count_samples_more_or_less():
    source, target = normal(4, 1), normal(4, 1, seed=1)
    ones = torch.ones(4)
    assert float(domain_loss(source, target, ones, ones)) == pytest.approx(float(domain_loss(source, target)), rel=1e-7)
    twice_the_first = torch.tensor([4.0, 0.0, 0.0, 0.0])
    alone = domain_loss(source[:1], target, None, None)
    assert float(domain_loss(source, target, twice_the_first, ones)) == pytest.approx(float(alone), rel=1e-6)


def test_the_confusion_does_not_fade_where_the_discriminator_is_sure():
    """Reversed, the gradient of a target that is surely one is e^-20; with inverted labels it is 1."""
    for loss, wanted in ((lambda d: domain_loss(torch.zeros(1, 1), d), 0.5 * math.exp(-20)), (confusion_loss, -1.0)):
        sure = torch.tensor([[-20.0]], requires_grad=True)
        loss(sure).backward()
        assert float(sure.grad) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_the_multilinear_map_is_the_outer_product():
    features, logits = normal(5, 3).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    found = multilinear(features, logits)
    p = softmax(logits.detach().numpy(), axis=1)
    wanted = np.stack([np.outer(p[i], features.detach().numpy()[i]).ravel() for i in range(5)])
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-6, atol=1e-7)  # float32 inside
    # Σ_k p_k = 1: the copies add up to the features
    np.testing.assert_allclose(
        found.detach().reshape(5, 2, 3).sum(1).numpy(), features.detach().numpy(), rtol=1e-6, atol=1e-7
    )
    found.sum().backward()
    np.testing.assert_allclose(features.grad.numpy(), 1.0, rtol=1e-6)
    assert logits.grad is None


def test_entropy_weights_are_of_mean_one_and_finite_where_a_prediction_is_sure():
    logits = torch.cat([normal(6, 3), torch.tensor([[1e4, 0.0, 0.0]], dtype=torch.float64)])
    found = entropy_weights(logits).numpy()
    log_p = log_softmax(logits.numpy(), axis=1)
    raw = 1 + np.exp((np.exp(log_p) * log_p).sum(1))
    np.testing.assert_allclose(found, raw / raw.mean(), rtol=1e-6)
    assert found.mean() == pytest.approx(1.0, rel=1e-6)
    assert found.argmax() == 6
    assert raw[6] == 2.0  # entropy 0 counts twice


def test_the_pieces_are_those_of_pytorch_adapt():
    layers = pytest.importorskip("pytorch_adapt.layers")
    values = normal(4, 3).float().requires_grad_()
    gradients = [
        torch.autograd.grad((reversal(values) ** 2).sum(), values)[0]
        for reversal in (layers.GradientReversal(0.3), lambda v: reverse(v, 0.3))
    ]
    # theirs multiplies by 0.3 in float32, ours by the Python number
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)
    logits = normal(6, 3, seed=2).float()
    theirs = layers.EntropyWeights()(logits)  # of sum one
    torch.testing.assert_close(entropy_weights(logits), 6 * theirs, rtol=1e-6, atol=0)
    # their product of random projections keeps inner products on average: ⟨a ⊗ p, b ⊗ q⟩ = ⟨a, b⟩⟨p, q⟩
    features = normal(4, 3, seed=3).float()
    torch.manual_seed(0)
    theirs = layers.RandomizedDotProduct([3, 3], 60000)(features, logits[:4].softmax(1))
    mine = multilinear(features, logits[:4])
    # each of 60000 products has a relative scatter of up to sqrt(8), the mean sqrt(8 / 60000) = .012; eight of those
    torch.testing.assert_close(theirs @ theirs.T, mine @ mine.T, rtol=0.1, atol=0.1)
