"""What a scheduler is to medhaul: a few calls and a handful of states. A hint, never proof: receipts are.

Every backend keeps these promises, and the suite in tests/schedulers holds each of them to it:

- A batch script runs as a copy, in a session of its own, with the variables Slurm sets; output is appended to the log.
- At most `throttle` tasks of an array run at a time.
- The reduce job starts after every task of the arrays before it has ended, however it ended, and never earlier.
- Nothing need start before `submit_reduce` has returned.
- What the scheduler does not know stays `UNKNOWN`: never success, never gone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import msgspec

from pipeline.errors import MedhaulError
from pipeline.records import AttemptPlan, Job

RUN, ATTEMPT, OFFSET, HOME, ENV = (
    "MEDHAUL_RUN",
    "MEDHAUL_ATTEMPT",
    "MEDHAUL_OFFSET",
    "MEDHAUL_HOME",
    "MEDHAUL_ENV",
)


class SchedulerError(MedhaulError):
    """The scheduler did not take a job, or does not answer."""

    exit_code: ClassVar[int] = 69


class State(enum.StrEnum):
    """What a scheduler says of a task.

    `LOST`: its node or controller died under it. `GONE`: it has ended, but nobody knows how any more.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"
    GONE = "GONE"
    UNKNOWN = "UNKNOWN"


def alive(state: State) -> bool:
    """Whether the task runs or will run. False for UNKNOWN, as is `ended`."""
    return state in {State.PENDING, State.RUNNING}


def ended(state: State) -> bool:
    """Whether the task has ended, however. False for UNKNOWN, as is `alive`."""
    return not alive(state) and state is not State.UNKNOWN


class TaskStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a scheduler says of one task.

    Attributes
    ----------
    exit_code, signal
        How it ended, where known; at most one of them.
    began, ended
        Unix time; 0 when unknown or not yet.
    restarts
        How often it was requeued.
    stopping
        It is alive, but was told to stop and will not be started again.
    stuck
        It is alive for the scheduler, but will not start unless somebody does something.
    node
        Where it runs or ran, where known.
    note
        For people, what the state alone does not say.
    """

    state: State
    exit_code: int | None = None
    signal: int | None = None
    began: float = 0.0
    ended: float = 0.0
    restarts: int = 0
    stopping: bool = False
    stuck: bool = False
    node: str = ""
    note: str = ""


TaskKey = tuple[str, int]
"""Job id and index in its array; the index of a reduce job is 0."""


class ArraySpec(msgspec.Struct, frozen=True, kw_only=True):
    """An array of `length` tasks; task `i` does shard `plan.shards[offset + i]`, at most `throttle` at a time.

    `after`: the array that must have ended before, however it ended.
    """

    run: Path
    attempt: int
    name: str
    script: Path
    logs: Path
    offset: int
    length: int
    throttle: int
    after: Job | None = None


class ReduceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The reduce job of an attempt."""

    run: Path
    attempt: int
    name: str
    script: Path
    logs: Path


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler can take: tasks at once, and tasks in one array; None when it sets no bound of its own.

    `cluster` names the machine or cluster that a job's id belongs to, where ids of several could be confused;
    `accounting`: whether it keeps books of jobs that have ended; `kill_wait`: seconds from SIGTERM to SIGKILL, where it
    has its own mind about them.
    """

    slots: int | None = None
    array: int | None = None
    cluster: str = ""
    accounting: bool = False
    kill_wait: float | None = None


class Scheduler(Protocol):
    """Takes jobs, knows their states as far as it can, ends them."""

    name: str
    poll: float
    """Seconds to leave between two questions about states, at least."""

    def bounds(self) -> Bounds:
        """What it can take. Raises `SchedulerError` when it cannot say."""

    def submit_array(self, spec: ArraySpec) -> Job:
        """Take an array; its id is final. Raises `SchedulerError` when it was not taken, or may not have been."""

    def submit_reduce(self, spec: ReduceSpec, after: Sequence[Job]) -> Job:
        """Take the reduce job, to run when all tasks of `after` have ended. Raises `SchedulerError`."""

    def describe(self, spec: ArraySpec | ReduceSpec, after: Sequence[str] = ()) -> str:
        """The command with which a job would be submitted; `after` stands for the ids of the jobs before it."""

    def recover(self, plan: AttemptPlan) -> list[Job] | None:
        """The jobs of an attempt that were taken, whether or not their submitter lived to write them down.

        Of a name there may be several, when a submission whose answer was lost was repeated: the best comes first. None
        when it cannot be known now, or here.
        """

    def states(self, jobs: Sequence[Job]) -> dict[TaskKey, TaskStatus]:
        """One status for every task of `jobs`, by as few questions as possible; UNKNOWN where there is no answer."""

    def cancel(self, jobs: Sequence[Job], *, force: bool = False) -> None:
        """Ask for the end of all tasks of `jobs` that are alive; returns at once.

        They get SIGTERM and some time; with `force` SIGKILL and none. Raises `SchedulerError` when it cannot ask.
        """

    def throttle(self, jobs: Sequence[Job], tasks: int) -> None:
        """Let `tasks` tasks of the arrays in `jobs`, which are at work, run at a time from now on.

        Those that run go on. Raises `SchedulerError`.
        """


def job_name(plan: AttemptPlan, what: str) -> str:
    """Name a job uniquely: what a scheduler is asked for when a submission's answer was lost. Pure."""
    return ".".join(filter(None, ("medhaul", plan.run, f"{plan.attempt:03d}", plan.tag, what)))


def expected_jobs(plan: AttemptPlan) -> list[Job]:
    """The jobs of an attempt as they would be when all are submitted; their ids are empty. Pure."""
    arrays = [
        Job(kind="array", name=job_name(plan, f"array{number}"), id="", offset=array.offset, length=array.length)
        for number, array in enumerate(plan.arrays)
    ]
    return [*arrays, Job(kind="reduce", name=job_name(plan, "reduce"), id="")]


def split_tasks(tasks: int, parts: int) -> list[int]:
    """Divide `tasks` tasks at a time over `parts` arrays at work, as evenly as can be; each gets at least one. Pure."""
    return [max(1, tasks // parts + (number < tasks % parts)) for number in range(parts)]


def job_keys(jobs: Sequence[Job]) -> list[TaskKey]:
    """The keys of all tasks of `jobs`."""
    return [(job.id, index) for job in jobs for index in range(job.length if job.kind == "array" else 1)]


def any_alive(states: Mapping[TaskKey, TaskStatus]) -> bool:
    """Whether a task runs or will run."""
    return any(alive(status.state) for status in states.values())


def any_unknown(states: Mapping[TaskKey, TaskStatus]) -> bool:
    """Whether a task may be alive for all the scheduler knows."""
    return any(status.state is State.UNKNOWN for status in states.values())
