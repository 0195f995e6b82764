"""Command: translate the maps of a store or a file.

    python translate/generate.py --checkpoint runs/gas_to_hi --input data/synthetic/maps.zarr --output hi.zarr
    python translate/generate.py --checkpoint runs/gas_to_hi --input s3://bucket/maps.zarr --output s3://bucket/hi.zarr
    python translate/generate.py --checkpoint runs/gas_to_hi --input galaxy.fits --output galaxy_hi.fits
    accelerate launch translate/generate.py --checkpoint owner/name --input maps.zarr --output hi.zarr

A store becomes a store with the same catalogue (labels, rotations, sides), built shard by shard, shared out over the
processes of a launch: an interrupted run goes on where it stopped, on as many processes as you like. FITS, HDF5 and NPY
files become any of these; FITS keeps the cards of the source, its WCS among them. The output is float32 with units,
written whole or not at all.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from skyshift.command import command, parse
from skyshift.datasets.formats import file_format, read_maps, write_maps
from skyshift.datasets.formats_hdf5 import Layout
from skyshift.datasets.maps import Maps
from skyshift.datasets.store import MapStore, StoreError, ViewRecord
from skyshift.engine import launch_state
from skyshift.errors import SkyshiftError
from skyshift.files import Location, location, reaching
from skyshift.translate.data import fingerprint
from skyshift.translate.tiling import Tiling
from skyshift.translate.translation import find_checkpoint
from skyshift.translate.translator import Precision, Translator, store_maps


@dataclass
class GenerateConfig:
    """A translation of many maps.

    Attributes:
        checkpoint: A checkpoint, a run (its best checkpoint is taken, or its last), or ``owner/name`` on the hub.
        input: A store (a folder, or an address such as ``s3://bucket/maps.zarr``), or a FITS, HDF5 or NPY file.
        output: A store (``.zarr``) or a file, by its suffix.
        domain: Domain of the maps of a file that does not say.
        unit: Unit of the maps of a file that does not say.
        hdu: Which image of a file that holds several of one domain: number or name of the HDU or data set.
        layout: Of an HDF5 output: plain, or skais for the groups that skais-mapper writes.
        batch_size: Maps translated at once.
        precision: no (float32) or bf16.
        calls: Network evaluations a map; 0 for the method's own number.
        seed: Of the draws of a method that draws: another seed, another draw of each map.
        draws: So many draws a map, of which the mean and, as ``{domain}_sigma``, the standard deviation are written;
            1 for a single translation.
        tile: Side in pixels of the tiles in which large maps are translated; 0 for whole maps.
        overlap: Of neighbouring tiles, pixels; by default a quarter of a tile.
        reverse: From target to source, where the method learns both ways.
        source: Of a checkpoint between any domains (data.domains): those to translate from, one or several.
        target: Those to translate to, one or several of the others.
        trust_remote_code: Allow the checkpoint to name classes from outside this package.
    """

    checkpoint: str = "runs/gas_to_hi"
    input: str = ""
    output: str = ""
    domain: str = ""
    unit: str = ""
    hdu: str = ""
    layout: Layout = "plain"
    batch_size: int = 32
    precision: Precision = "no"
    calls: int = 0
    seed: int = 0
    draws: int = 1
    tile: int = 0
    overlap: int | None = None
    reverse: bool = False
    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("calls", 0), ("draws", 1)):
            if getattr(self, name) < least:
                raise SkyshiftError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        _ = self.tiling

    @property
    def tiling(self) -> Tiling:
        """How maps are cut."""
        return Tiling(self.tile, self.tile // 4 if self.overlap is None else self.overlap)


SIGMA = "_sigma"
"""What follows a domain's name in that of its standard deviation."""

_PATHS = ("translated_from", "checkpoint")
"""Recorded, but what tells two translations apart are the fingerprints: a run may be moved, or trained anew."""


def _plan(translator: Translator, store: MapStore, checkpoint: Path, draws: int) -> dict[str, Any]:
    weights = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights.update(path.read_bytes())
    return {
        "translated_from": str(store.path),
        "fingerprint": fingerprint(store),
        "checkpoint": str(checkpoint),
        "weights": weights.hexdigest(),
        "precision": translator.precision,
        "drawn": {
            "calls": translator.calls or translator.method.calls,
            "seed": translator.seed,
            "draws": draws,
            "reverse": translator.reverse,
            **(
                {"source": list(translator.source), "target": list(translator.target)}
                if translator.translation.domains
                else {}
            ),
            "tiling": asdict(translator.tiling),
        },
        "training": translator.translation.provenance,
        "plan": store.plan,
    }


def _translated(translator: Translator, maps: Any, views: Any, draws: int) -> dict[str, Maps]:
    """One translation, or mean and σ of several."""
    if draws == 1:
        return translator(maps, views)
    found = translator.uncertainty(maps, draws, views)
    sigma = {f"{name}{SIGMA}": replace(one.sigma, domain=f"{name}{SIGMA}") for name, one in found.items()}
    return {name: one.mean for name, one in found.items()} | sigma


def translate_store(
    translator: Translator, store: MapStore, output: Location, checkpoint: Path, draws: int = 1
) -> MapStore:
    """Translate a store into a store, going on where an earlier run stopped.

    Args:
        translator: Of the checkpoint.
        store: Whole, with the source domains.
        output: Folder of the new store, or its place on object storage.
        checkpoint: Recorded in the new store.
        draws: Above 1, the mean and the standard deviation (``{domain}_sigma``) of so many draws a map are written.

    Raises:
        StoreError: The input is not whole, or ``output`` holds something else.
    """
    store.require_complete()
    store.require_domains(translator.source)
    if translator.tiling.tile:
        translator.tiling.require_fits(store.pixels, store.pixels)
    plan, launch = _plan(translator, store, checkpoint, draws), launch_state()
    with launch.main_process_first():
        made = _begun(translator, store, output, plan)
    records = {record.view: record for record in store.records()}
    todo = [shard for shard in range(made.shards) if not made.is_done(shard)]
    launch.wait_for_everyone()  # all have the same list before the first shard is written
    mine = todo[launch.process_index :: launch.num_processes]
    for shard in tqdm(mine, unit="shard", desc=str(output), disable=not launch.is_main_process):
        rows = [view for view in made.shard_rows(shard) if view in records]
        maps = {domain: stack.values for domain, stack in _translated(translator, store, rows, draws).items()}
        of_rows = [_flagged(records[view], maps, row) for row, view in enumerate(rows)]
        made.write_shard(shard, maps, of_rows, store.failures(shard))
    launch.wait_for_everyone()
    return made


def _units(translator: Translator, draws: int) -> dict[str, str]:
    units = {channel.domain: channel.unit for channel in translator.translation.target}
    return units if draws == 1 else units | {f"{name}{SIGMA}": unit for name, unit in units.items()}


def _begun(translator: Translator, store: MapStore, output: Location, plan: dict[str, Any]) -> MapStore:
    """The new store: empty, or as far as an earlier run has filled it."""
    with reaching(output):
        there = output.exists()
    if not there:
        return MapStore.create(
            output,
            units=_units(translator, plan["drawn"]["draws"]),
            views=store.views,
            pixels=store.pixels,
            shard_views=store.shard_views,
            labels=store.labels,
            plan=plan,
        )
    made = MapStore(output)
    if any(made.plan.get(key) != plan[key] for key in plan if key not in _PATHS):
        raise StoreError(
            f"{output} was made from another store or checkpoint; choose another output or delete this one"
        )
    return made


def _flagged(record: ViewRecord, maps: dict[str, Any], row: int) -> ViewRecord:
    """The catalogue row with the empty-map flags of the translated domains."""
    return replace(record, flags=sum(1 << i for i, values in enumerate(maps.values()) if not values[row].any()))


def _on_disk(place: Location, option: str) -> Path:
    if not isinstance(place, Path):
        raise SkyshiftError(
            f"{place} ({option}): only stores are on object storage; files are read and written on a disk"
        )
    return place


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(GenerateConfig, arguments, None, "Translate the maps of a store or a file.")
    if not config.input or not config.output:
        raise SkyshiftError("name what to translate (--input) and where to write it (--output)")
    source, output = location(config.input), location(config.output)
    with reaching(source):
        if not source.exists():
            raise SkyshiftError(f"there is no {source} to translate (--input)")
        from_store = source.is_dir()
    to_store = output.suffix == ".zarr"
    if to_store and not from_store:
        raise SkyshiftError(f"{source} is a file: it has no catalogue for a store; write FITS, HDF5 or NPY")
    file = None if from_store else _on_disk(source, "--input")
    result = None if to_store else _on_disk(output, "--output")
    if config.layout != "plain" and (result is None or file_format(result) != "hdf5"):
        raise SkyshiftError(f"--layout {config.layout} is one of HDF5 files; write {output.stem}.hdf5 or leave it out")
    if result is not None:
        beside = [result.with_suffix(".json")] if file_format(result) == "npy" else []
        for path in (result, *beside):
            if path.exists():
                raise SkyshiftError(f"{path} exists already; choose another output or delete it")
    launch = launch_state()
    if result is not None and launch.num_processes > 1:
        raise SkyshiftError(
            f"{output} is one file, which {launch.num_processes} processes cannot share; write a store (.zarr), or "
            "launch one process"
        )
    with launch.main_process_first():  # which fetches it, where it is on a hub
        checkpoint = find_checkpoint(config.checkpoint)
    translator = Translator.from_pretrained(
        checkpoint,
        device=launch.device if launch.num_processes > 1 else None,
        batch_size=config.batch_size,
        precision=config.precision,
        calls=config.calls or None,
        seed=config.seed,
        tiling=config.tiling,
        reverse=config.reverse,
        source=config.source,
        target=config.target,
        trust_remote_code=config.trust_remote_code,
    )
    if result is None:
        made = translate_store(translator, MapStore(source), output, checkpoint, config.draws)
        count = len(made.catalogue())
    else:
        if file is None:
            store = MapStore(source)
            store.require_complete()
            given = store_maps(store, translator.source)
        else:
            given = read_maps(file, domain=config.domain or None, unit=config.unit or None, hdu=config.hdu or None)
        maps = _translated(translator, given, None, config.draws)
        write_maps(result, maps, layout=config.layout)
        count = len(next(iter(maps.values())))
    units = ", ".join(f"{domain} [{unit}]" for domain, unit in _units(translator, config.draws).items())
    if launch.is_main_process:
        shared = f", by {launch.num_processes} processes" if launch.num_processes > 1 else ""
        print(f"{output}: {count} maps of {units}, {np.dtype(np.float32).name}{shared}")
    if launch.num_processes > 1:
        launch.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
