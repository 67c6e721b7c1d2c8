"""A demo ISIC Archive of several processes on one port, for measurements; it never outlives whoever started it.

`python -m pipeline.demo.isic_process ROOT --build many --processes 4 --latency 0.05` serves until it is told to end.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.demo.isic import API, IsicSite
from pipeline.demo.isic_bodies import Sizes
from pipeline.demo.isic_data import SCALES, build_isic, load_isic
from pipeline.demo.isic_records import CATALOGUE
from pipeline.demo.isic_view import Signed
from pipeline.demo.workers import Workers, add_options, add_worker_options, start_workers, stay, work


class IsicProcesses(Workers):
    """A running site of several processes; see `start_isic`."""

    @property
    def api_url(self) -> str:
        """Where its API is, as `sources.isic.base_url` wants it."""
        return self.url + API.rstrip("/")


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
    arguments = [str(root), "--latency", str(latency), "--sizes", sizes, "--signed", signed]
    arguments += ["--url-lifetime", str(url_lifetime)]
    arguments += ["--faults", str(faults_file)] if faults_file else []
    with start_workers("pipeline.demo.isic_process", arguments, processes=processes, port=port) as running:
        yield IsicProcesses(running.port, running.workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; returns the exit code."""
    options = _parse(arguments)

    def make(listener: socket.socket) -> IsicSite:
        return IsicSite(
            load_isic(options.root),
            sizes=options.sizes,
            signed=options.signed,
            url_lifetime=options.url_lifetime,
            latency=options.latency,
            faults_file=options.faults,
            listener=listener,
        )

    def start() -> contextlib.AbstractContextManager[IsicProcesses]:
        if options.build and not (options.root / CATALOGUE).exists():
            build_isic(options.root, options.build)
        return start_isic(
            options.root,
            processes=options.processes,
            latency=options.latency,
            sizes=options.sizes,
            signed=options.signed,
            url_lifetime=options.url_lifetime,
            faults_file=options.faults,
            port=options.port,
        )

    if options.listener is not None:
        work(make, options.listener, sys.stdin, sys.stdout)
        return 0
    return stay(options, start, lambda running: {"url": running.url, "api": running.api_url})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.isic_process", description=__doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder that build_isic made")
    parser.add_argument("--build", choices=SCALES, help="make the demo data when there are none")
    parser.add_argument("--sizes", choices=["exact", "ingest", "absent"], default="exact", help="what the API says")
    parser.add_argument("--signed", choices=["private", "all"], default="private", help="images with signed URLs")
    parser.add_argument("--url-lifetime", type=float, default=0.0, metavar="S", help="of signed URLs (6 to 7 days)")
    add_options(parser)
    add_worker_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
