"""Submitting to Slurm: chunks, refusals half-way, lost answers, and a submitter that dies, each shard done once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline.cli.submit import submit
from pipeline.errors import UsageError
from pipeline.rundir import encode_record
from pipeline.schedulers import slurm
from pipeline.schedulers.attempt import Liveness, read_attempt
from pipeline.schedulers.base import SchedulerError, State, alive
from pipeline.schedulers.submission import submit_attempt
from tests.schedulers.fake_run import wait_until
from tests.schedulers.slurm_stage import SlurmStage, shards_done

KILLED = """
import os, signal
from pipeline.rundir import RunDir
RunDir.write_jobs = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from pipeline.cli.main import main
main()
"""


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster runs four tasks at a time."""
    with SlurmStage(tmp_path / "it's a $tage", nodes=["n1", "n2"]) as it:
        yield it


def arrays_of(stage) -> list[tuple[int, int]]:
    """Length and throttle of each array as it was submitted."""
    texts = [word for argv in stage.slurm.calls("sbatch") for word in argv if word.startswith("--array=")]
    return [(int(match[1]) + 1, int(match[2])) for text in texts if (match := re.fullmatch(r".*0-(\d+)%(\d+)", text))]


def test_many_chunks(stage):
    """With MaxArraySize 5, 23 shards go in as arrays with offsets, four at a time; each is done once, then reduce."""
    stage.slurm.set(max_array_size=5)
    run = stage.run(23)
    done = stage.call(submit, run.path)
    assert arrays_of(stage) == [(4, 1), (5, 1), (4, 1), (5, 1), (5, 1)]
    attempt = stage.settle(run)
    assert {status.state for status in attempt.states.values()} == {State.COMPLETED}
    assert shards_done(stage, 23) == [1] * 23
    assert stage.fake.trace("reduce")["receipts"] == 23
    offsets = {int(stage.fake.trace(shard)["environ"]["MEDHAUL_OFFSET"]) for shard in range(23)}
    assert offsets == {0, 4, 9, 13, 18}
    jobs = run.read_jobs(1)
    assert f"jobs     array {jobs[0].id}, array {jobs[1].id}" in done.stdout
    assert [job.kind for job in jobs] == ["array"] * 5 + ["reduce"]
    ends = [stage.slurm.task(job.id, index)["end"] for job in jobs[:-1] for index in range(job.length)]
    assert stage.slurm.task(jobs[-1].id)["start"] >= max(ends)
    fifth = [stage.slurm.task(jobs[4].id, index)["start"] for index in range(5)]
    assert min(fifth) >= max(stage.slurm.task(jobs[0].id, index)["end"] for index in range(4))


@pytest.mark.parametrize(
    ("knobs", "table", "longest"),
    [({"max_array_tasks": 3}, {}, 3), ({}, {"max_array": 2}, 2), ({"max_array_size": 2}, {"max_array": 100}, 2)],
)
def test_what_bounds_an_array(stage, knobs, table, longest):
    """The cluster's bounds and the config's own, whichever is tighter, bound an array."""
    stage.slurm.set(**knobs)
    run = stage.run(7, slurm=table)
    stage.call(submit, run.path)
    assert max(length for length, _ in arrays_of(stage)) == longest
    assert sum(length for length, _ in arrays_of(stage)) == 7
    stage.settle(run)
    assert shards_done(stage, 7) == [1] * 7


def test_no_arrays_at_all(stage):
    """A cluster that takes no arrays is told from one that takes short ones."""
    stage.slurm.set(max_array_size=0)
    run = stage.run(2)
    with pytest.raises(SchedulerError, match="no job arrays"):
        stage.call(submit, run.path)
    assert run.attempts() == []


def test_calls_of_a_submission(stage):
    """A submission of k arrays is k + 1 calls of sbatch and one question about limits, however many shards."""
    stage.slurm.set(max_array_size=100, slots=0)
    run = stage.run(1000)
    stage.slurm.reset_calls()
    stage.call(submit, run.path)
    assert stage.counted() == {"sbatch": 11, "scontrol": 1}


