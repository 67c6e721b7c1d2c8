"""What a review found of submitting and cancelling on Slurm: nothing twice, nothing that goes on after a cancel."""

from __future__ import annotations

import os
import shlex
import signal

import msgspec
import pytest

import pipeline.cli.cancel as cancelling
from pipeline.cli.cancel import cancel
from pipeline.cli.resume import resume
from pipeline.cli.submit import submit
from pipeline.errors import InterruptedRunError, UsageError
from pipeline.process import ProcessId
from pipeline.rundir import RunDir, encode_record, read_record
from pipeline.schedulers.attempt import Liveness, submitter_path
from pipeline.schedulers.base import SchedulerError, alive
from pipeline.schedulers.submission import array_specs, continue_attempt, submit_attempt
from tests.schedulers.fake_run import wait_until
from tests.schedulers.slurm_stage import SlurmStage, shards_done

CONFIG = """
[run]
name = "r2"
[storage]
root = "runs"
logs = "logs"
[select.idc]
content = "both"
collections = ["demo_ct_mr"]
[sources.idc]
s3_endpoint = "demo"
mirror_endpoint = ""
[shards]
count = 2
"""
COMPLETED = "scancel: error: Kill job error on job id 7: Job/step already completing or completed"
UNHEARD = "scancel: error: Kill job error on job id 8: Socket timed out on send/recv operation"


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster runs two tasks at a time."""
    with SlurmStage(tmp_path / "it's a stage", nodes=["n1"]) as it:
        yield it


def bury(run: RunDir, number: int = 1) -> None:
    """Make the process that submitted an attempt another one, which has ended."""
    path = submitter_path(run, number)
    process = read_record(path, ProcessId)
    path.write_bytes(encode_record(msgspec.structs.replace(process, start=process.start + 1)))


def age(run: RunDir) -> None:
    """Make the jobs of attempt 1 older than what a cluster may take to list them."""
    run.write_jobs(1, [msgspec.structs.replace(job, submitted=job.submitted - 1000) for job in run.read_jobs(1)])


def wrap(stage: SlurmStage, name: str, lines: str) -> None:
    """Put lines of shell before what one of the cluster's commands does."""
    path = stage.slurm.root / "bin" / name
    path.write_text(path.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{lines}\n"))


def alive_jobs(stage: SlurmStage) -> list[str]:
    """The ids of the cluster's jobs that wait or run."""
    said = stage.scheduler_calls("squeue", "--noheader", "--array", "--Format=ArrayJobID:20")
    return sorted({line.strip() for line in said.splitlines()})


def other_cluster(stage: SlurmStage) -> dict[str, str]:
    """The environment of another cluster's login node, which has never heard of our jobs."""
    folder = stage.root / "other"
    folder.mkdir()
    texts = {"squeue": "exit 0", "sacct": "exit 0", "scancel": "exit 0", "scontrol": "echo 'ClusterName = other'"}
    for name, text in {**texts, "sbatch": "exit 1"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{stage.environ['PATH']}"}


# -- submit --continue ------------------------------------------------------------------------------------------------


def test_continue_without_an_answer(stage):
    """What may have been taken is not submitted again while squeue does not say, and --assume-dead changes nothing."""
    run = stage.run(2)
    stage.slurm.set(sbatch_timeout=1, squeue_fail=True)
    with pytest.raises(SchedulerError, match="whether"):
        submit_attempt(run, stage.scheduler(run), [0, 1])
    bury(run)
    for words in ((), ("--assume-dead",)):
        refused = stage.medhaul("submit", "--continue", *words, run.path)
        assert refused.returncode == 69, refused
        assert "does not say what it took of attempt 001" in refused.stderr
    assert len(stage.slurm.calls("sbatch")) == 1
    stage.slurm.set(squeue_fail=0)
    assert stage.medhaul("submit", "--continue", run.path).returncode == 0
    stage.settle(run)
    assert [len(stage.jobs_named(job.name)) for job in run.read_jobs(1)] == [1, 1]
    assert shards_done(stage, 2) == [1, 1]


def test_continue_looks_before_each_submission(stage):
    """Going on, a job that an earlier call of sbatch got through late is found, whenever it comes."""
    stage.slurm.set(slots=0, max_array_size=2, max_submit_jobs=2)
    run = stage.run(6, limits={"tasks": 3})
    with pytest.raises(SchedulerError):
        submit_attempt(run, stage.scheduler(run), range(6))
    bury(run)
    stage.slurm.set(max_submit_jobs=None)
    late = stage.scheduler(run)
    specs = array_specs(run.path, run.logs(1), run.read_plan(1))
    scheduler = stage.scheduler(run)
    submitted = scheduler.submit_array

    def submit_array(spec):
        if spec.name == specs[1].name:
            late.submit_array(specs[2])
        return submitted(spec)

    scheduler.submit_array = submit_array
    continue_attempt(run, scheduler, stage.attempt(run))
    jobs = run.read_jobs(1)
    assert [job.kind for job in jobs] == ["array"] * 3 + ["reduce"]
    assert [stage.jobs_named(job.name) for job in jobs] == [[job.id] for job in jobs]


def test_two_continues_at_once(stage):
    """Of two commands that go on at the same time one does, and the other says why not."""
    stage.slurm.set(slots=0, max_array_size=2, max_submit_jobs=2)
    run = stage.run(4, limits={"tasks": 2})
    assert stage.medhaul("submit", run.path).returncode == 69
    stage.slurm.set(max_submit_jobs=None)
    for name in ("sbatch", "scontrol"):
        wrap(stage, name, "sleep 0.5")
    children = [stage.popen("submit", "--continue", run.path) for _ in range(2)]
    ends = [(child.communicate(timeout=60)[1], child.returncode) for child in children]
    assert sorted(code for _, code in ends) == [0, 64], ends
    assert [len(stage.jobs_named(job.name)) for job in run.read_jobs(1)] == [1, 1, 1]


def test_continue_takes_over_once(stage):
    """Whoever looked before another one went on is refused, also when that one has ended since."""
    stage.slurm.set(slots=0, max_array_size=2, max_submit_jobs=2)
    run = stage.run(6, limits={"tasks": 3})
    assert stage.medhaul("submit", run.path).returncode == 69
    before = stage.attempt(run)
    stage.slurm.set(max_submit_jobs=4)
    assert stage.medhaul("submit", "--continue", run.path).returncode == 69
    calls = len(stage.slurm.calls("sbatch"))
    with pytest.raises(UsageError, match="another command has just begun"):
        continue_attempt(run, stage.scheduler(run), before)
    assert len(stage.slurm.calls("sbatch")) == calls
    stage.slurm.set(max_submit_jobs=None)
    assert stage.medhaul("submit", "--continue", run.path).returncode == 0
    assert stage.attempt(run).reduce is not None


def test_continue_keeps_options_and_shows_them(stage):
    """The options of the submission that was broken off hold on, and --dry-run prints word for word what is missing."""
    stage.slurm.set(slots=0, max_array_size=2, max_submit_jobs=2)
    run = stage.run(6, limits={"tasks": 2})
    assert stage.medhaul("submit", run.path, "--sbatch=--comment=high").returncode == 69
    assert run.read_plan(1).extra == ["--comment=high"]
    stage.slurm.set(max_submit_jobs=None)
    stage.slurm.reset_calls()
    shown = stage.medhaul("submit", "--continue", "--dry-run", "--sbatch=--qos=low", run.path)
    assert "dry run: nothing was submitted" in shown.stdout
    assert not stage.slurm.calls("sbatch")
    assert stage.medhaul("submit", "--continue", "--sbatch=--qos=low", run.path).returncode == 0
    printed = [shlex.split(line) for line in shown.stdout.splitlines() if line.startswith("  sbatch ")]
    jobs, used = run.read_jobs(1), stage.slurm.calls("sbatch")
    ids = {f"ID{number}": job.id for number, job in enumerate(jobs)}
    for words in printed:
        for place, known in ids.items():
            words[:] = [word.replace(place, known) if word.startswith("--dependency") else word for word in words]
    assert printed == used
    assert len(used) == 3
    assert all(words[-3:-1] == ["--comment=high", "--qos=low"] for words in used)
    assert f"array 0: was submitted as {jobs[0].id}" in shown.stdout


def test_interrupted_while_submitting(stage):
    """Ctrl-C while submitting tells what was taken and how to go on, which then does each shard once."""
    stage.slurm.set(max_array_size=2)
    run = stage.run(8, limits={"tasks": 4})
    wrap(stage, "sbatch", "sleep 1")
    child = stage.popen("submit", run.path, start_new_session=True)
    wait_until(lambda: run.read_jobs(1) if run.attempts() else [])
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert "attempt 001: submitted " in err
    assert "interrupted" in err
    assert "medhaul submit RUN --continue" in err
    assert stage.medhaul("submit", "--continue", run.path).returncode == 0
    stage.settle(run)
    assert shards_done(stage, 8) == [1] * 8


def test_config_of_a_run_at_work(stage):
    """A submit that is refused, because tasks live, does not give them another config."""
    stage.slurm.set(slots=0)
    config = stage.root / "config.toml"
    config.write_text(CONFIG)
    assert stage.medhaul("submit", config).returncode == 0
    frozen = (stage.root / "runs" / "r2" / "run.json").read_bytes()
    config.write_text(CONFIG + "[slurm]\nrequeue = 7\n")
    refused = stage.medhaul("submit", config)
    assert refused.returncode == 64
    assert (stage.root / "runs" / "r2" / "run.json").read_bytes() == frozen
    assert "is still at work" in refused.stderr
    assert "--assume-dead" in refused.stderr
    assert stage.medhaul("cancel", stage.root / "runs" / "r2").returncode == 0
    assert stage.medhaul("submit", config).returncode == 0
    assert RunDir(stage.root / "runs" / "r2").read_config().slurm.requeue == 7


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_while_submitting(stage):
    """A cancel that comes while arrays go in stops the submission as well, and returns when nothing lives."""
    stage.slurm.set(max_array_size=2)
    stage.fake.behave(**{f"s{shard}": ["wait usr1 term"] for shard in range(8)})
    run = stage.run(8, limits={"tasks": 4})
    wrap(stage, "sbatch", "sleep 1.5")
    child = stage.popen("submit", run.path)
    wait_until(lambda: run.read_jobs(1) if run.attempts() else [])
    done = stage.medhaul("cancel", run.path)
    assert done.returncode == 0, done
    assert alive_jobs(stage) == []
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert "cancelled meanwhile" in err
    assert len(stage.slurm.calls("sbatch")) < 5
    assert stage.attempt(run).liveness is Liveness.ENDED
    refused = stage.medhaul("submit", "--continue", run.path)
    assert refused.returncode == 64
    assert "was cancelled" in refused.stderr


def test_cancel_finds_twins(stage):
    """What was taken twice under one name is cancelled twice, though only one of them was written down."""
    stage.slurm.set(slots=0)
    run = stage.run(2)
    stage.call(submit, run.path)
    (spec,) = array_specs(run.path, run.logs(1), run.read_plan(1))
    twin = stage.scheduler(run).submit_array(spec)
    assert twin.id in alive_jobs(stage)
    stage.call(cancel, run.path)
    assert alive_jobs(stage) == []


def test_cancel_asks_again(stage):
    """What lives on after it was cancelled, as when it went back into the queue, is cancelled at the next look."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    stage.call(submit, run.path)
    once = stage.root / "once"
    wrap(stage, "scancel", f"[ -e {shlex.quote(str(once))} ] || {{ : > {shlex.quote(str(once))}; exit 0; }}")
    done = stage.call(cancel, run.path)
    assert "cancelled; go on with" in done.stdout
    assert alive_jobs(stage) == []
    assert run.is_cancelled(1)


@pytest.mark.parametrize("lines", ["exit 0", None])
def test_cancel_that_does_not_end(stage, monkeypatch, lines):
    """When something still lives after the cluster's KillWait, or nobody can say, the command ends with 75."""
    monkeypatch.setattr(cancelling, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(cancelling, "LOOK_SECONDS", 0.2)
    stage.slurm.set(slots=0)
    run = stage.run(1)
    stage.call(submit, run.path)
    path = stage.slurm.root / "bin" / "scontrol"
    path.rename(path.with_name("scontrol.real"))
    path.write_text(f"#!/bin/sh\n{shlex.quote(str(path))}.real \"$@\" | sed 's/^KillWait .*/KillWait = 1 sec/'\n")
    path.chmod(0o755)
    if lines:
        wrap(stage, "scancel", lines)
    else:
        stage.slurm.set(squeue_fail=True)
    stage.slurm.reset_calls()
    with pytest.raises(InterruptedRunError, match="told to stop, but") as caught:
        stage.call(cancel, run.path)
    assert ("2 tasks of attempt 001 are still at work" if lines else "does not say") in str(caught.value)
    assert caught.value.exit_code == 75
    assert stage.counted()["scontrol"] == 1
    assert run.is_cancelled(1)


@pytest.mark.parametrize(
    ("said", "fails"), [([COMPLETED], False), ([COMPLETED, UNHEARD], True), ([UNHEARD, COMPLETED], True), ([], True)]
)
def test_cancel_judges_each_job(stage, said, fails):
    """That one job has ended already does not hide that another one was not reached."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    wrap(stage, "scancel", "".join(f"echo {shlex.quote(line)} >&2\n" for line in said) + "exit 1")
    if not fails:
        stage.scheduler(run).cancel(run.read_jobs(1))
        return
    with pytest.raises(SchedulerError, match="Socket timed out" if said else "exit code 1") as caught:
        stage.scheduler(run).cancel(run.read_jobs(1))
    assert "already" not in str(caught.value)


def test_cancel_stops_earlier_attempts(stage):
    """Attempts that somebody wrongly took for dead are cancelled with the newest; one call asks for all of them."""
    stage.fake.behave(s0=["wait usr1 term"])
    run = stage.run(1)
    stage.call(submit, run.path)
    stage.fake.wait_trace(0, "child")
    for _ in range(2):
        stage.call(resume, "--assume-dead", run.path)
    assert stage.attempt(run, 1).liveness is Liveness.ALIVE
    stage.call(cancel, run.path)
    assert alive_jobs(stage) == []
    assert [stage.attempt(run, number).liveness for number in (1, 2, 3)] == [Liveness.ENDED] * 3
    assert all(run.is_cancelled(number) for number in (1, 2, 3))
    stage.slurm.reset_calls()
    assert "nothing is at work" in stage.call(cancel, run.path).stdout
    assert stage.counted() == {"squeue": 1}


# -- another cluster --------------------------------------------------------------------------------------------------


def test_absence_on_another_cluster(stage):
    """On another cluster, whose queue is empty, nothing is called ended, nor begun beside it, nor cancelled."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    stage.call(submit, run.path)
    age(run)
    env = other_cluster(stage)
    for words in (("cancel",), ("resume", "--scheduler", "local"), ("resume",), ("submit", "--continue")):
        refused = stage.medhaul(*words, run.path, env=env)
        assert refused.returncode == 64, (words, refused)
        assert "submitted to cluster shim, this is other" in refused.stderr
    assert run.attempts() == [1]
    assert not run.is_cancelled(1)
    assert any(alive(status.state) for status in stage.attempt(run).states.values())


def test_unheard_jobs_on_another_cluster(stage):
    """What was taken, but never written down, is not said to be nothing by a cluster that cannot know."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    stage.call(submit, run.path)
    (run.attempt_folder(1) / "jobs.json").unlink()
    bury(run)
    env = other_cluster(stage)
    assert stage.attempt(run).liveness is Liveness.ALIVE
    for words in (("cancel",), ("resume", "--scheduler", "local")):
        refused = stage.medhaul(*words, run.path, env=env)
        assert refused.returncode == 64, (words, refused)
    assert run.attempts() == [1]
