"""Several checkpoints as one translator: runs of other seeds, whose spread says how unsure the training left them.

References:
    Lakshminarayanan, Pritzel & Blundell 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles, arXiv:1612.01474.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.maps import Maps
from skyshift.errors import SkyshiftError
from skyshift.translate.draws import Uncertain
from skyshift.translate.translator import Translator, summed_up


class Ensemble:
    """Translators of the same domains.

    Args:
        members: At least two.

    Raises:
        SkyshiftError: There are fewer, or they translate other domains or into other units.
    """

    def __init__(self, members: Sequence[Translator]) -> None:
        if len(members) < 2:
            raise SkyshiftError(f"an ensemble has at least two members, not {len(members)}")
        first = members[0]
        for number, member in enumerate(members[1:], 1):
            for what in ("source", "target"):
                mine, theirs = (
                    [(channel.domain, channel.unit) for channel in getattr(one.translation, what)]
                    for one in (first, member)
                )
                if mine != theirs:
                    raise SkyshiftError(
                        f"member {number} of the ensemble has {what} {theirs}, the first {mine}; the members of an "
                        "ensemble translate the same domains in the same units"
                    )
        self.members = list(members)

    @classmethod
    def from_pretrained(cls, folders: Sequence[str | Path], **options: Any) -> "Ensemble":
        """Of checkpoints; options as :meth:`skyshift.translate.translator.Translator.from_pretrained` takes them."""
        return cls([Translator.from_pretrained(folder, **options) for folder in folders])

    @property
    def source(self) -> tuple[str, ...]:
        """Domains in."""
        return self.members[0].source

    @property
    def target(self) -> tuple[str, ...]:
        """Domains out."""
        return self.members[0].target

    def __call__(self, maps: Any, views: Any = None) -> dict[str, Maps]:
        """The mean of one translation of each member, none of whose dropout layers forget."""
        one_each = (
            next(member.each_draw(maps, 1, views, first=number)) if member.method.stochastic else member(maps, views)
            for number, member in enumerate(self.members)
        )
        return {domain: found.mean for domain, found in summed_up(one_each).items()}

    def each_draw(self, maps: Any, n: int, views: Any = None) -> Iterator[dict[str, Maps]]:
        """Draws, taking turns between the members.

        Raises:
            SkyshiftError: Members that give one translation of a map are asked for more draws than there are members.
        """
        count = len(self.members)
        if n < 1 or (n > count and not all(member.draws_differ for member in self.members)):
            raise SkyshiftError(f"{n} draws of an ensemble of {count} members, some of which give a single translation")
        for draw in range(n):
            yield from self.members[draw % count].each_draw(maps, 1, views, first=draw)

    def draws(self, maps: Any, n: int, views: Any = None) -> dict[str, NDArray[np.float32]]:
        """Target domain to (n, maps, height, width); see :meth:`skyshift.translate.translator.Translator.draws`."""
        drawn = [{d: stack.values for d, stack in one.items()} for one in self.each_draw(maps, n, views)]
        return {domain: np.stack([one[domain] for one in drawn]) for domain in self.target}

    def uncertainty(self, maps: Any, draws: int = 0, views: Any = None) -> dict[str, Uncertain]:
        """Mean and standard deviation; by default of one draw a member.

        Raises:
            SkyshiftError: Of a single draw, or of more than the members can give.
        """
        if draws == 1:
            raise SkyshiftError("a standard deviation needs at least two draws, not 1")
        return summed_up(self.each_draw(maps, draws or len(self.members), views))
