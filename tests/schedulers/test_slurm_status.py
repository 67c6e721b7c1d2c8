"""`status` of a run on Slurm: every cause, with and without accounting, by few questions; unknown stays unknown."""

from __future__ import annotations

import json
import re
import time

import msgspec
import pytest

from pipeline.cli.resume import resume
from pipeline.cli.status import status
from pipeline.errors import UsageError
from pipeline.records import Job
from pipeline.report.explain import REMEDIES, Cause
from pipeline.report.status import Collector
from pipeline.schedulers.base import SchedulerError, State, alive
from pipeline.schedulers.submission import submit_attempt
from tests.schedulers.fake_run import heartbeat_of, receipt_of, wait_until, write_part
from tests.schedulers.slurm_stage import SlurmStage
from tests.slurm_shims.store import end_task, open_cluster

# How a task ended: its state, its wait status, and the cause that `status` must name.
FATES = [
    ("COMPLETED", 0, Cause.LOST),
    ("FAILED", 69 << 8, Cause.FAILED),
    ("FAILED", 75 << 8, Cause.INTERRUPTED),
    ("FAILED", 73 << 8, Cause.STORAGE),
    ("FAILED", 3 << 8, Cause.FAILED),
    ("FAILED", 9, Cause.KILLED),
    ("FAILED", 4021, Cause.FAILED),
    ("TIMEOUT", 9, Cause.TIMEOUT),
    ("OUT_OF_MEMORY", 125, Cause.MEMORY),
    ("NODE_FAIL", 0, Cause.NODE),
    ("PREEMPTED", 0, Cause.PREEMPTED),
    ("CANCELLED", 0, Cause.CANCELLED),
]


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster has two nodes of two slots."""
    with SlurmStage(tmp_path / "stage", nodes=["n1", "n2"]) as it:
        yield it


def book(stage, job: str, index: int | None, state: str, wait_status: int = 0) -> None:
    """Book the end of a task that waits, as if it had run on node n1."""
    with open_cluster(stage.slurm.root) as cluster:
        task = next(task for task in cluster["jobs"][job]["tasks"] if task["index"] == index)
        task.update(raw=int(job) if index is None else 5000 + index, node="n1", start=time.time() - 5)
        end_task(task, state, time.time(), wait_status)


def report_of(stage, run, *, clock=time.time):
    """The status report, and how many of Slurm's commands it took."""
    stage.slurm.reset_calls()
    collector = Collector(run, open_scheduler=lambda _name, _run: stage.scheduler(run, clock=clock))
    report, attempt = collector.collect()
    return report, attempt, sum(stage.counted().values())


def causes_of(report) -> dict[int, str]:
    """The cause of each shard that is open."""
    return {view.shard: view.cause for view in report.open}


def fated(stage):
    """A run all of whose tasks have ended as FATES say, and whose reduce job has ended with 3."""
    stage.slurm.set(slots=0)
    run = stage.run(len(FATES))
    submit_attempt(run, stage.scheduler(run), range(len(FATES)))
    array, reduce = run.read_jobs(1)
    for index, (state, wait_status, _) in enumerate(FATES):
        book(stage, array.id, index, state, wait_status)
    book(stage, reduce.id, None, "FAILED", 3 << 8)
    return run


@pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten"])
@pytest.mark.parametrize("accounting", [False, True], ids=["queue", "accounting"])
def test_causes(stage, accounting, forgotten):
    """Each kind of end has its cause and remedy, as long as the queue or accounting knows; two questions are enough."""
    stage.slurm.set(accounting=accounting)
    run = fated(stage)
    if forgotten:
        stage.slurm.forget()
    report, attempt, calls = report_of(stage, run)
    assert calls <= 2
    found = causes_of(report)
    if accounting or not forgotten:
        assert found == {shard: cause for shard, (_, _, cause) in enumerate(FATES)}
        assert attempt.liveness.value == "ended"
        assert (report.reduce.state, report.reduce.exit_code) == ("FAILED", 3)
    else:
        assert set(found.values()) == {Cause.UNKNOWN}
        assert attempt.liveness.value == "unknown"
    for view in report.open:
        assert view.remedy == REMEDIES[Cause(view.cause)] != ""
        assert view.reason
        assert view.job == f"{run.read_jobs(1)[0].id}_{view.shard}"


def test_causes_are_printed(stage):
    """People see one line for each reason and what to do about it; --json has the same for programs."""
    run = fated(stage)
    text = stage.call(status, run.path).stdout
    assert "1 dead: killed for want of memory (shard 8)" in text
    assert "lost (its node failed)" in text
    assert "-> memory: raise slurm.memory" in text
    assert "its node could not start it" in text
    data = json.loads(stage.call(status, "--json", run.path).stdout)
    assert data["scheduler"] == "slurm"
    assert [view["cause"] for view in data["open"]] == [cause for _, _, cause in FATES]
    assert all(view["remedy"] for view in data["open"])


