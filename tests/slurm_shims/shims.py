"""Slurm's commands for tests: put on PATH, they run batch scripts for real, and fail as they are told.

What the commands do and say is that of Slurm 22.05, as far as sbatch(1), squeue(1), sacct(1), scontrol(1), scancel(1)
and its sources tell; an option that is not known here is refused, so that a mistyped one is noticed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.slurm_shims.store import KNOBS, all_tasks, finished, open_cluster, wake, write_json

HERE = Path(__file__).resolve().parent
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
FIRST_ID = 1000


class ShimSlurm:
    """A cluster of its own below `root`, until `stop()` or the end of the starting process.

    Attributes
    ----------
    environ
        What a client's environment needs on top of its own (or of `base`): PATH and SHIM_SLURM.
    """

    def __init__(self, root: Path, base: dict[str, str] | None = None, **knobs: Any) -> None:
        self.root = root
        self.base = dict(os.environ if base is None else base)
        self.knobs = knobs
        self._controller: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        path = self.base.get("PATH", os.defpath)
        return {"PATH": f"{self.root / 'bin'}{os.pathsep}{path}", "SHIM_SLURM": str(self.root)}

    def __enter__(self) -> Self:
        for folder in ("bin", "state", "spool"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name in COMMANDS:
            command = shlex.join([sys.executable, "-S", "-E", str(HERE / "commands.py"), name])
            made = self.root / "bin" / name
            made.write_text(f'#!/bin/sh\nexport SHIM_SLURM={shlex.quote(str(self.root))}\nexec {command} "$@"\n')
            made.chmod(0o755)
        write_json(self._state("cluster.json"), {"knobs": KNOBS, "next_id": FIRST_ID, "jobs": {}})
        os.mkfifo(self._state("wake"))
        self.reset_calls()
        self.set(**self.knobs)
        log = os.open(self._state("controller.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._controller = subprocess.Popen(
                [sys.executable, "-S", "-E", str(HERE / "controller.py"), str(self.root), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._wait(self._state("ready").exists)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the controller, and with it all tasks. Raises `AssertionError` when it had failed."""
        if self._controller is None:
            return
        controller, self._controller = self._controller, None
        controller.terminate()
        wake(self.root)
        controller.wait(30)
        errors = self._state("controller.log").read_text()
        assert not errors, errors

    def set(self, **knobs: Any) -> None:
        """Change knobs; store.KNOBS lists them."""
        assert knobs.keys() <= KNOBS.keys(), f"no such knob: {knobs.keys() - KNOBS.keys()}"
        with open_cluster(self.root) as cluster:
            cluster["knobs"].update(knobs)

    def calls(self, name: str | None = None) -> list[list[str]]:
        """The command lines since the last `reset_calls`, of one command or of all."""
        return [argv for argv in self._log("calls") if name in {None, argv[0]}]

    def environments(self) -> list[dict[str, str]]:
        """The environment of each of `calls()`."""
        return self._log("environments")

    def reset_calls(self) -> None:
        """Forget the calls so far."""
        for name in ("calls", "environments"):
            self._state(f"{name}.jsonl").write_bytes(b"")

    def task(self, job: int | str, index: int | None = None) -> dict[str, Any]:
        """A task's state as the controller has it; store.TASK lists the keys. Raises `LookupError`."""
        with open_cluster(self.root, write=False) as cluster:
            return self._find(cluster, job, index)

    def job(self, job: int | str) -> dict[str, Any]:
        """A job as the controller has it, with its tasks."""
        with open_cluster(self.root, write=False) as cluster:
            return cluster["jobs"][str(job)]

    def wait_state(self, job: int | str, index: int | None, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for a task to be in one of some states."""
        self._wait(lambda: self.task(job, index)["state"] in states, seconds)
        return self.task(job, index)

    def wait_idle(self, seconds: float = 60.0) -> None:
        """Wait until every task has ended."""

        def idle() -> bool:
            with open_cluster(self.root, write=False) as cluster:
                return all(finished(task) for _, task in all_tasks(cluster))

        self._wait(idle, seconds)

    def fail_node(self, job: int | str, index: int | None = None) -> None:
        """Kill a running task as the death of its node does; returns when it is booked, or requeued."""
        self._end(job, index, "node_fail", wait=True)

    def oom(self, job: int | str, index: int | None = None) -> None:
        """Kill a running task for lack of memory; returns when it is booked."""
        self._end(job, index, "oom", wait=True)

    def preempt(self, job: int | str, index: int | None = None) -> None:
        """Preempt a running task; returns once SIGTERM was sent."""
        self._end(job, index, "preempt", wait=False)

    def forget(self) -> None:
        """Make squeue and scontrol forget every task that has ended, as after MinJobAge."""
        with open_cluster(self.root) as cluster:
            for _, task in all_tasks(cluster):
                task["forgotten"] = finished(task)

    def _end(self, job: int | str, index: int | None, want: str, *, wait: bool) -> None:
        with open_cluster(self.root) as cluster:
            task = self._find(cluster, job, index)
            assert task["state"] == "RUNNING", f"{job}_{index} is {task['state']}"
            task["want"] = want
            pid = task["pid"]
        self._wait(lambda: (found := self.task(job, index))["pid"] != pid or not (wait or found["want"]))

    def _find(self, cluster: dict[str, Any], job: int | str, index: int | None) -> dict[str, Any]:
        tasks = cluster["jobs"][str(job)]["tasks"]
        for task in tasks:
            if task["index"] == index:
                return task
        raise LookupError(job, index)

    def _wait(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._controller is not None, "the controller was stopped"
            log = self._state("controller.log").read_text()
            assert self._controller.poll() is None, f"the controller died: {log}"
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.02)

    def _log(self, name: str) -> list[Any]:
        return [json.loads(line) for line in self._state(f"{name}.jsonl").read_text().splitlines()]

    def _state(self, name: str) -> Path:
        return self.root / "state" / name
