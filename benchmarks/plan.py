"""Plan the whole real IDC index. Limits: 15 s of wall clock on two free cores, and 600 MB.

python benchmarks/plan.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import measure, medhaul, median, show

CONFIG = """
[run]
name = "whole"
[storage]
root = "runs"
[select.idc]
content = "both"
"""
SECONDS, MEGABYTES = 15, 600


def main() -> int:
    runs = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="medhaul-bench-") as folder:
            config = Path(folder, "whole.toml")
            config.write_text(CONFIG)
            runs.append(measure(medhaul("plan", str(config))))
    best = min(runs, key=lambda run: run.wall)
    show("plan of the whole index, median of 3", median(runs))
    show("  best", best, f"limit {SECONDS} s, {MEGABYTES} MB")
    good = best.code == 0 and best.wall <= SECONDS and best.rss_mb <= MEGABYTES
    print("within the limits" if good else "OVER the limits")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
