"""Superpixels and masks: decoded as they were written, mapped, outlined, painted."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ConfigError, UsageError
from pipeline.isic_superpixels import (
    decode_mask,
    decode_superpixels,
    encode_superpixels,
    map_superpixels,
    mask_superpixels,
    outline_superpixels,
    paint_superpixels,
    select_superpixels,
)

LABELS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [300, 300, 300, 70000]])


def png(pixels: object) -> bytes:
    """A PNG of an array."""
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(out, "PNG")
    return out.getvalue()


@given(st.lists(st.integers(0, (1 << 24) - 1), min_size=6, max_size=6))
def test_labels_survive_the_png(numbers: list[int]) -> None:
    """Label = red + 256 green + 65536 blue, whatever the label."""
    labels = np.array(numbers).reshape(2, 3)
    pixels = encode_superpixels(labels)
    assert pixels[0, 0].tolist() == list(numbers[0].to_bytes(3, "little"))
    assert (decode_superpixels(png(pixels)) == labels).all()
    alpha = np.dstack([pixels, np.full((2, 3), 255, np.uint8)])
    assert (decode_superpixels(png(alpha)) == labels).all()


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bits_a_channel_are_refused(kind: int, channels: int) -> None:
    """A PNG of 16 bits has other labels than the 8 bits that an image library makes of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = struct.pack(f">{2 * channels}H", *([0x0105] * 2 * channels))
    head = struct.pack(">IIBBBBB", 2, 1, 16, kind, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )
    with pytest.raises(ConfigError, match="16 bits"):
        decode_superpixels(data)


@given(st.lists(st.integers(0, 9), min_size=12, max_size=12))
def test_the_map_has_every_pixel_once(numbers: list[int]) -> None:
    """A label's pixels are exactly those that have it."""
    labels = np.array(numbers).reshape(3, 4)
    found = map_superpixels(labels)
    for label in range(-1, 12):
        assert found.pixels(label).tolist() == [n for n, each in enumerate(numbers) if each == label]
    assert found.sizes().tolist() == [numbers.count(label) for label in range(max(numbers) + 1)]
    assert found.shape == (3, 4)


def test_outlines() -> None:
    """Borders between labels, or the outermost pixels of some."""
    edges = outline_superpixels(LABELS)
    assert edges.astype(int).tolist() == [[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]
    big = np.zeros((5, 5), int)
    big[1:4, 1:4] = 7
    ring = outline_superpixels(big, [7])
    assert ring.sum() == 8
    assert not ring[2, 2]
    assert outline_superpixels(big, [0])[0, 0]
    assert not outline_superpixels(big, [9]).any()


def test_painting() -> None:
    """Chosen labels get their colour, the rest and the original stay as they are."""
    image = np.full((3, 4, 3), 100, np.uint8)
    painted = paint_superpixels(image, LABELS, {1: (200, 0, 100), 70000: (0, 0, 0), 5: (1, 1, 1), 10**9: (1, 1, 1)})
    assert painted[0, 2].tolist() == [150, 50, 100]
    assert painted[2, 3].tolist() == [50, 50, 50]
    assert painted[0, 0].tolist() == [100, 100, 100]
    assert (image == 100).all()
    grey = paint_superpixels(image[..., 0], LABELS, {0: (1, 2, 3)}, opacity=1)
    assert grey[1, 1].tolist() == [1, 2, 3]
    assert (paint_superpixels(image, LABELS, {0: (1, 2, 3)}, opacity=0) == image).all()


def test_masks() -> None:
    """Masks from weights of labels, and labels from masks."""
    mask = mask_superpixels(LABELS, {0: 1.0, 1: 0.5, 99999999: 1.0})
    assert mask.tolist() == [[255, 255, 128, 128], [255, 255, 128, 128], [0, 0, 0, 0]]
    assert (mask_superpixels(LABELS, [1.0, 0.5]) == mask).all()
    assert (decode_mask(png(mask)) == mask).all()
    assert select_superpixels(LABELS, mask) == [0, 1]
    half = np.zeros((3, 4), np.uint8)
    half[0] = 255
    assert select_superpixels(LABELS, half) == [0, 1]
    assert select_superpixels(LABELS, half, 0.6) == []
    assert decode_mask(png(half > 0)).tolist() == half.tolist()


def huge() -> bytes:
    """A PNG that says it has ten billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>no</html>", b"\x89PNG\r\n\x1a\n", png(encode_superpixels(LABELS))[:60], huge(), png(LABELS > 0)],
)
def test_what_is_no_superpixel_image(data: bytes) -> None:
    """Something else is an error that says so, not an array."""
    with pytest.raises(ConfigError, match="superpixel image"):
        decode_superpixels(data)


@given(st.binary(max_size=300), st.integers(0, 80))
def test_damage_is_an_error_or_an_array(noise: bytes, place: int) -> None:
    """Bytes of any kind raise nothing but ConfigError."""
    good = png(encode_superpixels(LABELS))
    for data in (noise, b"\x89PNG\r\n\x1a\n" + noise, good[:place] + noise + good[place + len(noise) :]):
        try:
            assert decode_superpixels(data).ndim == 2
        except ConfigError:
            continue


def test_wrong_arguments() -> None:
    """Sizes, labels and colours that do not fit are refused."""
    image = np.zeros((3, 4, 3), np.uint8)
    for call in (
        lambda: map_superpixels([[0.5]]),
        lambda: map_superpixels([[-1]]),
        lambda: map_superpixels([1]),
        lambda: encode_superpixels([[1 << 24]]),
        lambda: select_superpixels(LABELS, image[..., 0].T),
        lambda: mask_superpixels(LABELS, {0: 2.0}),
        lambda: paint_superpixels(image[:2], LABELS, {}),
        lambda: paint_superpixels(image, LABELS, {0: (0, 0, 256)}),
        lambda: paint_superpixels(image, LABELS, {}, opacity=2),
    ):
        with pytest.raises(UsageError):
            call()
