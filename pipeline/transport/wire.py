"""HTTP/1.1 on a connected socket: a request out, a response head and its body in, with nothing copied twice.

`http.client` connects (see pool.py); this reads. Its own response reader parses headers with the e-mail parser, blocks
in a buffered reader for as long as a slow server pleases, and takes a body that ends early for a whole one.
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from pipeline.transport.retry import check_stop

MAX_HEAD = 64 << 10
# Longest wait in one system call: how late a stop or a deadline may be noticed.
SLICE = 0.5
_BUFFER = 16 << 10
_STATUS_LINE = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (.*))?")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class ProtocolError(http.client.HTTPException):
    """The server answered with something that is not HTTP/1.x."""


class NoAnswerError(ConnectionError):
    """The connection was closed before the first byte of a response."""


class ShortBodyError(ConnectionError):
    """The connection was closed before the end of the body."""


class StallError(TimeoutError):
    """Not one byte came for `Policy.stall` seconds."""


class SlowError(TimeoutError):
    """The bytes come more slowly than `Policy.min_rate`."""


class DeadlineError(TimeoutError):
    """The time for the whole object is over."""


class Head(msgspec.Struct, frozen=True):
    """Status line and headers of a response. Names are lower case; repeated headers are joined by `, `."""

    status: int
    reason: str
    headers: dict[str, str]
    minor: int = 1

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request once the body is read."""
        tokens = self.headers.get("connection", "").lower()
        return "close" not in tokens if self.minor else "keep-alive" in tokens


class Guard:
    """Watches one transfer: stop event, deadline, stall, minimum rate. Not shared between threads."""

    def __init__(
        self,
        clock: Callable[[], float],
        stop: threading.Event,
        *,
        stall: float,
        min_rate: float,
        deadline_at: float,
    ) -> None:
        self.clock = clock
        self.stop = stop
        self.stall = stall
        self.min_rate = min_rate
        self.deadline_at = deadline_at
        self.slice = max(0.01, min(SLICE, stall / 4))
        self.total = 0
        self.begin()

    def begin(self) -> None:
        """Start watching a request, or the body of its response."""
        now = self.clock()
        self._last = now
        self._marks: deque[tuple[float, int]] = deque([(now, self.total)])
        self._next_mark = now + self.stall / 8

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_at - self.clock()

    def check(self) -> float:
        """Return the time; raise `InterruptedRunError` when stopped, `DeadlineError` when it is too late."""
        check_stop(self.stop)
        now = self.clock()
        if now > self.deadline_at:
            raise DeadlineError("the time for this object is over")
        return now

    def check_pace(self) -> None:
        """Do `check`, and raise `SlowError` when too little came over the last `stall` seconds."""
        now = self.check()
        if now < self._next_mark:
            return
        marks = self._marks
        marks.append((now, self.total))
        while len(marks) > 2 and marks[1][0] <= now - self.stall:
            marks.popleft()
        since, count = marks[0]
        self._next_mark = now + self.stall / 8
        if now - since >= self.stall and self.total - count < self.min_rate * (now - since):
            rate = (self.total - count) / (now - since)
            raise SlowError(f"{rate:.0f} bytes/s over {now - since:.1f} s is below {self.min_rate:.0f} bytes/s")

    def arrived(self, count: int) -> None:
        """Note that bytes came."""
        self.total += count
        self._last = self.clock()

    def idle(self) -> None:
        """Note that nothing came for a slice; raise `StallError` when that has lasted too long."""
        if self.check() - self._last >= self.stall:
            raise StallError(f"no byte for {self.stall:g} s")


