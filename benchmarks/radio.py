"""NVSS and FIRST, two real surveys of the same radio galaxies: super-resolution, degradation, unpaired translation.

    python benchmarks/radio.py [--quick] [--json FILE] [--work FOLDER]

FR-DEEP (Tang, Scaife & Leahy 2019) holds 413 radio galaxies that both surveys saw. They are split by object; with each
of three seeds of weights and split,

    NVSS → FIRST, paired      L1 U-Net, pix2pix and a bridge, against the bicubic NVSS image itself
    FIRST → NVSS, paired      L1 U-Net, against the survey-degradation operator (beam matching) and against FIRST
    both directions, unpaired CycleGAN, which sees no image of a source beside the other survey's image of it

are judged on sources that no network has seen. Numbers are over sources: correlation of the pixels with the true image
and PSNR (both images scaled to a peak of 1), and for NVSS → FIRST the *forward check*: the estimate observed with the
beam of the NVSS, against the NVSS image that it was made from.

Writes ``benchmarks/results/radio.md`` and ``radio.png`` (not with ``--quick``). The data is looked for in
``$SKYSHIFT_SHARED`` or ``../shared/data``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contest import Trained, bootstrap, over_seeds, shipped, train, two_at_a_time
from matplotlib.figure import Figure
from numpy.typing import NDArray
from report import RESULTS, ROOT, Claim, machine, parser, report
from scipy.ndimage import gaussian_filter

from skyshift.datasets.collect import interpolated
from skyshift.datasets.degrade import degrade
from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.store import MapStore
from skyshift.files import write_text, write_whole
from skyshift.translate.translator import Translator

Array = NDArray[np.float64]

DATA = Path(os.environ.get("SKYSHIFT_SHARED", ROOT.parent / "shared" / "data")) / "radio_surveys" / "fr_deep.npz"
SEEDS = (0, 1, 2)
PIXELS, PIXEL = 36, 7.2
"""Per side, and the side of one in arcsec: half the resolution of the shipped grid, a quarter of its cost."""
BEAM_DIFFERENCE = np.sqrt(45.0**2 - 5.4**2) / np.sqrt(8 * np.log(2)) / PIXEL
"""σ in pixels of the Gaussian that turns the beam of FIRST into that of the NVSS."""
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def contestants() -> dict[str, dict[str, Any]]:
    """Name to configuration, without store, seed and steps."""
    sharpen, unpaired = shipped("nvss_to_first"), shipped("nvss_first_unpaired")
    reverse = {**sharpen["data"], "source": ["first"], "target": ["nvss"]}
    return {
        "L1 U-Net": {**sharpen, "method": shipped("regression")["method"]},
        "pix2pix": sharpen,
        "bridge": {**sharpen, "method": shipped("bridge")["method"]},
        "L1 U-Net, to NVSS": {**sharpen, "method": shipped("regression")["method"], "data": reverse},
        "CycleGAN": unpaired,
    }


def configured(base: dict[str, Any], store: Path, seed: int, steps: int) -> dict[str, Any]:
    """A contestant's configuration for one seed, which also shuffles the split."""
    data = {**base["data"], "store": str(store), "split": {**SHARES, "seed": seed}}
    return {**base, "data": data, "training": {**base["training"], "steps": steps, "seed": seed, "sample_every": 0}}


def peaked(maps: NDArray[Any]) -> Array:
    """Maps scaled to a peak of 1; empty ones stay empty."""
    peak = maps.max((1, 2), keepdims=True)
    return np.where(peak > 0, maps / np.where(peak > 0, peak, 1), 0.0).astype(np.float64)


def correlation(truth: Array, estimate: Array) -> Array:
    """Pearson's r of the pixels of each pair; 0 where an estimate is empty."""
    t, e = (m - m.mean((1, 2), keepdims=True) for m in (truth, estimate))
    norm = np.sqrt((t**2).sum((1, 2)) * (e**2).sum((1, 2)))
    return np.where(norm > 0, (t * e).sum((1, 2)) / np.where(norm > 0, norm, 1), 0.0)


def psnr(truth: Array, estimate: Array) -> Array:
    """DB against a peak of 1."""
    return np.asarray(-10 * np.log10(np.maximum(((truth - estimate) ** 2).mean((1, 2)), 1e-12)))


def operated(names: list[str]) -> Array:
    """FIRST through the survey-degradation operator, on the grid of the store."""
    data = np.load(DATA)
    number = {str(name): i for i, name in enumerate(data["first_objects"])}
    images = [data["first_images"][number[name]].astype(float) for name in names]
    coarse = [degrade(image, "first", "nvss", seed=0, noise_in=0.0).clean for image in images]
    return np.stack([interpolated(image, 15.0, PIXEL, PIXELS) for image in coarse])


