"""A demo NBIA of several processes on one port, for measurements; it never outlives whoever started it.

`python -m pipeline.demo.nbia_process ROOT --build small --processes 4 --latency 0.25` serves until it is told to end.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.demo.bucket import Store
from pipeline.demo.nbia import COMMON_ZIPS, NbiaSite
from pipeline.demo.nbia_data import build_nbia
from pipeline.demo.nbia_records import CATALOGUE, load_archive
from pipeline.demo.nbia_tokens import LIFETIME as TOKEN_LIFETIME
from pipeline.demo.nbia_zip import ZipOptions
from pipeline.demo.workers import Workers, add_options, add_worker_options, start_workers, stay, work


@contextlib.contextmanager
def start_nbia(
    root: Path,
    *,
    processes: int = 1,
    latency: float = 0.0,
    prebuilt: Sequence[ZipOptions] = COMMON_ZIPS,
    token_lifetime: float = TOKEN_LIFETIME,
    faults_file: Path | None = None,
    port: int = 0,
) -> Iterator[Workers]:
    """Serve what `build_nbia` made below `root`, for as long as the block lasts.

    Zips as `prebuilt` says are made of all series first, and stay below `root` for the next time; others are made when
    somebody asks. `faults_file` is read again whenever it changes; `set_faults` holds until it does.

    Raises
    ------
    ConfigError
        When there is no catalogue in `root`.
    SiteUnavailableError
        When a process does not start.
    """
    archive = load_archive(root)
    zips = root / f"zips-{hashlib.sha256((root / CATALOGUE).read_bytes()).hexdigest()[:16]}"
    if prebuilt:
        with NbiaSite(archive, zips=zips) as site:
            site.prebuild(prebuilt)
    arguments = [str(root), "--zips", str(zips), "--latency", str(latency), "--token-lifetime", str(token_lifetime)]
    arguments += ["--faults", str(faults_file)] if faults_file else []
    with start_workers("pipeline.demo.nbia_process", arguments, processes=processes, port=port) as running:
        yield running


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; returns the exit code."""
    options = _parse(arguments)

    def make(listener: socket.socket) -> NbiaSite:
        root: Path = options.root
        buckets = root / "idc" / "buckets"
        return NbiaSite(
            load_archive(root),
            Store.from_folder(buckets) if buckets.is_dir() else None,
            latency=options.latency,
            token_lifetime=options.token_lifetime,
            faults_file=options.faults,
            zips=options.zips,
            listener=listener,
        )

    def start() -> contextlib.AbstractContextManager[Workers]:
        if options.build and not (options.root / CATALOGUE).exists():
            build_nbia(options.root, options.build)
        return start_nbia(
            options.root,
            processes=options.processes,
            latency=options.latency,
            token_lifetime=options.token_lifetime,
            faults_file=options.faults,
            port=options.port,
        )

    if options.listener is not None:
        work(make, options.listener, sys.stdin, sys.stdout)
        return 0
    return stay(options, start, lambda running: {"url": running.url})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.nbia_process", description=__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that build_nbia made")
    parser.add_argument("--build", choices=["tiny", "small", "large"], help="make the demo data when there are none")
    parser.add_argument("--token-lifetime", type=float, default=TOKEN_LIFETIME, metavar="S", help="of tokens (7200 s)")
    parser.add_argument("--zips", type=Path, help=argparse.SUPPRESS)
    add_options(parser)
    add_worker_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
