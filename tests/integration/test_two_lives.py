"""Two processes on one shard at the same time: one receipt, no mixed file, and the bytes of one undisturbed life."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from haul import SECONDS, Ended, Haul, Sabotage, file_sha256, run_medhaul, start_medhaul

from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite
from pipeline.records import FrameRecord
from pipeline.reduce.evidence import prove_shard
from pipeline.task.part import holds_part, iter_journal

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"
FRAMES = 6
POINTS = [
    ("before-life", 1),
    ("before-list", 3),
    ("mid-body", 5),
    ("mid-frame", 4),
    ("half-line", 3),
    ("journaled", 3),
    ("before-shard-index", 1),
    ("before-receipt", 1),
    ("receipt", 1),
]
IDS = [point for point, _ in POINTS]


@pytest.fixture
def haul(folder: Path, data: DemoData, site: DemoSite) -> Haul:
    """One planned shard of 12 files in 6 frames."""
    made = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, connections=4)
    made.plan()
    return made


@contextlib.contextmanager
def started(haul: Haul, command: str, sabotage: Sabotage | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, which never outlives the block."""
    arguments = ("task", haul.run.path, "--shard", 0) if command == "task" else (command, haul.run.path)
    process = start_medhaul(*arguments, sabotage=sabotage)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until_frozen(process: subprocess.Popen[str]) -> None:
    """Wait until the process has stopped itself with SIGSTOP."""
    said = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert said is not None
    assert said.si_code == os.CLD_STOPPED


