"""A shard's part on shared storage, and its journal: what one life of a task has finished for good.

Every life opens files of its own (exclusively, numbered), so two lives of one shard never write one file; a later life
takes over the frames of earlier ones by reference. A frame counts once its bytes and then its journal line are on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from pathlib import Path

import msgspec

from pipeline.atomic import fsync_folder, storage_errors
from pipeline.errors import ConfigError
from pipeline.records import FORMAT, FrameRecord, PartUse
from pipeline.rundir import RunDir

_RECORD = msgspec.json.Decoder(FrameRecord)


class JournalHead(msgspec.Struct, frozen=True):
    """The first line of a journal."""

    format: int
    shard: int
    life: int
    manifest_sha256: str


class Journal(msgspec.Struct):
    """What a journal says: its head (None when even that was cut), its frames, and the bytes of torn tail."""

    head: JournalHead | None
    frames: list[FrameRecord]
    torn: int


def journal_line(record: JournalHead | FrameRecord) -> bytes:
    """One line: CRC-32 of the JSON in hexadecimal, a space, the JSON. Pure."""
    data = msgspec.json.encode(record)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def parse_journal(data: bytes) -> Journal:
    """Read a journal up to its first torn or damaged line: what follows one was never confirmed. Pure."""
    journal = Journal(None, [], 0)
    position = 0
    while position < len(data):
        end = data.find(b"\n", position)
        line = data[position : end if end >= 0 else len(data)]
        body = line[9:]
        try:
            if end < 0 or line[:9] != b"%08x " % zlib.crc32(body):
                break
            if journal.head is None:
                journal.head = msgspec.json.decode(body, type=JournalHead)
            else:
                journal.frames.append(_RECORD.decode(body))
        except (UnicodeDecodeError, RecursionError, msgspec.DecodeError):
            break
        position = end + 1
    journal.torn = len(data) - position
    return journal


def better_record(old: FrameRecord | None, new: FrameRecord) -> FrameRecord:
    """Of two records of a frame, the one with fewer failures; of equals, the later. Pure."""
    return old if old is not None and len(old.failed) < len(new.failed) else new


class Adopted(msgspec.Struct):
    """What earlier lives left: the best record of each frame, the parts they lie in, and notes for the log."""

    frames: dict[int, FrameRecord]
    parts: dict[str, PartUse]
    notes: list[str]


def adopt_frames(run: RunDir, shard: int, manifest_sha256: str, wanted: range) -> Adopted:
    """Collect the frames that earlier lives of a shard finished, each checked against its SHA-256.

    Raises
    ------
    ConfigError
        When a journal is of another run or shard.
    """
    adopted = Adopted({}, {}, [])
    for life in run.lives(shard):
        path = run.journal(shard, life)
        with storage_errors(path):
            journal = parse_journal(path.read_bytes())
        if journal.torn:
            adopted.notes.append(f"{path.name}: {journal.torn} bytes at its end were never confirmed and are ignored")
        if journal.head is None:
            continue
        if (journal.head.manifest_sha256, journal.head.shard, journal.head.format) != (manifest_sha256, shard, FORMAT):
            raise ConfigError(
                f"{path}: of another run, shard or format", hint="files of two runs were mixed; remove that file"
            )
        good = _check_frames(run.parts_folder(shard), journal.frames, wanted, adopted)
        for record in good:
            adopted.frames[record.frame] = better_record(adopted.frames.get(record.frame), record)
    return adopted


def _check_frames(folder: Path, frames: list[FrameRecord], wanted: range, adopted: Adopted) -> list[FrameRecord]:
    """Re-read a part's frames; keep those whose bytes are what the journal says."""
    good = []
    whole = hashlib.sha256()
    end = 0
    for record in frames:
        path = folder / record.part
        digest = hashlib.sha256()
        try:
            with storage_errors(path), path.open("rb") as file:
                file.seek(record.offset)
                left = record.length
                while left and (data := file.read(min(8 << 20, left))):
                    digest.update(data)
                    whole.update(data)
                    left -= len(data)
        except FileNotFoundError:
            left = -1
        if left or digest.hexdigest() != record.sha256 or record.offset != end or record.frame not in wanted:
            adopted.notes.append(f"{record.part}: frame {record.frame} is not what its journal says; doing it again")
            break  # the part's own SHA-256 cannot be told beyond a gap
        end = record.offset + record.length
        good.append(record)
        adopted.parts[record.part] = PartUse(record.part, end, whole.hexdigest())
    return good


class PartWriter:
    """The part and journal of one life; both are created here, and nobody else ever writes them."""

    def __init__(self, run: RunDir, shard: int, manifest_sha256: str) -> None:
        folder = run.parts_folder(shard)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.life, self._journal, self._part = _claim_life(run, shard)
            self.name = run.part_name(shard, self.life)
            _write_all(self._journal, journal_line(JournalHead(FORMAT, shard, self.life, manifest_sha256)))
            os.fsync(self._journal)
            fsync_folder(folder)
        self._path = folder / self.name
        self._size = 0
        self._digest = hashlib.sha256()
        self._begin()

    def _begin(self) -> None:
        self._frame_start = self._size
        self._frame_digest = hashlib.sha256()
        self._digest_before = self._digest.copy()

    @property
    def frame_start(self) -> int:
        """Where the open frame begins in the part."""
        return self._frame_start

    def write(self, data: bytes) -> None:
        """Append bytes of the open frame. Raises `StorageError`."""
        with storage_errors(self._path):
            _write_all(self._part, data)
        self._size += len(data)
        self._digest.update(data)
        self._frame_digest.update(data)

    def abandon_frame(self) -> None:
        """Take back what was written of the open frame."""
        with storage_errors(self._path):
            os.ftruncate(self._part, self._frame_start)
            os.lseek(self._part, self._frame_start, os.SEEK_SET)
        self._size = self._frame_start
        self._digest = self._digest_before
        self._begin()

    def frame_written(self) -> tuple[int, int, str]:
        """Offset, length and SHA-256 of the open frame's bytes."""
        return self._frame_start, self._size - self._frame_start, self._frame_digest.hexdigest()

    def close_frame(self, record: FrameRecord) -> None:
        """Make the open frame count: its bytes on disk first, then its journal line. Raises `StorageError`."""
        with storage_errors(self._path):
            os.fsync(self._part)
            _write_all(self._journal, journal_line(record))
            os.fsync(self._journal)
        self._begin()

    def use(self) -> PartUse:
        """The part as a receipt names it; only between frames."""
        return PartUse(self.name, self._size, self._digest.hexdigest())

    def close(self) -> None:
        for descriptor in (self._part, self._journal):
            with contextlib.suppress(OSError):  # all that counts was fsynced before
                os.close(descriptor)


def _claim_life(run: RunDir, shard: int) -> tuple[int, int, int]:
    """Open the next free journal and part exclusively: (number of this life, their descriptors)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    life = max(run.lives(shard), default=-1)
    while True:
        life += 1
        try:
            journal = os.open(run.journal(shard, life), flags | os.O_APPEND, 0o644)
        except FileExistsError:
            continue
        try:
            return life, journal, os.open(run.parts_folder(shard) / run.part_name(shard, life), flags, 0o644)
        except FileExistsError:  # somebody removed its journal: nothing says what is in it
            os.close(journal)
            run.journal(shard, life).unlink()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
