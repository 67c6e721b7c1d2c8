"""The Slurm shims' questions and failures: what squeue, sacct and scontrol say, and the knobs that make them fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONNECT = "Unable to contact slurm controller (connect failure)"
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"


def test_squeue_formats(client):
    """Columns are padded and cut to their width; waiting tasks share a line, cut at 64 bytes, without --array."""
    job = client.submit(
        "sleep 60", "--hold", "--array=" + ",".join(map(str, range(0, 100, 2))) + "%7", "--time=90", "-J", "n"
    )
    out = client.ok("squeue", "--noheader", "-O", "ArrayTaskID:70,Name:2,TimeLimit:8,StartTime:4,ReasonList:6")
    assert out == f"{'0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30,32,34,36,38,40,42,...%7':<70}n 1:30:00 N/A (JobHe\n"
    full = client.ok("squeue", "-h", "-O", "ArrayTaskID:500", SLURM_BITSTR_LEN="0").strip()
    assert full == ",".join(map(str, range(0, 100, 2))) + "%7"
    assert len(client.ok("squeue", "-h", "-r").splitlines()) == 50
    assert client.ok("squeue", "--Format=JobID:8").splitlines() == ["JOBID   ", f"{job:<8}"]
    assert "Invalid job format" in client.bad("squeue", "-O", "Jobs:3")


def test_squeue_filters(client):
    """Filters by exact name, state, user and id; one unknown id is an error, among several it is passed over."""
    first, second = client.submit("true", "-J", "one"), client.submit("sleep 60", "-J", "one1")
    client.slurm.wait_state(first, None, "COMPLETED")
    client.slurm.wait_state(second, None, "RUNNING")
    one = [[first, "N/A", "COMPLETED", "0", "0", "None"]]
    assert client.rows("--name=one", "--me") == one
    assert client.rows("--states=CD,F", f"--user={os.getuid()}") == one
    assert client.rows("-u", "somebody") == client.rows("-n", "on") == []
    assert client.rows("-j", f"{first},99", "--jobs", f"99,{first}") == one
    assert [row[0] for row in client.rows("-t", "R")] == [second]
    assert client.ok("squeue", "-h", "-j", first) == ""
    assert client.bad("squeue", "-j", "99") == "slurm_load_jobs error: Invalid job id specified\n"
    assert client.rows("-j", "99,98") == []
    assert "Invalid job state" in client.bad("squeue", "-t", "DONE")


def test_ended_tasks_are_forgotten(client):
    """What has ended is forgotten by squeue and scontrol, by age or on demand, and not by sacct."""
    client.slurm.set(accounting=True)
    job = client.submit("true", "--array=0-1")
    client.slurm.wait_idle()
    assert "JobState=COMPLETED" in client.ok("scontrol", "show", "job", f"{job}_1")
    client.slurm.forget()
    assert client.rows() == []
    assert "Invalid job id" in client.bad("scontrol", "show", "job", f"{job}_1")
    assert "Invalid job id" in client.bad("squeue", "-j", job)
    other = client.submit("true")
    client.slurm.wait_idle()
    assert len(client.rows()) == 1
    client.slurm.set(min_job_age=0)
    assert client.rows() == []
    assert [row[0] for row in client.sacct()] == [f"{job}_0", f"{job}_1", other]


def test_scontrol_shows(client):
    """The settings in Slurm's layout, and where a job's script came from."""
    client.slurm.set(max_array_size=11, max_array_tasks=7)
    config = client.ok("scontrol", "show", "config").splitlines()
    assert {
        "ClusterName             = shim",
        "MaxArraySize            = 11",
        "SchedulerParameters     = max_array_tasks=7",
        "KillWait                = 30 sec",
        "MinJobAge               = 300 sec",
        "SLURM_VERSION           = 22.05.8",
        "AccountingStorageType   = accounting_storage/none",
    } <= set(config)
    job = client.submit("sleep 60", args=("x",))
    shown = client.ok("scontrol", "show", "job", job).splitlines()
    assert {f"   Command={client.work}/script0.sh x", f"   WorkDir={client.work}"} <= set(shown)


def test_sacct(client):
    """Disabled until turned on; tasks that wait share a line; fields in any order, unknown ones refused."""
    assert client.bad("sacct", "-X", "-n") == "Slurm accounting storage is disabled\n"
    client.slurm.set(accounting=True)
    assert client.ok("sacct", "-X", "-n") == ""
    job = client.submit("sleep 60", "--array=0-9%2", "-J", "it")
    client.slurm.wait_state(job, 1, "RUNNING")
    running, rest = [[f"{job}_{n}", "RUNNING", "0:0"] for n in (0, 1)], [f"{job}_[2-9%2]", "PENDING", "0:0"]
    assert client.sacct("--name=it") == [*running, rest]
    assert client.sacct("--name=i") == client.sacct("-j", "99") == client.sacct("-S", "2100-01-01", "-s", "CD") == []
    assert client.sacct("-j", f"99,{job}_1", "-S", "now-1days") == running[1:]
    out = client.ok("sacct", "--parsable2", "--noheader", "--format=State,NodeList,jobname,End", "-j", f"{job}_0")
    assert out == "RUNNING|n1|it|Unknown\nRUNNING|n1|batch|Unknown\n"
    assert "Invalid field requested" in client.bad("sacct", "--format=JobID,Restarts")


def test_sacct_lags(client):
    """An end shows in sacct only after sacct_lag, in squeue at once."""
    client.slurm.set(accounting=True, sacct_lag=60)
    job = client.submit("exit 1", "--array=0")
    client.slurm.wait_idle()
    assert client.rows()[0][2] == "FAILED"
    assert client.sacct() == [[f"{job}_0", "RUNNING", "0:0"]]
    client.slurm.set(sacct_lag=0)
    assert client.sacct() == [[f"{job}_0", "FAILED", "1:0"]]


def test_sbatch_fails_as_told(client):
    """Refused, timed out but taken, timed out and lost: each for so many calls."""
    script = client.script("true")
    client.slurm.set(sbatch_fail=2)
    for _ in range(2):
        assert client.bad("sbatch", script) == f"sbatch: error: Batch job submission failed: {CONNECT}\n"
    assert client.rows() == []
    client.slurm.set(sbatch_timeout=1)
    assert client.bad("sbatch", script) == TIMED_OUT
    assert len(client.rows()) == 1
    client.slurm.set(sbatch_timeout_lost=1)
    assert client.bad("sbatch", script) == TIMED_OUT
    assert len(client.rows()) == 1
    client.ok("sbatch", script)
    assert len(client.rows()) == 2


def test_banner_and_cluster(client):
    """A chatty site prints before the id, a federated one appends its cluster."""
    client.slurm.set(banner="Welcome 12\nto us", cluster_suffix="blue")
    done = client.run("sbatch", "--parsable", client.script("true"))
    assert (done.stdout, done.stderr) == ("Welcome 12\nto us\n1000;blue\n", "Welcome 12\nto us\n")


def test_squeue_fails_and_hangs_as_told(client):
    """A squeue refuses for so many calls or for ever, takes its time, and speaks unknown words."""
    client.slurm.set(squeue_fail=1)
    assert client.bad("squeue") == f"slurm_load_jobs error: {CONNECT}\n"
    client.ok("squeue")
    client.slurm.set(squeue_fail=True)
    assert client.bad("squeue") == client.bad("squeue")
    client.slurm.set(squeue_fail=0, squeue_hang=0.5, state_word="FROBNICATING")
    job = client.submit("sleep 60")
    client.slurm.wait_state(job, None, "RUNNING")
    began = time.monotonic()
    assert client.rows()[0][2] == "FROBNICATING"
    assert time.monotonic() - began >= 0.5


def test_sbatch_waits(client):
    """--wait returns at the end, with the highest exit code."""
    assert client.run("sbatch", "--wait", "--array=0-2", client.script("exit $SLURM_ARRAY_TASK_ID")).returncode == 2
    assert {row[2] for row in client.rows()} == {"COMPLETED", "FAILED"}


def test_calls_are_logged(client):
    """Every command line is kept, and its environment elsewhere."""
    client.run("squeue", "-h", "--name", "a b", MARK="here")
    assert client.slurm.calls() == client.slurm.calls("squeue") == [["squeue", "-h", "--name", "a b"]]
    assert client.slurm.environments()[0]["MARK"] == "here"
    client.slurm.reset_calls()
    assert client.slurm.calls() == client.slurm.environments() == []


def test_unknown_knobs_are_refused(client):
    """A mistyped knob is an error of the test."""
    with pytest.raises(AssertionError, match="squeue_fails"):
        client.slurm.set(squeue_fails=1)


@pytest.mark.parametrize("way", ["stop", "death"])
def test_tasks_end_with_their_cluster(tmp_path, way):
    """The controller and all tasks are gone after stop(), and when the process that started them was killed."""
    root = tmp_path / "c"
    script = tmp_path / "script"
    script.write_text("#!/bin/bash\ntrap '' TERM\nsleep 60 & echo $$ $! $PPID >pids.new; mv pids.new pids; wait\n")
    code = (
        "import os, pathlib, subprocess, sys\nfrom tests.slurm_shims.shims import ShimSlurm\n"
        "slurm = ShimSlurm(pathlib.Path(sys.argv[1])).__enter__()\n"
        "subprocess.run(['sbatch', sys.argv[2]], env=os.environ | slurm.environ, check=True)\n"
        "input()\nslurm.stop()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
    ) as starter:
        wait_until((tmp_path / "pids").exists)
        pids = (tmp_path / "pids").read_text().split()
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        starter.communicate(b"\n") if way == "stop" else os.kill(starter.pid, signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def wait_until(condition):
    """Wait for a condition."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
