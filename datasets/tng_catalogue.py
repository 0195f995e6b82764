"""The group catalogue of a snapshot: the rows that maps need, in physical units.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import illustris_python
import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.tng_files import chunk_paths, open_file, require_chunks
from skyshift.datasets.tng_units import Header, SnapshotError

_COLUMNS = (
    "SubhaloPos", "SubhaloVel", "SubhaloMassType", "SubhaloLenType", "SubhaloHalfmassRadType", "SubhaloSFR",
    "SubhaloGrNr", "SubhaloFlag",
)  # fmt: skip
_LABEL = "SubhaloMorphology"


@dataclass(frozen=True)
class Subhalos:
    """The rows of a group catalogue that the maps need, in physical units.

    Attributes:
        position: (n, 3) kpc in the box, minimum of the potential.
        velocity: (n, 3) km/s, peculiar.
        mass: (n, 6) Msun by type; wind counts as gas.
        count: (n, 6) particles by type; wind counts as type 4.
        half_mass_radius: (n, 6) kpc by type.
        sfr: (n,) Msun/yr.
        group: (n,) number of the host group.
        good: (n,) False where ``SubhaloFlag`` says that the object is no galaxy.
        label: (n,) class number, -1 where there is none.
        label_names: Names of the classes.
    """

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    mass: NDArray[np.float64]
    count: NDArray[np.int64]
    half_mass_radius: NDArray[np.float64]
    sfr: NDArray[np.float64]
    group: NDArray[np.int64]
    good: NDArray[np.bool_]
    label: NDArray[np.int64]
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sfr)


def _why(folder: Path, columns: Sequence[str], error: Exception) -> str:
    """Which chunk of a group catalogue cannot be read, and the cure."""
    for _, path in sorted(chunk_paths(folder).items()):
        try:
            with open_file(path) as file:
                for name in columns if file["Header"].attrs["Nsubgroups_ThisFile"] else ():
                    file["Subhalo"][name][()]
        except SnapshotError as damage:
            return str(damage)
    return f"the group catalogue in {folder} cannot be read ({type(error).__name__}: {error}); fetch its chunks again"


def read_catalogue(base_path: Path, number: int, header: Header) -> Subhalos:
    """Read the group catalogue of a snapshot.

    Args:
        base_path: The simulation's ``output`` folder.
        number: Snapshot number.
        header: Of the snapshot.

    Raises:
        SnapshotError: A file or a column is missing, or cannot be read.
    """
    first = Path(illustris_python.groupcat.gcPath(str(base_path), number))
    with open_file(first) as file:
        files = int(np.asarray(file["Header"].attrs["NumFiles"]).reshape(-1)[0]) if "Header" in file else 1
        require_chunks(first.parent, chunk_paths(first.parent), files, partial=False)
        columns = set(file["Subhalo"]) if "Subhalo" in file else set()
        lacking = [name for name in _COLUMNS if name not in columns]
        if lacking:
            raise SnapshotError(f"{first}: the group catalogue has no {', '.join(lacking)}")
        labelled = _LABEL in columns
        names = json.loads(file["Subhalo"][_LABEL].attrs["names"]) if labelled else []
    wanted = [*_COLUMNS, *([_LABEL] if labelled else [])]
    try:
        raw = illustris_python.groupcat.loadSubhalos(str(base_path), number, fields=wanted)
    except Exception as error:  # whatever the library says of what it cannot read
        raise SnapshotError(_why(first.parent, wanted, error)) from error
    if "SubhaloPos" not in raw:
        raise SnapshotError(f"the group catalogue in {first.parent} has no subhaloes: there is nothing to make maps of")
    length = header.scale_factor / header.hubble
    return Subhalos(
        position=raw["SubhaloPos"].astype(np.float64) * length,
        velocity=raw["SubhaloVel"].astype(np.float64),
        mass=raw["SubhaloMassType"].astype(np.float64) * 1e10 / header.hubble,
        count=raw["SubhaloLenType"].astype(np.int64),
        half_mass_radius=raw["SubhaloHalfmassRadType"].astype(np.float64) * length,
        sfr=raw["SubhaloSFR"].astype(np.float64),
        group=raw["SubhaloGrNr"].astype(np.int64),
        good=raw["SubhaloFlag"].astype(bool),
        label=raw[_LABEL].astype(np.int64) if labelled else np.full(len(raw["SubhaloSFR"]), -1),
        label_names=tuple(names),
    )
