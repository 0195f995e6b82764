"""Figures of the adapt stage: confusion, reliability, ROC and precision-recall, the space of features, numbers.

A column a checkpoint, titled by how it was chosen. Classes have colours that colour-blind readers can tell apart, and
domains have markers. Bands and bars are central bootstrap intervals over whole objects.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.special import erf

from skyshift.adapt.metrics import calibration, classification
from skyshift.adapt.metrics.latent import TITLES, embed, some
from skyshift.adapt.metrics.open_set import with_unknown
from skyshift.adapt.report_scores import Checkpoint, Part, Setting, labelled, physical, probabilities
from skyshift.adapt.task import Task

Values = NDArray[np.float64]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito, without yellow and black: safe for colour-blind readers."""
PETROFF = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""Of up to ten classes: Petroff 2021, arXiv:2107.02270."""
UNKNOWN, UNLABELLED = "black", "0.72"
MARKERS = {"source": "o", "target": "^"}
CURVE_SAMPLES = 300
"""Bootstrap samples of a band, at the most."""
SHOWN = 600
"""Maps of each domain in a picture of the space of features, at the most."""
BANDS = 5
"""Curves in a panel that have a band each, at the most."""
LEAST = 5
"""Maps of a bin of which a share is shown."""
WIDTH = 4.0


def class_colours(count: int) -> list[str]:
    """One colour a class."""
    if count <= len(PETROFF):
        return list(OKABE_ITO[:count] if count <= len(OKABE_ITO) else PETROFF[:count])
    return [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 1, count))]


def _title(checkpoint: Checkpoint) -> str:
    by = {"validator": f"by {checkpoint.monitor}" if checkpoint.monitor else "", "last": "end of the run"}
    how = by.get(checkpoint.choice, "used target labels")
    return f"{checkpoint.title}, step {checkpoint.step}" + (f"\n({how})" if how else "")


def _columns(
    checkpoints: Sequence[Checkpoint],
    heights: Sequence[float],
    height: float,
    *,
    sharex: bool = False,
    sharey: bool = True,
) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes (rows, checkpoints), rows of these relative heights, with titles."""
    figure = Figure(figsize=(WIDTH * len(checkpoints) + 0.4, height), layout="constrained")
    axes = figure.subplots(
        len(heights),
        len(checkpoints),
        squeeze=False,
        sharex=sharex,
        sharey="row" if sharey else False,
        height_ratios=heights,
    )
    for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
        axis.set_title(_title(checkpoint), fontsize=10)
    return figure, axes


def _known(part: Part, task: Task) -> NDArray[np.bool_]:
    return labelled(part, task) & (np.asarray(part.labels) < len(task.source))


def confusion_figure(checkpoints: Sequence[Checkpoint], task: Task, settings: Mapping[str, Setting]) -> Figure:
    """Confusion matrices of the target: share of each true class in colour, with counts.

    Args:
        checkpoints: A column each.
        task: What was learned; where it has unknown classes, so have the matrices.
        settings: Checkpoint to its threshold of the unknown score.
    """
    names = [*task.source, *(["unknown"] if task.unknown else [])]
    K = len(names)
    figure, axes = _columns(checkpoints, [1], 4.6)
    for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
        part = checkpoint.target
        rows = labelled(part, task) & (np.asarray(part.labels) < K)
        said = part.logits[rows].argmax(1)
        if task.unknown:
            limit = settings[checkpoint.title].threshold
            said = with_unknown(said, np.asarray(part.unknown)[rows], len(task.source), limit)
        C = classification.confusion_matrix(np.asarray(part.labels)[rows], said, K)
        share = classification.ratio(C, C.sum(1, keepdims=True))
        image = axis.imshow(share, cmap="cividis", vmin=0, vmax=1)
        small = 9 if K <= 5 else 6
        for j, k in np.ndindex(K, K):
            shown = "–" if np.isnan(share[j, k]) else f"{share[j, k]:.2f}\n({int(C[j, k])})"
            dark = not share[j, k] > 0.55
            axis.text(k, j, shown, ha="center", va="center", fontsize=small, color="white" if dark else "black")
        axis.set_xticks(range(K), names, rotation=30 if max(map(len, names)) > 4 else 0, ha="right", fontsize=8)
        axis.set_yticks(range(K), names, fontsize=8)
        axis.set_xlabel("taken for", fontsize=9)
    axes[0, 0].set_ylabel("true class", fontsize=9)
    figure.colorbar(image, ax=axes[0], label="share of the true class", shrink=0.85, pad=0.01)
    return figure


