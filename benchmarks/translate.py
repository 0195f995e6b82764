"""Every translation method on the same maps with the same budget: quality, calibration, calls, time, memory.

    python benchmarks/translate.py [--quick] [--json FILE] [--work FOLDER] [--steps 200]

Two data sets, gas to HI: the toy simulation of the embedded default, and the regions of the real TNG50-4 subbox (looked
for in ``$SKYSHIFT_SHARED`` or ``../shared/data``, left out where it is absent). Each method is trained with the method
section of its shipped configuration, the same number of steps and maps a step, and three seeds of weights; held-out
galaxies judge. Every run has one thread; two run at a time.

Writes ``benchmarks/results/translate.md`` with ``translate.png`` (quality), ``translate_calls.png`` (quality against
network calls) and ``translate_maps.png`` (not with ``--quick``).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Trained, over_seeds, shipped, train, two_at_a_time
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from report import RESULTS, ROOT, Claim, machine, parser, report

from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.store import MapStore
from skyshift.files import write_text, write_whole
from skyshift.translate.baselines import PixelRelation
from skyshift.translate.evaluate import METRICS, Yardstick, score
from skyshift.translate.evaluation_scores import totals
from skyshift.translate.metrics.calibration import calibrate
from skyshift.translate.translator import Translator

Values = NDArray[np.float64]

FOLDER = Path(os.environ.get("SKYSHIFT_SHARED", ROOT.parent / "shared" / "data"))
SUBBOX = FOLDER / "tng" / "TNG50-4-Subbox0" / "output" / "snapdir_2332"
METHODS = {
    "L1 U-Net": "regression",
    "pix2pix": "gas_to_hi",
    "CycleGAN": "cyclegan",
    "CUT": "cut",
    "FastCUT": "fastcut",
    "diffusion": "diffusion",
    "bridge": "bridge",
    "flow": "flow",
    "VAE": "vae",
    "normalizing flow": "normalizing_flow",
}
"""Name to shipped configuration; the first is what the others must beat."""
SEEDS = (0, 1, 2)
CALLS = (1, 2, 5, 10, 20, 50)
PIXELS = 32
"""Per side: a quarter of the shipped maps' pixels, so that sixty runs fit into half an hour of two cores."""
TEST_VIEWS = 32
"""Test views that are judged, at the most, spread over the test galaxies."""
DRAWS = 4
SHOWN = {
    "psnr": ("PSNR [dB]", 1),
    "total_error": ("total, error [%]", -1),
    "power_error": ("P(k) error [%]", -1),
    "correlation": ("r(k)", 1),
    "crps": ("CRPS [% of L]", -1),
}
"""Metric to its title and the direction of better."""


@dataclass(frozen=True)
class Problem:
    """A store and its test maps."""

    name: str
    store: MapStore
    data: dict[str, Any]

    def views(self, part: str) -> NDArray[np.int64]:
        """Of a part; at most :data:`TEST_VIEWS` of the test part, spread over its galaxies."""
        views = split_views(self.store.catalogue(), Split(**self.data["split"]))[part]
        if part != "test":
            return views
        return views[np.unique(np.linspace(0, len(views) - 1, TEST_VIEWS).astype(int))]

    def side(self, views: NDArray[np.int64]) -> Values:
        """kpc, of views."""
        catalogue = self.store.catalogue()
        return np.asarray(catalogue["side"], np.float64)[np.searchsorted(catalogue["view"], views)]

    def truth(self, views: NDArray[np.int64]) -> NDArray[np.float32]:
        """HI maps."""
        return self.store.maps("hi", views)


