"""What a cluster does not list is gone only where its absence says so; and waits outlast a silent controller."""

from __future__ import annotations

import os
import time

import msgspec
import pytest

from pipeline.report import watch
from pipeline.report.status import Collector
from pipeline.report.watch import wait_for
from pipeline.rundir import encode_record
from pipeline.schedulers import slurm as slurm_module
from pipeline.schedulers.attempt import Liveness
from pipeline.schedulers.base import State
from pipeline.schedulers.slurm_states import Row
from pipeline.schedulers.submission import submit_attempt
from tests.schedulers.slurm_stage import SlurmStage


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster starts nothing by itself."""
    with SlurmStage(tmp_path / "stage", slots=0) as it:
        yield it


def later(seconds: float = 1000.0):
    """A clock of later."""
    return lambda: time.time() + seconds


def submitted(stage):
    """A run of two shards, submitted."""
    run = stage.run(2)
    submit_attempt(run, stage.scheduler(run), [0, 1])
    return run


def forget_all(stage, run) -> None:
    """Let the controller forget the jobs of an attempt, as after MinJobAge."""
    stage.scheduler_calls("scancel", *(job.id for job in run.read_jobs(1)))
    stage.slurm.forget()


def states_of(stage, run, **options):
    """What a new client says of the attempt's tasks."""
    return stage.scheduler(run, clock=later(), **options).states(run.read_jobs(1))


def test_forgotten_jobs_are_gone(stage):
    """On their own cluster, asked by who submitted them, jobs that nobody lists any more have ended."""
    run = submitted(stage)
    forget_all(stage, run)
    stage.slurm.reset_calls()
    assert {status.state for status in states_of(stage, run).values()} == {State.GONE}
    assert sum(stage.counted().values()) <= 2


def test_another_cluster_knows_nothing(stage):
    """A cluster of another name, which sees the same storage, cannot say that jobs have ended."""
    run = submitted(stage)
    forget_all(stage, run)
    plan = run.read_plan(1)
    (run.attempt_folder(1) / "plan.json").write_bytes(encode_record(msgspec.structs.replace(plan, cluster="other")))
    found = states_of(stage, run)
    assert {status.state for status in found.values()} == {State.UNKNOWN}
    assert all("submitted to cluster other" in status.note for status in found.values())


def test_another_user_may_not_see(stage, monkeypatch):
    """Where somebody else submitted, and a site may hide others' jobs, absence says nothing."""
    run = submitted(stage)
    forget_all(stage, run)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert {status.state for status in states_of(stage, run).values()} == {State.UNKNOWN}


def test_accounting_that_never_heard_of_a_job_is_another_clusters(stage):
    """Jobs that working accounting does not know were submitted elsewhere, for all we can tell."""
    run = submitted(stage)
    forget_all(stage, run)
    plan = run.read_plan(1)
    (run.attempt_folder(1) / "plan.json").write_bytes(encode_record(msgspec.structs.replace(plan, accounting=True)))
    scheduler = stage.scheduler(run, clock=later())
    scheduler._booked = True
    assert {status.state for status in scheduler.states(run.read_jobs(1)).values()} == {State.UNKNOWN}


def test_accounting_that_missed_an_end_does_not_block(stage, monkeypatch):
    """A task that only accounting still believes to run has ended: the queue knows all that lives."""
    run = submitted(stage)
    forget_all(stage, run)
    array, reduce = run.read_jobs(1)
    rows = [Row(array.id, index, "RUNNING", "0:0", name=array.name) for index in range(2)]
    rows.append(Row(reduce.id, None, "PENDING", "0:0", name=reduce.name))
    monkeypatch.setattr(slurm_module.SlurmScheduler, "_booked_rows", lambda *_: rows)
    scheduler = stage.scheduler(run, clock=later())
    scheduler._accounting = True
    found = scheduler.states(run.read_jobs(1))
    assert {status.state for status in found.values()} == {State.GONE}
    assert any("accounting says RUNNING" in status.note for status in found.values())


class Shown:
    """A view that keeps nothing."""

    def show(self, report) -> None:
        """Show a report."""

    def close(self) -> None:
        """End."""


def test_a_wait_outlasts_a_silent_controller(stage):
    """A squeue that fails for a while ends no wait: it is told once, and asked again."""
    run = submitted(stage)
    stage.slurm.set(squeue_fail=3)
    slept: list[float] = []
    notes: list[str] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4 * 120:
            forget_all(stage, run)

    collector = Collector(run, open_scheduler=lambda _name, _run: stage.scheduler(run, clock=later()))
    _, attempt, _ = wait_for(collector, Shown(), notes.append, sleep=sleep)
    assert attempt.liveness is Liveness.ENDED
    assert len([note for note in notes if "does not say" in note]) == 1


def test_a_wait_ends_when_the_controller_stays_silent(stage, monkeypatch):
    """A wait for a controller that never answers again is given up, with the attempt unknown."""
    run = submitted(stage)
    stage.slurm.set(squeue_fail=True)
    monkeypatch.setattr(watch, "LOST_SECONDS", -1.0)
    collector = Collector(run, open_scheduler=lambda _name, _run: stage.scheduler(run))
    _, attempt, _ = wait_for(collector, Shown(), lambda _: None, sleep=lambda _: None)
    assert attempt.liveness is Liveness.UNKNOWN