def reliability_figure(
    checkpoints: Sequence[Checkpoint], task: Task, settings: Mapping[str, Setting], weights: Values, level: float
) -> Figure:
    """Reliability diagrams of known classes of the target, before and after the temperature of the source.

    Args:
        checkpoints: A column each.
        task: What was learned.
        settings: Checkpoint to its temperature.
        weights: (samples, n), bootstrap multiplicities of the target maps.
        level: Of the bars.
    """
    figure, axes = _columns(checkpoints, [3, 1], 5.4, sharex=True)
    for (axis, below), checkpoint in zip(axes.T, checkpoints, strict=True):
        rows = _known(checkpoint.target, task)
        labels, T = np.asarray(checkpoint.target.labels)[rows], settings[checkpoint.title].temperature
        axis.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
        for number, (name, temperature) in enumerate({"as it is": 1.0, f"T = {T:.2f}": T}.items()):
            p = probabilities(checkpoint.target.logits[rows], temperature)
            x, y, count = calibration.reliability(labels, p)
            drawn = calibration.reliability(labels, p, weights[:, rows])[1]
            low, high = _band(drawn, level)
            ece = float(calibration.expected_calibration_error(labels, p))
            colour, full = OKABE_ITO[number], count >= LEAST
            bars = np.stack([np.maximum(y - low, 0), np.maximum(high - y, 0)])[:, full]
            look = {"color": colour, "marker": "os"[number], "markersize": 4, "linewidth": 1.2}
            axis.errorbar(x[full], y[full], bars, label=f"{name}: ECE {ece:.3f}", capsize=2, elinewidth=0.8, **look)
            edges = np.linspace(0, 1, calibration.BINS + 1)
            below.stairs(count / max(1.0, count.sum()), edges, color=colour, linewidth=1.3, linestyle="-:"[number])
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        axis.legend(fontsize=8, loc="lower right" if checkpoint.target.logits.shape[1] > 2 else "upper left")
        below.set_xlabel("confidence", fontsize=9)
    axes[0, 0].set_ylabel(f"share that is right\n(bins of {LEAST} maps or more)", fontsize=9)
    axes[1, 0].set_ylabel("share of maps", fontsize=9)
    return figure


def _band(drawn: Values, level: float) -> tuple[Values, Values]:
    """Central interval over samples (samples, points); NaN where all are."""
    filled = np.where(np.isnan(drawn).all(0), 0.0, drawn)
    low, high = np.nanquantile(filled, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return low, high


def _scores(part: Part, task: Task) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_], Values, str]]:
    """Class to the maps it is judged on, which of them are of it, its score, and its colour.

    Of two classes the second alone: the first is its mirror.
    """
    rows, p = _known(part, task), probabilities(part.logits)
    colours = class_colours(len(task.source))
    first = 1 if len(task.source) == 2 else 0
    labels = np.asarray(part.labels)
    found = {name: (rows, labels == k, p[:, k], colours[k]) for k, name in enumerate(task.source) if k >= first}
    if task.unknown:
        score = np.asarray(part.unknown, np.float64)
        found["unknown"] = (labelled(part, task), labels == len(task.source), score, UNKNOWN)
    return found


def _areas(name: str, areas: Sequence[Values]) -> str:
    return f"{name}: {areas[0]:.3f}, {areas[1]:.3f}"


