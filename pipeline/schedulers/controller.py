"""The controller of one local attempt: starts its tasks, keeps their limits, then runs the reduce job, and is gone.

One thread, and signals taken synchronously: they are blocked, and `sigtimedwait` is the only place where the controller
waits. Tasks have a session of their own and die with the controller (see `process.child_setup`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError, StorageError
from pipeline.process import child_setup, identify_process
from pipeline.rundir import RunDir
from pipeline.schedulers.base import ATTEMPT, OFFSET, RUN, State, ended
from pipeline.schedulers.environment import TaskPlace, array_environment, job_environment
from pipeline.schedulers.local_state import (
    Limits,
    LocalState,
    LocalTask,
    Sent,
    choose_action,
    classify_end,
    next_action_time,
    write_state,
)

REDUCE = -1  # stands for the reduce job among task indices
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
WATCHED = STOP_SIGNALS | {signal.SIGCHLD}
PUBLISH_SECONDS = 0.5  # between state files when there are many tasks
MANY_TASKS = 200


class _Child:
    """A running task: its process, when it began on the monotonic clock, and what it was sent."""

    def __init__(self, popen: subprocess.Popen[bytes], began: float) -> None:
        self.popen = popen
        self.began = began
        self.sent = Sent()


class Controller:
    """Runs one attempt to its end. Its process must be single-threaded and have `WATCHED` blocked.

    Parameters
    ----------
    state
        Where the attempt stands; `owner` is this process.
    slots, cpus
        How many tasks may run at once at most, whatever the throttle, and the cores each is told it has.
    environ
        What the tasks' environment is made from.
    clock, monotonic
        Unix time for the records; seconds for limits.
    """

    def __init__(
        self,
        run: RunDir,
        attempt: int,
        state: LocalState,
        *,
        limits: Limits,
        slots: int,
        cpus: int,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._state = state
        self._tasks = list(state.tasks)
        self._reduce = state.reduce
        self._limits = limits
        self._slots = slots
        self._cpus = cpus
        self._environ = environ
        self._clock = clock
        self._monotonic = monotonic
        self._waiting = deque(index for index, task in enumerate(self._tasks) if task.state is State.PENDING)
        self._children: dict[int, _Child] = {}
        self._cancelled = False
        self._dirty = True
        self._published = -PUBLISH_SECONDS

    def work(self) -> None:
        """Run until every task and the reduce job have ended."""
        while True:
            self._reap()
            self._signal()
            self._start()
            if not self._children and ended(self._reduce.state):
                break
            self.publish()
            self._wait()
        self.publish(final=True)

    def publish(self, *, final: bool = False) -> None:
        """Write the state file when it is out of date; not too often for an attempt of many tasks."""
        now = self._monotonic()
        often = len(self._tasks) < MANY_TASKS or now >= self._published + PUBLISH_SECONDS
        if not self._dirty or not (final or often):
            return
        try:
            write_state(
                self._run,
                self._attempt,
                msgspec.structs.replace(self._state, tasks=self._tasks, reduce=self._reduce),
            )
        except StorageError as error:
            # A hint for others to read: a full disk must not end tasks that write elsewhere. Tried again next time.
            self._say(f"state not written: {error}")
            return
        self._published, self._dirty = now, False

    # -- the steps of the loop -----------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take ended processes, end what they left behind in their sessions, and book them."""
        for index, child in list(self._children.items()):
            # Looked at without reaping: the zombie keeps its number from reuse until its group has been ended.
            if os.waitid(os.P_PID, child.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.popen.pid, signal.SIGKILL)
            status = child.popen.wait()
            del self._children[index]
            task = classify_end(self._task(index), status, child.sent, self._clock(), cancelled=self._cancelled)
            self._book(index, task)
            self._say(f"{self._label(index)} {task.state.lower()} (wait status {status}) {task.note}".rstrip())
            if task.state is State.PENDING and index != REDUCE:
                self._waiting.append(index)

    def _signal(self) -> None:
        """Send the running tasks the signals that are due."""
        now = self._monotonic()
        for index, child in self._children.items():
            action = choose_action(child.began, now, self._limits, child.sent, cancelled=self._cancelled)
            if action is None:
                continue
            self._say(f"{self._label(index)} gets {action}")
            if action == "usr1":  # as `--signal=B:USR1@lead`: the batch shell's process alone
                os.kill(child.popen.pid, signal.SIGUSR1)
                child.sent = msgspec.structs.replace(child.sent, usr1=True)
            elif action == "term":
                os.killpg(child.popen.pid, signal.SIGTERM)
                child.sent = msgspec.structs.replace(child.sent, term=now)
            else:
                os.killpg(child.popen.pid, signal.SIGKILL)
                child.sent = msgspec.structs.replace(child.sent, kill=True)

    def _start(self) -> None:
        """Fill the free slots; when no task is left, start the reduce job. After a cancel, book all as cancelled."""
        if self._cancelled:
            for index in self._waiting:
                self._book(index, LocalTask(state=State.CANCELLED, ended=self._clock()))
            self._waiting.clear()
            if self._reduce.state is State.PENDING:
                self._book(REDUCE, LocalTask(state=State.CANCELLED, ended=self._clock()))
            return
        slots = self._allowed()
        while self._waiting and len(self._children) < slots:
            self._launch(self._waiting.popleft())
        if not self._waiting and not self._children and self._reduce.state is State.PENDING:
            self._launch(REDUCE)

    def _allowed(self) -> int:
        """How many tasks may run at a time: as submitted, or as changed since."""
        try:
            changed = self._run.read_throttle(self._attempt)
        except ConfigError as error:
            self._say(f"throttle not read: {error}")
            changed = None
        return max(1, min(self._slots, changed.tasks if changed else self._state.throttle))

    def _wait(self) -> None:
        """Sleep until a child ends, a stop is asked for, or a signal or the state file is due."""
        due = [next_action_time(child.began, self._limits, child.sent) for child in self._children.values()]
        if self._dirty:
            due.append(self._published + PUBLISH_SECONDS)
        times = [time for time in due if time is not None]
        timeout = max(0.0, min(times) - self._monotonic()) if times else 60.0
        if not self._children:
            timeout = 0.0
        got = signal.sigtimedwait(WATCHED, min(timeout, 60.0))
        if got is not None and got.si_signo in STOP_SIGNALS:
            self._say(f"told to stop by signal {got.si_signo}")
            self._cancelled = True

    # -- one task ------------------------------------------------------------------------------------------------

    def _launch(self, index: int) -> None:
        task, now = self._task(index), self._clock()
        script = (
            self._run.attempt_folder(self._attempt) / "spool" / ("reduce.sh" if index == REDUCE else "array_task.sh")
        )
        log = Path(self._state.logs) / ("reduce.log" if index == REDUCE else f"{self._state.job}_{index}.log")
        try:
            with log.open("ab") as output:
                popen = subprocess.Popen(
                    ["bash", str(script)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(index, task, now),
                    start_new_session=True,
                    preexec_fn=child_setup(os.getpid()),  # noqa: PLW1509 - safe: this process has one thread
                )
        except (OSError, subprocess.SubprocessError) as error:
            note = f"could not be started: {error}"
            self._book(index, LocalTask(state=State.FAILED, began=now, ended=now, restarts=task.restarts, note=note))
            self._say(f"{self._label(index)} {note}")
            return
        self._children[index] = _Child(popen, self._monotonic())
        process = identify_process(popen.pid)
        self._book(index, LocalTask(state=State.RUNNING, process=process, began=now, restarts=task.restarts))
        self._say(f"{self._label(index)} running as process {popen.pid}")

    def _environment(self, index: int, task: LocalTask, now: float) -> dict[str, str]:
        state = self._state
        reduce = index == REDUCE
        place = TaskPlace(
            job=state.reduce_job if reduce else str(int(state.job) + 1 + index),
            name=state.reduce_name if reduce else state.name,
            cpus=len(os.sched_getaffinity(0)) if reduce else self._cpus,
            submit_dir=state.submit_dir,
            node=state.owner.host,
            start=now,
            limit=self._limits.time,
            restarts=task.restarts,
        )
        ours = {RUN: str(self._run.path), ATTEMPT: str(self._attempt), OFFSET: str(state.offset)}
        if reduce:
            return job_environment(self._environ, place) | ours
        return array_environment(self._environ, place, state.job, index, len(self._tasks)) | ours

    def _task(self, index: int) -> LocalTask:
        return self._reduce if index == REDUCE else self._tasks[index]

    def _book(self, index: int, task: LocalTask) -> None:
        if index == REDUCE:
            self._reduce = task
        else:
            self._tasks[index] = task
        self._dirty = True

    def _label(self, index: int) -> str:
        return "reduce" if index == REDUCE else f"{self._state.job}_{index}"

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._clock()))
        print(f"{stamp} {text}", file=sys.stdout, flush=True)
