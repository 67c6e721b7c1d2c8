"""Starting a task as slurmd does, and signalling what it started. Standard library only."""

# ruff: noqa: PTH103, PTH112, PTH118, PTH208

import contextlib
import json
import os
import re
import signal
import subprocess
import time


def batch_environment(job, task, spool, top):
    """The variables that a batch script sees: the submitter's, and Slurm's over them."""
    with open(os.path.join(spool, "environment.json")) as file:
        environ = json.load(file)
    number, cpus, here = str(task["raw"]), job["cpus"] or "1", task["node"]
    environ |= {
        "ENVIRONMENT": "BATCH",
        "SLURM_CLUSTER_NAME": "shim",
        "SLURM_CPUS_ON_NODE": cpus,
        "SLURM_JOBID": number,
        "SLURM_JOB_CPUS_PER_NODE": cpus,
        "SLURM_JOB_GID": str(os.getgid()),
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": job["name"],
        "SLURM_JOB_NODELIST": here,
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_PARTITION": job["partition"],
        "SLURM_JOB_UID": str(os.getuid()),
        "SLURM_JOB_USER": job["user"],
        "SLURM_LOCALID": "0",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": here,
        "SLURM_PROCID": "0",
        "SLURM_SUBMIT_DIR": job["submit_dir"],
        "SLURM_SUBMIT_HOST": os.uname().nodename,
        "SLURM_TASKS_PER_NODE": job["ntasks"] or "1",
        "SLURMD_NODENAME": here,
        "SHIM_SLURM": top,
    }
    if job["array"]:
        environ |= {"SLURM_ARRAY_JOB_ID": str(job["id"]), "SLURM_ARRAY_TASK_ID": str(task["index"])}
        for name, value in zip(("COUNT", "MIN", "MAX", "STEP"), job["facts"], strict=True):
            environ[f"SLURM_ARRAY_TASK_{name}"] = str(value)
    for name, value in (
        ("CPUS_PER_TASK", job["cpus"]),
        ("NTASKS", job["ntasks"]),
        ("NPROCS", job["ntasks"]),
        ("MEM_PER_NODE", job["memory"]),
        ("JOB_ACCOUNT", job["account"]),
        ("RESTART_COUNT", task["restarts"]),
    ):
        if value:
            environ[f"SLURM_{name}"] = str(value)
    if environ.setdefault("TMPDIR", "/tmp") != "/tmp":
        with contextlib.suppress(OSError):
            os.makedirs(environ["TMPDIR"], exist_ok=True)
    return environ


def expand(pattern, job, task):
    """A file name pattern of sbatch(1), filled in. A backslash turns the patterns off."""
    if "\\" in pattern:
        return pattern.replace("\\", "")
    index = 4294967294 if task["index"] is None else task["index"]
    words = {"A": job["id"], "a": index, "j": task["raw"], "J": task["raw"], "n": 0, "t": 0, "s": "batch"}
    words |= {"x": job["name"], "u": job["user"], "N": task["node"], "%": "%"}

    def fill(match):
        value = words.get(match[2], match[0])
        return str(value).zfill(min(int(match[1]), 10)) if match[1] and isinstance(value, int) else str(value)

    return re.sub(r"%(\d*)(.)", fill, pattern, flags=re.DOTALL)


def open_log(pattern, job, task):
    """The log's descriptor; OSError where its folder is missing."""
    path = os.path.join(job["cwd"], expand(pattern, job, task))
    fresh = not job["append"] and pattern != "/dev/null"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if fresh else 0), 0o666)


def note_end(job, task, why):
    """Say in the log that a task is being ended, as slurmstepd does."""
    with contextlib.suppress(OSError):
        log = open_log(job["error"] or job["output"], job | {"append": True}, task)
        when = time.strftime("%Y-%m-%dT%H:%M:%S")
        os.write(
            log, f"slurmstepd: error: *** JOB {task['raw']} ON {task['node']} CANCELLED AT {when}{why} ***\n".encode()
        )
        os.close(log)


def start_batch(job, task, top):
    """Start the spooled script in a session of its own; OSError when its log cannot be made."""
    spool = os.path.join(top, "spool", f"job{job['id']:05d}")
    environ = batch_environment(job, task, spool, top)
    with contextlib.ExitStack() as stack:
        output = open_log(job["output"], job, task)
        stack.callback(os.close, output)
        error = output
        if job["error"]:
            error = open_log(job["error"], job, task)
            stack.callback(os.close, error)
        cwd = job["cwd"]
        if not os.path.isdir(cwd):
            text = f"slurmstepd: error: couldn't chdir to `{cwd}': No such file or directory: going to /tmp instead\n"
            os.write(error, text.encode(errors="surrogateescape"))
            cwd = "/tmp"
        command = [os.path.join(spool, "slurm_script"), *job["args"]]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=error, cwd=cwd, env=environ, start_new_session=True
        )


def session_members(session):
    """The living processes of a session."""
    members = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _parent, _group, its = stat[stat.rindex(b")") + 2 :].split()[:4]
        if int(its) == session and state not in {b"Z", b"X"}:
            members.append(int(name))
    return members


def signal_session(session, *numbers):
    """Send signals to every process of a session; whether there was any."""
    members = session_members(session)
    for pid in members:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    return bool(members)


def kill_session(session):
    """Kill a session until nothing of it is left. Its leader must not have been waited for."""
    while signal_session(session, signal.SIGKILL):
        time.sleep(0.001)
