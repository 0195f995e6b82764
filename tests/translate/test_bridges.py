"""Bridges and flows: with the exact network their draws have the moments of Gaussians, with few calls and with many."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import Noise
from skyshift.translate.methods.bridge import Bridge, share, time_of
from skyshift.translate.methods.flow import Flow
from skyshift.translate.networks.time_unet import TimeUNet
from skyshift.translate.networks.unet import UNet
from skyshift.translate.translator import Translator

MEAN, DEVIATION = 0.5, 0.2
CALLS = (10, 20, 50, 1000)
PIXELS = 128
"""16,384 independent pixels: a mean errs by 0.8 %, a standard deviation by 0.55 % of the deviation."""


def tiny(seen, target):
    return TimeUNet(seen, target, width=4, depth=1, norm="none", embedding=8)


class ExactBridge(nn.Module):
    """E[y | x_t, x] where y given x is N(ρ x, 1 - ρ²), in standardised units."""

    def __init__(self, kind, noise, rho):
        super().__init__()
        self.kind, self.noise, self.rho = kind, noise, rho

    def forward(self, seen, t):
        present, x = seen.double().chunk(2, 1)
        w = share(self.kind, t[0].double())
        prior, spread = self.rho * x, 1 - self.rho**2
        if w >= 1 or (self.noise == 0 and w > 0):
            return prior if w >= 1 else (present - w * x) / (1 - w)
        precision = (1 - w) / (self.noise**2 * w)
        return (prior / spread + (present - w * x) / (1 - w) * precision) / (1 / spread + precision)


class ExactVelocity(nn.Module):
    """E[y - x_0 | x_t] where x_0 is N(0, 1) and y given the source is N(ρ s, 1 - ρ²)."""

    def __init__(self, rho):
        super().__init__()
        self.rho = rho

    def forward(self, seen, t):
        present, s = seen.double().chunk(2, 1)
        t, spread, mean = t[0].double(), 1 - self.rho**2, self.rho * s
        variance = (1 - t) ** 2 + t**2 * spread
        return mean + (t * spread - (1 - t)) / variance * (present - t * mean)


def standardised(method):
    """The targets are N(0.5, 0.2²), as if measured."""
    method.target_scale.centre.fill_(MEAN)
    method.target_scale.spread.fill_(DEVIATION)
    method.target_scale.known.fill_(True)
    return method.eval()


def bridge_of(kind="brownian", noise=1.0, rho=0.0):
    return standardised(Bridge(1, 1, denoiser=lambda *_: ExactBridge(kind, noise, rho), kind=kind, noise=noise))


def flow_of(solver="midpoint", rho=0.0):
    return standardised(Flow(1, 1, velocity=lambda *_: ExactVelocity(rho), solver=solver))


def source():
    return torch.randn(1, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(3))


def drawn(method, calls, x):
    made = method.translate(x, noise=Noise([11]), calls=calls)
    assert made.isfinite().all()
    return made


# Each step replaces the targets that are left by their mean: few steps lose a little of the variance.
WITHIN = {10: 0.05, 20: 0.03, 50: 0.02, 1000: 0.02}


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("kind", ["brownian", "schroedinger"])
def test_bridges_between_two_gaussians(kind, calls):
    made = drawn(bridge_of(kind), calls, source())
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.03 * DEVIATION)
    assert float(made.std()) == pytest.approx(DEVIATION, rel=WITHIN[calls])


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_flows_between_two_gaussians(solver, calls):
    made = drawn(flow_of(solver), calls, source())
    # Euler's error falls with the step, those of second order with its square.
    within = max(0.02, 1.5 / calls if solver == "euler" else 2.0 / calls**2)
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.03 * DEVIATION)
    assert float(made.std()) == pytest.approx(DEVIATION, rel=within)


@pytest.mark.parametrize("rho", [0.6, -0.9])
@pytest.mark.parametrize("calls", [10, 100])
@pytest.mark.parametrize(
    "make", [bridge_of, lambda rho: bridge_of("schroedinger", rho=rho), lambda rho: flow_of(rho=rho)]
)
def test_draws_given_the_source_are_of_the_conditional_distribution(make, calls, rho):
    """y given x is N(ρ x, 1 - ρ²): regression on the source and scatter about it are both known."""
    method, x = make(rho=rho), source()
    made = (drawn(method, calls, x) - MEAN) / DEVIATION
    slope = float((made * x).mean() / x.square().mean())
    assert slope == pytest.approx(rho, abs=0.03)
    assert float((made - slope * x).std()) == pytest.approx((1 - rho**2) ** 0.5, rel=0.06 if calls == 10 else 0.03)


@pytest.mark.parametrize("make", [bridge_of, flow_of, lambda rho: bridge_of("indi", 0.0, rho)])
def test_one_call_is_the_regression_estimate(make):
    x = source()
    made = (drawn(make(rho=0.7), 1, x) - MEAN) / DEVIATION
    # Of the flow: x_0 + E[y - x_0 | x_0], of bridges F(x, 1): both the mean of the targets.
    torch.testing.assert_close(made.double(), 0.7 * x.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("calls", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["brownian", "schroedinger", "indi"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_nothing_is_undefined_at_the_ends(kind, noise, calls):
    method = Bridge(1, 1, denoiser=tiny, kind=kind, noise=noise).eval()
    x = torch.randn(2, 1, 16, 12)
    made = method.translate(x, noise=Noise([1, 2]), calls=calls)
    again = method.translate(x, noise=Noise([3, 4]), calls=calls)
    assert made.isfinite().all()
    assert method.stochastic == (noise > 0)
    moves = noise > 0 and (calls > 1 or kind == "indi")
    assert torch.equal(made, again) != moves


def test_shares_of_the_schroedinger_bridge_are_the_integral_of_its_beta():
    """Against a sum over the 1,000 β of I2SB: the first half of √β even from √1e-4 to √(0.3 / 1000), mirrored."""
    root = torch.linspace(1e-4**0.5, (0.3 / 1000) ** 0.5, 1000, dtype=torch.float64)[:500]
    beta = torch.cat([root, root.flip(0)]).square()
    total = beta.cumsum(0) / beta.sum()
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(share("schroedinger", times), total, atol=2e-3, rtol=0)
    for w in (0.0, 0.01, 0.3, 0.5, 0.9, 1.0):
        assert float(share("schroedinger", torch.tensor(time_of("schroedinger", w)).double())) == pytest.approx(
            w, abs=1e-7
        )


def test_the_bridge_has_the_moments_of_the_papers():
    """BBDM's δ_t = 2 s (m - m²) with V = 2 s; I2SB's Σ = σ² σ̄² / (σ² + σ̄²)."""
    x, y, s = torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), -1.0), 0.8
    method = Bridge(1, 1, denoiser=tiny, noise=math.sqrt(2 * s))
    for m in (0.1, 0.5, 0.8):
        made = method.between(x, y, torch.tensor(m), torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        assert float(made.mean()) == pytest.approx((1 - m) * -1 + m * 3, abs=0.02)
        assert float(made.var()) == pytest.approx(2 * s * (m - m * m), rel=0.02)
        one, other = 2 * s * m, 2 * s * (1 - m)
        assert one * other / (one + other) == pytest.approx(2 * s * (m - m * m))


def test_interpolants_move_with_their_velocity():
    """The velocity is the derivative of the path, by finite differences."""
    method = Flow(1, 1, velocity=tiny, start="source", noise=0.7)
    x, y, z = (torch.randn(1, 1, 8, 8, dtype=torch.float64) for _ in range(3))
    for t in (0.0, 0.3, 0.9):
        one, other = (method.path(x, y, torch.tensor(t + d, dtype=torch.float64), z)[0] for d in (-1e-5, 1e-5))
        velocity = method.path(x, y, torch.tensor(t, dtype=torch.float64), z)[1]
        torch.testing.assert_close((other - one) / 2e-5, velocity, rtol=1e-6, atol=1e-6)
    start, _ = method.path(x, y, torch.tensor(0.0), z)
    end, _ = method.path(x, y, torch.tensor(1.0), z)
    torch.testing.assert_close(start, x)
    torch.testing.assert_close(end, y)


@pytest.mark.parametrize("calls", [1, 2, 5, 8])
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_calls_are_the_networks_evaluations(solver, calls):
    class Counting(nn.Module):
        calls = 0

        def forward(self, seen, t):
            self.calls += 1
            assert 0 <= float(t[0]) <= 1
            return seen[:, :1]

    for method in (
        Flow(1, 1, velocity=lambda *_: Counting(), solver=solver),
        Bridge(1, 1, denoiser=lambda *_: Counting()),
    ):
        method.eval().translate(torch.zeros(1, 1, 8, 8), calls=calls)
        assert getattr(method, method.players[0]).calls == calls


@pytest.mark.parametrize("make", [lambda: Bridge(1, 1, denoiser=tiny), lambda: Flow(2, 1, velocity=tiny)])
def test_a_draw_does_not_depend_on_its_neighbours(make):
    torch.manual_seed(0)
    method = make().eval()
    x = torch.randn(3, method.source_channels, 10, 14)
    together = method.translate(x, noise=Noise([5, 6, 7]))
    assert together.shape == (3, 1, 10, 14)
    alone = method.translate(x[2:], noise=Noise([7]))
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("make", [lambda: Bridge(1, 1, denoiser=tiny), lambda: Flow(1, 1, velocity=tiny)])
def test_the_loss_falls_and_physics_reach_the_network(make):
    torch.manual_seed(0)
    method = make()
    x = torch.rand(8, 1, 16, 16)
    batch = {"source": x, "target": 1 - 0.5 * x}
    player = method.players[0]
    networks = {player: getattr(method, player)}
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        loss, _ = method.loss(player, networks, batch, {})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-30:]) < 0.5 * sum(losses[:5]) * 6
    assert bool(method.target_scale.known)
    method.physics = lambda estimate, batch: (estimate.mean(), {"total": estimate.mean()})
    torch.manual_seed(1)
    with_physics, parts = method.loss(player, networks, batch, {})
    assert float(with_physics) == pytest.approx(float(sum(parts.values())), rel=1e-5)
    assert parts["total"].requires_grad


def test_a_time_network_begins_as_the_plain_one():
    torch.manual_seed(0)
    timed = TimeUNet(2, 1, width=4, depth=2)
    plain = UNet(2, 1, width=4, depth=2)
    plain.load_state_dict({k: v for k, v in timed.state_dict().items() if not k.startswith(("embed", "films"))})
    x = torch.randn(2, 2, 30, 22)
    torch.testing.assert_close(timed(x, torch.tensor([0.1, 0.9])), plain(x))
    nn.init.normal_(timed.films[0].weight, std=0.1)
    one, other = timed(x, torch.tensor([0.1, 0.1])), timed(x, torch.tensor([0.9, 0.1]))
    assert not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Bridge(1, 1, kind="brownien"), "Did you mean 'brownian'"),
        (lambda: Bridge(1, 1, noise=-1.0), "0 or a positive number, not -1.0"),
        (lambda: Bridge(2, 1), "2 source channels cannot become 1 target channels"),
        (lambda: Bridge(1, 1, calls=0), r"at least 1 network call\(s\), not 0"),
        (lambda: Bridge(1, 1, denoiser=tiny).translate(torch.zeros(1, 1, 8, 8), calls=-2), "not -2"),
        (lambda: Flow(1, 1, solver="eular"), "Did you mean 'euler'"),
        (lambda: Flow(1, 1, start="sauce"), "Did you mean 'source'"),
        (lambda: Flow(1, 1, times="uniforn"), "Did you mean 'uniform'"),
        (lambda: Flow(1, 1, noise=0.5), "has enough: set 0"),
        (lambda: Flow(1, 1, start="source", noise=float("nan")), "positive number, not nan"),
        (lambda: Flow(2, 1, start="source"), "2 source channels cannot become 1"),
        (lambda: Flow(1, 1, velocity=tiny).translate(torch.zeros(1, 1, 8, 8), calls=0), "not 0"),
    ],
)
def test_what_cannot_be_is_said(act, message):
    with pytest.raises(SkyshiftError, match=message):
        act()


@pytest.mark.parametrize("name", ["schroedinger_bridge", "flow"])
def test_the_shipped_configurations_train_and_translate(name, tiny_store, tmp_path, repository):
    network = "velocity" if name == "flow" else "denoiser"
    options = {
        **{"data.store": tiny_store, "data.build": "", "output": tmp_path / "run", "evaluation": "false"},
        **{"training.steps": 2, "training.batch_size": 2, "training.sample_every": 0},
        **{f"method.init_args.{network}.init_args.{key}": value for key, value in {"width": 4, "depth": 1}.items()},
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    config = repository / "configs" / "translate" / f"{name}.yaml"
    result = subprocess.run(
        [sys.executable, repository / "translate" / "train.py", "--config", config, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    from skyshift.datasets.store import MapStore

    translator = Translator.from_pretrained(tmp_path / "run", calls=3)
    made = translator.draws(MapStore(tiny_store), 2, [0, 1])["hi"]
    assert made.shape == (2, 2, 32, 32)
    assert (made[0] != made[1]).any()
