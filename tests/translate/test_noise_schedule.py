"""The signal only falls: where it rose, a stochastic step would draw noise of negative variance."""

import pytest
import torch

from skyshift.translate.methods.base import Noise
from skyshift.translate.methods.diffusion import Diffusion
from skyshift.translate.methods.noise_schedule import signal_shares


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("times", [20, 50, 100, 1000])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_signal_falls_at_every_time(schedule, times, zero_terminal_snr):
    shares = signal_shares(schedule, times, zero_terminal_snr)
    assert (shares.diff() < 0).all()
    assert shares[-1] > 0
    if zero_terminal_snr:
        assert shares[-1] <= 2.0**-24


class Gaussian(torch.nn.Module):
    """The mean of v given x_t where y ~ N(0.5, 0.2²), in closed form."""

    def __init__(self, shares):
        super().__init__()
        self.shares = shares

    def forward(self, x, t):
        share = self.shares[t.round().long()].view(-1, 1, 1, 1)
        x = x[:, :1]
        clean = 0.5 + share.sqrt() * 0.04 / (share * 0.04 + 1 - share) * (x - share.sqrt() * 0.5)
        noise = (x - share.sqrt() * clean) / (1 - share).sqrt()
        return share.sqrt() * noise - (1 - share).sqrt() * clean


@pytest.mark.parametrize("sampler", ["ddpm", "sde_dpm_solver++"])
def test_noisy_samplers_pass_the_time_without_signal(sampler):
    identity = lambda seen, target: torch.nn.Identity()  # noqa: E731
    method = Diffusion(1, 1, denoiser=identity, sampler=sampler, calls=1000, zero_terminal_snr=True)
    method.denoiser = Gaussian(method.alphas_cumprod)
    draws = method.translate(torch.zeros(1, 1, 64, 64), noise=Noise([0]))
    # 4,096 draws: the mean is known to 0.2/64 = 0.003 and the deviation to 1.1 %; four of these, and 1.5 % of ddpm's
    # own at 1,000 steps.
    assert draws.mean().item() == pytest.approx(0.5, abs=0.0125)
    assert draws.std().item() == pytest.approx(0.2, rel=0.06)
