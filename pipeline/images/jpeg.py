"""JPEG (ITU T.81): markers from SOI to EOI, every segment within the file, enough data for the pixels it declares."""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.images.header import CHUNK, ImageFile, ImageHeader, malformed, truncated
from pipeline.images.xmp import MAX_PACKET, Identities

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_SOI, _EOI, _SOS, _DNL, _APP1, _TEM = 0xD8, 0xD9, 0xDA, 0xDC, 0xE1, 0x01
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC
_HUFFMAN_DCT = frozenset({0xC0, 0xC1, 0xC2})
# What ends entropy-coded data: a marker that is neither a stuffed FF nor a restart (T.81 section B.1.1.2, B.1.1.5).
_ENDS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
MAX_SEGMENTS = 20_000
_WINDOW = 64 << 10


class Frame(NamedTuple):
    """A frame header: what kind, and how many 8 x 8 blocks its fullest component has."""

    kind: int
    width: int
    height: int
    components: tuple[tuple[int, int], ...]

    def blocks(self, height: int) -> int:
        """8 x 8 blocks of the component that has most."""
        widest = max(h for h, _ in self.components)
        highest = max(v for _, v in self.components)
        return max(_blocks(self.width * h, widest) * _blocks(height * v, highest) for h, v in self.components)


def _blocks(length: int, share: int) -> int:
    """Blocks of 8 that `length` / `share` samples take, both rounded up."""
    samples = (length + share - 1) // share
    return (samples + 7) // 8


def check_jpeg(file: ImageFile) -> ImageHeader:
    """Check a JPEG file. Raises `ItemError` (`truncated`, `malformed`) or OSError."""
    position, frame, scans, coded, height = 2, None, 0, 0, 0
    identities = Identities()
    for _ in range(MAX_SEGMENTS):
        position, marker = _next_marker(file, position)
        if marker == _EOI:
            break
        if marker in {_SOI, _TEM, 0x00} or 0xD0 <= marker <= 0xD7:
            raise malformed(f"JPEG: marker {marker:02x} at byte {position - 2}, where a segment is due")
        length = int.from_bytes(file.read(position, 2, "JPEG segment"), "big")
        if length < 2:
            raise malformed(f"JPEG: a segment of {length} bytes at byte {position}")
        if position + length > file.size:
            raise truncated(f"JPEG: its segment {marker:02x} ends at byte {position + length} of {file.size}")
        if marker in _FRAMES:
            if frame is not None:
                raise malformed("JPEG: a second frame header")
            frame = _parse_frame(marker, file.read(position, length, "JPEG frame header"))
            height = frame.height
        elif marker == _DNL and length == 4 and not height:  # of a frame that left its height open
            height = int.from_bytes(file.read(position + 2, 2, "JPEG height"), "big")
        elif marker == _APP1 and length > len(_XMP) + 2:
            data = file.read(position + 2, min(length - 2, MAX_PACKET), "JPEG XMP")
            if data.startswith(_XMP):
                identities.search(data)
        position += length
        if marker == _SOS:
            if frame is None:
                raise malformed("JPEG: a scan before any frame header")
            begin, position = position, _find_marker(file, position)
            scans, coded = scans + 1, coded + position - begin
    else:
        raise malformed(f"JPEG: more than {MAX_SEGMENTS:,} segments")
    if frame is None or not scans:
        raise malformed("JPEG: it has no image")
    if not height:
        raise malformed("JPEG: its height is 0")
    # A Huffman code has a bit at least, and each block a code for its mean.
    if frame.kind in _HUFFMAN_DCT and coded * 8 < frame.blocks(height):
        raise truncated(f"JPEG: {coded} bytes of data cannot hold {frame.width} x {height} pixels")
    warnings = identities.warnings()
    if position < file.size:
        warnings = (*warnings, f"{file.size - position} bytes after the end of the image")
    return ImageHeader("jpeg", frame.width, height, identities.names(), warnings)


def _next_marker(file: ImageFile, position: int) -> tuple[int, int]:
    """Where a marker's segment begins, and which it is; any number of FF may stand before it."""
    if position >= file.size:
        raise truncated("JPEG: it has no end of image (EOI)")
    head = file.read(position, min(2, file.size - position), "JPEG marker")
    if head[0] != 0xFF:
        raise malformed(f"JPEG: no marker at byte {position}")
    if len(head) == 2 and head[1] != 0xFF:  # as nearly always
        return position + 2, head[1]
    while True:
        if position >= file.size:
            raise truncated("JPEG: it ends within a marker")
        data = file.read(position, min(4096, file.size - position), "JPEG marker")
        rest = data.lstrip(b"\xff")
        position += len(data) - len(rest)
        if rest:
            return position + 1, rest[0]


def _find_marker(file: ImageFile, position: int) -> int:
    """Where the marker that ends entropy-coded data begins."""
    window = _WINDOW  # it grows, for a file may be one long scan or thousands of short ones
    while position < file.size:
        data = file.read(position, min(window, file.size - position), "JPEG data")
        window = min(2 * window, CHUNK)
        if match := _ENDS.search(data):
            return position + match.start()
        # An FF at the very end may be the first half of a marker.
        kept = 1 if data.endswith(b"\xff") and len(data) > 1 else 0
        position += len(data) - kept
        if kept and position + 1 >= file.size:
            break
    raise truncated("JPEG: it has no end of image (EOI)")


def _parse_frame(kind: int, data: bytes) -> Frame:
    """Read a frame header, T.81 section B.2.2."""
    count = data[7] if len(data) >= 8 else 0
    if not count or len(data) != 8 + 3 * count:
        raise malformed(f"JPEG: a frame header of {len(data)} bytes for {count} components")
    height, width = int.from_bytes(data[3:5], "big"), int.from_bytes(data[5:7], "big")
    factors = tuple((data[at] >> 4, data[at] & 15) for at in range(9, len(data), 3))
    if any(not 1 <= each <= 4 for pair in factors for each in pair):
        raise malformed("JPEG: impossible sampling factors")
    if not width:
        raise malformed("JPEG: its width is 0")
    return Frame(kind, width, height, factors)
