"""The sbatch command: what it takes and refuses. Standard library only."""

# ruff: noqa: PTH100, PTH101, PTH103, PTH109, PTH118, PTH119, SIM905

import os
import pwd
import shlex
import time

from tests.slurm_shims import options as opt
from tests.slurm_shims.store import (
    TASK,
    all_tasks,
    finished,
    format_time,
    open_cluster,
    parse_indices,
    refuse,
    root,
    use_up,
    write_json,
)

FLAGS = ("parsable", "requeue", "no-requeue", "hold", "test-only", "wait", "quiet")
VALUES = (
    "job-name array output error open-mode signal export chdir dependency time mem cpus-per-task partition account qos"
    " gres constraint nodelist exclude reservation mail-user mail-type comment kill-on-invalid-dep nodes ntasks"
)
LONGS = dict.fromkeys(FLAGS, False) | dict.fromkeys(VALUES.split(), True)
SHORTS = dict(
    pair.split("=")
    for pair in (
        "J=job-name a=array o=output e=error D=chdir d=dependency t=time c=cpus-per-task p=partition A=account q=qos"
        " C=constraint w=nodelist x=exclude N=nodes n=ntasks H=hold W=wait Q=quiet"
    ).split()
)
VARIABLES = {  # of sbatch(1): they stand between the command line and the script's own lines
    "SBATCH_ACCOUNT": "account", "SBATCH_ARRAY_INX": "array", "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_EXPORT": "export", "SBATCH_GRES": "gres", "SBATCH_JOB_NAME": "job-name",
    "SBATCH_MEM_PER_NODE": "mem", "SBATCH_NO_REQUEUE": "no-requeue", "SBATCH_OPEN_MODE": "open-mode",
    "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos", "SBATCH_REQUEUE": "requeue",
    "SBATCH_RESERVATION": "reservation", "SBATCH_SIGNAL": "signal", "SBATCH_TIMELIMIT": "time", "SBATCH_WAIT": "wait",
}  # fmt: skip
FAILED = "sbatch: error: Batch job submission failed: "
TIMED_OUT = FAILED + "Socket timed out on send/recv operation"
BAD_ARRAY = FAILED + "Invalid job array specification"
TOO_LONG = FAILED + "Pathname of a file, directory or other parameter too long"
TOO_MANY = (
    "sbatch: error: AssocMaxSubmitJobLimit\n"
    f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


def main(argv):
    """Submit a batch script."""
    given, operands = opt.parse_options("sbatch", argv, LONGS, SHORTS, stop=True)
    if not operands:
        refuse("sbatch: error: no batch script given: standard input and --wrap are not supported here")
    script = read_script(operands[0])
    settings = script_options(script) | variable_options() | given
    for one, other in (("requeue", "no-requeue"), ("no-requeue", "requeue")):
        if one in given:
            settings.pop(other, None)
    with open_cluster(root()) as cluster:
        if use_up(cluster, "sbatch_fail"):
            refuse(FAILED + "Unable to contact slurm controller (connect failure)")
        if use_up(cluster, "sbatch_timeout_lost"):
            refuse(TIMED_OUT)
        job = make_job(cluster, settings, operands)
        if "test-only" in settings:
            when = format_time(time.time(), "")
            refuse(f"sbatch: Job {cluster['next_id']} to start at {when} using 1 processors on nodes n1", 0)
        take_job(cluster, job, script, settings.get("export", "ALL"))
        lost = use_up(cluster, "sbatch_timeout")
        knobs = cluster["knobs"]
    if lost:
        refuse(TIMED_OUT)
    if knobs["banner"]:
        os.write(1, (knobs["banner"] + "\n").encode())
        os.write(2, (knobs["banner"] + "\n").encode())
    suffix = knobs["cluster_suffix"]
    if "parsable" in settings:
        print(f"{job['id']};{suffix}" if suffix else job["id"], flush=True)
    elif "quiet" not in settings:
        print(f"Submitted batch job {job['id']}" + (f" on cluster {suffix}" if suffix else ""), flush=True)
    return wait_for(job["id"]) if "wait" in settings else 0


def read_script(path):
    """The script's bytes."""
    try:
        with open(path, "rb") as file:
            script = file.read()
    except OSError:
        refuse(f"sbatch: error: Unable to open file {path}")
    if not script.startswith(b"#!"):
        refuse(
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh"
        )
    return script


def script_options(script):
    """Options of the #SBATCH lines, which end at the first command."""
    words = []
    for line in script.decode(errors="surrogateescape").split("\n"):
        if line.startswith("#SBATCH"):
            words += shlex.split(line.removeprefix("#SBATCH"), comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    found, operands = opt.parse_options("sbatch", words, LONGS, SHORTS)
    if operands:
        refuse(f"sbatch: error: {operands[0]}: not an option in a #SBATCH line")
    return found


def variable_options():
    """Options that the environment gives."""
    return {
        name: os.environ[variable] if LONGS[name] else True
        for variable, name in VARIABLES.items()
        if variable in os.environ
    }


def read(settings, name, parser, text, default=None):
    """One option's value, or a refusal with Slurm's text."""
    if name not in settings:
        return default
    try:
        return parser(settings[name])
    except ValueError:
        refuse(text)


def make_job(cluster, settings, operands):
    """The job that the options describe, if the limits allow it."""
    knobs = cluster["knobs"]
    indices, throttle, step = [None], 0, 1
    if "array" in settings:
        text, _, most = settings["array"].partition("%")
        if len(settings["array"].encode()) > 4096:
            refuse(TOO_LONG)
        indices = read({"array": text}, "array", parse_indices, BAD_ARRAY)
        if most and not most.isdigit():
            refuse(BAD_ARRAY)
        throttle = int(most or 0)
        step = int(text.partition(":")[2]) if ":" in text and "," not in text else 1
        most_tasks = knobs["max_array_tasks"]
        if indices[-1] >= knobs["max_array_size"] or (most_tasks is not None and len(indices) > most_tasks):
            refuse(BAD_ARRAY)
    name = settings.get("job-name", os.path.basename(operands[0]))
    if len(name.encode(errors="surrogateescape")) > 1024:
        refuse(TOO_LONG)
    most = knobs["max_submit_jobs"]
    if most is not None and sum(not finished(task) for _, task in all_tasks(cluster)) + len(indices) > most:
        refuse(TOO_MANY)
    for option, words in (("open-mode", "append truncate"), ("kill-on-invalid-dep", "yes no"), ("nodes", "1")):
        if settings.get(option, words.split()[0]) not in words.split():
            refuse(f"sbatch: error: Invalid --{option} specification")
    read(settings, "cpus-per-task", int, "sbatch: error: Invalid numeric value for --cpus-per-task.")
    read(settings, "ntasks", int, "sbatch: error: Invalid numeric value for --ntasks.")
    export = settings.get("export", "ALL").split(",")
    if export[0] != "ALL" or not all("=" in word for word in export[1:]):
        refuse(f"sbatch: error: --export={settings['export']}: not supported here, only ALL[,NAME=VALUE...]")
    default = "slurm-%j.out" if indices == [None] else "slurm-%A_%a.out"
    return {
        "id": cluster["next_id"],
        "array": indices != [None],
        "name": name,
        "command": " ".join([os.path.abspath(operands[0]), *operands[1:]]),
        "args": operands[1:],
        "submit_dir": os.getcwd(),
        "cwd": os.path.abspath(settings.get("chdir", ".")),
        "output": settings.get("output", default),
        "error": settings.get("error"),
        "append": settings.get("open-mode") == "append",
        "requeue": "no-requeue" not in settings,
        "signal": read(settings, "signal", opt.parse_signal, "sbatch: error: Invalid --signal specification"),
        "limit": read(settings, "time", opt.parse_minutes, "sbatch: error: Invalid --time specification"),
        "memory": read(settings, "mem", opt.parse_memory, "sbatch: error: Invalid --mem specification"),
        "cpus": settings.get("cpus-per-task"),
        "ntasks": settings.get("ntasks"),
        "dependency": read(settings, "dependency", opt.parse_dependency, FAILED + "Job dependency problem", []),
        "kill_invalid": settings.get("kill-on-invalid-dep") == "yes",
        "never": False,
        "nodelist": settings.get("nodelist", ""),
        "exclude": settings.get("exclude", ""),
        "partition": settings.get("partition", "main"),
        "account": settings.get("account", ""),
        "asked": {key: value for key, value in settings.items() if key in VALUES.split()},
        "throttle": throttle,
        "facts": [len(indices), indices[0] or 0, indices[-1] or 0, step],
        "submitted": time.time(),
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "tasks": [{**TASK, "lives": [], "signals": [], "index": i, "held": "hold" in settings} for i in indices],
    }


def take_job(cluster, job, script, export):
    """Copy the script to the spool, keep the environment, and queue the job."""
    spool = os.path.join(root(), "spool", f"job{job['id']:05d}")
    os.makedirs(spool)
    path = os.path.join(spool, "slurm_script")
    with open(path, "wb") as file:
        file.write(script)
    os.chmod(path, 0o700)
    environ = dict(os.environ) | dict(word.split("=", 1) for word in export.split(",")[1:])
    write_json(os.path.join(spool, "environment.json"), environ)
    cluster["jobs"][str(job["id"])] = job
    cluster["next_id"] += 1


def wait_for(number):
    """Wait for a job's end; the highest exit code of its tasks."""
    while True:
        with open_cluster(root(), write=False) as cluster:
            tasks = cluster["jobs"][str(number)]["tasks"]
        if all(finished(task) for task in tasks):
            return max((task["status"] >> 8) or (1 if task["state"] != "COMPLETED" else 0) for task in tasks)
        time.sleep(0.05)
