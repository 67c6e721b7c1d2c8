"""Real clusters for the tests of this folder: one of each kind per test process, started when first needed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import SlurmCluster
from machine import why_no_slurm

KINDS = ("cluster", "accounting_cluster")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test here; with `--dist loadgroup` one worker does them all, with one cluster of each kind."""
    item.add_marker(pytest.mark.slurm)
    if item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Three nodes, without accounting."""
    yield from _run_cluster(tmp_path_factory, accounting=False)


@pytest.fixture(scope="session")
def accounting_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Three nodes, with slurmdbd and MariaDB, so that sacct and sacctmgr answer."""
    yield from _run_cluster(tmp_path_factory, accounting=True)


def _run_cluster(factory: pytest.TempPathFactory, *, accounting: bool) -> Iterator[SlurmCluster]:
    reason = why_no_slurm(accounting)
    if reason and os.environ.get("MEDHAUL_NEED_SLURM"):
        pytest.fail(f"MEDHAUL_NEED_SLURM is set, but no Slurm can be started: {reason}")
    if reason:
        pytest.skip(reason)
    with SlurmCluster(factory.mktemp("slurm"), accounting=accounting) as running:
        yield running


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test its clusters have their first settings again, all nodes, and no job that has not ended."""
    yield
    for kind in KINDS:
        if kind in request.fixturenames:
            request.getfixturevalue(kind).tidy()
