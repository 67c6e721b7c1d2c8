"""All benchmarks, short, one after another; what needs something that is not installed is left out, with the reason.

python -m benchmarks [NAME...]
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Benchmark(NamedTuple):
    """A script of this folder with its arguments, and the modules and programs without which it cannot run."""

    name: str
    arguments: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark("start"),
    Benchmark("query", ("--runs", "3"), modules=("idc_index_data",)),
    Benchmark("plan", modules=("idc_index_data",)),
    Benchmark("build", ("--join-bytes", "200_000_000"), programs=("tar", "xz")),
    Benchmark(
        "download",
        ("--small-count", "200", "--large-count", "4", "--large-bytes", "50_000_000"),
        programs=("nginx",),
    ),
    Benchmark("tcia", ("--series", "20", "--runs", "1")),
    Benchmark("isic", ("--images", "300", "--runs", "1")),
    Benchmark("isic_plan", ("--images", "50_000")),
)


def main() -> int:
    """Run them; 1 when one failed, was above its limits, or is not known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(one.name for one in BENCHMARKS))
    names = parser.parse_args().names
    if unknown := sorted(set(names) - {one.name for one in BENCHMARKS}):
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    bad = []
    for one in BENCHMARKS:
        if names and one.name not in names:
            continue
        print(f"\n== {one.name}", flush=True)
        if lacking := find_lacking(one):
            print(f"skipped: not installed: {', '.join(lacking)}", flush=True)
            continue
        began = time.monotonic()
        command = [sys.executable, str(HERE / f"{one.name}.py"), *one.arguments, *find_options(one)]
        code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        print(f"-- {one.name}: {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
        if code:
            bad.append(one.name)
    if bad:
        print(f"\nfailed or above the limits: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


def find_lacking(one: Benchmark, which: Callable[[str], str | None] | None = None) -> list[str]:
    """The modules and programs that a benchmark needs and this machine has not."""
    which = which or find_program
    modules = [name for name in one.modules if importlib.util.find_spec(name) is None]
    return modules + [name for name in one.programs if which(name) is None]


def find_program(name: str) -> str | None:
    """The path of a program: servers lie where only root's PATH leads."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


def find_options(one: Benchmark) -> list[str]:
    """What a benchmark is told of this machine; says what is left out of it."""
    if one.name != "download":
        return []
    options = ["--nginx", find_program("nginx") or ""]
    if s5cmd := find_program("s5cmd"):
        return [*options, "--s5cmd", s5cmd]
    print("without s5cmd: not installed", flush=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