def judge(store: MapStore, runs: dict[str, Trained], seed: int) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """Scores of every contestant and baseline on the test sources of a seed, and the maps themselves.

    Returns:
        ``direction: contestant`` to metric to (sources,), and the same names to maps scaled to a peak of 1.
    """
    catalogue = store.catalogue()
    views = split_views(catalogue, Split(**SHARES, seed=seed))["test"]
    first, nvss = (peaked(store.maps(name, views)) for name in ("first", "nvss"))
    names = [str(catalogue["name"][row]) for row in np.searchsorted(catalogue["view"], views)]

    def of(run: str, domain: str, reverse: bool = False) -> Array:
        return peaked(Translator.from_pretrained(runs[run].folder, reverse=reverse)(store, views)[domain].values)

    maps = {
        "NVSS → FIRST: bicubic NVSS": nvss,
        **{f"NVSS → FIRST: {run}": of(run, "first") for run in ("L1 U-Net", "pix2pix", "bridge")},
        "NVSS → FIRST: CycleGAN, unpaired": of("CycleGAN", "first"),
        "FIRST → NVSS: FIRST itself": first,
        "FIRST → NVSS: degradation operator": peaked(operated(names)),
        "FIRST → NVSS: L1 U-Net": of("L1 U-Net, to NVSS", "nvss"),
        "FIRST → NVSS: CycleGAN, unpaired": of("CycleGAN", "nvss", reverse=True),
    }
    scores = {}
    for name, estimate in maps.items():
        sharpens = name.startswith("NVSS")
        truth = first if sharpens else nvss
        scores[name] = {
            "source": views.astype(np.float64),
            "correlation": correlation(truth, estimate),
            "psnr": psnr(truth, estimate),
        }
        if sharpens:
            blurred = np.stack([gaussian_filter(image, BEAM_DIFFERENCE) for image in estimate])
            scores[name]["forward"] = correlation(nvss, peaked(blurred))
    return scores, {"FIRST": first, "NVSS": nvss, **maps}


