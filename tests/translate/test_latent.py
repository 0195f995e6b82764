"""Variational autoencoder and normalizing flow: divergences, densities, draws, and bad arguments."""

import importlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from skyshift.datasets.maps import MapError
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import Noise
from skyshift.translate.methods.normalizing_flow import NormalizingFlow
from skyshift.translate.methods.vae import VAE
from skyshift.translate.networks.conditional_flow import ConditionalFlow
from skyshift.translate.networks.latent import LatentUNet, gaussian_kl
from skyshift.translate.translator import Translator


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


def test_beta_rises_with_the_steps_of_the_optimizer():
    """Whatever the number of micro-batches in a step: each of them is weighted alike."""
    method, batch = _vae(warm_up=10, beta=2.0), {"source": torch.rand(2, 1, 16, 16), "target": torch.rand(2, 1, 16, 16)}
    for step, beta in ((0, 0.0), (5, 1.0), (10, 2.0), (40, 2.0)):
        method.step = step
        for _ in range(2):
            loss, parts = method.loss("autoencoder", {"autoencoder": method.autoencoder}, batch, {})
            torch.testing.assert_close(loss, parts["nll"] + beta * parts["kl"])


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


# --- the bound, where the likelihood is known: z = m(x) + N(0, 1), y = a z + N(0, s²), so y ~ N(a m, a² + s²)

GAIN, SPREAD, PRIOR = 0.8, 0.3, 0.5


class LinearGaussian(nn.Module):
    """A latent network of one pixel with these numbers; q has the exact posterior's mean and its variance stretched."""

    def __init__(self, stretch: float = 1.0) -> None:
        super().__init__()
        self.stretch = stretch

    def latent_shape(self, source):
        return (1, 1, 1)

    def forward(self, source, target=None, epsilon=None):
        mean, log_variance = torch.full_like(source, PRIOR), torch.zeros_like(source)
        kl = torch.zeros(len(source))
        if target is not None:
            variance = SPREAD**2 / (GAIN**2 + SPREAD**2)
            posterior = variance * (PRIOR + GAIN * target / SPREAD**2)
            log_posterior = torch.full_like(source, math.log(variance * self.stretch))
            kl = gaussian_kl(posterior, log_posterior, mean, log_variance).flatten(1).sum(1)
            mean, log_variance = posterior, log_posterior
        epsilon = torch.randn_like(mean) if epsilon is None else epsilon
        estimate = GAIN * (mean + (0.5 * log_variance).exp() * epsilon)
        return estimate, torch.full_like(source, math.log(SPREAD)), kl


def _negative_bound(stretch):
    torch.manual_seed(0)
    method = VAE(1, 1, autoencoder=lambda s, t: LinearGaussian(stretch), warm_up=0)
    source = torch.zeros(200_000, 1, 1, 1)
    target = GAIN * PRIOR + math.hypot(GAIN, SPREAD) * torch.randn_like(source)
    loss, _ = method.loss("autoencoder", {"autoencoder": method.autoencoder}, {"source": source, "target": target}, {})
    likelihood = Normal(GAIN * PRIOR, math.hypot(GAIN, SPREAD)).log_prob(target).mean()
    return float(loss), float(-likelihood)


def test_bound_is_the_likelihood_at_the_exact_posterior():
    loss, exact = _negative_bound(1.0)
    assert loss == pytest.approx(exact, abs=0.01)  # noise of draws: 0.6 / sqrt(200 000) = 0.0015


@pytest.mark.parametrize("stretch", [0.25, 4.0])
def test_bound_misses_the_likelihood_by_the_divergence_of_q_from_the_posterior(stretch):
    loss, exact = _negative_bound(stretch)
    gap = kl_divergence(Normal(0.0, math.sqrt(stretch)), Normal(0.0, 1.0))  # both scaled by the posterior's σ
    assert loss - exact == pytest.approx(float(gap), abs=0.02)  # noise of draws: some 2.5 / sqrt(200 000) = 0.006


@pytest.mark.parametrize(("pixel_noise", "variance"), [(True, GAIN**2 + SPREAD**2), (False, GAIN**2)])
def test_draws_have_the_mean_and_variance_of_the_density(pixel_noise, variance):
    method = VAE(1, 1, autoencoder=lambda s, t: LinearGaussian(), pixel_noise=pixel_noise)
    draws = method.translate(torch.zeros(5000, 1, 1, 1), noise=Noise(range(5000)))
    assert float(draws.mean()) == pytest.approx(GAIN * PRIOR, abs=0.05)  # four σ: 4 · 0.85 / sqrt(5000)
    assert float(draws.var()) == pytest.approx(variance, rel=0.08)  # four σ: 4 · sqrt(2 / 5000)


