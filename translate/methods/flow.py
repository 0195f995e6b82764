"""Flow matching: a velocity that carries maps of noise, or the source map itself, to targets, as an equation of motion.

Between a start x_0 and the target y (both standardised) lie maps, and moving along with them the network learns

    x_t = (1 - t) x_0 + t y + γ(t) z,    min_v E |v(x_t, t, s) - (y - x_0 + γ'(t) z)|²,    γ(t) = a sin²(π t),

whose minimum is the mean velocity; dx/dt = v from t = 0 to 1 then turns the start's distribution into the target's.

    start: noise    x_0 ~ N(0, 1), γ = 0: conditional flow matching with straight paths (Lipman et al. 2023; Tong et al.
                    2024). Draws are from the targets that the source s allows, which the network always sees.
    start: source   x_0 = s, a stochastic interpolant (Albergo & Vanden-Eijnden 2023; Albergo, Boffi & Vanden-Eijnden
                    2023) with a = ``noise``. One translation of each source, near the mean of its targets: an equation
                    of motion from a fixed start makes no choice. Source and target have as many channels.

Solvers: euler (one call a step), heun and midpoint (second order, two calls a step; an odd number of calls begins with
a step of Euler). One call is x_0 + v(x_0, 0): from noise the mean of the targets, as a regression. Paths are nearly
straight, so few calls suffice (default 10).

References:
    Lipman, Chen, Ben-Hamu, Nickel & Le 2023, Flow Matching for Generative Modeling, ICLR, arXiv:2210.02747.
    Albergo & Vanden-Eijnden 2023, Building Normalizing Flows with Stochastic Interpolants, ICLR, arXiv:2209.15571.
    Albergo, Boffi & Vanden-Eijnden 2023, Stochastic Interpolants, arXiv:2303.08797 (γ: table 5).
    Tong et al. 2024, Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, TMLR,
    arXiv:2302.00482.
    Esser et al. 2024, Scaling Rectified Flow Transformers, arXiv:2403.03206 (times from a logit-normal distribution).
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.methods.standardise import Standardise
from skyshift.translate.networks.time_unet import TimeUNet

Start = Literal["noise", "source"]
Solver = Literal["euler", "heun", "midpoint"]
Times = Literal["uniform", "logit_normal"]


class Flow(TranslationMethod):
    """Paired translation by a learned equation of motion.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        velocity: Network from the moving map and the source to the target's channels, called with maps and times
            (batch,) from 0 to 1.
        start: noise or source.
        noise: a, in units of the maps' standard deviation; of the start source alone.
        solver: euler, heun or midpoint.
        times: How training draws times: uniform, or logit_normal (more in the middle, where it is hard).
        calls: Network calls of a translation.

    Raises:
        SkyshiftError: A name is unknown, a number out of range, or channels are unequal with the start source.
    """

    players = ("velocity",)
    averaged = ("velocity",)
    needs_pairs = True

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        velocity: Callable[[int, int], nn.Module] = lambda seen, target: TimeUNet(seen, target),
        start: Start = "noise",
        noise: float = 0.0,
        solver: Solver = "midpoint",
        times: Times = "uniform",
        calls: int = 10,
    ) -> None:
        super().__init__(source_channels, target_channels)
        for what, name, names in (
            ("start", start, get_args(Start)),
            ("solver", solver, get_args(Solver)),
            ("times", times, get_args(Times)),
        ):
            if name not in names:
                raise SkyshiftError(unknown(what, name, names))
        if not (noise >= 0 and math.isfinite(noise)):
            raise SkyshiftError(f"the noise of a flow is 0 or a positive number, not {noise}")
        if noise and start == "noise":
            raise SkyshiftError("noise is of the path from the source; a flow that starts at noise has enough: set 0")
        if start == "source" and source_channels != target_channels:
            raise SkyshiftError(
                f"a flow from the source leads from a map to a map: {source_channels} source channels cannot become "
                f"{target_channels} target channels. Name as many of each, or start: noise"
            )
        self.start: Start = start
        self.solver: Solver = solver
        self.times: Times = times
        self.noise, self.stochastic = noise, start == "noise"
        self.calls = self._calls(calls)
        self.velocity = velocity(target_channels + source_channels, target_channels)
        self.source_scale = Standardise(source_channels)
        self.target_scale = Standardise(target_channels)

    # -- training -----------------------------------------------------------------------------------------------

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of the velocity, logged as ``matching``, and the run's physics losses.

        Physics losses judge the target x_t + (1 - t) v that the velocity points at, drawn back to the truth by 1 - t:
        at the start, where it is a mean of many targets, little is asked of it.
        """
        self.source_scale.measure(batch["source"])
        self.target_scale.measure(batch["target"])
        s, y = self.source_scale(batch["source"]), self.target_scale(batch["target"])
        t = torch.rand(len(y), device=y.device)
        if self.times == "logit_normal":
            t = torch.sigmoid(torch.randn(len(y), device=y.device))
        x_0 = torch.randn_like(y) if self.start == "noise" else s
        present, wanted = self.path(x_0, y, t.view(-1, 1, 1, 1), torch.randn_like(y) if self.noise else None)
        velocity = networks["velocity"](torch.cat([present, s], 1), t).float()
        matching = (velocity - wanted).square().mean()
        if self.physics is None:
            return matching, {"matching": matching}
        along = t.view(-1, 1, 1, 1)
        made = self.finish(batch["source"], self.target_scale.undo(present + (1.0 - along) * velocity))
        physics, parts = self.physics_loss(batch["target"] + along * (made - batch["target"]), batch)
        return matching + physics, {"matching": matching, **parts}

    def path(self, x_0: Tensor, y: Tensor, t: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map at time t and its velocity."""
        present, velocity = (1.0 - t) * x_0 + t * y, y - x_0
        if z is not None:
            present = present + self.noise * torch.sin(math.pi * t) ** 2 * z
            velocity = velocity + self.noise * math.pi * torch.sin(2.0 * math.pi * t) * z
        return present, velocity

    # -- translating --------------------------------------------------------------------------------------------

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """A draw from the targets of each source, or from the source the one translation."""
        calls = self._calls(calls)
        s = self.source_scale(source)
        x = s
        if self.start == "noise":
            x = self._noise(noise, source).normal(self.target_channels, *source.shape[-2:])

        def v(x: Tensor, t: float) -> Tensor:
            made: Tensor = self.velocity(torch.cat([x, s], 1), torch.full((len(x),), t, device=x.device)).float()
            return made

        orders = [1] * calls if self.solver == "euler" else [1] * (calls % 2) + [2] * (calls // 2)
        h = 1.0 / len(orders)
        for number, order in enumerate(orders):
            t = number * h
            slope = v(x, t)
            if order == 1:
                x = x + h * slope
            elif self.solver == "heun":
                x = x + 0.5 * h * (slope + v(x + h * slope, t + h))
            else:
                x = x + h * v(x + 0.5 * h * slope, t + 0.5 * h)
        return self.finish(source, self.target_scale.undo(x))
