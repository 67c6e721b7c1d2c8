"""The two slow ways to a data set: inflating a deflated one, and asking pydicom where the lean walk loses its way."""

from __future__ import annotations

import io
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.dicom.walker import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    MAX_VALUE,
    Buffer,
    Syntax,
    WalkError,
)

MAX_INFLATED = (
    2**31
)  # bytes of scratch one deflated file may take; deflate reaches 1000:1, so a small file can be a bomb
MAX_HEADER = 2 * 2**20  # bytes pydicom may read: it makes objects of some hundred bytes for every eight of them
_CHUNK = 2**20


@contextmanager
def inflate(buf: Buffer, pos: int, folder: Path) -> Iterator[tuple[Buffer, int]]:
    """(The data set deflated at `pos`, how many bytes stand behind it), mapped from a nameless file in `folder`.

    A stream of odd length is followed by one NUL (PS3.5 section A.5).

    Raises
    ------
    WalkError
        `truncated` when the deflate stream has no end, `malformed` when it is none or holds more than `MAX_INFLATED`.
    OSError
        `folder` is full or not writable.
    """
    size, total = len(buf), 0
    with tempfile.TemporaryFile(dir=folder) as spill:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            while not stream.eof:
                waiting = stream.unconsumed_tail or buf[pos : pos + _CHUNK]
                pos += 0 if stream.unconsumed_tail else len(waiting)
                data = stream.decompress(waiting, _CHUNK)
                total += spill.write(data)
                if total > MAX_INFLATED:
                    raise WalkError("malformed", f"its deflated data set is larger than {MAX_INFLATED} bytes")
                if not waiting and not data:
                    raise WalkError("truncated", f"it ends at byte {size}, within its deflated data set")
        except zlib.error as error:
            raise WalkError("malformed", f"its data set does not inflate: {error}") from error
        if not total:
            raise WalkError("truncated", "its deflated data set is empty")
        spill.flush()
        with mmap.mmap(spill.fileno(), 0, access=mmap.ACCESS_READ) as inflated:
            yield inflated, size - pos + len(stream.unused_data)


class _BoundedReader(io.FileIO):
    """A file that yields no more than `MAX_HEADER` bytes in all, however often it is read."""

    left = MAX_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        """As `io.FileIO.read`; `ValueError` when more is asked for than is left."""
        if size is None or size < 0 or size > self.left:
            raise ValueError(f"its header takes more than {MAX_HEADER} bytes")
        self.left -= size
        return super().read(size) or b""


def read_header_with_pydicom(path: Path, tags: frozenset[int]) -> tuple[dict[int, bytes], int, Syntax]:
    """(Values of `tags`, where the element after the header starts, how it is written), as pydicom reads them.

    pydicom forgives nearly everything and does not see that a file is cut; so the caller must find the pixel data at
    the place returned.

    Raises
    ------
    WalkError
        `malformed` when pydicom cannot read it either, or not within `MAX_HEADER` bytes.
    """
    import pydicom
    from pydicom.dataelem import RawDataElement

    values: dict[int, bytes] = {}
    try:
        with _BoundedReader(os.fspath(path)) as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            pos = file.tell()
        for tag in tags:
            element: object = dataset.get_item(tag)
            if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
                values[tag] = element.value[:MAX_VALUE]
        implicit, little = dataset.original_encoding
    except Exception as error:  # the border to a parser that meets hostile bytes: it may raise anything
        raise WalkError("malformed", f"pydicom cannot read it either: {error}") from error
    if implicit:
        return values, pos, IMPLICIT_LITTLE
    return values, pos, EXPLICIT_LITTLE if little else EXPLICIT_BIG
