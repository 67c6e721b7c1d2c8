"""Packing: the same bytes whatever the number of cores and blocks, in order, and nothing kept of what went wrong."""

from __future__ import annotations

import hashlib
import io
import queue
import random
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive.blocks import decode_block
from pipeline.archive.xz import BlockSize
from pipeline.errors import StorageError
from pipeline.model import RawFile
from pipeline.records import FrameRecord, PieceRecord
from pipeline.rundir import RunDir
from pipeline.settings import Archive
from pipeline.task import pack
from pipeline.task.pack import Broken, FrameJob, Packed, Packer, PieceJob, Spoiled
from pipeline.task.part import PartWriter, adopt_frames, read_frames
from pipeline.units import ByteSize

SHA = "a" * 64
SETTINGS = Archive(block_bytes=ByteSize(64 << 10))


def raw_file(folder: Path, name: str, size: int, chain: str = "A0") -> RawFile:
    """A verified file on scratch: half of it random, half of it smooth."""
    data = random.Random(name).randbytes(size // 2).ljust(size, b"\1")
    path = folder / hashlib.sha256(name.encode()).hexdigest()[:16]
    path.write_bytes(data)
    sha256, md5 = hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
    return RawFile(name, str(path), size, sha256, md5, f"key/{name}", ("md5",), "route", chain)


def jobs_of(folder: Path) -> list[FrameJob]:
    """Frames of every shape: small and huge files, several chains, failures, and one without any file."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: list[list[list[int]]] = [
        [[1000, 3000], [500]],
        [[]],
        [[400_000]],
        [[70_000] * 9, [], [131_072]],
        [[512, 1, 511, 513, 65_536]],
    ]
    jobs = []
    for frame, pieces in enumerate(shapes):
        made = []
        for number, sizes in enumerate(pieces):
            record = PieceRecord(number, 0, []) if sizes else PieceRecord(number, 0, [], "size", "too short")
            chains = ["A0", "A2", "S", "J"]
            files = [
                raw_file(folder, f"1.{frame}.{number}.{n}.dcm", size, chains[n % 4]) for n, size in enumerate(sizes)
            ]
            made.append(PieceJob(record, f"c/p{frame}/s{number}", files))
        jobs.append(FrameJob(frame, made))
    return jobs


class Bench:
    """A packer on a part of its own, and what it reports."""

    def __init__(self, root: Path, *, cores: int = 2, blocks: int = 3, verify: bool = True) -> None:
        self.run = RunDir(root)
        self.part = PartWriter(self.run, 0, SHA)
        self.path = self.run.parts_folder(0) / self.part.name
        self.events: queue.SimpleQueue[Packed | Spoiled | Broken] = queue.SimpleQueue()
        self.packer = Packer(self.part, SETTINGS, cores=cores, blocks=blocks, verify=verify, report=self.events.put)

    def finish(self, grace: float | None = None) -> list[Packed | Spoiled | Broken]:
        """End, and return all that was reported."""
        self.packer.close(None if grace is None else lambda: grace)
        self.part.close()
        found = []
        while not self.events.empty():
            found.append(self.events.get())
        return found

    def records(self, events: list[Any]) -> list[FrameRecord]:
        """What the packer told of, as the journal has it."""
        return list(read_frames(self.run, 0, [event.fact for event in events if isinstance(event, Packed)]))

    def adopted(self) -> list[FrameRecord]:
        """What a later life takes over."""
        return list(read_frames(self.run, 0, adopt_frames(self.run, 0, SHA, range(100)).frames.values()))


def unpack(data: bytes, record: FrameRecord) -> bytes:
    """The tar bytes of a frame."""
    position, out = record.offset, []
    for unpadded, uncompressed in record.blocks:
        size = BlockSize(unpadded, uncompressed)
        out.append(decode_block(data[position : position + size.total], size))
        position += size.total
    assert position == record.offset + record.length
    return b"".join(out)


def test_the_bytes_do_not_depend_on_cores_and_blocks(tmp_path: Path) -> None:
    """One core or four, one block in flight or many: the same part, the same journal."""
    jobs = jobs_of(tmp_path / "raw")
    seen = set()
    for cores, blocks, verify in ((1, 1, True), (1, 5, False), (2, 2, True), (4, 3, False), (4, 40, True)):
        bench = Bench(tmp_path / f"{cores}-{blocks}", cores=cores, blocks=blocks, verify=verify)
        for job in jobs:
            bench.packer.pack(job)
        events = bench.finish()
        assert [event.fact.frame for event in events if isinstance(event, Packed)] == [job.frame for job in jobs]
        assert bench.adopted() == bench.records(events)
        seen.add((bench.path.read_bytes(), bench.run.journal(0, 0).read_bytes()))
        assert bench.packer.packed_bytes == bench.path.stat().st_size
    assert len(seen) == 1


def test_frames_hold_their_files_where_the_records_say(tmp_path: Path) -> None:
    """The tar of every frame is whole, in order, and each file's offset and hash are those of its bytes."""
    jobs = jobs_of(tmp_path / "raw")
    bench = Bench(tmp_path / "run")
    for job in jobs:
        bench.packer.pack(job)
    bench.finish()
    data = bench.path.read_bytes()
    for job, record in zip(jobs, bench.adopted(), strict=True):
        tar = unpack(data, record)
        assert len(tar) == record.tar_bytes
        wanted = [
            (f"{piece.folder}/{file.name}", Path(file.local).read_bytes())
            for piece in job.pieces
            for file in piece.files
        ]
        with tarfile.open(fileobj=io.BytesIO(tar + bytes(1024))) as archive:
            members = archive.getmembers()
            assert [(m.name, archive.extractfile(m).read()) for m in members] == wanted
            assert all((m.uid, m.gid, m.mtime, m.mode, m.uname, m.gname) == (0, 0, 0, 0o644, "", "") for m in members)
        files = [file for piece in record.pieces for file in piece.files]
        for file, (path, content) in zip(files, wanted, strict=True):
            assert path.endswith("/" + file.name)
            assert tar[file.offset : file.offset + file.size] == content
            assert hashlib.sha256(content).hexdigest() == file.sha256
        assert [(p.number, p.reason, len(p.files)) for p in record.pieces] == [
            (p.record.number, p.record.reason, len(p.files)) for p in job.pieces
        ]


@pytest.mark.parametrize("change", ["flip first", "flip last", "longer", "shorter", "gone", "swapped"])
@pytest.mark.parametrize("which", [0, 4, 8])
def test_a_raw_file_that_changed_spoils_its_frame_and_no_other(tmp_path: Path, change: str, which: int) -> None:
    """Nothing of the frame stays in the part; the frames before and behind are packed as ever."""
    jobs = jobs_of(tmp_path / "raw")
    files = [file for piece in jobs[3].pieces for file in piece.files]
    path = Path(files[which].local)
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "flip first": bytes([data[0] ^ 1]) + data[1:],
                "flip last": data[:-1] + bytes([data[-1] ^ 1]),
                "longer": data + b"x",
                "shorter": data[:-1],
                "swapped": data[::-1],
            }[change]
        )
    bench = Bench(tmp_path / "run")
    for job in jobs:
        bench.packer.pack(job)
    events = bench.finish()
    assert [e.frame if isinstance(e, Spoiled) else e.fact.frame for e in events] == [0, 1, 2, 3, 4]
    spoiled = events[3]
    assert isinstance(spoiled, Spoiled)
    assert spoiled.path == str(path)
    other = Bench(tmp_path / "other")
    for job in jobs:
        if job.frame != 3:
            other.packer.pack(job)
    other.finish()
    assert bench.path.read_bytes() == other.path.read_bytes()
    assert bench.adopted() == other.adopted()


