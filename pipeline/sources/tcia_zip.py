"""Zips of a site, read as hostile input: where each member's bytes lie, and what they inflate to.

What NBIA sends is understood (PKWARE APPNOTE.TXT 6.3, section 4.3): flat names, stored or deflated members, sizes
perhaps behind the data only, zip64. All else is refused before anything is inflated. No name is ever used as a path.

Not `zipfile`: it moves one file position for all threads, passes over what stands before the first member, and reads a
directory of any length. Members are read with pread, so that many threads may share one open file.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pipeline.errors import ItemError
from pipeline.sources.api_body import clean_text, describe_body

engine: Any
try:  # ISA-L inflates twice as fast; it is not to be had for every processor
    from isal import isal_zlib as engine
except ImportError:
    engine = zlib

MAX_MEMBERS = 250_000  # the largest series have some ten thousand images
MAX_DIRECTORY = 64 << 20
MAX_NAME = 255
# Two bits stand for 258 bytes at best (RFC 1951 section 3.2.5).
MAX_RATIO = 1032
CHUNK = 256 << 10

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
# Encrypted, patch data, strongly encrypted, masked headers.
_REFUSED_FLAGS = 0x1 | 0x20 | 0x40 | 0x2000
_LATER = 0x8  # CRC and sizes stand behind the data
_DOS_FOLDER = 0x10


class Member(NamedTuple):
    """A member of a zip: where its bytes lie, and what they are said to inflate to."""

    name: str
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


class _End(NamedTuple):
    """Where the directory is and how many members it has; `begin`: where the records of the end begin."""

    members: int
    size: int
    offset: int
    begin: int


class _Listed(NamedTuple):
    """A member as the directory has it: `offset` is that of its local header."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def refuse_zip(what: str) -> ItemError:
    """Make the error for a zip that is not one, or not whole: asking again may help. Pure."""
    return ItemError("unavailable", f"not a whole zip: {what}", transient=True)


def read_members(fd: int, check: Callable[[], object] = lambda: None) -> list[Member]:
    """Find all members of a zip in the order of its directory; nothing is inflated.

    Parameters
    ----------
    fd
        Open for reading; its position is neither used nor moved.
    check
        Called now and then; what it raises ends this.

    Raises
    ------
    ItemError
        `unavailable`: not a zip, not whole, or with something in it that no image zip has.
    OSError
    """
    length = os.fstat(fd).st_size
    head = os.pread(fd, 4096, 0)
    if head[:4] not in {b"PK\x03\x04", b"PK\x05\x06"}:
        raise refuse_zip(describe_body(os.pread(fd, 1 << 20, 0)) if length <= 1 << 20 else f"it begins {head[:40]!r}")
    end = _find_end(fd, length)
    listed = list(_read_directory(_read_exactly(fd, end.size, end.offset), end, check))
    if len({each.raw_name for each in listed}) != len(listed):
        raise refuse_zip("two members have one name")
    order = sorted(range(len(listed)), key=lambda number: listed[number].offset)
    starts = [0] * len(listed)
    for place, number in enumerate(order):
        check()
        bound = listed[order[place + 1]].offset if place + 1 < len(order) else end.offset
        starts[number] = _find_data(fd, listed[number], bound)
    return [
        Member(render_name(each.raw_name), start, each.packed, each.size, each.crc, each.method == _DEFLATED)
        for each, start in zip(listed, starts, strict=True)
    ]


