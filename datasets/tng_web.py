"""HTTP as the TNG web service needs it: few connections, a bounded rate, retries, redirects, resumed downloads.

The service asks for a key in the header ``api-key`` and redirects downloads to data servers, whose address then carries
a token of its own. The key goes to the origin (scheme, host and port) of the base address and to no other, unless a
host is named for it; an address on another origin is written down nowhere.

A request is tried again, up to a number of times, after a lost connection, a truncated body, HTTP 429 or 5xx. The wait
doubles from try to try and is shortened by a random part (so that several clients do not come back at once); where the
service says ``Retry-After``, all connections wait for that long. A download goes on where it stopped with a Range
request, if the service offers that and says by ``ETag`` or ``Last-Modified`` that the bytes are still the same.

The connections are urllib3's: it is maintained, safe to share between threads, checks the length of bodies, ships types
and is there already (requests, which adds nothing needed here, would also take passwords from ``~/.netrc``).
"""

import contextlib
import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import responses
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin

from urllib3.exceptions import HTTPError, InvalidHeader, SSLError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout, parse_url

from skyshift import __version__
from skyshift.datasets.tng_connections import (
    Origin,
    Pace,
    Politeness,
    ServiceError,
    Sockets,
    StopError,
    connection_pool,
    is_loopback,
    origin_of,
)
from skyshift.datasets.tng_key import KEY_PAGE, Key
from skyshift.datasets.tng_partial import DamagedError, Partial

Result = TypeVar("Result")

CHUNK = 1 << 16
"""Bytes read at once: what is lost at the most when a download is cut off."""

MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_COME_BACK = (408, 425, 429)


