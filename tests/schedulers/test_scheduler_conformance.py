"""What every scheduler must do, on real processes. A backend joins by a class with the methods of `Backend`.

The suite runs here for the backends of `BACKENDS`. Another module runs it for a backend of its own by importing all of
this one (`from tests.schedulers.test_scheduler_conformance import *`) and defining a fixture `backend` that yields a
`Backend`.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.rundir import RunDir
from pipeline.schedulers.attempt import Attempt, Liveness, read_attempt
from pipeline.schedulers.base import Scheduler, State, TaskStatus, ended
from pipeline.schedulers.local import LocalScheduler
from pipeline.schedulers.local_state import read_state
from pipeline.schedulers.slurm import SlurmScheduler
from pipeline.schedulers.submission import submit_attempt
from tests.schedulers.fake_run import Fake, end_process, make_fake, process_lives, wait_until, write_run
from tests.slurm_shims.shims import ShimSlurm

HOSTILE = 'it\'s a "run" \u2013 na\u00efve $HOME `x` *;&'  # all that a config allows in storage.root


class Backend:
    """A scheduler under test, and in what it may differ from the others.

    Attributes
    ----------
    at_limit
        What the fake task does to get the shell's early signal and then a second life: where the scheduler gives it
        none for its exit code, the task must ask for it.
    clocks
        Whether tasks are told when they began and when they will be ended.
    slots_bound_plan
        Whether an attempt is planned for no more tasks at a time than the machine runs.
    """

    at_limit: ClassVar[str]
    clocks: ClassVar[bool]
    slots_bound_plan: ClassVar[bool]

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fake: Fake = make_fake(root / "fake")
        self.runs: list[RunDir] = []

    def run(self, shards: int, *, limit: float = 0, kill: float = 5, jobs: int = 2, tasks: int = 4) -> RunDir:
        """A run whose tasks get `limit` seconds, half of them before the early signal, and `kill` to end at SIGTERM.

        The machine runs `jobs` of them at a time.
        """
        raise NotImplementedError

    def scheduler(self, run: RunDir) -> Scheduler:
        """A new client of the scheduler, as another command would have it."""
        raise NotImplementedError

    def forget(self, run: RunDir) -> None:
        """Make the scheduler lose all that it knows of the ended attempt 1."""
        raise NotImplementedError

    def clean(self) -> None:
        """End what a failed test left behind."""
        self.fake.end_children()

    def write(self, shards: int, **tables: Any) -> RunDir:
        """A planned run."""
        run = write_run(self.root / "storage", shards, tables=tables)
        self.runs.append(run)
        return run


class LocalBackend(Backend):
    """The local scheduler."""

    at_limit = "wait usr1"
    clocks = True
    slots_bound_plan = True

    def run(self, shards: int, *, limit: float = 0, kill: float = 5, jobs: int = 2, tasks: int = 4) -> RunDir:
        local = {"jobs": jobs, "time_limit": limit, "signal_lead": limit / 2, "kill_wait": kill}
        return self.write(shards, local=local, limits={"tasks": tasks})

    def scheduler(self, run: RunDir) -> LocalScheduler:
        return LocalScheduler(run, environ=self.fake.environ)

    def forget(self, run: RunDir) -> None:
        state = run.attempt_folder(1) / "local.json"
        state.write_text("{torn")

    def clean(self) -> None:
        for run in self.runs:
            for attempt in run.attempts():
                if (run.attempt_folder(attempt) / "local.json").read_text() == "{torn":
                    continue  # of an attempt that had ended
                state = read_state(run, attempt)
                end_process(state.owner.pid) if state.owner.pid != os.getpid() else None
        super().clean()


class ShimBackend(Backend):
    """Slurm, played by shims on PATH: real processes, and a minute that lasts as long as a test wants."""

    at_limit = "wait usr1 requeue"
    clocks = False  # Slurm sets them since 23.02
    slots_bound_plan = False

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.slurm = ShimSlurm(root / "cluster", nodes=["n1"]).__enter__()

    def run(self, shards: int, *, limit: float = 0, kill: float = 5, jobs: int = 2, tasks: int = 4) -> RunDir:
        self.slurm.set(slots=jobs, kill_wait=kill, **({"minute": limit} if limit else {}))
        slurm = {"time": 60, "signal_lead": 30} if limit else {}
        return self.write(shards, slurm=slurm, limits={"tasks": tasks})

    def scheduler(self, run: RunDir) -> SlurmScheduler:
        return SlurmScheduler(run, environ=self.fake.environ | self.slurm.environ)

    def forget(self, run: RunDir) -> None:
        self.slurm.forget()

    def clean(self) -> None:
        super().clean()
        self.slurm.stop()


BACKENDS: dict[str, type[Backend]] = {"local": LocalBackend, "shims": ShimBackend}


@pytest.fixture(params=BACKENDS)
def backend(request, tmp_path) -> Iterator[Backend]:
    """Yield a scheduler backend, in a folder with a hostile name."""
    it = BACKENDS[request.param](tmp_path / HOSTILE)
    yield it
    it.clean()


def submit(backend: Backend, run: RunDir, shards: int | list[int]) -> Scheduler:
    """Submit an attempt and return its scheduler."""
    scheduler = backend.scheduler(run)
    submit_attempt(run, scheduler, list(range(shards)) if isinstance(shards, int) else shards)
    return scheduler


def settle(run: RunDir, scheduler: Scheduler, attempt: int = 1) -> Attempt:
    """Wait for the attempt's end."""
    wait_until(lambda: read_attempt(run, attempt, scheduler).liveness is not Liveness.ALIVE)
    return read_attempt(run, attempt, scheduler)


