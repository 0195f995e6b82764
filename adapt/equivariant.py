"""An encoder that knows no orientation: convolutions over the eight symmetries of the square.

A galaxy on the sky has no preferred direction, nor has its mirror image. Features f(x, g) live on pixels x and on the
symmetries g of the square (the group D4: four rotations, each with and without a mirror). For every symmetry h, applied
to the map,

    lifting        f(x, g) = Σ_y ψ(g⁻¹(y - x)) map(y)
    convolution    f'(x, g) = Σ_y Σ_h ψ(g⁻¹(y - x), g⁻¹h) f(y, h)
    equivariance   map → h·map   gives   f(x, g) → f(h⁻¹x, h⁻¹g)

so that the largest value over g, averaged over x, is the same for all eight views of a map. This holds exactly on the
pixel grid, to rounding, because every part keeps it: odd kernels with symmetric padding, statistics over all of g and
x, and an average pooling whose windows lie symmetrically on even sides (2 pixels) and on odd ones (3, overlapping).
Rotations by other angles are not on the grid and are left to augmentation.

All channels are scalars: brightness, density, a velocity along the line of sight. Components of vectors on the sky are
not, since they turn with the map.

References:
    Cohen & Welling 2016, Group Equivariant Convolutional Networks, arXiv:1602.07576.
    Scaife & Porter 2021, Fanaroff-Riley classification of radio galaxies using group-equivariant convolutional neural
    networks, arXiv:2102.08252.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.adapt.classifier import SOURCE, Encoder
from skyshift.adapt.domain_norm import DomainBatchNorm2d, in_domain
from skyshift.errors import SkyshiftError

ORDER = 8
"""Number of symmetries: number g is a mirror of the columns where g ≥ 4, then g mod 4 quarter turns."""


def transform(maps: Tensor, g: int) -> Tensor:
    """Maps (…, h, w) under symmetry number ``g``, (…, h, w) or (…, w, h)."""
    return torch.rot90(maps.flip(-1) if g >= ORDER // 2 else maps, g % 4, (-2, -1))


def _tables() -> tuple[list[int], list[list[int]]]:
    """Number of each inverse, and of each product: ``product[g][h]`` is first h, then g."""
    turn, mirror = torch.tensor([[0, -1], [1, 0]]), torch.tensor([[1, 0], [0, -1]])
    matrices = [
        torch.linalg.matrix_power(turn, g % 4) @ (mirror if g >= ORDER // 2 else torch.eye(2, dtype=torch.int64))
        for g in range(ORDER)
    ]

    def number(matrix: Tensor) -> int:
        return next(g for g, other in enumerate(matrices) if torch.equal(matrix, other))

    product = [[number(a @ b) for b in matrices] for a in matrices]
    return [row.index(0) for row in product], product


INVERSE, PRODUCT = _tables()


def transform_features(features: Tensor, h: int) -> Tensor:
    """What symmetry number ``h`` of the map makes of features (n, channels, 8, height, width): f(h⁻¹x, h⁻¹g)."""
    return transform(features[:, :, PRODUCT[INVERSE[h]]], h)


class Lifting(nn.Module):
    """Maps (n, channels, h, w) to features (n, out, 8, h, w): one kernel, in its eight orientations.

    Args:
        channels: Of the maps.
        out: Of the features.
        kernel: Its side, odd.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = _kernels(out, channels, kernel, kernel)

    def forward(self, maps: Tensor) -> Tensor:
        """Features of maps."""
        bank = torch.stack([transform(self.weight, g) for g in range(ORDER)], dim=1).flatten(0, 1)
        return F.conv2d(maps, bank, padding=self.weight.shape[-1] // 2).unflatten(1, (-1, ORDER))


class GroupConv(nn.Module):
    """Features (n, channels, 8, h, w) to features (n, out, 8, h, w).

    Args:
        channels: Of what goes in.
        out: Of what comes out.
        kernel: Its side, odd.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = _kernels(out, channels, ORDER, kernel, kernel)

    def forward(self, features: Tensor) -> Tensor:
        """Features of features."""
        views = [transform(self.weight[:, :, PRODUCT[INVERSE[g]]], g) for g in range(ORDER)]
        bank = torch.stack(views, dim=1).flatten(2, 3).flatten(0, 1)
        out = F.conv2d(features.flatten(1, 2), bank, padding=self.weight.shape[-1] // 2)
        return out.unflatten(1, (-1, ORDER))


def _kernels(*shape: int) -> nn.Parameter:
    if shape[-1] % 2 == 0:
        raise SkyshiftError(f"a kernel of {shape[-1]} pixels has no pixel in its middle; take an odd number")
    weight = torch.empty(shape)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as torch's own convolutions
    return nn.Parameter(weight)


class Norm(nn.Module):
    """Normalisation of features (n, channels, 8, h, w) over the symmetries and the map.

    Args:
        channels: Of the features.
        domain_norm: Over the batch, with statistics of each domain's own; otherwise of each map by itself, in groups of
            channels.
    """

    def __init__(self, channels: int, domain_norm: bool = False) -> None:
        super().__init__()
        self.layer = DomainBatchNorm2d(channels) if domain_norm else nn.GroupNorm(math.gcd(8, channels), channels)

    def forward(self, features: Tensor) -> Tensor:
        """Features of mean 0 and variance 1, scaled and shifted channel by channel."""
        out: Tensor = self.layer(features.flatten(2, 3))  # the symmetries as more rows: what is averaged is the same
        return out.unflatten(2, (ORDER, -1))


def pool(features: Tensor) -> Tensor:
    """Features (…, h, w) averaged to (…, ⌈h/2⌉, ⌈w/2⌉), symmetrically: a flip before is a flip after.

    Even sides in pairs of pixels. Odd sides in windows of three around every other pixel; what lies outside of the map
    does not count.
    """
    odd = [side % 2 for side in features.shape[-2:]]
    size = features.shape[:-2]
    out = F.avg_pool2d(
        features.flatten(0, -4) if features.ndim > 4 else features,
        [2 + o for o in odd],
        stride=2,
        padding=odd,
        count_include_pad=False,
    )
    return out.reshape(*size, *out.shape[-2:])


class Level(nn.Module):
    """Pooling, then two group convolutions, each with normalisation and ReLU.

    Args:
        channels: Of what goes in.
        out: Of what comes out.
        domain_norm: As of :class:`Norm`.
    """

    def __init__(self, channels: int, out: int, domain_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            GroupConv(channels, out), Norm(out, domain_norm), nn.ReLU(),
            GroupConv(out, out), Norm(out, domain_norm), nn.ReLU(),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, out, 8, ⌈h/2⌉, ⌈w/2⌉) of features (n, channels, 8, h, w)."""
        out: Tensor = self.layers(pool(features))
        return out


class D4CNN(Encoder):
    """Group convolutions over the eight symmetries of the square; features are the same for all views of a map.

    Of width 8 and depth 4 (64 features, eight orientations each), on maps of 64 × 64 pixels, one thread of a CPU:

        network                                parameters   training step   forward
        D4CNN(width=8)                            590,392      32.7 ms       9.7 ms a map
        SmallCNN(width=64), as many planes      4,688,064      19.1 ms       5.8 ms
        SmallCNN(width=8), as many features        73,944       0.8 ms       0.25 ms

    Args:
        channels: Of the maps.
        width: Channels after the lifting, each in eight orientations; they double with each level after the first.
        depth: Levels, each halving the map.
        domain_norm: Batch normalisation with statistics of each domain's own instead of group normalisation.
    """

    def __init__(self, channels: int, width: int = 8, depth: int = 4, domain_norm: bool = False) -> None:
        super().__init__()
        self.lift = nn.Sequential(Lifting(channels, width), Norm(width, domain_norm), nn.ReLU())
        outs = [width * 2**level for level in range(depth)]
        ins = [width, *outs][:depth]
        self.levels = nn.ModuleList(Level(i, o, domain_norm) for i, o in zip(ins, outs, strict=True))
        self.width, self.domains = ([width, *outs][-1]), domain_norm

    def forward(self, maps: Tensor, domain: int = SOURCE) -> Tensor:
        """Features (n, width) of maps (n, channels, h, w): the largest over the symmetries, averaged over the map."""
        with in_domain(domain):
            features = self.lift(maps)
            for level in self.levels:
                features = level(features)
        return features.amax(2).mean((2, 3))

    def blocks(self) -> list[nn.Module]:
        """The lifting, then the levels."""
        return [self.lift, *self.levels]