@contextlib.contextmanager
def frozen(haul: Haul, command: str, point: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has just passed the point for the n-th time, and runs no further until it is told to."""
    with started(haul, command, Sabotage(point, count, "SIGSTOP")) as process:
        wait_until_frozen(process)
        yield process


def end(process: subprocess.Popen[str]) -> Ended:
    """Let a process run on, to its end."""
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=SECONDS)
    return Ended(process.returncode, out, err)


def check_receipt(haul: Haul) -> None:
    """There is one receipt, and all that it names is there."""
    sha256 = haul.run.read_run().manifest_sha256
    assert [path.name for path in (haul.run.path / "receipts").rglob("*.*") if path.suffix != ".tmp"] == ["000000.json"]
    proof = prove_shard(haul.run, 0, sha256)
    assert proof.problem == ""
    assert proof.receipt is not None
    assert proof.receipt.state == "complete"
    folder = haul.run.parts_folder(0)
    assert file_sha256(folder / proof.receipt.index) == proof.receipt.index_sha256
    assert all(holds_part(folder, use) for use in proof.receipt.parts)


def check_parts(haul: Haul, *, killed: int | None = None) -> int:
    """Each life wrote its own part and no other, frame after frame; a life that ended left nothing half."""
    frames = 0
    for life in haul.run.lives(0):
        journal = haul.run.journal(0, life).read_bytes()
        part = (haul.run.parts_folder(0) / haul.run.part_name(0, life)).read_bytes()
        position, read = 0, 0
        for at, size, record in iter_journal(io.BytesIO(journal)):
            read = at + size
            if isinstance(record, FrameRecord):
                assert (record.part, record.offset) == (haul.run.part_name(0, life), position)
                position += record.length
                assert hashlib.sha256(part[record.offset : position]).hexdigest() == record.sha256
                frames += 1
        assert life == killed or (read, position) == (len(journal), len(part))
    return frames


def join_and_compare(haul: Haul, undisturbed: dict[str, str]) -> None:
    """The archive is that of the undisturbed run, reads back well, and nothing lies about in the run."""
    ended = haul.reduce()
    assert ended.code == 0, ended.err
    compare(haul, undisturbed)
    assert haul.leftovers() == []


def compare(haul: Haul, undisturbed: dict[str, str]) -> None:
    """The archive is that of the undisturbed run, and every byte of it is as its index says."""
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}
    ended = run_medhaul("verify", haul.run.path)
    assert ended.code == 0, ended.err


def test_started_together(haul: Haul, undisturbed: dict[str, str]) -> None:
    """Two lives that begin in the same moment both end well."""
    with started(haul, "task") as one, started(haul, "task") as other:
        for process in (one, other):
            ended = end(process)
            assert ended.code == 0, ended.err
    check_receipt(haul)
    assert FRAMES <= check_parts(haul) <= 2 * FRAMES
    join_and_compare(haul, undisturbed)


def test_both_choose_the_same_number(haul: Haul, undisturbed: dict[str, str]) -> None:
    """Two lives that both are about to open the same files do not: the second to do so takes others."""
    strike = Sabotage("before-life", 1, "SIGSTOP")
    with started(haul, "task", strike) as one, started(haul, "task", strike) as other:
        for process in (one, other):
            wait_until_frozen(process)
        assert haul.run.lives(0) == []
        for process in (one, other):
            process.send_signal(signal.SIGCONT)
        for process in (one, other):
            ended = end(process)
            assert ended.code == 0, ended.err
    assert haul.run.lives(0) == [0, 1]
    check_receipt(haul)
    check_parts(haul)
    join_and_compare(haul, undisturbed)


@pytest.mark.parametrize("point", ["before-shard-index", "before-receipt"])
def test_both_end_in_the_same_moment(point: str, haul: Haul, undisturbed: dict[str, str]) -> None:
    """Two lives that both have done all, and both are about to say so, leave one receipt, and it is good."""
    strike = Sabotage(point, 1, "SIGSTOP")
    with started(haul, "task", strike) as one, started(haul, "task", strike) as other:
        for process in (one, other):
            wait_until_frozen(process)
        assert haul.receipts() == []
        for process in (one, other):
            process.send_signal(signal.SIGCONT)
        for process in (one, other):
            ended = end(process)
            assert ended.code == 0, ended.err
    check_receipt(haul)
    check_parts(haul)
    join_and_compare(haul, undisturbed)


@pytest.mark.parametrize(("point", "count"), POINTS, ids=IDS)
def test_one_sleeps_while_the_other_does_all(point: str, count: int, haul: Haul, undisturbed: dict[str, str]) -> None:
    """A life that was stopped anywhere, and wakes when another has done the shard, ends well and spoils nothing."""
    with frozen(haul, "task", point, count) as sleeper:
        ended = haul.task()
        assert ended.code == 0, ended.err
        check_receipt(haul)
        ended = end(sleeper)
        assert ended.code == 0, ended.err
    check_receipt(haul)
    check_parts(haul)
    join_and_compare(haul, undisturbed)


@pytest.mark.parametrize(
    ("point", "count"), [("mid-body", 5), ("mid-frame", 2), ("half-line", 1), ("before-receipt", 1)]
)
def test_the_other_is_killed(point: str, count: int, haul: Haul, undisturbed: dict[str, str]) -> None:
    """A second life that dies takes nothing with it: the first goes on to the end."""
    with frozen(haul, "task", "mid-frame", 4) as sleeper:
        ended = haul.task(sabotage=Sabotage(point, count, "SIGKILL"))
        assert ended.code == -signal.SIGKILL, ended.err
        ended = end(sleeper)
        assert ended.code == 0, ended.err
    check_receipt(haul)
    assert haul.run.lives(0) == [0, 1]
    check_parts(haul, killed=1)
    join_and_compare(haul, undisturbed)


@pytest.mark.parametrize(("point", "count"), [("mid-copy", 2), ("before-archive", 1), ("removing", 1)])
def test_one_writes_while_reduce_is_at_work(point: str, count: int, haul: Haul, undisturbed: dict[str, str]) -> None:
    """A life that wakes in the middle of reduce writes parts of its own, and a receipt: neither is in reduce's way."""
    with frozen(haul, "task", "mid-frame", 4) as sleeper:
        assert haul.task().code == 0
        with frozen(haul, "reduce", point, count) as reduce:
            ended = end(sleeper)
            assert ended.code == 0, ended.err
            ended = end(reduce)
            assert ended.code == 0, ended.err
    compare(haul, undisturbed)
    join_and_compare(haul, undisturbed)


@pytest.mark.parametrize(("point", "count"), POINTS, ids=IDS)
def test_one_wakes_when_its_parts_are_gone(point: str, count: int, haul: Haul, undisturbed: dict[str, str]) -> None:
    """After reduce has removed the parts, a life that wakes up finds the work done, and changes nothing of it."""
    with frozen(haul, "task", point, count) as sleeper:
        assert haul.task().code == 0
        assert haul.reduce().code == 0
        assert haul.run.lives(0) == []
        joined = {path.name: file_sha256(path) for path in haul.run.archives.iterdir()}
        ended = end(sleeper)
        assert ended.code == 0, ended.err
    # One that had no files yet does the shard again, in files of its own, which the next reduce removes.
    again = point == "before-life"
    assert haul.run.lives(0) == [0] * again
    assert ("its archive is complete" in ended.err) == (point not in {"before-life", "receipt"})
    assert {path.name: file_sha256(path) for path in haul.run.archives.iterdir()} == joined
    assert [receipt.state for receipt in haul.receipts()] == ["complete"]
    assert not list((haul.run.path / "heartbeats").rglob("*.json"))
    assert again or haul.leftovers() == []
    compare(haul, undisturbed)
    join_and_compare(haul, undisturbed)
