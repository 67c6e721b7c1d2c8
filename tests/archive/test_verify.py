"""Verify: no damage goes unseen, and one damage does not hide what else there is."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from build import Built, rewrite_catalogue, write_beside
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.index import ArchiveLine, FileLine, FrameLine, ItemLine, Line
from pipeline.archive.reader import ArchiveReader
from pipeline.archive.verify import verify_archive
from pipeline.errors import ConfigError, UsageError


def is_called_fine(path: Path) -> bool:
    """Whether verify finds no fault; a refusal to read is a fault too."""
    try:
        return verify_archive(path, workers=1).fine
    except ConfigError:
        return False


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(tiny: Built, data: st.DataObject) -> None:
    """Whatever byte of an archive changes, verify never calls it fine, also without an index beside it."""
    content = bytearray(tiny.path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tiny.path.with_name("damaged.tar.xz")
    damaged.write_bytes(content)
    assert not is_called_fine(damaged)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated_archive_cannot_be_read(tiny: Built, data: st.DataObject) -> None:
    """An archive cut anywhere is refused with a clear error, by verify and by the reader."""
    content = tiny.path.read_bytes()
    cut = tiny.path.with_name("cut.tar.xz")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    for read in (verify_archive, ArchiveReader):
        with pytest.raises(ConfigError, match=r"cut\.tar\.xz"):
            read(cut)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), extra=st.binary(min_size=1, max_size=600))
def test_extra_bytes_are_found(tiny: Built, data: st.DataObject, extra: bytes) -> None:
    """Bytes put in anywhere are found."""
    content = tiny.path.read_bytes()
    where = data.draw(st.integers(0, len(content)))
    longer = tiny.path.with_name("longer.tar.xz")
    longer.write_bytes(content[:where] + extra + content[where:])
    assert not is_called_fine(longer)


def copy_of(built: Built, folder: Path, *, beside: bool) -> Built:
    """A copy that a test may damage."""
    path = folder / "copy.tar.xz"
    shutil.copy(built.path, path)
    copy = built._replace(path=path)
    if beside:
        write_beside(copy)
    return copy


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_damage_names_the_items_it_hits(varied: Built, tmp_path: Path) -> None:
    """Two damaged frames: the files in the blocks hit are named, and all others are checked and called sound."""
    copy = copy_of(varied, tmp_path, beside=True)
    frames = [line for line in copy.lines if isinstance(line, FrameLine)]
    for frame in (frames[1], frames[3]):
        flip(copy.path, frame.offset + frame.length // 2)
    result = verify_archive(copy.path, workers=2)
    assert {problem.item for problem in result.problems} == {"", "1.4", "1.5"}
    assert {problem.path.rpartition("/")[2] for problem in result.problems if problem.item} <= {
        "s" * 200 + ".dcm",
        "t.jpg",
        "zz.dcm",
    }
    assert sum("SHA-256" in problem.what for problem in result.problems) == 3  # two frames, and the whole


def test_damaged_catalogue_is_a_problem_if_there_is_another_index(varied: Built, tmp_path: Path) -> None:
    """With the index beside it, a damaged catalogue or tail is listed, and the files are checked all the same."""
    last = [line for line in varied.lines if isinstance(line, FrameLine)][-1]
    end = last.offset + last.length
    for offset in (end + 300, varied.path.stat().st_size - 5):
        copy = copy_of(varied, tmp_path, beside=True)
        flip(copy.path, offset)
        result = verify_archive(copy.path, workers=2)
        assert not result.fine
        assert all(problem.item == "" for problem in result.problems)
        copy.path.with_name("copy.tar.xz.index.jsonl.zst").unlink()
        with pytest.raises(ConfigError):
            verify_archive(copy.path)


def test_truncated_archive_with_index_says_both_sizes(varied: Built, tmp_path: Path) -> None:
    """Where the index beside tells what the size should be, the error does so too."""
    copy = copy_of(varied, tmp_path, beside=True)
    size = copy.path.stat().st_size
    with copy.path.open("r+b") as file:
        file.truncate(size - 1000)
    with pytest.raises(ConfigError, match=f"{size - 1000} bytes, the index beside it says {size}"):
        verify_archive(copy.path)


def change_first(lines: list[Line], kind: type, **changes: object) -> list[Line]:
    """The lines with fields of the first of a kind changed."""
    position = next(n for n, line in enumerate(lines) if isinstance(line, kind))
    changed = msgspec.structs.replace(lines[position], **changes)
    return [*lines[:position], changed, *lines[position + 1 :]]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ArchiveLine, {"sha256": "0" * 64}),
        (ArchiveLine, {"name": "other"}),
        (ItemLine, {"licence": "all rights reserved"}),
        (FileLine, {"sha256": "0" * 64}),
    ],
)
def test_index_beside_that_differs_is_found(
    varied: Built, tmp_path: Path, kind: type, changes: dict[str, object]
) -> None:
    """What the index beside says otherwise than the catalogue is a problem; evidence and route are not."""
    copy = copy_of(varied, tmp_path, beside=False)
    write_beside(copy._replace(lines=change_first(copy.lines, kind, **changes)))
    result = verify_archive(copy.path, workers=2)
    assert len(result.problems) == 1
    write_beside(copy._replace(lines=change_first(copy.lines, FileLine, route="elsewhere", evidence=["size"])))
    assert verify_archive(copy.path, workers=2).fine


@pytest.mark.parametrize("damage", [b"", b"not zstandard", None])
def test_damaged_index_beside_is_a_problem(varied: Built, tmp_path: Path, damage: bytes | None) -> None:
    """An index beside the archive that cannot be read is one problem, and the archive is verified by its own."""
    copy = copy_of(varied, tmp_path, beside=True)
    beside = copy.path.with_name("copy.tar.xz.index.jsonl.zst")
    beside.write_bytes(beside.read_bytes()[:-40] if damage is None else damage)
    result = verify_archive(copy.path, workers=2)
    assert [problem.item for problem in result.problems] == [""]
    assert "index" in result.problems[0].what


@pytest.mark.parametrize(
    ("kind", "changes", "what"),
    [
        (ArchiveLine, {"items": 77}, "77 items"),
        (ArchiveLine, {"failed": 0}, "0 failed"),
        (ArchiveLine, {"bytes": 1}, "1 bytes"),
        (ArchiveLine, {"tar_bytes": 512}, "512 tar_bytes"),
        (FileLine, {"sha256": "f" * 64}, "SHA-256"),
        (FileLine, {"name": "renamed.dcm"}, "tar header"),
        (FileLine, {"name": "n" * 120}, "tar header"),
        (FrameLine, {"sha256": "f" * 64}, "frame 0"),
    ],
)
def test_catalogue_that_lies_is_found(varied: Built, kind: type, changes: dict[str, object], what: str) -> None:
    """A catalogue that does not describe the archive's bytes is found, line by line."""
    path = rewrite_catalogue(varied, change_first(varied.lines, kind, **changes))
    result = verify_archive(path, workers=2)
    assert any(what in problem.what for problem in result.problems)


def test_progress_ends_at_the_size(varied: Built) -> None:
    """Progress never goes back, and ends when all bytes are read."""
    told: list[tuple[int, int]] = []
    verify_archive(varied.path, on_progress=lambda done, total: told.append((done, total)))
    size = varied.path.stat().st_size
    assert told == sorted(told)
    assert told[-1] == (size, size)


def test_no_such_archive(tmp_path: Path) -> None:
    """A path where nothing is, is a mistake of usage."""
    with pytest.raises(UsageError):
        verify_archive(tmp_path / "nothing.tar.xz")
