"""Write an archive from compressed frames: a copy, never a recompression."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import BinaryIO

from pipeline.archive.blocks import Sink, write_stored_block
from pipeline.archive.index import catalogue_path
from pipeline.archive.tar import END_OF_ARCHIVE, member_header, member_padding
from pipeline.archive.xz import BlockSize, XzFormatError, stream_header, stream_tail

COPY_BYTES = 8 << 20


class ArchiveWriter:
    """Writes one archive to a binary file: stream header, frames, catalogue, end of archive, xz index, footer.

    Attributes
    ----------
    size
        Bytes written so far.
    tar_bytes
        Bytes of tar so far.
    """

    def __init__(self, out: Sink) -> None:
        self._out = _HashingFile(out)
        self._blocks = array("Q")
        self.tar_bytes = 0
        self._out.write(stream_header())

    @property
    def size(self) -> int:
        return self._out.size

    @property
    def sha256(self) -> str:
        """Of all bytes written so far."""
        return self._out.digest.hexdigest()

    def copy_frame(self, part: int, offset: int, length: int, sha256: str, blocks: Iterable[tuple[int, int]]) -> int:
        """Append a frame's blocks from the open file descriptor `part`; return where they begin in the archive.

        Raises
        ------
        XzFormatError
            When the bytes are not those with that SHA-256, or the blocks do not add up to them.
        """
        sizes = [BlockSize(*block) for block in blocks]
        if sum(size.total for size in sizes) != length:
            raise XzFormatError("the blocks' sizes do not add up to the frame's length")
        begin = self._out.size
        if self._out.copy(part, offset, length) != sha256:
            raise XzFormatError("the frame's bytes do not have the SHA-256 of its record")
        for size in sizes:
            self._add(size)
        return begin

    def finish(self, name: str, catalogue: BinaryIO, catalogue_size: int) -> None:
        """Append the catalogue member, the end of archive, the xz index and the footer."""
        header = member_header(catalogue_path(name), catalogue_size)
        padding = bytes(member_padding(catalogue_size))
        total = len(header) + catalogue_size + len(padding)
        self._add(write_stored_block(self._out, [BytesIO(header), catalogue, BytesIO(padding)], total))
        # Stored, so that it is the same bytes whatever liblzma, and any change of a byte shows.
        self._add(write_stored_block(self._out, [BytesIO(END_OF_ARCHIVE)], len(END_OF_ARCHIVE)))
        self._out.write(stream_tail(self._block_sizes(), len(self._blocks) // 2))

    def _add(self, size: BlockSize) -> None:
        self._blocks.extend(size)
        self.tar_bytes += size.uncompressed

    def _block_sizes(self) -> Iterator[BlockSize]:
        for position in range(0, len(self._blocks), 2):
            yield BlockSize(self._blocks[position], self._blocks[position + 1])


class _HashingFile:
    """Counts and hashes what is written through it."""

    def __init__(self, out: Sink) -> None:
        self._target = out
        self.size = 0
        self.digest = hashlib.sha256()
        # Hashing releases the interpreter lock: two digests and the write go on side by side.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="hash")

    def write(self, data: bytes | memoryview, /) -> int:
        self.digest.update(data)
        self._target.write(data)
        self.size += len(data)
        return len(data)

    def copy(self, source: int, offset: int, length: int) -> str:
        """Append `length` bytes of descriptor `source` from `offset`; return their SHA-256."""
        digest = hashlib.sha256()
        while length:
            data = os.pread(source, min(COPY_BYTES, length), offset)
            if not data:
                raise XzFormatError("the part is shorter than its record says")
            hashing = [self._pool.submit(digest.update, data), self._pool.submit(self.digest.update, data)]
            self._target.write(data)
            for future in hashing:
                future.result()
            self.size += len(data)
            offset += len(data)
            length -= len(data)
        return digest.hexdigest()
