"""Verify a whole archive: read once, front to back, every byte accounted for."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.archive.blocks import write_stored_block
from pipeline.archive.catalogue import Tail, catalogue_lines, read_tail
from pipeline.archive.decode import TarStream, decode_blocks
from pipeline.archive.index import ArchiveLine, FileLine, FrameLine, ItemLine, Line, content_only
from pipeline.archive.lines import LineCounter, member_path
from pipeline.archive.reader import index_beside, index_lines
from pipeline.archive.source import LocalSource, Range, Source, open_source, opened
from pipeline.archive.tar import END_OF_ARCHIVE, member_header, member_padding
from pipeline.archive.xz import HEADER_BYTES, BlockSize, stream_header, stream_tail
from pipeline.errors import ConfigError

KEPT_PROBLEMS = 10_000
READ_BYTES = 1 << 20


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, with which file of which item; both empty when it is the archive as a whole."""

    item: str
    path: str
    what: str


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify_archive` found. `more` counts problems beyond those listed; `fine` when there are none.

    `index`: whether the index beside the archive was there, and compared.
    """

    archive: str
    fine: bool
    index: bool
    state: str
    items: int
    failed: int
    files: int
    bytes: int
    size: int
    sha256: str
    problems: list[Problem]
    more: int


class _Problems:
    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.more = 0

    def add(self, what: str, item: str = "", path: str = "") -> None:
        if len(self.kept) < KEPT_PROBLEMS:
            self.kept.append(Problem(item, path, what))
        else:
            self.more += 1


class _Index(NamedTuple):
    """The lines to verify by: `lines` begins anew at each call; `beside` is the head of the index beside."""

    lines: Callable[[], Iterator[Line]]
    head: ArchiveLine
    tail: Tail | None
    beside: ArchiveLine | None


def verify_archive(
    path: str | Path, *, workers: int = 0, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> VerifyResult:
    """Check every byte of an archive; what is wrong is listed, and does not keep the rest from being checked.

    Checked are the SHA-256 of the whole (against the index beside it, if there is one), of every frame and of every
    file, every block by decoding it, every tar header and padding, the catalogue against the index beside, and that
    nothing else lies between, behind or before. `on_progress` is told (bytes read, bytes in all).

    Parameters
    ----------
    workers
        Blocks decoded at a time; 0: as many as there are processors.

    Raises
    ------
    UsageError
        No such archive.
    ConfigError
        It has no structure to check against: cut short, its end damaged, or no medhaul archive.
    """
    source = open_source(path)
    try:
        problems = _Problems()
        index = _read_index(source, Path(path), problems)
        audit = _Audit(source, index, problems, workers or len(os.sched_getaffinity(0)), on_progress)
        sha256 = audit.run()
    finally:
        source.close()
    return VerifyResult(
        archive=source.name,
        fine=not problems.kept,
        index=index.beside is not None,
        state=index.beside.state if index.beside else "",
        items=index.head.items,
        failed=index.head.failed,
        files=index.head.files,
        bytes=index.head.bytes,
        size=source.size,
        sha256=sha256,
        problems=problems.kept,
        more=problems.more,
    )


class _Guarded:
    """Lines up to the first that cannot be had; `error` is then why, `head` the first, `counts` of them all."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.head: ArchiveLine | None = None
        self.counts = LineCounter()
        self.frames_end = HEADER_BYTES
        self.tar_bytes = 0
        self.error: ConfigError | None = None

    def __iter__(self) -> Iterator[Line]:
        try:
            for line in self._lines:
                if isinstance(line, ArchiveLine):
                    self.head = line
                elif isinstance(line, FrameLine):
                    self.frames_end += line.length
                    self.tar_bytes += line.tar_bytes
                self.counts.add(line)
                yield line
        except ConfigError as error:
            self.error = error


def _read_index(source: Source, path: Path, problems: _Problems) -> _Index:
    """Read catalogue and index beside in step, compare them, and choose the one to verify by: a whole one."""
    tail = None
    own = _Guarded(iter(()))
    try:
        tail = read_tail(source)
        own = _Guarded(catalogue_lines(source, tail))
    except ConfigError as caught:
        own.error = caught
    beside_path = index_beside(path)
    have_beside = isinstance(source, LocalSource) and beside_path.is_file()
    beside = _Guarded(index_lines(beside_path) if have_beside else iter(()))
    differs = sum(a != (b and content_only(b)) for a, b in zip_longest(own, beside))  # takes both to their ends
    if own.error is None and own.head is not None:
        chosen, head = own, own.head
        if have_beside and beside.error is not None:
            problems.add(str(beside.error))
        elif have_beside and differs:
            problems.add("the index beside the archive does not say what the catalogue in it says")
    else:
        error = own.error or ConfigError(f"{source.name}: its catalogue is empty")
        if beside.head is not None and beside.head.size != source.size:
            said = f"{error}; it has {source.size} bytes, the index beside it says {beside.head.size}"
            raise ConfigError(said, hint=error.hint)
        if beside.error is not None or beside.head is None or not beside.head.state:
            raise error
        problems.add(str(error))
        chosen, head = beside, beside.head
    if tail is not None and chosen.frames_end != tail.catalogue_offset:
        raise ConfigError(
            f"{source.name}: frames end at byte {chosen.frames_end}, the catalogue begins at {tail.catalogue_offset}",
            hint="medhaul wrote no such archive",
        )
    _compare_counts(head, chosen, problems)

    def lines() -> Iterator[Line]:
        return index_lines(beside_path) if chosen is beside or tail is None else catalogue_lines(source, tail)

    return _Index(lines, head, tail, None if beside.error else beside.head)


def _compare_counts(head: ArchiveLine, read: _Guarded, problems: _Problems) -> None:
    counts = read.counts
    for name, found in (
        ("items", counts.items),
        ("failed", counts.failed),
        ("files", counts.files),
        ("bytes", counts.bytes),
        ("tar_bytes", read.tar_bytes),
    ):
        if getattr(head, name) != found:
            problems.add(f"the head of the index says {getattr(head, name)} {name}, its lines add up to {found}")


class _Audit:
    """The one pass over the archive's bytes."""

    def __init__(
        self,
        source: Source,
        index: _Index,
        problems: _Problems,
        workers: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._source = source
        self._index = index
        self._problems = problems
        self._workers = workers
        self._on_progress = on_progress
        self._whole = hashlib.sha256()
        self._frame = hashlib.sha256()
        self._read_bytes = 0
        self._blocks = array("Q")

    def run(self) -> str:
        """Read and check everything; return the SHA-256 of the archive."""
        with (
            opened(self._source, 0, self._source.size) as stretch,
            ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as pool,
            ThreadPoolExecutor(2, thread_name_prefix="hash") as hashing,
        ):
            reader = _HashedRange(stretch, hashing, self._whole)
            self._reader = reader
            if self._read(HEADER_BYTES) != stream_header():
                self._problems.add("the stream header at its beginning is damaged")
            with closing(decode_blocks(self._read, self._block_sizes(), pool, self._workers)) as pieces:
                self._check_files(TarStream(pieces, 0))
                assert next(pieces, None) is None  # the files fill the frames; this ends the last frame
            self._check_tail()
            reader.wait()
        sha256 = self._whole.hexdigest()
        beside = self._index.beside
        if beside is not None and (beside.sha256, beside.size) != (sha256, self._source.size):
            self._problems.add("its size or SHA-256 is not that in the index beside it")
        return sha256

    def _read(self, count: int) -> bytes:
        data = self._reader.read(count)
        self._read_bytes += count
        self._on_progress(self._read_bytes, self._source.size)
        return data

    def _block_sizes(self) -> Iterator[BlockSize]:
        """Yield the blocks of all frames; between them, judge the compressed bytes of the frame just read."""
        for line in self._index.lines():
            if not isinstance(line, FrameLine):
                continue
            self._reader.begin_frame()
            for block in line.blocks:
                self._blocks.extend(block)
                yield BlockSize(*block)
            if self._reader.end_frame() != line.sha256:
                self._problems.add(f"frame {line.frame} has not the SHA-256 in the index")

    def _check_files(self, stream: TarStream) -> None:
        item: ItemLine | None = None
        for line in self._index.lines():
            if isinstance(line, ItemLine):
                item = line
            elif isinstance(line, FileLine):
                assert item is not None  # check_lines has seen to it
                path = member_path(item, line)
                if problem := check_member(stream, path, line):
                    self._problems.add(problem, item.id, path)

    def _check_tail(self) -> None:
        tail = self._index.tail
        if tail is None:  # a problem already: the rest is read for the SHA-256 of the whole
            left = self._source.size - self._read_bytes
            while left:
                left -= len(self._read(min(READ_BYTES, left)))
            return
        left = tail.catalogue.total  # its content was checked when it was read as the index
        while left:
            left -= len(self._read(min(READ_BYTES, left)))
        if self._read(tail.end.total) != stored_end():
            self._problems.add("the end-of-archive block is damaged")
        self._blocks.extend((*tail.catalogue, *tail.end))
        pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
        expected = stream_tail((BlockSize(*pair) for pair in pairs), len(self._blocks) // 2)
        if self._read(self._source.size - self._read_bytes) != expected:
            self._problems.add("the xz index does not list the blocks that are there")


class _HashedRange:
    """Reads a range and hashes what was read in other threads: of all of it, and of one frame at a time."""

    def __init__(self, stretch: Range, pool: ThreadPoolExecutor, whole: hashlib._Hash) -> None:
        self._stretch = stretch
        self._pool = pool
        self._whole = whole
        self._frame = hashlib.sha256()
        self._hashing: list[Future[None]] = []

    def read(self, count: int) -> bytes:
        data = self._stretch.read(count)
        self.wait()
        self._hashing = [self._pool.submit(digest.update, data) for digest in (self._whole, self._frame)]
        return data

    def wait(self) -> None:
        """Until all that was read is hashed."""
        for future in self._hashing:
            future.result()

    def begin_frame(self) -> None:
        self.wait()
        self._hashing = []
        self._frame = hashlib.sha256()

    def end_frame(self) -> str:
        """SHA-256 of what was read since `begin_frame`."""
        self.wait()
        return self._frame.hexdigest()


def stored_end() -> bytes:
    """The end-of-archive block, which is the same in every archive. Pure."""
    out = BytesIO()
    write_stored_block(out, [BytesIO(END_OF_ARCHIVE)], len(END_OF_ARCHIVE))
    return out.getvalue()


def check_member(stream: TarStream, path: str, file: FileLine) -> str:
    """Take one member off the stream; return what is wrong with it, empty when nothing is."""
    header = member_header(path, file.size)
    end = file.offset + file.size + member_padding(file.size)
    problem = ""
    if stream.position + len(header) != file.offset:
        problem = "its tar header is not of the length that its path asks for"
        stream.skip_to(file.offset)
    elif (found := _take(stream, len(header))) != header:
        problem = "its tar header is damaged" if found is not None else _UNDECODED
    digest = hashlib.sha256()
    for piece in stream.take(file.size):
        if piece is None:
            problem = problem or _UNDECODED
        else:
            digest.update(piece)
    if not problem and digest.hexdigest() != file.sha256:
        problem = "its SHA-256 is not the one in the index"
    padding = _take(stream, end - stream.position)
    if padding is None or any(padding):
        problem = problem or (_UNDECODED if padding is None else "the padding behind it is not zero")
    return problem


_UNDECODED = "a block that holds it does not decode"


def _take(stream: TarStream, count: int) -> bytes | None:
    pieces = list(stream.take(count))
    return None if None in pieces else b"".join(piece for piece in pieces if piece is not None)