def _curve(
    axes: Sequence[Axes],
    grid: Values,
    lines: Sequence[Values],
    samples: Sequence[Values] | None,
    level: float,
    colour: str,
    style: str,
    label: str,
    width: float = 1.5,
) -> None:
    for number, (axis, line) in enumerate(zip(axes, lines, strict=True)):
        axis.plot(grid, line, color=colour, linestyle=style, linewidth=width, label=label)
        if samples is not None:
            axis.fill_between(grid, *_band(samples[number], level), color=colour, alpha=0.18, linewidth=0)


def curve_figure(checkpoints: Sequence[Checkpoint], task: Task, weights: Values, level: float) -> Figure:
    """ROC above, precision-recall below, each class of the target against the rest.

    Up to :data:`BANDS` classes have a band each; of more, their mean has one.

    Args:
        checkpoints: A column each.
        task: What was learned.
        weights: (samples, n), bootstrap multiplicities of the target maps.
        level: Of the bands.
    """
    figure, axes = _columns(checkpoints, [1, 1], 8.0)
    grid = np.linspace(0, 1, 201)
    for (roc, pr), checkpoint in zip(axes.T, checkpoints, strict=True):
        roc.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        scores = _scores(checkpoint.target, task)
        drawn = []
        for number, (name, (rows, positive, score, colour)) in enumerate(scores.items()):
            y, s, w = positive[rows], score[rows], weights[:CURVE_SAMPLES, rows]
            if not y.any() or y.all():
                continue
            areas = classification.area_under_roc(y, s), classification.average_precision(y, s)
            lines, samples = classification.curves(y, s, grid), classification.curves(y, s, grid, w)
            few = len(scores) <= BANDS or name == "unknown"
            style = ("-", "--", ":", "-.")[number % 4]
            _curve((roc, pr), grid, lines, samples if few else None, level, colour, style, _areas(name, areas))
            pr.axhline(y.mean(), color=colour, linewidth=0.7, alpha=0.7, linestyle=(0, (1, 3)))
            if name != "unknown":
                drawn.append((lines, samples, areas))
        if len(scores) > BANDS and drawn:
            lines, samples, areas = (np.mean([entry[i] for entry in drawn], axis=0) for i in range(3))
            _curve((roc, pr), grid, lines, samples, level, "0.25", "-", _areas("mean over classes", areas), 2.5)
        roc.set(xlabel="false positive rate", xlim=(0, 1), ylim=(0, 1.01))
        pr.set(xlabel="completeness (recall)", xlim=(0, 1), ylim=(0, 1.01))
        roc.legend(fontsize=8, loc="lower right", title="area under ROC, precision-recall", title_fontsize=8)
    axes[0, 0].set_ylabel("true positive rate", fontsize=9)
    axes[1, 0].set_ylabel("purity (precision); dots: by chance", fontsize=9)
    return figure


def _point_colours(part: Part, task: Task) -> NDArray[np.str_]:
    if task.kind == "regression":
        return np.full(len(part), OKABE_ITO[0])
    palette = np.array([*class_colours(len(task.source)), UNKNOWN, UNLABELLED])
    return np.asarray(palette[np.asarray(part.labels)])  # -1, no label, is the last


