"""What is told of a run when Slurm forgets, refuses, or does not answer; and how it goes on from there."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import msgspec
import pytest
from cluster import SlurmCluster
from haul_kit import GatedSite, SlurmHaul, booked_haul, data, few, haul, site, undisturbed  # noqa: F401

from pipeline.rundir import RunDir
from tests.integration.haul import one_line_error, run_medhaul

FORGET_SECONDS = 90.0  # slurmctld looks for jobs older than MinJobAge now and then only


def forget(hauled: SlurmHaul) -> None:
    """Let the controller forget all jobs that have ended."""
    hauled.cluster.reconfigure(MinJobAge=2)
    hauled.wait(lambda: hauled.cluster.queue() == [], FORGET_SECONDS)


def age_jobs(run: RunDir, seconds: float) -> None:
    """Date the submission of attempt 1 back."""
    run.write_jobs(1, [msgspec.structs.replace(job, submitted=job.submitted - seconds) for job in run.read_jobs(1)])


def fail_on(hauled: SlurmHaul, index: int) -> None:
    """Let the setup of one array task fail."""
    environment = hauled.folder / "environment.sh"
    environment.write_text(environment.read_text() + f'[ "${{SLURM_ARRAY_TASK_ID:-}}" != {index} ]\n')


def heal(hauled: SlurmHaul) -> None:
    """Take `fail_on` back."""
    environment = hauled.folder / "environment.sh"
    environment.write_text(environment.read_text().splitlines()[0] + "\n")


def test_time_limit_and_other_ends(booked_haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """At a true limit of a minute a task that got on goes on later; accounting tells how the others ended.

    Slurm looks at limits every 30 s, so all that has to do with them is here. Want of memory cannot be had: without
    cgroups nobody kills for it.
    """
    timed = booked_haul
    timed.settings["slurm"] |= {"time": 60, "signal_lead": 20}
    timed.settings["shards"]["count"] = 6
    timed.plan()
    fail_on(timed, 1)
    site.shut(*timed.own_series(2), timed.own_series(3)[-1], *timed.own_series(4), *timed.own_series(5))
    timed.submit()
    timed.wait_blocked(5)
    timed.cluster.run("scontrol", "update", f"JobId={timed.job(5)}", "TimeLimit=0", check=True)
    timed.wait_blocked(2)
    timed.cluster.run("scancel", timed.job(2), check=True)
    timed.wait(lambda: "TimeLimitError: shard 3: stopped by SIGUSR1" in timed.waiting(3))
    timed.wait(lambda: (timed.row(4)["State"], timed.row(5)["State"]) == ("FAILED", "TIMEOUT"))
    site.open()
    timed.settle()
    known = {1: "failed", 2: "cancelled", 4: "timeout", 5: "timeout"}
    assert timed.causes() == known
    assert "queued again, for the 1. of 3 times" in timed.log(3)
    assert "not queued again: no frame was finished" in timed.log(4)
    done = timed.receipt(3)
    assert done is not None
    assert (done.job, done.life) == (f"{timed.job(3)}.1", 1)
    forget(timed)
    assert timed.causes() == known
    assert "exit code 78" in timed.reason(1)
    assert "cancelled" in timed.reason(2)
    assert "exit code 75" in timed.reason(4)
    assert "stopped at the time limit" in timed.reason(5)
    reduce = timed.last["reduce"]
    assert (reduce["state"], reduce["exit_code"]) == ("FAILED", 3)
    heal(timed)
    assert timed.finish() == few
    assert timed.run.read_plan(2).shards == [1, 2, 4, 5]


def test_forgotten_without_accounting(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """Where nobody keeps books, a forgotten task is unknown at first, then gone, with its own last words."""
    haul.plan()
    fail_on(haul, 0)
    site.shut(*haul.own_series(2))
    haul.submit()
    haul.wait_blocked(2)
    haul.signal(2)
    haul.settle()
    assert haul.causes() == {0: "failed", 2: "timeout"}
    forget(haul)
    assert haul.causes() == {0: "unknown", 2: "unknown"}
    assert (haul.last["alive"], haul.last["shards"]["done"]) == ("unknown", 2)
    assert "may still be at work" in one_line_error(haul.medhaul("resume", haul.run.path, code=64))
    age_jobs(haul.run, 700)
    assert haul.causes() == {0: "gone", 2: "gone"}
    assert haul.last["alive"] == "ended"
    assert "last words: TimeLimitError" in haul.reason(2)
    heal(haul)
    site.open()
    assert haul.finish() == few


@pytest.fixture
def submit_limit(accounting_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """A cluster that keeps to the limits of its associations; it takes 3 jobs, tasks counted singly."""
    modify = ("sacctmgr", "-i", "modify", "user", "root", "set")
    accounting_cluster.reconfigure(AccountingStorageEnforce="limits")
    accounting_cluster.run(*modify, "MaxSubmitJobs=3", check=True)
    yield accounting_cluster
    accounting_cluster.run(*modify, "MaxSubmitJobs=-1", check=True)


@pytest.mark.usefixtures("submit_limit")
def test_submitted_in_part(booked_haul: SlurmHaul, few: dict[str, str]) -> None:  # noqa: F811
    """What a limit on submitted jobs keeps out is told, and submitted later with `--continue`."""
    booked_haul.settings["slurm"]["max_array"] = 2
    booked_haul.plan()
    ended = booked_haul.medhaul("submit", booked_haul.config, code=69)
    (first,) = booked_haul.run.read_jobs(1)
    said = one_line_error(ended)
    assert f"submitted 2 of 4 tasks (1 of 2 arrays: {first.id}), not the reduce job" in said
    assert "AssocMaxSubmitJobLimit" in said
    assert "--continue" in ended.err
    booked_haul.wait(lambda: len(booked_haul.receipts()) == 2)
    assert "go on with `medhaul submit RUN --continue`" in booked_haul.told()
    booked_haul.cluster.wait_ended(first.id)
    booked_haul.medhaul("submit", "--continue", booked_haul.run.path)
    assert booked_haul.ended_well() == few
    assert booked_haul.run.attempts() == [1]


def test_no_controller(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """While no controller answers, receipts still count, nothing is submitted, and the tasks go on."""
    haul.plan()
    site.shut(haul.own_series(1)[-1])
    haul.submit()
    haul.wait_blocked(1, frames=1)
    haul.wait(lambda: len(haul.receipts()) == 3)
    haul.cluster.kill_controller(signal.SIGTERM)
    assert haul.causes() == {1: "unknown"}
    assert (haul.last["alive"], haul.last["shards"]["done"]) == ("unknown", 3)
    assert "Unable to contact slurm controller" in haul.reason(1)
    other = haul.folder / "other.toml"
    other.write_text(haul.config.read_text().replace('name = "haul"', 'name = "other"'))
    assert "Unable to contact slurm controller" in one_line_error(haul.medhaul("submit", other, code=69))
    assert RunDir(haul.run.path.with_name("other")).attempts() == []
    site.open()
    haul.wait(lambda: len(haul.receipts()) == 4)
    haul.cluster.start_controller()
    assert haul.ended_well() == few
    ended = run_medhaul("run", other, environ=haul.environ)
    assert ended.code == 0, ended.err
