"""Command: say what a file or store of maps, a snapshot or a cutout holds.

    python datasets/summarize.py data/synthetic/maps.zarr --figure sheet.png
    python datasets/summarize.py hi.fits --json hi.json
    python datasets/summarize.py TNG100-1/output/snapdir_099

Of maps: counts, shapes, units, ranges, pixels that are zero or not a number, and the catalogue of a store. Values of a
large store are those of a random sample of its maps, and the report says of how many; memory is bounded by it. The
contact sheet shows some maps of every domain, each domain on one stretch.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyshift.command import command, parse
from skyshift.datasets.formats import file_format
from skyshift.datasets.summary import Summary, of_file, of_store
from skyshift.datasets.summary_hdf5 import is_hdf5, is_map_file, of_hdf5
from skyshift.errors import SkyshiftError
from skyshift.files import write_json, write_whole


@dataclass
class SummarizeConfig:
    """What to look at.

    Attributes:
        path: A store, a FITS, HDF5 or NPY file, a snapshot's chunk or folder, a cutout.
        figure: PNG to write a contact sheet to.
        json: File to write the numbers to.
        sample: Maps of each domain whose values are looked at, at the most (fewer where maps are large).
        columns: Maps of each domain in the contact sheet.
        seed: Of the sample.
        domain: Domain of the maps of a file that does not say.
        unit: Unit of the maps of a file that does not say.
        hdu: Only this HDU or data set of a file.
    """

    path: str = ""
    figure: str = ""
    json: str = ""
    sample: int = 2000
    columns: int = 6
    seed: int = 0
    domain: str = ""
    unit: str = ""
    hdu: str = ""

    def __post_init__(self) -> None:
        for name in ("sample", "columns"):
            if getattr(self, name) < 1:
                raise SkyshiftError(f"--{name} is 1 or more, not {getattr(self, name)}")


def summarize(config: SummarizeConfig) -> Summary:
    """Look at what is at ``config.path``.

    Raises:
        SkyshiftError: There is nothing, or nothing that this package reads.
    """
    place = config.path
    if "://" in place or (Path(place) / "zarr.json").is_file():
        return of_store(place, config.sample, config.columns, config.seed)
    path = Path(place)
    if not path.exists():
        raise SkyshiftError(f"there is no {place}")
    if path.is_dir():
        chunks = sorted(chunk for chunk in path.iterdir() if is_hdf5(chunk))
        if not chunks:
            raise SkyshiftError(
                f"{place} is a folder, but neither a store of maps (it has no zarr.json) nor a snapshot (it has no "
                "chunks *.hdf5)"
            )
        return of_hdf5(chunks)
    if is_hdf5(path) and not is_map_file(path):
        return of_hdf5([path])
    file_format(path)  # names the formats that there are
    return of_file(path, config.columns, config.domain or None, config.unit or None, config.hdu or None)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        given = ["--path", *given]
    config, _ = parse(SummarizeConfig, given, None, "Say what a file or store holds: summarize.py PATH [options].")
    if not config.path:
        raise SkyshiftError("name what to summarize: datasets/summarize.py PATH")
    summary = summarize(config)
    print(summary.text())
    if config.json:
        write_json(config.json, summary.facts)
    if config.figure:
        figure: Any = summary.figure()
        with write_whole(config.figure) as side:
            figure.savefig(side, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