def test_a_spoiled_frame_can_be_packed_again(tmp_path: Path) -> None:
    """After the file was fetched anew the frame takes its place behind the others."""
    jobs = jobs_of(tmp_path / "raw")
    path = Path(jobs[2].pieces[0].files[0].local)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0")
    bench = Bench(tmp_path / "run")
    bench.packer.pack(jobs[2])
    assert isinstance(bench.events.get(timeout=20), Spoiled)
    path.write_bytes(data)
    bench.packer.pack(jobs[2])
    (event,) = bench.finish()
    assert isinstance(event, Packed)
    (record,) = bench.records([event])
    assert unpack(bench.path.read_bytes(), record)[record.pieces[0].files[0].offset :].startswith(data)


def fail_on(number: int, error: BaseException) -> Any:
    """An encoder that fails at its `number`-th block."""
    real, lock, count = pack.encode_block, threading.Lock(), [0]

    def encode(*arguments: Any, **options: Any) -> Any:
        with lock:
            count[0] += 1
            if count[0] == number:
                raise error
        return real(*arguments, **options)

    return encode


@pytest.mark.parametrize("number", [1, 5, 12])
@pytest.mark.parametrize("error", [RuntimeError("faulty memory"), MemoryError(), KeyboardInterrupt()])
def test_an_encoder_that_fails_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    """The fault is reported once, the threads end, and only frames before it are in the journal."""
    jobs = jobs_of(tmp_path / "raw")
    monkeypatch.setattr(pack, "encode_block", fail_on(number, error))
    bench = Bench(tmp_path / "run", cores=1)
    for job in jobs:
        bench.packer.pack(job)
    events = bench.finish()
    assert [type(event) for event in events].count(Broken) == 1
    assert isinstance(events[-1], Broken)
    assert events[-1].error is error
    assert bench.adopted() == bench.records(events)
    assert [record.frame for record in bench.adopted()] == list(range(len(events) - 1))


