"""What the explain command leaves behind: table, numbers, figures and raw values, each file whole or not at all."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.formats import write_maps
from skyshift.datasets.maps import Maps
from skyshift.files import write_json, write_text, write_whole
from skyshift.translate.explain_analysis import Mean, bootstrap_mean
from skyshift.translate.explain_figures import Row, curves_figure, domain_title, grid_figure, page, removal_figure
from skyshift.translate.explain_removal import SHARES
from skyshift.translate.explain_report import Explanation


def write(e: Explanation, folder: Path, raw: tuple[str, ...]) -> None:
    """Write table, numbers and raw values.

    Args:
        e: The explanation.
        folder: Where.
        raw: ``fits``, ``npy`` or both.
    """
    write_text(folder / "table.md", e.table() + "\n")
    write_json(folder / "summary.json", _plain(e.summary))
    write_text(folder / "views.csv", _rows(e))
    for kind in raw:
        _write_raw(e, folder / "values", kind)


def draw(e: Explanation, folder: Path, *, pages: int, per_page: int) -> None:
    """Draw the figures.

    Args:
        e: The explanation.
        folder: Where.
        pages: Pages of maps for each probe.
        per_page: Views on a page.
    """
    for probe in e.probes:
        for number, rows in enumerate(_pages(e, probe, pages, per_page), start=1):
            _save(_page(e, probe, rows), folder / f"maps_{probe}_{number:02d}.png")
    if "translated" in e.differences:
        _save(_difference(e, "translated", min(per_page, len(e.names))), folder / "difference.png")
    _save(_curves(e), folder / "curves.png")
    if e.differences:
        _save(_curves_minus_true(e), folder / "curves_minus_true.png")
    if e.removal:
        some = e.groups[e.removed]
        means = {
            name: {mode: bootstrap_mean(curve, some) for mode, curve in modes.items()}
            for name, modes in e.removal.items()
        }
        galaxies = len(np.unique(some))
        title = f"{next(iter(e.probes))} pairs, {len(some)} views of {galaxies} galaxies; bands: 95 % over galaxies"
        _save(removal_figure(SHARES, means, e.unit, title), folder / "removal.png")
    if e.explainer.what.explained == "grid" and e.explainer.field is not None:
        _save(_grid(e), folder / "patch_grid.png")


def _save(figure: Any, path: Path) -> None:
    with write_whole(path) as side:
        figure.savefig(side, dpi=120)


def _chosen(e: Explanation, count: int) -> NDArray[np.int64]:
    """Views of a figure: evenly over the output of the first probe, from the lowest to the highest."""
    order = np.argsort(e.outputs(next(iter(e.probes))), kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def _pages(e: Explanation, probe: str, pages: int, per_page: int) -> list[NDArray[np.int64]]:
    chosen = _chosen(e, pages * per_page)
    return [chosen[i : i + per_page] for i in range(0, len(chosen), per_page)]


def _box(e: Explanation) -> tuple[int, int, int, int] | None:
    """The one patch that is explained, or the middle one where it is the mean of all."""
    what, field = e.explainer.what, e.explainer.field
    if field is None:
        return None
    if what.explained == "patch":
        return field.box(what.patch[0], what.patch[1])
    side = next(iter(e.probes.values())).inputs.shape[-1]
    middle = round((side / 2 - field.size / 2 - field.start) / field.stride)
    return field.box(middle, middle)


def _maps(e: Explanation, probe: str) -> NDArray[np.float32]:
    """(n, channels, height, width) physical maps that were shown."""
    return np.stack(list(e.explainer.physical(e.probes[probe].inputs).values()), axis=1)


def _page(e: Explanation, probe: str, views: NDArray[np.int64]) -> Any:
    probed, values = e.probes[probe], e.values(probe)
    maps = _maps(e, probe)
    # A translated map has the stretch of the true one, whose page shows the same view.
    stretch = _maps(e, "true") if probe == "translated" and "true" in e.probes else maps
    rows = []
    for i in views:
        error = e.errors(probe)[i]
        complete = bool(error <= e.tolerance)
        title = (
            f"{e.names[i]}\n{e.outputs(probe)[i]:.3g}, base {probed.attribution.base[i].mean():.3g}\n"
            f"completeness error {error:.3f}" + ("" if complete else "\nDOES NOT ADD UP")
        )
        rows.append(Row(title, maps[i], values[i], float(e.sides[i]), _box(e), complete, stretch[i]))
    domains = e.explainer.domains
    dashed = "; dashed: what one patch sees" if e.explainer.field else ""
    title = f"{probe.replace('_', ' ')}: SHAP of the {e.explainer.title}, {e.facts['explainer']}{dashed}"
    return page(rows, domains, [c.unit for c in e.explainer.channels], e.unit, title)


def _difference(e: Explanation, probe: str, count: int) -> Any:
    """SHAP of a probe less that of the true pair, on the difference of the maps."""
    keep = e.explainer.sources  # the first target channel
    true, mine = (_maps(e, name)[:, keep] for name in ("true", probe))
    before, after = (e.values(name)[:, keep] for name in ("true", probe))
    change = e.outputs(probe) - e.outputs("true")
    rows = [
        Row(
            f"{e.names[i]}\noutput {change[i]:+.3g}",
            np.stack([true[i], mine[i]]),
            np.stack([before[i], after[i] - before[i]]),
            float(e.sides[i]),
            None,
            stretch=np.stack([true[i], true[i]]),
        )
        for i in _chosen(e, count)
    ]
    name = e.explainer.domains[keep]
    unit = [e.explainer.channels[keep].unit] * 2
    shown = domain_title(name)[0]
    titles = [f"{shown}, true", "SHAP(true)", "both", f"{shown}, {probe}", f"SHAP({probe}) − SHAP(true)", "both"]
    title = f"What changes in the evidence of {shown} from the true pair to the {probe} one"
    return page(rows, [name, name], unit, e.unit, title, titles)


def _curves(e: Explanation) -> Any:
    panels = []
    first = next(iter(e.probes))
    for curve, one in e.curves[first].items():
        means = {name: bootstrap_mean(e.curves[name][curve].sums.sum(1), e.groups) for name in e.probes}
        panels.append((one.title, one.labels, means, f"sum of SHAP [{e.unit}]"))
    for curve, one in e.curves[first].items():
        found = {name: e.concentration(name, curve) for name in e.probes}
        means = {name: mean for name, mean in found.items() if mean is not None}
        if means:
            panels.append((one.title, one.labels, means, "mean |SHAP| / mean of the map"))
    title = f"SHAP of the {e.explainer.title}, all channels; 95 % intervals over galaxies"
    return curves_figure(panels, title)


def _curves_minus_true(e: Explanation) -> Any:
    panels = []
    for name in e.differences:
        for curve, one in e.curves[name].items():
            mean = e.mean_curve(name, curve, "true")
            means = {
                domain: Mean(mean.value[c], mean.low[c], mean.high[c]) for c, domain in enumerate(e.explainer.domains)
            }
            label = f"SHAP({name.replace('_', ' ')}) − SHAP(true) [{e.unit}]"
            panels.append((one.title, one.labels, means, label))
    columns = len(next(iter(e.curves.values())))
    return curves_figure(panels, "Difference from the true pair; 95 % intervals over galaxies", columns)


def _grid(e: Explanation) -> Any:
    probe = next(iter(e.probes))
    probed, field = e.probes[probe], e.explainer.field
    assert field is not None
    maps = e.explainer.physical(probed.inputs)[e.explainer.domains[-1]]
    side = round(probed.attribution.output.shape[1] ** 0.5)
    rows = [
        (e.names[i], maps[i], probed.attribution.output[i].reshape(side, -1), float(e.sides[i])) for i in _chosen(e, 4)
    ]
    return grid_figure(rows, [field.box(0, 0), field.box(side - 1, rows[0][2].shape[1] - 1)], e.unit)


def _write_raw(e: Explanation, folder: Path, kind: str) -> None:
    unit = e.explainer.unit or "1"
    explainer = e.facts["explainer"]
    for probe, probed in e.probes.items():
        values = e.values(probe)
        text = f"SHAP of the {e.explainer.title} [{e.unit}], {probe}, {explainer}"
        cards = {"SHAPUNIT": e.unit, "SHAPER": explainer, "PROBE": probe}
        stacks = {
            f"shap_{domain}": Maps(
                np.ascontiguousarray(values[:, c]), f"shap_{domain}", unit, e.sides, e.names, cards, text
            )
            for c, domain in enumerate(e.explainer.domains)
        }
        if kind == "fits":
            write_maps(folder / f"{probe}.fits", stacks)
            continue
        for domain, stack in stacks.items():
            write_maps(folder / f"{probe}_{domain}.npy", {domain: stack})
        if probed.attribution.values.shape[1] > 1:
            with write_whole(folder / f"{probe}_outputs.npy") as side, side.open("wb") as file:
                np.save(file, probed.attribution.values, allow_pickle=False)


def _rows(e: Explanation) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    domains = e.explainer.domains
    sums = [f"shap_{domain}" for domain in domains]
    writer.writerow(["view", "galaxy", "probe", "output", "base", *sums, "missing", "completeness_error", "draws"])
    for probe, probed in e.probes.items():
        values = e.values(probe).sum((2, 3), dtype=np.float64)
        for i, name in enumerate(e.names):
            base = probed.attribution.base[i].mean()
            missing = probed.attribution.missing[i].mean()
            numbers = [e.outputs(probe)[i], base, *values[i], missing, e.errors(probe)[i]]
            row = [f"{number:.6g}" for number in numbers]
            writer.writerow([name, e.groups[i], probe, *row, probed.attribution.draws[i]])
    return text.getvalue()


def _plain(value: Any) -> Any:
    """JSON knows no NaN, and no NumPy."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
