"""Fetch the cutouts of many subhaloes into a folder, so that every moment leaves it sound.

A cutout comes in under a hidden name, is held against its header, gets its JSON file of facts with the checksum, and
takes its final name last. What is there, whole and with the right checksum and fields, is not fetched again.

Two kinds of failure are told apart. What concerns one subhalo (HTTP 400, 404, a file that comes damaged again and
again) is recorded with its reason and the rest goes on. What concerns all (a refused key, a full disk, a field that the
whole snapshot lacks, a service that does not answer at all) stops everything at once.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from skyshift.datasets.cutout_facts import Facts, FactsError, read_facts, sha256_of, write_facts
from skyshift.datasets.cutout_fields import FieldPlan
from skyshift.datasets.tng_api import Snapshot, TngService, check_cutout, cutout_query
from skyshift.datasets.tng_connections import ServiceError, StopError
from skyshift.errors import SkyshiftError
from skyshift.files import flush, write_json

MANIFEST = "manifest.json"

_COUNTED = {"gas": "gas", "dm": "dm", "stars": "stars", "bhs": "black_holes"}
_FEWEST_FAILURES = 5


class DownloadError(SkyshiftError):
    """Some cutouts could not be had, or the folder is in use."""


@dataclass(frozen=True)
class Outcome:
    """What became of one subhalo.

    Attributes:
        subhalo: Its number.
        state: fetched; present: was there, whole; empty: it has no particles of any kind that is needed; failed.
        reason: Of a failure.
        size: Of the file, bytes.
        reached: Whether the service answered at all.
    """

    subhalo: int
    state: Literal["fetched", "present", "empty", "failed"]
    reason: str = ""
    size: int = 0
    reached: bool = True


class CutoutFetcher:
    """Fetches cutouts of one snapshot, from several threads at once.

    Args:
        service: The web service.
        snapshot: Of which.
        plan: The fields to ask for.
        output: Folder of the files.
    """

    def __init__(self, service: TngService, snapshot: Snapshot, plan: FieldPlan, output: Path) -> None:
        self.service, self.snapshot, self.plan, self.output = service, snapshot, plan, output
        self._lock = threading.Lock()
        self._sound: FieldPlan | None = None

    def path(self, number: int) -> Path:
        """The file of a subhalo."""
        return self.output / f"{self.snapshot.simulation}_{self.snapshot.number:03d}_{number:08d}.hdf5"

    def fetch(self, number: int) -> Outcome:
        """Fetch one cutout unless it is there.

        Raises:
            StopError: Nothing can be fetched any more.
            FieldsError: The snapshot lacks a field that is needed.
            OSError: The disk is full, or such.
        """
        path = self.path(number)
        try:
            if size := self._size_if_whole(path):
                return Outcome(number, "present", size=size)
            facts = self.service.facts(self.snapshot, number)
            if not any(facts.count.get(_COUNTED[kind], 1) for kind in self.plan.fields):
                return Outcome(number, "empty")
            return Outcome(number, "fetched", size=self._download(path, facts))
        except StopError:
            raise
        except ServiceError as error:
            return Outcome(number, "failed", str(error), reached=error.status != 0)

    def _size_if_whole(self, path: Path) -> int:
        """Bytes of the file if it is what was asked for, checksum and all; else 0."""
        try:
            facts = read_facts(path)
        except FactsError:
            return 0
        if facts is None or not facts.holds(self.plan.fields):
            return 0
        for there in (path, _part(path)):  # cut off between writing the facts and giving the file its name
            if there.is_file() and there.stat().st_size == facts.size and sha256_of(there) == facts.sha256:
                if there != path:
                    flush(there)
                    os.replace(there, path)
                return facts.size
        return 0

    def _download(self, path: Path, facts: Facts) -> int:
        part = _part(path)
        address = self.service.cutout_path(self.snapshot, facts.subhalo)
        while True:
            plan = self.plan
            query = cutout_query(plan.fields)
            try:
                check = functools.partial(check_cutout, facts=facts, fields=plan.fields)
                self.service.web.file(address, query, part, check)
                break
            except ServiceError as error:
                if error.status != 400 or not self._learn(facts.subhalo, plan):
                    raise
        whole = replace(
            facts,
            sha256=sha256_of(part),
            size=part.stat().st_size,
            url=self.service.web.url(address, query),
            fields={kind: list(names) for kind, names in plan.fields.items()},
            dropped=dict(plan.dropped),
        )
        write_facts(path, whole)
        os.replace(part, path)
        return whole.size

    def _learn(self, number: int, plan: FieldPlan) -> bool:
        """After HTTP 400: find the fields that the snapshot lacks and go on without them, if there are such.

        Returns:
            Whether there is a new plan to try.

        Raises:
            FieldsError: A missing field cannot be done without.
        """
        with self._lock:
            if self.plan is not plan:
                return True  # another thread has found out
            if self._sound is plan:
                return False
            missing = self.service.missing_fields(self.snapshot, number, plan.fields)
            if "Coordinates" in missing:
                return False  # not the fields are refused, but this subhalo
            if not missing:
                self._sound = plan
                return False
            where = f"snapshot {self.snapshot.number} of {self.snapshot.simulation}"
            self.plan = plan.without(missing, f"the service refuses it (HTTP 400) for {where}")
            return True


def _part(path: Path) -> Path:
    """Where a cutout comes in; hidden, and no ``*.hdf5``, so that nobody reads half a file."""
    return path.with_name(f".{path.name}.part")


def fetch_all(
    fetcher: CutoutFetcher, numbers: Sequence[int], ended: Callable[[Outcome], None], *, progress: bool = True
) -> None:
    """Fetch many cutouts, several at once.

    Args:
        fetcher: Of one snapshot.
        numbers: Of the subhaloes.
        ended: Told what became of each, as they end.
        progress: Show a progress bar.

    Raises:
        StopError: The key was refused, or the service answers no more. No thread goes on afterwards.
        FieldsError: The snapshot lacks a field that is needed.
        OSError: The disk is full, or such.
    """
    web = fetcher.service.web
    connections = web.politeness.connections
    unreached, enough = 0, max(_FEWEST_FAILURES, 2 * connections)
    received = 0
    pool = ThreadPoolExecutor(connections, thread_name_prefix="cutout")
    bar: Any = tqdm(total=len(numbers), unit="galaxy", desc=str(fetcher.output), disable=not progress)
    try:
        for future in as_completed([pool.submit(fetcher.fetch, number) for number in numbers]):
            outcome = future.result()
            received += outcome.size if outcome.state == "fetched" else 0
            bar.set_postfix_str(f"{received / 1e6:.0f} MB", refresh=False)
            bar.update(1)
            unreached = 0 if outcome.reached else unreached + 1
            ended(outcome)
            if unreached == enough:
                raise StopError(
                    f"{unreached} requests in a row failed, the last one with: {outcome.reason}; what has come is "
                    "kept, try again later"
                )
    except BaseException:
        web.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()


def write_manifest(output: Path, last_run: dict[str, Any]) -> None:
    """List the cutouts of a folder with their checksums, and what the last run did, in one file written whole."""
    files = {}
    for path in sorted(output.glob("*.hdf5")):
        with contextlib.suppress(FactsError):
            if (facts := read_facts(path)) is not None:
                entry = {"simulation": facts.simulation, "snapshot": facts.snapshot, "subhalo": facts.subhalo}
                files[path.name] = {**entry, "size": facts.size, "sha256": facts.sha256}
    write_json(output / MANIFEST, {"format": 1, "files": files, "last_run": last_run})


@contextlib.contextmanager
def sole_use(output: Path) -> Iterator[None]:
    """Keep a second download out of the folder; the lock goes when the process does, however that ends.

    Raises:
        DownloadError: Another download is at work there.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DownloadError(
            f"another download is at work in {output}; wait for its end or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
