"""Command: judge a checkpoint on galaxies that it has not seen, in physical units, against per-pixel relations.

    python translate/evaluate.py --checkpoint runs/gas_to_hi

All metrics are computed on physical maps. PSNR and SSIM are on the linear stretch; their dynamic range is the 99.9 %
quantile of the non-zero pixels of the training maps, one for all maps. r(k) is averaged over wave numbers up to Nyquist
and up to half of it, the error of P(k) up to half, in each map. Intervals are 68 % of bootstrap samples of galaxies, so
that views of one galaxy do not count as independent.

A map whose true total is below a thousandth of the mean training one holds no signal to speak of (50 Msun of HI in an
elliptical, say): all metrics leave it out, and what is wrongly seen in it has a row of its own.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from skyshift.command import command, parse
from skyshift.datasets.joined import open_stores
from skyshift.datasets.loading import FIT_VIEWS, Split, split_views
from skyshift.datasets.maps import Maps
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.files import write_json, write_text, write_whole
from skyshift.naming import unknown
from skyshift.translate.baselines import PixelRelation
from skyshift.translate.data import fingerprint
from skyshift.translate.figures import comparison_figure, spectra_figure
from skyshift.translate.metrics.image import psnr, ssim
from skyshift.translate.metrics.physics import (
    cross_correlation,
    power_ratio,
    radial_profile,
    radial_profile_error,
    total_error,
)
from skyshift.translate.translator import Precision, Translator, find_checkpoint, store_maps

Values = NDArray[np.float64]


@dataclass
class EvaluateConfig:
    """An evaluation.

    Attributes:
        checkpoint: A checkpoint, or a run (its last checkpoint is taken).
        store: Of the true maps, or a list of several; by default what the checkpoint was trained on.
        part: Galaxies to judge on: test, validation or train. Another store than the training's is split by the same
            rule, which does not know what was trained on: galaxies that both stores hold are not told apart.
        output: Folder for the table, the figures and the values of every map; by default ``evaluation`` beside the
            checkpoint's run.
        batch_size: Maps translated at once.
        precision: no (float32) or bf16.
        trust_remote_code: Allow the checkpoint to name classes from outside this package.
    """

    checkpoint: str = "runs/gas_to_hi"
    store: list[str] | str = ""
    part: str = "test"
    output: str = ""
    batch_size: int = 32
    precision: Precision = "no"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: Column of the CSV file.
        title: With its unit.
        summary: From the values of all maps to one number.
        best: Direction of better: 1 larger, -1 smaller, 0 nearer to zero.
        digits: Behind the point.
    """

    name: str
    title: str
    summary: Callable[[Values], float]
    best: int
    digits: int


def _mean(values: Values) -> float:
    kept = values[np.isfinite(values)]
    if not kept.size and np.isposinf(values).any():
        return float("inf")  # maps without any error, in decibels
    return float(kept.mean()) if kept.size else float("nan")


def _median_size(values: Values) -> float:
    kept = np.abs(values[np.isfinite(values)])
    return float(np.median(kept)) if kept.size else float("nan")


METRICS = (
    Metric("psnr", "PSNR [dB]", _mean, 1, 2),
    Metric("ssim", "SSIM", _mean, 1, 4),
    Metric("total_error", "total, median absolute error [%]", lambda v: 100 * _median_size(v), -1, 2),
    Metric("total_bias", "sum of all totals, error [%]", lambda v: 100 * _mean(v), 0, 2),
    Metric("profile_error", "radial profile, median error [%]", lambda v: 100 * _median_size(v), -1, 2),
    Metric("power_error", "P(k) at k < ½ Nyquist, median error [%]", lambda v: 100 * _median_size(v), -1, 2),
    Metric("correlation", "r(k), mean up to Nyquist", _mean, 1, 4),
    Metric("large_correlation", "r(k), mean at k < ½ Nyquist", _mean, 1, 4),
    Metric("false_signal", "total seen where there is none [% of a mean map]", lambda v: 100 * _mean(v), -1, 2),
)
FAINT = 1e-3
"""Share of the mean training total below which a map holds no signal to speak of."""

