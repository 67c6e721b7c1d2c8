"""A task's way to all sources: each item is fetched by the source where its manifest says that it lies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ItemError
from pipeline.model import Entry, IdcLocation, IsicLocation, NbiaLocation
from pipeline.settings import Sources, SourceTcia
from pipeline.sources.base import Body, Fetcher, Received
from pipeline.transport.client import Transport
from pipeline.transport.exchange import RequestError, parse_target
from pipeline.transport.pool import Origin

if TYPE_CHECKING:
    from pipeline.sources.isic_fetch import IsicFetcher
    from pipeline.sources.tcia_fetch import NbiaFetcher


def nbia_origins(settings: SourceTcia, entries: Iterable[Entry]) -> frozenset[Origin]:
    """Whom a task asks that is NBIA: the hosts of the settings, and those that entries lie at. Pure."""
    places = {entry.item.location.base_url for entry in entries if isinstance(entry.item.location, NbiaLocation)}
    found = set()
    for url in {settings.base_url, settings.nlst_base_url, *places}:
        with contextlib.suppress(RequestError):  # "", the demo's name, or nonsense: nobody is asked there
            found.add(parse_target(url).origin)
    return frozenset(found)


class RoutedFetcher:
    """Asks the fetcher of an item's location; one that no item needs is never made. `close` it.

    Parameters
    ----------
    folder
        On scratch, for what a source has to keep there; it need not exist. None where nothing will be asked for.
    entries
        All that the task will ask for.
    known
        Finds a body that an earlier life left on scratch, by cache key.
    nbia_threads
        How many threads may work on items of NBIA at a time, whose connections are few; 0: any number. It is for the
        caller to keep to that.
    """

    def __init__(
        self,
        sources: Sources,
        transport: Transport,
        folder: Path | None,
        *,
        entries: Iterable[Entry] = (),
        known: Callable[[str], object | None] = lambda _: None,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
        nbia_threads: int = 0,
    ) -> None:
        self.nbia_threads = nbia_threads
        self._sources = sources
        self._transport = transport
        self._folder = folder
        self._entries = tuple(entries)
        self._known = known
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._idc: Fetcher | None = None
        self._nbia: NbiaFetcher | None = None
        self._isic: IsicFetcher | None = None

    def close(self) -> None:
        """Remove what was kept on scratch; no other method is called any more."""
        if self._nbia is not None:
            self._nbia.close()

    def list_bodies(self, entry: Entry, deadline: float) -> Sequence[Body]:
        """See `Fetcher`; also raises what says that a source cannot be used at all, as `CredentialsError`."""
        return self._choose(entry).list_bodies(entry, deadline)

    def fetch(self, body: Body, path: Path, deadline: float) -> Received:
        """See `Fetcher`."""
        return self._choose(body.entry).fetch(body, path, deadline)

    def release(self, entry: Entry) -> None:
        """See `Holder`: for the source that holds something."""
        if isinstance(entry.item.location, NbiaLocation) and self._nbia is not None:
            self._nbia.release(entry)
        if isinstance(entry.item.location, IsicLocation) and self._isic is not None:
            self._isic.release(entry)

    def _choose(self, entry: Entry) -> Fetcher:
        where = entry.item.location
        with self._lock:
            if isinstance(where, NbiaLocation):
                if self._nbia is None:
                    self._nbia = self._make_nbia()
                return self._nbia
            if isinstance(where, IdcLocation):
                if self._idc is None:
                    self._idc = self._make_idc()
                return self._idc
            if isinstance(where, IsicLocation):
                if self._isic is None:
                    self._isic = self._make_isic()
                return self._isic
        raise ItemError("internal", f"no source hands out what is at {where}")

    def _make_idc(self) -> Fetcher:
        from pipeline.sources.idc import IdcFetcher

        return IdcFetcher(self._sources.idc, self._transport, clock=self._clock)

    def _make_isic(self) -> IsicFetcher:
        from pipeline.sources.isic_fetch import IsicFetcher

        return IsicFetcher(self._sources.isic, self._transport)

    def _make_nbia(self) -> NbiaFetcher:
        from pipeline.sources.tcia_fetch import NbiaFetcher

        assert self._folder is not None, "nothing was to be asked for"
        return NbiaFetcher(
            self._sources.tcia, self._transport, self._folder, entries=self._entries, known=self._known,
            stop=self._stop, clock=self._clock,
        )  # fmt: skip
