"""Conditional diffusion: targets drawn by removing, call by call, noise from a map of noise, beside the source.

The network f sees the noisy target x_t, the source s and the time, and learns what was added (or what was there):

    min_f E_t w_t |f(x_t, s, t) - p_t|²,    x_t = √ᾱ_t y + √(1-ᾱ_t) ε,    p = ε, v = √ᾱ ε - √(1-ᾱ) y, or y

(:mod:`skyshift.translate.methods.noise_schedule`). w = 1, or that of min-SNR-γ. Its minimum is the mean of p given x_t
and s, from which a sampler finds draws of y given s. With guidance of weight w the network is also called without
source (a source of zeros, and a channel that says so) and extrapolated: f(∅) + w (f(s) - f(∅)). That sharpens draws
towards what the source says, beyond the true posterior: 1 is the posterior, more is less varied than it.

Diffusion starts from noise of unit variance and so assumes data of about unit variance; scaled maps are in [0, 1],
mostly near 0. Sources and targets are therefore standardised per channel. Any fixed shift and stretch is exact, because
it is undone at the end, so the mean and deviation of the first batch of training (over all processes) serve; they are
kept with the weights and never change after. ``target_mean`` and ``target_deviation`` fix them instead.

Samplers. All run on diffusers' solvers, on times evenly spaced in log-signal-to-noise, with the last step to no noise
of first order, and without clipping (maps have no upper limit):

    ddpm              ancestral sampling with the smaller variance β̃; first order, noise in every step
    ddim              η = 0; first order, no noise after the start
    dpm_solver++      second order multistep, no noise after the start
    sde_dpm_solver++  its stochastic form (the default): noise in every step makes up for errors of the network
    unipc             second order with corrector, no noise after the start

ddim and ddpm are diffusers' ``DPMSolverMultistepScheduler`` of order 1, with which they agree, because
``DDIMScheduler`` takes evenly spaced times only. With the exact denoiser of N(0.5, 0.2²) the second order
samplers return mean and deviation to 7 % from 10 calls on; first order ones fall short of the deviation, by 5 % with 50
calls (ddim) or 100 (ddpm), by a quarter and a third with 10. Fewer are therefore refused. Below 10 calls the draws
of the second order fall short as well (by an eighth to two fifths with 5);
one call is close to the mean of the targets.

References:
    Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    Song, Meng & Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502.
    Saharia et al. 2022, Palette: Image-to-Image Diffusion Models, arXiv:2111.05826.
    Ho & Salimans 2022, Classifier-Free Diffusion Guidance, arXiv:2207.12598.
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095.
    Zhao et al. 2023, UniPC, arXiv:2302.04867.
    Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv:2303.09556.
    Lin, Liu, Li & Yang 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv:2305.08891.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.methods.noise_schedule import (
    LEAST_TIMES,
    Prediction,
    Schedule,
    add_noise,
    clean_estimate,
    min_snr_weight,
    sampling_times,
    signal_shares,
    true_prediction,
)
from skyshift.translate.methods.standardise import Standardise
from skyshift.translate.networks.diffusion_unet import DiffusionUNet

Sampler = Literal["ddpm", "ddim", "dpm_solver++", "sde_dpm_solver++", "unipc"]
LEAST_STEPS: dict[str, int] = {"ddpm": 100, "ddim": 50}
"""Fewest steps whose draws of Gaussian data have the right deviation to 7 %."""
NETWORK_TIMES = 1000.0
"""The network is told times from 0 to this, whatever the number of training times."""


class Diffusion(TranslationMethod):
    """Paired translation by draws from the targets that a source allows.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        denoiser: Network of noisy target and source channels (and, with ``drop_source``, one more that is 1 where there
            is a source) to target channels, called with maps and times (batch,) from 0 to 1000.
        train_steps: Times T between map and noise, at least 20.
        schedule: How noise grows: linear, scaled_linear or squaredcos_cap_v2.
        prediction: What the network predicts: epsilon (the noise), v_prediction (v) or sample (the clean map).
        zero_terminal_snr: Leave no signal in the last time, so that training ends where sampling starts.
        min_snr: γ of the min-SNR weights (5 in the paper); 0 weights all times alike.
        sampler: ddpm, ddim, dpm_solver++, sde_dpm_solver++ or unipc.
        calls: Network calls of a translation. Guided steps cost two; an odd call is left out.
        guidance: Weight of the source; 1 is the posterior and costs one call a step.
        drop_source: Probability that training hides the source of a map, which guidance needs (0.1 in the paper).
        target_mean: Mean of the scaled target, for every channel; by default that of the first batch.
        target_deviation: Standard deviation of the scaled target; by default that of the first batch.

    Raises:
        SkyshiftError: A name is unknown, a number out of range, or two choices exclude each other.
    """

    players = ("denoiser",)
    averaged = ("denoiser",)
    needs_pairs = True
    stochastic = True

    alphas_cumprod: Tensor

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        denoiser: Callable[[int, int], nn.Module] = lambda seen, target: DiffusionUNet(seen, target),
        train_steps: int = 1000,
        schedule: Schedule = "linear",
        prediction: Prediction = "v_prediction",
        zero_terminal_snr: bool = False,
        min_snr: float = 0.0,
        sampler: Sampler = "sde_dpm_solver++",
        calls: int = 20,
        guidance: float = 1.0,
        drop_source: float = 0.0,
        target_mean: float | None = None,
        target_deviation: float | None = None,
    ) -> None:
        super().__init__(source_channels, target_channels)
        _require_names(schedule, prediction, sampler)
        _require_choices(train_steps, prediction, zero_terminal_snr, min_snr, guidance, drop_source)
        self.train_steps, self.zero_terminal_snr, self.min_snr = train_steps, zero_terminal_snr, min_snr
        self.prediction: Prediction = prediction
        self.sampler: Sampler = sampler
        self.guidance, self.drop_source = guidance, drop_source
        self.calls = self._calls(calls, least=1 if guidance == 1.0 else 2)
        self.denoiser = denoiser(target_channels + source_channels + (drop_source > 0), target_channels)
        self.local_networks = not getattr(self.denoiser, "attention", False)
        self.source_scale = Standardise(source_channels)
        self.target_scale = Standardise(target_channels, target_mean, target_deviation)
        shares = signal_shares(schedule, train_steps, zero_terminal_snr)
        self.register_buffer("alphas_cumprod", shares, persistent=False)
        self.steps_of(self.calls)

    def steps_of(self, calls: int) -> int:
        """Steps that so many network calls allow.

        Raises:
            SkyshiftError: They are too few for the sampler, or more than there are times.
        """
        steps = calls if self.guidance == 1.0 else calls // 2
        cost = "" if self.guidance == 1.0 else f" ({calls} calls, two a guided step)"
        if steps > self.train_steps:
            raise SkyshiftError(f"{steps} steps{cost} are more than the {self.train_steps} that the network was taught")
        if steps < LEAST_STEPS.get(self.sampler, 1):
            raise SkyshiftError(
                f"{steps} steps{cost} of {self.sampler} would draw maps that vary too little; it takes at least "
                f"{LEAST_STEPS[self.sampler]}. Take sde_dpm_solver++, dpm_solver++ or unipc for few calls"
            )
        return steps

    # -- training -----------------------------------------------------------------------------------------------

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error of the prediction, logged as ``denoising``, and the run's physics losses.

        Physics losses judge the clean map that the prediction implies. At noisy times that is a mean of many maps,
        for which physics need not hold, so each estimate is drawn back to its true target, y + ᾱ_t (ŷ - y), before it
        is judged: where noise is all, nothing is asked.
        """
        self.source_scale.measure(batch["source"])
        self.target_scale.measure(batch["target"])
        clean = self.target_scale(batch["target"])
        maps = len(clean)
        times = torch.randint(self.train_steps, (maps,), device=clean.device)
        share = self.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy = add_noise(clean, noise, share)
        kept = torch.rand(maps, device=clean.device) >= self.drop_source
        seen = self._seen(noisy, self.source_scale(batch["source"]), kept)
        prediction = networks["denoiser"](seen, self._told(times)).float()
        error = (prediction - true_prediction(self.prediction, clean, noise, share)).square()
        weight = min_snr_weight(self.prediction, share, self.min_snr) if self.min_snr else 1.0
        denoising = (weight * error).mean()
        if self.physics is None:
            return denoising, {"denoising": denoising}
        estimate = self.target_scale.undo(clean_estimate(self.prediction, prediction, noisy, share))
        estimate = self.finish(batch["source"], estimate)
        physics, parts = self.physics_loss(batch["target"] + share * (estimate - batch["target"]), batch)
        return denoising + physics, {"denoising": denoising, **parts}

    def _seen(self, noisy: Tensor, source: Tensor, kept: Tensor | None = None) -> Tensor:
        """Channels of the network: noisy target, source, and where sources may be hidden whether there is one.

        Args:
            noisy: (batch, target_channels, h, w), standardised.
            source: (batch, source_channels, h, w), standardised.
            kept: (batch,), whether the source of a map is shown; all are by default.
        """
        if not self.drop_source:
            return torch.cat([noisy, source], 1)
        there = torch.ones_like(source[:, :1])
        if kept is not None:
            there = there * kept.view(-1, 1, 1, 1)
        return torch.cat([noisy, source * there, there], 1)

    def _told(self, times: Tensor) -> Tensor:
        return times.float() * (NETWORK_TIMES / self.train_steps)

    # -- translating --------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, source: Tensor, time: int) -> Tensor:
        """The guided prediction of all maps at one time.

        Args:
            noisy: (batch, target_channels, h, w), standardised.
            source: (batch, source_channels, h, w), standardised.
            time: 0 to ``train_steps`` - 1.
        """
        told = self._told(torch.full((len(noisy),), time, device=noisy.device))
        prediction: Tensor = self.denoiser(self._seen(noisy, source), told).float()
        if self.guidance == 1.0:
            return prediction
        hidden = torch.zeros(len(noisy), device=noisy.device)
        without: Tensor = self.denoiser(self._seen(noisy, source, hidden), told).float()
        return without + self.guidance * (prediction - without)

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """A draw from the targets of each source."""
        steps = self.steps_of(self._calls(calls, least=1 if self.guidance == 1.0 else 2))
        noise = self._noise(noise, source)
        shape = (self.target_channels, *source.shape[-2:])
        standard = self.source_scale(source)
        scheduler = self._scheduler(steps)
        noisy = noise.normal(*shape)
        for time in scheduler.timesteps.tolist():
            prediction = self.predict(noisy, standard, time)
            fresh = {"variance_noise": noise.normal(*shape)} if self.sampler in ("ddpm", "sde_dpm_solver++") else {}
            noisy = scheduler.step(prediction, time, noisy, **fresh, return_dict=False)[0]
        return self.finish(source, self.target_scale.undo(noisy))

    def _scheduler(self, steps: int) -> Any:
        """A solver of diffusers, set to this method's noise and times."""
        options: dict[str, Any] = {"num_train_timesteps": self.train_steps, "prediction_type": self.prediction}
        if self.sampler == "unipc":
            scheduler: Any = UniPCMultistepScheduler(**options, solver_order=2)
        else:
            scheduler = DPMSolverMultistepScheduler(
                **options,
                solver_order=1 if self.sampler in ("ddpm", "ddim") else 2,
                algorithm_type="sde-dpmsolver++" if self.sampler in ("ddpm", "sde_dpm_solver++") else "dpmsolver++",
            )
        scheduler.set_timesteps(steps)
        # Both solvers step between the entries of ``sigmas``, the ratio of noise to signal, and know no other schedule.
        shares = self.alphas_cumprod.cpu()
        times = sampling_times(shares, steps, self.zero_terminal_snr)
        scheduler.timesteps = times
        scheduler.sigmas = torch.cat([((1.0 - shares[times]) / shares[times]).sqrt(), torch.zeros(1)])
        scheduler.set_begin_index(0)
        return scheduler


