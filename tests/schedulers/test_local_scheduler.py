"""What only the local scheduler promises: one controller, which leaves nothing behind, and a truthful state file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.process import ProcessId, identify_process, process_alive, signal_process
from pipeline.schedulers.attempt import Liveness, read_attempt
from pipeline.schedulers.base import ReduceSpec, SchedulerError, State, alive, ended
from pipeline.schedulers.local import LocalScheduler
from pipeline.schedulers.local_state import (
    MAX_REQUEUES,
    Limits,
    LocalTask,
    Sent,
    choose_action,
    classify_end,
    judge_task,
    limit_times,
    next_action_time,
    read_state,
    write_state,
)
from pipeline.schedulers.submission import SCRIPTS, submit_attempt
from tests.schedulers.fake_run import end_process, process_lives, wait_until, write_run

LIMITS = Limits(time=100.0, lead=20.0, kill=5.0)


def test_killed_controller_takes_its_tasks_along(fake, tmp_path):
    """When the controller is killed its tasks get SIGTERM, and what it can no longer book is called lost."""
    fake.behave(s0=["wait term"])
    run = write_run(tmp_path / "storage", 2, tables={"local": {"jobs": 1}})
    scheduler = LocalScheduler(run, environ=fake.environ)
    submit_attempt(run, scheduler, [0, 1])
    child = int(fake.wait_trace(0, "child")["child"])
    try:
        os.kill(read_state(run, 1).owner.pid, signal.SIGKILL)
        assert fake.wait_trace(0, "signal")["signal"] == signal.SIGTERM
        wait_until(lambda: read_attempt(run, 1, scheduler).liveness is Liveness.ENDED)
    finally:
        end_process(child)
    attempt = read_attempt(run, 1, scheduler)
    assert {status.state for status in attempt.states.values()} == {State.LOST}
    assert fake.trace("reduce") is None
    assert "controller died" in attempt.shard_tasks()[0][1].note


def test_orphan_that_ignores_term_is_alive_until_forced(fake, tmp_path):
    """A task that outlives its killed controller still counts as alive, so that no second life starts beside it."""
    fake.behave(s0=["wait usr1"])
    run = write_run(tmp_path / "storage", 1)
    scheduler = LocalScheduler(run, environ=fake.environ)
    submit_attempt(run, scheduler, [0])
    facts = fake.wait_trace(0, "child")
    pid = int(read_state(run, 1).tasks[0].process.pid)
    try:
        os.kill(read_state(run, 1).owner.pid, signal.SIGKILL)
        wait_until(lambda: not process_alive(read_state(run, 1).owner))
        assert read_attempt(run, 1, scheduler).liveness is Liveness.ALIVE
        assert read_attempt(run, 1, scheduler).stopping
        unwritten = msgspec.structs.replace(read_state(run, 1), tasks=[LocalTask()])  # killed before it could write
        write_state(run, 1, unwritten)
        assert read_attempt(run, 1, scheduler).shard_tasks()[0][1].state is State.RUNNING
        assert read_attempt(run, 1, scheduler).stopping
        scheduler.cancel(run.read_jobs(1))
        assert process_lives(pid)
        scheduler.cancel(run.read_jobs(1), force=True)
        wait_until(lambda: read_attempt(run, 1, scheduler).liveness is Liveness.ENDED)
    finally:
        end_process(pid)
        end_process(int(facts["child"]))


def test_controller_leaves_with_its_work(fake, tmp_path):
    """The controller ends with the reduce job, in a session of its own, and says what it did in its log."""
    run = write_run(tmp_path / "storage", 1)
    scheduler = LocalScheduler(run, environ=fake.environ)
    submit_attempt(run, scheduler, [0])
    owner = read_state(run, 1).owner
    assert owner.pid != os.getpid()
    wait_until(lambda: not process_lives(owner.pid))
    assert "reduce completed" in (run.logs(1) / "controller.log").read_text()


def test_controller_that_cannot_start_is_an_error(fake, tmp_path):
    """A controller that ends before it took over fails the submission and names its log."""
    run = write_run(tmp_path / "storage", 1)
    scheduler = LocalScheduler(run, environ={**fake.environ, "PYTHONHOME": str(tmp_path)})
    with pytest.raises(SchedulerError) as caught:
        submit_attempt(run, scheduler, [0])
    assert "controller.log" in caught.value.hint
    assert read_attempt(run, 1, scheduler).plan.shards == [0]


def test_reduce_waits_for_its_own_array_only(fake, tmp_path):
    """A reduce job for two arrays, or for an array of another attempt, is refused."""
    run = write_run(tmp_path / "storage", 1)
    scheduler = LocalScheduler(run, environ=fake.environ)
    submit_attempt(run, scheduler, [0])
    wait_until(lambda: read_attempt(run, 1, scheduler).liveness is Liveness.ENDED)
    spec = ReduceSpec(run=run.path, attempt=1, name="x", script=SCRIPTS / "reduce.sh", logs=run.logs(1))
    job = run.read_jobs(1)[0]
    with pytest.raises(SchedulerError, match="one array"):
        scheduler.submit_reduce(spec, [job, job])
    with pytest.raises(SchedulerError, match="not of attempt"):
        scheduler.submit_reduce(spec, [msgspec.structs.replace(job, id="1")])


def test_other_hosts_controller_is_unknown(fake, tmp_path):
    """What a controller of another host does cannot be known here, and it cannot be cancelled from here."""
    run = write_run(tmp_path / "storage", 1)
    scheduler = LocalScheduler(run, environ=fake.environ)
    submit_attempt(run, scheduler, [0])
    wait_until(lambda: read_attempt(run, 1, scheduler).liveness is Liveness.ENDED)
    state = read_state(run, 1)
    away = msgspec.structs.replace(state.owner, host=state.owner.host + "-other")
    write_state(run, 1, msgspec.structs.replace(state, owner=away, tasks=[LocalTask(state=State.RUNNING)]))
    attempt = read_attempt(run, 1, scheduler)
    assert attempt.liveness is Liveness.UNKNOWN
    with pytest.raises(SchedulerError, match="-other"):
        scheduler.cancel(attempt.jobs)


def test_process_identity():
    """A process is itself only while it lives, with its own start, on its own host and boot."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        it = identify_process(child.pid)
        assert process_alive(it)
        assert not process_alive(msgspec.structs.replace(it, start=it.start + 1))
        assert not process_alive(msgspec.structs.replace(it, boot="another"))
        assert process_alive(msgspec.structs.replace(it, host="elsewhere.invalid")) is None
        assert not signal_process(msgspec.structs.replace(it, start=it.start + 1), signal.SIGKILL)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process_alive(it)  # a zombie
    assert not process_alive(it)
    assert identify_process(2**22 + 1) is None
    assert it.host == socket.gethostname()


