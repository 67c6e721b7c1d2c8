"""The .xz container: headers, index and footer as bytes. Pure.

Source: the .xz file format specification 1.2.1. liblzma compresses; this module lays its output out as ONE stream of
many blocks whose headers carry both sizes, which liblzma's simple encoder never writes and parallel decoders need.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

HEADER_MAGIC = b"\xfd7zXZ\x00"
FOOTER_MAGIC = b"YZ"
# SHA-256 as the one check type: each block certifies itself, and the standard library can compute it (its lzma module
# offers no CRC64), which stored blocks need.
STREAM_FLAGS = b"\x00\x0a"
CHECK_BYTES = 32
FOOTER_BYTES = 12
HEADER_BYTES = 12


class BlockSize(NamedTuple):
    """A block as the xz index lists it: bytes without padding, bytes of content."""

    unpadded: int
    uncompressed: int

    @property
    def total(self) -> int:
        """Bytes that the block takes in the file."""
        return padded(self.unpadded)


class XzFormatError(ValueError):
    """These bytes are not the .xz structure they should be."""


def padded(size: int) -> int:
    """Round up to a multiple of four, as the container does everywhere."""
    return (size + 3) & ~3


def encode_vli(value: int) -> bytes:
    """A variable-length integer: seven bits a byte, low bits first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_vli(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Return (value, offset behind it). Raises `XzFormatError`."""
    value = 0
    for count in range(9):
        if offset + count >= len(data):
            break
        byte = data[offset + count]
        value |= (byte & 0x7F) << (7 * count)
        if not byte & 0x80:
            if byte == 0 and count:
                break
            return value, offset + count + 1
    raise XzFormatError("bad variable-length integer")


def stream_header() -> bytes:
    """The first 12 bytes of every archive."""
    return HEADER_MAGIC + STREAM_FLAGS + struct.pack("<I", zlib.crc32(STREAM_FLAGS))


def block_header(compressed: int, uncompressed: int, filters: bytes, filter_count: int) -> bytes:
    """A block header that states both sizes. `filters` are the encoded filter flags of the chain."""
    flags = 0xC0 | (filter_count - 1)
    body = bytes([flags]) + encode_vli(compressed) + encode_vli(uncompressed) + filters
    size = padded(1 + len(body) + 4)
    body = bytes([size // 4 - 1]) + body + bytes(size - 4 - 1 - len(body))
    return body + struct.pack("<I", zlib.crc32(body))


def stream_tail(blocks: Iterable[BlockSize], count: int) -> bytes:
    """The index of `count` blocks and the stream footer: the end of the archive."""
    index = bytearray(b"\x00" + encode_vli(count))
    for unpadded, uncompressed in blocks:
        index += encode_vli(unpadded) + encode_vli(uncompressed)
    index += bytes(padded(len(index)) - len(index))
    index += struct.pack("<I", zlib.crc32(index))
    backward = struct.pack("<I", len(index) // 4 - 1) + STREAM_FLAGS
    return bytes(index) + struct.pack("<I", zlib.crc32(backward)) + backward + FOOTER_MAGIC


def parse_footer(footer: bytes) -> int:
    """Size in bytes of the index that lies before this 12-byte footer. Raises `XzFormatError`."""
    if len(footer) != FOOTER_BYTES or footer[10:] != FOOTER_MAGIC:
        raise XzFormatError("does not end in an xz stream footer: cut short, or not a medhaul archive")
    if footer[8:10] != STREAM_FLAGS:
        raise XzFormatError("the stream's check type is not SHA-256: not a medhaul archive")
    if struct.unpack("<I", footer[:4])[0] != zlib.crc32(footer[4:10]):
        raise XzFormatError("the stream footer is damaged")
    return int(struct.unpack("<I", footer[4:8])[0] + 1) * 4


def iter_index(index: bytes) -> Iterator[BlockSize]:
    """Yield the blocks that an index lists, one at a time: an index may list millions. Raises `XzFormatError`."""
    if len(index) < 8 or index[0] != 0 or struct.unpack("<I", index[-4:])[0] != zlib.crc32(index[:-4]):
        raise XzFormatError("the xz index is damaged")
    count, offset = decode_vli(index, 1)
    for _ in range(count):
        unpadded, offset = decode_vli(index, offset)
        uncompressed, offset = decode_vli(index, offset)
        yield BlockSize(unpadded, uncompressed)
    if padded(offset) != len(index) - 4 or any(index[offset:-4]):
        raise XzFormatError("the xz index is damaged")


def parse_index(index: bytes) -> list[BlockSize]:
    """The blocks that an index lists. Raises `XzFormatError`."""
    return list(iter_index(index))
