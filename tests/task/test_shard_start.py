"""What a task does before and around its shard: old scratch is swept, faults are told, deadlines are fair."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from run_kit import MadeRun

from pipeline.cli import task as cli_task
from pipeline.model import RawFile
from pipeline.sources.base import Body, Received
from pipeline.task import intake
from pipeline.task.cache import ScratchCache, sweep_scratch
from pipeline.task.shard import describe_life

DAY = 24 * 3600.0
SHA = "0123456789ab"


def aged(folder: Path, days: float) -> Path:
    """A shard's folder of an interrupted task that was last used so long ago."""
    folder.mkdir(parents=True)
    for name in ("lock", "verified.jsonl"):
        (folder / name).touch()
        os.utime(folder / name, (1e9 - days * DAY, 1e9 - days * DAY))
    (folder / "frame-0").mkdir()
    (folder / "frame-0" / "raw").write_bytes(b"x")
    return folder


def test_old_scratch_of_tasks_that_never_came_back_is_removed(tmp_path: Path) -> None:
    """After seven days, with its own folders only: what is young, locked, or not medhaul's stays."""
    base = tmp_path / "medhaul-0"
    old, taken = aged(base / f"{SHA}-000001", 8), aged(base / f"{SHA}-000002.77", 9)
    young, other = aged(base / f"{SHA}-000003", 6), aged(base / "notes", 99)
    outside = aged(tmp_path / f"{SHA}-000009", 99)
    (base / f"{SHA}-000008").symlink_to(outside)
    cache = ScratchCache(base, f"{SHA}-000004")
    for name in ("lock", "verified.jsonl"):
        os.utime(cache.folder / name, (1, 1))
    assert sweep_scratch(base, 7 * DAY, 1e9) == [old.name, taken.name]
    assert [path.exists() for path in (old, taken, young, other, outside, cache.folder)] == [False] * 2 + [True] * 4
    assert (outside / "frame-0" / "raw").exists()
    cache.close(keep=True)


@pytest.mark.parametrize("make", ["nothing", "file", "odd"])
def test_a_sweep_of_what_is_no_scratch_does_nothing(tmp_path: Path, make: str) -> None:
    """No folder, a file in its place, a folder without our files: nothing is raised, nothing removed."""
    base = tmp_path / "base"
    if make == "file":
        base.touch()
    if make == "odd":
        (base / f"{SHA}-000001").mkdir(parents=True)
    assert sweep_scratch(base, 0.0, 1e12) == []
    assert base.exists() == (make != "nothing")


def test_scratch_knows_only_files_that_are_there(tmp_path: Path) -> None:
    """What a long log of packed frames names is not held in memory by the next life."""
    cache = ScratchCache(tmp_path, "s")
    for number in range(20):
        path = cache.frame_folder(number) / "raw"
        path.write_bytes(b"x")
        cache.add(f"k{number}", RawFile("n", str(path), 1, "", "", "k", (), "", ""))
        if number < 15:
            cache.drop_frame(number, [f"k{number}"])
    cache.close(keep=True)
    again = ScratchCache(tmp_path, "s")
    assert sorted(again._known) == [f"k{number}" for number in range(15, 20)]
    again.close(keep=False)


@pytest.fixture
def signals() -> Iterator[None]:
    """Signal handlers as before, whatever a task sets."""
    before = {number: signal.getsignal(number) for number in cli_task.GRACE}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_fault_leaves_its_traceback_in_both_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has to run a shard again to learn where medhaul failed."""
    made = MadeRun(tmp_path, [1])

    def place_of_fault(*_: object, **__: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(cli_task, "_do", place_of_fault)
    with caplog.at_level(logging.INFO, "medhaul.task"), pytest.raises(KeyError):
        cli_task.do_shard(made.run, 0, describe_life(0, {}), 1)
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)
    (path,) = made.run.logs(0).glob("*.detail.jsonl.zst")
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).splitlines()
    last = msgspec.json.decode(lines[-1])
    assert (last["event"], last["state"]) == ("life-end", "fault")
    assert "place_of_fault" in last["traceback"]


def test_the_deadline_of_an_item_starts_with_its_first_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its bodies waited behind those of others, an item has its whole time."""
    made = MadeRun(tmp_path, [2, 2, 2], shards={"count": 1}, archive={"group_bytes": 1 << 30, "cut_bytes": 1 << 30})
    ticks = itertools.count(0, 1000)
    monkeypatch.setattr(intake, "time", types.SimpleNamespace(monotonic=lambda: next(ticks)))
    left: dict[str, list[float]] = {}
    real = made.fetcher.fetch

    def fetch(body: Body, path: Path, deadline: float) -> Received:
        left.setdefault(body.entry.item.id, []).append(deadline)
        return real(body, path, deadline)

    monkeypatch.setattr(made.fetcher, "fetch", fetch)
    listed: dict[str, float] = {}
    real_list = made.fetcher.list_bodies

    def list_bodies(entry: Any, deadline: float) -> list[Body]:
        listed[entry.item.id] = deadline
        return real_list(entry, deadline)

    monkeypatch.setattr(made.fetcher, "list_bodies", list_bodies)
    assert made.do(0)[0].state == "complete"
    for item in made.items:
        first, second = left[item.id]
        assert first == second > listed[item.id]
