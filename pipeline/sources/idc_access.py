"""Listing and downloading single series of the IDC, outside a run but by the same verified path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from pipeline.errors import ItemError, StorageError
from pipeline.model import Entry, Item, RemoteFile
from pipeline.settings import SourceIdc
from pipeline.sources.base import Body
from pipeline.sources.idc import IdcFetcher
from pipeline.sources.verified import fetch_verified
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy

DEADLINE = 3600.0


class IdcAccess:
    """The way to the files of a few series. Use it in a `with` block.

    Parameters
    ----------
    settings
        Endpoint and mirror; by default the public ones.
    connections
        At a time, in all.
    """

    def __init__(self, settings: SourceIdc | None = None, *, connections: int = 16) -> None:
        self._connections = connections
        self._pool = ConnectionPool(limit=connections)
        self._stop = threading.Event()
        transport = Transport(self._pool, Policy(attempts=4, deadline=DEADLINE), stop=self._stop)
        self._fetcher = IdcFetcher(settings or SourceIdc(), transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.close()

    def list_files(self, item: Item) -> list[RemoteFile]:
        """All files of a series, compared with the index's count and bytes. Raises `ItemError`."""
        return self._fetcher.list_series(item, time.monotonic() + DEADLINE)

    def download_series(self, item: Item, folder: Path, on_file: Callable[[int], object] = int) -> list[Path]:
        """Download a series to `folder/{SeriesInstanceUID}/{SOPInstanceUID}.dcm` and return the files' paths.

        `on_file` is told the bytes of each file that is done.

        All or nothing: the folder gets its name when every file is there and verified.

        Raises
        ------
        ItemError
            Why the series cannot be had whole.
        StorageError
            When the folder exists already, or cannot be written.
        """
        target = folder / item.id
        if target.exists():
            raise StorageError(f"{target}: exists already", hint="remove it, or choose another folder")
        partial = folder / f".{item.id}.partial"
        entry = Entry(number=0, frame=0, piece=0, pieces=1, item=item)
        deadline = time.monotonic() + DEADLINE
        bodies: Sequence[Body] = self._fetcher.list_bodies(entry, deadline)
        partial.mkdir(parents=True, exist_ok=True)
        names: set[str] = set()
        lock = threading.Lock()

        def bring(number: int) -> None:
            path = partial / f"{number}.raw"
            file = fetch_verified(self._fetcher, bodies[number], path, deadline).file
            with lock:
                if file.name in names:
                    raise ItemError("duplicate", f"two files of the series are {file.name}")
                names.add(file.name)
                on_file(file.size)
            path.rename(partial / file.name)

        for stale in partial.iterdir():
            stale.unlink()
        try:
            with ThreadPoolExecutor(self._connections) as pool:
                list(pool.map(bring, range(len(bodies))))
            partial.rename(target)
        except BaseException:
            for stale in partial.iterdir():
                stale.unlink()
            partial.rmdir()
            raise
        return sorted(target / name for name in names)
