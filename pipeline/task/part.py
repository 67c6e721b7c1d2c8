"""A shard's part on shared storage, and its journal: what one life of a task has finished for good.

Every life opens files of its own (exclusively, numbered), so two lives of one shard never write one file; a later life
takes over the frames of earlier ones by reference. A frame counts once its bytes and then its journal line are on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from pipeline.archive.liblzma import liblzma_version
from pipeline.atomic import fsync_folder, storage_errors
from pipeline.errors import ConfigError, StorageError
from pipeline.records import FORMAT, FrameRecord, PartUse, PieceRecord
from pipeline.rundir import RunDir


class JournalHead(msgspec.Struct, frozen=True):
    """The first line of a journal."""

    format: int
    shard: int
    life: int
    manifest_sha256: str


_HEAD = msgspec.json.Decoder(JournalHead)
_RECORD = msgspec.json.Decoder(FrameRecord)
L = TypeVar("L", JournalHead, FrameRecord)


class FrameFact(msgspec.Struct, frozen=True):
    """What a task keeps in memory of a finished frame: where its record lies, and what in it failed.

    The record itself, with all its files, is the journal line of `size` bytes at `at`; `failed` pieces have no files.
    """

    frame: int
    life: int
    at: int
    size: int
    part: str
    length: int
    tar_bytes: int
    pieces: int
    failed: list[PieceRecord]


def journal_line(record: JournalHead | FrameRecord) -> bytes:
    """One line: CRC-32 of the JSON in hexadecimal, a space, the JSON. Pure."""
    data = msgspec.json.encode(record)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def _read_line(line: bytes, decoder: msgspec.json.Decoder[L]) -> L | None:
    """What a journal line says; None when it is torn or damaged."""
    body = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(body):
        return None
    try:
        return decoder.decode(body)
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError):
        return None


def iter_journal(file: BinaryIO) -> Iterator[tuple[int, int, JournalHead | FrameRecord]]:
    """Yield (offset, length, content) of each line up to the first torn or damaged one; one record in memory at a time.

    What follows a damaged line was never confirmed. The first line is the head, all others are frames.
    """
    position = 0
    for line in file:
        said = _read_line(line, _RECORD) if position else _read_line(line, _HEAD)
        if said is None:
            return
        yield position, len(line), said
        position += len(line)


def frame_fact(record: FrameRecord, life: int, at: int, size: int) -> FrameFact:
    """The small facts of a record that is the journal line of `size` bytes at `at`. Pure."""
    return FrameFact(
        record.frame, life, at, size, record.part, record.length, record.tar_bytes, len(record.pieces), record.failed
    )


def read_frames(run: RunDir, shard: int, facts: Iterable[FrameFact]) -> Iterator[FrameRecord]:
    """Read records back from the journals, one at a time.

    Raises
    ------
    StorageError
        When a line is no longer what it was.
    """
    with contextlib.ExitStack() as stack:
        life, path, file = -1, Path(), None
        for fact in facts:
            if file is None or fact.life != life:
                stack.close()
                life, path, file = fact.life, run.journal(shard, fact.life), None
                with storage_errors(path), contextlib.suppress(FileNotFoundError):
                    file = stack.enter_context(path.open("rb"))
            record = None
            if file is not None:
                with storage_errors(path):
                    file.seek(fact.at)
                    record = _read_line(file.read(fact.size), _RECORD)
            if record is None or record.frame != fact.frame:
                raise StorageError(
                    f"{path}: the record of frame {fact.frame} is not there any more",
                    hint="check that storage; `medhaul resume RUN` does again what is lost",
                )
            yield record


F = TypeVar("F", FrameRecord, FrameFact)


def better_record(old: F | None, new: F) -> F:
    """Of two records of a frame, the one with fewer failures; of equals, the later. Pure."""
    return old if old is not None and len(old.failed) < len(new.failed) else new


class Adopted(msgspec.Struct):
    """What lives left: the best record of each frame, the parts they lie in, and notes for the log.

    `lives` holds all that were looked at.
    """

    frames: dict[int, FrameFact]
    parts: dict[str, PartUse]
    notes: list[str]
    lives: set[int]


def adopt_frames(
    run: RunDir, shard: int, manifest_sha256: str, wanted: range, *, known: Collection[int] = ()
) -> Adopted:
    """Collect the frames that other lives of a shard finished, each checked against its SHA-256; not those `known`.

    Raises
    ------
    ConfigError
        When a journal is of another run or shard.
    """
    adopted = Adopted({}, {}, [], set())
    for life in run.lives(shard):
        if life in known:
            continue
        adopted.lives.add(life)
        try:
            _adopt_life(run, shard, life, manifest_sha256, wanted, adopted)
        except FileNotFoundError:
            adopted.notes.append(f"{run.journal(shard, life).name}: removed while it was to be read")
    return adopted


def _adopt_life(run: RunDir, shard: int, life: int, manifest_sha256: str, wanted: range, adopted: Adopted) -> None:
    path = run.journal(shard, life)
    part = _PartCheck(run.parts_folder(shard))
    end = 0
    sound = True
    with storage_errors(path), path.open("rb") as file:
        for at, size, said in iter_journal(file):
            end = at + size
            if isinstance(said, JournalHead):
                if (said.manifest_sha256, said.shard, said.format) != (manifest_sha256, shard, FORMAT):
                    raise ConfigError(
                        f"{path}: of another run, shard or format",
                        hint="files of two runs were mixed; remove that file",
                    )
            elif sound and said.frame in wanted and part.holds(said):
                fact = frame_fact(said, life, at, size)
                adopted.frames[fact.frame] = better_record(adopted.frames.get(fact.frame), fact)
                adopted.parts[said.part] = part.use(said.part)
            elif sound:
                adopted.notes.append(f"{said.part}: frame {said.frame} is not what its journal says; doing it again")
                sound = False  # the part's own SHA-256 cannot be told beyond a gap
        torn = os.fstat(file.fileno()).st_size - end
    if torn:
        adopted.notes.append(f"{path.name}: {torn} bytes at its end were never confirmed and are ignored")


class _PartCheck:
    """Re-reads a part frame by frame."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = hashlib.sha256()
        self._end = 0

    def holds(self, record: FrameRecord) -> bool:
        """Whether the next bytes of the part are what the record says. Raises `StorageError`."""
        path = self._folder / record.part
        digest = hashlib.sha256()
        left = record.length
        try:
            with storage_errors(path), path.open("rb") as file:
                file.seek(record.offset)
                while left and (data := file.read(min(8 << 20, left))):
                    digest.update(data)
                    self._whole.update(data)
                    left -= len(data)
        except FileNotFoundError:
            return False
        if left or digest.hexdigest() != record.sha256 or record.offset != self._end:
            return False
        self._end = record.offset + record.length
        return True

    def use(self, name: str) -> PartUse:
        """What was read so far, as a receipt names it."""
        return PartUse(name, self._end, self._whole.hexdigest())


