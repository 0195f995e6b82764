"""One network between any of D domains: from whichever maps there are to whichever is wanted.

A sample is described to the network by planes of the size of its maps,

    source = [scaled maps (D), present (D), wanted (D)],    target = the one wanted map,

where the map of a domain that is not given is zero, ``present`` is 1 over the whole plane of each given domain, and
``wanted`` is 1 on the plane of the target alone. So every method takes it as a translation of 3·D channels to one.

In training each sample draws, from its own seed and apart from its augmentation, the target uniformly, then for
each other domain by a coin whether it is given, again until at least one is: all 2^(D-1) - 1 source sets of a target
are equally likely. The target's own map is never among the sources.

References:
    Sharma & Hamarneh 2020, Missing MRI Pulse Sequence Synthesis using Multi-Modal Generative Adversarial Network,
    arXiv:1904.12200 (missing inputs as zeros, all subsets in training).
    Choi et al. 2018, StarGAN, arXiv:1711.09020 (the target domain as planes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from skyshift.datasets.loading import Draw, MapDataset
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

PLANES = 3
"""Planes a domain: its map, whether it is present, whether it is wanted."""

_STREAM = 7
"""Sets the drawn directions apart from the augmentation of the same sample."""


def planes(maps: Tensor, present: Sequence[int], wanted: int, domains: int) -> Tensor:
    """What a network sees of given maps and a wanted domain.

    Args:
        maps: (…, given, h, w), scaled, one channel a domain of ``present``.
        present: Numbers of the domains of these channels.
        wanted: Number of the target domain.
        domains: How many there are.

    Returns:
        (…, 3·domains, h, w).
    """
    shape = list(maps.shape)
    shape[-3] = PLANES * domains
    result = maps.new_zeros(shape)
    given = torch.as_tensor(list(present), device=maps.device)
    result.index_copy_(-3, given, maps)
    result.index_fill_(-3, domains + given, 1.0)
    result.select(-3, 2 * domains + wanted).fill_(1.0)
    return result


def direction(seed: Sequence[int], domains: int) -> tuple[list[int], int]:
    """The sources and the target that a sample draws.

    Args:
        seed: Of the sample.
        domains: How many there are, at least two.

    Returns:
        Numbers of the source domains, ascending, and of the target.
    """
    generator = np.random.default_rng([*seed, _STREAM])
    target = int(generator.integers(domains))
    others = [number for number in range(domains) if number != target]
    while True:
        given = [number for number in others if generator.integers(2)]
        if given:
            return given, target


@dataclass
class AnyToAnyDataset(Dataset[dict[str, Any]]):
    """Samples in directions of their own; see the module.

    A sample holds ``source`` (3·D, h, w), ``target`` (1, h, w) and ``view``.

    Attributes:
        maps: Of all domains as sources, without targets, paired.
    """

    maps: MapDataset

    def __post_init__(self) -> None:
        if self.maps.target or len(self.maps.source) < 2:
            raise SkyshiftError("any-to-any draws its targets among at least two source domains")

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[dict[str, Any]]:
        """The samples of a batch.

        Args:
            draws: Each by its draw, or by its view number.
        """
        asked = [draw if isinstance(draw, Draw) else Draw(int(draw), (0, int(draw))) for draw in draws]
        count = len(self.maps.source)
        samples = []
        for draw, sample in zip(asked, self.maps.__getitems__(asked), strict=True):
            given, wanted = direction(draw.seed, count)
            every = sample["source"]
            samples.append(
                {
                    "source": planes(every[given], given, wanted, count),
                    "target": every[wanted : wanted + 1],
                    "view": sample["view"],
                }
            )
        return samples


def chosen(domains: Sequence[str], source: Sequence[str], target: Sequence[str]) -> None:
    """Check a direction that someone chooses.

    Args:
        domains: All of a checkpoint.
        source: Domains to translate from.
        target: Domains to translate to.

    Raises:
        SkyshiftError: None is named, one is unknown, named twice, or on both sides; the message lists the domains.
    """
    listed = ", ".join(domains)
    if not source or not target:
        raise SkyshiftError(
            f"this checkpoint translates between any of {listed}; choose: source=[one or several of them], "
            "target=[one or several of the others]"
        )
    for what, names in (("source", source), ("target", target)):
        for name in names:
            if name not in domains:
                raise SkyshiftError(f"{what}: {unknown('domain', name, domains)} (the checkpoint knows {listed})")
        if len(set(names)) != len(names):
            raise SkyshiftError(f"{what}: a domain is named twice in {', '.join(names)}")
    both = [name for name in source if name in target]
    if both:
        raise SkyshiftError(f"{both[0]} is both source and target; choose a target among those that are not given")
