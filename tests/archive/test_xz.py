"""The .xz container's bytes: what is written can be read, and what is damaged is refused."""

from __future__ import annotations

import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archive.xz import (
    FOOTER_BYTES,
    BlockSize,
    XzFormatError,
    decode_vli,
    encode_vli,
    padded,
    parse_footer,
    parse_index,
    stream_header,
    stream_tail,
)

vli_values = st.integers(0, 2**63 - 1)
blocks = st.lists(st.builds(BlockSize, st.integers(1, 2**40), st.integers(0, 2**40)), max_size=50)


@given(vli_values, st.binary(max_size=5), st.binary(max_size=5))
def test_vli_round_trip(value: int, before: bytes, behind: bytes) -> None:
    """Any integer of the format comes back from its bytes, wherever they stand, with the offset behind them."""
    encoded = encode_vli(value)
    assert decode_vli(before + encoded + behind, len(before)) == (value, len(before) + len(encoded))
    assert len(encoded) <= 9


@given(st.binary(max_size=12))
def test_vli_of_any_bytes(data: bytes) -> None:
    """Whatever the bytes, they are the one shortest spelling of a number or an `XzFormatError`."""
    try:
        value, end = decode_vli(data, 0)
    except XzFormatError:
        return
    assert encode_vli(value) == data[:end]


@given(blocks)
def test_tail_round_trip(sizes: list[BlockSize]) -> None:
    """The footer leads to the index, and the index lists the blocks that were written."""
    tail = stream_tail(sizes, len(sizes))
    length = parse_footer(tail[-FOOTER_BYTES:])
    assert length == len(tail) - FOOTER_BYTES
    assert parse_index(tail[:length]) == sizes
    assert len(tail) % 4 == 0


@given(blocks, st.data())
def test_damaged_tail_is_refused(sizes: list[BlockSize], data: st.DataObject) -> None:
    """No changed byte of index or footer goes unseen."""
    tail = bytearray(stream_tail(sizes, len(sizes)))
    tail[data.draw(st.integers(0, len(tail) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        length = parse_footer(bytes(tail[-FOOTER_BYTES:]))
    except XzFormatError:
        return
    with pytest.raises(XzFormatError):
        parse_index(bytes(tail[-FOOTER_BYTES - length : -FOOTER_BYTES]))


@given(st.binary(max_size=40))
def test_parsers_take_any_bytes(data: bytes) -> None:
    """Bytes of any kind are parsed or refused with `XzFormatError`, nothing else."""
    for parse in (parse_footer, parse_index):
        try:
            parse(data)
        except XzFormatError:
            continue


def test_empty_stream_is_an_xz_file() -> None:
    """Header and tail of no blocks are an empty .xz file to liblzma."""
    assert lzma.decompress(stream_header() + stream_tail([], 0)) == b""


@given(st.integers(0, 2**40))
def test_padded(size: int) -> None:
    """Padding reaches the next multiple of four, and no further."""
    assert padded(size) % 4 == 0
    assert 0 <= padded(size) - size < 4
