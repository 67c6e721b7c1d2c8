"""Attempts: which shards are submitted together, and whether an earlier submission may still be at work."""

from __future__ import annotations

import datetime as dt
import enum
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import pipeline
from pipeline.atomic import fsync_folder, storage_errors, write_atomic
from pipeline.errors import ConfigError, UsageError
from pipeline.process import ProcessId, identify_process, process_alive
from pipeline.records import FORMAT, AttemptPlan, Job
from pipeline.rundir import RunDir, encode_record, read_record
from pipeline.schedulers.base import (
    ArraySpec,
    ReduceSpec,
    Scheduler,
    TaskKey,
    TaskStatus,
    alive,
    any_alive,
    any_unknown,
)
from pipeline.settings import Limits

SCRIPTS = Path(pipeline.__file__).parent / "slurm_scripts"


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
    slots: int | None,
    created: str,
) -> AttemptPlan:
    """Plan an attempt: shards in ascending order as dense indices, and the run's connections divided over the tasks.

    `slots` is the scheduler's own bound. Never more than `limits.tasks` tasks at a time, nor, with one connection for
    each, more than `limits.connections` connections. Pure.
    """
    ordered = sorted(set(shards))
    tasks = max(1, min(limits.tasks, len(ordered), slots or limits.tasks))
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
    )


def classify_liveness(
    plan: AttemptPlan,
    jobs: Sequence[Job],
    states: dict[TaskKey, TaskStatus],
    *,
    submitter_alive: bool | None,
) -> Liveness:
    """Say whether tasks of an attempt may still write; what cannot be known is UNKNOWN. Pure.

    An attempt without a reduce job was not submitted to its end: it still may be while its submitter lives.
    """
    if any_alive(states):
        return Liveness.ALIVE
    submitted = any(job.kind == "reduce" for job in jobs)
    if not submitted and submitter_alive is not False:
        return Liveness.ALIVE if submitter_alive else Liveness.UNKNOWN
    if not submitted and plan.scheduler == "local":
        return Liveness.ENDED  # the local scheduler starts nothing before it has the reduce job
    return Liveness.UNKNOWN if any_unknown(states) or not submitted else Liveness.ENDED


def read_attempt(run: RunDir, number: int, scheduler: Scheduler) -> Attempt:
    """Read an attempt and ask its scheduler once. Raises `ConfigError`, `SchedulerError`."""
    plan, jobs = run.read_plan(number), run.read_jobs(number)
    if not any(job.kind == "reduce" for job in jobs):
        jobs = scheduler.recover(plan) or jobs
    states = scheduler.states(jobs) if jobs else {}
    submitter: bool | None = False
    if not any(job.kind == "reduce" for job in jobs):
        try:
            submitter = process_alive(read_record(_submitter_path(run, number), ProcessId))
        except ConfigError:
            submitter = None
    return Attempt(
        plan=plan,
        jobs=jobs,
        states=states,
        liveness=classify_liveness(plan, jobs, states, submitter_alive=submitter),
    )


def check_idle(run: RunDir, attempt: Attempt | None, *, assume_dead: bool = False) -> None:
    """Raise `UsageError` when tasks of the newest attempt live, or may: two lives of a shard waste work."""
    if attempt is None or attempt.liveness is Liveness.ENDED:
        return
    number = attempt.plan.attempt
    if attempt.liveness is Liveness.ALIVE:
        raise UsageError(
            f"{run.path}: attempt {number:03d} is still at work",
            hint="wait for it (`medhaul status`) or end it (`medhaul cancel`)",
        )
    if not assume_dead:
        notes = sorted({status.note for status in attempt.states.values() if status.note})
        because = f" ({'; '.join(notes)})" if notes else ""
        raise UsageError(
            f"{run.path}: attempt {number:03d} may still be at work{because}",
            hint="look there; when you are sure that it is not, repeat with --assume-dead",
        )


def submit_attempt(
    run: RunDir,
    scheduler: Scheduler,
    shards: Sequence[int],
    *,
    after: int | None = None,
    clock: Callable[[], float] = time.time,
) -> AttemptPlan:
    """Submit shards as the run's next attempt, then the reduce job; with no shards the reduce job alone.

    Parameters
    ----------
    after
        The newest attempt that the caller found idle (0: there was none). The new number is the next one, so that of
        two submits which looked at the same time only one goes on. None: whatever is newest now.

    Raises
    ------
    UsageError
        When another submit took the number.
    SchedulerError
        When the scheduler refuses; what it did take is in jobs.json.
    """
    record, config = run.read_run(), run.read_config()
    newest = after if after is not None else max(run.attempts(), default=0)
    plan = plan_attempt(
        shards,
        config.limits,
        run=record.name,
        attempt=newest + 1,
        manifest_sha256=record.manifest_sha256,
        scheduler=scheduler.name,
        slots=scheduler.slots(),
        created=dt.datetime.fromtimestamp(clock(), dt.UTC).isoformat(timespec="seconds"),
    )
    _claim(run, plan)
    jobs: list[Job] = []
    logs = run.logs(plan.attempt)
    if plan.shards:
        array = ArraySpec(
            run=run.path,
            attempt=plan.attempt,
            name=job_name(plan, "array"),
            script=SCRIPTS / "array_task.sh",
            logs=logs,
            offset=0,
            length=len(plan.shards),
            throttle=plan.tasks,
        )
        jobs.append(scheduler.submit_array(array))
        run.write_jobs(plan.attempt, jobs)
    reduce = ReduceSpec(
        run=run.path,
        attempt=plan.attempt,
        name=job_name(plan, "reduce"),
        script=SCRIPTS / "reduce.sh",
        logs=logs,
    )
    run.write_jobs(plan.attempt, [*jobs, scheduler.submit_reduce(reduce, jobs)])
    return plan


def job_name(plan: AttemptPlan, kind: str) -> str:
    """Name a job uniquely: what a scheduler is asked for when a submission's answer was lost."""
    return f"medhaul.{plan.run}.{plan.attempt:03d}.{kind}"


def _claim(run: RunDir, plan: AttemptPlan) -> None:
    """Create `attempts/NNN` with its plan and its submitter in it, wholly or not at all, and only once.

    A folder is never renamed over one that has something in it (rename(2): ENOTEMPTY or EEXIST), and an attempt's
    folder is never empty.
    """
    folder = run.attempt_folder(plan.attempt)
    submitter = identify_process(os.getpid())
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            made.chmod(folder.parent.stat().st_mode)
            write_atomic(made / "plan.json", encode_record(plan))
            write_atomic(made / "submitter.json", encode_record(submitter))
            os.rename(made, folder)  # noqa: PTH104 - stands beside the descriptors and fsyncs of pipeline.atomic
        except FileExistsError:
            raise _taken(run, plan) from None
        except OSError as error:
            if folder.exists():
                raise _taken(run, plan) from error
            raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        fsync_folder(folder.parent)


def _taken(run: RunDir, plan: AttemptPlan) -> UsageError:
    return UsageError(
        f"{run.path}: attempt {plan.attempt:03d} was just taken by another submit",
        hint="`medhaul status` shows it",
    )


def _submitter_path(run: RunDir, number: int) -> Path:
    return run.attempt_folder(number) / "submitter.json"
