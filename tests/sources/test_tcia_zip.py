"""Reading zips that nobody vouches for: all that is sound comes out as it went in, all else is refused in words."""

from __future__ import annotations

import random
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zip_kit import Made, make_zip, opened, write_zip

from pipeline.errors import InterruptedRunError, ItemError
from pipeline.sources import tcia_zip
from pipeline.sources.tcia_zip import CHUNK, MAX_RATIO, read_member, read_members

NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/\\\x7f"), min_size=1, max_size=40
)
PLAIN = {"LICENSE": b"free", "1-1.dcm": bytes(300_000), "1-2.dcm": random.Random(1).randbytes(400_000), "empty": b""}


def read_all(folder: Path, data: bytes) -> dict[str, bytes]:
    """All members of a zip with their bytes."""
    with opened(folder, data) as fd:
        return {member.name: b"".join(read_member(fd, member)) for member in read_members(fd)}


def refusal(folder: Path, data: bytes) -> ItemError:
    """The error that a zip ends in, before anything of it was inflated."""
    with opened(folder, data) as fd, pytest.raises(ItemError) as caught:
        read_members(fd)
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples."""
    return tmp_path_factory.mktemp("zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize("stream", [True, False])
def test_a_sound_zip_is_read(tmp_path, stream, method):
    """Deflated and stored members, sizes before or behind the data: names and bytes are as they were."""
    assert read_all(tmp_path, make_zip(PLAIN, stream=stream, method=method)) == PLAIN


@given(files=st.dictionaries(NAMES, st.binary(max_size=3000), max_size=6), stream=st.booleans(), deflated=st.booleans())
def test_whatever_zipfile_writes_is_read(folder, files, stream, deflated):
    """Any plain names and any bytes come back."""
    files = {name: data for name, data in files.items() if name not in {".", ".."} and len(name.encode()) <= 255}
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    assert read_all(folder, make_zip(files, stream=stream, method=method)) == files


def test_a_zip_by_hand_is_read_and_comments_do_no_harm(tmp_path):
    """What hostile zips are made from here is sound by itself; comments are let be, even those that look like ends."""
    ends = b"PK\x05\x06" + bytes(18)
    for comment in (b"", b"hello", ends + b"!", ends * 3 + b"x"):
        made = write_zip(Made(comment=b"c" * 99), Made(name=b"b.dcm", deflated=False), comment=comment)
        assert read_all(tmp_path, made) == {"a.dcm": b"data" * 50, "b.dcm": b"data" * 50}


def test_a_hundred_thousand_members_in_bounded_time_and_memory(tmp_path):
    """Beyond what 16 bits count, the zip64 end is read; memory is a few hundred bytes for each member."""
    count = 100_000
    data = make_zip({f"{number:08d}.dcm": b"" for number in range(count)}, method=zipfile.ZIP_STORED)
    with opened(tmp_path, data) as fd:
        tracemalloc.start()
        members = read_members(fd)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert [members[0].name, members[-1].name, len(members)] == ["00000000.dcm", "00099999.dcm", count]
    assert peak < 120 << 20


def test_sizes_beyond_32_bits_come_from_the_zip64_field(tmp_path):
    """A size of all ones means the field; one that lacks there is refused."""
    field = struct.pack("<2HQ", 1, 8, 200)
    data = write_zip(Made(size=0xFFFFFFFF, extra=b"\x99\x99\x02\x00zz" + field))
    assert read_all(tmp_path, data) == {"a.dcm": b"data" * 50}
    assert "zip64" in str(refusal(tmp_path, write_zip(Made(size=0xFFFFFFFF, extra=field[:-1]))))
    assert "zip64" in str(refusal(tmp_path, write_zip(Made(size=0xFFFFFFFF))))


LOCATOR = struct.pack("<4sIQI", b"PK\x06\x07", 0, 9, 1)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "traversal": lambda: write_zip(Made(name=b"../../evil.dcm")),
    "absolute": lambda: write_zip(Made(name=b"/etc/passwd")),
    "windows": lambda: write_zip(Made(name=b"..\\evil.dcm")),
    "parent": lambda: write_zip(Made(name=b"..")),
    "no name": lambda: write_zip(Made(name=b"")),
    "long name": lambda: write_zip(Made(name=b"x" * 256)),
    "NUL": lambda: write_zip(Made(name=b"a.dcm\0.txt")),
    "newline": lambda: write_zip(Made(name=b"a\n.dcm")),
    "folder by name": lambda: write_zip(Made(name=b"a/", data=b"", deflated=False)),
    "folder by attribute": lambda: write_zip(Made(attributes=0x10)),
    "link": lambda: write_zip(Made(attributes=(stat.S_IFLNK | 0o777) << 16)),
    "device": lambda: write_zip(Made(attributes=(stat.S_IFBLK | 0o777) << 16)),
    "pipe": lambda: write_zip(Made(attributes=(stat.S_IFIFO | 0o777) << 16)),
    "one name twice": lambda: write_zip(Made(), Made()),
    "encrypted": lambda: write_zip(Made(flags=1)),
    "encrypted locally": lambda: write_zip(Made(local_flags=1)),
    "strongly encrypted": lambda: write_zip(Made(flags=0x41)),
    "masked": lambda: write_zip(Made(flags=0x2000)),
    "bzip2": lambda: write_zip(Made(method=12)),
    "method 99": lambda: write_zip(Made(method=99)),
    "another method locally": lambda: write_zip(Made(local_method=0)),
    "another name locally": lambda: write_zip(Made(local_name=b"b.dcm")),
    "another size locally": lambda: write_zip(Made(local_size=7)),
    "prefix": lambda: write_zip(Made(), prefix=b"Warning: mysql\n"),
    "prefix that looks like a zip": lambda: b"PK\x03\x04 garbage" + write_zip(Made()),
    "tail": lambda: write_zip(Made(), tail=b"<html>"),
    "fewer members than stated": lambda: write_zip(Made(), count=2),
    "more members than stated": lambda: write_zip(Made(), Made(name=b"b"), count=1),
    "a million members": lambda: write_zip(Made(), count=60_000),
    "directory elsewhere": lambda: write_zip(Made(), shift=1),
    "directory before": lambda: write_zip(Made(), shift=-1),
    "directory too long": lambda: write_zip(Made(), grow=1),
    "directory of 4 GiB": lambda: write_zip(Made(), grow=0xFFFF0000),
    "several volumes": lambda: write_zip(Made(), disk=1),
    "other volume": lambda: write_zip(Made(disk=1)),
    "half in this volume": lambda: write_zip(Made(), here=0),
    "zip64 count without an end": lambda: write_zip(Made(), count=0xFFFF),
    "zip64 locator to nowhere": lambda: write_zip(Made(), count=0xFFFF, zip64=LOCATOR),
    "overlap": lambda: write_zip(Made(packed_size=2000, size=2000), Made(name=b"b.dcm")),
    "one place twice": lambda: write_zip(Made(), Made(name=b"b.dcm", offset=0, local_name=b"a.dcm")),
    "place in the directory": lambda: write_zip(Made(offset=10_000)),
    "place far beyond": lambda: write_zip(Made(offset=0xFFFFFFF0)),
    "impossible ratio": lambda: write_zip(Made(data=b"", packed=b"\x03\x00", size=2 * MAX_RATIO + 1)),
    "terabytes": lambda: write_zip(Made(size=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 1 << 50))),
    "stored, but larger": lambda: write_zip(Made(deflated=False, size=201)),
    "HTML": lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "text": lambda: b"Server was not able to process your request\n",
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10_000),
    "no end": lambda: write_zip(Made())[:-22],
}  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_hostile_zips_are_refused_before_anything_is_inflated(tmp_path, make):
    """Each kind of zip that no archive of images is, by its directory alone; no message can break a terminal."""
    text = str(refusal(tmp_path, make()))
    assert text.isprintable()
    assert len(text) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_zip64_ends_that_lie_are_refused(tmp_path):
    """Two ends that contradict each other, or one of a wrong length."""
    data = bytearray(make_zip({f"{n}": b"" for n in range(70_000)}, method=zipfile.ZIP_STORED))
    end64 = len(data) - 22 - 20 - 56
    assert data[end64 : end64 + 4] == b"PK\x06\x06"
    with opened(tmp_path, data) as fd:
        assert len(read_members(fd)) == 70_000
    for place, layout, value in (
        (4, "<Q", 45), (16, "<I", 1), (24, "<Q", 69_999), (32, "<Q", 1 << 40), (40, "<Q", 1 << 60), (48, "<Q", 0),
    ):  # fmt: skip
        lie = bytearray(data)
        struct.pack_into(layout, lie, end64 + place, value)
        refusal(tmp_path, bytes(lie))
    lie = bytearray(data)
    struct.pack_into("<I", lie, len(data) - 22 + 12, 17)  # the directory's size in the old end
    refusal(tmp_path, bytes(lie))


def deflate(data: bytes) -> bytes:
    """The data deflated."""
    engine = zlib.compressobj(9, wbits=-15)
    return engine.compress(data) + engine.flush()


DAMAGED: dict[str, Callable[[], bytes]] = {
    "CRC": lambda: write_zip(Made(crc=1)),
    "CRC, stored": lambda: write_zip(Made(crc=1, deflated=False)),
    "more bytes than stated": lambda: write_zip(Made(size=199, local_size=199)),
    "fewer bytes than stated": lambda: write_zip(Made(size=201)),
    "not deflated": lambda: write_zip(Made(packed=b"\xff" * 40)),
    "cut": lambda: write_zip(Made(packed=deflate(b"data" * 50)[:-3])),
    "something behind it": lambda: write_zip(Made(packed=deflate(b"data" * 50) + b"more")),
    "bomb": lambda: write_zip(Made(packed=deflate(bytes(50 << 20)), size=60_000, local_size=60_000)),
}


@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED)
def test_members_that_are_not_what_the_directory_says_are_damaged(tmp_path, make):
    """They end in `checksum`, and never give more bytes than a piece beyond what is stated."""
    with opened(tmp_path, make()) as fd:
        (member,) = read_members(fd)
        pieces = map(len, read_member(fd, member))
        given_out = list[int]()
        tracemalloc.start()
        with pytest.raises(ItemError) as caught:
            given_out.extend(pieces)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (caught.value.reason, caught.value.transient) == ("checksum", True)
    assert sum(given_out) <= member.size
    assert peak < 6 * CHUNK


def test_a_large_member_is_read_in_pieces(tmp_path):
    """Memory does not grow with a member, be it a thousand times smaller in the zip."""
    with opened(tmp_path, make_zip({"a.dcm": bytes(64 << 20)})) as fd:
        (member,) = read_members(fd)
        tracemalloc.start()
        pieces = [len(piece) for piece in read_member(fd, member)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (sum(pieces), max(pieces) <= CHUNK) == (64 << 20, True)
    assert peak < 6 * CHUNK


def test_reading_ends_when_told_to(tmp_path):
    """The check is asked within a member and along the directory, and what it raises goes through."""

    def stop() -> None:
        raise InterruptedRunError("stop")

    with opened(tmp_path, make_zip(PLAIN)) as fd:
        members = read_members(fd)
        with pytest.raises(InterruptedRunError):
            read_members(fd, stop)
        with pytest.raises(InterruptedRunError):
            b"".join(read_member(fd, members[2], stop))


def test_a_file_that_shrinks_meanwhile_is_damage(tmp_path):
    """Bytes that are gone since the directory was read are no reason to wait for ever."""
    with opened(tmp_path, make_zip(PLAIN)) as fd:
        members = read_members(fd)
        (tmp_path / "a.zip").write_bytes(b"")
        with pytest.raises(ItemError, match="the file ends within it"):
            b"".join(read_member(fd, members[2]))


SEEDS = [
    make_zip({"LICENSE": b"free", "1-1.dcm": b"abc" * 90, "1-2.dcm": bytes(range(256)), "md5hashes.csv": b"File\n"}),
    make_zip({"a": b"x" * 50, "b": b""}, stream=False, method=zipfile.ZIP_STORED),
    write_zip(Made(size=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 200)), Made(name=b"b"), comment=b"PK\x05\x06" * 4),
]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_no_mutation_ends_in_anything_but_bytes_that_are_right_or_an_item_error(folder, data):
    """Flipped, cut, doubled and spliced zips: what is given out has its CRC and size, all else is an `ItemError`."""
    raw = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        kind = data.draw(st.sampled_from(["set", "word", "cut", "drop", "copy", "insert"]))
        if kind == "set" and raw:
            raw[place] = data.draw(st.integers(0, 255))
        elif kind == "word":
            raw[place : place + 4] = data.draw(
                st.sampled_from([b"\xff" * 4, bytes(4), b"\x00\x00\x00\x80", b"PK\x05\x06"])
            )
        elif kind == "cut":
            del raw[place:]
        elif kind == "drop":
            del raw[place : place + data.draw(st.integers(1, 40))]
        elif kind == "copy":
            raw[place:place] = raw[data.draw(st.integers(0, len(raw))) :][:60]
        else:
            raw[place:place] = data.draw(st.binary(max_size=10))
    problem = None
    with opened(folder, bytes(raw)) as fd:
        try:
            for member in read_members(fd):
                got = b"".join(read_member(fd, member))
                assert (len(got), zlib.crc32(got)) == (member.size, member.crc)
        except ItemError as error:
            problem = error
    assert problem is None or (problem.reason in {"unavailable", "checksum"} and str(problem).isprintable())


@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED)
def test_zlib_alone_refuses_the_same(tmp_path, make, monkeypatch):
    """Where ISA-L is not to be had, nothing changes but the speed."""
    monkeypatch.setattr(tcia_zip, "engine", zlib)
    with opened(tmp_path, make()) as fd, pytest.raises(ItemError):
        b"".join(read_member(fd, read_members(fd)[0]))
    with opened(tmp_path, make_zip(PLAIN)) as fd:
        assert [b"".join(read_member(fd, member)) for member in read_members(fd)] == list(PLAIN.values())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_behind_a_zip_s_beginning(folder, data):
    """Whatever follows the first four bytes ends in an `ItemError`, or is an empty zip."""
    found, reason = [], "unavailable"
    with opened(folder, b"PK\x05\x06" + data) as fd:
        try:
            found = read_members(fd)
        except ItemError as error:
            reason = error.reason
    assert (found, reason) == ([], "unavailable")


def test_limits_are_those_of_images():
    """The largest series of the archive fits, by a wide margin."""
    assert tcia_zip.MAX_MEMBERS >= 200_000
    assert tcia_zip.MAX_MEMBERS * 100 < tcia_zip.MAX_DIRECTORY
