"""`medhaul reduce` and signals: the early warning of a time limit is no end, SIGTERM and SIGINT are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schedulers.fake_run import write_run

# Joins nothing, but sends itself a signal, as a scheduler would do in the middle of a join.
CODE = """
import os, signal, sys
import pipeline.reduce.run
from pipeline.cli.main import main

def reduce_run(run, *, allow_partial, on_progress):
    on_progress("a0", 1, 2)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    print("joined", flush=True)
    return []

pipeline.reduce.run.reduce_run = reduce_run
main(["reduce", sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("name", "code", "joined"), [("SIGUSR1", 0, True), ("SIGTERM", 75, False), ("SIGINT", 75, False)]
)
def test_only_the_end_ends(tmp_path: Path, name: str, code: int, joined: bool) -> None:
    """SIGUSR1 is told and the join goes on; SIGTERM and SIGINT end it with 75 and what to do."""
    run = write_run(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(run.path), name], cwd=Path(__file__).parents[2], env=os.environ,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "joined" in done.stdout) == (code, joined), done.stderr
    assert name in done.stderr
    assert ("medhaul reduce" in done.stderr) is not joined
