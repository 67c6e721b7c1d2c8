"""`status` and `failed` of a run with several attempts: no cause is forgotten, and waiting is told by its reason."""

from __future__ import annotations

import time

import msgspec
import pytest

from pipeline.cli.failed import failed
from pipeline.cli.resume import resume
from pipeline.cli.status import status
from pipeline.cli.submit import submit
from pipeline.errors import UsageError
from pipeline.report.explain import Cause, choose_waiting_remedy, classify_shard
from pipeline.report.failed import make_failed
from pipeline.report.render import render_reduce, render_status
from pipeline.report.status import Collector, ReduceReport
from pipeline.schedulers.base import State, TaskStatus
from pipeline.schedulers.slurm_states import STUCK
from tests.schedulers.fake_run import heartbeat_of, receipt_of, wait_until, write_run
from tests.schedulers.slurm_stage import SlurmStage
from tests.slurm_shims.store import end_task, open_cluster


@pytest.fixture
def stage(tmp_path):
    """Yield a stage with accounting whose cluster has one node."""
    with SlurmStage(tmp_path / "stage", nodes=["n1"], accounting=True) as it:
        yield it


def report_of(stage, run, *, clock=time.time):
    """The status report, and how many of Slurm's commands it took."""
    stage.slurm.reset_calls()
    collector = Collector(run, open_scheduler=lambda _name, _run: stage.scheduler(run, clock=clock))
    report, _ = collector.collect()
    return report, sum(stage.counted().values())


def causes_of(report) -> dict[int, str]:
    """The cause of each shard that is open."""
    return {view.shard: view.cause for view in report.open}


def two_dead(stage):
    """A run of three shards, of which attempt 1 did the last, and died of 70 and of 73 with the others."""
    stage.fake.behave(s0=["exit 70"], s1=["exit 73"])
    run = stage.run(3)
    stage.call(submit, run.path)
    stage.settle(run)
    return run


@pytest.mark.parametrize("forgotten", [False, True])
def test_causes_outlive_an_attempt_that_leaves_them_out(stage, forgotten):
    """After `resume --states` what was left out keeps its cause, its log and its way back; two calls are enough."""
    run = two_dead(stage)
    stage.fake.behave(s0=["exit 70"], s1=["exit 75"])
    stage.call(resume, run.path, "--states", "storage")
    stage.settle(run, 2)
    if forgotten:
        stage.slurm.forget()
    report, calls = report_of(stage, run)
    assert calls <= 2
    assert causes_of(report) == {0: Cause.FAILED, 1: Cause.INTERRUPTED}
    assert [(view.attempt, view.job) for view in report.open] == [
        (1, f"{run.read_jobs(1)[0].id}_0"),
        (2, f"{run.read_jobs(2)[0].id}_0"),
    ]
    assert report.shards["not submitted"] == 0
    assert report.attempt == 2
    said = stage.call(failed, run.path, "--logs").stdout
    assert "task 0 life 0: exit 70" in said
    assert "task 1 life 0: exit 75" in said
    with pytest.raises(UsageError, match="no shard has such a cause"):
        stage.call(resume, run.path, "--states", "storage")
    stage.call(resume, run.path, "--states", "failed")
    assert run.read_plan(3).shards == [0]


def test_causes_outlive_an_attempt_that_was_refused(stage):
    """A resume of which sbatch took nothing hides nothing of the attempt before; what it took is one more question."""
    run = two_dead(stage)
    stage.slurm.set(max_submit_jobs=0)
    assert stage.medhaul("resume", run.path).returncode == 69
    report, calls = report_of(stage, run)
    assert calls <= 2
    assert causes_of(report) == {0: Cause.FAILED, 1: Cause.STORAGE}
    assert {view.attempt for view in report.open} == {1}
    assert "exit 73" in stage.call(failed, run.path, "--logs").stdout


