"""Looking at what reduce left, as anybody would."""

from __future__ import annotations

import csv
import io
import tarfile
from typing import Any

from run_kit import MadeRun

from pipeline.archive.index import Line, read_lines
from pipeline.reduce.run import Outcome, reduce_run
from pipeline.rundir import RunDir

# A group of small items, a lonely one, one that is cut over several frames and shards, and a group again.
COUNTS = [3, 1, 2, 90, 1, 2]
TABLES: dict[str, Any] = {"shards": {"count": 5}}


def reduce(run: RunDir, *, allow_partial: bool = False) -> list[Outcome]:
    """Join, without progress."""
    return reduce_run(run, allow_partial=allow_partial, on_progress=lambda *_: None)


def results(run: RunDir) -> dict[str, bytes]:
    """Every file of the archives folder."""
    if not run.archives.exists():
        return {}
    return {path.name: path.read_bytes() for path in sorted(run.archives.iterdir())}


def left(run: RunDir) -> list[str]:
    """Parts, journals and shard indexes that are still there."""
    return sorted(path.name for path in (run.path / "parts").rglob("*") if path.is_file())


def lines_of(run: RunDir, name: str = "c") -> list[Line]:
    """The index beside an archive."""
    with (run.archives / f"{name}.tar.xz.index.jsonl.zst").open("rb") as file:
        return list(read_lines(file, "x"))


def members(run: RunDir, name: str = "c") -> dict[str, bytes]:
    """What an archive holds, read as anybody would."""
    found = {}
    with tarfile.open(run.archives / f"{name}.tar.xz", "r:xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def wanted(made: MadeRun, without: set[str] = frozenset()) -> dict[str, bytes]:
    """What an archive should hold."""
    return {
        f"{item.path}/{item.id}.{n + 1}.dcm": body
        for item in made.items
        if item.id not in without
        for n, body in enumerate(made.fetcher.bodies[item.id])
    }


def rows(run: RunDir, table: str) -> list[list[str]]:
    """A table, read as anybody would."""
    return list(csv.reader(io.StringIO((run.archives / table).read_text(encoding="utf-8"), newline="")))
