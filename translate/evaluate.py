"""Command: judge a checkpoint on galaxies that it has not seen, in physical units, against trivial translators.

    python translate/evaluate.py --checkpoint runs/gas_to_hi
    python translate/evaluate.py --checkpoint runs/gas_to_hi --baselines '[runs/regression]' --metrics '[all]'
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 translate/evaluate.py

All metrics are computed on physical maps. PSNR, SSIM and MS-SSIM are on the linear stretch; their dynamic range L is
the 99.9 % quantile of the non-zero pixels of the training maps, less the 0.1 % one where some are negative: one for all
maps. LPIPS, Fréchet and kernel distances see maps in the checkpoint's scaling, as grey images in [-1, 1]. r(k) is
averaged over wave numbers up to Nyquist and up to half of it, the error of P(k) up to half, in each map. Intervals are
of bootstrap samples of galaxies, so that views of one galaxy do not count as independent.

Several processes share the views and give the numbers of one (:mod:`skyshift.translate.evaluation_work`).
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from skyshift.command import command, parse
from skyshift.datasets.joined import open_stores
from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.store import MapStore
from skyshift.engine import launch_state
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.data import fingerprint, open_training
from skyshift.translate.evaluation_output import write_evaluation
from skyshift.translate.evaluation_result import LEVEL, RESAMPLES, Evaluation, interval
from skyshift.translate.evaluation_scores import Yardstick, complete, score
from skyshift.translate.evaluation_work import Judge, Networks, load_translators, method_name, shared_work
from skyshift.translate.metric_rows import HEADLINE, METRICS, choose
from skyshift.translate.metrics.image import scales
from skyshift.translate.metrics.pretrained import LEAST, Network
from skyshift.translate.translation import find_checkpoint
from skyshift.translate.translator import Precision, Translator

__all__ = [
    "HEADLINE",
    "METRICS",
    "EvaluateConfig",
    "Evaluation",
    "Options",
    "Yardstick",
    "evaluate",
    "interval",
    "main",
    "score",
]

DRAWS = 8
"""Of a stochastic translator, where no number is asked for."""
CALIBRATION = tuple(metric.name for metric in METRICS if metric.group == "calibration")


@dataclass
class Options:
    """What is measured.

    Attributes:
        baselines: Other checkpoints or runs to judge on the same maps, in the same table (an L1 U-Net, say).
        metrics: Rows or groups of the table (image, physics, morphology, distribution, calibration), ``default`` or
            ``all``. What is named is an error where it cannot be had; of ``all`` it is left out, and the notes say why.
        weights: Folder with weights of pretrained networks; by default $SKYSHIFT_WEIGHTS, then torch's hub cache.
        perceptual_network: Of LPIPS.
        feature_network: Of Fréchet and kernel distances; with inception they are FID and KID.
        draws: Draws a map that judge the calibration of a translator whose draws differ; 0 for 8 of a method that draws
            and none of dropout, 1 for none.
        calls: Network evaluations a map; 0 for each method's own number.
        level: Share of bootstrap samples in an interval: 0.68 or 0.95, say.
        resamples: Bootstrap samples.
    """

    baselines: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=lambda: ["default"])
    weights: str = ""
    perceptual_network: Literal["alexnet", "squeezenet", "vgg16"] = "alexnet"
    feature_network: Network = "alexnet"
    draws: int = 0
    calls: int = 0
    level: float = LEVEL
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        choose(self.metrics)
        if not 0 < self.level < 1:
            raise SkyshiftError(f"level is a share between 0 and 1 (0.68 for 68 %), not {self.level}")
        for name, least in (("resamples", 1), ("draws", 0), ("calls", 0)):
            if getattr(self, name) < least:
                raise SkyshiftError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass
class EvaluateConfig(Options):
    """An evaluation.

    Attributes:
        checkpoint: A checkpoint, or a run (its best checkpoint is taken, or its last).
        store: Of the true maps, or a list of several; by default what the checkpoint was trained on.
        part: Galaxies to judge on: test, validation or train. Another store than the training's is split by the same
            rule, which does not know what was trained on: galaxies that both stores hold are not told apart.
        output: Folder for the table, the figures and the values of every map; by default ``evaluation`` beside the
            checkpoint's run.
        batch_size: Maps translated at once, by one process.
        precision: no (float32) or bf16.
        source: Of checkpoints between any domains (data.domains): those to translate from, one or several.
        target: Those to translate to, one or several of the others.
        trust_remote_code: Allow the checkpoints to name classes from outside this package.
    """

    checkpoint: str = "runs/gas_to_hi"
    store: list[str] | str = ""
    part: str = "test"
    output: str = ""
    batch_size: int = 32
    precision: Precision = "no"
    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    trust_remote_code: bool = False


def _views(store: MapStore, translator: Translator, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training views, and views to judge on."""
    views = split_views(store.catalogue(), Split(**translator.translation.provenance["split"]))
    if part not in views:
        raise SkyshiftError(unknown("part", part, views))
    for name, why in ((part, "to judge on"), ("train", "to fit the per-pixel relations and the dynamic range on")):
        if not len(views[name]):
            raise SkyshiftError(f"{store.path} has no views in its {name} part {why}; name a larger --store")
    return views["train"], views[part]


