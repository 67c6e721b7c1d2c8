"""`throttle` on Slurm: it keeps the run's connections, says when it cannot, and what it changed holds for the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.submit import submit
from pipeline.cli.task import choose_connections
from pipeline.cli.throttle import throttle
from pipeline.errors import UsageError
from pipeline.records import Throttle
from pipeline.schedulers.base import SchedulerError, split_tasks
from pipeline.schedulers.throttling import choose_share, largest_load
from tests.schedulers.fake_run import wait_until
from tests.schedulers.slurm_stage import SlurmStage
from tests.slurm_shims.store import open_cluster

WAIT = ["wait usr1 term"]


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster has one node of two slots."""
    with SlurmStage(tmp_path / "stage", nodes=["n1"]) as it:
        yield it


def haul(stage, shards: int, tasks: int, running: int, **tables):
    """A submitted run of tasks that wait to be told to stop, `running` of which run on as many slots."""
    stage.fake.behave(**{f"s{shard}": WAIT for shard in range(shards)})
    stage.slurm.set(slots=running)
    run = stage.run(shards, limits={"tasks": tasks, "connections": 64}, **tables)
    stage.call(submit, run.path)
    for shard in range(running):
        stage.fake.wait_trace(shard, "child")
    return run


def break_update(stage, *, first: int = 0, until: int = 10**6) -> None:
    """Make `scontrol update` fail as at a time-out, from call `first` on (the first is 0) and before call `until`."""
    path = stage.slurm.root / "bin" / "scontrol"
    count = stage.root / "updates"
    count.write_text("0")
    said = "slurm_update error: Socket timed out on send/recv operation"
    path.write_text(
        path.read_text().replace(
            "#!/bin/sh\n",
            f'#!/bin/sh\nif [ "$1" = update ]; then n=$(cat "{count}"); echo $((n + 1)) > "{count}"; '
            f'if [ $n -ge {first} ] && [ $n -lt {until} ]; then echo "{said}" >&2; exit 1; fi; fi\n',
        )
    )


def throttles(stage, run) -> list[int]:
    """The throttle that each array of attempt 1 has now."""
    return [stage.slurm.job(job.id)["throttle"] for job in run.read_jobs(1) if job.kind == "array"]


def updates(stage) -> list[list[str]]:
    """The calls of `scontrol update`."""
    return [argv for argv in stage.slurm.calls("scontrol") if argv[1] == "update"]


@pytest.mark.parametrize("tasks", [1, 8])
def test_refused_while_slurm_is_silent(stage, tasks):
    """Without an answer of squeue nothing is changed, and that is said, with 69."""
    run = haul(stage, 6, 4, 2)
    stage.slurm.set(squeue_fail=True)
    done = stage.medhaul("throttle", run.path, tasks)
    assert done.returncode == 69, done
    assert "from now on" not in done.stdout
    assert run.read_throttle(1) is None
    assert updates(stage) == []


def test_refused_at_a_state_that_nobody_knows(stage):
    """One task that may run for all that is known is enough: what it holds cannot be counted."""
    run = haul(stage, 3, 2, 1)
    stage.slurm.set(state_word="MOONWALKING")
    with pytest.raises(SchedulerError, match="not known"):
        stage.call(throttle, run.path, 1)
    assert run.read_throttle(1) is None


def test_refused_when_only_the_reduce_job_is_left(stage):
    """With no task left there is nothing to change, and no success to report."""
    stage.fake.behave(reduce=["sleep 20"])
    run = stage.run(1)
    stage.call(submit, run.path)
    stage.fake.wait_trace("reduce")
    with pytest.raises(UsageError, match="no task"):
        stage.call(throttle, run.path, 2)
    assert run.read_throttle(1) is None


def test_lowering_that_slurm_refuses_leaves_the_file(stage):
    """When lowering fails, tasks that start go on by the old number: a larger share would exceed the budget."""
    run = haul(stage, 6, 4, 2)
    break_update(stage)
    with pytest.raises(SchedulerError, match="Socket timed out"):
        stage.call(throttle, run.path, 1)
    assert run.read_throttle(1) is None
    assert throttles(stage, run) == [4]


@pytest.mark.parametrize("before", [None, Throttle(tasks=2, connections=32)])
def test_raising_that_slurm_refuses_restores_the_file(stage, before):
    """When raising fails and Slurm has the old number again, the file is as it was."""
    stage.slurm.set(slots=0)
    run = stage.run(6, limits={"tasks": 2, "connections": 64})
    stage.call(submit, run.path)
    if before:
        run.write_throttle(1, before)
    break_update(stage, until=1)
    with pytest.raises(SchedulerError, match="Socket timed out"):
        stage.call(throttle, run.path, 4)
    assert run.read_throttle(1) == before
    assert throttles(stage, run) == [2]


