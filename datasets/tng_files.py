"""The files of a snapshot: opened, found, counted and read with the fields that are needed, errors named.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.galaxy import PARTICLE_TYPES, Particles
from skyshift.datasets.tng_units import (
    FIELDS,
    NOT_IN_MINI,
    REPLACED,
    Header,
    SnapshotError,
    check_scaling,
    read_header,
    tng_fields,
)
from skyshift.errors import SkyshiftError

KINDS = ("gas", "dm", "stars", "black_holes")

Need = Mapping[str, Iterable[str]]

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever the library cannot read of it names the file and the cure.

    Raises:
        SnapshotError: No such file, no HDF5 file, cut off, or damaged inside.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise SnapshotError(f"{path} does not exist") from None
    except OSError as error:
        raise SnapshotError(f"{path} is no HDF5 file, or is cut off ({error}); fetch it again") from None
    with file:
        try:
            yield file
        except SkyshiftError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            raise SnapshotError(f"{path} is damaged inside or cut off ({error}); fetch it again") from error


def unwrap(position: NDArray[np.floating], centre: NDArray[np.floating], box_size: float) -> NDArray[np.float64]:
    """Offsets from ``centre`` by the shortest way through the periodic box, d - L round(d/L).

    Args:
        position: (n, 3) in the box.
        centre: (3,) in the box, same unit.
        box_size: L, same unit.

    Returns:
        (n, 3) float64, each component in [-L/2, L/2].
    """
    offset = np.asarray(position, np.float64) - np.asarray(centre, np.float64)
    return offset - box_size * np.round(offset / box_size)


def half_mass_radius(particles: Particles) -> float:
    """Radius in kpc that holds half of the particles' mass; positions relative to the centre. 0 without particles."""
    if not len(particles):
        return 0.0
    radius = np.linalg.norm(particles.position, axis=1)
    order = np.argsort(radius)
    enclosed = np.cumsum(particles.mass[order])
    half = min(int(np.searchsorted(enclosed, 0.5 * enclosed[-1])), len(order) - 1)  # beyond: masses that Galaxy refuses
    return float(radius[order][half])


def systemic_velocity(kinds: Mapping[str, Particles]) -> NDArray[np.float64]:
    """(3,) km/s, mass-weighted mean of the gas, or of all that has velocities where the gas has none; else zeros.

    Stands in for ``SubhaloVel``, which neither a cutout nor a subbox carries.
    """
    moving = [p for p in kinds.values() if "velocity" in p.fields and len(p)]
    gas = kinds.get("gas")
    if gas is not None and "velocity" in gas.fields and len(gas):
        moving = [gas]
    mass = sum(float(p.mass.sum()) for p in moving)
    if not mass > 0:
        return np.zeros(3)
    return np.asarray(sum(p.mass @ p["velocity"] for p in moving) / mass, np.float64)


def split_wind(kinds: dict[str, Particles], where: str, needed: bool) -> dict[str, Particles]:
    """Part type 4 into stars (formation time > 0) and wind (≤ 0); where these cannot be told apart, neither."""
    type4 = kinds.pop("stars", None)
    if type4 is None:
        return kinds
    if "formation_scale_factor" not in type4.fields:
        if not needed:
            return kinds
        raise SnapshotError(
            f"{where}: PartType4 has no GFM_StellarFormationTime, so stars cannot be told from wind particles; "
            "ask for that field when downloading"
        )
    is_star = type4["formation_scale_factor"] > 0
    return {**kinds, "stars": type4.select(is_star), "wind": type4.select(~is_star)}


def names_of(need: Need | None, kind: str) -> set[str] | None:
    """The physical fields to read of one kind of file particle (stars with wind); ``None`` for all.

    Where anything needs velocities, those of the gas are read as well: the systemic velocity comes from them.
    """
    if need is None:
        return None
    names = set(need.get(kind, ()))
    if kind == "stars":
        names.update(need.get("wind", ()))
    if kind == "gas" and any("velocity" in set(fields) for fields in need.values()):
        names.add("velocity")
    return names


def check_need(have: Mapping[str, Iterable[str]], need: Need, where: str) -> str:
    """Refuse, before anything is read, when a kind or a field that is needed is not in the file.

    Returns:
        What is missing and replaced, in words, for the galaxy's provenance; "" where nothing is. It is logged as well.

    Raises:
        SnapshotError: Something is missing that no recipe replaces.
    """
    replaced = []
    for kind, names in need.items():
        number = PARTICLE_TYPES[kind]
        file_kind = "stars" if kind == "wind" else kind
        if file_kind not in have:
            held = ", ".join(f"PartType{PARTICLE_TYPES[k]}" for k in have) or "no particles"
            raise SnapshotError(
                f"{where} has no PartType{number} ({kind}); it holds {held}. Download it with {kind} particles or "
                "choose domains that do not need them."
            )
        there = set(have[file_kind])
        for name in names:
            lacking = [source for source in tng_fields(name) if source not in there]
            if name in ("mass", "position", "support") or not lacking:
                continue
            instead, recipe = REPLACED.get(name, ((), ""))
            if instead and set(instead) <= there:
                replaced.append(f"{', '.join(lacking)} is missing: {recipe}")
                continue
            mini = " (mini snapshots do not carry it: take a full one)" if set(lacking) & set(NOT_IN_MINI) else ""
            raise SnapshotError(
                f"{where}: PartType{number} has no {', '.join(lacking)}, needed for '{name}' of {kind}{mini}. "
                f"Download it again with {','.join(tng_fields(name))} or choose other domains."
            )
    words = "; ".join(dict.fromkeys(replaced))
    if words:
        _log_once(where, words)
    return words


