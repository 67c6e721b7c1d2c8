"""Which liblzma compresses here: archives of two versions may differ in bytes, never in content."""

from __future__ import annotations

import lzma
import re
from functools import cache


@cache
def liblzma_version() -> str:
    """Version of the liblzma that this process compresses with; empty when it cannot be told."""
    import ctypes

    lzma.compress(b"", format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])  # makes sure that it is loaded
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found = re.search(r"(/\S*liblzma\S*)", maps.read())
    library = ctypes.CDLL(found[1] if found else None)
    try:
        library.lzma_version_string.restype = ctypes.c_char_p
        return str(library.lzma_version_string().decode())
    except AttributeError:  # liblzma linked into the interpreter without exporting its names
        return ""
