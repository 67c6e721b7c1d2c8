"""Image files made by hand, the same on every machine: baseline JPEG, greyscale PNG and tiled TIFF.

A JPEG is made of coefficients (ITU-T T.81), not of pixels: a mean for each block of 8 x 8 and some noise. PNG: ISO/IEC
15948. TIFF 6.0 with tiles of 256 pixels, as cloud-optimised files have them.
"""

from __future__ import annotations

import functools
import random
import struct
import zlib
from itertools import pairwise

# Bits of a code for each size of a difference (annex K.3.1), and of runs of no zeros; the second table is our own.
_DC_LENGTHS, _DC_VALUES = (0, 1, 5, 1, 1, 1, 1, 1, 1) + (0,) * 7, tuple(range(12))
_AC_LENGTHS, _AC_VALUES = (0, 2, 2, 2, 1) + (0,) * 11, (0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06)
_POOL = 48  # different noises of an image
_NOISE = 6  # the step of the noise's coefficients
_TILE = 256


def _assign_codes(lengths: tuple[int, ...], values: tuple[int, ...]) -> dict[int, str]:
    """Code words as T.81 annex C assigns them."""
    codes, code, place = {}, 0, 0
    for bits, count in enumerate(lengths, 1):
        for _ in range(count):
            codes[values[place]] = f"{code:0{bits}b}"
            code, place = code + 1, place + 1
        code <<= 1
    return codes


_DC, _AC = _assign_codes(_DC_LENGTHS, _DC_VALUES), _assign_codes(_AC_LENGTHS, _AC_VALUES)


def _encode_number(codes: dict[int, str], value: int) -> str:
    size = abs(value).bit_length()
    return codes[size] + (f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else "")


_DIFFERENCES = {value: _encode_number(_DC, value) for value in range(-255, 256)}


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


@functools.lru_cache(maxsize=128)
def make_jpeg(width: int, height: int, detail: int, seed: int) -> bytes:
    """A baseline JPEG: a dark spot on skin. `detail`: how many coefficients of each block are noise, up to 63. Pure."""
    chance = random.Random(f"jpeg {width} {height} {detail} {seed}")  # noqa: S311 - the same each time
    noises = [
        "".join(_encode_number(_AC, chance.choice((-9, -5, -3, -2, -1, 1, 2, 3, 6, 11))) for _ in range(detail))
        + (_AC[0] if detail < 63 else "")
        for _ in range(_POOL)
    ]
    across, down = (width + 7) // 8, (height + 7) // 8
    middle, radius = (across * chance.uniform(0.35, 0.65), down * chance.uniform(0.35, 0.65)), min(across, down) / 3
    skin, spot = chance.randint(30, 70), chance.randint(-90, -30)
    blue, red = chance.randint(-30, -10), chance.randint(10, 40)
    brightness = [0]
    for y in range(down):
        for x in range(across):
            inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2
            brightness.append((spot if inside else skin) + chance.randint(-6, 6))
    plain = _DIFFERENCES[0] + _AC[0]
    bits = [
        _DIFFERENCES[after - before] + noise + plain * 2
        for (before, after), noise in zip(
            pairwise(brightness), chance.choices(noises, k=len(brightness) - 1), strict=True
        )
    ]
    # The first block has the colours, from which no other differs.
    colours = _DIFFERENCES[blue] + _AC[0] + _DIFFERENCES[red] + _AC[0]
    bits[0] = bits[0].removesuffix(plain * 2) + colours
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\x00")
    parts = "".join(f"{number:02x}1100" for number in (1, 2, 3))
    quantities = bytes([8]) + bytes([_NOISE]) * 63  # a mean of 8 x 8 values is an eighth of its coefficient
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            _segment(0xDB, b"\0" + quantities),
            _segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + bytes.fromhex(parts)),
            _segment(0xC4, b"\x00" + bytes(_DC_LENGTHS) + bytes(_DC_VALUES)),
            _segment(0xC4, b"\x10" + bytes(_AC_LENGTHS) + bytes(_AC_VALUES)),
            _segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 63, 0])),
            scan,
            b"\xff\xd9",
        )
    )


def make_png(width: int, height: int, seed: int) -> bytes:
    """A greyscale PNG of 16 bits: noise, so that it is as large as it looks. Pure."""
    chance = random.Random(f"png {width} {height} {seed}")  # noqa: S311 - the same each time
    noise = chance.randbytes(width * height * 2)
    rows = b"".join(b"\0" + noise[start : start + width * 2] for start in range(0, len(noise), width * 2))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def make_tiff(width: int, height: int, seed: int) -> bytes:
    """A greyscale TIFF of 8 bits, in tiles of 256 pixels with DEFLATE, its directory first. Pure."""
    count = ((width + _TILE - 1) // _TILE) * ((height + _TILE - 1) // _TILE)
    chance = random.Random(f"tiff {width} {height} {seed}")  # noqa: S311 - the same each time
    tiles = [zlib.compress(chance.randbytes(_TILE * _TILE // 4) * 4, 1) for _ in range(count)]
    entries = 10
    after = 8 + 2 + 12 * entries + 4
    lists = 0 if count == 1 else 8 * count
    offsets = [after + lists + sum(map(len, tiles[:place])) for place in range(count)]
    sizes = [len(tile) for tile in tiles]

    def entry(tag: int, kind: int, number: int, value: int) -> bytes:
        return struct.pack("<HHI", tag, kind, number) + struct.pack("<I", value)

    directory = b"".join(
        (
            entry(256, 4, 1, width),
            entry(257, 4, 1, height),
            entry(258, 3, 1, 8),
            entry(259, 3, 1, 8),
            entry(262, 3, 1, 1),
            entry(277, 3, 1, 1),
            entry(322, 4, 1, _TILE),
            entry(323, 4, 1, _TILE),
            entry(324, 4, count, offsets[0] if count == 1 else after),
            entry(325, 4, count, sizes[0] if count == 1 else after + 4 * count),
        )
    )
    listed = b"" if count == 1 else struct.pack(f"<{2 * count}I", *offsets, *sizes)
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    return head + directory + struct.pack("<I", 0) + listed + b"".join(tiles)
