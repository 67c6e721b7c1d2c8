"""Planning and claiming attempts: dense indices, divided connections, and never two submits at once."""

from __future__ import annotations

import subprocess
import sys
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.process import identify_process
from pipeline.records import Job
from pipeline.rundir import encode_record
from pipeline.schedulers.attempt import Liveness, check_idle, classify_liveness, plan_attempt, read_attempt
from pipeline.schedulers.base import Bounds, SchedulerError, State, TaskStatus, job_keys
from pipeline.schedulers.choose import choose_scheduler, open_scheduler
from pipeline.schedulers.submission import submit_attempt
from pipeline.settings import Limits
from tests.schedulers.fake_run import SHA, write_run


class Paper:
    """A scheduler that only writes down what it is given."""

    name = "local"

    def __init__(self, *, refuse_reduce: bool = False) -> None:
        self.specs = []
        self.refuse_reduce = refuse_reduce
        self.state = State.COMPLETED

    poll = 0.0

    def bounds(self):
        return Bounds()

    def submit_array(self, spec):
        self.specs.append(spec)
        return Job(kind="array", name=spec.name, id="1", offset=spec.offset, length=spec.length)

    def submit_reduce(self, spec, after):
        if self.refuse_reduce:
            raise SchedulerError("queue is full")
        self.specs.append((spec, list(after)))
        return Job(kind="reduce", name=spec.name, id="2")

    def recover(self, plan):
        return []

    def states(self, jobs):
        return {key: TaskStatus(self.state) for key in job_keys(jobs)}

    def cancel(self, jobs, *, force=False):
        raise AssertionError


def plan(shards, limits, slots=None):
    """Plan attempt 1 of a run."""
    return plan_attempt(
        shards,
        limits,
        run="r",
        attempt=1,
        manifest_sha256=SHA,
        scheduler="local",
        bounds=Bounds(slots=slots),
        created="",
        tag="t",
    )


@given(
    shards=st.lists(st.integers(0, 10**6), max_size=50),
    connections=st.integers(1, 1024),
    data=st.data(),
    slots=st.none() | st.integers(1, 100),
)
def test_plan_keeps_the_budget(shards, connections, data, slots):
    """Each shard stands once; tasks and connections at a time never exceed what the run may use."""
    limits = Limits(connections=connections, tasks=data.draw(st.integers(1, connections)))
    made = plan(shards, limits, slots)
    assert made.shards == sorted(set(shards))
    assert 1 <= made.tasks <= limits.tasks
    assert slots is None or made.tasks <= slots
    assert made.connections >= 1
    assert made.tasks * made.connections <= limits.connections


def test_submit_writes_jobs_as_they_come(tmp_path):
    """When the reduce job is refused, the array that was taken is on record."""
    run = write_run(tmp_path, 3)
    with pytest.raises(SchedulerError):
        submit_attempt(run, Paper(refuse_reduce=True), [0, 2])
    assert [job.kind for job in run.read_jobs(1)] == ["array"]
    assert run.read_plan(1).shards == [0, 2]


def test_submit_gives_reduce_its_arrays(tmp_path):
    """The reduce job depends on the array; both have names that no other attempt has."""
    run = write_run(tmp_path, 3)
    paper = Paper()
    submit_attempt(run, paper, [0, 1, 2])
    submit_attempt(run, paper, [1])
    array, (reduce, after), later, _ = paper.specs
    assert (array.length, array.throttle, array.offset) == (3, 3, 0)
    assert [job.id for job in after] == ["1"]
    assert len({array.name, reduce.name, later.name}) == 3
    assert later.attempt == 2


def test_same_number_is_taken_once(tmp_path):
    """Of many submits that saw the same newest attempt, exactly one goes on, and nothing of the others is left."""
    run = write_run(tmp_path, 1)
    results = []

    def submit():
        try:
            results.append(submit_attempt(run, Paper(), [0], after=0).attempt)
        except UsageError as error:
            results.append(str(error))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result == 1 for result in results) == 1
    assert all("taken" in result for result in results if result != 1)
    assert [path.name for path in (run.path / "attempts").iterdir()] == ["001"]


def test_submit_under_way_is_alive_until_its_submitter_dies(tmp_path):
    """An attempt without a reduce job blocks others while its submitter lives, and no longer."""
    run = write_run(tmp_path, 1)
    with pytest.raises(SchedulerError):
        submit_attempt(run, Paper(refuse_reduce=True), [0])
    paper = Paper()
    attempt = read_attempt(run, 1, paper)
    assert attempt.liveness is Liveness.ALIVE
    with pytest.raises(UsageError, match="at work"):
        check_idle(run, attempt)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        gone = identify_process(child.pid)
        child.kill()
    submitter = run.attempt_folder(1) / "submitter.json"
    submitter.write_bytes(encode_record(gone))
    assert read_attempt(run, 1, paper).liveness is Liveness.ENDED
    submitter.write_bytes(encode_record(msgspec.structs.replace(gone, host="elsewhere.invalid")))
    unknown = read_attempt(run, 1, paper)
    assert unknown.liveness is Liveness.UNKNOWN
    with pytest.raises(UsageError) as caught:
        check_idle(run, unknown)
    assert "--assume-dead" in caught.value.hint
    check_idle(run, unknown, assume_dead=True)


@given(states=st.lists(st.sampled_from(list(State)), min_size=1, max_size=5))
def test_unknown_is_never_ended(states):
    """An attempt counts as ended only when every task has, and as alive when one is."""
    job, reduce = Job(kind="array", name="", id="1", length=len(states)), Job(kind="reduce", name="", id="2")
    found = {("1", index): TaskStatus(state) for index, state in enumerate(states)}
    found["2", 0] = TaskStatus(State.COMPLETED)
    made = classify_liveness([job, reduce], found, submitter_alive=False)
    if {State.PENDING, State.RUNNING} & set(states):
        assert made is Liveness.ALIVE
    else:
        assert made is (Liveness.UNKNOWN if State.UNKNOWN in states else Liveness.ENDED)


def test_choose_scheduler(tmp_path):
    """`auto` takes Slurm where there is an sbatch; `slurm` without one is refused, as is a scheduler nobody knows."""
    with pytest.raises(UsageError, match="no sbatch"):
        choose_scheduler("slurm", lambda _: None)
    assert choose_scheduler("auto", lambda _: None) == "local"
    assert choose_scheduler("auto", lambda _: "/usr/bin/sbatch") == "slurm"
    assert choose_scheduler("local", lambda _: "/usr/bin/sbatch") == "local"
    with pytest.raises(UsageError, match="submitted to the scheduler 'moon'"):
        open_scheduler("moon", write_run(tmp_path, 1))
