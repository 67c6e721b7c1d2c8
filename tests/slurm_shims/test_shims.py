"""The Slurm shims do what Slurm does, and fail as they are told."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.slurm_shims.runner import session_members

LOOP = "while :; do read -t .05 <> <(:); done"  # no children that a signal to all processes would end
WAIT = f"trap 'echo usr1 >>heard; exit 7' USR1; trap 'echo term >>heard; exit 8' TERM; echo >up; {LOOP}"
STUBBORN = f"trap '' TERM; echo >up; {LOOP}"


def test_script_runs_with_slurms_variables(client):
    """A copy of the script runs in its own session, with arguments, Slurm's variables and the submitter's."""
    report = "import json,os,sys; print(json.dumps([sys.argv, dict(os.environ), os.getsid(0) == os.getppid()]))"
    text = f'echo "$0"; pwd; readlink /proc/$$/fd/0; {sys.executable} -S -c {shlex.quote(report)} "$@"; true'
    options = ["--array=2-6:2", "--output=log.%A_%3a.%j.%%.%x", "--job-name=my name", "-c", "3", "--mem=2G"]
    job = client.submit(text, *options, args=("a b", "--c"))
    client.slurm.wait_idle()
    seen = []
    for index in (2, 4, 6):
        raw = client.slurm.task(job, index)["raw"]
        lines = (client.work / f"log.{job}_{index:03d}.{raw}.%.my name").read_text().splitlines()
        assert lines[0] == f"{client.slurm.root}/spool/job0{job}/slurm_script"
        assert lines[1:3] == [str(client.work), "/dev/null"]
        argv, environ, own = json.loads(lines[3])
        assert argv[1:] == ["a b", "--c"]
        assert own
        assert environ["SLURM_JOB_ID"] == environ["SLURM_JOBID"] == str(raw)
        keys = ["JOB_ID", "TASK_ID", "TASK_COUNT", "TASK_MIN", "TASK_MAX", "TASK_STEP"]
        assert [environ[f"SLURM_ARRAY_{key}"] for key in keys] == [job, str(index), "3", "2", "6", "2"]
        assert (environ["SLURM_JOB_NAME"], environ["SLURM_SUBMIT_DIR"]) == ("my name", str(client.work))
        assert (environ["SLURM_CPUS_PER_TASK"], environ["SLURM_MEM_PER_NODE"]) == ("3", "2048")
        assert environ["SLURMD_NODENAME"] == environ["SLURM_JOB_NODELIST"] in {"n1", "n2", "n3"}
        assert environ["TMPDIR"] == os.environ.get("TMPDIR", "/tmp")
        assert not {"SLURM_RESTART_COUNT", "SLURM_TMPDIR", "SLURM_JOB_START_TIME"} & environ.keys()
        seen.append(raw)
    assert len(set(seen)) == 3
    assert seen[-1] == int(job)


def test_plain_job_has_no_array_variables(client):
    """A plain job sees its own id, no array, and no settings that were not asked for; leaked ones stay."""
    script = client.script("env | grep ^SLURM_ >out; true")
    job = client.ok("sbatch", script, SLURM_RESTART_COUNT="9", SLURM_JOB_ID="666").split()[-1]
    client.slurm.wait_idle()
    names = dict(line.split("=", 1) for line in (client.work / "out").read_text().splitlines())
    assert names["SLURM_JOB_ID"] == job
    assert names["SLURM_RESTART_COUNT"] == "9"
    assert not {"SLURM_ARRAY_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE"} & names.keys()
    assert client.rows() == [[job, "N/A", "COMPLETED", "0", "0", "None"]]


def test_options_come_from_line_variables_and_script(client):
    """The command line comes before SBATCH_* variables, and these before #SBATCH lines, which end at a command."""
    text = "#SBATCH --job-name='one two' --time=3\n#SBATCH -p far\n# x\ntrue\n#SBATCH --account=late"
    script = client.script(text)
    for options, environ, wanted in (
        ([], {}, ("one two", 180, "far")),
        ([], {"SBATCH_TIMELIMIT": "1:30"}, ("one two", 120, "far")),
        (["-J", "x", "--time", "1-0"], {"SBATCH_TIMELIMIT": "1"}, ("x", 86400, "far")),
    ):
        job = client.slurm.job(client.ok("sbatch", "--parsable", *options, script, **environ).strip())
        assert (job["name"], job["limit"], job["partition"], job["account"]) == (*wanted, "")


