"""Tar bytes out of blocks: which blocks hold a range (pure), decoding many at a time, and walking the result."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import accumulate
from typing import NamedTuple

from pipeline.archive.blocks import decode_block
from pipeline.archive.index import FileLine, FrameLine
from pipeline.archive.xz import BlockSize, XzFormatError

# Bytes, packed and unpacked, of blocks that are read ahead of their use; one block may exceed it alone.
IN_FLIGHT_BYTES = 64 << 20


class Piece(NamedTuple):
    """`length` bytes of tar; `data` is None where their block is damaged."""

    length: int
    data: bytes | None


class BlockRange(NamedTuple):
    """Blocks `first` to `last` (excluded) of a frame: where they lie in the archive and where their tar begins."""

    first: int
    last: int
    offset: int
    length: int
    tar_offset: int


class FrameLayout:
    """Where each block of a frame begins, in the archive and in the tar."""

    def __init__(self, frame: FrameLine) -> None:
        self.sizes = [BlockSize(*block) for block in frame.blocks]
        self._offsets = list(accumulate((size.total for size in self.sizes), initial=frame.offset))
        self._tar = list(accumulate((size.uncompressed for size in self.sizes), initial=frame.tar_offset))

    def cover(self, start: int, end: int) -> BlockRange:
        """The fewest blocks that hold the tar bytes `start` to `end` (excluded), which lie in the frame."""
        if not self._tar[0] <= start <= end <= self._tar[-1]:
            raise ValueError("outside the frame")
        first = bisect_right(self._tar, start) - 1
        last = first if start == end else bisect_right(self._tar, end - 1)
        return self._range(first, last)

    def _range(self, first: int, last: int) -> BlockRange:
        offset = self._offsets[first]
        return BlockRange(first, last, offset, self._offsets[last] - offset, self._tar[first])

    def plan_reads(self, files: Sequence[FileLine]) -> list[tuple[BlockRange, list[FileLine]]]:
        """Group files, in the order of their offsets, by the contiguous reads that bring them. Pure.

        Files whose blocks touch share one read; no block is read that holds nothing of them.
        """
        plan: list[tuple[BlockRange, list[FileLine]]] = []
        for file in files:
            blocks = self.cover(file.offset, file.offset + file.size)
            if plan and (blocks.first == blocks.last or blocks.first <= plan[-1][0].last):
                before, group = plan[-1]
                group.append(file)
                plan[-1] = (self._range(before.first, max(before.last, blocks.last)), group)
            else:
                plan.append((blocks, [file]))
        return plan


def decode_blocks(
    read: Callable[[int], bytes], sizes: Iterable[BlockSize], pool: Executor, workers: int
) -> Generator[Piece, None, None]:
    """Yield the content of consecutive blocks in order, decoding `workers` at a time in bounded memory.

    `read` returns the next n bytes; it is called from this thread only.
    """
    waiting: deque[tuple[BlockSize, Future[bytes]]] = deque()
    held = 0
    try:
        for size in sizes:
            cost = size.total + size.uncompressed
            while waiting and (held + cost > IN_FLIGHT_BYTES or len(waiting) >= 2 * workers):
                held -= waiting[0][0].total + waiting[0][0].uncompressed
                yield _piece(*waiting.popleft())
            waiting.append((size, pool.submit(decode_block, read(size.total), size)))
            held += cost
        while waiting:
            yield _piece(*waiting.popleft())
    finally:
        for _, future in waiting:
            future.cancel()


def _piece(size: BlockSize, future: Future[bytes]) -> Piece:
    try:
        return Piece(size.uncompressed, future.result())
    except XzFormatError:
        return Piece(size.uncompressed, None)


class TarStream:
    """A walk over decoded pieces, forward only; `position` is the offset in the archive's tar."""

    def __init__(self, pieces: Iterator[Piece], position: int) -> None:
        self._pieces = pieces
        self._rest = Piece(0, b"")
        self._used = 0
        self.position = position

    def take(self, count: int) -> Iterator[memoryview | None]:
        """Yield the next `count` bytes in pieces; None stands for a stretch of them that is damaged."""
        while count:
            while self._used == self._rest.length:
                self._rest, self._used = next(self._pieces), 0
            length = min(count, self._rest.length - self._used)
            data = self._rest.data
            piece = None if data is None else memoryview(data)[self._used : self._used + length]
            self._used += length
            self.position += length
            count -= length
            yield piece

    def skip_to(self, position: int) -> None:
        """Go forward to `position`."""
        for _ in self.take(position - self.position):
            pass
