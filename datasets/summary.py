"""What a store or a file of maps holds, in words, numbers and a contact sheet."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skyshift.datasets.domains import DOMAINS
from skyshift.datasets.formats import read_maps_leniently
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.store import MapStore
from skyshift.plots import DIVERGING, Panel, map_figure

SAMPLE_PIXELS = 2**25
"""Pixels of a domain that are looked at, at the most."""

QUANTILES = {"1 %": 0.01, "50 %": 0.5, "99 %": 0.99}


@dataclass
class Summary:
    """The outcome.

    Attributes:
        facts: For JSON.
        lines: For people.
        stacks: Domain to the maps of the contact sheet; empty where there are none to show.
    """

    facts: dict[str, Any]
    lines: list[str]
    stacks: dict[str, Maps] = field(default_factory=dict)

    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)

    def figure(self) -> Figure:
        """The contact sheet.

        Raises:
            MapError: There are no maps to show.
        """
        if not any(map(len, self.stacks.values())):
            raise MapError(f"{self.facts['path']} holds no maps to draw; leave out --figure")
        return contact_sheet(self.stacks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, aligned."""
    width = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip() for row in [head, *rows]]


def statistics(maps: NDArray[np.float32]) -> dict[str, Any]:
    """Range, quantiles and blemishes of maps.

    Args:
        maps: (n, height, width).

    Returns:
        ``min``, quantiles, ``max`` over the finite pixels (``None`` where there are none), counts of NaN and infinite
        pixels, share of zeros, and the number of maps that are zero everywhere.
    """
    finite = np.isfinite(maps)
    values = maps[finite]
    probabilities = [0.0, *QUANTILES.values(), 1.0]
    found = np.quantile(values, probabilities).tolist() if values.size else [None] * len(probabilities)
    return {
        **dict(zip(["min", *QUANTILES, "max"], found, strict=True)),
        "nan": int(np.isnan(maps).sum()),
        "infinite": int(np.isinf(maps).sum()),
        "zero share": float(np.mean(maps == 0)) if maps.size else 0.0,
        "empty maps": int((~maps.any(axis=(1, 2))).sum()),
    }


def _rows(domains: Mapping[str, dict[str, Any]]) -> list[str]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    head = ["domain", "unit", "maps", "shape", "min", *QUANTILES, "max", "NaN", "inf", "zeros", "empty maps"]
    rows = [
        [
            name, f["unit"], f"{f['maps']:,}", " × ".join(map(str, f["shape"])), number(f["min"]),
            *(number(f[q]) for q in QUANTILES), number(f["max"]), f"{f['nan']:,}", f"{f['infinite']:,}",
            f"{100 * f['zero share']:.1f} %", f"{f['empty maps']:,}",
        ]
        for name, f in domains.items()
    ]  # fmt: skip
    return table(head, rows)


def of_file(path: Path, columns: int, domain: str | None, unit: str | None, hdu: str | None) -> Summary:
    """Look at a FITS, HDF5 or NPY file.

    Args:
        path: The file.
        columns: Maps for the contact sheet.
        domain: Of maps that do not say.
        unit: Likewise.
        hdu: Only this image.

    Raises:
        MapError: It cannot be read, or holds no maps.
    """
    stacks, silent = read_maps_leniently(path, domain=domain, unit=unit, hdu=hdu)
    domains = {
        name: {
            "unit": "not stated" if name in silent else maps.unit,
            "maps": len(maps),
            "shape": list(maps.values.shape[1:]),
            "sampled": len(maps),
            **statistics(maps.values),
        }
        for name, maps in stacks.items()
    }
    lines = [f"{path}: {len(stacks)} domain{'s' * (len(stacks) > 1)}, {path.stat().st_size:,} bytes"]
    for name, maps in stacks.items():
        if maps.side is not None:
            low, high = float(maps.side.min()), float(maps.side.max())
            domains[name]["side_kpc"] = [low, high]
            lines.append(f"  {name}: sides of {low:.4g} to {high:.4g} kpc")
        elif arcsec := side_in_arcsec(maps):
            domains[name]["side_arcsec"] = arcsec
            lines.append(f"  {name}: sides of {arcsec:.4g} arcsec")
        if maps.names:
            lines.append(f"  {name}: {maps.names[0]}" + (f" … {maps.names[-1]}" if len(maps) > 1 else ""))
    facts = {"path": str(path), "kind": "file of maps", "domains": domains}
    shown = {name: _some(maps, _spread(len(maps), columns)) for name, maps in stacks.items()}
    return Summary(facts, [*lines, "", *_rows(domains)], shown)


