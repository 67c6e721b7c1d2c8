"""A demo ISIC Archive of several processes on one port, for measurements; it never outlives whoever started it.

`python -m pipeline.demo.isic_process ROOT --build many --processes 4 --latency 0.05` serves until it is told to end.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from pipeline.demo.faults import FaultPlan
from pipeline.demo.isic import API, IsicSite
from pipeline.demo.isic_bodies import Sizes
from pipeline.demo.isic_data import SCALES, build_isic, load_isic
from pipeline.demo.isic_records import CATALOGUE
from pipeline.demo.isic_view import Signed
from pipeline.demo.process import birth_of, is_alive
from pipeline.errors import MedhaulError, SiteUnavailableError

LIFETIME = 3600.0
_WATCH = 0.3  # seconds between looks at the parent
_READY = "ready"


class IsicProcesses:
    """A running site of several processes; see `start_isic`."""

    def __init__(self, port: int, workers: Sequence[subprocess.Popen[str]]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api_url = self.url + API.rstrip("/")
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
def start_isic(
    root: Path,
    *,
    processes: int = 1,
    latency: float = 0.0,
    sizes: Sizes = "exact",
    signed: Signed = "private",
    url_lifetime: float = 0.0,
    faults_file: Path | None = None,
    port: int = 0,
) -> Iterator[IsicProcesses]:
    """Serve what `build_isic` made below `root`, for as long as the block lasts. Options as of `IsicSite`.

    `faults_file` is read again whenever it changes; `set_faults` holds until it does.

    Raises
    ------
    ConfigError
        When there is no catalogue in `root`.
    SiteUnavailableError
        When a process does not start.
    """
    load_isic(root)
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=1024))
        command = [sys.executable, "-m", "pipeline.demo.isic_process", str(root)]
        command += ["--listener", str(listener.fileno()), "--latency", str(latency), "--sizes", sizes]
        command += ["--signed", signed, "--url-lifetime", str(url_lifetime)]
        command += ["--faults", str(faults_file)] if faults_file else []
        workers = []
        for _ in range(processes):
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(listener.fileno(),),
                env={**os.environ, "PYTHONPATH": path},
            )
            stack.callback(_end, worker)
            workers.append(worker)
        for worker in workers:
            if _pipe(worker.stdout).readline().strip() != _READY:
                raise SiteUnavailableError(
                    f"the demo ISIC on {root} did not start (exit code {worker.poll()})",
                    hint=f"see what it says: {' '.join(command)}",
                )
        yield IsicProcesses(int(listener.getsockname()[1]), workers)


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


def work(options: argparse.Namespace, lines: IO[str], out: IO[str]) -> None:
    """One process: serve on a listener that others share, and obey the lines that come in until they end."""
    site = IsicSite(
        load_isic(options.root),
        sizes=options.sizes,
        signed=options.signed,
        url_lifetime=options.url_lifetime,
        latency=options.latency,
        faults_file=options.faults,
        listener=socket.socket(fileno=options.listener),
    )
    with site:
        print(_READY, file=out, flush=True)
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "faults":
                site.faults.plan = msgspec.json.decode(rest, type=FaultPlan)
            print(json.dumps(site.calls()), file=out, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, the end of the parent, or the lifetime; returns the exit code."""
    options = _parse(arguments)
    if options.listener is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for whoever started this
        work(options, sys.stdin, sys.stdout)
        return 0
    parent = options.parent_pid or os.getppid()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        if options.build and not (options.root / CATALOGUE).exists():
            build_isic(options.root, options.build)
        with start_isic(
            options.root,
            processes=options.processes,
            latency=options.latency,
            sizes=options.sizes,
            signed=options.signed,
            url_lifetime=options.url_lifetime,
            faults_file=options.faults,
            port=options.port,
        ) as running:
            if options.port_file:
                temporary = options.port_file.with_name(f".{options.port_file.name}.{os.getpid()}")
                temporary.write_text(f"{running.port}\n")
                temporary.replace(options.port_file)
            print(json.dumps({"url": running.url, "api": running.api_url}), flush=True)
            birth = birth_of(parent)
            end = time.monotonic() + options.lifetime
            while not stop.wait(_WATCH) and time.monotonic() < end and is_alive(parent, birth):
                pass
    except MedhaulError as error:
        print(f"error: {error}\n{error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.isic_process", description=__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that build_isic made")
    parser.add_argument("--build", choices=SCALES, help="make the demo data when there are none")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many serve (default 1)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds before each answer")
    parser.add_argument("--sizes", choices=["exact", "ingest", "absent"], default="exact", help="what the API says")
    parser.add_argument("--signed", choices=["private", "all"], default="private", help="images with signed URLs")
    parser.add_argument("--url-lifetime", type=float, default=0.0, metavar="S", help="of signed URLs (6 to 7 days)")
    parser.add_argument("--faults", type=Path, metavar="FILE.json", help="a fault plan, read again when it changes")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: any (default)")
    parser.add_argument("--port-file", type=Path, metavar="F", help="write the port there once it answers")
    parser.add_argument("--parent-pid", type=int, default=0, metavar="PID", help="end with it (default: the parent)")
    parser.add_argument("--lifetime", type=float, default=LIFETIME, metavar="S", help="end after so long (3600 s)")
    parser.add_argument("--listener", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
