"""Stop or kill anything at the worst moments: what was finished stays finished, and the bytes end the same."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from haul import Haul, Sabotage, file_sha256
from run_kit import MadeRun

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite
from pipeline.errors import InterruptedRunError, TimeLimitError
from pipeline.records import FrameRecord
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.pack import Packer
from pipeline.task.part import FrameFact, PartWriter
from pipeline.task.resources import Workers
from pipeline.task.shard import Life, ShardTask, Stop

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"
FILES = 12
CONNECTIONS = 4
# Point and at which passing of it; see saboteur.py. One shard of 12 files, 6 frames.
TASK_POINTS = [
    ("before-life", 1),
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


# -- time limits: was anything finished? ------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    """One shard of four frames of three files each, made up, to be done in this process."""
    return MadeRun(tmp_path, [3] * 4, shards={"count": 1}, archive={"group_bytes": 1000})


def do_until_stopped(made: MadeRun, stop: Stop) -> InterruptedRunError:
    """Do the shard as its task would, until `stop` ends it; return what it raised."""
    log = DetailLog(made.root / "log.zst")
    task = ShardTask(
        made.run, made.run.read_config(), 0, life=Life(1, "7_0", "n1", 1.0), stop=stop, log=log,
        workers=Workers(1, 4, 2), second_round_wait=0.0,
    )  # fmt: skip
    adopted = task.adopt()
    cache = ScratchCache(made.root / "raw", "shard")
    try:
        with pytest.raises(InterruptedRunError) as caught:
            task.run(made.fetcher, cache, adopted)
    finally:
        cache.close(keep=True)
        log.close()
    assert made.run.read_receipt(0, task.manifest.sha256) is None
    return caught.value


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_time_limit_after_a_frame_is_progress(
    name: str, frames: int, made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only SIGUSR1 is a time limit; once this life has journaled a frame, it has got on."""
    stop, real, closed = Stop(), PartWriter.close_frame, []

    def close_frame(self: PartWriter, record: FrameRecord) -> FrameFact:
        closed.append(real(self, record))
        if len(closed) == frames:
            stop.request(name, 30.0)
        return closed[-1]

    monkeypatch.setattr(PartWriter, "close_frame", close_frame)
    error = do_until_stopped(made, stop)
    assert isinstance(error, TimeLimitError) == (name == "SIGUSR1")
    assert getattr(error, "progress", True)
    assert made.do(0)[0].state == "complete"


def test_a_time_limit_before_any_frame_is_no_progress(made: MadeRun) -> None:
    """Told at the first of three files of the first frame, a life has files on scratch, but no frame."""
    stop = Stop()

    def tell(data: bytes) -> bytes:
        stop.request("SIGUSR1", 30.0)
        return data

    made.fetcher.faults[made.items[0].id] = tell
    error = do_until_stopped(made, stop)
    assert isinstance(error, TimeLimitError)
    assert not error.progress


def test_a_time_limit_before_the_beginning_is_no_progress(made: MadeRun) -> None:
    """A life that is told before it fetched anything got nowhere."""
    stop = Stop()
    stop.request("SIGUSR1", 30.0)
    error = do_until_stopped(made, stop)
    assert isinstance(error, TimeLimitError)
    assert not error.progress
    assert made.fetcher.fetched == []


@pytest.mark.parametrize(("grace", "progress"), [(30.0, True), (0.0, False)])
def test_a_frame_that_is_packed_in_time_is_progress(
    grace: float, progress: bool, made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in the middle of its first frame, a life finishes it within its grace, and it counts; later it does not."""
    stop, real, packers = Stop(), PartWriter.write, []
    real_close = Packer.close

    def close(self: Packer, grace: float | None = None) -> None:
        packers.append(self)
        closing.set()
        real_close(self, grace)

    def write(self: PartWriter, data: bytes) -> None:
        stop.request("SIGUSR1", grace)
        assert closing.wait(30)
        assert grace or packers[0]._abandon.wait(30)
        real(self, data)

    closing = threading.Event()
    monkeypatch.setattr(Packer, "close", close)
    monkeypatch.setattr(PartWriter, "write", write)
    error = do_until_stopped(made, stop)
    assert isinstance(error, TimeLimitError)
    assert error.progress == progress
    monkeypatch.undo()
    assert made.do(0)[0].state == "complete"


def test_frames_of_earlier_lives_are_no_progress(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A life that took over frames, and finished none itself, got nowhere; the next one still has them."""
    stop, real = Stop(), PartWriter.close_frame

    def close_frame(self: PartWriter, record: FrameRecord) -> FrameFact:
        stop.request("SIGTERM", 0.0)
        return real(self, record)

    def not_before_the_stop(data: bytes) -> bytes:
        assert stop.event.wait(30)
        return data

    made.fetcher.faults[made.items[2].id] = not_before_the_stop
    monkeypatch.setattr(PartWriter, "close_frame", close_frame)
    do_until_stopped(made, stop)
    monkeypatch.undo()
    made.fetcher.faults.clear()
    assert 1 <= len(made.run.journal(0, 0).read_bytes().splitlines()) - 1 <= 2
    stop = Stop()
    monkeypatch.setattr(Packer, "pack", lambda *_: stop.request("SIGUSR1", 30.0))
    error = do_until_stopped(made, stop)
    assert isinstance(error, TimeLimitError)
    assert not error.progress
    monkeypatch.undo()
    (receipt,) = made.do(0)
    assert receipt.state == "complete"
    assert made.run.part_name(0, 0) in [use.name for use in receipt.parts]
