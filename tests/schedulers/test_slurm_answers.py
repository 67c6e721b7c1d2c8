"""What sbatch answers, late, garbled or not at all: each job goes in once."""

from __future__ import annotations

import shlex

import pytest

from pipeline.cli.submit import submit
from pipeline.schedulers import slurm
from pipeline.schedulers.attempt import Liveness
from pipeline.schedulers.base import SchedulerError, State
from pipeline.schedulers.slurm_calls import SlurmCalls
from pipeline.schedulers.submission import continue_attempt, submit_attempt
from tests.schedulers.slurm_stage import SlurmStage, shards_done


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster runs four tasks at a time."""
    with SlurmStage(tmp_path / "it's a $tage", nodes=["n1", "n2"]) as it:
        yield it


@pytest.mark.parametrize("knobs", [{"sbatch_timeout": 2}, {"sbatch_timeout_lost": 3}, {"sbatch_fail": 3}])
def test_lost_answers(stage, knobs):
    """A submission that was taken but not answered is not repeated, one that was lost is; each job is there once."""
    stage.slurm.set(**knobs)
    run, waits = stage.run(3), []
    submit_attempt(run, stage.scheduler(run, sleep=waits.append), [0, 1, 2])
    jobs = run.read_jobs(1)
    for job in jobs:
        assert stage.jobs_named(job.name) == [job.id]
    attempt = stage.settle(run)
    assert {status.state for status in attempt.states.values()} == {State.COMPLETED}
    assert shards_done(stage, 3) == [1] * 3
    assert waits
    assert all(0 < wait <= 4 * 2**3 for wait in waits)


def test_lost_answer_and_no_squeue(stage):
    """When neither sbatch nor squeue says whether a job was taken, nothing is repeated; --continue finds it later."""
    stage.slurm.set(sbatch_timeout=1, squeue_fail=True, slots=0)
    run = stage.run(2)
    with pytest.raises(SchedulerError, match="neither sbatch nor squeue") as caught:
        submit_attempt(run, stage.scheduler(run), [0, 1])
    assert "--continue" in caught.value.hint
    assert run.read_jobs(1) == []
    assert len(stage.slurm.calls("sbatch")) == 1
    assert stage.attempt(run).liveness is not Liveness.ENDED
    stage.slurm.set(squeue_fail=0, slots=2)
    attempt = stage.attempt(run)
    assert attempt.liveness is Liveness.ALIVE
    assert [job.kind for job in attempt.jobs] == ["array"]
    continue_attempt(run, stage.scheduler(run), attempt)
    stage.settle(run)
    assert shards_done(stage, 2) == [1, 1]
    assert stage.fake.trace("reduce")["receipts"] == 2


def test_lost_answer_and_squeue_back_later(stage):
    """While squeue does not answer either, nothing is repeated; once it does, the job that was taken is found."""
    stage.slurm.set(sbatch_timeout=1, squeue_fail=2, slots=0)
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    jobs = run.read_jobs(1)
    assert [stage.jobs_named(job.name) for job in jobs] == [[job.id] for job in jobs]
    assert len(stage.slurm.calls("sbatch")) == 2


def test_taken_late(stage):
    """Of a job that was taken twice after all, the one that medhaul knows is kept and the other cancelled."""
    stage.slurm.set(sbatch_timeout=1, slots=0)
    run = stage.run(2)
    scheduler = stage.scheduler(run)
    answers = iter([[]])  # squeue does not list it yet when it is asked for the first time
    find = scheduler._find_named
    scheduler._find_named = lambda names: next(answers, None) if (seen := find(names)) is None else next(answers, seen)
    submit_attempt(run, scheduler, [0, 1])
    array = run.read_jobs(1)[0]
    twins = stage.jobs_named(array.name)
    assert len(twins) == 2
    (other,) = set(twins) - {array.id}
    assert {stage.slurm.task(other, index)["state"] for index in (0, 1)} == {"CANCELLED"}
    stage.slurm.set(slots=2)
    stage.settle(run)
    assert shards_done(stage, 2) == [1, 1]


def test_unreachable_controller(stage, monkeypatch):
    """A controller that stays away is asked a few times; then one line says so, and nothing has been submitted."""
    monkeypatch.setattr(slurm, "WAIT_SECONDS", 0.001)
    stage.slurm.set(sbatch_fail=True)
    run = stage.run(2)
    with pytest.raises(SchedulerError) as caught:
        stage.call(submit, run.path)
    assert caught.value.exit_code == 69
    assert "nothing was submitted" in str(caught.value)
    assert "Unable to contact slurm controller" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stage.counted() == {"sbatch": slurm.TRIES, "scontrol": 1}
    stage.slurm.set(sbatch_fail=0)
    attempt = stage.attempt(run)
    assert attempt.jobs == []
    continue_attempt(run, stage.scheduler(run), attempt)
    stage.settle(run)
    assert shards_done(stage, 2) == [1, 1]


def test_sbatch_that_hangs(stage, tmp_path):
    """An sbatch that never returns is given up in time; what it did is looked up."""
    run = stage.run(1)
    hanging = tmp_path / "hanging"
    hanging.mkdir()
    (hanging / "sbatch").write_text("#!/bin/sh\nexec sleep 60\n")
    (hanging / "sbatch").chmod(0o755)
    environ = {**stage.environ, "PATH": f"{hanging}:{stage.environ['PATH']}"}
    scheduler = stage.scheduler(run, environ=environ)
    scheduler.calls = SlurmCalls(environ, seconds=0.5)
    with pytest.raises(SchedulerError, match="did not say whether it took"):
        submit_attempt(run, scheduler, [0])
    assert len(stage.slurm.calls("squeue")) >= 1


@pytest.mark.parametrize(
    "banner", ["Welcome!\n  * 3 news *", "2026", "Submitted batch job 99", "123 456\n\u00fc\u2713"]
)
def test_chatty_wrappers(stage, banner):
    """What a site's wrapper prints around the id is passed over."""
    stage.slurm.set(banner=banner, slots=0)
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    for job in run.read_jobs(1):
        assert stage.jobs_named(job.name) == [job.id]


def test_silent_wrapper(stage, tmp_path):
    """A wrapper that swallows the id does not make the job unknown: its name finds it."""
    silent = tmp_path / "silent"
    silent.mkdir()
    real = shlex.quote(str(stage.slurm.root / "bin" / "sbatch"))
    (silent / "sbatch").write_text(f'#!/bin/sh\n{real} "$@" >/dev/null; echo "job taken"\n')
    (silent / "sbatch").chmod(0o755)
    run = stage.run(1)
    environ = {**stage.environ, "PATH": f"{silent}:{stage.environ['PATH']}"}
    submit_attempt(run, stage.scheduler(run, environ=environ), [0])
    assert stage.settle(run).reduce_status().state is State.COMPLETED
