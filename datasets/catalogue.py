"""The catalogue of a map store: one Parquet part a shard, with its rows, what was left out of it, and its hashes.

A part is the mark that its shard is whole. Its metadata (key ``skyshift``, JSON) holds

    maps       domain to the SHA-256 of the shard's maps: float32, little-endian, in the order of the views
    rows       the SHA-256 of its rows, as JSON
    failures   the galaxies of the shard that could not be built, with the reason

so a flipped bit is found, and two builds are compared, without reading the other's maps.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table
from numpy.typing import NDArray

from skyshift.files import Location, write_whole

KEY = b"skyshift"
"""Of the metadata of a part."""


@dataclass(frozen=True)
class ViewRecord:
    """One row of the catalogue.

    Attributes:
        view: Row of the map arrays.
        galaxy: Number of the galaxy in its simulation and snapshot; names the galaxy together with ``snapshot``.
        name: For people.
        split_group: Views with the same number never fall on different sides of a split.
        snapshot: Snapshot number.
        redshift: Of the snapshot.
        rotation: (3, 3), row by row.
        side: Side of the map, kpc.
        depth: Thickness along the line of sight, kpc; 0 where nothing was cut.
        label: Class number, -1 where there is none.
        flags: Bit i is set where the map of the i-th domain is empty (all zeros).
        notes: Fields that the galaxy's files lack, and the recipe that took their place, in words; else empty.
    """

    view: int
    galaxy: int
    name: str
    split_group: int
    snapshot: int
    redshift: float
    rotation: tuple[float, ...]
    side: float
    depth: float
    label: int
    flags: int
    notes: str = ""


@dataclass(frozen=True)
class Failure:
    """A galaxy that could not be built. Its views are in no catalogue, and hold NaN in the arrays.

    Attributes:
        galaxy: Its number in the source.
        views: The rows that would have been its.
        error: Class of the error.
        message: What it said.
    """

    galaxy: int
    views: tuple[int, ...]
    error: str
    message: str


_SCHEMA = pa.schema(
    [
        ("view", pa.int64()),
        ("galaxy", pa.int64()),
        ("name", pa.string()),
        ("split_group", pa.int64()),
        ("snapshot", pa.int32()),
        ("redshift", pa.float64()),
        ("rotation", pa.list_(pa.float64(), 9)),
        ("side", pa.float64()),
        ("depth", pa.float64()),
        ("label", pa.int32()),
        ("flags", pa.int64()),
        ("notes", pa.string()),
    ]
)


def hash_maps(maps: NDArray[np.floating]) -> str:
    """SHA-256 of maps as a store holds them: float32, little-endian, (view, height, width)."""
    return hashlib.sha256(np.ascontiguousarray(maps, "<f4").data).hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of plain values, the same in any order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Part:
    """The catalogue part of one shard.

    Attributes:
        records: The rows of the views that are there.
        failures: The galaxies that are not.
        maps: Domain to the SHA-256 of the shard's maps; empty in parts of older versions.
    """

    records: tuple[ViewRecord, ...]
    failures: tuple[Failure, ...]
    maps: Mapping[str, str]

    @property
    def rows(self) -> str:
        """SHA-256 of the rows. Empty notes do not count: older versions wrote none."""
        rows = [asdict(record) for record in self.records]
        return hash_json([{name: value for name, value in row.items() if name != "notes" or value} for row in rows])

    @property
    def digest(self) -> str:
        """SHA-256 of all that the shard holds. Why a galaxy is missing is not part of it: messages name paths."""
        missing = [[failure.galaxy, list(failure.views)] for failure in self.failures]
        return hash_json({"maps": dict(self.maps), "rows": self.rows, "missing": missing})

    def write(self, path: Location) -> None:
        """Write it, whole."""
        meta = {"maps": dict(self.maps), "rows": self.rows, "failures": [asdict(f) for f in self.failures]}
        table = pa.Table.from_pylist([asdict(record) for record in self.records], schema=_SCHEMA)
        with write_whole(path) as side:
            pq.write_table(table.replace_schema_metadata({KEY: json.dumps(meta, sort_keys=True)}), side)


def _table(path: Location) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()


def _meta(table: pa.Table) -> dict[str, Any]:
    return dict(json.loads((table.schema.metadata or {}).get(KEY, b"{}")))


def read_part(path: Location) -> tuple[Part, str]:
    """A part, and the hash of its rows that was written with it (empty in parts of older versions)."""
    table = _table(path)
    meta = _meta(table)
    records = (ViewRecord(**{**row, "rotation": tuple(row["rotation"])}) for row in table.to_pylist())
    failures = (Failure(**{**entry, "views": tuple(entry["views"])}) for entry in meta.get("failures", []))
    return Part(tuple(records), tuple(failures), meta.get("maps", {})), meta.get("rows", "")


def read_catalogue(paths: Sequence[Location], labels: Sequence[str]) -> Table:
    """The rows of some parts (columns: :class:`ViewRecord`).

    Args:
        paths: Of the parts, in order.
        labels: Names of the classes, for the table's ``meta``.
    """
    parts = [_SCHEMA.empty_table(), *(_table(path).replace_schema_metadata() for path in paths)]
    table = pa.concat_tables(parts, promote_options="default")
    columns = {}
    for name in table.column_names:
        if name == "rotation":
            flat = table[name].combine_chunks().flatten().to_numpy()
            columns[name] = flat.reshape(-1, 3, 3)
        elif name == "notes":  # older versions wrote none
            columns[name] = table[name].fill_null("").to_numpy()
        else:
            columns[name] = table[name].to_numpy()
    result = Table(columns)
    result["side"].unit = result["depth"].unit = "kpc"
    result.meta["labels"] = list(labels)
    return result