def _spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` numbers from 0 to ``count`` - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))


def _some(maps: Maps, chosen: NDArray[np.int64]) -> Maps:
    side = None if maps.side is None else maps.side[chosen]
    names = tuple(maps.names[i] for i in chosen) if maps.names else tuple(f"map {i}" for i in chosen)
    return Maps(maps.values[chosen], maps.domain, maps.unit, side, names, maps.header, maps.provenance)


def of_store(path: str | Path, sample: int, columns: int, seed: int) -> Summary:
    """Look at a store, whole or not.

    Args:
        path: Its folder.
        sample: Maps of each domain whose values are looked at, at the most.
        columns: Maps for the contact sheet.
        seed: Of the sample.

    Raises:
        StoreError: It is no store of maps.
    """
    store = MapStore(path)
    catalogue = store.catalogue()
    views = np.asarray(catalogue["view"], np.int64)
    done = sum(store.is_done(shard) for shard in range(store.shards))
    most = max(1, min(sample, SAMPLE_PIXELS // store.pixels**2))
    chosen = views
    if len(views) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(views, most, replace=False))
    flags = np.asarray(catalogue["flags"], np.int64)
    domains: dict[str, dict[str, Any]] = {}
    stacks: dict[str, Maps] = {}
    row = np.searchsorted(views, chosen)
    shown = _spread(len(chosen), columns)
    for bit, name in enumerate(store.domains):
        maps = store.maps(name, chosen)
        domains[name] = {
            "unit": store.units[name],
            "maps": len(views),
            "shape": [store.pixels, store.pixels],
            "sampled": len(chosen),
            **statistics(maps),
            "empty maps": int(((flags >> bit) & 1).sum()),  # of all views: the catalogue knows
        }
        if len(shown):
            side = np.asarray(catalogue["side"], np.float64)[row[shown]]
            names = tuple(f"{catalogue['name'][row[i]]}, view {chosen[i]}" for i in shown)
            stacks[name] = Maps(maps[shown], name, store.units[name], side, names)
    facts = {
        "path": str(store.path),
        "kind": "store of maps",
        "complete": done == store.shards,
        "shards": {"done": done, "all": store.shards, "views": store.shard_views},
        "catalogue": _catalogue_facts(catalogue, store),
        "notes": store.notes(),
        "failures": _failures(store),
        "domains": domains,
    }
    return Summary(facts, [*_store_lines(facts), "", *_rows(domains)], stacks)


def _catalogue_facts(catalogue: Any, store: MapStore) -> dict[str, Any]:
    """Counts of a catalogue, and the ranges of its numbers."""
    if not len(catalogue):
        return {"views": 0}
    snapshot, galaxy, label = (np.asarray(catalogue[name], np.int64) for name in ("snapshot", "galaxy", "label"))
    numbers, counts = np.unique(snapshot, return_counts=True)
    classes, members = np.unique(label[label >= 0], return_counts=True)
    scale = np.asarray(catalogue["side"], np.float64) / store.pixels
    redshift = np.asarray(catalogue["redshift"], np.float64)
    return {
        "views": len(catalogue),
        "galaxies": len(np.unique(np.stack([snapshot, galaxy]), axis=1)[0]),
        "split_groups": len(np.unique(np.asarray(catalogue["split_group"]))),
        "snapshots": dict(zip(map(str, numbers.tolist()), counts.tolist(), strict=True)),
        "redshift": [float(redshift.min()), float(redshift.max())],
        "kpc_per_pixel": [float(scale.min()), float(np.median(scale)), float(scale.max())],
        "labels": {store.labels[c]: int(n) for c, n in zip(classes.tolist(), members.tolist(), strict=True)},
    }


def _failures(store: MapStore) -> list[Any]:
    """Galaxies that could not be built, as the store's ``failures.json`` tells them."""
    beside = store.path / "failures.json"
    if not beside.is_file():
        return []
    try:
        held = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MapError(f"{beside} is no JSON: {error}") from None
    entries = held.get("failures", held) if isinstance(held, dict) else held
    return list(entries.items() if isinstance(entries, dict) else entries)


def _store_lines(facts: Mapping[str, Any]) -> list[str]:
    shards, held = facts["shards"], facts["catalogue"]
    state = "whole" if facts["complete"] else f"not finished, {shards['done']} of {shards['all']} shards"
    lines = [f"{facts['path']}: store of {held['views']:,} views, {state}"]
    if held["views"]:
        low, middle, high = held["kpc_per_pixel"]
        lines += [
            f"  galaxies: {held['galaxies']:,} in {held['split_groups']:,} split groups",
            "  snapshots: " + ", ".join(f"{number} ({count:,} views)" for number, count in held["snapshots"].items()),
            f"  redshift: {held['redshift'][0]:.4g} to {held['redshift'][1]:.4g}",
            f"  pixels: {low:.3g} to {high:.3g} kpc, median {middle:.3g}",
        ]
    if held.get("labels"):
        lines.append("  labels: " + ", ".join(f"{name} ({count:,} views)" for name, count in held["labels"].items()))
    lines += [f"  {count:,} views: {words}" for words, count in facts["notes"].items()]
    if facts["failures"]:
        lines.append(f"  galaxies that could not be built: {len(facts['failures']):,}")
        lines += [f"    {_failure_line(entry)}" for entry in facts["failures"][:5]]
    sampled = max((f["sampled"] for f in facts["domains"].values()), default=0)
    if sampled < held["views"]:
        lines.append(f"  values below are of {sampled:,} views chosen at random; maps and empty maps count all")
    return lines


def _failure_line(entry: Any) -> str:
    """One galaxy and why it failed, where the entry says so; else the entry as it is."""
    if isinstance(entry, dict) and "galaxy" in entry and "message" in entry:
        return f"galaxy {entry['galaxy']}: {entry['message']}"
    return str(entry)


def side_in_arcsec(maps: Maps) -> float | None:
    """Angular length of a row, from the WCS of a celestial image; ``None`` where there is none."""
    if "CTYPE1" not in maps.header:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            wcs = WCS({k: v for k, v in maps.header.items() if not isinstance(v, bool)}).celestial
            if wcs.naxis != 2 or not wcs.has_celestial:
                return None
            return float(proj_plane_pixel_scales(wcs)[0] * 3600 * maps.values.shape[-1])
    except (ValueError, KeyError, TypeError):
        return None


def _look(domain: str, values: NDArray[np.float32]) -> tuple[str, str, bool]:
    """Title, colour map and sign of a domain, also of one that this package does not know."""
    known = DOMAINS.get(domain)
    if known:
        return known.title, known.colour_map, known.minimum < 0
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.01, 0.99]) if finite.size else (0.0, 0.0)
    signed = bool(low < 0 and -low > 0.5 * high)  # a velocity; not the noise about a source
    return domain, DIVERGING if signed else "viridis", signed


def contact_sheet(stacks: Mapping[str, Maps], columns: int = 6) -> Figure:
    """A row of maps a domain (more where it has more than ``columns``), each domain on one stretch.

    Args:
        stacks: Domain to its maps.
        columns: At the most.
    """
    columns = min(columns, max(len(maps) for maps in stacks.values()))
    rows: list[list[Panel | None]] = []
    titles: list[str] = []
    for domain, maps in stacks.items():
        title, colours, signed = _look(domain, maps.values)
        unit = "arcsec" if maps.side is None else "kpc"
        sides = [side_in_arcsec(maps)] * len(maps) if maps.side is None else maps.side.tolist()
        panels: list[Panel | None] = [
            Panel(
                maps.values[i],
                maps.names[i],
                maps.unit,
                colours,
                sides[i],
                domain,
                signed,
                unit,
                0.5 if signed else 0.01,
            )
            for i in range(len(maps))
        ]
        panels += [None] * (-len(panels) % columns)
        rows += [panels[i : i + columns] for i in range(0, len(panels), columns)]
        titles += [title] * (len(panels) // columns)
    return map_figure(rows, titles, across_rows=True)
