"""Maps in HDF5, in two layouts.

plain  one data set a domain, (n, height, width), attributes ``unit``, ``side_kpc``, ``names``, ``provenance``.
skais  what skais-mapper writes: ``/{group}/images`` (n, height, width), one chunk a map, growing along n, and one group
       ``/{group}/metadata/{i:04d}`` a map whose attributes say ``class``, ``units``, ``extent`` (left, right, bottom,
       top), ``units_extent``, ``name`` and the like. Readers of these files sort the groups by name, so the numbers
       have as many digits as the last one needs.

skais-mapper's ``star`` and ``temp`` are ``stars`` and ``temperature`` here. Its ``hi/21cm`` is a brightness temperature
(mK) that takes one pixel for the depth of the map and so depends on the pixel size: it is read as ``hi_21cm``, which is
none of this package's domains.

References:
    skais-mapper 0.1.16, ``Img2H5Buffer.inc_write`` and ``map_TNG_sample`` (https://github.com/phdenzel/skais-mapper).
"""

import json
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from astropy import units
from numpy.typing import NDArray

from skyshift.datasets.maps import MapError, Maps, as_stack, stated
from skyshift.files import write_whole
from skyshift.naming import unknown

Layout = Literal["plain", "skais"]

_FROM_SKAIS = {"star": "stars", "temp": "temperature", "hi/21cm": "hi_21cm"}
_TO_SKAIS = {name: group for group, name in _FROM_SKAIS.items()}


def read_hdf5(path: Path, domain: str | None, unit: str | None, name: str | None = None) -> list[tuple[str, Maps]]:
    """All maps of a file, each with how it is called there.

    Args:
        path: The file.
        domain: Of a data set that does not say.
        unit: Likewise.
        name: Of the only data set or group to read.

    Raises:
        MapError: There is no such data set, the file is a snapshot, or the unit is not known.
    """
    with h5py.File(path, "r") as file:
        if "Header" in file and any(key.startswith("PartType") for key in file):
            raise MapError(f"{path} holds particles, not maps; make maps of it with datasets/build.py")
        plain, grouped = _plain_names(file), _skais_groups(file)
        if name is not None:
            known = [*plain, *grouped]
            wanted = name.strip("/").removesuffix("/images")
            if wanted not in known:
                raise MapError(f"{path}: {unknown('data set of maps', name, known)}")
            plain, grouped = [k for k in plain if k == wanted], [k for k in grouped if k == wanted]
        found = [(key, _read_plain(path, key, file[key], domain, unit)) for key in plain]
        return found + [(key, _read_skais(path, key, file[key], domain, unit)) for key in grouped]


def map_names(file: h5py.File) -> list[str]:
    """Data sets and groups of maps, as ``hdu`` of :func:`skyshift.datasets.formats.read_maps` takes them."""
    return [*_plain_names(file), *_skais_groups(file)]


def _plain_names(file: h5py.File) -> list[str]:
    return [name for name, item in file.items() if isinstance(item, h5py.Dataset) and item.ndim in (2, 3)]


def _read_plain(path: Path, name: str, data: h5py.Dataset, domain: str | None, unit: str | None) -> Maps:
    attributes = data.attrs
    side = attributes.get("side_kpc")
    return Maps(
        as_stack(path, data[()]),
        stated(path, "domain", attributes.get("domain"), domain or name),
        stated(path, "unit", attributes.get("unit"), unit),
        None if side is None else np.atleast_1d(np.asarray(side, np.float64)),
        tuple(json.loads(attributes["names"])) if "names" in attributes else (),
        provenance=str(attributes.get("provenance", path.name)),
    )