# --- the flow learns a known density: y = 0.7 x + 0.5 N(0, 1), in every pixel


def test_flow_learns_conditional_mean_variance_and_entropy():
    torch.manual_seed(0)
    method = NormalizingFlow(1, 1, floor=0.0, flow=lambda s, t: ConditionalFlow(s, t, width=8, levels=1, blocks=4))
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)

    def batch_of(n):
        source = torch.randn(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
        return {"source": source, "target": 0.7 * source + 0.5 * torch.randn_like(source)}

    def loss_of(batch):
        return method.loss("flow", {"flow": method.flow}, batch, {})[0]

    for _ in range(500):
        optimizer.zero_grad()
        loss_of(batch_of(64)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        entropy = 0.5 * math.log(2 * math.pi * math.e * 0.5**2)
        # No density can have less than the entropy (σ of 32 000 pixels: 0.004); a little more is not learned yet.
        assert entropy - 0.016 < float(loss_of(batch_of(8000))) < entropy + 0.05
        for x in (-1.0, 1.0):
            draws = method.translate(torch.full((2000, 1, 2, 2), x), noise=Noise(range(2000)))
            assert float(draws.mean()) == pytest.approx(0.7 * x, abs=0.08)
            assert float(draws.std()) == pytest.approx(0.5, rel=0.1)


@torch.no_grad()
def test_density_of_the_flow_integrates_to_one():
    """Importance sampling over the four pixels of a 2x2 map from a normal wider than the density."""
    torch.manual_seed(0)
    flow = ConditionalFlow(1, 1, width=4, levels=1, blocks=2)
    for parameter in flow.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    source = torch.randn(1, 1, 2, 2).expand(200_000, 1, 2, 2)
    samples = flow.inverse([torch.randn(20_000, 4, 1, 1)], source[:20_000])
    centre, spread = samples.mean(0), 1.5 * samples.std(0)
    target = centre + spread * torch.randn(200_000, 1, 2, 2)
    parts, determinant = flow(target, source)
    density = Normal(0.0, 1.0).log_prob(parts[0]).flatten(1).sum(1) + determinant
    weights = (density - Normal(centre, spread).log_prob(target).flatten(1).sum(1)).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.02
    assert abs(float(weights.mean()) - 1.0) < 4 * error


# --- runs

TINY = [
    *("--training.steps=3", "--training.batch_size=2", "--training.log_every=1", "--training.sample_every=0"),
    *("--data.build=", "--data.split={train: 0.5, validation: 0.2, test: 0.3, seed: 0}", "--evaluation=false"),
]
SMALL = {
    "vae": "--method.init_args.autoencoder.init_args.width=4",
    "normalizing_flow": "--method.init_args.flow.init_args.width=4",
}


def _train(repository, store, output, name, *options):
    config = repository / "configs" / "translate" / f"{name}.yaml"
    command = [sys.executable, repository / "translate" / "train.py", "--config", config, "--data.store", store]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [*command, "--output", output, *TINY, SMALL[name], *options]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["vae", "normalizing_flow"])
def test_the_shipped_configuration_trains_and_translates(name, tiny_store, tmp_path, repository):
    result = _train(repository, tiny_store, tmp_path / "run", name)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    translator, store = Translator.from_pretrained(tmp_path / "run"), MapStore(tiny_store)
    maps = translator(store, [0, 1])["hi"]
    assert maps.values.shape == (2, 32, 32)
    assert np.isfinite(maps.values).all()
    assert maps.values.min() >= 0
    broken = np.array(store.maps("gas", np.array([0])))
    broken[0, 3, 4] = np.nan
    with pytest.raises(MapError, match="finite"):
        translator(broken)


def test_flow_refuses_physics_losses_before_the_run(tiny_store, tmp_path, repository):
    result = _train(repository, tiny_store, tmp_path / "run", "normalizing_flow", "--physics.total=1.0")
    assert result.returncode != 0
    assert "NormalizingFlow makes no estimate in training that physics could judge" in result.stderr
    assert not (tmp_path / "run").exists()


def test_flow_without_its_library_names_the_cure(monkeypatch):
    name = "skyshift.translate.networks.conditional_flow"
    monkeypatch.setitem(sys.modules, "FrEIA.modules", None)
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SkyshiftError, match="pip install 'FrEIA"):
        importlib.import_module(name)
