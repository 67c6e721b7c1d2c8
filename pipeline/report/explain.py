"""Why is there no receipt? Scheduler states of the attempt that tells, exit codes and last words, in one sentence."""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import msgspec

from pipeline.errors import InterruptedRunError, MedhaulError, StorageError, TimeLimitError
from pipeline.records import AttemptPlan, Heartbeat, Job, Receipt
from pipeline.rundir import RunDir
from pipeline.schedulers.base import Scheduler, SchedulerError, State, TaskKey, TaskStatus, job_keys
from pipeline.schedulers.slurm_states import STUCK

NAMED_TASKS = 4  # in a command that a remedy tells; of more tasks only their arrays are named


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


class ShardTask(NamedTuple):
    """The task of a shard in the newest attempt that took it: the attempt's number, `A_a`, and how it stands."""

    attempt: int
    name: str
    status: TaskStatus


class PastTask(NamedTuple):
    """The task of a shard in an earlier attempt: number `place` of an array."""

    plan: AttemptPlan
    job: Job
    place: int


class WideQuestion:
    """A scheduler whose one question about an attempt's states is also about those of earlier attempts.

    `widen` names the jobs to add, given those of the attempt.
    """

    def __init__(self, scheduler: Scheduler, widen: Callable[[Sequence[Job]], list[Job]]) -> None:
        self._scheduler = scheduler
        self._widen = widen
        self.more: dict[TaskKey, TaskStatus] | None = None

    def recover(self, plan: AttemptPlan) -> list[Job] | None:
        return self._scheduler.recover(plan)

    def states(self, jobs: Sequence[Job]) -> dict[TaskKey, TaskStatus]:
        more = self._widen(jobs)
        found = self._scheduler.states([*jobs, *more]) if jobs or more else {}
        self.more = {key: found[key] for key in job_keys(more)}
        return {key: found[key] for key in job_keys(jobs)}


def find_past(run: RunDir, numbers: Sequence[int], shards: Collection[int]) -> dict[int, PastTask]:
    """The newest task of each of `shards` in the attempts `numbers`, of those that were written down as taken."""
    found: dict[int, PastTask] = {}
    for number in reversed(numbers):
        if len(found) == len(shards):
            break
        plan = run.read_plan(number)
        for job in run.read_jobs(number):
            for place in range(job.length if job.kind == "array" else 0):
                shard = plan.shards[job.offset + place]
                if shard in shards:
                    found.setdefault(shard, PastTask(plan, job, place))
    return found


def may_ask(plan: AttemptPlan, newest: AttemptPlan) -> bool:
    """Whether the ids of an earlier attempt's jobs mean the same where the newest one went. Pure."""
    return plan.scheduler != newest.scheduler or not (
        plan.cluster and newest.cluster and plan.cluster != newest.cluster
    )


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
    attempt: int = 0,
) -> Verdict:
    """Say where a shard stands and, when there is no good receipt, why.

    Parameters
    ----------
    receipt, problem
        Its sound receipt, or why the one that is there proves nothing: itself damaged, or without its part.
    status
        Its task in the newest attempt that took it; None when none did.
    heartbeat
        The last words about it, of whichever attempt.
    attempt
        The number of the task's attempt; 0: that of the last words and of the receipt.
    """
    if receipt is not None and receipt.state == "complete":
        return Verdict(ShardState.DONE)
    own = heartbeat if heartbeat is not None and attempt in {0, heartbeat.attempt} else None
    if status is not None and status.state is State.RUNNING:
        return Verdict(ShardState.RUNNING, _join(status.note, _lives(status)))
    if status is not None and status.state is State.PENDING:
        before = _last_life(own) if status.restarts else ""
        return Verdict(ShardState.WAITING, _join(status.note, before))
    if receipt is not None:
        reason = f"{len(receipt.failed)} failed"
        if status is None or attempt <= receipt.attempt:
            return Verdict(ShardState.PARTIAL, reason, Cause.PARTIAL)
        later, cause = _explain_end(status, heartbeat, own, bare=True)
        return Verdict(ShardState.PARTIAL, f"{reason}; then {later}", cause)
    if status is None:
        return Verdict(ShardState.DEAD, problem, Cause.DAMAGED) if problem else Verdict(ShardState.NEW, "", Cause.NEW)
    reason, cause = _explain_end(status, heartbeat, own, bare=not problem)
    if problem:
        reason, cause = f"{reason}; {problem}", cause if cause is Cause.UNKNOWN else Cause.DAMAGED
    return Verdict(ShardState.UNKNOWN if cause is Cause.UNKNOWN else ShardState.DEAD, reason, cause)


def _explain_end(
    status: TaskStatus, heartbeat: Heartbeat | None, own: Heartbeat | None, *, bare: bool
) -> tuple[str, Cause]:
    """Say how a task ended that left no good receipt; `own` are its own last words, `bare`: it left no receipt."""
    if status.state is State.GONE and own is not None and "while it waited" in status.note:
        status = msgspec.structs.replace(status, note=f"it ran on {own.node}, and Slurm has forgotten it")
    reason, cause = explain_task(status), choose_cause(status)
    if bare and (cause is Cause.LOST or (status.state is State.FAILED and status.exit_code == 3)):
        reason += ", but left no receipt"
    if heartbeat is not None and heartbeat.note:
        where = "" if own is not None else f" in attempt {heartbeat.attempt:03d}"
        reason += f"; last words{where}: {heartbeat.note}"
        if cause is Cause.INTERRUPTED and own is not None and own.note.startswith(TimeLimitError.__name__):
            cause = Cause.TIMEOUT
    return reason, cause


def choose_waiting_remedy(note: str, tasks: Sequence[str]) -> str:
    """Say what to do about tasks (`A_a`, or a job's id) that will not start by themselves, by Slurm's reason. Pure."""
    ids = tasks if len(tasks) <= NAMED_TASKS else list(dict.fromkeys(task.partition("_")[0] for task in tasks))
    release = f"scontrol release {','.join(ids)}"
    if STUCK["JobHeldUser"] in note:
        return f"`{release}`"
    if "held after a requeue" in note:
        return f"when what Slurm names is mended: `{release}`"
    if STUCK["JobHeldAdmin"] in note:
        return f"ask the administrators, or try `{release}`"
    if STUCK["DependencyNeverSatisfied"] in note:
        return "`cancel` and `resume`"
    return "see [slurm] in the config; `cancel`, then submit the config again, or `resume --sbatch=...`"


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