def _draws(translators: Mapping[str, Translator], metrics: Sequence[str], asked: int) -> dict[str, int]:
    """Name to number of draws. The first is the judged one.

    Raises:
        SkyshiftError: Several draws are asked for of a checkpoint that gives one.
    """
    main = next(iter(translators.values()))
    if asked > 1 and not main.draws_differ:
        raise SkyshiftError(
            f"draws: {type(main.method).__name__} gives one translation of a map, {asked} draws would be the same; "
            "leave draws out, or train its network with dropout"
        )
    if not any(name in metrics for name in CALIBRATION):
        return dict.fromkeys(translators, 1)
    return {
        name: (asked or (DRAWS if one.method.stochastic else 1)) if one.draws_differ else 1
        for name, one in translators.items()
    }


def evaluate(
    checkpoint: str | Path,
    *,
    store: MapStore | None = None,
    part: str = "test",
    output: str | Path | None = None,
    batch_size: int = 32,
    precision: Precision = "no",
    trust_remote_code: bool = False,
    options: Options | None = None,
    distributed: bool = False,
    source: Sequence[str] = (),
    target: Sequence[str] = (),
) -> Evaluation:
    """Judge a checkpoint and write table, values and figures.

    Args:
        checkpoint: A checkpoint or a run.
        store: Of the true maps; by default the one of the training. Another store is split by the same rule, and its
            baselines are fitted on its own training part.
        part: test, validation or train.
        output: Folder for ``table.md``, ``summary.json``, ``maps.csv``, ``maps.parquet``, ``maps.png``,
            ``spectra.png``, ``structure.png`` and, of draws, ``calibration.png``.
        batch_size: Maps translated at once.
        precision: no or bf16.
        trust_remote_code: Allow the checkpoints to name classes from outside this package.
        options: What is measured.
        distributed: Share the work over the processes of the launch, all of which must call this. Otherwise the caller
            works alone, whatever the launch.
        source: Of checkpoints between any domains, those to translate from.
        target: Those to translate to.

    Returns:
        The result, the same on every process. The main process writes.

    Raises:
        CheckpointError: There is no checkpoint.
        StoreError: The store is absent or lacks a domain.
        WeightsError: Weights of a network that a metric named in ``options`` needs are not there.
        SkyshiftError: Calibration is named and there is one draw a map, there are no maps in that part, or other
            checkpoints translate other domains.
    """
    options = options or Options()
    if batch_size < 1:
        raise SkyshiftError(f"batch_size must be at least 1, not {batch_size}")
    state = launch_state() if distributed else None
    metrics, insisted = choose(options.metrics)
    networks = Networks.load(metrics, insisted, options.weights, options.perceptual_network, options.feature_network)
    folder = find_checkpoint(checkpoint)
    made: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "trust_remote_code": trust_remote_code}
    made |= {"source": source, "target": target}
    made["calls"] = options.calls or None
    translators = load_translators(folder, options.baselines, state, **made)
    translator = next(iter(translators.values()))
    store = store or open_training(translator.translation)
    store.require_domains([*translator.source, *translator.target])
    train, views = _views(store, translator, part)
    draws = _draws(translators, metrics, options.draws)
    if insisted.intersection(CALIBRATION) and max(draws.values()) < 2:
        raise SkyshiftError(
            f"metrics: calibration is one of several draws, {method_name(folder)} gives one; leave it out, or set draws"
        )
    judge = Judge(store, translators, train, metrics, networks, draws)
    measured = shared_work(judge, views, batch_size, state)
    result = _result(judge, views, measured, options, _title(folder, judge, part, views))
    if output is not None and (state is None or state.is_main_process):
        write_evaluation(Path(output), result, judge, views, measured)
    return result