class Stream:
    """The receiving side of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.begun = False
        self._secure = isinstance(sock, ssl.SSLSocket)
        self._slice = 0.0
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def prepare(self, guard: Guard, patience: float = 30.0) -> None:
        """Get ready for a request: no system call may wait longer than `guard.slice`."""
        self.begun = False
        if self._slice == guard.slice:
            return
        self._slice = guard.slice
        if self._secure:
            self.sock.settimeout(guard.slice)
            return
        # Blocking with a kernel timeout: one recv(MSG_WAITALL) fills a buffer where Python's own timeouts need a
        # poll() and a recv() for each piece that arrives.
        self.sock.settimeout(None)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(guard.slice))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(patience))

    @property
    def pending(self) -> bool:
        """Whether bytes are left over that nobody asked for."""
        return self._start != self._end

    def read_head(self, guard: Guard) -> Head:
        """Read the head of the final response, passing over 1xx ones.

        Raises
        ------
        NoAnswerError
            Closed before the first byte.
        ProtocolError
            Not HTTP/1.x, or longer than 64 KiB.
        """
        while True:
            head = parse_head(self._read_until_blank(guard))
            if head.status >= 200:
                return head
            if head.status == 101:
                raise ProtocolError("the server switched protocols without being asked")

    def _read_until_blank(self, guard: Guard) -> bytes:
        head = bytearray()
        while True:
            if self._start == self._end and not self._fill(guard):
                if not self.begun:
                    raise NoAnswerError("the server closed the connection without an answer")
                raise ShortBodyError("the connection was closed within the headers")
            seen = max(0, len(head) - 3)
            taken = len(head)
            head += self._view[self._start : self._end]
            end = head.find(b"\r\n\r\n", seen)
            if end >= 0:
                self._start += end + 4 - taken
                del head[end:]
                return bytes(head)
            self._start = self._end
            if len(head) > MAX_HEAD:
                raise ProtocolError("the response has more than 64 KiB of headers")

    def read_line(self, guard: Guard) -> bytes:
        """Read a line without its CR LF, of at most 4096 bytes; raises `ShortBodyError` or `ProtocolError`."""
        line = bytearray()
        while True:
            if self._start == self._end and not self._fill(guard):
                raise ShortBodyError("the connection was closed within the body")
            end = self._buffer.find(b"\n", self._start, self._end)
            stop = self._end if end < 0 else end + 1
            line += self._view[self._start : stop]
            self._start = stop
            if len(line) > 4096:
                raise ProtocolError("a line of a chunked body is too long")
            if end >= 0:
                return bytes(line).rstrip(b"\r\n")

    def readinto(self, view: memoryview, guard: Guard) -> int:
        """Read some bytes, as many as come without much waiting; 0 means that the connection was closed."""
        ready = self._end - self._start
        if ready:
            count = min(ready, len(view))
            view[:count] = self._view[self._start : self._start + count]
            self._start += count
            return count
        return self._receive(view, guard, 0 if self._secure else socket.MSG_WAITALL)

    def _fill(self, guard: Guard) -> int:
        self._start = 0
        self._end = self._receive(self._view, guard, 0)
        return self._end

    def _receive(self, view: memoryview, guard: Guard, flags: int) -> int:
        while True:
            guard.check_pace()
            try:
                count = self.sock.recv_into(view, len(view), flags)
            except (BlockingIOError, TimeoutError) as error:
                if error.errno == errno.ETIMEDOUT:
                    raise  # the kernel's own verdict on the connection, not the end of a slice
                guard.idle()
                continue
            self.begun = self.begun or count > 0
            guard.arrived(count)
            return count


class Body:
    """The body of one response, whichever way its end is marked.

    Attributes
    ----------
    length
        Content-Length, or -1 where the server does not say.
    done
        Whether the end was reached.
    """

    def __init__(self, stream: Stream, head: Head, guard: Guard) -> None:
        self._stream = stream
        self._guard = guard
        self._chunked = classify_framing(head) == "chunked"
        self.length = -1 if self._chunked else parse_length(head)
        self._left = max(self.length, 0)  # of the body, or of the current chunk
        self.done = self.length == 0
        # A body that only the end of the connection ends leaves nothing to use again; one that states two ends is not
        # to be trusted with where the next response starts (RFC 9112 section 6.1).
        both = self._chunked and "content-length" in head.headers
        self.reusable = head.keep_alive and (self._chunked or self.length >= 0) and not both

    def readinto(self, view: memoryview) -> int:
        """Read some bytes; 0 only at the end. Raises `ShortBodyError` when the connection ends before the body."""
        if self.done:
            return 0
        if self._chunked and self._left == 0 and not self._next_chunk():
            return 0
        bounded = self._chunked or self.length >= 0
        part = view[: self._left] if bounded and self._left < len(view) else view
        count = self._stream.readinto(part, self._guard)
        if not bounded:
            self.done = count == 0
            return count
        if count == 0:
            raise ShortBodyError(f"the connection was closed {self._left} bytes before the end")
        self._left -= count
        if self._left == 0:
            if self._chunked:
                if self._stream.read_line(self._guard) != b"":
                    raise ProtocolError("a chunk is longer than its stated size")
            else:
                self.done = True
        return count

    def _next_chunk(self) -> bool:
        size = self._stream.read_line(self._guard).partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(size):
            raise ProtocolError("a chunk has no size")
        self._left = int(size, 16)
        if self._left == 0:
            while self._stream.read_line(self._guard):  # trailers
                pass
            self.done = True
        return not self.done


def render_request(target: str, host: str, headers: Mapping[str, str]) -> bytes:
    """Render a GET request. Raises `ValueError` where a value would break out of its line."""
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    if not target.isprintable() or " " in target or not text.isascii() or text.count("\n") != len(lines) - 1:
        raise ValueError("a URL or header holds characters that HTTP does not allow")
    return f"{text}\r\n\r\n".encode("ascii")


def parse_head(raw: bytes) -> Head:
    """Read a response head (without its final blank line). Raises `ProtocolError` on anything but HTTP/1.x."""
    lines = raw.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise ProtocolError(f"the answer is not HTTP: {lines[0][:60]!r}")
    headers: dict[str, str] = {}
    name = ""
    for line in lines[1:]:
        if line[:1] in {" ", "\t"} and name:  # obsolete line folding, RFC 9112 section 5.2
            headers[name] = f"{headers[name]} {line.strip()}"
            continue
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not _TOKEN.fullmatch(name):
            raise ProtocolError(f"not a header: {line[:60]!r}")
        value = value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Head(int(match[2]), match[3] or "", headers, int(match[1]))


def classify_framing(head: Head) -> str:
    """Say how the end of a body is marked: `none`, `chunked`, `length` or `close` (RFC 9112 section 6.3)."""
    if head.status in {204, 304}:
        return "none"
    coding = head.headers.get("transfer-encoding", "").lower()
    if coding not in {"", "identity"}:
        if coding != "chunked":
            raise ProtocolError(f"unknown transfer coding {coding[:60]!r}")
        return "chunked"
    return "length" if "content-length" in head.headers else "close"


def parse_length(head: Head) -> int:
    """Read Content-Length, 0 for a status without body, -1 where there is none. Raises `ProtocolError`."""
    framing = classify_framing(head)
    if framing != "length":
        return 0 if framing == "none" else -1
    values = {value.strip() for value in head.headers["content-length"].split(",")}
    value = values.pop()
    if values or not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ProtocolError(f"Content-Length is {head.headers['content-length'][:60]!r}")
    return int(value)


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
