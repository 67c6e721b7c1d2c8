"""Intake: the entries of a frame are listed, downloaded and checked on the pool's threads; outcomes come as events."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.atomic import storage_errors
from pipeline.errors import InterruptedRunError, ItemError, MedhaulError
from pipeline.model import Entry, NbiaLocation, RawFile
from pipeline.records import PieceRecord
from pipeline.sizes import entry_bytes
from pipeline.sources.base import Body, Fetcher, Holder, Sparing
from pipeline.sources.verified import fetch_verified
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.pack import FrameJob, PieceJob
from pipeline.task.part import FrameFact
from pipeline.task.salvage import Salvage

logger = logging.getLogger("medhaul.task")
MAX_MESSAGE = 1000
PROBE_THREADS = 4
SALVAGE_THREADS = 2  # each decodes faster than several cores pack


class Failure(msgspec.Struct, frozen=True):
    """Why an entry failed."""

    reason: str
    message: str
    transient: bool

    @property
    def is_silence(self) -> bool:
        """Whether the site gave no answer at all, as when it is down."""
        return self.reason == "unavailable" and self.transient


class EntryWork:
    """One entry on its way. Touched by pool threads under `lock`."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.lock = threading.Lock()
        self.waiting = 0  # bodies not yet settled
        self.deadline: float | None = None  # set when the first body begins
        self.settled = False
        self.listed = False  # and not yet released
        self.files: list[tuple[int, RawFile]] = []  # with the position in the listing
        self.keys: list[str] = []
        self.failure: Failure | None = None


class FrameWork:
    """One frame on its way: ready for packing when no entry is open.

    With `first`, the (number, piece) of entries, only these are asked for until `ask_rest` is called.
    """

    def __init__(self, frame: int, entries: Sequence[Entry], first: Collection[tuple[int, int]] = ()) -> None:
        self.frame = frame
        self.entries = [EntryWork(entry) for entry in entries]
        self.asked = self.entries
        self.rest: list[EntryWork] = []
        if first:
            self.asked = [work for work in self.entries if (work.entry.number, work.entry.piece) in first]
            self.rest = [work for work in self.entries if (work.entry.number, work.entry.piece) not in first]
        self.open = len(self.asked)
        self.spoiled = 0

    def ask_rest(self) -> None:
        """Ask for the entries that were left out at first."""
        self.asked, self.rest = self.rest, []
        self.open += len(self.asked)

    @property
    def failures(self) -> int:
        return sum(1 for work in self.entries if work.failure is not None)

    def keys(self) -> list[str]:
        return [key for work in self.entries for key in work.keys]

    def job(self) -> FrameJob:
        """What the packer needs."""
        pieces = []
        for work in self.entries:
            entry, failure = work.entry, work.failure
            record = PieceRecord(entry.number, entry.piece, [])
            files: list[RawFile] = []
            if failure is not None:
                record = PieceRecord(entry.number, entry.piece, [], failure.reason, failure.message, failure.transient)
            else:
                files = order_files(work.files, cut=entry.pieces > 1)
            pieces.append(PieceJob(record, entry.item.path, files))
        return FrameJob(self.frame, pieces)


class FrameSize(NamedTuple):
    """What a frame is expected to hold on scratch, and in memory by the number of its files."""

    bytes: int
    files: int


