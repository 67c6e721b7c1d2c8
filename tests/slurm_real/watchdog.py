"""Find and end the processes of a test cluster; as a program: do so when the process that started the cluster dies.

Daemons, job steps and jobs carry the path of the cluster's own `slurm.conf` in their environment. That path is unique,
so what carries it belongs to the cluster, as does all that descends from it; nothing is chosen by its name alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

POLL = 0.05
PARENT_POLL = 0.5
PATIENCE = 10.0


class Process(NamedTuple):
    """A living process; `started` (clock ticks after boot) tells it from a later one with the same id."""

    pid: int
    parent: int
    started: int
    command: str
    environ: Mapping[str, str]


def read_processes() -> dict[int, Process]:
    """All living processes by id, from `/proc` (proc(5)); zombies count as ended."""
    found = {}
    for entry in Path("/proc").iterdir():
        process = read_process(int(entry.name)) if entry.name.isdecimal() else None
        if process is not None:
            found[process.pid] = process
    return found


def read_process(pid: int) -> Process | None:
    """One process; None when it has ended, also while this was reading."""
    folder = Path("/proc") / str(pid)
    try:
        # The command's name is in parentheses and may hold any character, so count from the last one.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
        pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if fields[0] in "ZX":
        return None
    environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Process(pid, int(fields[1]), int(fields[19]), command, environ)


def choose_family(processes: Mapping[int, Process], belongs: Callable[[Process], bool]) -> list[Process]:
    """The processes that belong, and all their descendants; parents before children, never the caller."""
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    chosen: dict[int, Process] = {}
    waiting = [process for process in processes.values() if belongs(process)]
    while waiting:
        process = waiting.pop(0)
        if process.pid not in chosen and process.pid != os.getpid():
            chosen[process.pid] = process
            waiting += children.get(process.pid, [])
    return sorted(chosen.values(), key=lambda process: (process.started, process.pid))


def is_step(process: Process) -> bool:
    """Whether this is Slurm's manager of a job step, which lives on without its slurmd."""
    return process.command.startswith("slurmstepd")


def has_open_below(process: Process, path: Path) -> bool:
    """Whether the process has a file open that is this one or below it."""
    try:
        links = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return any(link.is_relative_to(path) for link in links)


def of_cluster(conf: Path) -> Callable[[Process], bool]:
    """A test for the processes that work with this `slurm.conf`; a step manager is also known by its node's log."""
    return lambda process: (
        process.environ.get("SLURM_CONF") == str(conf) or (is_step(process) and has_open_below(process, conf.parent))
    )


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal each process, unless it has ended and its id is another's by now."""
    for process in processes:
        now = read_process(process.pid)
        if now is not None and now.started == process.started:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


def end_cluster(conf: Path, patience: float = PATIENCE) -> None:
    """End every process of a cluster: SIGTERM, and SIGKILL for what is left after `patience` seconds.

    Step managers get SIGKILL at once: without a controller to report to they would hold out. Raises RuntimeError when
    some process lives on for as long again.
    """
    belongs = of_cluster(conf)
    known: dict[tuple[int, int], Process] = {}
    told: set[tuple[int, int]] = set()
    since = time.monotonic()
    while True:
        # What was once seen stays known: the children of an ended process are no longer recognisable by descent.
        for process in choose_family(read_processes(), belongs):
            known[process.pid, process.started] = process
        alive = {key: process for key, process in known.items() if is_alive(process)}
        if not alive:
            return
        waited = time.monotonic() - since
        if waited > 2 * patience:
            raise RuntimeError(f"these processes do not end: {[(p.pid, p.command) for p in alive.values()]}")
        if waited > patience:
            send(alive.values(), signal.SIGKILL)
        else:
            send((p for p in alive.values() if is_step(p)), signal.SIGKILL)
            send((p for key, p in alive.items() if key not in told and not is_step(p)), signal.SIGTERM)
            told |= alive.keys()
        time.sleep(POLL)


def is_alive(process: Process) -> bool:
    """Whether this very process still lives."""
    now = read_process(process.pid)
    return now is not None and now.started == process.started


def have_ended(processes: Iterable[Process]) -> bool:
    """Whether none of these processes lives."""
    return not any(is_alive(process) for process in processes)


def main(conf: Path, parent: int, folder: str) -> None:
    """Wait until `parent` is gone; then end the cluster, and remove its temporary folder if it has one."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL)
    end_cluster(conf)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
