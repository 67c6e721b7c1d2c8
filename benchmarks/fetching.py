"""What a task does until its raw files lie on scratch, by the task's own fetcher and intake, and nothing else."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path


def fetch_all(run: Path, result: Path, connections: int) -> None:
    """Bring all raw files of a run's first shard to scratch; `result` gets seconds and CPU seconds."""
    from pipeline.manifest import Manifest
    from pipeline.rundir import RunDir
    from pipeline.sources.fetch import RoutedFetcher
    from pipeline.task.cache import ScratchCache
    from pipeline.task.detail import DetailLog
    from pipeline.task.intake import EntryDone, FrameWork, Intake
    from pipeline.transport.client import Transport
    from pipeline.transport.pool import ConnectionPool

    config = RunDir(run).read_config()
    stop, events = threading.Event(), queue.SimpleQueue()
    begin, cpu = time.monotonic(), time.process_time()
    frames: dict[int, list] = {}
    for entry in Manifest(RunDir(run)).entries(0):
        frames.setdefault(entry.frame, []).append(entry)
    cache = ScratchCache(Path(config.task.scratch), "bench")
    with ConnectionPool(connections, environ={}) as pool:
        log = DetailLog(run / "log.zst")
        fetcher = RoutedFetcher(
            config.sources, Transport(pool, stop=stop, on_event=log.record), cache.folder / "sources",
            entries=[entry for each in frames.values() for entry in each], known=cache.find, stop=stop,
        )  # fmt: skip
        intake = Intake(fetcher, cache, log, connections=connections, item_deadline=600, stop=stop, report=events.put)
        for frame, entries in frames.items():
            intake.start(FrameWork(frame, entries))
        for _ in range(sum(map(len, frames.values()))):
            event = events.get(timeout=600)
            assert isinstance(event, EntryDone), event
            assert event.work.failure is None, event.work.failure
        seconds, used = time.monotonic() - begin, time.process_time() - cpu
        intake.close()
        fetcher.close()
        log.close()
    cache.close(keep=True)
    result.write_text(f"{seconds} {used}")