HEADLINE = ("psnr", "total_error", "correlation", "large_correlation")


@dataclass(frozen=True)
class Yardstick:
    """What the maps of a domain are measured by, from the training maps.

    Attributes:
        data_range: Of PSNR and SSIM: 99.9 % quantile of the lit pixels, in the maps' unit.
        typical_total: Mean over maps of the sum over pixels times pixel area.
    """

    data_range: float
    typical_total: float

    @classmethod
    def fit(cls, maps: NDArray[np.float32], side: NDArray[np.float64]) -> "Yardstick":
        """From training maps (n, height, width) with sides (n,) in kpc."""
        lit = maps[maps > 0]
        return cls(float(np.quantile(lit, 0.999)) if lit.size else 1.0, float(np.mean(_totals(maps, side))))


def _totals(maps: NDArray[np.float32], side: NDArray[np.float64]) -> Values:
    return maps.sum((1, 2), dtype=np.float64) * (side / maps.shape[-1]) ** 2


def score(
    truth: NDArray[np.float32], estimate: NDArray[np.float32], side: NDArray[np.float64], yardstick: Yardstick
) -> dict[str, Values]:
    """All metrics of every map.

    Args:
        truth: (n, height, width), physical.
        estimate: Same shape and unit.
        side: (n,) kpc.
        yardstick: Dynamic range and typical total.

    Returns:
        Metric to (n,) values; NaN where a map has none: ``false_signal`` where there is signal, but for ``total_bias``
        all others where there is none.
    """
    k, ratio = power_ratio(truth, estimate)
    _, correlation = cross_correlation(truth, estimate)
    low = k <= 0.5
    totals, seen = _totals(truth, side), _totals(estimate, side)
    faint = totals <= FAINT * yardstick.typical_total
    # A map that is empty where the truth has structure correlates with nothing of it.
    correlation = np.where(np.isfinite(ratio) & (ratio == 0), 0.0, correlation)
    relative = {
        "psnr": psnr(truth, estimate, yardstick.data_range),
        "ssim": ssim(truth, estimate, yardstick.data_range),
        "total_error": total_error(truth, estimate),
        "profile_error": radial_profile_error(truth, estimate),
        "power_error": np.abs(ratio[:, low] - 1).mean(axis=1),
        "correlation": correlation.mean(axis=1),
        "large_correlation": correlation[:, low].mean(axis=1),
    }
    false_signal = seen / yardstick.typical_total if yardstick.typical_total else np.full(len(truth), np.nan)
    return {
        # Its mean over maps is the error of the sum of their totals.
        "total_bias": (seen - totals) / totals.mean() if totals.mean() else np.full(len(truth), np.nan),
        "false_signal": np.where(faint, false_signal, np.nan),
        **{name: np.where(faint, np.nan, values) for name, values in relative.items()},
    }


