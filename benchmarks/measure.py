"""Whole-process figures of a child from the kernel's accounting (wait4): CPU seconds, wall seconds, peak memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Figures(NamedTuple):
    """Of one run of a process and the children that it waited for."""

    cpu: float
    wall: float
    rss_mb: float
    code: int


def measure(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> Figures:
    """Run a command, its output thrown away, and return its figures."""
    begin = time.monotonic()
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=cwd
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Figures(
        usage.ru_utime + usage.ru_stime, time.monotonic() - begin, usage.ru_maxrss / 1024, process.returncode
    )


def medhaul(*words: str) -> list[str]:
    """The command line of this checkout's medhaul."""
    return [sys.executable, "-m", "pipeline.cli.main", *words]


def median(runs: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    return Figures(
        statistics.median(run.cpu for run in runs),
        statistics.median(run.wall for run in runs),
        statistics.median(run.rss_mb for run in runs),
        max(run.code for run in runs),
    )


def show(name: str, figures: Figures, extra: str = "") -> None:
    """Print one row."""
    failed = f"  EXIT {figures.code}" if figures.code else ""
    print(
        f"{name:<44} cpu {figures.cpu:7.2f} s   wall {figures.wall:7.2f} s   {figures.rss_mb:6.0f} MB  {extra}{failed}"
    )
