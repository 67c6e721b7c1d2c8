"""A demo site of several processes on one port, for measurements; none of them outlives whoever started them.

What a site adds is a module that makes one of its processes from a command line; see `nbia_process`, `isic_process`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from pipeline.demo.faults import FaultPlan
from pipeline.errors import MedhaulError, SiteUnavailableError

LIFETIME = 3600.0
WATCH = 0.3  # seconds between looks at the parent
_READY = "ready"


class WorkerSite(contextlib.AbstractContextManager[Any], Protocol):
    """What one process serves."""

    faults: Any

    def calls(self) -> dict[str, int]:
        """How often each endpoint was asked."""


class Workers:
    """A running site of several processes; see `start_workers`."""

    def __init__(self, port: int, workers: Sequence[subprocess.Popen[str]]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.workers = tuple(workers)
        self._lock = threading.Lock()

    def calls(self) -> dict[str, int]:
        """How often each endpoint was asked, over all processes."""
        total: Counter[str] = Counter()
        for answer in self._tell("calls"):
            total.update(json.loads(answer))
        return dict(total)

    def set_faults(self, plan: FaultPlan) -> None:
        """Change the faults of all processes; each counts its requests for itself, so `times` are of each."""
        self._tell(f"faults {msgspec.json.encode(plan).decode()}")

    def _tell(self, line: str) -> list[str]:
        with self._lock:
            for worker in self.workers:
                _pipe(worker.stdin).write(line + "\n")
                _pipe(worker.stdin).flush()
            return [_pipe(worker.stdout).readline() for worker in self.workers]


@contextlib.contextmanager
def start_workers(module: str, arguments: Sequence[str], *, processes: int, port: int) -> Iterator[Workers]:
    """Serve with `python -m module arguments`, in so many processes on one listener, as long as the block lasts.

    Raises
    ------
    SiteUnavailableError
        When a process does not start.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=1024))
        command = [sys.executable, "-m", module, *arguments, "--listener", str(listener.fileno())]
        workers = []
        for _ in range(processes):
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(listener.fileno(),),
                env=environment(),
            )
            stack.callback(_end, worker)
            workers.append(worker)
        for worker in workers:
            if _pipe(worker.stdout).readline().strip() != _READY:
                raise SiteUnavailableError(
                    f"{module} did not start (exit code {worker.poll()})",
                    hint=f"see what it says: {' '.join(command)}",
                )
        yield Workers(int(listener.getsockname()[1]), workers)


def work(make: Callable[[socket.socket], WorkerSite], listener: int, lines: IO[str], out: IO[str]) -> None:
    """Be one process: serve on a listener that others share, and obey the lines that come in until they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for whoever started this
    with make(socket.socket(fileno=listener)) as site:
        print(_READY, file=out, flush=True)
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "faults":
                site.faults.plan = msgspec.json.decode(rest, type=FaultPlan)
            print(json.dumps(site.calls()), file=out, flush=True)


def stay(
    options: argparse.Namespace,
    open_site: Callable[[], contextlib.AbstractContextManager[Any]],
    tell: Callable[[Any], dict[str, Any]],
) -> int:
    """Serve until SIGTERM or SIGINT, the end of the parent, or the lifetime; print what `tell` says of the site.

    Returns the exit code. `options` are those of `add_options`.
    """
    parent = options.parent_pid or os.getppid()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with open_site() as site:
            if options.port_file:
                temporary = options.port_file.with_name(f".{options.port_file.name}.{os.getpid()}")
                temporary.write_text(f"{site.port}\n")
                temporary.replace(options.port_file)
            print(json.dumps(tell(site)), flush=True)
            birth = birth_of(parent)
            end = time.monotonic() + options.lifetime
            while not stop.wait(WATCH) and time.monotonic() < end and is_alive(parent, birth):
                pass
    except MedhaulError as error:
        print(f"error: {error}\n{error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the command lines of all demo sites have."""
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds before each answer")
    parser.add_argument("--faults", type=Path, metavar="FILE.json", help="a fault plan, read again when it changes")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: any (default)")
    parser.add_argument("--port-file", type=Path, metavar="F", help="write the port there once it answers")
    parser.add_argument("--parent-pid", type=int, default=0, metavar="PID", help="end with it (default: the parent)")
    parser.add_argument("--lifetime", type=float, default=LIFETIME, metavar="S", help="end after so long (3600 s)")


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add what a site of several processes has beside `add_options`."""
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many serve (default 1)")
    parser.add_argument("--listener", type=int, help=argparse.SUPPRESS)


def environment() -> dict[str, str]:
    """An environment in which `python -m` finds this very package."""
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


def birth_of(pid: int) -> str:
    """When a process began, where the system tells (Linux), so that a number used again is not taken for it.

    A process that has ended and was not yet waited for has none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in {"Z", "X"} else fields[19]
    except (OSError, IndexError):
        return ""


def is_alive(pid: int, birth: str) -> bool:
    """Whether the process still runs that had this `birth_of`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, but belongs to somebody else
    return birth_of(pid) == birth


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise AssertionError("workers are started with pipes")
    return stream


def _end(worker: subprocess.Popen[str]) -> None:
    """A worker ends when its input does."""
    with contextlib.suppress(BrokenPipeError):
        _pipe(worker.stdin).close()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    _pipe(worker.stdout).close()
