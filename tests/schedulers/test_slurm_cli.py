"""The commands on Slurm: cancel, throttle, resume --states, --dry-run, --sbatch, run and --watch."""

from __future__ import annotations

import itertools
import re
import shlex
import signal
import subprocess
import time

import msgspec
import pytest

from pipeline.cli.cancel import cancel
from pipeline.cli.resume import resume
from pipeline.cli.status import status
from pipeline.cli.submit import submit
from pipeline.cli.throttle import throttle
from pipeline.errors import InterruptedRunError, ItemsFailedError, UsageError
from pipeline.records import Throttle
from pipeline.report.status import Collector
from pipeline.report.watch import wait_for
from pipeline.rundir import RunDir
from pipeline.schedulers.attempt import Liveness, array_lanes, plan_arrays
from pipeline.schedulers.base import SchedulerError, State
from pipeline.schedulers.submission import submit_attempt
from tests.schedulers.fake_run import wait_until
from tests.schedulers.slurm_stage import SlurmStage, shards_done
from tests.slurm_shims.store import end_task, open_cluster

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
[slurm]
poll = 1
account = "proj"
settle = 0
"""


@pytest.fixture
def stage(tmp_path):
    """Yield a stage whose cluster runs two tasks at a time."""
    with SlurmStage(tmp_path / "it's a stage", nodes=["n1"]) as it:
        yield it


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_what_runs_and_what_waits(stage):
    """Running tasks get SIGTERM, waiting ones and the reduce job never start; nothing is lost for `resume`."""
    stage.fake.behave(**{f"s{shard}": ["wait usr1 term"] for shard in range(3)})
    run = stage.run(3)
    stage.call(submit, run.path)
    for shard in (0, 1):
        stage.fake.wait_trace(shard, "child")
    done = stage.call(cancel, run.path)
    assert "cancelled; go on with: medhaul resume" in done.stdout
    assert stage.fake.trace(0)["signal"] == signal.SIGTERM
    assert stage.fake.trace(2) is None
    assert stage.fake.trace("reduce") is None
    attempt = stage.attempt(run)
    assert {found.state for found in attempt.states.values()} == {State.CANCELLED}
    assert stage.slurm.calls("scancel") == [["scancel", *[job.id for job in run.read_jobs(1)]]]
    assert "-> cancelled: `resume` when it should go on" in stage.call(status, run.path).stdout
    stage.fake.behave()
    for path in (stage.fake.folder / "trace").glob("*.json"):
        path.unlink()
    stage.call(resume, run.path)
    stage.settle(run, 2)
    assert shards_done(stage, 3) == [1, 1, 1]


def test_cancel_a_run_that_only_waits(stage):
    """A run of which nothing has started is cancelled as well, and a second time there is nothing to cancel."""
    stage.slurm.set(slots=0, max_array_size=2)
    run = stage.run(5)
    stage.call(submit, run.path)
    stage.call(cancel, run.path)
    assert {found.state for found in stage.attempt(run).states.values()} == {State.CANCELLED}
    assert "nothing is at work" in stage.call(cancel, run.path).stdout
    assert len(stage.slurm.calls("scancel")) == 1


def test_cancel_what_was_submitted_in_part(stage):
    """What went in of an attempt that was refused half-way can be cancelled, and `resume` begins a new one."""
    stage.slurm.set(slots=0, max_array_size=2, max_submit_jobs=3)
    run = stage.run(4)
    assert stage.medhaul("submit", run.path).returncode == 69
    done = stage.medhaul("cancel", run.path)
    assert done.returncode == 0, done.stderr
    assert stage.attempt(run).liveness is Liveness.ENDED
    stage.slurm.set(slots=2, max_submit_jobs=None)
    assert stage.medhaul("resume", run.path).returncode == 0
    stage.settle(run, 2)
    assert shards_done(stage, 4) == [1] * 4


def test_cancel_that_slurm_refuses(stage, tmp_path):
    """When scancel fails, the command does, and says what Slurm said."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "scancel").write_text("#!/bin/sh\necho 'scancel: error: Access/permission denied' >&2\nexit 1\n")
    (broken / "scancel").chmod(0o755)
    stage.slurm.set(slots=0)
    run = stage.run(1)
    stage.call(submit, run.path)
    with pytest.raises(SchedulerError, match="permission denied"):
        stage.call(cancel, run.path, env={"PATH": f"{broken}:{stage.environ['PATH']}"})


