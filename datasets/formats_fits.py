"""Maps in FITS: one image (n = 1) or cube (n > 1) an HDU, with units and coordinates.

BUNIT is the unit, DOMAIN the domain, SIDEKPC the side of the map; where the file had no coordinates, a linear WCS in
kpc about the centre is written. Cards of a file that was read (WCS, OBJECT, …) are written back. Names, and the sides
of more than one map, stand in a table ``VIEWS`` beside each image. NEXTEND says how many HDUs follow the first, so that
a file which lost some is seen to be cut.

Mock observations are read by the same rules: each of their images says its domain in DOMAIN. Images named NOISY, CLEAN
and SIGMA of one and the same domain d (a caller's, it may be) are d, d_clean and d_sigma.

A cube whose third axis is spectral is a stack of its channels, named by their coordinate (CTYPE3, CRVAL3, …); the cards
of that axis are kept.

References:
    Pence et al. 2010, A&A 524, A42 (FITS 3.0); Greisen & Calabretta 2002, A&A 395, 1061 (WCS); Greisen et al. 2006,
    A&A 446, 747 (spectral coordinates).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skyshift import __version__
from skyshift.datasets.maps import MapError, Maps, as_stack, stated
from skyshift.files import write_whole
from skyshift.naming import unknown

_OWN_CARDS = {
    "SIMPLE", "BITPIX", "EXTEND", "XTENSION", "PCOUNT", "GCOUNT", "BUNIT", "DOMAIN", "SIDEKPC", "BSCALE", "BZERO",
    "EXTNAME", "EXTVER", "NEXTEND", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM", "PROVENAN", "COMMENT", "HISTORY", "",
    "END", "BLANK",
}  # fmt: skip

OBSERVED = {"NOISY": "", "CLEAN": "_clean", "SIGMA": "_sigma"}
"""EXTNAME of a mock observation's image to the ending of its domain."""

SPECTRAL = ("FREQ", "VELO", "VRAD", "VOPT", "FELO", "WAVE", "AWAV", "ZOPT", "ENER", "WAVN")
"""First four letters of CTYPE for a spectral axis."""


def read_fits(path: Path, domain: str | None, unit: str | None, hdu: str | None = None) -> list[tuple[str, Maps]]:
    """All images of a file, each with how it is called there.

    Args:
        path: The file.
        domain: Of images that do not say.
        unit: Likewise.
        hdu: Number or EXTNAME of the only one to read.

    Raises:
        MapError: There is no such HDU, or domain and unit are not known.
    """
    with fits.open(path, memmap=False) as hdus:
        _require_whole(path, hdus)
        tables = {(entry.name, entry.ver): entry.data for entry in hdus if isinstance(entry, fits.BinTableHDU)}
        images = _images(hdus)
        labels = list(images)
        chosen = range(len(images)) if hdu is None else [_choose(path, hdu, labels)]
        endings = _endings(list(images.values()), domain)  # of all: σ alone is σ as well
        return [
            (labels[j], _maps(path, images[labels[j]], tables.get(("VIEWS", j + 1)), domain, unit, endings[j]))
            for j in chosen
        ]


def image_names(path: Path) -> list[str]:
    """Images of a file, as ``hdu`` of :func:`skyshift.datasets.formats.read_maps` takes them (``0``, ``1:SIGMA``)."""
    with fits.open(path, memmap=False) as hdus:
        return list(_images(hdus))


def _images(hdus: fits.HDUList) -> dict[str, Any]:
    images = [(i, entry) for i, entry in enumerate(hdus) if entry.is_image and entry.header["NAXIS"] > 0]
    return {f"{i}:{e.name}" if e.name and e.name != "PRIMARY" else str(i): e for i, e in images}


def _require_whole(path: Path, hdus: fits.HDUList) -> None:
    first = hdus[0].header
    promised = first.get("NEXTEND")
    if promised is not None and str(first.get("CREATOR", "")).startswith("skyshift") and len(hdus) - 1 < promised:
        raise MapError(f"{path} cannot be read: it is cut off, {len(hdus) - 1} of {promised} extensions are there")


def _choose(path: Path, hdu: str, labels: list[str]) -> int:
    """Index of the image that a number, a name or both (``3:SIGMA``) mean."""
    for j, label in enumerate(labels):
        number, _, name = label.partition(":")
        if hdu in (label, number) or (name and hdu.casefold() == name.casefold()):
            return j
    raise MapError(f"{path}: {unknown('HDU with an image', hdu, labels)}")


