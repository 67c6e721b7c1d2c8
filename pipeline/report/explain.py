"""Why is there no receipt? Scheduler states, exit codes and last words, put into one sentence. Pure."""

from __future__ import annotations

import enum
import signal
from typing import NamedTuple

from pipeline.errors import InterruptedRunError, MedhaulError, StorageError, TimeLimitError
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


class Cause(enum.StrEnum):
    """Why a shard has no good receipt, in one word: what `resume --states` chooses by."""

    PARTIAL = "partial"
    NEW = "new"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    NODE = "node"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    STORAGE = "storage"
    FAILED = "failed"
    KILLED = "killed"
    LOST = "lost"
    DAMAGED = "damaged"
    GONE = "gone"
    UNKNOWN = "unknown"


REMEDIES = {
    Cause.PARTIAL: "`failed` lists the items; `resume` tries them again",
    Cause.TIMEOUT: "`resume` goes on after the last finished frame; with more time (slurm.time) it need not stop so "
    "often, and smaller shards (another run) need less",
    Cause.MEMORY: "raise slurm.memory, or lower task.memory, and submit the config again; or "
    "`resume --sbatch=--mem=...`",
    Cause.NODE: "`resume`; to keep off a bad node: slurm.exclude",
    Cause.PREEMPTED: "`resume`; a partition or QOS that is not preempted gets it done sooner",
    Cause.CANCELLED: "`resume` when it should go on",
    Cause.INTERRUPTED: "`resume` goes on after the last finished frame",
    Cause.STORAGE: "make room on scratch or shared storage (task.scratch_bytes bounds a task's), then `resume`",
    Cause.FAILED: "`failed --logs` shows the end of its log; then `resume`",
    Cause.KILLED: "`failed --logs` shows the end of its log; SIGKILL is often want of memory; then `resume`",
    Cause.LOST: "shared storage may show the receipt late: look again in a minute, then `resume`",
    Cause.DAMAGED: "`resume` does it again",
    Cause.GONE: "`failed --logs` may tell; then `resume`",
    Cause.UNKNOWN: "look again when Slurm answers; `resume --assume-dead` when you know that nothing is at work",
    Cause.NEW: "",
}


class Verdict(NamedTuple):
    """Where a shard stands and, when there is no good receipt, why."""

    state: ShardState
    reason: str = ""
    cause: Cause | None = None


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
        State.OUT_OF_MEMORY: "killed for want of memory",
        State.PREEMPTED: "preempted by another job",
        State.LOST: "lost",
        State.GONE: "has ended, nobody knows how",
        State.UNKNOWN: "unknown",
    }
    return f"{words[status.state]}{note}"


def classify_shard(
    receipt: Receipt | None,
    problem: str,
    status: TaskStatus | None,
    heartbeat: Heartbeat | None,
) -> Verdict:
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
        return Verdict(ShardState.DONE)
    if status is not None and status.state is State.RUNNING:
        return Verdict(ShardState.RUNNING, _join(status.note, _lives(status)))
    if status is not None and status.state is State.PENDING:
        before = _last_life(heartbeat) if status.restarts else ""
        return Verdict(ShardState.WAITING, _join(status.note, before))
    if receipt is not None:
        return Verdict(ShardState.PARTIAL, f"{len(receipt.failed)} failed", Cause.PARTIAL)
    if status is None:
        return Verdict(ShardState.DEAD, problem, Cause.DAMAGED) if problem else Verdict(ShardState.NEW, "", Cause.NEW)
    reason, cause = explain_task(status), choose_cause(status)
    if not problem and (cause is Cause.LOST or (status.state is State.FAILED and status.exit_code == 3)):
        reason += ", but left no receipt"
    if heartbeat is not None and heartbeat.note:
        reason += f"; last words: {heartbeat.note}"
        if cause is Cause.INTERRUPTED and heartbeat.note.startswith(TimeLimitError.__name__):
            cause = Cause.TIMEOUT
    if problem:
        reason, cause = f"{reason}; {problem}", cause if cause is Cause.UNKNOWN else Cause.DAMAGED
    return Verdict(ShardState.UNKNOWN if cause is Cause.UNKNOWN else ShardState.DEAD, reason, cause)


def choose_cause(status: TaskStatus) -> Cause:
    """Put how a task ended into one word."""
    causes = {
        State.COMPLETED: Cause.LOST, State.TIMEOUT: Cause.TIMEOUT, State.OUT_OF_MEMORY: Cause.MEMORY,
        State.PREEMPTED: Cause.PREEMPTED, State.CANCELLED: Cause.CANCELLED, State.LOST: Cause.NODE,
        State.GONE: Cause.GONE, State.UNKNOWN: Cause.UNKNOWN,
    }  # fmt: skip
    if status.state in causes:
        return causes[status.state]
    if status.signal is not None:
        return Cause.KILLED
    if status.exit_code == InterruptedRunError.exit_code:
        return Cause.INTERRUPTED
    return Cause.STORAGE if status.exit_code == StorageError.exit_code else Cause.FAILED


def _last_life(heartbeat: Heartbeat | None) -> str:
    """What is known of the life before a requeue, from its own last words."""
    if heartbeat is None:
        return ""
    if heartbeat.phase in {"stopped", "failed"}:
        return f"its last life on {heartbeat.node}: {heartbeat.note or heartbeat.phase}"
    return f"its last life on {heartbeat.node} ended without a word, as at a node failure or kill"


def _lives(status: TaskStatus) -> str:
    return f"life {status.restarts + 1}" if status.restarts else ""


def _join(*texts: str) -> str:
    return "; ".join(filter(None, texts))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