def finish(backend: Backend, run: RunDir, shards: int) -> Attempt:
    """Submit and wait for the end."""
    return settle(run, submit(backend, run, shards))


def task(attempt: Attempt, shard: int) -> TaskStatus:
    """How a shard's task stands."""
    return attempt.shard_tasks()[shard][1]


def test_all_succeed(backend):
    """Every task runs once with its index and attempt, leaves its receipt, and the reduce job follows all of them."""
    run = backend.run(3)
    attempt = finish(backend, run, 3)
    assert [task(attempt, shard).state for shard in range(3)] == [State.COMPLETED] * 3
    assert attempt.reduce_status().state is State.COMPLETED
    for shard in range(3):
        argv = backend.fake.trace(shard)["argv"]
        assert argv == ["task", str(run.path), "--attempt", "1", "--index", str(shard)]
    assert backend.fake.trace("reduce")["argv"] == ["reduce", str(run.path)]
    assert run.receipt_shards() == {0, 1, 2}
    assert all(backend.fake.trace("reduce")["began"] >= backend.fake.trace(shard)["ended"] for shard in range(3))


def test_variables(backend):
    """Tasks see the variables that Slurm sets, each its own job id, and none that leaked from the submitter."""
    run = backend.run(3)
    attempt = finish(backend, run, 3)
    array = next(job for job in attempt.jobs if job.kind == "array")
    seen = [backend.fake.trace(shard)["environ"] for shard in range(3)]
    for index, environ in enumerate(seen):
        assert environ["SLURM_ARRAY_JOB_ID"] == array.id
        assert environ["SLURM_ARRAY_TASK_ID"] == str(index)
        assert [environ[f"SLURM_ARRAY_TASK_{key}"] for key in ("COUNT", "MIN", "MAX", "STEP")] == ["3", "0", "2", "1"]
        assert environ["SLURM_JOB_NAME"] == array.name
        assert array.name.startswith("medhaul.r1.001.")
        assert int(environ["SLURM_CPUS_PER_TASK"]) >= 1
        assert environ["SLURM_SUBMIT_DIR"] == os.getcwd()  # noqa: PTH109
        if backend.clocks:
            assert int(environ["SLURM_JOB_END_TIME"]) > int(environ["SLURM_JOB_START_TIME"])
        assert environ["SLURMD_NODENAME"]
        assert "SLURM_RESTART_COUNT" not in environ
        assert "SBATCH_TIMELIMIT" not in environ
    assert len({environ["SLURM_JOB_ID"] for environ in seen} - {"666"}) == 3
    reduce = backend.fake.trace("reduce")["environ"]
    assert "SLURM_ARRAY_TASK_ID" not in reduce
    assert reduce["SLURM_JOB_ID"] == attempt.reduce.id


