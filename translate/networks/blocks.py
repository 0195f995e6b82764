"""Parts that the networks share: normalisation, upsampling, and padding that lets a network take any size.

A network that halves a map d times needs sides divisible by 2^d. A map of another size is padded up to the
next multiple, evenly on both sides, and the output is cropped back, so size in is size out.

References:
    He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers, arXiv:1502.01852.
    Odena, Dumoulin & Olah 2016, Deconvolution and Checkerboard Artifacts, doi:10.23915/distill.00003.
    Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization, arXiv:1607.08022.
    Wu & He 2018, Group Normalization, arXiv:1803.08494.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.errors import SkyshiftError

Normalisation = Literal["instance", "batch", "group", "none"]
Upsampling = Literal["bilinear", "transposed"]
PaddingMode = Literal["reflect", "replicate", "zeros"]

MAX_GROUPS = 8


def require_name(what: str, name: str, choices: object) -> None:
    """Check that ``name`` is one of the names in the ``Literal`` type ``choices``.

    Raises:
        SkyshiftError: It is not; the message names the nearest valid one.
    """
    valid = [str(choice) for choice in get_args(choices)]
    if name not in valid:
        near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)[0]
        raise SkyshiftError(f"unknown {what} '{name}', did you mean '{near}'? Valid are {', '.join(valid)}.")


def require_at_least(what: str, value: int, least: int) -> None:
    """Check that ``value`` is no smaller than ``least``.

    Raises:
        SkyshiftError: It is smaller.
    """
    if value < least:
        raise SkyshiftError(f"{what} is {value}; it must be at least {least}.")


def require_layers(layers: Sequence[int], count: int, network: str) -> None:
    """Check the numbers of the layers whose features are wanted.

    Raises:
        SkyshiftError: There is none such, or none is named.
    """
    wrong = [layer for layer in layers if layer not in range(count)]
    if wrong or not layers:
        what = f"there is no feature layer {wrong[0]}" if wrong else "no feature layer is named"
        raise SkyshiftError(f"{what}: this {network} has the layers 0 to {count - 1}.")


def normalisation(name: Normalisation, channels: int) -> nn.Module:
    """A normalisation layer with a learned scale and shift per channel.

    Args:
        name: ``instance`` normalises every map and channel by itself, ``group`` every map in the largest
            number of groups up to 8 that divides ``channels``, ``batch`` every channel over the batch,
            ``none`` nothing.
        channels: Number of channels.

    Raises:
        SkyshiftError: The name is none of these.
    """
    require_name("normalisation", name, Normalisation)
    if name == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0), channels)
    return nn.Identity()


def initialise(network: nn.Module, scale: float = 1.0) -> None:
    """Draw every convolution from a normal distribution of variance scale² · 2 / inputs, its bias zero.

    The amplitude of a map then survives any number of rectified layers, normalised or not (He et al. 2015).
    Torch's own default lets it shrink to a hundredth in the layers of the U-Net that are not normalised.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            height, width = module.kernel_size
            # A transposed convolution makes one output pixel from kernel / stride pixels on each axis.
            shared = module.stride[0] * module.stride[1] if isinstance(module, nn.ConvTranspose2d) else 1
            inputs = module.in_channels * height * width / shared
            nn.init.normal_(module.weight, std=scale * (2.0 / inputs) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def upsample(kind: Upsampling, in_channels: int, out_channels: int, padding_mode: PaddingMode = "reflect") -> nn.Module:
    """A layer from (batch, in_channels, h, w) to (batch, out_channels, 2h, 2w).

    Args:
        kind: ``bilinear`` resizes and then convolves 3x3, so all output pixels are made alike and no
            checkerboard can appear (Odena et al. 2016). ``transposed`` is a 4x4 transposed convolution of
            stride 2.
        in_channels: Channels in.
        out_channels: Channels out.
        padding_mode: How the map continues beyond its border. ``reflect`` needs a map of at least 2 pixels.

    Raises:
        SkyshiftError: A name is unknown.
    """
    require_name("upsampling", kind, Upsampling)
    require_name("padding", padding_mode, PaddingMode)
    if kind == "bilinear":
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode=padding_mode),
        )
    if padding_mode == "zeros":
        return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
    # Torch pads transposed convolutions with zeros only. One pixel added before is two more to cut after.
    border = nn.ReflectionPad2d(1) if padding_mode == "reflect" else nn.ReplicationPad2d(1)
    return nn.Sequential(border, nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=3))


def pad_to_multiple(
    x: Tensor, multiple: int, mode: PaddingMode, minimum: int = 1
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pad the maps until ``multiple`` divides both sides.

    Args:
        x: (batch, channels, height, width), any size from 1 pixel.
        multiple: Both padded sides are multiples of it.
        mode: ``reflect``, ``replicate`` or ``zeros``. An axis too short to be reflected is replicated.
        minimum: No padded side is shorter, pixels.

    Returns:
        The padded maps (``x`` itself where nothing is missing) and the function that crops anything of the
        padded size, whatever its channels, to the size of ``x``.

    Raises:
        SkyshiftError: The mode is unknown, or a side is empty.
    """
    require_name("padding", mode, PaddingMode)
    height, width = x.shape[-2:]
    if min(height, width) < 1:
        raise SkyshiftError(f"a map of {height} x {width} pixels is empty.")
    top, bottom = _amounts(height, multiple, minimum)
    left, right = _amounts(width, multiple, minimum)
    x = _pad_axis(x, (0, 0, top, bottom), height, mode)
    x = _pad_axis(x, (left, right, 0, 0), width, mode)
    return x, lambda y: y[..., top : top + height, left : left + width]


def _amounts(size: int, multiple: int, minimum: int) -> tuple[int, int]:
    """Pixels to add before and after ``size``."""
    padded = -(-max(size, minimum) // multiple) * multiple
    before = (padded - size) // 2
    return before, padded - size - before


def _pad_axis(x: Tensor, amounts: tuple[int, int, int, int], size: int, mode: PaddingMode) -> Tensor:
    if not any(amounts):
        return x
    if mode == "zeros":
        return F.pad(x, amounts)
    return F.pad(x, amounts, mode="reflect" if mode == "reflect" and max(amounts) < size else "replicate")
