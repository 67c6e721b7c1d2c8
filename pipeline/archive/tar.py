"""Tar members whose bytes depend on path and content only. Pure.

ustar, with a pax header only where a path or size needs one; owner 0, no owner names, mode 0644, mtime 0, no folders.
"""

from __future__ import annotations

import tarfile

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)


def member_header(path: str, size: int) -> bytes:
    """The header block(s) of a regular file."""
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError:  # the path has no place to split, or the size is 8 GiB or more; UnicodeEncodeError is one too
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def member_padding(size: int) -> int:
    """Zero bytes behind `size` bytes of content."""
    return -size % BLOCK
