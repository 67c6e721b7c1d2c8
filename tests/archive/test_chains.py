"""Filter chains: what liblzma makes of them, and how probes choose."""

from __future__ import annotations

import lzma
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive import chains

ENCODERS = sorted(set(chains.FILTERS) - {"S"})
LETTERS = bytes(random.Random(1).choices(b"abcdefgh", k=20_000))
NOISE = random.Random(2).randbytes(20_000)


def header_flags(data: bytes) -> bytes:
    """The filter flags in the first block header of an .xz file without the optional sizes."""
    size = (data[12] + 1) * 4
    assert data[13] & 0b1100_0000 == 0
    count = (data[13] & 3) + 1
    flags, pos = b"", 14
    for _ in range(count):
        length = 2 + data[pos + 1]
        flags += data[pos : pos + length]
        pos += length
    assert not any(data[pos : 12 + size - 4])
    return flags


@pytest.mark.parametrize("name", sorted(chains.FILTERS))
def test_filter_flags_are_what_liblzma_writes(name):
    """The flags equal those in a block header that liblzma writes for the same filters."""
    data = lzma.compress(b"x" * 100, format=lzma.FORMAT_XZ, filters=chains.FILTERS[name])
    assert chains.filter_flags(name) == header_flags(data)


def test_dictionary_sizes_are_spelt_as_measured():
    """One MiB is byte 16 and 8 MiB byte 22; delta distances are one less than they say."""
    assert chains.filter_flags("A2") == bytes((0x03, 1, 1, 0x21, 1, 16))
    assert chains.filter_flags("R3") == bytes((0x03, 1, 2, 0x21, 1, 22))
    assert chains.filter_flags("S") == chains.filter_flags("A0")


@pytest.mark.parametrize("exponent", range(12, 31))
def test_dictionary_bytes_cover_both_kinds_of_size(exponent):
    """Powers of two, and one and a half times them, decode to themselves by the format's formula."""
    for size in (2**exponent, 3 * 2 ** (exponent - 1)):
        bits = chains._dictionary_byte(size)
        assert (2 | (bits & 1)) << (bits // 2 + 11) == size


@pytest.mark.parametrize("name", ENCODERS)
@given(data=st.binary(max_size=3000))
@settings(max_examples=20, deadline=None)
def test_chains_bring_back_what_they_were_given(name, data):
    """Every chain is a valid raw chain for stdlib lzma, both ways."""
    packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=chains.FILTERS[name])
    assert lzma.decompress(packed, format=lzma.FORMAT_RAW, filters=chains.FILTERS[name]) == data


def test_stored_chunks_decode_with_the_stored_chain():
    """LZMA2's uncompressed chunks, as stored blocks hold them, are read with the filters of S."""
    data = b"\x01" + (4).to_bytes(2, "big") + b"hello" + b"\x02" + (4).to_bytes(2, "big") + b"world" + b"\0"
    assert lzma.decompress(data, format=lzma.FORMAT_RAW, filters=chains.FILTERS["S"]) == b"helloworld"


def test_portable_chains_have_no_delta():
    """Every chain has a portable one, which is portable itself and begins with LZMA2."""
    for name in chains.FILTERS:
        portable = chains.portable_chain(name)
        assert chains.portable_chain(portable) == portable
        assert [f["id"] for f in chains.FILTERS[portable]] == [lzma.FILTER_LZMA2]
    assert (chains.portable_chain("A2"), chains.portable_chain("R3")) == ("A0", "R0")


def test_plain_chains_are_not_probed():
    """A class that is a chain stands for itself, whatever the data."""
    for name in chains.FILTERS:
        assert chains.probe_chain(name, NOISE) == name


def test_huffman_coded_data_is_stored_unless_it_still_shrinks():
    """J takes A0 when it gains more than 5 per cent and stores the rest, also nothing at all."""
    assert chains.probe_chain("J", LETTERS) == "A0"
    assert chains.probe_chain("J", NOISE) == "S"
    assert chains.probe_chain("J", b"") == "S"
    four_percent = NOISE[:19_000] + bytes(850)
    assert chains.probe_chain("J", four_percent) == "S"
    assert chains.probe_chain("J", NOISE[:18_000] + bytes(2000)) == "A0"


def test_colour_takes_the_smaller_of_both_chains():
    """RGB takes the delta chain for colour gradients and plain LZMA2 for a few repeated colours."""
    step = random.Random(3)
    gradient, pixel = bytearray(), [10, 90, 200]
    for _ in range(20_000):
        pixel = [(value + step.randrange(3)) % 256 for value in pixel]
        gradient += bytes(pixel)
    assert chains.probe_chain("RGB", bytes(gradient)) == "R3"
    palette = [step.randbytes(3) for _ in range(8)]
    assert chains.probe_chain("RGB", b"".join(step.choices(palette, k=20_000))) == "A0"


def test_probes_look_at_the_first_mebibyte_only(monkeypatch):
    """What lies behind the probed bytes does not change the choice."""
    monkeypatch.setattr(chains, "PROBE_BYTES", 10_000)
    assert chains.probe_chain("J", NOISE[:10_000] + bytes(90_000)) == "S"
    assert chains.probe_chain("J", LETTERS[:10_000] + NOISE * 5) == "A0"


@pytest.mark.parametrize("function", [chains.filter_flags, chains.portable_chain])
@pytest.mark.parametrize("name", ["", "J", "RGB", "A1", "a0"])
def test_unknown_chains_are_refused(function, name):
    """A name that is no chain is a ValueError that says so."""
    with pytest.raises(ValueError, match="no filter chain"):
        function(name)


def test_unknown_classes_are_refused():
    """A class that is neither chain nor probe is a ValueError."""
    with pytest.raises(ValueError, match="no filter chain"):
        chains.probe_chain("Q", b"")
