"""NBIA, where a series comes whole as a zip: downloaded once, checked to its end, and handed out file by file.

Facts: nothing states a zip's length and nothing continues a broken one; a fault of the server ends in a sound zip that
lacks images; names in a zip may be others at the next request, MD5s and SOPInstanceUIDs are not.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.atomic import storage_errors
from pipeline.errors import ItemError, SiteUnavailableError
from pipeline.model import Entry, Item, NbiaLocation
from pipeline.settings import SourceTcia
from pipeline.sizes import entry_bytes
from pipeline.sources.base import Body, Received
from pipeline.sources.tcia_api import parse_base_url
from pipeline.sources.tcia_calls import (
    choose_piece,
    choose_refusal,
    judge_status,
    name_body,
    plan_calls,
    plan_limits,
    unwritten,
)
from pipeline.sources.tcia_held import Held, Key, Room, Store
from pipeline.sources.tcia_series import Found, check_series
from pipeline.sources.tcia_token import TokenSource, find_credentials, shared_token
from pipeline.sources.tcia_zip import read_member
from pipeline.transport.client import Transport
from pipeline.transport.download import Sink
from pipeline.transport.evidence import Digests, Tally
from pipeline.transport.retry import check_stop
from pipeline.units import render_size

DEMO = "demo"
# Reasons that another version of the API may not have: it reads the same images, but by another way.
OTHER_WAY = frozenset({"unavailable", "withdrawn", "forbidden"})
# Of the time that is left for an item, what the first version may use up with asking again.
FIRST_SHARE = 2 / 3
TURN_STEP = 0.25  # seconds


class NbiaFetcher:
    """A task's way to NBIA. `close` it.

    Parameters
    ----------
    folder
        For zips, on scratch and this fetcher's own: zips in it are removed at the beginning and at the end; records of
        what was in them serve a later life.
    entries
        All that the task will ask for: the zip of a cut item is kept until its last piece was released.
    known
        Finds a body that an earlier life left on scratch, by cache key.
    clock
        What deadlines are on: the transport's.

    Raises
    ------
    CredentialsError, ConfigError
        When credentials are given, and cannot be used.
    StorageError
        When the folder cannot be.
    """

    def __init__(
        self,
        settings: SourceTcia,
        transport: Transport,
        folder: Path,
        *,
        entries: Iterable[Entry] = (),
        known: Callable[[str], object | None] = lambda _: None,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._known = known
        self._stop = stop or threading.Event()
        self._clock = clock
        self._token: TokenSource | None = None
        self._used: set[str] = set()  # tokens, one every two hours or so
        self._trusted: frozenset[str] = frozenset()
        self._processors = threading.Semaphore(len(os.sched_getaffinity(0)))
        self._base = settings.base_url
        credentials = find_credentials(Path(settings.credentials) if settings.credentials else None)
        if credentials is not None:
            main = parse_base_url(self._base, secret=True)
            self._token = shared_token(f"{main}/oauth/token", credentials)
            nlst = settings.nlst_base_url
            self._trusted = frozenset({main, parse_base_url(nlst, secret=True) if nlst else main})
        self._store = Store(folder, ((self._key(entry.item), entry.piece) for entry in entries if _is_here(entry)))
        self.room = Room(self._store.free)

    def close(self) -> None:
        """Remove the zips; no other method is called any more."""
        self._store.close()

    def list_bodies(self, entry: Entry, deadline: float) -> list[Body]:
        """List an entry's files by SOPInstanceUID, once its whole zip was checked; of a cut item, those of this piece.

        Where all of them are on scratch since an earlier life, nothing is downloaded.
        """
        key = self._key(entry.item)
        self._store.hold(key)
        try:
            recorded = self._store.read_record(key, entry.item)
            if recorded is not None:
                bodies = [name_body(entry, file) for file in choose_piece(recorded, entry)]
                if all(self._known(body.cache_key) is not None for body in bodies):
                    return bodies
            held = self._open(entry, deadline)
            self.room.change(None, (key, entry.piece), unwritten(held.files, held.by_md5, entry))
            return [name_body(entry, file) for file in choose_piece(held.files, entry)]
        except BaseException:
            self.room.end((key, entry.piece))
            self._store.let_go(key)
            raise

    def fetch(self, body: Body, path: Path, deadline: float) -> Received:
        """Write one file from its series' zip. Raises as `Fetcher` says."""
        entry = body.entry
        held = self._open(entry, deadline)
        found = held.by_md5.get(body.file.etag)
        if found is None or found.file.size != body.file.size:
            self._store.spoil(self._key(entry.item))
            text = f"{body.file.key} with MD5 {body.file.etag}, listed before, is not in its zip any more"
            raise ItemError("checksum", text, transient=True)
        route = f"nbia:{self._root(held.key)}"
        # Packing compares every raw file with its SHA-256 again, so what was written while it was checked need not be
        # read here.
        if found.sha256 and self._store.take(held.key, found.file.md5, path):
            evidence = ("md5", "size")
            return Received(
                path, found.file.size, found.file.md5, found.sha256, evidence, route, header=found.header
            )  # fmt: skip
        try:
            digests = self._extract(held.path, found, path, deadline)
        except ItemError as error:
            if error.reason == "checksum":  # it was right when it was checked: it is scratch that is not
                self._store.spoil(self._key(entry.item))
            raise
        return Received(path, digests.size, digests.md5, digests.sha256, ("md5", "size"), route)

    def release(self, entry: Entry) -> None:
        """Let go of an entry: its zip goes, unless another piece of it or another listing wants it."""
        key = self._key(entry.item)
        self.room.end((key, entry.piece))
        self._store.finish(key, entry.piece)
        self._store.let_go(key)

    def _key(self, item: Item) -> Key:
        if not isinstance(item.location, NbiaLocation):
            raise ItemError("internal", f"it is not at NBIA, but at {item.location}")
        return Key(item.location.base_url, item.id)

    def _root(self, key: Key) -> str:
        """Where a series is asked for: the demo's address is another each time, and so in no manifest."""
        url = self._base if key.base_url == DEMO else key.base_url
        return parse_base_url(url, secret=self._token is not None)

    def _extract(self, zip_path: Path, found: Found, path: Path, deadline: float) -> Digests:
        try:
            with (
                storage_errors(zip_path),
                open(zip_path, "rb", buffering=0) as file,
                Sink(path, Tally(found.file.size, "")) as sink,
            ):
                for piece in read_member(file.fileno(), found.member, lambda: self._check(deadline)):
                    sink.feed(memoryview(piece))
                digests = sink.tally.digests()
                if digests.md5 != found.file.md5:
                    raise ItemError("checksum", f"{found.file.sop} changed on scratch", transient=True)
                sink.close()
        except FileNotFoundError:  # of the zip: what the sink meets is a StorageError
            raise ItemError("checksum", f"{found.file.sop}: its zip is gone from scratch", transient=True) from None
        return digests

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        """Wait for a processor: more zips at a time than there are of these only take them from each other."""
        while not self._processors.acquire(timeout=TURN_STEP):
            self._check(deadline)
        try:
            yield
        finally:
            self._processors.release()

    def _check(self, deadline: float) -> None:
        check_stop(self._stop)
        if self._clock() > deadline:
            raise ItemError("unavailable", "the time for this item is over", transient=True)

    def _open(self, entry: Entry, deadline: float) -> Held:
        """The item's zip on scratch, brought there by whoever needs it first while the others wait."""
        key = self._key(entry.item)
        held = self._store.claim(key, entry.piece, lambda: self._check(deadline))
        if held is not None:
            return held
        try:
            return self._store.put(key, *self._bring(key, entry, deadline))
        except BaseException as error:
            self._store.fail(key, entry.piece, error)
            raise

    def _bring(self, key: Key, entry: Entry, deadline: float) -> tuple[Path, list[Found]]:
        """Download and check a zip, by the first version of the API that has it whole."""
        item = entry.item
        path = self._store.path(key, ".part")
        if item.bytes >= 0:
            needed = entry_bytes(entry)
            if needed > self.room.whole:
                raise ItemError(
                    "size", f"it needs {render_size(needed)} of scratch, its zip and its images, and only "
                    f"{render_size(self.room.whole)} were free there: set task.scratch to a larger place"
                )  # fmt: skip
            self.room.ask(key, lambda _free, _promised: needed)
            limit, inflated = plan_limits(item, 0)
        else:
            limit = inflated = self.room.ask(key, lambda free, promised: plan_limits(item, free, promised)[0])
        left = 0
        try:
            found = self._download(key, entry, path, deadline, limit=limit, inflated=inflated)
            left = unwritten([each.file for each in found], {each.file.md5: each for each in found}, entry)
        except ItemError as error:
            if item.bytes >= 0 or error.reason != "size":
                raise
            bound = f"without a stated size, zip and images may take {render_size(limit)} of scratch now"
            raise ItemError("size", f"{error}; {bound}", transient=True) from None
        finally:
            self.room.change(key, (key, entry.piece), left)
        return path, found

    def _download(
        self, key: Key, entry: Entry, path: Path, deadline: float, *, limit: int, inflated: int
    ) -> list[Found]:
        item = entry.item

        def accept(path: Path) -> list[Found]:
            # Of a cut item only a piece is wanted now; and unstated bytes might be more than fit.
            room = entry.pieces == 1 and item.bytes >= 0
            with (
                self._turn(deadline),
                storage_errors(path),
                open(path, "rb", buffering=0) as file,
                self._store.images(key) if room else contextlib.nullcontext() as out,
            ):
                most = inflated if item.bytes >= 0 else inflated - os.fstat(file.fileno()).st_size
                return check_series(file.fileno(), item, limit=most, check=lambda: self._check(deadline), out=out)

        root = self._root(key)
        errors: list[tuple[str, ItemError]] = []
        for version, call in plan_calls(item.id, secret=self._token is not None):
            now = self._clock()
            ask_until = deadline if errors else now + (deadline - now) * FIRST_SHARE
            statuses: list[int] = []
            try:
                return self._ask(
                    f"{root}/{call}", path, accept, statuses, limit=limit, deadline=deadline, ask_until=ask_until
                )
            except ItemError as error:
                errors.append((version, error))
                # Who asks to slow down means all calls.
                if error.reason not in OTHER_WAY or statuses[-1:] == [429]:
                    break
        raise choose_refusal(errors)

    def _ask(
        self,
        url: str,
        path: Path,
        accept: Callable[[Path], list[Found]],
        statuses: list[int],
        *,
        limit: int,
        deadline: float,
        ask_until: float,
    ) -> list[Found]:
        """One call, and again with another token where the site does not take the first any more.

        `statuses` gets each error status that the site answers.
        """

        def explain(status: int, document: bytes) -> ItemError | None:
            statuses.append(status)
            return judge_status(status, document)

        rejected = False
        while True:
            token = self._bearer(url)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            try:
                return self._transport.stream(
                    url, path, accept, limit=limit, headers=headers, explain=explain, deadline_at=deadline,
                    ask_until=ask_until,
                )  # fmt: skip
            except ItemError as error:
                if self._token and token and statuses[-1:] == [401] and not rejected:
                    rejected = True
                    self._token.reject(token)
                    continue
                raise ItemError(error.reason, self._scrub(str(error)), transient=error.transient) from None

    def _bearer(self, url: str) -> str:
        """A token for the hosts that the settings name, and for no other one."""
        if self._token is None or not any(url.startswith(f"{root}/") for root in self._trusted):
            return ""
        try:
            token = self._token.get(self._stop)
        except SiteUnavailableError as error:
            raise ItemError("unavailable", str(error), transient=True) from None
        self._used.add(token)
        return token

    def _scrub(self, text: str) -> str:
        """Take out what a site may say back of a request."""
        for token in tuple(self._used):
            text = text.replace(token, "…")
        return self._token.scrub(text) if self._token else text


def _is_here(entry: Entry) -> bool:
    return isinstance(entry.item.location, NbiaLocation)