def test_states_are_alive_or_ended_or_unknown():
    """Every state but UNKNOWN is exactly one of alive and ended; UNKNOWN is neither."""
    for state in State:
        assert alive(state) + ended(state) == (state is not State.UNKNOWN)


@given(
    time=st.floats(0.1, 1e6),
    lead=st.floats(0, 1e6),
    kill=st.floats(0, 100),
)
def test_signals_come_in_order(time, lead, kill):
    """An unhurried task gets USR1 at half its time or later, then TERM at the limit, then KILL, each once."""
    limits = Limits(time=time, lead=lead, kill=kill)
    sent, now, seen = Sent(), 0.0, []
    while (due := next_action_time(0.0, limits, sent)) is not None:
        now = max(now, due)
        action = choose_action(0.0, now, limits, sent, cancelled=False)
        assert action is not None
        seen.append((action, now))
        changes = {"usr1": {"usr1": True}, "term": {"term": now}, "kill": {"kill": True}}[action]
        sent = msgspec.structs.replace(sent, **changes)
    assert [action for action, _ in seen][-2:] == ["term", "kill"]
    assert len(seen) <= 3
    assert all(at >= time / 2 for _, at in seen)
    assert seen[-1][1] >= time + kill


def test_no_limit_no_signal():
    """Without a time limit only a cancel signals a task."""
    limits = Limits(time=0.0, lead=180.0, kill=5.0)
    assert limit_times(limits) is None
    assert choose_action(0.0, 1e9, limits, Sent(), cancelled=False) is None
    assert choose_action(0.0, 1.0, limits, Sent(), cancelled=True) == "term"
    assert choose_action(0.0, 5.9, limits, Sent(term=1.0), cancelled=True) is None
    assert choose_action(0.0, 6.0, limits, Sent(term=1.0), cancelled=True) == "kill"


@pytest.mark.parametrize(
    ("status", "sent", "restarts", "cancelled", "state"),
    [
        (0, Sent(), 0, False, State.COMPLETED),
        (0, Sent(usr1=True, term=1.0), 0, True, State.COMPLETED),
        (3, Sent(), 0, False, State.FAILED),
        (75, Sent(), 0, False, State.FAILED),
        (-9, Sent(), 0, False, State.FAILED),
        (75, Sent(usr1=True), 0, False, State.PENDING),
        (75, Sent(usr1=True, term=1.0), MAX_REQUEUES - 1, False, State.PENDING),
        (75, Sent(usr1=True), MAX_REQUEUES, False, State.TIMEOUT),
        (75, Sent(usr1=True), 0, True, State.TIMEOUT),
        (3, Sent(usr1=True), 0, False, State.FAILED),
        (-9, Sent(usr1=True, term=1.0, kill=True), 0, False, State.TIMEOUT),
        (75, Sent(term=1.0), 0, True, State.CANCELLED),
        (-15, Sent(term=1.0), 0, True, State.CANCELLED),
    ],
)
def test_classify_end(status, sent, restarts, cancelled, state):
    """How a task ended follows from its wait status and from the signals it was sent; requeues are bounded."""
    task = LocalTask(state=State.RUNNING, began=1.0, restarts=restarts)
    made = classify_end(task, status, sent, 2.0, cancelled=cancelled)
    assert made.state is state
    assert made.restarts == restarts + (state is State.PENDING)


@given(
    state=st.sampled_from([state for state in State if state is not State.UNKNOWN]),
    owner=st.sampled_from([True, False, None]),
    lives=st.sampled_from([True, False, None]),
)
def test_judge_never_invents_life(state, owner, lives):
    """Without a living controller a task is alive only if its own process is; an ended task stays as it ended."""
    judged = judge_task(LocalTask(state=state), owner_alive=owner, process_alive=lives).state
    if ended(state) or owner:
        assert judged is state
    elif owner is None:
        assert judged is State.UNKNOWN
    else:
        assert judged is (State.RUNNING if lives else State.LOST)


def test_state_file_of_many_tasks_is_small(fake, tmp_path):
    """The state of ten thousand waiting tasks is written in few bytes."""
    run = write_run(tmp_path / "storage", 1)
    submit_attempt(run, LocalScheduler(run, environ=fake.environ), [0])
    wait_until(lambda: not process_lives(read_state(run, 1).owner.pid))
    big = msgspec.structs.replace(read_state(run, 1), tasks=[LocalTask()] * 10_000)
    assert len(msgspec.json.encode(big)) < 50_000
    assert isinstance(big.owner, ProcessId)
