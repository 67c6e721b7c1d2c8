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
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from pipeline import __version__
from pipeline.errors import ConfigError, InterruptedRunError, SiteUnavailableError, StorageError, TimeLimitError
from pipeline.manifest import Manifest
from pipeline.model import Entry
from pipeline.records import FORMAT, Heartbeat, Receipt, render_life
from pipeline.rundir import RunDir
from pipeline.settings import Config
from pipeline.sizes import least_scratch
from pipeline.sources.base import Fetcher
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.finish import Tally, check_records, find_better, write_shard_index
from pipeline.task.intake import Intake, frame_size
from pipeline.task.loop import Event, Loop
from pipeline.task.pack import Packer
from pipeline.task.part import Adopted, FrameFact, PartWriter, adopt_frames, read_frames
from pipeline.task.resources import Workers, peak_memory
from pipeline.task.salvage import Salvage
from pipeline.units import render_duration, render_size

logger = logging.getLogger("medhaul.task")

# Often while somebody may be watching a life begin, seldom after: shared storage sees every one of them.
HEARTBEAT_SECONDS = 10.0
FIRST_HEARTBEATS_SECONDS, FIRST_HEARTBEATS_FOR = 1.0, 20.0


class Life(NamedTuple):
    """Who runs this shard, where and with what; for records and heartbeats."""

    attempt: int
    job: str
    node: str
    started: float


