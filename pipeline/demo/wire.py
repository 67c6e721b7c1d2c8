"""HTTP/1.1 on a socket, as far as an object store needs it, with bodies that fail on demand."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from http import HTTPStatus
from pathlib import Path

import msgspec

from pipeline.demo.faults import BODY_KINDS, Fault

MAX_HEAD = 64 << 10
_SENDFILE_FROM = 128 << 10  # below, one read and one send are cheaper
_MORE = getattr(socket, "MSG_MORE", 0)  # head and body leave in one segment where the system can


class Request(msgspec.Struct, frozen=True):
    """The head of a request; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    keep_alive: bool


class Body(msgspec.Struct, frozen=True):
    """Bytes `[start, end)` of a block of memory, or of the file `path` when that is given."""

    data: bytes
    start: int
    end: int
    path: str = ""

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.end - self.start

    def cut(self, size: int) -> Body:
        """Its first bytes."""
        return Body(self.data, self.start, self.start + size, self.path)

    def rest(self, size: int) -> Body:
        """All but its first bytes."""
        return Body(self.data, self.start + size, self.end, self.path)

    def read(self) -> bytes:
        """All bytes of it."""
        if not self.path:
            return self.data[self.start : self.end]
        with Path(self.path).open("rb", buffering=0) as file:
            file.seek(self.start)
            return file.read(self.size)


EMPTY = Body(b"", 0, 0)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. `length` is what Content-Length says: of an answer to HEAD more than the body has."""

    status: int
    headers: tuple[str, ...]
    body: Body = EMPTY
    length: int = 0
    fault: Fault | None = None
    hang_up: bool = False


def make_reply(status: int, headers: tuple[str, ...], body: bytes, *, head_only: bool) -> Reply:
    """An answer from memory."""
    shown = EMPTY if head_only else Body(body, 0, len(body))
    return Reply(status=status, headers=headers, body=shown, length=len(body))


def read_head(sock: socket.socket, buffer: bytearray) -> Request | None:
    """Read the head of the next request; bytes that came too early stay in `buffer`.

    None when the client has closed. Raises ValueError when it is not HTTP.
    """
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        if len(buffer) > MAX_HEAD:
            raise ValueError("request head too long")
        piece = sock.recv(16 << 10)
        if not piece:
            return None
        buffer += piece
    head = bytes(buffer[:end])
    del buffer[: end + 4]
    request = parse_head(head)
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or "transfer-encoding" in request.headers:
        raise ValueError("a request body of unknown length")
    skip = int(length)
    while skip > len(buffer):
        skip -= len(buffer)
        buffer.clear()
        piece = sock.recv(64 << 10)
        if not piece:
            return None
        buffer += piece
    del buffer[:skip]
    return request


def parse_head(head: bytes) -> Request:
    """Read a request head without its empty line. Raises ValueError when it is not HTTP/1."""
    line, *fields = head.decode("latin-1").lstrip("\r\n").split("\r\n")
    method, target, version = line.split(" ")
    if not version.startswith("HTTP/1.") or not target.startswith(("/", "http://")):
        raise ValueError(f"not a request line: {line[:80]!r}")
    headers = {}
    for field in fields:
        name, colon, value = field.partition(":")
        if not colon:
            raise ValueError(f"not a header: {field[:80]!r}")
        headers[name.lower()] = value.strip()
    connection = headers.get("connection", "").lower()
    keep = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
    return Request(method, target, headers, keep)


def send_reply(sock: socket.socket, reply: Reply, stop: threading.Event, *, keep_alive: bool) -> tuple[int, bool]:
    """Send an answer, or as much of it as its fault lets through.

    Returns how many bytes of body were sent, and whether the connection may go on. Raises ConnectionError when the
    client has gone.
    """
    if reply.hang_up:
        return 0, False
    reason = HTTPStatus(reply.status).phrase
    lines = (f"HTTP/1.1 {reply.status} {reason}", *reply.headers, f"Content-Length: {reply.length}")
    if reply.status == HTTPStatus.NOT_MODIFIED:
        lines = lines[:-1]
    head = "\r\n".join((*lines, f"Connection: {'keep-alive' if keep_alive else 'close'}", "", "")).encode("latin-1")
    body, fault = reply.body, reply.fault
    if fault is None or fault.kind not in BODY_KINDS or not body.size:
        return _send(sock, head, body), keep_alive
    strike = min(int(body.size * fault.at), body.size - 1)
    if fault.kind == "flip":
        wrong = bytearray(body.read())
        wrong[strike] ^= 1 << (strike % 8)
        return _send(sock, head, Body(bytes(wrong), 0, len(wrong))), keep_alive
    sent = _send(sock, head, body.cut(strike))
    if fault.kind == "reset":
        # Linger of 0 s makes close() send RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        return sent, False
    if fault.kind == "truncate":
        return sent, False
    if fault.kind == "stall":
        if not _hold(sock, fault.seconds, stop):
            return sent, False
        return sent + _send(sock, b"", body.rest(strike)), keep_alive
    rest = body.rest(strike).read()
    step = max(1, int(fault.rate / 10))
    for start in range(0, len(rest), step):
        if not _hold(sock, len(rest[start : start + step]) / max(fault.rate, 1), stop):
            return sent + start, False
        sock.sendall(rest[start : start + step])
    return sent + len(rest), keep_alive


def _send(sock: socket.socket, head: bytes, body: Body) -> int:
    if not body.path or body.size < _SENDFILE_FROM:
        if body.size < _SENDFILE_FROM:
            sock.sendall(head + body.read())
        else:
            sock.sendall(head, _MORE)
            sock.sendall(memoryview(body.data)[body.start : body.end])
        return body.size
    with Path(body.path).open("rb", buffering=0) as file:
        if head:
            sock.sendall(head, _MORE)
        return sock.sendfile(file, body.start, body.size)


def _hold(sock: socket.socket, seconds: float, stop: threading.Event) -> bool:
    """Wait; False as soon as the client goes or the site stops."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP if hasattr(select, "POLLRDHUP") else select.POLLIN)
    end = time.monotonic() + seconds
    while not stop.is_set():
        left = end - time.monotonic()
        if left <= 0:
            return True
        if poll.poll(min(left, 0.1) * 1000):
            with contextlib.suppress(BlockingIOError):
                if not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return False
            time.sleep(min(left, 0.01))  # the client sent ahead: poll would return at once, again and again
    return False
