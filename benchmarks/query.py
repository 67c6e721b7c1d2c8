"""Does `medhaul query idc` answer fast and small? Runs it on the packaged index and fails above its limits.

    python benchmarks/query.py [--runs 5]

Each command is a child of its own, start-up included; the table has the median of wall and processor seconds and the
largest peak of memory. Limits: 1 s, 200 MB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

COMMANDS = (
    "columns",
    "collections",
    "size",
    "size --where series_size_MB>100",
    "patients --collection nlst",
    "studies --collection tcga_brca",
    "series --collection rider_pilot",
    "series --modality CT --where instanceCount>500 --limit 100",
)
MAX_SECONDS = 1.0
MAX_BYTES = 200 * 1000**2


def measure(arguments: list[str]) -> tuple[float, float, int]:
    """Wall seconds, processor seconds and peak bytes of one run. Raises `SystemExit` when it fails."""
    script = "import sys; from pipeline.cli.query import query; query(prog_name='query')"
    command = [sys.executable, "-c", script, "idc", *arguments, "--csv"]
    began = time.perf_counter()
    null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=[null])
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"query idc {' '.join(arguments)} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> int:
    """Measure all commands; 1 when one is above the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    failed = False
    print(f"{'query idc':<60} {'wall s':>7} {'cpu s':>7} {'peak MB':>8}")
    for line in COMMANDS:
        walls, cpus, peaks = zip(*(measure(line.split()) for _ in range(runs)), strict=True)
        wall, peak = statistics.median(walls), max(peaks)
        over = wall > MAX_SECONDS or peak > MAX_BYTES
        failed |= over
        print(
            f"{line:<60} {wall:7.2f} {statistics.median(cpus):7.2f} {peak / 1e6:8.0f}{'  above limit' if over else ''}"
        )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