@pytest.mark.parametrize("word", ["--arary=0-1", "--aray", "-Z", "--array0", "--arr=1", "--requeue=1", "--wrap=true"])
def test_unknown_options_are_refused(client, word):
    """No command takes an option that Slurm, or this shim, does not know; nothing is submitted."""
    assert word.strip("-")[0] in client.bad("sbatch", word, client.script("true"))
    for command in ("squeue", "sacct", "scontrol", "scancel"):
        client.bad(command, word)
    assert client.rows() == []


def test_refusals(client):
    """Limits refuse whole submissions with Slurm's texts."""
    client.slurm.set(max_array_size=11, max_array_tasks=5, max_submit_jobs=6)
    script = client.script("sleep 60")
    invalid = "sbatch: error: Batch job submission failed: Invalid job array specification\n"
    for array in ("0-11", "11", "0-5", "a", "3-1", "0-3:0", "0-3%x"):
        assert client.bad("sbatch", f"--array={array}", script) == invalid
    client.slurm.set(max_array_size=100_000, max_array_tasks=None)
    long = ",".join(str(index) for index in range(10_000, 10_700))
    assert "too long" in client.bad("sbatch", f"--array={long}", script)
    client.ok("sbatch", "--array=6-10", script)
    refusal = client.bad("sbatch", "--array=0-1", script)
    assert refusal.startswith("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job ")
    assert "to start at" in client.run("sbatch", "--test-only", script).stderr
    client.ok("sbatch", script)
    assert len(client.rows()) == 6
    (client.work / "text").write_text("true\n")
    assert "batch script" in client.bad("sbatch", "text")
    assert "Unable to open" in client.bad("sbatch", "nothing")


def test_missing_log_folder_fails_the_task(client):
    """The submission goes well, the task ends at once without a log."""
    job = client.submit("touch ran", "--output=nowhere/log")
    client.slurm.wait_idle()
    assert client.rows() == [[job, "N/A", "FAILED", "4021", "0", "JobLaunchFailure"]]
    assert not (client.work / "ran").exists()
    assert not (client.work / "nowhere").exists()


def test_exit_codes(client):
    """An end shows as wait status in squeue, as code and signal in sacct; what a task leaves behind dies with it."""
    client.slurm.set(accounting=True)
    text = "case $SLURM_ARRAY_TASK_ID in 1) exit 75;; 2) kill -9 $$;; 3) sleep 60 & echo $! >left;; esac"
    job = client.submit(text, "--array=0-3")
    client.slurm.wait_idle()
    assert [row[2:4] for row in client.rows()] == [
        ["COMPLETED", "0"],
        ["FAILED", "19200"],
        ["FAILED", "9"],
        ["COMPLETED", "0"],
    ]
    states = [("COMPLETED", "0:0"), ("FAILED", "75:0"), ("FAILED", "0:9"), ("COMPLETED", "0:0")]
    assert client.sacct("-j", job) == [[f"{job}_{index}", *state] for index, state in enumerate(states)]
    assert not Path(f"/proc/{(client.work / 'left').read_text().strip()}/exe").exists()


def test_throttle_and_slots(client):
    """At most N tasks of an array run at a time, and no more than the nodes hold; the throttle can be changed."""
    client.slurm.set(nodes=["a", "b"], slots=2)
    job = client.submit("sleep 60", "--array=0-9%3")
    client.slurm.wait_state(job, 2, "RUNNING")
    states = [row[2] for row in client.rows()]
    assert states == ["RUNNING"] * 3 + ["PENDING"] * 7
    assert client.rows()[3][5] == "JobArrayTaskLimit"
    client.ok("scontrol", "update", f"JobId={job}", "ArrayTaskThrottle=0")
    client.slurm.wait_state(job, 3, "RUNNING")
    client.slurm._wait(lambda: [row[5] for row in client.rows()[4:6]] == ["Resources", "Priority"])
    assert sorted(client.slurm.task(job, index)["node"] for index in range(4)) == ["a", "a", "b", "b"]