def frame_size(entries: Sequence[Entry]) -> FrameSize:
    """What the entries of a frame are planned to be together. Pure."""
    return FrameSize(
        sum(map(entry_bytes, entries)),
        sum(max(1, entry.item.files // entry.pieces) for entry in entries),
    )


def order_files(files: Sequence[tuple[int, RawFile]], *, cut: bool) -> list[RawFile]:
    """Put an entry's files in archive order: by name, so that no route shows; of a cut item by listing. Pure."""
    if cut:
        return [file for _, file in sorted(files, key=lambda pair: pair[0])]
    return sorted((file for _, file in files), key=lambda file: file.name)


def find_duplicate(files: Sequence[tuple[int, RawFile]]) -> str:
    """Return a name that two of the files have; empty when there is none. Pure."""
    seen: set[str] = set()
    for _, file in files:
        if file.name in seen:
            return file.name
        seen.add(file.name)
    return ""


class EntryDone(NamedTuple):
    """An entry is settled, well or not."""

    frame: int
    work: EntryWork


class Probed(NamedTuple):
    """A probe is back: why the site did not answer it, or None when it did."""

    failure: Failure | None


class Fatal(NamedTuple):
    """Intake cannot go on: scratch is full, or there is a fault in medhaul."""

    error: BaseException


class Intake:
    """Runs the downloads of a task on `connections` threads, and those from NBIA on the fetcher's `nbia_threads`.

    With `salvage`, nothing is asked of the site that a packed frame has.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        cache: ScratchCache,
        log: DetailLog,
        *,
        connections: int,
        item_deadline: float,
        stop: threading.Event,
        report: Callable[[EntryDone | Probed | Fatal], None],
        salvage: Salvage | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._holder = fetcher if isinstance(fetcher, Holder) else None
        self._cache = cache
        self._log = log
        self._deadline = item_deadline
        self._stop = stop
        self._report = report
        self._salvage = salvage
        self._salvages = ThreadPoolExecutor(SALVAGE_THREADS, thread_name_prefix="salvage")  # starts threads when used
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="fetch")
        # Who waits for a connection to NBIA must not take the threads of all others, nor let an item's time run out.
        nbia_threads = fetcher.nbia_threads if isinstance(fetcher, Sparing) else 0
        self._nbia_pool = ThreadPoolExecutor(nbia_threads, thread_name_prefix="nbia") if nbia_threads else self._pool
        self._probes = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe")  # starts threads when used
        self.answered = False  # whether the site has given a listing that was right
        self.delivered = 0  # bodies that came from the site, whole and right
        self.downloaded = 0
        self.reused = 0
        self._lock = threading.Lock()

    def start(self, frame: FrameWork) -> None:
        """Begin a frame: of what it asks for, the packed comes back; the rest is listed, and its downloads follow."""
        asked = frame.asked
        if self._salvage is not None:
            fact = self._salvage.find(frame.frame, [work.entry for work in asked])
            if fact is not None:
                self._salvages.submit(self._guard, self._take_back, self._salvage, fact, asked)
                return
        self._ask(frame.frame, asked)

    def probe(self, entries: Sequence[Entry]) -> None:
        """Ask for one body of each entry, out of turn, only to see whether the site answers; nothing is kept."""
        for number, entry in enumerate(entries):
            self._probes.submit(self._guard, self._probe, number, entry)

    def close(self) -> None:
        """End the threads; what is under way must have been stopped by the stop event, or be done."""
        self._salvages.shutdown(wait=True, cancel_futures=True)  # first: it gives work to the others
        self._probes.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._nbia_pool.shutdown(wait=True, cancel_futures=True)

    def _choose_pool(self, entry: Entry) -> ThreadPoolExecutor:
        return self._nbia_pool if isinstance(entry.item.location, NbiaLocation) else self._pool

    def _probe(self, number: int, entry: Entry) -> None:
        if self._stop.is_set():
            return
        work = EntryWork(entry)
        deadline = time.monotonic() + self._deadline
        with _Border(work):
            bodies = self._fetcher.list_bodies(entry, deadline)
            work.listed = True
            path = self._cache.folder / f"probe-{number}"
            try:
                with storage_errors(path):
                    self._fetcher.fetch(min(bodies, key=lambda body: body.file.size), path, deadline)
            finally:
                path.unlink(missing_ok=True)
                self._release(work)
        self._log.event("probe", id=entry.item.id, failure=work.failure.message if work.failure else "")
        self._report(Probed(work.failure if work.failure is not None and work.failure.is_silence else None))

    def _guard(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except InterruptedRunError:
            return  # the stop event is set: the coordinator knows
        except BaseException as error:  # noqa: BLE001 - the thread's border: the coordinator gets it and raises it
            self._report(Fatal(error))

    def _take_back(self, salvage: Salvage, fact: FrameFact, asked: Sequence[EntryWork]) -> None:
        """Settle the entries that come back from a packed frame, and ask for the others."""
        if self._stop.is_set():
            return
        left = {(work.entry.number, work.entry.piece): work for work in asked}
        folder = self._cache.frame_folder(fact.frame)
        files = size = 0
        with contextlib.closing(salvage.take(fact, [work.entry for work in asked], folder)) as taken:
            for entry, raw in taken:
                work = left.pop((entry.number, entry.piece))
                work.files = list(enumerate(raw))
                files, size = files + len(raw), size + sum(file.size for file in raw)
                self._settle(fact.frame, work)
        self._log.event("taken-back", frame=fact.frame, part=fact.part, files=files, bytes=size, left=len(left))
        with self._lock:
            self.reused += size
        self._ask(fact.frame, left.values())

    def _ask(self, frame: int, asked: Iterable[EntryWork]) -> None:
        for work in asked:
            self._choose_pool(work.entry).submit(self._guard, self._list, frame, work)

    def _list(self, frame: int, work: EntryWork) -> None:
        if self._stop.is_set():
            return
        deadline = time.monotonic() + self._deadline
        bodies: Sequence[Body] = []
        with _Border(work):
            bodies = self._fetcher.list_bodies(work.entry, deadline)
            work.listed = True
        if work.failure is None and not bodies:
            work.failure = Failure("empty", "no files fall into this piece of the item", transient=False)
        if work.failure is not None:
            self._settle(frame, work)
            return
        self.answered = True
        work.waiting = len(bodies)
        if isinstance(work.entry.item.location, NbiaLocation):
            # They lie on scratch, in their zip or beside it: that is work for this thread, while others download.
            for position, body in enumerate(bodies):
                self._take(frame, work, position, body)
            return
        for position, body in enumerate(bodies):
            self._choose_pool(work.entry).submit(self._guard, self._take, frame, work, position, body)

    def _take(self, frame: int, work: EntryWork, position: int, body: Body) -> None:
        if self._stop.is_set():
            return
        with work.lock:
            if work.deadline is None:  # what it waited for others is not its fault
                work.deadline = time.monotonic() + self._deadline
            deadline = work.deadline
        file: RawFile | None = None
        if work.failure is None:  # once an entry has failed, the rest of it is not asked for
            with _Border(work):
                file = self._bring(frame, position, body, deadline)
        with work.lock:
            if file is not None:
                work.files.append((position, file))
                work.keys.append(body.cache_key)
            work.waiting -= 1
            settled = work.waiting == 0
        if settled:
            if work.failure is None and (name := find_duplicate(work.files)):
                message = f"two files of the series are {name.removesuffix('.dcm')}"
                work.failure = Failure("duplicate", message, transient=False)
            self._settle(frame, work)

    def _bring(self, frame: int, position: int, body: Body, deadline: float) -> RawFile:
        """One body, verified, on scratch: from an earlier life or from the site."""
        if (known := self._cache.find(body.cache_key)) is not None:
            self._log.event("reused", key=body.file.key, bytes=known.size)
            with self._lock:
                self.reused += known.size
            return known
        # Two bodies never share a file, not even when a site lists one twice.
        identity = f"{body.entry.number} {body.entry.piece} {position} {body.cache_key}"
        name = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        path = self._cache.frame_folder(frame) / name
        try:
            with storage_errors(path):  # a full scratch is not this item's fault
                file, warnings = fetch_verified(self._fetcher, body, path, deadline)
        except ItemError as error:
            self._log.event("refused", key=body.file.key, reason=error.reason, message=str(error))
            raise
        with self._lock:
            self.downloaded += file.size
            self.delivered += 1
        self._cache.add(body.cache_key, file)
        self._log.event(
            "verified", key=file.key, bytes=file.size, evidence=file.evidence, chain=file.chain, warnings=warnings
        )
        return file

    def _settle(self, frame: int, work: EntryWork) -> None:
        failure = work.failure
        self._release(work)
        work.settled = True
        if failure is not None:
            logger.warning("failed: %s: %s: %s", work.entry.item.id, failure.reason, failure.message)
            self._log.event(
                "item-failed", id=work.entry.item.id, number=work.entry.number, piece=work.entry.piece,
                reason=failure.reason, message=failure.message,
            )  # fmt: skip
        self._report(EntryDone(frame, work))

    def _release(self, work: EntryWork) -> None:
        """Say that no more of an entry will be asked for, once it was listed."""
        if work.listed and self._holder is not None:
            self._holder.release(work.entry)
        work.listed = False


class _Border:
    """The item border: what goes wrong inside fails this entry and no other."""

    def __init__(self, work: EntryWork) -> None:
        self._work = work

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        if isinstance(error, ItemError):
            failure = Failure(error.reason, render_message(str(error)), error.transient)
        elif isinstance(error, MedhaulError) or not isinstance(error, Exception):
            return False  # full scratch, a stop: not this item's fault
        else:
            logger.error("a fault in medhaul, at %s", self._work.entry.item.id, exc_info=error)
            failure = Failure("internal", render_message(f"{type(error).__name__}: {error}"), transient=True)
        with self._work.lock:
            if self._work.failure is None:
                self._work.failure = failure
        return True


def render_message(text: str) -> str:
    """A message fit for records: of bounded length, and without what UTF-8 cannot hold (names of files can). Pure."""
    return text[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()


def scratch_path(folder: Path) -> Path:
    """Where medhaul works below a scratch folder: one place per user, so that others' files are never in the way."""
    return folder / f"medhaul-{os.getuid()}"
