"""The report of an adapted classifier: a table, numbers, predictions and figures, from arrays alone.

Checkpoints that were chosen in different ways stand side by side, and the report says of each whether labels of the
target were used to choose it. Where predictions of the bounds are given (source-only, target-supervised, on the same
target maps), so is the share of the gap between them that was closed. Intervals are those of bootstrap samples of whole
objects; they hold the scatter of the test maps, not that of training.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skyshift.adapt.figures import confusion_figure, curve_figure, latent_figure, number_figure, reliability_figure
from skyshift.adapt.metrics import classification, open_set, regression
from skyshift.adapt.metrics.bootstrap import LEVEL, RESAMPLES, Drawn, gap_closed, multiplicities
from skyshift.adapt.report_scores import (
    Checkpoint,
    Part,
    ReportError,
    Setting,
    check_labels,
    labelled,
    latent_facts,
    measure,
    physical,
    probabilities,
)
from skyshift.adapt.report_table import NO_ORDER, SMALLER, SOURCE_ONLY, TARGET_SUPERVISED, THRESHOLDED, table
from skyshift.adapt.task import Task
from skyshift.files import write_json, write_text, write_whole


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        title: What was judged, in a line.
        task: What was learned.
        checkpoints: Side by side, in this order; all of the same target maps.
        bounds: ``source-only`` and ``target-supervised`` to what they say of the same target maps.
        notes: Further lines under the table, such as where the data come from.
        threshold: Of the unknown score; ``None`` for the quantile of :data:`open_set.KEPT` over source validation maps.
        level: Of the intervals.
        resamples: Bootstrap samples.
        seed: Of bootstrap, folds and embeddings.
        bound_validations: Bound to what it says of its source's validation part, for temperature and threshold; without
            it the numbers that need these are left out.
    """

    title: str
    task: Task
    checkpoints: Sequence[Checkpoint]
    bounds: Mapping[str, Part] = field(default_factory=dict)
    notes: Sequence[str] = ()
    threshold: float | None = None
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = 0
    bound_validations: Mapping[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.checkpoints or len({c.choice for c in self.checkpoints}) < len(self.checkpoints):
            raise ReportError(f"one checkpoint of each choice, not {[c.choice for c in self.checkpoints]}")
        if not 0 < self.level < 1 or self.resamples < 1:
            raise ReportError(
                f"level must lie between 0 and 1 and resamples be at least 1, not {self.level} and {self.resamples}"
            )
        if not {*self.bounds, *self.bound_validations} <= {SOURCE_ONLY, TARGET_SUPERVISED}:
            raise ReportError(f"bounds are {SOURCE_ONLY} and {TARGET_SUPERVISED}, not {', '.join(self.bounds)}")
        for checkpoint in self.checkpoints:
            for name in ("source_validation", "source", "target"):
                check_labels(getattr(checkpoint, name), self.task, f"{checkpoint.title}, {name}")
        first = self.checkpoints[0].target
        targets = {c.title: c.target for c in self.checkpoints} | dict(self.bounds)
        for name, part in targets.items():
            check_labels(part, self.task, name)
            same = list(part.names) == list(first.names) and np.array_equal(
                np.asarray(part.labels), np.asarray(first.labels), equal_nan=self.task.kind == "regression"
            )
            if not same:
                raise ReportError(
                    f"{name} was judged on other target maps than {self.checkpoints[0].title}, or in another order"
                )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the rows, but those of single classes."""
        if self.task.kind == "regression":
            return regression.METRICS
        closed = (*classification.METRICS, "ece", "ece_scaled")
        return closed + (open_set.METRICS if self.task.unknown else ())

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Checkpoint to what was fitted to the source's validation part."""
        return {c.title: Setting.fitted(c.source_validation, self.task, self.threshold) for c in self.checkpoints}

    @cached_property
    def target(self) -> dict[str, dict[str, Drawn]]:
        """Checkpoint, or bound, to metric to its value on the target, all on the same bootstrap samples."""
        weights = multiplicities(self.checkpoints[0].target.groups, self.resamples, self.seed)
        found = {
            c.title: measure(c.target, self.task, self.settings[c.title], weights, self.level) for c in self.checkpoints
        }
        for name, part in self.bounds.items():
            validation = self.bound_validations.get(name)
            fitted = Setting(threshold=float("inf") if self.threshold is None else self.threshold)
            if validation is not None:
                fitted = Setting.fitted(validation, self.task, self.threshold)
            found[name] = measure(part, self.task, fitted, weights, self.level)
            if validation is None:
                absent = ("ece_scaled",) if self.threshold is not None else ("ece_scaled", *THRESHOLDED)
                found[name] = {metric: value for metric, value in found[name].items() if metric not in absent}
        return found

    @cached_property
    def source(self) -> dict[str, dict[str, Drawn]]:
        """Checkpoint to metric to its value on the source."""
        return {
            c.title: measure(
                c.source,
                self.task,
                self.settings[c.title],
                multiplicities(c.source.groups, self.resamples, self.seed),
                self.level,
            )
            for c in self.checkpoints
        }

    @cached_property
    def gaps(self) -> dict[str, dict[str, Drawn]]:
        """Checkpoint to metric to the share of the gap that it closes; empty without both bounds."""
        if set(self.bounds) < {SOURCE_ONLY, TARGET_SUPERVISED}:
            return {}
        both = [m for m in self.metrics if all(m in self.target[name] for name in self.bounds) and m not in NO_ORDER]
        return {c.title: {m: self._gap(c.title, m) for m in both} for c in self.checkpoints}

    def _gap(self, title: str, metric: str) -> Drawn:
        bounds = self.target[SOURCE_ONLY][metric], self.target[TARGET_SUPERVISED][metric]
        return gap_closed(self.target[title][metric], *bounds, direction=-1 if metric in SMALLER else 1)

    @cached_property
    def latent(self) -> dict[str, dict[str, float]]:
        """Checkpoint to how the domains lie in the space of features."""
        return {c.title: latent_facts(c, self.task, self.seed) for c in self.checkpoints}

    def table(self) -> str:
        """Everything as Markdown."""
        return table(self)

    def facts(self) -> dict[str, Any]:
        """Everything as numbers, for ``metrics.json``."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "kind": self.task.kind,
            "classes": {"source": list(self.task.source), "target": list(self.task.target)},
            "regime": self.task.regime if self.task.kind == "classification" else None,
            "level": self.level,
            "resamples": self.resamples,
            "checkpoints": {
                c.title: {
                    "step": c.step,
                    "chosen": c.explanation,
                    "used_target_labels": c.used_target_labels,
                    "validators": dict(c.validators),
                    "temperature": self.settings[c.title].temperature,
                    "threshold": self.settings[c.title].threshold if self.task.unknown else None,
                    "threshold_from": self.settings[c.title].origin if self.task.unknown else None,
                    "target": _dicts(self.target[c.title]),
                    "source": _dicts(self.source[c.title]),
                    "latent": self.latent[c.title],
                    "gap_closed": _dicts(self.gaps[c.title]) if self.gaps else None,
                }
                for c in self.checkpoints
            },
            "bounds": {name: _dicts(self.target[name]) for name in self.bounds},
            "target_maps": len(self.checkpoints[0].target),
            "target_labelled": int(labelled(self.checkpoints[0].target, self.task).sum()),
        }

    def predictions(self) -> str:
        """A row a checkpoint and map of either test part, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        task = self.task
        if task.kind == "regression":
            columns = ["label", "predicted", "sigma"]
        else:
            columns = ["label", "predicted", *(f"p {name}" for name in task.source), "unknown_score", "called_unknown"]
        writer.writerow(["checkpoint", "domain", "name", "group", *columns])
        for checkpoint in self.checkpoints:
            for domain in ("source", "target"):
                part: Part = getattr(checkpoint, domain)
                rows = _numbers(part, task) if task.kind == "regression" else self._classes(checkpoint, part)
                for i, row in enumerate(rows):
                    writer.writerow([checkpoint.title, domain, part.names[i], part.groups[i], *row])
        return text.getvalue()

    def _classes(self, checkpoint: Checkpoint, part: Part) -> list[list[Any]]:
        names = [*self.task.source, "unknown", ""]  # -1, no label, is the last
        p, limit = probabilities(part.logits), self.settings[checkpoint.title].threshold
        return [
            [
                names[int(label)],
                names[int(row.argmax())],
                *(f"{v:.6g}" for v in row),
                f"{score:.6g}",
                int(score > limit),
            ]
            for label, row, score in zip(part.labels, p, part.unknown, strict=True)
        ]

    def write(
        self, folder: str | Path, *, embeddings: Sequence[str] = ("tsne", "isomap"), figures: bool = True
    ) -> None:
        """Write ``table.md``, ``metrics.json``, ``predictions.csv`` and the figures, each whole.

        Args:
            folder: Where; it is created.
            embeddings: Of the latent space, a figure each.
            figures: Whether to draw.

        Raises:
            SkyshiftError: An embedding is unknown or cannot be had.
        """
        folder = Path(folder)
        write_text(folder / "table.md", self.table() + "\n")
        write_json(folder / "metrics.json", plain(self.facts()))
        write_text(folder / "predictions.csv", self.predictions())
        if not figures:
            return
        drawn = {f"latent_{kind}": latent_figure(self.checkpoints, self.task, kind, self.seed) for kind in embeddings}
        some = labelled(self.checkpoints[0].target, self.task).any()
        if some and self.task.kind == "regression":
            drawn["numbers"] = number_figure(self.checkpoints, self.task)
        elif some:
            weights = multiplicities(self.checkpoints[0].target.groups, self.resamples, self.seed)
            drawn["confusion"] = confusion_figure(self.checkpoints, self.task, self.settings)
            drawn["reliability"] = reliability_figure(self.checkpoints, self.task, self.settings, weights, self.level)
            drawn["curves"] = curve_figure(self.checkpoints, self.task, weights, self.level)
        for name, figure in drawn.items():
            with write_whole(folder / f"{name}.png") as side:
                figure.savefig(side, dpi=130)


def _dicts(found: Mapping[str, Drawn]) -> dict[str, Any]:
    return {name: drawn.to_dict() for name, drawn in found.items()}


def _numbers(part: Part, task: Task) -> list[list[Any]]:
    mean, log_variance = physical(part, task)
    sigma = np.exp(log_variance / 2)
    return [
        ["" if math.isnan(y) else f"{y:.8g}", f"{m:.8g}", f"{s:.8g}"]
        for y, m, s in zip(np.asarray(part.labels, np.float64), mean, sigma, strict=True)
    ]


def plain(value: Any) -> Any:
    """JSON knows no NaN, and no infinity."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
