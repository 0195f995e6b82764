"""What the discriminators look at, and what it costs to know: speed and error against ``shap``, and figures.

    python benchmarks/explain.py [--quick] [--json FILE] [--runs FOLDER]

Trains both runs into ``--runs`` where they are not there yet. Writes ``benchmarks/results/explain.md`` with its figures
(not with ``--quick``, which trains a small default run for a few steps and leaves out the regions). The real data is
looked for in ``$SKYSHIFT_SHARED`` or ``../shared/data``.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import shap
import torch
from report import RESULTS, ROOT, Claim, machine, parser, report
from torch import Tensor, nn

from skyshift.attribution import Attribution, AttributionConfig, explain, out_of_place
from skyshift.files import write_text
from skyshift.translate.explain import explain_store
from skyshift.translate.explain_models import Logits
from skyshift.translate.explain_report import Explanation
from skyshift.translate.explain_work import ExplainConfig, Work

SHARED = Path(os.environ.get("SKYSHIFT_SHARED", ROOT.parent / "shared" / "data"))
FOLDER = SHARED / "tng" / "TNG50-4-Subbox0" / "output" / "snapdir_2332"
MAPS = 8
SHAP_DRAWS = 200  # shap's own default
DRAWS = 64
REFERENCE = 1024
WRONG = {
    "other_galaxy": "another galaxy's target",
    "shuffled_domain": "a target with shuffled pixels",
    "rotated_source": "a source turned by 90°",
}


LOOKED_AT = {"default": "61dd41e38be2", "regions": "e67b554731ab"}
"""Weights (start of their SHA-256) of the runs that :data:`SEEN` describes; of others it is left out."""

KERNEL = (
    " The maps of this run were made before the projection took its present kernel, which changes them by 0.3 % (L1)."
)

SEEN = {
    "default": "Seen in the figures: SHAP maps carry a checkerboard of 2 to 4 pixels, the strides of the "
    "discriminator's convolutions, and stripes along the border, its zero padding. Single pixels mean nothing, patches "
    "of some 4 pixels do. The evidence lies in the inner disc, along its arms and in clumps. Source and target often "
    "have opposite signs in one place (HI of a clump raises the logit, the gas under it lowers it): the two are "
    "compared there, though not so that a wrong pair would be recognised. In deletion, the first tenth of the pixels "
    "in random order lowers the logit more than in SHAP's: half-deleted maps are unlike any map, and are judged for "
    "that.",
    "regions": "Seen in the figures: the evidence sits within some 25 kpc of the density peak, with signs that "
    "alternate from pixel to pixel, and in stripes of gas along the border, where the zero padding begins: an "
    "artefact. In the region with next to no HI (the lowest logit) its absence at the peak is what counts against it. "
    "There the generator invents filaments of HI several times as dense, and the evidence does not follow them. "
    "With three independent test regions nothing finer can be said.",
}
"""What a look at the figures adds to the numbers; to be looked at again when the runs change."""


def run(*command: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def train_default(runs: Path, quick: bool) -> Path:
    """The run of ``make train``, or a small version of it."""
    output, store = runs / "default", runs / "default.zarr"
    if not output.is_dir():
        small = ["--source.init_args.simulation.galaxies", "30", "--pixels", "32"] if quick else []
        run("datasets/build.py", "--source.init_args.path", str(runs / "simulation"), *small, "--store", str(store))
        options = ["--training.steps", "120"] if quick else []
        data = ["--data.store", str(store), "--data.build", ""]
        run("translate/train.py", *data, "--output", str(output), "--evaluation", "false", *options)
    return output


def train_regions(runs: Path) -> Path:
    """The run of ``benchmarks/real_tng50.py``."""
    output, store = runs / "regions", runs / "regions.zarr"
    if not output.is_dir():
        source = f"--source.init_args.folder={FOLDER}"
        run("datasets/build.py", "--config", "configs/datasets/tng50_regions.yaml", "--store", str(store), source)
        data = ["--data.store", str(store), "--data.build", ""]
        config = ["--config", "configs/translate/tng50_regions.yaml"]
        run("translate/train.py", *config, *data, "--output", str(output), "--evaluation", "false")
    return output


def root_mean_square(values: np.ndarray) -> float:
    """Over all entries."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def shap_loop(model: nn.Module, x: Tensor, background: Tensor) -> tuple[np.ndarray, float]:
    """The plain loop: ``shap.GradientExplainer`` on one map at a time; values (n, *shape) and seconds."""
    model = out_of_place(model)
    started = time.perf_counter()
    explainer = shap.GradientExplainer(model, background)
    values = [explainer.shap_values(x[i : i + 1], nsamples=SHAP_DRAWS, rseed=i)[..., 0] for i in range(len(x))]
    return np.concatenate(values), time.perf_counter() - started


