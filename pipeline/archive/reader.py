"""Read an archive without unpacking it: its lines, and single files by one ranged read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.archive.catalogue import catalogue_lines, read_tail
from pipeline.archive.decode import FrameLayout, TarStream, decode_blocks
from pipeline.archive.index import ArchiveLine, FailedLine, FileLine, FrameLine, ItemLine, Line, read_lines
from pipeline.archive.lines import check_lines
from pipeline.archive.source import LocalSource, open_source, opened
from pipeline.errors import ConfigError

INDEX_SUFFIX = ".index.jsonl.zst"


class DamagedFileError(Exception):
    """A file in the archive is not what the index says: str() says how."""


class ArchiveReader:
    """An archive at a local path or an http(s) URL.

    Parameters
    ----------
    path
        The archive.
    index
        Its index; without one, the index beside a local archive where it belongs to it, else the catalogue inside.
    workers
        Blocks decoded at a time; 0: as many as there are processors.

    Raises
    ------
    UsageError
        No such archive.
    ConfigError
        It cannot be read, or `index` is of another archive.
    """

    def __init__(self, path: str | Path, index: Path | None = None, *, workers: int = 0) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self.source = open_source(path)
        try:
            self._index = self._choose_index(Path(path), index)
            self._tail = None if self._index else read_tail(self.source)
            self._head = self._read_head()
        except BaseException:
            self.source.close()
            raise
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        self._layout: tuple[FrameLine, FrameLayout] | None = None

    @property
    def name(self) -> str:
        """Of the archive, for messages."""
        return self.source.name

    @property
    def index(self) -> Path | None:
        """The file whose lines are read; None when they are the catalogue's."""
        return self._index

    def header(self) -> ArchiveLine:
        """The first line of the index."""
        return self._head

    def lines(self) -> Iterator[Line]:
        """Yield the lines of the index, checked against each other. Raises `ConfigError`."""
        if self._index is not None:
            return index_lines(self._index)
        assert self._tail is not None
        return catalogue_lines(self.source, self._tail)

    def items(self) -> Iterator[tuple[FrameLine, ItemLine, Iterator[FileLine]]]:
        """Yield the items, or pieces of items, in archive order, each with its frame and its files.

        The files are to be taken before the next item is asked for; those not taken are passed over.
        """
        lines = self.lines()
        pushed: list[Line] = []

        def files() -> Iterator[FileLine]:
            for line in lines:
                if not isinstance(line, FileLine):
                    pushed.append(line)
                    return
                yield line

        frame: FrameLine | None = None
        while (line := pushed.pop() if pushed else next(lines, None)) is not None:
            if isinstance(line, FrameLine):
                frame = line
            elif isinstance(line, ItemLine):
                assert frame is not None  # check_lines has seen to it
                group = files()
                yield frame, line, group
                for _ in group:
                    pass

    def failed(self) -> Iterator[FailedLine]:
        """Yield the items of the manifest that are not in the archive."""
        return (line for line in self.lines() if isinstance(line, FailedLine))

    def read_files(
        self, frame: FrameLine, files: Sequence[FileLine]
    ) -> Iterator[tuple[FileLine, Iterator[memoryview]]]:
        """Yield files of one frame, in the order of their offsets, each with its content in pieces.

        Files whose blocks touch come by one read. A file's last piece comes only after the whole has proved to have
        its SHA-256; in place of it, the pieces of a file that has not raise `DamagedFileError`, and the next
        file can still be asked for. Memory is bounded, whatever the sizes.
        """
        layout = self._frame_layout(frame)
        for blocks, group in layout.plan_reads(files):
            if blocks.length == 0:
                for file in group:
                    yield file, _checked_content(TarStream(iter(()), file.offset), file)
                continue
            with opened(self.source, blocks.offset, blocks.length) as stretch:
                sizes = layout.sizes[blocks.first : blocks.last]
                stream = TarStream(decode_blocks(stretch.read, sizes, self._pool, self.workers), blocks.tar_offset)
                for file in group:
                    if file.size:
                        stream.skip_to(file.offset)
                    yield file, _checked_content(stream, file)

    def read_file(self, frame: FrameLine, file: FileLine) -> Iterator[memoryview]:
        """Yield one file's content in pieces; see `read_files`."""
        for _, content in self.read_files(frame, [file]):
            yield from content

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _frame_layout(self, frame: FrameLine) -> FrameLayout:
        if self._layout is None or self._layout[0] is not frame:
            self._layout = (frame, FrameLayout(frame))
        return self._layout[1]

    def _choose_index(self, path: Path, index: Path | None) -> Path | None:
        if index is not None:
            head = read_head(index)
            if not belongs(head, self.source.size):
                raise ConfigError(
                    f"{index}: of an archive of {head.size} bytes, but {self.name} has {self.source.size}",
                    hint="name the index of this archive, or none: the archive holds its own",
                )
            return index
        if not isinstance(self.source, LocalSource):
            return None
        beside = index_beside(path)
        try:
            return beside if beside.is_file() and belongs(read_head(beside), self.source.size) else None
        except ConfigError:
            return None  # the archive's own catalogue serves as well

    def _read_head(self) -> ArchiveLine:
        head = next(self.lines())
        assert isinstance(head, ArchiveLine)  # read_lines has seen to it
        return head


def index_beside(path: Path) -> Path:
    """Path of the index beside an archive."""
    return path.with_name(path.name + INDEX_SUFFIX)


def belongs(head: ArchiveLine, size: int) -> bool:
    """Whether an index with this head can be the one beside an archive of `size` bytes. Pure."""
    return bool(head.state) and head.size == size


def index_lines(path: Path) -> Iterator[Line]:
    """Yield the checked lines of an index file. Raises `ConfigError`."""
    try:
        with open(path, "rb") as file:
            yield from check_lines(read_lines(file, str(path)), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="check the file's name and rights") from None


def read_head(path: Path) -> ArchiveLine:
    """The first line of an index file. Raises `ConfigError`."""
    head = next(index_lines(path))
    assert isinstance(head, ArchiveLine)  # read_lines has seen to it
    return head


def _checked_content(stream: TarStream, file: FileLine) -> Iterator[memoryview]:
    """Yield a file's content, the last piece only once the whole has its SHA-256."""
    digest = hashlib.sha256()
    left = file.size
    for piece in stream.take(file.size):
        if piece is None:
            raise DamagedFileError("the archive is damaged there: a block does not decode")
        left -= len(piece)
        digest.update(piece)
        if left == 0 and digest.hexdigest() != file.sha256:
            break
        yield piece
    if digest.hexdigest() != file.sha256:
        raise DamagedFileError("its SHA-256 is not the one in the index")
