"""Maps in FITS, HDF5 and NPY files, in float32 with their units, domain and extent.

FITS   one image (n = 1) or cube (n > 1) an HDU (:mod:`skyshift.datasets.formats_fits`).
HDF5   one data set a domain, or the groups that skais-mapper writes (:mod:`skyshift.datasets.formats_hdf5`).
NPY    one domain; unit, domain and sides in a JSON file of the same name beside it. No pickle is read.

Whatever is written appears whole or not at all, and comes back bit by bit.
"""

import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import h5py
import numpy as np

from skyshift.datasets.formats_fits import image_names, read_fits, write_fits
from skyshift.datasets.formats_hdf5 import Layout, map_names, read_hdf5, write_hdf5
from skyshift.datasets.maps import MapError, Maps, as_stack, stated
from skyshift.files import flush, write_whole
from skyshift.naming import unknown

SUFFIXES = {".fits": "fits", ".fit": "fits", ".hdf5": "hdf5", ".h5": "hdf5", ".npy": "npy"}


def file_format(path: Path) -> str:
    """``fits``, ``hdf5`` or ``npy``, from the name.

    Raises:
        MapError: Another suffix.
    """
    name = path.name.removesuffix(".gz") if path.name.endswith(".fits.gz") else path.name
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise MapError(f"{path}: maps are read from and written to {', '.join(SUFFIXES)}, not '{suffix}'")
    return SUFFIXES[suffix]


