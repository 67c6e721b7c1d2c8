"""Why is there no receipt? Scheduler states, exit codes and last words, put into one sentence. Pure."""

from __future__ import annotations

import enum
import signal

from pipeline.errors import MedhaulError
from pipeline.records import Heartbeat, Receipt
from pipeline.schedulers.base import SchedulerError, State, TaskStatus


class ShardState(enum.StrEnum):
    """Where a shard stands. `DONE` and `PARTIAL` by its receipt, the others by what explains that there is none."""

    DONE = "done"
    PARTIAL = "partial"
    RUNNING = "running"
    WAITING = "waiting"
    DEAD = "dead"
    UNKNOWN = "unknown"
    NEW = "not submitted"


def exit_meanings() -> dict[int, str]:
    """Each exit code of medhaul with the sentence that its error class carries."""
    kinds: list[type[MedhaulError]] = [SchedulerError, MedhaulError, *MedhaulError.__subclasses__()]
    return {kind.exit_code: (kind.__doc__ or "").splitlines()[0].rstrip(".") for kind in kinds} | {0: "done"}


def explain_exit(code: int) -> str:
    """Say what an exit code of a batch script means."""
    if code > 128 and code - 128 in set(signal.Signals):
        return f"exit code {code}: killed by {signal.Signals(code - 128).name}"
    if code == MedhaulError.exit_code:
        return f"exit code {code}: a fault in medhaul"
    meaning = exit_meanings().get(code)
    return f"exit code {code}: {meaning[:1].lower()}{meaning[1:]}" if meaning else f"exit code {code}: unexpected"


def explain_task(status: TaskStatus) -> str:
    """Say how a task stands or ended."""
    note = f" ({status.note})" if status.note else ""
    if status.state is State.COMPLETED:
        return "ended well"
    if status.state is State.FAILED:
        if status.signal is not None:
            return f"killed by {_signal_name(status.signal)}{note}"
        return f"{explain_exit(status.exit_code)}{note}" if status.exit_code is not None else f"failed{note}"
    words = {
        State.PENDING: "waiting",
        State.RUNNING: "running",
        State.TIMEOUT: "stopped at the time limit",
        State.CANCELLED: "cancelled",
        State.LOST: "lost",
        State.UNKNOWN: "unknown",
    }
    return f"{words[status.state]}{note}"


def classify_shard(
    receipt: Receipt | None,
    problem: str,
    status: TaskStatus | None,
    heartbeat: Heartbeat | None,
) -> tuple[ShardState, str]:
    """Say where a shard stands and, when there is no good receipt, why.

    Parameters
    ----------
    receipt, problem
        Its sound receipt, or why the one that is there proves nothing: itself damaged, or without its part.
    status
        Its task in the newest attempt; None when it is not part of that.
    heartbeat
        The last words of that task.
    """
    if receipt is not None and receipt.state == "complete":
        return ShardState.DONE, ""
    if status is not None and status.state is State.RUNNING:
        return ShardState.RUNNING, status.note
    if status is not None and status.state is State.PENDING:
        return ShardState.WAITING, status.note
    if receipt is not None:
        return ShardState.PARTIAL, f"{len(receipt.failed)} failed"
    if status is None:
        return (ShardState.DEAD, problem) if problem else (ShardState.NEW, "")
    reason = explain_task(status)
    if not problem and (status.state is State.COMPLETED or (status.state is State.FAILED and status.exit_code == 3)):
        reason += ", but left no receipt"
    if heartbeat is not None and heartbeat.note:
        reason += f"; last words: {heartbeat.note}"
    if problem:
        reason += f"; {problem}"
    return (ShardState.UNKNOWN if status.state is State.UNKNOWN else ShardState.DEAD), reason


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