def _result(
    judge: Judge, views: NDArray[np.int64], measured: Mapping[str, Any], options: Options, title: str
) -> Evaluation:
    catalogue = judge.store.catalogue()
    rows = judge.rows(views)
    groups = np.asarray(catalogue["split_group"][rows], np.int64)
    names = [f"{name} view {view}" for name, view in zip(catalogue["name"][rows], views, strict=True)]
    return Evaluation(
        title,
        " ".join(_notes(judge, groups, measured, options)),
        {domain: {n: complete(v) for n, v in found["scores"].items()} for domain, found in measured.items()},
        groups,
        # What a map without signal looks like is no question of a distribution of galaxies.
        {domain: _lit_features(found) for domain, found in measured.items()},
        names,
        tuple(judge.metrics),
        {"ms_ssim": f"MS-SSIM, {scales(judge.store.pixels, judge.store.pixels)} scales", **judge.networks.labels},
        options.level,
        options.resamples,
    )


def _lit_features(found: Mapping[str, Any]) -> dict[str, dict[str, NDArray[np.float64]]]:
    return {
        kind: {name: np.where(found["lit"][:, None], values, np.nan) for name, values in of_kind.items()}
        for kind, of_kind in found["features"].items()
    }


def _known(judge: Judge, translator: Translator) -> bool:
    """Whether a translator was trained on this store, split like this."""
    there, here = translator.translation.provenance, judge.main.translation.provenance
    return bool(there["fingerprint"] == fingerprint(judge.store) and there["split"] == here["split"])


def _title(folder: Path, judge: Judge, part: str, views: NDArray[np.int64]) -> str:
    count = len(np.unique(judge.store.catalogue()["split_group"][judge.rows(views)]))
    known = _known(judge, judge.main)
    kind = f"{part} galaxies (or regions of space)" if known else f"galaxies of another store ({part} part)"
    return (
        f"{', '.join(judge.main.source)} → {', '.join(judge.main.target)}, {folder.name} of {method_name(folder)}: "
        f"{len(views)} maps of {count} {kind}"
    )


def _notes(judge: Judge, groups: NDArray[np.int64], measured: Mapping[str, Any], options: Options) -> list[str]:
    ranges = [f"{c.domain} {judge.yardstick(c.domain).data_range:.4g} {c.unit}" for c in judge.channels]
    faint = [f"{domain} {(~found['lit']).sum()}" for domain, found in measured.items()]
    count = len(np.unique(groups))
    others = [name for name, one in judge.translators.items() if not _known(judge, one) and one is not judge.main]
    notes = [
        f"Physical maps, linear stretch; dynamic range L of PSNR, SSIM and MS-SSIM: {', '.join(ranges)} (99.9 % "
        "quantile of the lit training pixels).",
        f"Maps without signal, left out of all rows but that of what is seen where there is none: {', '.join(faint)}.",
        f"± is half of the {100 * options.level:g} % bootstrap interval over galaxies"
        + (f", which with {count} independent ones is rough." if count < 10 else "."),
        "The per-pixel relations are fitted on the training maps.",
    ]
    if judge.networks.labels:
        stretches = ", ".join(f"{c.domain} {c.scaling.kind}" for c in judge.channels)
        larger = f", enlarged to {LEAST} pixels" if judge.store.pixels < LEAST else ""
        notes.append(
            f"{', '.join(judge.networks.labels.values())}: on grey images in the checkpoint's scaling ({stretches}) "
            f"to [-1, 1]{larger}."
        )
    drawn = [f"{name} {n}" for name, n in judge.draws.items() if n > 1]
    if drawn:
        notes.append(f"Draws a map for the calibration: {', '.join(drawn)}; the other rows are of one draw.")
    notes += judge.networks.missing
    if not _known(judge, judge.main):
        notes.append("Galaxies that this store shares with the training's may have been trained on.")
    if others:
        notes.append(f"Trained on other data or another split, perhaps on these galaxies: {', '.join(others)}.")
    return notes


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(EvaluateConfig, arguments, None, "Judge a checkpoint on held-out galaxies.")
    folder = find_checkpoint(config.checkpoint)
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    output = Path(config.output or run / "evaluation")
    try:
        result = evaluate(
            folder,
            store=open_stores(config.store) if config.store else None,
            part=config.part,
            output=output,
            batch_size=config.batch_size,
            precision=config.precision,
            trust_remote_code=config.trust_remote_code,
            options=config,
            distributed=True,
            source=config.source,
            target=config.target,
        )
        if launch_state().is_main_process:
            print(f"{result.table()}\nfigures and table: {output}")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
