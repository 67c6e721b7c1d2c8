"""What NBIA needs of HTTP beyond an object store: forms in request bodies, and answers in chunks without a length."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl

from pipeline.demo import wire
from pipeline.demo.faults import BODY_KINDS, Fault
from pipeline.demo.wire import Body, Reply, Request

MAX_BODY = 16 << 20
_CHUNK = 128 << 10
_LAST_CHUNK = b"0\r\n\r\n"
_MORE = getattr(socket, "MSG_MORE", 0)


class PostedRequest(Request, frozen=True):
    """A request with its body."""

    body: bytes = b""


def read_request(sock: socket.socket, buffer: bytearray) -> PostedRequest | None:
    """Read the next request and its body; None when the client has closed. Raises ValueError when it is not HTTP."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        if len(buffer) > wire.MAX_HEAD:
            raise ValueError("request head too long")
        if not _receive(sock, buffer):
            return None
    head = wire.parse_head(bytes(buffer[:end]))
    del buffer[: end + 4]
    length = head.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 12) or "transfer-encoding" in head.headers:
        raise ValueError("a request body of unknown length")
    size = int(length)
    if size > MAX_BODY:
        raise ValueError("request body too long")
    if size > len(buffer) and head.headers.get("expect", "").lower() == "100-continue":
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(buffer) < size:
        if not _receive(sock, buffer):
            return None
    body = bytes(buffer[:size])
    del buffer[:size]
    return PostedRequest(head.method, head.target, head.headers, head.keep_alive, body)


def _receive(sock: socket.socket, buffer: bytearray) -> bool:
    piece = sock.recv(64 << 10)
    buffer += piece
    return bool(piece)


def parse_form(text: str) -> dict[str, str]:
    """Names and values of a query or a form; of a name that is repeated the first, as servlets give it. Pure."""
    pairs = parse_qsl(text, keep_blank_values=True)
    return dict(reversed(pairs))


def send_chunked(
    sock: socket.socket, reply: Reply, stop: threading.Event, *, keep_alive: bool, head_only: bool
) -> tuple[int, bool]:
    """Send an answer in chunks, or as much of it as its fault lets through.

    Returns how many bytes of body were sent, and whether the connection may go on. Raises ConnectionError when the
    client has gone.
    """
    lines = (
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        *reply.headers,
        "Transfer-Encoding: chunked",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    )
    sock.sendall("\r\n".join((*lines, "", "")).encode("latin-1"), 0 if head_only else _MORE)
    if head_only:
        return 0, keep_alive
    body, fault = reply.body, reply.fault
    if fault is None or fault.kind not in BODY_KINDS or not body.size:
        sent = _send_chunks(sock, _pieces(body))
        sock.sendall(_LAST_CHUNK)
        return sent, keep_alive
    strike = min(int(body.size * fault.at), body.size - 1)
    if fault.kind == "flip":
        wrong = bytearray(body.read())
        wrong[strike] ^= 1 << (strike % 8)
        sent = _send_chunks(sock, _pieces(Body(bytes(wrong), 0, len(wrong))))
        sock.sendall(_LAST_CHUNK)
        return sent, keep_alive
    sent = _send_chunks(sock, _pieces(body.cut(strike)))
    if fault.kind == "reset":
        # Linger of 0 s makes close() send RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    if fault.kind in {"reset", "truncate"}:
        return sent, False
    whole, more = _send_slowly(sock, body.rest(strike), fault, stop)
    if whole:
        sock.sendall(_LAST_CHUNK)
    return sent + more, whole and keep_alive


def _send_slowly(sock: socket.socket, body: Body, fault: Fault, stop: threading.Event) -> tuple[bool, int]:
    if fault.kind == "stall":
        if not wire._hold(sock, fault.seconds, stop):  # noqa: SLF001 - the same wait as for objects
            return False, 0
        return True, _send_chunks(sock, _pieces(body))
    rest, sent = body.read(), 0
    step = max(1, int(fault.rate / 10))
    for start in range(0, len(rest), step):
        piece = rest[start : start + step]
        if not wire._hold(sock, len(piece) / max(fault.rate, 1), stop):  # noqa: SLF001
            return False, sent
        sent += _send_chunks(sock, iter((piece,)))
    return True, sent


def _pieces(body: Body) -> Iterator[memoryview | bytes]:
    if not body.path:
        whole = memoryview(body.data)[body.start : body.end]
        for start in range(0, len(whole), _CHUNK):
            yield whole[start : start + _CHUNK]
        return
    with Path(body.path).open("rb", buffering=0) as file:
        file.seek(body.start)
        left = body.size
        while left and (piece := file.read(min(_CHUNK, left))):
            left -= len(piece)
            yield piece


def _send_chunks(sock: socket.socket, pieces: Iterator[memoryview | bytes]) -> int:
    sent = 0
    for piece in pieces:
        sock.sendall(b"%x\r\n" % len(piece), _MORE)
        sock.sendall(piece, _MORE)
        sock.sendall(b"\r\n", _MORE if len(piece) == _CHUNK else 0)
        sent += len(piece)
    return sent
