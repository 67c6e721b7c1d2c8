"""Intake: what goes wrong with one item stays with that item; what is everyone's trouble ends the task."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_kit import FakeFetcher, interrupt, make_dicom, make_series, refuse

from pipeline.errors import REASONS, ConfigError, CredentialsError, ItemError, StorageError
from pipeline.model import Entry, RawFile
from pipeline.records import FailedItem
from pipeline.sizes import DICOM_BYTES, entry_bytes
from pipeline.sources.base import Body
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.intake import (
    EntryDone,
    Fatal,
    FrameWork,
    Intake,
    find_duplicate,
    frame_size,
    order_files,
)


class Bench:
    """An intake with a fake site: `counts` files for each item, all items in one frame."""

    def __init__(self, root: Path, counts: list[int], *, connections: int = 3) -> None:
        made = [make_series(number, files) for number, files in enumerate(counts)]
        self.items = [item for item, _ in made]
        self.fetcher = FakeFetcher({item.id: bodies for item, bodies in made})
        self.entries = [Entry(n, 0, 0, 1, item) for n, item in enumerate(self.items)]
        self.scratch = root / "scratch"
        self.log_path = root / "log.zst"
        self.stop = threading.Event()
        self.connections = connections
        self.begin()

    def begin(self) -> None:
        """A new life on the same scratch."""
        self.cache = ScratchCache(self.scratch, "s")
        self.log = DetailLog(self.log_path)
        self.events: queue.SimpleQueue[EntryDone | Fatal] = queue.SimpleQueue()
        self.intake = Intake(
            self.fetcher, self.cache, self.log, connections=self.connections, item_deadline=60, stop=self.stop,
            report=self.events.put,
        )  # fmt: skip

    def run(self, entries: list[Entry] | None = None) -> FrameWork:
        """Bring a frame, and wait until all its entries are settled."""
        work = FrameWork(0, entries or self.entries)
        self.intake.start(work)
        for _ in work.entries:
            event = self.events.get(timeout=20)
            assert isinstance(event, EntryDone), event
        self.end()
        assert self.events.empty()
        return work

    def fatal(self) -> BaseException:
        """Bring a frame that ends in what is everyone's trouble."""
        self.intake.start(FrameWork(0, self.entries))
        while True:
            event = self.events.get(timeout=20)
            if isinstance(event, Fatal):
                self.stop.set()
                self.end()
                return event.error

    def end(self, *, keep: bool = True) -> None:
        self.intake.close()
        self.log.close()
        self.cache.close(keep=keep)

    def raw_files(self) -> list[str]:
        """What lies in the frame's folder on scratch."""
        return sorted(path.name for path in (self.scratch / "s").glob("frame-*/*"))


def reasons(work: FrameWork) -> list[str]:
    """The reason of each entry, empty where it is well."""
    return [entry.failure.reason if entry.failure else "" for entry in work.entries]


def test_whole_items_come_in_the_archive_s_order(tmp_path: Path) -> None:
    """Files are verified, named by their SOPInstanceUID, sorted by that name, and counted."""
    bench = Bench(tmp_path, [12, 1, 3])
    work = bench.run()
    assert reasons(work) == ["", "", ""]
    job = work.job()
    for item, piece in zip(bench.items, job.pieces, strict=True):
        assert piece.folder == item.path
        names = [file.name for file in piece.files]
        assert names == sorted(f"{item.id}.{n + 1}.dcm" for n in range(item.files))
        assert {Path(file.local).read_bytes() for file in piece.files} == set(bench.fetcher.bodies[item.id])
        assert all(file.chain == "A2" and file.route == "idc:test" for file in piece.files)
    assert bench.intake.downloaded == sum(item.bytes for item in bench.items)
    assert sorted(work.keys()) == sorted(f"{i.location.uuid}/{n}" for i in bench.items for n in range(i.files))
    assert bench.log.counts["verified"] == 16


def test_a_piece_of_a_cut_item_keeps_the_listing_s_order(tmp_path: Path) -> None:
    """Pieces together give the listing, whatever the names are."""
    bench = Bench(tmp_path, [12])
    order = []
    for piece in range(3):
        work = bench.run([Entry(0, piece, piece, 3, bench.items[0])])
        order += [file.name for file in work.job().pieces[0].files]
        bench.begin()
    assert order == [f"{bench.items[0].id}.{n + 1}.dcm" for n in range(12)]


@pytest.mark.parametrize("where", ["list", "fetch"])
@pytest.mark.parametrize("reason", sorted(set(REASONS) - {"internal"}))
def test_one_bad_item_never_stops_the_others(tmp_path: Path, where: str, reason: str) -> None:
    """Its reason is kept; all others are whole."""
    bench = Bench(tmp_path, [2, 3, 4])
    faults: dict[str, Any] = bench.fetcher.list_faults if where == "list" else bench.fetcher.faults
    faults[bench.items[1].id] = refuse(reason, transient=True)
    work = bench.run()
    assert reasons(work) == ["", reason, ""]
    failure = work.entries[1].failure
    assert failure is not None
    assert (failure.message, failure.transient) == (f"made up: {reason}", True)
    pieces = work.job().pieces
    assert [len(piece.files) for piece in pieces] == [2, 0, 4]
    assert (pieces[1].record.reason, pieces[1].record.message, pieces[1].record.transient) == (
        reason,
        f"made up: {reason}",
        True,
    )


