"""PNG (ISO/IEC 15948): chunks with their CRCs from IHDR to IEND, and as much image data as it declares."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

from pipeline.images.header import CHUNK, ImageFile, ImageHeader, malformed, truncated
from pipeline.images.xmp import MAX_PACKET, Identities

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP = b"XML:com.adobe.xmp\0"
# Bit depths by colour type, and samples of a pixel.
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first column and row, and step, of each pass.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
MAX_CHUNKS = 1_000_000
# Bytes of pixels above which the data is not inflated to be counted: minutes of work for one file.
MAX_INFLATED = 4 << 30
DEFLATE_RATIO = 1032  # the most that deflate can gain, RFC 1951


class Layout(NamedTuple):
    """What IHDR declares."""

    width: int
    height: int
    bits: int
    indexed: bool
    interlaced: bool

    def data_bytes(self) -> int:
        """Bytes of the filtered rows of all passes."""
        if not self.interlaced:
            return self.height * (1 + -(-self.width * self.bits // 8))
        total = 0
        for column, row, across, down in _PASSES:
            columns, rows = -(-(self.width - column) // across), -(-(self.height - row) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + -(-columns * self.bits // 8))
        return total


def check_png(file: ImageFile) -> ImageHeader:
    """Check a PNG file. Raises `ItemError` (`truncated`, `malformed`) or OSError."""
    position, layout, palette = len(SIGNATURE), None, False
    data: _Data | None = None
    ended = False  # whether the image data is followed by something else
    identities = Identities()
    for number in range(MAX_CHUNKS):
        if position >= file.size:
            raise truncated("PNG: it has no end (IEND)")
        head = file.read(position, 8, "PNG chunk")
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if length >= 1 << 31 or not (kind.isascii() and kind.isalpha()):
            raise malformed(f"PNG: no chunk at byte {position}")
        if position + 12 + length > file.size:
            raise truncated(f"PNG: its chunk {kind.decode()} ends at byte {position + 12 + length} of {file.size}")
        if (number == 0) != (kind == b"IHDR"):
            raise malformed("PNG: IHDR is not its first chunk, and the only one")
        use: Callable[[bytes], None] | None = None
        if kind == b"IDAT":
            if ended or layout is None:
                raise malformed("PNG: its image data is not in one piece")
            data = data or _Data(layout)
            use = data.feed
        else:
            ended = data is not None
        _check_chunk(file, position, length, kind, use)
        body = position + 8
        if kind == b"IHDR":
            layout = _parse_header(file.read(body, min(length, 14), "PNG header"))
        elif kind == b"PLTE":
            palette = True
        elif kind == b"iTXt" and not identities.names():
            text = file.read(body, min(length, MAX_PACKET), "PNG text")
            if text.startswith(_XMP):  # uncompressed, as XMP's own rules have it
                identities.search(text)
        position += 12 + length
        if kind == b"IEND":
            if length:
                raise malformed("PNG: its end is not empty")
            break
    else:
        raise malformed(f"PNG: more than {MAX_CHUNKS:,} chunks")
    if layout is None or data is None:
        raise malformed("PNG: it has no image data")
    if layout.indexed and not palette:
        raise malformed("PNG: colours by number, and no palette")
    warnings = (*data.finish(), *identities.warnings())
    if position < file.size:
        warnings = (*warnings, f"{file.size - position} bytes after the end of the image")
    return ImageHeader("png", layout.width, layout.height, identities.names(), warnings)


class _Data:
    """The image data of all IDAT chunks, inflated and counted, in little memory."""

    def __init__(self, layout: Layout) -> None:
        self._expected = layout.data_bytes()
        self._shown = f"{layout.width} x {layout.height}"
        self._zlib = zlib.decompressobj()
        self._counted = self._taken = 0

    def feed(self, data: bytes) -> None:
        self._taken += len(data)
        while data and not self._zlib.eof and self._expected <= MAX_INFLATED:
            try:
                self._counted += len(self._zlib.decompress(data, CHUNK))
            except zlib.error as error:
                raise malformed(f"PNG: its image data does not inflate: {error}") from None
            if self._counted > self._expected:
                raise malformed(f"PNG: more image data than for {self._shown} pixels")
            data = self._zlib.unconsumed_tail

    def finish(self) -> tuple[str, ...]:
        """Warnings; raises `ItemError` when there is too little."""
        if self._taken * DEFLATE_RATIO < self._expected:
            raise truncated(f"PNG: {self._taken} bytes of image data cannot hold {self._shown} pixels")
        if self._expected > MAX_INFLATED:
            return ("too large to count its image data",)
        if self._counted < self._expected or not self._zlib.eof:
            raise truncated(f"PNG: {self._counted} of {self._expected} bytes of {self._shown} pixels")
        return ()


def _check_chunk(file: ImageFile, position: int, length: int, kind: bytes, use: Callable[[bytes], None] | None) -> None:
    """Compare a chunk with its CRC, and pass its content on."""
    crc = zlib.crc32(kind)
    take = file.each(position + 8, length, "PNG chunk")
    while piece := take():
        crc = zlib.crc32(piece, crc)
        if use is not None:
            use(piece)
    if file.read(position + 8 + length, 4, "PNG chunk") != crc.to_bytes(4, "big"):
        raise malformed(f"PNG: its chunk {kind.decode()} at byte {position} does not have its CRC")


def _parse_header(data: bytes) -> Layout:
    if len(data) != 13:
        raise malformed("PNG: its header does not have 13 bytes")
    width, height = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
    depth, colour, compression, filtering, interlace = data[8:13]
    if not 0 < width < 1 << 31 or not 0 < height < 1 << 31:
        raise malformed(f"PNG: {width} x {height} pixels")
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise malformed(f"PNG: an impossible header {data[8:13].hex()}")
    return Layout(width, height, depth * _SAMPLES[colour], colour == 3, bool(interlace))
