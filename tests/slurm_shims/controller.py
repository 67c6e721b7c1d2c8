"""The fake slurmctld and slurmd: starts tasks, watches limits, books ends. Standard library only.

`controller.py FOLDER PARENT` works until its parent process is gone or it gets SIGTERM, and kills its tasks then. It
sleeps until a command writes to its pipe, a task ends, or something falls due.
"""

# ruff: noqa: PTH100, PTH118, PTH120

import contextlib
import os
import select
import signal
import sys
import time

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.slurm_shims import runner  # noqa: E402
from tests.slurm_shims.store import all_tasks, end_task, finished, open_cluster, requeue_task  # noqa: E402

ENDINGS = {"cancel": "CANCELLED", "timeout": "TIMEOUT", "preempt": "PREEMPTED", "node_fail": "NODE_FAIL"}

NOTES = {
    "cancel": "",
    "timeout": " DUE TO TIME LIMIT",
    "requeue": " DUE TO JOB REQUEUE",
    "preempt": " DUE TO PREEMPTION",
}


class Controller:
    """One cluster; `alive` maps a task's (job id, index) to its batch process."""

    def __init__(self, top):
        self.top = top
        self.alive = {}
        self.stopping = False

    def work(self, parent):
        """Work until the parent is gone or a signal came."""
        pipe = os.open(os.path.join(self.top, "state", "wake"), os.O_RDWR | os.O_NONBLOCK)
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with open(os.path.join(self.top, "state", "ready"), "w"):
            pass
        due = 0.0
        while not self.stopping and os.getppid() == parent:
            ready, _, _ = select.select([pipe, reader], [], [], max(0.0, min(0.5, due - time.time())))
            for one in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(one, 4096)
            if ready or time.time() >= due:
                due = self.step()
        for process in self.alive.values():
            runner.kill_session(process.pid)
            process.wait()

    def stop(self, _number, _frame):
        """Stop at the next turn."""
        self.stopping = True

    def step(self):
        """Do all that is due; returns when something is due next."""
        with open_cluster(self.top, poke=False) as cluster:
            now, knobs = time.time(), cluster["knobs"]
            for job, task in all_tasks(cluster):
                if task["state"] == "RUNNING":
                    self.tend(job, task, knobs, now)
            self.depend(cluster, now)
            self.schedule(cluster, now)
            return min((due for job, task in all_tasks(cluster) for due in dues(job, task, knobs)), default=now + 3600)

    def tend(self, job, task, knobs, now):
        """Take a running task one step further: signals asked for, the time limit, the end."""
        key = job["id"], task["index"]
        process = self.alive[key]
        for number, whom in task["signals"]:
            if whom == "shell":
                os.kill(process.pid, number)
            else:
                runner.signal_session(process.pid, number)
        task["signals"] = []
        if job["limit"] and not task["why"]:
            lead, limit = times(job, task, knobs)
            if now >= lead and not task["led"]:
                task["led"] = True
                if job["signal"][2]:
                    os.kill(process.pid, signal.SIGCONT)
                    os.kill(process.pid, job["signal"][0])
            if now >= limit:
                task["want"] = task["want"] or "timeout"
        if task["want"]:
            self.begin_end(process, job, task, knobs, now)
        if task["why"] and now >= task["deadline"]:
            runner.signal_session(process.pid, signal.SIGKILL)
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            runner.kill_session(process.pid)
            code = process.wait()
            del self.alive[key]
            book_end(job, task, -code if code < 0 else code << 8, knobs)

    def begin_end(self, process, job, task, knobs, now):
        """Do what was asked: SIGTERM now and SIGKILL later, or SIGKILL now. The first reason stays.

        A cancellation comes before a new life.
        """
        want, task["want"] = task["want"], None
        if task["why"]:
            task["why"] = "cancel" if want == "cancel" and task["why"] in {"requeue", "preempt"} else task["why"]
            return
        task["why"] = want
        if want in NOTES:
            runner.note_end(job, task, NOTES[want])
        if want in {"node_fail", "oom"}:
            runner.kill_session(process.pid)
        else:
            runner.signal_session(process.pid, signal.SIGCONT, signal.SIGTERM)
            task["deadline"] = now + knobs["kill_wait"]

    def depend(self, cluster, now):
        """Strike out dependencies that are met; those that cannot be met any more stay so."""
        for job in cluster["jobs"].values():
            waiting = [task for task in job["tasks"] if task["state"] == "PENDING"]
            if not job["dependency"] or not waiting:
                continue
            verdicts = [(entry, judge(cluster, entry)) for entry in job["dependency"]]
            job["dependency"] = [entry for entry, met in verdicts if met is not True]
            job["never"] = job["never"] or any(met is False for _, met in verdicts)
            if job["never"] and job["kill_invalid"]:
                for task in waiting:
                    end_task(task, "CANCELLED", now)
                    task["reason"] = "DependencyNeverSatisfied"

    def schedule(self, cluster, now):
        """Start what may start, in order of submission, and say why the rest waits."""
        knobs = cluster["knobs"]
        load = dict.fromkeys(knobs["nodes"], 0)
        running = {}
        for job, task in all_tasks(cluster):
            if task["state"] == "RUNNING":
                load[task["node"]] = load.get(task["node"], 0) + 1
                running[job["id"]] = running.get(job["id"], 0) + 1
        full = False
        for job, task in all_tasks(cluster):
            if task["state"] != "PENDING":
                continue
            allowed = [node for node in knobs["nodes"] if may_use(job, node) and load[node] < knobs["slots"]]
            if task["held"]:
                task["reason"] = "JobHeldUser"
            elif now < task["eligible"]:
                task["reason"] = "BeginTime"
            elif job["dependency"]:
                task["reason"] = "DependencyNeverSatisfied" if job["never"] else "Dependency"
            elif job["throttle"] and running.get(job["id"], 0) >= job["throttle"]:
                task["reason"] = "JobArrayTaskLimit"
            elif not allowed:
                task["reason"], full = "Priority" if full else "Resources", True
            else:
                node = min(allowed, key=load.__getitem__)
                if self.start(cluster, job, task, node):
                    load[node] += 1
                    running[job["id"]] = running.get(job["id"], 0) + 1

    def start(self, cluster, job, task, node):
        """Start a task on a node; whether it runs. The last task of an array to start gets the array's own id."""
        if task["raw"] is None:
            fresh = [other for other in job["tasks"] if other["raw"] is None and other["state"] == "PENDING"]
            task["raw"] = job["id"] if len(fresh) == 1 else cluster["next_id"]
            cluster["next_id"] += len(fresh) > 1
        task.update(state="RUNNING", reason="None", node=node, start=time.time(), end=0.0, led=False)
        try:
            process = runner.start_batch(job, task, self.top)
        except OSError:
            end_task(task, "FAILED", time.time(), 4021)  # the only sign of a log that could not be made, before 23.02
            return False
        task["pid"] = process.pid
        self.alive[job["id"], task["index"]] = process
        return True


