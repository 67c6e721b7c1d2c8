"""The scheduler for machines without Slurm: the same scripts, variables, limits and signals, run by a process of ours.

`submit_reduce` starts a detached controller, `python -m pipeline.schedulers.local RUN ATTEMPT`, which outlives the
command that submitted and ends with its last task. Its log is `controller.log` among the attempt's logs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import pipeline
from pipeline.atomic import storage_errors
from pipeline.errors import ConfigError
from pipeline.process import (
    ProcessId,
    find_leaders,
    identify_process,
    kill_group,
    process_alive,
    signal_process,
)
from pipeline.records import AttemptPlan, Job
from pipeline.rundir import RunDir
from pipeline.schedulers.base import (
    ATTEMPT,
    HOME,
    RUN,
    ArraySpec,
    Bounds,
    ReduceSpec,
    SchedulerError,
    State,
    TaskKey,
    TaskStatus,
    ended,
    job_keys,
)
from pipeline.schedulers.controller import REDUCE, WATCHED, Controller
from pipeline.schedulers.environment import clean_environment, medhaul_first
from pipeline.schedulers.local_state import Limits, LocalState, LocalTask, judge_task, read_state, write_state
from pipeline.settings import Config

JOB_EPOCH = 1_735_689_600  # 2025-01-01: job ids are milliseconds since then, so that they are unique and short


class LocalScheduler:
    """Runs the attempts of one run on this machine, `local.jobs` tasks at a time."""

    name = "local"
    poll = 0.5

    def __init__(
        self,
        run: RunDir,
        *,
        environ: Mapping[str, str] = os.environ,
        config: Config | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run = run
        self._config = config
        self._environ = environ
        self._clock = clock
        self._controllers: list[subprocess.Popen[bytes]] = []

    def bounds(self) -> Bounds:
        return Bounds(slots=(self._config or self._run.read_config()).local.jobs)

    def submit_array(self, spec: ArraySpec) -> Job:
        job = self._job_id()
        self._prepare(spec.run, spec.attempt, spec.script, spec.logs)
        state = LocalState(
            owner=_this_process(),
            job=job,
            name=spec.name,
            offset=spec.offset,
            throttle=spec.throttle,
            submit_dir=_working_folder(spec.run),
            logs=str(spec.logs),
            tasks=[LocalTask()] * spec.length,
        )
        write_state(self._run, spec.attempt, state)
        return Job(kind="array", name=spec.name, id=job, offset=spec.offset, length=spec.length)

    def submit_reduce(self, spec: ReduceSpec, after: Sequence[Job]) -> Job:
        if len(after) > 1:
            raise SchedulerError(f"{spec.name}: the local scheduler takes one array per attempt, not {len(after)}")
        self._prepare(spec.run, spec.attempt, spec.script, spec.logs)
        if after:
            state = read_state(self._run, spec.attempt)
            if state.job != after[0].id:
                raise SchedulerError(f"{spec.name}: array {after[0].id} is not of attempt {spec.attempt}")
            job = str(int(state.job) + len(state.tasks) + 1)
        else:
            job = self._job_id()
            state = LocalState(
                owner=_this_process(),
                job=job,
                name=spec.name,
                offset=0,
                throttle=1,
                submit_dir=_working_folder(spec.run),
                logs=str(spec.logs),
                tasks=[],
            )
        state = msgspec.structs.replace(state, reduce_job=job, reduce_name=spec.name)
        write_state(self._run, spec.attempt, state)
        self._launch(spec.attempt, spec.logs)
        return Job(kind="reduce", name=spec.name, id=job)

    def describe(self, spec: ArraySpec | ReduceSpec, after: Sequence[str] = ()) -> str:  # noqa: ARG002 - the order is the controller's
        if isinstance(spec, ReduceSpec):
            return f"bash {spec.script}   # when all tasks have ended"
        return f"bash {spec.script}   # {spec.length} times, {spec.throttle} at a time"

    def throttle(self, jobs: Sequence[Job], tasks: int) -> None:  # noqa: ARG002 - in `throttle.json`
        """Wake the controllers: they read what the attempt's `throttle.json` says."""
        for attempt in self._by_attempt(jobs):
            signal_process(read_state(self._run, attempt).owner, signal.SIGCHLD)

    def recover(self, plan: AttemptPlan) -> list[Job] | None:
        try:
            state = read_state(self._run, plan.attempt)
        except ConfigError:  # missing or damaged: nothing is known to have been taken
            return []
        found = []
        if state.tasks:
            length = len(state.tasks)
            found.append(Job(kind="array", name=state.name, id=state.job, offset=state.offset, length=length))
        if state.reduce_job:
            found.append(Job(kind="reduce", name=state.reduce_name, id=state.reduce_job))
        return found

    def states(self, jobs: Sequence[Job]) -> dict[TaskKey, TaskStatus]:
        found = {key: TaskStatus(State.UNKNOWN, note="no record of it on this machine") for key in job_keys(jobs)}
        for attempt, wanted in self._by_attempt(jobs).items():
            found |= self._attempt_states(attempt, wanted)
        return found

    def cancel(self, jobs: Sequence[Job], *, force: bool = False) -> None:
        for attempt in self._by_attempt(jobs):
            state = read_state(self._run, attempt)
            if process_alive(state.owner) is None:
                raise SchedulerError(
                    f"attempt {attempt:03d} is run by a controller on host {state.owner.host}",
                    hint=f"run the same command on {state.owner.host}",
                )
            if signal_process(state.owner, signal.SIGTERM) and not force:
                continue
            for process in self._orphans(attempt, state).values():
                if force:
                    kill_group(process)
                else:
                    signal_process(process, signal.SIGTERM)

    # -- details -------------------------------------------------------------------------------------------------

    def _attempt_states(self, attempt: int, jobs: Sequence[Job]) -> dict[TaskKey, TaskStatus]:
        for controller in self._controllers:
            controller.poll()
        state = read_state(self._run, attempt)
        owner_alive = process_alive(state.owner)
        if owner_alive is False:
            state = read_state(self._run, attempt)  # what it wrote between our first look and its end

        orphans = self._orphans(attempt, state) if owner_alive is False else {}

        def judge(task: LocalTask, index: int) -> TaskStatus:
            return judge_task(task, owner_alive=owner_alive, process_alive=index in orphans)

        found: dict[TaskKey, TaskStatus] = {}
        for job in jobs:
            if job.kind == "reduce":
                found[job.id, 0] = judge(state.reduce, REDUCE)
            else:
                found |= {(job.id, index): judge(task, index) for index, task in enumerate(state.tasks)}
        return found

    def _orphans(self, attempt: int, state: LocalState) -> dict[int, ProcessId]:
        """The batch processes that outlived their controller, by task index.

        Found among the living by their environment, since the controller may have been killed between the start of a
        task and the writing of its state file.
        """
        if all(ended(task.state) for task in (*state.tasks, state.reduce)):
            return {}
        found = {}
        for process, environ in find_leaders(RUN, str(self._run.path)):
            if environ.get(ATTEMPT) != str(attempt):
                continue
            if state.reduce_job and environ.get("SLURM_JOB_ID") == state.reduce_job:
                found[REDUCE] = process
            elif environ.get("SLURM_ARRAY_JOB_ID") == state.job:
                found[int(environ["SLURM_ARRAY_TASK_ID"])] = process
        return found

    def _by_attempt(self, jobs: Sequence[Job]) -> dict[int, list[Job]]:
        """Sort jobs under the attempts that hold them, newest first; what no state file knows is left out."""
        left = list(jobs)
        found: dict[int, list[Job]] = {}
        for attempt in reversed(self._run.attempts()):
            if not left:
                break
            try:
                state = read_state(self._run, attempt)
            except ConfigError:  # missing or damaged: its tasks stay unknown
                continue
            mine = [job for job in left if job.id == (state.job if job.kind == "array" else state.reduce_job)]
            if mine:
                found[attempt] = mine
                left = [job for job in left if job not in mine]
        return found

    def _job_id(self) -> str:
        return str(round((self._clock() - JOB_EPOCH) * 1000))

    def _prepare(self, run: Path, attempt: int, script: Path, logs: Path) -> None:
        """Keep a copy of the script, as Slurm's spool does: later edits do not reach what was submitted."""
        if run != self._run.path:
            raise SchedulerError(f"{run}: this scheduler serves {self._run.path}")
        spool = self._run.attempt_folder(attempt) / "spool"
        with storage_errors(spool):
            spool.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(script, spool / script.name)
        with storage_errors(logs):
            logs.mkdir(parents=True, exist_ok=True)

    def _launch(self, attempt: int, logs: Path) -> None:
        """Start the controller and wait until it has taken over the state file."""
        home = Path(pipeline.__file__).resolve().parent.parent
        environ = clean_environment(self._environ)
        environ.setdefault(HOME, str(home))
        environ = medhaul_first(environ)
        ready, child_end = os.pipe()
        try:
            with (logs / "controller.log").open("ab") as log:
                controller = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "pipeline.schedulers.local", str(self._run.path), str(attempt)),
                        *("--ready", str(child_end)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=home,  # where `-m` finds this very package; the controller then goes to the submit folder
                    env=environ,
                    start_new_session=True,
                    pass_fds=(child_end,),
                )
        except OSError as error:
            os.close(ready)
            raise SchedulerError(f"the local controller cannot be started: {error}") from error
        finally:
            os.close(child_end)
        with os.fdopen(ready, "rb") as pipe:
            told = pipe.read(1)
        if not told:
            code = controller.wait()
            raise SchedulerError(
                f"the local controller ended at once with exit code {code}",
                hint=f"see {logs / 'controller.log'}",
            )
        self._controllers.append(controller)