def test_logs_are_appended(backend):
    """Output and errors of every life of a task are kept in the log named by array and index."""
    backend.fake.behave(s0=[backend.at_limit, "ok"])
    run = backend.run(1, limit=4)
    attempt = finish(backend, run, 1)
    log = (run.logs(1) / f"{attempt.jobs[0].id}_0.log").read_text()
    assert "waiting as 0" in log
    assert "task 0 life 1: ok" in log


def test_one_fails(backend):
    """A failed task keeps its exit code or signal, the others go on, and the reduce job runs after all."""
    backend.fake.behave(s0=["exit 69"], s1=["die"])
    attempt = finish(backend, backend.run(3), 3)
    assert (task(attempt, 0).state, task(attempt, 0).exit_code) == (State.FAILED, 69)
    assert (task(attempt, 1).state, task(attempt, 1).signal) == (State.FAILED, signal.SIGKILL)
    assert task(attempt, 2).state is State.COMPLETED
    assert (attempt.reduce_status().state, attempt.reduce_status().exit_code) == (State.FAILED, 3)
    assert backend.fake.trace("reduce")["receipts"] == 1


def test_time_limit_signals_the_shell_alone_and_requeues(backend):
    """The early signal reaches the batch process, not its children; the next life has the same job id."""
    backend.fake.behave(s0=[backend.at_limit, "ok"])
    attempt = finish(backend, backend.run(1, limit=4), 1)
    first, second = backend.fake.trace(0), backend.fake.trace(0, 1)
    assert first["signal"] == signal.SIGUSR1
    assert not (backend.fake.folder / "trace" / f"child.{int(signal.SIGUSR1)}").exists()
    assert not process_lives(first["child"])
    assert second["environ"]["SLURM_RESTART_COUNT"] == "1"
    assert second["environ"]["SLURM_JOB_ID"] == first["environ"]["SLURM_JOB_ID"]
    assert (task(attempt, 0).state, task(attempt, 0).restarts) == (State.COMPLETED, 1)
    assert attempt.reduce_status().state is State.COMPLETED


def test_stubborn_task_is_killed(backend):
    """A task that ignores all signals is killed after kill_wait, booked as timed out, and the reduce job still runs."""
    backend.fake.behave(s0=["wait"])
    attempt = finish(backend, backend.run(1, limit=4, kill=0.3), 1)
    assert (task(attempt, 0).state, task(attempt, 0).signal) == (State.TIMEOUT, signal.SIGKILL)
    assert backend.fake.trace("reduce") is not None
    assert not process_lives(backend.fake.trace(0)["pid"])
    assert (backend.fake.folder / "trace" / f"child.{int(signal.SIGTERM)}").exists()


def test_children_end_with_their_task(backend):
    """What a task leaves in the background does not outlive it."""
    backend.fake.behave(s0=["leave"])
    finish(backend, backend.run(1), 1)
    assert not process_lives(backend.fake.trace(0)["child"])


@pytest.mark.parametrize(("jobs", "tasks"), [(2, 8), (8, 2)])
def test_throttle(backend, jobs, tasks):
    """Never more tasks at a time than the plan and the machine allow."""
    backend.fake.behave(**{f"s{shard}": ["sleep 0.15"] for shard in range(6)})
    run = backend.run(6, jobs=jobs, tasks=tasks)
    finish(backend, run, 6)
    spans = [(facts["began"], facts["ended"]) for facts in (backend.fake.trace(shard) for shard in range(6))]
    assert max(sum(began <= at < end for began, end in spans) for at, _ in spans) == 2
    planned = min(jobs, tasks) if backend.slots_bound_plan else min(6, tasks)
    assert run.read_plan(1).tasks == planned
    assert run.read_plan(1).connections == 64 // planned


