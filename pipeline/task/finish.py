"""The end of a shard: its records checked, its index written and its counts made, one record in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, cast

import msgspec

from pipeline.atomic import atomic_file
from pipeline.errors import ConfigError
from pipeline.manifest import file_sha256
from pipeline.model import Entry
from pipeline.records import FailedItem, FrameRecord, Receipt
from pipeline.rundir import RunDir
from pipeline.task.part import holds_part


def check_records(records: Iterable[FrameRecord], frames: Mapping[int, Sequence[Entry]]) -> Iterator[FrameRecord]:
    """Pass on a shard's records, and check that they are in frame order and account for every entry, once.

    Raises
    ------
    RuntimeError
        When an entry is neither archived nor failed: a fault in medhaul, never to be papered over.
    """
    wanted = iter(frames.items())
    for record in records:
        frame, entries = next(wanted, (None, ()))
        if record.frame != frame:
            raise RuntimeError("the records do not account for the frames of the shard, each once")
        expected = [(entry.number, entry.piece) for entry in entries]
        found = [(piece.number, piece.piece) for piece in record.pieces]
        if expected != found or any(bool(piece.files) == bool(piece.reason) for piece in record.pieces):
            raise RuntimeError(f"frame {frame} does not account for its entries")
        yield record
    if next(wanted, None) is not None:
        raise RuntimeError("the records do not account for the frames of the shard, each once")


class Tally:
    """Counts records as they pass."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {(entry.number, entry.piece): entry for entry in entries}
        self._pieces = self._files = self._bytes = self._tar_bytes = self._packed_bytes = 0
        self._failed: list[FailedItem] = []
        self.encoders: set[str] = set()  # the versions of liblzma that frames were compressed with

    def count(self, records: Iterable[FrameRecord]) -> Iterator[FrameRecord]:
        """Pass on records, counted."""
        for record in records:
            self._tar_bytes += record.tar_bytes
            self._packed_bytes += record.length
            if record.length and record.liblzma:
                self.encoders.add(record.liblzma)
            for piece in record.pieces:
                self._pieces += 1
                self._files += len(piece.files)
                self._bytes += sum(file.size for file in piece.files)
                if piece.reason:
                    item = self._entries[piece.number, piece.piece].item
                    self._failed.append(
                        FailedItem(
                            piece.number, piece.piece, item.id, item.path, piece.reason, piece.message, piece.transient
                        )
                    )
            yield record

    def fields(self) -> dict[str, Any]:
        """The counting fields of a receipt."""
        return {
            "state": "partial" if self._failed else "complete",
            "entries": len(self._entries),
            "archived": self._pieces - len(self._failed),
            "failed": self._failed,
            "files": self._files,
            "bytes": self._bytes,
            "tar_bytes": self._tar_bytes,
            "packed_bytes": self._packed_bytes,
        }


class _Hashing:
    """A binary file to write to, with the SHA-256 of what was written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()


def write_shard_index(run: RunDir, shard: int, life: int, records: Iterable[FrameRecord]) -> tuple[str, str]:
    """Write all records of a shard, in frame order; return (file name, SHA-256). `life` must be the caller's own."""
    import zstandard

    name = run.shard_index_name(shard, life)
    with atomic_file(run.parts_folder(shard) / name) as file:
        hashing = _Hashing(file)
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        with compressor.stream_writer(cast("IO[bytes]", hashing), closefd=False) as out:  # it needs no more of a file
            for record in records:
                out.write(msgspec.json.encode(record) + b"\n")
    return name, hashing.digest.hexdigest()


def find_better(run: RunDir, receipt: Receipt) -> Receipt | None:
    """Return the complete receipt that stands already, if `receipt` is not complete and all that it names is sound.

    Another life of the shard may have ended better meanwhile; what it proved must not be unproved.
    """
    if receipt.state == "complete":
        return None
    try:
        found = run.read_receipt(receipt.shard, receipt.manifest_sha256)
    except ConfigError:
        return None  # a damaged receipt proves nothing
    if found is None or found.state != "complete":
        return None
    folder = run.parts_folder(found.shard)
    try:
        index = file_sha256(folder / found.index)
    except OSError:
        return None
    return found if index == found.index_sha256 and all(holds_part(folder, use) for use in found.parts) else None
