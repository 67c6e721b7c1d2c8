"""The scontrol and scancel commands. Standard library only."""

# ruff: noqa: PTH118

import os
import time

from tests.slurm_shims import options as opt
from tests.slurm_shims.store import (
    end_task,
    exit_text,
    find_tasks,
    finished,
    format_limit,
    format_time,
    open_cluster,
    refuse,
    requeue_task,
    root,
    say,
)

INVALID = "Invalid job id specified"
DISABLED = "Requested operation is presently disabled"


def scontrol(argv):
    """Show, update, requeue, hold and release."""
    options, words = opt.parse_options("scontrol", argv, {"oneliner": False}, {"o": "oneliner"})
    verb = words[0] if words else ""
    if verb == "show" and words[1:] == ["config"]:
        return show_config()
    if verb == "show" and len(words) == 3 and words[1] in {"job", "jobs"}:
        return show_job(words[2], "oneliner" in options)
    if verb == "update" and len(words) > 1:
        return update(words[1:])
    if verb in {"requeue", "hold", "release"} and len(words) > 1:
        specs = [spec for word in words[1:] for spec in word.split(",")]
        return max({"requeue": requeue, "hold": hold, "release": release}[verb](spec) for spec in specs)
    return refuse(f"invalid keyword: {' '.join(words)}")


def show_config():
    """The settings a client may look for."""
    with open_cluster(root(), write=False) as cluster:
        knobs = cluster["knobs"]
    tasks = knobs["max_array_tasks"]
    settings = {
        "AccountingStorageType": "accounting_storage/" + ("slurmdbd" if knobs["accounting"] else "none"),
        "ClusterName": "shim",
        "JobFileAppend": "0",
        "JobRequeue": "1",
        "KillWait": "30 sec",
        "MaxArraySize": knobs["max_array_size"],
        "MaxJobCount": "10000",
        "MinJobAge": "300 sec",
        "PreemptMode": "OFF",
        "SchedulerParameters": "(null)" if tasks is None else f"max_array_tasks={tasks}",
        "SchedulerType": "sched/backfill",
        "SLURM_CONF": os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"),
        "SLURM_VERSION": "22.05.8",
    }
    say(f"Configuration data as of {format_time(time.time(), '')}")
    for key, value in settings.items():
        say(f"{key:<23s} = {value}")
    say("\nSlurmctld(primary) at localhost is UP")
    return 0


def show_job(spec, oneliner):
    """The records of a job's tasks."""
    with open_cluster(root(), write=False) as cluster:
        try:
            found = find_tasks(cluster, spec)
        except LookupError:
            refuse(f"slurm_load_jobs error: {INVALID}")
    for job, task in found:
        array = f" ArrayJobId={job['id']} ArrayTaskId={task['index']}" if job["array"] else ""
        if job["array"] and job["throttle"]:
            array += f" ArrayTaskThrottle={job['throttle']}"
        depends = ",".join(":".join([kind, *ids]) for kind, ids in job["dependency"]) or "(null)"
        state = "COMPLETING" if task["why"] else task["state"]
        lines = [
            f"JobId={task['raw'] or job['id']}{array} JobName={job['name']}",
            f"   UserId={job['user']}({os.getuid()}) Account={job['account'] or '(null)'}",
            f"   JobState={state} Reason={task['reason']} Dependency={depends}",
            f"   Requeue={int(job['requeue'])} Restarts={task['restarts']} ExitCode={exit_text(task['status'])}",
            f"   TimeLimit={format_limit(job['limit'])} SubmitTime={format_time(job['submitted'], 'Unknown')}",
            f"   StartTime={format_time(task['start'], 'Unknown')} EndTime={format_time(task['end'], 'Unknown')}",
            f"   Partition={job['partition']} NodeList={task['node'] or '(null)'}",
            f"   Command={job['command']}",
            f"   WorkDir={job['cwd']}",
            f"   StdOut={os.path.join(job['cwd'], job['output'])}",
        ]
        say((" ".join(line.strip() for line in lines) if oneliner else "\n".join(lines)) + "\n")
    return 0


def update(words):
    """Change the throttle of an array."""
    given = {key.lower(): value for key, _, value in (word.partition("=") for word in words)}
    for word in words:
        if word.partition("=")[0].lower() not in {"jobid", "arraytaskthrottle"}:
            refuse(f"Update of this parameter is not supported: {word}\nRequest aborted")
    if "jobid" not in given or not given.get("arraytaskthrottle", "").isdigit():
        refuse("No changes specified")
    with open_cluster(root()) as cluster:
        try:
            jobs = [job for job, _ in find_tasks(cluster, given["jobid"])]
        except LookupError:
            refuse(f"{INVALID} for job {given['jobid']}")
        if not jobs[0]["array"]:
            refuse(f"Job is not a job array for job {given['jobid']}")
        jobs[0]["throttle"] = int(given["arraytaskthrottle"])
    return 0