# -- throttle ---------------------------------------------------------------------------------------------------------


def throttles(stage, run) -> list[int]:
    """The throttle that each array of attempt 1 has now."""
    return [stage.slurm.job(job.id)["throttle"] for job in run.read_jobs(1) if job.kind == "array"]


def test_throttle_is_shared(stage):
    """Arrays side by side share the new number, and each task that starts gets its share of the connections."""
    stage.slurm.set(slots=0, max_array_size=3)
    run = stage.run(9, limits={"tasks": 6})
    stage.call(submit, run.path)
    assert throttles(stage, run) == [2, 2, 2]
    done = stage.call(throttle, run.path, 4)
    assert "at most 4 tasks at a time" in done.stdout
    assert throttles(stage, run) == [2, 1, 1]
    assert run.read_throttle(1) == Throttle(tasks=4, connections=16)
    with pytest.raises(UsageError, match="3 arrays") as caught:
        stage.call(throttle, run.path, 2)
    assert "the least is 3" in caught.value.hint
    assert run.read_throttle(1) == Throttle(tasks=4, connections=16)
    with pytest.raises(UsageError, match="more connections"):
        stage.call(throttle, run.path, 65)


def test_throttle_counts_lanes(stage):
    """Arrays that wait for others do not run beside them: only those side by side share, and the others inherit."""
    stage.slurm.set(slots=0, max_array_size=3)
    run = stage.run(15, limits={"tasks": 2})
    stage.call(submit, run.path)
    assert throttles(stage, run) == [1] * 5
    stage.call(throttle, run.path, 5)
    assert throttles(stage, run) == [3, 2, 3, 2, 3]
    assert run.read_throttle(1).connections == 12
    stage.call(throttle, run.path, 2)
    assert throttles(stage, run) == [1] * 5


@pytest.mark.parametrize(("count", "tasks", "longest", "lanes"), [(23, 2, 5, [0, 1, 0, 1, 0]), (4, 4, None, [0])])
def test_lanes(count, tasks, longest, lanes):
    """An array is in the lane of the array it waits for."""
    assert array_lanes(plan_arrays(count, tasks, longest)) == lanes


def test_throttle_takes_effect(stage):
    """More tasks run at a time once the throttle is raised again; those that run are left alone."""
    stage.fake.behave(**{f"s{shard}": ["wait term"] for shard in range(3)})
    stage.slurm.set(slots=0)
    run = stage.run(3, limits={"tasks": 3})
    stage.call(submit, run.path)
    stage.call(throttle, run.path, 1)
    assert stage.fake.trace(0) is None
    stage.call(throttle, run.path, 3)
    stage.slurm.set(slots=8)
    for shard in range(3):
        stage.fake.wait_trace(shard, "child")
    assert "signal" not in stage.fake.trace(0)


def test_throttle_of_an_ended_run(stage):
    """There is nothing to throttle when nothing is at work."""
    run = stage.run(1)
    stage.call(submit, run.path)
    stage.settle(run)
    with pytest.raises(UsageError, match="nothing is at work"):
        stage.call(throttle, run.path, 2)


# -- resume -----------------------------------------------------------------------------------------------------------