def speed(output: Path, device: torch.device, maps: int) -> tuple[list[Claim], list[str]]:
    """Maps per second and errors against the loop, on the same maps and background."""
    claims, rows = [], []
    for faint in (False, True):
        config = ExplainConfig(checkpoint=str(output), views=maps)
        config.background.faint = faint
        work = Work(config, device)
        model = Logits(work.explainer.network)
        x, background = work.inputs(work.views).to(device), work.background.inputs.to(device)
        cases: dict[str, tuple[Attribution, float]] = {}
        shap_loop(model, x[:1], background)  # both are timed warm, which is fair to the faster one
        for name, samples in (("reference", REFERENCE), ("batched", DRAWS)):
            started = time.perf_counter()
            made = explain(model, x, background, AttributionConfig(samples=samples, refine=0))
            cases[name] = (made, time.perf_counter() - started)
        mine, seconds = cases["batched"]
        reference = cases["reference"][0]
        theirs, loop_seconds = shap_loop(model, x, background)
        their_missing = theirs.sum((1, 2, 3), dtype=np.float64) - mine.change[:, 0]
        errors = {
            "batched": (root_mean_square(mine.missing / mine.scale), root_mean_square(mine.values - reference.values)),
            "loop": (
                root_mean_square(their_missing / mine.scale[:, 0]),
                root_mean_square(theirs - reference.values[:, 0]),
            ),
        }
        typical = root_mean_square(reference.values)
        label = "with faint maps in the background" if faint else "background with signal"
        for name, number, took in (("batched", DRAWS, seconds), ("loop", SHAP_DRAWS, loop_seconds)):
            whole, pixels = errors[name]
            text = "skyshift, batched" if name == "batched" else "loop of shap.GradientExplainer"
            rows.append(f"| {label} | {text} | {number} | {len(x) / took:.2f} | {whole:.3f} | {pixels / typical:.3f} |")
        bar = 5.0 if device.type == "cuda" else 2.0
        ratio = loop_seconds / seconds
        claims += [
            Claim(f"maps per second over the loop of shap, {label}", ratio, f"≥ {bar:g}", ratio >= bar),
            Claim(
                f"completeness error of those maps, rms, {label}",
                errors["batched"][0],
                f"≤ {errors['loop'][0]:.4g} (shap)",
                errors["batched"][0] <= errors["loop"][0],
            ),
            Claim(
                f"error per pixel of those maps, rms in units of the values, {label}",
                errors["batched"][1] / typical,
                f"≤ {errors['loop'][1] / typical:.4g} (shap)",
                errors["batched"][1] <= errors["loop"][1],
            ),
        ]
    return claims, rows


