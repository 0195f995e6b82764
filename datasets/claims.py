"""Which builder is at which shard, so that two builds of one store share the work.

A claim saves work and guards nothing: a shard that is built twice comes out the same, byte by byte. So claims may be
lost, and one is void as soon as there is a doubt whether its builder lives: its process is gone (on this machine), or
its sign of life is older than :data:`SILENCE` (on any).
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from skyshift.files import Location, remove_tree, write_json

BEAT = 10.0
"""Seconds between two signs of life of a builder."""

SILENCE = 90.0
"""Seconds after which a builder that gave none is taken for dead; clocks of machines may differ by less."""


def new_builder() -> str:
    """A name for a build that runs in this process."""
    return f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def _running(builder: str) -> bool:
    """Whether a builder of this machine still has its process; of one on another machine this cannot be said."""
    host, pid, _ = builder.rsplit(".", 2)
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Claims:
    """The claims on the shards of a store.

    Args:
        store: Where the store is.
        builder: Whose claims are made.
    """

    def __init__(self, store: Location, builder: str) -> None:
        self.folder, self.builder = store / "claims", builder

    def _shard(self, shard: int) -> Location:
        return self.folder / f"shard-{shard:05d}.json"

    def _read(self, path: Location) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            return {}

    def _beat(self) -> None:
        with contextlib.suppress(Exception):  # a sign of life that is missed costs no more than work done twice
            write_json(self.folder / f"builder-{self.builder}.json", {"time": time.time()})

    def _alive(self, builder: str) -> bool:
        seen = self._read(self.folder / f"builder-{builder}.json").get("time", 0.0)
        return time.time() - seen < SILENCE and _running(builder)

    def held_by_another(self, shard: int) -> bool:
        """Whether another builder that is alive is at this shard."""
        builder = self._read(self._shard(shard)).get("builder", self.builder)
        return builder != self.builder and self._alive(builder)

    def take(self, shard: int) -> bool:
        """Claim a shard.

        Returns:
            Whether it is ours; if not, another builder is at it.
        """
        if self.held_by_another(shard):
            return False
        write_json(self._shard(shard), {"builder": self.builder})
        return bool(self._read(self._shard(shard)).get("builder") == self.builder)  # two took it: the later one has it

    def release(self, shard: int) -> None:
        """Give a shard up, built or not."""
        with contextlib.suppress(OSError):
            if self._read(self._shard(shard)).get("builder") == self.builder:
                self._shard(shard).unlink(missing_ok=True)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the block runs; then take back what was claimed, the last builder all there is."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT):
                self._beat()

        self._beat()
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(Exception):
                self._tidy()

    def _tidy(self) -> None:
        (self.folder / f"builder-{self.builder}.json").unlink(missing_ok=True)
        others = [path.name[len("builder-") : -len(".json")] for path in self.folder.glob("builder-*.json")]
        if not any(self._alive(other) for other in others):
            remove_tree(self.folder)
