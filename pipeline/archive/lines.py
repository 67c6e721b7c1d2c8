"""Index lines that agree with each other: nothing else in the reading side need distrust an index. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.archive.index import ArchiveLine, FailedLine, FileLine, FrameLine, ItemLine, Line
from pipeline.archive.tar import BLOCK, join_path, member_padding
from pipeline.archive.xz import CHECK_BYTES, HEADER_BYTES, padded
from pipeline.errors import ConfigError

MAX_BLOCK_BYTES = 64 << 20
# A block takes members until it has reached block_bytes, and a member above twice that is cut: so three times.
BLOCKS_IN_A_BLOCK = 3
HINT = "the index was damaged or made by other software; `medhaul verify` the archive"


def check_lines(lines: Iterable[Line], name: str) -> Iterator[Line]:
    """Yield the lines of an index unchanged, each once it is known to fit those before it.

    Frames lie one behind the other, in the archive and in the tar; blocks have sizes that decode in bounded memory; the
    files of a frame lie one behind the other and fill it; items have the files that they say.

    Raises
    ------
    ConfigError
        At the first line that does not fit; `name` is named.
    """
    checker = _Checker()
    for line in lines:
        if problem := checker.add(line):
            raise ConfigError(f"{name}: the index contradicts itself: {problem}", hint=HINT)
        yield line
    if problem := checker.end():
        raise ConfigError(f"{name}: the index contradicts itself: {problem}", hint=HINT)


def member_path(item: ItemLine, file: FileLine) -> str:
    """Path of a file in the archive."""
    return join_path(item.path, file.name)


class LineCounter:
    """Counts as the head of an index does: `items` archived or failed, those of them `failed`, files and bytes."""

    def __init__(self) -> None:
        self.items = self.failed = self.files = self.bytes = 0

    def add(self, line: Line) -> None:
        """Count a line; the pieces of a cut item count as one item."""
        if isinstance(line, FileLine):
            self.files += 1
            self.bytes += line.size
        elif isinstance(line, FailedLine):
            self.failed += 1
            self.items += 1
        elif isinstance(line, ItemLine):
            self.items += line.piece == 0


class _Checker:
    def __init__(self) -> None:
        self._head: ArchiveLine | None = None
        self._frame: FrameLine | None = None
        self._item: ItemLine | None = None
        self._next_piece: tuple[str, int, int] | None = None  # id, piece, pieces of what a cut item still lacks
        self._files_left = 0
        self._bytes_left = 0
        self._end = HEADER_BYTES  # of the frames so far, in the archive
        self._tar_end = 0  # of the frames so far, in the tar
        self._cursor = 0  # end of the files so far, in the tar

    def add(self, line: Line) -> str:
        """Return what is wrong with the line; empty when it fits."""
        if isinstance(line, FileLine):
            return self._add_file(line)
        if problem := self._end_item():
            return problem
        if isinstance(line, ArchiveLine):
            problem = "it has two heads" if self._head else ""
            if not 1 <= line.block_bytes <= MAX_BLOCK_BYTES:
                problem = f"block_bytes is {line.block_bytes}"
            self._head = line
            return problem
        if isinstance(line, FrameLine):
            return self._end_frame() or self._add_frame(line)
        if isinstance(line, ItemLine):
            return self._add_item(line)
        return ""

    def _add_frame(self, line: FrameLine) -> str:
        assert self._head is not None  # read_lines yields the head first
        name = f"frame {line.frame}"
        if self._frame is not None and line.frame <= self._frame.frame:
            return f"{name} comes after frame {self._frame.frame}"
        if (line.offset, line.tar_offset) != (self._end, self._tar_end):
            return f"{name} does not begin where the one before ends"
        limit = BLOCKS_IN_A_BLOCK * self._head.block_bytes
        for unpadded, uncompressed in line.blocks:
            # The writer stores what does not compress, which adds 3 bytes per 64 KiB and a header of some 20 bytes.
            if not 0 < uncompressed <= limit or not CHECK_BYTES < unpadded <= uncompressed + uncompressed // 4096 + 128:
                return f"{name} has a block of impossible size"
        if sum(padded(block[0]) for block in line.blocks) != line.length:
            return f"the blocks of {name} do not add up to its length"
        if sum(block[1] for block in line.blocks) != line.tar_bytes:
            return f"the blocks of {name} do not add up to its tar bytes"
        self._frame = line
        self._end += line.length
        self._cursor = self._tar_end
        self._tar_end += line.tar_bytes
        return ""

    def _add_item(self, line: ItemLine) -> str:
        if self._frame is None:
            return f"item {line.id!r} lies in no frame"
        if line.files < 0 or line.bytes < 0 or not 0 <= line.piece < line.pieces:
            return f"item {line.id!r} has impossible counts"
        if (line.id, line.piece, line.pieces) != (self._next_piece or (line.id, 0, line.pieces)):
            return f"item {line.id!r} stands where another piece of a cut item should"
        self._next_piece = (line.id, line.piece + 1, line.pieces) if line.piece + 1 < line.pieces else None
        self._item = line
        self._files_left = line.files
        self._bytes_left = line.bytes
        return ""

    def _add_file(self, line: FileLine) -> str:
        if self._item is None:
            return f"file {line.name!r} belongs to no item"
        if not line.name or "/" in line.name or "\0" in line.name + self._item.path:
            return f"file {line.name!r} has an impossible name"
        header = line.offset - self._cursor
        end = line.offset + line.size + member_padding(line.size)
        if line.size < 0 or header < BLOCK or header % BLOCK or end > self._tar_end:
            return f"file {line.name!r} does not lie behind the one before it in its frame"
        self._cursor = end
        self._files_left -= 1
        self._bytes_left -= line.size
        return ""

    def _end_item(self) -> str:
        item, self._item = self._item, None
        if item is not None and (self._files_left, self._bytes_left) != (0, 0):
            return f"item {item.id!r} has not the files and bytes that it says"
        return ""

    def end(self) -> str:
        """Return what is wrong with the end of the index; empty when it is whole."""
        if self._next_piece is not None:
            return f"item {self._next_piece[0]!r} lacks a piece"
        return self._end_frame()

    def _end_frame(self) -> str:
        if problem := self._end_item():
            return problem
        if self._frame is not None and self._cursor != self._tar_end:
            return f"frame {self._frame.frame} is not filled by its files"
        return ""
