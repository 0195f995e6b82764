"""What a run sees of its validation parts: source maps with labels, target maps without."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skyshift.adapt.classifier import SOURCE, TARGET
from skyshift.adapt.data import AdaptData
from skyshift.adapt.methods.base import AdaptationMethod
from skyshift.adapt.sides import Side
from skyshift.adapt.validators import DIRECTIONS, Predicted, validate, validators

VIEWS = 1024
"""Validation views of each side, at the most, spread over the part."""

BATCH = 128
"""Maps at once."""


class Validator:
    """Judges a method by what is known without labels of the target.

    Args:
        data: Of the run. Sides without a validation part are judged on their training part.
    """

    def __init__(self, data: AdaptData) -> None:
        self._kind = data.task.kind
        self._maps = {side.name: side.maps(self._views(side)) for side in (data.source, data.target)}
        self._labels = data.source.of_views(data.source_labels, self._views(data.source))

    @staticmethod
    def _views(side: Side) -> NDArray[np.int64]:
        views = side.parts["validation"] if len(side.parts["validation"]) else side.parts["train"]
        return views[np.unique(np.linspace(0, len(views) - 1, min(VIEWS, len(views))).astype(np.int64))]

    def __call__(self, method: nn.Module) -> dict[str, float]:
        """Every validator of this kind of task to its value."""
        assert isinstance(method, AdaptationMethod)
        device = next(method.parameters()).device
        found = {}
        for name, domain in (("source", SOURCE), ("target", TARGET)):
            said = [method.predict(maps.to(device), domain) for maps in torch.split(self._maps[name], BATCH)]
            found[f"{name}_features"] = torch.cat([one.features for one in said]).cpu().numpy()
            found[f"{name}_logits"] = torch.cat([one.outputs for one in said]).cpu().numpy()
        return validate(Predicted(source_labels=self._labels, kind=self._kind, **found))


def directions(kind: str) -> Mapping[str, int]:
    """Validators of a kind of task to the direction of better."""
    return {name: DIRECTIONS[name] for name in validators(kind)}  # type: ignore[arg-type]
