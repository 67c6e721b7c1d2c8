"""Packing: raw files become blocks on all cores, and blocks go to the part in order, frame after frame.

One thread reads (and re-checks) raw files, a pool compresses, one thread writes. The number of blocks between them is
bounded, and so is the memory.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipeline.archive.blocks import EncodedBlock, encode_block
from pipeline.archive.frames import Member, Placed, RawFileChangedError, cut_frame, place_members, read_blocks
from pipeline.archive.tar import join_path
from pipeline.errors import InterruptedRunError
from pipeline.model import RawFile
from pipeline.records import FileRecord, FrameRecord, PieceRecord
from pipeline.settings import Archive
from pipeline.task.part import FrameFact, PartWriter

GRACE_STEP = 0.2  # seconds
ROOM_STEP = 0.5


class FrameJob(NamedTuple):
    """A frame whose files are all on scratch: its pieces in order, each with its folder and files (or its failure)."""

    frame: int
    pieces: list[PieceJob]


class PieceJob(NamedTuple):
    """One piece of a frame. `record` has no files yet."""

    record: PieceRecord
    folder: str
    files: list[RawFile]


class Packed(NamedTuple):
    """A frame is journaled."""

    fact: FrameFact


class Spoiled(NamedTuple):
    """A raw file changed on scratch; nothing of the frame was kept."""

    frame: int
    path: str


class Broken(NamedTuple):
    """Packing cannot go on."""

    error: BaseException


class _End(NamedTuple):
    job: FrameJob
    placed: list[Placed]
    tar_bytes: int


class _Spoil(NamedTuple):
    frame: int
    path: str


class Packer:
    """Packs frames in the order they are given; tells of each through `report` (called from its own threads)."""

    def __init__(
        self,
        part: PartWriter,
        settings: Archive,
        *,
        cores: int,
        blocks: int,
        verify: bool,
        report: Callable[[Packed | Spoiled | Broken], None],
    ) -> None:
        self._part = part
        self._settings = settings
        self._verify = verify
        self._report = report
        self._jobs: queue.SimpleQueue[FrameJob | None] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Future[EncodedBlock] | _End | _Spoil | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(blocks)
        self._pool = ThreadPoolExecutor(cores, thread_name_prefix="compress")
        self._abandon = threading.Event()
        self.packed_bytes = 0
        self._threads = [
            threading.Thread(target=self._guard, args=(self._assemble,), name="assemble", daemon=True),
            threading.Thread(target=self._guard, args=(self._write,), name="write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def pack(self, job: FrameJob) -> None:
        """Queue a frame."""
        self._jobs.put(job)

    @contextlib.contextmanager
    def borrow_room(self, stop: threading.Event) -> Iterator[None]:
        """Count a block that the caller has in memory among those in flight; wait until there is room for it.

        The caller must not wait for the packer meanwhile.

        Raises
        ------
        InterruptedRunError
            When there is no room and packing was given up, or `stop` is set.
        """
        while not self._room.acquire(timeout=ROOM_STEP):
            if stop.is_set() or self._abandon.is_set():
                raise InterruptedRunError("packing has ended")
        try:
            yield
        finally:
            self._room.release()

    def close(self, grace: Callable[[], float] | None = None) -> None:
        """End the threads after all queued frames, or after `grace` seconds, leaving what is then unfinished.

        `grace` is asked again and again: it may get shorter while it runs.
        """
        self._jobs.put(None)
        if grace is not None:
            began = time.monotonic()
            while self._threads[-1].is_alive() and (left := began + grace() - time.monotonic()) > 0:
                self._threads[-1].join(min(left, GRACE_STEP))
            self._abandon.set()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the thread's border: the coordinator gets it and raises it
            self._abandon.set()
            self._report(Broken(error))
            self._out.put(None)

    def _assemble(self) -> None:
        while (job := self._jobs.get()) is not None and not self._abandon.is_set():
            members = [
                Member(join_path(piece.folder, file.name), file.local, file.size, file.sha256, file.chain)
                for piece in job.pieces
                for file in piece.files
            ]
            placed, tar_bytes = place_members(members)
            cuts = cut_frame(placed, self._settings.block_bytes)
            try:
                for cut, data in zip(cuts, read_blocks(placed, cuts), strict=True):
                    while not self._room.acquire(timeout=ROOM_STEP):
                        if self._abandon.is_set():
                            break
                    if self._abandon.is_set():
                        break
                    self._out.put(
                        self._pool.submit(
                            encode_block, data, cut.chain, portable=self._settings.portable, verify=self._verify
                        )
                    )
            except RawFileChangedError as error:
                self._out.put(_Spoil(job.frame, error.path))
                continue
            if self._abandon.is_set():
                break
            self._out.put(_End(job, placed, tar_bytes))
        self._out.put(None)

    def _write(self) -> None:
        blocks: list[tuple[int, int]] = []
        while (item := self._out.get()) is not None and not self._abandon.is_set():
            if isinstance(item, Future):
                block = item.result()
                self._part.write(block.data)
                self.packed_bytes += len(block.data)
                blocks.append((block.size.unpadded, block.size.uncompressed))
                self._room.release()
            elif isinstance(item, _Spoil):
                self._part.abandon_frame()
                blocks = []
                self._report(Spoiled(item.frame, item.path))
            else:
                record = frame_record(item.job, item.placed, item.tar_bytes, blocks, self._part)
                blocks = []
                self._report(Packed(self._part.close_frame(record)))


def frame_record(
    job: FrameJob, placed: list[Placed], tar_bytes: int, blocks: list[tuple[int, int]], part: PartWriter
) -> FrameRecord:
    """The journal's record of the frame that `part` holds open."""
    offset, length, sha256 = part.frame_written()
    places = iter(placed)
    pieces = []
    for piece in job.pieces:
        files = [
            FileRecord(
                name=file.name,
                size=file.size,
                sha256=file.sha256,
                offset=next(places).offset,
                key=file.key,
                evidence=list(file.evidence),
                route=file.route,
                etag=file.etag,
            )
            for file in piece.files
        ]
        record = piece.record
        pieces.append(PieceRecord(record.number, record.piece, files, record.reason, record.message, record.transient))
    return FrameRecord(job.frame, part.name, offset, length, sha256, tar_bytes, blocks, pieces, part.liblzma)
