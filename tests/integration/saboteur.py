"""Run medhaul in this process and strike when it passes a named point for the n-th time.

    python saboteur.py POINT COUNT SIGNAL medhaul-arguments...

SIGNAL is what the process sends itself (SIGKILL, SIGTERM, SIGUSR1, SIGSTOP), or FLIP: one bit of the raw file at hand
changes. It exits with 99 when the point was not passed so often.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import atomic
from pipeline.archive.join import ArchiveWriter
from pipeline.cli.main import run_cli
from pipeline.sources.idc import IdcFetcher
from pipeline.task import part as part_module
from pipeline.task.cache import ScratchCache
from pipeline.task.part import PartWriter
from pipeline.task.salvage import Salvage
from pipeline.transport.download import Sink

Struck = Callable[..., None]
NEVER_STRUCK = 99


class Strike:
    """Counts passings of the point; thread-safe."""

    def __init__(self, count: int, name: str) -> None:
        self.name = name
        self.done = threading.Event()
        self._number = itertools.count(1)
        self._count = count

    def __call__(self, raw: str = "") -> None:
        if next(self._number) != self._count:
            return
        self.done.set()
        if self.name == "FLIP":
            flip_bit(Path(raw))
        else:
            os.kill(os.getpid(), signal.Signals[self.name])


def flip_bit(path: Path) -> None:
    """Change the middle bit of a file, not its size or name."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def before(owner: Any, name: str, strike: Struck, *, fits: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Strike before each call of a function whose arguments fit."""
    real = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        if fits(*args, **kwargs):
            strike()
        return real(*args, **kwargs)

    setattr(owner, name, replaced)


def after(owner: Any, name: str, strike: Struck, *, fits: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Strike after each call of a function whose arguments fit."""
    real = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if fits(*args, **kwargs):
            strike()
        return result

    setattr(owner, name, replaced)


def verified(strike: Struck) -> None:
    """A raw file has been noted as verified."""
    real = ScratchCache.add

    def add(self: ScratchCache, key: str, file: Any) -> None:
        real(self, key, file)
        strike(file.local)

    ScratchCache.add = add  # type: ignore[method-assign]


def taken_back(strike: Struck) -> None:
    """A raw file has been written from a packed frame."""
    real = Salvage._take_file

    def take_file(self: Salvage, *args: Any) -> Any:
        file = real(self, *args)
        if file is not None:
            strike(file.local)
        return file

    Salvage._take_file = take_file  # type: ignore[method-assign]


def half_line(strike: Struck) -> None:
    """Half of a frame's journal line has been written, its part's bytes are on disk."""
    real_close, real_write = PartWriter.close_frame, part_module._write_all
    closing = threading.Event()

    def close_frame(self: PartWriter, record: Any) -> Any:
        closing.set()
        fact = real_close(self, record)
        closing.clear()
        return fact

    def write_all(descriptor: int, data: bytes) -> None:
        if closing.is_set():
            real_write(descriptor, data[: len(data) // 2])
            os.fsync(descriptor)
            strike()
            data = data[len(data) // 2 :]
        real_write(descriptor, data)

    PartWriter.close_frame = close_frame  # type: ignore[method-assign]
    part_module._write_all = write_all


def named(*ends: str) -> Callable[..., bool]:
    """Whether the target of `os.replace(source, target)` ends so."""
    return lambda _, target, **__: str(target).endswith(ends)


def in_parts(path: Path, **_: Any) -> bool:
    """Whether a path to be unlinked is a part, journal or shard index."""
    return "parts" in path.parts


POINTS: dict[str, Callable[[Struck], None]] = {
    # -- of a task, in the order in which it passes them
    # It has chosen its number, and has not opened the files of that number.
    "before-life": lambda strike: before(
        part_module.os, "open", strike, fits=lambda path, *_, **__: str(path).endswith(".journal")
    ),
    "before-list": lambda strike: before(IdcFetcher, "list_bodies", strike),
    "before-fetch": lambda strike: before(IdcFetcher, "fetch", strike),
    "mid-body": lambda strike: after(Sink, "feed", strike),
    "verified": verified,
    # A frame that was packed with failures is about to be read back, or is being read back.
    "before-salvage": lambda strike: before(Salvage, "take", strike),
    "taken-back": taken_back,
    "mid-frame": lambda strike: after(PartWriter, "write", strike),
    "before-journal": lambda strike: before(
        part_module, "journal_line", strike, fits=lambda record: hasattr(record, "frame")
    ),
    "half-line": half_line,
    "journaled": lambda strike: after(PartWriter, "close_frame", strike),
    "before-shard-index": lambda strike: before(atomic.os, "replace", strike, fits=named(".index.zst")),
    "shard-index": lambda strike: after(atomic.os, "replace", strike, fits=named(".index.zst")),
    # Not only the file's name: the heartbeat has the same.
    "before-receipt": lambda strike: before(atomic.os, "replace", strike, fits=named("receipts/00/000000.json")),
    "receipt": lambda strike: after(atomic.os, "replace", strike, fits=named("receipts/00/000000.json")),
    # -- of both: inside logging, where no error gets out
    "saying": lambda strike: before(logging.StreamHandler, "flush", strike),
    # -- of reduce
    "mid-copy": lambda strike: after(ArchiveWriter, "copy_frame", strike),
    "before-archive": lambda strike: before(atomic.os, "replace", strike, fits=named(".tar.xz")),
    "archive": lambda strike: after(atomic.os, "replace", strike, fits=named(".tar.xz")),
    "before-metadata": lambda strike: before(atomic.os, "replace", strike, fits=named(".metadata.csv")),
    "before-index": lambda strike: before(atomic.os, "replace", strike, fits=named(".index.jsonl.zst")),
    "index": lambda strike: after(atomic.os, "replace", strike, fits=named(".index.jsonl.zst")),
    "before-checksums": lambda strike: before(atomic.os, "replace", strike, fits=named("SHA256SUMS")),
    "checksums": lambda strike: after(atomic.os, "replace", strike, fits=named("SHA256SUMS")),
    "removing": lambda strike: after(Path, "unlink", strike, fits=in_parts),
}


def main(arguments: list[str]) -> int:
    """Sabotage, run, and return the exit code."""
    point, count, name, *rest = arguments
    strike = Strike(int(count), name)
    POINTS[point](strike)
    code = run_cli(rest)
    return code if strike.done.is_set() else NEVER_STRUCK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
