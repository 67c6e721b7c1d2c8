"""Lives of one shard beside and after each other: nothing that one has proved is unproved by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_kit import MadeRun, refuse

from pipeline.manifest import Manifest
from pipeline.task import part
from pipeline.task.finish import find_better
from pipeline.task.shard import ShardTask

ALONE = {"group_bytes": 1000}


def test_a_life_that_was_overtaken_takes_over_what_the_later_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old life ends after a new one that did all: the receipt stays complete, and its bytes are there."""
    made = MadeRun(tmp_path, [1] * 4, shards={"count": 1}, archive=ALONE)
    made.fetcher.list_faults[made.items[0].id] = refuse("unavailable", transient=True)
    finish, ended = ShardTask._finish, []

    def late(self: ShardTask, *arguments: Any) -> Any:
        if not ended:
            ended.append("old")
            made.fetcher.list_faults.clear()
            assert made.do(0)[0].state == "complete"
        return finish(self, *arguments)

    monkeypatch.setattr(ShardTask, "_finish", late)
    (receipt,) = made.do(0)
    found = made.run.read_receipt(0, Manifest(made.run).sha256)
    assert found is not None
    assert (receipt.state, found.state) == ("complete", "complete")
    assert (made.run.parts_folder(0) / found.index).is_file()


def test_a_complete_receipt_stands_while_what_it_names_is_sound(tmp_path: Path) -> None:
    """A worse one does not replace it, unless its part or its index is damaged or gone."""
    made = MadeRun(tmp_path, [1] * 3, shards={"count": 1}, archive=ALONE)
    (good,) = made.do(0)
    worse = msgspec.structs.replace(good, state="partial", life=7)
    assert find_better(made.run, worse) == good
    assert find_better(made.run, good) is None
    folder = made.run.parts_folder(0)
    for name in (good.index, good.parts[0].name):
        data = (folder / name).read_bytes()
        for damaged in (bytes([data[0] ^ 1]) + data[1:], data[:-1]):
            (folder / name).write_bytes(damaged)
            assert find_better(made.run, worse) is None
        (folder / name).unlink()
        assert find_better(made.run, worse) is None
        (folder / name).write_bytes(data)
    made.run.receipt(0).write_bytes(b"{")
    assert find_better(made.run, worse) is None
    made.run.write_receipt(worse)
    assert find_better(made.run, worse) is None


def test_a_partial_receipt_does_not_replace_a_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the other life's journal cannot be taken over, its receipt stands and is what the task returns."""
    made = MadeRun(tmp_path, [1] * 3, shards={"count": 1}, archive=ALONE)
    (good,) = made.do(0)
    made.run.journal(0, 0).unlink()
    made.fetcher.list_faults[made.items[1].id] = refuse("withdrawn")
    assert made.do(0) == [good]
    assert made.run.read_receipt(0, Manifest(made.run).sha256) == good


def test_no_life_writes_an_index_of_another(tmp_path: Path) -> None:
    """With nothing left to do the index is still this life's own file."""
    made = MadeRun(tmp_path, [1] * 3, shards={"count": 1}, archive=ALONE)
    (first,), (second,) = made.do(0), made.do(0)
    assert first.index != second.index
    assert first.life != second.life
    assert (first.parts, first.index_sha256) == (second.parts, second.index_sha256)
    assert (made.run.parts_folder(0) / first.index).is_file()


def test_a_receipt_names_every_liblzma_that_encoded_frames_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of an earlier life keep the version of that life, whatever runs now."""
    made = MadeRun(tmp_path, [1] * 4, shards={"count": 1}, archive=ALONE)
    made.fetcher.list_faults[made.items[3].id] = refuse("withdrawn")
    found = []
    for version in ("5.2.1", "5.4.0", "5.6.0"):  # one does all but an item, one that item, one nothing
        monkeypatch.setattr(part, "liblzma_version", lambda version=version: version)
        found.append(made.do(0)[0].liblzma)
        made.fetcher.list_faults.clear()
    assert found == ["5.2.1", "5.2.1, 5.4.0", "5.2.1, 5.4.0"]
