"""Salvage: the good files of a frame that was packed with failures are taken back from the part, not fetched again.

A frame is packed anew when an item that failed can be had now. All its other items lie in the packed frame, which every
life finds on shared storage, on whatever node. So no raw file need wait on scratch for a second round that may never
come, and no site need be asked, nor even listed, for what was had. Whole entries come back or none of their files:
each file with the SHA-256 that the journal has, checked once more as what it is, with the evidence and the route by
which it was first proved. What does not come back is asked of the site.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.archive.blocks import decode_block
from pipeline.archive.decode import Piece, TarStream
from pipeline.archive.xz import BlockSize, XzFormatError
from pipeline.atomic import storage_errors
from pipeline.errors import InterruptedRunError, ItemError, MedhaulError, StorageError
from pipeline.model import Entry, IsicLocation, RawFile, RemoteFile
from pipeline.records import FileRecord, FrameRecord, PieceRecord
from pipeline.rundir import RunDir
from pipeline.sources.base import Body
from pipeline.sources.verified import judge_file
from pipeline.task.part import FrameFact, read_frames

logger = logging.getLogger("medhaul.task")

Key = tuple[int, int]  # of an entry: number and piece
# Room for one block in memory; entering raises `InterruptedRunError` when there is none and will be none.
Room = Callable[[threading.Event], contextlib.AbstractContextManager[None]]


class Salvage:
    """Takes entries back from the packed frames of a shard. Its methods may be called from many threads.

    Parameters
    ----------
    facts
        What is known of each packed frame, of this life or of one before; may grow meanwhile.
    room
        Counts a block that is decoded here among those in flight, so that memory stays bounded: one at a time for each
        thread, with no more copies of it than packing makes of one.
    """

    def __init__(
        self, run: RunDir, shard: int, facts: Mapping[int, FrameFact], *, room: Room, stop: threading.Event
    ) -> None:
        self._run = run
        self._shard = shard
        self._facts = facts
        self._room = room
        self._stop = stop

    def find(self, frame: int, entries: Iterable[Entry]) -> FrameFact | None:
        """The fact of a packed frame that has at least one of these entries; None when there is none."""
        fact = self._facts.get(frame)
        if fact is None or len(fact.failed) == fact.pieces:
            return None
        failed = {(piece.number, piece.piece) for piece in fact.failed}
        return fact if any((entry.number, entry.piece) not in failed for entry in entries) else None

    def take(
        self, fact: FrameFact, entries: Iterable[Entry], folder: Path
    ) -> Generator[tuple[Entry, list[RawFile]], None, None]:
        """Yield those of the entries that come back whole, each with its files, in their order in the archive.

        Their raw files are written to `folder`. Damage, and a part or a journal that is gone, cost the entries that
        they touch and nothing else.

        Raises
        ------
        StorageError
            When scratch is full.
        InterruptedRunError
            When told to stop.
        """
        wanted = {(entry.number, entry.piece): entry for entry in entries}
        try:
            (record,) = read_frames(self._run, self._shard, [fact])
        except StorageError as error:
            logger.warning("frame %d cannot be taken back: %s", fact.frame, error)
            return
        pieces = choose_pieces(record, wanted)
        count = 0
        with contextlib.closing(self._decode(record)) as blocks:
            stream = TarStream(blocks, 0)
            for piece in pieces:
                entry = wanted[piece.number, piece.piece]
                if (files := self._take_entry(stream, entry, piece, folder)) is not None:
                    count += 1
                    yield entry, files
        logger.info("frame %d: %d of %d entries come from %s", record.frame, count, len(wanted), record.part)

    def _take_entry(self, stream: TarStream, entry: Entry, piece: PieceRecord, folder: Path) -> list[RawFile] | None:
        """All files of an entry, or None and nothing on scratch."""
        files: list[RawFile] = []
        for position, record in enumerate(piece.files):
            # A name of its own: a download of the same entry never meets what a life that was killed left here.
            path = folder / f"packed-{entry.number}-{entry.piece}-{position}"
            file = self._take_file(stream, entry, record, path)
            if file is None:
                for written in (*(Path(each.local) for each in files), path):
                    written.unlink(missing_ok=True)
                return None
            files.append(file)
        return files

    def _take_file(self, stream: TarStream, entry: Entry, record: FileRecord, path: Path) -> RawFile | None:
        stream.skip_to(record.offset)
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with storage_errors(path), path.open("wb", buffering=0) as out:
            for data in stream.take(record.size):
                if data is None:
                    return None
                write_all(out, data)
                sha256.update(data)
                md5.update(data)
        if sha256.hexdigest() != record.sha256:
            return None
        try:
            with storage_errors(path):
                chain = choose_class(entry, record, path)
        except MedhaulError:
            raise
        except Exception as error:  # the border of an entry, which is then fetched and judged anew
            wrong = error if not isinstance(error, ItemError) else None
            logger.warning("%s: not taken back, but fetched again: %s", record.key, error, exc_info=wrong)
            return None
        return raw_file(record, path, md5.hexdigest(), chain)

    def _decode(self, record: FrameRecord) -> Generator[Piece, None, None]:
        """The tar bytes of a frame, block by block; None for each that is damaged or cannot be read."""
        path = self._run.parts_folder(self._shard) / record.part
        with contextlib.ExitStack() as stack:
            file: BinaryIO | None = None
            for number, size in enumerate(BlockSize(*block) for block in record.blocks):
                with self._room(self._stop):
                    if self._stop.is_set():
                        raise InterruptedRunError("stopped while a frame was taken back")
                    data = b""
                    try:
                        if number == 0:
                            file = stack.enter_context(path.open("rb", buffering=0))
                            file.seek(record.offset)
                        if file is not None:
                            data = read_exactly(file, size.total)
                    except OSError as error:  # the site has what cannot be read here
                        logger.warning("%s: %s; what it has is fetched again", path, error.strerror)
                        file = None
                    yield Piece(size.uncompressed, decode_or_none(data, size))


def choose_pieces(record: FrameRecord, wanted: Collection[Key]) -> list[PieceRecord]:
    """Choose the pieces of a frame that have files and are wanted; none of a record that contradicts itself. Pure."""
    position = 0
    for file in (file for piece in record.pieces for file in piece.files):
        if file.offset < position or file.size < 0:
            return []
        position = file.offset + file.size
    held = sum(uncompressed for _, uncompressed in record.blocks)
    if position > held or held != record.tar_bytes:
        return []
    return [piece for piece in record.pieces if piece.files and (piece.number, piece.piece) in wanted]


def choose_class(entry: Entry, record: FileRecord, path: Path) -> str:
    """The compression class of a file, which no record holds, by the checks that it passed when it first came.

    Raises
    ------
    ItemError
        When it does not pass them any more, or its name would be another: another version of medhaul packed it.
    """
    body = Body(entry, RemoteFile(record.key, record.size, ""), "")
    if isinstance(entry.item.location, IsicLocation):
        from pipeline.sources.isic_body import list_files

        named = [each for each in list_files(entry) if each.cache_key.endswith(f":{entry.item.id}{record.name}")]
        if not named:
            raise ItemError("internal", f"it was packed as {record.name}, which the manifest does not have")
        body = named[0]
    name, chain, _, _ = judge_file(body, path)
    if name != record.name:
        raise ItemError("internal", f"it was packed as {record.name} and is {name}")
    return chain


def raw_file(record: FileRecord, path: Path, md5: str, chain: str) -> RawFile:
    """A packed file as it was before it was packed: with all that its record keeps of how it was proved. Pure."""
    kept: dict[str, Any] = {
        name: getattr(record, name) for name in RawFile.__struct_fields__ if name in FileRecord.__struct_fields__
    }
    return RawFile(**{**kept, "evidence": tuple(record.evidence), "local": str(path), "md5": md5, "chain": chain})


def decode_or_none(data: bytes, size: BlockSize) -> bytes | None:
    """The content of a block; None when it is damaged. Pure."""
    try:
        return decode_block(data, size) if len(data) == size.total else None
    except XzFormatError:
        return None


def read_exactly(file: BinaryIO, count: int) -> bytes:
    """The next `count` bytes; fewer only at the end of the file."""
    return b"".join(_read_pieces(file, count))


def _read_pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count and (data := file.read(count)):
        count -= len(data)
        yield data


def write_all(out: Any, data: memoryview) -> None:
    """Write all of `data` to an unbuffered file."""
    while data:
        data = data[out.write(data) :]