def test_cancel(backend):
    """Running tasks get SIGTERM, waiting ones and the reduce job never start, and all are booked as cancelled."""
    backend.fake.behave(**{f"s{shard}": ["wait usr1 term"] for shard in range(3)})
    run = backend.run(3)
    scheduler = submit(backend, run, 3)
    for shard in (0, 1):
        backend.fake.wait_trace(shard, "child")
    scheduler.cancel(run.read_jobs(1))
    attempt = settle(run, scheduler)
    assert {status.state for status in attempt.states.values()} == {State.CANCELLED}
    assert backend.fake.trace(0)["signal"] == signal.SIGTERM
    assert backend.fake.trace(2) is None
    assert backend.fake.trace("reduce") is None


def test_reduce_alone(backend):
    """An attempt without shards runs the reduce job only."""
    run = backend.run(2)
    attempt = finish(backend, run, 0)
    assert [job.kind for job in attempt.jobs] == ["reduce"]
    assert backend.fake.trace("reduce") is not None
    assert attempt.liveness is Liveness.ENDED


def test_second_attempt_maps_dense_indices(backend):
    """A later attempt of some shards runs just those, and states of both attempts stay readable."""
    run = backend.run(5)
    backend.fake.behave(s1=["exit 75"], s3=["exit 75"])
    assert task(finish(backend, run, 5), 3).exit_code == 75
    backend.fake.behave()
    (backend.fake.folder / "trace" / "3.0.json").unlink()
    attempt = settle(run, submit(backend, run, [3, 1]), 2)
    assert backend.fake.trace(3)["argv"][-1] == "1"
    assert {status.state for status in attempt.states.values()} == {State.COMPLETED}
    first = read_attempt(run, 1, backend.scheduler(run))
    assert task(first, 3).exit_code == 75


def test_jobs_are_found_when_their_submitter_died(backend):
    """Jobs that were taken but not written down are found again, so that an attempt at work never looks ended."""
    backend.fake.behave(reduce=["wait usr1 term"])
    run = backend.run(1)
    scheduler = submit(backend, run, 1)
    backend.fake.wait_trace("reduce", "child")
    jobs = run.read_jobs(1)
    (run.attempt_folder(1) / "jobs.json").unlink()
    attempt = read_attempt(run, 1, backend.scheduler(run))
    assert [(job.kind, job.name, job.id, job.offset, job.length) for job in attempt.jobs] == [
        (job.kind, job.name, job.id, job.offset, job.length) for job in jobs
    ]
    assert attempt.liveness is Liveness.ALIVE
    scheduler.cancel(attempt.jobs)
    assert settle(run, scheduler).reduce_status().state is State.CANCELLED


def test_unknown_jobs_stay_unknown(backend):
    """Jobs that the scheduler has no record of are neither alive nor ended."""
    run = backend.run(2)
    scheduler = submit(backend, run, 2)
    jobs = run.read_jobs(1)
    settle(run, scheduler)
    backend.forget(run)
    assert {status.state for status in backend.scheduler(run).states(jobs).values()} == {State.UNKNOWN}
    assert read_attempt(run, 1, scheduler).liveness is Liveness.UNKNOWN


def test_every_state_ends(backend):
    """At the end of an attempt every task is in a state that has ended."""
    backend.fake.behave(s0=["exit 1"], s1=["die"])
    attempt = finish(backend, backend.run(4), 4)
    assert all(ended(status.state) for status in attempt.states.values())
    assert len(attempt.states) == 5


def test_job_ids_differ(backend):
    """Array and reduce of two attempts have four different ids."""
    run = backend.run(1)
    finish(backend, run, 1)
    settle(run, submit(backend, run, 1), 2)
    ids = list(itertools.chain.from_iterable([job.id for job in run.read_jobs(number)] for number in (1, 2)))
    assert len(set(ids)) == 4
