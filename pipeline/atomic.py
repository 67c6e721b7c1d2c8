"""Files that are either wholly there or not at all, on shared storage too: one writer, no locks."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import StorageError

_UNUSABLE = frozenset(
    {errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO, errno.ESTALE}
    | {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageError(f"{path}: {error.strerror}", hint="free space or quota there, then `resume`") from error
        if error.errno in _UNUSABLE:
            raise StorageError(f"{path}: {error.strerror}", hint="check the folder's rights and mount") from error
        raise


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the name `path` only when the block ends well.

    Temporary file in the same folder, fsync, `os.replace`, fsync of the folder. `durable=False` leaves out the fsyncs,
    for what may be lost (heartbeats).
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o644 & ~current_umask())
                if durable:
                    os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        if durable:
            fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path`, wholly or not at all. Raises `StorageError`."""
    with atomic_file(path, durable=durable) as file:
        file.write(data)


def current_umask() -> int:
    """Read the process's umask; from /proc, since the system call can only set it."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o077
