"""Blocks: how a frame is cut, and that a block decodes to what was encoded or not at all."""

from __future__ import annotations

import hashlib
import lzma
import struct
import zlib
from io import BytesIO

import pytest
from build import noise, smooth
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.blocks import (
    HUGE_MEMBER_BLOCKS,
    MIN_CLASS_BYTES,
    decode_block,
    encode_block,
    plan_blocks,
    write_stored_block,
)
from pipeline.archive.catalogue import stored_size
from pipeline.archive.chains import CLASSES, filter_flags
from pipeline.archive.xz import BlockSize, XzFormatError, block_header, padded

BLOCK = 64 << 10
members_of = st.lists(
    st.tuples(st.integers(1, 5 * BLOCK // 512).map(lambda n: n * 512), st.sampled_from(["A0", "A2", "S"])), max_size=40
)


@given(members_of)
def test_cuts_cover_the_frame(members: list[tuple[int, str]]) -> None:
    """Blocks lie one behind the other from the first byte of the frame to its last, none of them empty."""
    cuts = plan_blocks(members, BLOCK)
    position = 0
    for cut in cuts:
        assert cut.start == position < cut.end
        position = cut.end
    assert position == sum(size for size, _ in members)


@given(members_of)
def test_cuts_are_at_member_boundaries(members: list[tuple[int, str]]) -> None:
    """Only members above twice the block size are cut inside, and no block holds a part of one and something else."""
    huge = []
    boundaries = {0}
    position = 0
    for size, _ in members:
        if size > HUGE_MEMBER_BLOCKS * BLOCK:
            huge.append((position, position + size))
        position += size
        boundaries.add(position)
    for cut in plan_blocks(members, BLOCK):
        inside = [span for span in huge if span[0] < cut.end and cut.start < span[1]]
        if inside:
            [(start, end)] = inside
            assert start <= cut.start
            assert cut.end <= end
        else:
            assert cut.start in boundaries
            assert cut.end in boundaries


@given(members_of)
def test_blocks_are_bounded(members: list[tuple[int, str]]) -> None:
    """No block holds three times the block size: readers rely on it for their memory."""
    assert all(cut.end - cut.start < 3 * BLOCK for cut in plan_blocks(members, BLOCK))


@given(members_of)
def test_small_blocks_have_a_reason(members: list[tuple[int, str]]) -> None:
    """Of a frame without huge members, only the last block and those before a new class are below the block size."""
    cuts = plan_blocks(members, 512 << 10)
    assert all(cut.end - cut.start >= MIN_CLASS_BYTES for cut in cuts[:-1])
    one_class = plan_blocks([(size, "A0") for size, _ in members], 512 << 10)
    assert all(cut.end - cut.start >= 512 << 10 for cut in one_class[:-1])


def test_class_of_most_bytes() -> None:
    """A block takes the class that most of its bytes have; of equals the first in the alphabet."""
    assert [cut.chain for cut in plan_blocks([(512, "S"), (1024, "A2")], BLOCK)] == ["A2"]
    assert [cut.chain for cut in plan_blocks([(512, "S"), (512, "A2")], BLOCK)] == ["A2"]


def test_new_class_begins_a_block() -> None:
    """Once a block holds enough, a member of another class begins the next one."""
    size = MIN_CLASS_BYTES
    cuts = plan_blocks([(size, "A2"), (512, "A0")], 4 << 20)
    assert [(cut.start, cut.end, cut.chain) for cut in cuts] == [(0, size, "A2"), (size, size + 512, "A0")]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(CLASSES)),
    st.one_of(
        st.binary(min_size=1, max_size=2000),
        st.integers(1, 200_000).map(noise),
        st.integers(1, 200_000).map(smooth),
    ),
    st.booleans(),
)
def test_block_round_trip(chain: str, data: bytes, portable: bool) -> None:
    """Every class of content comes back, and a block is never much larger than its content."""
    block = encode_block(data, chain, portable=portable, verify=False)
    assert len(block.data) == block.size.total
    assert decode_block(block.data, block.size) == data
    assert block.size.total <= stored_size(len(data)).total


@pytest.mark.parametrize("chain", sorted(CLASSES))
def test_portable_blocks_have_no_delta(chain: str) -> None:
    """With `portable` the header names one filter, LZMA2: what busybox can read."""
    block = encode_block(smooth(50_000), chain, portable=True, verify=True)
    assert block.data[1] & 3 == 0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_block_is_refused(data: st.DataObject) -> None:
    """A changed byte never decodes to other content."""
    content = smooth(3000)
    block = encode_block(content, data.draw(st.sampled_from(["A0", "A2", "S"])), portable=False, verify=False)
    damaged = bytearray(block.data)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode_block(bytes(damaged), block.size) == content
    except XzFormatError:
        return


@given(st.integers(-2000, 2000).filter(bool))
def test_other_size_is_refused(change: int) -> None:
    """A block that holds more or less than the index says is refused."""
    block = encode_block(smooth(3000), "A0", portable=False, verify=False)
    with pytest.raises(XzFormatError):
        decode_block(block.data, BlockSize(block.size.unpadded, 3000 + change))


def test_two_blocks_are_not_one() -> None:
    """Two blocks given as one are refused."""
    block = encode_block(bytes(1000), "A0", portable=False, verify=False)
    with pytest.raises(XzFormatError):
        decode_block(block.data * 2, BlockSize(2 * len(block.data), 2000))


def test_hostile_dictionary_is_refused() -> None:
    """A header that asks for a dictionary of 4 GiB is refused, rather than memory taken for it."""
    body = lzma.compress(bytes(100), format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    header = block_header(len(body), 100, b"\x21\x01\x28", 1)  # 0x28: 4 GiB less one byte
    block = header + body + bytes(padded(len(body)) - len(body)) + hashlib.sha256(bytes(100)).digest()
    with pytest.raises(XzFormatError):
        decode_block(block, BlockSize(len(header) + len(body) + 32, 100))


@settings(max_examples=30, deadline=None)
@given(st.one_of(st.integers(1, 300_000), st.sampled_from([65535, 65536, 65537, 131072])))
def test_stored_block_is_streamed(size: int) -> None:
    """A stored block written from pieces decodes to them, and its size is known before it is written."""
    data = noise(size)
    out = BytesIO()
    written = write_stored_block(out, [BytesIO(data[:100]), BytesIO(b""), BytesIO(data[100:])], size)
    assert written == stored_size(size)
    assert decode_block(out.getvalue(), written) == data


@pytest.mark.parametrize("name", ["A0", "A2", "R0", "R3", "S"])
def test_filter_flags_are_of_the_format(name: str) -> None:
    """The header's own CRC-32 holds and the flags stand in it as given."""
    header = block_header(1000, 2000, filter_flags(name), 2 if name in {"A2", "R3"} else 1)
    assert struct.unpack("<I", header[-4:])[0] == zlib.crc32(header[:-4])
    assert filter_flags(name) in header