def read_member(fd: int, member: Member, check: Callable[[], object] = lambda: None) -> Iterator[bytes]:
    """Yield a member's bytes in pieces of at most `CHUNK`, never more of them than it has by the directory.

    Raises
    ------
    ItemError
        `checksum`, at the latest with the last piece: they do not inflate, are more or fewer, or have another CRC.
    OSError
    """

    def wrong(what: str) -> ItemError:
        return ItemError("checksum", f"{clean_text(member.name)} in the zip is damaged: {what}", transient=True)

    crc = total = 0
    position, end = member.start, member.start + member.packed
    inflate = engine.decompressobj(-zlib.MAX_WBITS) if member.deflated else None
    data = b""
    done = False
    while not done:
        check()
        if not data and position < end:
            data = os.pread(fd, min(CHUNK, end - position), position)
            if not data:
                raise wrong("the file ends within it")
            position += len(data)
        if inflate is None:
            out, data = data, b""
            done = position >= end
        else:
            try:
                out = inflate.decompress(data, CHUNK)
            except (zlib.error, engine.error) as error:
                raise wrong(str(error)) from None
            data, done = inflate.unconsumed_tail, inflate.eof
            if not (out or data or done or position < end):
                raise wrong("its compressed data do not end")
        total += len(out)
        if total > member.size:
            raise wrong(f"it has more than its {member.size} bytes")
        crc = engine.crc32(out, crc)
        if out:
            yield out
    if position != end or (inflate is not None and inflate.unused_data):
        raise wrong("something stands behind its compressed data")
    if total != member.size:
        raise wrong(f"it has {total} bytes in place of {member.size}")
    if crc != member.crc:
        raise wrong(f"its CRC is {crc:08x} in place of {member.crc:08x}")


def render_name(raw: bytes) -> str:
    """A member's name as text, so that different names stay different; not fit for printing. Pure."""
    return raw.decode("utf-8", "surrogateescape")


def _find_end(fd: int, length: int) -> _End:
    """Find the directory by the records at the end of the file (APPNOTE 4.3.14 to 4.3.16)."""
    base = max(0, length - _END.size - _MAX16)
    tail = os.pread(fd, length - base, base)
    place = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
    while place >= 0:
        _, disk, directory_disk, here, members, size, offset, comment = _END.unpack_from(tail, place)
        if place + _END.size + comment == len(tail):
            break
        place = tail.rfind(b"PK\x05\x06", 0, place + 3)
    else:
        raise refuse_zip(f"{length} bytes without the end of a zip")
    begin = base + place
    stated = (disk, directory_disk, here, members, size, offset)
    if _MAX16 in stated[:4] or _MAX32 in stated[4:]:
        begin, real = _find_end64(fd, begin)
        limits = (_MAX16, _MAX16, _MAX16, _MAX16, _MAX32, _MAX32)
        if any(small not in {large, top} for small, large, top in zip(stated, real, limits, strict=True)):
            raise refuse_zip("its two ends contradict each other")
        disk, directory_disk, here, members, size, offset = real
    if disk or directory_disk or here != members:
        raise refuse_zip("it is one of several volumes")
    if offset + size != begin:
        raise refuse_zip(f"its directory is not where it should be: {offset} + {size}, not {begin}")
    if members > MAX_MEMBERS or size > MAX_DIRECTORY or members * _CENTRAL.size > size:
        raise refuse_zip(f"a directory of {members} members and {size} bytes")
    return _End(members, size, offset, begin)


def _find_end64(fd: int, begin: int) -> tuple[int, tuple[int, ...]]:
    place = begin - _LOCATOR.size
    raw = os.pread(fd, _LOCATOR.size, place) if place >= 0 else b""
    if len(raw) < _LOCATOR.size or raw[:4] != b"PK\x06\x07":
        raise refuse_zip("it has no zip64 end")
    _, disk, offset, disks = _LOCATOR.unpack(raw)
    raw = os.pread(fd, _END64.size, offset) if disk == 0 and disks <= 1 and offset + _END64.size <= place else b""
    if len(raw) < _END64.size or raw[:4] != b"PK\x06\x06":
        raise refuse_zip("its zip64 end is not where it should be")
    _, size, _, _, *real = _END64.unpack(raw)
    if offset + 12 + size != place:
        raise refuse_zip("its zip64 end has a wrong length")
    return offset, tuple(real)