def test_full_queue_half_way(stage):
    """When the cluster takes only some arrays, these stay at work, the rest is named, and --continue adds it."""
    stage.slurm.set(max_array_size=5, max_submit_jobs=12, slots=0)
    run = stage.run(23)
    refused = stage.medhaul("submit", run.path)
    assert refused.returncode == 69, refused
    first = run.read_jobs(1)
    assert [job.length for job in first] == [4, 5]
    ids = ", ".join(job.id for job in first)
    assert f"submitted 9 of 23 tasks (2 of 5 arrays: {ids}), not the reduce job" in refused.stderr
    assert "array2: " in refused.stderr
    assert "--continue" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stage.attempt(run).liveness is Liveness.ALIVE
    for words in (("resume",), ("submit",)):
        again = stage.medhaul(*words, run.path)
        assert again.returncode == 64
        assert "not submitted to its end" in again.stderr
        assert "--continue" in again.stderr
    seen = stage.medhaul("status", run.path)
    assert seen.returncode == 0
    assert "reduce   not submitted; go on with `medhaul submit RUN --continue`" in seen.stdout
    assert "14 not submitted" in seen.stdout
    assert stage.medhaul("submit", "--continue", run.path).returncode == 69  # still full
    stage.slurm.set(max_submit_jobs=None, slots=2)
    went = stage.medhaul("submit", "--continue", run.path)
    assert went.returncode == 0, went.stderr
    assert run.read_jobs(1)[:2] == first
    attempt = stage.settle(run)
    assert attempt.reduce_status().state is State.COMPLETED
    assert shards_done(stage, 23) == [1] * 23
    assert stage.fake.trace("reduce")["receipts"] == 23
    assert run.attempts() == [1]
    over = stage.medhaul("submit", "--continue", run.path)
    assert over.returncode == 64
    assert "submitted to its end" in over.stderr


def test_reduce_refused(stage):
    """When only the reduce job is refused, it goes in later, also when the tasks have ended and Slurm forgot them."""
    stage.slurm.set(max_submit_jobs=3)
    run = stage.run(3)
    stage.slurm.set(slots=0)
    refused = stage.medhaul("submit", run.path)
    assert refused.returncode == 69
    assert "submitted 3 of 3 tasks, not the reduce job" in refused.stderr
    stage.slurm.set(slots=2)
    stage.slurm.wait_idle()
    stage.slurm.forget()
    assert stage.medhaul("submit", "--continue", run.path).returncode == 0
    stage.slurm.wait_idle()
    assert stage.fake.trace("reduce")["receipts"] == 3
    assert shards_done(stage, 3) == [1] * 3


def test_federation_is_refused(stage):
    """A job that went to another cluster of a federation is cancelled at once, and the command says so."""
    stage.slurm.set(cluster_suffix="far", slots=0)
    run = stage.run(2)
    with pytest.raises(SchedulerError, match="cluster far") as caught:
        submit_attempt(run, stage.scheduler(run), [0, 1])
    assert "federations are not supported" in caught.value.hint
    (cancelled,) = stage.slurm.calls("scancel")
    assert cancelled[1] == "--clusters=far"
    assert {stage.slurm.task(cancelled[-1], index)["state"] for index in (0, 1)} == {"CANCELLED"}
    assert run.read_jobs(1) == []


