"""Submitting an attempt: its arrays, then the reduce job; and going on where a submission was broken off."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import pipeline
from pipeline.atomic import fsync_folder, storage_errors, write_atomic
from pipeline.errors import UsageError
from pipeline.process import identify_process
from pipeline.records import AttemptPlan, Job
from pipeline.rundir import RunDir, encode_record
from pipeline.schedulers.attempt import Attempt, plan_attempt, submitter_path
from pipeline.schedulers.base import (
    ArraySpec,
    Bounds,
    ReduceSpec,
    Scheduler,
    SchedulerError,
    TaskKey,
    TaskStatus,
    ended,
    expected_jobs,
)
from pipeline.settings import Config

SCRIPTS = Path(pipeline.__file__).parent / "slurm_scripts"


def draft_attempt(
    shards: Sequence[int],
    config: Config,
    *,
    scheduler: Scheduler,
    bounds: Bounds,
    after: int,
    manifest_sha256: str,
    clock: Callable[[], float] = time.time,
) -> AttemptPlan:
    """Plan the attempt that follows attempt `after` (0: there was none); nothing is written."""
    return plan_attempt(
        shards,
        config.limits,
        run=config.run.name,
        attempt=after + 1,
        manifest_sha256=manifest_sha256,
        scheduler=scheduler.name,
        bounds=bounds,
        created=dt.datetime.fromtimestamp(clock(), dt.UTC).isoformat(timespec="seconds"),
        tag=secrets.token_hex(4),
    )


def array_specs(run: Path, logs: Path, plan: AttemptPlan) -> list[ArraySpec]:
    """What is to be submitted for the shards of an attempt, but for the ids of the arrays before. Pure."""
    return [
        ArraySpec(
            run=run,
            attempt=plan.attempt,
            name=job.name,
            script=SCRIPTS / "array_task.sh",
            logs=logs,
            offset=array.offset,
            length=array.length,
            throttle=array.throttle,
        )
        for job, array in zip(expected_jobs(plan), plan.arrays, strict=False)
    ]


def reduce_spec(run: Path, logs: Path, plan: AttemptPlan) -> ReduceSpec:
    """What is to be submitted to join the parts. Pure."""
    name = expected_jobs(plan)[-1].name
    return ReduceSpec(run=run, attempt=plan.attempt, name=name, script=SCRIPTS / "reduce.sh", logs=logs)


def submit_attempt(
    run: RunDir,
    scheduler: Scheduler,
    shards: Sequence[int],
    *,
    after: int | None = None,
    bounds: Bounds | None = None,
    clock: Callable[[], float] = time.time,
) -> AttemptPlan:
    """Submit shards as the run's next attempt, then the reduce job; with no shards the reduce job alone.

    Parameters
    ----------
    after
        The newest attempt that the caller found idle (0: there was none). The new number is the next one, so that of
        two submits which looked at the same time only one goes on. None: whatever is newest now.
    bounds
        What the scheduler can take, if the caller has asked already.

    Raises
    ------
    UsageError
        When another submit took the number.
    SchedulerError
        When the scheduler refuses; what it did take is in jobs.json, and `continue_attempt` goes on.
    """
    newest = after if after is not None else max(run.attempts(), default=0)
    record, config = run.read_run(), run.read_config()
    plan = draft_attempt(
        shards,
        config,
        scheduler=scheduler,
        bounds=bounds or scheduler.bounds(),
        after=newest,
        manifest_sha256=record.manifest_sha256,
        clock=clock,
    )
    _claim(run, plan)
    _submit_missing(run, scheduler, plan, [], {})
    return plan


def check_continuable(run: RunDir, attempt: Attempt, *, assume_dead: bool) -> None:
    """Raise `UsageError` when there is nothing left to submit of an attempt, or another process may be at it."""
    number = attempt.plan.attempt
    if attempt.reduce is not None:
        raise UsageError(
            f"{run.path}: attempt {number:03d} was submitted to its end", hint="`medhaul status` shows how it stands"
        )
    if attempt.submitter_alive:
        raise UsageError(f"{run.path}: attempt {number:03d} is just being submitted", hint="wait for that command")
    if attempt.submitter_alive is None and not assume_dead:
        raise UsageError(
            f"{run.path}: attempt {number:03d} was submitted from another host, and may still be",
            hint="go on there; when you are sure that it is not, repeat with --assume-dead",
        )


def continue_attempt(run: RunDir, scheduler: Scheduler, attempt: Attempt) -> AttemptPlan:
    """Submit what is still missing of an attempt that was not submitted to its end. Raises as `submit_attempt`."""
    write_atomic(submitter_path(run, attempt.plan.attempt), encode_record(identify_process(os.getpid())))
    _submit_missing(run, scheduler, attempt.plan, attempt.jobs, attempt.states)
    return attempt.plan


def _submit_missing(
    run: RunDir,
    scheduler: Scheduler,
    plan: AttemptPlan,
    jobs: Sequence[Job],
    states: Mapping[TaskKey, TaskStatus],
) -> None:
    """Submit the jobs of a plan that are not among `jobs`, and write down each as soon as it was taken.

    Slurm may refuse, or forget, a dependency on a job that has ended, so only those that have not are waited for.
    """
    known = {job.name: job for job in jobs}
    logs = run.logs(plan.attempt)
    specs = array_specs(run.path, logs, plan)

    def taken() -> list[Job]:
        return [known[job.name] for job in expected_jobs(plan) if job.name in known]

    def at_work(job: Job) -> bool:
        return job not in jobs or any(not ended(status.state) for key, status in states.items() if key[0] == job.id)

    try:
        for spec, array in zip(specs, plan.arrays, strict=True):
            if spec.name in known:
                continue
            before = known[specs[array.after].name] if array.after >= 0 else None
            after = before if before is not None and at_work(before) else None
            known[spec.name] = scheduler.submit_array(msgspec.structs.replace(spec, after=after))
            run.write_jobs(plan.attempt, taken())
        reduce = reduce_spec(run.path, logs, plan)
        if reduce.name not in known:
            known[reduce.name] = scheduler.submit_reduce(reduce, [job for job in taken() if at_work(job)])
        run.write_jobs(plan.attempt, taken())
    except SchedulerError as error:
        raise SchedulerError(f"{render_taken(plan, taken())}: {error}", hint=error.hint) from error


def render_taken(plan: AttemptPlan, jobs: Sequence[Job]) -> str:
    """Say how much of an attempt was submitted. Pure."""
    arrays = [job for job in jobs if job.kind == "array"]
    if not arrays:
        return f"attempt {plan.attempt:03d}: nothing was submitted"
    count = sum(job.length for job in arrays)
    text = f"attempt {plan.attempt:03d}: submitted {count} of {len(plan.shards)} tasks"
    if len(plan.arrays) > 1:
        text += f" ({len(arrays)} of {len(plan.arrays)} arrays: {', '.join(job.id for job in arrays)})"
    return text + ", not the reduce job"


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