def control(run: RunDir, attempt: int, ready: int) -> None:
    """Be the controller of an attempt: take over its state file, say so on `ready`, run it to its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    state = msgspec.structs.replace(read_state(run, attempt), owner=_this_process())
    local = run.read_config().local
    os.chdir(state.submit_dir)
    controller = Controller(
        run,
        attempt,
        state,
        limits=Limits(time=local.time_limit, lead=local.signal_lead, kill=local.kill_wait),
        slots=local.jobs,
        cpus=max(1, len(os.sched_getaffinity(0)) // max(1, min(local.jobs, state.throttle))),
        environ=os.environ,
    )
    controller.publish()
    os.write(ready, b"1")
    os.close(ready)
    controller.work()


def _this_process() -> ProcessId:
    process = identify_process(os.getpid())
    if process is None:
        raise SchedulerError("/proc does not show this process; the local scheduler needs Linux with /proc mounted")
    return process


def _working_folder(fallback: Path) -> str:
    """Return the current folder; `fallback` when it was deleted or has a name that JSON cannot hold."""
    try:
        folder = os.getcwd()  # noqa: PTH109 - text is what is asked for
        folder.encode()
    except (FileNotFoundError, UnicodeEncodeError):
        return str(fallback)
    return folder


def main() -> None:
    """`python -m pipeline.schedulers.local RUN ATTEMPT --ready FD`; started by `LocalScheduler`, not by hand."""
    parser = argparse.ArgumentParser(prog="pipeline.schedulers.local")
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument("--ready", type=int, required=True)
    arguments = parser.parse_args()
    control(RunDir.open(arguments.run), arguments.attempt, arguments.ready)


if __name__ == "__main__":
    main()