def test_new_is_what_no_attempt_took(stage):
    """A shard that no attempt took is new; one that was done is no attempt's concern."""
    stage.slurm.set(max_array_size=2, max_submit_jobs=2)
    stage.fake.behave(s1=["exit 73"])
    run = stage.run(4)
    assert stage.medhaul("submit", run.path).returncode == 69
    stage.slurm.wait_idle()
    report, _ = report_of(stage, run)
    assert causes_of(report) == {1: Cause.STORAGE, 2: Cause.NEW, 3: Cause.NEW}
    assert [view.attempt for view in report.open] == [1, 0, 0]


def test_last_words_of_an_earlier_attempt(stage):
    """Where Slurm has forgotten an earlier attempt, the last words of its task tell, as those of that attempt."""
    stage.slurm.set(accounting=False)
    run = two_dead(stage)
    run.write_heartbeat(heartbeat_of(0, phase="stopped", note="SiteUnavailableError: it is down"))
    stage.call(resume, run.path, "--states", "storage")
    stage.settle(run, 2)
    stage.slurm.forget()
    report, calls = report_of(stage, run, clock=lambda: time.time() + 3600)
    assert calls <= 2
    view = report.open[0]
    assert (view.shard, view.cause, view.attempt) == (0, Cause.GONE, 1)
    assert view.reason.endswith("; last words: SiteUnavailableError: it is down")


def test_squeue_down_makes_the_past_unknown(stage):
    """Of what nobody can say now, neither an end nor a cause is made up."""
    stage.slurm.set(accounting=False)
    run = two_dead(stage)
    stage.call(resume, run.path, "--states", "storage")
    stage.settle(run, 2)
    stage.slurm.set(squeue_fail=True)
    report, calls = report_of(stage, run)
    assert calls <= 2
    assert causes_of(report)[0] == Cause.UNKNOWN


def test_the_past_is_asked_once(stage):
    """While a run is watched, what has ended in earlier attempts is not asked for again."""
    run = two_dead(stage)
    stage.call(resume, run.path, "--states", "storage")
    stage.settle(run, 2)
    collector = Collector(run, open_scheduler=lambda _name, _run: stage.scheduler(run))
    first, _ = collector.collect()
    stage.slurm.reset_calls()
    second, _ = collector.collect()
    assert causes_of(first) == causes_of(second)
    old, new = run.read_jobs(1)[0].id, run.read_jobs(2)[0].id
    (asked,) = [word for argv in stage.slurm.calls("squeue") for word in argv if word.startswith("--jobs=")]
    assert new in asked
    assert old not in asked


def test_another_clusters_ids_are_not_asked_for(stage):
    """The ids of an attempt on another cluster mean other jobs here: its tasks are unknown."""
    run = two_dead(stage)
    stage.call(resume, run.path, "--states", "storage")
    stage.settle(run, 2)
    run.write_plan(msgspec.structs.replace(run.read_plan(1), cluster="elsewhere"))
    report, _ = report_of(stage, run)
    assert causes_of(report)[0] == Cause.UNKNOWN
    assert "elsewhere" in report.open[0].reason


