"""Noise of a diffusion model: how much at which time, what the network predicts, and at which times a sampler calls it.

A map y becomes noise over T times, ᾱ_t falling from nearly 1 to nearly 0 (the signal-to-noise ratio is ᾱ / (1 - ᾱ)):

    x_t = √ᾱ_t y + √(1 - ᾱ_t) ε,    ε ~ N(0, 1),    ᾱ_t = Π_{s ≤ t} (1 - β_s)

``linear`` and ``scaled_linear`` raise β (or √β) evenly from 1e-4 to 0.02 at T = 1000; for another T, β is 1000/T times
that, so that ᾱ falls as far. ``squaredcos_cap_v2`` is ᾱ = cos² of an angle that grows evenly. With the terminal signal
removed (Lin et al. 2023) √ᾱ is shifted and stretched so that the last time is noise alone.

A network predicts ``epsilon`` = ε, ``v_prediction`` = √ᾱ ε - √(1-ᾱ) y, or ``sample`` = y (diffusers' names). Each
follows from another and x_t.

Times of a sampler. A sampler with few calls errs where the log-signal-to-noise λ = ½ ln(ᾱ/(1-ᾱ)) makes large steps.
diffusers' evenly spaced times leap from λ ≈ 1 to no noise at all in the last of ten steps: with the exact denoiser of
N(0.5, 0.2²) its DPM-Solver++ and UniPC give a standard deviation of 0.10 to 0.11 with 10 steps, 0.15 with 20 and 0.19
with 50, for "linspace", "trailing" and "leading" alike. Here times are evenly spaced in λ from its end to its start (Lu
et al. 2022), rounded to times that the network knows, and the last step starts at t = 0; 10 steps give 0.198 to 0.211.
λ below -5.1 (ᾱ below 4e-5, the end of ``linear``) is left out, as diffusers advises for the cosine schedule: errors of
ε would grow there by up to 1/√ᾱ = 20,000. Only a terminal time without signal is visited first. As many steps as there
are times visit them all.

References:
    Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    Nichol & Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672.
    Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models, arXiv:2202.00512.
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095.
    Lin, Liu, Li & Yang 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv:2305.08891.
"""

from typing import Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar, rescale_zero_terminal_snr
from torch import Tensor

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction", "sample"]

LEAST_TIMES = 20
"""Fewer times would need β > 1."""
_FIRST, _LAST, _TIMES = 1e-4, 0.02, 1000
_LEAST_LOG_SNR = -5.1
_NO_SIGNAL = 2.0**-24
"""ᾱ of a terminal time without signal, as in diffusers' solvers: small beside float32's accuracy, but not 0."""


def signal_shares(schedule: Schedule, times: int, zero_terminal_snr: bool = False) -> Tensor:
    """ᾱ of every time, (times,) float32, falling.

    Args:
        schedule: How β grows.
        times: T, at least 20.
        zero_terminal_snr: Whether the last time has no signal: ᾱ = 2^-24, or a quarter of that before where less.
    """
    if schedule == "squaredcos_cap_v2":
        betas = betas_for_alpha_bar(times)
    else:
        power = 1.0 if schedule == "linear" else 0.5
        betas = torch.linspace(_FIRST**power, _LAST**power, times, dtype=torch.float64) ** (1 / power)
        betas = (betas * _TIMES / times).clamp(max=0.999)
    if zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    shares = torch.cumprod(1.0 - betas.double(), 0)
    if zero_terminal_snr:
        # ``linear`` at T = 1000 comes to 4e-9 the time before; where ᾱ rose again, a sampler's root would be NaN.
        shares[-1] = min(_NO_SIGNAL, float(shares[-2]) / 4)
    return shares.float()


def sampling_times(shares: Tensor, steps: int, zero_terminal_snr: bool = False) -> Tensor:
    """The times of a sampler, falling, (steps,) int64: evenly spaced in λ and all different.

    Args:
        shares: ᾱ of every time, (times,).
        steps: How many, 1 to ``times``.
        zero_terminal_snr: Whether the last time, without signal, comes first.
    """
    last = len(shares) - 1
    if zero_terminal_snr:
        rest = sampling_times(shares[:-1], steps - 1) if steps > 1 else torch.empty(0, dtype=torch.int64)
        return torch.cat([torch.tensor([last]), rest])
    share = shares.double().cpu().numpy()
    level = 0.5 * np.log(share / (1.0 - share))
    highest = max(int(np.flatnonzero(level >= _LEAST_LOG_SNR)[-1]), steps - 1)
    wanted = np.linspace(level[highest], level[0], steps)
    times = np.round(np.interp(-wanted, -level, np.arange(last + 1)))[::-1]
    count = np.arange(steps)
    times = np.maximum.accumulate(times - count) + count  # λ is steep near t = 0: no time twice
    times = np.minimum(times, highest - count[::-1])
    return torch.from_numpy(times[::-1].astype(np.int64))


def add_noise(clean: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """x_t = √ᾱ y + √(1-ᾱ) ε; ``share`` is ᾱ and broadcasts."""
    return share.sqrt() * clean + (1.0 - share).sqrt() * noise


def true_prediction(kind: Prediction, clean: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """What the network is to predict."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return share.sqrt() * noise - (1.0 - share).sqrt() * clean
    return clean


def clean_estimate(kind: Prediction, prediction: Tensor, noisy: Tensor, share: Tensor) -> Tensor:
    """The estimate of y that a prediction at x_t implies."""
    if kind == "epsilon":
        return (noisy - (1.0 - share).sqrt() * prediction) / share.sqrt()
    if kind == "v_prediction":
        return share.sqrt() * noisy - (1.0 - share).sqrt() * prediction
    return prediction


def min_snr_weight(kind: Prediction, share: Tensor, gamma: float) -> Tensor:
    """Weight of the squared error of a prediction that makes min(SNR, γ) the weight of the squared error of y.

    The squared error of ε is SNR times that of y, that of v is SNR + 1 times (Hang et al. 2023, arXiv:2303.09556).
    """
    ratio = share / (1.0 - share)
    relative = {"epsilon": ratio, "v_prediction": ratio + 1.0, "sample": torch.ones_like(ratio)}
    return ratio.clamp(max=gamma) / relative[kind]
