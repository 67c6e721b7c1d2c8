"""Hostile image files: whatever the bytes, the check ends soon with a header or an `ItemError`."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ItemError
from pipeline.images.check import check_image
from pipeline.images.xmp import MAX_PACKET, MAX_SEARCHED, find_identities
from tests.images.image_bytes import chunk, jpeg, make, png, tiff

SEEDS = {
    "jpeg": jpeg(name="ISIC_0000001"),
    "progressive": jpeg(progressive=True),
    "png": make("PNG"),
    "tiff": make("TIFF", 64, 64, compression="tiff_adobe_deflate"),
    "big": make("TIFF", big_tiff=True),
    "directories": tiff(*[[(256, 3, 1, 4), (257, 3, 1, 4), (273, 4, 1, 8), (279, 4, 1, 8)]] * 3, tail=bytes(99)),
}
SOFT = [HealthCheck.function_scoped_fixture]


def judge(tmp_path: Path, data: bytes) -> None:
    """Check; a header must be sensible, an error of the right kind."""
    path = tmp_path / "image"
    path.write_bytes(data)
    begun = time.monotonic()
    try:
        found = check_image(path, ".bin")
    except ItemError as error:
        good = error.reason in {"truncated", "malformed"} and len(str(error)) < 500
    else:
        good = found.width > 0 and found.height > 0
    assert good
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("data", SEEDS.values(), ids=SEEDS)
@settings(max_examples=150, deadline=None, suppress_health_check=SOFT)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6))
def test_mutated(tmp_path: Path, data: bytes, changes: list[tuple[int, bytes]]) -> None:
    """Bytes written over a good file, mostly its header, crash nothing."""
    bent = bytearray(data)
    for place, new in changes:
        at = place % min(len(bent), 4096)
        bent[at : at + len(new)] = new
    judge(tmp_path, bytes(bent))


@pytest.mark.parametrize("data", SEEDS.values(), ids=SEEDS)
@settings(max_examples=60, deadline=None, suppress_health_check=SOFT)
@given(cuts=st.lists(st.integers(0, 1 << 16), min_size=1, max_size=4))
def test_cut_out_and_doubled(tmp_path: Path, data: bytes, cuts: list[int]) -> None:
    """Pieces that are missing, or that come twice, crash nothing."""
    for number, cut in enumerate(cuts):
        at = cut % max(1, len(data))
        data = data[:at] + data[at + 7 :] if number % 2 else data[:at] + data[max(0, at - 9) :]
    judge(tmp_path, data)


@settings(max_examples=150, deadline=None, suppress_health_check=SOFT)
@given(
    start=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"]
    ),
    rest=st.binary(max_size=300),
)
def test_noise(tmp_path: Path, start: bytes, rest: bytes) -> None:
    """Noise after a good beginning crashes nothing."""
    judge(tmp_path, start + rest)


BOMBS = {
    "fill bytes": b"\xff\xd8" + b"\xff" * 5_000_000 + b"\0",
    "fill bytes in data": jpeg()[:-2] + b"\xff" * 5_000_000 + b"\0",
    "segments": b"\xff\xd8" + b"\xff\xe0\0\2" * 500_000,
    "scans": jpeg()[:-2] + b"\xff\xda\0\2\0" * 300_000,
    "chunks": png(2, 2, bytes(6))[:33] + chunk(b"tEXt", b"") * 200_000,
    "inflates": png(30_000, 30_000, bytes(200_000_000)),
    "xmp": jpeg()[:2]
    + b"\xff\xe1\xff\xff"
    + b"http://ns.adobe.com/xap/1.0/\0"
    + b":title>ISIC_<" * 5038
    + b"xxx"
    + jpeg()[2:],
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs(tmp_path: Path, data: bytes) -> None:
    """Files made to be slow or to need much memory end soon, in little."""
    judge(tmp_path, data)


def packets(unit: bytes, count: int) -> list[bytes]:
    """TIFFs of as many directories as there may be, whose XMP is as long as is looked at, and hard to search."""
    packet = (b"ISIC_" + unit * ((1 << 20) // len(unit) + 1))[: 1 << 20]
    place = 8 + count * (2 + 12 * 6 + 4)
    fields = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 16)]
    return [
        tiff(*[[*fields, (700, 7, len(packet) - step * number, place + step * number)] for number in range(count)])
        + packet
        for step in (0, 1)
    ]


@pytest.mark.parametrize("number", [0, 1], ids=["the same", "each another"])
@pytest.mark.parametrize(
    "unit", [b":title" + b" " * 10, b":title>" + b" " * 256, b"<title>" + b" " * 20 + b"<a>"], ids=["a", "b", "c"]
)
def test_packets_are_searched_once(tmp_path: Path, unit: bytes, number: int) -> None:
    """A small TIFF whose directories share an XMP packet costs no more than a few packets."""
    begun = time.process_time()
    judge(tmp_path, packets(unit, 1000)[number])
    assert time.process_time() - begun < 8


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
def test_no_more_than_so_much_is_searched(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the packets of a file are, they are searched up to a bound, and that is remarked."""
    searched = []

    def count(packet: bytes) -> tuple[str, ...]:
        searched.append(len(packet))
        return find_identities(packet)

    monkeypatch.setattr("pipeline.images.xmp.find_identities", count)
    packet = b"ISIC_" + (b":title>" + b" " * 256) * 240
    if kind == "jpeg":
        packet = b"http://ns.adobe.com/xap/1.0/\0" + packet
        segment = b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet
        data = jpeg()[:2] + segment * 100 + jpeg()[2:]
    elif kind == "png":
        data = png(1, 1, b"\0\0", extra=chunk(b"iTXt", b"XML:com.adobe.xmp\0" + packet) * 100)
    else:
        data = packets(b":title>" + b" " * 256, 100)[1]
    path = tmp_path / "image"
    path.write_bytes(data)
    assert "more XMP than is searched" in check_image(path, ".bin").warnings
    assert MAX_SEARCHED - MAX_PACKET < sum(searched) <= MAX_SEARCHED


def test_values_are_read_once(tmp_path: Path) -> None:
    """A field of which one value is asked for costs one, however many it says that it has."""
    count, values = 1000, 60_000
    place = 8 + count * (2 + 12 * 10 + 4)
    fields = [(tag, 4, values, place) for tag in (254, 256, 257, 258, 259, 262, 277, 278)]
    fields += [(273, 4, 1, 8), (279, 4, 1, 16)]
    begun = time.process_time()
    judge(tmp_path, tiff(*[fields] * count) + struct.pack("<I", 1) * values)
    assert time.process_time() - begun < 0.8
