"""One shard, from manifest to receipt: fetch, verify, pack, journal. What an array task does."""

from __future__ import annotations

import logging
import os
import queue
import random
import resource
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from pipeline import __version__
from pipeline.archive.liblzma import liblzma_version
from pipeline.config import Config
from pipeline.errors import InterruptedRunError, SiteUnavailableError
from pipeline.manifest import Manifest
from pipeline.model import Entry
from pipeline.records import FORMAT, FrameRecord, Heartbeat, Receipt
from pipeline.rundir import RunDir
from pipeline.sources.base import Fetcher
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.finish import complete_records, receipt_counts, write_shard_index
from pipeline.task.intake import EntryDone, Failure, Fatal, FrameWork, Intake
from pipeline.task.pack import Broken, Packed, Packer, Spoiled
from pipeline.task.part import Adopted, PartWriter, adopt_frames, better_record
from pipeline.task.resources import Workers, peak_memory
from pipeline.units import render_duration, render_size

logger = logging.getLogger("medhaul.task")

# Frames and files that may be under way at once: enough to keep cores and connections busy, few enough that a kill
# repeats little and that memory does not grow with the shard.
FRAMES_AHEAD = 8
FILES_AHEAD = 20_000
# Often while somebody may be watching a life begin, seldom after: shared storage sees every one of them.
HEARTBEAT_SECONDS = 10.0
FIRST_HEARTBEATS_SECONDS, FIRST_HEARTBEATS_FOR = 1.0, 20.0
# Entries that fail as unavailable, one after another with nothing good between, before the site counts as down.
SITE_DOWN_AFTER = 40
SPOILED_TRIES = 2


class Life(NamedTuple):
    """Who runs this shard, where and with what; for records and heartbeats."""

    attempt: int
    job: str
    node: str
    started: float


def describe_life(attempt: int, environ: Mapping[str, str]) -> Life:
    """Read this life's identity from the scheduler's variables."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    job = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID", f"pid-{os.getpid()}")
    if restarts := environ.get("SLURM_RESTART_COUNT", ""):
        job += f".{restarts}"
    return Life(attempt, job, environ.get("SLURMD_NODENAME") or socket.gethostname(), time.time())


class Stop:
    """The wish to stop, set by a signal handler: `grace` seconds may go into frames that are being packed."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.reason = ""
        self.grace = 0.0

    def request(self, reason: str, grace: float) -> None:
        if not self.event.is_set():
            self.reason, self.grace = reason, grace
            self.event.set()


