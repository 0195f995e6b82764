"""Command: what does the discriminator (or the generator) look at?

    python translate/explain.py --checkpoint runs/gas_to_hi
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 translate/explain.py --checkpoint runs/gas_to_hi
    python translate/explain.py --checkpoint runs/gas_to_hi --what.of generator --what.aperture 10 --probes '["true"]'

SHAP values of held-out views, of true pairs, translated ones and deliberately wrong ones, against a background of true
training pairs that is saved with the result. The folder holds ``table.md``, ``summary.json``, ``views.csv``, pages of
maps, curves by radius, map value and spatial frequency, deletion and insertion curves, ``background.fits`` and the raw
values. An interrupted run goes on where it stopped.

The background leaves out faint views unless told otherwise: to a normalised network the way from an empty map to any
other is a cliff, which takes many more draws to add up.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from skyshift.command import command, parse
from skyshift.datasets.formats import write_maps
from skyshift.datasets.loading import PARTS
from skyshift.datasets.maps import Maps
from skyshift.engine import launch_state
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.data import store_paths
from skyshift.translate.explain_output import draw, write
from skyshift.translate.explain_parts import Parts, Probed
from skyshift.translate.explain_report import Explanation
from skyshift.translate.explain_work import ExplainConfig, Work

DEFAULT_CONFIG = "translate/explain.yaml"


def explain_store(config: ExplainConfig) -> Explanation | None:
    """Explain, on however many processes there are, and write everything.

    Args:
        config: The command's.

    Returns:
        The explanation, on the main process; ``None`` on the others.

    Raises:
        SkyshiftError: Something asked for cannot be done; nothing that was done before is lost.
    """
    state = launch_state()
    work = Work(config, state.device)
    run = work.checkpoint.parent.parent if work.checkpoint.parent.name == "checkpoints" else work.checkpoint
    output = Path(config.output or run / "explanation")
    with state.main_process_first():
        parts = Parts(output, work.plan(), write=state.is_main_process)
    mine = range(state.process_index, work.parts, state.num_processes)
    bar = tqdm([n for n in mine if not parts.is_done(n)], unit="part", disable=not state.is_main_process)
    for number in bar:
        parts.save(number, work.part(number))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    parts.drop_unfinished()
    result = _collect(work, parts.load(range(work.parts)), state.num_processes)
    background = work.explainer.physical(work.background.inputs)
    stacks = {
        channel.domain: Maps(
            background[channel.domain],
            channel.domain,
            channel.unit,
            names=tuple(f"view {view}" for view in work.background.views),
            provenance=work.background.text,
        )
        for channel in work.explainer.channels
    }
    write_maps(output / "background.fits", stacks)
    write(result, output, tuple(config.raw))
    if config.figures:
        draw(result, output, pages=config.pages, per_page=config.per_page)
    return result


def _collect(work: Work, probes: dict[str, Probed], processes: int) -> Explanation:
    config, store = work.config, work.store
    maps = work.maps(work.views, work.quantiles)
    first = next(iter(maps.values()))
    for probe, probed in probes.items():  # parts may be left from a run that allowed more
        work.require_complete(probe, probed.attribution, first.names)
    sides = np.ones(len(first)) if first.side is None else first.side
    leading = next(iter(probes.values()))
    removal = work.removal(leading.inputs, leading.attribution.values.mean(axis=1))
    facts = {
        "checkpoint": str(work.checkpoint),
        "store": store_paths(store),
        "part": config.part,
        "explained": work.explainer.title,
        "explainer": work.attribution.explainer,
        "attribution": asdict(work.attribution),
        "device": str(work.explainer.translator.device),
        "processes": processes,
        "background": work.background.facts(),
        "tolerance": work.attribution.tolerance,
    }
    return Explanation(
        work.explainer,
        probes,
        first.names,
        work.groups,
        np.asarray(sides, np.float64),
        {domain: stack.values for domain, stack in maps.items()},
        removal,
        work.removed(),
        work.attribution.tolerance,
        facts,
    )


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(ExplainConfig, arguments, DEFAULT_CONFIG, "Explain what a discriminator or generator looks at.")
    if config.part not in PARTS:
        raise SkyshiftError(unknown("part", config.part, PARTS))
    try:
        result = explain_store(config)
        if result is not None:
            print(
                f"{result.table()}\nfigures, table and values: {config.output or 'the explanation folder of the run'}"
            )
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
