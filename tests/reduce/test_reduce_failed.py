"""Reduce of runs in which items failed: every one is accounted for, and a later resume leaves no trace of it."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from reduce_kit import COUNTS, TABLES, left, lines_of, members, reduce, results, rows, wanted
from run_kit import FakeFetcher, MadeRun, do_shard, make_plan, make_series, refuse

from pipeline.archive.index import ArchiveLine, FailedLine, ItemLine, read_lines
from pipeline.errors import ItemsFailedError
from pipeline.manifest import Manifest
from pipeline.reduce.finished import read_finished


def with_failures(tmp_path: Path, *failed: int, reason: str = "checksum") -> MadeRun:
    """A run, all shards done, in which these items failed."""
    made = MadeRun(tmp_path, COUNTS, **TABLES)
    for number in failed:
        made.fetcher.faults[made.items[number].id] = refuse(reason)
    made.do()
    return made


def test_failed_items_keep_the_archive_back(tmp_path: Path) -> None:
    """Each is listed with its reason, and nothing is joined or removed."""
    made = with_failures(tmp_path, 0, 4)
    before = left(made.run)
    with pytest.raises(ItemsFailedError) as caught:
        reduce(made.run)
    for number in (0, 4):
        assert f"{made.items[number].id}: checksum: made up" in str(caught.value)
    assert results(made.run) == {}
    assert left(made.run) == before


@pytest.mark.parametrize("failed", [(0,), (1, 4), (3,), (0, 1, 2, 4, 5)])
def test_a_partial_archive_says_what_it_lacks(tmp_path: Path, failed: tuple[int, ...]) -> None:
    """On request the rest is joined; the lack is told in the exit, the index, the catalogue and a table."""
    made = with_failures(tmp_path, *failed)
    ids = {made.items[number].id for number in failed}
    before = left(made.run)
    with pytest.raises(ItemsFailedError, match="joined without what failed: c"):
        reduce(made.run, allow_partial=True)
    found = members(made.run)
    inside = list(read_lines(io.BytesIO(found.popitem()[1]), "x"))
    assert found == wanted(made, without=ids)
    for lines in (inside, lines_of(made.run)):
        head = lines[0]
        assert isinstance(head, ArchiveLine)
        assert (head.items, head.failed) == (len(COUNTS), len(failed))
        assert [line.id for line in lines if isinstance(line, FailedLine)] == [made.items[n].id for n in failed]
        assert {line.id for line in lines if isinstance(line, ItemLine)} == {i.id for i in made.items} - ids
    table = rows(made.run, "c.failed.csv")
    assert table[0] == ["id", "path", "reason", "message"]
    assert [row[0] for row in table[1:]] == [made.items[n].id for n in failed]
    assert {row[0] for row in rows(made.run, "c.metadata.csv")[1:]} == {i.id for i in made.items} - ids
    assert left(made.run) == before
    line = read_finished(made.run, "c", Manifest(made.run).sha256)
    assert line is not None
    assert line.state == "partial"


def test_a_cut_item_with_one_failed_piece_fails_whole(tmp_path: Path) -> None:
    """Half a series is never passed off as a series: none of its pieces is archived, and it is counted once."""
    made = MadeRun(tmp_path, COUNTS, **TABLES)
    item = made.items[3]
    bodies = made.fetcher.bodies[item.id]
    made.fetcher.faults[item.id] = lambda data: refuse("checksum")() if data == bodies[-1] else data
    receipts = made.do()
    entries = [entry for _, entry in Manifest(made.run).all_entries() if entry.item.id == item.id]
    assert len(entries) == entries[0].pieces > 2
    assert sum(len(receipt.failed) for receipt in receipts) == 1
    with pytest.raises(ItemsFailedError):
        reduce(made.run, allow_partial=True)
    assert not [path for path in members(made.run) if path.startswith(item.path)]
    lines = lines_of(made.run)
    assert [line.id for line in lines if isinstance(line, FailedLine)] == [item.id]
    head = lines[0]
    assert isinstance(head, ArchiveLine)
    assert (head.items, head.failed, head.files) == (len(COUNTS), 1, sum(COUNTS) - COUNTS[3])


def test_two_files_of_one_name_in_different_pieces_are_found(tmp_path: Path) -> None:
    """No task sees both, so reduce looks, and fails the item."""
    made = MadeRun(tmp_path, COUNTS, **TABLES)
    item = made.items[3]
    made.fetcher.bodies[item.id][-1] = made.fetcher.bodies[item.id][0]
    made.do()
    with pytest.raises(ItemsFailedError, match=f"{item.id}: duplicate: two files of the series are"):
        reduce(made.run)
    assert results(made.run) == {}
    with pytest.raises(ItemsFailedError):
        reduce(made.run, allow_partial=True)
    assert [line.id for line in lines_of(made.run) if isinstance(line, FailedLine)] == [item.id]


def test_shards_without_receipt_count_as_failed_items(copy: MadeRun) -> None:
    """A partial archive accounts for every item of the manifest, also those of which nothing is known."""
    copy.run.receipt(0).unlink()
    lost = {entry.item.id for entry in Manifest(copy.run).entries(0)}
    with pytest.raises(ItemsFailedError):
        reduce(copy.run, allow_partial=True)
    lines = lines_of(copy.run)
    failed = [line for line in lines if isinstance(line, FailedLine)]
    assert {line.id for line in failed} == lost
    assert {line.message for line in failed} == {"shard 0 has no receipt"}
    head = lines[0]
    assert isinstance(head, ArchiveLine)
    archived = {line.id for line in lines if isinstance(line, ItemLine)}
    assert len(archived) + len(lost) == head.items == len(COUNTS)


def test_an_archive_of_nothing_is_not_written(tmp_path: Path) -> None:
    """When every item failed there is nothing to join, also on request."""
    made = with_failures(tmp_path, *range(len(COUNTS)))
    with pytest.raises(ItemsFailedError, match="not joined"):
        reduce(made.run, allow_partial=True)
    assert "c.tar.xz" not in results(made.run)


def test_partial_then_resumed_is_as_if_nothing_had_happened(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The complete archive takes the partial one's place, with all its tables, and the list of failures goes."""
    made = with_failures(tmp_path, 0, 3)
    with pytest.raises(ItemsFailedError):
        reduce(made.run, allow_partial=True)
    assert "c.failed.csv" in results(made.run)
    made.fetcher.faults.clear()
    with pytest.raises(ItemsFailedError):
        reduce(made.run)
    assert "c.failed.csv" in results(made.run)
    made.do(attempt=2)
    reduce(made.run)
    found = results(made.run)
    assert set(found) == set(undisturbed)
    for name in set(found) - {"SHA256SUMS", "c.tar.xz.index.jsonl.zst"}:
        assert found[name] == undisturbed[name]
    assert b"c.failed.csv" not in found["SHA256SUMS"]
    assert left(made.run) == []


def test_two_items_of_one_id_are_told_apart(tmp_path: Path) -> None:
    """A series that the index lists in two places is two items: one failing takes nothing from the other."""
    (one, bodies), (two, more) = make_series(0, 3), make_series(1, 3)
    twin = msgspec.structs.replace(one, path=two.path, location=two.location)
    plan = make_plan(tmp_path, [one, twin], archive={"group_bytes": 100})
    assert plan.run is not None
    fetcher = FakeFetcher({one.id: bodies})
    real = fetcher.list_bodies
    fetcher.list_bodies = lambda e, d: refuse("size")() if e.number else real(e, d)  # type: ignore[method-assign]
    for shard in range(plan.shards):
        do_shard(plan.run, shard, fetcher, tmp_path / "scratch")
    with pytest.raises(ItemsFailedError):
        reduce(plan.run, allow_partial=True)
    assert [row[-1] for row in rows(plan.run, "c.metadata.csv")[1:]] == [one.path]
    assert more
