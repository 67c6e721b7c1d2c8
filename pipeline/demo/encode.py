"""DICOM bytes from plain values: explicit VR little endian, the same on every machine and with every library version.

DICOM PS3.5 section 7 (elements), annex A.4 (encapsulated frames), annex G (RLE); PS3.10 section 7 (file meta).
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterable, Mapping

EXPLICIT_LE = "1.2.840.10008.1.2.1"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
PIXEL_DATA = 0x7FE00010
TRAILING_PADDING = 0xFFFCFFFC
ELEMENT_HEAD = 12  # bytes before the value of an element with a 32-bit length
MAX_VALUE = 0xFFFFFFFE

_LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT"})
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_RUN = re.compile(rb"(.)\1{2,127}", re.DOTALL)

Value = tuple[str, str | bytes]  # VR and value; text is encoded as UTF-8
Attributes = Mapping[int, Value]


def make_uid(*words: object) -> str:
    """A UID under the root 2.25 that depends only on the words (DICOM PS3.5 annex B.2: a UUID as one number)."""
    return f"2.25.{make_uuid(*words).int}"


def make_uuid(*words: object) -> uuid.UUID:
    """A UUID that depends only on the words."""
    return uuid.uuid5(uuid.NAMESPACE_OID, "\x1f".join(map(str, ("medhaul-demo", *words))))


def encode_element(tag: int, vr: str, value: str | bytes) -> bytes:
    """One element; its value is padded to even length, except trailing padding, whose length is the caller's."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) % 2 and tag != TRAILING_PADDING:
        data += b" " if isinstance(value, str) and vr != "UI" else b"\0"
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in _LONG_VRS:
        return head + struct.pack("<HI", 0, len(data)) + data
    return head + struct.pack("<H", len(data)) + data


def encode_sequence(*items: Attributes) -> bytes:
    """The value of a sequence whose items have explicit lengths."""
    return b"".join(_ITEM + struct.pack("<I", len(body)) + body for body in map(encode_attributes, items))


def encode_attributes(attributes: Attributes) -> bytes:
    """A data set: elements in ascending order of their tags."""
    return b"".join(encode_element(tag, *attributes[tag]) for tag in sorted(attributes))


def encode_head(attributes: Attributes, syntax: str) -> bytes:
    """A file up to its last attribute: preamble, file meta and data set.

    `attributes` must hold SOPClassUID and SOPInstanceUID; the file meta repeats them.
    """
    meta = encode_attributes(
        {
            0x00020001: ("OB", b"\0\1"),
            0x00020002: ("UI", attributes[0x00080016][1]),
            0x00020003: ("UI", attributes[0x00080018][1]),
            0x00020010: ("UI", syntax),
            0x00020012: ("UI", make_uid("implementation")),
            0x00020013: ("SH", "MEDHAUL_DEMO_1"),
        }
    )
    group_length = encode_element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + group_length + meta + encode_attributes(attributes)


def encode_native_pixels(pixels: bytes, *, vr: str = "OW") -> bytes:
    """The pixel data element of uncompressed pixels."""
    return encode_element(PIXEL_DATA, vr, pixels)


def encode_encapsulated_pixels(frames: Iterable[bytes]) -> bytes:
    """The pixel data element of compressed frames, one fragment each, with a basic offset table."""
    fragments, offsets, position = [], [], 0
    for frame in frames:
        body = frame + b"\0" * (len(frame) % 2)
        fragments.append(_ITEM + struct.pack("<I", len(body)) + body)
        offsets.append(position)
        position += len(fragments[-1])
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return b"".join((head, _ITEM, struct.pack("<I", len(table)), table, *fragments, _DELIMITER, bytes(4)))


def encode_rle_frame(planes: Iterable[bytes], columns: int) -> bytes:
    """One frame of RLE Lossless from its byte planes, most significant first; each row is coded apart."""
    segments = []
    for plane in planes:
        rows = (plane[start : start + columns] for start in range(0, len(plane), columns))
        coded = b"".join(map(_pack_bits, rows))
        segments.append(coded + b"\0" * (len(coded) % 2))
    offsets = [64 + sum(map(len, segments[:n])) for n in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def _pack_bits(row: bytes) -> bytes:
    out, position = bytearray(), 0
    for run in _RUN.finditer(row):
        _literals(out, row[position : run.start()])
        out += bytes((257 - (run.end() - run.start()), row[run.start()]))
        position = run.end()
    _literals(out, row[position:])
    return bytes(out)


def _literals(out: bytearray, text: bytes) -> None:
    for start in range(0, len(text), 128):
        piece = text[start : start + 128]
        out.append(len(piece) - 1)
        out += piece
