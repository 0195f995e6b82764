"""Connections to a web service: how many, how fast, to whom, and how to end them all at once.

References:
    RFC 6454 (origin: scheme, host and port).
"""

import contextlib
import ipaddress
import socket
import threading
import time
import urllib.request
import weakref
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import LocationValueError, ProxySchemeUnknown
from urllib3.util import make_headers, parse_url

from skyshift.errors import SkyshiftError

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class ServiceError(SkyshiftError):
    """The service cannot be reached, or its answer is of no use.

    Args:
        message: What is wrong, where, and the cure.
        status: HTTP status, 0 where there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class StopError(ServiceError):
    """Nothing else can succeed either: the key was refused, or a person has stopped the run."""


@dataclass(frozen=True)
class Politeness:
    """How hard the service is used.

    Attributes:
        connections: At once.
        requests_per_second: At the most, over all connections.
        attempts: Tries of one request before it is given up.
        backoff: Wait before the second try, s; it doubles with each further one.
        longest_wait: Between two tries, s; where the service asks for more, the request is given up.
        connect_timeout: s.
        read_timeout: s without a byte; a cutout is made on demand, so the first may take a while.
    """

    connections: int = 4
    requests_per_second: float = 4.0
    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 300.0
    connect_timeout: float = 15.0
    read_timeout: float = 300.0

    def __post_init__(self) -> None:
        for name, least in (("connections", 1), ("attempts", 1), ("backoff", 0), ("longest_wait", 0)):
            if not getattr(self, name) >= least:
                raise ServiceError(f"politeness.{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("requests_per_second", "connect_timeout", "read_timeout"):
            if not getattr(self, name) > 0:
                raise ServiceError(f"politeness.{name} must be positive, not {getattr(self, name)}")


class Pace:
    """A token bucket that holds one token: requests start at least 1/rate apart, whichever thread sends them."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Take the next free turn; returns the seconds until then."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
            return turn - now

    def hold(self, seconds: float) -> None:
        """No turns for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def origin_of(url: str) -> Origin:
    """Scheme, host and port of an address.

    Raises:
        ServiceError: It is not one of a web server.
    """
    try:
        parts = parse_url(url)
    except LocationValueError:
        parts = parse_url("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ServiceError("an address that does not begin with https:// (or http://) and a host cannot be used")
    return parts.scheme, parts.host.strip("[]").lower(), parts.port or {"http": 80, "https": 443}[parts.scheme]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: nobody is on the way to it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Sockets:
    """The open sockets, so that a stop need not wait for threads that wait for bytes."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def add(self, opened: socket.socket) -> None:
        """Note a socket; shut it at once if all were."""
        with self._lock:
            self._open.add(opened)
            if self._closed:
                _shut(opened)

    def shut(self) -> None:
        """Shut all that are open and all that come."""
        with self._lock:
            self._closed = True
            for opened in self._open:
                _shut(opened)


def _shut(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)


def _through_proxy(proxy: str, options: dict[str, Any]) -> urllib3.ProxyManager:
    try:
        auth = parse_url(proxy).auth
        return urllib3.ProxyManager(
            proxy, proxy_headers=make_headers(proxy_basic_auth=auth) if auth else None, **options
        )
    except (LocationValueError, ProxySchemeUnknown):
        raise ServiceError("the system's proxy setting (https_proxy) is no address of an http or https proxy") from None


def connection_pool(base_url: str, connections: int, sockets: Sockets) -> urllib3.PoolManager:
    """A connection pool that obeys the system's proxy settings and notes every socket that it opens.

    Args:
        base_url: Decides the proxy; there is none for this machine.
        connections: Kept open to one host.
        sockets: Where sockets are noted.

    Raises:
        ServiceError: The proxy setting is no address.
    """
    scheme, host, _ = origin_of(base_url)
    proxy = None if is_loopback(host) or urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    options: dict[str, Any] = {"num_pools": 8, "maxsize": connections}
    manager = _through_proxy(proxy, options) if proxy else urllib3.PoolManager(**options)
    pools: dict[str, Any] = {}
    for name, pool in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool)):
        plain: Any = pool.ConnectionCls

        def connect(connection: Any, plain: Any = plain) -> None:
            plain.connect(connection)
            sockets.add(connection.sock)

        noted = type(plain.__name__, (plain,), {"connect": connect})
        pools[name] = type(pool.__name__, (pool,), {"ConnectionCls": noted})
    manager.pool_classes_by_scheme = pools
    return manager