def holds_part(folder: Path, use: PartUse) -> bool:
    """Whether a part still begins with the bytes that a receipt relies on. Raises `StorageError`."""
    whole = FrameRecord(0, use.name, 0, use.length, use.sha256, 0, [], [])
    return _PartCheck(folder).holds(whole)


class PartWriter:
    """The part and journal of one life; both are created here, and nobody else ever writes them."""

    def __init__(self, run: RunDir, shard: int, manifest_sha256: str) -> None:
        folder = run.parts_folder(shard)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.life, self._journal, self._part = _claim_life(run, shard)
            self.name = run.part_name(shard, self.life)
            self.liblzma = liblzma_version()  # what frames written here are compressed with
            head = journal_line(JournalHead(FORMAT, shard, self.life, manifest_sha256))
            _write_all(self._journal, head)
            os.fsync(self._journal)
            fsync_folder(folder)
        self.frames = 0  # finished by this life
        self._path = folder / self.name
        self._size = 0
        self._journal_size = len(head)
        self._digest = hashlib.sha256()
        self._begin()

    def _begin(self) -> None:
        self._frame_start = self._size
        self._frame_digest = hashlib.sha256()
        self._digest_before = self._digest.copy()

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

    def close_frame(self, record: FrameRecord) -> FrameFact:
        """Make the open frame count: its bytes on disk first, then its journal line. Raises `StorageError`."""
        line = journal_line(record)
        with storage_errors(self._path):
            os.fsync(self._part)
            _write_all(self._journal, line)
            os.fsync(self._journal)
        fact = frame_fact(record, self.life, self._journal_size, len(line))
        self._journal_size += len(line)
        self.frames += 1
        self._begin()
        return fact

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