def test_full_storage_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that cannot be written is a storage error of the task."""
    jobs = jobs_of(tmp_path / "raw")
    bench = Bench(tmp_path / "run")

    def full(_: bytes) -> None:
        raise StorageError("full")

    monkeypatch.setattr(bench.part, "write", full)
    for job in jobs:
        bench.packer.pack(job)
    events = bench.finish()
    assert isinstance(events[-1], Broken)
    assert isinstance(events[-1].error, StorageError)
    assert bench.adopted() == []


class Gate:
    """Blocks wait here until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.real = pack.encode_block

    def encode(self, *arguments: Any, **options: Any) -> Any:
        self.waiting.release()
        self.open.wait(20)
        return self.real(*arguments, **options)


def big_jobs(folder: Path, frames: Sequence[int]) -> list[FrameJob]:
    """Frames of many blocks."""
    folder.mkdir()
    return [
        FrameJob(n, [PieceJob(PieceRecord(n, 0, []), f"c/{n}", [raw_file(folder, f"1.{n}.dcm", 640_000, "S")])])
        for n in frames
    ]


def test_no_more_blocks_are_in_memory_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading waits when so many blocks are on their way, however large the frame."""
    lock, held, most = threading.Lock(), [0], [0]
    real_encode, bench = pack.encode_block, Bench(tmp_path / "run", cores=2, blocks=3)
    real_write = bench.part.write

    def encode(*arguments: Any, **options: Any) -> Any:
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        return real_encode(*arguments, **options)

    def write(data: bytes) -> None:
        real_write(data)
        with lock:
            held[0] -= 1

    monkeypatch.setattr(pack, "encode_block", encode)
    monkeypatch.setattr(bench.part, "write", write)
    for job in big_jobs(tmp_path / "raw", range(3)):
        bench.packer.pack(job)
    assert len(bench.finish()) == 3
    assert 1 <= most[0] <= 3


def test_abandoning_ends_soon_and_keeps_finished_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without grace the packer stops in the middle of a frame; what was journaled stays, the rest is not told."""
    bench = Bench(tmp_path / "run", cores=1, blocks=2)
    first, *others = big_jobs(tmp_path / "raw", range(6))
    bench.packer.pack(first)
    assert isinstance(bench.events.get(timeout=20), Packed)
    gate = Gate()
    monkeypatch.setattr(pack, "encode_block", gate.encode)
    for job in others:
        bench.packer.pack(job)
    assert gate.waiting.acquire(timeout=20)
    threading.Timer(0.3, gate.open.set).start()
    started = time.monotonic()
    assert bench.finish(grace=0.0) == []
    assert time.monotonic() - started < 10
    assert [record.frame for record in bench.adopted()] == [0]


def test_grace_lets_queued_frames_finish(tmp_path: Path) -> None:
    """With time enough, all that was given is packed, as at a normal end."""
    bench = Bench(tmp_path / "run")
    for job in big_jobs(tmp_path / "raw", range(3)):
        bench.packer.pack(job)
    assert [type(event) for event in bench.finish(grace=60.0)] == [Packed] * 3


def test_a_packer_without_work_ends_at_once(tmp_path: Path) -> None:
    """Nothing is written when nothing was given."""
    for grace in (None, 0.0):
        bench = Bench(tmp_path / str(grace))
        assert bench.finish(grace) == []
        assert bench.path.stat().st_size == 0