class _TransientError(Exception):
    """This try failed, the next may not.

    Args:
        reason: For the message, should it be the last.
        wait: Seconds that the service asks to wait, if it does.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Web:
    """A client of one web service, to be shared between threads.

    Args:
        base_url: Address that all paths are appended to.
        key: Sent to the origin of ``base_url`` alone.
        politeness: How hard the service is used.
        allow_http: Send the key to a plain http address, where everyone on the way can read it. Addresses of this
            machine need no leave.
        key_hosts: Further hosts that may see the key, by https alone.

    Raises:
        ServiceError: The address is none, carries a name, a password or a query, or is plain http.
    """

    def __init__(
        self,
        base_url: str,
        key: Key,
        politeness: Politeness | None = None,
        *,
        allow_http: bool = False,
        key_hosts: Sequence[str] = (),
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.politeness = politeness or Politeness()
        self.retries = 0
        self._key, self._allow_http = key, allow_http
        self._key_hosts = frozenset(host.lower() for host in key_hosts)
        self._origin = origin_of(base_url)
        parts = parse_url(base_url)
        if parts.auth or parts.query or parts.fragment:
            raise ServiceError("base_url must be an address alone: no name or password, no '?' and no '#' in it")
        self._refuse_plain_http(self._origin, "base_url")
        self._pace = Pace(self.politeness.requests_per_second)
        self._room = threading.Semaphore(self.politeness.connections)
        self._stopped = threading.Event()
        self._sockets = Sockets()
        self._pool = connection_pool(base_url, self.politeness.connections, self._sockets)

    def __enter__(self) -> "Web":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._pool.clear()

    def stop(self) -> None:
        """End all requests that are under way, in whatever thread, with :class:`StopError`."""
        self._stopped.set()
        self._sockets.shut()

    # what is asked for

    def json(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON document at ``path``.

        Raises:
            StopError: The key was refused, or the run was stopped.
            ServiceError: The service refuses, cannot be reached, or sends something else.
        """

        def once() -> Any:
            with self._answer(self.url(path, params), {"Accept": "application/json"}) as response:
                body = response.read(decode_content=True)
            try:
                return json.loads(body)
            except ValueError:
                kind = response.headers.get("Content-Type", "something")
                raise _TransientError(f"{kind} instead of JSON; is base_url the address of the API?") from None

        return self._retrying(path, once)

    def status(self, path: str, params: Mapping[str, Any]) -> int:
        """The HTTP status of a request, whose body is not fetched: 2xx, 400 or 404.

        Raises:
            StopError: The key was refused, or the run was stopped.
            ServiceError: Any other status, or the service cannot be reached.
        """

        def once() -> int:
            with self._answer(self.url(path, params), {}, also=(400, 404)) as response:
                return response.status

        return self._retrying(path, once)

    def file(self, path: str, params: Mapping[str, Any], part: Path, check: Callable[[Path], None]) -> None:
        """Download to ``part``, going on with what is there of it already.

        Args:
            path: Below the base address.
            params: Query.
            part: Where to; whole and on the disk afterwards.
            check: Raises :class:`DamagedError` if the file is not what it should be; then it is fetched anew.

        Raises:
            StopError: The key was refused, or the run was stopped; what has come stays in ``part``.
            ServiceError: The service refuses, cannot be reached, or keeps sending damaged files.
        """
        url = self.url(path, params)
        self._retrying(path, lambda: self._file_once(url, part, check))

    def url(self, path: str, params: Mapping[str, Any] | None = None) -> str:
        """The address of ``path`` with a query."""
        query = urlencode(params, safe=",") if params else ""
        return f"{self.base_url}/{path.lstrip('/')}" + (f"?{query}" if query else "")

    # how

    def _file_once(self, url: str, part: Path, check: Callable[[Path], None]) -> None:
        partial = Partial(part, url)
        with self._answer(url, {"Accept-Encoding": "identity", **partial.headers()}, also=(416,)) as response:
            if response.status == 416:
                partial.forget()
                raise _TransientError("the rest of a file cannot be had (HTTP 416)")
            if response.status == 206:
                expected = f"bytes {partial.offset}-{partial.length - 1}/{partial.length}"
                if not partial.offset or response.headers.get("Content-Range") != expected:
                    partial.forget()
                    raise _TransientError(f"another part of a file came than bytes {partial.offset} on")
            else:
                partial.begin(response.headers)
            with part.open("ab" if partial.offset else "wb") as file:
                for chunk in response.stream(CHUNK, decode_content=False):
                    file.write(chunk)
        size = part.stat().st_size
        if partial.length >= 0 and size != partial.length:
            partial.forget()
            raise _TransientError(f"{size} bytes came of {partial.length}")
        try:
            check(part)
        except DamagedError as error:
            partial.forget()
            raise _TransientError(str(error)) from None
        partial.finish()

    @contextlib.contextmanager
    def _answer(self, url: str, headers: Mapping[str, str], also: Sequence[int] = ()) -> Iterator[BaseHTTPResponse]:
        """An answer that is no refusal (or of a status in ``also``); errors of the connection become transient."""
        response = None
        self._room.acquire()
        try:
            response, origin = self._send(url, headers)
            if response.status not in also:
                self._require_success(response, origin)
            yield response
        except SSLError as error:
            self._raise_if_stopped()
            raise ServiceError(f"no safe connection to {self._origin[1]}: {self._words(error)}") from None
        except HTTPError as error:
            self._raise_if_stopped()
            raise _TransientError(f"{type(error).__name__}: {self._words(error)}") from None
        except (ValueError, AttributeError):
            self._raise_if_stopped()  # a socket that was shut under a thread's feet can fail in many ways
            raise
        finally:
            if response is not None:
                response.close()  # one that was read to its end has given its connection back before
            self._room.release()

    def _send(self, url: str, headers: Mapping[str, str]) -> tuple[BaseHTTPResponse, Origin]:
        """Send a request and follow redirects; the key goes only where it may."""
        for _ in range(MOST_REDIRECTS + 1):
            origin = origin_of(url)
            self._refuse_plain_http(origin, "a redirect")
            self._pause(self._pace.turn())
            sent = {"User-Agent": f"skyshift/{__version__}", **headers}
            if self._may_see_key(origin):
                sent["api-key"] = self._key.reveal()
            limits = Timeout(connect=self.politeness.connect_timeout, read=self.politeness.read_timeout)
            response = self._pool.request(
                "GET", url, headers=sent, timeout=limits, redirect=False, retries=False, preload_content=False
            )
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response, origin
            response.close()
            url = urljoin(url, location)
        raise ServiceError(f"more than {MOST_REDIRECTS} redirects; is base_url right?")

    def _may_see_key(self, origin: Origin) -> bool:
        return origin == self._origin or (origin[0] == "https" and origin[1] in self._key_hosts)

    def _refuse_plain_http(self, origin: Origin, what: str) -> None:
        if origin[0] == "http" and not self._allow_http and not is_loopback(origin[1]):
            raise ServiceError(
                f"{what} leads to http://{origin[1]}, where everyone on the way can read along; use https://, or say "
                "allow_http: true if that is meant"
            )

    def _require_success(self, response: BaseHTTPResponse, origin: Origin) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        if status in (401, 403) and not self._may_see_key(origin):
            raise StopError(
                f"{origin[1]}, to which the service redirects, answers HTTP {status} to a request without the key; if "
                f"you trust that host with it, say key_hosts: [{origin[1]}]",
                status,
            )
        if status in (401, 403):
            raise StopError(
                f"{origin[1]} refuses the key (HTTP {status}); compare it with the one shown at {KEY_PAGE}, and that "
                "your account may see this simulation",
                status,
            )
        name = responses.get(status, "unknown")
        if status in _COME_BACK or status >= 500:
            raise _TransientError(f"HTTP {status} ({name})", _retry_after(response))
        raise ServiceError(f"HTTP {status} ({name}){self._said(response)}", status)

    def _said(self, response: BaseHTTPResponse) -> str:
        """The service's own words about a refusal, if it has any that a person can read."""
        kind = response.headers.get("Content-Type", "")
        if not kind.startswith(("application/json", "text/plain")):
            return ""
        text = response.read(2048).decode("utf-8", "replace")
        with contextlib.suppress(ValueError, AttributeError):
            text = str(json.loads(text).get("detail", text))
        text = " ".join(self._key.scrub(text).split())[:200]
        return f": {text}" if text else ""

    def _words(self, error: Exception) -> str:
        return self._key.scrub(str(error))

    def _retrying(self, what: str, once: Callable[[], Result]) -> Result:
        """Call ``once`` until it succeeds, at most so many times."""
        attempts = self.politeness.attempts
        for attempt in range(1, attempts + 1):
            try:
                return once()
            except _TransientError as error:
                asked = error.wait
                if asked is not None and asked > self.politeness.longest_wait:
                    raise ServiceError(f"{what}: {error}, to be tried again after {asked:.0f} s") from None
                if attempt == attempts:
                    raise ServiceError(f"{what}: {error}; tried {attempts} times") from None
                self.retries += 1
                if asked is not None:
                    self._pace.hold(asked)
                    self._pause(asked)
                else:
                    wait = min(self.politeness.backoff * 2 ** (attempt - 1), self.politeness.longest_wait)
                    self._pause(wait * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(max(seconds, 0.0))
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise StopError("stopped")


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Seconds that ``Retry-After`` says, as a number or a date."""
    try:
        return Retry().get_retry_after(response)
    except InvalidHeader:
        return None


BASE_URL = "https://www.tng-project.org/api"
URL_VARIABLE = "TNG_API_URL"


def find_base_url(base_url: str = "") -> str:
    """``base_url`` if one is named, else ``$TNG_API_URL``, else that of the TNG project."""
    return base_url or os.environ.get(URL_VARIABLE, "") or BASE_URL
