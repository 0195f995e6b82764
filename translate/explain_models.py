"""What is explained of a translation: outputs of its discriminator or its generator, as functions of scaled maps.

A discriminator D gives a logit for every patch. Explained are their mean, one of them, or all; by linearity the values
of the mean are the mean of the values of all.

A generator G is explained in physical units: the value of one target pixel, or a circular aperture,

    M = A Σ_{r < R} s⁻¹(G(x)),

with the inverse scaling s⁻¹ (clipped at the domain's minimum, as in every translated map) and the pixel area A: the
mass inside (for means such as a temperature, the mean inside).

Every logit sees a square of the map, its receptive field. From the first layer to the last, with kernel k, stride s,
dilation d and padding p of each,

    R ← R + (k - 1) d j,    o ← o - p j,    j ← j s,    from R = 1, o = 0, j = 1,

so logit i sees pixels o + i j to o + i j + R - 1 on each axis (some of them padding). A normalisation over the whole
map (instance, group) lets each logit feel the rest of the map besides, through mean and spread alone.

References:
    Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004.
    Araujo, Norris & Sim 2019, Computing Receptive Fields of Convolutional Neural Networks, Distill,
    doi:10.23915/distill.00021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from astropy import units
from torch import Tensor, nn

from skyshift.checkpoint import CheckpointError
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.methods.base import TranslationMethod
from skyshift.translate.translation import Channel

Explained = Literal["mean", "patch", "grid"]


# -- the discriminator --------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Logits of a patch discriminator as (batch, outputs).

    Args:
        discriminator: (batch, channels, height, width) to logits, (batch, 1, rows, columns) or (batch, 1).
        explained: ``mean``, ``patch`` or ``grid``.
        patch: Row (from the bottom) and column of the one patch.
    """

    def __init__(self, discriminator: nn.Module, explained: Explained = "mean", patch: Sequence[int] = (0, 0)) -> None:
        super().__init__()
        self.discriminator, self.explained, self.patch = discriminator, explained, tuple(patch)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, 1), or (batch, patches) row by row for ``grid``.

        Raises:
            SkyshiftError: There is no such patch.
        """
        logits = self.discriminator(x)
        if self.explained == "mean":
            return logits.flatten(1).mean(1, keepdim=True)
        if self.explained == "grid":
            return logits.flatten(1)
        row, column = self.patch
        rows, columns = logits.shape[-2:]
        if logits.ndim != 4 or not (0 <= row < rows and 0 <= column < columns):
            raise SkyshiftError(f"there is no patch ({row}, {column}): the discriminator gives {rows} x {columns}")
        return logits[:, :1, row, column]


@dataclass(frozen=True)
class ReceptiveField:
    """Which pixels a logit sees, per axis.

    Attributes:
        size: Pixels.
        stride: From one logit to the next, pixels.
        start: First pixel of logit 0; negative where it sees padding.
    """

    size: int
    stride: int
    start: int

    @classmethod
    def of(cls, network: nn.Module) -> "ReceptiveField":
        """Of a network whose convolutions and poolings follow one another, square and alike on both axes.

        Raises:
            SkyshiftError: A kernel is not square, or a layer changes the resolution in another way.
        """
        size, stride, start = 1, 1, 0
        for module in network.modules():
            if isinstance(module, nn.ConvTranspose2d | nn.Upsample):
                raise SkyshiftError(f"{type(module).__name__} has no receptive field of this kind")
            if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                continue
            numbers = []
            for name in ("kernel_size", "stride", "padding", "dilation"):
                value = getattr(module, name, 1)
                pair = tuple(value) if isinstance(value, tuple) else (value, value)
                if pair[0] != pair[1] or isinstance(value, str):
                    raise SkyshiftError(f"the receptive field needs square kernels; {name} of {module} is {value}")
                numbers.append(int(pair[0]))
            kernel, step, padding, dilation = numbers
            size, start = size + (kernel - 1) * dilation * stride, start - padding * stride
            stride *= step
        return cls(size, stride, start)

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """First and last pixel (last excluded) of a logit: bottom, top, left, right. May reach beyond the map."""
        bottom, left = self.start + row * self.stride, self.start + column * self.stride
        return bottom, bottom + self.size, left, left + self.size


def find_discriminator(method: TranslationMethod, name: str = "") -> tuple[str, nn.Module, bool]:
    """The discriminator of a method.

    Args:
        method: Any.
        name: Which, where there are several.

    Returns:
        Its name, the network, and whether it judges source and target together (else the target alone).

    Raises:
        CheckpointError: The checkpoint was exported without it.
        SkyshiftError: There is none of that name, or its channels are neither of these.
    """
    names = list(method.discriminators)
    if not names:
        raise SkyshiftError(
            f"{type(method).__name__} is trained without a discriminator; explain its generator (--what.of generator)"
        )
    if name and name not in names:
        raise SkyshiftError(unknown("discriminator", name, names))
    if not name and len(names) > 1:
        raise SkyshiftError(f"{type(method).__name__} has {', '.join(names)}; choose one with --what.discriminator")
    name = name or names[0]
    network = getattr(method, name)
    if network is None:
        raise CheckpointError(
            f"the checkpoint holds no weights of the {name}: it was exported for inference, with the generator alone. "
            "A discriminator can be explained from a checkpoint that the training itself wrote "
            "(RUN/checkpoints/step_…, whose model.safetensors holds every network); train one with "
            "translate/train.py, or explain the generator of this one (--what.of generator)"
        )
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    taken = None if first is None else first.in_channels
    both = method.source_channels + method.target_channels
    if taken not in (both, method.target_channels):
        raise SkyshiftError(f"the {name} takes {taken} channels, neither source and target ({both}) nor the target")
    return name, network, taken == both


# -- the generator ------------------------------------------------------------------------------------------------


class TargetPixel(nn.Module):
    """The physical value that a generator gives one pixel.

    Args:
        method: The translation.
        number: Of the target channel.
        channel: Its scaling and unit.
        pixel: Row (from the bottom) and column.
    """

    def __init__(self, method: TranslationMethod, number: int, channel: Channel, pixel: Sequence[int]) -> None:
        super().__init__()
        self.method, self.number, self.channel, self.pixel = method, number, channel, tuple(pixel)

    def forward(self, source: Tensor) -> Tensor:
        """Scaled source (batch, channels, height, width) to (batch, 1) in the channel's unit.

        Raises:
            SkyshiftError: There is no such pixel.
        """
        row, column = self.pixel
        height, width = source.shape[-2:]
        if not (0 <= row < height and 0 <= column < width):
            raise SkyshiftError(f"there is no pixel ({row}, {column}) on maps of {height} x {width}")
        scaled = self.method.translate(source)[:, self.number : self.number + 1, row, column]
        return _physical(self.channel, scaled)


class Aperture(nn.Module):
    """What a generator puts inside a circle about the centre: the total of a column density, the mean of a mean.

    Args:
        method: The translation.
        number: Of the target channel.
        channel: Its scaling and unit.
        radius: kpc.
        side: Of the map, kpc.
    """

    def __init__(self, method: TranslationMethod, number: int, channel: Channel, radius: float, side: float) -> None:
        super().__init__()
        self.method, self.number, self.channel = method, number, channel
        self.radius, self.side = radius, side

    def forward(self, source: Tensor) -> Tensor:
        """Scaled source (batch, channels, height, width) to (batch, 1) in :func:`aperture_unit`.

        Raises:
            SkyshiftError: No pixel centre lies inside.
        """
        height, width = source.shape[-2:]
        pixel = self.side / width
        y = (torch.arange(height, device=source.device) + 0.5 - height / 2) * pixel
        x = (torch.arange(width, device=source.device) + 0.5 - width / 2) * pixel
        inside = (torch.hypot(y[:, None], x[None]) < self.radius).float()
        if not bool(inside.any()):
            raise SkyshiftError(f"an aperture of {self.radius:g} kpc holds no pixel ({pixel:.3g} kpc wide)")
        weight = inside * pixel**2 if is_column(self.channel.unit) else inside / inside.sum()
        physical = _physical(self.channel, self.method.translate(source)[:, self.number])
        return (physical * weight).sum((1, 2)).unsqueeze(1)


def _physical(channel: Channel, scaled: Tensor) -> Tensor:
    """Scaled to physical values, clipped at the domain's minimum as in every translated map."""
    return channel.scaling.inverse(scaled.float()).clamp(min=channel.minimum)


def is_column(unit: str) -> bool:
    """Whether a unit is an amount in an area, so that the area integrates it."""
    return any(base == units.kpc and power == -2 for base, power in zip(*_decomposed(unit), strict=True))


def _decomposed(unit: str) -> tuple[list[units.UnitBase], list[float]]:
    parsed = units.Unit(unit)
    return list(parsed.bases), list(parsed.powers)


def aperture_unit(unit: str) -> str:
    """Of what :class:`Aperture` gives for a channel in ``unit``."""
    if not is_column(unit):
        return unit
    total = units.Unit(unit) * units.kpc**2
    return "Msun" if total == units.Msun else str(total.to_string())