def test_resume_by_cause(stage):
    """Only shards with the causes that were asked for are submitted, in the order of their numbers."""
    stage.slurm.set(slots=0)
    run = stage.run(5)
    submit_attempt(run, stage.scheduler(run), range(5))
    array, reduce = run.read_jobs(1)
    with open_cluster(stage.slurm.root) as cluster:
        fates = ["TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "TIMEOUT", "CANCELLED"]
        for task, fate in zip(cluster["jobs"][array.id]["tasks"], fates, strict=True):
            end_task(task, fate, time.time())
        end_task(cluster["jobs"][reduce.id]["tasks"][0], "CANCELLED", time.time())
    with pytest.raises(UsageError, match="no shard has such a cause"):
        stage.call(resume, "--states", "preempted", run.path)
    stage.call(resume, "--states", "timeout, MEMORY", run.path)
    assert run.read_plan(2).shards == [0, 1, 3]
    assert stage.call(resume, "--states", "sunshine", run.path).exit_code != 0


def test_resume_is_refused_at_work(stage):
    """While tasks live or wait, neither `resume` nor `submit` begins another attempt."""
    stage.slurm.set(slots=0)
    run = stage.run(2)
    stage.call(submit, run.path)
    for command in (resume, submit):
        with pytest.raises(UsageError, match="is still at work"):
            stage.call(command, run.path)
    assert run.attempts() == [1]


# -- dry run, options -------------------------------------------------------------------------------------------------


def plain(words: list[str], ids: dict[str, str]) -> list[str]:
    """A command line without the tag that differs from attempt to attempt, and with places for ids."""
    made = [re.sub(r"\.[0-9a-f]{8}\.", ".TAG.", word) for word in words]
    return [
        re.sub(r"\d+", lambda match: ids.get(match[0], match[0]), word) if word.startswith("--dependency") else word
        for word in made
    ]


@pytest.mark.parametrize("count", [23, 3])
def test_dry_run_prints_what_is_submitted(stage, count):
    """The command lines of --dry-run are, word for word, those of the submission that follows."""
    stage.slurm.set(max_array_size=5, slots=0)
    run = stage.run(count, slurm={"time": 3600, "account": "a b", "extra": ["--comment=it's"]}, limits={"tasks": 2})
    extra = ["--sbatch=--qos=high", "--sbatch=--mem=5G"]
    stage.slurm.reset_calls()
    said = stage.call(submit, "--dry-run", *extra, run.path).stdout
    assert "dry run: nothing was submitted" in said
    assert stage.counted() == {"scontrol": 1}
    assert run.attempts() == []
    printed = [shlex.split(line) for line in said.splitlines() if line.startswith("  sbatch ")]
    stage.call(submit, *extra, run.path)
    places = {job.id: f"ID{number}" for number, job in enumerate(run.read_jobs(1))}
    used = stage.slurm.calls("sbatch")
    assert [plain(words, {}) for words in printed] == [plain(words, places) for words in used]
    for words in used:
        assert words[-3:-1] == ["--qos=high", "--mem=5G"]
    for job in run.read_jobs(1):
        asked = stage.slurm.job(job.id)["asked"]
        assert (asked["mem"], asked["qos"], asked["account"], asked["comment"]) == ("5G", "high", "a b", "it's")


def test_dry_run_of_resume(stage):
    """`resume --dry-run` prints the next attempt, of the missing shards alone."""
    stage.fake.behave(s1=["exit 69"])
    run = stage.run(3)
    stage.call(submit, run.path)
    stage.settle(run)
    said = stage.call(resume, "--dry-run", run.path).stdout
    assert "attempt  002 on the slurm scheduler: 1 tasks" in said
    assert run.attempts() == [1]


def test_dry_run_of_a_config_leaves_nothing(stage):
    """A config that is not planned yet is shown as it would be submitted, and no file is made."""
    config = stage.root / "config.toml"
    config.write_text(CONFIG)
    done = stage.medhaul("submit", "--dry-run", config)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("  sbatch ")]
    assert [line[-1].rpartition("/")[2] for line in lines] == ["array_task.sh", "reduce.sh"]
    assert all("--account=proj" in line for line in lines)
    assert not (stage.root / "runs").exists()
    assert not (stage.root / "logs").exists()
    assert not stage.slurm.calls("sbatch")


