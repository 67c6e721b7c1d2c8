"""Tar members whose bytes depend on path and content only. Pure.

ustar, with a pax header only where a path or size needs one; owner 0, no owner names, mode 0644, mtime 0, no folders.
"""

from __future__ import annotations

import re
import tarfile

BLOCK = 512
SUFFIX = re.compile(r"\.[a-z0-9][a-z0-9.]{0,30}")
END_OF_ARCHIVE = bytes(2 * BLOCK)


def join_path(folder: str, name: str) -> str:
    """Path of a file in the archive: `name` in its item's folder; a name like `.jpg` is a suffix of the folder.

    So an item of one file, such as an image, need not have a folder: `c/ISIC_1` and `.jpg` make `c/ISIC_1.jpg`.
    """
    if folder and SUFFIX.fullmatch(name):
        return folder + name
    return f"{folder}/{name}" if folder else name


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
