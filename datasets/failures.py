"""The galaxies of a build that could not be built: written down beside the maps, told, and not too many.

``failures.json`` of a store lists each with its number in the source, its shard, the rows of its views, class and
message of the error, and when it was found. It follows from the catalogue parts, which hold the same without the time.
"""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from skyshift.datasets.store import Failure, MapStore, StoreError
from skyshift.files import has_file, write_json

SHOWN = 5
"""Failures that are printed."""

HOPELESS = 20
"""A build stops when so many galaxies failed and not one was built: the configuration is wrong, not the galaxies."""


class Failures:
    """The failed galaxies of a store.

    Args:
        store: Its finished and pending shards are read.
        galaxies: How many the source has.
        share: More than this share of them must not fail.
    """

    def __init__(self, store: MapStore, galaxies: int, share: float) -> None:
        self.path, self.galaxies, self.share = store.path / "failures.json", galaxies, share
        self._found: dict[int, tuple[Failure, ...]] = {}
        self._built = 0
        for shard in [*store.done_shards(), *store.pending_shards()]:
            part = store.part(shard)
            self._built += len(part.records)
            if part.failures:
                self._found[shard] = part.failures
        self._time: dict[tuple[int, str], str] = {}
        if has_file(self.path):
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self._time = {(entry["galaxy"], entry["message"]): entry["time"] for entry in entries}

    @property
    def shards(self) -> list[int]:
        """Shards from which galaxies are missing."""
        return sorted(self._found)

    @property
    def all(self) -> list[Failure]:
        """The failed galaxies, by shard."""
        return [failure for shard in self.shards for failure in self._found[shard]]

    @property
    def too_many(self) -> bool:
        """Whether more failed than may."""
        failed = len(self.all)
        return failed > self.share * self.galaxies or (failed >= HOPELESS and not self._built)

    def forget(self, shard: int) -> None:
        """A shard is built again."""
        self._found.pop(shard, None)

    def add(self, shard: int, failures: Sequence[Failure], views: int = 0) -> None:
        """A shard was built.

        Args:
            shard: Its number.
            failures: Galaxies missing from it.
            views: Rows that it has.

        Raises:
            StoreError: Too many galaxies have failed.
        """
        self._built += views - sum(len(failure.views) for failure in failures)
        if not failures:
            return
        self._found[shard] = tuple(failures)
        self.write()
        if self.too_many:
            raise StoreError(
                f"{len(self.all)} of {self.galaxies} galaxies could not be built, max_failed_share is {self.share:g}. "
                f"{_words(self.all[0])}. What was built is kept, all reasons are in {self.path}; mend the galaxies, "
                "leave them out or raise max_failed_share, and run the build again"
            )

    def write(self) -> None:
        """Write ``failures.json``; none where there are none."""
        if not self._found:
            self.path.unlink(missing_ok=True)
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entries: list[dict[str, Any]] = []
        for shard, failures in sorted(self._found.items()):
            for failure in failures:
                when = self._time.setdefault((failure.galaxy, failure.message), now)
                entries.append(
                    {
                        "galaxy": failure.galaxy,
                        "shard": shard,
                        "views": list(failure.views),
                        "error": failure.error,
                        "message": failure.message,
                        "time": when,
                    }
                )
        write_json(self.path, entries)

    def tell(self) -> None:
        """Say on standard error which galaxies are missing; nothing where none is."""
        if not self._found:
            return
        lines = [
            f"WARNING: {len(self.all)} of {self.galaxies} galaxies could not be built and are left out of the "
            f"catalogue (all reasons: {self.path}; --retry_failed true tries them again):",
            *(f"  {_words(failure)}" for failure in self.all[:SHOWN]),
            *(["  …"] if len(self.all) > SHOWN else []),
        ]
        print("\n".join(lines), file=sys.stderr)


def _words(failure: Failure) -> str:
    return f"Galaxy {failure.galaxy} of the source: {failure.error}: {failure.message.rstrip('. ')}"