def test_forgotten_long_ago(stage):
    """Without accounting a task that Slurm forgot long ago is gone, not unknown: its own last words may say more."""
    run = fated(stage)
    stage.slurm.forget()
    run.write_heartbeat(heartbeat_of(1, phase="stopped", note="SiteUnavailableError: it is down"))
    report, attempt, calls = report_of(stage, run, clock=lambda: time.time() + 3600)
    assert calls <= 2
    assert set(causes_of(report).values()) == {Cause.GONE}
    assert attempt.liveness.value == "ended"
    assert "last words: SiteUnavailableError: it is down" in report.open[1].reason


def test_last_words_tell_a_time_limit(stage):
    """A task that stopped by itself ahead of its limit is told from one that was interrupted otherwise."""
    run = fated(stage)
    run.write_heartbeat(heartbeat_of(2, phase="stopped", note="TimeLimitError: stopped by SIGUSR1"))
    assert causes_of(report_of(stage, run)[0])[2] == Cause.TIMEOUT


def test_receipts_decide(stage):
    """A good receipt makes a shard done whatever Slurm says; a partial one makes it partial."""
    run = fated(stage)
    run.write_receipt(receipt_of(9))
    write_part(run, 9)
    run.write_receipt(receipt_of(8, state="partial", failed=1))
    report, _, _ = report_of(stage, run)
    assert 9 not in causes_of(report)
    assert causes_of(report)[8] == Cause.PARTIAL
    assert report.shards["done"] == 1


@pytest.mark.parametrize("accounting", [False, True])
def test_cancelled_alone_while_it_waited(stage, accounting):
    """A task that was cancelled out of a waiting array leaves no record: it is gone or cancelled, never alive."""
    stage.slurm.set(slots=0, accounting=accounting)
    run = stage.run(3)
    submit_attempt(run, stage.scheduler(run), range(3))
    stage.scheduler_calls("scancel", f"{run.read_jobs(1)[0].id}_1")
    report, attempt, calls = report_of(stage, run)
    assert calls <= 2
    assert causes_of(report)[1] in {Cause.GONE, Cause.CANCELLED}
    assert report.shards["waiting"] == 2
    assert attempt.liveness.value == "alive"


@pytest.mark.parametrize("accounting", [False, True])
def test_squeue_down(stage, accounting):
    """While the controller does not answer nothing is known to have ended that accounting does not book as ended."""
    stage.slurm.set(accounting=accounting)
    run = fated(stage)
    stage.slurm.set(squeue_fail=True)
    report, attempt, calls = report_of(stage, run)
    assert calls <= 2
    if accounting:
        assert causes_of(report) == {shard: cause for shard, (_, _, cause) in enumerate(FATES)}
    else:
        assert set(causes_of(report).values()) == {Cause.UNKNOWN}
        assert "Unable to contact slurm controller" in report.open[0].reason
        assert attempt.liveness.value == "unknown"
        with pytest.raises(UsageError, match="may still be at work") as caught:
            stage.call(resume, run.path)
        assert "--assume-dead" in caught.value.hint
        stage.call(resume, "--assume-dead", run.path)
        assert run.read_plan(2).shards == list(range(len(FATES)))


def test_no_squeue_here(stage):
    """On a machine without Slurm's commands receipts are read nevertheless, and the rest is unknown."""
    run = fated(stage)
    run.write_receipt(receipt_of(0))
    write_part(run, 0)
    done = stage.medhaul("status", "--json", run.path, env={"PATH": "/usr/sbin:/sbin"})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["shards"]["done"] == 1
    assert {view["cause"] for view in report["open"]} == {"unknown"}
    assert "squeue" in report["open"][0]["reason"]


@pytest.mark.parametrize("accounting", [False, True])
def test_unknown_word(stage, accounting):
    """A state that this version does not know is neither alive nor ended, and blocks another attempt."""
    stage.slurm.set(accounting=accounting, state_word="MOONWALKING")
    stage.fake.behave(s0=["wait term"], s1=["wait term"])
    run = stage.run(2)
    submit_attempt(run, stage.scheduler(run), [0, 1])
    stage.fake.wait_trace(0, "child")
    stage.fake.wait_trace(1, "child")
    report, attempt, calls = report_of(stage, run)
    assert calls <= 2
    assert {view.reason for view in report.open} == {"unknown (Slurm says MOONWALKING)"}
    assert set(causes_of(report).values()) == {Cause.UNKNOWN}
    assert {attempt.states[run.read_jobs(1)[0].id, index].state for index in (0, 1)} == {State.UNKNOWN}
    with pytest.raises(UsageError):
        stage.call(resume, run.path)


