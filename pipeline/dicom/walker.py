"""A lean walk over the elements of a DICOM data set: from its first byte to its last, without reading values.

Only what is asked for is copied out of the buffer, so memory does not depend on the size of the file. Sequences and
items of stated length are stepped over whole; those of undefined length are followed to their delimiters, which leaves
the end of the buffer as the only limit to watch. Structure: PS3.5 sections 7.1, 7.5 and A.4.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Buffer = bytes | mmap.mmap

UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 64  # sequences in sequences; real files stay below 15
MAX_VALUE = 65_536  # bytes kept of one value
MAX_PADDING = 65_536  # zeros behind a data set that are taken for padding and not for a hole in the file

FLOAT_PIXELS, DOUBLE_PIXELS, PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
SPECTROSCOPY_DATA, WAVEFORM_SEQUENCE, ENCAPSULATED_DOCUMENT = 0x56000020, 0x54000100, 0x00420011
DVH_SEQUENCE = 0x30040050
PIXEL_TAGS = frozenset({FLOAT_PIXELS, DOUBLE_PIXELS, PIXELS})
BULK = PIXEL_TAGS | {SPECTROSCOPY_DATA, WAVEFORM_SEQUENCE, ENCAPSULATED_DOCUMENT, DVH_SEQUENCE}

_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_FRAGMENT_VRS = frozenset({b"OB", b"OW"})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
_STEPS = frozenset({_ITEM, _SEQUENCE_END})


class WalkError(Exception):
    """The data set does not parse. `reason` is `truncated` or `malformed`, as in `pipeline.errors.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Syntax:
    """How elements are written: explicit or implicit VR, little or big endian."""

    explicit: bool
    big: bool = False
    # (group, element, VR, 16-bit length), (group, element, 32-bit length), (32-bit length)
    short: Callable[[Buffer, int], tuple[Any, ...]] = field(init=False, repr=False, compare=False)
    item: Callable[[Buffer, int], tuple[Any, ...]] = field(init=False, repr=False, compare=False)
    long: Callable[[Buffer, int], tuple[Any, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = ">" if self.big else "<"
        for name, layout in (("short", "HH2sH"), ("item", "HHI"), ("long", "I")):
            object.__setattr__(self, name, struct.Struct(order + layout).unpack_from)


IMPLICIT_LITTLE = Syntax(explicit=False)
EXPLICIT_LITTLE = Syntax(explicit=True)
EXPLICIT_BIG = Syntax(explicit=True, big=True)


@dataclass(slots=True)
class Elements:
    """What a walk found at top level.

    Attributes
    ----------
    values
        Tag to value for the tags asked for; no more than `MAX_VALUE` bytes of each.
    bulk
        Tag of `BULK` to its length in bytes; `UNDEFINED` for sequences and fragments.
    fragments
        How many fragments the encapsulated pixel data has, the offset table not counted; -1 when there is none.
    """

    values: dict[int, bytes] = field(default_factory=dict)
    bulk: dict[int, int] = field(default_factory=dict)
    fragments: int = -1
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Keep `text` once."""
        if text not in self.warnings:
            self.warnings.append(text)


def guess_syntax(buf: Buffer, pos: int, declared: Syntax | None) -> Syntax:
    """How the element at `pos` is really written; `declared` where that is possible.

    Files exist whose data set is implicit where the transfer syntax says explicit, and the other way round. An explicit
    element shows a known VR where an implicit one has the low half of its length, which no first element reaches.
    """
    head = buf[pos : pos + 6]
    if len(head) < 6:
        return declared or EXPLICIT_LITTLE
    if head[4:6] not in _SHORT_VRS and head[4:6] not in _LONG_VRS:
        return declared if declared is not None and _is_vr_like(head[4:6]) else IMPLICIT_LITTLE
    if declared is not None and declared.explicit:
        return declared
    # A data set starts in a low group, 0008 as a rule, so the byte that is zero tells the order.
    return EXPLICIT_BIG if head[0] == 0 and head[1] != 0 else EXPLICIT_LITTLE


def _is_vr_like(vr: bytes) -> bool:
    return vr.isalpha() and vr.isupper()


def walk_group_2(buf: Buffer, pos: int, wanted: frozenset[int], found: Elements) -> int:
    """Read the file meta information at `pos`; returns where the data set starts. Its group length is not believed.

    Raises
    ------
    WalkError
        `truncated` when the buffer ends within it.
    """
    syntax = guess_syntax(buf, pos, EXPLICIT_LITTLE)
    size = len(buf)
    while buf[pos : pos + 2] == b"\x02\x00":
        start = pos
        try:
            group, element, length, pos = _element_head(buf, pos, syntax)
        except struct.error:
            raise WalkError("truncated", f"it ends at byte {size}, within its file meta information") from None
        if length == UNDEFINED:
            raise WalkError("malformed", f"the file meta element at byte {start} has no length")
        if pos + length > size:
            raise WalkError("truncated", f"it ends at byte {size}, within its file meta information")
        tag = group << 16 | element
        if tag in wanted:
            found.values[tag] = buf[pos : pos + min(length, MAX_VALUE)]
        pos += length
    return pos


def walk(buf: Buffer, pos: int, syntax: Syntax, wanted: frozenset[int], found: Elements) -> None:
    """Walk the data set from `pos` to the end of the buffer; the tags of `wanted` and `BULK` go into `found`.

    Raises
    ------
    WalkError
        `truncated` when the buffer ends within an element, a sequence or the pixel data; `malformed` when what stands
        there cannot be an element.
    """
    size = len(buf)
    head, explicit, short_vrs = (syntax.short if syntax.explicit else syntax.item), syntax.explicit, _SHORT_VRS
    start, lost = pos, False
    try:
        while pos < size:
            start = pos
            if explicit:
                group, element, vr, length = head(buf, pos)
                if vr in short_vrs:
                    pos += 8
                    if (tag := group << 16 | element) in wanted:
                        found.values[tag] = buf[pos : pos + length]
                    pos += length
                    continue
                if not group and _is_padding(buf, start):
                    break
                group, element, length, pos = _element_head(buf, pos, syntax)
                if vr not in _LONG_VRS and group != 0xFFFE and not lost:
                    lost = True  # once: a hostile file has millions
                    found.warn(f"unknown VR {vr!r} at byte {start}")
            else:
                vr = b""
                group, element, length = head(buf, pos)
                if not group and _is_padding(buf, start):
                    break
                pos += 8
            tag = group << 16 | element
            if tag in wanted and length != UNDEFINED:
                found.values[tag] = buf[pos : pos + min(length, MAX_VALUE)]
            elif tag in BULK:
                found.bulk[tag] = length
            if length != UNDEFINED:
                pos += length
            elif tag == PIXELS:
                pos, found.fragments = _skip_fragments(buf, pos, syntax)
            else:
                pos = _skip_undefined(buf, pos, vr, syntax, 1)
    except struct.error:
        if not _is_padding(buf, start):
            raise _ended(buf, start, syntax) from None
    if pos > size:
        raise _ended(buf, start, syntax)
    if pos < size:
        found.warn(f"{size - start} zero bytes behind the data set")


def _ended(buf: Buffer, start: int, syntax: Syntax) -> WalkError:
    size, where = len(buf), f"the element at byte {start}"
    if start + 8 <= size:
        group, element, _ = syntax.item(buf, start)
        where = "its pixel data" if group << 16 | element == PIXELS else f"({group:04X},{element:04X}), byte {start}"
    return WalkError("truncated", f"it ends at byte {size}, within {where}")


def _is_padding(buf: Buffer, pos: int) -> bool:
    """Whether nothing but zeros follows; `malformed` when that is a hole, too large or with something behind it."""
    if buf[pos : pos + 8].strip(b"\0"):
        return False
    if len(buf) - pos > MAX_PADDING or buf[pos:].strip(b"\0"):
        raise WalkError("malformed", f"zero bytes stand where an element should, at byte {pos}")
    return True


def _element_head(buf: Buffer, pos: int, syntax: Syntax) -> tuple[int, int, int, int]:
    """(group, element, length, where the value starts) of any element, also one whose VR is unknown.

    A VR unknown to us is one of tomorrow (32-bit length, PS3.5 section 6.2) if it looks like a VR, else rubbish from
    old software, which wrote a 16-bit length.
    """
    if not syntax.explicit:
        group, element, length = syntax.item(buf, pos)
        return group, element, length, pos + 8
    group, element, vr, length = syntax.short(buf, pos)
    if group == 0xFFFE:  # items and delimiters have no VR
        return group, element, syntax.long(buf, pos + 4)[0], pos + 8
    if vr in _LONG_VRS or (vr not in _SHORT_VRS and length == 0 and _is_vr_like(vr)):
        return group, element, syntax.long(buf, pos + 8)[0], pos + 12
    return group, element, length, pos + 8


def _skip_undefined(buf: Buffer, pos: int, vr: bytes, syntax: Syntax, depth: int) -> int:
    """Where the element of undefined length ends whose value starts at `pos`."""
    if vr == b"UN":  # a sequence of unknown VR is implicit little endian inside (PS3.5 section 6.2.2)
        inner = guess_syntax(buf, pos + 8, None) if buf[pos : pos + 2] == b"\xfe\xff" else IMPLICIT_LITTLE
        return _skip_sequence(buf, pos, inner, depth)
    if vr in _FRAGMENT_VRS:  # the compressed icon of an icon image sequence
        return _skip_fragments(buf, pos, syntax)[0]
    if vr not in {b"SQ", b""}:
        raise WalkError("malformed", f"an element of VR {vr!r} has no length, at byte {pos}")
    return _skip_sequence(buf, pos, syntax, depth)


def _skip_sequence(buf: Buffer, pos: int, syntax: Syntax, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise WalkError("malformed", f"more than {MAX_DEPTH} sequences within each other, at byte {pos}")
    item = syntax.item
    while True:
        group, element, length = item(buf, pos)
        if group != 0xFFFE or element not in _STEPS:
            raise WalkError("malformed", f"no item and no end of its sequence at byte {pos}")
        pos += 8
        if element == _SEQUENCE_END:
            return pos
        pos = _skip_item(buf, pos, syntax, depth) if length == UNDEFINED else pos + length


def _skip_item(buf: Buffer, pos: int, syntax: Syntax, depth: int) -> int:
    """Where the item of undefined length ends whose first element starts at `pos`."""
    head, short_vrs = syntax.short, _SHORT_VRS
    if syntax.explicit:
        while True:
            group, element, vr, length = head(buf, pos)
            if vr in short_vrs:
                pos += 8 + length
                continue
            group, element, length, pos = _element_head(buf, pos, syntax)
            if group == 0xFFFE:
                return _item_end(element, pos)
            pos = pos + length if length != UNDEFINED else _skip_undefined(buf, pos, vr, syntax, depth + 1)
    item = syntax.item
    while True:
        group, element, length = item(buf, pos)
        pos += 8
        if group == 0xFFFE:
            return _item_end(element, pos)
        pos = pos + length if length != UNDEFINED else _skip_sequence(buf, pos, syntax, depth + 1)


def _item_end(element: int, pos: int) -> int:
    if element != _ITEM_END:
        raise WalkError("malformed", f"no end of its item at byte {pos - 8}")
    return pos


def _skip_fragments(buf: Buffer, pos: int, syntax: Syntax) -> tuple[int, int]:
    """(Where the encapsulated pixel data ends, how many fragments follow its offset table)."""
    item, count = syntax.item, -1
    while True:
        group, element, length = item(buf, pos)
        pos += 8
        if group != 0xFFFE or element not in _STEPS:
            raise WalkError("malformed", f"no fragment and no end of the encapsulated pixel data at byte {pos - 8}")
        if element == _SEQUENCE_END:
            return pos, max(count, 0)
        if length == UNDEFINED:
            raise WalkError("malformed", f"a fragment has no length, at byte {pos - 8}")
        count += 1
        pos += length
