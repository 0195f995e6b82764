"""Distances between domains: printed numbers, other implementations, invariances and limits."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import calinski_harabasz_score
from sklearn.metrics.pairwise import rbf_kernel

from skyshift.adapt.losses.coral import coral
from skyshift.adapt.losses.entropy import entropy
from skyshift.adapt.losses.fisher import fisher
from skyshift.adapt.losses.mmd import MERGER_BANDWIDTHS, data_bandwidths, mmd_biased, mmd_merger, mmd_unbiased
from skyshift.adapt.losses.sinkhorn import potentials, sinkhorn_divergence, symmetric_potential
from skyshift.errors import SkyshiftError

DISTANCES = [mmd_biased, mmd_unbiased, mmd_merger, coral, sinkhorn_divergence]


@pytest.fixture(scope="module")
def samples():
    g = torch.Generator().manual_seed(0)
    source = torch.randn(32, 16, generator=g, dtype=torch.float64)
    return source, 1.3 * torch.randn(32, 16, generator=g, dtype=torch.float64) + 0.5


# Published numbers, to all six digits that are printed; float32 has seven.
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("distance", "value"),
    [
        (lambda x, y: mmd_biased(x, y, [16.0]), 0.146162),
        (lambda x, y: mmd_unbiased(x, y, [16.0]), 0.102557),
        (mmd_merger, 1.392080),
        (coral, 0.038283),
    ],
)
def test_reference_numbers(samples, distance, value, kind):
    x, y = (sample.to(kind) for sample in samples)
    assert float(distance(x, y)) == pytest.approx(value, abs=6e-7)
    assert distance(x, y).dtype == kind


def test_kernels_are_those_of_scikit_learn(samples):
    """rbf_kernel(gamma) = exp(-gamma d²), γ = 1 / 2s; the same sums in float64, so to rounding."""
    x, y = (sample.numpy() for sample in samples)
    biased, unbiased = [], []
    for s in (2.0, 8.0, 40.0):
        xx, yy, xy = (rbf_kernel(a, b, gamma=0.5 / s) for a, b in ((x, x), (y, y), (x, y)))
        biased.append(xx.mean() + yy.mean() - 2 * xy.mean())
        unbiased.append((xx.sum() + yy.sum() - 64) / (32 * 31) - 2 * xy.mean())
    assert float(mmd_biased(*samples, [2.0, 8.0, 40.0])) == pytest.approx(np.mean(biased), rel=1e-12)
    assert float(mmd_unbiased(*samples, [2.0, 8.0, 40.0])) == pytest.approx(np.mean(unbiased), rel=1e-12)


def test_own_bandwidths_are_half_the_mean_squared_distance(samples):
    both = torch.cat(samples).numpy()
    distances = cdist(both, both, "sqeuclidean")
    mean = distances.sum() / (64 * 63)
    expected = [factor * mean / 2 for factor in (0.25, 0.5, 1, 2, 4)]
    assert [float(s) for s in data_bandwidths(*samples)] == pytest.approx(expected, rel=1e-12)


def test_own_bandwidths_make_the_distance_free_of_scale(samples):
    x, y = samples
    for distance in (mmd_biased, mmd_unbiased):
        assert float(distance(1000 * x, 1000 * y)) == pytest.approx(float(distance(x, y)), rel=1e-10)


def test_mmd_of_equal_batches():
    """V is 0 for equal batches; U is 0 on average for batches of one distribution, within its standard error."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, generator=g)
    assert float(mmd_biased(x, x, [1.0])) == pytest.approx(0, abs=1e-6)  # rounding of float32
    assert float(mmd_merger(x, x)) == pytest.approx(1e-4, rel=1e-6)  # its floor
    draws = np.array(
        [[float(f(*torch.randn(2, 12, 4, generator=g), [4.0])) for f in (mmd_unbiased, mmd_biased)] for _ in range(400)]
    )
    error = draws.std(0) / 20
    assert abs(draws[:, 0].mean()) < 4 * error[0]
    assert draws[:, 1].mean() > 20 * error[1]  # which V is not: the test can tell them apart


