"""All requests made for one URL: their guard, their count, the events about them, and when it is enough."""

from __future__ import annotations

import contextlib
import http.client
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from pipeline.errors import ItemError, MedhaulError
from pipeline.transport.exchange import Exchange, RequestError, ask, explain_status, parse_code, parse_target
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import (
    Policy,
    Progress,
    Runtime,
    Verdict,
    choose_next,
    classify_failure,
    count_failure,
    pause,
)
from pipeline.transport.wire import Guard

FINAL = frozenset({Verdict.PERMANENT, Verdict.GONE, Verdict.FORBIDDEN})

Event = dict[str, Any]
# Says what a status that is no success means, from the status and the beginning of its body; None: what it always does.
Explain = Callable[[int, bytes], ItemError | None]


class Means(msgspec.Struct, frozen=True):
    """What a transport works with; see `pipeline.transport.client.Transport`."""

    pool: ConnectionPool
    policy: Policy
    runtime: Runtime
    stop: threading.Event
    on_event: Callable[[Event], None] | None


class Trial:
    """The requests for one URL, one after the other.

    Attributes
    ----------
    requests
        How many were sent. A stale kept-alive connection that was replaced does not count.
    """

    def __init__(
        self,
        means: Means,
        url: str,
        deadline_at: float,
        size: int,
        explain: Explain | None = None,
        ask_until: float = math.inf,
    ) -> None:
        try:
            self._target = parse_target(url)
        except RequestError as failure:
            raise ItemError(failure.reason, f"{url.partition('?')[0]!r}: {failure}") from None
        self._means = means
        self._explain = explain
        self._size = size
        self._deadline_at, self._ask_until = deadline_at, min(deadline_at, ask_until)
        self._begun = means.runtime.clock()
        self._progress = Progress()
        policy = means.policy
        self._guard = Guard(
            means.runtime.clock,
            means.stop,
            stall=policy.stall,
            min_rate=policy.min_rate,
            deadline_at=deadline_at,
        )
        self.requests = 0

    @contextlib.contextmanager
    def ask(self, headers: Mapping[str, str]) -> Iterator[Exchange]:
        """Send a request and hand out the successful response; else raise `RequestError`, OSError or HTTPException."""
        clock, guard = self._means.runtime.clock, self._guard
        self.requests += 1
        begun, before = clock(), guard.total
        status, replaced, problem = 0, False, ""
        guard.deadline_at = self._ask_until
        try:
            exchange, replaced = ask(self._means.pool, self._target, headers, guard)
            with exchange:
                status = exchange.head.status
                if status >= 300:
                    raise self._refusal(exchange)
                guard.deadline_at = self._deadline_at
                yield exchange
        except (RequestError, OSError, http.client.HTTPException, MedhaulError) as error:
            problem = describe(error)
            raise
        finally:
            if self._means.on_event:
                self._emit(
                    "failure" if problem else "response",
                    status=status,
                    bytes=guard.total - before,
                    seconds=round(clock() - begun, 6),
                    stale=replaced,
                    reason=problem,
                )

    def explain(self, error: Exception) -> RequestError:
        """Turn what a request raised into a `RequestError`."""
        if isinstance(error, RequestError):
            return error
        return RequestError("unavailable", classify_failure(error), describe(error))

    def _refusal(self, exchange: Exchange) -> RequestError:
        document = exchange.read_error()
        if self._explain and (error := self._explain(exchange.head.status, document)) is not None:
            return doubt(error)
        return explain_status(exchange.head, parse_code(document), self._means.runtime.wall())

    def wait(self, failure: RequestError, *, reached: int) -> None:
        """Wait until the next request.

        Raises `ItemError` when there shall be none, `InterruptedRunError` when stopped.
        """
        means = self._means
        self._progress = count_failure(self._progress, self._size, reached)
        delay = choose_next(
            means.policy,
            failure.verdict,
            self._progress.failures,
            failure.retry_after,
            self._ask_until - means.runtime.clock(),
            means.runtime.random,
        )
        if delay is None:
            raise self.give_up(failure) from failure
        self._emit("retry", delay=round(delay, 3), verdict=failure.verdict.value, reason=str(failure), reached=reached)
        pause(means.runtime, means.stop, delay)

    def give_up(self, failure: RequestError) -> ItemError:
        """Make the error that ends the trial."""
        seconds = self._means.runtime.clock() - self._begun
        text = f"{self._target.shown}: {failure} (requests: {self.requests}, {seconds:.1f} s)"
        return ItemError(failure.reason, text, transient=failure.verdict not in FINAL)

    def _emit(self, event: str, **fields: object) -> None:
        if self._means.on_event:
            self._means.on_event({"event": event, "url": self._target.shown, "request": self.requests, **fields})


def doubt(error: ItemError) -> RequestError:
    """Make what is wrong with an answer the failure of the request: one that is `transient` may be sent again."""
    verdict = Verdict.RETRY if error.transient else Verdict.PERMANENT
    return RequestError(error.reason, verdict, str(error), discard=True)


def describe(error: BaseException) -> str:
    """Say what happened, in one line, by the kind of exception where its text alone would not tell."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, RequestError | MedhaulError):
        return text
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