def may_use(job, node):
    """Whether a job lets itself be put on a node."""
    return (not job["nodelist"] or node in job["nodelist"].split(",")) and node not in job["exclude"].split(",")


def times(job, task, knobs):
    """When the signal before the time limit is due (never without one), and the limit itself."""
    second = knobs["minute"] / 60
    limit = task["start"] + job["limit"] * second
    return (limit - job["signal"][1] * second if job["signal"] else float("inf")), limit


def dues(job, task, knobs):
    """When something is due for a task."""
    if task["state"] == "PENDING" and task["eligible"] > time.time():
        yield task["eligible"]
    if task["state"] == "RUNNING" and task["why"]:
        yield max(task["deadline"], time.time() + 0.02)
    elif task["state"] == "RUNNING" and job["limit"]:
        lead, limit = times(job, task, knobs)
        yield limit if task["led"] else min(lead, limit)


def judge(cluster, entry):
    """Whether a dependency is met: True, False for never, None for not yet. Ids nobody knows count as met."""
    kind, ids = entry
    verdicts = []
    for one in ids:
        number, _, index = one.partition("_")
        tasks = cluster["jobs"].get(number, {"tasks": []})["tasks"]
        for task in tasks:
            if index and str(task["index"]) != index:
                continue
            if kind == "after":
                verdicts.append(True if task["start"] else None)
            elif not finished(task):
                verdicts.append(None)
            else:
                verdicts.append(kind == "afterany" or (kind == "afterok") == (task["state"] == "COMPLETED"))
    if kind == "afternotok" and True in verdicts:
        return True
    if False in verdicts and (kind != "afternotok" or None not in verdicts):
        return False
    return None if None in verdicts else True


def book_end(job, task, status, knobs):
    """Say what became of a task whose batch process has ended."""
    now, why = time.time(), task["why"]
    if why is None:
        end_task(task, "FAILED" if status else "COMPLETED", now, status)
    elif why == "oom":
        end_task(task, "OUT_OF_MEMORY", now, 125)
    elif why == "requeue" or (why in {"preempt", "node_fail"} and job["requeue"]):
        requeue_task(task, ENDINGS.get(why, "REQUEUED"), now, knobs["requeue_delay"])
    else:
        end_task(task, ENDINGS[why], now, 0 if why == "node_fail" else status)


if __name__ == "__main__":
    Controller(sys.argv[1]).work(int(sys.argv[2]))
