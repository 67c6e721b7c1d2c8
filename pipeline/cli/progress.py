"""Progress of work that is measured in bytes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from pipeline.units import render_size

PLAIN_SECONDS = 10.0


@contextmanager
def byte_progress(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to tell (bytes done, bytes in all); they go to stderr, as a bar where rich is installed."""
    if quiet:
        yield lambda _done, _total: None
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar(label) as show:
            yield show
    else:
        yield plain_progress(label, lambda line: click.echo(line, err=True))


def plain_progress(
    label: str, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Return a function that writes a line every `PLAIN_SECONDS`; work that is shorter writes none."""
    written = clock()

    def show(done: int, total: int) -> None:
        nonlocal written
        if clock() >= written + PLAIN_SECONDS:
            written = clock()
            write(f"{label}: {render_size(done)} of {render_size(total)} ({100 * done // max(1, total)} %)")

    return show


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def printable(text: str) -> str:
    """The text with control characters escaped: an archive's paths are not to command a terminal. Pure."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
