"""Variational autoencoder and normalizing flow: divergences, densities, draws, and bad arguments."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import Noise
from skyshift.translate.methods.normalizing_flow import NormalizingFlow
from skyshift.translate.methods.vae import VAE
from skyshift.translate.networks.conditional_flow import ConditionalFlow
from skyshift.translate.networks.latent import LatentUNet, gaussian_kl


def _vae(**arguments) -> VAE:
    torch.manual_seed(0)
    return VAE(1, 1, autoencoder=lambda s, t: LatentUNet(s, t, width=4, depth=2), **arguments)


def test_divergence_is_that_of_torch():
    torch.manual_seed(0)
    mean, log_variance, prior_mean, prior_log_variance = torch.randn(4, 100, dtype=torch.float64)
    q, p = Normal(mean, (log_variance / 2).exp()), Normal(prior_mean, (prior_log_variance / 2).exp())
    ours = gaussian_kl(mean, log_variance, prior_mean, prior_log_variance)
    torch.testing.assert_close(ours, kl_divergence(q, p))  # two forms of one formula in float64: rounding alone


@pytest.mark.parametrize("size", [(16, 16), (17, 21)])
@torch.no_grad()
def test_draw_depends_on_its_seed_alone(size):
    method, source = _vae().eval(), torch.rand(3, 1, *size)
    together = method.translate(source, noise=Noise([5, 6, 7]))
    alone = method.translate(source[1:2], noise=Noise([6]))
    assert together.shape == source.shape
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)  # batched convolutions round differently
    assert (method.translate(source, noise=Noise([8, 9, 10])) - together).std() > 0.01


def test_loss_is_the_negative_bound_and_trains_every_weight():
    method, batch = _vae(warm_up=0, beta=2.0), {"source": torch.rand(2, 1, 16, 16), "target": torch.rand(2, 1, 16, 16)}
    loss, parts = method.loss("autoencoder", {"autoencoder": method.autoencoder}, batch, {})
    torch.testing.assert_close(loss, parts["nll"] + 2.0 * parts["kl"])
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("arguments", [{"beta": -1.0}, {"beta": float("nan")}, {"warm_up": -1}])
def test_bad_weights_are_refused(arguments):
    with pytest.raises(SkyshiftError, match=f"{next(iter(arguments))} of the vae is"):
        _vae(**arguments)


def _flow() -> ConditionalFlow:
    torch.manual_seed(0)
    flow = ConditionalFlow(1, 1, width=4, levels=2, blocks=2)
    for parameter in flow.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)  # away from the trivial start
    return flow


@torch.no_grad()
def test_flow_is_inverted():
    flow, y, x = _flow(), torch.randn(2, 1, 8, 12), torch.randn(2, 1, 8, 12)
    parts, _ = flow(y, x)
    assert [tuple(p.shape[1:]) for p in parts] == flow.latent_shapes(8, 12)
    torch.testing.assert_close(flow.inverse(parts, x), y, rtol=0, atol=1e-5)  # float32 over four blocks


def test_determinant_is_that_of_the_jacobian():
    flow, y, x = _flow().double(), torch.randn(1, 1, 4, 4).double(), torch.randn(1, 1, 4, 4).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: torch.cat([p.flatten() for p in flow(v.reshape(1, 1, 4, 4), x)[0]]), y.flatten()
    )
    torch.testing.assert_close(flow(y, x)[1][0], torch.linalg.slogdet(jacobian)[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_flow_draws_depend_on_their_seeds_alone_at_odd_sizes():
    method, source = NormalizingFlow(1, 1, flow=lambda s, t: _flow()), torch.rand(3, 1, 17, 21)
    together = method.translate(source, noise=Noise([5, 6, 7]))
    assert together.shape == source.shape
    torch.testing.assert_close(together[1:2], method.translate(source[1:2], noise=Noise([6])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"temperature": -1.0}, {"floor": float("nan")}])
def test_bad_numbers_of_the_flow_are_refused(arguments):
    with pytest.raises(SkyshiftError, match=f"{next(iter(arguments))} of the normalizing flow"):
        NormalizingFlow(1, 1, **arguments)


def test_flow_refuses_physics_losses():
    method = NormalizingFlow(1, 1, flow=lambda s, t: _flow())
    method.physics = lambda estimate, batch: (estimate.mean(), {})
    with pytest.raises(SkyshiftError, match="physics losses"):
        method.loss("flow", {"flow": method.flow}, {}, {})
