"""Plan the whole of an ISIC Archive of 500,000 images, listed over HTTP in pages of 100. Limit: 500 MB.

The archive is made up by this process as it is asked for, with images of one time across the edges of pages. `medhaul
plan` runs in a process of its own with an empty cache; what it planned is read back: each image must be there, once.

    python benchmarks/isic_plan.py                   2 min on two free cores
    python benchmarks/isic_plan.py --images 50_000   shorter
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from measure import Figures, medhaul, show

SOURCE = Path(__file__).resolve().parent.parent
MEGABYTES = 500
PAGE = 100
CONFIG = """
[run]
name = "whole"
[storage]
root = "{root}/runs"
[select.isic]
[sources.isic]
base_url = "{url}"
"""


class Told(NamedTuple):
    """One plan: figures of its process, and its lines on standard error with the seconds at which they came."""

    figures: Figures
    lines: list[tuple[float, str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--dir", default=None, help="where everything lies; by default the folder for temporary files")
    options = parser.parse_args()
    sys.path.insert(0, str(SOURCE))
    from pipeline.demo.isic import IsicSite
    from pipeline.demo.isic_data import make_generated

    archive = make_generated(options.images)
    ties = sum(archive.created(edge - 1) == archive.created(edge) for edge in range(PAGE, options.images, PAGE))
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="medhaul-bench-") as folder:
        root = Path(folder)
        with IsicSite(archive) as site:
            (root / "whole.toml").write_text(CONFIG.format(root=root, url=site.api_url))
            told = plan(root)
            pages = site.calls().get("images", 0)
        for second, line in told.lines:
            print(f"{second:6.1f} s  {line}")
        show(
            f"plan of {options.images:,} images", told.figures, f"{pages} pages, {ties} edges within one time; "
            f"limit {MEGABYTES} MB"
        )  # fmt: skip
        if told.figures.code:
            return 1
        wrong = find_wrong(root / "runs" / "whole", options.images)
    print(wrong or "each image is planned once")
    good = not wrong and told.figures.rss_mb <= MEGABYTES
    print("within the limit" if good else "OVER the limit, or wrong")
    return 0 if good else 1


def plan(root: Path) -> Told:
    """Run `medhaul plan` on the config in `root`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MEDHAUL", "SLURM"))}
    environ |= {"XDG_CACHE_HOME": str(root / "cache"), "PYTHONPATH": str(SOURCE)}
    begin = time.monotonic()
    process = subprocess.Popen(
        medhaul("plan", str(root / "whole.toml")), env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr:
        lines = [(time.monotonic() - begin, line.rstrip()) for line in process.stderr]
    # The peak includes what this process had when it started the other: some 60 MB, much less than a plan takes.
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begin
    code = process.returncode = os.waitstatus_to_exitcode(status)
    return Told(Figures(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, code), lines)


def find_wrong(run: Path, images: int) -> str:
    """Say what is wrong with the planned images; nothing when each is there once."""
    from pipeline.demo.isic_data import number_of
    from pipeline.manifest import Manifest
    from pipeline.rundir import RunDir

    planned = [entry.item.id for _, entry in Manifest(RunDir(run)).all_entries()]
    different = set(planned)
    if len(planned) != len(different):
        return f"{len(planned) - len(different)} images are planned twice"
    if different != {number_of(place) for place in range(images)}:
        return f"{len(different)} images are planned, not the {images} that were listed"
    return ""


if __name__ == "__main__":
    sys.exit(main())
