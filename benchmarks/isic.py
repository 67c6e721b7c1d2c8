"""Images of the ISIC Archive: medhaul, which verifies each of them, beside isic-cli, unmodified, which verifies none.

Both bring the images of one collection, JPEGs filled with noise, from a demo ISIC Archive of several processes, which
takes 0.05 s before it answers a request. They run in turn, and runs of one round are compared. Two things are measured:

- all of it: isic-cli's command `image download`, which lists pages of 100 and fetches meanwhile, beside what
  `medhaul plan` does and then a task until its raw files are on scratch;
- fetching only: isic-cli's `download_image` for images that it has listed before, on a pool as its command has it,
  beside the same part of the task.

isic-cli always has 10 threads (or as many as cores), and opens a connection for each file. medhaul has the 64
connections that configs/reference.toml gives to a run; this one has a single shard, whose task has them all. Its
planning and fetching are measured with 16 connections as well, what a task has of them where four are at work, and with
isic-cli's 10. Seconds and CPU are those of the work, without starting Python and importing; those of the task, and
memory, of whole processes. Of every run the SHA-256 of all files must be those that were served; for the task, of the
files that another program reads from the .tar.xz that it ends in.

    python benchmarks/isic.py                         5 to 9 min; 1,500 images of 60 to 140 kB
    python benchmarks/isic.py --images 300 --runs 1   shorter

isic-cli comes from an environment of its own, which this makes it if it is not there:

    python -m venv .venv-isic-cli && .venv-isic-cli/bin/pip install isic-cli==12.4.0
    python benchmarks/isic.py --peer .venv-isic-cli/bin/python

So does `pytest -m external tests/external/test_isic_cli.py`, in .venv-isic/, where it is looked for. Without it medhaul
is measured alone.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve()
AIM = 2.0  # times isic-cli's files a second
COLLECTION = 212
PEER_THREADS = max(10, os.cpu_count() or 10)
ALL, FETCH = "list and fetch", "fetch"
TASK = "medhaul task: fetch, verify, pack; whole process"

# Of isic-cli only the address is changed: images lie where the API says.
PEER = f"""
import functools, os, pathlib, sys, time
from concurrent.futures import ThreadPoolExecutor
import isic_cli.cli as program
from isic_cli.io.http import download_image, get_images
from isic_cli.session import get_session
from rich.console import Console
from rich.progress import Progress

def command(url, folder):
    program.DOMAINS["prod"] = url
    begin, cpu = time.monotonic(), time.process_time()
    words = ["--guest", "--no-version-check", "image", "download", "-c", "{COLLECTION}", folder]
    program.cli(words, standalone_mode=False)
    return time.monotonic() - begin, time.process_time() - cpu

def fetch(url, folder):
    images = list(get_images(get_session(url + "/api/v2/"), "", "{COLLECTION}"))
    pathlib.Path(folder).mkdir()
    begin, cpu = time.monotonic(), time.process_time()
    with Progress(console=Console(file=sys.stderr)) as progress, ThreadPoolExecutor({PEER_THREADS}) as pool:
        task = progress.add_task("images", total=len(images))
        download = functools.partial(download_image, to=pathlib.Path(folder), progress=progress, task=task)
        list(pool.map(download, images))
    return time.monotonic() - begin, time.process_time() - cpu

