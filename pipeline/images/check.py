"""`check_image`: is this file a whole JPEG, PNG or TIFF, as its extension says."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.images.header import ImageFile, ImageHeader, malformed, truncated
from pipeline.images.jpeg import check_jpeg
from pipeline.images.png import SIGNATURE, check_png
from pipeline.images.tiff import check_tiff

FORMATS = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
}
EXTENSIONS = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif"}
_CHECKS = {"jpeg": check_jpeg, "png": check_png, "tiff": check_tiff}
_STARTS = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (SIGNATURE,),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}


def sniff_format(head: bytes) -> str:
    """The format of a file that begins like this; "" for none of those. Pure."""
    return next((name for name, starts in _STARTS.items() if head.startswith(starts)), "")


def describe_other(head: bytes) -> str:
    """What a file is that begins like this and is no image. Pure."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML document"
    if text.startswith((b"{", b"[")):
        return "JSON"
    return f"a file that begins with {head[:8].hex() or 'nothing'}"


def check_image(path: Path, extension: str) -> ImageHeader:
    """Check that a file is a whole image of the format that its extension tells; no pixel is decoded.

    Parameters
    ----------
    extension
        With its dot, in lower case; one that is none of an image's leaves the format open.

    Raises
    ------
    ItemError
        `malformed`: no image, of another format, or it contradicts itself; `truncated`: it ends too early.
    OSError
        When the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        file = ImageFile(fd)
        if not file.size:
            raise truncated("the file is empty")
        head = file.read(0, min(64, file.size), "its beginning")
        found, due = sniff_format(head), FORMATS.get(extension, "")
        if not found:
            if due and _is_beginning(head, due):
                raise truncated(f"only {file.size} bytes of a {due.upper()} file")
            raise malformed(f"no JPEG, PNG or TIFF, but {describe_other(head)}")
        if due and found != due:
            raise malformed(f"its name ends in {extension}, but it is {found.upper()}")
        return _CHECKS[found](file)
    finally:
        os.close(fd)


def _is_beginning(head: bytes, due: str) -> bool:
    """Whether so short a file may be the beginning of one of that format."""
    return any(len(head) < len(start) and start.startswith(head) for start in _STARTS[due])