def problems(work: Path, quick: bool) -> list[Problem]:
    """Build the stores that there is data for."""
    made = []
    asked = {"toy simulation": ("synthetic", "gas_to_hi", [f"--source.init_args.path={work / 'synthetic'}"])}
    if SUBBOX.is_dir():
        asked["TNG50-4 regions"] = ("tng50_regions", "tng50_regions", [f"--source.init_args.folder={SUBBOX}"])
    if quick:
        asked = {"toy simulation": asked["toy simulation"]}
    for name, (build, training, options) in asked.items():
        path = work / f"{build}.zarr"
        config = ROOT / "configs" / "datasets" / f"{build}.yaml"
        subprocess.run(
            [
                *(sys.executable, ROOT / "datasets" / "build.py", "--config", config, "--store", path),
                *(f"--pixels={PIXELS}", *options),
            ],
            check=True,
        )
        made.append(Problem(name, MapStore(path), shipped(training)["data"]))
    return made


def configured(problem: Problem, method: str, seed: int, steps: int) -> dict[str, Any]:
    """The configuration of one run: the problem's data, the method's own section, the common budget."""
    own, data = shipped(METHODS[method]), problem.data
    keep = {key: data[key] for key in ("source", "target", "split", "scaling") if key in data}
    training = {
        **own["training"],
        **{
            "steps": steps,
            "batch_size": 8,
            "accumulate": 1,
            "seed": seed,
            "sample_every": 0,
            "checkpoint_every": steps,
        },
        **{"average": 0.99, "warm_up": min(own["training"].get("warm_up", 0), steps // 10), "log_every": 50},
    }
    return {
        "data": {**keep, "store": str(problem.store.path), "paired": own["data"].get("paired", True)},
        "method": own["method"],
        "training": training,
    }


def summaries(
    truth: NDArray[np.float32], estimate: NDArray[np.float32], side: Values, yardstick: Yardstick
) -> dict[str, float]:
    """The table's metrics of maps, each summed up as the evaluation does it."""
    values = score(truth, estimate, side, yardstick)
    return {
        metric.name: metric.summary(values[metric.name])
        for metric in METRICS
        if metric.summary and metric.name in values
    }


def yardstick_of(problem: Problem) -> Yardstick:
    """From the training maps."""
    views = problem.views("train")
    return Yardstick.fit(problem.truth(views), problem.side(views))


def judge(problem: Problem, run: Trained, yardstick: Yardstick) -> dict[str, float]:
    """One run on the test maps: single translations, and draws where they differ."""
    translator, views = Translator.from_pretrained(run.folder), problem.views("test")
    truth, side = problem.truth(views), problem.side(views)
    started = time.process_time()
    estimate = translator(problem.store, views)["hi"].values
    seconds = time.process_time() - started
    result = {
        **summaries(truth, estimate, side, yardstick),
        **{"seconds": seconds / len(views), "calls": float(translator.method.calls)},
        "crps": spread_of(truth, np.stack([estimate, estimate]), side, views, yardstick)["crps"],
    }
    if translator.method.stochastic:
        draws = translator.draws(problem.store, DRAWS, views)["hi"]
        found = spread_of(truth, draws, side, views, yardstick)
        result |= {"crps": found["crps"], "coverage": found["coverage_68"], "spread_skill": found["spread_skill"]}
        averaged = summaries(truth, draws.mean(0, dtype=np.float64).astype(np.float32), side, yardstick)
        result |= {"psnr_of_mean": averaged["psnr"], "correlation_of_mean": averaged["correlation"]}
    return result


def spread_of(
    truth: NDArray[np.float32], draws: NDArray[np.float32], side: Values, views: NDArray[np.int64], yardstick: Yardstick
) -> dict[str, float]:
    """Calibration, mean over maps; the CRPS of equal draws is their absolute error. In % of the dynamic range."""
    lit = ~yardstick.faint(totals(truth, side))
    rows, _ = calibrate(truth, draws, lit, views, yardstick.data_range)
    return {name: 100 * float(np.nanmean(values)) for name, values in rows.items() if np.isfinite(values).any()}


def against_calls(problem: Problem, run: Trained, yardstick: Yardstick, calls: Sequence[int]) -> list[dict[str, float]]:
    """Quality with other numbers of network calls."""
    views = problem.views("test")
    found = []
    for number in calls:
        translator = Translator.from_pretrained(run.folder, calls=number)
        estimate = translator(problem.store, views)["hi"].values
        found.append(summaries(problem.truth(views), estimate, problem.side(views), yardstick))
    return found


def baselines(problem: Problem, yardstick: Yardstick) -> dict[str, dict[str, float]]:
    """The per-pixel relation, and gas times one factor."""
    train_views, views = problem.views("train"), problem.views("test")
    known, fitted, seen = (
        problem.store.maps("gas", train_views),
        problem.truth(train_views),
        problem.store.maps("gas", views),
    )
    truth, side = problem.truth(views), problem.side(views)
    estimates = {
        "gas × constant": seen * np.float32(fitted.sum(dtype=float) / known.sum(dtype=float)),
        "per-pixel relation": PixelRelation.fit(known, fitted, "mean")(seen),
    }
    return {
        name: {
            **summaries(truth, estimate, side, yardstick),
            "crps": spread_of(truth, np.stack([estimate, estimate]), side, views, yardstick)["crps"],
        }
        for name, estimate in estimates.items()
    }


def quality_figure(results: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> Figure:
    """A row of panels a data set: methods against metrics, a dot a seed; lines for what needs no training."""
    figure = Figure(figsize=(2.6 * len(SHOWN) + 1.2, 3.3 * len(results) + 0.4), layout="constrained")
    grid = figure.subplots(len(results), len(SHOWN), squeeze=False, sharey="row")
    for axes, (problem, rows) in zip(grid, results.items(), strict=True):
        names = list(rows)[::-1]
        for axis, (metric, (title, better)) in zip(axes, SHOWN.items(), strict=True):
            for place, name in enumerate(names):
                values = [row[metric] for row in rows[name]]
                trained = len(values) > 1 or name in METHODS
                axis.plot(
                    values, [place] * len(values), "o" if trained else "s", color="C0" if trained else "0.4", ms=5
                )
            axis.axvline(np.mean([row[metric] for row in rows["L1 U-Net"]]), color="0.7", lw=0.8, zorder=0)
            if better < 0:
                axis.set_xscale("log")
                low, high = axis.get_xlim()
                few = high / low < 30  # less than a decade and a half: its decades alone would be one label or none
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=5))
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(f"{title} ({'→' if better > 0 else '←'} better)", fontsize=8)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
            axis.grid(axis="y", lw=0.3)
        axes[0].set_title(problem, fontsize=9, loc="left")
    return figure


def calls_figure(found: Mapping[str, Mapping[str, list[dict[str, float]]]], calls: Sequence[int]) -> Figure:
    """Quality of a single translation against the number of network calls."""
    metrics = ("psnr", "total_error", "power_error", "correlation")
    figure = Figure(figsize=(3.0 * len(metrics), 2.9 * len(found) + 0.3), layout="constrained")
    grid = figure.subplots(len(found), len(metrics), squeeze=False)
    for axes, (problem, rows) in zip(grid, found.items(), strict=True):
        for axis, metric in zip(axes, metrics, strict=True):
            for number, (name, curve) in enumerate(rows.items()):
                marker = "os^D"[number]
                axis.plot(calls[: len(curve)], [point[metric] for point in curve], f"{marker}-", ms=4, label=name)
            axis.set_xscale("log")
            axis.set_xticks(calls, [str(number) for number in calls])
            axis.minorticks_off()
            if metric in ("total_error", "power_error"):
                axis.set_yscale("log")
            axis.set_xlabel("network calls", fontsize=8)
            axis.set_ylabel(SHOWN[metric][0], fontsize=8)
            axis.tick_params(labelsize=7)
        axes[0].set_title(problem, fontsize=9, loc="left")
        axes[-1].legend(fontsize=7)
    return figure


def maps_figure(problem: Problem, runs: Mapping[str, Trained]) -> Figure:
    """One test view: source, truth, every method; the HI panels share one stretch."""
    views = problem.views("test")
    truth = problem.truth(views)
    view = views[[int(np.argsort(truth.sum((1, 2)))[3 * len(views) // 4])]]
    gas, hi = problem.store.maps("gas", view)[0], problem.truth(view)[0]
    panels = {"gas (source)": gas, "HI (truth)": hi}
    panels |= {
        name: Translator.from_pretrained(run.folder)(problem.store, view)["hi"].values[0] for name, run in runs.items()
    }
    columns = 6
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.9 * columns + 0.9, 2.05 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    half = float(problem.side(view)[0]) / 2
    top = np.log10(hi.max())
    for axis, (name, values) in zip(axes.flat, panels.items(), strict=False):
        of_gas = name.startswith("gas")
        upper = np.log10(gas.max()) if of_gas else top
        image = axis.imshow(
            np.log10(np.maximum(values, 10 ** (upper - 4))),
            origin="lower",
            cmap="cividis" if of_gas else "viridis",
            vmin=upper - 4,
            vmax=upper,
            extent=(-half, half, -half, half),
        )
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6)
        if of_gas:
            inside = axis.inset_axes((0.05, 0.06, 0.5, 0.05))
            bar = figure.colorbar(image, cax=inside, orientation="horizontal")
            bar.ax.tick_params(labelsize=5, colors="w", pad=1)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    axes[-1, 0].set_xlabel("kpc", fontsize=7)
    axes[-1, 0].set_ylabel("kpc", fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("log10 Σ(HI) / (Msun kpc$^{-2}$); same stretch, gas by its own bar", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return figure


def table(rows: Mapping[str, list[dict[str, float]]], runs: Mapping[str, list[Trained]]) -> list[str]:
    """One data set as Markdown: means over seeds ± their standard deviation."""
    columns = {
        **{metric: title for metric, (title, _) in SHOWN.items()},
        **{"psnr_of_mean": f"PSNR of the mean of {DRAWS} draws", "coverage": "truth inside the central 68 % [%]"},
        **{"spread_skill": "spread over error [%]", "calls": "calls", "seconds": "ms a map"},
    }
    lines = [
        f"| | {' | '.join(columns.values())} | training [s] | memory [GiB] |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, seeds in rows.items():
        cells = []
        for column in columns:
            values = [row.get(column, np.nan) * (1000 if column == "seconds" else 1) for row in seeds]
            cells.append(f"{values[0]:.0f}" if column == "calls" and np.isfinite(values[0]) else over_seeds(values))
        for what in ("seconds", "memory"):
            cells.append(over_seeds(getattr(run, what) for run in runs.get(name, [])))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def claims_of(
    problem: str, rows: Mapping[str, list[dict[str, float]]], curves: Mapping[str, list[dict[str, float]]]
) -> list[Claim]:
    """What each method promises against the L1 U-Net, few calls against many, and calibration."""
    made = []

    def mean(name: str, metric: str) -> float:
        return float(np.mean([row[metric] for row in rows[name]]))

    bar = mean("L1 U-Net", "power_error")
    for name in METHODS:
        if name != "L1 U-Net":
            value = mean(name, "power_error")
            made.append(
                Claim(f"{problem}: {name}, P(k) error [%]", value, f"below the L1 U-Net's {bar:.3g}", value < bar)
            )
    pixel = mean("per-pixel relation", "psnr")
    value = mean("L1 U-Net", "psnr")
    made.append(
        Claim(f"{problem}: L1 U-Net, PSNR [dB]", value, f"above the per-pixel relation's {pixel:.4g}", value > pixel)
    )
    for name, curve in curves.items():
        if name in ("bridge", "flow") and len(curve) == len(CALLS):
            ten, most = curve[CALLS.index(10)], curve[-1]
            loss = most["psnr"] - ten["psnr"]
            made.append(
                Claim(f"{problem}: {name}, PSNR lost by 10 calls against {CALLS[-1]} [dB]", loss, "≤ 0.2", loss <= 0.2)
            )
            ratio = ten["power_error"] / most["power_error"]
            made.append(
                Claim(
                    f"{problem}: {name}, P(k) error of 10 calls over that of {CALLS[-1]}", ratio, "≤ 1.1", ratio <= 1.1
                )
            )
    for name in METHODS:
        if "coverage" in rows[name][0]:
            value = mean(name, "coverage")
            made.append(
                Claim(
                    f"{problem}: {name}, pixels inside the central 68 % of the draws [%]",
                    value,
                    "58 to 78",
                    58 <= value <= 78,
                )
            )
    return made


def main() -> None:
    """Build, train, judge, report."""
    made = parser(__doc__ or "")
    made.add_argument("--work", type=Path, help="keep stores and runs here, and go on with what is there")
    made.add_argument("--steps", type=int, default=200)
    asked = made.parse_args()
    torch.set_num_threads(1)
    seeds, steps = ((0,), 6) if asked.quick else (SEEDS, asked.steps)
    calls = (1, 2) if asked.quick else CALLS
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    curves: dict[str, dict[str, list[dict[str, float]]]] = {}
    first: dict[str, Trained] = {}
    sections: list[str] = []
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        found = problems(work, asked.quick)
        for problem in found:
            tasks = [(name, seed) for seed in seeds for name in METHODS]

            def one(task: tuple[str, int], problem: Problem = problem) -> Trained:
                name, seed = task
                folder = work / problem.name.replace(" ", "_") / f"{METHODS[name]}_{seed}"
                return train(configured(problem, name, seed, steps), folder)

            trained = dict(zip(tasks, two_at_a_time(one, tasks), strict=True))
            yardstick = yardstick_of(problem)
            rows = {name: [judge(problem, trained[name, seed], yardstick) for seed in seeds] for name in METHODS}
            rows |= {name: [row] for name, row in baselines(problem, yardstick).items()}
            results[problem.name] = rows
            curves[problem.name] = {
                name: against_calls(problem, trained[name, seeds[0]], yardstick, calls)
                for name in ("diffusion", "bridge", "flow")
            }
            claims += claims_of(problem.name, rows, curves[problem.name])
            runs = {name: [trained[name, seed] for seed in seeds] for name in METHODS}
            first = first or {name: runs[name][0] for name in METHODS}
            groups = len(np.unique(np.asarray(problem.store.catalogue()["split_group"])[problem.views("test")]))
            sections += [
                f"## {problem.name}",
                "",
                f"{len(problem.views('train'))} training maps; {len(problem.views('test'))} test maps of {groups} "
                "groups that no method saw.",
                "",
                *table(rows, runs),
                "",
            ]
        report(claims, asked.json)
        print("\n".join(sections))
        if asked.quick:
            return
        figures = {"": quality_figure(results), "_calls": calls_figure(curves, calls)}
        figures["_maps"] = maps_figure(found[0], first)
        for suffix, figure in figures.items():
            with write_whole(RESULTS / f"translate{suffix}.png") as side:
                figure.savefig(side, dpi=130)
    lines = [
        "# All methods, the same maps, the same budget",
        "",
        f"`python benchmarks/translate.py` made this page. {steps} steps of 8 maps of {PIXELS} x {PIXELS} pixels each, "
        f"with the method section of the shipped configuration, {len(seeds)} seeds of weights (± is their standard "
        f"deviation), one thread a run, two runs at a time ({machine()}). This is a small budget, minutes a run, and "
        "methods that learn slowly show it: it ranks how fast methods learn, not how good they become. Metrics are "
        "those of `translate/evaluate.py`, of single translations (single draws, where draws differ); CRPS is over "
        f"{DRAWS} draws, of one translation it is its mean absolute error, both in % of the dynamic range L over"
        " pixels that are not empty sky. CycleGAN, CUT and FastCUT are trained without pairs. ms a map: one thread, "
        "with loading. Times are processor seconds.",
        "",
        *sections,
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "![quality](translate.png)",
        "",
        "Quality of a single translation against network calls (first seed):",
        "",
        "![calls](translate_calls.png)",
        "",
        f"The test view at the upper quartile of HI mass ({found[0].name}, first seed):",
        "",
        "![maps](translate_maps.png)",
    ]
    write_text(RESULTS / "translate.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
