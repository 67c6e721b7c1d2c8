"""`submit`, `run`, `resume` and `cancel` on runs whose tasks are played by a fake `medhaul`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import pipeline
from pipeline.cli import submitting, waiting
from pipeline.cli.cancel import cancel
from pipeline.cli.resume import resume
from pipeline.cli.run import run as run_command
from pipeline.cli.submit import submit
from pipeline.errors import InterruptedRunError, ItemsFailedError, MedhaulError, StorageError, UsageError
from pipeline.plan.planner import Plan
from pipeline.schedulers import submission
from pipeline.schedulers.attempt import Attempt, Liveness, read_attempt
from pipeline.schedulers.base import State, TaskStatus
from pipeline.schedulers.local import LocalScheduler
from pipeline.schedulers.local_state import read_state
from tests.report.test_status_report import Told, submitted
from tests.schedulers.fake_run import (
    end_process,
    make_fake,
    process_lives,
    receipt_of,
    wait_until,
    write_part,
    write_run,
)

MAIN = """
import sys
from pipeline.cli.submit import submit
from pipeline.errors import MedhaulError
try:
    submit(standalone_mode=False)
except MedhaulError as error:
    sys.exit(f"{type(error).__name__}: {error}; {error.hint}")
"""


class Stage:
    """A run, a fake `medhaul`, and a way to call commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fake = make_fake(root / "fake")
        self.environ = {key: value for key, value in self.fake.environ.items() if not key.startswith("SLURM_")}

    def run(self, shards: int, **tables: object):
        """A planned run."""
        return write_run(self.root / "it's storage", shards, tables=tables)

    def call(self, command, *words: object, env: dict[str, str] | None = None):
        """Call a command; what it raised is raised."""
        done = CliRunner(env=self.environ | {"SLURM_JOB_ID": None} | (env or {})).invoke(
            command, [str(word) for word in words]
        )
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def settle(self, run, number: int = 1) -> Attempt:
        """Wait for an attempt's end."""
        scheduler = LocalScheduler(run)
        wait_until(lambda: read_attempt(run, number, scheduler).liveness is Liveness.ENDED)
        return read_attempt(run, number, scheduler)


@pytest.fixture
def stage(tmp_path):
    """Yield a stage, and end controllers that a failed test left."""
    it = Stage(tmp_path)
    yield it
    for state in tmp_path.glob("it's storage/r1/attempts/*/local.json"):
        end_process(msgspec.json.decode(state.read_bytes())["owner"]["pid"])
    it.fake.end_children()


def test_submit_prints_how_to_go_on(stage):
    """Submit starts the tasks, returns at once, and prints the run and commands that a shell takes as they are."""
    run = stage.run(2)
    done = stage.call(submit, run.path)
    for word in ("status", "failed", "resume", "cancel"):
        assert (
            f"medhaul {word} '{str(run.path).replace(chr(39), chr(39) + chr(34) + chr(39) + chr(34) + chr(39))}'"
            in (done.stdout)
        )
    assert f"run      {run.path}" in done.stdout
    assert "2 tasks, 2 at a time with 32 connections each" in done.stdout
    assert {status.state for status in stage.settle(run).states.values()} == {State.COMPLETED}


def test_submit_waits_with_the_reduce_jobs_outcome(stage):
    """With --wait the archives are told at the end, and a reduce job that ends with 3 ends the command with 3."""
    run = stage.run(2)
    stage.fake.behave(s1=["exit 69"])
    with pytest.raises(ItemsFailedError) as caught:
        stage.call(submit, run.path, "--wait")
    assert caught.value.exit_code == 3
    assert "medhaul resume" in caught.value.hint
    stage.fake.behave()
    done = stage.call(resume, run.path, "--wait")
    assert str(run.archives / "a0.tar.xz") in done.stdout
    assert run.read_plan(2).shards == [1]


def test_nothing_to_do(stage):
    """A run that is complete is not submitted again, by neither command."""
    run = stage.run(1)
    stage.call(submit, run.path, "--wait")
    for command in (submit, resume):
        done = stage.call(command, run.path)
        assert "nothing to do" in done.stdout
        assert "a0.tar.xz" in done.stdout
    assert run.attempts() == [1]


def test_resume_with_all_receipts_only_reduces(stage):
    """When every shard is good but an archive is missing, the new attempt has the reduce job alone."""
    run = stage.run(2)
    for shard in range(2):
        run.write_receipt(receipt_of(shard))
        write_part(run, shard)
    done = stage.call(resume, run.path, "--wait")
    assert run.read_plan(1).shards == []
    assert stage.fake.trace(0) is None
    assert "001 on the local scheduler: the reduce job" in done.stdout
    assert (run.archives / "a0.tar.xz").exists()


def test_resume_names_damaged_receipts(stage):
    """A damaged receipt is told on stderr, and its shard is done again."""
    run = stage.run(3)
    for shard in range(3):
        run.write_receipt(receipt_of(shard))
        write_part(run, shard, 100 if shard else 99)
    run.receipt(2).write_bytes(b"{")
    done = stage.call(resume, run.path, "--wait")
    assert str(run.receipt(2)) in done.stderr
    assert run.read_plan(1).shards == [0, 2]


def test_refused_while_alive(stage):
    """While tasks live neither submit nor resume starts others; cancel ends them and says how to go on."""
    run = stage.run(2)
    stage.fake.behave(s0=["wait term"])
    stage.call(submit, run.path)
    stage.fake.wait_trace(0, "child")
    for command in (submit, resume):
        with pytest.raises(UsageError, match="still at work"):
            stage.call(command, run.path)
    done = stage.call(cancel, run.path)
    assert "medhaul resume" in done.stdout
    assert stage.settle(run).shard_tasks()[0][1].state is State.CANCELLED
    assert "nothing is at work" in stage.call(cancel, run.path).stdout
    stage.fake.behave()
    stage.call(resume, run.path, "--wait")
    assert run.attempts() == [1, 2]


