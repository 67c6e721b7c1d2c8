"""Waiting for an attempt: look, show, sleep; and Ctrl-C, which must not strike between a submission and its record."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from pipeline.errors import InterruptedRunError
from pipeline.report.progress import ProgressView
from pipeline.report.status import Collector, StatusReport
from pipeline.schedulers.attempt import Attempt, Liveness

STOPPING_SECONDS = 5.0
LOST_SECONDS = 3600.0  # how long a scheduler may be silent before the wait is given up
GROWTH, MOST = 1.3, 5.0  # every wait is longer than the last one, up to so many times the scheduler's shortest


class Interrupts(contextlib.AbstractContextManager["Interrupts"]):
    """Within it the first Ctrl-C only sets `wanted`; the second raises `KeyboardInterrupt`.

    An exception at any point would leave a started controller that nobody cancels.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python runs signal handlers
            self._before = signal.signal(signal.SIGINT, self._take)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


def wait_for(
    collector: Collector,
    view: ProgressView,
    note: Callable[[str], None],
    *,
    interrupts: Interrupts | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[StatusReport, Attempt | None, bool]:
    """Wait until the newest attempt is no longer at work; return how it stands, and whether Ctrl-C cancelled it.

    With `interrupts` the first Ctrl-C cancels the attempt, and the wait goes on until its tasks have stopped.

    Raises
    ------
    InterruptedRunError
        At the second Ctrl-C.
    """
    cancelled, patience, lost = False, 1.0, 0.0
    try:
        while True:
            began = time.monotonic()
            report, attempt = collector.collect()
            view.show(report)
            if attempt is None or attempt.liveness is Liveness.ENDED:
                return report, attempt, cancelled
            if attempt.liveness is Liveness.UNKNOWN:
                lost = lost or began
                if began - lost > LOST_SECONDS or not waits_for_answer(attempt):
                    return report, attempt, cancelled
                if began == lost:
                    note("the scheduler does not say how the tasks stand; asking again")
            else:
                lost = 0.0
            if interrupts is not None and interrupts.wanted and not cancelled:
                cancelled = True
                note("interrupted: the tasks are told to stop and keep what is finished; Ctrl-C again to leave at once")
                collector.run.write_cancelled(attempt.plan.attempt)
                collector.scheduler(attempt.plan.scheduler).cancel(attempt.jobs)
            poll = collector.scheduler(attempt.plan.scheduler).poll
            if cancelled:  # somebody stands there, and the end is near
                poll, patience = min(poll, STOPPING_SECONDS), 1.0
            seconds = max(poll * patience, 4 * (time.monotonic() - began))
            _sleep_until_wanted(seconds, None if cancelled else interrupts, sleep)
            patience = min(patience * GROWTH, MOST) if poll > 1 else 1.0
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"{collector.run.path}: no longer watched",
            hint=f"see: medhaul status {shlex.quote(str(collector.run.path))}",
        ) from None
    finally:
        view.close()


def waits_for_answer(attempt: Attempt) -> bool:
    """Whether asking again may tell more: Slurm comes back, another host's local tasks stay unknown. Pure."""
    return attempt.plan.scheduler != "local"


def wait_while_stopping(
    collector: Collector, note: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait, for `local.kill_wait` at most, for tasks that were told to stop when their controller died."""
    attempt = collector.attempt()
    if attempt is None or not attempt.stopping:
        return
    note("waiting for tasks of an attempt that was broken off: they note what is finished")
    deadline = time.monotonic() + collector.run.read_config().local.kill_wait
    while attempt is not None and attempt.stopping and time.monotonic() < deadline:
        sleep(collector.scheduler(attempt.plan.scheduler).poll)
        attempt = collector.attempt()


def _sleep_until_wanted(seconds: float, interrupts: Interrupts | None, sleep: Callable[[float], None]) -> None:
    """Sleep, but not on after a Ctrl-C: a long wait must not hold it up."""
    while seconds > 0 and not (interrupts and interrupts.wanted):
        sleep(min(seconds, 0.5))
        seconds -= 0.5
