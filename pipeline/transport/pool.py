"""Connections that are kept alive, under one budget for the whole process, and a smaller one for a modest site."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Self

import msgspec

from pipeline.transport.connect import open_socket
from pipeline.transport.proxy import Proxy, choose_proxy
from pipeline.transport.wire import Guard, Stream


class Origin(msgspec.Struct, frozen=True):
    """Whom a connection talks to."""

    scheme: str
    host: str
    port: int


class Connection:
    """One open connection, leased to one thread at a time.

    Attributes
    ----------
    served
        How many requests it has been leased for, the present one included.
    proxy
        The proxy that wants requests in absolute form; None on a direct connection or through a tunnel.
    """

    __slots__ = ("idle_since", "origin", "proxy", "served", "sock", "stream")

    def __init__(self, origin: Origin, sock: socket.socket, proxy: Proxy | None) -> None:
        self.origin = origin
        self.sock = sock
        self.proxy = proxy
        self.stream = Stream(sock)
        self.served = 0
        self.idle_since = 0.0


class ConnectionPool:
    """Leases connections; never more than `limit` are open, idle ones included. Thread-safe.

    Parameters
    ----------
    limit
        The budget of the whole process: make one pool per process.
    environ
        Where the proxy variables are looked up.
    context
        TLS settings; the default verifies certificates against the system's authorities (or SSL_CERT_FILE).
    connect_timeout
        Seconds for all of: looking the name up, TCP connect, proxy tunnel, TLS handshake.
    idle_seconds
        Age at which an idle connection is closed rather than used: sites and firewalls drop them silently.
    site, site_limit
        Origins, and how many connections may be open to all of them together: a bound within `limit`. Who waits for
        one of these holds up nobody who asks another origin.
    """

    def __init__(
        self,
        limit: int,
        *,
        environ: Mapping[str, str] = os.environ,
        context: ssl.SSLContext | None = None,
        connect_timeout: float = 10.0,
        idle_seconds: float = 30.0,
        site: Collection[Origin] = (),
        site_limit: int = 0,
    ) -> None:
        if limit < 1 or (site and site_limit < 1):
            raise ValueError("a pool needs at least one connection")
        self.limit = limit
        self._environ = environ
        self._context = context
        self._connect_timeout = connect_timeout
        self._idle_seconds = idle_seconds
        self._site = frozenset(site)
        self._site_limit = site_limit
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._site_changed = threading.Condition(lock)  # for those who wait for the site's bound alone
        self._idle: list[Connection] = []  # oldest first
        self._open = self._site_open = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def open_connections(self) -> int:
        """How many connections are open now, or being opened."""
        return self._open

    @property
    def site_connections(self) -> int:
        """How many of them are to `site`."""
        return self._site_open

    def lease(self, origin: Origin, guard: Guard, *, fresh: bool = False) -> Connection:
        """Hand out an idle connection, or open one; waits while the budget, or the site's, is spent.

        `fresh` never reuses.

        Raises
        ------
        OSError
            Could not connect (`ProxyRefusedError`: the proxy refused).
        ProtocolError
            The proxy's answer is not HTTP.
        InterruptedRunError, DeadlineError
            While waiting for the budget, or connecting.
        ConfigError
            The proxy variables cannot be used.
        """
        connection = None
        with self._changed:
            while True:
                guard.check()
                if self._closed:
                    raise RuntimeError("the connection pool is closed")
                connection = None if fresh else self._take_idle(origin, guard.clock())
                if connection is not None:
                    break
                if origin in self._site and self._site_open >= self._site_limit:
                    if not self._drop_idle(self._site):
                        self._site_changed.wait(guard.slice)
                        continue
                elif self._open >= self.limit and not self._drop_idle(None):
                    self._changed.wait(guard.slice)
                    continue
                self._count(origin, 1)
                break
        if connection is None:
            connection = self._connect(origin, guard)
        connection.served += 1
        return connection

    def release(self, connection: Connection, *, reusable: bool, clock: Callable[[], float]) -> None:
        """Give a connection back: kept when `reusable`, else closed."""
        with self._changed:
            if reusable and not self._closed and not connection.stream.pending:
                connection.idle_since = clock()
                self._idle.append(connection)
            else:
                self._drop(connection)
            self._tell(connection.origin)

    def close(self) -> None:
        """Close the idle connections now and the leased ones as they come back; nothing can be leased any more."""
        with self._changed:
            self._closed = True
            while self._drop_idle(None):
                pass
            self._changed.notify_all()
            self._site_changed.notify_all()

    def _take_idle(self, origin: Origin, now: float) -> Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):
            connection = self._idle[index]
            if connection.origin != origin:
                continue
            del self._idle[index]
            # Readable without a request means closed by the server, or bytes that belong to no answer.
            if now - connection.idle_since < self._idle_seconds and not _readable(connection.sock):
                return connection
            self._drop(connection)
            self._tell(origin)
        return None

    def _drop_idle(self, origins: Collection[Origin] | None) -> bool:
        """Close the oldest idle connection to one of `origins`, or to any: its place is wanted. False if none is."""
        for index, connection in enumerate(self._idle):
            if origins is None or connection.origin in origins:
                self._drop(self._idle.pop(index))
                return True
        return False

    def _drop(self, connection: Connection) -> None:
        _close(connection)
        self._count(connection.origin, -1)

    def _count(self, origin: Origin, change: int) -> None:
        self._open += change
        if origin in self._site:
            self._site_open += change

    def _tell(self, origin: Origin) -> None:
        """Wake one of those who may have the place of a connection."""
        self._changed.notify()
        if origin in self._site:
            self._site_changed.notify()

    def _connect(self, origin: Origin, guard: Guard) -> Connection:
        try:
            proxy = choose_proxy(origin.scheme, origin.host, origin.port, self._environ)
            context = self._default_context() if origin.scheme == "https" else None
            sock = open_socket(origin.host, origin.port, proxy, context, guard, self._connect_timeout)
            return Connection(origin, sock, proxy if origin.scheme == "http" else None)
        except BaseException:
            with self._changed:
                self._count(origin, -1)
                self._tell(origin)
            raise

    def _default_context(self) -> ssl.SSLContext:
        with self._changed:
            if self._context is None:
                self._context = ssl.create_default_context()
                self._context.set_alpn_protocols(["http/1.1"])
            return self._context


def _readable(sock: socket.socket) -> bool:
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(0))


def _close(connection: Connection) -> None:
    connection.sock.close()