what, url, folder, result = sys.argv[1:]
seconds, cpu = (command if what == "command" else fetch)(url, folder)
open(result, "w").write(f"{{seconds}} {{cpu}}")
"""
CONFIG = """
[run]
name = "bench"
[storage]
root = "{root}/runs"
[select.isic]
collections = ["{collection}"]
[sources.isic]
base_url = "{url}"
[shards]
count = 1
[limits]
tasks = 1
[task]
scratch = "{root}/scratch"
allow_shared_scratch = true
start_jitter = 0
"""


class Run(NamedTuple):
    """One run of a client, or a part of it: seconds and CPU seconds of its work, and the peak of its process."""

    work: float
    cpu: float
    rss_mb: float


class Client(NamedTuple):
    """What is run: it gives a run for each of its rows, and the SHA-256 of the files that it made."""

    rows: tuple[str, ...]
    run: Callable[[], tuple[list[Run], Counter[str]]]


def main() -> int:
    sys.path.insert(0, str(HERE.parent.parent))
    if "--listener" in sys.argv:
        return serve()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--connections", type=int, nargs="*", help="of medhaul, one number or several")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="of the demo archive")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--peer", type=Path, help="Python that has isic-cli")
    parser.add_argument("--no-task", action="store_true", help="leave out the whole task")
    parser.add_argument("--dir", default=None, help="where everything lies; by default the folder for temporary files")
    parser.add_argument("--plan", nargs=2, metavar=("CONFIG", "RESULT"), help=argparse.SUPPRESS)
    parser.add_argument("--fetch", nargs=3, metavar=("RUN", "RESULT", "CONNECTIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        plan(*map(Path, options.plan))
        return 0
    if options.fetch:
        from fetching import fetch_all

        import pipeline.sources.isic_body
        import pipeline.sources.isic_fetch  # noqa: F401 - imported before the clock starts

        fetch_all(Path(options.fetch[0]), Path(options.fetch[1]), int(options.fetch[2]))
        return 0
    peer = options.peer or find_peer()
    if peer is None:
        print("without isic-cli: no .venv-isic/ here; `--help` says how to get it", flush=True)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="medhaul-bench-") as folder:
        return compare(Path(folder), options, peer)


def find_peer() -> Path | None:
    """The Python of the environment that the tests with isic-cli make."""
    found = sorted((HERE.parent.parent / ".venv-isic").glob("*/complete"))
    return found[-1].parent / "bin" / "python" if found else None


def make_picture(width: int, height: int, detail: int, seed: int) -> bytes:
    """A JPEG of `detail` kB whose coded data is noise: as real ones, and unlike the demo's, it does not compress."""
    from pipeline.demo.isic_pixels import make_jpeg

    plain = make_jpeg(width, height, 1, 0)
    begin = plain.index(b"\xff\xda") + 14  # after the header of its one scan
    noise = random.Random(seed).randbytes(1000 * detail)
    return plain[:begin] + noise.replace(b"\xff", b"\xff\x00") + plain[-2:]


def serve() -> int:
    """Be a process of the demo archive, with such pictures."""
    from pipeline.demo import isic_bodies, isic_process

    isic_bodies.make_jpeg = functools.cache(make_picture)
    return isic_process.main()


def make_site(root: Path, count: int) -> tuple[Counter[str], int]:
    """Write what the demo archive is to serve; the SHA-256 of its files, and their bytes together."""
    from msgspec.structs import replace

    from pipeline.demo import isic_bodies
    from pipeline.demo.isic_data import COLLECTIONS, make_image
    from pipeline.demo.isic_records import Saved, save_catalogue

    isic_bodies.make_jpeg = make_picture
    form = {"width": 600, "height": 450, "collections": (COLLECTION,)}
    images = [replace(make_image(place), **form, detail=57 + place % 81, seed=place) for place in range(count)]
    save_catalogue(Saved(scale="bench", collections=COLLECTIONS, images=tuple(images)), root)
    bodies = [isic_bodies.make_body(image) for image in images]
    return Counter(hashlib.sha256(body).hexdigest() for body in bodies), sum(map(len, bodies))


