"""The state that the commands, the controller and the tests share: one JSON file under a lock.

Standard library only, and os.path rather than pathlib, which would double the time that a command takes to start.

A cluster is a dict of `knobs`, `next_id` and `jobs`. A job is a dict of what was submitted, with a list of `tasks`
(one, with index None, for a plain job). Times are Unix times; `status` of a task is a wait status as Slurm keeps it.
"""

# ruff: noqa: PTH118

import contextlib
import fcntl
import json
import os
import sys
import time

KNOBS = {
    "nodes": ["n1", "n2", "n3"],
    "slots": 2,  # tasks that a node runs at a time
    "minute": 60.0,  # real seconds that a minute of --time and of --signal's lead takes
    "kill_wait": 5.0,  # real seconds between SIGTERM and SIGKILL
    "requeue_delay": 0.2,  # real seconds in BeginTime after a requeue
    "min_job_age": 300.0,  # real seconds that squeue and scontrol still know a task that has ended
    "sbatch_fail": 0,  # so many next calls are refused
    "sbatch_timeout": 0,  # so many next calls take the job and then say that the socket timed out
    "sbatch_timeout_lost": 0,  # so many next calls say so and have not taken it
    "banner": "",
    "cluster_suffix": "",
    "max_submit_jobs": None,
    "max_array_size": 1001,
    "max_array_tasks": None,
    "squeue_fail": 0,  # so many next calls fail; True: all
    "squeue_hang": 0.0,
    "state_word": "",  # reported for running tasks
    "accounting": False,
    "sacct_lag": 0.0,
    "requeue_allowed": True,
}

TASK = {
    "raw": None,  # its own job id, once it was started
    "state": "PENDING",
    "reason": "None",
    "held": False,
    "eligible": 0.0,
    "pid": 0,
    "node": "",
    "start": 0.0,
    "end": 0.0,
    "status": 0,
    "restarts": 0,
    "want": None,  # what a command or a test asked for: cancel requeue preempt node_fail oom
    "signals": [],  # asked for: [number, "shell" | "all"]
    "why": None,  # it is being ended, and why: a word of `want`, or timeout
    "deadline": 0.0,  # when SIGKILL follows
    "led": False,  # the signal before the time limit was sent
    "lives": [],  # state, start, end, node, status of the lives before this one
    "forgotten": False,
}


def refuse(text, code=1):
    """End the command with a text to stderr."""
    os.write(2, (text + "\n").encode(errors="surrogateescape"))
    raise SystemExit(code)


def say(text):
    """Print a line, whatever bytes it came from."""
    sys.stdout.buffer.write((text + "\n").encode(errors="surrogateescape"))


def root():
    """The folder of the cluster that a command belongs to."""
    return os.environ["SHIM_SLURM"]


def write_json(path, value):
    """Replace a JSON file at once."""
    made = f"{path}.{os.getpid()}.tmp"
    with open(made, "w") as file:
        file.write(json.dumps(value))
    os.replace(made, path)


