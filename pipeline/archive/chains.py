"""Filter chains of xz blocks: their names, what liblzma is told, how a block header spells them, when to probe.

The chains were measured on medical images. What counts for 12- to 16-bit pixels is the optimal parser with a two-byte
match finder and literal contexts that know byte parity; deep match search buys nothing. Pure.
"""

from __future__ import annotations

import lzma
from typing import Any

PROBE_BYTES = 2**20  # contiguous: the model learns slowly, so short spans choose wrongly


def _lzma2(*, dict_size: int, **options: int) -> dict[str, Any]:
    return {"id": lzma.FILTER_LZMA2, "mode": lzma.MODE_NORMAL, "lc": 3, "depth": 1, "dict_size": dict_size, **options}


def _delta(dist: int) -> dict[str, Any]:
    return {"id": lzma.FILTER_DELTA, "dist": dist}


_A = _lzma2(dict_size=2**20, lp=1, pb=1, mf=lzma.MF_BT2, nice_len=32)
_R = _lzma2(
    dict_size=2**23, lp=0, pb=0, mf=lzma.MF_BT3, nice_len=64
)  # the dictionary holds two frames of a colour cine

# Chain name to the filters that stdlib `lzma` takes with FORMAT_RAW. S has no encoder here: its blocks are made of
# LZMA2's uncompressed chunks, and its filters serve to decode them.
FILTERS: dict[str, list[dict[str, Any]]] = {
    "A0": [_A],
    "A2": [_delta(2), _A],
    "R0": [_R],
    "R3": [_delta(3), _R],
    "S": [_A],
}
# What a file may be classed as: a chain, or J and RGB, which `probe_chain` settles.
CLASSES = frozenset({*FILTERS, "J", "RGB"})

_PORTABLE = {"A2": "A0", "R3": "R0"}


def portable_chain(name: str) -> str:
    """The chain to take instead of `name` for readers without the delta filter, such as busybox.

    Raises
    ------
    ValueError
        `name` is no chain.
    """
    _filters(name)
    return _PORTABLE.get(name, name)


def probe_chain(klass: str, first_bytes: bytes) -> str:
    """The chain for data of class `klass` that begins with `first_bytes`, of which `PROBE_BYTES` are looked at.

    A chain's own name stands for itself. J (already compressed by Huffman codes): A0 if it saves more than 5 %, else S.
    RGB (native 8-bit colour): the smaller of A0 and R3. The same bytes choose the same chain.

    Raises
    ------
    ValueError
        `klass` is none of `CLASSES`.
    """
    head = first_bytes[:PROBE_BYTES]
    if klass == "J":
        return "A0" if _packed_size(head, "A0") * 20 < len(head) * 19 else "S"
    if klass == "RGB":
        return "R3" if _packed_size(head, "R3") < _packed_size(head, "A0") else "A0"
    _filters(klass)
    return klass


def _packed_size(data: bytes, name: str) -> int:
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=FILTERS[name]))


def _filters(name: str) -> list[dict[str, Any]]:
    try:
        return FILTERS[name]
    except KeyError:
        raise ValueError(f"no filter chain is called {name!r}; there are {', '.join(FILTERS)}") from None


def filter_flags(name: str) -> bytes:
    """The List of Filter Flags of an xz block header for chain `name` (.xz file format 1.2.1, sections 3.1.5 and 5.3).

    Per filter its ID, the size of its properties and the properties; IDs and sizes below 128 are one byte as
    multibyte integers.

    Raises
    ------
    ValueError
        `name` is no chain.
    """
    flags = b""
    for options in _filters(name):
        if options["id"] == lzma.FILTER_DELTA:
            properties = options["dist"] - 1
        else:
            properties = _dictionary_byte(options["dict_size"])
        flags += bytes((options["id"], 1, properties))
    return flags


def _dictionary_byte(size: int) -> int:
    """LZMA2's byte for the smallest dictionary it can state of at least `size` bytes: 2 or 3 times a power of two."""
    return next(bits for bits in range(40) if (2 | bits & 1) << (bits // 2 + 11) >= size)
