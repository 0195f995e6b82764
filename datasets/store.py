"""The map store: one Zarr v3 array a domain, sharded, with the catalogue of its views beside it.

Layout, for a store of ``views`` maps of every domain, in a folder or on object storage (``s3://bucket/maps.zarr``):

    zarr.json                    attributes: format version, domains with units, pixels, plan, labels
    maps/{domain}                (view, height, width) float32, one chunk a map, ``shard_views`` maps a file
    catalogue/part-00012.parquet the rows of the views of shard 12, and their hashes
    manifest.json                those hashes in one file, written when a build ends
    failures.json                galaxies that could not be built, where there are any
    claims/                      which builder is at which shard, while a build runs

A build task owns whole shards. It writes the maps of its shard, one file a domain, and then the catalogue part, whole
and last: the part is the mark that the shard is done, so whatever interrupts a build, a store holds only whole shards
and unfinished ones are seen to be so. A million maps in shards of 1,024 are fewer than 1,000 files a domain.

A galaxy that could not be built has no rows in the catalogue, and NaN in the arrays: never a map of zeros. The
catalogue is the list of what there is; ``maps`` refuses views that are not in it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from astropy.table import Table
from numpy.typing import NDArray
from upath import UPath

from skyshift.datasets.catalogue import Failure, Part, ViewRecord, hash_json, hash_maps, read_catalogue, read_part
from skyshift.errors import SkyshiftError
from skyshift.files import Location, flush, has_file, location, patiently, reaching, reopened, write_folder_whole
from skyshift.naming import unknown

__all__ = ["FORMAT", "LARGEST_SHARD", "Failure", "MapStore", "StoreError", "ViewRecord", "is_store", "shard_size"]

FORMAT = 1
"""Version of the layout; a store of a later one is refused."""

LARGEST_SHARD = 1024
"""Views in a shard at the most."""

SHARD_BYTES = 2**28
"""Bytes of a shard's maps, all domains together, at the most: a worker holds one shard in memory."""

READ_BYTES = 2**23
"""Bytes of maps that are read at once: zarr needs up to twenty times the memory of a scattered choice of maps."""


class StoreError(SkyshiftError):
    """A store is absent, damaged, of another version or for another purpose."""


