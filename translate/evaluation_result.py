"""The result of an evaluation: numbers with intervals, margins, and the table.

Intervals are central ones of bootstrap samples of whole galaxies, so that views of one galaxy do not count as
independent. A distance between two sets of maps is biased by the repetitions in a bootstrap sample; its interval is the
value and as many standard deviations of the samples to either side as a normal distribution needs.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import norm

from skyshift.errors import SkyshiftError
from skyshift.translate.metric_rows import HEADLINE, METRICS, ROWS, Metric, Summary
from skyshift.translate.metrics.two_samples import (
    area_under_curve,
    classifier_p_value,
    classifier_scores,
    frechet_distance,
    kernel_distance,
)

Values = NDArray[np.float64]
Rows = NDArray[np.int64]

LEVEL = 0.68
RESAMPLES = 400
Distance = Callable[[Values, Values], float]
_DISTANCES: dict[str, Distance] = {"frechet": frechet_distance, "kernel": kernel_distance}
_NONE = (float("nan"), float("nan"))
SET_RESAMPLES = 50
"""At most so many samples for distances between sets, each of which takes milliseconds."""


def resamples(groups: Rows, count: int = RESAMPLES) -> Iterator[Rows]:
    """Rows of ``count`` bootstrap samples of whole groups."""
    generator = np.random.default_rng(0)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(count):
        yield np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])


def central(drawn: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Central interval of drawn numbers that holds the share ``level`` of them."""
    if not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def interval(values: Values, groups: Rows, summary: Summary, level: float = LEVEL) -> tuple[float, float]:
    """Central interval of ``summary`` over bootstrap samples of groups."""
    return central([summary(values[rows]) for rows in resamples(groups)], level)


def plus_minus(entry: Mapping[str, Any], digits: int) -> str:
    """Value and half of the interval, where there is one; a dash where there is no value."""
    low, high = entry["interval"]
    if np.isnan(entry["value"]):
        return "–"
    half = (high - low) / 2 if np.isfinite([low, high]).all() else np.nan
    if not np.isfinite(entry["value"]):
        return "∞"
    return f"{entry['value']:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


