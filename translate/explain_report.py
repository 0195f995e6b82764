"""What explanations of many views say together: tables, curves, figures and raw values."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.formats import write_maps
from skyshift.datasets.maps import Maps
from skyshift.files import write_json, write_text, write_whole
from skyshift.translate.explain_analysis import (
    Curve,
    Mean,
    bootstrap_mean,
    channel_shares,
    curves_of,
    power_shares,
)
from skyshift.translate.explain_figures import Row, curves_figure, grid_figure, page, removal_figure
from skyshift.translate.explain_parts import Probed
from skyshift.translate.explain_removal import SHARES, area
from skyshift.translate.explainer import Explainer

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """Explanations of n views under several probes.

    Attributes:
        explainer: Of the checkpoint.
        probes: Name to what was shown and its values.
        names: (n,) of the views.
        groups: (n,) galaxy of each.
        sides: (n,) kpc.
        truth: Domain to true physical maps (n, height, width), for the quantiles.
        removal: Order to ``deletion`` and ``insertion``, (m, steps), of the first m views under the first probe.
        tolerance: Completeness error above which an explanation is marked.
        facts: What else is known of the run: background, checkpoint, part, precision, …
    """

    explainer: Explainer
    probes: Mapping[str, Probed]
    names: tuple[str, ...]
    groups: NDArray[np.int64]
    sides: Values
    truth: Mapping[str, NDArray[np.float32]]
    removal: Mapping[str, Mapping[str, Values]]
    tolerance: float
    facts: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """Of the output and the values, in words."""
        return self.explainer.unit or "logit"

    def values(self, probe: str) -> NDArray[np.float32]:
        """(n, channels, height, width), averaged over the outputs (by linearity those of their mean)."""
        return self.probes[probe].attribution.values.mean(axis=1, dtype=np.float64).astype(np.float32)

    def outputs(self, probe: str) -> Values:
        """(n,) output, averaged over the outputs."""
        return self.probes[probe].attribution.output.mean(axis=1)

    def errors(self, probe: str) -> Values:
        """(n,) completeness error, the largest of the outputs."""
        return self.probes[probe].attribution.completeness_error.max(axis=1)

    @cached_property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """Probe to name to curve."""
        found = {}
        for name, probed in self.probes.items():
            spectrum = probed.attribution.spectrum
            mean = None if spectrum is None else spectrum.mean(axis=1, dtype=np.float64)
            found[name] = curves_of(self.values(name), mean, self.truth)
        return found

    def mean_curve(self, probe: str, curve: str, minus: str = "") -> Mean:
        """(channels, bins) mean of the sums, or of their difference from another probe's, view by view."""
        sums = self.curves[probe][curve].sums
        if minus:
            sums = sums - self.curves[minus][curve].sums
        return bootstrap_mean(sums, self.groups)

    def concentration(self, probe: str, curve: str) -> Mean | None:
        """(bins,) mean |SHAP| of a bin's pixels in units of the map's mean, where bins are sets of pixels."""
        found = self.curves[probe][curve]
        if found.sizes is None or found.pixels is None:
            return None
        sizes = found.sizes.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return bootstrap_mean(sizes / sizes.sum(1, keepdims=True) / found.pixels, self.groups)

    @property
    def differences(self) -> list[str]:
        """Probes that are compared with the true pairs."""
        return [name for name in self.probes if name != "true"] if "true" in self.probes else []

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Everything in numbers, for JSON."""
        domains = list(self.explainer.domains)
        found: dict[str, Any] = {**self.facts, "domains": domains, "unit": self.unit, "probes": {}}
        for name, probed in self.probes.items():
            error, values = self.errors(name), self.values(name)
            entry: dict[str, Any] = {
                "output": bootstrap_mean(self.outputs(name), self.groups).to_dict(),
                "base": float(probed.attribution.base.mean()),
                "completeness_error": {
                    "median": float(np.median(error)),
                    "largest": float(error.max()),
                    "above_tolerance": int((~(error <= self.tolerance)).sum()),
                },
                "draws": {"mean": float(probed.attribution.draws.mean()), "most": int(probed.attribution.draws.max())},
                "channel_sums": bootstrap_mean(values.sum((2, 3), dtype=np.float64), self.groups).to_dict(),
                "channel_shares": bootstrap_mean(channel_shares(values), self.groups).to_dict(),
                "curves": {},
            }
            for curve, one in self.curves[name].items():
                entry["curves"][curve] = {"bins": one.labels, **self.mean_curve(name, curve).to_dict()}
                concentration = self.concentration(name, curve)
                if concentration is not None:
                    entry["curves"][curve]["concentration"] = concentration.to_dict()
            k, shares = power_shares(values)
            entry["power"] = {"k_over_nyquist": k.tolist(), **bootstrap_mean(shares, self.groups).to_dict()}
            if name in self.differences:
                lower = (self.outputs(name) < self.outputs("true")).astype(np.float64)
                entry["judged_below_true"] = bootstrap_mean(lower, self.groups).to_dict()
                entry["output_minus_true"] = bootstrap_mean(
                    self.outputs(name) - self.outputs("true"), self.groups
                ).to_dict()
                sums = (values - self.values("true")).sum((2, 3), dtype=np.float64)
                entry["channel_sums_minus_true"] = bootstrap_mean(sums, self.groups).to_dict()
                entry["curves_minus_true"] = {
                    curve: self.mean_curve(name, curve, "true").to_dict() for curve in self.curves[name]
                }
            found["probes"][name] = entry
        found["removal"] = self._removal_summary()
        return found

    def _removal_summary(self) -> dict[str, Any]:
        if not self.removal:
            return {}
        some = self.groups[: len(next(iter(self.removal.values()))["deletion"])]
        areas = {name: {mode: area(curve) for mode, curve in modes.items()} for name, modes in self.removal.items()}
        found: dict[str, Any] = {"views": len(some)}
        for name, modes in areas.items():
            found[name] = {mode: bootstrap_mean(values, some).to_dict() for mode, values in modes.items()}
            if name != "SHAP":
                found[name]["SHAP_better_by"] = {
                    "deletion": bootstrap_mean(modes["deletion"] - areas["SHAP"]["deletion"], some).to_dict(),
                    "insertion": bootstrap_mean(areas["SHAP"]["insertion"] - modes["insertion"], some).to_dict(),
                }
        return found

    def table(self) -> str:
        """As Markdown."""
        domains = self.explainer.domains
        lines = [
            f"**SHAP of the {self.explainer.title} [{self.unit}]: {len(self.names)} views of "
            f"{len(np.unique(self.groups))} {self.facts['part']} galaxies**",
            "",
            f"Explainer {self.facts['explainer']}; background: {self.facts['background']['background']} "
            f"(SHA-256 {self.facts['background']['sha256'][:12]}…). Intervals hold 95 % of bootstrap samples of "
            "galaxies"
            + (", rough with so few." if len(np.unique(self.groups)) < 10 else ".")
            + f" Completeness error: |sum of SHAP − change in output| / max(|change|, spread over the background), "
            f"refused above {self.tolerance:g}.",
            "",
            "| probe | output | below the true pair | "
            + " | ".join(f"SHAP of {d}" for d in domains)
            + " | "
            + " | ".join(f"share of {d}" for d in domains)
            + " | completeness error, median (largest) | draws |",
            "|---" * (5 + 2 * len(domains)) + "|",
        ]
        for name, entry in self.summary["probes"].items():
            error = entry["completeness_error"]
            above = f", **{error['above_tolerance']} above the tolerance**" if error["above_tolerance"] else ""
            below = entry.get("judged_below_true")
            cells = [
                name.replace("_", " "),
                _interval(entry["output"]),
                "–"
                if below is None
                else f"{100 * below['value']:.0f} % [{100 * below['low']:.0f}, {100 * below['high']:.0f}]",
                *(_interval(entry["channel_sums"], c) for c in range(len(domains))),
                *(_interval(entry["channel_shares"], c, 2) for c in range(len(domains))),
                f"{error['median']:.3f} ({error['largest']:.3f}){above}",
                f"{entry['draws']['mean']:.0f} (most {entry['draws']['most']})",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"Base (mean output over the background): {self._base():.4g} {self.unit}."]
        for name in self.differences:
            lines += self._where(name)
        lines += self._removal_lines()
        return "\n".join(lines)

    def _base(self) -> float:
        return float(next(iter(self.probes.values())).attribution.base.mean())

    def _where(self, name: str) -> list[str]:
        """Bins in which a probe's SHAP differs from the true pair's, beyond the interval."""
        lines = ["", f"Where {name.replace('_', ' ')} differs from true (SHAP, 95 % interval without zero):"]
        for curve in self.curves[name]:
            mean, one = self.mean_curve(name, curve, "true"), self.curves[name][curve]
            for c, domain in enumerate(self.explainer.domains):
                hits = [
                    f"{one.labels[b]}: {mean.value[c, b]:+.3f} [{mean.low[c, b]:+.3f}, {mean.high[c, b]:+.3f}]"
                    for b in np.flatnonzero(mean.significant[c])
                ]
                if hits:
                    lines.append(f"- {domain}, by {one.title}: {'; '.join(hits)}")
        return lines if len(lines) > 2 else [*lines, "- nowhere"]

    def _removal_lines(self) -> list[str]:
        found = self.summary["removal"]
        if not found:
            return []
        lines = [
            "",
            f"Deletion and insertion of the pixels with the highest values first, {found['views']} views (mean output "
            "over all shares; SHAP should be low in deletion and high in insertion):",
            "",
            "| order | deletion | insertion | SHAP better by, deletion | SHAP better by, insertion |",
            "|---|---|---|---|---|",
        ]
        for name in self.removal:
            better = found[name].get("SHAP_better_by")
            cells = [_interval(found[name][mode]) for mode in ("deletion", "insertion")]
            cells += ["–", "–"] if better is None else [_interval(better[m]) for m in ("deletion", "insertion")]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        return lines

    # -- files ----------------------------------------------------------------------------------------------------

    def write(self, folder: Path, *, pages: int, per_page: int, raw: tuple[str, ...]) -> None:
        """Write table, numbers, figures and raw values.

        Args:
            folder: Where.
            pages: Pages of maps for each probe.
            per_page: Views on a page.
            raw: ``fits``, ``npy`` or both.
        """
        write_text(folder / "table.md", self.table() + "\n")
        write_json(folder / "summary.json", _plain(self.summary))
        write_text(folder / "views.csv", self._rows())
        for probe in self.probes:
            for number, rows in enumerate(self._pages(probe, pages, per_page), start=1):
                self._save(self._page(probe, rows), folder / f"maps_{probe}_{number:02d}.png")
        if "translated" in self.differences:
            self._save(self._difference("translated", min(per_page, len(self.names))), folder / "difference.png")
        self._save(self._curves(), folder / "curves.png")
        if self.differences:
            self._save(self._curves_minus_true(), folder / "curves_minus_true.png")
        if self.removal:
            some = self.groups[: len(next(iter(self.removal.values()))["deletion"])]
            means = {
                name: {mode: bootstrap_mean(curve, some) for mode, curve in modes.items()}
                for name, modes in self.removal.items()
            }
            title = f"{next(iter(self.probes))} pairs, {len(some)} views; bands: 95 % over galaxies"
            self._save(removal_figure(SHARES, means, self.unit, title), folder / "removal.png")
        if self.explainer.what.explained == "grid" and self.explainer.field is not None:
            self._save(self._grid(), folder / "patch_grid.png")
        for kind in raw:
            self._write_raw(folder / "values", kind)

    @staticmethod
    def _save(figure: Any, path: Path) -> None:
        with write_whole(path) as side:
            figure.savefig(side, dpi=120)

    def _chosen(self, count: int) -> NDArray[np.int64]:
        """Views of a figure: evenly over the output of the first probe, from the lowest to the highest."""
        order = np.argsort(self.outputs(next(iter(self.probes))), kind="stable")
        return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]

    def _pages(self, probe: str, pages: int, per_page: int) -> list[NDArray[np.int64]]:
        chosen = self._chosen(pages * per_page)
        return [chosen[i : i + per_page] for i in range(0, len(chosen), per_page)]

    def _box(self) -> tuple[int, int, int, int] | None:
        """The one patch that is explained, or the middle one where it is the mean of all."""
        what, field = self.explainer.what, self.explainer.field
        if field is None:
            return None
        if what.explained == "patch":
            return field.box(what.patch[0], what.patch[1])
        side = next(iter(self.probes.values())).inputs.shape[-1]
        middle = round((side / 2 - field.size / 2 - field.start) / field.stride)
        return field.box(middle, middle)

    def _page(self, probe: str, views: NDArray[np.int64]) -> Any:
        probed, values = self.probes[probe], self.values(probe)
        maps = np.stack(list(self.explainer.physical(probed.inputs).values()), axis=1)
        rows = []
        for i in views:
            error = self.errors(probe)[i]
            complete = bool(error <= self.tolerance)
            title = (
                f"{self.names[i]}\n{self.outputs(probe)[i]:.3g}, base {probed.attribution.base[i].mean():.3g}\n"
                f"completeness error {error:.3f}" + ("" if complete else "\nDOES NOT ADD UP")
            )
            rows.append(Row(title, maps[i], values[i], float(self.sides[i]), self._box(), complete))
        domains = self.explainer.domains
        dashed = "; dashed: what one patch sees" if self.explainer.field else ""
        title = f"{probe.replace('_', ' ')}: SHAP of the {self.explainer.title}, {self.facts['explainer']}{dashed}"
        return page(rows, domains, [c.unit for c in self.explainer.channels], self.unit, title)

    def _difference(self, probe: str, count: int) -> Any:
        """SHAP of a probe less that of the true pair, on the difference of the maps."""
        mine, true = (
            np.stack(list(self.explainer.physical(self.probes[name].inputs).values()), axis=1)
            for name in (probe, "true")
        )
        values = self.values(probe) - self.values("true")
        change = self.outputs(probe) - self.outputs("true")
        rows = [
            Row(
                f"{self.names[i]}\noutput {change[i]:+.3g}",
                np.concatenate([true[i], mine[i]]),
                np.concatenate([self.values("true")[i], values[i]]),
                float(self.sides[i]),
                None,
            )
            for i in self._chosen(count)
        ]
        domains = self.explainer.domains
        keep = self.explainer.sources if self.explainer.sources < len(domains) else 0  # the first target channel
        wanted = [keep, len(domains) + keep]
        rows = [Row(r.title, r.maps[wanted], r.values[wanted], r.side, None) for r in rows]
        unit = [self.explainer.channels[keep].unit] * 2
        name = domains[keep]
        titles = [f"{name}, true", "SHAP(true)", "both", f"{name}, {probe}", f"SHAP({probe}) − SHAP(true)", "both"]
        title = f"What changes in the evidence of {name} from the true pair to the {probe} one"
        return page(rows, [name, name], unit, self.unit, title, titles)

    def _curves(self) -> Any:
        panels = []
        first = next(iter(self.probes))
        for curve, one in self.curves[first].items():
            means = {name: bootstrap_mean(self.curves[name][curve].sums.sum(1), self.groups) for name in self.probes}
            panels.append((one.title, one.labels, means, f"sum of SHAP [{self.unit}]"))
        for curve, one in self.curves[first].items():
            found = {name: self.concentration(name, curve) for name in self.probes}
            means = {name: mean for name, mean in found.items() if mean is not None}
            if means:
                panels.append((one.title, one.labels, means, "mean |SHAP| / mean of the map"))
        title = f"SHAP of the {self.explainer.title}, all channels; 95 % intervals over galaxies"
        return curves_figure(panels, title)

    def _curves_minus_true(self) -> Any:
        panels = []
        for name in self.differences:
            for curve, one in self.curves[name].items():
                mean = self.mean_curve(name, curve, "true")
                means = {
                    domain: Mean(mean.value[c], mean.low[c], mean.high[c])
                    for c, domain in enumerate(self.explainer.domains)
                }
                label = f"SHAP({name.replace('_', ' ')}) − SHAP(true) [{self.unit}]"
                panels.append((one.title, one.labels, means, label))
        columns = len(next(iter(self.curves.values())))
        return curves_figure(panels, "Difference from the true pair; 95 % intervals over galaxies", columns)

    def _grid(self) -> Any:
        probe = next(iter(self.probes))
        probed, field = self.probes[probe], self.explainer.field
        assert field is not None
        maps = self.explainer.physical(probed.inputs)[self.explainer.domains[-1]]
        side = round(probed.attribution.output.shape[1] ** 0.5)
        rows = [
            (self.names[i], maps[i], probed.attribution.output[i].reshape(side, -1), float(self.sides[i]))
            for i in self._chosen(4)
        ]
        return grid_figure(rows, [field.box(0, 0), field.box(side - 1, rows[0][2].shape[1] - 1)], self.unit)

    def _write_raw(self, folder: Path, kind: str) -> None:
        unit = self.explainer.unit or "1"
        explainer = self.facts["explainer"]
        for probe, probed in self.probes.items():
            values = self.values(probe)
            text = f"SHAP of the {self.explainer.title} [{self.unit}], {probe}, {explainer}"
            cards = {"SHAPUNIT": self.unit, "SHAPER": explainer, "PROBE": probe}
            stacks = {
                f"shap_{domain}": Maps(
                    np.ascontiguousarray(values[:, c]), f"shap_{domain}", unit, self.sides, self.names, cards, text
                )
                for c, domain in enumerate(self.explainer.domains)
            }
            if kind == "fits":
                write_maps(folder / f"{probe}.fits", stacks)
                continue
            for domain, stack in stacks.items():
                write_maps(folder / f"{probe}_{domain}.npy", {domain: stack})
            if probed.attribution.values.shape[1] > 1:
                with write_whole(folder / f"{probe}_outputs.npy") as side, side.open("wb") as file:
                    np.save(file, probed.attribution.values, allow_pickle=False)

    def _rows(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        domains = self.explainer.domains
        sums = [f"shap_{domain}" for domain in domains]
        writer.writerow(["view", "galaxy", "probe", "output", "base", *sums, "missing", "completeness_error", "draws"])
        for probe, probed in self.probes.items():
            values = self.values(probe).sum((2, 3), dtype=np.float64)
            for i, name in enumerate(self.names):
                base = probed.attribution.base[i].mean()
                missing = probed.attribution.missing[i].mean()
                numbers = [self.outputs(probe)[i], base, *values[i], missing, self.errors(probe)[i]]
                row = [f"{number:.6g}" for number in numbers]
                writer.writerow([name, self.groups[i], probe, *row, probed.attribution.draws[i]])
        return text.getvalue()


def _interval(entry: Mapping[str, Any], index: int | None = None, digits: int = 3) -> str:
    value, low, high = (entry[k] if index is None else entry[k][index] for k in ("value", "low", "high"))
    if max(abs(value), abs(low), abs(high)) >= 1e5:
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _plain(value: Any) -> Any:
    """JSON knows no NaN, and no NumPy."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
