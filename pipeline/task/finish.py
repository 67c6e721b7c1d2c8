"""The end of a shard: its records put in order, its index written, its counts made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.atomic import atomic_file
from pipeline.model import Entry
from pipeline.records import FailedItem, FrameRecord
from pipeline.rundir import RunDir


def complete_records(records: Mapping[int, FrameRecord], frames: Mapping[int, Sequence[Entry]]) -> list[FrameRecord]:
    """Put a shard's records in frame order and check that every entry is accounted for, once. Pure.

    Raises
    ------
    RuntimeError
        When an entry is neither archived nor failed: a fault in medhaul, never to be papered over.
    """
    ordered = []
    if records.keys() != frames.keys():
        raise RuntimeError("the records do not account for the frames of the shard, each once")
    for frame, entries in frames.items():
        record = records[frame]
        expected = [(entry.number, entry.piece) for entry in entries]
        found = [(piece.number, piece.piece) for piece in record.pieces]
        if expected != found or any(bool(piece.files) == bool(piece.reason) for piece in record.pieces):
            raise RuntimeError(f"frame {frame} does not account for its entries")
        ordered.append(record)
    return ordered


def receipt_counts(records: Sequence[FrameRecord], entries: Sequence[Entry]) -> dict[str, Any]:
    """The counting fields of a receipt. Pure."""
    by_entry = {(entry.number, entry.piece): entry for entry in entries}
    pieces = [piece for record in records for piece in record.pieces]
    failed = []
    for piece in pieces:
        if piece.reason:
            item = by_entry[piece.number, piece.piece].item
            failed.append(
                FailedItem(piece.number, piece.piece, item.id, item.path, piece.reason, piece.message, piece.transient)
            )
    files = [file for piece in pieces for file in piece.files]
    return {
        "state": "partial" if failed else "complete",
        "entries": len(entries),
        "archived": len(pieces) - len(failed),
        "failed": failed,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "tar_bytes": sum(record.tar_bytes for record in records),
        "packed_bytes": sum(record.length for record in records),
    }


def write_shard_index(run: RunDir, shard: int, life: int, records: Sequence[FrameRecord]) -> tuple[str, str]:
    """Write all records of a shard, in frame order; return (file name, SHA-256)."""
    import zstandard

    name = run.shard_index_name(shard, life)
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(buffer, closefd=False) as out:
        for record in records:
            out.write(msgspec.json.encode(record) + b"\n")
    data = buffer.getvalue()
    with atomic_file(run.parts_folder(shard) / name) as file:
        file.write(data)
    return name, hashlib.sha256(data).hexdigest()
