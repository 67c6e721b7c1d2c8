"""Getting connected: name, address, tunnel and TLS under one bound, in slices short enough for a stop to be noticed."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pipeline.transport.proxy import Proxy
from pipeline.transport.retry import ProxyRefusedError
from pipeline.transport.wire import MAX_HEAD, Guard, ProtocolError, parse_head

# What a socket address may be is the platform's business; it goes from getaddrinfo to connect unread.
Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
T = TypeVar("T")
_NAME = re.compile(r"[!-\-/-~][!-~]*")  # of printable ASCII, and not beginning with a dot


class ConnectTimeoutError(TimeoutError):
    """The connection was not ready for a request within `connect_timeout`."""


class Limit:
    """The time that getting connected may take; every wait of it asks the guard, too."""

    def __init__(self, guard: Guard, seconds: float, what: str) -> None:
        self._guard = guard
        self._seconds = seconds
        self._what = what
        self._end = guard.clock() + seconds

    def left(self) -> float:
        """Seconds until the end. Raises `InterruptedRunError`, `DeadlineError` or `ConnectTimeoutError`."""
        left = self._end - self._guard.check()
        if left <= 0:
            raise ConnectTimeoutError(f"{self._what} was not ready for a request within {self._seconds:g} s")
        return left

    def slice(self) -> float:
        """How long the next system call may wait. Raises as `left` does."""
        return min(self._guard.slice, self.left(), max(self._guard.left(), 0.001))


def open_socket(
    host: str, port: int, proxy: Proxy | None, context: ssl.SSLContext | None, guard: Guard, timeout: float
) -> socket.socket:
    """Return a connected socket: through the proxy's tunnel and with TLS where there is a `context`.

    `timeout` bounds all of it together, and the guard's deadline too.

    Raises
    ------
    OSError
        Could not connect (`ProxyRefusedError`: the proxy refused the tunnel; `ssl.SSLError`).
    ProtocolError
        The proxy's answer is not HTTP.
    InterruptedRunError
    """
    if not _NAME.fullmatch(host):
        raise socket.gaierror(socket.EAI_NONAME, f"{host[:100]!r} is not a host name")
    end = (proxy.host, proxy.port) if proxy else (host, port)
    limit = Limit(guard, timeout, _join(*end))
    sock = _reach(_resolve(*end, limit), limit)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            if proxy:
                _tunnel(sock, host, port, proxy, limit)
            sock = secure = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            while (event := _handshake(secure)) != 0:
                _wait(sock, event, limit.slice())
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(host: str, port: int, limit: Limit) -> list[Address]:
    """Look a name up. The C library's resolver cannot be interrupted, so a thread waits for it that may be left."""
    try:
        return _lookup(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # not an address, so a name
    done = threading.Event()
    found: list[Address] = []
    problems: list[OSError] = []

    def work() -> None:
        try:
            found.extend(_lookup(host, port, 0))
        except OSError as error:
            problems.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name=f"lookup-{host}", daemon=True).start()
    while not done.wait(limit.slice()):
        pass
    if problems:
        raise problems[0]
    return found


def _lookup(host: str, port: int, flags: int) -> list[Address]:
    try:
        return list(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags))
    except UnicodeError:  # a label of more than 63 letters, or none
        raise socket.gaierror(socket.EAI_NONAME, f"{host[:100]!r} is not a host name") from None


def _reach(addresses: list[Address], limit: Limit) -> socket.socket:
    """Connect to the first address that lets us; each gets an equal share of the time that is left."""
    problem: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        share = limit.left() / (len(addresses) - number)
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            _connect(sock, address, limit, limit.left() - share)
        except BaseException as error:
            if sock:
                sock.close()
            # Errors of the system (those that have a number) are of this address; the others end it all.
            if not isinstance(error, OSError) or error.errno is None:
                raise
            problem = error
        else:
            return sock
    raise problem


def _connect(sock: socket.socket, address: Any, limit: Limit, spare: float) -> None:
    """Connect until no more than `spare` seconds are left."""
    sock.setblocking(False)
    code = sock.connect_ex(address)
    while code in {errno.EINPROGRESS, errno.EINTR, errno.EAGAIN}:
        left = limit.left() - spare
        if left <= 0:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if _wait(sock, select.POLLOUT, min(left, limit.slice())):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _tunnel(sock: socket.socket, host: str, port: int, proxy: Proxy, limit: Limit) -> None:
    """Ask the proxy for a tunnel (RFC 9110 section 9.3.6)."""
    target = _join(host, port)
    fields = {"Host": target, **proxy.headers}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    request = memoryview(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    while request:
        request = request[_attempt(sock, select.POLLOUT, limit, partial(sock.send, request)) :]
    answer = bytearray()
    while (end := answer.find(b"\r\n\r\n")) < 0:
        if len(answer) > MAX_HEAD:
            raise ProtocolError("the proxy's answer has more than 64 KiB of headers")
        data = _attempt(sock, select.POLLIN, limit, partial(sock.recv, 4096))
        if not data:
            raise ConnectionError(f"the proxy {proxy!r} closed the connection")
        answer += data
    status = parse_head(bytes(answer[:end])).status
    if not 200 <= status < 300:
        raise ProxyRefusedError(f"the proxy {proxy!r} refused the tunnel: {status}", status)
    if len(answer) > end + 4:
        raise ProtocolError("the proxy sent something before the site could")


def _attempt(sock: socket.socket, event: int, limit: Limit, call: Callable[[], T]) -> T:
    while True:
        wait = limit.slice()
        try:
            return call()
        except BlockingIOError:
            _wait(sock, event, wait)


def _handshake(sock: ssl.SSLSocket) -> int:
    """Take TLS a step further; returns the event to wait for, 0 when it is done."""
    try:
        sock.do_handshake()
    except ssl.SSLWantReadError:
        return select.POLLIN
    except ssl.SSLWantWriteError:
        return select.POLLOUT
    return 0


def _wait(sock: socket.socket, event: int, seconds: float) -> bool:
    poller = select.poll()  # select() knows no file descriptor above 1023
    poller.register(sock, event)
    return bool(poller.poll(seconds * 1000))


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
