"""Raw files on node-local scratch: found again by a later life of the same shard, and re-checked before use."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import threading
from pathlib import Path

import msgspec

from pipeline.atomic import storage_errors
from pipeline.model import RawFile

# First letters of the manifest's SHA-256, shard, and the process when the first name was taken.
FOLDER = re.compile(r"[0-9a-f]{12}-[0-9]{6,}(\.[0-9]+)?")


class _Line(msgspec.Struct, frozen=True):
    key: str
    file: RawFile


class ScratchCache:
    """A folder of raw files of one shard, with a log of those that were verified.

    Node-local, so a lock works: while another living process has the folder, this one takes a folder of its own.
    """

    def __init__(self, base: Path, name: str) -> None:
        with storage_errors(base):
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder, self._lock_file = _claim_folder(base, name)
        self._known: dict[str, RawFile] = {}
        self._frames: dict[int, Path] = {}  # whose folders are there
        log = self.folder / "verified.jsonl"
        if log.exists():
            self._known = _read_log(log)
        self._log = log.open("ab")
        if self._log.tell():
            self._log.write(b"\n")  # what comes must not continue a torn line
        self._lock = threading.Lock()

    def frame_folder(self, frame: int) -> Path:
        """Where the raw files of a frame go. Raises `StorageError`."""
        folder = self._frames.get(frame)
        if folder is None:
            folder = self.folder / f"frame-{frame}"
            with storage_errors(folder):
                folder.mkdir(exist_ok=True)
            self._frames[frame] = folder
        return folder

    def find(self, key: str) -> RawFile | None:
        """Return a verified file that an earlier life left, re-checked against its SHA-256; None when there is none."""
        with self._lock:
            file = self._known.get(key)
        if file is None:
            return None
        try:
            with open(file.local, "rb") as raw:
                good = hashlib.file_digest(raw, "sha256").hexdigest() == file.sha256
        except OSError:
            good = False
        if not good:
            self.forget(key)
            return None
        return file

    def add(self, key: str, file: RawFile) -> None:
        """Note that a file is verified. Raises `StorageError`."""
        line = msgspec.json.encode(_Line(key, file)) + b"\n"
        with self._lock, storage_errors(self.folder):
            self._known[key] = file
            self._log.write(line)
            self._log.flush()

    def forget(self, key: str) -> None:
        """Take a file out, and delete it."""
        with self._lock:
            file = self._known.pop(key, None)
        if file is not None:
            Path(file.local).unlink(missing_ok=True)

    def drop_frame(self, frame: int, keys: list[str]) -> None:
        """Delete the raw files of a frame."""
        with self._lock:
            for key in keys:
                self._known.pop(key, None)
        self._frames.pop(frame, None)
        shutil.rmtree(self.folder / f"frame-{frame}", ignore_errors=True)

    def close(self, *, keep: bool) -> None:
        """End; unless `keep`, delete the folder."""
        self._log.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock_file.close()


def remove_cache(base: Path, name: str) -> None:
    """Remove what earlier lives of a shard left, when there is nothing more to do with it."""
    for folder in (base / name, *base.glob(f"{name}.*")):
        if folder.exists():
            _remove_unused(folder)


def sweep_scratch(base: Path, age: float, now: float) -> list[str]:
    """Remove this user's folders in `base` that no process has used for `age` seconds; return their names.

    A shard that was resumed on another node never comes back for what it left on this one.
    """
    swept: list[str] = []
    try:
        if base.lstat().st_uid != os.getuid():
            return swept
        folders = [folder for folder in base.iterdir() if FOLDER.fullmatch(folder.name) and not folder.is_symlink()]
    except OSError:
        return swept  # no scratch here: nothing to sweep
    for folder in folders:
        try:
            used = max(path.stat().st_mtime for path in (folder / "lock", folder / "verified.jsonl") if path.exists())
        except (OSError, ValueError):  # removed meanwhile, or not a shard's
            continue
        if now - used <= age:
            continue
        with contextlib.suppress(OSError):  # on a disk that is read-only by now, it stays
            if _remove_unused(folder):
                swept.append(folder.name)
    return sorted(swept)


def _claim_folder(base: Path, name: str) -> tuple[Path, contextlib.ExitStack]:
    folder = base / name
    number = os.getpid()
    while (stack := _lock_folder(folder)) is None:
        # Even one with this process's number may be taken: whoever clears up has it for a moment, and a container
        # that shares the scratch has numbers of its own.
        folder = base / f"{name}.{number}"
        number = secrets.randbelow(10**12)
    for stale in base.glob(f"{name}.*"):  # of lives that found the first folder taken, and died
        if stale != folder:
            _remove_unused(stale)
    return folder, stack


def _remove_unused(folder: Path) -> bool:
    """Remove a folder, unless a living process has it; say whether nobody had."""
    if (lock := _lock_folder(folder)) is None:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()
    return True


def _lock_folder(folder: Path) -> contextlib.ExitStack | None:
    """Make a folder and lock it; None when a living process has it."""
    while True:
        folder.mkdir(exist_ok=True, mode=0o700)
        stack = contextlib.ExitStack()
        try:
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), (folder / "lock").stat()):
                return stack
        except BlockingIOError:
            stack.close()
            return None
        except FileNotFoundError:
            pass
        stack.close()  # its owner removed the folder meanwhile


def _read_log(log: Path) -> dict[str, RawFile]:
    """The files that earlier lives verified and that are there; a torn last line was never finished and does not count.

    Files of frames that were packed are gone: memory holds those of the frames that were under way, not the shard's.
    """
    known = {}
    with log.open("rb") as lines:
        for data in lines:
            try:
                line = msgspec.json.decode(data, type=_Line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if Path(line.file.local).exists():
                known[line.key] = line.file
    return known
