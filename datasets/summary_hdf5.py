"""What an HDF5 file of particles or of anything else holds: its data sets, shapes and counts, chunk by chunk.

Nothing but names, shapes and the header is read, so that a snapshot of any size is listed at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skyshift.datasets.formats_hdf5 import map_names
from skyshift.datasets.maps import MapError
from skyshift.datasets.summary import Summary, table

KINDS = ("gas", "dark matter", "low-resolution dark matter", "tracers", "stars and wind", "black holes")


def is_hdf5(path: Path) -> bool:
    """Whether a file is called like one of HDF5."""
    return path.is_file() and path.suffix.lower() in (".hdf5", ".h5")


def is_map_file(path: Path) -> bool:
    """Whether an HDF5 file holds maps.

    Raises:
        MapError: It cannot be opened.
    """
    with _opened(path) as file:
        return "Header" not in file and bool(map_names(file))


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise MapError(f"{path} cannot be read: {error}") from None


def _data_sets(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name to shape and type."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.shape, str(item.dtype))

    with _opened(path) as file:
        file.visititems(visit)
    return found


def _header(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        if "Header" not in file:
            return {}
        facts: dict[str, Any] = {}
        for name, value in file["Header"].attrs.items():
            plain = np.asarray(value).tolist()
            while isinstance(plain, list) and len(plain) == 1:
                plain = plain[0]
            facts[name] = plain.decode(errors="replace") if isinstance(plain, bytes) else plain
        return facts


def of_hdf5(paths: Sequence[Path]) -> Summary:
    """List the data sets of a file, or of all chunks of a snapshot together.

    Args:
        paths: One file, or the chunks.

    Raises:
        MapError: A file cannot be opened.
    """
    total: dict[str, int] = {}
    rest: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in paths:
        for name, (shape, kind) in _data_sets(path).items():
            total[name] = total.get(name, 0) + (shape[0] if shape else 1)
            rest.setdefault(name, (shape[1:], kind))
    header = _header(paths[0])
    what, counts = _kind(total, header)
    rows = [[name, str(total[name]), str(rest[name][0] or ""), rest[name][1]] for name in sorted(total)]
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    facts = {
        "path": where,
        "kind": what,
        "files": len(paths),
        "counts": counts,
        "header": {key: value for key, value in header.items() if _plain(value)},
        "data_sets": {name: {"rows": total[name], "shape": rest[name][0], "dtype": rest[name][1]} for name in total},
    }
    told = ("SimulationName", "SnapshotNumber", "CutoutID", "Redshift", "Time", "BoxSize", "HubbleParam", "Omega0")
    head = [f"{where}: {what}, {len(paths)} file{'s' * (len(paths) > 1)}"]
    head += [f"  {key}: {header[key]}" for key in told if key in header]
    head += [f"  {name}: {count:,}" for name, count in counts.items()]
    missing = header.get("NumFilesPerSnapshot")
    if len(paths) > 1 and isinstance(missing, int) and missing > len(paths):
        head.append(f"  {missing - len(paths)} of {missing} chunks are not there")
        facts["missing_chunks"] = missing - len(paths)
    return Summary(facts, [*head, "", *table(["data set", "rows", "of shape", "type"], rows)])


def _kind(total: Mapping[str, int], header: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """What a file is, and how many particles or objects of each kind are in it."""
    counts: dict[str, int] = {}
    for name, count in total.items():
        group = name.split("/")[0]
        if group.startswith("PartType") and group[8:].isdecimal():
            kind = int(group[8:])
            group = f"{group} ({KINDS[kind] if kind < len(KINDS) else 'unknown'})"
        elif group not in ("Group", "Subhalo"):
            continue
        counts[group] = max(count, counts.get(group, 0))
    if "CutoutID" in header:
        return "cutout" if counts else "cutout without particles", counts
    if any(name.startswith("PartType") for name in counts):
        return "snapshot", counts
    return ("group catalogue" if counts else "HDF5 file"), counts


def _plain(value: Any) -> bool:
    return not (isinstance(value, float) and not np.isfinite(value))
