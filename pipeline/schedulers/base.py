"""What a scheduler is to medhaul: four calls and a handful of states. A hint, never proof: receipts are.

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
    """What a scheduler says of a task. `LOST`: its node or controller died under it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    LOST = "LOST"
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
    note: str = ""


TaskKey = tuple[str, int]
"""Job id and index in its array; the index of a reduce job is 0."""


class ArraySpec(msgspec.Struct, frozen=True, kw_only=True):
    """An array of `length` tasks; task `i` does shard `plan.shards[offset + i]`, at most `throttle` at a time."""

    run: Path
    attempt: int
    name: str
    script: Path
    logs: Path
    offset: int
    length: int
    throttle: int


class ReduceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The reduce job of an attempt."""

    run: Path
    attempt: int
    name: str
    script: Path
    logs: Path


class Scheduler(Protocol):
    """Takes jobs, knows their states as far as it can, ends them."""

    name: str

    def slots(self) -> int | None:
        """How many tasks it runs at once at most; None when it sets no bound of its own."""

    def submit_array(self, spec: ArraySpec) -> Job:
        """Take an array; its id is final. Raises `SchedulerError` when nothing was taken."""

    def submit_reduce(self, spec: ReduceSpec, after: Sequence[Job]) -> Job:
        """Take the reduce job, to run when all tasks of `after` have ended. Raises `SchedulerError`."""

    def recover(self, plan: AttemptPlan) -> list[Job]:
        """The jobs of an attempt that were taken, whether or not their submitter lived to write them down."""

    def states(self, jobs: Sequence[Job]) -> dict[TaskKey, TaskStatus]:
        """One status for every task of `jobs`, by as few questions as possible; UNKNOWN where there is no answer."""

    def cancel(self, jobs: Sequence[Job], *, force: bool = False) -> None:
        """Ask for the end of all tasks of `jobs` that are alive; returns at once.

        They get SIGTERM and some time; with `force` SIGKILL and none. Raises `SchedulerError` when it cannot ask.
        """


def job_keys(jobs: Sequence[Job]) -> list[TaskKey]:
    """The keys of all tasks of `jobs`."""
    return [(job.id, index) for job in jobs for index in range(job.length if job.kind == "array" else 1)]


def any_alive(states: Mapping[TaskKey, TaskStatus]) -> bool:
    """Whether a task runs or will run."""
    return any(alive(status.state) for status in states.values())


def any_unknown(states: Mapping[TaskKey, TaskStatus]) -> bool:
    """Whether a task may be alive for all the scheduler knows."""
    return any(status.state is State.UNKNOWN for status in states.values())