def _skais_groups(file: h5py.File) -> list[str]:
    """Names of the groups that hold a data set ``images`` of maps."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        group, _, last = name.rpartition("/")
        if group and last == "images" and isinstance(item, h5py.Dataset) and item.ndim == 3:
            found.append(group)

    file.visititems(visit)
    return found


def _read_skais(path: Path, name: str, group: h5py.Group, domain: str | None, unit: str | None) -> Maps:
    data = group["images"]
    entries = {int(key): dict(item.attrs) for key, item in group.get("metadata", {}).items() if key.isdecimal()}
    if entries and set(entries) != set(range(len(data))):
        missing = sorted(set(range(len(data))) - set(entries))
        raise MapError(
            f"{path}: {name} holds {len(data)} images and {len(entries)} entries of metadata"
            + (f", none for image {missing[0]}" if missing else "")
            + "; it is cut off, or was written by two processes at once"
        )
    rows = [entries[i] for i in sorted(entries)]
    said = {str(row["units"]) for row in rows if "units" in row}
    if len(said) > 1:
        raise MapError(f"{path}: the images of {name} are in several units ({', '.join(sorted(said))})")
    full = _FROM_SKAIS.get(name, name.replace("/", "_"))
    provenance = {str(row["provenance"]) for row in rows if "provenance" in row}
    return Maps(
        as_stack(path, data[()]),
        stated(path, "domain", rows[0].get("domain") if rows else None, domain or full),
        stated(path, "unit", said.pop() if said else None, unit),
        _skais_sides(path, name, rows),
        tuple(str(row["name"]) for row in rows) if rows and all("name" in row for row in rows) else (),
        provenance=provenance.pop() if len(provenance) == 1 else path.name,
    )


def _skais_sides(path: Path, name: str, rows: list[dict[str, Any]]) -> NDArray[np.float64] | None:
    """(n,) kpc; ``None`` where an entry does not tell its extent."""
    if not rows or not all("extent" in row for row in rows):
        return None
    sides = []
    for i, row in enumerate(rows):
        if "units_extent" not in row:
            raise MapError(f"{path}: image {i} of {name} has an extent without units_extent")
        extent = np.asarray(row["extent"], np.float64)
        if extent.shape != (4,) or not np.isclose(extent[1] - extent[0], extent[3] - extent[2], rtol=1e-6):
            raise MapError(f"{path}: image {i} of {name} has the extent {extent.tolist()}; maps are square")
        try:
            factor = units.Unit(str(row["units_extent"])).to(units.kpc)
        except (ValueError, units.UnitConversionError):
            raise MapError(f"{path}: image {i} of {name}: '{row['units_extent']}' is no unit of length") from None
        sides.append(float(extent[1] - extent[0]) * factor)
    return np.array(sides)


def write_hdf5(path: Path, maps: list[Maps], layout: Layout = "plain") -> None:
    """Write all maps to one file, whole or not at all.

    Args:
        path: The file.
        maps: Of one domain each.
        layout: See the module.
    """
    with write_whole(path) as side, h5py.File(side, "w", libver="latest") as file:
        for stack in maps:
            (_write_skais if layout == "skais" else _write_plain)(file, stack)


def _write_plain(file: h5py.File, stack: Maps) -> None:
    data = file.create_dataset(stack.domain, data=stack.values, compression="gzip", shuffle=True)
    data.attrs.update({"domain": stack.domain, "unit": stack.unit, "provenance": stack.provenance})
    if stack.names:
        data.attrs["names"] = json.dumps(stack.names)
    if stack.side is not None:
        data.attrs["side_kpc"] = stack.side


def _write_skais(file: h5py.File, stack: Maps) -> None:
    """Entries that a map does not have (a subhalo's number, a count of particles) are left out."""
    name = _TO_SKAIS.get(stack.domain, stack.domain)
    count, height, width = stack.values.shape
    file.create_dataset(
        f"{name}/images",
        data=stack.values,
        chunks=(1, height, width),
        maxshape=(None, height, width),
        compression="gzip",
        shuffle=True,
    )
    digits = max(4, len(str(count - 1)))
    for i in range(count):
        entry: dict[str, Any] = {"class": name, "units": stack.unit, "domain": stack.domain}
        if stack.side is not None:
            half = stack.side[i] / 2
            entry |= {"extent": half * np.array([-1.0, 1.0, -1.0, 1.0]), "units_extent": "kpc"}
        if stack.names:
            entry["name"] = stack.names[i]
        entry["provenance"] = stack.provenance
        file.create_group(f"{name}/metadata/{i:0{digits}d}").attrs.update(entry)
