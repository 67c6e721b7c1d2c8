"""What a check of an image file finds, and the bounded reading that all of them share."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from pipeline.errors import ItemError

CHUNK = 1 << 20


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
    """An open file of known size: whatever is read beyond its end makes it `truncated`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, offset: int, count: int, what: str) -> bytes:
        """Exactly `count` bytes at `offset`; `what` says in the message what they are.

        Raises `ItemError` `truncated` when the file has not so many, OSError when it cannot be read.
        """
        if offset < 0 or offset + count > self.size:
            raise truncated(f"{what} lies at bytes {offset} to {offset + count} of {self.size}")
        parts = []
        while count:
            data = os.pread(self._fd, min(count, CHUNK), offset)
            if not data:
                raise truncated(f"{what}: the file became shorter")
            parts.append(data)
            offset += len(data)
            count -= len(data)
        return b"".join(parts)

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
