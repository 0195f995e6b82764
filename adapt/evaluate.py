"""Command: report on an adapted classifier, on objects that it has not seen.

    python adapt/evaluate.py --run runs/adapt_dann
    python adapt/evaluate.py --run runs/dann --source_only runs/source_only --target_supervised runs/target_supervised

The checkpoint that the label-free validator chose, the last one, and the one that target labels would have chosen
(the oracle, a bound and no result) stand side by side. With the runs of the two bounds, the share of the gap between
them that was closed is given as well. Where the target has no labels, predictions, unknown scores and the space of
features are reported alone.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from skyshift.adapt.adapter import Adapter, Predicted, find_adaptation
from skyshift.adapt.anomalies import report_unknowns
from skyshift.adapt.data import AdaptData, AugmentConfig
from skyshift.adapt.metrics.calibration import fit_temperature
from skyshift.adapt.prior_shift import corrected, estimate_prior
from skyshift.adapt.report import Report
from skyshift.adapt.report_scores import Checkpoint, Part
from skyshift.adapt.report_table import SOURCE_ONLY, TARGET_SUPERVISED
from skyshift.adapt.sides import Side, SourceConfig, TargetConfig
from skyshift.adapt.splits import SplitConfig
from skyshift.adapt.task import TaskConfig
from skyshift.checkpoint import CheckpointError, best, checkpoints, latest
from skyshift.command import command, parse
from skyshift.errors import SkyshiftError

PriorShift = Literal["none", "em"]


@dataclass
class EvaluateConfig:
    """A report.

    Attributes:
        run: Folder of the run.
        output: Folder of the report; by default ``evaluation`` in the run.
        source_only: Run of the lower bound, on the same target and split.
        target_supervised: Run of the upper bound.
        prior_shift: ``em`` estimates the target's class frequencies from its unlabelled training maps and corrects for
            them.
        embeddings: Figures of the space of features: tsne, isomap, umap.
        resamples: Bootstrap samples.
        trust_remote_code: Allow checkpoints to name classes from outside this package.
    """

    run: str = ""
    output: str = ""
    source_only: str = ""
    target_supervised: str = ""
    prior_shift: PriorShift = "none"
    embeddings: list[str] = field(default_factory=lambda: ["tsne", "isomap"])
    resamples: int = 1000
    trust_remote_code: bool = False


def open_run(run: Path) -> AdaptData:
    """The data that a run was trained on, split as there. Nothing but data is made from its configuration.

    Raises:
        CheckpointError: There is no run, or its configuration is damaged.
        StoreError: A store is not there any more.
    """
    folder = find_adaptation(run)
    try:
        plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        source, target = SourceConfig(**plain["source"]), TargetConfig(**plain["target"])
        task, split = TaskConfig(**plain["task"]), SplitConfig(**plain["split"])
        augment, seed = AugmentConfig(**plain["augment"]), int(plain["training"]["seed"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder / 'config.yaml'} cannot be read ({error!r})") from None
    return AdaptData.open(source, target, task, split, augment, seed)


def _part(data: AdaptData, side: Side, views: NDArray[np.int64], said: Predicted, labels: NDArray[Any]) -> Part:
    catalogue = side.store.catalogue()
    if data.task.kind == "regression":
        labels = np.asarray(labels, np.float64) * data.task.scale + data.task.mean
    return Part(
        [str(name) for name in side.of_views(np.asarray(catalogue["name"]), views)],
        side.of_views(np.asarray(catalogue["split_group"]), views),
        labels,
        said.outputs,
        said.unknown,
        said.features,
    )


class _Judge:
    """Predictions of a run's checkpoints on the parts of its data, each made once."""

    def __init__(self, data: AdaptData, prior_shift: PriorShift, trusted: bool) -> None:
        self.data, self.prior_shift, self.trusted = data, prior_shift, trusted
        self._target_labels = data.target_labels(data.target.parts["test"])
        self._open: tuple[Path, Adapter] | None = None

    def _adapter(self, folder: Path) -> Adapter:
        """Of a checkpoint; the last one stays open."""
        if self._open is None or self._open[0] != folder:
            self._open = folder, Adapter.from_pretrained(folder, trust_remote_code=self.trusted)
        return self._open[1]

    def _shifted(self, adapter: Adapter, said: Predicted) -> Predicted:
        """With the class frequencies of the target's training part, as estimated without labels."""
        if self.prior_shift == "none":
            return said
        data = self.data
        if data.task.kind == "regression":
            raise SkyshiftError("--prior_shift em is about classes; a regression has none")
        views = data.source.parts["validation"]
        held = adapter(data.source.store, views, side="source")
        heat = fit_temperature(held.outputs, data.source.of_views(data.source_labels, views))
        count = np.bincount(data.source.of_views(data.source_labels, data.source.parts["train"]).astype(int))
        even = data.balanced or bool(data.task.weights)
        prior = np.full(len(count), 1 / len(count)) if even else count / count.sum()
        known = adapter(data.target.store, data.target.parts["train"]).outputs / heat
        outputs = heat * corrected(said.outputs / heat, prior, estimate_prior(known, prior))
        return Predicted(said.features, outputs.astype(np.float32), said.unknown)

    def target(self, folder: Path) -> Part:
        """The target's test part."""
        adapter, views = self._adapter(folder), self.data.target.parts["test"]
        said = self._shifted(adapter, adapter(self.data.target.store, views))
        return _part(self.data, self.data.target, views, said, self._target_labels)

    def checkpoint(self, choice: Any, folder: Path, monitor: str, validators: Mapping[str, float]) -> Checkpoint:
        """All parts of one checkpoint."""
        validation, test = self.source(folder, "validation"), self.source(folder, "test")
        return Checkpoint(choice, _step(folder), validation, test, self.target(folder), monitor, validators)

    def source(self, folder: Path, part: str) -> Part:
        """One part of the source."""
        adapter, source = self._adapter(folder), self.data.source
        views = source.parts[part]
        labels = source.of_views(self.data.source_labels, views)
        return _part(self.data, source, views, adapter(source.store, views, side="source"), labels)

    def oracle(self, found: Sequence[Path]) -> Path | None:
        """The checkpoint that is best on the target's validation part by its labels, where there are some."""
        views = self.data.target.parts["validation"]
        labels = self.data.target_labels(views)
        regression = self.data.task.kind == "regression"
        known = np.isfinite(labels) if regression else (labels >= 0) & (labels < len(self.data.task.source))
        if not known.any():
            return None

        def merit(folder: Path) -> float:
            outputs = self._adapter(folder)(self.data.target.store, views[known]).outputs
            if regression:
                return -float(((outputs[:, 0] - labels[known]) ** 2).mean())
            right = outputs.argmax(1) == labels[known]
            return float(np.mean([right[labels[known] == k].mean() for k in np.unique(labels[known])]))

        return max(found, key=merit)