UNEXPECTED: list[Exception] = [
    ValueError("odd"), KeyError("x"), RecursionError("deep"), MemoryError("m"), OSError(errno.ECONNRESET, "reset"),
    UnicodeError("u"), AssertionError(), ValueError("\udcff\ud800"), StopIteration(), ValueError("x" * 1_000_000),
]  # fmt: skip


@pytest.mark.parametrize("where", ["list", "fetch"])
@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_an_unexpected_exception_is_an_internal_failure_with_its_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, error: Exception
) -> None:
    """The item may be tried again, the log has the traceback, and what is recorded can be written as JSON."""
    bench = Bench(tmp_path, [2, 3])

    def fault(*_: object) -> bytes:
        raise error

    faults: dict[str, Any] = bench.fetcher.list_faults if where == "list" else bench.fetcher.faults
    faults[bench.items[0].id] = fault
    with caplog.at_level(logging.ERROR, "medhaul.task"):
        work = bench.run()
    assert reasons(work) == ["internal", ""]
    failure = work.entries[0].failure
    assert failure is not None
    assert failure.transient
    assert type(error).__name__ in failure.message
    assert len(failure.message) < 3000
    traced = [record for record in caplog.records if record.exc_info]
    assert traced
    assert bench.items[0].id in traced[0].getMessage()
    record = work.job().pieces[0].record
    msgspec.json.encode(record)
    msgspec.json.encode(FailedItem(0, 0, "x", "p", failure.reason, failure.message, transient=True))


def test_a_site_that_serves_other_things_fails_only_that_item(tmp_path: Path) -> None:
    """Bytes that are not the whole DICOM of that series are refused, told by key, and do not stay on scratch."""
    bench = Bench(tmp_path, [2, 2, 2, 2, 1])
    ids = [item.id for item in bench.items]
    bench.fetcher.faults = {
        ids[0]: lambda _: b"<html>error</html>",
        ids[1]: lambda data: data[:-100],
        ids[2]: lambda _: make_dicom("1.2.3.4", "1.2.3.4.5"),
        ids[3]: lambda _: b"",
    }
    work = bench.run()
    assert reasons(work) == ["not-dicom", "truncated", "wrong-uid", "not-dicom", ""]
    for entry in work.entries[:4]:
        assert entry.failure is not None
        assert entry.failure.message.startswith(f"{entry.entry.item.location.uuid}/0000")
        assert not entry.failure.transient  # the site's own MD5 was right: it will send the same again
    assert len(bench.raw_files()) == 1


def test_damage_without_a_hash_from_the_site_may_pass(tmp_path: Path) -> None:
    """Where only the size could be compared, bad bytes may have been damaged on the way."""
    bench = Bench(tmp_path, [1])
    bench.fetcher.faults[bench.items[0].id] = lambda data: data[:-50]
    real = bench.fetcher.fetch
    bench.fetcher.fetch = lambda *a: real(*a)._replace(evidence=("size",))  # type: ignore[method-assign]
    failure = bench.run().entries[0].failure
    assert failure is not None
    assert failure.transient


def test_two_files_with_one_uid_are_told(tmp_path: Path) -> None:
    """They could not both be in the archive."""
    bench = Bench(tmp_path, [3, 2])
    bodies = bench.fetcher.bodies[bench.items[0].id]
    bodies[2] = bodies[0]
    work = bench.run()
    assert reasons(work) == ["duplicate", ""]
    assert work.entries[0].failure is not None
    assert f"{bench.items[0].id}.1" in work.entries[0].failure.message


def test_a_piece_without_files_is_told(tmp_path: Path) -> None:
    """A listing that leaves an entry nothing is a failure, never a silent success."""
    bench = Bench(tmp_path, [1, 1])
    bench.fetcher.bodies[bench.items[0].id] = []
    assert reasons(bench.run()) == ["empty", ""]


def test_after_a_failure_the_rest_of_an_item_is_not_asked_for(tmp_path: Path) -> None:
    """A thousand files of an item that has failed already are no use to anyone."""
    bench = Bench(tmp_path, [400, 1], connections=1)
    bench.fetcher.faults[bench.items[0].id] = refuse("checksum")
    assert reasons(bench.run()) == ["checksum", ""]
    assert len(bench.fetcher.fetched) == 2


def test_being_told_to_stop_is_no_failure(tmp_path: Path) -> None:
    """What is interrupted is neither failed nor done: nothing at all is reported of it."""
    bench = Bench(tmp_path, [2])
    entered = threading.Event()

    def fault(_: bytes) -> bytes:
        bench.stop.set()
        entered.set()
        return interrupt()

    bench.fetcher.faults[bench.items[0].id] = fault
    bench.intake.start(FrameWork(0, bench.entries))
    assert entered.wait(20)
    bench.end()
    assert bench.events.empty()