def test_mmd_of_two_gaussians():
    """Closed form for N(0, 1) and N(μ, 1) in one dimension: E k = √(s / (s + 2)) exp(-μ² / 2(s + 2))."""
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 2000, 1, generator=g)
    mu, s = 1.0, 0.5
    expected = 2 * np.sqrt(s / (s + 2)) * (1 - np.exp(-(mu**2) / (2 * (s + 2))))
    assert float(mmd_unbiased(x, y + mu, [s])) == pytest.approx(expected, rel=0.1)  # 2,000 draws: about 4 % of noise


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_do_not_see_the_order_and_have_gradients(samples, distance):
    x, y = samples
    shuffled = x[torch.randperm(32, generator=torch.Generator().manual_seed(3))]
    assert float(distance(shuffled, y)) == pytest.approx(float(distance(x, y)), rel=1e-9)
    assert float(distance(y, x)) == pytest.approx(float(distance(x, y)), rel=1e-6)  # Sinkhorn stops short of its limit
    x, y = (sample.clone().requires_grad_() for sample in samples)
    gradients = torch.autograd.grad(distance(x, y), (x, y))
    assert all(bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0 for gradient in gradients)


@pytest.mark.parametrize("distance", [*DISTANCES, lambda x, y: mmd_unbiased(x, y, [0.5, 3.0])])
def test_gradients_are_those_of_differences(distance):
    """Central differences in float64; widths of kernels, ε and the floor are not differentiated, so they are held."""
    g = torch.Generator().manual_seed(4)
    x, y = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    y = (2 * y + 1).requires_grad_()
    if distance in (mmd_biased, mmd_unbiased):
        widths = data_bandwidths(x, y)
        held = lambda x, y: distance(x, y, widths)  # noqa: E731
    elif distance is sinkhorn_divergence:
        mean = float(cdist(x.numpy(), y.detach().numpy(), "sqeuclidean").mean() / 2)

        def held(x, y):
            return sinkhorn_divergence(x, y, mean / float((torch.cdist(x, y).detach() ** 2).mean() / 2), 100)
    else:
        held = distance
    assert torch.autograd.gradcheck(held, (x.requires_grad_(), y), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_half_precision_is_raised(samples, distance):
    """Under autocast, and of bfloat16 features, the distance is that of the same values in float32."""
    x, y = (sample.bfloat16() for sample in samples)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(x, y)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(distance(x.float(), y.float())), rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_samples_that_do_not_fit_are_refused(distance):
    with pytest.raises(SkyshiftError, match="vectors of one width"):
        distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(SkyshiftError, match=r"raise training\.batch_size"):
        distance(torch.zeros(0, 3), torch.zeros(4, 3))
    if distance in (mmd_unbiased, coral):
        with pytest.raises(SkyshiftError, match="2 maps or more"):
            distance(torch.zeros(1, 3), torch.zeros(4, 3))


def test_options_out_of_range_are_refused():
    x = torch.zeros(4, 3)
    for bandwidths in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(SkyshiftError, match="above 0"):
            mmd_biased(x, x, bandwidths)
    for options in ({"blur": 0.0}, {"iterations": 0}):
        with pytest.raises(SkyshiftError, match="blur above 0"):
            sinkhorn_divergence(x, x, **options)


def test_there_are_nineteen_merger_kernels():
    assert len(MERGER_BANDWIDTHS) == 19
    assert min(MERGER_BANDWIDTHS) == 1e-6
    assert max(MERGER_BANDWIDTHS) == 1e6


def test_coral_is_the_covariances_of_numpy(samples):
    x, y = (sample.numpy() for sample in samples)
    expected = np.linalg.norm(np.cov(x.T) - np.cov(y.T)) ** 2 / (4 * 16**2)
    assert float(coral(*samples)) == pytest.approx(expected, rel=1e-12)
    assert float(coral(samples[0] + 3, samples[0])) == pytest.approx(0, abs=1e-25)  # means are not compared


# -- Sinkhorn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blur", "iterations", "tolerance"), [(1.0, 50, 1e-9), (0.05, 50, 1e-6), (0.05, 300, 1e-10)])
def test_sinkhorn_is_that_of_pot(samples, blur, iterations, tolerance):
    """OT_ε from POT's plans, at their convergence. The tolerance is what the iterations leave."""
    ot = pytest.importorskip("ot")
    x, y = (sample.numpy() for sample in samples)
    epsilon = blur * cdist(x, y, "sqeuclidean").mean() / 2

    def transport(a, b):
        cost, weights = cdist(a, b, "sqeuclidean") / 2, np.full(32, 1 / 32)
        options = {"method": "sinkhorn", "numItermax": 20000, "stopThr": 1e-12, "warn": False}
        plan = ot.sinkhorn(weights, weights, cost, epsilon, **options)
        return (plan * cost).sum() + epsilon * (plan * np.log(plan * 32 * 32)).sum()

    expected = transport(x, y) - (transport(x, x) + transport(y, y)) / 2
    assert float(sinkhorn_divergence(*samples, blur, iterations)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("blur", [0.02, 0.3, 10.0])
def test_a_moved_sample_is_half_its_squared_shift_away(blur):
    """For every blur: the bias of the blur is gone."""
    x = torch.randn(25, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = sinkhorn_divergence(x, x + shift, blur, 400)
    assert float(found) == pytest.approx(5.25 / 2, rel=1e-4)  # what 400 iterations leave at the smallest blur
    assert float(sinkhorn_divergence(x, x, blur, 400)) == pytest.approx(0, abs=1e-6)


def test_limits_of_the_blur(samples):
    """Half the squared Wasserstein distance (the best assignment, by SciPy), and half that between the means."""
    x, y = (sample.numpy() for sample in samples)
    cost = cdist(x, y, "sqeuclidean") / 2
    best = cost[linear_sum_assignment(cost)].mean()
    # ε = 0.002 of the mean cost of 27 is 0.05; what is left of the entropy is below ε log 32 and half cancels.
    assert float(sinkhorn_divergence(*samples, 0.002, 3000)) == pytest.approx(best, rel=0.01)
    means = ((x.mean(0) - y.mean(0)) ** 2).sum() / 2
    # At ε = 10⁴ mean costs the next order is about 10⁻⁴ of the mean cost.
    assert float(sinkhorn_divergence(*samples, 1e4, 50)) == pytest.approx(means, rel=0.01)


def test_potentials_give_plans_with_the_right_marginals(samples):
    x, y = samples
    cost = torch.cdist(x, y[:20]) ** 2 / 2
    epsilon = cost.mean() / 10
    f, g = potentials(cost, epsilon, 200)
    plan = ((f[:, None] + g[None] - cost) / epsilon).exp() / cost.numel()
    torch.testing.assert_close(plan.sum(0), torch.full((20,), 1 / 20, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((32,), 1 / 32, dtype=torch.float64), rtol=1e-6, atol=0)
    own = torch.cdist(x, x) ** 2 / 2
    f = symmetric_potential(own, epsilon, 200)
    plan = ((f[:, None] + f[None] - own) / epsilon).exp() / own.numel()
    torch.testing.assert_close(plan.sum(0), torch.full((32,), 1 / 32, dtype=torch.float64))


# -- terms on one domain ----------------------------------------------------------------------------------------------


def test_fisher_is_the_calinski_harabasz_index(samples):
    """CH = (tr B / (K - 1)) / (tr W / (n - K)), in scikit-learn."""
    labels = np.arange(32) % 3
    features = samples[0] + torch.from_numpy(labels)[:, None]
    expected = (32 - 3) / (3 - 1) / calinski_harabasz_score(features.numpy(), labels)
    found = fisher(features, torch.from_numpy(labels), 3)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert float(fisher(50 * features - 7, torch.from_numpy(labels), 3)) == pytest.approx(expected, rel=1e-9)


def test_fisher_leaves_unlabelled_maps_and_absent_classes_out(samples):
    labels = torch.arange(32) % 3
    expected = float(fisher(samples[0], labels, 3))
    more = torch.cat([samples[0], 100 + samples[1]])
    assert float(fisher(more, torch.cat([labels, torch.full((32,), -1)]), 7)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.arange(12.0).reshape(6, 2), torch.ones(6)),
        (torch.arange(12.0).reshape(6, 2), torch.full((6,), -1)),
        (torch.ones(6, 2), torch.arange(6)),
    ],
)
def test_fisher_of_what_has_no_scatter_between_classes(features, labels):
    """One class, no class, or all features the same: 0, and gradients of 0."""
    features = features.clone().requires_grad_()
    loss = fisher(features, labels.long(), 6)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(features.grad.abs().max()) == 0


def test_fisher_gradient():
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: fisher(z, torch.tensor([0, 1, 2, 0, 1, 2, -1]), 3), (features,))


def test_entropy_is_that_of_scipy(samples):
    logits = samples[0][:, :5] * 3
    expected = scipy_entropy(torch.softmax(logits, 1).numpy(), axis=1)
    np.testing.assert_allclose(entropy(logits).numpy(), expected, rtol=1e-12)
    assert float(entropy(torch.zeros(1, 7))) == pytest.approx(np.log(7), rel=1e-6)


def test_entropy_is_finite_where_a_probability_is_zero():
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    values = entropy(logits)
    values.sum().backward()
    assert values.tolist() == pytest.approx([np.log(2), 0.0], abs=1e-6)
    assert bool(torch.isfinite(logits.grad).all())
