"""A shard with bad items: they never stop the others, and what is good is fetched once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from run_kit import MadeRun, refuse

from pipeline.archive.frames import RawFileChangedError
from pipeline.errors import SiteUnavailableError, StorageError
from pipeline.manifest import Manifest
from pipeline.model import Entry
from pipeline.task import intake, loop, pack, shard
from pipeline.task.intake import FrameWork, Intake
from pipeline.task.loop import spread
from pipeline.task.part import adopt_frames

ALONE = {"group_bytes": 1000}
TOGETHER = {"group_bytes": 1 << 30, "cut_bytes": 1 << 30}
DOWN = refuse("unavailable", transient=True)


@pytest.mark.parametrize("archive", [ALONE, TOGETHER])
@pytest.mark.parametrize("bad", [range(60), range(60, 120), range(30, 110)])
def test_many_bad_items_in_a_row_do_not_stop_the_others(tmp_path: Path, archive: dict[str, int], bad: range) -> None:
    """The site gives no answer for items that lie side by side: one life archives all others."""
    made = MadeRun(tmp_path, [1] * 120, pixels=10, shards={"count": 1}, archive=archive)
    for number in bad:
        made.fetcher.list_faults[made.items[number].id] = DOWN
    (receipt,) = made.do(0)
    assert (receipt.archived, {item.number for item in receipt.failed}) == (120 - len(bad), set(bad))


@pytest.mark.parametrize("answers", [0, 50])
def test_a_site_that_is_down_ends_the_task_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    """With no answer for 40 items nor for any probe, not even of items that were had before, the task ends."""
    made = MadeRun(tmp_path, [1] * 400, pixels=10, shards={"count": 1}, archive=ALONE)

    def probe_at_once(self: Intake, entries: list[Entry]) -> None:
        for number, entry in enumerate(entries):
            self._guard(self._probe, number, entry)

    monkeypatch.setattr(Intake, "probe", probe_at_once)
    asked = itertools.count()

    def fault() -> None:
        if next(asked) >= answers:
            DOWN()

    made.fetcher.list_faults = dict.fromkeys((item.id for item in made.items), fault)
    with pytest.raises(SiteUnavailableError, match="in a row"):
        made.do(0)
    assert next(asked) < answers + 150


def test_frames_without_a_record_come_before_those_with_failures(tmp_path: Path) -> None:
    """What was never tried is not kept waiting by what has failed before."""
    made = MadeRun(tmp_path, [1] * 5, shards={"count": 1}, archive=ALONE)
    made.fetcher.list_faults[made.items[0].id] = DOWN
    made.fetcher.list_faults[made.items[2].id] = refuse("withdrawn")
    made.do(0)
    journal = made.run.journal(0, 0)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]))  # the head and frames 0 to 2
    asked: list[str] = []
    for item in made.items:
        made.fetcher.list_faults[item.id] = lambda item=item: asked.append(item.id)
    assert made.do(0)[0].state == "complete"
    assert set(asked[:2]) == {made.items[3].id, made.items[4].id}


@pytest.mark.parametrize(("transient", "reason"), [(False, "withdrawn"), (True, "unavailable")])
def test_good_items_beside_a_bad_one_are_fetched_once(tmp_path: Path, reason: str, *, transient: bool) -> None:
    """A second round and later lives ask only for what failed, also when the frame is packed anew."""
    made = MadeRun(tmp_path, [1] * 30, pixels=10, shards={"count": 1}, archive=TOGETHER)
    bad = made.items[7].id
    made.fetcher.list_faults[bad] = refuse(reason, transient=transient)
    assert made.do(0)[0].archived == 29
    assert len(made.fetcher.fetched) == 29
    for _ in range(2):
        made.fetcher.fetched.clear()
        assert made.do(0)[0].archived == 29
        assert made.fetcher.fetched == []
    made.fetcher.list_faults.clear()
    assert made.do(0)[0].state == "complete"
    assert made.fetcher.fetched == ["uuid-00007/00000.dcm"]


def test_what_a_later_life_gets_in_its_second_round_is_taken(tmp_path: Path) -> None:
    """A frame that was given up in the first round of a life is packed when its item comes in the second."""
    made = MadeRun(tmp_path, [1] * 8, shards={"count": 1}, archive={"group_bytes": 2600})
    bad = [made.items[number].id for number in (0, 5, 7)]
    made.fetcher.list_faults.update(dict.fromkeys(bad, DOWN))
    assert made.do(0)[0].archived == 5
    for item in bad:
        asked = itertools.count()
        made.fetcher.list_faults[item] = lambda asked=asked: DOWN() if next(asked) == 0 else None
    assert made.do(0)[0].state == "complete"


def test_one_of_two_bad_items_that_can_be_had_now_is_taken(tmp_path: Path) -> None:
    """A frame is packed anew for one item more, and its other failure keeps its reason."""
    made = MadeRun(tmp_path, [1] * 6, shards={"count": 1}, archive=TOGETHER)
    for number in (1, 4):
        made.fetcher.list_faults[made.items[number].id] = refuse("withdrawn")
    assert made.do(0)[0].archived == 4
    del made.fetcher.list_faults[made.items[4].id]
    (receipt,) = made.do(0)
    assert (receipt.archived, [item.number for item in receipt.failed]) == (5, [1])


def test_the_sizes_of_frames_are_reckoned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of the coordinator grows with the number of items, not with its square."""
    made = MadeRun(tmp_path, [1] * 60, pixels=10, shards={"count": 1}, archive=ALONE)
    counts = {"planned": 0, "frames": 0}
    planned = intake.entry_bytes

    def counted_planned(*arguments: object) -> int:
        counts["planned"] += 1
        return planned(*arguments)  # type: ignore[arg-type]

    class Counted(FrameWork):
        def __init__(self, *arguments: object) -> None:
            counts["frames"] += 1
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(intake, "entry_bytes", counted_planned)
    monkeypatch.setattr(loop, "FrameWork", Counted)
    made.do(0)
    assert counts == {"planned": 60, "frames": Manifest(made.run).shards[0].frames}


def test_what_is_held_of_finished_frames_does_not_grow_with_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records stay in the journals, and are read one at a time when the shard index is written."""
    made = MadeRun(tmp_path, [40, 40, 40], pixels=10, shards={"count": 1}, archive=ALONE)
    most = 0
    real = shard.read_frames

    def watched(*arguments: object) -> object:
        nonlocal most
        facts = list(arguments[2])  # type: ignore[call-overload]
        most = max(len(repr(fact)) for fact in facts)
        return real(*arguments[:2], facts)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "read_frames", watched)
    assert made.do(0)[0].files == 120
    assert 0 < most < 300
    manifest = Manifest(made.run)
    adopted = adopt_frames(made.run, 0, manifest.sha256, range(manifest.shards[0].frames))
    assert all(len(repr(fact)) < 300 for fact in adopted.frames.values())


def test_scratch_that_does_not_keep_files_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw files that change again and again end the task with what to do about it."""
    made = MadeRun(tmp_path, [1], shards={"count": 1})

    def fail(*_: object) -> None:
        raise RawFileChangedError("/scratch/x")

    monkeypatch.setattr(pack, "read_blocks", fail)
    with pytest.raises(StorageError, match="/scratch/x") as caught:
        made.do(0)
    assert "task.scratch" in caught.value.hint


def test_probes_are_spread_and_reach_the_far_end() -> None:
    """The last is asked first; no choice is named twice."""
    assert spread(range(100), 4) == [99, 74, 49, 24]
    assert spread(range(3), 6) == [2, 1, 0]
    assert spread([], 6) == []
