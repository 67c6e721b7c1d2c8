"""The index for ratarmount: its rows, and ratarmount's own opinion where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from build import Built

from pipeline.archive.ratarmount import write_ratarmount_index
from pipeline.archive.reader import ArchiveReader


def write_index(built: Built, folder: Path) -> Path:
    """Write the index of an archive into a folder."""
    target = folder / "small.tar.xz.index.sqlite"
    with ArchiveReader(built.path) as reader:
        write_ratarmount_index(reader.lines(), reader.source.size, target, scratch=folder)
    return target


def test_rows_are_the_files_of_the_tar(varied: Built, tmp_path: Path) -> None:
    """One row a file with offsets into the tar, as Python's tarfile finds them, and one row for each folder."""
    target = write_index(varied, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    with tarfile.open(varied.path) as tar:
        members = {member.name: (member.offset, member.offset_data, member.size) for member in tar}
    with closing(sqlite3.connect(target)) as database:
        rows = database.execute("SELECT path, name, offsetheader, offset, size, mode FROM files").fetchall()
        metadata = dict(database.execute("SELECT key, value FROM metadata"))
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    files = {f"{row[0]}/{row[1]}"[1:]: row[2:5] for row in rows if row[5] == 0o100644}
    assert files == {path: members[path] for path in varied.content}
    folders = [f"{row[0]}/{row[1]}"[1:] for row in rows if row[5] == 0o40555]
    expected = {str(parent) for path in varied.content for parent in Path(path).parents} - {"."}
    assert sorted(folders) == sorted(expected)
    assert json.loads(metadata["tarstats"]) == {"st_size": varied.path.stat().st_size}
    assert not tables & {"filestmp", "parentfolders"}


def test_folder_that_comes_again_has_one_row(tiny: Built, tmp_path: Path) -> None:
    """A folder met again later is not listed twice."""
    target = write_index(tiny, tmp_path)
    with closing(sqlite3.connect(target)) as database:
        assert database.execute("SELECT count(*) FROM files WHERE path = '' AND name = 'c'").fetchone() == (1,)


@pytest.mark.external
@pytest.mark.skipif(importlib.util.find_spec("ratarmountcore") is None, reason="ratarmountcore is not installed")
def test_ratarmount_takes_it(varied: Built, tmp_path: Path) -> None:
    """The archive opens in ratarmount by this index, without writing its own, and reads every file."""
    from ratarmountcore.mountsource.factory import open_mount_source

    archive = tmp_path / "small.tar.xz"
    archive.write_bytes(varied.path.read_bytes())
    target = write_index(varied, tmp_path)
    before = target.read_bytes()
    source = open_mount_source(str(archive), writeIndex=True)
    for path, data in varied.content.items():
        info = source.lookup(f"/{path}")
        assert info is not None
        with source.open(info) as file:
            assert file.read() == data
    assert target.read_bytes() == before