def _step(folder: Path) -> int:
    return int(folder.name.rsplit("_", 1)[-1]) if folder.name.startswith("step_") else 0


def _logged(run: Path) -> dict[int, dict[str, float]]:
    """Step to the label-free values that the run logged."""
    path = run / "log.jsonl"
    if not path.is_file():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        values = {k.removeprefix("validation/"): v for k, v in line.items() if k.startswith("validation/")}
        if values:
            found[int(line["step"])] = values
    return found


def evaluate_run(
    run: str | Path,
    *,
    data: AdaptData | None = None,
    output: str | Path = "",
    bounds: Mapping[str, str] | None = None,
    prior_shift: PriorShift = "none",
    embeddings: Sequence[str] = ("tsne", "isomap"),
    resamples: int = 1000,
    trust_remote_code: bool = False,
) -> Report:
    """Report on a run.

    Args:
        run: Its folder.
        data: What it was trained on, where it is open already.
        output: Folder of the report; by default ``evaluation`` in the run.
        bounds: ``source-only`` and ``target-supervised`` to their runs.
        prior_shift: See :class:`EvaluateConfig`.
        embeddings: The same.
        resamples: The same.
        trust_remote_code: The same.

    Raises:
        CheckpointError: There is no checkpoint.
        SkyshiftError: The data is gone, or the runs do not fit together.
    """
    run = Path(run)
    found = checkpoints(run)
    if not found:
        raise CheckpointError(f"{run} holds no checkpoint; train one with adapt/train.py")
    data = data or open_run(run)
    judge, last, logged = _Judge(data, prior_shift, trust_remote_code), latest(run) or found[-1], _logged(run)
    chosen, oracle = best(run), judge.oracle(found)
    made = []
    if chosen is not None:
        monitor = json.loads((run / "best.json").read_text(encoding="utf-8"))["monitor"]
        made.append(judge.checkpoint("validator", chosen, monitor, logged.get(_step(chosen), {})))
    made.append(judge.checkpoint("last", last, "", logged.get(_step(last), {})))
    if oracle is not None:
        metric = "balanced accuracy" if data.task.kind == "classification" else "mean squared error"
        made.append(judge.checkpoint("oracle", oracle, metric, logged.get(_step(oracle), {})))
    limits = {name: find_adaptation(folder) for name, folder in (bounds or {}).items()}
    report = Report(
        f"{run}: {data.source.store.path} to {data.target.store.path}",
        data.task,
        made,
        {name: judge.target(folder) for name, folder in limits.items()},
        _notes(data, prior_shift),
        resamples=resamples,
        bound_validations={name: judge.source(folder, "validation") for name, folder in limits.items()},
    )
    folder = Path(output) if output else run / "evaluation"
    report.write(folder, embeddings=embeddings)
    if data.task.kind == "classification":
        first = made[0]
        report_unknowns(
            folder, data.task, data.target, data.target.parts["test"], first.target, first.source_validation
        )
    return report


def _notes(data: AdaptData, prior_shift: PriorShift) -> list[str]:
    counts = {
        side.name: {part: len(views) for part, views in side.parts.items()} for side in (data.source, data.target)
    }
    lines = [f"{name}: " + ", ".join(f"{n} {part}" for part, n in of.items()) + " maps" for name, of in counts.items()]
    lines += [f"label sets: {data.task.regime}"] if data.task.kind == "classification" else []
    lines += ["class frequencies of the target estimated by expectation maximisation"] if prior_shift == "em" else []
    return lines + [f"ALARM {line}" for line in data.range_alarm()]


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(EvaluateConfig, arguments, None, "Report on an adapted classifier.")
    if not config.run:
        raise SkyshiftError("name the run to report on (--run)")
    bounds = {SOURCE_ONLY: config.source_only, TARGET_SUPERVISED: config.target_supervised}
    report = evaluate_run(
        config.run,
        output=config.output,
        bounds={name: folder for name, folder in bounds.items() if folder},
        prior_shift=config.prior_shift,
        embeddings=config.embeddings,
        resamples=config.resamples,
        trust_remote_code=config.trust_remote_code,
    )
    print(report.table())
    print(f"report: {config.output or Path(config.run) / 'evaluation'}")


if __name__ == "__main__":
    sys.exit(main())
