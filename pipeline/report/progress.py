"""Progress of a run that is waited for: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from pipeline.report.render import SHOWN_SHARDS, render_line, render_running
from pipeline.report.status import StatusReport

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_SECONDS = 10.0


class ProgressView(Protocol):
    """Shows reports as they come."""

    def show(self, report: StatusReport) -> None:
        """Show the newest report."""

    def close(self) -> None:
        """End the display."""


class PlainView:
    """Writes a line when a count changed, or `PLAIN_SECONDS` after the last one when only bytes did."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._last: tuple[object, ...] = ()
        self._line = ""
        self._written = -PLAIN_SECONDS

    def show(self, report: StatusReport) -> None:
        now, line = self._clock(), render_line(report)
        counts = (tuple(report.shards.items()), report.failed, report.reduce and report.reduce.state)
        if counts == self._last and (now < self._written + PLAIN_SECONDS or line == self._line):
            return
        self._write(line)
        self._last, self._line, self._written = counts, line, now

    def close(self) -> None:
        """Nothing is open."""


class RichView:
    """An overall bar by bytes, and a line for each shard at work."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, report: StatusReport) -> None:
        self._live.update(render_rich(report))

    def close(self) -> None:
        self._live.stop()


def render_rich(report: StatusReport) -> RenderableType:
    """The live display's content."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total = max(1, report.bytes)
    grid = Table.grid(expand=True)
    grid.add_row(ProgressBar(total=total, completed=min(total, report.done_bytes)))
    grid.add_row(Text(render_line(report)))
    for view in report.running[:SHOWN_SHARDS]:
        grid.add_row(Text("  " + render_running(view), overflow="ellipsis", no_wrap=True))
    if len(report.running) > SHOWN_SHARDS:
        grid.add_row(Text(f"  and {len(report.running) - SHOWN_SHARDS} more at work"))
    return grid


def choose_view(stream: TextIO, write: Callable[[str], None], *, have_rich: bool) -> ProgressView:
    """Choose the display: live when the stream is a terminal and rich is installed."""
    return RichView(stream) if have_rich and stream.isatty() else PlainView(write)