@dataclass(frozen=True)
class Evaluation:
    """The result.

    Attributes:
        title: What was judged, in a line.
        notes: What the numbers mean.
        scores: Target domain to translator to metric to (n,) values.
        groups: (n,) galaxy of each map.
        features: Target domain to ``network`` and ``physical`` to translator, and ``truth``, to (n, d) features.
        names: (n,) name of each map; by default its number.
        metrics: Rows to show.
        labels: Row to a title of its own.
        level: Of the intervals.
        resamples: Bootstrap samples.
    """

    title: str
    notes: str
    scores: Mapping[str, Mapping[str, Mapping[str, Values]]]
    groups: Rows
    features: Mapping[str, Mapping[str, Mapping[str, Values]]] = field(default_factory=dict)
    names: Sequence[str] = ()
    metrics: tuple[str, ...] = tuple(metric.name for metric in METRICS)
    labels: Mapping[str, str] = field(default_factory=dict)
    level: float = LEVEL
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        if not 0 < self.level < 1 or self.resamples < 1:
            raise SkyshiftError(
                f"level must lie between 0 and 1 and resamples be at least 1, not {self.level} and {self.resamples}"
            )

    @cached_property
    def _samples(self) -> list[Rows]:
        return list(resamples(self.groups, self.resamples))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Target domain to translator to metric to value and interval."""
        return {
            domain: {
                translator: {
                    **{
                        name: {"value": summary(values[name]), "interval": self._interval(values[name], summary)}
                        for name in self.metrics
                        if name in values and (summary := ROWS[name].summary) is not None
                    },
                    **self._of_sets(domain, translator),
                }
                for translator, values in translators.items()
            }
            for domain, translators in self.scores.items()
        }

    def _interval(self, values: Values, summary: Summary) -> tuple[float, float]:
        return central([summary(values[rows]) for rows in self._samples], self.level)

    def _of_sets(self, domain: str, translator: str) -> dict[str, dict[str, Any]]:
        """What is one number of all maps together; maps without signal have no features (NaN)."""
        found: dict[str, dict[str, Any]] = {}
        for kind, features in self.features.get(domain, {}).items():
            if translator not in features:
                continue
            x, y = features["truth"], features[translator]
            lit = np.asarray(np.isfinite(x).all(axis=1))
            if kind == "network":
                for name, distance in _DISTANCES.items():
                    if name in self.metrics:
                        found[name] = self._distance(x, y, lit, distance)
            else:
                found.update(self._classified(x[lit], y[lit], self.groups[lit]))
        return found

    def _distance(self, x: Values, y: Values, lit: NDArray[np.bool_], distance: Distance) -> dict[str, Any]:
        value = distance(x[lit], y[lit])
        if len(np.unique(self.groups[lit])) < 2:
            return {"value": value, "interval": _NONE}
        kept = (rows[lit[rows]] for rows in self._samples[:SET_RESAMPLES])
        half = float(norm.ppf(0.5 + self.level / 2) * np.nanstd([distance(x[rows], y[rows]) for rows in kept]))
        return {"value": value, "interval": (value - half, value + half)}

    def _classified(self, x: Values, y: Values, groups: Rows) -> dict[str, dict[str, Any]]:
        found = {}
        if "c2st" in self.metrics:
            scores = classifier_scores(x, y, groups)
            again = resamples(groups, self.resamples) if len(groups) else ()
            drawn = [area_under_curve(scores[:, rows]) for rows in again]
            found["c2st"] = {"value": area_under_curve(scores), "interval": central(drawn, self.level)}
        if "c2st_p" in self.metrics:
            found["c2st_p"] = {"value": classifier_p_value(x, y, groups), "interval": _NONE}
        return found

    def margins(self, domain: str) -> dict[str, dict[str, Any]]:
        """How much better the checkpoint (the first translator) is than the best of the others, in headline metrics.

        Both are compared on the same bootstrap samples of galaxies, so that what makes a galaxy hard for both does not
        blur their difference.

        Returns:
            Metric to ``value`` (positive: better), ``interval`` and ``over``, the name of the best other.
        """
        names = list(self.scores[domain])
        result = {}
        for metric in (ROWS[name] for name in HEADLINE):
            summary = metric.summary
            assert summary is not None
            values = {name: self.scores[domain][name][metric.name] for name in names}

            def rank(name: str, metric: Metric = metric, values: Any = values, summary: Summary = summary) -> float:
                worth = metric.best * summary(values[name])
                return -np.inf if np.isnan(worth) else worth

            best = max(names[1:], key=rank)

            def margin(
                rows: Rows | slice,
                metric: Metric = metric,
                values: Any = values,
                best: str = best,
                of: Summary = summary,
            ) -> float:
                mine, other = of(values[names[0]][rows]), of(values[best][rows])
                return 0.0 if mine == other else metric.best * (mine - other)

            drawn = [margin(rows) for rows in self._samples]
            result[metric.name] = {"value": margin(slice(None)), "interval": central(drawn, self.level), "over": best}
        return result

    def beats_baselines(self, domain: str) -> dict[str, bool]:
        """Headline metric to whether the checkpoint (the first translator) is better than every other."""
        return {name: margin["value"] > 0 for name, margin in self.margins(domain).items()}

    def title_of(self, metric: Metric) -> str:
        """Of a row."""
        return self.labels.get(metric.name, metric.title)

    def table(self) -> str:
        """As Markdown."""
        lines = [f"**{self.title}**", "", self.notes]
        for domain, translators in self.summary.items():
            lines += ["", f"| {domain} | " + " | ".join(translators) + " |", "|---" * (len(translators) + 1) + "|"]
            group = ""
            for metric in METRICS:
                if not any(metric.name in row for row in translators.values()):
                    continue
                if metric.group != group:
                    group = metric.group
                    lines.append(f"| *{group}* |" + " |" * len(translators))
                cells = [
                    plus_minus(row[metric.name], metric.digits) if metric.name in row else "–"
                    for row in translators.values()
                ]
                lines.append(f"| {self.title_of(metric)} | " + " | ".join(cells) + " |")
            if len(translators) < 2:
                continue
            lines += ["", "Better than the best of the others, compared galaxy by galaxy (positive is better):"]
            for name, margin in self.margins(domain).items():
                metric = ROWS[name]
                over = f" (over {margin['over']})"
                lines.append(f"- {self.title_of(metric)}: {plus_minus(margin, metric.digits)}{over}")
        return "\n".join(lines)

    @property
    def _columns(self) -> list[str]:
        present = {name for domain in self.scores.values() for values in domain.values() for name in values}
        return [name for name in self.metrics if name in present]

    def records(self) -> pa.Table:
        """The values of every map: map, galaxy, name, domain, translator and the metrics (null where there is none)."""
        n = len(self.groups)
        parts = []
        for domain, translators in self.scores.items():
            for translator, values in translators.items():
                columns: dict[str, Any] = {
                    "map": np.arange(n),
                    "galaxy": self.groups,
                    "name": list(self.names) or [str(i) for i in range(n)],
                    "domain": [domain] * n,
                    "translator": [translator] * n,
                }
                for name in self._columns:
                    columns[name] = pa.array(values.get(name, np.full(n, np.nan)), pa.float64(), from_pandas=True)
                parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    def rows(self) -> str:
        """The same as CSV; ``nan`` where there is none."""
        text = io.StringIO()
        writer = csv.writer(text)
        table = self.records()
        writer.writerow(table.column_names)
        for row in table.to_pylist():
            writer.writerow([f"{float('nan') if v is None else v:.6g}" if k in ROWS else v for k, v in row.items()])
        return text.getvalue()
