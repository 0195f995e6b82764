"""A server on this machine that speaks the API of the TNG web service, and can be told to misbehave."""

import hashlib
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest

from skyshift.datasets.tng_connections import Politeness
from skyshift.datasets.tng_key import Key
from skyshift.datasets.tng_web import Web

HUBBLE, REDSHIFT, SNAPSHOT = 0.6774, 1.0, 50
GROUPS = {"gas": "PartType0", "dm": "PartType1", "stars": "PartType4", "bhs": "PartType5"}


@dataclass
class Seen:
    """One request, as the server saw it."""

    time: float
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int = 0
    sent: int = 0  # bytes of the body


class Service:
    """What there is to serve, how to misbehave, and what was asked for.

    Attributes:
        faults: Last part of the path (``cutout.hdf5`` of one subhalo: ``3/cutout.hdf5``) to actions, one a request.
        lacking: Fields for which the answer is HTTP 400.
        ranges: Whether the rest of a file can be asked for.
        pause: Between pieces of 16 kB of a body, s.
        guarded: Whether the key is asked for.
    """

    def __init__(self, write_cutout: Callable[..., Path], arrays: Callable[..., Any], folder: Path) -> None:
        self.key = secrets.token_hex(16)
        self.entries: dict[int, dict[str, Any]] = {}
        self.simulations = {"TNG100-1": {"name": "TNG100-1", "hubble": HUBBLE, "boxsize": 75000.0}}
        self.redshifts = {SNAPSHOT: REDSHIFT, 51: REDSHIFT}
        self.faults: dict[str, Iterator[Callable[[Any], bool | None]]] = {}
        self.lacking: set[str] = set()
        self.ranges, self.guarded, self.page, self.pause, self.version = True, True, 3, 0.0, "1"
        self.seen: list[Seen] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._write, self._arrays, self._folder = write_cutout, arrays, folder
        self._files: dict[tuple[int, int, str], bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def add(self, number: int, *, gas: int = 40, dm: int = 30, stars: int = 20, mass: float | None = None) -> None:
        """A subhalo; the first is the heaviest, unless ``mass`` (stars, 1e10 Msun/h) says otherwise."""
        x, y, z = 100.0, 200.0, 300.0
        self.entries[number] = {
            "id": number, "snap": SNAPSHOT, "grnr": number // 2, "primary_flag": int(number % 2 == 0), "subhaloflag": 1,
            "mass": 100.0 / (number + 1), "mass_gas": 5.0, "mass_dm": 80.0, "mass_bhs": 0.001,
            "mass_stars": 10.0 / (number + 1) if mass is None else mass,
            "len": gas + dm + stars, "len_gas": gas, "len_dm": dm, "len_stars": stars, "len_bhs": 0,
            "halfmassrad": 12.0, "halfmassrad_gas": 9.0, "halfmassrad_dm": 15.0, "halfmassrad_stars": 3.0,
            "halfmassrad_bhs": 0.0, "sfr": float(number), "pos_x": x, "pos_y": y, "pos_z": z,
            "vel_x": 10.0, "vel_y": -20.0, "vel_z": 30.0,
        }  # fmt: skip

    def cutout(self, number: int, query: dict[str, str], snapshot: int = SNAPSHOT) -> bytes:
        """The file that a request gets: the fields that were asked for and no others."""
        query = {kind: names for kind, names in query.items() if kind in GROUPS}
        request = "+".join(f"{GROUPS[kind]}={names}" for kind, names in query.items())
        known = self._files.get((snapshot, number, request))
        if known is None:
            entry = self.entries[number]
            full = self._arrays(number, entry["len_gas"], entry["len_dm"], entry["len_stars"])
            full["PartType1"]["SubfindHsml"] = np.full(entry["len_dm"], 2.0, np.float32)
            chosen = {
                GROUPS[kind]: {name: full[GROUPS[kind]][name] for name in names.split(",")}
                for kind, names in query.items()
                if len(full.get(GROUPS[kind], {}).get("Coordinates", ()))
            }
            header = {"CutoutID": number, "SnapshotNumber": snapshot}
            path = self._write(self._folder / f"{secrets.token_hex(4)}.hdf5", chosen, request=request, header=header)
            known = self._files[snapshot, number, request] = path.read_bytes()
            path.unlink()
        return known

    def requests(self, ending: str = "") -> list[Seen]:
        """The requests whose path ends so."""
        return [seen for seen in self.seen if seen.path.endswith(ending)]

    def misbehave(self, ending: str, actions: Iterable[Callable[[Any], bool | None]]) -> None:
        """The next requests whose path ends so meet these actions, one each."""
        self.faults[ending] = iter(actions)

    def enter(self, seen: Seen) -> Callable[[Any], bool | None] | None:
        with self._lock:
            self.seen.append(seen)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            for ending, actions in self.faults.items():
                if seen.path.endswith(ending) and (action := next(actions, None)):
                    return action
        return None

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        self.seen = Seen(time.monotonic(), parts.path, query, {k.lower(): v for k, v in self.headers.items()})
        action = self.service.enter(self.seen)
        try:
            if action is None or not action(self):
                self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.service.leave()

    def do_CONNECT(self) -> None:
        """What a proxy is asked for; it refuses."""
        self.service.seen.append(Seen(time.monotonic(), self.path, {}, {k.lower(): v for k, v in self.headers.items()}))
        self.send_error(502)

    def answer(self) -> None:
        """As the real service does."""
        service, path = self.service, self.seen.path.removeprefix("/api").strip("/").split("/")
        if service.guarded and self.seen.headers.get("api-key") != service.key:
            self.send_json({"detail": "Authentication credentials were not provided."}, 403)
        elif path == [""]:
            self.send_json({"simulations": [{"name": name, "num_snapshots": 100} for name in service.simulations]})
        elif path[0] not in service.simulations:
            self.send_json({"detail": "Not found."}, 404)
        elif len(path) == 1:
            self.send_json(service.simulations[path[0]])
        elif int(path[2]) not in service.redshifts:
            self.send_json({"detail": "Not found."}, 404)
        elif len(path) == 3:
            self.send_json({"number": int(path[2]), "redshift": service.redshifts[int(path[2])]})
        elif len(path) == 4:
            self.send_list()
        elif int(path[4]) not in service.entries:
            self.send_json({"detail": "Not found."}, 404)
        elif len(path) == 5:
            self.send_json(service.entries[int(path[4])])
        else:
            self.send_cutout(int(path[2]), int(path[4]))

    def send_list(self) -> None:
        """Filtered, ordered, one page of it; ``next`` is another host's, as when the service stands behind a proxy."""
        query = dict(self.seen.query)
        limit, offset = min(int(query.pop("limit", 100)), self.service.page), int(query.pop("offset", 0))
        order = query.pop("order_by", "id")
        rows = list(self.service.entries.values())
        for name, value in query.items():
            column, _, comparison = name.partition("__")
            test = {"gt": float.__gt__, "lt": float.__lt__, "": float.__eq__}[comparison]
            rows = [row for row in rows if test(float(row[column]), float(value))]
        rows.sort(key=lambda row: row[order.lstrip("-")], reverse=order.startswith("-"))
        more = f"http://elsewhere.invalid/api/x/?limit={limit}&offset={offset + limit}"
        self.send_json(
            {
                "count": len(rows),
                "next": more if offset + limit < len(rows) else None,
                "previous": None,
                "results": [
                    {"id": row["id"], "url": "http://elsewhere.invalid/"} for row in rows[offset : offset + limit]
                ],
            }
        )

    def send_cutout(self, snapshot: int, number: int) -> None:
        asked = {name for names in self.seen.query.values() for name in names.split(",")}
        if asked & self.service.lacking:
            self.send_json({"detail": "Requested field does not exist."}, 400)
            return
        self.send_body(self.service.cutout(number, self.seen.query, snapshot), {"Content-Type": "application/x-hdf5"})

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send_body(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def send_body(self, body: bytes, headers: dict[str, str], status: int = 200, only: int | None = None) -> None:
        """A body, or the part of it that was asked for; ``only`` so many bytes of it, then the connection is cut."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}-{self.service.version}"'
        start = 0
        if self.service.ranges and status == 200:
            headers = {**headers, "Accept-Ranges": "bytes", "ETag": tag}
            asked = self.seen.headers.get("range")
            if asked and self.seen.headers.get("if-range", tag) == tag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.seen.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        piece = 1 << 14
        for begin in range(start, len(body) if only is None else start + only, piece):
            chunk = body[begin : min(begin + piece, len(body) if only is None else start + only)]
            self.wfile.write(chunk)
            self.seen.sent += len(chunk)
            if self.service.pause:
                time.sleep(self.service.pause)
        if only is not None:
            self.cut()

    def cut(self) -> None:
        """End the connection as a lost line does, with a reset."""
        self.wfile.flush()
        time.sleep(0.02)  # what was sent arrives before the reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


class Faults:
    """Ways to misbehave; each is an action for :meth:`Service.misbehave`, true if it has answered."""

    @staticmethod
    def status(code: int, body: str = "", **headers: str) -> Callable[[Any], bool]:
        def act(handler: Any) -> bool:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            handler.send_body(body.encode(), {"Content-Type": "text/plain", **names}, code)
            return True

        return act

    @staticmethod
    def drop(handler: Any) -> bool:
        """No answer at all."""
        handler.cut()
        return True

    @staticmethod
    def truncate(count: int) -> Callable[[Any], bool]:
        """Only so many bytes of the body, then a reset."""

        def act(handler: Any) -> bool:
            whole = handler.send_body
            handler.send_body = lambda body, headers, status=200: whole(body, headers, status, only=count)
            handler.answer()
            del handler.send_body
            return True

        return act

    @staticmethod
    def replace(make: Callable[[bytes], bytes]) -> Callable[[Any], bool]:
        """Another body, with the right length of its own."""

        def act(handler: Any) -> bool:
            whole = handler.send_body
            handler.send_body = lambda body, headers, status=200: whole(make(body), headers, status)
            handler.answer()
            del handler.send_body
            return True

        return act

    @staticmethod
    def redirect(base: str, code: int = 302) -> Callable[[Any], bool]:
        """To the same path of another server, with a token in the address as the real service does."""

        def act(handler: Any) -> bool:
            joint = "&" if "?" in handler.path else "?"
            location = f"{base}{handler.path.removeprefix('/api')}" if base.endswith("/api") else base
            handler.send_body(b"", {"Location": f"{location}{joint}token=secret-of-the-data-server"}, code)
            return True

        return act

    @staticmethod
    def slow(seconds: float) -> Callable[[Any], None]:
        """No answer for so long, then the right one."""
        return lambda handler: time.sleep(seconds)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def new_service(write_cutout, arrays_of_a_cutout, tmp_path_factory) -> Iterator[Callable[[], Service]]:
    """Makes servers, each with an address of its own."""
    services: list[Service] = []

    def make() -> Service:
        services.append(Service(write_cutout, arrays_of_a_cutout, tmp_path_factory.mktemp("service")))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def service(new_service) -> Service:
    """A server with six subhaloes, 0 (the heaviest) to 5."""
    made = new_service()
    for number in range(6):
        made.add(number)
    return made


QUICK = Politeness(
    connections=3,
    requests_per_second=500.0,
    attempts=4,
    backoff=0.01,
    longest_wait=2.0,
    connect_timeout=2.0,
    read_timeout=2.0,
)


@pytest.fixture
def quick() -> Politeness:
    """Short waits, so that tests need not be patient."""
    return QUICK


@pytest.fixture
def web(service, quick) -> Iterator[Web]:
    with Web(service.url, Key(service.key), quick) as client:
        yield client
