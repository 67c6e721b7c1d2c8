"""Which archives of a run are there, complete and of the size that their index states."""

from __future__ import annotations

from pathlib import Path

from pipeline.archive.index import ArchiveLine, read_lines
from pipeline.errors import ConfigError
from pipeline.rundir import RunDir


def archive_file(run: RunDir, name: str) -> Path:
    """The archive of that name."""
    return run.archives / f"{name}.tar.xz"


def index_file(run: RunDir, name: str) -> Path:
    """The index beside the archive; it is written last, so it vouches for the rest."""
    return run.archives / f"{name}.tar.xz.index.jsonl.zst"


def ratarmount_file(run: RunDir, name: str) -> Path:
    """The index that ratarmount looks for."""
    return run.archives / f"{name}.tar.xz.index.sqlite"


def read_finished(run: RunDir, name: str, manifest_sha256: str) -> ArchiveLine | None:
    """Return the first line of an archive's index if the archive is there as the index says; None otherwise.

    Cheap: one small read and one stat. `state` tells whether it is `complete` or `partial`.
    """
    path = index_file(run, name)
    try:
        with path.open("rb") as file:
            line = next(read_lines(file, str(path)))
        size = archive_file(run, name).stat().st_size
    except (FileNotFoundError, ConfigError):
        return None  # a damaged index proves nothing: the archive is then joined again, or reported as missing
    if not isinstance(line, ArchiveLine) or line.manifest_sha256 != manifest_sha256 or line.size != size:
        return None
    return line
