"""When to ask again, and how long to wait first: pure decisions, and the small `Runtime` that the effects are given.

One policy object serves a whole process, and nothing else in medhaul retries a request: layers of retries multiply.
"""

from __future__ import annotations

import enum
import random
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import msgspec

from pipeline.errors import InterruptedRunError

# Progress that makes a failure the first one again: this much, or this share of a smaller object.
PROGRESS_BYTES = 1 << 20
PROGRESS_SHARE = 0.05
# Answers that say "you, or all of you, are too fast": RFC 6585 section 4, S3's SlowDown, and the unofficial 509.
SLOW_DOWN_STATUSES = frozenset({429, 503, 509})
# Server errors that the same request will meet again: 501 method, 505 version, 511 captive portal.
PERMANENT_SERVER_STATUSES = frozenset({501, 505, 506, 508, 510, 511})


class Verdict(enum.Enum):
    """What a failed request means for the next one."""

    PERMANENT = "permanent"
    RETRY = "retry"
    SLOW_DOWN = "slow-down"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    CHANGED = "changed"
    UNSATISFIABLE = "unsatisfiable"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the transport is.

    Attributes
    ----------
    attempts
        Failures in a row without progress after which a request is given up; 1 means no second try.
    deadline
        Seconds that one object or listing may take with all its retries.
    base, cap
        Seconds: the first wait is at most `base`, doubles with each failure and never exceeds `cap`. A site that asks
        for a longer wait than `cap` is given up: another site may have the object now.
    slow_base
        `base` where the site asks to slow down; S3's guidance is about 2 s.
    stall
        Seconds without a single byte after which a connection is given up.
    min_rate
        Bytes per second, averaged over the last `stall` seconds, below which a body is given up.
    """

    attempts: int = 6
    deadline: float = 4 * 3600.0
    base: float = 0.5
    cap: float = 60.0
    slow_base: float = 2.0
    stall: float = 60.0
    min_rate: float = 1000.0


class Runtime(msgspec.Struct, frozen=True):
    """The world as the transport sees it; tests pass their own.

    Attributes
    ----------
    clock
        Monotonic seconds.
    wall
        Seconds since 1970, for Retry-After dates.
    random
        Uniform in [0, 1).
    wait
        Sleeps up to so many seconds or until the event is set, and says whether it is.
    """

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    random: Callable[[], float] = random.random
    wait: Callable[[threading.Event, float], bool | None] = threading.Event.wait


class Progress(msgspec.Struct, frozen=True):
    """Failures in a row without progress, and the byte from which progress is counted."""

    failures: int = 0
    mark: int = 0


class ProxyRefusedError(OSError):
    """The proxy answered CONNECT with an error status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def classify_failure(failure: int | BaseException) -> Verdict:
    """Say what an HTTP status other than success, or an exception of the connection, means for the next request."""
    if isinstance(failure, ProxyRefusedError):
        # Whatever a proxy's 404 or 412 is about, it is not the object.
        verdict = classify_failure(failure.status)
        return verdict if verdict in {Verdict.RETRY, Verdict.SLOW_DOWN} else Verdict.PERMANENT
    if isinstance(failure, BaseException):
        # A certificate that does not fit today will not fit in a second either; all other faults may pass.
        return Verdict.PERMANENT if isinstance(failure, ssl.SSLCertVerificationError) else Verdict.RETRY
    by_status = {
        401: Verdict.FORBIDDEN,
        403: Verdict.FORBIDDEN,
        404: Verdict.GONE,
        408: Verdict.RETRY,
        410: Verdict.GONE,
        412: Verdict.CHANGED,
        416: Verdict.UNSATISFIABLE,
        425: Verdict.RETRY,
    }
    if failure in by_status:
        return by_status[failure]
    if failure in SLOW_DOWN_STATUSES:
        return Verdict.SLOW_DOWN
    if 500 <= failure < 600 and failure not in PERMANENT_SERVER_STATUSES:
        return Verdict.RETRY
    return Verdict.PERMANENT


def parse_retry_after(text: str, wall: float) -> float | None:
    """Read a Retry-After header, seconds or an HTTP-date (RFC 9110 10.2.3), as seconds from `wall`; None if neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def choose_delay(
    policy: Policy, verdict: Verdict, failures: int, retry_after: float | None, uniform: Callable[[], float]
) -> float:
    """Seconds to wait after that many failures: exponential with a cap and full jitter, never less than Retry-After.

    The jitter comes on top of Retry-After, so that tasks told the same time do not return together.
    """
    base = policy.slow_base if verdict is Verdict.SLOW_DOWN else policy.base
    ceiling = min(policy.cap, base * 2.0 ** min(max(failures - 1, 0), 60))
    if retry_after is not None:
        return retry_after + uniform() * min(base, ceiling)
    return uniform() * ceiling


def choose_next(
    policy: Policy,
    verdict: Verdict,
    failures: int,
    retry_after: float | None,
    left: float,
    uniform: Callable[[], float],
) -> float | None:
    """Seconds to wait before the next try, or None to give up.

    That is after too many failures, when fewer seconds are `left`, or when the site asks for more than `Policy.cap`.
    """
    if retry_after is not None and retry_after > policy.cap:
        return None
    if failures >= policy.attempts or verdict in {Verdict.PERMANENT, Verdict.GONE, Verdict.FORBIDDEN}:
        return None
    delay = choose_delay(policy, verdict, failures, retry_after, uniform)
    return delay if delay < left else None


def count_failure(progress: Progress, size: int, reached: int) -> Progress:
    """Count one more failure of an object of `size` bytes of which `reached` have been seen at the furthest.

    Progress since the last count of 1 MiB, or of 5 % of an object smaller than 20 MiB, makes it the first failure
    again. Bytes that were seen before (after starting over) are no progress, so the number of tries is bounded even
    without a deadline.
    """
    step = max(1, min(PROGRESS_BYTES, int(size * PROGRESS_SHARE)))
    if reached - progress.mark >= step:
        return Progress(failures=1, mark=reached)
    return Progress(failures=progress.failures + 1, mark=progress.mark)


def check_stop(stop: threading.Event) -> None:
    """Raise `InterruptedRunError` when the run is being stopped."""
    if stop.is_set():
        raise InterruptedRunError(
            "stopped while data were coming in", hint="run `medhaul resume` to go on; finished frames are kept"
        )


def pause(runtime: Runtime, stop: threading.Event, seconds: float) -> None:
    """Sleep so many seconds; raises `InterruptedRunError` as soon as `stop` is set."""
    runtime.wait(stop, seconds)
    check_stop(stop)