def test_a_later_death_outweighs_a_partial_receipt(stage):
    """A shard with failed items whose next task ran out of time has that cause, is listed, and is found by it."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    run.write_receipt(receipt_of(0, state="partial", failed=2, attempt=1))
    for number in (1, 2):
        stage.call(submit, run.path)
        array, reduce = run.read_jobs(number)
        with open_cluster(stage.slurm.root) as cluster:
            end_task(cluster["jobs"][array.id]["tasks"][0], "TIMEOUT", time.time())
            end_task(cluster["jobs"][reduce.id]["tasks"][0], "CANCELLED", time.time())
        report, _ = report_of(stage, run)
        assert report.shards["partial"] == 1
        assert causes_of(report) == {0: Cause.PARTIAL if number == 1 else Cause.TIMEOUT}
    (view,) = report.open
    assert view.reason == "2 failed; then stopped at the time limit"
    assert make_failed(report, {}).shards == [view]
    stage.call(resume, run.path, "--states", "timeout")
    assert run.read_plan(3).shards == [0]


def test_gone_tells_what_ran():
    """A task with last words did not wait when it ended; one without may have."""
    gone = TaskStatus(State.GONE, note="no longer in the queue, as when cancelled while it waited")
    assert "while it waited" in classify_shard(None, "", gone, None).reason
    assert "while it waited" in classify_shard(None, "", gone, heartbeat_of(0), 2).reason
    reason = classify_shard(None, "", gone, heartbeat_of(0), 1).reason
    assert reason == "has ended, nobody knows how (it ran on n1, and Slurm has forgotten it)"


def test_ran_and_aged_out(stage):
    """A task that Slurm forgot while others of its array live is told to have run, by its own words."""
    stage.slurm.set(accounting=False)
    stage.fake.behave(s0=["exit 73"], s1=["wait term"])
    run = stage.run(2)
    stage.call(submit, run.path)
    stage.fake.wait_trace(1, "child")
    stage.slurm.wait_state(run.read_jobs(1)[0].id, 0, "FAILED")
    stage.slurm.forget()
    run.write_heartbeat(heartbeat_of(0, phase="working"))
    report, _ = report_of(stage, run)
    assert causes_of(report) == {0: Cause.GONE}
    assert "it ran on n1" in report.open[0].reason
    assert "while it waited" not in report.open[0].reason


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("waiting", "waiting for the tasks"),
        ("waiting (for the tasks)", "waiting for the tasks"),
        ("waiting (the partition is down)", "waiting (the partition is down)"),
        ("waiting (behind other jobs)", "waiting (behind other jobs)"),
    ],
)
def test_why_reduce_waits(tmp_path, reason, words):
    """The reduce job waits for what Slurm says it waits for."""
    report, _ = Collector(write_run(tmp_path, 1)).collect()
    report = msgspec.structs.replace(report, attempt=1, reduce=ReduceReport("PENDING", None, reason, "5"))
    assert render_reduce(report) == words


@pytest.mark.parametrize(
    ("note", "tasks", "words"),
    [
        ("held by its user", ["7_1", "7_2"], "`scontrol release 7_1,7_2`"),
        ("requeued 1 time; waits held by its user", ["8"], "`scontrol release 8`"),
        ("held by its user", [f"{job}_{n}" for job in (7, 9) for n in range(9)], "`scontrol release 7,9`"),
        ("held after a requeue (launch failed requeued held)", ["7_1"], "scontrol release 7_1"),
        ("held by Slurm or an administrator", ["7_1"], "administrators"),
        ("its dependency can never be satisfied", ["7_1"], "`cancel` and `resume`"),
        ("no node fits its constraints", ["7_1"], "see [slurm]"),
    ],
)
def test_remedies_of_what_is_stuck(note, tasks, words):
    """Whatever will not start by itself has a remedy, by why it will not."""
    assert words in choose_waiting_remedy(note, tasks)


def test_every_reason_to_be_stuck_has_a_remedy():
    """No reason of Slurm's is left without."""
    assert all(choose_waiting_remedy(note, ["1"]) for note in STUCK.values())


def test_stuck_shards_are_told_with_their_remedy(stage):
    """A held task, and a held reduce job, come with the command that lets them go, which works."""
    stage.slurm.set(slots=1)
    stage.fake.behave(s0=["wait term"])
    run = stage.run(3, limits={"tasks": 1})
    stage.call(submit, run.path)
    array, reduce = run.read_jobs(1)
    stage.fake.wait_trace(0, "child")
    stage.scheduler_calls("scontrol", "hold", f"{array.id}_1")
    stage.scheduler_calls("scontrol", "hold", reduce.id)

    def stuck():
        report, _ = report_of(stage, run)
        held = [view for view in report.waiting if view.stuck]
        return (report, held[0]) if held and report.reduce.stuck else None

    wait_until(stuck)
    report, view = stuck()
    assert (view.shards, view.remedy) == ([1], f"`scontrol release {array.id}_1`")
    text = stage.call(status, run.path).stdout
    assert text.splitlines() == [*render_status(report), *text.splitlines()[len(render_status(report)) :]]
    assert f"-> `scontrol release {array.id}_1`" in text
    assert f"reduce   stuck: waiting (held by its user); `scontrol release {reduce.id}`" in text
    stage.scheduler_calls(*view.remedy.strip("`").split())
    wait_until(lambda: not any(view.stuck for view in report_of(stage, run)[0].waiting))