def shard_size(views: int, rotations: int, pixels: int = 1, domains: int = 1) -> int:
    """Views in a shard: whole galaxies, and some 64 shards in a small store.

    A shard has at most :data:`LARGEST_SHARD` views (rounded up to whole galaxies) and :data:`SHARD_BYTES` of maps, but
    always one galaxy.

    Args:
        views: In the store.
        rotations: Views of one galaxy.
        pixels: Per side of a map.
        domains: Number of domains.
    """
    wanted = min(LARGEST_SHARD, max(1, -(-views // 64)))
    fitting = SHARD_BYTES // (4 * pixels**2 * domains * rotations)  # galaxies
    return rotations * max(1, min(-(-wanted // rotations), fitting))


def _zarr_place(path: Location) -> Any:
    """What zarr opens."""
    if isinstance(path, Path):
        return path
    options = {**path.storage_options, "use_listings_cache": False}
    return zarr.storage.FsspecStore.from_url(str(path), storage_options=options)


def is_store(path: str | Location) -> bool:
    """Whether there is a map store, or another Zarr group, at a path or address."""
    place = location(path)
    with reaching(place):
        return has_file(place / "zarr.json")


class MapStore:
    """A store of maps, opened to read; :meth:`create` makes a new one.

    Attributes:
        path: Its folder, or its place on object storage.
        units: Domain to unit, in the order of the domains.
        views: Rows of the map arrays; the catalogue lists those that hold a map.
        pixels: Per side of a map.
        shard_views: Maps in one file.
        labels: Names of the classes.
        plan: What the store was built from.

    Args:
        path: Its folder, or an address such as ``s3://bucket/maps.zarr``.

    Raises:
        StoreError: There is none, it is of a later version, or its ``zarr.json`` is damaged.
        SkyshiftError: Object storage refuses or does not answer.
    """

    def __init__(self, path: str | Location) -> None:
        self._path: Location = location(path)
        self._process = os.getpid()
        self._arrays: dict[str, zarr.Array] = {}
        self._catalogue: Table | None = None
        self._fingerprint: str | None = None
        with reaching(self.path):
            if not has_file(self.path / "zarr.json"):
                raise StoreError(f"{self.path} is no map store; build one with datasets/build.py")
        attributes = self._attributes()
        if "skyshift_format" not in attributes:
            raise StoreError(f"{self.path} is a Zarr group, but not one that skyshift wrote")
        version = attributes["skyshift_format"]
        if isinstance(version, int) and version > FORMAT:
            raise StoreError(
                f"{self.path} has store format {version}, this skyshift reads up to {FORMAT}; "
                "update skyshift (pip install --upgrade skyshift)"
            )
        try:
            if version != FORMAT:
                raise ValueError(f"skyshift_format is {version!r}")
            meta: dict[str, Any] = attributes["skyshift"]
            self.units: dict[str, str] = dict(meta["units"])
            self.views: int = meta["views"]
            self.pixels: int = meta["pixels"]
            self.shard_views: int = meta["shard_views"]
            self.labels: tuple[str, ...] = tuple(meta["labels"])
            self.plan: dict[str, Any] = dict(meta["plan"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def _attributes(self) -> dict[str, Any]:
        try:
            with reaching(self.path):
                return dict(zarr.open_group(_zarr_place(self.path), mode="r", zarr_format=3).attrs)
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, PermissionError):
                raise
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StoreError:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        return StoreError(
            f"{self.path}/zarr.json does not describe a map store ({reason}); bring the file back from a copy, or "
            "delete the store and build it anew"
        )

    @property
    def path(self) -> Location:
        """Where the store is."""
        if self._process != os.getpid():  # forked: clients, and what they opened, belong to the parent's event loop
            self._path, self._process, self._arrays = reopened(self._path), os.getpid(), {}
        return self._path

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: another process opens it anew."""
        return {**self.__dict__, "_arrays": {}}

    @classmethod
    def create(
        cls,
        path: str | Location,
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
            SkyshiftError: Object storage refuses or does not answer.
        """
        path = location(path)
        taken = f"{path} exists already; choose another path or delete it"
        meta = {
            "units": dict(units),
            "views": views,
            "pixels": pixels,
            "shard_views": shard_views,
            "labels": list(labels),
            "plan": dict(plan or {}),
        }
        with reaching(path):
            if path.exists():
                raise StoreError(taken)
            try:
                with write_folder_whole(path, replace=False) as side:
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
            except FileExistsError as error:
                raise StoreError(taken) from error
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

    def _part(self, shard: int) -> Location:
        return self.path / "catalogue" / f"part-{shard:05d}.parquet"

    def _pending(self, shard: int) -> Location:
        return self.path / "catalogue" / f"_pending-{shard:05d}.parquet"

    def _file(self, domain: str, shard: int) -> Location:
        return self.path / "maps" / domain / "c" / str(shard) / "0" / "0"

    def is_done(self, shard: int) -> bool:
        """Whether a shard is whole: its catalogue part is there, and so are the maps that it speaks of."""
        return has_file(self._part(shard)) and all(has_file(self._file(name, shard)) for name in self.units)

    def is_pending(self, shard: int) -> bool:
        """Whether a shard is built but for galaxies that failed, and the build has yet to accept that."""
        return has_file(self._pending(shard)) and all(has_file(self._file(name, shard)) for name in self.units)

    def done_shards(self) -> list[int]:
        """The shards that are whole."""
        place = self.path
        if isinstance(place, Path):
            return [shard for shard in range(self.shards) if self.is_done(shard)]
        with reaching(place):  # one question a folder, not one a file
            there = set(place.fs.find((place / "catalogue").path))
            for name in self.units if there else ():
                there |= set(place.fs.find((place / "maps" / name / "c").path))

        def files(shard: int) -> list[Location]:
            return [self._part(shard), *(self._file(name, shard) for name in self.units)]

        return [
            shard
            for shard in range(self.shards)
            if all(str(file.path) in there for file in files(shard) if isinstance(file, UPath))
        ]

    def pending_shards(self) -> list[int]:
        """The shards that :meth:`accept` would mark as done."""
        with reaching(self.path):
            found = sorted(int(path.stem.rpartition("-")[2]) for path in (self.path / "catalogue").glob("_pending-*"))
            return [shard for shard in found if self.is_pending(shard) and not self.is_done(shard)]

    @property
    def complete(self) -> bool:
        """Whether every shard is whole."""
        return len(self.done_shards()) == self.shards

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
        missing = sorted(set(range(self.shards)) - set(self.done_shards()))
        if missing:
            raise StoreError(
                f"{self.path} is not finished: {len(missing)} of {self.shards} shards are missing, first shard "
                f"{missing[0]}; run the build again, it goes on where it stopped"
            )

    def write_shard(
        self,
        shard: int,
        maps: Mapping[str, NDArray[np.floating]],
        records: Sequence[ViewRecord],
        failures: Sequence[Failure] = (),
        *,
        pending: bool = False,
    ) -> None:
        """Write the maps of one shard, then its catalogue part. Writing it twice writes the same bytes.

        Args:
            shard: Its number.
            maps: Domain to (n, pixels, pixels) in the domain's unit, one for each of ``records``.
            records: n rows, in order: all views of the shard but those of ``failures``.
            failures: Galaxies that could not be built; their views are filled with NaN.
            pending: Do not mark the shard as done; :meth:`accept` does that.

        Raises:
            StoreError: Domains, shapes or rows are not those of the shard, or the disk is full.
        """
        rows = self.shard_rows(shard)
        if set(maps) != set(self.units):
            raise StoreError(f"shard {shard} needs maps of {', '.join(self.units)}, not of {', '.join(maps)}")
        views = [record.view for record in records]
        lost = [view for failure in failures for view in failure.views]
        if views != sorted(views) or sorted([*views, *lost]) != list(rows):
            raise StoreError(f"shard {shard} holds views {rows.start} to {rows.stop - 1}, not those given")
        shape = (len(views), self.pixels, self.pixels)
        for domain, values in maps.items():
            if values.shape != shape:
                raise StoreError(f"shard {shard}, {domain}: shape {values.shape}, not {shape}")
            if not np.isfinite(values).all():
                raise StoreError(f"shard {shard}: a map of {domain} holds values that are not finite")
        with self._writing(shard):
            self.forget(shard)  # while its maps change, it is not done
            hashes = {}
            for domain, values in maps.items():
                stack = np.asarray(values, np.float32)
                if lost:
                    stack = np.full((len(rows), self.pixels, self.pixels), np.nan, np.float32)
                    stack[np.array(views, np.int64) - rows.start] = values
                hashes[domain] = hash_maps(stack)
                patiently(partial(self._write_maps, domain, shard, stack))
            part = Part(tuple(records), tuple(failures), hashes)
            patiently(lambda: part.write(self._pending(shard) if pending else self._part(shard)))

    def _write_maps(self, domain: str, shard: int, stack: NDArray[np.float32]) -> None:
        rows = self.shard_rows(shard)
        self._array(domain)[rows.start : rows.stop] = stack
        file = self._file(domain, shard)
        if isinstance(file, Path):
            flush(file)

    @contextlib.contextmanager
    def _writing(self, shard: int) -> Iterator[None]:
        try:
            with reaching(self.path):
                yield
        except OSError as error:
            raise StoreError(
                f"{self.path}: shard {shard} cannot be written ({error}); make room and run the build again, it goes "
                "on where it stopped"
            ) from error

    def forget(self, shard: int) -> None:
        """Take the mark off a shard, so that it is built again."""
        with self._writing(shard):
            for mark in (self._part(shard), self._pending(shard)):
                mark.unlink(missing_ok=True)
        self._catalogue = self._fingerprint = None

    def accept(self, shard: int) -> None:
        """Mark a pending shard as done, with the galaxies that are missing from it; one that is done stays so."""
        with self._writing(shard):
            if not has_file(self._part(shard)):
                try:
                    part, _ = read_part(self._pending(shard))
                except FileNotFoundError:
                    if not has_file(self._part(shard)):
                        raise
                    return  # another builder accepted it just now
                part.write(self._part(shard))
            self._pending(shard).unlink(missing_ok=True)

    def _array(self, domain: str) -> zarr.Array:
        place = self.path / "maps" / domain  # first: in a forked process it lets go of the arrays of the parent
        if domain not in self._arrays:
            try:
                # Shards of empty maps are written as well: a file that is not there then always means one that was
                # lost. An array takes this from the configuration in which it is opened, not in which it is written.
                with reaching(self.path), zarr.config.set({"array.write_empty_chunks": True}):
                    self._arrays[domain] = zarr.open_array(_zarr_place(place), mode="r+", zarr_format=3)
            except (OSError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, PermissionError):
                    raise
                raise StoreError(
                    f"{place}/zarr.json does not describe an array of maps ({error}); bring the file back from a copy, "
                    "or delete the store and build it anew"
                ) from error
        return self._arrays[domain]

    def maps(self, domain: str, views: Sequence[int] | NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Maps of one domain.

        Args:
            domain: Its name.
            views: Which; by default all that are there.

        Returns:
            (n, pixels, pixels) float32 in the domain's unit.

        Raises:
            StoreError: No such domain or view, or a view is of a galaxy that could not be built.
        """
        self.require_domains([domain])
        array = self._array(domain)
        if views is None:
            maps = self._decode(domain, lambda: array[:])
            there = ~np.isnan(maps[:, 0, 0])
            return maps if there.all() else maps[there]
        rows: NDArray[np.int64] = np.asarray(views, np.int64)
        self._require_views(rows)
        if not len(rows):
            return np.zeros((0, self.pixels, self.pixels), np.float32)
        maps = np.empty((len(rows), self.pixels, self.pixels), np.float32)
        step = max(1, READ_BYTES // (4 * self.pixels**2))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            maps[block] = self._decode(domain, lambda block=block: array.oindex[rows[block]])  # type: ignore[misc]
        missing = np.isnan(maps[:, 0, 0])
        if missing.any():
            raise StoreError(self._why_missing(int(rows[np.argmax(missing)])))
        return maps

    def _require_views(self, rows: NDArray[np.int64]) -> None:
        outside = rows[(rows < 0) | (rows >= self.views)]
        if len(outside):
            raise StoreError(f"{self.path}: there is no view {outside[0]}; its views are 0 to {self.views - 1}")

    def _decode(self, domain: str, read: Callable[[], Any]) -> NDArray[np.float32]:
        try:
            with reaching(self.path):
                return np.asarray(read(), np.float32)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, SkyshiftError):
                raise
            raise StoreError(
                f"{self.path}: the maps of {domain} cannot be read ({error}); run the build again with --verify true, "
                "which finds damaged shards and builds them anew"
            ) from error

    def _why_missing(self, view: int) -> str:
        for failure in self.failures():
            if view in failure.views:
                reason = f"galaxy {failure.galaxy} of the source could not be built ({failure.message})"
                return f"{self.path}: there is no view {view}: {reason}; take the views of the catalogue"
        return f"{self.path}: view {view} holds no map and no reason; run the build with --verify true"

    def part(self, shard: int) -> Part:
        """The catalogue part of a shard that is done or pending.

        Raises:
            StoreError: It is neither, or the part is damaged.
        """
        return self._read_part(shard)[0]

    def _read_part(self, shard: int) -> tuple[Part, str]:
        path = self._part(shard) if has_file(self._part(shard)) else self._pending(shard)
        try:
            with reaching(self.path):
                return read_part(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete it and run the build again, which makes this shard anew"
            ) from error

    def records(self) -> list[ViewRecord]:
        """The rows of all finished shards, as they were written."""
        return [record for shard in self.done_shards() for record in self.part(shard).records]

    def failures(self, shard: int | None = None) -> list[Failure]:
        """The galaxies that are missing from the finished shards, or from one shard."""
        shards = self.done_shards() if shard is None else [shard]
        return [failure for one in shards for failure in self.part(one).failures]

    def catalogue(self) -> Table:
        """The rows of all finished shards, in the order of the views (columns: :class:`ViewRecord`)."""
        if self._catalogue is None:
            done = self.done_shards()
            with reaching(self.path):
                table = read_catalogue([self._part(shard) for shard in done], self.labels)
            if len(done) < self.shards:
                return table
            self._catalogue = table
        return self._catalogue.copy()

    def notes(self) -> dict[str, int]:
        """What the plan does not say: fields that files lack and what took their place, to the number of views."""
        words, counts = np.unique(np.asarray(self.catalogue()["notes"], str), return_counts=True)
        return {word: int(count) for word, count in zip(words.tolist(), counts.tolist(), strict=True) if word}

    def manifest(self) -> dict[str, Any]:
        """What the finished shards hold, by hash: two builds of the same galaxies have the same manifest."""
        shards = []
        for shard in self.done_shards():
            part = self.part(shard)
            missing = [failure.galaxy for failure in part.failures]
            shards.append(
                {"shard": shard, "sha256": part.digest, "rows": part.rows, "maps": dict(part.maps), "missing": missing}
            )
        held = {"units": self.units, "pixels": self.pixels, "views": self.views, "labels": self.labels}
        digest = hash_json({**held, "shards": [[entry["shard"], entry["sha256"]] for entry in shards]})
        return {"fingerprint": digest, **held, "labels": list(self.labels), "shards": shards}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the store holds, whatever it is called, wherever it is and whoever built it."""
        if self._fingerprint is None:
            digest = str(self.manifest()["fingerprint"])
            if not self.complete:
                return digest
            self._fingerprint = digest
        return self._fingerprint

    def verify(self) -> dict[int, str]:
        """Read every finished shard and compare it with its hashes.

        Returns:
            Damaged shard to what is wrong with it; empty where all is well. Shards of older versions of this package,
            which wrote no hashes, are not judged.
        """
        damaged = {}
        for shard in self.done_shards():
            try:
                part, rows = self._read_part(shard)
            except SkyshiftError as error:
                damaged[shard] = str(error)
                continue
            wrong = ["catalogue"] if rows and rows != part.rows else []
            wrong += [name for name in part.maps if self._hash(name, shard) != part.maps[name]]
            if wrong:
                damaged[shard] = f"{', '.join(wrong)} of shard {shard} are not what was written"
        return damaged

    def _hash(self, domain: str, shard: int) -> str:
        rows = self.shard_rows(shard)
        try:
            return hash_maps(np.asarray(self._array(domain)[rows.start : rows.stop], np.float32))
        except Exception:  # whatever the decoder says of bytes that it cannot read
            return ""
