"""Pairs to show a discriminator: true ones, translated ones, and ones that are wrong on purpose.

What it says of the wrong ones tells what it looks at: a discriminator that takes another galaxy's target for true does
not compare target and source; one that does not mind shuffled pixels judges their values and not their structure.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

PROBES = {
    "true": "source and target of one view",
    "translated": "the source and its translation",
    "other_galaxy": "the source and the target of another galaxy",
    "shuffled_domain": "the source and the target with its pixels in random order",
    "swapped_domains": "every map in the next channel, the last in the first",
    "rotated_source": "the source turned by 90 degrees and the target as it is",
}
"""Name to what is shown."""


def require_probes(names: Sequence[str], *, paired: bool) -> None:
    """Check names of probes.

    Args:
        names: Asked for.
        paired: Whether the discriminator sees the source.

    Raises:
        SkyshiftError: One is unknown, or needs a discriminator that sees the source.
    """
    if not names:
        raise SkyshiftError(f"name at least one probe: {', '.join(PROBES)}")
    for name in names:
        if name not in PROBES:
            raise SkyshiftError(unknown("probe", name, PROBES))
        if not paired and name in ("other_galaxy", "rotated_source", "swapped_domains"):
            raise SkyshiftError(f"probe {name} asks about pairs; this discriminator judges the target alone")


def partners(views: NDArray[np.integer], groups: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """For each view one of another split group among ``views``, fixed by the seed and the view.

    Args:
        views: (n,) view numbers.
        groups: (n,) their split groups.
        seed: Of the choice.

    Returns:
        (n,) positions in ``views``.

    Raises:
        SkyshiftError: All are of one group.
    """
    if len(np.unique(groups)) < 2:
        raise SkyshiftError("another galaxy to compare with needs views of at least two galaxies")
    found = np.empty(len(views), np.int64)
    for i, (view, group) in enumerate(zip(views, groups, strict=True)):
        found[i] = np.random.default_rng([seed, int(view)]).choice(np.flatnonzero(groups != group))
    return found


def make_probe(
    name: str,
    source: Tensor,
    target: Tensor,
    views: Sequence[int] | NDArray[np.integer],
    seed: int,
    translate: Callable[[Tensor], Tensor],
    other_target: Tensor | None = None,
) -> Tensor:
    """The pairs of one probe.

    Args:
        name: One of :data:`PROBES`.
        source: (n, source channels, height, width), scaled.
        target: (n, target channels, height, width), scaled; the true ones.
        views: (n,) view numbers; with the seed they fix the shuffles.
        seed: Of the shuffles.
        translate: Scaled source to scaled target.
        other_target: (n, target channels, height, width) of the partners, for ``other_galaxy``.

    Returns:
        (n, source + target channels, height, width).
    """
    if name == "translated":
        target = translate(source)
    elif name == "other_galaxy":
        assert other_target is not None
        target = other_target
    elif name == "shuffled_domain":
        target = torch.stack(
            [_shuffled(one, np.random.default_rng([seed, int(view)])) for one, view in zip(target, views, strict=True)]
        )
    elif name == "rotated_source":
        if source.shape[-1] != source.shape[-2]:
            raise SkyshiftError("a source that is not square cannot be turned by 90 degrees")
        source = torch.rot90(source, 1, (2, 3))
    pair = torch.cat([source, target], 1)
    return pair.roll(1, dims=1) if name == "swapped_domains" else pair


def _shuffled(maps: Tensor, generator: np.random.Generator) -> Tensor:
    """The pixels of (channels, height, width) in another order, the same in all channels."""
    order = torch.from_numpy(generator.permutation(maps[0].numel()))
    return maps.flatten(1)[:, order].reshape(maps.shape)


def spread_views(views: NDArray[np.integer], groups: NDArray[np.integer], count: int, seed: int) -> NDArray[np.int64]:
    """``count`` of the views, in their order, of as many groups as there are; all where ``count`` is 0 or too large."""
    if count <= 0 or count >= len(views):
        return np.asarray(views, np.int64)
    order = np.random.default_rng(seed).permutation(len(views))
    turn = np.empty(len(views), np.int64)  # how many of its group come before it
    seen: dict[int, int] = {}
    for i in order:
        group = int(groups[i])
        turn[i] = seen.get(group, 0)
        seen[group] = turn[i] + 1
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return np.sort(np.asarray(views, np.int64)[chosen])
