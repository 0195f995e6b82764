"""Bridges: from the source map itself, step by step, to a target that it allows.

Between the source x (t = 1) and the target y (t = 0), both standardised, lie maps

    x_t = (1 - w) y + w x + √(V w (1 - w)) ε,    w = w(t) from 0 to 1,

and a network F(x_t, t, x), trained by the squared error, estimates the mean of y given these. A step from w to w' < w
draws from the bridge's own posterior, of which (Markov) only the estimate ŷ and the present map are left:

    x' = (w'/w) x_t + (1 - w'/w) ŷ + √(V w' (w - w') / w) ε.

    brownian       w = t: the Brownian bridge (Li et al. 2023), whose δ_t = 2 s (m_t - m_t²) is V w (1 - w) with
                   V = 2 s; its reverse step is this one.
    schroedinger   w = ∫_0^t β / ∫_0^1 β with √β rising linearly to the middle and falling again: I2SB (Liu et al.
                   2023, equations 10 to 12). With ``noise: 0`` it is their optimal-transport ODE. Steps are chosen
                   by w, so both kinds differ in what training sees most often.
    indi           inversion by direct iteration (Delbracio & Milanfar 2023): w = t, V = 0. Their constant ε_t = ε
                   is ``noise``: the source is perturbed once by ε, x_t = (1 - t) y + t (x + ε η).

What is drawn. With the source as a condition (the default) and V > 0 the draws are from the distribution of targets
given the source. Without noise there is one translation:
with the source as a condition the mean of the targets, like a regression, whatever the calls; with ``condition: false``
and several calls it lies nearer to one of the targets. InDI with noise varies by its perturbation alone, which is no
posterior. One call is the regression estimate of every kind.

Given the source, x_t - w x is the target at a signal of 1 - w in noise of √(V w (1 - w)): a diffusion. So steps of a
noisy bridge are even in the logarithm of signal to noise, and ŷ is extrapolated to the middle of a step by that of the
step before, as the second order stochastic DPM-Solver++ does; 10 of them suffice. Without noise steps are even in w.

References:
    Delbracio & Milanfar 2023, Inversion by Direct Iteration, TMLR, arXiv:2303.11435.
    Li, Xue, Liu & Lai 2023, BBDM: Image-to-Image Translation with Brownian Bridge Diffusion Models, CVPR,
    arXiv:2205.07680.
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095.
    Liu, Vahdat, Huang, Theodorou, Nie & Anandkumar 2023, I2SB: Image-to-Image Schrödinger Bridge, ICML,
    arXiv:2302.05872.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.methods.standardise import Standardise
from skyshift.translate.networks.time_unet import TimeUNet

Kind = Literal["brownian", "schroedinger", "indi"]

SCHROEDINGER_RATIO = 2.0 / (1.0 + 3.0**0.5)
"""√β at the ends over that in the middle. I2SB lets √β rise evenly from √1e-4 to √3e-4 (its β_max of 0.3 over 1,000
steps) and mirrors the first half of that."""


WIDEST = 6.0
"""Steps of a noisy bridge lie between w = 0.9975 and 0.0025 (logits of ± this): beyond, they would change nothing."""


def share(kind: Kind, t: Tensor) -> Tensor:
    """w(t): how far the bridge is from the target, 0 at t = 0 and 1 at t = 1; the inverse of :func:`time_of`."""
    if kind != "schroedinger":
        return t
    # ∫ (r + (1 - r) 2 u)² du to the middle, mirrored beyond it.
    near = torch.minimum(t, 1.0 - t)
    r = SCHROEDINGER_RATIO
    part = ((r + (1.0 - r) * 2.0 * near) ** 3 - r**3) / (1.0 - r**3)
    return torch.where(t <= 0.5, 0.5 * part, 1.0 - 0.5 * part)


def time_of(kind: Kind, w: float) -> float:
    """t(w), the inverse of :func:`share`."""
    if kind != "schroedinger":
        return w
    r = SCHROEDINGER_RATIO
    near = (((r**3 + 2.0 * min(w, 1.0 - w) * (1.0 - r**3)) ** (1.0 / 3.0)) - r) / (2.0 * (1.0 - r))
    return near if w <= 0.5 else 1.0 - near


def _logit(w: float) -> float:
    return math.log(w / (1.0 - w))


def noisy_shares(steps: int) -> list[float]:
    """The shares w after each step of a noisy bridge, from 1 to 0, even in the logarithm of (1 - w) / w."""
    inner = steps - 1
    reach = min(WIDEST, 0.5 * inner)
    places = [reach * (1.0 - 2.0 * i / (inner - 1)) if inner > 1 else 0.0 for i in range(inner)]
    return [1.0, *(1.0 / (1.0 + math.exp(-place)) for place in places), 0.0]


class Bridge(TranslationMethod):
    """Paired translation along a bridge.

    Args:
        source_channels: Channels of the source; as many as of the target.
        target_channels: Channels of the target.
        denoiser: Network from the map on the bridge (and, with ``condition``, the source) to the target, called with
            maps and times (batch,) from 0 to 1.
        kind: brownian, schroedinger or indi.
        noise: √V in units of the maps' standard deviation; of indi, ε.
        condition: Show the network the source at every step.
        calls: Network calls of a translation.

    Raises:
        SkyshiftError: A name is unknown, a number out of range, or source and target have unequal channels.
    """

    players = ("denoiser",)
    averaged = ("denoiser",)
    needs_pairs = True

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        denoiser: Callable[[int, int], nn.Module] = lambda seen, target: TimeUNet(seen, target),
        kind: Kind = "brownian",
        noise: float = 1.0,
        condition: bool = True,
        calls: int = 10,
    ) -> None:
        super().__init__(source_channels, target_channels)
        if kind not in get_args(Kind):
            raise SkyshiftError(unknown("kind of bridge", kind, get_args(Kind)))
        if not (noise >= 0 and math.isfinite(noise)):
            raise SkyshiftError(f"the noise of a bridge is 0 or a positive number, not {noise}")
        if source_channels != target_channels:
            raise SkyshiftError(
                f"a bridge leads from a map to a map: {source_channels} source channels cannot become "
                f"{target_channels} target channels. Name as many of each, or take flow or diffusion"
            )
        self.kind: Kind = kind
        self.noise, self.condition = noise, condition
        self.stochastic = noise > 0
        self.calls = self._calls(calls)
        self.denoiser = denoiser(target_channels + (source_channels if condition else 0), target_channels)
        self.source_scale = Standardise(source_channels)
        self.target_scale = Standardise(target_channels)

    # -- training -----------------------------------------------------------------------------------------------

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of the estimated target, logged as ``denoising``, and the run's physics losses.

        Physics losses judge the estimate drawn back to the truth, y + (1 - w) (ŷ - y): near the source, where it is a
        mean of many targets, little is asked of it.
        """
        self.source_scale.measure(batch["source"])
        self.target_scale.measure(batch["target"])
        x, y = self.source_scale(batch["source"]), self.target_scale(batch["target"])
        t = torch.rand(len(x), device=x.device)
        w = share(self.kind, t).view(-1, 1, 1, 1)
        estimate = networks["denoiser"](self._seen(self.between(x, y, w, torch.randn_like(y)), x), t).float()
        denoising = (estimate - y).square().mean()
        if self.physics is None:
            return denoising, {"denoising": denoising}
        made = self.finish(batch["source"], self.target_scale.undo(estimate))
        physics, parts = self.physics_loss(batch["target"] + (1.0 - w) * (made - batch["target"]), batch)
        return denoising + physics, {"denoising": denoising, **parts}

    def between(self, x: Tensor, y: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """The map on the bridge from x to y at the share w, with unit noise."""
        spread = w if self.kind == "indi" else (w * (1.0 - w)).sqrt()
        return (1.0 - w) * y + w * x + self.noise * spread * noise

    def _seen(self, present: Tensor, source: Tensor) -> Tensor:
        return torch.cat([present, source], 1) if self.condition else present

    # -- translating --------------------------------------------------------------------------------------------

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """A draw from the targets of each source, or where there is no noise the one translation."""
        steps, noise = self._calls(calls), self._noise(noise, source)
        shape = (self.target_channels, *source.shape[-2:])
        x = self.source_scale(source)
        present = x + self.noise * noise.normal(*shape) if self.kind == "indi" and self.noise else x
        noisy = self.noise > 0 and self.kind != "indi"
        shares = noisy_shares(steps) if noisy else [1.0 - i / steps for i in range(steps + 1)]
        before: Tensor | None = None
        for number, (w, following) in enumerate(pairwise(shares)):
            t = torch.full((len(x),), time_of(self.kind, w), device=x.device)
            estimate = self.denoiser(self._seen(present, x), t).float()
            goal = estimate
            if noisy and before is not None and number > 1 and following:
                ahead, behind = _logit(w) - _logit(following), _logit(shares[number - 1]) - _logit(w)
                goal = estimate + 0.5 * ahead / behind * (estimate - before)
            present = following / w * present + (1.0 - following / w) * goal
            if noisy and following:
                present = present + self.noise * math.sqrt(following * (w - following) / w) * noise.normal(*shape)
            before = estimate
        return self.finish(source, self.target_scale.undo(present))
