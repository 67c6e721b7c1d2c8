"""Series from NBIA: medhaul, which verifies everything, beside tcia_utils, unmodified, which verifies nothing.

Both fetch the same series with 10 connections from a demo NBIA of several processes, whose zips are made beforehand and
which takes 0.25 s before it answers a request. They run in turn, and pairs of neighbouring runs are compared. Seconds
and CPU are those of the work, without starting Python and importing; those of the task, and memory, of whole processes.

    python benchmarks/tcia.py                         1.5 min; 60 series of 60 files, 472 MB
    python benchmarks/tcia.py --series 20 --runs 1    shorter

tcia_utils comes from an environment of its own, which this makes it if it is not there:

    python -m venv .venv-tcia && .venv-tcia/bin/pip install tcia_utils==3.3.5
    python benchmarks/tcia.py --peer .venv-tcia/bin/python

So does `pytest -m external tests/external/test_nbia_clients.py`, in .venv-nbia/, where it is looked for. Without it
medhaul is measured alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve()
AIM = 1.0  # the verified fetch is to be as fast as the unverified one
THREADS = 10
TASK = "medhaul task: the same, packed; whole process"

# Python runs this before anything else: requests for TCIA's hosts go to the demo; tcia_utils stays as it is.
REDIRECT = """
import os, re
import requests.sessions
_request = requests.sessions.Session.request
def request(self, method, url, *args, **kwargs):
    url = re.sub(r"^https://[a-z.-]*cancerimagingarchive[.]net", os.environ["NBIA_DEMO"], url)
    return _request(self, method, url, *args, **kwargs)
