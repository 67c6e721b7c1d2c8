"""One reduce at a time for a run: others wait for it, or take over when it is dead.

Not a lock: shared storage has none to rely on. The owner's claim is a file that it touches every few seconds; whoever
sees it untouched for long by its own clock takes over. Two owners at once, which a process stopped for minutes could
bring about, still cannot lose anything: see `pipeline.reduce.join`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from pipeline.atomic import storage_errors, write_atomic
from pipeline.process import ProcessId, identify_process, process_alive
from pipeline.rundir import RunDir

logger = logging.getLogger("medhaul.reduce")
TOUCH_SECONDS = 15.0
DEAD_AFTER_SECONDS = 120.0
LOOK_SECONDS = 1.0


@contextlib.contextmanager
def sole_reducer(
    run: RunDir,
    *,
    dead_after: float = DEAD_AFTER_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the run's claim for as long as the block lasts; wait first while another living process holds it."""
    path = run.reduce_claim
    mine = identify_process(os.getpid())
    assert mine is not None
    _obtain(path, mine, dead_after, clock, sleep)
    done = threading.Event()

    def keep() -> None:
        while not done.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):  # gone or unwritable: then somebody else has taken over
                os.utime(path)

    keeper = threading.Thread(target=keep, name="claim", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _obtain(
    path: Path, mine: ProcessId, dead_after: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    seen: tuple[ProcessId | None, int] | None = None
    since, told = clock(), False
    while True:
        with storage_errors(path):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                pass
            else:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(mine))
                return
        owner = _read(path)
        with contextlib.suppress(FileNotFoundError):
            state = (owner, path.stat().st_mtime_ns)
            if state != seen:
                seen, since = state, clock()
        dead = owner is not None and process_alive(owner) is False
        if dead or clock() - since > dead_after:
            logger.info("taking over from a reduce that is dead: %s", owner)
            write_atomic(path, msgspec.json.encode(mine))
            if not dead:
                sleep(LOOK_SECONDS)  # of several that take over, the last to write holds it
            if _read(path) == mine:
                return
            continue
        if not told:
            logger.warning("another reduce of this run is at work (%s); waiting for it", owner)
            told = True
        sleep(LOOK_SECONDS)


def _read(path: Path) -> ProcessId | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessId)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