def read_maps(
    path: str | Path, *, domain: str | None = None, unit: str | None = None, hdu: str | int | None = None
) -> dict[str, Maps]:
    """Read all maps of a file.

    Args:
        path: FITS, HDF5 or NPY.
        domain: Domain of the maps where the file does not say (a telescope's FITS file, a bare NPY file).
        unit: Likewise their unit.
        hdu: Only this image of a file that holds several: an HDU's number (from 0) or EXTNAME in FITS, a data set's or
            group's name in HDF5.

    Returns:
        Domain to its maps. The channels of a spectral cube are the maps of one stack, named by their coordinate.

    Raises:
        MapError: No such file, no map in it, or neither file nor caller names domain and unit.
    """
    path = Path(path)
    if not path.is_file():
        raise MapError(f"{path} {'is a folder, not a file of maps' if path.is_dir() else 'does not exist'}")
    kind = file_format(path)
    if kind == "npy" and hdu is not None:
        raise MapError(f"{path}: an NPY file holds one array; leave out --hdu")
    try:
        if kind == "npy":
            found = [_read_npy(path, domain, unit)]
        else:
            with warnings.catch_warnings():
                # astropy warns of a file that is shorter than its header says, and goes on
                warnings.filterwarnings("error", message=".*truncated")
                chosen = None if hdu is None else str(hdu)
                found = (read_fits if kind == "fits" else read_hdf5)(path, domain, unit, chosen)
    except MapError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error, UserWarning, RuntimeError) as error:
        # what astropy, h5py, zlib and NumPy raise of files that are cut off or damaged
        raise MapError(f"{path} cannot be read: {error}") from None
    if not found:
        raise MapError(f"{path} holds no maps")
    names = [maps.domain for _, maps in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        where = [label for label, maps in found if maps.domain == twice]
        listed = ", ".join(where[:12]) + (", …" if len(where) > 12 else "")
        raise MapError(
            f"{path} holds {len(where)} images of '{twice}' ({listed}: bands, weights or masks, it may be); choose one "
            "with --hdu"
        )
    return {maps.domain: maps for _, maps in found}


def read_maps_leniently(
    path: str | Path, *, domain: str | None = None, unit: str | None = None, hdu: str | None = None
) -> tuple[dict[str, Maps], set[str]]:
    """Read what there is, for looking at it: also images that say neither domain nor unit, and several of one domain.

    Args:
        path: FITS, HDF5 or NPY.
        domain: Of maps that do not say; else they are called ``image``.
        unit: Of maps that do not say; else they count as numbers.
        hdu: Only this image.

    Returns:
        Domain (with the image's name, where several share it) to maps, and which of them do not state their unit.

    Raises:
        MapError: The file cannot be read or holds no maps.
    """
    path = Path(path)
    try:
        return read_maps(path, domain=domain, unit=unit, hdu=hdu), set()
    except MapError as error:
        refusal = error
    try:
        names = _image_names(path) if hdu is None else [hdu]
    except (OSError, EOFError, zlib.error):
        raise refusal from None
    called, counted = domain or "image", unit or "1"
    found: list[tuple[str, str, Maps, bool]] = []
    for name in names:
        for its, of in ((domain, unit), (called, unit), (domain, counted), (called, counted)):
            try:
                read = read_maps(path, domain=its, unit=of, hdu=name)
            except MapError:
                continue
            found += [(name or path.name, key, maps, of != unit) for key, maps in read.items()]
            break
        else:
            raise refusal
    if not found:
        raise refusal
    twice = len({key for _, key, _, _ in found}) < len(found)
    labelled = [(f"{key} {name}" if twice else key, maps, silent) for name, key, maps, silent in found]
    return {key: maps for key, maps, _ in labelled}, {key for key, _, silent in labelled if silent}


def _image_names(path: Path) -> Sequence[str | None]:
    kind = file_format(path)
    if kind == "fits":
        return image_names(path)
    if kind == "hdf5":
        with h5py.File(path, "r") as file:
            return map_names(file)
    return [None]


def write_maps(path: str | Path, maps: Mapping[str, Maps], *, layout: Layout = "plain") -> Path:
    """Write maps of one or more domains to one file, whole or not at all.

    Args:
        path: FITS, HDF5 or NPY (one domain alone).
        maps: Domain to its maps.
        layout: Of HDF5: ``plain``, or ``skais`` for the groups that skais-mapper writes.

    Raises:
        MapError: An unknown suffix or layout, several domains for NPY, or sides that ``skais`` needs are not known.
    """
    path = Path(path)
    kind = file_format(path)
    if layout not in get_args(Layout):
        raise MapError(unknown("layout", layout, get_args(Layout)))
    if layout != "plain" and kind != "hdf5":
        raise MapError(f"{path}: the layout '{layout}' is one of HDF5 files; write .hdf5")
    stacks = list(maps.values())
    if kind == "hdf5":
        write_hdf5(path, stacks, layout)
    else:
        (write_fits if kind == "fits" else _write_npy)(path, stacks)
    return path


def _read_npy(path: Path, domain: str | None, unit: str | None) -> tuple[str, Maps]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise MapError(f"{path} is no plain NPY array: {error}") from None
    beside = path.with_suffix(".json")
    try:
        facts = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except ValueError as error:
        raise MapError(f"{beside}, which describes {path.name}, is no JSON: {error}") from None
    if not isinstance(facts, dict):
        raise MapError(
            f"{beside}, which describes {path.name}, must be a JSON object with domain and unit, not a list "
            f"or a value: {str(facts)[:60]}"
        )
    side = facts.get("side_kpc")
    maps = Maps(
        as_stack(path, values),
        stated(path, "domain", facts.get("domain"), domain),
        stated(path, "unit", facts.get("unit"), unit),
        None if side is None else np.asarray(side, np.float64),
        tuple(facts.get("names", ())),
        provenance=facts.get("provenance", path.name),
    )
    return path.name, maps


def _write_npy(path: Path, maps: list[Maps]) -> None:
    if len(maps) != 1:
        raise MapError(f"{path}: an NPY file holds one domain, not {len(maps)}; write FITS or HDF5")
    stack = maps[0]
    facts = {
        "domain": stack.domain,
        "unit": stack.unit,
        "side_kpc": None if stack.side is None else stack.side.tolist(),
        "names": list(stack.names),
        "provenance": stack.provenance,
    }
    # Both are on the disk before either takes its name: a failure leaves the old pair.
    with write_whole(path.with_suffix(".json")) as beside, write_whole(path) as side:
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        flush(beside)
        with side.open("wb") as file:
            np.save(file, stack.values, allow_pickle=False)
