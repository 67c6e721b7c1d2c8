"""An index in ratarmount's own format, so that `ratarmount NAME.tar.xz` mounts at once instead of scanning first.

The schema is that of ratarmount's index version 0.7.0, as ratarmount 1.3.0 (ratarmountcore 0.11.1) writes and reads it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.archive.index import FileLine, FrameLine, ItemLine, Line
from pipeline.archive.lines import member_path
from pipeline.archive.tar import member_padding
from pipeline.atomic import atomic_file, storage_errors

FILE_MODE = stat.S_IFREG | 0o644
FOLDER_MODE = stat.S_IFDIR | 0o555
FILE_TYPE = b"0"  # of the tar header; a BLOB, as ratarmount stores what it reads
FOLDER_TYPE = 5

# No table may be called filestmp or parentfolders: ratarmount takes an index that has one for unfinished.
SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE files (
    path VARCHAR(65535) NOT NULL, name VARCHAR(65535) NOT NULL, offsetheader INTEGER, offset INTEGER, size INTEGER,
    mtime REAL, mode INTEGER, type INTEGER, linkname VARCHAR(65535), uid INTEGER, gid INTEGER, istar BOOL,
    issparse BOOL, isgenerated BOOL, recursiondepth INTEGER, PRIMARY KEY (path, name, offsetheader)
);
CREATE TABLE xattrkeys (id INTEGER PRIMARY KEY, name VARCHAR(65535) UNIQUE);
CREATE TABLE xattrsdata (
    offsetheader INTEGER, keyid INTEGER, value VARCHAR(65535), PRIMARY KEY (offsetheader, keyid),
    FOREIGN KEY (keyid) REFERENCES xattrkeys (id)
);
CREATE VIEW xattrs (offsetheader, key, value) AS
    SELECT offsetheader, xattrkeys.name, value FROM xattrsdata INNER JOIN xattrkeys ON xattrkeys.id = xattrsdata.keyid;
CREATE TABLE metadata (key VARCHAR(65535) NOT NULL PRIMARY KEY, value VARCHAR(65535) NOT NULL);
CREATE TABLE versions (
    name VARCHAR(65535) NOT NULL PRIMARY KEY, version VARCHAR(65535) NOT NULL, major INTEGER, minor INTEGER,
    patch INTEGER
);
INSERT INTO versions VALUES ('index', '0.7.0', 0, 7, 0);
"""
INSERT_FILE = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, 0.0, ?, ?, '', 0, 0, 0, 0, 0, 0)"
INSERT_FOLDER = """
INSERT INTO files SELECT ?, ?, ?, ?, 0, 0.0, ?, ?, '', 0, 0, 0, 0, 0, 0
WHERE NOT EXISTS (SELECT 1 FROM files WHERE path = ? AND name = ?)
"""


def write_ratarmount_index(lines: Iterable[Line], archive_size: int, target: Path, scratch: Path | None = None) -> None:
    """Write the index of an archive of `archive_size` bytes with these index lines, wholly or not at all.

    Parameters
    ----------
    lines
        Checked lines, as `ArchiveReader.lines` yields them; they are streamed, in bounded memory.
    target
        `NAME.tar.xz.index.sqlite` beside the archive: where ratarmount looks for it.
    scratch
        A folder of this machine in which the database is built, since SQLite does not belong on shared storage; its
        default is that of temporary files.

    Raises
    ------
    StorageError
        When scratch or the target's disk is full or not writable.
    """
    with tempfile.TemporaryDirectory(prefix="medhaul-sqlite-", dir=scratch) as folder:
        built = Path(folder) / "index.sqlite"
        with storage_errors(built):
            build_ratarmount_index(lines, archive_size, built)
        with atomic_file(target) as out, open(built, "rb") as file:
            shutil.copyfileobj(file, out, 1 << 20)


def build_ratarmount_index(lines: Iterable[Line], archive_size: int, path: Path) -> None:
    """Build the database at `path`, which must not exist. Raises OSError when the disk is full."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.executescript(SCHEMA)
            database.execute("BEGIN")
            metadata = {
                # Larger than the archive, and ratarmount would scan anew; times are not compared by default.
                "tarstats": json.dumps({"st_size": archive_size}),
                "backendName": "SQLiteIndexedTar",
                "isGnuIncremental": "0",
            }
            database.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
            for statement, row in list_rows(lines):
                database.execute(statement, row)
            database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_FULL":
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def list_rows(lines: Iterable[Line]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (statement, values) for every folder, before what it holds, and every file. Pure."""
    item: ItemLine | None = None
    header = 0  # where the next member's header begins: members lie without a gap
    known: list[str] = []  # the folder of the file before
    for line in lines:
        if isinstance(line, FrameLine):
            header = line.tar_offset
        elif isinstance(line, ItemLine):
            item = line
        elif isinstance(line, FileLine):
            assert item is not None  # lines are checked
            *folders, name = member_path(item, line).split("/")
            for depth, folder in enumerate(folders):
                if folders[: depth + 1] != known[: depth + 1]:
                    above = "".join(f"/{part}" for part in folders[:depth])
                    yield INSERT_FOLDER, (above, folder, header, line.offset, FOLDER_MODE, FOLDER_TYPE, above, folder)
            known = folders
            path = "".join(f"/{part}" for part in folders)
            yield INSERT_FILE, (path, name, header, line.offset, line.size, FILE_MODE, FILE_TYPE)
            header = line.offset + line.size + member_padding(line.size)
