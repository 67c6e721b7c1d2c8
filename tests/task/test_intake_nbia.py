"""Items of NBIA have few threads of their own: they keep nobody from other sites, and do not wait for long."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import msgspec
from run_kit import make_item

from pipeline.errors import ItemError
from pipeline.model import Entry, NbiaLocation
from pipeline.settings import Sources
from pipeline.sources.base import Body
from pipeline.sources.fetch import RoutedFetcher
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.intake import EntryDone, Fatal, FrameWork, Intake, Probed
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool

WAIT = 20.0


class Busy(RoutedFetcher):
    """NBIA keeps everybody waiting until `go`; the IDC refuses at once."""

    def __init__(self, pool: ConnectionPool, threads: int) -> None:
        super().__init__(Sources(), Transport(pool), None, nbia_threads=threads)
        self.go = threading.Event()
        self.gauge = threading.Lock()
        self.now = self.peak = 0

    def list_bodies(self, entry: Entry, deadline: float) -> list[Body]:
        if isinstance(entry.item.location, NbiaLocation):
            with self.gauge:
                self.now += 1
                self.peak = max(self.peak, self.now)
            self.go.wait(WAIT)
            with self.gauge:
                self.now -= 1
        raise ItemError("withdrawn", "gone")


def test_a_busy_nbia_holds_up_no_item_of_another_site(tmp_path: Path) -> None:
    """With more items of NBIA in front than there are threads, those of the IDC are settled while NBIA is silent."""
    entries = [Entry(n, 0, 0, 1, make_item(n)) for n in range(14)]
    where = NbiaLocation("http://127.0.0.1:9/s")
    entries[:10] = [
        msgspec.structs.replace(one, item=msgspec.structs.replace(one.item, location=where)) for one in entries[:10]
    ]
    events: queue.SimpleQueue[EntryDone | Probed | Fatal] = queue.SimpleQueue()
    cache, log, stop = ScratchCache(tmp_path / "scratch", "s"), DetailLog(tmp_path / "log.zst"), threading.Event()
    with ConnectionPool(4, environ={}) as pool:
        fetcher = Busy(pool, 2)
        intake = Intake(fetcher, cache, log, connections=4, item_deadline=60, stop=stop, report=events.put)
        try:
            intake.start(FrameWork(0, entries))
            done = [events.get(timeout=WAIT) for _ in range(4)]
            assert {each.work.entry.number for each in done if isinstance(each, EntryDone)} == {10, 11, 12, 13}
            assert fetcher.now <= 2
            fetcher.go.set()
            rest = [events.get(timeout=WAIT) for _ in range(10)]
            assert {each.work.entry.number for each in rest if isinstance(each, EntryDone)} == set(range(10))
            assert fetcher.peak == 2
        finally:
            fetcher.go.set()
            intake.close()
            log.close()
            cache.close(keep=False)