@functools.cache
def _log_once(where: str, words: str) -> None:
    """Not again for every galaxy of a snapshot."""
    _log.warning("%s: %s", where, words)


def require_counts(file: h5py.File, kind: str, header: Header, partial: bool = False) -> None:
    """Hold the lengths of the arrays of one kind against each other and against the header."""
    number = PARTICLE_TYPES[kind]
    name = f"PartType{number}"
    if name not in file:
        return
    lengths = {field: len(file[name][field]) for field in FIELDS[kind] if field in file[name]}
    if len(set(lengths.values())) > 1:
        raise SnapshotError(f"{file.filename}: the fields of {name} differ in length: {lengths}")
    count, claimed = next(iter(lengths.values()), 0), int(header.counts[number])
    if count != claimed and not partial:
        raise SnapshotError(
            f"{file.filename}: the header counts {claimed} particles of type {number}, the arrays hold {count}. "
            "The file is thinned or damaged; ask for a partial read (partial: true of the source) "
            "to take it as it is (masses will not add up)."
        )


def read_group(
    file: h5py.File, kind: str, header: Header, wanted: Iterable[str], partial: bool
) -> dict[str, NDArray[Any]]:
    """The stored arrays ``wanted`` of one kind in one file, where it has them, with counts and scalings checked.

    Raises:
        SnapshotError: Positions or masses are missing, counts disagree, or the units are others.
    """
    number = PARTICLE_TYPES[kind]
    name = f"PartType{number}"
    claimed = int(header.counts[number])
    if name not in file:
        if claimed and not partial:
            raise SnapshotError(
                f"{file.filename}: the header counts {claimed} particles of type {number} but the file has no {name}; "
                "ask for a partial read (partial: true of the source) if it was thinned on purpose"
            )
        return {}
    group = file[name]
    fields = [field for field in wanted if field in group]
    for required in ("Coordinates", *(() if kind == "dm" else ("Masses",))):
        if required not in group:
            raise SnapshotError(f"{file.filename}: {name} has no {required}; download it again with that field")
    require_counts(file, kind, header, partial)
    for field in fields:
        check_scaling(group, field)
    return {field: read_rows(group, field, slice(None)) for field in fields}


def read_rows(group: h5py.Group, field: str, rows: slice) -> NDArray[Any]:
    """Some rows of a stored field. Of the ten element abundances hydrogen, the first, alone is read.

    Raises:
        SnapshotError: The bytes are not there; the message names the field.
    """
    try:
        data = group[field]
        values = np.asarray(data[rows, :1] if field == "GFM_Metals" else data[rows])
    except (OSError, RuntimeError, KeyError) as error:
        raise SnapshotError(
            f"{group.file.filename}: {group.name}/{field} cannot be read ({error}); the file is cut off or damaged, "
            "fetch it again"
        ) from error
    if field == "Coordinates":
        refuse_holes(values, f"{group.file.filename}: {group.name}")
    return values


def refuse_holes(coordinates: NDArray[np.floating], where: str) -> None:
    """Refuse positions that are zeros: a download that broke off leaves them where it had made room for the rest.

    Raises:
        SnapshotError: More than one particle lies at exactly (0, 0, 0).
    """
    holes = len(coordinates) - int(np.count_nonzero(coordinates.any(axis=1)))
    if holes > 1:
        raise SnapshotError(
            f"{where} has {holes} of {len(coordinates)} particles at exactly (0, 0, 0): the file has holes, as a "
            "download leaves that broke off; fetch it again"
        )


def chunk_paths(folder: Path) -> dict[int, Path]:
    """Number of every chunk of a folder (``snap_099.3.hdf5`` is 3) to its path."""
    matches = [(re.search(r"\.(\d+)\.hdf5$", p.name), p) for p in sorted(folder.glob("*.hdf5"))]
    return {int(match.group(1)): path for match, path in matches if match}


def require_chunks(folder: Path, chunks: Mapping[int, Path], files: int, partial: bool) -> list[str]:
    """The chunks that are missing, refused unless a partial read is asked for."""
    stem = re.sub(r"\.\d+\.hdf5$", "", next(iter(chunks.values())).name)
    missing = [str(folder / f"{stem}.{i}.hdf5") for i in range(files) if i not in chunks]
    if missing and not partial:
        raise SnapshotError(
            f"{len(missing)} of {files} chunks are missing, first {missing[0]}; fetch them, or ask for a "
            "partial read (partial: true of the source)"
        )
    return missing


def first_header(folder: Path) -> tuple[Header, dict[int, Path]]:
    """Header of a folder's first chunk, and its chunks by number.

    Raises:
        SnapshotError: There are none, or the first is no snapshot.
    """
    chunks = chunk_paths(folder)
    if not chunks:
        raise SnapshotError(f"{folder} is no snapshot: it has no files named like snap_099.0.hdf5")
    with open_file(next(iter(chunks.values()))) as file:
        return read_header(file), chunks
