"""Parts and journals: exactly what was finished counts, byte for byte, whatever tore or damaged the rest."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_kit import DONE, KILLED, run_and_kill

from pipeline.errors import ConfigError, StorageError
from pipeline.records import FORMAT, FrameRecord, PieceRecord
from pipeline.rundir import RunDir
from pipeline.task.part import (
    JournalHead,
    PartWriter,
    adopt_frames,
    better_record,
    iter_journal,
    journal_line,
    read_frames,
)

SHA = "a" * 64
WANTED = range(100)


def write_frame(part: PartWriter, frame: int, data: bytes, *, reasons: Sequence[str] = ()) -> FrameRecord:
    """Write one frame of these bytes and close it."""
    for start in range(0, len(data), 7):
        part.write(data[start : start + 7])
    offset, length, sha256 = part.frame_written()
    pieces = [PieceRecord(frame, n, [], reason, "é\n" + reason) for n, reason in enumerate(reasons)]
    record = FrameRecord(frame, part.name, offset, length, sha256, 512, [(length, 512)], pieces)
    part.close_frame(record)
    return record


def content(frame: int, size: int = 50) -> bytes:
    """Some bytes of a frame."""
    return hashlib.shake_128(b"%d" % frame).digest(size)


def write_part(run: RunDir, frames: Sequence[int], *, shard: int = 3, sha: str = SHA) -> list[FrameRecord]:
    """One life that finishes these frames."""
    part = PartWriter(run, shard, sha)
    records = [write_frame(part, frame, content(frame)) for frame in frames]
    part.close()
    return records


class Journal(NamedTuple):
    """What a journal says: its head, its frames, and the bytes of torn tail."""

    head: JournalHead | None
    frames: list[FrameRecord]
    torn: int


def parse_journal(data: bytes) -> Journal:
    """A whole journal at once."""
    lines = list(iter_journal(io.BytesIO(data)))
    assert [at for at, _, _ in lines] == [sum(size for _, size, _ in lines[:n]) for n in range(len(lines))]
    said = [content for _, _, content in lines]
    head = said[0] if said else None
    assert head is None or isinstance(head, JournalHead)
    frames = [record for record in said[1:] if isinstance(record, FrameRecord)]
    return Journal(head, frames, len(data) - sum(size for _, size, _ in lines))


def adopted_records(run: RunDir, shard: int, sha: str, wanted: range) -> list[FrameRecord]:
    """The records that a later life takes over, read back."""
    return list(read_frames(run, shard, adopt_frames(run, shard, sha, wanted).frames.values()))


def test_a_torn_journal_gives_exactly_the_whole_lines(tmp_path: Path) -> None:
    """Cut at every single byte: the frames of the lines before the cut are adopted, and no other."""
    run = RunDir(tmp_path)
    records = write_part(run, [4, 5, 6])
    path = run.journal(3, 0)
    data = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(data) if byte == 10]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends) - 1  # the head is a line too
        adopted = adopt_frames(run, 3, SHA, WANTED)
        assert list(read_frames(run, 3, adopted.frames.values())) == records[: max(0, whole)]
        assert bool(adopted.notes) == (cut not in {0, *ends})


def test_a_journal_damaged_at_any_byte_gives_exactly_the_lines_before(tmp_path: Path) -> None:
    """Whatever bit flips wherever, the damaged line and all behind it are not believed."""
    run = RunDir(tmp_path)
    records = write_part(run, [4, 5, 6])
    data = run.journal(3, 0).read_bytes()
    ends = [n + 1 for n, byte in enumerate(data) if byte == 10]
    for position in range(len(data)):
        line = sum(end <= position for end in ends)
        for flip in (1, 0x20, 0x80, data[position] ^ 10, data[position] ^ 0x30):
            if flip:
                damaged = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
                journal = parse_journal(damaged)
                assert (journal.head is None) == (line == 0)
                assert journal.frames == records[: max(0, line - 1)]
                assert journal.torn == len(data) - ([0, *ends][line])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_journal_without_frames(data: bytes) -> None:
    """Nothing that was not written by us is taken for a frame."""
    journal = parse_journal(data)
    assert (journal.head, journal.frames, journal.torn) == (None, [], len(data))


@given(st.binary(max_size=100), st.integers(0, 3))
def test_junk_behind_good_lines_changes_nothing(junk: bytes, count: int) -> None:
    """A tail of other bytes is counted and left aside."""
    records = [FrameRecord(n, "p", 0, 0, "", 0, [], []) for n in range(count)]
    data = b"".join(map(journal_line, [JournalHead(FORMAT, 1, 0, SHA), *records]))
    journal = parse_journal(data + junk)
    assert (journal.frames, journal.torn) == (records, len(junk))


@pytest.mark.parametrize(
    "line",
    [
        b"%08X %s\n", b" %7x %s\n", b"+%07x %s\n", b"0x%06x %s\n", b"%08x\t%s\n", b"%08x  %s\n", b"%08x %s\r\n",
        b"%010x %s\n",
    ],
)  # fmt: skip
def test_only_our_own_spelling_is_a_line(line: bytes) -> None:
    """What int() would take as a number is still not what we wrote."""
    body = msgspec.json.encode(JournalHead(FORMAT, 1, 0, SHA))
    good = journal_line(JournalHead(FORMAT, 1, 0, SHA))
    crc = int(good[:8], 16)
    assert parse_journal(good).head is not None
    if line % (crc, body) != good:
        assert parse_journal(line % (crc, body)).head is None


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_frames_whose_bytes_changed_are_not_adopted(tmp_path: Path, frame: int) -> None:
    """A part is read again before it counts: a changed byte costs its frame and those behind it in that part."""
    run = RunDir(tmp_path)
    records = write_part(run, [4, 5, 6])
    path = run.parts_folder(3) / records[0].part
    data = path.read_bytes()
    for position in range(records[frame].offset, records[frame].offset + records[frame].length):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        adopted = adopt_frames(run, 3, SHA, WANTED)
        assert list(read_frames(run, 3, adopted.frames.values())) == records[:frame]
        assert f"frame {4 + frame} is not what its journal says" in adopted.notes[0]
        path.write_bytes(data[:position])
        assert adopted_records(run, 3, SHA, WANTED) == records[:frame]


def test_a_missing_part_is_as_good_as_none(tmp_path: Path) -> None:
    """A journal without its part gives no frame."""
    run = RunDir(tmp_path)
    records = write_part(run, [4, 5])
    (run.parts_folder(3) / records[0].part).unlink()
    adopted = adopt_frames(run, 3, SHA, WANTED)
    assert (adopted.frames, adopted.parts) == ({}, {})
    assert adopted.notes


def test_adopted_parts_have_true_hashes(tmp_path: Path) -> None:
    """What a receipt will say of an earlier life's part is its bytes up to the last good frame, whatever follows."""
    run = RunDir(tmp_path)
    part = PartWriter(run, 3, SHA)
    write_frame(part, 4, content(4))
    write_frame(part, 5, b"")
    write_frame(part, 6, content(6))
    part.write(b"unfinished")
    part.close()
    use = adopt_frames(run, 3, SHA, WANTED).parts[part.name]
    assert use.length == 100
    assert use.sha256 == hashlib.sha256(content(4) + content(6)).hexdigest()