def test_why_shards_wait(stage):
    """Waiting shards are told by what they wait for; what will never come is stuck, and says so."""
    stage.slurm.set(nodes=["n1"], slots=1)
    stage.fake.behave(**{f"s{shard}": ["wait term"] for shard in range(6)})
    run = stage.run(6, limits={"tasks": 1})
    submit_attempt(run, stage.scheduler(run), range(6))
    array, reduce = run.read_jobs(1)
    stage.fake.wait_trace(0, "child")
    stage.scheduler_calls("scontrol", "hold", f"{array.id}_2")

    def waiting() -> dict[str, tuple[int, bool]]:
        report, _, calls = report_of(stage, run)
        assert calls <= 2
        return {view.reason: (view.count, view.stuck) for view in report.waiting}

    wait_until(lambda: "held by its user" in waiting())
    assert waiting() == {"for its turn among the run's tasks": (4, False), "held by its user": (1, True)}
    text = stage.call(status, run.path).stdout
    assert "4 waiting: for its turn among the run's tasks (shards 1, 3, 4, 5)" in text
    assert "1 stuck: held by its user (shard 2)" in text
    assert "reduce   waiting for the tasks" in text
    with open_cluster(stage.slurm.root) as cluster:
        cluster["jobs"][array.id]["throttle"] = 0
        cluster["jobs"][reduce.id]["never"] = True
    wait_until(lambda: "behind other jobs" in waiting())
    wait_until(lambda: report_of(stage, run)[0].reduce.stuck)
    text = stage.call(status, run.path).stdout
    assert "stuck: waiting (its dependency can never be satisfied); `cancel` and `resume`" in text


@pytest.mark.parametrize("accounting", [False, True])
def test_second_life(stage, accounting):
    """A task that its node took with it waits for its next life; `status` says so, and what the last one died of."""
    stage.slurm.set(accounting=accounting, requeue_delay=60)
    stage.fake.behave(s0=["wait term"])
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    stage.fake.wait_trace(0, "child")
    stage.slurm.fail_node(run.read_jobs(1)[0].id, 0)
    report, _, calls = report_of(stage, run)
    assert calls <= 2
    (view,) = report.waiting
    assert "requeued 1 time; waits to start again, not before 20" in view.reason
    assert ("after node failure on n1" in view.reason) is accounting
    stage.slurm.set(requeue_delay=0)


def test_questions_of_every_kind_of_run(stage):
    """At work, ended, forgotten, or broken off: never more than two calls, and one where the queue knows all."""
    stage.slurm.set(max_array_size=5, slots=0, accounting=True)
    run = stage.run(23)
    submit_attempt(run, stage.scheduler(run), range(23))
    assert report_of(stage, run)[2] == 1
    (run.attempt_folder(1) / "jobs.json").unlink()
    assert report_of(stage, run)[2] == 1
    stage.slurm.set(slots=2)
    stage.slurm.wait_idle()
    assert report_of(stage, run)[2] <= 2
    stage.slurm.forget()
    assert report_of(stage, run)[2] <= 2
    stage.slurm.reset_calls()
    assert stage.medhaul("status", run.path).returncode == 0
    assert sum(stage.counted().values()) <= 2


def test_questions_about_a_broken_submission(stage):
    """Two calls are enough also where jobs of a submission that was broken off have been forgotten."""
    stage.slurm.set(max_array_size=2, max_submit_jobs=2, accounting=True, slots=0)
    stage.fake.behave(s0=["exit 69"], s1=["exit 75"])
    run = stage.run(4)
    with pytest.raises(SchedulerError):
        submit_attempt(run, stage.scheduler(run), range(4))
    stage.slurm.set(slots=2)
    stage.slurm.wait_idle()
    stage.slurm.forget()
    report, attempt, calls = report_of(stage, run)
    assert calls <= 2
    assert causes_of(report) == {0: Cause.FAILED, 1: Cause.INTERRUPTED, 2: Cause.NEW, 3: Cause.NEW}
    assert attempt.reduce is None


def test_foreign_jobs_are_never_ours(stage):
    """An id that now belongs to somebody's other job says nothing about our task."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    jobs = run.read_jobs(1)
    script = stage.root / "other.sh"
    script.write_text("#!/bin/sh\n")
    other = re.match(r"\d+", stage.scheduler_calls("sbatch", "--parsable", "--array=0-0", str(script)))[0]
    run.write_jobs(1, [msgspec.structs.replace(jobs[0], id=other), jobs[1]])
    _, attempt, _ = report_of(stage, run)
    assert attempt.states[other, 0].state is State.UNKNOWN


def test_jobs_without_a_time_are_asked_for(stage):
    """Jobs written down without the time of their submission stay unknown when nobody knows them, however old."""
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    stage.slurm.wait_idle()
    stage.slurm.forget()
    jobs = [
        Job(kind=job.kind, name=job.name, id=job.id, offset=job.offset, length=job.length) for job in run.read_jobs(1)
    ]
    found = stage.scheduler(run, clock=lambda: time.time() + 10**6).states(jobs)
    assert {status.state for status in found.values()} == {State.UNKNOWN}
    assert not any(alive(status.state) for status in found.values())
