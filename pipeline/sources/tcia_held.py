"""Zips that a task keeps on scratch while somebody reads from them, and records of what was in those that are gone."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.atomic import atomic_file, storage_errors
from pipeline.dicom.header import is_uid
from pipeline.errors import ItemError
from pipeline.model import Item
from pipeline.sources.tcia_series import Found, SeriesFile

# Zips of which no file is being asked for now, though another piece of their series will be.
IDLE = 2
_STEP = 0.25
_MD5 = re.compile(r"[0-9a-f]{32}")


class Key(NamedTuple):
    """A series at a host, as the manifest names both."""

    base_url: str
    uid: str


class Held(NamedTuple):
    """A checked zip on scratch, its files in order, and by MD5."""

    key: Key
    path: Path
    files: list[SeriesFile]
    by_md5: dict[str, Found]


class _State:
    def __init__(self) -> None:
        self.users = 0  # listings that were not released
        self.wanted: set[int] = set()  # pieces that the task has yet to be done with
        self.held: Held | None = None
        self.busy = False  # somebody is bringing it
        self.round = 0  # how often somebody began to
        self.failure: ItemError | None = None
        self.told: set[int] = set()  # pieces that know of the failure
        self.spoiled = False
        self.used = 0  # when it was last of use


class _Record(msgspec.Struct, frozen=True):
    uid: str
    files: list[SeriesFile]


class Room:
    """What of scratch is promised to files that are yet to be written. For many threads.

    Parameters
    ----------
    free
        Tells how many bytes are free now.

    Attributes
    ----------
    whole
        Bytes that were free at the beginning: all that a task may ever have.
    """

    def __init__(self, free: Callable[[], int]) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._promises: dict[Hashable, int] = {}
        self.whole = free()

    @property
    def promised(self) -> int:
        """Bytes of all promises."""
        return sum(self._promises.values())

    def ask(self, name: Hashable, choose: Callable[[int, int], int]) -> int:
        """Promise what `choose` makes of the bytes that are free and those that are promised; return it."""
        with self._lock:
            chosen = choose(self._free(), self.promised)
            self._promises[name] = chosen
            return chosen

    def change(self, old: Hashable, new: Hashable, count: int) -> None:
        """Promise so many bytes, in place of another promise if there is one."""
        with self._lock:
            self._promises.pop(old, None)
            if count:
                self._promises[new] = count

    def end(self, name: Hashable) -> None:
        """End a promise, if there is one."""
        with self._lock:
            self._promises.pop(name, None)


class Store:
    """The zips of a task, each brought once for all that want it. For many threads.

    A zip stays while one of its entries is in use. How many entries are, and so the bytes of all zips, is for the task
    to bound; of zips that only wait for another piece of their series, the last `IDLE` are kept.

    Parameters
    ----------
    folder
        This store's own; zips that a dead process left there are removed.
    wanted
        Series and piece of all that the task will ask for.
    """

    def __init__(self, folder: Path, wanted: Iterable[tuple[Key, int]]) -> None:
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._changed = threading.Condition()
        self._states: dict[Key, _State] = {}
        self._clock = 0
        for key, piece in wanted:
            self._states.setdefault(key, _State()).wanted.add(piece)
        self._sweep()

    def close(self) -> None:
        """Remove all zips; the records stay. Raises `StorageError`."""
        self._sweep()

    def path(self, key: Key, ending: str) -> Path:
        """Where something of a series lies; no name of a site is part of it."""
        name = hashlib.sha256(f"{key.base_url}\n{key.uid}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self._folder / f"{name}{ending}"

    @contextlib.contextmanager
    def images(self, key: Key) -> Iterator[Path]:
        """A fresh folder for a series' images, each under its MD5; it goes with the zip, or when the block fails."""
        folder = self.path(key, ".images")
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def take(self, key: Key, md5: str, path: Path) -> bool:
        """Move an image to `path`; False where it is not there, since it was taken. Raises `StorageError`."""
        with storage_errors(path):
            try:
                (self.path(key, ".images") / md5).rename(path)
            except FileNotFoundError:
                return False
        return True

    def free(self) -> int:
        """Bytes that are free on scratch. Raises `StorageError`."""
        with storage_errors(self._folder):
            return shutil.disk_usage(self._folder).free

    def hold(self, key: Key) -> None:
        """Keep the series' zip, once it is there, until `let_go`."""
        with self._changed:
            self._states.setdefault(key, _State()).users += 1

    def let_go(self, key: Key) -> None:
        """End a `hold`. Raises `StorageError`."""
        with self._changed:
            state = self._states[key]
            state.users -= 1
            if state.users == 0:
                self._settle(key, state)

    def finish(self, key: Key, piece: int) -> None:
        """Note that the task is done with a piece."""
        with self._changed:
            self._states[key].wanted.discard(piece)

    def spoil(self, key: Key) -> None:
        """Note that a zip, or what was listed of it, is not to be trusted any more: it goes with its last hold."""
        with self._changed:
            self._states[key].spoiled = True

    def claim(self, key: Key, piece: int, check: Callable[[], object]) -> Held | None:
        """The series' zip; None where the caller is to bring it, and to say `put` or `fail`.

        Waits while somebody else brings it. A failure is told once to each piece, so that all pieces of an item fail
        by one trial; a piece that asks again has it tried again.

        Raises
        ------
        ItemError
            Why it could not be brought.

        And what `check` raises, which is called while waiting.
        """
        waited = 0
        with self._changed:
            state = self._states.setdefault(key, _State())
            while True:
                if state.held is not None:
                    return state.held
                if state.failure is not None and (piece not in state.told or waited == state.round):
                    state.told.add(piece)
                    raise ItemError(state.failure.reason, str(state.failure), transient=state.failure.transient)
                if not state.busy:
                    state.busy, state.failure = True, None
                    state.round += 1
                    return None
                waited = state.round
                self._changed.wait(_STEP)
                check()

    def put(self, key: Key, part: Path, found: Sequence[Found]) -> Held:
        """Take over a zip that was brought and checked. Raises `StorageError`."""
        path = self.path(key, ".zip")
        files = [each.file for each in found]
        with storage_errors(path):
            part.replace(path)
        with atomic_file(self.path(key, ".json"), durable=False) as record:
            record.write(msgspec.json.encode(_Record(key.uid, files)))
        held = Held(key, path, files, {each.file.md5: each for each in found})
        with self._changed:
            state = self._states[key]
            state.held, state.busy, state.spoiled = held, False, False
            self._changed.notify_all()
        return held

    def fail(self, key: Key, piece: int, error: BaseException) -> None:
        """Note that a zip could not be brought; those who wait are told what is the item's own trouble."""
        with self._changed:
            state = self._states[key]
            state.busy = False
            if isinstance(error, ItemError):
                state.failure, state.told = error, {piece}
            self._changed.notify_all()

    def read_record(self, key: Key, item: Item) -> list[SeriesFile] | None:
        """What the series' zip held when it was checked, by this life or an earlier one; None where nobody knows."""
        try:
            record = msgspec.json.decode(self.path(key, ".json").read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # then it is brought again
        good = record.uid == key.uid and record.files and all(map(_is_sound, record.files))
        same = item.files in {-1, len(record.files)} and item.bytes in {-1, sum(file.size for file in record.files)}
        return record.files if good and same else None

    def _settle(self, key: Key, state: _State) -> None:
        """Remove what nobody needs any more."""
        if state.held is None:
            if not state.wanted and state.failure is None and not state.busy:
                del self._states[key]
            return
        if state.spoiled or not state.wanted:
            self._drop(state)
            return
        self._clock += 1
        state.used = self._clock
        idle = sorted((s for s in self._states.values() if s.held and not s.users), key=lambda s: s.used)
        for other in idle[:-IDLE]:
            self._drop(other)

    def _drop(self, state: _State) -> None:
        held, state.held, state.spoiled = state.held, None, False
        if held is not None:
            shutil.rmtree(self.path(held.key, ".images"), ignore_errors=True)
            with storage_errors(held.path):
                held.path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        with storage_errors(self._folder):
            for path in self._folder.glob("*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.suffix != ".json":
                    path.unlink(missing_ok=True)


def _is_sound(file: SeriesFile) -> bool:
    return _MD5.fullmatch(file.md5) is not None and file.size >= 0 and (not file.sop or is_uid(file.sop))