def curves(truth: NDArray[np.float32], estimate: NDArray[np.float32]) -> dict[str, Values]:
    """What :func:`skyshift.translate.figures.spectra_figure` draws."""
    radius, true_profile = radial_profile(truth, 2.0)
    _, profile = radial_profile(estimate, 2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(true_profile > 0, profile / true_profile, np.nan)
    k, power = power_ratio(truth, estimate)
    return {
        "k": k,
        "power_ratio": power,
        "correlation": cross_correlation(truth, estimate)[1],
        "radius": radius,
        "profile_ratio": ratio,
    }


def _plus_minus(entry: Mapping[str, Any], digits: int) -> str:
    """Value and half of the interval; a dash where there is none."""
    low, high = entry["interval"]
    return f"{entry['value']:.{digits}f} ± {(high - low) / 2:.{digits}f}" if np.isfinite(entry["value"]) else "–"


def _resamples(groups: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of 400 bootstrap samples of whole groups."""
    generator = np.random.default_rng(0)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(400):
        yield np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])


def _middle(drawn: list[float]) -> tuple[float, float]:
    """Central 68 %."""
    low, high = np.nanquantile(drawn, [0.16, 0.84]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return float(low), float(high)


def interval(values: Values, groups: NDArray[np.int64], summary: Callable[[Values], float]) -> tuple[float, float]:
    """68 % interval of ``summary`` over bootstrap samples of groups."""
    return _middle([summary(values[rows]) for rows in _resamples(groups)])


@dataclass(frozen=True)
class Evaluation:
    """The result.

    Attributes:
        title: What was judged, in a line.
        notes: What the numbers mean.
        scores: Target domain to translator to metric to (n,) values.
        groups: (n,) galaxy of each map.
    """

    title: str
    notes: str
    scores: Mapping[str, Mapping[str, Mapping[str, Values]]]
    groups: NDArray[np.int64]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Target domain to translator to metric to value and interval."""
        return {
            domain: {
                translator: {
                    metric.name: {
                        "value": metric.summary(values[metric.name]),
                        "interval": interval(values[metric.name], self.groups, metric.summary),
                    }
                    for metric in METRICS
                }
                for translator, values in translators.items()
            }
            for domain, translators in self.scores.items()
        }

    def margins(self, domain: str) -> dict[str, dict[str, Any]]:
        """How much better the checkpoint (the first translator) is than the best of the others, in headline metrics.

        Both are compared on the same bootstrap samples of galaxies, so that what makes a galaxy hard for both does not
        blur their difference.

        Returns:
            Metric to ``value`` (positive: better), ``interval`` (68 %) and ``over``, the name of the best other.
        """
        names = list(self.scores[domain])
        result = {}
        for metric in METRICS:
            if metric.name not in HEADLINE:
                continue
            values = {name: self.scores[domain][name][metric.name] for name in names}
            best = max(names[1:], key=lambda name: metric.best * self.summary[domain][name][metric.name]["value"])

            def margin(
                rows: NDArray[np.int64] | slice, metric: Metric = metric, values: Any = values, best: str = best
            ) -> float:
                return metric.best * (metric.summary(values[names[0]][rows]) - metric.summary(values[best][rows]))

            drawn = [margin(rows) for rows in _resamples(self.groups)]
            result[metric.name] = {"value": margin(slice(None)), "interval": _middle(drawn), "over": best}
        return result

    def beats_baselines(self, domain: str) -> dict[str, bool]:
        """Headline metric to whether the checkpoint (the first translator) is better than every other."""
        return {name: margin["value"] > 0 for name, margin in self.margins(domain).items()}

    def table(self) -> str:
        """As Markdown."""
        lines = [f"**{self.title}**", "", self.notes]
        for domain, translators in self.summary.items():
            lines += [
                "",
                f"| {domain} | " + " | ".join(translators) + " |",
                "|---" * (len(translators) + 1) + "|",
            ]
            for metric in METRICS:
                cells = []
                for row in translators.values():
                    cells.append(_plus_minus(row[metric.name], metric.digits))
                lines.append(f"| {metric.title} | " + " | ".join(cells) + " |")
            lines += ["", "Better than the best per-pixel relation, compared galaxy by galaxy (positive is better):"]
            titles = {metric.name: metric for metric in METRICS}
            for name, margin in self.margins(domain).items():
                lines.append(f"- {titles[name].title}: {_plus_minus(margin, titles[name].digits)}")
        return "\n".join(lines)

    def rows(self) -> str:
        """The values of every map as CSV."""
        text = io.StringIO()
        writer = csv.writer(text)
        names = [metric.name for metric in METRICS]
        writer.writerow(["map", "galaxy", "domain", "translator", *names])
        for domain, translators in self.scores.items():
            for translator, values in translators.items():
                for i, group in enumerate(self.groups):
                    writer.writerow([i, group, domain, translator, *(f"{values[name][i]:.6g}" for name in names)])
        return text.getvalue()


def _views(store: MapStore, translator: Translator, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Training views, views to judge on, and whether the store is the one of the training."""
    provenance = translator.translation.provenance
    known = provenance["fingerprint"] == fingerprint(store)
    views = split_views(store.catalogue(), Split(**provenance["split"]))
    if part not in views:
        raise SkyshiftError(unknown("part", part, views))
    return views["train"], views[part], known


def evaluate(
    checkpoint: str | Path,
    *,
    store: MapStore | None = None,
    part: str = "test",
    output: str | Path | None = None,
    batch_size: int = 32,
    precision: Precision = "no",
    trust_remote_code: bool = False,
) -> Evaluation:
    """Judge a checkpoint and write table, values and figures.

    Args:
        checkpoint: A checkpoint or a run.
        store: Of the true maps; by default the one of the training. Another store is split by the same rule, and its
            baselines are fitted on its own training part.
        part: test, validation or train.
        output: Folder for ``table.md``, ``summary.json``, ``maps.csv``, ``maps.png``, ``spectra.png``.
        batch_size: Maps translated at once.
        precision: no or bf16.
        trust_remote_code: Allow the checkpoint to name classes from outside this package.

    Raises:
        CheckpointError: There is no checkpoint.
        StoreError: The store is absent or lacks a domain.
        SkyshiftError: There are no maps in that part.
    """
    folder = find_checkpoint(checkpoint)
    translator = Translator.from_pretrained(
        folder, batch_size=batch_size, precision=precision, trust_remote_code=trust_remote_code
    )
    store = store or open_stores(translator.translation.provenance["store"])
    store.require_domains([*translator.source, *translator.target])
    train, views, known = _views(store, translator, part)
    if not len(views):
        raise SkyshiftError(f"{store.path} has no views in its {part} part")
    estimates = translator(store, views)
    catalogue = store.catalogue()
    rows = np.searchsorted(catalogue["view"], views)
    groups, side = np.asarray(catalogue["split_group"][rows], np.int64), np.asarray(catalogue["side"], np.float64)
    method = _method_name(folder)
    train = np.sort(np.random.default_rng(0).permutation(train)[:FIT_VIEWS])
    scores: dict[str, dict[str, dict[str, Values]]] = {}
    drawn: dict[str, dict[str, dict[str, Values]]] = {}
    ranges: list[str] = []
    faint: list[str] = []
    for channel in translator.translation.target:
        domain = channel.domain
        # A store may hold its maps in another unit than the checkpoint's.
        truth, fitted = (store_maps(store, [domain], v)[domain].to(channel.unit).values for v in (views, train))
        yardstick = Yardstick.fit(fitted, side[np.searchsorted(catalogue["view"], train)])
        ranges.append(f"{domain} {yardstick.data_range:.4g} {channel.unit}")
        candidates = {
            method: estimates[domain].values,
            **_baselines(store, translator.source, train, views, fitted),
        }
        of_views = side[rows]
        scores[domain] = {name: score(truth, values, of_views, yardstick) for name, values in candidates.items()}
        lit = _totals(truth, of_views) > FAINT * yardstick.typical_total
        faint.append(f"{domain} {(~lit).sum()}")
        drawn[domain] = {name: curves(truth[lit], values[lit]) for name, values in candidates.items()}
    count = len(np.unique(groups))
    kind = f"{part} galaxies (or regions of space)" if known else f"galaxies of another store ({part} part)"
    notes = [
        f"Physical maps, linear stretch; dynamic range of PSNR and SSIM: {', '.join(ranges)} (99.9 % quantile of the "
        "lit training pixels).",
        f"Maps without signal, left out of all but the last row: {', '.join(faint)}.",
        "± is half of the 68 % bootstrap interval over galaxies"
        + (f", which with {count} independent ones is rough." if count < 10 else "."),
        "The per-pixel relations are fitted on the training maps.",
        *([] if known else ["Galaxies that this store shares with the training's may have been trained on."]),
    ]
    result = Evaluation(
        f"{', '.join(translator.source)} → {', '.join(translator.target)}, {folder.name} of {method}: {len(views)} "
        f"maps of {count} {kind}",
        " ".join(notes),
        scores,
        groups,
    )
    if output is not None:
        _write(Path(output), result, store, views, translator, estimates, drawn)
    return result


def _method_name(folder: Path) -> str:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return str(config["method"]["class_path"]).rpartition(".")[2].lower()


def _baselines(
    store: MapStore,
    source: Sequence[str],
    train: NDArray[np.int64],
    views: NDArray[np.int64],
    fitted: NDArray[np.float32],
) -> dict[str, NDArray[np.float32]]:
    """Per-pixel relations from each source domain."""
    found = {}
    for domain in source:
        known, seen = store.maps(domain, train), store.maps(domain, views)
        of = f" of {domain}" if len(source) > 1 else ""
        found[f"per-pixel mean{of}"] = PixelRelation.fit(known, fitted, "mean")(seen)
        found[f"per-pixel median{of}"] = PixelRelation.fit(known, fitted, "median")(seen)
    return found


def _write(
    output: Path,
    result: Evaluation,
    store: MapStore,
    views: NDArray[np.int64],
    translator: Translator,
    estimates: Mapping[str, Maps],
    drawn: Mapping[str, Mapping[str, Mapping[str, Values]]],
) -> None:
    write_text(output / "table.md", result.table() + "\n")
    margins = {domain: result.margins(domain) for domain in result.scores}
    summary = {"title": result.title, "notes": result.notes, "scores": result.summary, "margins": margins}
    write_json(output / "summary.json", _no_nan(summary))
    write_text(output / "maps.csv", result.rows())
    chosen = _spread(next(iter(result.scores.values())), views)
    some = translator(store, views[chosen])
    values = next(iter(next(iter(result.scores.values())).values()))["correlation"]
    titles = [f"{maps_name}\nr = {values[row]:.3f}" for maps_name, row in zip(_names(some), chosen, strict=True)]
    with write_whole(output / "maps.png") as side:
        comparison_figure(store, views[chosen], translator.source, some, titles).savefig(side, dpi=130)
    for domain, lines in drawn.items():
        name = "spectra.png" if len(drawn) == 1 else f"spectra_{domain}.png"
        with write_whole(output / name) as side:
            spectra_figure(next(iter(lines.values()))["k"], lines, store.units[domain]).savefig(side, dpi=130)


def _names(maps: Mapping[str, Maps]) -> tuple[str, ...]:
    return next(iter(maps.values())).names


def _spread(scores: Mapping[str, Mapping[str, Values]], views: NDArray[np.int64]) -> NDArray[np.int64]:
    """Five maps from the worst to the best r(k), so that a figure shows no choice of ours."""
    values = next(iter(scores.values()))["correlation"]
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
    order = order[: max(1, int(np.isfinite(values).sum()))]
    return order[np.unique(np.linspace(0, len(order) - 1, 5).astype(int))]


def _no_nan(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(EvaluateConfig, arguments, None, "Judge a checkpoint on held-out galaxies.")
    folder = find_checkpoint(config.checkpoint)
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    output = Path(config.output or run / "evaluation")
    result = evaluate(
        folder,
        store=open_stores(config.store) if config.store else None,
        part=config.part,
        output=output,
        batch_size=config.batch_size,
        precision=config.precision,
        trust_remote_code=config.trust_remote_code,
    )
    print(f"{result.table()}\nfigures and table: {output}")


if __name__ == "__main__":
    sys.exit(main())
