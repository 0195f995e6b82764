"""The values on validation galaxies by which a run chooses its best checkpoint and when to stop.

They are those of the evaluation (see ``evaluate.py``), in physical units, on the validation part alone: the test part
is never read. Of several target domains the values are averaged.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from skyshift.datasets.loading import FIT_VIEWS
from skyshift.translate.data import TranslationData
from skyshift.translate.evaluate import METRICS, Yardstick, score
from skyshift.translate.methods.base import TranslationMethod
from skyshift.translate.translator import Translator, store_maps

VIEWS = 256
"""Validation views that are translated, at the most, spread over the part."""

VALUES = {m.name: m for m in METRICS if m.summary and m.default and m.group != "calibration"}
"""What is measured of single translations, without networks of others."""

DIRECTIONS: Mapping[str, int] = {name: metric.best for name, metric in VALUES.items()}
"""Name of every value to the direction of better: 1 larger, -1 smaller, 0 nearer to zero."""


def _spread(views: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return views[np.unique(np.linspace(0, len(views) - 1, min(most, len(views))).astype(np.int64))]


class Validator:
    """Judges a method on validation galaxies.

    Args:
        data: Of the run; its validation part must not be empty.
    """

    def __init__(self, data: TranslationData) -> None:
        self.data, self.views = data, _spread(data.views["validation"], VIEWS)

    @cached_property
    def _yardsticks(self) -> dict[str, Yardstick]:
        domains = self.data.config.target
        maps = store_maps(self.data.store, domains, _spread(self.data.views["train"], FIT_VIEWS))
        return {name: Yardstick.fit(maps[name].values, np.asarray(maps[name].side)) for name in domains}

    def __call__(self, method: nn.Module) -> dict[str, float]:
        """Metric to its value over the validation maps: percent, decibels or none, as in the evaluation's table.

        All are NaN, which never is the best, where a translation is not finite: means leave out what is not.
        """
        assert isinstance(method, TranslationMethod)
        estimates = Translator(method, self.data.translation)(self.data.store, self.views)
        if not all(np.isfinite(maps.values).all() for maps in estimates.values()):
            return dict.fromkeys(VALUES, float("nan"))
        truths = store_maps(self.data.store, self.data.config.target, self.views)
        scores = [
            score(truths[name].values, estimates[name].values, np.asarray(truths[name].side), self._yardsticks[name])
            for name in self.data.config.target
        ]
        return {
            name: float(np.mean([metric.summary(values[name]) for values in scores]))
            for name, metric in VALUES.items()
            if metric.summary
        }
