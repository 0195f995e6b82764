"""Invertible value scalings between physical maps and what a network sees.

Surface densities span many decades, so networks see y = f(x) with a saturating f. Each scaling is fitted on
training maps alone, so that the bulk of their values lies in [0, 1], and is saved with every checkpoint:

    linear   y = (x - offset) / span
    asinh    y = asinh(x / softening) / asinh(span / softening)        linear below the softening, log above
    log      y = log(1 + x / softening) / log(1 + span / softening)    for x ≥ 0
    power    y = sign(x) |x / span|^exponent

All pass zero through as zero (but for ``linear`` with an offset) and work on NumPy arrays and on torch tensors, where
they are differentiable (``power`` forward but for zero itself, where its slope is infinite). NumPy input is computed in
float64, so that inverse(forward(x)) gives every float32 x back exactly (for ``linear``, as long as the offset is not
2²⁹ times larger than x); what is lost when y itself is stored as float32 is at most about one part in a million of x.
"""

import abc
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Values = TypeVar("Values", NDArray[np.floating], torch.Tensor)

FIT_QUANTILE = 0.999
"""Quantile of the fitted values that is mapped to one."""

SOFTENING_SHARE = 0.02
"""asinh turns linear at the value below which this share of the sum over all pixels (of the mass, say) lies."""

FLOOR_QUANTILE = 0.01
"""log turns linear at this quantile of the positive values."""


class ScalingError(SkyshiftError):
    """A scaling cannot be fitted to, or applied to, these values."""


def _module(x: Any) -> Any:
    return torch if isinstance(x, torch.Tensor) else np


def _wide(x: Any) -> Any:
    return x if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)