def test_a_frame_of_another_shard_is_not_adopted(tmp_path: Path) -> None:
    """Only frames that belong to the shard count."""
    run = RunDir(tmp_path)
    write_part(run, [4, 200])
    assert list(adopt_frames(run, 3, SHA, WANTED).frames) == [4]


@pytest.mark.parametrize("head", [{"manifest_sha256": "b" * 64}, {"shard": 4}, {"format": 2}])
def test_a_journal_of_another_run_is_refused(tmp_path: Path, head: dict[str, object]) -> None:
    """Mixed files stop the task with the file's name, before anything is built on them."""
    run = RunDir(tmp_path)
    write_part(run, [4])
    path = run.journal(3, 0)
    good = JournalHead(FORMAT, 3, 0, SHA)
    rest = path.read_bytes().partition(b"\n")[2]
    path.write_bytes(journal_line(msgspec.structs.replace(good, **head)) + rest)
    with pytest.raises(ConfigError, match=f"{path}: of another run, shard or format") as caught:
        adopt_frames(run, 3, SHA, WANTED)
    assert caught.value.hint


def test_a_journal_or_part_that_cannot_be_read_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input/output error is told with the file, and is not taken for a missing frame."""
    run = RunDir(tmp_path)
    write_part(run, [4])

    really_open = Path.open

    for suffix in (".journal", ".part"):

        def fail(path: Path, *arguments: Any, _suffix: str = suffix) -> Any:
            if path.suffix == _suffix:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return really_open(path, *arguments)

        monkeypatch.setattr(Path, "open", fail)
        with pytest.raises(StorageError, match=rf"000003\.0\{suffix}: Input/output error"):
            adopt_frames(run, 3, SHA, WANTED)
        monkeypatch.undo()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["frame", "abandon", "empty"]), st.integers(1, 60)), max_size=12))
def test_part_uses_and_records_are_true_whatever_was_abandoned(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Offsets, lengths and hashes are those of the bytes on disk, however often a frame was taken back."""
    run = RunDir(tmp_path_factory.mktemp("p"))
    part = PartWriter(run, 0, SHA)
    path = run.parts_folder(0) / part.name
    records, whole = [], b""
    for number, (step, size) in enumerate(steps):
        if step == "abandon":
            part.write(content(number, size))
            part.abandon_frame()
        else:
            data = content(number, size) if step == "frame" else b""
            records.append(write_frame(part, number, data))
            whole += data
        assert part.frame_written()[0] == len(whole)
        use = part.use()
        assert (use.name, use.length, use.sha256) == (part.name, len(whole), hashlib.sha256(whole).hexdigest())
    part.close()
    assert path.read_bytes() == whole
    for record in records:
        data = whole[record.offset : record.offset + record.length]
        assert hashlib.sha256(data).hexdigest() == record.sha256
    adopted = adopt_frames(run, 0, SHA, range(20))
    assert list(read_frames(run, 0, adopted.frames.values())) == records
    if records:
        assert list(adopted.parts.values()) == [part.use()]


