"""Attempts: which shards go together in which arrays, and whether an earlier attempt may still be at work."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError, UsageError
from pipeline.process import ProcessId, process_alive
from pipeline.records import FORMAT, ArrayPlan, AttemptPlan, Job
from pipeline.rundir import RunDir, read_record
from pipeline.schedulers.base import (
    Bounds,
    Scheduler,
    TaskKey,
    TaskStatus,
    alive,
    any_alive,
    any_unknown,
    ended,
    expected_jobs,
    job_keys,
    split_tasks,
)
from pipeline.settings import Limits


class Liveness(enum.Enum):
    """Whether tasks of an attempt may still write."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt as it stands: what was planned, what the scheduler took, and what it says of it now."""

    plan: AttemptPlan
    jobs: list[Job]
    states: dict[TaskKey, TaskStatus]
    liveness: Liveness
    submitter_alive: bool | None = False
    """Whether the process that submits it, and has not ended that, lives; None when that cannot be known here."""
    claim: int = 0
    """Number of that process: 0 for the first that submitted, then one more for each that took over."""
    complete: bool = True
    """Whether `jobs` are all that the scheduler took; False when that cannot be known now."""
    twins: list[Job] = []
    """What the scheduler took besides under names of `jobs`, as it may when its answer was lost."""

    @property
    def reduce(self) -> Job | None:
        """The reduce job, once it was submitted."""
        return next((job for job in self.jobs if job.kind == "reduce"), None)

    def reduce_status(self) -> TaskStatus | None:
        return self.states.get((self.reduce.id, 0)) if self.reduce else None

    @property
    def stopping(self) -> bool:
        """Whether all tasks that are alive were told to stop, so that waiting a little is enough."""
        living = [status for status in self.states.values() if alive(status.state)]
        return bool(living) and all(status.stopping for status in living)

    def at_work(self) -> list[Job]:
        """The jobs, twins too, that have tasks which live, or may, and were not told to stop yet."""
        return [
            job
            for job in (*self.jobs, *self.twins)
            if any(
                not ended(self.states[key].state) and not (alive(self.states[key].state) and self.states[key].stopping)
                for key in job_keys([job])
            )
        ]

    def shard_tasks(self) -> dict[int, tuple[str, TaskStatus]]:
        """Each shard's task as (`A_a`, status), for the shards that the scheduler took."""
        return {
            self.plan.shards[job.offset + index]: (f"{job.id}_{index}", self.states[job.id, index])
            for job in self.jobs
            if job.kind == "array"
            for index in range(job.length)
        }