def test_raising_in_doubt_keeps_the_small_share(stage):
    """Where Slurm may have taken the larger number, tasks that start keep to the smaller share."""
    stage.slurm.set(slots=0)
    run = stage.run(6, limits={"tasks": 2, "connections": 64})
    stage.call(submit, run.path)
    break_update(stage)
    with pytest.raises(SchedulerError, match="Socket timed out") as caught:
        stage.call(throttle, run.path, 4)
    assert run.read_throttle(1) == Throttle(tasks=2, connections=16)
    assert "16" in caught.value.hint


def test_raising_counts_what_runs(stage):
    """Tasks at work keep their share: those that start divide what is left, and never exceed the run's budget."""
    run = haul(stage, 6, 2, 1)
    job = run.read_jobs(1)[0].id
    stage.call(throttle, run.path, 4)
    changed = run.read_throttle(1)
    assert (changed.tasks, changed.connections) == (4, (64 - 32) // 3)
    assert changed.held == {f"{job}_0": 32}
    plan = run.read_plan(1)
    assert choose_connections(plan, changed, f"{job}_0") == 32
    assert choose_connections(plan, changed, f"{job}_0.1") == 10
    assert choose_connections(plan, None, f"{job}_1") == 32
    stage.slurm.set(slots=4)
    for shard in (1, 2, 3):
        stage.fake.wait_trace(shard, "child")
    assert "signal" not in stage.fake.trace(0)
    with pytest.raises(UsageError, match="64"):
        stage.call(throttle, run.path, 8)


def test_raising_is_refused_without_room(stage):
    """When those that run hold the whole budget, the command says so and what is possible, and changes nothing."""
    run = haul(stage, 6, 2, 2)
    with pytest.raises(UsageError, match="hold 64 of the run's 64 connections") as caught:
        stage.call(throttle, run.path, 3)
    assert "2 tasks at a time" in caught.value.hint
    assert "cancel" in caught.value.hint
    assert run.read_throttle(1) is None
    assert throttles(stage, run) == [2]
    assert updates(stage) == []


def test_lowering_counts_what_runs(stage):
    """A task that runs when the number is lowered keeps its share, however late it reads it."""
    run = haul(stage, 6, 4, 2)
    job = run.read_jobs(1)[0].id
    stage.call(throttle, run.path, 1)
    changed = run.read_throttle(1)
    assert (changed.tasks, changed.connections) == (1, 64)
    assert changed.held == {f"{job}_0": 16, f"{job}_1": 16}
    assert throttles(stage, run) == [1]


def test_rest_of_a_submission_keeps_the_throttle(tmp_path):
    """Arrays that `--continue` submits later share the number as it was changed."""
    with SlurmStage(tmp_path / "stage", nodes=["n1"], max_array_size=4, max_submit_jobs=4, slots=0) as stage:
        run = stage.run(8, limits={"tasks": 6, "connections": 64})
        assert stage.medhaul("submit", run.path).returncode == 69
        assert throttles(stage, run) == [3]
        done = stage.medhaul("throttle", run.path, 1)
        assert done.returncode == 64
        assert "the least is 2" in done.stderr
        assert stage.medhaul("throttle", run.path, 3).returncode == 0
        assert throttles(stage, run) == [2]
        stage.slurm.set(max_submit_jobs=None)
        done = stage.medhaul("submit", run.path, "--continue")
        assert done.returncode == 0, done.stderr
        assert throttles(stage, run) == [2, 1]


def test_a_task_that_starts_meanwhile_is_counted(stage, monkeypatch):
    """A task that starts between the question and the file holds the old share, and is counted so."""
    run = haul(stage, 6, 3, 1)
    from pipeline.rundir import RunDir

    write = RunDir.write_throttle
    written = []

    def slow(self, attempt, changed):
        if not written:
            with open_cluster(stage.slurm.root) as cluster:
                cluster["knobs"]["slots"] = 2
            wait_until(lambda: stage.fake.trace(1))
        written.append(changed)
        write(self, attempt, changed)

    monkeypatch.setattr(RunDir, "write_throttle", slow)
    stage.call(throttle, run.path, 5)
    changed = run.read_throttle(1)
    assert sorted(changed.held.values()) == [21, 21]
    assert changed.connections == (64 - 2 * 21) // 3
    assert [made.tasks for made in written] == [3, 3, 5]


@given(
    budget=st.integers(1, 200),
    tasks=st.integers(1, 30),
    lanes=st.integers(1, 4),
    data=st.data(),
)
def test_no_mix_exceeds_the_budget(budget, tasks, lanes, data):
    """Whichever of the running tasks end first, old and new shares together stay within the budget."""
    tasks = max(tasks, lanes)
    allowed = split_tasks(tasks, lanes)
    held = [data.draw(st.lists(st.integers(1, 40), max_size=6)) for _ in allowed]
    share = choose_share(budget, allowed, held)
    assert 0 <= share <= budget // tasks
    if not share:
        assert largest_load(allowed, held, 1) > budget
        return
    for _ in range(5):
        load = 0
        for most, mine in zip(allowed, held, strict=True):
            kept = [value for value in mine if data.draw(st.booleans())]
            load += sum(kept) + max(0, most - len(kept)) * share
        assert load <= budget
    assert largest_load(allowed, held, share + 1) > budget or share == budget // tasks