def test_two_lives_at_once_never_touch_one_file(tmp_path: Path) -> None:
    """Two tasks of one shard at the same time each have files of their own, and both sets of frames are good."""
    run = RunDir(tmp_path)
    one, two = PartWriter(run, 3, SHA), PartWriter(run, 3, SHA)
    assert one.life != two.life
    assert one.name != two.name
    for frame in (4, 5):
        write_frame(one, frame, content(frame))
        write_frame(two, frame, content(frame + 50))
    one.close()
    two.close()
    adopted = adopt_frames(run, 3, SHA, WANTED)
    assert {record.part for record in adopted.frames.values()} == {two.name}
    assert set(adopted.parts) == {one.name, two.name}


def test_many_processes_claim_lives_of_their_own(tmp_path: Path) -> None:
    """Started in the same moment, no two processes get the same number."""
    run = RunDir(tmp_path)
    pipes = []
    for _ in range(6):
        reader, writer = os.pipe()
        if os.fork() == 0:
            lives = [PartWriter(run, 3, SHA).life for _ in range(10)]
            os.write(writer, " ".join(map(str, lives)).encode())
            os._exit(0)
        os.close(writer)
        pipes.append(reader)
    lives = []
    for reader in pipes:
        with open(reader, "rb") as file:
            lives += [int(word) for word in file.read().split()]
        os.wait()
    assert sorted(lives) == list(range(60))
    assert run.lives(3) == list(range(60))


def test_a_part_that_lost_its_journal_is_never_written_to(tmp_path: Path) -> None:
    """When a journal was removed by hand, the next life leaves the old part alone and takes another number."""
    run = RunDir(tmp_path)
    write_part(run, [4])
    old = run.parts_folder(3) / run.part_name(3, 0)
    before = old.read_bytes()
    run.journal(3, 0).unlink()
    records = write_part(run, [4, 5])
    assert old.read_bytes() == before
    assert {record.part for record in records} == {run.part_name(3, 1)}
    assert adopted_records(run, 3, SHA, WANTED) == records


