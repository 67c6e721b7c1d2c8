"""Submitting an attempt: its arrays, then the reduce job; and going on where a submission was broken off."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec

import pipeline
from pipeline.atomic import fsync_folder, storage_errors, write_atomic
from pipeline.errors import InterruptedRunError, UsageError
from pipeline.process import identify_process
from pipeline.records import ArrayPlan, AttemptPlan, Job, Throttle
from pipeline.rundir import RunDir, encode_record
from pipeline.schedulers.attempt import (
    Attempt,
    array_lanes,
    merge_jobs,
    plan_attempt,
    read_attempt,
    submitter_path,
)
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
    job_keys,
    split_tasks,
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
    extra: Sequence[str] = (),
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
        extra=extra,
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
    extra: Sequence[str] = (),
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
    extra
        The options of sbatch that the scheduler was opened with for this attempt alone, to be written down.

    Raises
    ------
    UsageError
        When another submit took the number.
    SchedulerError
        When the scheduler refuses; what it did take is in jobs.json, and `continue_attempt` goes on.
    InterruptedRunError
        At Ctrl-C, or when the attempt is cancelled meanwhile.
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
        extra=extra,
        clock=clock,
    )
    _claim(run, plan)
    _submit_missing(run, scheduler, plan, [], set(), look=False)
    return plan


def check_continuable(run: RunDir, attempt: Attempt, *, assume_dead: bool) -> None:
    """Raise when there is nothing left to submit of an attempt, or another process may be at it.

    Raises
    ------
    UsageError
        For these.
    SchedulerError
        When the scheduler does not say what it took: it might be submitted again.
    """
    number = attempt.plan.attempt
    if attempt.reduce is not None:
        raise UsageError(
            f"{run.path}: attempt {number:03d} was submitted to its end", hint="`medhaul status` shows how it stands"
        )
    if run.is_cancelled(number):
        raise UsageError(f"{run.path}: attempt {number:03d} was cancelled", hint="`medhaul resume` begins another one")
    if attempt.submitter_alive:
        raise UsageError(f"{run.path}: attempt {number:03d} is just being submitted", hint="wait for that command")
    if attempt.submitter_alive is None and not assume_dead:
        raise UsageError(
            f"{run.path}: attempt {number:03d} was submitted from another host, and may still be",
            hint="go on there; when you are sure that it is not, repeat with --assume-dead",
        )
    check_complete(run, attempt)


def check_complete(run: RunDir, attempt: Attempt) -> None:
    """Raise `SchedulerError` when it cannot be known which jobs of an attempt the scheduler took."""
    if not attempt.complete:
        raise SchedulerError(
            f"{run.path}: the scheduler does not say what it took of attempt {attempt.plan.attempt:03d}",
            hint="repeat it when the scheduler answers, as the user who submitted: else something might go in twice",
        )


def continue_attempt(run: RunDir, scheduler: Scheduler, attempt: Attempt) -> AttemptPlan:
    """Submit what is still missing of an attempt that was not submitted to its end, as `attempt` found it.

    Of several that do so at the same time only one goes on. What was taken is looked up before each submission, since
    one that was given up may have got through late. Raises as `submit_attempt`.
    """
    number = attempt.plan.attempt
    _take_over(run, number, attempt.claim + 1)
    attempt = read_attempt(run, number, scheduler)
    check_complete(run, attempt)
    _submit_missing(run, scheduler, attempt.plan, attempt.jobs, ended_jobs(attempt.jobs, attempt.states), look=True)
    return attempt.plan


def ended_jobs(jobs: Sequence[Job], states: Mapping[TaskKey, TaskStatus]) -> set[str]:
    """Names of the jobs of which all tasks have ended: Slurm may refuse, or forget, a dependency on them. Pure."""
    return {job.name for job in jobs if all(ended(states[key].state) for key in job_keys([job]))}


def _submit_missing(
    run: RunDir, scheduler: Scheduler, plan: AttemptPlan, jobs: Sequence[Job], over: Collection[str], *, look: bool
) -> None:
    """Submit the jobs of a plan that are not among `jobs`, and write down each as soon as it was taken.

    The jobs named in `over` are not waited for. With `look` the scheduler is asked for a job before it is submitted.
    """
    known = {job.name: job for job in jobs}
    logs = run.logs(plan.attempt)
    specs = array_specs(run.path, logs, plan)

    def taken() -> list[Job]:
        return [known[job.name] for job in expected_jobs(plan) if job.name in known]

    def is_taken(name: str) -> bool:
        if name not in known:
            if run.is_cancelled(plan.attempt):
                raise InterruptedRunError("cancelled meanwhile", hint="`medhaul resume` begins another attempt")
            found = scheduler.recover(plan) if look else []
            if found is None:
                raise SchedulerError("the scheduler does not say what it took", hint="repeat it when it answers")
            known.update({job.name: job for job in merge_jobs(plan, taken(), found)})
        return name in known

    try:
        for spec, array in zip(specs, plan.arrays, strict=True):
            if not is_taken(spec.name):
                before = known[specs[array.after].name] if array.after >= 0 else None
                after = before if before is not None and before.name not in over else None
                most = changed_throttle(plan, run.read_throttle(plan.attempt), array)
                known[spec.name] = scheduler.submit_array(msgspec.structs.replace(spec, after=after, throttle=most))
            run.write_jobs(plan.attempt, taken())
        reduce = reduce_spec(run.path, logs, plan)
        if not is_taken(reduce.name):
            known[reduce.name] = scheduler.submit_reduce(reduce, [job for job in taken() if job.name not in over])
        run.write_jobs(plan.attempt, taken())
    except (SchedulerError, InterruptedRunError) as error:
        raise type(error)(f"{render_taken(plan, taken())}: {error}", hint=error.hint) from error
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"{render_taken(plan, taken())}: interrupted",
            hint="go on with `medhaul submit RUN --continue`, or end it with `medhaul cancel RUN`",
        ) from None


def changed_throttle(plan: AttemptPlan, changed: Throttle | None, array: ArrayPlan) -> int:
    """The tasks at a time of an array that is submitted now: as planned, or its share of a smaller number. Pure."""
    if changed is None:
        return array.throttle
    lane_of = dict(zip(plan.arrays, array_lanes(plan.arrays), strict=True))
    lanes = sorted(set(lane_of.values()))
    return min(array.throttle, split_tasks(changed.tasks, len(lanes))[lanes.index(lane_of[array])])


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


def _take_over(run: RunDir, number: int, claim: int) -> None:
    """Become the process that submits an attempt. Raises `UsageError` when another one did.

    The numbers only grow, so that nobody removes what another has just made; opening exclusively holds on NFS too
    (open(2), O_EXCL).
    """
    path = submitter_path(run, number, claim)
    with storage_errors(path):
        try:
            file = path.open("xb")
        except FileExistsError:
            raise UsageError(
                f"{run.path}: another command has just begun to submit the rest of attempt {number:03d}",
                hint="`medhaul status` shows it",
            ) from None
        with file:
            file.write(encode_record(identify_process(os.getpid())))
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(path.parent)


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
