"""Reduce can be stopped anywhere, and run again it gives the same files."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from reduce_kit import left, reduce, results
from run_kit import DONE, KILLED, MadeRun, run_and_kill

from pipeline.errors import ItemsFailedError, StorageError
from pipeline.manifest import Manifest
from pipeline.reduce import join, tables
from pipeline.reduce import run as reduce_module
from pipeline.reduce.finished import read_finished
from pipeline.reduce.run import reduce_run
from pipeline.rundir import RunDir, encode_record

STEPS: dict[str, tuple[Any, str]] = {
    "copy": (join.ArchiveWriter, "copy_frame"),
    "catalogue": (join.ArchiveWriter, "finish"),
    "read back": (join.ArchiveJoin, "_read_back"),
    "rename": (join.os, "replace"),
    "sync": (join, "fsync_folder"),
    "tables": (reduce_module, "write_tables"),
    "csv": (tables, "write_csv"),
    "citations": (tables, "write_atomic"),
    "index": (join.ArchiveJoin, "write_index"),
    "checksums": (reduce_module, "write_checksums"),
    "cleaning": (reduce_module, "remove_parts"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=["^C", "full"]
)
def test_stopped_at_any_step_it_can_be_run_again(
    copy: MadeRun, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """Parts are there until the archive is complete, and the second run gives all files as if it were the first."""
    owner, name = STEPS[step]

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, stop)
    before = left(copy.run)
    with pytest.raises((KeyboardInterrupt, StorageError, OSError)):
        reduce(copy.run)
    monkeypatch.undo()
    assert left(copy.run) == before
    if step not in {"checksums", "cleaning"}:
        assert read_finished(copy.run, "c", Manifest(copy.run).sha256) is None
    reduce(copy.run)
    assert results(copy.run) == undisturbed
    assert left(copy.run) == []


def test_killed_at_any_line_it_can_be_run_again(done: MadeRun, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """After SIGKILL anywhere the next reduce gives the same files, and parts never go before the archive is there."""

    def fresh(name: str) -> RunDir:
        shutil.copytree(done.root / "runs", tmp_path / name)
        return RunDir(tmp_path / name / "r")

    run = fresh("whole")
    code, lines = run_and_kill(lambda: reduce(run), 0)
    assert code == DONE
    parts = left(done.run)
    for at in sorted({*range(1, lines, max(1, lines // 40)), *range(lines - 60, lines, 4)}):
        killed = fresh(str(at))
        assert run_and_kill(lambda killed=killed: reduce(killed), at)[0] == KILLED
        if left(killed) != parts:
            assert results(killed) == undisturbed
        reduce(killed)
        assert results(killed) == undisturbed
        assert left(killed) == []
        shutil.rmtree(killed.path)


def test_an_archive_that_reads_back_wrong_is_not_published(copy: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that does not keep what is written is found out before the parts are gone."""
    real = join.os.fsync

    def rot(descriptor: int) -> None:
        real(descriptor)
        os.pwrite(descriptor, b"\0\0\0\0", 5000)

    monkeypatch.setattr(join.os, "fsync", rot)
    before = left(copy.run)
    with pytest.raises(StorageError, match="reads back other bytes"):
        reduce(copy.run)
    assert not [name for name in results(copy.run) if "tar" in name]
    assert left(copy.run) == before


def test_too_little_room_is_told_before_the_copy(copy: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is free and how much is needed, and nothing is written."""
    monkeypatch.setattr(join.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(StorageError, match=r"10 B free, .* needed"):
        reduce(copy.run)
    assert [name for name in results(copy.run) if not name.startswith(".")] == []


@pytest.mark.parametrize(
    "damage", ["archive gone", "archive shorter", "index gone", "index cut", "of another manifest"]
)
def test_a_finished_archive_that_is_no_longer_whole_is_not_taken_as_finished(copy: MadeRun, damage: str) -> None:
    """Its index must be there, whole, of this manifest, and state the archive's size."""
    reduce(copy.run)
    archive, index = copy.run.archives / "c.tar.xz", copy.run.archives / "c.tar.xz.index.jsonl.zst"
    sha = Manifest(copy.run).sha256
    assert read_finished(copy.run, "c", sha) is not None
    if damage == "of another manifest":
        assert read_finished(copy.run, "c", "0" * 64) is None
        return
    {
        "archive gone": archive.unlink,
        "archive shorter": lambda: os.truncate(archive, archive.stat().st_size - 1),
        "index gone": index.unlink,
        "index cut": lambda: os.truncate(index, 20),
    }[damage]()
    assert read_finished(copy.run, "c", sha) is None
    with pytest.raises(ItemsFailedError):  # the parts are gone, so it must be done again
        reduce(copy.run)


def test_progress_ends_at_the_whole(copy: MadeRun) -> None:
    """What is shown while joining adds up to the bytes of all frames."""
    seen: list[tuple[str, int, int]] = []
    reduce_run(copy.run, allow_partial=False, on_progress=lambda *step: seen.append(step))
    assert seen[-1][0] == "c"
    assert seen[-1][1] == seen[-1][2] > 0
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)


def test_records_of_receipts_are_json_for_people(copy: MadeRun) -> None:
    """A receipt can be read with any JSON reader, and written back the same."""
    sha = Manifest(copy.run).sha256
    receipt = copy.run.read_receipt(1, sha)
    assert encode_record(receipt) == copy.run.receipt(1).read_bytes()
