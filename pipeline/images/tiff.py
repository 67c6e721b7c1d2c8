"""TIFF 6.0 and BigTIFF: directories, strips and tiles that lie within the file, as many as the size needs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import count, islice, repeat
from typing import NamedTuple

from pipeline.images.header import ImageFile, ImageHeader, malformed, truncated
from pipeline.images.png import DEFLATE_RATIO
from pipeline.images.xmp import MAX_PACKET, Identities

MAX_DIRECTORIES = 1000
MAX_ENTRIES = 4096
MAX_PIECES = 1 << 20  # strips or tiles, of all directories
_AT_ONCE = 1 << 16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SUBTYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _XMP = 254, 256, 257, 258, 259, 262, 700
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_YCBCR = 6
# The most bytes of pixels that a byte may hold, by compression. LZW: codes of at least 9 bits, 12 for the longest
# string that its table can have, of 3838 bytes; PackBits: 128 from 2.
_RATIOS = {1: 1, 5: 2600, 8: DEFLATE_RATIO, 32946: DEFLATE_RATIO, 32773: 64}
_JPEG, _CCITT = 7, frozenset({2, 3, 4})


class Field(NamedTuple):
    """An entry of a directory: type, number of values, and where its values lie."""

    kind: int
    values: int
    offset: int


class _Form(NamedTuple):
    """How numbers and directories of a file are written."""

    order: str
    big: bool

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")


def check_tiff(file: ImageFile) -> ImageHeader:
    """Check a TIFF file. Raises `ItemError` (`truncated`, `malformed`) or OSError."""
    head = file.read(0, min(16, file.size), "TIFF header")
    form = _Form("<" if head[:2] == b"II" else ">", form_is_big(head))
    if len(head) < (16 if form.big else 8):
        raise truncated("TIFF: it ends within its header")
    if form.big and (form.number(head[4:6]), form.number(head[6:8])) != (8, 0):
        raise malformed("TIFF: an impossible header of a BigTIFF")
    offset = form.number(head[8:16] if form.big else head[4:8])
    seen: set[int] = set()
    main: ImageHeader | None = None
    left = MAX_PIECES
    identities = Identities()
    packets: set[Field] = set()  # that were searched: directories may share one
    while offset:
        if offset in seen:
            raise malformed("TIFF: its directories go in a circle")
        seen.add(offset)
        if len(seen) > MAX_DIRECTORIES:
            raise malformed(f"TIFF: more than {MAX_DIRECTORIES} directories")
        fields, offset = _read_directory(file, form, offset)
        found, pieces = _check_image(file, form, fields, left)
        left -= pieces
        packet = fields.get(_XMP)
        if packet is not None and packet not in packets and not identities.skipped:
            packets.add(packet)
            size = min(_SIZES[packet.kind] * packet.values, MAX_PACKET)
            identities.search(file.read(packet.offset, size, "TIFF XMP"))
        reduced = _one(file, form, fields, _SUBTYPE, 0) & 5  # a smaller version of another one, or a mask
        if main is None or (not reduced and found.width * found.height > main.width * main.height):
            main = found
    if main is None:
        raise malformed("TIFF: it has no directory")
    warnings = (*main.warnings, *identities.warnings())
    return ImageHeader("tiff", main.width, main.height, identities.names(), warnings)


def form_is_big(head: bytes) -> bool:
    """Whether a TIFF that begins like this is a BigTIFF."""
    return head[2:4] in {b"+\0", b"\0+"}


def _read_directory(file: ImageFile, form: _Form, offset: int) -> tuple[dict[int, Field], int]:
    """The entries of a directory by tag, and where the next one lies, 0 for none."""
    number, entry, word = (8, 20, 8) if form.big else (2, 12, 4)
    count = form.number(file.read(offset, number, "TIFF directory"))
    if not 0 < count <= MAX_ENTRIES:
        raise malformed(f"TIFF: a directory of {count} entries at byte {offset}")
    data = file.read(offset + number, count * entry + word, "TIFF directory")
    fields: dict[int, Field] = {}
    for at in range(0, count * entry, entry):
        tag, kind = form.number(data[at : at + 2]), form.number(data[at + 2 : at + 4])
        values = form.number(data[at + 4 : at + 4 + word])
        size = _SIZES.get(kind, 0) * values
        if size <= word:
            place = offset + number + at + 4 + word
        else:
            place = form.number(data[at + 4 + word : at + entry])
            if place + size > file.size:
                raise truncated(f"TIFF: values of tag {tag} end at byte {place + size} of {file.size}")
        if kind in _SIZES and tag not in fields:
            fields[tag] = Field(kind, values, place)
    return fields, form.number(data[count * entry :])


def _numbers(file: ImageFile, form: _Form, field: Field) -> Iterator[int]:
    """Unsigned values of a field, read piece by piece."""
    code = _CODES.get(field.kind)
    if code is None:
        raise malformed(f"TIFF: numbers of type {field.kind}")
    size = _SIZES[field.kind]
    for first in range(0, field.values, _AT_ONCE):
        count = min(_AT_ONCE, field.values - first)
        data = file.read(field.offset + first * size, count * size, "TIFF values")
        yield from struct.unpack(f"{form.order}{count}{code}", data)


def _one(file: ImageFile, form: _Form, fields: dict[int, Field], tag: int, default: int) -> int:
    """The first value of a field, or what stands for one that is not there."""
    field = fields.get(tag)
    return default if field is None or not field.values else next(_numbers(file, form, field._replace(values=1)))


def _check_image(file: ImageFile, form: _Form, fields: dict[int, Field], most: int) -> tuple[ImageHeader, int]:
    """Check one directory's image: all its strips or tiles, `most` of them, are there. With their number."""

    def one(tag: int, default: int = 0) -> int:
        return _one(file, form, fields, tag, default)

    width, height = one(_WIDTH), one(_HEIGHT)
    if not width or not height:
        raise malformed(f"TIFF: {width} x {height} pixels")
    samples = one(_SAMPLES, 1)
    planes = samples if one(_PLANAR, 1) == 2 else 1
    if not samples:
        raise malformed("TIFF: pixels of no samples")
    tiled = _TILES in fields
    if tiled:
        across, down = one(_TILE_WIDTH), one(_TILE_HEIGHT)
        if not across or not down:
            raise malformed("TIFF: tiles without a size")
        due = -(-width // across) * -(-height // down) * planes
    else:
        across, down = width, min(one(_ROWS, height) or height, height)
        due = -(-height // down) * planes
    offsets, counts = (fields.get(tag) for tag in ((_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)))
    if offsets is None or (counts is None and (tiled or due > 1)):
        raise malformed("TIFF: it does not say where its pixels are")
    if due > most:
        raise malformed(f"TIFF: {due:,} strips or tiles for {width} x {height} pixels")
    if offsets.values < due or (counts is not None and counts.values < due):
        raise malformed(f"TIFF: {offsets.values} strips or tiles where {due} are due")
    sizes = _numbers(file, form, counts) if counts is not None else repeat(0)
    compression, bits = one(_COMPRESSION, 1), one(_BITS, 1)
    # Of YCbCr the colours may be stored for several pixels at once: its brightness alone is sure to be there.
    together = 1 if planes > 1 or one(_PHOTOMETRIC) == _YCBCR else samples
    in_plane, summed = due // planes, compression == 1 and not tiled
    last = down if tiled else height - (in_plane - 1) * down  # rows of the last strip
    least, least_last = (
        0 if summed else least_bytes(compression, across, rows, bits * together) for rows in (down, last)
    )
    held = missing = 0
    for number, place, size in zip(count(1), islice(_numbers(file, form, offsets), due), sizes, strict=False):
        if place + size > file.size:
            raise truncated(f"TIFF: a strip or tile ends at byte {place + size} of {file.size}")
        if not place and size:
            raise malformed("TIFF: a strip or tile at byte 0")
        held += size
        missing += not size
        if size and size < (least if number % in_plane else least_last):
            raise truncated(f"TIFF: a strip or tile of {size} bytes cannot hold its part of {width} x {height} pixels")
    if summed and counts is not None:
        if held < -(-width * bits * together // 8) * height * planes:
            raise truncated(f"TIFF: {held} bytes of pixels for {width} x {height} uncompressed ones")
    elif not held and counts is not None:
        raise truncated("TIFF: it has no pixels")
    warned = missing and counts is not None
    warnings = (f"{missing} of {due} strips or tiles were never written",) if warned else ()
    return ImageHeader("tiff", width, height, warnings=warnings), due


def least_bytes(compression: int, width: int, height: int, bits: int) -> int:
    """The fewest bytes that so many pixels of `bits` take; 1 where the compression sets no bound. Pure."""
    if compression in _CCITT:  # a row has a bit at least
        return -(-height // 8)
    if compression == _JPEG:  # a block of 8 x 8 has one
        return -(-(-(-width // 8) * -(-height // 8)) // 8)
    ratio = _RATIOS.get(compression)
    return -(-(-(-width * bits // 8) * height) // ratio) if ratio else 1