def test_after_a_stop_nothing_is_begun(tmp_path: Path) -> None:
    """Neither listings nor downloads start when the task is ending."""
    bench = Bench(tmp_path, [2, 2])
    bench.stop.set()
    bench.intake.start(FrameWork(0, bench.entries))
    bench.end()
    assert bench.fetcher.fetched == []
    assert bench.events.empty()


def raising(error: BaseException) -> Callable[..., Any]:
    """A fault that raises this."""

    def fault(*_: object, **__: object) -> bytes:
        raise error

    return fault


@pytest.mark.parametrize("where", ["list", "fetch"])
@pytest.mark.parametrize("error", [StorageError("full"), CredentialsError("no"), ConfigError("bad"), SystemExit(3)])
def test_what_is_not_one_item_s_trouble_is_fatal(tmp_path: Path, where: str, error: BaseException) -> None:
    """Full scratch, refused credentials, a bad proxy setting: the task gets the error itself."""
    bench = Bench(tmp_path, [2, 2])
    faults: dict[str, Any] = bench.fetcher.list_faults if where == "list" else bench.fetcher.faults
    faults[bench.items[0].id] = raising(error)
    assert bench.fatal() is error


@pytest.mark.parametrize("call", ["pipeline.sources.verified.os.replace", "pipeline.sources.verified.check_dicom"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_scratch_that_fails_is_fatal_as_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A full disk must not turn every item of the shard into an internal failure."""
    bench = Bench(tmp_path, [2, 2])
    monkeypatch.setattr(call, raising(OSError(number, os.strerror(number))))
    error = bench.fatal()
    assert isinstance(error, StorageError)
    assert os.strerror(number) in str(error)


def test_a_later_life_downloads_nothing_twice(tmp_path: Path) -> None:
    """Verified files on scratch are used again, after their bytes were read; a changed one is fetched anew."""
    bench = Bench(tmp_path, [5])
    bench.run()
    bench.fetcher.fetched.clear()
    changed = next((bench.scratch / "s").glob("frame-0/*"))
    changed.write_bytes(b"other")
    bench.begin()
    work = bench.run()
    assert reasons(work) == [""]
    assert len(bench.fetcher.fetched) == 1
    assert bench.intake.reused + bench.intake.downloaded == bench.items[0].bytes
    assert bench.log.counts["reused"] == 4
    assert {Path(f.local).read_bytes() for f in work.job().pieces[0].files} == set(
        bench.fetcher.bodies[bench.items[0].id]
    )


def test_a_listing_with_one_body_twice_fails_that_item_only(tmp_path: Path) -> None:
    """Two bodies that claim to be the same content do not get in each other's way beyond their item."""
    bench = Bench(tmp_path, [3, 2])
    real = bench.fetcher.list_bodies

    def doubled(entry: Entry, deadline: float) -> list[Body]:
        return real(entry, deadline) * (2 if entry.number == 0 else 1)

    bench.fetcher.list_bodies = doubled  # type: ignore[method-assign]
    work = bench.run()
    assert reasons(work) == ["duplicate", ""]


def raw(name: str, number: int = 0) -> RawFile:
    """A file with that name."""
    return RawFile(name, f"/{number}", 1, "s", "m", "k", (), "r", "A0")


@given(st.permutations([f"1.2.{n}.dcm" for n in range(8)]))
def test_the_order_of_arrival_never_shows(names: list[str]) -> None:
    """Files of a whole item are ordered by name alone, those of a piece by the listing alone."""
    files = [(position, raw(name)) for position, name in enumerate(names)]
    assert [file.name for file in order_files(files[::-1], cut=False)] == sorted(names)
    assert [file.name for file in order_files(files[::-1], cut=True)] == names


@given(st.lists(st.sampled_from("abcdef"), max_size=6))
def test_a_duplicate_is_found_if_there_is_one(names: list[str]) -> None:
    """Exactly when two names are equal, one of them is returned."""
    found = find_duplicate([(n, raw(name)) for n, name in enumerate(names)])
    assert bool(found) == (len(set(names)) < len(names))
    assert not found or names.count(found) > 1


def test_unknown_sizes_plan_as_what_is_assumed() -> None:
    """A source that states no size makes a frame neither negative nor free."""
    item = make_series(0, 1)[0]
    for size in (-1, 0):
        assert entry_bytes(Entry(0, 0, 0, 1, msgspec.structs.replace(item, bytes=size))) == DICOM_BYTES
    assert frame_size([Entry(0, 0, 0, 3, msgspec.structs.replace(item, files=-1))]).files == 1


def test_an_item_error_knows_only_the_words_of_the_table() -> None:
    """A reason that no table explains cannot be raised."""
    with pytest.raises(ValueError, match="unknown reason"):
        ItemError("mood", "x")
