"""The coordinator of a shard: starts frames while there is room, hands ready ones to the packer in order."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.errors import SiteUnavailableError, StorageError
from pipeline.model import Entry
from pipeline.task.intake import EntryDone, Failure, Fatal, FrameWork, Intake, Probed
from pipeline.task.pack import Broken, Packed, Packer, Spoiled
from pipeline.task.part import better_record

if TYPE_CHECKING:
    from pipeline.settings import Config
    from pipeline.task.cache import ScratchCache
    from pipeline.task.detail import DetailLog
    from pipeline.task.intake import FrameSize
    from pipeline.task.part import FrameFact
    from pipeline.task.resources import Workers

logger = logging.getLogger("medhaul.task")
T = TypeVar("T")
Event = EntryDone | Probed | Fatal | Packed | Spoiled | Broken

# Frames that may be under way at once: enough to keep cores and connections busy; few, so that a kill repeats little.
FRAMES_AHEAD = 8
# Entries to which the site gave no answer, one after another with nothing good between, before it is probed elsewhere.
SITE_DOWN_AFTER = 40
# Entries to probe: of those still to be had, and of those that were had before.
PROBES, PROBES_OF_GOOD = 6, 2
SPOILED_TRIES = 2


def spread(choices: Sequence[T], count: int) -> list[T]:
    """Choose `count` of them, evenly spread and with the last, which comes first. Pure."""
    count = min(count, len(choices))
    return [choices[(number + 1) * len(choices) // count - 1] for number in reversed(range(count))]


class Work(Protocol):
    """The shard that a loop works on: its frames, what is known of each, and how to stop and to give signs of life."""

    shard: int
    config: Config
    log: DetailLog
    workers: Workers
    frames: dict[int, list[Entry]]
    sizes: dict[int, FrameSize]
    facts: dict[int, FrameFact]

    def check_stop(self) -> None:
        """Raise `InterruptedRunError` when told to stop."""
        ...

    def beat(self, phase: str, intake: Intake | None, packed: int) -> None:
        """Write the heartbeat, at most every few seconds."""
        ...


class Loop:
    """Runs rounds over frames; the one thread that touches the task's facts."""

    def __init__(
        self, task: Work, intake: Intake, packer: Packer, cache: ScratchCache, events: queue.SimpleQueue[Event]
    ) -> None:
        self.task = task
        self.intake = intake
        self.packer = packer
        self.cache = cache
        self.events = events
        self.active: dict[int, FrameWork] = {}
        self.pending: deque[int] = deque()
        self._held_bytes = self._held_files = 0  # of the active frames, as planned
        self._dropped: set[int] = set()  # done with, although their turn has not come
        self._silent = 0  # entries in a row without an answer
        self._delivered = 0
        self._probing = 0  # probes that are out
        self._probed_well = False

    def round(self, frames: list[int]) -> None:
        """Do these frames, in order. Returns when all have a record; raises what ended the work."""
        self.pending = deque(frames)
        self._dropped.clear()
        order = deque(frames)  # frames not yet given to the packer
        while self.pending or self.active:
            self.task.check_stop()
            while self.pending and self._room(self.pending[0]):
                self._start(self.pending.popleft())
            self._hand_over_ready(order)
            self.task.beat("working", self.intake, self.packer.packed_bytes)
            if not (self.pending or self.active):
                break
            try:
                event = self.events.get(timeout=0.5)
            except queue.Empty:
                continue
            spoiled = self._take(event)
            if spoiled is not None:
                order.appendleft(spoiled)

    def _room(self, frame: int) -> bool:
        if not self.active:
            return True
        size, workers = self.task.sizes[frame], self.task.workers
        return (
            len(self.active) < max(FRAMES_AHEAD, 2 * workers.cores)
            and self._held_bytes + size.bytes <= self.task.config.task.scratch_bytes
            and self._held_files + size.files <= workers.files
        )

    def _start(self, frame: int) -> None:
        """Begin a frame; of one that has a record, first only what failed."""
        fact = self.task.facts.get(frame)
        first = {(piece.number, piece.piece) for piece in fact.failed} if fact else ()
        work = FrameWork(frame, self.task.frames[frame], first)
        size = self.task.sizes[frame]
        self.active[frame] = work
        self._held_bytes += size.bytes
        self._held_files += size.files
        self.task.log.event("frame-start", frame=frame, entries=work.open, bytes=size.bytes)
        self.intake.start(work)

    def _hand_over_ready(self, order: deque[int]) -> None:
        while order:
            if order[0] in self._dropped:
                self._dropped.remove(order.popleft())
            elif order[0] in self.active and self.active[order[0]].open == 0:
                self._hand_over(self.active[order.popleft()])
            else:
                return

    def _hand_over(self, work: FrameWork) -> None:
        """Pack a frame, unless an earlier record of it is at least as good."""
        known = self.task.facts.get(work.frame)
        if known is not None and len(known.failed) <= work.failures:
            self._drop(work)
            return
        self.packer.pack(work.job())

    def _drop(self, work: FrameWork) -> None:
        del self.active[work.frame]
        size = self.task.sizes[work.frame]
        self._held_bytes -= size.bytes
        self._held_files -= size.files
        self.cache.drop_frame(work.frame, work.keys())

    def _take(self, event: Event) -> int | None:
        """Account for one event; return the frame that must be done again, if any."""
        if isinstance(event, Fatal | Broken):
            raise event.error
        if isinstance(event, EntryDone):
            self._take_entry(event)
        elif isinstance(event, Probed):
            self._take_probe(event)
        elif isinstance(event, Packed):
            fact = event.fact
            self.task.facts[fact.frame] = better_record(self.task.facts.get(fact.frame), fact)
            self.task.log.event("frame-done", frame=fact.frame, bytes=fact.tar_bytes, packed=fact.length)
            self._drop(self.active[fact.frame])
        else:
            return self._redo(event)
        return None

    def _take_entry(self, event: EntryDone) -> None:
        work = self.active[event.frame]
        work.open -= 1
        self._note_answer(event.work.failure)
        if work.open or not work.rest:
            return
        if all(entry.failure is not None for entry in work.asked):
            # Nothing of what failed before can be had now: what its record has is not fetched again.
            self._drop(work)
            self._dropped.add(work.frame)
        else:
            work.ask_rest()
            self.intake.start(work)

    def _note_answer(self, failure: Failure | None) -> None:
        """Keep count of whether the site still delivers; when it seems not to, ask elsewhere before it counts as down.

        Bad items may lie side by side, by the hundred: they must not keep those behind them from being had.
        """
        delivered = self.intake.delivered
        if failure is None or not failure.is_silence or delivered != self._delivered:
            self._silent, self._delivered = 0, delivered
        if failure is not None and failure.is_silence:
            self._silent += 1
        if self._silent < SITE_DOWN_AFTER or self._probing:
            return
        left = self._entries_left()
        probes = spread(left, PROBES) + self._had_before()
        if not probes:
            return  # nothing to lose by going on
        logger.warning("%d items in a row could not be had; asking for %d others", self._silent, len(probes))
        self._probing, self._probed_well = len(probes), False
        self.intake.probe(probes)

    def _entries_left(self) -> list[Entry]:
        """Entries that are still to be had: of frames to come the last of each, or else all."""
        if len(self.pending) >= PROBES:
            return [self.task.frames[frame][-1] for frame in self.pending]
        left = [work.entry for frame in self.active.values() for work in frame.asked if not work.settled]
        return left + [entry for frame in self.pending for entry in self.task.frames[frame]]

    def _had_before(self) -> list[Entry]:
        """The first and the last entry that could be had."""
        chosen = []
        for frames in (self.task.frames, reversed(self.task.frames)):
            if (entry := next(self._good_entries(iter(frames)), None)) is not None and entry not in chosen:
                chosen.append(entry)
        return chosen[:PROBES_OF_GOOD]

    def _good_entries(self, frames: Iterator[int]) -> Iterator[Entry]:
        for frame in frames:
            fact, work = self.task.facts.get(frame), self.active.get(frame)
            if fact is not None:
                bad = {(piece.number, piece.piece) for piece in fact.failed}
                yield from (entry for entry in self.task.frames[frame] if (entry.number, entry.piece) not in bad)
            elif work is not None:
                yield from (entry.entry for entry in work.entries if entry.settled and entry.failure is None)

    def _take_probe(self, event: Probed) -> None:
        self._probing -= 1
        if event.failure is None:
            self._probed_well = True
            self._silent = 0
            return
        silent = self._silent >= SITE_DOWN_AFTER and self.intake.delivered == self._delivered
        if silent and not self._probing and not self._probed_well:
            raise SiteUnavailableError(
                f"shard {self.task.shard}: {self._silent} items in a row could not be had, nor any of those that were "
                f"tried ahead of them; last: {event.failure.message}",
                hint="when the site is back: `medhaul resume RUN`; finished frames are kept",
            )

    def _redo(self, event: Spoiled) -> int:
        """Fetch a frame anew of which a raw file changed on scratch."""
        old = self.active[event.frame]
        logger.warning("frame %d: %s changed on scratch; fetching the frame again", event.frame, event.path)
        self.task.log.event("spoiled", frame=event.frame, path=event.path)
        for key in old.keys():  # noqa: SIM118 - a method, not a dict
            self.cache.forget(key)
        work = FrameWork(event.frame, self.task.frames[event.frame])
        work.spoiled = old.spoiled + 1
        if work.spoiled > SPOILED_TRIES:
            raise StorageError(
                f"{event.path}: scratch does not keep what is written to it",
                hint="set task.scratch to a folder on another disk, then `medhaul resume RUN`",
            )
        self.active[event.frame] = work
        self.intake.start(work)
        return event.frame
