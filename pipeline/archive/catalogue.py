"""The end of an archive: footer, xz index, and the catalogue that lies before them, in three reads."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.archive.blocks import STORED_CHUNK
from pipeline.archive.chains import FILTERS, filter_flags
from pipeline.archive.index import ArchiveLine, Line, catalogue_path, read_lines
from pipeline.archive.lines import check_lines
from pipeline.archive.source import Range, Source, opened, read_at
from pipeline.archive.tar import BLOCK, END_OF_ARCHIVE, member_header, member_padding
from pipeline.archive.xz import (
    CHECK_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    BlockSize,
    XzFormatError,
    block_header,
    iter_index,
    padded,
    parse_footer,
)
from pipeline.errors import ConfigError

# 16 million blocks: 64 TB of tar at 4 MiB a block.
MAX_INDEX_BYTES = 128 << 20
MAX_PAX_BYTES = 1 << 16
BUFFER_BYTES = 1 << 17
HINT = "is it whole, and made by medhaul? Compare its size and SHA-256 with SHA256SUMS, or copy it again"


class Tail(NamedTuple):
    """What ends an archive: the xz index, and where the catalogue's block and the end-of-archive block begin."""

    xz_index: bytes
    index_offset: int
    catalogue: BlockSize
    catalogue_offset: int
    end: BlockSize
    end_offset: int


def read_tail(source: Source) -> Tail:
    """Read footer and xz index. Raises `ConfigError` when they are not those of a whole archive."""
    try:
        if source.size < HEADER_BYTES + FOOTER_BYTES:
            raise XzFormatError("too short for an archive")
        index_bytes = parse_footer(read_at(source, source.size - FOOTER_BYTES, FOOTER_BYTES))
        index_offset = source.size - FOOTER_BYTES - index_bytes
        if index_bytes > MAX_INDEX_BYTES or index_offset < HEADER_BYTES:
            raise XzFormatError("the xz index cannot be as long as the footer says")
        index = read_at(source, index_offset, index_bytes)
        total = HEADER_BYTES
        last = (BlockSize(0, 0), BlockSize(0, 0))
        for size in iter_index(index):
            total += size.total
            last = (last[1], size)
    except XzFormatError as error:
        raise ConfigError(f"{source.name}: {error}", hint=HINT) from None
    catalogue, end = last
    if total != index_offset or end != stored_size(len(END_OF_ARCHIVE)) or catalogue.uncompressed == 0:
        raise ConfigError(f"{source.name}: bytes are missing, or it is not a medhaul archive", hint=HINT)
    end_offset = index_offset - end.total
    return Tail(index, index_offset, catalogue, end_offset - catalogue.total, end, end_offset)


def stored_size(content: int) -> BlockSize:
    """Size of a stored block of `content` bytes. Pure."""
    body = content + 3 * -(-content // STORED_CHUNK) + 1
    return BlockSize(len(_stored_header(body, content)) + body + CHECK_BYTES, content)


def _stored_header(body: int, content: int) -> bytes:
    return block_header(body, content, filter_flags("S"), len(FILTERS["S"]))


def catalogue_lines(source: Source, tail: Tail) -> Iterator[Line]:
    """Yield the checked lines of the catalogue inside the archive, in bounded memory.

    Read to their end, every byte of the catalogue's block has proved right.

    Raises
    ------
    ConfigError
        When the block, the tar member in it or its lines are not what they must be.
    """
    name = f"{source.name} (catalogue)"
    with opened(source, tail.catalogue_offset, tail.catalogue.total) as stretch:
        block: BinaryIO = io.BufferedReader(StoredBlock(stretch, tail.catalogue, name), BUFFER_BYTES)
        path, size = _read_member(block, name)
        content: BinaryIO = io.BufferedReader(_First(block, size), BUFFER_BYTES)
        for line in check_lines(read_lines(content, name), name):
            if isinstance(line, ArchiveLine) and path != catalogue_path(line.name):
                raise ConfigError(f"{name}: of another archive: its member is {path!r}", hint=HINT)
            yield line
        if content.read(1) or any(block.read(member_padding(size))) or block.read(1):
            raise ConfigError(f"{name}: bytes stand behind the index", hint=HINT)


def _read_member(block: BinaryIO, name: str) -> tuple[str, int]:
    """Read the header of the one regular member of `block`; return its path and size."""
    problem = ConfigError(f"{name}: the last block holds no catalogue", hint=HINT)
    header = block.read(BLOCK)
    path = ""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        if info.type == tarfile.XHDTYPE:
            if info.size > MAX_PAX_BYTES:
                raise problem
            records = block.read(info.size + member_padding(info.size))
            match = re.search(rb"\d+ path=([^\n]*)\n", records)
            path = match[1].decode() if match else ""
            main = block.read(BLOCK)
            header += records + main
            info = tarfile.TarInfo.frombuf(main, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        raise problem from None
    path = path or info.name
    if info.size < 0 or "\0" in path or header != member_header(path, info.size):
        raise problem
    return path, info.size


class StoredBlock(io.RawIOBase):
    """The content of one stored block, read as a stream; any byte that is not what the writer writes is an error.

    Parameters
    ----------
    stretch
        The block's bytes.
    size
        As the xz index lists it.
    name
        For messages. Every read may raise `ConfigError`.
    """

    def __init__(self, stretch: Range, size: BlockSize, name: str) -> None:
        super().__init__()
        self._stretch = stretch
        self._name = name
        self._left = size.uncompressed
        self._body = size.uncompressed + 3 * -(-size.uncompressed // STORED_CHUNK) + 1
        self._digest = hashlib.sha256()
        self._chunk = memoryview(b"")
        self._control = 1
        header = _stored_header(self._body, size.uncompressed)
        self._require(size == stored_size(size.uncompressed) and stretch.read(len(header)) == header)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        if not self._chunk and self._left:
            self._next_chunk()
        data = self._chunk[: len(buffer)]
        buffer[: len(data)] = data
        self._chunk = self._chunk[len(data) :]
        return len(data)

    def _next_chunk(self) -> None:
        count = min(STORED_CHUNK, self._left)
        self._left -= count
        rest = 0 if self._left else 1 + padded(self._body) - self._body + CHECK_BYTES
        data = self._stretch.read(3 + count + rest)
        self._require(data[:3] == struct.pack(">BH", self._control, count - 1))
        self._control = 2
        self._chunk = memoryview(data)[3 : 3 + count]
        self._digest.update(self._chunk)
        if rest:
            self._require(data[3 + count :] == bytes(rest - CHECK_BYTES) + self._digest.digest())

    def _require(self, condition: bool) -> None:
        if not condition:
            raise ConfigError(f"{self._name}: damaged", hint=HINT)


class _First(io.RawIOBase):
    """The first `left` bytes of a stream; ends early only where the stream does."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