class ShardTask:
    """Does one shard. `run` returns its receipt, or raises and leaves everything finished in the journal."""

    def __init__(
        self,
        run: RunDir,
        config: Config,
        shard: int,
        *,
        life: Life,
        stop: Stop,
        log: DetailLog,
        workers: Workers,
        second_round_wait: float,
    ) -> None:
        self.run_dir = run
        self.config = config
        self.shard = shard
        self.life = life
        self.stop = stop
        self.log = log
        self.workers = workers
        self.second_round_wait = second_round_wait
        self.manifest = Manifest(run)
        self.entries = self.manifest.entries(shard)
        place = self.manifest.shards[shard]
        self.frames: dict[int, list[Entry]] = {place.first_frame + number: [] for number in range(place.frames)}
        for entry in self.entries:
            self.frames[entry.frame].append(entry)
        self.records: dict[int, FrameRecord] = {}
        self._beat_at = 0.0
        self._unavailable = 0

    def adopt(self) -> Adopted:
        """Take over what earlier lives finished. Raises `ConfigError` for files of another run."""
        place = self.manifest.shards[self.shard]
        wanted = range(place.first_frame, place.first_frame + place.frames)
        adopted = adopt_frames(self.run_dir, self.shard, self.manifest.sha256, wanted)
        for note in adopted.notes:
            logger.warning("%s", note)
        self.records = dict(adopted.frames)
        return adopted

    def to_do(self) -> list[int]:
        """Frames without a record, or with failures, in order."""
        return [frame for frame in self.frames if frame not in self.records or self.records[frame].failed]

    def scratch_needed(self, todo: list[int]) -> int:
        """Bytes of scratch without which the frames to do cannot be done: the largest frame, twice over."""
        return 2 * max((FrameWork(frame, self.frames[frame]).bytes for frame in todo), default=0)

    def run(self, fetcher: Fetcher, cache: ScratchCache | None, adopted: Adopted) -> Receipt:
        """Do what is left to do, and write the receipt.

        Raises
        ------
        InterruptedRunError
            When told to stop.
        SiteUnavailableError
            When nothing could be had from the site.
        StorageError
            When scratch or shared storage is full.
        """
        todo = self.to_do()
        if self.records:
            logger.info("%d of %d frames are done by earlier lives", len(self.frames) - len(todo), len(self.frames))
        part: PartWriter | None = None
        intake: Intake | None = None
        if todo:
            assert cache is not None
            part = PartWriter(self.run_dir, self.shard, self.manifest.sha256)
            events: queue.SimpleQueue[EntryDone | Fatal | Packed | Spoiled | Broken] = queue.SimpleQueue()
            packer = Packer(
                part, self.config.archive, cores=self.workers.cores, blocks=self.workers.blocks,
                verify=self.config.task.verify_blocks, report=events.put,
            )  # fmt: skip
            intake = Intake(
                fetcher, cache, self.log, connections=self.workers.connections,
                item_deadline=self.config.task.item_deadline, stop=self.stop.event, report=events.put,
            )  # fmt: skip
            grace: float | None = 0.0
            try:
                loop = _Loop(self, intake, packer, cache, events)
                loop.round(todo)
                again = [f for f, r in self.records.items() if any(p.transient for p in r.failed)]
                if again and not self.stop.event.wait(random.uniform(0.5, 1.0) * self.second_round_wait):  # noqa: S311 - jitter
                    logger.info("second round: %d frames have failures that may pass", len(again))
                    loop.round(sorted(again))
                self.check_stop()
                grace = None
            except InterruptedRunError:
                grace = self.stop.grace
                raise
            finally:
                self.stop_threads(intake, packer, grace)
                part.close()
        pieces = [piece for record in self.records.values() for piece in record.pieces]
        if intake and not intake.answered and all(p.reason == "unavailable" and p.transient for p in pieces):
            raise SiteUnavailableError(
                f"shard {self.shard}: nothing could be had from the site; see the log for each item's reason",
                hint="check network and endpoint (`[sources]` in the config), then `medhaul resume RUN`",
            )
        return self._finish(adopted, part, intake)

    def stop_threads(self, intake: Intake, packer: Packer, grace: float | None) -> None:
        """End all threads; frames that are packed within `grace` seconds still count."""
        if grace is not None:
            self.stop.event.set()
        packer.close(grace)
        intake.close()

    def note_entry(self, failure: Failure | None) -> None:
        """Keep count of whether the site still delivers. Raises `SiteUnavailableError` when it is down."""
        if failure is None:
            self._unavailable = 0
        elif failure.reason == "unavailable" and failure.transient:
            self._unavailable += 1
            if self._unavailable >= SITE_DOWN_AFTER:
                raise SiteUnavailableError(
                    f"shard {self.shard}: {self._unavailable} items in a row could not be had; last: {failure.message}",
                    hint="when the site is back: `medhaul resume RUN`; finished frames are kept",
                )
        else:
            self._unavailable = 0

    def check_stop(self) -> None:
        if self.stop.event.is_set():
            raise InterruptedRunError(
                f"shard {self.shard}: stopped by {self.stop.reason or 'request'}",
                hint=f"medhaul resume {self.run_dir.path}",
            )

    def beat(self, phase: str, intake: Intake | None, packed: int, *, force: bool = False, note: str = "") -> None:
        """Write the heartbeat, at most every few seconds."""
        now = time.monotonic()
        young = time.time() - self.life.started < FIRST_HEARTBEATS_FOR
        if not force and now - self._beat_at < (FIRST_HEARTBEATS_SECONDS if young else HEARTBEAT_SECONDS):
            return
        self._beat_at = now
        pieces = [piece for record in self.records.values() for piece in record.pieces]
        self.run_dir.write_heartbeat(
            Heartbeat(
                shard=self.shard, attempt=self.life.attempt, job=self.life.job, node=self.life.node, pid=os.getpid(),
                life=0, time=time.time(), started=self.life.started, phase=phase,  # type: ignore[arg-type]
                entries=len(self.entries), entries_done=sum(not p.reason for p in pieces),
                failed=sum(bool(p.reason) for p in pieces), frames=len(self.frames), frames_done=len(self.records),
                bytes=self.manifest.shards[self.shard].bytes,
                bytes_downloaded=intake.downloaded if intake else 0, bytes_packed=packed, note=note,
            )
        )  # fmt: skip

    def _finish(self, adopted: Adopted, part: PartWriter | None, intake: Intake | None) -> Receipt:
        life = part.life if part else max(self.run_dir.lives(self.shard), default=0)
        records = complete_records(self.records, self.frames)
        parts = [adopted.parts[name] for name in sorted(adopted.parts)] + ([part.use()] if part else [])
        used = {record.part for record in records}
        name, sha256 = write_shard_index(self.run_dir, self.shard, life, records)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        receipt = Receipt(
            format=FORMAT, shard=self.shard, manifest_sha256=self.manifest.sha256, index=name, index_sha256=sha256,
            parts=[use for use in parts if use.name in used], attempt=self.life.attempt, job=self.life.job,
            node=self.life.node, life=life, started=self.life.started, ended=time.time(),
            downloaded_bytes=intake.downloaded if intake else 0, requests=self.log.counts["response"],
            retries=self.log.counts["retry"], cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            max_rss=peak_memory(), medhaul=__version__, liblzma=liblzma_version(),
            **receipt_counts(records, self.entries),
        )  # fmt: skip
        self.run_dir.write_receipt(receipt)
        self.run_dir.heartbeat(self.shard).unlink(missing_ok=True)
        seconds = receipt.ended - receipt.started
        logger.info(
            "%s: %d of %d entries archived, %d files, %s raw, %s packed, in %s",
            receipt.state, receipt.archived, receipt.entries, receipt.files, render_size(receipt.bytes),
            render_size(receipt.packed_bytes), render_duration(seconds),
        )  # fmt: skip
        return receipt