# -- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "error"), [("exit 3", ItemsFailedError), ("exit 75", InterruptedRunError)])
def test_wait_ends_as_reduce_did(stage, word, error):
    """With --wait the command ends with the reduce job's exit code."""
    stage.fake.behave(reduce=[word])
    run = stage.run(1, slurm={"poll": 1})
    with pytest.raises(error) as caught:
        stage.call(submit, "--wait", run.path)
    assert caught.value.exit_code == int(word.split()[1])


def test_run_ends_with_the_exit_code_of_reduce(stage):
    """`medhaul run --scheduler slurm` plans, submits, waits, and ends with the reduce job's exit code."""
    config = stage.root / "config.toml"
    config.write_text(CONFIG)
    run = RunDir(stage.root / "runs" / "r2")
    for number, code in enumerate((0, 3, 73, 77), 1):
        stage.fake.behave(s0=["exit 0"], s1=["exit 0"], reduce=[f"exit {code}"])
        done = stage.medhaul("run", "--scheduler", "slurm", config, env={"MEDHAUL_SCHEDULER": "local"})
        assert done.returncode == code, done
        assert run.read_plan(number).scheduler == "slurm"
        ids = [job.id for job in run.read_jobs(number)]
        assert {stage.slurm.task(job, 0 if job == ids[0] else None)["state"] for job in ids} <= {"COMPLETED", "FAILED"}
        assert "Traceback" not in done.stderr


def test_interrupted_run_cancels_its_jobs(stage):
    """Ctrl-C while waiting ends the tasks on the cluster, and the command with 75."""
    stage.fake.behave(s0=["wait term"])
    run = stage.run(1, slurm={"poll": 1})
    with stage.popen("submit", "--wait", run.path) as child:
        stage.fake.wait_trace(0, "child")
        child.send_signal(signal.SIGINT)
        try:
            _, err = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    assert child.returncode == 75, err
    assert "told to stop" in err
    assert {found.state for found in stage.attempt(run).states.values()} == {State.CANCELLED}


class Shown:
    """A view that counts."""

    def __init__(self) -> None:
        self.count = 0

    def show(self, report) -> None:
        self.count += 1

    def close(self) -> None:
        pass


def test_watching_is_polite(stage):
    """Between two questions at least slurm.poll passes, then ever more: an hour is one question in some minutes."""
    stage.slurm.set(slots=0)
    run = stage.run(2)
    submit_attempt(run, stage.scheduler(run), [0, 1])
    stage.slurm.reset_calls()
    slept, looks = [0.0], []

    def sleep(seconds: float) -> None:
        slept[0] += seconds
        if len(looks) < len(stage.slurm.calls("squeue")):
            looks.append(slept[0])
        if slept[0] > 3600 and stage.slurm.knobs.get("slots") is None:
            stage.slurm.knobs["slots"] = 2
            stage.slurm.set(slots=2)
            stage.slurm.wait_idle()

    view = Shown()
    collector = Collector(run, open_scheduler=lambda _name, _run: stage.scheduler(run))
    _, attempt, cancelled = wait_for(collector, view, lambda _: None, sleep=sleep)
    assert not cancelled
    assert attempt.liveness is Liveness.ENDED
    assert view.count == len(stage.slurm.calls("squeue")) <= 18
    gaps = [after - before for before, after in itertools.pairwise(looks)]
    assert min(gaps) >= 60
    assert gaps == sorted(gaps)
    assert max(gaps) <= 301
    assert stage.counted().keys() == {"squeue"}


def test_watch_ends_with_the_run(stage):
    """`status --watch` follows until nothing is at work, then prints how it stands."""
    stage.fake.behave(s0=["sleep 1"])
    run = stage.run(1, slurm={"poll": 1})
    stage.call(submit, run.path)
    said = stage.call(status, "--watch", run.path).stdout
    assert "attempt  001 (slurm scheduler), ended" in said
    wait_until(lambda: stage.attempt(run).liveness is Liveness.ENDED)
    assert msgspec.json.encode(run.read_jobs(1))
