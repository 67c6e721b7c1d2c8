"""The cluster that tests run on does what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import watchdog
from cluster import SlurmCluster
from machine import why_no_slurm

needs_slurm = pytest.mark.skipif(why_no_slurm() != "", reason=why_no_slurm() or "it can run here")
ENDLESS = "sleep 600\n"


def is_running(rows: list[dict[str, str]]) -> bool:
    """Whether all tasks run."""
    return bool(rows) and all(row["State"] == "RUNNING" for row in rows)


def living(conf: Path) -> list[watchdog.Process]:
    """What is alive of a cluster."""
    return watchdog.choose_family(watchdog.read_processes(), watchdog.of_cluster(conf))


def test_three_nodes_are_idle(cluster: SlurmCluster) -> None:
    """A started cluster has three idle nodes, and a controller that answers."""
    said = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").stdout.split()
    assert said == ["n1", "idle", "n2", "idle", "n3", "idle"]
    assert cluster.run("scontrol", "ping").stdout.endswith("is UP\n")


def test_array_then_reduce(cluster: SlurmCluster) -> None:
    """A throttled array runs no more tasks at once than allowed, and an afterany job follows even a failed task."""
    script = 'date +"start %s%N"; sleep 0.3; date +"end %s%N"; exit $((SLURM_ARRAY_TASK_ID == 3 ? 7 : 0))\n'
    folder = cluster.folder / "100% array"
    folder.mkdir()
    array = cluster.submit(script, "--array=0-5%2", "--mem=1300M", "-o", "%a.log", cwd=folder)
    after = cluster.submit("date +%s%N\n", f"--dependency=afterany:{array}", "-o", "after.log", cwd=folder)
    codes = {row["ArrayTaskID"]: int(row["exit_code"]) >> 8 for row in cluster.wait_ended(array)}
    assert codes == {"0": 0, "1": 0, "2": 0, "3": 7, "4": 0, "5": 0}
    assert [row["State"] for row in cluster.wait_ended(after)] == ["COMPLETED"]
    events = sorted(
        (int(line.split()[1]), 1 if line.startswith("start") else -1)
        for task in range(6)
        for line in (folder / f"{task}.log").read_text().splitlines()
    )
    running = [sum(step for _, step in events[: count + 1]) for count in range(len(events))]
    assert max(running) == 2
    assert int((folder / "after.log").read_text()) > events[-1][0]


def test_dead_node(cluster: SlurmCluster) -> None:
    """What ran on a node that dies starts again on another, and the node comes back when started."""
    lives = cluster.folder / "lives"
    job = cluster.submit(f"echo $SLURMD_NODENAME >> {lives}\n{ENDLESS}", "--requeue")
    node = cluster.wait_for(job, lambda rows: is_running(rows) and lives.exists())[0]["NodeList"]
    commands = [process.command for process in cluster.node_processes(node)]
    assert any(command.startswith("slurmstepd") for command in commands)
    assert any("slurm_script" in command for command in commands)
    cluster.kill_node(node, announce=True)
    assert cluster.node_processes(node) == []
    second = cluster.wait_for(job, lambda rows: is_running(rows) and rows[0]["RestartCnt"] == "1")[0]["NodeList"]
    assert second != node
    cluster.wait_for(job, lambda _: lives.read_text().split() == [node, second])
    cluster.start_node(node)
    assert cluster.run("sinfo", "-h", "-n", node, "-p", "main", "-o", "%t").stdout == "idle\n"


def test_preemption(cluster: SlurmCluster) -> None:
    """A job of `high` takes the node of a job of `main`, which hears SIGTERM and starts again later."""
    heard = cluster.folder / "heard"
    script = f"trap 'echo TERM >> {heard}; exit 75' TERM; echo start >> {heard}; sleep 600 & wait\n"
    low = cluster.submit(script, "-c2", "-w", "n1", "--requeue")
    cluster.wait_for(low, lambda _: heard.exists())
    high = cluster.submit("true\n", "-p", "high", "-c2", "-w", "n1")
    assert [row["State"] for row in cluster.wait_ended(high)] == ["COMPLETED"]
    row = cluster.wait_for(low, lambda rows: rows[0]["State"] == "PENDING")[0]
    assert (row["RestartCnt"], row["Reason"]) == ("1", "BeginTime")
    assert heard.read_text().split() == ["start", "TERM"]


def test_controller_restart(cluster: SlurmCluster) -> None:
    """A job survives its controller; new settings hold after `reconfigure` until `tidy`."""
    job = cluster.submit("sleep 1\n")
    cluster.wait_for(job, is_running)
    cluster.kill_controller(signal.SIGTERM)
    cluster.start_controller()
    assert [row["State"] for row in cluster.wait_ended(job)] == ["COMPLETED"]
    cluster.reconfigure(MaxArraySize=3)
    assert "Invalid job array" in cluster.run("sbatch", "--array=0-3", "--wrap=true").stderr
    cluster.tidy()
    assert "= 1001\n" in cluster.run("scontrol", "show", "config").stdout


def test_accounting(accounting_cluster: SlurmCluster) -> None:
    """With accounting, sacct knows how each task ended, and sacctmgr the user."""
    job = accounting_cluster.submit("exit $((SLURM_ARRAY_TASK_ID * 7))\n", "--array=0-1", "-o", "/dev/null")
    accounting_cluster.wait_ended(job)
    sacct = ("sacct", "-X", "-P", "-n", "-j", job, "-o", "JobID,State,ExitCode")
    expected = {f"{job}_0|COMPLETED|0:0", f"{job}_1|FAILED|7:0"}
    accounting_cluster.wait_for(job, lambda _: set(accounting_cluster.run(*sacct).stdout.split()) == expected)
    users = accounting_cluster.run("sacctmgr", "-n", "-P", "show", "assoc", "user=root", "format=Cluster,Account")
    assert f"{accounting_cluster.name}|tests" in users.stdout.split()


@needs_slurm
def test_nothing_left_after_stop(tmp_path: Path) -> None:
    """After its end nothing of a cluster lives, not even a job that ignores SIGTERM and left its session."""
    # A folder whose name slurm.conf cannot hold.
    with SlurmCluster(tmp_path / "with space", nodes=1) as own:
        conf, folder = own.conf, own.folder
        own.submit("trap '' TERM; setsid sleep 600 & wait\n")
        own.wait_for("1", lambda _: any(process.command == "sleep 600" for process in living(conf)))
        own.stop(patience=1)
    assert living(conf) == []
    assert not folder.exists()


@needs_slurm
def test_nothing_left_after_death(tmp_path: Path) -> None:
    """When the process that started a cluster is killed, the cluster ends by itself."""
    program = textwrap.dedent(f"""
        import pathlib, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from cluster import SlurmCluster
        with SlurmCluster(pathlib.Path({str(tmp_path)!r}) / "c", nodes=1) as own:
            begun = own.folder / "begun"
            job = own.submit("touch " + str(begun) + "\\n" + {ENDLESS!r})
            own.wait_for(job, lambda _: begun.exists())
            print(own.conf, flush=True)
            sys.stdin.read()
    """)
    starter = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        conf = Path(starter.stdout.readline().strip())
        assert any("slurm_script" in process.command for process in living(conf))
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 3 * watchdog.PATIENCE
    while living(conf) and time.monotonic() < deadline:
        time.sleep(watchdog.POLL)
    assert living(conf) == []
