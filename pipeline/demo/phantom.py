"""Pixels that look like anatomy to a compressor: smooth organs in front of air, under noise. Standard library only.

Shapes are painted row by row; noise comes from SHAKE-128 and is added to a whole image at once, as one big integer
whose lanes never overflow. Same arguments, same bytes, on any machine.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple


class Ellipse(NamedTuple):
    """A filled ellipse in thousandths of the image's width, whose grey value swings by `swing` around `level`."""

    x: int
    y: int
    rx: int
    ry: int
    level: int
    swing: int


# Per modality: what is painted, the later over the earlier. Levels are stored values: CT in HU + 1024 (before noise).
TORSO = (
    Ellipse(500, 500, 430, 330, 930, 25),
    Ellipse(500, 505, 405, 300, 1040, 20),
    Ellipse(310, 470, 130, 190, 180, 60),
    Ellipse(690, 470, 130, 190, 180, 60),
    Ellipse(540, 520, 95, 80, 1100, 30),
    Ellipse(500, 735, 55, 50, 1650, 220),
    Ellipse(500, 735, 20, 18, 1060, 10),
)
HEAD = (
    Ellipse(500, 500, 340, 430, 620, 30),
    Ellipse(500, 500, 310, 395, 90, 20),
    Ellipse(500, 500, 295, 380, 480, 70),
    Ellipse(440, 480, 40, 120, 160, 30),
    Ellipse(560, 480, 40, 120, 160, 30),
    Ellipse(380, 640, 60, 45, 700, 40),
)
UPTAKE = (
    Ellipse(500, 500, 420, 320, 300, 120),
    Ellipse(430, 430, 60, 80, 2600, 900),
    Ellipse(610, 620, 40, 30, 6200, 1500),
)
SECTOR = (
    Ellipse(500, 80, 480, 860, 48, 14),
    Ellipse(470, 500, 210, 170, 20, 8),
    Ellipse(620, 610, 90, 110, 92, 20),
)


def paint_rows(shapes: Sequence[Ellipse], rows: int, columns: int, slice_part: float, kind: str = "H") -> bytes:
    """Paint shapes into a grey image of 16-bit (`H`) or 8-bit (`B`) little-endian pixels.

    `slice_part` from 0 to 1 says how far through the body the slice is: shapes swell and shrink with it.
    """
    shrink = 1000 - int(260 * abs(2 * slice_part - 1))
    placed = []
    for shape in shapes:
        cx, cy = shape.x * columns // 1000, shape.y * rows // 1000
        rx = max(1, shape.rx * columns * shrink // 1_000_000)
        ry = max(1, shape.ry * rows * shrink // 1_000_000)
        wave = (abs((n * 7) % (4 * columns) - 2 * columns) for n in range(2 * columns + rows))
        ramp = array(kind, (max(0, shape.level - shape.swing + shape.swing * step // columns) for step in wave))
        placed.append((cx, cy, rx, ry, ramp))
    image = array(kind)
    air = array(kind, bytes(columns * image.itemsize))
    for y in range(rows):
        row = array(kind, air)
        for cx, cy, rx, ry, ramp in placed:
            rest = ry * ry - (y - cy) * (y - cy)
            if rest > 0:
                half = math.isqrt(rx * rx * rest) // ry
                left, right = max(0, cx - half), min(columns, cx + half)
                row[left:right] = ramp[left + y // 2 : right + y // 2]
        image.extend(row)
    if sys.byteorder == "big":
        image.byteswap()
    return image.tobytes()


def add_noise(pixels: bytes, seed: str, *, lane_bytes: int, bits: int) -> bytes:
    """Add noise of three uniform draws of `bits` bits (near enough to normal) to every pixel.

    The pixels must leave room for `3 * 2**bits` in their lanes.
    """
    size = len(pixels)
    draws = int.from_bytes(hashlib.shake_128(seed.encode()).digest(size), "little")
    lane = ((1 << bits) - 1).to_bytes(lane_bytes, "little")
    mask = int.from_bytes(lane * (size // lane_bytes), "little")
    total = int.from_bytes(pixels, "little") + (draws & mask)
    total += (draws >> bits) & mask
    total += (draws >> (2 * bits)) & mask
    return total.to_bytes(size, "little")


def make_grey16(shapes: Sequence[Ellipse], rows: int, columns: int, part: float, seed: str, bits: int) -> bytes:
    """A grey image of 16-bit little-endian pixels."""
    return add_noise(paint_rows(shapes, rows, columns, part), seed, lane_bytes=2, bits=bits)


def make_rgb8(shapes: Sequence[Ellipse], rows: int, columns: int, part: float, seed: str) -> bytes:
    """An RGB image of 8 bits a sample, colour by pixel, with a reddish last shape as Doppler ultrasound has."""
    grey = add_noise(paint_rows(shapes, rows, columns, part, "B"), seed, lane_bytes=1, bits=3)
    plain = add_noise(paint_rows(shapes[:-1], rows, columns, part, "B"), seed, lane_bytes=1, bits=3)
    rgb = bytearray(3 * len(grey))
    rgb[0::3], rgb[1::3], rgb[2::3] = grey, plain, plain
    return bytes(rgb)


def make_mask(shape: Ellipse, rows: int, columns: int, part: float) -> bytes:
    """A mask of 1 bit a pixel, first pixel in the lowest bit (DICOM PS3.5 annex D); `columns` a multiple of 8."""
    painted = paint_rows((shape._replace(level=1, swing=0),), rows, columns, part, "B")
    out = bytearray()
    for start in range(0, len(painted), columns):
        row = painted[start : start + columns]
        first, count = row.find(1), row.count(1)
        out += (((1 << count) - 1) << max(first, 0)).to_bytes(columns // 8, "little")
    return bytes(out)
