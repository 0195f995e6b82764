"""Large maps tile by tile, without seams: overlapping tiles, blended by a window, with statistics shared over tiles.

A map of any size is translated at the memory of one batch of tiles. Not the result is cut into tiles but every call of
a network: a sampler of many steps runs on the whole map, its noise is one field, and each of its calls

    f(x) = Σ_i w_i f_i(x) / Σ_i w_i

blends the networks' outputs f_i on tiles with windows w_i that fall from 1 to 0 between one and two thirds of the
overlap. So the outer third of a tile, where the network sees the padding instead of the map, counts nothing: where the
network's receptive field reaches no farther than a third of the overlap, tiles give what the whole map gives.

Group and instance normalisation divide by the mean and variance of what they see. On tiles that would be each tile's
own, which makes seams and wrong amplitudes. With ``statistics: shared`` each layer's sums over all tiles (weighted by
the same windows, so that an overlap counts once) are gathered one layer after another: pass p runs up to layer p, all
layers before it already fixed, so that every layer has the statistics of the whole map. For L layers this costs about
L/2 more evaluations; networks that normalise nothing cost nothing more. (All layers gathered at once, in a few passes,
do not come near: each layer's input moves while the layers before it are still being fixed.)

References:
    Bar-Tal, Yariv, Lipman & Dekel 2023, MultiDiffusion, arXiv:2302.08113 (samplers whose calls are blended over tiles).
    Wu & He 2018, Group Normalization, arXiv:1803.08494.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.errors import SkyshiftError
from skyshift.translate.methods.base import TranslationMethod
from skyshift.translate.networks.blocks import PaddingMode, pad_to_multiple


@dataclass(frozen=True)
class Tiling:
    """How maps are cut.

    Attributes:
        tile: Side of a tile, pixels; 0 for whole maps.
        overlap: Of neighbouring tiles, pixels; three times the reach of the network's receptive field makes it exact.
        batch: Tiles of one map that go through a network at once.
        statistics: ``shared`` over the tiles of a map, or each tile's own (``local``).
    """

    tile: int = 0
    overlap: int = 64
    batch: int = 4
    statistics: Literal["shared", "local"] = "shared"

    def __post_init__(self) -> None:
        if self.tile < 0 or self.overlap < 0 or self.batch < 1:
            raise SkyshiftError(
                f"tiles need tile ≥ 0, overlap ≥ 0 and batch ≥ 1, not {self.tile}, {self.overlap} and {self.batch}"
            )
        if self.tile and self.overlap > self.tile // 2:
            raise SkyshiftError(
                f"tiles of {self.tile} pixels cannot overlap by {self.overlap}: at most by half their side, "
                f"{self.tile // 2}; take larger tiles or less overlap"
            )

    def require_fits(self, height: int, width: int) -> None:
        """Check the size of maps.

        Raises:
            SkyshiftError: They are smaller than a tile on both sides.
        """
        if self.tile > max(height, width):
            raise SkyshiftError(
                f"tiles of {self.tile} pixels are larger than the maps of {height} x {width}; take smaller tiles, or "
                "none (tile 0): such maps are translated whole"
            )


def starts(size: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """First pixels of the tiles that cover ``size`` pixels, multiples of ``multiple``; the last ends at the border."""
    if size <= tile:
        return [0]
    step = max(multiple, (tile - overlap) // multiple * multiple)
    return [*range(0, size - tile, step), size - tile]


def window(tile: int, overlap: int, first: bool, last: bool) -> Tensor:
    """(tile,) weights along one axis: 0 in the outer third of an overlap, 1 beyond its inner third, sin² between.

    Args:
        tile: Pixels.
        overlap: With the neighbours, pixels.
        first: No tile stands before: 1 from the border on.
        last: No tile stands after.
    """
    place = torch.arange(tile, dtype=torch.float64) + 0.5
    margin = overlap / 3.0
    ramp = max(overlap - 2.0 * margin, 1e-9)

    def rise(distance: Tensor) -> Tensor:
        return torch.sin(0.5 * torch.pi * ((distance - margin) / ramp).clamp(0.0, 1.0)) ** 2

    one = torch.ones(tile, dtype=torch.float64)
    weights = (one if first else rise(place)) * (one if last else rise(tile - place))
    return weights.clamp_min(1e-12).float()  # never a pixel without any weight


class _Gathered(Exception):  # noqa: N818 - no error
    """The layer whose turn it is has seen this batch of tiles: what comes after it need not be computed."""


class _SharedNorm:
    """Stands in for the forward of one normalisation layer, with the statistics of all tiles once they are fixed."""

    def __init__(self, layer: nn.GroupNorm | nn.InstanceNorm2d) -> None:
        self.layer = layer
        self.groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else layer.num_features
        self.fixed: tuple[Tensor, Tensor] | None = None
        self.sums: list[Tensor] = []
        self.weights = torch.ones(1)
        """(tiles, 1, tile, tile) of the tiles at work; each has ``samples`` maps."""
        self.samples = 1

    def __call__(self, x: Tensor) -> Tensor:
        """(tiles · samples, channels, h, w) normalised; until the statistics are fixed, gather and go no further."""
        grouped = x.float().reshape(len(x), self.groups, -1, *x.shape[-2:])
        if self.fixed is None:
            self._gather(grouped)
            raise _Gathered
        mean, variance = (s.repeat(len(x) // self.samples, 1)[..., None, None, None] for s in self.fixed)
        scaled = ((grouped - mean) * (variance + self.layer.eps).rsqrt()).reshape(x.shape)
        if self.layer.weight is not None:
            scaled = scaled * self.layer.weight[:, None, None] + self.layer.bias[:, None, None]
        return scaled.to(x.dtype)

    def _gather(self, grouped: Tensor) -> None:
        weights = F.adaptive_avg_pool2d(self.weights.to(grouped.device), (grouped.shape[-2], grouped.shape[-1]))
        weights = weights.repeat_interleave(self.samples, 0)[:, None]
        weighted = weights * grouped
        parts = (weighted, weighted * grouped, weights.expand_as(grouped))
        sums = [part.sum((2, 3, 4)).double().reshape(-1, self.samples, self.groups).sum(0) for part in parts]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums

    def fix(self) -> None:
        """Take what was gathered on all tiles."""
        first, second, weight = self.sums
        mean = first / weight
        self.fixed = (mean.float(), (second / weight - mean**2).clamp_min(0.0).float())


@dataclass
class _Tile:
    row: int
    column: int
    weights: Tensor = field(repr=False)


class TiledNetwork(nn.Module):
    """A network called on overlapping tiles, whose outputs are blended.

    Args:
        network: From (batch, channels, h, w) and arguments without a place to (batch, channels', h, w).
        tiling: How.
    """

    def __init__(self, network: nn.Module, tiling: Tiling) -> None:
        super().__init__()
        self.network, self.tiling = network, tiling
        self.stride = int(getattr(network, "stride", 1))
        padding: Any = getattr(network, "padding", "reflect")
        self.padding: PaddingMode = padding if padding in get_args(PaddingMode) else "reflect"
        if tiling.tile % self.stride or tiling.tile < 2 * self.stride:
            raise SkyshiftError(
                f"tiles of {tiling.tile} pixels do not fit {type(network).__name__}, which halves maps to one in "
                f"{self.stride}; take a multiple of {self.stride}, at least {2 * self.stride}"
            )

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """As the network's own, blended over tiles.

        Args:
            x: (batch, channels, h, w).
            rest: Tensors of the batch's length, which each tile gets, and anything else.
        """
        side = self.tiling.tile
        if max(x.shape[-2:]) <= side:
            return self.network(x, *rest)
        # The map is padded once, as the network itself would pad it, so that tiles stand on its grid.
        x, crop = pad_to_multiple(x, self.stride, self.padding)
        tiles, total = self._tiles(x)
        norms = list(_shared_norms(self.network)) if self.tiling.statistics == "shared" else []
        with _standing_in(norms):
            for norm in norms:
                norm.samples = len(x)
            for _ in norms:
                if not self._gather(x, rest, tiles, total, norms):
                    break
            made: Tensor | None = None
            for tile, output in self._outputs(x, rest, tiles, total, norms):
                if made is None:
                    made = x.new_zeros((len(x), output.shape[1], *x.shape[-2:]), dtype=torch.float32)
                height, width = output.shape[-2:]
                made[..., tile.row : tile.row + height, tile.column : tile.column + width] += (
                    tile.weights * output.float()
                )
        assert made is not None
        return crop(made / total)

    def _gather(self, *work: Any) -> bool:
        """Run all tiles up to the first layer whose statistics are not fixed, and fix them; whether there was one."""
        norms: list[_SharedNorm] = work[-1]
        for _ in self._outputs(*work):
            pass
        found = [norm for norm in norms if norm.fixed is None and norm.sums]
        for norm in found:
            norm.fix()
        return bool(found)

    def _tiles(self, x: Tensor) -> tuple[list[_Tile], Tensor]:
        """The tiles with their windows, and the sum of the windows (h, w)."""
        side, overlap = self.tiling.tile, self.tiling.overlap
        axes = []
        for size in x.shape[-2:]:
            at = starts(size, side, overlap, self.stride)
            length = min(side, size)
            axes.append([(s, window(length, overlap, s == 0, s + length >= size)) for s in at])
        total = torch.zeros(x.shape[-2:], device=x.device)
        tiles = []
        for row, vertical in axes[0]:
            for column, horizontal in axes[1]:
                weights = (vertical[:, None] * horizontal[None]).to(x.device)
                total[row : row + len(vertical), column : column + len(horizontal)] += weights
                tiles.append(_Tile(row, column, weights))
        return tiles, total

    def _outputs(
        self, x: Tensor, rest: tuple[Any, ...], tiles: list[_Tile], total: Tensor, norms: list[_SharedNorm]
    ) -> Iterator[tuple[_Tile, Tensor]]:
        """The network's output on every tile, a batch of tiles at a time."""
        samples = len(x)
        for begin in range(0, len(tiles), self.tiling.batch):
            group = tiles[begin : begin + self.tiling.batch]
            places = [
                (..., slice(t.row, t.row + t.weights.shape[0]), slice(t.column, t.column + t.weights.shape[1]))
                for t in group
            ]
            for norm in norms:
                norm.weights = torch.stack(
                    [(t.weights / total[place])[None] for t, place in zip(group, places, strict=True)]
                )
            arguments = [
                value.repeat(len(group), *[1] * (value.dim() - 1))
                if isinstance(value, Tensor) and value.dim() and len(value) == samples
                else value
                for value in rest
            ]
            try:
                outputs = self.network(torch.cat([x[place] for place in places]), *arguments)
            except _Gathered:
                continue
            yield from zip(group, outputs.split(samples), strict=True)


def _shared_norms(network: nn.Module) -> Iterator[_SharedNorm]:
    for module in network.modules():
        if isinstance(module, nn.GroupNorm) or (
            isinstance(module, nn.InstanceNorm2d) and not module.track_running_stats
        ):
            yield _SharedNorm(module)


@contextmanager
def _standing_in(norms: list[_SharedNorm]) -> Iterator[None]:
    for norm in norms:
        norm.layer.forward = norm  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for norm in norms:
            del norm.layer.forward


@contextmanager
def tiled(method: TranslationMethod, tiling: Tiling) -> Iterator[None]:
    """Context in which the networks that a method translates with are called on tiles.

    Args:
        method: With local networks.
        tiling: How.
    """
    idle = {*method.discriminators, *method.training_only}
    names = [name for name in method.players if name not in idle and name in method._modules]
    kept = {name: method._modules[name] for name in names}
    try:
        for name in names:
            network = kept[name]
            assert network is not None
            method._modules[name] = TiledNetwork(network, tiling)
        yield
    finally:
        method._modules.update(kept)


def blended(translate: Callable[[Tensor, int], Tensor], source: Tensor, tiling: Tiling) -> Tensor:
    """Whole translations of overlapping tiles, blended: for methods whose networks are not local.

    Draws of such a method are drawn for each tile, so that where tiles overlap two draws are averaged.

    Args:
        translate: Source of a tile (batch, channels, tile, tile), and the tile's number, to its target.
        source: (batch, channels, h, w).
        tiling: How.
    """
    numbers = iter(range(10**9))

    class Whole(nn.Module):
        stride, padding = 1, "reflect"

        def forward(self, x: Tensor) -> Tensor:
            return translate(x, next(numbers))

    one = Tiling(tiling.tile, tiling.overlap, 1, "local")
    return TiledNetwork(Whole(), one)(source)
