"""One request and its response on a pooled connection."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

import pipeline
from pipeline.transport.pool import Connection, ConnectionPool, Origin
from pipeline.transport.retry import Verdict, classify_failure, parse_retry_after
from pipeline.transport.wire import Body, Guard, Head, render_request

PORTS = {"http": 80, "https": 443}
STANDING_HEADERS = {"User-Agent": f"medhaul/{pipeline.__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
# An error page up to this size is read to its end, so that the connection can be used again.
ERROR_BODY = 64 << 10
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class RequestError(Exception):
    """One request failed.

    Attributes
    ----------
    reason
        Word of `pipeline.errors.REASONS` that the item fails with if no other request succeeds.
    verdict
        What it means for the next request.
    retry_after
        Seconds that the site asks to wait, or None.
    discard
        Whether the bytes received so far are worthless.
    """

    def __init__(
        self, reason: str, verdict: Verdict, text: str, *, retry_after: float | None = None, discard: bool = False
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.verdict = verdict
        self.retry_after = retry_after
        self.discard = discard


class Target(msgspec.Struct, frozen=True):
    """A URL taken apart. `shown` has no query and no user, and may be logged."""

    origin: Origin
    authority: str
    path: str
    shown: str


class Exchange:
    """A response whose body can be read; leaving the context gives the connection back."""

    def __init__(self, pool: ConnectionPool, connection: Connection, head: Head, body: Body, guard: Guard) -> None:
        self.head = head
        self.body = body
        self._pool = pool
        self._connection = connection
        self._guard = guard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        whole = self.body.done and self.body.reusable
        self._pool.release(self._connection, reusable=whole, clock=self._guard.clock)

    def read_error(self) -> bytes:
        """Return the beginning of an error document, or b""; never raises for a body that does not come."""
        if self.body.length > ERROR_BODY:
            return b""
        data = bytearray(ERROR_BODY)
        view = memoryview(data)
        count = 0
        # The status is the error to report; a broken error page adds nothing to it.
        with contextlib.suppress(OSError, ValueError):
            while count < len(data):
                got = self.body.readinto(view[count:])
                if not got:
                    break
                count += got
        return bytes(view[:count])


def parse_target(url: str) -> Target:
    """Take an absolute http or https URL apart. Raises `RequestError` (permanent) on anything else."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in PORTS or not host or "@" in parts.netloc:
        raise RequestError("unavailable", Verdict.PERMANENT, "not an http or https URL without credentials")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    shown = f"{scheme}://{parts.netloc}{parts.path}"
    return Target(Origin(scheme, host, port or PORTS[scheme]), parts.netloc, path, shown)


def ask(pool: ConnectionPool, target: Target, headers: Mapping[str, str], guard: Guard) -> tuple[Exchange, bool]:
    """Send a GET request and read the head of its response.

    A kept-alive connection that the server closed before the first byte of its answer is replaced once, at once: that
    is how keep-alive ends, not a failure. Returns the exchange, and whether that happened.

    Raises
    ------
    OSError, http.client.HTTPException
        The connection failed.
    InterruptedRunError
    """
    replaced = False
    while True:
        connection = pool.lease(target.origin, guard, fresh=replaced)
        try:
            connection.stream.prepare(guard)
            guard.begin()
            connection.sock.sendall(_render(connection, target, headers))
            head = connection.stream.read_head(guard)
            guard.begin()
            return Exchange(pool, connection, head, Body(connection.stream, head, guard), guard), replaced
        except BaseException as error:
            stale = connection.served > 1 and not connection.stream.begun and _is_closed(error)
            pool.release(connection, reusable=False, clock=guard.clock)
            if not stale:
                raise
        replaced = True


def parse_code(document: bytes) -> str:
    """Return the `<Code>` of an S3 error document, or ""."""
    match = _CODE.search(document)
    return match[1].decode("ascii") if match else ""


def explain_status(head: Head, code: str, wall: float) -> RequestError:
    """Turn a response that is no success into a `RequestError`; `code` is from the error document."""
    status = head.status
    text = f"{status} {head.reason}".strip()[:100]
    if code and code not in text:
        text += f" ({code})"
    verdict = classify_failure(status)
    if 300 <= status < 400:
        with contextlib.suppress(ValueError):
            host = urlsplit(head.headers.get("location", "")).netloc.rpartition("@")[2]
            text += f": redirected to {host or 'another path'!r}, which is not followed"
    reason = {
        Verdict.GONE: "withdrawn",
        Verdict.FORBIDDEN: "forbidden",
        Verdict.CHANGED: "checksum",
        Verdict.UNSATISFIABLE: "size",
    }.get(verdict, "unavailable")
    retry_after = parse_retry_after(head.headers.get("retry-after", ""), wall)
    if retry_after:
        text += f", asks to wait {retry_after:.0f} s"
    discard = verdict in {Verdict.CHANGED, Verdict.UNSATISFIABLE}
    return RequestError(reason, verdict, text, retry_after=retry_after, discard=discard)


def _render(connection: Connection, target: Target, headers: Mapping[str, str]) -> bytes:
    path, proxy = target.path, connection.proxy
    try:
        if proxy is None:
            return render_request(path, target.authority, {**STANDING_HEADERS, **headers})
        return render_request(
            f"{target.origin.scheme}://{target.authority}{path}",
            target.authority,
            {**STANDING_HEADERS, **headers, **proxy.headers},
        )
    except ValueError as error:
        raise RequestError("unavailable", Verdict.PERMANENT, str(error)) from None


def _is_closed(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError)
