"""Archives made to do harm: they are refused or read in bounded memory, and never reach outside the destination."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
import zstandard
from build import Built, rewrite_catalogue
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.blocks import write_stored_block
from pipeline.archive.catalogue import read_tail
from pipeline.archive.destination import Destination, safe_parts
from pipeline.archive.extract import Selection, extract_files
from pipeline.archive.index import ArchiveLine, FailedLine, FileLine, FrameLine, ItemLine, Line, catalogue_path
from pipeline.archive.lines import check_lines
from pipeline.archive.reader import ArchiveReader
from pipeline.archive.source import LocalSource
from pipeline.archive.tar import END_OF_ARCHIVE, member_header, member_padding
from pipeline.archive.xz import BlockSize, stream_header, stream_tail
from pipeline.errors import ConfigError


def change(lines: list[Line], kind: type, **changes: object) -> list[Line]:
    """The lines with fields of every one of a kind changed."""
    return [msgspec.structs.replace(line, **changes) if isinstance(line, kind) else line for line in lines]


def list_tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ItemLine, {"path": "../../up"}),
        (ItemLine, {"path": "/tmp/absolute"}),
        (ItemLine, {"path": "a/../../b"}),
        (ItemLine, {"path": "a//b"}),
        (ItemLine, {"path": "."}),
        (ItemLine, {"path": "a/\0"}),
        (ItemLine, {"path": "d/" * 100 + "d"}),
        (ItemLine, {"path": "long" * 100}),
        (FileLine, {"name": ".."}),
        (FileLine, {"name": "../x"}),
        (FileLine, {"name": ""}),
    ],
)
def test_paths_that_leave_are_refused(tiny: Built, tmp_path: Path, kind: type, changes: dict[str, object]) -> None:
    """A path that is absolute, climbs, or is none that a file system takes, ends the extraction; nothing is written."""
    path = rewrite_catalogue(tiny, change(tiny.lines, kind, **changes))
    inside = tmp_path / "in" / "side"
    with pytest.raises(ConfigError), ArchiveReader(path) as reader, Destination(inside) as destination:
        list(extract_files(reader, Selection(), destination))
    assert list_tree(tmp_path) == {"in", "in/side"}


@given(st.text(max_size=30))
def test_safe_parts_stay_inside(path: str) -> None:
    """Any path is refused, or made of components that lead only down."""
    try:
        parts = safe_parts(path)
    except ConfigError:
        return
    assert "/".join(parts) == path
    root = "/root/of/destination"
    assert os.path.normpath(f"{root}/{'/'.join(parts)}") == f"{root}/{path}"


def double_first(lines: list[Line], kind: type) -> list[Line]:
    """The lines with the first of a kind twice."""
    position = next(n for n, line in enumerate(lines) if isinstance(line, kind))
    return [*lines[: position + 1], *lines[position:]]


HUGE = 1 << 62


@pytest.mark.parametrize(
    "hostile",
    [
        lambda lines: change(lines, FileLine, size=HUGE),
        lambda lines: change(lines, FileLine, size=-512),
        lambda lines: change(lines, FileLine, offset=512),
        lambda lines: change(lines, FileLine, offset=-HUGE),
        lambda lines: change(lines, FileLine, offset=1 << 100),
        lambda lines: change(lines, FrameLine, offset=12),
        lambda lines: change(lines, FrameLine, offset=HUGE),
        lambda lines: change(lines, FrameLine, blocks=[(HUGE, HUGE)]),
        lambda lines: change(lines, FrameLine, blocks=[(100, HUGE)]),
        lambda lines: change(lines, FrameLine, blocks=[(0, 0)] * 1000),
        lambda lines: change(lines, FrameLine, tar_bytes=HUGE),
        lambda lines: change(lines, FrameLine, frame=0),
        lambda lines: change(lines, ArchiveLine, block_bytes=HUGE),
        lambda lines: change(lines, ArchiveLine, format=2),
        lambda lines: change(lines, ItemLine, files=HUGE),
        lambda lines: change(lines, ItemLine, bytes=0),
        lambda lines: change(lines, ItemLine, pieces=0),
        lambda lines: change(lines, ItemLine, piece=1, pieces=2),
        lambda lines: change(lines, ItemLine, pieces=2),
        lambda lines: double_first(lines, FileLine),
        lambda lines: double_first(lines, FrameLine),
        lambda lines: double_first(lines, ArchiveLine),
        lambda lines: [line for line in lines if not isinstance(line, FrameLine)],
        lambda lines: [line for line in lines if not isinstance(line, ItemLine)],
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
    ],
)
def test_lines_that_contradict_each_other_are_refused(tiny: Built, hostile: Callable[[list[Line]], list[Line]]) -> None:
    """Sizes, offsets and counts that cannot be true are refused before anything is read by them."""
    lines = hostile(tiny.lines)
    path = rewrite_catalogue(tiny, lines)
    with pytest.raises(ConfigError, match=r"hostile\.tar\.xz"):
        read_to_the_end(path)


def read_to_the_end(path: Path) -> None:
    """Read every file of an archive, as an extraction would."""
    with ArchiveReader(path) as reader:
        for frame, _, files in reader.items():
            for _, content in reader.read_files(frame, list(files)):
                for _ in content:
                    pass


integers = st.one_of(st.integers(-5, 5), st.integers(-(1 << 70), 1 << 70))
texts = st.text(max_size=5)
any_line = st.one_of(
    st.builds(FrameLine, frame=integers, offset=integers, length=integers, sha256=texts, tar_offset=integers,
              tar_bytes=integers, blocks=st.lists(st.tuples(integers, integers), max_size=3)),
    st.builds(ItemLine, id=texts, path=texts, licence=texts, files=integers, bytes=integers, piece=integers,
              pieces=integers),
    st.builds(FileLine, name=texts, size=integers, sha256=texts, offset=integers),
    st.builds(FailedLine, id=texts, path=texts, reason=texts),
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(any_line, max_size=6))
def test_any_lines_are_checked_or_refused(tiny: Built, lines: list[Line]) -> None:
    """Lines with whatever numbers pass the check only when they are harmless; nothing but `ConfigError` is raised."""
    try:
        passed = list(check_lines([tiny.lines[0], *lines], "lines"))
    except ConfigError:
        return
    position = 0
    for line in passed:
        if isinstance(line, FrameLine):
            assert line.tar_offset == position
            position += line.tar_bytes
        elif isinstance(line, FileLine):
            assert 0 < line.offset <= line.offset + line.size <= position


def write_with_catalogue(path: Path, content: bytes, name: str = "x") -> Path:
    """An archive without frames whose catalogue member has this content."""
    with path.open("wb") as out:
        out.write(stream_header())
        header = member_header(catalogue_path(name), len(content))
        member = header + content + bytes(member_padding(len(content)))
        sizes = [write_stored_block(out, [BytesIO(data)], len(data)) for data in (member, END_OF_ARCHIVE)]
        out.write(stream_tail(sizes, 2))
    return path


@pytest.mark.parametrize(
    ("filling", "count"),
    [(b"a", 300), (b"a\n", 300), (b"[", 300), (b'{"type":"failed","id":"1","path":"p","reason":"count"}\n', 4)],
)
def test_zstandard_bomb(tmp_path: Path, tiny: Built, filling: bytes, count: int) -> None:
    """A catalogue of a few kilobytes that unpacks to a thousand times that is refused or streamed, not kept."""
    head = msgspec.json.encode(msgspec.structs.replace(tiny.lines[0], name="x", frames=0, files=1)) + b"\n"
    chunk = filling * ((1 << 20) // len(filling))
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    packed = compressor.compress(head) + b"".join(compressor.compress(chunk) for _ in range(count)) + compressor.flush()
    assert len(packed) < 1 << 18
    path = write_with_catalogue(tmp_path / "bomb.tar.xz", packed)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            read_to_the_end(path)
        # The longest line allowed and its copies; a bomb that is streamed needs far less.
        assert tracemalloc.get_traced_memory()[1] < (60 << 20 if count > 4 else 12 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 600, b"{}\n", zstandard.compress(b"{}\n"), zstandard.compress(b"\xff\n")]
)
def test_catalogue_of_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    """A catalogue that is no index is refused."""
    with pytest.raises(ConfigError):
        ArchiveReader(write_with_catalogue(tmp_path / "x.tar.xz", content))


def test_bytes_behind_the_index_are_refused(tmp_path: Path, tiny: Built) -> None:
    """Nothing can be hidden in the catalogue member behind its index."""
    head = msgspec.json.encode(msgspec.structs.replace(tiny.lines[0], name="x", frames=0, files=0)) + b"\n"
    packed = zstandard.compress(head)
    path = write_with_catalogue(tmp_path / "x.tar.xz", packed)
    with ArchiveReader(path) as reader:
        assert len(list(reader.lines())) == 1
    path = write_with_catalogue(tmp_path / "y.tar.xz", packed + os.urandom(1 << 20))
    with ArchiveReader(path) as reader, pytest.raises(ConfigError):
        list(reader.lines())


def test_tail_that_claims_much_is_refused(tmp_path: Path) -> None:
    """An xz index that lists more than the file holds is refused."""
    path = tmp_path / "claims.tar.xz"
    sizes = [BlockSize(HUGE, HUGE), BlockSize(1105, 1024)]
    path.write_bytes(stream_header() + stream_tail(sizes, 2))
    with pytest.raises(ConfigError):
        read_tail(LocalSource(path))


@pytest.mark.parametrize("target", ["outside", "inside/c/1.2"])
def test_links_in_the_destination_are_not_followed(tiny: Built, tmp_path: Path, target: str) -> None:
    """A symbolic link on the way, wherever it leads, fails the files behind it and lets the others be."""
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    (inside / "c").mkdir(parents=True)
    (inside / "c" / "1.3").symlink_to(tmp_path / target, target_is_directory=True)
    with ArchiveReader(tiny.path) as reader, Destination(inside) as destination:
        outcomes = {each.path: each.state for each in extract_files(reader, Selection(), destination, force=True)}
    assert outcomes == {"c/1.2/a": "written", "c/1.2/b": "written", "c/1.3/c": "failed", "c/1.4/d": "written"}
    assert list_tree(outside) == set()
    assert not (inside / "c" / "1.2" / "c").exists()


def test_link_in_place_of_a_file(tiny: Built, tmp_path: Path) -> None:
    """A symbolic link with a file's name is never written through: it stays, or with force is replaced."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link = tmp_path / "in" / "c" / "1.2" / "a"
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    for force, state in ((False, "failed"), (True, "written")):
        with ArchiveReader(tiny.path) as reader, Destination(tmp_path / "in") as destination:
            outcomes = {each.path: each.state for each in extract_files(reader, Selection(), destination, force=force)}
        assert outcomes["c/1.2/a"] == state
        assert precious.read_text() == "precious"
    assert link.read_bytes() == b"a" * 600
    assert not link.is_symlink()