def _endings(images: list[Any], domain: str | None) -> list[str]:
    """What is added to the domain of each image: nothing, but for the images of a mock observation of one domain."""
    domains = {str(entry.header.get("DOMAIN") or domain).strip() for entry in images}
    if len(images) > 1 and len(domains) == 1 and {entry.name for entry in images} <= set(OBSERVED):
        return [OBSERVED[entry.name] for entry in images]
    return [""] * len(images)


def _maps(path: Path, hdu: Any, views: Any, domain: str | None, unit: str | None, ending: str) -> Maps:
    cards = hdu.header
    data = np.squeeze(hdu.data) if hdu.data.ndim > 3 else hdu.data
    values = as_stack(path, data)
    columns = {} if views is None else {name: views[name] for name in views.names}
    side = columns.get("side", cards.get("SIDEKPC"))
    names = tuple(_text(name) for name in columns.get("name", ())) or (_channels(cards, len(values)))
    return Maps(
        values,
        stated(path, "domain", cards.get("DOMAIN"), domain) + ending,
        stated(path, "unit", cards.get("BUNIT"), unit),
        None if side is None else np.atleast_1d(np.asarray(side, np.float64)),
        names,
        {
            key: cards[key]
            for key in cards
            if key not in _OWN_CARDS and not key.startswith(("NAXIS", "CHECK", "TFIELDS"))
        },
        _text(cards["PROVENAN"]) if "PROVENAN" in cards else path.name,
    )


def _channels(cards: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of a cube's channels by their spectral coordinate; none where the third axis is of another kind."""
    kind = str(cards.get("CTYPE3", "")).strip()
    if count < 2 or cards.get("NAXIS") != 3 or not kind.upper().startswith(SPECTRAL):
        return ()
    step = cards.get("CDELT3", cards.get("CD3_3"))
    if step is None or "CRVAL3" not in cards:
        return ()
    at = cards["CRVAL3"] + step * (np.arange(1, count + 1) - cards.get("CRPIX3", 0.0))
    unit = str(cards.get("CUNIT3", "")).strip()
    # as many digits as tell a hundredth of a channel
    digits = max(4, int(np.ceil(np.log10(np.abs(at).max() / abs(step)))) + 3) if step and at.any() else 4
    return tuple(f"{kind[:4]} {value:.{digits}g} {unit}".strip() for value in at)


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
            _add_kpc(header, maps.values.shape[-2:], float(maps.side[0]))
    return header


def _add_kpc(header: fits.Header, shape: tuple[int, ...], side: float) -> None:
    """A linear WCS in kpc whose origin is the centre of the map."""
    rows, columns = shape
    for axis, (name, count) in enumerate((("X", columns), ("Y", rows)), start=1):
        header[f"CTYPE{axis}"] = name
        header[f"CUNIT{axis}"] = "kpc"
        header[f"CRPIX{axis}"] = (count + 1) / 2
        header[f"CRVAL{axis}"] = 0.0
        header[f"CDELT{axis}"] = side / columns


def _views(stack: Maps, number: int) -> fits.BinTableHDU | None:
    """The table of names and sides beside an image."""
    columns = []
    if stack.names:
        names: NDArray[Any] = np.array([_ascii(name) for name in stack.names])
        columns.append(fits.Column("name", f"A{max(map(len, names))}", array=names))
    if stack.side is not None and len(stack) > 1:
        columns.append(fits.Column("side", "D", unit="kpc", array=stack.side))
    return fits.BinTableHDU.from_columns(columns, name="VIEWS", ver=number) if columns else None


def write_fits(path: Path, maps: list[Maps]) -> None:
    """Write one HDU a domain and the tables beside them, whole or not at all."""
    hdus: list[Any] = []
    for index, stack in enumerate(maps):
        data = stack.values[0] if len(stack) == 1 else stack.values
        kind = fits.PrimaryHDU if index == 0 else fits.ImageHDU
        hdus.append(kind(data, _cards(stack)))
        if len(maps) > 1:
            hdus[-1].header["EXTNAME"] = stack.domain.upper()
    hdus += [table for i, stack in enumerate(maps, start=1) if (table := _views(stack, i)) is not None]
    hdus[0].header["NEXTEND"] = (len(hdus) - 1, "extensions in this file")
    with write_whole(path) as side:
        fits.HDUList(hdus).writeto(side)
