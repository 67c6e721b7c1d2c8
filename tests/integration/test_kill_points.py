"""Stop or kill anything at the worst moments: what was finished stays finished, and the bytes end the same."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
from haul import Haul, Sabotage, file_sha256

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"
FILES = 12
CONNECTIONS = 4
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
    ("journaled", 6),
    ("before-shard-index", 1),
    ("shard-index", 1),
    ("before-receipt", 1),
    ("receipt", 1),
]
# Every frame is journaled and the last look for a wish to stop is past: a life that is told here has nothing left to
# stop, and ends with its receipt.
LAST_STEPS = {"before-shard-index", "shard-index", "before-receipt", "receipt"}
REDUCE_POINTS = [
    ("mid-copy", 3),
    ("before-archive", 1),
    ("archive", 1),
    ("before-metadata", 1),
    ("before-index", 1),
    ("index", 1),
    ("saying", 1),
    ("before-checksums", 1),
    ("checksums", 1),
    ("removing", 2),
]
# By then the archive and its index are whole.
PUBLISHED = {"index", "saying", "before-checksums", "checksums", "removing"}
# What the run is planned for; each test has a site of its own in its place.
NOWHERE = "http://127.0.0.1:1"


def points(pairs: list[tuple[str, int]]) -> pytest.MarkDecorator:
    """One test for each point."""
    return pytest.mark.parametrize(("point", "count"), pairs, ids=[f"{point}-{count}" for point, count in pairs])


def make_haul(folder: Path, data: DemoData, endpoint: str) -> Haul:
    """One shard of one collection, on few connections so that a stop finds work undone."""
    select = {"collections": [COLLECTION]}
    return Haul(folder, data.index, endpoint, select=select, connections=CONNECTIONS)


def copy_haul(old: Haul, made: Haul, endpoint: str, new_endpoint: str) -> Haul:
    """Give `made` the run of another haul as it stands: much quicker than planning, and doing the shard, again."""
    shutil.copytree(old.run.path, made.run.path)
    record = made.run.run_json.read_text()
    for was, now in ((str(old.folder), str(made.folder)), (endpoint, new_endpoint)):
        assert was in record
        record = record.replace(was, now)
    made.run.run_json.write_text(record)
    return made


@pytest.fixture(scope="module")
def planned(data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> Haul:
    """The run as planned. Not to be changed."""
    made = make_haul(tmp_path_factory.mktemp("planned"), data, NOWHERE)
    made.plan()
    return made


@pytest.fixture(scope="module")
def packed(planned: Haul, data: DemoData, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Haul:
    """The run with its shard done and not yet joined; its site is gone. Not to be changed."""
    with DemoSite(store) as site:
        made = copy_haul(planned, make_haul(tmp_path_factory.mktemp("packed"), data, site.url), NOWHERE, site.url)
        assert made.task().code == 0
        record = made.run.run_json.read_text()
        made.run.run_json.write_text(record.replace(site.url, NOWHERE))
    return made


@pytest.fixture
def haul(planned: Haul, folder: Path, data: DemoData, site: DemoSite) -> Haul:
    """A run to be done, from a site of its own."""
    return copy_haul(planned, make_haul(folder, data, site.url), NOWHERE, site.url)


@pytest.fixture
def to_join(packed: Haul, folder: Path, data: DemoData) -> Haul:
    """A run to be joined, with no site to ask for anything."""
    return copy_haul(packed, make_haul(folder, data, NOWHERE), NOWHERE, NOWHERE)


def gets(site: DemoSite) -> dict[str, int]:
    """How often each object was asked for."""
    return {asked: times for asked, times in site.stats.snapshot().keys.items() if asked.startswith("GET ")}


def finish_and_compare(haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """Go on after a stop: nothing that a journal lists is fetched again, and the archive is as it should be."""
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
    assert sum(before.values()) + sum(again.values()) - FILES <= CONNECTIONS
    join_and_compare(haul, undisturbed)


def join_and_compare(haul: Haul, undisturbed: dict[str, str]) -> None:
    """Reduce ends well, with the archive of the undisturbed run, and leaves nothing lying about."""
    ended = haul.reduce()
    assert ended.code == 0, ended.err
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}
    assert haul.leftovers() == []


@points(TASK_POINTS)
def test_task_killed(point: str, count: int, haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """SIGKILL at any point of a task costs what was in flight, and nothing else."""
    ended = haul.task(sabotage=Sabotage(point, count, "SIGKILL"))
    assert ended.code == -signal.SIGKILL, ended.err
    assert [receipt.state for receipt in haul.receipts()] == ["complete"] * (point == "receipt")
    finish_and_compare(haul, site, undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@points(TASK_POINTS)
def test_task_told_to_stop(
    point: str, count: int, name: str, haul: Haul, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A task told to stop ends in order with exit code 75 and says how to go on, or had only its last steps to do."""
    ended = haul.task(sabotage=Sabotage(point, count, name))
    assert ended.code == (0 if point in LAST_STEPS else 75), ended.err
    if point in LAST_STEPS:
        assert [receipt.state for receipt in haul.receipts()] == ["complete"]
        join_and_compare(haul, undisturbed)
        return
    assert f"stopped by {name}" in ended.err
    assert "medhaul resume" in ended.err
    assert haul.receipts() == []
    finish_and_compare(haul, site, undisturbed)


@points(REDUCE_POINTS)
def test_reduce_killed(point: str, count: int, to_join: Haul, undisturbed: dict[str, str]) -> None:
    """SIGKILL at any point of reduce: it runs again, without any site, and ends with the same bytes."""
    ended = to_join.reduce(sabotage=Sabotage(point, count, "SIGKILL"))
    assert ended.code == -signal.SIGKILL, ended.err
    join_and_compare(to_join, undisturbed)


@points(REDUCE_POINTS)
def test_reduce_goes_on_when_its_time_runs_out(
    point: str, count: int, to_join: Haul, undisturbed: dict[str, str]
) -> None:
    """The early warning of a time limit is told, and does not end a join that may still be in time."""
    ended = to_join.reduce(sabotage=Sabotage(point, count, "SIGUSR1"))
    assert ended.code == 0, ended.err
    assert "SIGUSR1" in ended.err
    assert to_join.sums() == {ARCHIVE: undisturbed[ARCHIVE]}
    assert to_join.leftovers() == []


@points(REDUCE_POINTS)
def test_reduce_told_to_stop(point: str, count: int, to_join: Haul, undisturbed: dict[str, str]) -> None:
    """A reduce told to stop ends with exit code 75, leaves a whole archive or none, and runs again."""
    ended = to_join.reduce(sabotage=Sabotage(point, count, "SIGTERM"))
    assert ended.code == 75, ended.err
    assert "stopped by SIGTERM" in ended.err
    left = {path.name for path in to_join.run.archives.iterdir()}
    assert not {name for name in left if name.endswith(".tmp")}
    assert (ARCHIVE in left) == (point not in {"mid-copy", "before-archive"})
    assert (f"{ARCHIVE}.index.jsonl.zst" in left) == (point in PUBLISHED)
    if ARCHIVE in left:
        assert file_sha256(to_join.run.archives / ARCHIVE) == undisturbed[ARCHIVE]
    if point != "removing":
        assert to_join.run.lives(0) == [0]
    join_and_compare(to_join, undisturbed)


def test_killed_again_and_again(haul: Haul, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """Lives that each die after one frame make, together, the same archive."""
    lives = 0
    while haul.task(sabotage=Sabotage("journaled", 1, "SIGKILL")).code == -signal.SIGKILL:
        lives += 1
    assert lives == 6
    finish_and_compare(haul, site, undisturbed)
