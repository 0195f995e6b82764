"""Augmentations that leave the physics of a pair as it is.

Symmetries. Each of the 8 symmetries of the square is as good a view of the sky as any other: no direction on it is
preferred. All quantities on maps are scalars under them: the velocity along the line of sight too, which a turn or a
reflection within the plane of the sky leaves alone. A quantity with components in that plane would turn with it; there
is none among the domains.

Shift. A map is moved by less or more than a pixel, by the same for source and target of a pair, in physical units and
before any scaling. With f the fraction of a pixel, along each axis

    y_i = (1 - f) x_{i-n} + f x_{i-n-1}        (cloud in cell)

The weights sum to one and are not negative: the mass of a column map is conserved, to rounding with periodic edges, and
less what leaves the map with zero edges; nothing turns negative. It smooths: a wave at the Nyquist frequency is
multiplied by |1 - 2f|. That is why shifts are off unless asked for. A map of means (temperature) is interpolated as it
stands, which is not the mean weighted with the shifted mass; the two agree where the mass varies little over a pixel.

Edges. ``zero``: what enters is empty, as beyond a galaxy that the map holds whole. ``periodic``: what leaves on one
side enters on the other, for boxes.

Intensity. Physical units mean something, so that no factor is applied unless asked for. ``intensity_jitter`` multiplies
source and target of a pair by one and the same factor, log-uniform within ± so many dex: relations that are not linear
(HI saturates, a temperature is no amount) are then no longer those of the simulation.

References:
    Hockney & Eastwood 1988, Computer Simulation Using Particles, ch. 5 (cloud in cell).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Edges = Literal["zero", "periodic"]


@dataclass(frozen=True)
class Change:
    """What is done to one map.

    Attributes:
        symmetry: 0 to 7; 0 changes nothing.
        shift: Pixels upwards and to the right.
        factor: On the physical values.
    """

    symmetry: int = 0
    shift: tuple[float, float] = (0.0, 0.0)
    factor: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """Which changes are drawn.

    Attributes:
        symmetries: Draw one of the 8 symmetries of the square.
        shift: Largest shift along each axis, pixels; 0 for none.
        edges: What enters at the edges of a shifted map.
        intensity_jitter: Largest factor, dex; 0 for none.
    """

    symmetries: bool = True
    shift: float = 0.0
    edges: Edges = "zero"
    intensity_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.edges not in get_args(Edges):
            raise SkyshiftError(unknown("kind of edges", self.edges, get_args(Edges)))
        for name in ("shift", "intensity_jitter"):
            if not 0 <= getattr(self, name) < np.inf:
                raise SkyshiftError(f"the augmentation {name} is 0 or more, not {getattr(self, name)}")

    @property
    def physical(self) -> bool:
        """Whether physical values are changed, so that maps cannot be kept scaled."""
        return self.shift > 0 or self.intensity_jitter > 0

    def draw(self, generator: np.random.Generator, maps: int) -> list[Change]:
        """Changes of one sample's source and target.

        Args:
            generator: Of the sample.
            maps: 1 where both are changed alike (a pair), 2 where each has its own.

        Returns:
            ``maps`` changes. What is switched off draws nothing, so that switching it on changes no other draw.
        """
        symmetry = [int(generator.integers(8)) for _ in range(maps)] if self.symmetries else [0] * maps
        shift = generator.uniform(-self.shift, self.shift, (maps, 2)) if self.shift else np.zeros((maps, 2))
        jitter = self.intensity_jitter
        factor = 10 ** generator.uniform(-jitter, jitter, maps) if jitter else np.ones(maps)
        return [Change(symmetry[i], (float(shift[i, 0]), float(shift[i, 1])), float(factor[i])) for i in range(maps)]


def turned(maps: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """One of the 8 symmetries of the square, for (channels, height, width)."""
    rotated = np.rot90(maps, symmetry % 4, axes=(1, 2))
    return rotated[:, :, ::-1] if symmetry >= 4 else rotated


def _moved(maps: NDArray[np.float32], pixels: int, axis: int, edges: Edges) -> NDArray[np.float32]:
    """Whole pixels along one axis."""
    moved = np.roll(maps, pixels, axis)
    if edges == "zero" and pixels:
        gap = [slice(None)] * maps.ndim
        gap[axis] = slice(0, pixels) if pixels > 0 else slice(pixels, None)
        moved[tuple(gap)] = 0.0
    return moved


def shifted(maps: NDArray[np.float32], shift: tuple[float, float], edges: Edges = "zero") -> NDArray[np.float32]:
    """Maps moved by a fraction of a pixel or more, mass conserved.

    Args:
        maps: (…, height, width), physical values.
        shift: Pixels along the rows' axis (upwards) and along the columns' (to the right).
        edges: See the module.

    Returns:
        The same shape, float32.
    """
    for axis, amount in zip((-2, -1), shift, strict=True):
        whole = int(np.floor(amount))
        fraction = np.float32(amount - whole)
        if abs(whole) >= maps.shape[axis] and edges == "zero":
            return np.zeros_like(maps)
        near = _moved(maps, whole, axis, edges)
        maps = near if not fraction else (1 - fraction) * near + fraction * _moved(maps, whole + 1, axis, edges)
    return maps
