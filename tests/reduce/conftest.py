"""Runs to join."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reduce_kit import COUNTS, TABLES, reduce, results
from run_kit import FakeFetcher, MadeRun

from pipeline.rundir import RunDir


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """A run whose shards are all done, and not yet joined. Not to be changed: see `copy`."""
    made = MadeRun(tmp_path_factory.mktemp("done"), COUNTS, **TABLES)
    assert made.shards == 5
    assert all(receipt.state == "complete" for receipt in made.do())
    return made


@pytest.fixture
def copy(done: MadeRun, tmp_path: Path) -> MadeRun:
    """That run, to be changed."""
    shutil.copytree(done.root / "runs", tmp_path / "runs")
    made = object.__new__(MadeRun)
    made.__dict__.update(done.__dict__, root=tmp_path, run=RunDir(tmp_path / "runs" / "r"))
    made.fetcher = FakeFetcher(done.fetcher.bodies)
    return made


@pytest.fixture(scope="module")
def undisturbed(done: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All results of a run in which nothing went wrong."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(done.root / "runs", root / "runs")
    run = RunDir(root / "runs" / "r")
    reduce(run)
    return results(run)
