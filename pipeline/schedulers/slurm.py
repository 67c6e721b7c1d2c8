"""Slurm: arrays and the reduce job by sbatch, states by squeue and sacct, the end by scancel.

Facts as of the manual pages of Slurm's commands. One question about states is one squeue, and one sacct where squeue
does not know all.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import join

import msgspec

import pipeline
from pipeline.atomic import storage_errors
from pipeline.records import AttemptPlan, Job
from pipeline.rundir import RunDir
from pipeline.schedulers.base import (
    ENV,
    HOME,
    ArraySpec,
    Bounds,
    ReduceSpec,
    SchedulerError,
    State,
    TaskKey,
    TaskStatus,
    alive,
    ended,
    expected_jobs,
    job_keys,
    split_tasks,
)
from pipeline.schedulers.environment import medhaul_first
from pipeline.schedulers.slurm_calls import Answer, NoAnswerError, SlurmCalls, read_cluster
from pipeline.schedulers.slurm_jobs import (
    BUSY,
    LOST_ANSWER,
    SECRETS,
    job_variables,
    parse_job_id,
    passed_environment,
    refusal_hint,
    sbatch_arguments,
)
from pipeline.schedulers.slurm_states import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    Row,
    classify_row,
    last_deaths,
    parse_sacct,
    parse_squeue,
)
from pipeline.settings import Config

logger = logging.getLogger("medhaul.slurm")
TRIES = 4  # of an sbatch that was not answered, or not now
WAIT_SECONDS = 4.0
EARLIER_JOBS = 200  # of earlier attempts, asked about in the same question
FRESH_SECONDS = 2.0  # how long an answer of squeue serves further questions
GONE_SECONDS = 600.0  # a job that neither queue nor accounting knows, and that is older than this, has ended
NO_SUCH_JOB = re.compile("invalid job id specified", re.IGNORECASE)
HAS_ENDED = re.compile("invalid job id specified|already complet", re.IGNORECASE)  # what scancel says of such a job
# scontrol ends with 1 when some tasks of an array have ended ("7_0: Job has already finished; 7_1-3: No error").
TAKEN_FOR_SOME = re.compile(r"^\d+_\S+: No error$", re.MULTILINE)
NO_ACCOUNTING = re.compile("accounting storage is disabled", re.IGNORECASE)


class SlurmScheduler:
    """Submits the attempts of one run to the cluster whose commands are on PATH.

    `extra` are options of sbatch for this submission, beside those of the config; `config` is for a run that is not
    planned yet.
    """

    name = "slurm"

    def __init__(
        self,
        run: RunDir,
        *,
        environ: Mapping[str, str] = os.environ,
        extra: Sequence[str] = (),
        config: Config | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run
        self._config = config or run.read_config()
        self.poll = float(self._config.slurm.poll)
        self.calls = SlurmCalls(environ)
        self._environ = environ
        self._extra = extra
        self._clock = clock
        self._sleep = sleep
        self._accounting: bool | None = None
        self._booked = False  # whether accounting answered
        self._cluster = ""
        self._doubts: dict[str, str] = {}
        self._recovered: tuple[float, set[str], list[Row]] | None = None

    # -- submitting ----------------------------------------------------------------------------------------------

    def bounds(self) -> Bounds:
        cluster = read_cluster(self.calls)
        self._accounting, self._cluster = cluster.accounting, cluster.cluster
        if held := [name for name in SECRETS if self._environ.get(name)]:
            logger.warning("%s: not passed on to jobs; name a file of mode 0600 in the config instead", ", ".join(held))
        if cluster.max_array < 1:
            raise SchedulerError(
                "this cluster takes no job arrays (MaxArraySize 0)",
                hint="ask its administrators, or use --scheduler local",
            )
        asked = self._config.slurm.max_array
        return Bounds(
            array=min(asked, cluster.max_array) if asked else cluster.max_array,
            cluster=cluster.cluster,
            accounting=cluster.accounting,
            kill_wait=float(cluster.kill_wait),
        )

    def submit_array(self, spec: ArraySpec) -> Job:
        job = self._submit(spec, [spec.after.id] if spec.after else [])
        return Job(
            kind="array", name=spec.name, id=job, offset=spec.offset, length=spec.length, submitted=self._clock()
        )

    def submit_reduce(self, spec: ReduceSpec, after: Sequence[Job]) -> Job:
        job = self._submit(spec, [job.id for job in after])
        return Job(kind="reduce", name=spec.name, id=job, submitted=self._clock())

    def describe(self, spec: ArraySpec | ReduceSpec, after: Sequence[str] = ()) -> str:
        return join(sbatch_arguments(spec, self._config, after, self._extra))

    def recover(self, plan: AttemptPlan) -> list[Job] | None:
        expected = {job.name: job for job in expected_jobs(plan)}
        earlier = [job.name for n in self._run.attempts() if n != plan.attempt for job in self._run.read_jobs(n)]
        asked = [*expected, *earlier[-EARLIER_JOBS:]]  # of them status may ask next, and one question is enough
        everything = self._find_named(asked)
        if everything is None:
            return None
        rows = [row for row in everything if row.name in expected]
        if not everything and not self._run.read_jobs(plan.attempt) and self._doubt_plan(plan):
            return None  # nothing is known to have been here at all
        now = self._clock()
        self._recovered = (now, set(asked), everything)
        living = {row.job for row in rows if not ended(classify_row(row).state)}
        found = sorted({(row.job not in living, int(row.job), row.name) for row in rows})
        return [msgspec.structs.replace(expected[name], id=str(number), submitted=now) for _, number, name in found]

    def _submit(self, spec: ArraySpec | ReduceSpec, after: Sequence[str]) -> str:
        """Submit a job, once, however often sbatch must be called for it; return its id."""
        argv = sbatch_arguments(spec, self._config, after, self._extra)
        with storage_errors(spec.logs):
            spec.logs.mkdir(parents=True, exist_ok=True)  # older Slurms do not, and a job without a log just dies
        environ = self._job_environment(spec)
        self._recovered = None
        doubtful, said = False, ""
        for number in range(TRIES):
            if number:
                self._sleep(random.uniform(0.5, 1.0) * WAIT_SECONDS * 2**number)  # noqa: S311 - jitter
                rows = self._find_named([spec.name]) if doubtful else []
                if rows:
                    return min((row.job for row in rows), key=int)
                if rows is None:  # squeue does not answer either: what may have been taken is not repeated
                    continue
            try:
                answer = self.calls(*argv, environ=environ)
            except NoAnswerError as error:
                doubtful, said = True, str(error)
                continue
            if answer.code == 0:
                return self._settle_id(spec.name, answer, doubtful=doubtful)
            said = answer.said
            if LOST_ANSWER.search(said):
                doubtful = True
            elif not BUSY.search(said):
                raise SchedulerError(f"sbatch refused {spec.name}: {said}", hint=refusal_hint(said, self._config))
        if doubtful:
            if known := self._find_submitted(spec.name):
                return known
            raise SchedulerError(
                f"sbatch did not say whether it took {spec.name}: {said}",
                hint="wait until the controller answers again, then use --continue, which looks before it submits",
            )
        raise SchedulerError(f"sbatch could not submit {spec.name}: {said}", hint="try again later, with --continue")

    def _settle_id(self, name: str, answer: Answer, *, doubtful: bool) -> str:
        try:
            job, cluster = parse_job_id(answer.out)
        except ValueError as error:
            if known := self._find_submitted(name):
                return known
            raise SchedulerError(f"{name}: {error}: {answer.said}", hint="is sbatch wrapped by this site?") from error
        if cluster:
            self.calls("scancel", f"--clusters={cluster}", f"--name={name}", job)  # here the id may be another's
            raise SchedulerError(
                f"{name}: went to cluster {cluster} of a federation, and was cancelled there",
                hint="federations are not supported; unset SLURM_CLUSTERS and SBATCH_CLUSTERS",
            )
        if doubtful:  # an earlier call may have been taken after all, and late
            twins = sorted({row.job for row in self._find_named([name]) or []} - {job}, key=int)
            if twins:
                self.calls("scancel", *twins)
        return job

    def _find_submitted(self, name: str) -> str:
        rows = self._find_named([name])
        if rows is None:
            raise SchedulerError(
                f"neither sbatch nor squeue says whether {name} was taken",
                hint="wait until the controller answers again, then use --continue, which looks before it submits",
            )
        return min((row.job for row in rows), key=int, default="")

    def _find_named(self, names: Sequence[str]) -> list[Row] | None:
        """The tasks of jobs with these names; None when squeue does not answer."""
        try:
            answer = self._squeue(f"--name={','.join(names)}")
        except SchedulerError:
            return None
        if answer.code != 0:
            return None
        return [row for row in parse_squeue(answer.out) if row.name in names and not row.refused]

    def _job_environment(self, spec: ArraySpec | ReduceSpec) -> dict[str, str]:
        environ = passed_environment(self._environ, self._config.slurm.environment)
        environ.setdefault(HOME, str(Path(pipeline.__file__).resolve().parent.parent))
        for name in (HOME, ENV):  # jobs begin in another folder than the one this command was called in
            if environ.get(name):
                environ[name] = os.path.abspath(environ[name])  # noqa: PTH100 - text is what is asked for
        # What MEDHAUL_ENV makes available wins, also when it puts itself last on PATH.
        return (environ if environ.get(ENV) else medhaul_first(environ)) | job_variables(spec)

    # -- states --------------------------------------------------------------------------------------------------

    def states(self, jobs: Sequence[Job]) -> dict[TaskKey, TaskStatus]:
        wanted = set(job_keys(jobs))
        trouble, rows = self._queue_rows(jobs)
        live = {row.key: classify_row(row) for row in rows}
        again = {key for key in wanted if key in live and live[key].restarts}
        booked: list[Row] = []
        if self._accounting is None and len(live) < len(wanted):
            self._accounting = self._known_accounting(jobs)
        if self._accounting is not False and (again or wanted - live.keys()):
            booked = self._booked_rows(jobs)
        past, deaths = {row.key: classify_row(row) for row in booked}, last_deaths(booked)
        found = {}
        for key in wanted:
            status = live.get(key) or past.get(key)
            if status is None:
                listed = any(row.job == key[0] for row in rows)
                status = self._missing(key, jobs, trouble, others_listed=listed)
            elif key not in live and not trouble and alive(status.state):
                # The queue knows all that lives; accounting may never have heard of an end.
                status = TaskStatus(State.GONE, note=f"the queue has forgotten it, accounting says {status.state}")
            if key in again and key in deaths:
                status = _with_note(status, deaths[key])
            found[key] = status
        return found

    def cancel(self, jobs: Sequence[Job], *, force: bool = False) -> None:  # noqa: ARG002 - Slurm kills by itself
        if not jobs:
            return
        answer = self.calls("scancel", *(job.id for job in jobs))
        lines = [line.strip() for line in answer.err.splitlines() if line.strip()]
        bad = [line for line in lines if not HAS_ENDED.search(line)]
        if answer.code != 0 and (bad or not lines):
            said = "; ".join(bad[:4]) or f"exit code {answer.code}"
            raise SchedulerError(f"scancel: {said}", hint="try again when the controller answers")

    def throttle(self, jobs: Sequence[Job], tasks: int) -> None:
        arrays = [job for job in jobs if job.kind == "array"]
        for job, share in zip(arrays, split_tasks(tasks, len(arrays)), strict=True):
            answer = self.calls("scontrol", "update", f"JobId={job.id}", f"ArrayTaskThrottle={share}")
            if answer.code != 0 and not TAKEN_FOR_SOME.search(answer.err):
                raise SchedulerError(
                    f"scontrol update JobId={job.id}: {answer.said}", hint="has it ended? see `status`"
                )

    def _known_accounting(self, jobs: Sequence[Job]) -> bool | None:
        """Whether the cluster had accounting when these jobs were submitted; None when no plan tells."""
        for number in reversed(self._run.attempts()):
            if any(job in jobs for job in self._run.read_jobs(number)):
                return self._run.read_plan(number).accounting
        return None

    def _queue_rows(self, jobs: Sequence[Job]) -> tuple[str, list[Row]]:
        """What squeue says of jobs, and why it says nothing; what `recover` has just read is not asked for again."""
        known = self._recovered
        if known is not None and self._clock() - known[0] < FRESH_SECONDS and {job.name for job in jobs} <= known[1]:
            wanted = {job.name for job in jobs}
            return "", [row for row in known[2] if row.name in wanted]
        ids = {job.id for job in jobs}
        try:
            answer = self._squeue(f"--jobs={','.join(sorted(ids, key=int))}")
        except SchedulerError as error:  # no answer, or no such command here: receipts can be read nevertheless
            return str(error), []
        if answer.code != 0 and not NO_SUCH_JOB.search(answer.err):
            return f"squeue: {answer.said}", []
        names = {job.id: job.name for job in jobs}
        return "", [row for row in parse_squeue(answer.out) if row.name == names.get(row.job)]

    def _booked_rows(self, jobs: Sequence[Job]) -> list[Row]:
        """What accounting says of jobs, each life of each task; nothing where there is no accounting."""
        first = min((job.submitted for job in jobs), default=0.0)
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(first - 86400)) if first else "1970-01-02"
        ids = ",".join(job.id for job in jobs)
        try:
            answer = self.calls(
                "sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", f"--starttime={since}",
                f"--format={','.join(SACCT_FIELDS)}", f"--jobs={ids}",
            )  # fmt: skip
        except SchedulerError:  # no such command, or no answer: then nobody knows
            return []
        if answer.code != 0:
            self._accounting = False if NO_ACCOUNTING.search(answer.err) else self._accounting
            return []
        self._booked = True
        names = {job.id: job.name for job in jobs}
        return [row for row in parse_sacct(answer.out) if row.name == names.get(row.job)]

    def _missing(self, key: TaskKey, jobs: Sequence[Job], trouble: str, *, others_listed: bool) -> TaskStatus:
        """The status of a task that neither the queue nor accounting knows."""
        if trouble:
            return TaskStatus(State.UNKNOWN, note=trouble)
        if others_listed:  # Slurm knows its array, and all of it that is alive
            return TaskStatus(State.GONE, note="no longer in the queue, as when cancelled while it waited")
        job = next(job for job in jobs if job.id == key[0])
        if not job.submitted or self._clock() - job.submitted <= GONE_SECONDS:
            return TaskStatus(State.UNKNOWN, note="Slurm does not list it")
        doubt = self._doubt_absence(job)
        return TaskStatus(State.UNKNOWN, note=doubt) if doubt else TaskStatus(State.GONE, note="Slurm has forgotten it")

    def _doubt_absence(self, job: Job) -> str:
        """Say why a job that this cluster does not list may live all the same; empty when it cannot.

        A site may hide others' jobs (slurm.conf(5): PrivateData), and shared storage may be seen from other clusters.
        """
        if job.id in self._doubts:
            return self._doubts[job.id]
        attempt = next((n for n in reversed(self._run.attempts()) if job in self._run.read_jobs(n)), 0)
        doubt = ""
        if not attempt:
            doubt = "Slurm does not list it, and no attempt names it"
        elif self._booked:
            doubt = "neither queue nor accounting of this cluster knows it: was it submitted on another?"
        else:
            doubt = self._doubt_plan(self._run.read_plan(attempt))
            if not self._cluster:  # the controller did not answer: that may pass
                return doubt
        self._doubts[job.id] = doubt
        return doubt

    def _doubt_plan(self, plan: AttemptPlan) -> str:
        """Say why jobs of an attempt may live although this cluster does not list them; empty when they cannot."""
        if os.geteuid() not in {0, (self._run.attempt_folder(plan.attempt) / "plan.json").stat().st_uid}:
            return "submitted by another user, whose jobs Slurm may hide"
        if not plan.cluster:
            return ""
        try:
            self._cluster = self._cluster or read_cluster(self.calls).cluster
        except SchedulerError as error:
            return str(error)
        here = self._cluster
        return f"submitted to cluster {plan.cluster}, this is {here}" if here and here != plan.cluster else ""

    def _squeue(self, which: str) -> Answer:
        return self.calls(
            "squeue", "--noheader", "--all", "--array", "--states=all", f"--Format={SQUEUE_FORMAT}", which
        )


def _with_note(status: TaskStatus, note: str) -> TaskStatus:
    return msgspec.structs.replace(status, note=f"{status.note}, {note}" if status.note else note)


def requeue_self(environ: Mapping[str, str], limit: int) -> str:
    """Put the task that this process is back into the queue, at most `limit` times; return what came of it.

    scontrol(1): requeue works from inside a job; Slurm then ends the job, so this is the last that a task does.
    """
    count = int(environ.get("SLURM_RESTART_COUNT") or 0)
    array, index = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    if count >= limit:
        return f"not queued again: {count} of {limit} times (slurm.requeue) are used up"
    try:
        answer = SlurmCalls(environ, seconds=60)("scontrol", "requeue", f"{array}_{index}")
    except SchedulerError as error:
        return f"not queued again: {error}"
    if answer.code != 0:
        return f"not queued again: scontrol requeue: {answer.said}"
    return f"queued again, for the {count + 1}. of {limit} times"