def compare(root: Path, options: argparse.Namespace, peer: Path | None) -> int:
    from pipeline.demo.isic_process import IsicProcesses
    from pipeline.demo.workers import start_workers
    from pipeline.settings import Limits

    default = Limits().connections
    connections = options.connections or [default, default // Limits().tasks, PEER_THREADS]
    served, total = make_site(root / "site", options.images)
    # As `start_isic` does, with this module for the processes.
    words = [str(root / "site"), "--latency", str(options.latency)]
    with start_workers("benchmarks.isic", words, processes=options.processes, port=0) as running:
        site = IsicProcesses(running.port, running.workers)
        print(
            f"{len(served)} images, {total / 1e6:.0f} MB, {options.latency} s latency, {options.processes} server "
            f"processes; isic-cli with {PEER_THREADS} threads, medhaul with {default} connections by default",
            flush=True,
        )
        clients = prepare(root, site.url, site.api_url, connections, peer, task=not options.no_task)
        runs: dict[str, list[Run]] = {row: [] for client in clients for row in client.rows}
        for number in range(options.runs + 1):  # the first is to warm up
            for client in clients[:: 1 if number % 2 else -1]:
                made, found = client.run()
                if found != served:
                    print(f"{client.rows[0]}: other files than were served", file=sys.stderr)
                    return 1
                if number:
                    for row, run in zip(client.rows, made, strict=True):
                        runs[row].append(run)
    show(runs, len(served))
    return 0


def show(runs: dict[str, list[Run]], files: int) -> None:
    """Print a line for each row, and one for each of ours beside the same of isic-cli's."""
    for name, made in runs.items():
        if not made:
            continue
        work = [run.work for run in made]
        print(
            f"{name:<52} {statistics.median(work):6.2f} s (best {min(work):.2f}), "
            f"{files / statistics.median(work):4.0f} files/s"
            f"   cpu {statistics.median(run.cpu for run in made):6.2f} s   {max(run.rss_mb for run in made):5.0f} MB"
        )
    for name, made in runs.items():
        first = f"isic-cli: {FETCH if f': {FETCH},' in name and name != TASK else ALL}"
        if not name.startswith("medhaul") or first not in runs or not made:
            continue
        walls = [theirs.work / ours.work for theirs, ours in zip(runs[first], made, strict=True)]
        cpus = [ours.cpu / theirs.cpu for theirs, ours in zip(runs[first], made, strict=True)]
        print(
            f"{name} / {first}: speed {statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f}), "
            f"CPU {statistics.median(cpus):.2f} ({min(cpus):.2f} to {max(cpus):.2f}), {len(walls)} pairs"
            + ("" if name == TASK else f"; the aim is a speed of {AIM:.2f}")
        )


def prepare(
    root: Path, url: str, api_url: str, connections: list[int], peer: Path | None, *, task: bool
) -> list[Client]:
    """The clients; each removes what was made before."""
    from measure import measure, medhaul

    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MEDHAUL", "SLURM", "ISIC"))}
    environ |= {"XDG_CACHE_HOME": str(root / "cache"), "PYTHONPATH": str(HERE.parent.parent)}
    # isic-cli keeps logins at home.
    guest = {"HOME": str(root), "XDG_DATA_HOME": str(root), "PYTHONPATH": ""}
    config, planned, result = root / "bench.toml", root / "runs" / "bench", root / "seconds"
    config.write_text(CONFIG.format(root=root, url=api_url, collection=COLLECTION))
    (root / "peer.py").write_text(PEER)

    def clean() -> None:
        for name in ("files", "scratch", "runs", "cache"):
            shutil.rmtree(root / name, ignore_errors=True)
        result.unlink(missing_ok=True)
        os.sync()

    def run(command: list[str], more: dict[str, str] | None = None) -> Run:
        result.unlink(missing_ok=True)
        figures = measure(command, env=environ | (more or {}), cwd=root)
        if figures.code:
            raise SystemExit(f"exit code {figures.code}: {' '.join(command)}")
        work, cpu = map(float, result.read_text().split()) if result.exists() else (figures.wall, figures.cpu)
        return Run(work, cpu, figures.rss_mb)

    def run_peer(what: str) -> tuple[list[Run], Counter[str]]:
        clean()
        made = run([str(peer), "peer.py", what, url, str(root / "files"), str(result)], guest)
        return [made], Counter(hash_file(path) for path in (root / "files").glob("ISIC_*"))

    def run_medhaul(count: int) -> tuple[list[Run], Counter[str]]:
        clean()
        listed = run([sys.executable, str(HERE), "--plan", str(config), str(result)])
        fetched = run([sys.executable, str(HERE), "--fetch", str(planned), str(result), str(count)])
        both = Run(listed.work + fetched.work, listed.cpu + fetched.cpu, max(listed.rss_mb, fetched.rss_mb))
        return [both, fetched], Counter(hash_file(path) for path in (root / "scratch").rglob("*") if is_image(path))

    def run_task() -> tuple[list[Run], Counter[str]]:
        clean()
        subprocess.run(medhaul("plan", str(config)), env=environ, check=True, stdout=subprocess.DEVNULL)
        made = run(medhaul("task", str(planned), "--shard", "0"))
        subprocess.run(medhaul("reduce", str(planned)), env=environ, check=True, capture_output=True)
        return [made], Counter(read_archives(planned))

    clients = []
    if peer is not None:
        clients.append(Client((f"isic-cli: {ALL}",), lambda: run_peer("command")))
        clients.append(Client((f"isic-cli: {FETCH}",), lambda: run_peer("fetch")))
    for count in connections:
        rows = tuple(f"medhaul: {what}, verified, {count} connections" for what in (ALL, FETCH))
        clients.append(Client(rows, lambda count=count: run_medhaul(count)))
    if task:
        clients.append(Client((TASK,), run_task))
    return clients


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_image(path: Path) -> bool:
    """Whether a file on scratch is one of those that were served, all JPEG."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


def read_archives(run: Path) -> Iterator[str]:
    """SHA-256 of the images in a run's archives."""
    for path in run.glob("archives/*.tar.xz"):
        with tarfile.open(path, "r|xz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(".jpg") else None
                if file is not None:
                    yield hashlib.sha256(file.read()).hexdigest()


def plan(config: Path, result: Path) -> None:
    """What `medhaul plan` does."""
    import duckdb  # noqa: F401 - what the command imports when it is used is not what is measured
    import requests_cache  # noqa: F401

    import pipeline.demo.embed
    import pipeline.plan.isic
    import pipeline.plan.planner  # noqa: F401
    from pipeline.cli.plan import make_plan
    from pipeline.config import read_config

    begin, cpu = time.monotonic(), time.process_time()
    make_plan(read_config(config))
    seconds, used = time.monotonic() - begin, time.process_time() - cpu
    result.write_text(f"{seconds} {used}")


if __name__ == "__main__":
    sys.exit(main())
