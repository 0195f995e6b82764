"""Losses on physical maps: total, power spectrum, radial profile, and the map as a beam sees it.

For physical target t and estimate e of one channel, with u the physical value that is scaled to one and ε small,

    total             |Σe - Σt| / (Σ|t| + ε N u)
    power_spectrum    mean over k of |log (P_e + f) - log (P_t + f)|,   f = ε (mean over k of P_t + ε u²)
    radial_profile    Σ_rings |Σe - Σt| / (Σ_rings |Σt| + ε N u)
    observation       Σ |B e - B t| / (Σ |B t| + ε N u)                 B convolves with a Gaussian beam

each averaged over maps and channels; bins and rings are those of ``metrics/physics.py``. All are relative, so that
their weights compare. Scaled values are limited before sinh (``conservation.LIMIT``). They are computed in float32 (or
float64 where that is given), outside autocast. All weights are 0 by default.

What they cost, value and gradient, in processor time of one training step of the default pix2pix (8 maps of 64 x 64
pixels, float32, one thread; 415 ms): total 0.4 %, power_spectrum 1.0 %, radial_profile 0.5 %, observation 1.6 %.
Medians of 10 rounds in which each loss alone and a whole step took turns, on a processor shared with other work.

References:
    Peebles 1980, The Large-Scale Structure of the Universe, section 41, ISBN 978-0-691-08240-0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from skyshift.datasets.scaling import Scaling
from skyshift.engine import Batch
from skyshift.errors import SkyshiftError
from skyshift.translate.conservation import physical
from skyshift.translate.metrics.physics import _modes, _rings

FLOOR = 1e-4
"""ε: what is fainter than this share of the typical value does not count."""


@dataclass(frozen=True)
class PhysicsConfig:
    """Weights of the losses on physical maps; 0 for none.

    Attributes:
        total: Of the relative error of the total.
        power_spectrum: Of the difference of log P(k).
        radial_profile: Of the share of the total at the wrong radius.
        observation: Of the difference as a beam sees it.
        beam: Full width at half maximum of that beam, pixels.
    """

    total: float = 0.0
    power_spectrum: float = 0.0
    radial_profile: float = 0.0
    observation: float = 0.0
    beam: float = 4.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise SkyshiftError(f"physics.{name} is 0 or more, not {value}")
        if self.observation and not self.beam:
            raise SkyshiftError("physics.beam is 0: an observation needs a beam of some pixels")

    @property
    def active(self) -> bool:
        """Whether any of them counts."""
        return any((self.total, self.power_spectrum, self.radial_profile, self.observation))


def _ring_sums(maps: Tensor, ring: Tensor, bins: int) -> Tensor:
    """Sums of (n, h, w) over the bins that ``ring`` (h·w,) names, (n, bins); index ``bins`` is dropped."""
    return maps.new_zeros(len(maps), bins + 1).index_add(1, ring, maps.flatten(1))[:, :bins]


def radial_sums(maps: Tensor) -> Tensor:
    """Sums of (n, h, w) in rings one pixel wide about the centre, (n, rings)."""
    _, ring, bins = _rings(tuple(maps.shape[1:]), None)
    return _ring_sums(maps, torch.from_numpy(ring).to(maps.device), bins)


def power(maps: Tensor) -> Tensor:
    """P(k) of (n, h, w) for pixels of unit side, (n, bins), unit of the maps squared."""
    height, width = maps.shape[1:]
    _, ring, bins = _modes((height, width), None)
    index = torch.from_numpy(ring).to(maps.device)
    square = torch.view_as_real(torch.fft.fft2(maps)).square().sum(-1) / (height * width)
    return _ring_sums(square, index, bins) / _ring_sums(torch.ones_like(maps[:1]), index, bins)


def observed(maps: Tensor, fwhm: float) -> Tensor:
    """(n, h, w) convolved with a Gaussian beam of unit sum, ``fwhm`` in pixels, nothing beyond the border."""
    sigma = fwhm / math.sqrt(8 * math.log(2))
    reach = math.ceil(4 * sigma)
    x = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (x / sigma).square())
    kernel = kernel / kernel.sum()
    rows = F.conv2d(maps[:, None], kernel[None, None, :, None], padding=(reach, 0))
    return F.conv2d(rows, kernel[None, None, None, :], padding=(0, reach))[:, 0]


class PhysicsTerms:
    """The weighted losses, as ``method.physics`` takes them.

    Args:
        config: The weights.
        scalings: Of the target channels, in their order.
    """

    def __init__(self, config: PhysicsConfig, scalings: Sequence[Scaling]) -> None:
        self.config, self.scalings = config, tuple(scalings)

    def __call__(self, estimate: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scaled estimate (batch, channels, h, w), and a batch with its ``target``, to the loss and its parts."""
        wanted = [name for name in TERMS if getattr(self.config, name)]
        parts: dict[str, Tensor] = {}
        with torch.autocast(estimate.device.type, enabled=False):
            e, t = self._unit(estimate), self._unit(batch["target"])
            for name in wanted:
                parts[name] = TERMS[name](e, t, self.config).mean()
            loss = sum((getattr(self.config, name) * part for name, part in parts.items()), e.new_zeros(()))
        return loss, parts

    def _unit(self, scaled: Tensor) -> Tensor:
        """Physical maps in units of the value that is scaled to one, (batch · channels, h, w)."""
        scaled = scaled if scaled.dtype == torch.float64 else scaled.float()
        one = torch.ones((), dtype=torch.float64)
        maps = [physical(s, scaled[:, i]) / float(s.inverse(one)) for i, s in enumerate(self.scalings)]
        return torch.stack(maps, dim=1).flatten(0, 1)


def _total(e: Tensor, t: Tensor, config: PhysicsConfig) -> Tensor:
    return (e - t).sum((1, 2)).abs() / (t.abs().sum((1, 2)) + FLOOR * t[0].numel())


def _power_spectrum(e: Tensor, t: Tensor, config: PhysicsConfig) -> Tensor:
    P_e, P_t = power(e), power(t)
    floor = FLOOR * (P_t.mean(1, keepdim=True) + FLOOR)
    return ((P_e + floor).log() - (P_t + floor).log()).abs().mean(1)


def _radial_profile(e: Tensor, t: Tensor, config: PhysicsConfig) -> Tensor:
    return radial_sums(e - t).abs().sum(1) / (radial_sums(t).abs().sum(1) + FLOOR * t[0].numel())


def _observation(e: Tensor, t: Tensor, config: PhysicsConfig) -> Tensor:
    seen = observed(t, config.beam).abs().sum((1, 2)) + FLOOR * t[0].numel()
    return observed(e - t, config.beam).abs().sum((1, 2)) / seen


TERMS = {
    "total": _total,
    "power_spectrum": _power_spectrum,
    "radial_profile": _radial_profile,
    "observation": _observation,
}