def _read_exactly(fd: int, count: int, offset: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = os.pread(fd, count - len(data), offset + len(data))
        if not piece:
            raise refuse_zip("it ends within its directory")
        data += piece
    return bytes(data)


def _read_directory(data: bytes, end: _End, check: Callable[[], object]) -> Iterator[_Listed]:
    place = 0
    for number in range(end.members):
        if number % 1000 == 0:
            check()
        if place + _CENTRAL.size > len(data) or data[place : place + 4] != b"PK\x01\x02":
            raise refuse_zip(f"entry {number} of its directory is none")
        (
            _, _, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size, disk, _, attributes,
            offset,
        ) = _CENTRAL.unpack_from(data, place)  # fmt: skip
        place += _CENTRAL.size
        name = data[place : place + name_size]
        extra = data[place + name_size : place + name_size + extra_size]
        place += name_size + extra_size + comment_size
        if place > len(data):
            raise refuse_zip(f"entry {number} of its directory is cut")
        size, packed, offset = _widen(extra, size, packed, offset)
        listed = _Listed(name, flags, method, crc, packed, size, offset)
        problem = judge_member(listed, attributes) or ("it is in another volume" if disk else "")
        if problem:
            raise refuse_zip(f"{clean_text(render_name(name[:100]))!r}: {problem}")
        yield listed
    if place != len(data):
        raise refuse_zip("something stands behind the entries of its directory")


def _widen(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Take what 32 bits cannot hold from the zip64 field, APPNOTE 4.5.3."""
    values = [size, packed, offset]
    wanted = [number for number, value in enumerate(values) if value == _MAX32]
    place = 0
    while wanted and place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        place += 4
        if kind == 1 and length >= 8 * len(wanted) and place + length <= len(extra):
            for number, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, place), strict=True):
                values[number] = value
            wanted = []
        place += length
    if wanted:
        raise refuse_zip("an entry of its directory lacks its zip64 sizes")
    return values[0], values[1], values[2]


def judge_member(listed: _Listed, attributes: int) -> str:
    """Say why no image zip has such a member; empty when one may. Pure."""
    name = render_name(listed.raw_name)
    if not 0 < len(listed.raw_name) <= MAX_NAME or name in {".", ".."} or set(name) & set("/\\"):
        return "not a plain file name"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "a name with control characters"
    if stat.S_IFMT(attributes >> 16) not in {0, stat.S_IFREG} or attributes & _DOS_FOLDER:
        return "a folder, a link or a device"
    if listed.flags & _REFUSED_FLAGS:
        return "encrypted"
    if listed.method not in {_STORED, _DEFLATED}:
        return f"unknown method {listed.method}"
    if listed.method == _STORED and listed.packed != listed.size:
        return "stored in another size than it has"
    if listed.size > MAX_RATIO * listed.packed:
        return f"{listed.size} bytes cannot come out of {listed.packed}"
    return ""


def _find_data(fd: int, listed: _Listed, bound: int) -> int:
    """Where a member's data begin, once its local header agrees with the directory and it ends before `bound`."""

    def wrong(what: str) -> ItemError:
        return refuse_zip(f"{clean_text(render_name(listed.raw_name))!r}: {what}")

    raw = os.pread(fd, _LOCAL.size + len(listed.raw_name), listed.offset) if listed.offset < bound else b""
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise wrong("it is not where the directory says")
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack_from(raw)
    if raw[_LOCAL.size :] != listed.raw_name or name_size != len(listed.raw_name):
        raise wrong("it has another name in the directory")
    if method != listed.method or flags & (_REFUSED_FLAGS | _LATER) != listed.flags & _LATER:
        raise wrong("it is written otherwise than the directory says")
    real = (listed.crc, listed.packed, listed.size)
    if not flags & _LATER and any(a not in {b, _MAX32} for a, b in zip((crc, packed, size), real, strict=True)):
        raise wrong("it has other sizes in the directory")
    start: int = listed.offset + _LOCAL.size + name_size + extra_size
    if start + listed.packed > bound:
        raise wrong("it overlaps what comes next")
    return start
