"""What a check of an image file finds, and the bounded reading that all of them share."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from pipeline.errors import ItemError

CHUNK = 1 << 20
# What is read at a time where less is asked for: most images whole, in one system call.
WINDOW = 128 << 10


class ImageHeader(msgspec.Struct, frozen=True):
    """An image file that is whole as far as its structure tells.

    Attributes
    ----------
    format
        `jpeg`, `png` or `tiff`.
    width, height
        In pixels, of the largest image that the file is about.
    identities
        ISIC ids that its XMP gives as its title or its supplier's id, each once, in order; mostly none.
    warnings
        What is odd about it all the same.
    """

    format: str
    width: int
    height: int
    identities: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ImageFile:
    """An open file of known size: whatever is read beyond its end makes it `truncated`.

    It must not change meanwhile: bytes that lie near each other are read once.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self._begin = 0
        self._window = b""

    def read(self, offset: int, count: int, what: str) -> bytes:
        """Exactly `count` bytes at `offset`; `what` says in the message what they are.

        Raises `ItemError` `truncated` when the file has not so many, OSError when it cannot be read.
        """
        at = offset - self._begin
        if at >= 0 and at + count <= len(self._window):
            return self._window[at : at + count]
        if offset < 0 or offset + count > self.size:
            raise truncated(f"{what} lies at bytes {offset} to {offset + count} of {self.size}")
        if count > WINDOW:
            return self._read(offset, count, what)
        self._begin, self._window = offset, self._read(offset, min(WINDOW, self.size - offset), what)
        return self._window[:count]

    def _read(self, offset: int, count: int, what: str) -> bytes:
        parts = []
        while count:
            data = os.pread(self._fd, min(count, CHUNK), offset)
            if not data:
                raise truncated(f"{what}: the file became shorter")
            parts.append(data)
            offset += len(data)
            count -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def each(self, offset: int, count: int, what: str) -> Callable[[], bytes]:
        """A reader of these bytes piece by piece, b"" at their end. Raises as `read`."""
        end = offset + count

        def take() -> bytes:
            nonlocal offset
            data = self.read(offset, min(CHUNK, end - offset), what) if offset < end else b""
            offset += len(data)
            return data

        return take


def truncated(text: str) -> ItemError:
    """The error for a file that ends too early."""
    return ItemError("truncated", text)


def malformed(text: str) -> ItemError:
    """The error for a file that is not what it says."""
    return ItemError("malformed", text)
