"""What an evaluation leaves: the table, the summary, the values of every map, and the figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skyshift.files import write_json, write_text, write_whole
from skyshift.translate.evaluation_result import Evaluation, Values
from skyshift.translate.evaluation_work import Judge
from skyshift.translate.figures import calibration_figure, comparison_figure, spectra_figure, structure_figure


def write_evaluation(
    output: Path, result: Evaluation, judge: Judge, views: NDArray[np.int64], measured: Mapping[str, Any]
) -> None:
    """Write everything.

    Args:
        output: Folder.
        result: What was found.
        judge: What found it; translates the maps that are shown once more.
        views: That were judged.
        measured: Target domain to what :meth:`Judge.chunk` gives.
    """
    write_text(output / "table.md", result.table() + "\n")
    margins = {domain: result.margins(domain) for domain in result.scores}
    summary = {
        "title": result.title,
        "notes": result.notes,
        "level": result.level,
        "resamples": result.resamples,
        "scores": result.summary,
        "margins": margins,
    }
    write_json(output / "summary.json", _no_nan(summary))
    write_text(output / "maps.csv", result.rows())
    with write_whole(output / "maps.parquet") as side:
        pq.write_table(result.records(), side)
    _write_maps(output, result, judge, views)
    several = len(measured) > 1
    units = {channel.domain: channel.unit for channel in judge.channels}  # a store may have others
    for domain, found in measured.items():
        unit = units[domain]
        lines, end = found["curves"], f"_{domain}.png" if several else ".png"
        _save(output / f"spectra{end}", spectra_figure(next(iter(lines.values()))["k"], lines, unit))
        _save(output / f"structure{end}", structure_figure(lines, result.scores[domain], unit))
        if found["calibration"]:
            _save(output / f"calibration{end}", calibration_figure(found["calibration"]))


def _save(path: Path, figure: Figure) -> None:
    with write_whole(path) as side:
        figure.savefig(side, dpi=130)


def _write_maps(output: Path, result: Evaluation, judge: Judge, views: NDArray[np.int64]) -> None:
    scores = next(iter(next(iter(result.scores.values())).values()))["correlation"]
    chosen = spread(scores)
    some = judge.main(judge.store, views[chosen])
    names = next(iter(some.values())).names
    titles = [f"{name}\nr = {scores[row]:.3f}" for name, row in zip(names, chosen, strict=True)]
    _save(output / "maps.png", comparison_figure(judge.store, views[chosen], judge.main.source, some, titles))


def spread(values: Values) -> NDArray[np.int64]:
    """Five maps from the lowest to the highest value, so that a figure shows no choice of ours."""
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
