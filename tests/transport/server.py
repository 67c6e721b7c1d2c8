"""An HTTP server that misbehaves on request, and a small forward proxy: real sockets on 127.0.0.1, one thread each.

A path has a list of steps; each request takes the next one, and the last one stays. A step writes what it likes to the
socket and returns whether the connection stays open.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Request:
    """What a client asked, and on the how-manieth connection."""

    method: str
    target: str
    headers: dict[str, str]
    connection: int

    @property
    def offset(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(match[1]) if match else 0


Step = Callable[[Request, socket.socket], bool]


class Listener:
    """Accepts connections on 127.0.0.1 and serves each in a thread of its own, until closed."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.closing = threading.Event()
        self.connections = 0
        self.lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self.lock:
                self.connections += 1
                self._sockets.add(sock)
                number = self.connections
            self._start(self._connection, sock, number)

    def _connection(self, sock: socket.socket, number: int) -> None:
        raw = sock
        try:
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
            self.serve(sock, number)
        except OSError:
            pass  # a client that goes away, or does not trust the certificate, is part of the tests
        finally:
            with self.lock:
                self._sockets.discard(raw)
            sock.close()

    def serve(self, sock: socket.socket, number: int) -> None:
        raise NotImplementedError


@dataclass
class Gauge:
    """How many at once, and at most."""

    now: int = 0
    peak: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def one(self):
        with self.lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1


class Server(Listener):
    """Serves `routes`: path -> steps. `requests` is what was asked, in order."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, list[Step]] = {}
        self.requests: list[Request] = []
        self.gauge = Gauge()
        self.base = ""
        super().__init__(context)
        self.base = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"

    def on(self, path: str, *steps: Step) -> str:
        """Set the steps of a path, forget earlier requests, and return its URL."""
        self.routes[path] = list(steps)
        self.requests.clear()
        return self.base + path

    def asked(self, name: str) -> list[str]:
        """Values of one header in all requests so far, "" where it was not sent."""
        return [request.headers.get(name, "") for request in self.requests]

    def serve(self, sock: socket.socket, number: int) -> None:
        while True:
            request = read_request(sock, number)
            if request is None:
                return
            with self.lock:
                self.requests.append(request)
                steps = self.routes.get(request.target.partition("?")[0])
                step = missing if not steps else steps.pop(0) if len(steps) > 1 else steps[0]
            with self.gauge.one():
                stays = step(request, sock)
            if not stays:
                return

    def hang(self, *_: object) -> bool:
        """Never answer."""
        self.closing.wait(60)
        return False


class Proxy(Listener):
    """Forwards absolute-form requests and CONNECT tunnels; `refuse` answers with that status instead."""

    def __init__(self, refuse: int = 0) -> None:
        self.seen: list[Request] = []
        self.refuse = refuse
        super().__init__()

    def serve(self, sock: socket.socket, number: int) -> None:
        request = read_request(sock, number)
        if request is None:
            return
        self.seen.append(request)
        if self.refuse:
            sock.sendall(f"HTTP/1.1 {self.refuse} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        if request.method == "CONNECT":
            host, _, port = request.target.rpartition(":")
        else:
            match = re.fullmatch(r"http://([^/:]+):(\d+)(/.*)", request.target)
            assert match, request.target
            host, port = match[1], match[2]
        with socket.create_connection((host, int(port))) as upstream:
            if request.method == "CONNECT":
                sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                lines = [f"{request.method} {match[3]} HTTP/1.1", "Connection: close"]
                lines += [f"{k}: {v}" for k, v in request.headers.items() if not k.startswith("proxy-")]
                upstream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            back = self._start(pump, upstream, sock)
            pump(sock, upstream)
            back.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy from one socket to another until the end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def read_request(sock: socket.socket, number: int) -> Request | None:
    """Read a request without body; None when the client has gone."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(65536)
        if not data:
            return None
        head += data
    first, *rest = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Request(method, target, headers, number)


def head(status: int, headers: dict[str, object]) -> bytes:
    """Render a response head."""
    lines = [f"HTTP/1.1 {status} Some Reason", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer(status: int, body: bytes = b"", **headers: object) -> Step:
    """The same answer whatever is asked; `_` in header names stands for `-`."""

    def step(_: Request, sock: socket.socket) -> bool:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        sock.sendall(head(status, {"Content-Length": len(body), **fields}) + body)
        return True

    return step


def raw(data: bytes) -> Step:
    """These bytes, then the end of the connection."""

    def step(_: Request, sock: socket.socket) -> bool:
        sock.sendall(data)
        return False

    return step


missing = answer(404)


def md5(body: bytes) -> str:
    """Return the MD5 in hex, as ETags have it."""
    return hashlib.md5(body).hexdigest()


def serve(body: bytes, etag: str | None = None, *, ranges: bool = True, **headers: object) -> Step:
    """An object store's answer: ETag (the MD5 by default, "" for none), Range, If-Match."""
    return part(body, None, etag, ranges=ranges, **headers)


def part(
    body: bytes,
    count: int | None,
    etag: str | None = None,
    *,
    ranges: bool = True,
    reset: bool = False,
    then: Callable[..., object] | None = None,
    **headers: object,
) -> Step:
    """As `serve`, but the connection ends (by a reset, or after `then`) when `count` bytes of the body are sent."""
    tag = md5(body) if etag is None else etag

    def step(request: Request, sock: socket.socket) -> bool:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if tag:
            fields["ETag"] = f'"{tag}"'
        if request.headers.get("if-match", f'"{tag}"') != f'"{tag}"':
            return answer(412)(request, sock)
        start = request.offset if ranges else 0
        if start >= len(body) > 0:
            return answer(416)(request, sock)
        if start:
            fields["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        sock.sendall(head(206 if start else 200, {"Content-Length": len(body) - start, **fields}))
        if count is None:
            sock.sendall(body[start:])
            return True
        sock.sendall(body[start : start + count])
        if then:
            then(request, sock)
        if reset:
            end_with_reset(sock)
        return False

    return step


def end_with_reset(sock: socket.socket) -> None:
    """Close so that the peer gets a reset once it has read (or before) what was sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(closing: threading.Event, pause: float) -> Callable[..., object]:
    """One byte at a time, for ever."""

    def more(_: Request, sock: socket.socket) -> None:
        while not closing.wait(pause):
            sock.sendall(b"x")

    return more


def chunked(body: bytes, *, piece: int = 7000, whole: bool = True, **headers: object) -> Step:
    """The body in chunks, without Content-Length; without its last chunk unless `whole`."""

    def step(_: Request, sock: socket.socket) -> bool:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        out = bytearray(head(200, {"Transfer-Encoding": "chunked", **fields}))
        for start in range(0, len(body), piece):
            data = body[start : start + piece]
            out += f"{len(data):X};note=1\r\n".encode() + data + b"\r\n"
        sock.sendall(out + (b"0\r\nTrailer: yes\r\n\r\n" if whole else b""))
        return whole

    return step