def _fitted(values: NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.asarray(values, np.float64).reshape(-1)
    if not np.isfinite(values).all():
        raise ScalingError(f"{(~np.isfinite(values)).sum()} of {values.size} values to fit are not finite")
    return values


def _lit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sorted sizes of the values that are not zero; a single 1 where all are zero, so that empty maps pass."""
    size = np.abs(_fitted(values))
    size = size[size > 0]
    size.sort()  # in place: a fit holds two copies of its values in float64 at the most
    return size if size.size else np.ones(1)


@dataclass(frozen=True)
class Scaling(abc.ABC):
    """A value scaling with fitted parameters (fields of the dataclass, in the map's unit)."""

    kind: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def fit(cls, values: NDArray[np.floating]) -> Self:
        """Choose the parameters for ``values`` (any shape, physical units).

        Raises:
            ScalingError: A value is not finite, or not allowed by this scaling.
        """

    @abc.abstractmethod
    def forward(self, x: Values) -> Values:
        """Physical to scaled."""

    @abc.abstractmethod
    def inverse(self, y: Values) -> Values:
        """Scaled to physical."""

    def to_dict(self) -> dict[str, Any]:
        """Kind and parameters, for a checkpoint."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Linear(Scaling):
    """y = (x - offset) / span."""

    kind: ClassVar[str] = "linear"
    offset: float = 0.0
    span: float = 1.0

    @classmethod
    def fit(cls, values: NDArray[np.floating]) -> Self:
        """Map the lowest value to 0 and the :data:`FIT_QUANTILE` quantile to 1."""
        values = _fitted(values)
        if not values.size:
            return cls()
        low, high = float(values.min()), float(np.quantile(values, FIT_QUANTILE))
        return cls(low, high - low if high > low else max(abs(low), 1.0))

    def forward(self, x: Values) -> Values:
        """Physical to scaled."""
        return (_wide(x) - self.offset) / self.span

    def inverse(self, y: Values) -> Values:
        """Scaled to physical."""
        return _wide(y) * self.span + self.offset


@dataclass(frozen=True)
class Asinh(Scaling):
    """y = asinh(x / softening) / asinh(span / softening) (Lupton, Gunn & Szalay 1999, AJ 118, 1406)."""

    kind: ClassVar[str] = "asinh"
    softening: float = 1.0
    span: float = 1.0

    @classmethod
    def fit(cls, values: NDArray[np.floating]) -> Self:
        """Softening by :data:`SOFTENING_SHARE`, one at the :data:`FIT_QUANTILE` quantile of the non-zero values."""
        size = _lit(values)
        share = np.cumsum(size)
        share /= size.sum()
        span = float(np.quantile(size, FIT_QUANTILE))
        return cls(min(float(size[np.searchsorted(share, SOFTENING_SHARE)]), span), span)

    @property
    def _top(self) -> float:
        return math.asinh(self.span / self.softening)

    def forward(self, x: Values) -> Values:
        """Physical to scaled."""
        return _module(x).asinh(_wide(x) / self.softening) / self._top

    def inverse(self, y: Values) -> Values:
        """Scaled to physical."""
        return _module(y).sinh(_wide(y) * self._top) * self.softening


@dataclass(frozen=True)
class Log(Scaling):
    """y = log(1 + x / softening) / log(1 + span / softening), for x ≥ 0."""

    kind: ClassVar[str] = "log"
    softening: float = 1.0
    span: float = 1.0

    @classmethod
    def fit(cls, values: NDArray[np.floating]) -> Self:
        """Softening at :data:`FLOOR_QUANTILE`, one at :data:`FIT_QUANTILE`; negative values are refused."""
        if np.asarray(values).size and np.min(values) < 0:
            raise ScalingError(f"log scaling needs values ≥ 0, the lowest is {np.min(values):.4g}; use asinh")
        floor, span = np.quantile(_lit(values), [FLOOR_QUANTILE, FIT_QUANTILE])
        return cls(float(floor), float(span))

    @property
    def _top(self) -> float:
        return math.log1p(self.span / self.softening)

    def forward(self, x: Values) -> Values:
        """Physical to scaled.

        Raises:
            ScalingError: A value is at or below -softening, where the logarithm ends.
        """
        ratio = _wide(x) / self.softening
        if bool((ratio <= -1).any()):
            raise ScalingError(f"log scaling cannot take {float(ratio.min()) * self.softening:.4g}; use asinh")
        return _module(x).log1p(ratio) / self._top

    def inverse(self, y: Values) -> Values:
        """Scaled to physical."""
        return _module(y).expm1(_wide(y) * self._top) * self.softening


@dataclass(frozen=True)
class Power(Scaling):
    """y = sign(x) |x / span|^exponent."""

    kind: ClassVar[str] = "power"
    span: float = 1.0
    exponent: float = 0.5

    @classmethod
    def fit(cls, values: NDArray[np.floating]) -> Self:
        """One at the :data:`FIT_QUANTILE` quantile of the non-zero values."""
        return cls(float(np.quantile(_lit(values), FIT_QUANTILE)))

    def forward(self, x: Values) -> Values:
        """Physical to scaled."""
        ratio = _wide(x) / self.span
        return _module(x).sign(ratio) * abs(ratio) ** self.exponent

    def inverse(self, y: Values) -> Values:
        """Scaled to physical."""
        y = _wide(y)
        return _module(y).sign(y) * abs(y) ** (1.0 / self.exponent) * self.span


SCALINGS: dict[str, type[Scaling]] = {cls.kind: cls for cls in (Linear, Asinh, Log, Power)}


def fit_scaling(kind: str, values: NDArray[np.floating]) -> Scaling:
    """Fit the scaling called ``kind`` to ``values``.

    Raises:
        ScalingError: The kind is unknown, or the values cannot be scaled by it.
    """
    if kind not in SCALINGS:
        raise ScalingError(unknown("scaling", kind, SCALINGS))
    return SCALINGS[kind].fit(values)


def scaling_from_dict(saved: Mapping[str, Any]) -> Scaling:
    """Undo :meth:`Scaling.to_dict`.

    Raises:
        ScalingError: The kind is unknown.
    """
    kind = str(saved["kind"])
    if kind not in SCALINGS:
        raise ScalingError(unknown("scaling", kind, SCALINGS))
    return SCALINGS[kind](**{name: value for name, value in saved.items() if name != "kind"})
