"""Adaptation without labels on real radio galaxies: from FIRST to the NVSS.

    python benchmarks/adapt.py [--quick] [--json FILE] [--steps 300] [--seeds 5]

FR-DEEP (Tang, Scaife & Leahy 2019) holds radio galaxies of Fanaroff-Riley classes I and II as both surveys saw them.
Classifiers learn from labelled FIRST images and are judged on NVSS images of objects that no training saw; no label of
an NVSS image is used but by the target-supervised bound. Splits are by object over both surveys, samples are unpaired.

The source goes through more and more of what differs between the surveys:

    raw        FIRST on pixels of 15 arcsec
    matched    convolved to the beam of the NVSS (45 arcsec)
    observed   flux densities, recovered from the level at which FIRST images are clipped (3σ, 0.45 mJy a beam); then
               matched, with the noise of the NVSS (0.45 mJy a beam), clipped at its 3σ, scaled to the peak in steps of
               1/255

Each with every method, several seeds of split and weights. AUROC is that of the checkpoint that the label-free
validator chose. A forest of extra-trees on the same pixels stands beside them.

Writes ``benchmarks/results/adapt.md`` and ``adapt.png`` (not with ``--quick``). The data is looked for in
``$SKYSHIFT_SHARED`` or ``../shared/data``.
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from numpy.typing import NDArray
from report import RESULTS, ROOT, Claim, machine, parser, report
from scipy.ndimage import gaussian_filter, zoom
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score

from skyshift.adapt.adapter import Adapter
from skyshift.adapt.evaluate import open_run
from skyshift.adapt.train import main as train
from skyshift.checkpoint import best, latest
from skyshift.datasets.collect import CollectConfig, Images, collect
from skyshift.files import write_text, write_whole

Array = NDArray[np.float64]

DATA = Path(os.environ.get("SKYSHIFT_SHARED", ROOT.parent / "shared" / "data")) / "radio_surveys" / "fr_deep.npz"
PIXELS, PIXEL = 18, 15.0
"""Per side, and the side of one in arcsec: the grid of the NVSS over the field of a FIRST image."""
FIRST_PIXEL, FIRST_BEAM, NVSS_BEAM = 1.8, 5.4, 45.0
FIRST_CLIP, NVSS_NOISE, CLIP = 0.45, 0.45, 3.0
"""mJy a beam (Becker, White & Helfand 1995; Condon et al. 1998); FR-DEEP clips at three times the noise."""
FWHM = np.sqrt(8 * np.log(2))
SOURCES = ("raw", "matched", "observed")
METHODS: Mapping[str, dict[str, Any]] = {
    "source only": {"class_path": "source_only.SourceOnly"},
    "MMD": {"class_path": "mmd.MMD"},
    "DANN": {"class_path": "dann.DANN"},
    "self-ensembling": {"class_path": "self_ensembling.SelfEnsembling"},
    "AdaMatch": {"class_path": "adamatch.AdaMatch"},
    "universal": {"class_path": "universal.Universal", "margin": 0.2, "weight": 0.05},
}
BOUND = "target-supervised"


def peaked(maps: Array) -> Array:
    """Scaled to a peak of 1."""
    return maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-12)


def on_grid(maps: Array) -> Array:
    """FIRST images on the pixels of the NVSS, means over them."""
    share = PIXELS / maps.shape[1]
    return np.stack([zoom(one, share, order=1, grid_mode=True, mode="grid-constant") for one in maps])


def convolved(maps: Array) -> Array:
    """With the Gaussian that turns the beam of FIRST into that of the NVSS."""
    sigma = np.sqrt(NVSS_BEAM**2 - FIRST_BEAM**2) / FWHM / FIRST_PIXEL
    return np.stack([gaussian_filter(one, sigma, mode="constant") for one in maps])


def observed(maps: Array, seed: int = 0) -> Array:
    """FIRST images as the NVSS would have clipped and scaled them."""
    lowest = np.where(maps > 0, maps, np.inf).min((1, 2))
    flux = maps * (FIRST_CLIP / np.where(np.isfinite(lowest), lowest, 1.0))[:, None, None]
    seen = on_grid(convolved(flux)) * (NVSS_BEAM / FIRST_BEAM) ** 2
    generator, margin = np.random.default_rng(seed), 6
    white = generator.normal(size=(len(maps), PIXELS + 2 * margin, PIXELS + 2 * margin))
    noise = np.stack([gaussian_filter(one, NVSS_BEAM / FWHM / PIXEL / np.sqrt(2)) for one in white])
    noise = noise[:, margin:-margin, margin:-margin]
    seen = seen + NVSS_NOISE * noise / noise.std()
    return np.floor(255 * peaked(np.where(seen < CLIP * NVSS_NOISE, 0.0, seen))) / 255


def gather(folder: Path) -> Path:
    """A store of the objects that both surveys hold, a domain each for the three sources and the target."""
    with np.load(DATA, allow_pickle=False) as file:
        first, nvss = file["first_images"].astype(float), file["nvss_images"].astype(float)
        facts = {survey: {k: file[f"{survey}_{k}"] for k in ("objects", "labels")} for survey in ("first", "nvss")}
    middle = slice((nvss.shape[1] - PIXELS) // 2, (nvss.shape[1] + PIXELS) // 2)
    images = {
        "raw": peaked(on_grid(first)),
        "matched": peaked(on_grid(convolved(first))),
        "observed": observed(first),
        "nvss": peaked(nvss[:, middle, middle]),
    }
    inputs = {}
    for name, maps in images.items():
        of = facts["nvss" if name == "nvss" else "first"]
        np.savez(folder / f"{name}.npz", images=maps.astype(np.float32), names=of["objects"], labels=of["labels"])
        inputs[name] = Images(str(folder / f"{name}.npz"), unit="1", pixel=PIXEL, labels="labels")
    store = folder / "radio.zarr"
    made = CollectConfig(inputs, str(store), PIXELS, PIXEL, label_names=["FR I", "FR II"])
    with contextlib.redirect_stdout(io.StringIO()):
        collect(made, progress=False)
    return store


def configured(store: Path, source: str, method: str, seed: int, steps: int, output: Path) -> dict[str, Any]:
    """A run."""
    encoder: dict[str, Any] = {"width": 16, "depth": 3}
    chosen = {"class_path": "source_only.SourceOnly", "side": "target"} if method == BOUND else METHODS[method]
    if method == "universal":
        encoder["domain_norm"] = True
    arguments = {key: value for key, value in chosen.items() if key != "class_path"}
    every = max(1, steps // 10)
    return {
        "source": {"store": str(store), "domains": [source], "scaling": {source: "asinh"}},
        "target": {"store": str(store), "domains": ["nvss"], "scaling": {"nvss": "asinh"}},
        "split": {"train": 0.6, "validation": 0.15, "test": 0.25, "seed": seed},
        "augment": {"symmetries": True, "shift": 1.0, "noise": 0.02, "cutout": 0.2},
        "method": {
            "class_path": f"skyshift.adapt.methods.{chosen['class_path']}",
            "init_args": {
                "encoder": {"class_path": "skyshift.adapt.encoders.SmallCNN", "init_args": encoder},
                **arguments,
            },
        },
        "training": {
            **{"steps": steps, "batch_size": 32, "learning_rate": 0.001, "betas": [0.9, 0.999], "average": 0.98},
            **{"schedule": "cosine", "decay": 0.9, "validate_every": every, "checkpoint_every": every, "keep": 2},
            **{"monitor": "source_loss", "patience": 0, "seed": seed, "precision": "no"},
        },
        "evaluation": False,
        "output": str(output),
    }


def run(config: dict[str, Any], bound: bool) -> float:
    """AUROC of FR II on held-out NVSS objects, of the chosen checkpoint (the last, of the bound)."""
    folder = Path(config["output"])
    folder.mkdir(parents=True)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), "utf-8")
    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(["--config", str(path)])
    data = open_run(folder)
    views = data.target.parts["test"]
    checkpoint = latest(folder) if bound else best(folder)
    assert checkpoint is not None
    said = Adapter.from_pretrained(checkpoint)(data.target.store, views)
    return float(roc_auc_score(data.target_labels(views), said.probabilities[:, 1]))


def forest(config: dict[str, Any], source: str) -> float:
    """AUROC of extra-trees on the pixels in all eight orientations, on the split of a run."""
    data = open_run(Path(config["output"]))
    side = data.target if source == "nvss" else data.source
    views = side.parts["train"]
    labels = data.target_labels(views) if source == "nvss" else data.source.of_views(data.source_labels, views)
    maps = side.store.maps(source, views)
    turned = np.concatenate([np.rot90(maps, k, (1, 2))[:, :, ::flip] for k in range(4) for flip in (1, -1)])
    model = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=0)
    model.fit(turned.reshape(len(turned), -1), np.tile(labels, 8))
    test = data.target.parts["test"]
    seen = data.target.store.maps("nvss", test).reshape(len(test), -1)
    return float(roc_auc_score(data.target_labels(test), model.predict_proba(seen)[:, 1]))


def interval(values: Array) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over seeds (Student's t)."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(half)


def said(values: Array) -> str:
    """Mean ± half of the interval."""
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}" if np.isfinite(half) else f"{mean:.3f}"


def figure(
    found: Mapping[tuple[str, str], Array], bound: Array, lower: Array, sources: list[str], methods: list[str]
) -> Figure:
    """AUROC of each method by source, with intervals, between the bounds."""
    drawn = Figure(figsize=(7.2, 4.0), layout="constrained")
    axis = drawn.subplots()
    for number, source in enumerate(sources):
        for place, method in enumerate(methods):
            mean, half = interval(found[source, method])
            axis.errorbar(mean, place + 0.22 * (1 - number), xerr=half, fmt="os^"[number], color=f"C{number}", ms=5,
                          label=source if not place else None)  # fmt: skip
    for values, style, name in ((bound, "-", BOUND), (lower, "--", "source only, matched")):
        axis.axvline(values.mean(), color="0.4", ls=style, lw=1, label=name)
    axis.set_yticks(range(len(methods)), methods)
    axis.invert_yaxis()
    axis.set_xlabel("AUROC of FR II against FR I on unseen NVSS objects (mean over seeds, 95 % interval)")
    axis.legend(fontsize=8, title="source: FIRST", title_fontsize=8)
    axis.grid(axis="x", lw=0.3)
    return drawn


def claims_of(found: Mapping[tuple[str, str], Array]) -> list[Claim]:
    """The best chain against source only on beam-matched maps, seed by seed; and the aim."""
    chain = max(found, key=lambda key: found[key].mean())
    name = f"{chain[1]} on {chain[0]} FIRST"
    mean, half = interval(found[chain] - found["matched", "source only"])
    step, error = interval(found["observed", "source only"] - found["matched", "source only"])
    return [
        Claim(f"AUROC gained over source only on matched FIRST by {name}, less its interval", mean - half, "> 0",
              bool(mean - half > 0)),
        Claim("AUROC gained by observing instead of matching, source only, less its interval", step - error, "> 0",
              bool(step - error > 0)),
        Claim(f"AUROC of {name}", float(found[chain].mean()), "≥ 0.88", bool(found[chain].mean() >= 0.88)),
    ]  # fmt: skip


def main() -> None:
    """Gather, train, judge, report."""
    made = parser(__doc__ or "")
    made.add_argument("--steps", type=int, default=300)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="beside source only")
    made.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="beside matched, observed")
    asked = made.parse_args()
    if not DATA.is_file():
        sys.exit(f"skipped: there is no {DATA}; set SKYSHIFT_SHARED to the folder of the data")
    torch.set_num_threads(1)
    seeds, steps = (1, 20) if asked.quick else (asked.seeds, asked.steps)
    started = time.process_time()
    found: dict[tuple[str, str], Array] = {}
    sources = [name for name in SOURCES if name in {*asked.sources, "matched", "observed"}]
    methods = [name for name in METHODS if name in {*asked.methods, "source only"}]
    trees: dict[str, list[float]] = {name: [] for name in (*sources, "nvss")}
    bound = []
    with tempfile.TemporaryDirectory() as temporary:
        store = gather(Path(temporary))
        tasks = [(source, method) for method in methods for source in sources]
        values: dict[tuple[str, str], list[float]] = {task: [] for task in tasks}
        for seed in range(seeds):
            for source, method in tasks:
                config = configured(store, source, method, seed, steps, Path(temporary) / f"{source}_{method}_{seed}")
                values[source, method].append(run(config, False))
                if method == "source only":
                    trees[source].append(forest(config, source))
            config = configured(store, "matched", BOUND, seed, steps, Path(temporary) / f"bound_{seed}")
            bound.append(run(config, True))
            trees["nvss"].append(forest(config, "nvss"))
            print(f"seed {seed} after {time.process_time() - started:.0f} s of processor time", flush=True)
        found = {task: np.array(values[task]) for task in tasks}
    upper, lower = np.array(bound), found["matched", "source only"]
    claims = claims_of(found)
    report(claims, asked.json)

    beam = ""
    if "raw" in sources:
        change = lower.mean() - found["raw", "source only"].mean()
        beam = f"from raw pixels to the beam of the NVSS {change:+.3f}; "

    def gap(values: Array) -> str:
        return f"{100 * (values.mean() - lower.mean()) / (upper.mean() - lower.mean()):.0f} %"

    lines = [
        "# From FIRST to the NVSS without a label",
        "",
        f"`python benchmarks/adapt.py` made this page. {seeds} seeds of split and weights, {steps} steps of 32 maps of "
        f"{PIXELS} x {PIXELS} pixels, one small convolutional network ({machine()}). AUROC of FR II against FR I on "
        "NVSS images of objects that no training saw, of the checkpoint that the loss on held-out FIRST chose; "
        "± is half of the 95 % interval of the mean over seeds.",
        "",
        f"| method | {' | '.join(sources)} | gap closed on observed |",
        "|---" * (len(sources) + 2) + "|",
        *(
            f"| {method} | {' | '.join(said(found[source, method]) for source in sources)} | "
            f"{gap(found['observed', method])} |"
            for method in methods
        ),
        f"| extra-trees on pixels | {' | '.join(said(np.array(trees[source])) for source in sources)} | |",
        "",
        f"Bounds: source only on matched FIRST {said(lower)}; {BOUND} {said(upper)} (extra-trees "
        f"{said(np.array(trees['nvss']))}). Gap closed is (method − source only on matched) / ({BOUND} − the same).",
        "",
        "What differs between the surveys, and what each step of the chain changes in AUROC, for source only: "
        f"{beam}from the beam of the NVSS to its noise, its clipping in flux density and its steps of 1/255 "
        f"{found['observed', 'source only'].mean() - found['matched', 'source only'].mean():+.3f}. Not taken out: flux "
        "that FIRST resolves out, which cannot be had from its images, and the field of view, which is that of FIRST.",
        "",
        "The chain in the claims is the best of the table by these very numbers: that choice used labels of the "
        "target, so its gain is an upper bound of what a choice without them would bring.",
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "![AUROC](adapt.png)",
    ]
    print("\n".join(lines))
    if asked.quick:
        return
    write_text(RESULTS / "adapt.md", "\n".join(lines) + "\n")
    with write_whole(RESULTS / "adapt.png") as side:
        figure(found, upper, lower, sources, methods).savefig(side, dpi=130)


if __name__ == "__main__":
    main()
