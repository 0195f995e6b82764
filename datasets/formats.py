"""Maps in FITS, HDF5 and NPY files, in float32 with their units, domain and extent.

FITS   one image (n = 1) or cube (n > 1) an HDU; BUNIT, DOMAIN, SIDEKPC and, where the file had none, a linear WCS in
       kpc about the centre. Cards of a file that was read (WCS, OBJECT, …) are written back. Names, and the sides of
       more than one map, stand in a table ``VIEWS`` beside each image.
HDF5   one data set a domain, (n, height, width), attributes ``unit``, ``side_kpc``, ``names``, ``provenance``.
NPY    one domain; unit, domain and sides in a JSON file of the same name beside it. No pickle is read.

References:
    Pence et al. 2010, A&A 524, A42 (FITS 3.0); Greisen & Calabretta 2002, A&A 395, 1061 (WCS).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy import units
from astropy.io import fits
from numpy.typing import NDArray

from skyshift import __version__
from skyshift.datasets.maps import MapError, Maps
from skyshift.files import flush, write_whole

_OWN_CARDS = {
    "SIMPLE", "BITPIX", "EXTEND", "XTENSION", "PCOUNT", "GCOUNT", "BUNIT", "DOMAIN", "SIDEKPC", "BSCALE", "BZERO",
    "EXTNAME", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM", "PROVENAN", "COMMENT", "HISTORY", "", "END", "BLANK",
}  # fmt: skip

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


def read_maps(path: str | Path, *, domain: str | None = None, unit: str | None = None) -> dict[str, Maps]:
    """Read all maps of a file.

    Args:
        path: FITS, HDF5 or NPY.
        domain: Domain of the maps where the file does not say (a telescope's FITS file, a bare NPY file).
        unit: Likewise their unit.

    Returns:
        Domain to its maps.

    Raises:
        MapError: No such file, no map in it, or neither file nor caller names domain and unit.
    """
    path = Path(path)
    if not path.is_file():
        raise MapError(f"{path} does not exist")
    reader = {"fits": _read_fits, "hdf5": _read_hdf5, "npy": _read_npy}[file_format(path)]
    try:
        found = reader(path, domain, unit)
    except MapError:
        raise
    except (OSError, EOFError, ValueError, TypeError) as error:  # astropy and NumPy, of files that are cut off
        raise MapError(f"{path} cannot be read: {error}") from None
    if not found:
        raise MapError(f"{path} holds no maps")
    names = [maps.domain for maps in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise MapError(
            f"{path} holds {len(twice)} images of '{twice[0]}' (bands, weights or masks, it may be); copy the one that "
            "is meant into a file of its own"
        )
    return {maps.domain: maps for maps in found}


def write_maps(path: str | Path, maps: Mapping[str, Maps]) -> Path:
    """Write maps of one or more domains to one file, whole or not at all.

    Args:
        path: FITS, HDF5 or NPY (one domain alone).
        maps: Domain to its maps.

    Raises:
        MapError: An unknown suffix, or several domains for NPY.
    """
    path = Path(path)
    writer = {"fits": _write_fits, "hdf5": _write_hdf5, "npy": _write_npy}[file_format(path)]
    writer(path, list(maps.values()))
    return path


def _named(path: Path, what: str, found: Any, given: str | None) -> str:
    """What the file says, else what the caller says; a contradiction is an error."""
    found = str(found).strip() if found else None
    if found and what == "unit":
        found = _unit(path, found, given)
    same = found == given or (what == "unit" and found and given and units.Unit(found) == units.Unit(given))
    if found and given and not same:
        raise MapError(f"{path} holds maps of {what} '{found}', not '{given}'")
    if not (found or given):
        raise MapError(f"{path} does not say the {what} of its maps; name it with --{what}")
    return found or str(given)


_OLD_UNITS = {"JY/BEAM": "Jy / beam", "JY": "Jy", "MJY/SR": "MJy / sr", "KELVIN": "K", "K.KM/S": "K km / s"}
"""Spellings of radio telescopes' files, in capitals, as AIPS and GIPSY write them."""


def _unit(path: Path, found: str, given: str | None) -> str | None:
    """The file's unit as astropy reads it; what the caller names stands in for one that astropy does not know."""
    for text in (found, _OLD_UNITS.get(found.upper(), found)):
        try:
            units.Unit(text)
        except ValueError:
            continue
        return text
    if given:
        return None
    raise MapError(f"{path}: '{found}' is no unit that astropy knows; name it with --unit")


def _stack(path: Path, values: NDArray[Any]) -> NDArray[np.float32]:
    values = np.asarray(values)
    if values.ndim not in (2, 3):
        raise MapError(f"{path}: maps have two axes, stacks of maps three, not {values.ndim}")
    return np.ascontiguousarray(values.reshape((-1, *values.shape[-2:])), np.float32)


def _read_fits(path: Path, domain: str | None, unit: str | None) -> list[Maps]:
    found: list[Maps] = []
    with fits.open(path, memmap=False) as hdus:
        tables = {(hdu.name, hdu.ver): hdu.data for hdu in hdus if isinstance(hdu, fits.BinTableHDU)}
        for hdu in hdus:
            if not hdu.is_image or hdu.data is None:
                continue
            cards, data = hdu.header, np.squeeze(hdu.data) if hdu.data.ndim > 3 else hdu.data
            values = _stack(path, data)
            views = tables.get(("VIEWS", len(found) + 1))
            columns = {} if views is None else {name: views[name] for name in views.names}
            side = columns.get("side", cards.get("SIDEKPC"))
            found.append(
                Maps(
                    values,
                    _named(path, "domain", cards.get("DOMAIN"), domain),
                    _named(path, "unit", cards.get("BUNIT"), unit),
                    None if side is None else np.atleast_1d(np.asarray(side, np.float64)),
                    tuple(_text(name) for name in columns.get("name", ())),
                    {
                        key: cards[key]
                        for key in cards
                        if key not in _OWN_CARDS and not key.startswith(("NAXIS", "CHECK", "TFIELDS"))
                    },
                    _text(cards["PROVENAN"]) if "PROVENAN" in cards else path.name,
                )
            )
    return found


def _ascii(text: str) -> str:
    """FITS holds ASCII alone: anything else is escaped."""
    return text.encode("unicode_escape").decode("ascii")


def _text(escaped: Any) -> str:
    """Undo :func:`_ascii`; a text of other hands that is no valid escape stays as it is."""
    try:
        return str(escaped).encode("ascii").decode("unicode_escape")
    except UnicodeError:
        return str(escaped)


def _cards(maps: Maps) -> fits.Header:
    header = fits.Header()
    for key, value in maps.header.items():
        header[key] = value
    header["BUNIT"] = maps.unit
    header["DOMAIN"] = (maps.domain, "quantity that the map shows")
    header["CREATOR"] = f"skyshift {__version__}"
    if maps.provenance:
        header["PROVENAN"] = _ascii(maps.provenance)
    if maps.side is not None and len(set(maps.side.tolist())) == 1:
        header["SIDEKPC"] = (float(maps.side[0]), "[kpc] side of the map")
        if "CTYPE1" not in header:
            rows, columns = maps.values.shape[-2:]
            step = float(maps.side[0]) / columns
            for axis, (name, count) in enumerate((("X", columns), ("Y", rows)), start=1):
                header[f"CTYPE{axis}"] = name
                header[f"CUNIT{axis}"] = "kpc"
                header[f"CRPIX{axis}"] = (count + 1) / 2
                header[f"CRVAL{axis}"] = 0.0
                header[f"CDELT{axis}"] = step
    return header


def _write_fits(path: Path, maps: list[Maps]) -> None:
    hdus: list[Any] = []
    for index, stack in enumerate(maps):
        data = stack.values[0] if len(stack) == 1 else stack.values
        kind = fits.PrimaryHDU if index == 0 else fits.ImageHDU
        hdus.append(kind(data, _cards(stack)))
    for index, stack in enumerate(maps, start=1):
        columns = []
        if stack.names:
            names = [_ascii(name) for name in stack.names]
            columns.append(fits.Column("name", f"A{max(map(len, names))}", array=np.array(names)))
        if stack.side is not None and len(stack) > 1:
            columns.append(fits.Column("side", "D", unit="kpc", array=stack.side))
        if columns:
            hdus.append(fits.BinTableHDU.from_columns(columns, name="VIEWS", ver=index))
    with write_whole(path) as side:
        fits.HDUList(hdus).writeto(side)


def _read_hdf5(path: Path, domain: str | None, unit: str | None) -> list[Maps]:
    found = []
    with h5py.File(path, "r") as file:
        for name, data in file.items():
            if not isinstance(data, h5py.Dataset) or data.ndim not in (2, 3):
                continue
            attributes = data.attrs
            side = attributes.get("side_kpc")
            found.append(
                Maps(
                    _stack(path, data[()]),
                    _named(path, "domain", attributes.get("domain"), domain or name),
                    _named(path, "unit", attributes.get("unit"), unit),
                    None if side is None else np.atleast_1d(np.asarray(side, np.float64)),
                    tuple(json.loads(attributes["names"])) if "names" in attributes else (),
                    provenance=str(attributes.get("provenance", path.name)),
                )
            )
    return found


def _write_hdf5(path: Path, maps: list[Maps]) -> None:
    with write_whole(path) as side, h5py.File(side, "w", libver="latest") as file:
        for stack in maps:
            data = file.create_dataset(stack.domain, data=stack.values, compression="gzip", shuffle=True)
            data.attrs.update({"domain": stack.domain, "unit": stack.unit, "provenance": stack.provenance})
            if stack.names:
                data.attrs["names"] = json.dumps(stack.names)
            if stack.side is not None:
                data.attrs["side_kpc"] = stack.side


def _read_npy(path: Path, domain: str | None, unit: str | None) -> list[Maps]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise MapError(f"{path} is no plain NPY array: {error}") from None
    beside = path.with_suffix(".json")
    try:
        facts = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except ValueError as error:
        raise MapError(f"{beside}, which describes {path.name}, is no JSON: {error}") from None
    side = facts.get("side_kpc")
    return [
        Maps(
            _stack(path, values),
            _named(path, "domain", facts.get("domain"), domain),
            _named(path, "unit", facts.get("unit"), unit),
            None if side is None else np.asarray(side, np.float64),
            tuple(facts.get("names", ())),
            provenance=facts.get("provenance", path.name),
        )
    ]


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