def test_dependencies(client):
    """With afterany a job waits for the end of all tasks, however; afterok never comes true after a failure."""
    first = client.submit("while [ ! -e go ]; do sleep .05; done; exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    second = client.submit("while [ ! -e go ]; do sleep .05; done")
    either = client.submit("ls", f"--dependency=afterany:{first}:{second}")
    both = client.submit("ls", f"--dependency=afterok:{second},afterok:{first}")
    killed = client.submit("ls", f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    part = client.submit("ls", f"--dependency=afterok:{first}_0,afterany:99")
    reasons = {row[0]: row[5] for row in client.rows()}
    assert [reasons[job] for job in (either, both, killed, part)] == ["Dependency"] * 4
    (client.work / "go").touch()
    for job, state in ((either, "COMPLETED"), (killed, "CANCELLED"), (part, "COMPLETED")):
        client.slurm.wait_state(job, None, state)
    assert client.slurm.task(either)["start"] >= max(
        client.slurm.task(first, 1)["end"], client.slurm.task(second)["end"]
    )
    assert client.rows("-j", both)[0][2::3] == ["PENDING", "DependencyNeverSatisfied"]
    assert "Job dependency problem" in client.bad("sbatch", "--dependency=afterwards:1", client.script("true"))


def test_early_signal_reaches_the_shell_alone(client):
    """The signal of `B:` comes its lead before the limit, to the batch shell and to none of its children."""
    child = f"(trap 'echo >child' USR1; {LOOP}) & wait $!; exit 5"
    job = client.submit(f"trap 'date +%s.%N >shell; exit 7' USR1; {child}", "--time=1", "--signal=B:USR1@30")
    client.slurm.wait_idle()
    assert client.rows() == [[job, "N/A", "FAILED", "1792", "0", "NonZeroExitCode"]]
    assert 0.9 < float((client.work / "shell").read_text()) - client.slurm.task(job)["start"] < 1.9
    assert not (client.work / "child").exists()


def test_time_limit(client):
    """At the limit all processes get SIGTERM, and SIGKILL after kill_wait; a signal without `B:` reaches nobody."""
    child = f"(trap 'echo >child; exit' TERM; {LOOP}) &"
    job = client.submit(f"{child} trap 'echo >usr1' USR1; {STUBBORN}", "--time=1", "--signal=USR1@30")
    task = client.slurm.wait_state(job, None, "TIMEOUT")
    assert 2.3 <= task["end"] - task["start"] < 5
    assert (client.work / "child").exists()
    assert not (client.work / "usr1").exists()
    assert client.rows() == [[job, "N/A", "TIMEOUT", "9", "0", "TimeLimit"]]


def test_requeue_from_inside(client):
    """A task that requeues itself is ended, waits in BeginTime, and runs again under its id; its log is appended."""
    client.slurm.set(requeue_delay=1.0, accounting=True)
    text = (
        'echo "life ${SLURM_RESTART_COUNT:-none} $SLURM_JOB_ID"; [ -n "$SLURM_RESTART_COUNT" ] && exit 4;'
        'trap "exit 75" TERM; scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"; while :; do :; done'
    )
    job = client.submit(text, "--array=5", "--output=log", "--open-mode=append")
    client.slurm._wait(lambda: client.rows() == [[job, "5", "PENDING", "0", "1", "BeginTime"]])
    assert client.sacct("-D") == [[f"{job}_5", "REQUEUED", "0:0"], [f"{job}_5", "PENDING", "0:0"]]
    client.slurm.wait_idle()
    assert client.rows() == [[job, "5", "FAILED", "1024", "1", "NonZeroExitCode"]]
    lines = (client.work / "log").read_text().splitlines()
    assert [line for line in lines if "life" in line] == [f"life none {job}", f"life 1 {job}"]
    assert ["scontrol", "requeue", f"{job}_5"] in client.slurm.calls()


def test_requeue_is_refused(client):
    """Unknown ids, sites and jobs that do not allow it; a task that has ended can be requeued."""
    assert "Invalid job id specified" in client.bad("scontrol", "requeue", "99_1")
    job = client.submit("true", "--array=0")
    fixed = client.submit("true", "--no-requeue")
    client.slurm.wait_idle()
    assert "disabled" in client.bad("scontrol", "requeue", fixed)
    client.ok("scontrol", "requeue", f"{job}_0")
    client.slurm.wait_idle()
    assert client.slurm.task(job, 0)["restarts"] == 1
    client.slurm.set(requeue_allowed=False)
    assert "disabled" in client.bad("scontrol", "requeue", f"{job}_0")


def test_cancel(client):
    """Waiting tasks are cancelled at once, running ones get SIGTERM and then SIGKILL; one task can be named."""
    client.slurm.set(accounting=True, kill_wait=30)
    job = client.submit(WAIT, "--array=0-4%1")
    client.wait_file("up")
    client.ok("scancel", f"{job}_1")
    assert client.slurm.task(job, 1)["state"] == "CANCELLED"
    assert [row[1] for row in client.rows()] == ["0", "2", "3", "4"]
    client.ok("scancel", job)
    client.slurm.wait_idle()
    assert (client.work / "heard").read_text() == "term\n"
    who = f"CANCELLED by {os.getuid()}"
    assert client.sacct() == [[f"{job}_0", who, "8:0"], [f"{job}_[1-4%1]", who, "0:0"]]
    assert [row[2:4] for row in client.rows()] == [["CANCELLED", "2048"]] + [["CANCELLED", "0"]] * 3
    client.slurm.set(kill_wait=0.3)
    (client.work / "up").unlink()
    stubborn = client.submit(STUBBORN)
    client.wait_file("up")
    client.ok("scancel", "--signal=KILL", stubborn)
    assert client.rows("-j", stubborn)[0][2] == "COMPLETING"
    client.slurm.wait_state(stubborn, None, "CANCELLED")
    assert client.run("scancel", "99", stubborn).stderr == ""
    assert "Invalid job id specified" in client.run("scancel", "--verbose", "99").stderr


def test_cancel_sends_other_signals(client):
    """A signal other than SIGKILL reaches the shell only with --batch, and all with --full."""
    job = client.submit(WAIT)
    client.wait_file("up")
    client.ok("scancel", "--signal=TERM", job)
    client.ok("scancel", "--signal=USR1", "--batch", job)
    client.slurm.wait_idle()
    assert (client.work / "heard").read_text() == "usr1\n"
    assert client.rows()[0][2:4] == ["FAILED", "1792"]


def test_hold_and_release(client):
    """A held job waits until it is released."""
    job = client.submit("true", "--hold")
    assert client.rows() == [[job, "N/A", "PENDING", "0", "0", "JobHeldUser"]]
    client.ok("scontrol", "release", job)
    client.slurm.wait_state(job, None, "COMPLETED")


def test_node_failure_preemption_and_memory(client):
    """Node failure and preemption requeue or end a task as its --requeue says; lack of memory ends it."""
    client.slurm.set(accounting=True, requeue_delay=60)
    job = client.submit("sleep 60", "--array=0-2", "--requeue")
    fixed = client.submit("sleep 60", "--array=0-1", "--no-requeue")
    for which, index in ((job, 2), (fixed, 1)):
        client.slurm.wait_state(which, index, "RUNNING")
    pids = [client.slurm.task(job, 0)["pid"], client.slurm.task(fixed, 0)["pid"]]
    for which in (job, fixed):
        client.slurm.fail_node(which, 0)
        client.slurm.preempt(which, 1)
    client.slurm.oom(job, 2)
    client.slurm.wait_state(fixed, 1, "PREEMPTED")
    client.slurm.wait_state(job, 1, "PENDING")
    assert [session_members(pid) for pid in pids] == [[], []]
    assert [row[2:] for row in client.rows("-j", job)] == [
        ["PENDING", "0", "1", "BeginTime"],
        ["PENDING", "0", "1", "BeginTime"],
        ["OUT_OF_MEMORY", "125", "0", "OutOfMemory"],
    ]
    assert [row[2] for row in client.rows("-j", fixed)] == ["NODE_FAIL", "PREEMPTED"]
    assert client.sacct("-D", "-j", job) == [
        [f"{job}_0", "NODE_FAIL", "0:0"],
        [f"{job}_0", "PENDING", "0:0"],
        [f"{job}_1", "PREEMPTED", "0:0"],
        [f"{job}_1", "PENDING", "0:0"],
        [f"{job}_2", "OUT_OF_MEMORY", "0:125"],
    ]
