"""A folder to extract into. Paths come from archives that somebody gave us: nothing is ever written outside."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.atomic import storage_errors
from pipeline.errors import ConfigError, UsageError

MAX_PATH_BYTES = 4096
MAX_DEPTH = 64
MAX_NAME_BYTES = 255
READ_BYTES = 1 << 20


class OccupiedError(Exception):
    """Something else stands where a file is to go: str() says what."""


def safe_parts(path: str) -> list[str]:
    """The components of an archive's path, none of which leads out of a folder. Pure.

    Raises
    ------
    ConfigError
        When one does, or the path is none that a file system takes.
    """
    parts = path.split("/")
    good = len(parts) <= MAX_DEPTH and len(path.encode()) < MAX_PATH_BYTES and "\0" not in path
    if not good or any(part in {"", ".", ".."} or len(part.encode()) > MAX_NAME_BYTES for part in parts):
        shown = path if len(path) < 200 else path[:200] + "..."
        raise ConfigError(f"refused: {shown!r} is a path that leaves its folder, or none at all", hint="distrust it")
    return parts


class Destination:
    """A folder, made if need be; everything below it is reached by descriptors that follow no symbolic link."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            try:
                path.mkdir(parents=True, exist_ok=True)
                self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileExistsError, NotADirectoryError):
                raise UsageError(f"{path}: not a folder", hint="name a folder, or one to be made") from None
        self._open: list[tuple[str, int]] = []  # the folders on the way to the last file

    def holds(self, parts: list[str], size: int, sha256: str) -> bool:
        """Whether the file is there already, with these bytes; False when nothing is there.

        Raises
        ------
        OccupiedError
            When something else is there.
        """
        folder = self._folder(parts[:-1], create=False)
        if folder is None:
            return False
        try:
            descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            what = "a symbolic link" if error.errno == errno.ELOOP else f"not readable ({error.strerror})"
            raise OccupiedError(f"what is there is {what}") from None
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise OccupiedError("what is there is no file")
            if state.st_size == size and _hash(descriptor) == sha256:
                return True
        finally:
            os.close(descriptor)
        raise OccupiedError("a file with other content is there")

    def write(self, parts: list[str], content: Iterator[memoryview]) -> None:
        """Write a file, mode 0644 less the umask, wholly or not at all; what has its name is replaced.

        Raises
        ------
        OccupiedError
            When a folder has its name.
        StorageError
            When the disk is full or not writable.

        Whatever `content` raises passes through, and leaves no file.
        """
        with storage_errors(self.path.joinpath(*parts)):
            folder = self._folder(parts[:-1], create=True)
            assert folder is not None
            temporary = f".medhaul-{secrets.token_hex(8)}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o644, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
                    for piece in content:
                        file.write(piece)
                os.replace(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException as error:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                if isinstance(error, IsADirectoryError):
                    raise OccupiedError("a folder is there") from None
                raise

    def close(self) -> None:
        self._leave(0)
        os.close(self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _folder(self, parts: list[str], *, create: bool) -> int | None:
        """Descriptor of a folder below the root; None when it is not there and not to be made."""
        same = 0
        while same < min(len(parts), len(self._open)) and parts[same] == self._open[same][0]:
            same += 1
        self._leave(same)
        for depth in range(same, len(parts)):
            part = parts[depth]
            above = self._open[-1][1] if self._open else self._root
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=above)
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._open.append((part, os.open(part, flags, dir_fd=above)))
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                    raise
                shown = self.path.joinpath(*parts[: depth + 1])
                raise OccupiedError(f"{shown} is a file or a symbolic link, not a folder") from None
        return self._open[-1][1] if self._open else self._root

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])


def _hash(descriptor: int) -> str:
    digest = hashlib.sha256()
    while data := os.read(descriptor, READ_BYTES):
        digest.update(data)
    return digest.hexdigest()
