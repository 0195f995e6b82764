"""What explanations of many views say together: means, intervals, differences, a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.translate.explain_analysis import (
    Curve,
    Mean,
    bootstrap_mean,
    channel_shares,
    curves_of,
    outside_boxes,
    power_shares,
)
from skyshift.translate.explain_parts import Probed
from skyshift.translate.explain_removal import area
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
        removal: Order to ``deletion`` and ``insertion``, (m, steps), of some views under the first probe.
        removed: (m,) which of the n views these are.
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
    removed: NDArray[np.int64]
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

    def outside(self, probe: str) -> Values | None:
        """(n,) share of |SHAP| outside the receptive fields of the patches that are explained one by one.

        Zero but where a normalisation over the whole map lets each patch feel the rest. ``None`` for other outputs.
        """
        field, what = self.explainer.field, self.explainer.what
        if field is None or what.explained == "mean":
            return None
        values = self.probes[probe].attribution.values
        side = round(values.shape[1] ** 0.5)
        patches = [divmod(k, side) for k in range(side**2)] if what.explained == "grid" else [what.patch]
        return outside_boxes(values, [field.box(row, column) for row, column in patches])

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
            outside = self.outside(name)
            if outside is not None:
                entry["outside_receptive_field"] = bootstrap_mean(outside, self.groups).to_dict()
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
        some = self.groups[self.removed]
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
        outside = {name: entry.get("outside_receptive_field") for name, entry in self.summary["probes"].items()}
        if shares := [f"{name.replace('_', ' ')} {_interval(entry)}" for name, entry in outside.items() if entry]:
            lines += [
                "",
                f"Share of |SHAP| outside the receptive field of a patch: {', '.join(shares)}. It is what the patch "
                "feels of the rest of the map through a normalisation over all of it.",
            ]
        for name in self.differences:
            lines += self._where(name)
        lines += self._removal_lines()
        return "\n".join(lines)

    def _base(self) -> float:
        return float(next(iter(self.probes.values())).attribution.base.mean())

    def _where(self, name: str) -> list[str]:
        """Bins in which a probe's SHAP differs from the true pair's, beyond the interval."""
        bins = sum(one.sums.shape[1] * one.sums.shape[2] for one in self.curves[name].values())
        lines = [
            "",
            f"Where {name.replace('_', ' ')} differs from true (SHAP, 95 % interval without zero; of {bins} bins about "
            f"{0.05 * bins:.0f} would by chance):",
        ]
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


def _interval(entry: Mapping[str, Any], index: int | None = None, digits: int = 3) -> str:
    value, low, high = (entry[k] if index is None else entry[k][index] for k in ("value", "low", "high"))
    if max(abs(value), abs(low), abs(high)) >= 1e5:
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