def agreement(output: Path, device: torch.device) -> Claim:
    """Squared difference of the means of eight estimates by each, in units of its variance: 1.2 if both are right."""
    work = Work(ExplainConfig(checkpoint=str(output), views=2), device)
    model = Logits(work.explainer.network)
    x, background = work.inputs(work.views[:1]).to(device), work.background.inputs.to(device)
    ours = np.stack(
        [explain(model, x, background, AttributionConfig(samples=256, seed=s, refine=0)).values[:, 0] for s in range(8)]
    )
    plain = out_of_place(model)
    explainer = shap.GradientExplainer(plain, background)
    theirs = np.stack([explainer.shap_values(x, nsamples=SHAP_DRAWS, rseed=s)[..., 0] for s in range(8)])
    variance = ours.var(0, ddof=1) / 8 + theirs.var(0, ddof=1) / 8
    kept = variance > 1e-3 * variance.max()
    score = float(((ours.mean(0) - theirs.mean(0)) ** 2 / np.where(kept, variance, 1.0))[kept].mean())
    return Claim("agreement with shap: χ² per pixel", score, "≤ 2", score <= 2.0)


def corner() -> Claim:
    """A discriminator that sees one corner of 16 x 16 pixels alone."""

    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = Logits(nn.Sequential(nn.Conv2d(2, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x[:, :, :16, :16])

    torch.manual_seed(1)
    size = np.abs(explain(Corner(), torch.rand(4, 2, 64, 64), torch.rand(16, 2, 64, 64)).values)
    share = float(size[..., :16, :16].sum() / size.sum())
    return Claim(
        "share of the size of SHAP in the one corner that a discriminator sees", share, "≥ 0.95", share >= 0.95
    )


def verdict(difference: dict[str, float], galaxies: int) -> str:
    """What an interval of (output − output of the true pair) allows to say."""
    text = f"({difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}] logit)"
    few = f" (in {galaxies} galaxies, too few to be sure)" if galaxies < 10 else ""
    if difference["high"] < 0:
        return f"is judged less real than the true pair {text}: told apart{few}"
    if difference["low"] > 0:
        return f"is judged **more** real than the true pair {text}: not recognised as wrong{few}"
    return f"is not told apart from the true pair {text}"


def findings(result: Explanation) -> list[str]:
    """What the numbers support, in sentences."""
    probes, domains = result.summary["probes"], result.explainer.domains
    galaxies = len(np.unique(result.groups))
    lines = [f"- The translated pair {verdict(probes['translated']['output_minus_true'], galaxies)}."]
    lines += [
        f"- {text[0].upper()}{text[1:]} {verdict(probes[name]['output_minus_true'], galaxies)}."
        for name, text in WRONG.items()
    ]
    shares = probes["true"]["channel_shares"]
    each = ", ".join(
        f"{domain} {100 * shares['value'][c]:.0f} % [{100 * shares['low'][c]:.0f}, {100 * shares['high'][c]:.0f}]"
        for c, domain in enumerate(domains)
    )
    lines.append(f"- Share of |SHAP| of true pairs: {each}.")
    for curve in ("radius", f"quantile_{domains[-1]}", "quantile_temperature"):
        if curve not in probes["true"]["curves"] or "concentration" not in probes["true"]["curves"][curve]:
            continue
        entry = probes["true"]["curves"][curve]
        value = np.array([np.nan if v is None else v for v in entry["concentration"]["value"]], float)
        top = int(np.nanargmax(value))
        low, high = entry["concentration"]["low"][top], entry["concentration"]["high"][top]
        lines.append(
            f"- By {result.curves['true'][curve].title}, |SHAP| of true pairs is densest at {entry['bins'][top]}: "
            f"{value[top]:.1f} [{low:.1f}, {high:.1f}] times the mean of the map."
        )
    octave = probes["translated"]["curves_minus_true"].get("frequency")
    if octave:
        labels = probes["true"]["curves"]["frequency"]["bins"]
        value, low, high = (np.array(octave[name], float) for name in ("value", "low", "high"))
        hits = [
            f"{domain} at {labels[b]}: {value[c, b]:+.2g} [{low[c, b]:+.2g}, {high[c, b]:+.2g}]"
            for c, domain in enumerate(domains)
            for b in range(len(labels))
            if low[c, b] > 0 or high[c, b] < 0
        ]
        lines.append(
            "- By wavelength, the translated pair's SHAP differs from the true one's in "
            + ("; ".join(hits) if hits else "no octave, beyond the interval")
            + "."
        )
    removal = result.summary["removal"]
    if removal:
        for name in ("gradient", "gradient x difference", "random"):
            better = removal[name]["SHAP_better_by"]
            cells = [
                f"{m} {better[m]['value']:+.3f} [{better[m]['low']:+.3f}, {better[m]['high']:+.3f}]" for m in better
            ]
            lines.append(
                f"- Mean output by which SHAP's order of pixels is better than {name}: {', '.join(cells)} logit."
            )
    return lines


def section(name: str, title: str, result: Explanation, folder: Path) -> list[str]:
    """Findings, table and figures of one run, the figures copied to the results."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    provenance = result.explainer.translator.translation.provenance
    step = int(Path(plan["paths"]["checkpoint"]).name[5:])
    which = (
        f"Explained is step {step} of a run of skyshift {provenance['skyshift']}: weights {plan['weights'][:12]}…, "
        f"trained on store {provenance['fingerprint'][:12]}… (SHA-256)."
    )
    seen = [f"- {SEEN[name]}{KERNEL}"] if plan["weights"].startswith(LOOKED_AT[name]) else []
    lines = [
        f"## {title}",
        "",
        which,
        "",
        *findings(result),
        *seen,
        "",
        result.table().split("\nWhere ")[0].rstrip(),
        "",
    ]
    for figure, text in (
        ("maps_true_01", "True pairs, from the lowest to the highest mean logit"),
        ("maps_translated_01", "The same views, translated"),
        ("difference", "What changes in the evidence of HI"),
        ("curves", "SHAP by radius, map value and wavelength"),
        ("removal", "Deletion and insertion"),
    ):
        shutil.copy(folder / f"{figure}.png", RESULTS / f"explain_{name}_{figure}.png")
        lines += [f"{text}:", "", f"![{figure}](explain_{name}_{figure}.png)", ""]
    return lines


def main() -> None:
    """Train, explain, measure, report."""
    asking = parser(__doc__ or "")
    asking.add_argument("--runs", type=Path, help="folder of the trained runs; by default a temporary one")
    asked = asking.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as work:
        runs = asked.runs or Path(work)
        default = train_default(runs, asked.quick)
        claims, rows = speed(default, device, 4 if asked.quick else MAPS)
        claims += [agreement(default, device), corner()]
        if asked.quick:
            report(claims, asked.json)
            return
        results = {}
        jobs = [("default", "The embedded default: gas and HI of toy galaxies", default, 40)]
        if FOLDER.is_dir():
            jobs.append(("regions", "Real TNG50-4 regions: gas and HI around density peaks", train_regions(runs), 24))
        sections: list[str] = []
        for name, title, output, views in jobs:
            folder = runs / f"{name}_explained"
            started = time.perf_counter()
            result = explain_store(ExplainConfig(checkpoint=str(output), views=views, output=str(folder)))
            assert result is not None
            results[name] = result
            print(f"{name}: explained in {time.perf_counter() - started:.0f} s")
            worst = max(float(result.errors(probe).max()) for probe in result.probes)
            claims.append(Claim(f"largest completeness error, {name}", worst, "≤ 0.05", worst <= 0.05))
            sections += section(name, title, result, folder)
        report(claims, asked.json)
    text = [
        "# What the discriminators look at",
        "",
        f"`python benchmarks/explain.py` made this page ({machine()}). Values are expected gradients of the mean logit "
        "of the PatchGAN, with respect to every pixel of its (scaled) source and target maps, against 32 training "
        "pairs. All numbers are of held-out galaxies; intervals hold 95 % of bootstrap samples of galaxies.",
        "",
        "## Cost and error, against shap itself",
        "",
        "| background | explainer | draws a map | maps / s | completeness error, rms | error per pixel / rms value |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        f"Errors per pixel are from {REFERENCE} stratified draws. The bar on a GPU, 5 times the loop, is checked where "
        "this script finds one." + ("" if device.type == "cuda" else " **No GPU was there: it is not measured here.**"),
        "",
        *sections,
    ]
    write_text(RESULTS / "explain.md", "\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
