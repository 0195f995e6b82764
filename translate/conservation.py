"""Hard conservation: an estimate's total is made exactly that of a source channel, pixel values staying positive.

With x the physical source channel of the same unit and meaning, and y ≥ 0 the physical estimate (clipped at zero),

    y ← y · Σx / Σy

Where Σy is zero, y takes the form of the source, so that the total is right there too. The clip comes before the
factor: clipping afterwards would change the total. All is computed in float64 and returned scaled in float32, so that
the total is kept to about one part in a million. The factor depends on the whole map: it acts on whole maps, not tiles.

The scaled estimate is first limited to :data:`LIMIT`, beyond which sinh overflows early in training; no gradient
passes there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skyshift.datasets.scaling import Scaling
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.methods.base import Conservation

if TYPE_CHECKING:
    from skyshift.translate.translation import Channel

LIMIT = 3.0
"""Largest size of a scaled value that is taken back to physical ones; 1 is the 99.9 % quantile of the training maps."""


def physical(scaling: Scaling, scaled: Tensor) -> Tensor:
    """Physical values of scaled ones within ±:data:`LIMIT`, any shape, differentiable."""
    return scaling.inverse(scaled.clamp(-LIMIT, LIMIT))


@dataclass(frozen=True)
class TotalConservation:
    """Sets the total of one target channel to that of one source channel.

    Attributes:
        source: Number of the source channel.
        target: Number of the target channel.
        source_scaling: Of the source channel.
        target_scaling: Of the target channel; it takes zero to zero.
    """

    source: int
    target: int
    source_scaling: Scaling
    target_scaling: Scaling

    def __post_init__(self) -> None:
        if float(self.target_scaling.inverse(torch.zeros(()))) != 0:
            raise SkyshiftError(
                f"a {self.target_scaling.kind} scaling with an offset cannot conserve a total; use asinh"
            )

    def __call__(self, source: Tensor, estimate: Tensor) -> Tensor:
        """Scaled source (batch, channels, h, w) and estimate to the scaled estimate with the total of the source."""
        with torch.autocast(source.device.type, enabled=False):
            x = self.source_scaling.inverse(source[:, self.source].double()).clamp(min=0.0)
            y = physical(self.target_scaling, estimate[:, self.target].double()).clamp(min=0.0)
            held = y.sum(dim=(1, 2), keepdim=True)
            y = torch.where(held > 0, y, x)
            held = y.sum(dim=(1, 2), keepdim=True)
            factor = x.sum(dim=(1, 2), keepdim=True) / torch.where(held > 0, held, 1.0)
            y = y * factor
            # A root has an infinite slope at zero: empty pixels go around it, stay empty and pass no gradient.
            kept = torch.where(y > 0, self.target_scaling.forward(torch.where(y > 0, y, 1.0)), 0.0).to(estimate.dtype)
        parts = [kept if i == self.target else estimate[:, i] for i in range(estimate.shape[1])]
        return torch.stack(parts, dim=1)


@dataclass(frozen=True)
class ConserveConfig:
    """What the output is made to keep.

    Attributes:
        total: Source domain whose total the one target domain is given, map by map; empty for none. Both have the same
            unit and mean the same (clean and observed flux, say).
    """

    total: str = ""


def conservation(
    config: ConserveConfig, source: "Sequence[Channel]", target: "Sequence[Channel]"
) -> Conservation | None:
    """What a configuration asks for, ``None`` where that is nothing.

    Raises:
        SkyshiftError: The domain is no source, the units differ, or there are several targets.
    """
    if not config.total:
        return None
    names = [channel.domain for channel in source]
    if config.total not in names:
        raise SkyshiftError(f"conserve.total: {unknown('source domain', config.total, names)}")
    if len(target) != 1:
        raise SkyshiftError(f"conserve.total gives one target domain its total, there are {len(target)}")
    index = names.index(config.total)
    if source[index].unit != target[0].unit:
        raise SkyshiftError(
            f"conserve.total: {config.total} is in {source[index].unit}, {target[0].domain} in {target[0].unit}; "
            "a total is kept between maps of the same unit"
        )
    return TotalConservation(index, 0, source[index].scaling, target[0].scaling)