def plan_attempt(
    shards: Sequence[int],
    limits: Limits,
    *,
    run: str,
    attempt: int,
    manifest_sha256: str,
    scheduler: str,
    bounds: Bounds,
    created: str,
    tag: str,
    extra: Sequence[str] = (),
) -> AttemptPlan:
    """Plan an attempt: shards in ascending order as dense indices, and the run's connections divided over the tasks.

    Never more than `limits.tasks` tasks at a time, nor, with one connection for each, more than `limits.connections`
    connections. `tag` makes the names of its jobs unique; `extra` are options of sbatch for it alone. Pure.
    """
    ordered = sorted(set(shards))
    tasks = max(1, min(limits.tasks, len(ordered), bounds.slots or limits.tasks))
    return AttemptPlan(
        format=FORMAT,
        run=run,
        attempt=attempt,
        manifest_sha256=manifest_sha256,
        scheduler=scheduler,
        created=created,
        shards=ordered,
        tasks=tasks,
        connections=max(1, limits.connections // tasks),
        tag=tag,
        cluster=bounds.cluster,
        accounting=bounds.accounting,
        arrays=plan_arrays(len(ordered), tasks, bounds.array),
        extra=list(extra),
    )


def plan_arrays(count: int, tasks: int, longest: int | None) -> list[ArrayPlan]:
    """Divide `count` tasks into arrays of about the same length, none longer than `longest`. Pure.

    Each array begins at index 0, since a cluster bounds the index, not the count. They run side by side and share the
    `tasks` at a time. Where there are more arrays than tasks at a time, they queue behind each other in as many lanes.
    """
    if count == 0:
        return []
    arrays = -(-count // min(count, longest or count))
    lanes = min(arrays, tasks)
    shares = split_tasks(tasks, lanes)
    begins = [number * count // arrays for number in range(arrays + 1)]
    return [
        ArrayPlan(
            offset=begins[number],
            length=begins[number + 1] - begins[number],
            throttle=min(shares[number % lanes], begins[number + 1] - begins[number]),
            after=number - lanes if number >= lanes else -1,
        )
        for number in range(arrays)
    ]


def array_lanes(arrays: Sequence[ArrayPlan]) -> list[int]:
    """The lane of each array, by the number of its first: the arrays of a lane are at work one after another. Pure."""
    lanes: list[int] = []
    for number, array in enumerate(arrays):
        lanes.append(lanes[array.after] if array.after >= 0 else number)
    return lanes


def classify_liveness(
    jobs: Sequence[Job], states: dict[TaskKey, TaskStatus], *, submitter_alive: bool | None, complete: bool = True
) -> Liveness:
    """Say whether tasks of an attempt may still write; what cannot be known is UNKNOWN. Pure.

    An attempt without a reduce job was not submitted to its end: it still may be while its submitter lives. `complete`:
    `jobs` are all that the scheduler took.
    """
    if any_alive(states):
        return Liveness.ALIVE
    submitted = any(job.kind == "reduce" for job in jobs)
    if not submitted and submitter_alive is not False:
        return Liveness.ALIVE if submitter_alive else Liveness.UNKNOWN
    return Liveness.UNKNOWN if any_unknown(states) or not complete else Liveness.ENDED


def read_attempt(run: RunDir, number: int, scheduler: Scheduler) -> Attempt:
    """Read an attempt and ask its scheduler once. Raises `ConfigError`, `SchedulerError`."""
    return read_attempts(run, [number], scheduler)[0]


def read_attempts(run: RunDir, numbers: Sequence[int], scheduler: Scheduler, *, search: bool = False) -> list[Attempt]:
    """Read attempts of one scheduler, and ask it once for the states of all.

    Where an attempt was not submitted to its end, and with `search` always, its jobs are looked for by their names, so
    that twins are found. Raises `ConfigError`, `SchedulerError`.
    """
    read = [_read_jobs(run, number, scheduler, search=search) for number in numbers]
    asked = [job for _, jobs, twins, _ in read for job in (*jobs, *twins)]
    states = scheduler.states(asked) if asked else {}
    made = []
    for plan, jobs, twins, complete in read:
        claim, submitter = 0, False if any(job.kind == "reduce" for job in jobs) else None
        if submitter is None:
            claim, process = read_submitter(run, plan.attempt)
            submitter = None if process is None else process_alive(process)
        mine = {key: states[key] for key in job_keys([*jobs, *twins])}
        made.append(
            Attempt(
                plan=plan,
                jobs=jobs,
                states=mine,
                liveness=classify_liveness(jobs, mine, submitter_alive=submitter, complete=complete),
                submitter_alive=submitter,
                claim=claim,
                complete=complete,
                twins=twins,
            )
        )
    return made


def _read_jobs(
    run: RunDir, number: int, scheduler: Scheduler, *, search: bool
) -> tuple[AttemptPlan, list[Job], list[Job], bool]:
    """An attempt's plan, jobs and twins, and whether these are all."""
    plan, written = run.read_plan(number), run.read_jobs(number)
    whole = any(job.kind == "reduce" for job in written)
    if whole and not search:
        return plan, written, [], True
    found = scheduler.recover(plan)
    jobs = merge_jobs(plan, written, found or [])
    ids = {job.id for job in jobs}
    return plan, jobs, [job for job in found or [] if job.id not in ids], whole or found is not None


def merge_jobs(plan: AttemptPlan, written: Sequence[Job], found: Sequence[Job]) -> list[Job]:
    """The jobs of an attempt, in the order of its plan: as written down, else as the scheduler knows them. Pure.

    Of several that were found under one name it is the first.
    """
    known = {job.name: job for job in (*reversed(found), *written)}
    return [known[job.name] for job in expected_jobs(plan) if job.name in known]


def check_idle(run: RunDir, attempt: Attempt | None, *, assume_dead: bool = False, cluster: str = "") -> None:
    """Raise `UsageError` when tasks of the newest attempt live, or may: two lives of a shard waste work.

    `cluster`: where the next attempt would go; another one knows nothing of this attempt's jobs.
    """
    if attempt is None or assume_dead:
        return
    number = attempt.plan.attempt
    sure = "when you are sure that nothing of it is at work, repeat with --assume-dead"
    check_cluster(run, attempt.plan, cluster, sure)
    if attempt.liveness is Liveness.ENDED:
        return
    if attempt.liveness is Liveness.ALIVE:
        broken_off = attempt.jobs and attempt.reduce is None and not run.is_cancelled(number)
        hint = (
            "submit the rest of it with `medhaul submit RUN --continue`"
            if broken_off
            else "wait for it (`medhaul status`) or end it (`medhaul cancel`)"
        )
        raise UsageError(
            f"{run.path}: attempt {number:03d} is still at work"
            + (", and was not submitted to its end" if broken_off else ""),
            hint=f"{hint}; {sure}",
        )
    notes = sorted({status.note for status in attempt.states.values() if status.note})
    if not attempt.complete:
        notes.insert(0, "the scheduler does not say what it took")
    because = f" ({'; '.join(notes[:3])})" if notes else ""
    raise UsageError(
        f"{run.path}: attempt {number:03d} may still be at work{because}",
        hint=f"look there; {sure}",
    )


def check_cluster(run: RunDir, plan: AttemptPlan, cluster: str, hint: str = "") -> None:
    """Raise `UsageError` when an attempt went to another cluster than the one asked, where its ids may be others'."""
    if plan.cluster and cluster and plan.cluster != cluster:
        raise UsageError(
            f"{run.path}: attempt {plan.attempt:03d} was submitted to cluster {plan.cluster}, this is {cluster}",
            hint="; ".join(filter(None, ("go on there", hint))),
        )


def submitter_path(run: RunDir, number: int, claim: int = 0) -> Path:
    """Where the process that submits an attempt is written down; `claim` counts those that took over."""
    return run.attempt_folder(number) / (f"submitter.{claim}.json" if claim else "submitter.json")


def read_submitter(run: RunDir, number: int) -> tuple[int, ProcessId | None]:
    """The newest process that submits, or submitted, an attempt, and its number; None when it cannot be read."""
    names = (re.fullmatch(r"submitter\.(\d+)\.json", path.name) for path in run.attempt_folder(number).iterdir())
    claim = max((int(match[1]) for match in names if match), default=0)
    try:
        return claim, read_record(submitter_path(run, number, claim), ProcessId)
    except ConfigError:
        return claim, None