def requeue(spec):
    """Give tasks that run, or have ended, a new life."""
    with open_cluster(root()) as cluster:
        try:
            found = find_tasks(cluster, spec)
        except LookupError:
            return complain_of(spec, INVALID)
        knobs = cluster["knobs"]
        if not knobs["requeue_allowed"] or not found[0][0]["requeue"]:
            return complain_of(spec, DISABLED)
        if all(task["state"] == "PENDING" for _, task in found):
            return complain_of(spec, "Job is pending execution")
        for _, task in found:
            if task["state"] == "RUNNING":
                task["want"] = task["want"] or "requeue"
            elif finished(task):
                requeue_task(task, task["state"], time.time(), knobs["requeue_delay"], task["status"])
    return 0


def hold(spec, held=True):
    """Keep pending tasks from starting, or let them."""
    with open_cluster(root()) as cluster:
        try:
            found = find_tasks(cluster, spec)
        except LookupError:
            return complain(f"{INVALID} for job {spec}\nslurm_suspend error: {INVALID}")
        for _, task in found:
            if not finished(task):
                task["held"] = held
    return 0


def release(spec):
    """Let held tasks start."""
    return hold(spec, held=False)


def complain(text):
    """Say what went wrong, go on with the next id."""
    os.write(2, (text + "\n").encode(errors="surrogateescape"))
    return 1


def complain_of(spec, text):
    """Say what went wrong with a task of an array, or with a job: Slurm does it in two ways."""
    return complain(f"{spec}: {text}" if "_" in spec else f"{text} for job {spec}")


def scancel(argv):
    """End tasks, or signal them.

    SIGKILL and no signal at all are the same: SIGTERM to all, SIGKILL after KillWait. Other signals go to job steps,
    which a batch script without srun has none of, unless --batch (the shell) or --full (all) is given. Ids that are not
    known are passed over, with a word only when --verbose.
    """
    longs = {"signal": True, "quiet": False, "batch": False, "full": False, "name": True, "me": False, "user": True}
    longs |= {"verbose": False, "clusters": True}  # there is only this cluster, whatever its name
    shorts = {
        "s": "signal",
        "Q": "quiet",
        "b": "batch",
        "f": "full",
        "n": "name",
        "u": "user",
        "v": "verbose",
        "M": "clusters",
    }
    options, operands = opt.parse_options("scancel", argv, longs, shorts)
    if not operands and not options.keys() & {"name", "me", "user"}:
        refuse("scancel: error: No job identification provided")
    try:
        number = opt.parse_signal_name(options.get("signal", "KILL"))
    except ValueError:
        refuse(f"scancel: error: Unknown job signal: {options['signal']}")
    shell = "batch" in options and "signal" in options
    with open_cluster(root()) as cluster:
        specs = [spec for word in operands for spec in word.split(",")] or list(cluster["jobs"])
        for spec in specs:
            try:
                found = find_tasks(cluster, spec)
            except LookupError:
                if "verbose" in options:
                    complain(f"scancel: error: Kill job error on job id {spec}: {INVALID}")
                continue
            for job, task in found:
                if options.get("name", job["name"]) != job["name"]:
                    continue
                if options.get("user", job["user"]) not in {job["user"], str(os.getuid())}:
                    continue
                alone = "_" in spec and task["raw"] is None and len(fresh_tasks(job)) > 1
                signal_task(task, number, shell=shell, full="full" in options)
                task["forgotten"] = alone and finished(task)
    return 0


def fresh_tasks(job):
    """The tasks of an array that wait and were never started: one record in Slurm.

    A task that is cancelled out of it leaves no record of its own, so that Slurm does not know it any more.
    """
    return [task for task in job["tasks"] if task["raw"] is None and task["state"] == "PENDING"]


def signal_task(task, number, *, shell, full):
    """Note what is to become of one task."""
    if task["state"] == "PENDING" and number == 9:
        end_task(task, "CANCELLED", time.time())
    elif task["state"] == "RUNNING" and number == 9 and not shell:
        task["want"] = "cancel"
    elif task["state"] == "RUNNING" and (shell or full):
        task["signals"].append([number, "shell" if shell else "all"])
