"""Take items or files out of an archive: choose from the index, read only their blocks, write what proves right."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import takewhile
from operator import eq
from typing import Literal, NamedTuple

from pipeline.archive.destination import Destination, OccupiedError, safe_parts
from pipeline.archive.index import FileLine, FrameLine
from pipeline.archive.lines import member_path
from pipeline.archive.reader import ArchiveReader, DamagedFileError
from pipeline.errors import UsageError

# Files whose reads are planned together: a bound for memory, far above what a frame of small files needs.
BATCH_FILES = 4096
NEAR = 64


class Selection(NamedTuple):
    """Which files: of these items AND with a path that any of these patterns matches; empty: all.

    In a pattern `*` matches `/` too, and a folder's path stands for all below it.
    """

    items: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()

    def takes_item(self, item: str) -> bool:
        return not self.items or item in self.items

    def takes_path(self, path: str) -> bool:
        return not self.paths or any(
            fnmatchcase(path, pattern) or fnmatchcase(path, pattern.rstrip("/") + "/*") for pattern in self.paths
        )


class Chosen(NamedTuple):
    """How much a selection chooses."""

    items: int
    files: int
    bytes: int


class Outcome(NamedTuple):
    """What became of one file: `kept` was there already with the same bytes; `failed` has a `problem`."""

    item: str
    path: str
    size: int
    state: Literal["written", "kept", "failed"]
    problem: str = ""


def choose_files(reader: ArchiveReader, selection: Selection) -> Chosen:
    """Count what a selection chooses, from the index alone.

    Raises
    ------
    UsageError
        When it chooses nothing, or names an item that is not in the archive: with the nearest ids, or the reason why
        the item failed.
    """
    missing = set(selection.items)
    items = files = size = 0
    last = None
    for _, item, group in reader.items():
        if not selection.takes_item(item.id):
            continue
        missing.discard(item.id)
        for file in group:
            if selection.takes_path(member_path(item, file)):
                items += item.id != last
                last = item.id
                files += 1
                size += file.size
    if missing:
        wanted = min(missing)
        failure = next((line for line in reader.failed() if line.id == wanted), None)
        why = f": it failed: {failure.reason}" if failure else ""
        raise UsageError(f"{reader.name}: item {wanted} is not in it{why}", hint=_near_hint(reader, wanted))
    if not files:
        raise UsageError(
            f"{reader.name}: no file matches {' or '.join(selection.paths) or 'the selection'}",
            hint="`medhaul ls --files` lists the paths; * in a pattern matches / too",
        )
    return Chosen(items, files, size)


def extract_files(
    reader: ArchiveReader, selection: Selection, destination: Destination, *, force: bool = False
) -> Iterator[Outcome]:
    """Write the chosen files below `destination`, yielding what became of each.

    A file is there wholly and with its SHA-256, or not at all. Files that are there already with the same bytes are
    kept; others in the way fail, or are replaced with `force`. Only blocks that hold chosen files are read.

    Raises
    ------
    ConfigError
        At a path that would leave the folder.
    StorageError
        When the disk is full or not writable.
    """
    for frame, batch in _batches(reader, selection):
        wanted: dict[int, tuple[str, str]] = {}
        files = []
        for item, path, file in batch:
            state, problem = _look(destination, path, file, force=force)
            if state == "missing":
                wanted[id(file)] = (item, path)
                files.append(file)
            else:
                yield Outcome(item, path, file.size, "kept" if state == "kept" else "failed", problem)
        for file, content in reader.read_files(frame, files):
            item, path = wanted[id(file)]
            try:
                destination.write(safe_parts(path), content)
            except (DamagedFileError, OccupiedError) as error:
                yield Outcome(item, path, file.size, "failed", str(error))
            else:
                yield Outcome(item, path, file.size, "written")


def _look(destination: Destination, path: str, file: FileLine, *, force: bool) -> tuple[str, str]:
    """Return `kept`, `missing` or `failed` for a path of the destination, and why it failed."""
    try:
        return ("kept" if destination.holds(safe_parts(path), file.size, file.sha256) else "missing"), ""
    except OccupiedError as error:
        return ("missing", "") if force else ("failed", f"{error}; --force replaces files and links")


def _batches(
    reader: ArchiveReader, selection: Selection
) -> Iterator[tuple[FrameLine, list[tuple[str, str, FileLine]]]]:
    """Yield (item id, path, file) of the chosen files of one frame, at most `BATCH_FILES` at a time."""
    current: FrameLine | None = None
    batch: list[tuple[str, str, FileLine]] = []
    for frame, item, group in reader.items():
        if not selection.takes_item(item.id):
            continue
        for file in group:
            path = member_path(item, file)
            if not selection.takes_path(path):
                continue
            safe_parts(path)
            if batch and (frame is not current or len(batch) == BATCH_FILES):
                assert current is not None
                yield current, batch
                batch = []
            current = frame
            batch.append((item.id, path, file))
    if batch:
        assert current is not None
        yield current, batch


def _near_hint(reader: ArchiveReader, wanted: str) -> str:
    near = nearest_ids((item.id for _, item, _ in reader.items()), wanted)
    return f"did you mean {' or '.join(near)}?" if near else "`medhaul ls` lists the items"


def nearest_ids(ids: Iterable[str], wanted: str) -> list[str]:
    """Up to three of the ids, of however many, that resemble the wanted one most. Pure.

    Comparing each in full would take minutes where there are a million; so those are compared that share most with it
    at both ends.
    """

    def shared(text: str) -> int:
        front = len(list(takewhile(bool, map(eq, text, wanted))))
        return front + len(list(takewhile(bool, map(eq, reversed(text), reversed(wanted)))))

    kept = list(dict.fromkeys(heapq.nlargest(NEAR, ids, key=shared)))
    alike = [text for text in kept if shared(text) >= 0.75 * max(len(text), len(wanted))]
    return alike[:3] or get_close_matches(wanted, kept, n=3, cutoff=0.6)
