"""Reading image files: the bytes asked for, wherever they lie, in few system calls."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ItemError
from pipeline.images.check import check_image
from pipeline.images.header import CHUNK, WINDOW, ImageFile
from tests.images.image_bytes import jpeg, make

SIZE = 2 * CHUNK + 12_345
BYTES = bytes(range(251)) * (SIZE // 251 + 1)
NEAR = st.integers(-9, 9)
PLACES = st.one_of(
    st.integers(-5, SIZE + 5),
    st.builds(lambda base, more: base + more, st.sampled_from([0, WINDOW, 2 * WINDOW, CHUNK, SIZE]), NEAR),
)
COUNTS = st.one_of(
    st.integers(0, 70_000),
    st.builds(lambda base, more: max(0, base + more), st.sampled_from([WINDOW, CHUNK, SIZE]), NEAR),
)


@pytest.fixture(name="descriptor", scope="module")
def _descriptor(tmp_path_factory: pytest.TempPathFactory) -> int:
    """An open file of known bytes."""
    path = tmp_path_factory.mktemp("reading") / "file"
    path.write_bytes(BYTES[:SIZE])
    return os.open(path, os.O_RDONLY)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reads=st.lists(st.tuples(PLACES, COUNTS), min_size=1, max_size=8))
def test_any_order(descriptor: int, reads: list[tuple[int, int]]) -> None:
    """Whatever was read before, a read gives the bytes of its place, or says that they are not there."""
    file = ImageFile(descriptor)
    for offset, count in reads:
        if offset < 0 or offset + count > SIZE:
            with pytest.raises(ItemError, match=f"of {SIZE}") as caught:
                file.read(offset, count, "a thing")
            assert caught.value.reason == "truncated"
        else:
            assert file.read(offset, count, "a thing") == BYTES[offset : offset + count]


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    """Bytes that were cut off since the file was opened make it truncated, no endless loop."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    with path.open("rb+") as raw:
        file = ImageFile(raw.fileno())
        raw.truncate(500)
        with pytest.raises(ItemError, match="became shorter"):
            file.read(0, 600, "a thing")


@pytest.mark.parametrize("data", [jpeg(360, 270, name="ISIC_0000001"), make("PNG", 200, 200)], ids=["jpeg", "png"])
def test_one_call_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """An image that fits into the window is read by one system call, however many segments it has."""
    assert 30_000 < len(data) <= WINDOW
    path = tmp_path / "image"
    path.write_bytes(data)
    calls = []
    pread = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        calls.append((offset, count))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    check_image(path, ".bin")
    assert calls == [(0, len(data))]


@pytest.mark.parametrize("shift", range(-12, 4))
def test_markers_at_the_edge(tmp_path: Path, shift: int) -> None:
    """Segments that begin around the edge of what is read at a time are found, and a cut within them is noticed."""
    plain = jpeg(360, 270)
    fill = WINDOW + shift - 2
    comments = b""
    while fill > 0:
        size = min(fill, 60_000)
        size -= 4 if 0 < fill - size < 4 else 0  # what is left must hold a segment
        comments += b"\xff\xfe" + struct.pack(">H", size - 2) + bytes(size - 4)
        fill -= size
    data = plain[:2] + comments + plain[2:]
    assert data[WINDOW + shift : WINDOW + shift + 2] == b"\xff\xe0"
    path = tmp_path / "image"
    path.write_bytes(data)
    found = check_image(path, ".jpg")
    assert (found.width, found.height, found.warnings) == (360, 270, ())
    for end in range(WINDOW - 2, WINDOW + 12):
        path.write_bytes(data[:end])
        with pytest.raises(ItemError) as caught:
            check_image(path, ".jpg")
        assert caught.value.reason == "truncated"