def _require_names(schedule: str, prediction: str, sampler: str) -> None:
    for what, name, names in (
        ("schedule", schedule, get_args(Schedule)),
        ("prediction", prediction, get_args(Prediction)),
        ("sampler", sampler, get_args(Sampler)),
    ):
        if name not in names:
            raise SkyshiftError(unknown(what, name, names))


def _require_choices(
    train_steps: int, prediction: str, zero_terminal_snr: bool, min_snr: float, guidance: float, drop_source: float
) -> None:
    if train_steps < LEAST_TIMES:
        raise SkyshiftError(f"train_steps must be at least {LEAST_TIMES}, not {train_steps}")
    if not (min_snr >= 0 and math.isfinite(min_snr)):
        raise SkyshiftError(f"min_snr must be 0 (off) or a positive number, not {min_snr}")
    if not 0 <= drop_source < 1:
        raise SkyshiftError(f"drop_source is a probability below 1, not {drop_source}")
    if not math.isfinite(guidance):
        raise SkyshiftError(f"guidance must be a number, not {guidance}")
    if guidance != 1.0 and not drop_source:
        raise SkyshiftError(
            "guidance needs a network that was taught without sources as well: set drop_source, say 0.1"
        )
    if zero_terminal_snr and prediction == "epsilon":
        raise SkyshiftError(
            "with zero_terminal_snr the last time is noise alone, of which epsilon says nothing about the map; take "
            "prediction v_prediction or sample"
        )
    if zero_terminal_snr and min_snr:
        raise SkyshiftError("min_snr gives the last time of zero_terminal_snr no weight: it would not be taught; set 0")