def test_a_journal_that_goes_while_it_is_read_is_a_storage_error(tmp_path: Path) -> None:
    """Records that were adopted and are gone when they are wanted end the task, whichever life they are of."""
    run = RunDir(tmp_path)
    write_part(run, [4])
    write_part(run, [5])
    facts = list(adopt_frames(run, 3, SHA, WANTED).frames.values())
    for life in (1, 0):
        run.journal(3, life).unlink()
        with pytest.raises(StorageError, match="is not there any more"):
            list(read_frames(run, 3, facts))


def record_with(reasons: Sequence[str], part: str) -> FrameRecord:
    """A record with some failures."""
    return FrameRecord(1, part, 0, 0, "", 0, [], [PieceRecord(n, 0, [], reason) for n, reason in enumerate(reasons)])


reasons = st.lists(st.sampled_from(["", "size", "count"]), max_size=4)


@given(reasons, reasons)
def test_of_two_records_the_one_with_fewer_failures_counts(old: list[str], new: list[str]) -> None:
    """A retry never makes a frame worse, and of equals the later is taken."""
    before, after = record_with(old, "old"), record_with(new, "new")
    best = better_record(before, after)
    assert len(best.failed) == min(len(before.failed), len(after.failed))
    assert best is after or len(before.failed) < len(after.failed)
    assert better_record(None, after) is after


@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate"])
def test_a_full_disk_is_a_storage_error_and_loses_no_finished_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whichever call fails, what was journaled before is adopted by the next life."""
    run = RunDir(tmp_path)
    part = PartWriter(run, 3, SHA)
    record = write_frame(part, 4, content(4))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    part.write(b"some")
    monkeypatch.setattr("pipeline.task.part.os." + call, full)
    with pytest.raises(StorageError, match=r"000003\.0\.part: No space left"):
        part.abandon_frame() if call == "ftruncate" else write_frame(part, 5, content(5))
    monkeypatch.undo()
    part.close()
    assert adopted_records(run, 3, SHA, WANTED) == [record]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that takes fewer bytes than given is repeated for the rest."""
    run = RunDir(tmp_path)
    part = PartWriter(run, 3, SHA)
    real = os.write
    monkeypatch.setattr("pipeline.task.part.os.write", lambda fd, data: real(fd, bytes(data[:3])))
    records = [write_frame(part, 4, content(4))]
    monkeypatch.undo()
    part.close()
    assert adopted_records(run, 3, SHA, WANTED) == records


def test_a_kill_at_any_line_loses_at_most_the_open_frame(tmp_path: Path) -> None:
    """After SIGKILL anywhere, the next life adopts the frames that were closed, each with its true bytes."""

    def action(root: Path) -> None:
        part = PartWriter(RunDir(root), 3, SHA)
        for frame in (4, 5, 6):
            write_frame(part, frame, content(frame))
            (root / "closed").write_text(str(frame))

    code, lines = run_and_kill(lambda: action(tmp_path / "0"), 0)
    assert code == DONE
    for at in range(1, lines, 3):
        root = tmp_path / str(at)
        assert run_and_kill(lambda root=root: action(root), at)[0] == KILLED
        adopted = adopt_frames(RunDir(root), 3, SHA, WANTED)
        last = int((root / "closed").read_text()) if (root / "closed").exists() else 3
        assert list(adopted.frames) in [list(range(4, last + 1)), list(range(4, last + 2))]
        for frame, record in zip(adopted.frames, read_frames(RunDir(root), 3, adopted.frames.values()), strict=True):
            assert record.sha256 == hashlib.sha256(content(frame)).hexdigest()
        more = PartWriter(RunDir(root), 3, SHA)
        write_frame(more, 7, content(7))
        more.close()
        assert 7 in adopt_frames(RunDir(root), 3, SHA, WANTED).frames
