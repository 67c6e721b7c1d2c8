"""Waiting for receipts that shared storage shows late: no longer than told, and for none that will not come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_kit import MadeRun

from pipeline.records import Heartbeat
from pipeline.reduce import settle
from pipeline.reduce.settle import LOOK_SECONDS, wait_for_receipts
from pipeline.rundir import RunDir

ITEMS = [3, 2, 3, 2]


class Time:
    """A clock that only sleeping moves; `then` happens at the given seconds."""

    def __init__(self, *then: tuple[float, Callable[[], object]]) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._then = sorted(((1000.0 + at, number, action) for number, (at, action) in enumerate(then)), reverse=True)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds
        while self._then and self._then[-1][0] <= self.now:
            self._then.pop()[2]()

    def wait(self, run: RunDir, seconds: float) -> set[int]:
        return wait_for_receipts(run, seconds, clock=self.clock, sleep=self.sleep)


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    """A planned run of several shards, of which none is done."""
    run = MadeRun(tmp_path, ITEMS, shards={"count": 3})
    assert run.shards >= 3
    return run


def show(made: MadeRun, *shards: int) -> None:
    """The receipts of these shards can be seen now. Only their names are looked at."""
    for shard in shards:
        path = made.run.receipt(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def say(made: MadeRun, shard: int, phase: str) -> None:
    """The last words of a shard's task."""
    made.run.write_heartbeat(
        msgspec.convert(
            {
                "shard": shard, "attempt": 1, "job": "7_0", "node": "n1", "pid": 1, "time": 1.0, "started": 1.0,
                "phase": phase, "entries": 1, "entries_done": 0, "failed": 0, "frames": 1, "frames_done": 0,
                "bytes": 1, "bytes_downloaded": 0, "bytes_packed": 0, "note": "",
            },
            Heartbeat,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_missing(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """A run of which the last shard has no receipt. Not to be changed."""
    made = MadeRun(tmp_path_factory.mktemp("one-missing"), ITEMS, shards={"count": 3})
    show(made, *range(made.shards - 1))
    return made


def test_with_all_receipts_there_is_no_wait(made: MadeRun) -> None:
    """It returns at once, with nothing missing, however long it might wait."""
    show(made, *range(made.shards))
    time = Time()
    assert time.wait(made.run, 600.0) == set()
    assert time.slept == []


def test_with_no_seconds_there_is_no_wait(made: MadeRun) -> None:
    """A reduce that a person starts looks once."""
    show(made, 0)
    time = Time()
    assert time.wait(made.run, 0.0) == set(range(1, made.shards))
    assert time.slept == []


@given(seconds=st.floats(0.01, 500.0))
def test_it_waits_no_longer_than_told(one_missing: MadeRun, seconds: float) -> None:
    """All of the time, in steps that never go beyond it; then it names what is missing."""
    time = Time()
    assert time.wait(one_missing.run, seconds) == {one_missing.shards - 1}
    assert sum(time.slept) == pytest.approx(seconds)
    assert max(time.slept) <= LOOK_SECONDS


def test_a_receipt_that_appears_late_is_seen(made: MadeRun) -> None:
    """It goes on at the first look after the last receipt has come, not at the end of its time."""
    first, *others = range(made.shards)
    show(made, first)
    time = Time((12.0, lambda: show(made, *others[:-1])), (31.0, lambda: show(made, others[-1])))
    assert time.wait(made.run, 600.0) == set()
    assert 31.0 <= time.now - 1000.0 <= 31.0 + LOOK_SECONDS


@pytest.mark.parametrize("phase", ["stopped", "failed"])
def test_a_shard_that_said_it_stopped_is_not_waited_for(made: MadeRun, phase: str) -> None:
    """Its receipt will not come; it counts as missing all the same."""
    show(made, *range(made.shards - 1))
    say(made, made.shards - 1, phase)
    time = Time()
    assert time.wait(made.run, 600.0) == {made.shards - 1}
    assert time.slept == []


@pytest.mark.parametrize("phase", ["starting", "working", "stopping"])
def test_a_shard_that_may_have_ended_well_is_waited_for(made: MadeRun, phase: str) -> None:
    """Old last words of a task do not say how it ended, and one that stopped keeps nobody from waiting for others."""
    say(made, 0, phase)
    say(made, 1, "stopped")
    show(made, *range(2, made.shards))
    time = Time((20.0, lambda: show(made, 0)))
    assert time.wait(made.run, 600.0) == {1}
    assert time.now - 1000.0 == pytest.approx(20.0, abs=LOOK_SECONDS)


def test_last_words_that_appear_late_end_the_wait(made: MadeRun) -> None:
    """Heartbeats are read anew at each look."""
    show(made, *range(1, made.shards))
    time = Time((7.0, lambda: say(made, 0, "stopped")))
    assert time.wait(made.run, 600.0) == {0}
    assert time.now - 1000.0 <= 7.0 + LOOK_SECONDS


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b'{"phase": "stopped"}', b"[" * 5000])
def test_torn_last_words_say_nothing(made: MadeRun, text: bytes) -> None:
    """A heartbeat that is no heartbeat neither ends the wait nor breaks it."""
    show(made, *range(1, made.shards))
    path = made.run.heartbeat(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    time = Time()
    assert time.wait(made.run, 9.0) == {0}
    assert time.now == pytest.approx(1009.0)


def test_files_that_are_no_receipts_are_not_taken_for_some(made: MadeRun) -> None:
    """Temporary files, receipts that were set aside, and those of shards that the run does not have."""
    show(made, 0)
    folder = made.run.receipt(0).parent
    for name in (".000001.json.x1.tmp", "000001.damaged", "1.json", "000001.json.bak", "999999.json"):
        (folder / name).write_bytes(b"")
    assert Time().wait(made.run, 1.0) == set(range(1, made.shards))


def test_the_real_clock_is_used_unless_another_is_given(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reduce calls it, it sleeps between looks, and not when there is nothing to wait for."""
    assert wait_for_receipts(made.run, 0.0) == set(range(made.shards))
    monkeypatch.setattr(settle, "LOOK_SECONDS", 0.01)
    assert wait_for_receipts(made.run, 0.05) == set(range(made.shards))