class _Loop:
    """The coordinator: starts frames while there is room, hands ready ones to the packer in order."""

    def __init__(
        self,
        task: ShardTask,
        intake: Intake,
        packer: Packer,
        cache: ScratchCache,
        events: queue.SimpleQueue[EntryDone | Fatal | Packed | Spoiled | Broken],
    ) -> None:
        self.task = task
        self.intake = intake
        self.packer = packer
        self.cache = cache
        self.events = events
        self.active: dict[int, FrameWork] = {}
        self.ready: deque[int] = deque()

    def round(self, frames: list[int]) -> None:
        """Do these frames, in order. Returns when all have a record; raises what ended the work."""
        pending = deque(frames)
        order = deque(frames)  # frames not yet given to the packer
        while pending or self.active:
            self.task.check_stop()
            while pending and self._room(pending[0]):
                self._start(pending.popleft())
            while order and order[0] in self.active and self.active[order[0]].open == 0:
                self._hand_over(self.active[order.popleft()])
            self.task.beat("working", self.intake, self.packer.packed_bytes)
            if not (pending or self.active):
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
        work = FrameWork(frame, self.task.frames[frame])
        held = sum(other.bytes for other in self.active.values())
        files = sum(other.files for other in self.active.values())
        return (
            len(self.active) < max(FRAMES_AHEAD, 2 * self.task.workers.cores)
            and held + work.bytes <= self.task.config.task.scratch_bytes
            and files + work.files <= FILES_AHEAD
        )

    def _start(self, frame: int) -> None:
        work = FrameWork(frame, self.task.frames[frame])
        self.active[frame] = work
        self.task.log.event("frame-start", frame=frame, entries=work.open, bytes=work.bytes)
        self.intake.start(work)

    def _hand_over(self, work: FrameWork) -> None:
        """Pack a frame, unless an earlier record of it is at least as good."""
        known = self.task.records.get(work.frame)
        if known is not None and len(known.failed) <= work.failures:
            self._drop(work)
            return
        self.packer.pack(work.job())

    def _drop(self, work: FrameWork) -> None:
        del self.active[work.frame]
        self.cache.drop_frame(work.frame, work.keys())

    def _take(self, event: EntryDone | Fatal | Packed | Spoiled | Broken) -> int | None:
        """Account for one event; return the frame that must be done again, if any."""
        if isinstance(event, Fatal | Broken):
            raise event.error
        if isinstance(event, EntryDone):
            self.active[event.frame].open -= 1
            self.task.note_entry(event.work.failure)
        elif isinstance(event, Packed):
            record = event.record
            self.task.records[record.frame] = better_record(self.task.records.get(record.frame), record)
            self.task.log.event("frame-done", frame=record.frame, bytes=record.tar_bytes, packed=record.length)
            self._drop(self.active[record.frame])
        else:
            return self._redo(event)
        return None

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
            raise OSError(f"scratch does not keep what is written to it: {event.path}")
        self.active[event.frame] = work
        self.intake.start(work)
        return event.frame