def test_submitter_killed_before_it_wrote(stage):
    """When the submitter dies between sbatch and its note, the job is found by name, and --continue goes on."""
    stage.slurm.set(max_array_size=3, slots=0)
    run = stage.run(5)
    killed = subprocess.run([sys.executable, "-c", KILLED, "submit", str(run.path)], env=stage.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run.read_jobs(1) == []
    stage.slurm.reset_calls()
    seen = stage.medhaul("status", run.path)
    assert seen.returncode == 0, seen.stderr
    assert "2 waiting, 3 not submitted" in re.sub(r"^shards +5: ", "", seen.stdout.splitlines()[2])
    assert "--continue" in seen.stdout
    assert sum(stage.counted().values()) <= 2
    refused = stage.medhaul("resume", run.path)
    assert refused.returncode == 64
    assert "--continue" in refused.stderr
    stage.slurm.set(slots=2)
    stage.slurm.wait_idle()  # the array that was taken
    assert stage.medhaul("submit", "--continue", run.path).returncode == 0
    assert stage.settle(run).reduce_status().state is State.COMPLETED
    assert shards_done(stage, 5) == [1] * 5
    assert stage.fake.trace("reduce")["receipts"] == 5
    assert all(job.submitted for job in run.read_jobs(1))


def test_two_submits_at_once(stage):
    """Of two submits at the same time one goes on, the other says why not; there is one array and one reduce job."""
    stage.slurm.set(slots=0)
    run = stage.run(2)
    children = [stage.popen("submit", run.path) for _ in range(2)]
    ends = [(child.communicate(timeout=60), child.returncode) for child in children]
    assert sorted(code for _, code in ends) == [0, 64]
    said = next(out[1] for out, code in ends if code == 64)
    assert "just taken by another submit" in said or "is still at work" in said
    assert len(stage.slurm.calls("sbatch")) == 2
    assert run.attempts() == [1]


def test_another_cluster(stage):
    """Where this is another cluster than the one an attempt went to, nothing is submitted, cancelled or throttled."""
    stage.slurm.set(slots=0)
    run = stage.run(2)
    submit_attempt(run, stage.scheduler(run), [0, 1])
    plan = run.attempt_folder(1) / "plan.json"
    plan.write_bytes(encode_record(msgspec.structs.replace(run.read_plan(1), cluster="elsewhere")))
    stage.slurm.reset_calls()
    for words in (("resume",), ("submit",), ("cancel",), ("submit", "--continue")):
        refused = stage.medhaul(words[0], *words[1:], run.path)
        assert refused.returncode == 64, refused
        assert "was submitted to cluster elsewhere, this is shim" in refused.stderr
    throttled = stage.medhaul("throttle", run.path, "1")
    assert "cluster elsewhere" in throttled.stderr
    assert not stage.slurm.calls("sbatch") + stage.slurm.calls("scancel")
    assert run.attempts() == [1]


def test_dependency_of_a_second_attempt_is_its_own(stage):
    """A later attempt has jobs of its own names, and its reduce job waits for them alone."""
    stage.fake.behave(s1=["exit 69"])
    run = stage.run(2)
    stage.call(submit, run.path)
    stage.settle(run)
    stage.fake.behave()
    stage.call(submit, run.path)
    stage.settle(run, 2)
    first, second = run.read_jobs(1), run.read_jobs(2)
    assert not {job.name for job in first} & {job.name for job in second}
    assert not {job.id for job in first} & {job.id for job in second}
    depends = [word for word in stage.slurm.calls("sbatch")[-1] if word.startswith("--dependency")]
    assert depends == [f"--dependency=afterany:{second[0].id}"]
    assert run.read_plan(2).shards == [1]


def test_log_folder_is_made(stage):
    """The logs' folder is there before a job is: older Slurms do not make it, and let the job die without a word."""
    stage.slurm.set(slots=0)
    run = stage.run(1)
    submit_attempt(run, stage.scheduler(run), [0])
    assert run.logs(1).is_dir()
    stage.slurm.set(slots=2)
    stage.settle(run)
    assert sorted(path.name for path in run.logs(1).iterdir()) == [f"{run.read_jobs(1)[0].id}_0.log", "reduce.log"]


def test_refusal_names_what_to_change(stage):
    """A refusal that a retry cannot help is told at once, with its text and with what to change."""
    run = stage.run(1, slurm={"time": 60, "extra": ["--kill-wait=1"]})
    with pytest.raises(SchedulerError, match=r"sbatch refused medhaul\.r1\.001") as caught:
        submit_attempt(run, stage.scheduler(run), [0])
    assert "kill-wait" in str(caught.value)
    assert len(stage.slurm.calls("sbatch")) == 1


def test_attempt_is_alive_while_it_is_submitted(stage):
    """While the first array is in and its submitter lives, the attempt is at work, and can be cancelled so far."""
    stage.slurm.set(max_array_size=3, max_submit_jobs=2, slots=0)
    run = stage.run(5)
    with pytest.raises(SchedulerError):
        submit_attempt(run, stage.scheduler(run), range(5))
    attempt = read_attempt(run, 1, stage.scheduler(run))
    assert attempt.liveness is Liveness.ALIVE
    assert [alive(status.state) for status in attempt.states.values()] == [True, True]
    stage.scheduler(run).cancel(attempt.jobs)
    wait_until(lambda: not any(alive(status.state) for status in stage.attempt(run).states.values()))


def test_nothing_to_continue(stage):
    """A run that was never submitted has nothing to go on with."""
    run = stage.run(1)
    with pytest.raises(UsageError, match="nothing was submitted yet"):
        stage.call(submit, "--continue", run.path)
    assert run.attempts() == []


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        (
            True,
            ["queued again, for the 1. of 2 times", "queued again, for the 2. of 2 times", "(slurm.requeue) are used"],
        ),
        (False, ["not queued again: scontrol requeue: "]),
    ],
)
def test_requeue_from_inside(stage, allowed, said):
    """A task puts itself back as often as it may, and says what came of it; a site that forbids it is borne."""
    stage.slurm.set(requeue_allowed=allowed)
    code = (
        "import os, signal; from pipeline.schedulers.slurm import requeue_self;"
        " signal.signal(signal.SIGTERM, signal.SIG_IGN);"  # as `medhaul task`, which SIGTERM does not kill either
        " print(requeue_self(os.environ, 2), flush=True)"
    )
    script = stage.root / "script.sh"
    script.write_text(f"#!/bin/bash\ntrap 'exit 75' TERM\n{sys.executable} -c '{code}'\nexit 75\n")
    log = stage.root / "log"
    job = stage.scheduler_calls(
        "sbatch", "--parsable", "--array=0-0", f"--output={log}", "--open-mode=append", "--requeue",
        f"--chdir={Path(slurm.__file__).parents[2]}", str(script),
    ).strip()  # fmt: skip
    stage.slurm.wait_idle()
    lines = [line for line in log.read_text().splitlines() if "queued" in line]
    assert len(lines) == len(said), lines
    assert all(part in line for line, part in zip(lines, said, strict=True))
    assert stage.slurm.task(job, 0)["restarts"] == len(said) - 1
    calls = [argv for argv in stage.slurm.calls("scontrol") if argv[1] == "requeue"]
    assert calls == [["scontrol", "requeue", f"{job}_0"]] * len(calls)