def figure(maps: dict[str, Array], chosen: list[int]) -> Figure:
    """Rows of sources; all panels of peak 1 with the same square-root stretch."""
    shown = [
        *("NVSS", "NVSS → FIRST: L1 U-Net", "NVSS → FIRST: pix2pix", "NVSS → FIRST: bridge"),
        *("NVSS → FIRST: CycleGAN, unpaired", "FIRST", "FIRST → NVSS: degradation operator"),
        *("FIRST → NVSS: L1 U-Net", "FIRST → NVSS: CycleGAN, unpaired"),
    ]
    made = Figure(figsize=(1.75 * len(shown), 1.75 * len(chosen) + 0.9), layout="constrained")
    axes = made.subplots(len(chosen), len(shown), squeeze=False, sharex=True, sharey=True)
    half = PIXELS * PIXEL / 2 / 60
    for row, source in zip(axes, chosen, strict=True):
        for axis, name in zip(row, shown, strict=True):
            image = axis.imshow(
                np.sqrt(np.clip(maps[name][source], 0, 1)),
                origin="lower",
                cmap="inferno",
                vmin=0,
                vmax=1,
                extent=(-half, half, -half, half),
            )
    for axis, name in zip(axes[0], shown, strict=True):
        axis.set_title(name.replace(": ", ":\n"), fontsize=7)
    axes[-1, 0].set_xlabel("arcmin", fontsize=7)
    axes[-1, 0].set_ylabel("arcmin", fontsize=7)
    for axis in axes.flat:
        axis.tick_params(labelsize=6)
    bar = made.colorbar(image, ax=axes, shrink=0.7, pad=0.01)
    bar.set_ticks([0, 0.1**0.5, 0.25**0.5, 0.5**0.5, 1], labels=["0", "0.1", "0.25", "0.5", "1"])
    bar.set_label("brightness / peak (square-root stretch)", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return made


def claims_of(pooled: dict[str, dict[str, Array]]) -> list[Claim]:
    """Each contestant against its baseline, paired by source.

    Args:
        pooled: Name to metric to (entries,), over all seeds; ``source`` to (entries,) the view of each.
    """
    made = []

    def better(winner: str, loser: str, metric: str) -> None:
        difference = pooled[winner][metric] - pooled[loser][metric]
        _, source = np.unique(pooled[winner]["source"], return_inverse=True)
        value, low, high = bootstrap(np.bincount(source, difference) / np.bincount(source), np.mean)
        name = f"{winner}, {metric} over {loser.partition(': ')[2]} (95 %: {low:+.3f} to {high:+.3f})"
        made.append(Claim(name, value, "> 0 with its interval", low > 0))

    for run in ("L1 U-Net", "pix2pix", "bridge", "CycleGAN, unpaired"):
        better(f"NVSS → FIRST: {run}", "NVSS → FIRST: bicubic NVSS", "correlation")
    for run in ("pix2pix", "bridge"):
        better(f"NVSS → FIRST: {run}", "NVSS → FIRST: L1 U-Net", "forward")
    for run in ("L1 U-Net", "CycleGAN, unpaired"):
        better(f"FIRST → NVSS: {run}", "FIRST → NVSS: degradation operator", "correlation")
        better(f"FIRST → NVSS: {run}", "FIRST → NVSS: FIRST itself", "correlation")
    return made


def page(per_seed: list[dict[str, dict[str, Array]]], claims: list[Claim], runs: Any, text: str) -> str:
    """The result as Markdown: means over the test sources, ± over the seeds."""
    lines = ["# NVSS and FIRST: two real surveys of the same sources", "", text, ""]
    lines += ["| | correlation | PSNR [dB] | forward check, correlation |", "|---|---|---|---|"]
    for name in per_seed[0]:
        row = per_seed[0][name]
        cells = [
            over_seeds(scores[name][metric].mean() for scores in per_seed) if metric in row else ""
            for metric in ("correlation", "psnr", "forward")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| trained | time [s] | peak memory [GiB] |", "|---|---|---|"]
    for name in runs[0]:
        times, memory = ([getattr(of[name], what) for of in runs] for what in ("seconds", "memory"))
        lines.append(f"| {name} | {over_seeds(times)} | {over_seeds(memory)} |")
    lines += ["", "| claim | value | bar | holds |", "|---|---|---|---|"]
    lines += [f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims]
    lines += [
        "",
        "Four test sources of the first seed, at 10, 40, 60 and 90 % of the correlations of pix2pix with FIRST. "
        "FR-DEEP is clipped at the noise and scaled image by image: flux densities cannot be compared, only structure.",
        "",
        "![maps](radio.png)",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Gather, train, judge, report."""
    made = parser(__doc__ or "")
    made.add_argument("--work", type=Path, help="keep the store and the runs here, and go on with what is there")
    made.add_argument("--steps", type=int, default=200)
    asked = made.parse_args()
    if not DATA.is_file():
        sys.exit(f"FR-DEEP is not there ({DATA}); set SKYSHIFT_SHARED to the folder of the real data")
    seeds, steps = ((0,), 15) if asked.quick else (SEEDS, asked.steps)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        path = work / "maps.zarr"
        inputs = [f"--inputs.{name}.path={DATA}" for name in ("first", "nvss")]
        command = [sys.executable, ROOT / "datasets" / "collect.py", *inputs, f"--output={path}"]
        command += [f"--pixels={PIXELS}", f"--pixel={PIXEL}"]
        subprocess.run(command, check=True)
        store = MapStore(path)
        tasks = [(name, seed) for seed in seeds for name in contestants()]

        def one(task: tuple[str, int]) -> Trained:
            name, seed = task
            folder = work / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            return train(configured(contestants()[name], path, seed, steps), folder)

        trained = dict(zip(tasks, two_at_a_time(one, tasks), strict=True))
        runs = [{name: trained[name, seed] for name in contestants()} for seed in seeds]
        judged = [judge(store, of, seed) for of, seed in zip(runs, seeds, strict=True)]
    per_seed = [scores for scores, _ in judged]
    pooled = {
        name: {metric: np.concatenate([scores[name][metric] for scores in per_seed]) for metric in row}
        for name, row in per_seed[0].items()
    }
    claims = claims_of(pooled)
    report(claims, asked.json)
    sources = len(next(iter(per_seed[0].values()))["correlation"])
    text = (
        f"`python benchmarks/radio.py` made this page. {store.views} sources, split by object; {sources} of them are "
        f"judged with each of {len(seeds)} seeds of weights and split (± is their standard deviation; a source may be "
        f"in several test parts). {steps} steps each, {PIXELS} pixels of {PIXEL} arcsec a side; one thread, two runs "
        f"at a time ({machine()}). Both images of a source are scaled to a peak of 1. Forward check: the estimate with "
        "the beam of the NVSS against the NVSS image that it was made from. Claims: mean difference over sources, "
        "those of one source averaged over the seeds that judge it, with its 95 % bootstrap interval over sources."
    )
    made_page = page(per_seed, claims, runs, text)
    print(made_page)
    if asked.quick:
        return
    maps = judged[0][1]
    order = np.argsort(per_seed[0]["NVSS → FIRST: pix2pix"]["correlation"])
    chosen = [int(order[round(share * (len(order) - 1))]) for share in (0.1, 0.4, 0.6, 0.9)]
    with write_whole(RESULTS / "radio.png") as side:
        figure(maps, chosen).savefig(side, dpi=140)
    write_text(RESULTS / "radio.md", made_page)


if __name__ == "__main__":
    main()