requests.sessions.Session.request = request
"""
PEER = """
import sys, time
from tcia_utils import nbia
uids, folder, threads, result = open(sys.argv[1]).read().split(), *sys.argv[2:5]
begin, cpu = time.monotonic(), time.process_time()
nbia.downloadSeries(uids, input_type="list", path=folder, max_workers=int(threads))
open(result, "w").write(f"{time.monotonic() - begin} {time.process_time() - cpu}")
"""
CONFIG = """
[run]
name = "bench"
[storage]
root = "{root}/runs"
[select.tcia]
collections = ["Demo Many"]
[sources.tcia]
base_url = "{url}/nbia-api/services"
route = "nbia"
[shards]
count = 1
[limits]
connections = {threads}
tasks = 1
[task]
scratch = "{root}/scratch"
allow_shared_scratch = true
start_jitter = 0
"""


class Run(NamedTuple):
    """One run of a client: seconds and CPU seconds of its work, and the peak of its process."""

    work: float
    cpu: float
    rss_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--files", type=int, default=60, help="of each series")
    parser.add_argument("--file-bytes", type=int, default=131_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="of the demo NBIA")
    parser.add_argument("--latency", type=float, default=0.25, help="seconds before each answer")
    parser.add_argument("--peer", type=Path, help="Python that has tcia_utils")
    parser.add_argument("--no-task", action="store_true", help="leave out the whole task, which mostly compresses")
    parser.add_argument("--dir", default=None, help="where everything lies; by default the folder for temporary files")
    parser.add_argument("--fetch", nargs=2, metavar=("RUN", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent.parent))
    if options.fetch:
        from fetching import fetch_all

        import pipeline.sources.tcia_fetch  # noqa: F401 - imported before the clock starts

        fetch_all(Path(options.fetch[0]), Path(options.fetch[1]), THREADS)
        return 0
    peer = options.peer or find_peer()
    if peer is None:
        print("without tcia_utils: no .venv-nbia/ here; `--help` says how to get it", flush=True)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="medhaul-bench-") as folder:
        return compare(Path(folder), options, peer)


def find_peer() -> Path | None:
    """The Python of the environment that the tests with other clients make."""
    found = sorted((HERE.parent.parent / ".venv-nbia").glob("*/complete"))
    return found[-1].parent / "bin" / "python" if found else None


def compare(root: Path, options: argparse.Namespace, peer: Path | None) -> int:
    from pipeline.demo.nbia_data import build_many
    from pipeline.demo.nbia_process import start_nbia

    demo = build_many(root / "site", options.series, files=options.files, file_bytes=options.file_bytes)
    served = Counter(file.sha256 for one in demo.archive.series for file in one.files)
    total = sum(one.size for one in demo.archive.series)
    with start_nbia(root / "site", processes=options.processes, latency=options.latency) as site:
        zips = sum(path.stat().st_size for path in (root / "site").glob("zips-*/*.zip")) / 2  # each in two forms
        print(
            f"{options.series} series, {served.total()} files, {total / 1e6:.0f} MB ({zips / 1e6:.0f} MB as zips), "
            f"{options.latency} s latency, {options.processes} server processes, {THREADS} connections",
            flush=True,
        )
        clients = prepare(root, site.url, [one.uid for one in demo.archive.series], peer)
        if options.no_task:
            del clients[TASK]
        runs: dict[str, list[Run]] = {name: [] for name in clients}
        for number in range(options.runs + 1):  # the first is to warm up
            names = list(clients)[:: 1 if number % 2 else -1]
            for name in names:
                run, found = clients[name]()
                if found is not None and found != served:
                    print(f"{name}: other files than were served", file=sys.stderr)
                    return 1
                if number:
                    runs[name].append(run)
    for name, made in runs.items():
        work = [run.work for run in made]
        print(
            f"{name:<52} {statistics.median(work):6.2f} s (best {min(work):.2f}), {total / min(work) / 1e6:4.0f} MB/s"
            f"   cpu {statistics.median(run.cpu for run in made):6.2f} s   {max(run.rss_mb for run in made):5.0f} MB"
        )
    if peer is None or not runs:
        return 0
    first, *others = runs
    for name in others:
        pairs = [(a.work / b.work, a.cpu / b.cpu) for a, b in zip(runs[first], runs[name], strict=True)]
        walls, cpus = zip(*pairs, strict=True)
        print(
            f"{first} / {name}: speed {statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f}), "
            f"CPU {statistics.median(cpus):.2f} ({min(cpus):.2f} to {max(cpus):.2f}), {len(pairs)} pairs; "
            f"the aim of the fetch is {AIM:.2f}"
        )
    return 0


def prepare(
    root: Path, url: str, uids: list[str], peer: Path | None
) -> dict[str, Callable[[], tuple[Run, Counter[str] | None]]]:
    """The clients by what they do; each removes what it made before, and says what it made."""
    from measure import measure, medhaul

    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MEDHAUL", "SLURM"))}
    environ |= {"XDG_CACHE_HOME": str(root / "cache"), "PYTHONPATH": str(HERE.parent.parent), "NBIA_DEMO": url}
    (root / "bench.toml").write_text(CONFIG.format(root=root, url=url, threads=THREADS))
    subprocess.run(medhaul("plan", str(root / "bench.toml")), env=environ, check=True, stdout=subprocess.DEVNULL)
    planned, result = root / "runs" / "bench", root / "seconds"
    shutil.copytree(planned, root / "planned")
    (root / "hook").mkdir()
    (root / "hook" / "sitecustomize.py").write_text(REDIRECT)
    (root / "peer.py").write_text(PEER)
    (root / "uids").write_text("\n".join(uids))

    def clean() -> None:
        for name in ("files", "scratch", "runs"):
            shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(root / "planned", planned)
        result.unlink(missing_ok=True)
        os.sync()

    def run(command: list[str], folder: str, hook: dict[str, str]) -> tuple[Run, Counter[str] | None]:
        clean()
        figures = measure(command, env=environ | hook, cwd=root)
        if figures.code:
            raise SystemExit(f"exit code {figures.code}: {' '.join(command)}")
        work, cpu = map(float, result.read_text().split()) if folder else (figures.wall, figures.cpu)
        found = None
        if folder:
            paths = (path for path in (root / folder).rglob("*") if is_image(path))
            found = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
        return Run(work, cpu, figures.rss_mb), found

    clients: dict[str, Callable[[], tuple[Run, Counter[str] | None]]] = {}
    if peer is not None:
        command = [str(peer), "peer.py", "uids", "files", str(THREADS), str(result)]
        clients["tcia_utils: fetch, extract"] = lambda: run(command, "files", {"PYTHONPATH": str(root / "hook")})
    fetch = [sys.executable, str(HERE), "--fetch", str(planned), str(result)]
    clients["medhaul: fetch, verify, extract, check as DICOM"] = lambda: run(fetch, "scratch", {})
    task = medhaul("task", str(planned), "--shard", "0")
    clients[TASK] = lambda: run(task, "", {})
    return clients


def is_image(path: Path) -> bool:
    """Whether a client's file is one of those that were served."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


if __name__ == "__main__":
    sys.exit(main())
