"""The local scheduler's records and rules: what a controller knows, and what it does next. Pure but for two functions.

`attempts/NNN/local.json` holds a `LocalState`; its only writer is its `owner`: first the process that submits, then
the controller.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.atomic import write_atomic
from pipeline.process import ProcessId
from pipeline.records import FORMAT
from pipeline.rundir import RunDir, read_record
from pipeline.schedulers.base import State, TaskStatus, ended

MAX_REQUEUES = 5  # Slurm's MaxBatchRequeue
EXIT_INTERRUPTED = 75


class LocalTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task (or the reduce job) as its controller knows it. `process` is set while it runs."""

    state: State = State.PENDING
    process: ProcessId | None = None
    exit_code: int | None = None
    signal: int | None = None
    began: float = 0.0
    ended: float = 0.0
    restarts: int = 0
    note: str = ""


class LocalState(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts/NNN/local.json`."""

    format: int = FORMAT
    owner: ProcessId
    job: str
    name: str
    offset: int
    throttle: int
    submit_dir: str
    logs: str
    tasks: list[LocalTask]
    reduce_job: str = ""
    reduce_name: str = ""
    reduce: LocalTask = LocalTask()


class Limits(msgspec.Struct, frozen=True):
    """Seconds: `time` a task may run (0: no limit), `lead` of the early signal, `kill` from SIGTERM to SIGKILL."""

    time: float
    lead: float
    kill: float


class Sent(msgspec.Struct, frozen=True):
    """Which signals a running task was sent, and when SIGTERM was, in seconds of the same clock as `now`."""

    usr1: bool = False
    term: float | None = None
    kill: bool = False


Action = Literal["usr1", "term", "kill"]


def limit_times(limits: Limits) -> tuple[float, float] | None:
    """When, in seconds from the start, the early signal and SIGTERM are due; None when there is no limit.

    A lead longer than half the limit counts as half: a task must have time to do something before it is told to stop.
    """
    if limits.time <= 0:
        return None
    return limits.time - min(limits.lead, limits.time / 2), limits.time


def choose_action(began: float, now: float, limits: Limits, sent: Sent, *, cancelled: bool) -> Action | None:
    """Choose the signal that is due now for a running task."""
    if sent.term is not None:
        return "kill" if not sent.kill and now >= sent.term + limits.kill else None
    if cancelled:
        return "term"
    times = limit_times(limits)
    if times is None:
        return None
    if now >= began + times[1]:
        return "term"
    return "usr1" if not sent.usr1 and now >= began + times[0] else None


def next_action_time(began: float, limits: Limits, sent: Sent) -> float | None:
    """When `choose_action` will have something to do next, if nothing else happens."""
    if sent.kill:
        return None
    if sent.term is not None:
        return sent.term + limits.kill
    times = limit_times(limits)
    if times is None:
        return None
    return began + (times[1] if sent.usr1 else times[0])


def classify_end(task: LocalTask, status: int, sent: Sent, now: float, *, cancelled: bool) -> LocalTask:
    """Say what becomes of a task whose process ended with wait status `status` (negative: killed by that signal).

    Exit 75 after a signal of the time limit is requeued, at most `MAX_REQUEUES` times, as a site's Slurm would.
    """
    limited = sent.usr1 or sent.term is not None
    ends = LocalTask(
        state=State.COMPLETED,
        exit_code=status if status >= 0 else None,
        signal=-status if status < 0 else None,
        began=task.began,
        ended=now,
        restarts=task.restarts,
    )
    if status == 0:
        return ends
    if cancelled and sent.term is not None:
        return msgspec.structs.replace(ends, state=State.CANCELLED)
    if limited and status == EXIT_INTERRUPTED:
        if task.restarts < MAX_REQUEUES and not cancelled:
            return LocalTask(restarts=task.restarts + 1, note="requeued after the time limit")
        return msgspec.structs.replace(ends, state=State.TIMEOUT, note=f"requeued {task.restarts} times")
    if limited and status < 0:
        note = "did not stop in time" if -status == signal.SIGKILL else ""
        return msgspec.structs.replace(ends, state=State.TIMEOUT, note=note)
    return msgspec.structs.replace(ends, state=State.FAILED)


def judge_task(task: LocalTask, *, owner_alive: bool | None, process_alive: bool | None) -> TaskStatus:
    """Turn what the state file says into a status, given what is known of the owner and of the task's process."""
    status = TaskStatus(
        state=task.state,
        exit_code=task.exit_code,
        signal=task.signal,
        began=task.began,
        ended=task.ended,
        restarts=task.restarts,
        note=task.note,
    )
    if owner_alive or ended(task.state):
        return status
    if owner_alive is None:
        return msgspec.structs.replace(status, state=State.UNKNOWN, note="its controller is on another host")
    if process_alive:
        note = "its controller died; it was told to stop"
        return msgspec.structs.replace(status, state=State.RUNNING, stopping=True, note=note)
    note = "its controller died" if task.state is State.RUNNING else "its controller died before it started"
    return msgspec.structs.replace(status, state=State.LOST, note=note)


def state_path(run: RunDir, attempt: int) -> Path:
    """Where the controller of an attempt keeps its state."""
    return run.attempt_folder(attempt) / "local.json"


def read_state(run: RunDir, attempt: int) -> LocalState:
    """Read a controller's state. Raises `ConfigError`."""
    return read_record(state_path(run, attempt), LocalState)


def write_state(run: RunDir, attempt: int, state: LocalState) -> None:
    """Write a controller's state for others to read; it need not survive a power cut, nor would its tasks."""
    write_atomic(state_path(run, attempt), msgspec.json.encode(state), durable=False)
