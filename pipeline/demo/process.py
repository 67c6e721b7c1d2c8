"""A demo site in a process of its own, that never outlives whoever started it."""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.demo.bucket import MULTIPART_FROM, PART_SIZE, Store
from pipeline.demo.faults import FaultPlan
from pipeline.demo.site import STATS_PATH, DemoSite
from pipeline.demo.stats import Snapshot
from pipeline.demo.workers import add_options, environment, stay
from pipeline.errors import SiteUnavailableError


class SiteProcess:
    """A running site; see `start_site`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, faults_file: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._faults_file = faults_file

    def stats(self) -> Snapshot:
        """What it was asked so far."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", STATS_PATH)
            return msgspec.json.decode(connection.getresponse().read(), type=Snapshot)
        finally:
            connection.close()

    def set_faults(self, plan: FaultPlan) -> None:
        """Change its faults; they hold from the next request on."""
        temporary = self._faults_file.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(plan))
        temporary.replace(self._faults_file)


@contextmanager
def start_site(root: Path, *options: str, timeout: float = 30.0) -> Iterator[SiteProcess]:
    """Serve a folder from a process of its own for as long as the block lasts.

    `options` are those of the command line, such as `"--latency", "0.05"`.

    Raises
    ------
    SiteUnavailableError
        When it does not answer within `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="medhaul-demo-") as folder:
        port_file, faults_file = Path(folder, "port"), Path(folder, "faults.json")
        command = [sys.executable, "-m", "pipeline.demo", str(root), "--port-file", str(port_file)]
        command += ["--faults", str(faults_file), "--parent-pid", str(os.getpid()), *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
        try:
            end = time.monotonic() + timeout
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise SiteUnavailableError(
                        f"the demo site on {root} did not start (exit code {process.returncode})",
                        hint=f"see what it says: {' '.join(command)}",
                    )
                time.sleep(0.01)
            yield SiteProcess(process, int(port_file.read_text()), faults_file)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a folder until SIGTERM or SIGINT, the end of the parent, or the lifetime; returns the exit code."""
    options = _parse(arguments)

    buckets: list[str] = []

    def start() -> DemoSite:
        store = Store.from_folder(options.root, multipart_from=options.multipart_from, part_size=options.part_size)
        buckets.extend(sorted(store.buckets))
        return DemoSite(
            store,
            mirror=options.mirror,
            page_size=options.page_size,
            latency=options.latency,
            checksums=options.checksums,
            faults_file=options.faults,
            port=options.port,
        )

    return stay(options, start, lambda site: {"url": site.url, "buckets": buckets})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo", description=__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that holds one folder for each bucket")
    parser.add_argument("--mirror", choices=["", "only", "also"], default="", help="serve buckets by their GCS names")
    parser.add_argument("--page-size", type=int, default=1000, metavar="N", help="most keys on a page of a listing")
    parser.add_argument("--checksums", action="store_true", help="give SHA-256 to whoever asks for checksums")
    parser.add_argument("--multipart-from", type=int, default=MULTIPART_FROM, metavar="BYTES")
    parser.add_argument("--part-size", type=int, default=PART_SIZE, metavar="BYTES")
    add_options(parser)
    return parser.parse_args(arguments)
