"""A report as Markdown: what was chosen how, and every number with its interval."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from skyshift.adapt.metrics.bootstrap import Drawn
from skyshift.adapt.metrics.classification import OF_A_CLASS
from skyshift.adapt.report_scores import labelled
from skyshift.adapt.validators import DIRECTIONS

if TYPE_CHECKING:
    from skyshift.adapt.report import Report

SOURCE_ONLY, TARGET_SUPERVISED = "source-only", "target-supervised"
SMALLER = ("ece", "ece_scaled", "rmse", "mae", "nll", "outliers")
"""Metrics of which less is better."""
NO_ORDER = ("bias", "coverage_68", "coverage_95")
"""Metrics of which neither more nor less is better."""
THRESHOLDED = ("os_star", "unk", "h_score")
"""Metrics that need a threshold of the unknown score."""

TITLES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC, one against rest",
    "auprc": "AUPRC, one against rest",
    "ece": "ECE",
    "ece_scaled": "ECE, temperature of the source",
    "os_star": "OS*",
    "unk": "UNK",
    "h_score": "H-score",
    "anomaly_auroc": "anomaly AUROC",
    "anomaly_auprc": "anomaly AUPRC",
    "rmse": "RMSE",
    "mae": "mean absolute error",
    "bias": "bias",
    "nll": "negative log-likelihood [nat]",
    "coverage_68": "coverage of the 68 % interval",
    "coverage_95": "coverage of the 95 % interval",
    "outliers": "outliers beyond 3 robust σ",
}

LABELLED_MARK = " †"
"""After the names of what used labels of the target."""


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(drawn: Drawn | None, sign: str = "", needs_interval: bool = False) -> str:
    """Value and interval; a dash where there is none."""
    if drawn is None or np.isnan(drawn.value) or (needs_interval and np.isnan(drawn.interval[0])):
        return "–"
    low, high = drawn.interval
    interval = "" if np.isnan(low) else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{drawn.value:{sign}.3f}{interval}"


def _plain(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}"


def _drawn_rows(
    columns: Sequence[str],
    rows: Sequence[str],
    found: Mapping[str, Mapping[str, Drawn]],
    sign: str = "",
    needs_interval: bool = False,
) -> list[list[str]]:
    return [
        [TITLES[row], *(number(found[column].get(row), sign, needs_interval) for column in columns)] for row in rows
    ]


def table(report: "Report") -> str:
    """The whole report.

    Args:
        report: What is reported.

    Returns:
        Markdown, without a line break at its end.
    """
    parts = [f"# {report.title}", _choices(report), _target(report), _gaps(report), _classes(report), _source(report)]
    parts += [_facts(report), "\n\n".join(_notes(report))]
    return "\n\n".join(part for part in parts if part)


def _marked(report: "Report") -> dict[str, str]:
    """Column to its head, with a mark where labels of the target were used."""
    used = {c.title: c.used_target_labels for c in report.checkpoints}
    used |= {name: name == TARGET_SUPERVISED for name in report.bounds}
    return {name: name + LABELLED_MARK * mark for name, mark in used.items()}


def _choices(report: "Report") -> str:
    heads = _marked(report)
    rows = [[heads[c.title], str(c.step), c.explanation] for c in report.checkpoints]
    bounds = {SOURCE_ONLY: "lower bound: no adaptation", TARGET_SUPERVISED: "upper bound: trained WITH target labels"}
    rows += [[heads[name], "", bounds[name]] for name in report.bounds]
    marked = f"{LABELLED_MARK.strip()} used labels of the target."
    return _markdown(["checkpoint", "step", "chosen"], rows) + "\n\n" + marked


def _target(report: "Report") -> str:
    part = report.checkpoints[0].target
    count, objects = int(labelled(part, report.task).sum()), len(np.unique(np.asarray(part.groups)))
    head = f"## Target\n\n{len(part)} test maps of {objects} objects, {count} with a label"
    if not count:
        return head + ": nothing to measure here. What needs no label stands below."
    heads = _marked(report)
    return f"{head}.\n\n" + _markdown(
        ["metric", *heads.values()], _drawn_rows(list(heads), report.metrics, report.target)
    )


def _gaps(report: "Report") -> str:
    parts, heads = [], _marked(report)
    titles = [c.title for c in report.checkpoints]
    if SOURCE_ONLY in report.bounds:
        lower = report.target[SOURCE_ONLY]
        gains = {
            title: {m: report.target[title][m] - lower[m] for m in report.metrics if m in lower} for title in titles
        }
        rows = _drawn_rows(titles, [m for m in report.metrics if m in lower], gains, "+")
        parts += ["## Difference from source-only, paired", _markdown(["metric", *(heads[t] for t in titles)], rows)]
    if report.gaps:
        rows = _drawn_rows(titles, list(report.gaps[titles[0]]), report.gaps, needs_interval=True)
        parts += [
            "## Gap closed\n\n(method − source-only) / (target-supervised − source-only); a dash where "
            "target-supervised is not better than source-only in nearly all bootstrap samples: there is no gap.",
            _markdown(["metric", *(heads[t] for t in titles)], rows),
        ]
    return "\n\n".join(parts)


def _classes(report: "Report") -> str:
    if report.task.kind == "regression" or not labelled(report.checkpoints[0].target, report.task).any():
        return ""
    parts, heads = ["## Classes of the target"], _marked(report)
    names = dict(enumerate(report.task.source))
    for c in report.checkpoints:
        count = np.bincount(np.asarray(c.target.labels)[labelled(c.target, report.task)], minlength=len(names) + 1)
        rows = [
            [names[k], str(count[k]), *(number(report.target[c.title][f"{metric} of {k}"]) for metric in OF_A_CLASS)]
            for k in names
        ]
        head = [f"{heads[c.title]}: class", "maps", "completeness", "purity", "AUROC", "AUPRC"]
        parts.append(_markdown(head, rows))
    return "\n\n".join(parts)


def _source(report: "Report") -> str:
    titles = [c.title for c in report.checkpoints]
    heads = _marked(report)
    rows = _drawn_rows(titles, [m for m in report.metrics if m in next(iter(report.source.values()))], report.source)
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    return "## Source\n\n" + _markdown(["metric", *(heads[t] for t in titles)], rows) if rows else ""


def _facts(report: "Report") -> str:
    """Values without an interval: validators, space of features, what was fitted to the source."""
    heads = _marked(report)
    rows = []
    names = list(dict.fromkeys(name for c in report.checkpoints for name in c.validators))
    for name in names:
        arrow = {1: " ↑", -1: " ↓"}.get(DIRECTIONS.get(name, 0), "")
        values = [_plain(float(c.validators.get(name, np.nan))) for c in report.checkpoints]
        rows.append([f"validator: {name.replace('_', ' ')}{arrow}", *values])
    for name in next(iter(report.latent.values())):
        title = "proxy A-distance (0 mixed, 2 apart)" if name == "a_distance" else name
        rows.append([title, *(_plain(report.latent[c.title][name]) for c in report.checkpoints)])
    if report.task.kind == "classification":
        fitted: dict[str, Callable[[str], float]] = {
            "temperature of the source": lambda t: report.settings[t].temperature
        }
        if report.task.unknown:
            fitted["threshold of the unknown score"] = lambda t: report.settings[t].threshold
        rows += [[name, *(_plain(of(c.title)) for c in report.checkpoints)] for name, of in fitted.items()]
    head = ["without target labels", *(heads[c.title] for c in report.checkpoints)]
    return "## Without labels of the target\n\n" + _markdown(head, rows)


def _notes(report: "Report") -> list[str]:
    intervals = (
        f"Intervals: {report.level:.0%}, {report.resamples} bootstrap samples of whole objects, the same for all "
        "columns. They hold the scatter of the test maps, not that of training."
    )
    notes = [intervals]
    if report.task.kind == "classification":
        notes.append(
            "AUROC and AUPRC are means over classes; ECE has 15 bins. Temperatures are fitted to source labels."
        )
    if report.task.unknown:
        origin = next(iter(report.settings.values())).origin
        notes.append(f"Metrics of classes leave unknown ones out. Threshold of the unknown score: {origin}.")
    return [*notes, *report.notes]
