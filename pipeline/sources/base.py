"""The contract between a task and an archive site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from pipeline.dicom.header import DicomHeader
from pipeline.model import Entry, RemoteFile


class Body(NamedTuple):
    """Something that comes in one answer of the site: an object of a listing.

    `cache_key` names its content for good: equal keys, equal bytes.
    """

    entry: Entry
    file: RemoteFile
    cache_key: str


class Received(NamedTuple):
    """A body on scratch: its hashes, what they were checked against, and where it came from.

    `etag`: as the site stated it, without quotes unless it is weak; empty where nothing shall keep it. `header`: what
    `check_image` said of these very bytes, if anything; then they need no other check.
    """

    path: Path
    size: int
    md5: str
    sha256: str
    evidence: tuple[str, ...]
    route: str
    etag: str = ""
    header: DicomHeader | None = None


class Judged(NamedTuple):
    """What a file is that is whole and what its item means: name in the archive, compression class, evidence."""

    name: str
    chain: str
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]


class Fetcher(Protocol):
    """How a task gets an entry's bodies. Both methods are called from many threads at once.

    `deadline` is a `time.monotonic()` after which the item is given up.

    Both raise `ItemError` for what is wrong with this item, `SiteUnavailableError` never (one item's trouble is not the
    site's), `StorageError` when scratch is full, and `InterruptedRunError` when the task was told to stop.
    """

    def list_bodies(self, entry: Entry, deadline: float) -> Sequence[Body]:
        """The complete listing of an entry, checked against the counts of the manifest."""
        ...

    def fetch(self, body: Body, path: Path, deadline: float) -> Received:
        """Bring a body to `path`, verified against the best evidence the site offers."""
        ...


@runtime_checkable
class Holder(Protocol):
    """A fetcher that keeps something on scratch between `list_bodies` and the last `fetch` of an entry."""

    def release(self, entry: Entry) -> None:
        """Let go of an entry: called once for each `list_bodies` that returned, when no more `fetch` follows.

        Raises `StorageError`.
        """
        ...


@runtime_checkable
class Sparing(Protocol):
    """A fetcher that may work on few items of NBIA at a time: `nbia_threads`, or 0 for any number."""

    nbia_threads: int


def cut_files(sizes: Sequence[int], pieces: int) -> list[int]:
    """Spread a cut item's files, in the order of the source's keys, over `pieces` frames: files in each.

    A pure function of the listing. Each piece gets the files whose middle byte lies in its part of the bytes, and at
    least one, if there are enough: an item whose largest file outweighs the others must not leave a piece empty.
    """
    counts = [0] * pieces
    total = sum(sizes)
    held, last = 0, -1
    for position, size in enumerate(sizes):
        share = (2 * held + size) * pieces // (2 * total) if total else position * pieces // len(sizes)
        last = min(share, last + 1, pieces - 1)
        if len(sizes) >= pieces:
            last = max(last, pieces - (len(sizes) - position))
        counts[last] += 1
        held += size
    return counts