def latent_figure(checkpoints: Sequence[Checkpoint], task: Task, kind: str = "tsne", seed: int = 0) -> Figure:
    """The space of features in two dimensions: classes by colour, domains by marker.

    Args:
        checkpoints: A column each; each space is embedded by itself.
        task: What was learned. Of a regression, colours are the labels.
        kind: One of :data:`skyshift.adapt.metrics.latent.EMBEDDINGS`.
        seed: Of the embedding and of the choice of maps, where there are more than it takes.
    """
    figure, axes = _columns(checkpoints, [1], 4.6, sharey=False)  # each space has coordinates of its own
    points = None
    shown: set[str] = set()
    for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
        parts = {"source": checkpoint.source, "target": checkpoint.target}
        rows = {name: some(len(part), SHOWN, seed) for name, part in parts.items()}
        y = embed(np.concatenate([part.features[rows[name]] for name, part in parts.items()]), kind, seed)
        start = 0
        for name, part in parts.items():
            at = y[start : start + len(rows[name])]
            start += len(at)
            look = {"marker": MARKERS[name], "s": 14 if name == "source" else 20, "linewidths": 0.8, "alpha": 0.75}
            if task.kind == "regression":
                labels = np.asarray(part.labels, np.float64)[rows[name]]
                edge = {"edgecolors": "black", "linewidths": 0.4} if name == "target" else {"linewidths": 0}
                points = axis.scatter(*at.T, c=np.nan_to_num(labels, nan=task.mean), cmap="viridis", **(look | edge))
                continue
            colours = _point_colours(part, task)[rows[name]]
            shown |= set(colours.tolist())
            # Hollow triangles for the target, so that markers are told apart where they lie on each other.
            face = {"c": colours} if name == "source" else {"facecolors": "none", "edgecolors": colours}
            axis.scatter(*at.T, **(look | face | ({"linewidths": 0} if name == "source" else {})))
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"{TITLES[kind]} 1", fontsize=9)
    axes[0, 0].set_ylabel(f"{TITLES[kind]} 2", fontsize=9)
    if points is not None:
        figure.colorbar(points, ax=axes[0], label="label", shrink=0.85, pad=0.01)
    _latent_legend(figure, task, shown)
    return figure


def _latent_legend(figure: Figure, task: Task, shown: set[str]) -> None:
    handles = [
        Line2D([], [], color="0.3", marker=MARKERS[n], linestyle="", markersize=6, label=n,
               markerfacecolor="none" if n == "target" and task.kind == "classification" else "0.3") for n in MARKERS
    ]  # fmt: skip
    if task.kind == "classification":
        names = zip(task.source, class_colours(len(task.source)), strict=True)
        entries = [*names, ("unknown class", UNKNOWN), ("no label", UNLABELLED)]
        handles += [
            Line2D([], [], color=c, marker="s", linestyle="", markersize=7, label=n) for n, c in entries if c in shown
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8, frameon=False)


def number_figure(checkpoints: Sequence[Checkpoint], task: Task) -> Figure:
    """Predicted against true numbers of the target with their 68 % intervals; below, how often intervals hold them.

    Args:
        checkpoints: A column each.
        task: What was learned.
    """
    figure, axes = _columns(checkpoints, [1, 1], 8.0)
    ends: list[float] = []
    for (above, below), checkpoint in zip(axes.T, checkpoints, strict=True):
        rows = labelled(checkpoint.target, task)
        y = np.asarray(checkpoint.target.labels, np.float64)[rows]
        mean, log_variance = (v[rows] for v in physical(checkpoint.target, task))
        sigma = np.exp(log_variance / 2)
        shown = some(len(y), 500)
        ends += [y.min(), y.max(), mean.min(), mean.max()]
        look = {"fmt": "o", "markersize": 3, "elinewidth": 0.6, "alpha": 0.6}
        above.errorbar(y[shown], mean[shown], sigma[shown], color=OKABE_ITO[0], **look)
        above.set_xlabel("true", fontsize=9)
        inside = np.sort(np.abs(_erf_levels((mean - y) / sigma)))
        below.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
        below.plot(inside, np.arange(1, len(inside) + 1) / len(inside), color=OKABE_ITO[1], linewidth=1.5)
        below.set(xlabel="central interval", xlim=(0, 1), ylim=(0, 1))
    for above in axes[0]:
        above.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.5", linewidth=0.8)
    axes[0, 0].set_ylabel("predicted", fontsize=9)
    axes[1, 0].set_ylabel("share of truths inside", fontsize=9)
    return figure


def _erf_levels(z: Values) -> Values:
    """The central interval of a normal distribution on whose edge z lies."""
    return np.asarray(erf(np.abs(z) / np.sqrt(2)))