@contextlib.contextmanager
def open_cluster(top, *, write=True, poke=True):
    """Hold the lock and yield the cluster; what was changed is written, and wakes the controller with `poke`.

    A refusal keeps changes too: it uses up a knob that counts calls.
    """
    path = os.path.join(top, "state", "cluster.json")
    with open(os.path.join(top, "state", "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
        with open(path) as file:
            before = file.read()
        cluster, refusal = json.loads(before), None
        try:
            yield cluster
        except SystemExit as error:
            refusal = error
        if write and json.dumps(cluster) != before:
            write_json(path, cluster)
            if poke:
                wake(top)
        if refusal:
            raise refusal


def wake(top):
    """Make the controller look now; no matter when there is none."""
    with contextlib.suppress(OSError):
        pipe = os.open(os.path.join(top, "state", "wake"), os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, b"x")
        finally:
            os.close(pipe)


def log_call(top, argv):
    """Note a command line, and its environment in a file of its own."""
    for name, value in (("calls", argv), ("environments", dict(os.environ))):
        log = os.open(os.path.join(top, "state", f"{name}.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, (json.dumps(value) + "\n").encode())
        os.close(log)


def use_up(cluster, knob):
    """Whether a knob that counts calls applies to this one."""
    left = cluster["knobs"][knob]
    if left and left is not True:
        cluster["knobs"][knob] = left - 1
    return bool(left)


def finished(task):
    """Whether a task has ended for good."""
    return task["state"] not in {"PENDING", "RUNNING"}


def known(cluster, task):
    """Whether the controller still remembers a task."""
    if not finished(task):
        return True
    return not task["forgotten"] and time.time() < task["end"] + cluster["knobs"]["min_job_age"]


def all_tasks(cluster):
    """Every (job, task) in order of submission."""
    return [(job, task) for job in cluster["jobs"].values() for task in job["tasks"]]


def parse_indices(text):
    """Indices of `0-3,7,10-20:5`. Raises ValueError."""
    found = set()
    for piece in text.split(","):
        span, _, step = piece.partition(":")
        low, dash, high = span.partition("-")
        numbers = [low, *([high] if dash else []), *([step] if ":" in piece else [])]
        if not all(number.isascii() and number.isdigit() for number in numbers) or (":" in piece and int(step) < 1):
            raise ValueError(piece)
        if int(high or low) > 4_000_000 or int(high or low) < int(low):
            raise ValueError(piece)
        found |= set(range(int(low), int(high or low) + 1, int(step or 1)))
    return sorted(found)


def find_tasks(cluster, spec):
    """The tasks that the controller knows under `12`, `12_3`, `12_[3-5]` or a raw id; raises LookupError."""
    base, under, rest = spec.partition("_")
    pairs = [pair for pair in all_tasks(cluster) if known(cluster, pair[1])]
    if not under:
        found = [pair for pair in pairs if str(pair[0]["id"]) == base]
        found = found or [pair for pair in pairs if str(pair[1]["raw"]) == base]
    else:
        try:
            indices = set(parse_indices(rest.removeprefix("[").removesuffix("]")))
        except ValueError:
            raise LookupError(spec) from None
        found = [pair for pair in pairs if str(pair[0]["id"]) == base and pair[1]["index"] in indices]
    if not found:
        raise LookupError(spec)
    return found


def end_task(task, state, now, status=0):
    """Book the end of a task. A task that a signal killed has failed to launch, says Slurm."""
    failure = "JobLaunchFailure" if status & 0x7F else "NonZeroExitCode"
    reasons = {"FAILED": failure, "TIMEOUT": "TimeLimit", "OUT_OF_MEMORY": "OutOfMemory"}
    task.update(state=state, end=now, status=status, pid=0, why=None, want=None, signals=[], held=False)
    task["start"] = task["start"] or now
    if state != "CANCELLED":
        task["reason"] = reasons.get(state, "NodeDown" if state == "NODE_FAIL" else "None")


def requeue_task(task, state, now, delay, status=0):
    """Book the end of a life, and put the task back into the queue."""
    life = {"state": state, "start": task["start"], "end": task["end"] or now, "node": task["node"], "status": status}
    task["lives"].append(life)
    task.update(state="PENDING", reason="BeginTime", eligible=now + delay, restarts=task["restarts"] + 1, status=0)
    task.update(pid=0, node="", start=0.0, end=0.0, want=None, why=None, signals=[], led=False, forgotten=False)


def format_time(value, unknown):
    """A time as squeue and sacct print it (SLURM_TIME_FORMAT is a strftime format, or `standard`)."""
    if not value:
        return unknown
    wanted = os.environ.get("SLURM_TIME_FORMAT", "standard")
    return time.strftime("%Y-%m-%dT%H:%M:%S" if wanted == "standard" else wanted, time.localtime(value))


def format_span(seconds):
    """Seconds as `[days-]hours:minutes:seconds`, as sacct prints them."""
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def format_limit(seconds):
    """A time limit as squeue prints it: without leading zeros, and hours only from the first one on."""
    if seconds is None:
        return "UNLIMITED"
    text = format_span(seconds)
    if "-" not in text:
        text = text.removeprefix("00:")
        text = text[1:] if text[0] == "0" else text
    return text


def exit_text(status):
    """A wait status as `code:signal`; Slurm's own 125, for lack of memory, and 4021 are signals to it."""
    by = status & 0x7F
    return f"0:{by}" if by else f"{status >> 8}:0"