def describe_life(attempt: int, environ: Mapping[str, str]) -> Life:
    """Read this life's identity from the scheduler's variables."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    restarts = int(environ.get("SLURM_RESTART_COUNT") or 0)
    if array and task:
        job = render_life(array, int(task), restarts)
    else:
        job = environ.get("SLURM_JOB_ID", f"pid-{os.getpid()}") + (f".{restarts}" if restarts else "")
    return Life(attempt, job, environ.get("SLURMD_NODENAME") or socket.gethostname(), time.time())


class Stop:
    """The wish to stop, set by a signal handler: `grace` seconds may go into frames that are being packed."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.reason = ""
        self.grace = 0.0

    def request(self, reason: str, grace: float) -> None:
        """Wish for a stop. A second wish counts when it is more urgent: told to end, ahead of the time limit or not."""
        if not self.event.is_set() or grace < self.grace:
            self.reason, self.grace = reason, grace
            self.event.set()

    def get_grace(self) -> float:
        return self.grace


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
        self.sizes = {frame: frame_size(entries) for frame, entries in self.frames.items()}
        self.facts: dict[int, FrameFact] = {}
        self._beat_at = 0.0

    def adopt(self) -> Adopted:
        """Take over what earlier lives finished. Raises `ConfigError` for files of another run."""
        adopted = self._adopt(known=())
        self.facts = dict(adopted.frames)
        return adopted

    def _adopt(self, known: Collection[int]) -> Adopted:
        place = self.manifest.shards[self.shard]
        wanted = range(place.first_frame, place.first_frame + place.frames)
        adopted = adopt_frames(self.run_dir, self.shard, self.manifest.sha256, wanted, known=known)
        for note in adopted.notes:
            logger.warning("%s", note)
        return adopted

    def to_do(self) -> list[int]:
        """Frames without a record, in order; then those with failures."""
        return [frame for frame in self.frames if frame not in self.facts] + self.failed_frames()

    def failed_frames(self) -> list[int]:
        return [frame for frame in self.frames if frame in self.facts and self.facts[frame].failed]

    def scratch_needed(self, todo: list[int], free: int | None = None) -> int:
        """Bytes of scratch without which the frames to do cannot be done; with `free`: as `least_scratch` says."""
        return least_scratch((self.frames[frame] for frame in todo), free)

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
        try:
            return self._run(fetcher, cache, adopted)
        except (OSError, StorageError) as error:
            # Of a process that was stopped for long, reduce may have removed the files: they had served.
            if (receipt := self._find_joined()) is None:
                raise
            logger.warning("life %d did the shard, and its archive is complete; not needed: %s", receipt.life, error)
            self.run_dir.heartbeat(self.shard).unlink(missing_ok=True)
            return receipt

    def _find_joined(self) -> Receipt | None:
        """The complete receipt of the shard, if the archive that it is part of is complete as well; None otherwise."""
        from pipeline.reduce.finished import read_finished

        archives = self.manifest.index.archives
        (name,) = (a.name for a in archives if a.first_shard <= self.shard < a.first_shard + a.shards)
        try:
            finished = read_finished(self.run_dir, name, self.manifest.sha256)
            receipt = self.run_dir.read_receipt(self.shard, self.manifest.sha256)
        except (OSError, ConfigError):
            return None  # then nothing is proved, and the error that led here stands
        done = finished is not None and finished.state == "complete"
        return receipt if done and receipt is not None and receipt.state == "complete" else None

    def _run(self, fetcher: Fetcher, cache: ScratchCache | None, adopted: Adopted) -> Receipt:
        todo = self.to_do()
        if self.facts:
            logger.info("%d of %d frames are done by earlier lives", len(self.frames) - len(todo), len(self.frames))
        intake: Intake | None = None
        # Even with nothing left to do: files of this life's number are nobody else's.
        part = PartWriter(self.run_dir, self.shard, self.manifest.sha256)
        if not todo:
            part.close()
        else:
            assert cache is not None
            events: queue.SimpleQueue[Event] = queue.SimpleQueue()
            packer = Packer(
                part, self.config.archive, cores=self.workers.cores, blocks=self.workers.blocks,
                verify=self.config.task.verify_blocks, report=events.put,
            )  # fmt: skip
            intake = Intake(
                fetcher, cache, self.log, connections=self.workers.connections,
                item_deadline=self.config.task.item_deadline, stop=self.stop.event, report=events.put,
                salvage=Salvage(
                    self.run_dir, self.shard, self.facts, room=packer.borrow_room, stop=self.stop.event
                ),
            )  # fmt: skip
            grace: Callable[[], float] | None = _none
            interrupted: InterruptedRunError | None = None
            try:
                loop = Loop(self, intake, packer, cache, events)
                loop.round(todo)
                again = [f for f in self.failed_frames() if any(p.transient for p in self.facts[f].failed)]
                if again and not self.stop.event.wait(random.uniform(0.5, 1.0) * self.second_round_wait):  # noqa: S311 - jitter
                    logger.info("second round: %d frames have failures that may pass", len(again))
                    loop.round(again)
                self.check_stop()
                grace = None
            except InterruptedRunError as error:
                grace, interrupted = self.stop.get_grace, error
                raise
            finally:
                self.stop_threads(intake, packer, grace)
                if isinstance(interrupted, TimeLimitError):
                    interrupted.progress = part.frames > 0
                part.close()
        if intake and not intake.answered and all(_is_silent(fact) for fact in self.facts.values()):
            raise SiteUnavailableError(
                f"shard {self.shard}: nothing could be had from the site; see the log for each item's reason",
                hint="check network and endpoint (`[sources]` in the config), then `medhaul resume RUN`",
            )
        return self._finish(adopted, part, intake)

    def stop_threads(self, intake: Intake, packer: Packer, grace: Callable[[], float] | None) -> None:
        """End all threads; frames that are packed within `grace()` seconds still count."""
        if grace is not None:
            self.stop.event.set()
        packer.close(grace)
        intake.close()

    def check_stop(self) -> None:
        if self.stop.event.is_set():
            message = f"shard {self.shard}: stopped by {self.stop.reason or 'request'}"
            hint = f"medhaul resume {self.run_dir.path}"
            if self.stop.reason == "SIGUSR1":
                raise TimeLimitError(message, hint=hint)
            raise InterruptedRunError(message, hint=hint)

    def beat(self, phase: str, intake: Intake | None, packed: int, *, force: bool = False, note: str = "") -> None:
        """Write the heartbeat, at most every few seconds."""
        now = time.monotonic()
        young = time.time() - self.life.started < FIRST_HEARTBEATS_FOR
        if not force and now - self._beat_at < (FIRST_HEARTBEATS_SECONDS if young else HEARTBEAT_SECONDS):
            return
        self._beat_at = now
        done, failed = 0, 0
        for fact in self.facts.values():
            done, failed = done + fact.pieces - len(fact.failed), failed + len(fact.failed)
        self.run_dir.write_heartbeat(
            Heartbeat(
                shard=self.shard, attempt=self.life.attempt, job=self.life.job, node=self.life.node, pid=os.getpid(),
                time=time.time(), started=self.life.started, phase=phase,  # type: ignore[arg-type]
                entries=len(self.entries), entries_done=done,
                failed=failed, frames=len(self.frames), frames_done=len(self.facts),
                bytes=self.manifest.shards[self.shard].bytes,
                bytes_downloaded=intake.downloaded if intake else 0, bytes_packed=packed, note=note,
            )
        )  # fmt: skip

    def _finish(self, adopted: Adopted, part: PartWriter, intake: Intake | None) -> Receipt:
        self._adopt_others(adopted, part)
        parts = [adopted.parts[name] for name in sorted(adopted.parts)] + [part.use()]
        used = {fact.part for fact in self.facts.values()}
        tally = Tally(self.entries)
        records = read_frames(self.run_dir, self.shard, (self.facts[f] for f in self.frames if f in self.facts))
        checked = tally.count(check_records(records, self.frames))
        name, sha256 = write_shard_index(self.run_dir, self.shard, part.life, checked)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        receipt = Receipt(
            format=FORMAT, shard=self.shard, manifest_sha256=self.manifest.sha256, index=name, index_sha256=sha256,
            parts=[use for use in parts if use.name in used], attempt=self.life.attempt, job=self.life.job,
            node=self.life.node, life=part.life, started=self.life.started, ended=time.time(),
            downloaded_bytes=intake.downloaded if intake else 0, requests=self.log.counts["response"],
            retries=self.log.counts["retry"], cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            max_rss=peak_memory(), medhaul=__version__, liblzma=", ".join(sorted(tally.encoders)) or part.liblzma,
            **tally.fields(),
        )  # fmt: skip
        if (better := find_better(self.run_dir, receipt)) is not None:
            logger.warning("another life of this shard, number %d, has archived all; its receipt stands", better.life)
            (self.run_dir.parts_folder(self.shard) / name).unlink()
            return better
        self.run_dir.write_receipt(receipt)
        self.run_dir.heartbeat(self.shard).unlink(missing_ok=True)
        seconds = receipt.ended - receipt.started
        logger.info(
            "%s: %d of %d entries archived, %d files, %s raw, %s packed, in %s",
            receipt.state, receipt.archived, receipt.entries, receipt.files, render_size(receipt.bytes),
            render_size(receipt.packed_bytes), render_duration(seconds),
        )  # fmt: skip
        return receipt

    def _adopt_others(self, adopted: Adopted, part: PartWriter) -> None:
        """Take over, from lives that began since this one did, the frames that they have better."""
        others = self._adopt(known={*adopted.lives, part.life})
        for frame, fact in others.frames.items():
            known = self.facts.get(frame)
            if known is None or len(fact.failed) < len(known.failed):
                logger.info("frame %d: taken over from life %d, which runs or ran beside this one", frame, fact.life)
                self.facts[frame] = fact
        adopted.parts.update(others.parts)


def _none() -> float:
    return 0.0


def _is_silent(fact: FrameFact) -> bool:
    """Whether the site gave no answer for any entry of a frame."""
    return len(fact.failed) == fact.pieces and all(p.reason == "unavailable" and p.transient for p in fact.failed)
