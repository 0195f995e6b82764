"""The map store: one Zarr v3 array a domain, sharded, with the catalogue of its views beside it.

Layout, for a store of ``views`` maps of every domain:

    zarr.json                    attributes: format version, domains with units, pixels, plan, labels
    maps/{domain}                (view, height, width) float32, one chunk a map, ``shard_views`` maps a file
    catalogue/part-00012.parquet the rows of the views of shard 12

A build task owns whole shards. It writes the maps of its shard, one file a domain, and then the catalogue part, whole
and last: the part is the mark that the shard is done, so whatever interrupts a build, a store holds only whole shards
and unfinished ones are seen to be so. A million maps in shards of 1,024 are fewer than 1,000 files a domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from astropy.table import Table
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError
from skyshift.files import flush, write_folder_whole, write_whole
from skyshift.naming import unknown

FORMAT = 1
"""Version of the layout; a store of a later one is refused."""

LARGEST_SHARD = 1024
"""Views in a shard at the most."""


class StoreError(SkyshiftError):
    """A store is absent, damaged, of another version or for another purpose."""


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
    ]
)


def shard_size(views: int, rotations: int) -> int:
    """Views in a shard: whole galaxies, at most :data:`LARGEST_SHARD`, and some 64 shards in a small store.

    Args:
        views: In the store.
        rotations: Views of one galaxy.
    """
    wanted = min(LARGEST_SHARD, max(1, -(-views // 64)))
    return max(rotations, -(-wanted // rotations) * rotations)


class MapStore:
    """A store of maps, opened to read; :meth:`create` makes a new one.

    Args:
        path: Its folder.

    Raises:
        StoreError: There is none, or it is of a later version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise StoreError(f"{self.path} is no map store; build one with datasets/build.py")
        self._group = zarr.open_group(self.path, mode="r+")
        attributes: dict[str, Any] = dict(self._group.attrs)
        if "skyshift_format" not in attributes:
            raise StoreError(f"{self.path} is a Zarr group, but not one that skyshift wrote")
        version = int(attributes["skyshift_format"])
        if version > FORMAT:
            raise StoreError(
                f"{self.path} has store format {version}, this skyshift reads up to {FORMAT}; "
                "update skyshift (pip install --upgrade skyshift)"
            )
        meta: dict[str, Any] = attributes["skyshift"]
        self.units: dict[str, str] = dict(meta["units"])
        self.views: int = meta["views"]
        self.pixels: int = meta["pixels"]
        self.shard_views: int = meta["shard_views"]
        self.labels: tuple[str, ...] = tuple(meta["labels"])
        self.plan: dict[str, Any] = meta["plan"]
        self._catalogue: Table | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        units: Mapping[str, str],
        views: int,
        pixels: int,
        shard_views: int,
        labels: Sequence[str] = (),
        plan: Mapping[str, Any] | None = None,
    ) -> "MapStore":
        """Make an empty store; its folder appears whole.

        Args:
            path: Of the new store.
            units: Domain to unit, in the order of the domains.
            views: Maps of each domain.
            pixels: Per side.
            shard_views: Maps in one file.
            labels: Names of the classes.
            plan: What the store is built from, so that a later build can tell whether it is the same.

        Raises:
            StoreError: The path is taken.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path} exists already; choose another path or delete it")
        meta = {
            "units": dict(units),
            "views": views,
            "pixels": pixels,
            "shard_views": shard_views,
            "labels": list(labels),
            "plan": dict(plan or {}),
        }
        with write_folder_whole(path) as side:
            group = zarr.create_group(side, attributes={"skyshift_format": FORMAT, "skyshift": meta})
            for domain in units:
                group.create_array(
                    f"maps/{domain}",
                    shape=(views, pixels, pixels),
                    chunks=(1, pixels, pixels),
                    shards=(shard_views, pixels, pixels),
                    dtype="float32",
                    fill_value=0.0,
                    dimension_names=("view", "height", "width"),
                    attributes={"unit": units[domain]},
                )
            (side / "catalogue").mkdir()
        return cls(path)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(self.units)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.views // self.shard_views)

    def shard_rows(self, shard: int) -> range:
        """The views of a shard."""
        return range(shard * self.shard_views, min((shard + 1) * self.shard_views, self.views))

    def _part(self, shard: int) -> Path:
        return self.path / "catalogue" / f"part-{shard:05d}.parquet"

    def _file(self, domain: str, shard: int) -> Path:
        return self.path / "maps" / domain / "c" / str(shard) / "0" / "0"

    def is_done(self, shard: int) -> bool:
        """Whether a shard is whole: its catalogue part is there, and so are the maps that it speaks of."""
        return self._part(shard).is_file() and all(self._file(name, shard).is_file() for name in self.units)

    @property
    def complete(self) -> bool:
        """Whether every shard is whole."""
        return all(self.is_done(shard) for shard in range(self.shards))

    def require_domains(self, names: Sequence[str]) -> None:
        """Check that the store holds these domains.

        Raises:
            StoreError: One is missing; the message names the nearest.
        """
        for name in names:
            if name not in self.units:
                raise StoreError(f"{self.path}: {unknown('domain', name, self.domains)}")

    def require_complete(self) -> None:
        """Check that the store is whole.

        Raises:
            StoreError: Shards are missing.
        """
        missing = [shard for shard in range(self.shards) if not self.is_done(shard)]
        if missing:
            raise StoreError(
                f"{self.path} is not finished: {len(missing)} of {self.shards} shards are missing, first shard "
                f"{missing[0]}; run the build again, it goes on where it stopped"
            )

    def write_shard(self, shard: int, maps: Mapping[str, NDArray[np.floating]], records: Sequence[ViewRecord]) -> None:
        """Write the maps of one shard, then its catalogue part.

        Args:
            shard: Its number.
            maps: Domain to (n, pixels, pixels) in the domain's unit, n the views of the shard.
            records: n rows, in order.

        Raises:
            StoreError: Domains, shapes or rows are not those of the shard, or the disk is full.
        """
        rows = self.shard_rows(shard)
        if set(maps) != set(self.units):
            raise StoreError(f"shard {shard} needs maps of {', '.join(self.units)}, not of {', '.join(maps)}")
        if [record.view for record in records] != list(rows):
            raise StoreError(f"shard {shard} holds views {rows.start} to {rows.stop - 1}, not those given")
        shape = (len(rows), self.pixels, self.pixels)
        for domain, values in maps.items():
            if values.shape != shape:
                raise StoreError(f"shard {shard}, {domain}: shape {values.shape}, not {shape}")
            if not np.isfinite(values).all():
                raise StoreError(f"shard {shard}: a map of {domain} holds values that are not finite")
        table = pa.Table.from_pylist([asdict(record) for record in records], schema=_SCHEMA)
        try:
            # Shards of empty maps are written as well: a file that is not there then always means one that was lost.
            with zarr.config.set({"array.write_empty_chunks": True}):
                for domain, values in maps.items():
                    self._array(domain)[rows.start : rows.stop] = np.asarray(values, np.float32)
                    flush(self._file(domain, shard))
            with write_whole(self._part(shard)) as side:
                pq.write_table(table, side)
        except OSError as error:
            raise StoreError(
                f"{self.path}: shard {shard} cannot be written ({error}); make room and run the build again, it goes "
                "on where it stopped"
            ) from error

    def _array(self, domain: str) -> zarr.Array:
        array = self._group[f"maps/{domain}"]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path}: maps/{domain} is no array")
        return array

    def maps(self, domain: str, views: Sequence[int] | NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Maps of one domain.

        Args:
            domain: Its name.
            views: Which; by default all.

        Returns:
            (n, pixels, pixels) float32 in the domain's unit.

        Raises:
            StoreError: No such domain.
        """
        self.require_domains([domain])
        array = self._array(domain)
        if views is None:
            return np.asarray(array[:], np.float32)
        rows: NDArray[np.int64] = np.asarray(views, np.int64)
        if not len(rows):
            return np.zeros((0, self.pixels, self.pixels), np.float32)
        return np.asarray(array.oindex[rows], np.float32)

    def records(self) -> list[ViewRecord]:
        """The rows of all finished shards, as they were written."""
        parts = [pq.read_table(self._part(shard)) for shard in range(self.shards) if self.is_done(shard)]
        return [ViewRecord(**{**row, "rotation": tuple(row["rotation"])}) for p in parts for row in p.to_pylist()]

    def catalogue(self) -> Table:
        """The rows of all finished shards, in the order of the views (columns: :class:`ViewRecord`)."""
        if self._catalogue is None:
            table = self._read_catalogue()
            if len(table) < self.views:
                return table
            self._catalogue = table
        return self._catalogue.copy()

    def _read_catalogue(self) -> Table:
        parts = [pq.read_table(self._part(shard)) for shard in range(self.shards) if self.is_done(shard)]
        table = pa.concat_tables(parts) if parts else _SCHEMA.empty_table()
        columns = {}
        for name in table.column_names:
            if name == "rotation":
                flat = table[name].combine_chunks().flatten().to_numpy()
                columns[name] = flat.reshape(-1, 3, 3)
            else:
                columns[name] = table[name].to_numpy()
        result = Table(columns)
        result["side"].unit = result["depth"].unit = "kpc"
        result.meta["labels"] = list(self.labels)
        return result
