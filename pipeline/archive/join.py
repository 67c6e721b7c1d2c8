"""Write an archive from compressed frames: the kernel copies, nothing is recompressed; then read it back and check."""

from __future__ import annotations

import errno
import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import BinaryIO, NamedTuple

from pipeline.archive.blocks import write_stored_block
from pipeline.archive.index import catalogue_path
from pipeline.archive.tar import END_OF_ARCHIVE, member_header, member_padding
from pipeline.archive.xz import BlockSize, XzFormatError, stream_header, stream_tail

COPY_BYTES = 8 << 20
# Between file systems, or on those that cannot: the next way is tried.
_NOT_THIS_WAY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


class CopiedFrame(NamedTuple):
    """A frame in the archive: `length` bytes at `offset`, which must have this SHA-256."""

    offset: int
    length: int
    sha256: str


class ArchiveWriter:
    """Writes one archive to a file: stream header, frames, catalogue, end of archive, xz index, footer.

    Frames are copied unread, by the kernel; `read_back` then proves all of the archive at once.

    Attributes
    ----------
    size
        Bytes written so far.
    tar_bytes
        Bytes of tar so far.
    frames
        The frames copied so far.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._descriptor = out.fileno()
        self._blocks = array("Q")
        self.size = 0
        self.tar_bytes = 0
        self.frames: list[CopiedFrame] = []
        self.write(stream_header())

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes, all of them."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.size += len(data)
        return len(data)

    def copy_frame(self, part: int, offset: int, length: int, sha256: str, blocks: Iterable[tuple[int, int]]) -> int:
        """Append a frame's blocks from the open file descriptor `part`; return where they begin in the archive.

        Raises
        ------
        XzFormatError
            When the blocks do not add up to the frame, or the part ends before it does.
        """
        sizes = [BlockSize(*block) for block in blocks]
        if sum(size.total for size in sizes) != length:
            raise XzFormatError("the blocks' sizes do not add up to the frame's length")
        copy_range(part, self._descriptor, offset, length)
        begin = self.size
        self.size += length
        self.frames.append(CopiedFrame(begin, length, sha256))
        for size in sizes:
            self._add(size)
        return begin

    def finish(self, name: str, catalogue: BinaryIO, catalogue_size: int) -> None:
        """Append the catalogue member, the end of archive, the xz index and the footer."""
        header = member_header(catalogue_path(name), catalogue_size)
        padding = bytes(member_padding(catalogue_size))
        total = len(header) + catalogue_size + len(padding)
        self._add(write_stored_block(self, [BytesIO(header), catalogue, BytesIO(padding)], total))
        # Stored, so that it is the same bytes whatever liblzma, and any change of a byte shows.
        self._add(write_stored_block(self, [BytesIO(END_OF_ARCHIVE)], len(END_OF_ARCHIVE)))
        self.write(stream_tail(self._block_sizes(), len(self._blocks) // 2))

    def _add(self, size: BlockSize) -> None:
        self._blocks.extend(size)
        self.tar_bytes += size.uncompressed

    def _block_sizes(self) -> Iterator[BlockSize]:
        for position in range(0, len(self._blocks), 2):
            yield BlockSize(self._blocks[position], self._blocks[position + 1])


def copy_range(source: int, target: int, offset: int, length: int) -> None:
    """Append `length` bytes of descriptor `source`, from `offset`, to `target`: by the kernel where it can.

    Raises
    ------
    XzFormatError
        When the source ends before.
    """
    ways: list[Callable[[int, int], int]] = [
        lambda at, count: os.copy_file_range(source, target, count, at),
        lambda at, count: os.sendfile(target, source, at, count),
        lambda at, count: _read_and_write(source, target, at, count),
    ]
    while length:
        try:
            done = ways[0](offset, min(length, 1 << 30))
        except OSError as error:
            if error.errno not in _NOT_THIS_WAY or len(ways) == 1:
                raise
            ways.pop(0)
            continue
        if not done:
            if offset < os.fstat(source).st_size and len(ways) > 1:  # some file systems say 0 for "not this way"
                ways.pop(0)
                continue
            raise XzFormatError("the part is shorter than its record says")
        offset += done
        length -= done


def _read_and_write(source: int, target: int, offset: int, count: int) -> int:
    view = memoryview(os.pread(source, min(count, COPY_BYTES), offset))
    size = len(view)
    while view:
        view = view[os.write(target, view) :]
    return size


def read_back(file: BinaryIO, frames: Sequence[CopiedFrame]) -> tuple[str, list[int]]:
    """Read a finished archive once: (its SHA-256, positions in `frames` of those that are not what they must be).

    The digests of the whole and of the frames are computed side by side: hashing releases the interpreter lock.
    """
    whole = hashlib.sha256()
    wrong = []
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:

        def take(length: int) -> str:
            digest = hashlib.sha256()
            while length:
                data = file.read(min(COPY_BYTES, length))
                if not data:
                    break
                other = pool.submit(whole.update, data)
                digest.update(data)
                other.result()
                length -= len(data)
            return digest.hexdigest()

        position = 0
        for number, frame in enumerate(frames):
            take(frame.offset - position)
            if take(frame.length) != frame.sha256:
                wrong.append(number)
            position = frame.offset + frame.length
        while data := file.read(COPY_BYTES):
            whole.update(data)
    return whole.hexdigest(), wrong
