"""The end of a shard: every entry is accounted for exactly once, and the receipt's counts are those of the records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from run_kit import make_item

from pipeline.model import Entry
from pipeline.records import FailedItem, FileRecord, FrameRecord, PieceRecord
from pipeline.rundir import RunDir
from pipeline.task.finish import Tally, check_records, write_shard_index


def file_of(size: int) -> FileRecord:
    """A file of that size."""
    return FileRecord(f"1.{size}.dcm", size, "s", 512, "k", ["md5"], "r")


def piece_of(entry: Entry, sizes: list[int]) -> PieceRecord:
    """What became of an entry: files of these sizes, or a failure when there are none."""
    if sizes:
        return PieceRecord(entry.number, entry.piece, [file_of(size) for size in sizes])
    return PieceRecord(entry.number, entry.piece, [], "size", "too short", transient=True)


def entry_of(number: int, frame: int, piece: int = 0, pieces: int = 1) -> Entry:
    """A manifest entry."""
    return Entry(number, frame, piece, pieces, make_item(number))


def record_of(frame: int, pieces: list[PieceRecord], length: int = 10, tar_bytes: int = 1024) -> FrameRecord:
    """A frame's record."""
    return FrameRecord(frame, "p", 0, length, "s", tar_bytes, [], pieces)


def in_order(records: Mapping[int, FrameRecord]) -> list[FrameRecord]:
    """Records as a task reads them back."""
    return [records[frame] for frame in sorted(records)]


def receipt_counts(records: Iterable[FrameRecord], entries: list[Entry]) -> dict[str, Any]:
    """The counts, when all records have passed."""
    tally = Tally(entries)
    for _ in tally.count(records):
        pass
    return tally.fields()


shards = st.lists(st.lists(st.lists(st.integers(1, 1000), max_size=3), min_size=1, max_size=4), min_size=1, max_size=5)


def build(shard: list[list[list[int]]]) -> tuple[dict[int, list[Entry]], dict[int, FrameRecord]]:
    """Frames of entries, and the records that account for them, in another order."""
    frames: dict[int, list[Entry]] = {}
    records = {}
    number = 0
    for frame, entries in enumerate(shard, start=7):
        frames[frame] = [entry_of(number + n, frame) for n in range(len(entries))]
        records[frame] = record_of(frame, [piece_of(e, sizes) for e, sizes in zip(frames[frame], entries, strict=True)])
        number += len(entries)
    return frames, dict(reversed(records.items()))


@given(shards)
def test_whole_records_are_put_in_order_and_counted(shard: list[list[list[int]]]) -> None:
    """Entries are archived or failed, and files, bytes and frames add up."""
    frames, records = build(shard)
    ordered = list(check_records(in_order(records), frames))
    assert [record.frame for record in ordered] == list(frames)
    entries = [entry for group in frames.values() for entry in group]
    counts = receipt_counts(ordered, entries)
    flat = [sizes for group in shard for sizes in group]
    assert counts["entries"] == len(flat) == counts["archived"] + len(counts["failed"])
    assert counts["archived"] == sum(bool(sizes) for sizes in flat)
    assert counts["files"] == sum(map(len, flat))
    assert counts["bytes"] == sum(map(sum, flat))
    assert (counts["tar_bytes"], counts["packed_bytes"]) == (1024 * len(shard), 10 * len(shard))
    assert counts["state"] == ("partial" if any(not sizes for sizes in flat) else "complete")
    wanted = [entry for entry, sizes in zip(entries, flat, strict=True) if not sizes]
    assert counts["failed"] == [
        FailedItem(e.number, e.piece, e.item.id, e.item.path, "size", "too short", transient=True) for e in wanted
    ]


DAMAGE = ["lost frame", "foreign frame", "lost piece", "twice", "order", "number", "piece", "neither", "both"]


@pytest.mark.parametrize("damage", DAMAGE)
@given(shard=shards, data=st.data())
def test_an_entry_that_is_not_accounted_for_once_is_a_fault(
    damage: str, shard: list[list[list[int]]], data: st.DataObject
) -> None:
    """Whatever is missing, doubled, swapped or undecided: no receipt is written, a fault is raised."""
    frames, records = build(shard)
    frame = data.draw(st.sampled_from(sorted(frames)))
    pieces = list(records[frame].pieces)
    at = data.draw(st.integers(0, len(pieces) - 1))
    piece = pieces[at]
    if damage == "lost piece":
        del pieces[at]
    elif damage == "twice":
        pieces.insert(at, piece)
    elif damage == "order":
        pieces.insert(0, msgspec.structs.replace(pieces.pop(), piece=5))
    else:
        changes = {
            "number": {"number": piece.number + 1000},
            "piece": {"piece": 1},
            "neither": {"files": [], "reason": ""},
            "both": {"files": [file_of(1)], "reason": "size"},
        }
        pieces[at] = msgspec.structs.replace(piece, **changes.get(damage, {}))
    records[frame] = msgspec.structs.replace(records[frame], pieces=pieces)
    if damage == "lost frame":
        del records[frame]
    if damage == "foreign frame":
        records[frame + 100] = record_of(frame + 100, [])
    with pytest.raises(RuntimeError, match="account"):
        list(check_records(in_order(records), frames))


def test_pieces_of_one_item_are_entries_of_their_own() -> None:
    """A cut item with one failed piece has one entry archived and one failed."""
    frames = {n: [entry_of(4, n, n, 2)] for n in range(2)}
    records = {0: record_of(0, [piece_of(frames[0][0], [5])]), 1: record_of(1, [piece_of(frames[1][0], [])])}
    counts = receipt_counts(check_records(in_order(records), frames), [frames[0][0], frames[1][0]])
    assert (counts["archived"], [(f.number, f.piece) for f in counts["failed"]]) == (1, [(4, 1)])


@given(shards)
def test_the_shard_index_holds_the_records_and_its_hash_is_true(
    tmp_path_factory: pytest.TempPathFactory, shard: list[list[list[int]]]
) -> None:
    """What reduce reads is what the task knew; the same records give the same bytes."""
    run = RunDir(tmp_path_factory.mktemp("i"))
    frames, records = build(shard)
    ordered = list(check_records(in_order(records), frames))
    name, sha256 = write_shard_index(run, 3, 1, ordered)
    data = (run.parts_folder(3) / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(data).splitlines()
    assert [msgspec.json.decode(line, type=FrameRecord) for line in lines] == ordered
    assert write_shard_index(run, 3, 2, ordered)[1] == sha256


def test_the_shard_index_is_there_whole_or_not(tmp_path: Path) -> None:
    """Its folder is made, and nothing else lies in it."""
    run = RunDir(tmp_path)
    name, _ = write_shard_index(run, 3, 0, [])
    assert [path.name for path in run.parts_folder(3).iterdir()] == [name]
