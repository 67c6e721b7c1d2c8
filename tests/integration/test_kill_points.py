"""Kill anything at the worst moments: what was finished stays finished, and the bytes end the same."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from haul import Haul, Sabotage

from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"
# Point and at which passing of it; see saboteur.py. One shard of 12 files, 6 frames.
TASK_POINTS = [
    ("before-list", 3),
    ("before-fetch", 5),
    ("mid-body", 5),
    ("verified", 6),
    ("mid-frame", 4),
    ("before-journal", 2),
    ("half-line", 3),
    ("journaled", 3),
    ("before-shard-index", 1),
    ("before-receipt", 1),
    ("receipt", 1),
]
REDUCE_POINTS = [
    ("mid-copy", 3),
    ("before-archive", 1),
    ("archive", 1),
    ("before-metadata", 1),
    ("index", 1),
    ("before-checksums", 1),
    ("removing", 2),
]


@pytest.fixture
def haul(folder: Path, data: DemoData, site: DemoSite) -> Haul:
    """One planned shard of one collection, on few connections so that a kill finds work undone."""
    made = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, connections=4)
    made.plan()
    return made


def gets(site: DemoSite) -> dict[str, int]:
    """How often each object was asked for."""
    return {asked: times for asked, times in site.stats.snapshot().keys.items() if asked.startswith("GET ")}


def finish_and_compare(haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """Go on after a kill: nothing that a journal lists is fetched again, and the archive is as it should be."""
    done = haul.journaled_keys()
    end = time.monotonic() + 10
    while site.stats.snapshot().open_connections and time.monotonic() < end:
        time.sleep(0.01)  # what the dead life asked for last may not have been counted yet
    before = gets(site)
    site.stats.reset()
    ended = haul.task()
    assert ended.code == 0, ended.err
    again = gets(site)
    assert not [asked for asked in again if asked.partition("/")[2] in done]
    assert all(times == 1 for times in again.values())
    # What is fetched twice in all was in flight: neither journaled nor verified on scratch.
    assert sum(before.values()) + sum(again.values()) - 12 <= 4
    ended = haul.reduce()
    assert ended.code == 0, ended.err
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}
    assert haul.leftovers() == []


@pytest.mark.parametrize(("point", "count"), TASK_POINTS, ids=[point for point, _ in TASK_POINTS])
def test_task_killed(point: str, count: int, haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """SIGKILL at any point of a task costs what was in flight, and nothing else."""
    ended = haul.task(sabotage=Sabotage(point, count, "SIGKILL"))
    assert ended.code == -signal.SIGKILL, ended.err
    assert len(haul.receipts()) == (point == "receipt")
    if point == "receipt":
        assert haul.receipts()[0].state == "complete"
    finish_and_compare(haul, site, undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize(("point", "count"), [("before-fetch", 5), ("mid-body", 5), ("mid-frame", 4), ("journaled", 3)])
def test_task_told_to_stop(
    point: str, count: int, name: str, haul: Haul, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A task told to stop ends in order with exit code 75, says how to go on, and what it finished is kept."""
    ended = haul.task(sabotage=Sabotage(point, count, name))
    assert ended.code == 75, ended.err
    assert name in ended.err
    assert "medhaul resume" in ended.err
    assert haul.receipts() == []
    finish_and_compare(haul, site, undisturbed)


@pytest.mark.parametrize(("point", "count"), REDUCE_POINTS, ids=[point for point, _ in REDUCE_POINTS])
def test_reduce_killed(point: str, count: int, haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """SIGKILL at any point of reduce: it runs again, asks the site for nothing, and ends with the same bytes."""
    assert haul.task().code == 0
    site.stats.reset()
    ended = haul.reduce(sabotage=Sabotage(point, count, "SIGKILL"))
    assert ended.code == -signal.SIGKILL, ended.err
    ended = haul.reduce()
    assert ended.code == 0, ended.err
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}
    assert haul.leftovers() == []
    assert site.stats.requests == 0


def test_reduce_goes_on_when_its_time_runs_out(haul: Haul, undisturbed: dict[str, str]) -> None:
    """The early warning of a time limit does not end a join that may still be in time."""
    assert haul.task().code == 0
    assert haul.reduce(sabotage=Sabotage("mid-copy", 2, "SIGUSR1")).code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_reduce_told_to_stop(haul: Haul, undisturbed: dict[str, str]) -> None:
    """A reduce told to stop ends with exit code 75, leaves no half archive, and runs again."""
    assert haul.task().code == 0
    ended = haul.reduce(sabotage=Sabotage("mid-copy", 2, "SIGTERM"))
    assert ended.code == 75, ended.err
    assert list(haul.run.archives.iterdir()) == []
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_killed_again_and_again(haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """Lives that each die after one frame make, together, the same archive."""
    lives = 0
    while haul.task(sabotage=Sabotage("journaled", 1, "SIGKILL")).code == -signal.SIGKILL:
        lives += 1
    assert lives == 6
    finish_and_compare(haul, site, undisturbed)
