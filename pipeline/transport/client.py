"""The transport: small bodies into memory, objects into files, every failure an `ItemError` that says why."""

from __future__ import annotations

import http.client
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from pipeline.errors import ItemError
from pipeline.transport.download import Download, Haul, Sink
from pipeline.transport.evidence import Tally, normalise_etag
from pipeline.transport.exchange import Exchange, RequestError
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy, Runtime, Verdict
from pipeline.transport.stream import Count, judge_coding, judge_stream, pour
from pipeline.transport.trial import Event, Explain, Means, Trial, doubt
from pipeline.transport.wire import Head

T = TypeVar("T")
MIB = 1 << 20
# Large enough that system calls and lock hand-overs do not count, small enough to stay in a core's cache for two hashes
# and a write.
BUFFER = 512 << 10
# How often an object may turn out to be another one than listed before that is the result.
CHANGES = 1
# How often a whole body may turn out not to be what was asked for before that is the result.
DOUBTS = 3


class Response(msgspec.Struct, frozen=True):
    """A successful answer with its whole body. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Transport:
    """Fetches over one pool with one policy. Thread-safe: one instance serves all threads of a process.

    Parameters
    ----------
    stop
        When set, whatever is under way raises `InterruptedRunError` within about half a second.
    on_event
        Called from the working threads for each response, failure and retry, with a flat record fit for JSON: `event`
        (`response`, `failure`, `retry`), `url` (without query), `status`, `bytes`, `seconds`, `reason`, ...
    """

    def __init__(
        self,
        pool: ConnectionPool,
        policy: Policy | None = None,
        runtime: Runtime | None = None,
        stop: threading.Event | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._means = Means(pool, policy or Policy(), runtime or Runtime(), stop or threading.Event(), on_event)
        self._local = threading.local()

    def fetch_bytes(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        limit: int = 16 * MIB,
        deadline_at: float | None = None,
    ) -> Response:
        """Return a small answer (a listing) whole, asking again as the policy allows.

        Parameters
        ----------
        limit
            Most bytes of the body.
        deadline_at
            On the runtime's clock; by default the policy's deadline from now.

        Raises
        ------
        ItemError
            `withdrawn`, `forbidden`, `unavailable`, `size` (longer than `limit`).
        InterruptedRunError
        ConfigError
            The proxy variables cannot be used.
        """
        return self.fetch_parsed(url, _as_it_is, headers=headers, limit=limit, deadline_at=deadline_at)

    def fetch_parsed(
        self,
        url: str,
        parse: Callable[[Response], T],
        *,
        headers: Mapping[str, str] | None = None,
        limit: int = 16 * MIB,
        deadline_at: float | None = None,
    ) -> T:
        """Return what `parse` makes of a small answer, asking again also for an answer that it does not take.

        An `ItemError` of `parse` that is `transient` fails the request, as an error status does; any other one fails
        the item. Parameters and errors are else those of `fetch_bytes`.
        """
        trial = self._trial(url, deadline_at, 0)
        wanted = dict(headers or {})
        while True:
            try:
                with trial.ask(wanted) as exchange:
                    answer = Response(exchange.head.status, exchange.head.headers, _read(exchange, limit))
                    try:
                        return parse(answer)
                    except ItemError as error:
                        wanted["Cache-Control"] = "no-cache"  # a cache on the way may have kept what is wrong
                        raise doubt(error) from error
            except (RequestError, OSError, http.client.HTTPException) as error:
                failure = trial.explain(error)
                if failure.verdict in {Verdict.CHANGED, Verdict.UNSATISFIABLE}:
                    raise trial.give_up(failure) from error
                trial.wait(failure, reached=0)

    def download(
        self,
        url: str,
        dest: Path,
        *,
        size: int,
        etag: str = "",
        deadline_at: float | None = None,
        resume: bool = True,
        if_range: bool = False,
    ) -> Download:
        """Write one object to `dest` and return its hashes and the evidence for it; on failure nothing is left there.

        Parameters
        ----------
        dest
            On scratch: mode 0600, not synced.
        size, etag
            As listed. An MD5 ETag must be the body's; a multipart one is compared for likely part sizes.
        deadline_at
            On the runtime's clock; by default the policy's deadline from now.
        resume
            Whether a broken body is continued by a Range request: under the listed ETag, else under what its first
            answer said of its version, if that can be no other's.
        if_range
            Whether that request's condition is If-Range also for a listed ETag, and not If-Match.

        Raises
        ------
        ItemError
            `withdrawn`, `forbidden`, `unavailable`, `size`, `checksum`.
        StorageError
            `dest` cannot be written.
        InterruptedRunError
        ConfigError
            The proxy variables cannot be used.
        """
        clock = self._means.runtime.clock
        begun = clock()
        trial = self._trial(url, deadline_at, size)
        etag = normalise_etag(etag)
        with Sink(dest, Tally(size, etag)) as sink:
            haul = Haul(sink, size, etag, resume=resume, if_range=if_range)
            changes = 0
            while True:
                try:
                    with trial.ask(haul.request_headers()) as exchange:
                        haul.accept(exchange.head)
                        haul.receive(exchange.body, self._buffer())
                        evidence = haul.prove()
                    break
                except (RequestError, OSError, http.client.HTTPException) as error:
                    failure = trial.explain(error)
                    changes += failure.verdict is Verdict.CHANGED
                    if changes > CHANGES:
                        raise trial.give_up(failure) from error
                    haul.fail(failure)
                    trial.wait(failure, reached=sink.furthest)
            sink.close()
            digests = sink.tally.digests()
            return Download(
                path=dest,
                size=digests.size,
                md5=digests.md5,
                sha256=digests.sha256,
                evidence=evidence,
                attempts=trial.requests,
                seconds=clock() - begun,
                resumed=haul.resumed,
                etag=haul.first.etag,
            )

    def stream(
        self,
        url: str,
        dest: Path,
        accept: Callable[[Path], T],
        *,
        limit: int,
        headers: Mapping[str, str] | None = None,
        explain: Explain | None = None,
        doubts: int = DOUBTS,
        deadline_at: float | None = None,
        ask_until: float = math.inf,
        on_head: Callable[[Head], None] | None = None,
    ) -> T:
        """Write an answer of a length that nobody states to `dest`, and return what `accept` makes of the file.

        Such a body cannot be continued: one that breaks is asked for again from its start, and none of it counts as
        progress.

        Parameters
        ----------
        dest
            On scratch: mode 0600, not synced. On failure nothing is left there.
        accept
            Reads the file, after the connection was given back. An `ItemError` that is `transient` fails the request,
            at most `doubts` times: whole bodies are dear. Whatever else it raises ends the download.
        limit
            Most bytes of the body. A longer one counts among the `doubts`.
        explain
            What an error status means: an `ItemError`, or None for what it means everywhere.
        deadline_at
            On the runtime's clock; by default the policy's deadline from now.
        ask_until
            On the same clock: later no other request is sent, though a body that flows may go on until `deadline_at`.
        on_head
            Is given the head of each answer whose body is written, before `accept` reads the file.

        Raises
        ------
        ItemError
            `withdrawn`, `forbidden`, `unavailable`, `size` (longer than `limit`), and those of `accept` and `explain`.
        StorageError
            `dest` cannot be written.
        InterruptedRunError
        ConfigError
            The proxy variables cannot be used.
        """
        trial = self._trial(url, deadline_at, 0, explain, ask_until)
        wanted = dict(headers or {})
        with Sink(dest, Count()) as sink:
            while True:
                try:
                    with trial.ask(wanted) as exchange:
                        judge_stream(exchange.head)
                        if on_head is not None:
                            on_head(exchange.head)
                        pour(exchange.body, sink, self._buffer(), limit)
                except (RequestError, OSError, http.client.HTTPException) as error:
                    failure = trial.explain(error)
                    doubts -= failure.reason == "size"
                    if doubts <= 0 or failure.verdict in {Verdict.CHANGED, Verdict.UNSATISFIABLE}:
                        raise trial.give_up(failure) from error
                else:
                    try:
                        result = accept(dest)
                    except ItemError as error:
                        wanted["Cache-Control"] = "no-cache"
                        doubts -= 1
                        failure = doubt(error)
                        if doubts <= 0 or not error.transient:
                            raise trial.give_up(failure) from error
                    else:
                        sink.close()
                        return result
                sink.restart()
                trial.wait(failure, reached=0)

    def _trial(
        self,
        url: str,
        deadline_at: float | None,
        size: int,
        explain: Explain | None = None,
        ask_until: float = math.inf,
    ) -> Trial:
        if deadline_at is None:
            deadline_at = self._means.runtime.clock() + self._means.policy.deadline
        return Trial(self._means, url, deadline_at, size, explain, ask_until)

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(BUFFER))
        return buffer


def _as_it_is(response: Response) -> Response:
    return response


def _read(exchange: Exchange, limit: int) -> bytes:
    """Read a body of at most `limit` bytes that is stored as it is sent."""
    body = exchange.body
    judge_coding(exchange.head)
    data = bytearray()
    buffer = memoryview(bytearray(min(max(body.length, 1), limit + 1) if body.length >= 0 else 64 << 10))
    while body.length <= limit and not body.done:
        data += buffer[: body.readinto(buffer)]
        if len(data) > limit:
            break
    if body.length > limit or len(data) > limit:
        raise RequestError("size", Verdict.PERMANENT, f"the answer is longer than {limit} bytes")
    return bytes(data)
