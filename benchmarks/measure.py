"""Whole-process figures of a child from the kernel's accounting (wait4): CPU seconds, wall seconds, peak memory."""

from __future__ import annotations

import json
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
    # Through a small process of its own: a child's peak memory includes what its parent had when it was forked.
    runner = [sys.executable, "-I", "-S", __file__, *command]
    answer = subprocess.run(runner, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env, cwd=cwd, check=True)
    return Figures(*json.loads(answer.stdout))


def run_and_tell(command: Sequence[str]) -> None:
    """Run a command and print its figures as JSON."""
    quiet = subprocess.DEVNULL
    begin = time.monotonic()
    process = subprocess.Popen(list(command), stdin=quiet, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begin
    code = process.returncode = os.waitstatus_to_exitcode(status)
    print(json.dumps([usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, code]))


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


if __name__ == "__main__":
    run_and_tell(sys.argv[1:])
