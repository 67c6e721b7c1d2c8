"""`python -m benchmarks`, which `make bench` calls: it runs scripts that are there, and says what it leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.__main__ import BENCHMARKS, Benchmark, find_lacking

ROOT = Path(__file__).parents[2]


def call(*names: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks of these names."""
    command = [sys.executable, "-m", "benchmarks", *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_every_benchmark_is_there() -> None:
    """Each one is a script of the folder that takes the arguments it is given."""
    for one in BENCHMARKS:
        text = (ROOT / "benchmarks" / f"{one.name}.py").read_text()
        assert all(f'"{word}"' in text for word in one.arguments if word.startswith("--"))


def test_one_benchmark_runs() -> None:
    """The benchmark that needs nothing runs and tells its figures; an unknown name is refused with those there are."""
    done = call("start")
    assert done.returncode == 0, done.stderr
    assert "medhaul task --help" in done.stdout
    assert "-- start: " in done.stdout
    refused = call("nothing")
    assert refused.returncode == 2
    assert "no such benchmark: nothing" in refused.stderr


def test_lacking_things_are_named() -> None:
    """Modules and programs that are not there are the reason to leave a benchmark out."""
    one = Benchmark("x", modules=("sys", "no_such_module"), programs=("here", "gone"))
    assert find_lacking(one, lambda name: "/bin/here" if name == "here" else None) == ["no_such_module", "gone"]