def test_resume_after_killed_controller(stage):
    """Right after the controller died resume goes on with what has no receipt."""
    run = stage.run(3, local={"jobs": 1})
    stage.fake.behave(s1=["wait term"])
    stage.call(submit, run.path)
    child = stage.fake.wait_trace(1, "child")["child"]
    owner = read_state(run, 1).owner.pid
    end_process(owner)
    wait_until(lambda: not process_lives(owner))  # what it started may still be stopping; resume waits for that
    stage.fake.behave()
    try:
        stage.call(resume, run.path, "--wait")
    finally:
        end_process(child)
    assert run.read_plan(2).shards == [1, 2]
    assert (run.archives / "a0.tar.xz").exists()


def test_dry_run_submits_nothing(stage):
    """A dry run tells the attempt that would be, and leaves no trace."""
    run = stage.run(5, limits={"tasks": 3, "connections": 9}, local={"jobs": 8})
    before = sorted(path.name for path in run.path.rglob("*"))
    done = stage.call(submit, run.path, "--dry-run")
    assert "5 tasks, 3 at a time with 3 connections each" in done.stdout
    assert sorted(path.name for path in run.path.rglob("*")) == before


def test_impossible_targets(stage):
    """Options of sbatch that are medhaul's own, a missing path and a folder without a run are usage errors."""
    run = stage.run(1)
    for words in ([run.path, "--sbatch=--array=1"], [stage.root / "none"], [stage.root]):
        with pytest.raises(UsageError):
            stage.call(submit, *words)
    with pytest.raises(UsageError):
        stage.call(resume, stage.root)
    assert run.attempts() == []


def test_inside_a_slurm_job_submit_waits(stage):
    """Inside a Slurm job, whose end would kill the tasks, submit waits for them though not asked to."""
    run = stage.run(1)
    stage.fake.behave(s0=["sleep 0.3"])
    done = stage.call(submit, run.path, env={"SLURM_JOB_ID": "7"})
    assert "waiting for them" in done.stderr
    assert (run.archives / "a0.tar.xz").exists()


def test_run_plans_submits_and_waits(stage, monkeypatch):
    """`run` goes from a config file to archives; quiet leaves only the answer."""
    run = stage.run(2)
    config = stage.root / "c.toml"
    config.touch()
    index = run.read_manifest_index()
    plan = Plan(
        **dict.fromkeys(Plan._fields, 0) | {"run": run, "source": "idc", "release": "25", "archives": index.archives}
    )

    def planned(path, echo, *, dry_run, route, check):
        assert (path, dry_run) == (config, False)
        check(run.path)
        return plan, run.read_config()

    monkeypatch.setattr(submitting, "plan_file", planned)
    done = stage.call(run_command, config)
    assert "archives/a0.tar.xz" in done.stdout
    assert "shards " in done.stderr


def test_ctrl_c_cancels_and_tells_how_to_resume(stage):
    """Ctrl-C tells the tasks to stop, waits for them, and ends with the resume command and the interrupted error."""
    run = stage.run(2)
    stage.fake.behave(s0=["wait term"], s1=["wait term"])
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, str(run.path), "--wait"],
        cwd=Path(pipeline.__file__).parents[1],
        env=stage.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        for shard in (0, 1):
            stage.fake.wait_trace(shard, "child")
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert "InterruptedRunError" in errors
    assert "medhaul resume" in errors
    assert {status.state for status in stage.settle(run).states.values()} == {State.CANCELLED}


def test_interrupt_during_submission_is_not_lost(stage, monkeypatch):
    """Ctrl-C that comes while the attempt is being submitted cancels it as soon as it is on record."""
    run = stage.run(1)
    stage.fake.behave(s0=["wait term"])
    made = submission.reduce_spec

    def interrupted(*words):
        os.kill(os.getpid(), signal.SIGINT)
        return made(*words)

    monkeypatch.setattr(submission, "reduce_spec", interrupted)
    with pytest.raises(InterruptedRunError, match="cancelled"):
        stage.call(submit, run.path, "--wait")
    assert len(run.read_jobs(1)) == 2
    assert {status.state for status in stage.settle(run).states.values()} == {State.CANCELLED}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (TaskStatus(State.COMPLETED, exit_code=0), None),
        (TaskStatus(State.FAILED, exit_code=3), ItemsFailedError),
        (TaskStatus(State.FAILED, exit_code=73), StorageError),
        (TaskStatus(State.FAILED, exit_code=75), InterruptedRunError),
        (TaskStatus(State.FAILED, exit_code=1), MedhaulError),
        (TaskStatus(State.FAILED, signal=9), InterruptedRunError),
        (TaskStatus(State.LOST), InterruptedRunError),
        (TaskStatus(State.TIMEOUT, exit_code=75), InterruptedRunError),
        (TaskStatus(State.UNKNOWN), InterruptedRunError),
    ],
)
def test_outcome(tmp_path, status, kind):
    """The command's error, and so its exit code, is the reduce job's; no unknown end counts as success."""
    told = Told(s0=TaskStatus(State.COMPLETED, exit_code=0), reduce=status)
    report, attempt = submitted(write_run(tmp_path, 1), 1, told).collect()
    error = waiting.choose_outcome(report, attempt, cancelled=False)
    assert type(error) is (kind or type(None))
    assert isinstance(waiting.choose_outcome(report, attempt, cancelled=True), InterruptedRunError)
    assert isinstance(waiting.choose_outcome(report, None, cancelled=False), InterruptedRunError)
