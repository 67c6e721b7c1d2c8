"""Zips of NBIA on scratch: one download for all who want it, gone in time, and never trusted by a later life."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nbia_kit import (
    FILES,
    OLD_ZIP,
    PASSING,
    UID,
    V1,
    V4,
    ZIP,
    Bench,
    haul,
    one,
    soon,
)
from run_kit import make_dicom
from zip_kit import make_series_zip

from pipeline.errors import InterruptedRunError, ItemError, StorageError
from pipeline.model import Entry
from pipeline.sources import tcia_fetch
from pipeline.sources.verified import fetch_verified
from pipeline.transport.client import DOUBTS
from tests.transport.server import Request, answer, chunked


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench with a site of its own."""
    made = Bench(tmp_path)
    yield made
    made.close()


# -- cut items and sharing --------------------------------------------------------------------------------------------

MANY = {f"{n:08d}.dcm": make_dicom(UID, f"{UID}.{n}", pixels=100 * (n % 5 + 1)) for n in range(1, 24)}


def test_pieces_of_a_cut_item_share_one_download_and_give_all_once(bench):
    """Eight threads ask for pieces of one item: one request; each file is in one piece, in the order of the UIDs."""
    item = bench.make_item(MANY)
    entries = tuple(one(item, piece, 8) for piece in range(8))
    bench.server.on(V4, chunked(make_series_zip(MANY)))
    fetcher = bench.fetcher(entries)
    names: dict[int, list[str]] = {}

    def work(entry: Entry) -> None:
        folder = bench.root / str(entry.piece)
        folder.mkdir()
        bodies = fetcher.list_bodies(entry, soon())
        got = [fetch_verified(fetcher, body, folder / str(n), soon()) for n, body in enumerate(bodies)]
        names[entry.piece] = [verified.file.name for verified in got]
        fetcher.release(entry)

    threads = [threading.Thread(target=work, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.server.requests) == 1
    assert [name for piece in range(8) for name in names[piece]] == sorted(f"{UID}.{n}.dcm" for n in range(1, 24))
    assert bench.scratch() == []


def test_pieces_are_the_same_whatever_the_zip_looks_like(bench):
    """A task for piece 0 and another one for piece 1 get zips of other names and order: they fit together."""
    item = bench.make_item(MANY)
    keys = []
    for piece in range(3):
        data = list(MANY.values())
        random.Random(piece).shuffle(data)
        bench.server.on(V4, chunked(make_series_zip({f"{n:08d}.dcm": each for n, each in enumerate(data)})))
        keys += [body.cache_key for body in bench.fetcher().list_bodies(one(item, piece, 3), soon())]
    assert len(set(keys)) == len(keys) == len(MANY)


def test_the_zip_stays_until_the_task_s_last_piece_and_few_wait(bench):
    """Between pieces it is kept; of zips that only wait, no more than two are; all go at the end."""
    series = []
    for number in range(4):
        uid = f"{UID}.{number}"
        files = {f"{n}.dcm": make_dicom(uid, f"{uid}.{n}") for n in range(4)}
        series.append((bench.make_item(files, uid), make_series_zip(files)))
    entries = tuple(Entry(n, 0, piece, 2, item) for n, (item, _) in enumerate(series) for piece in range(2))
    fetcher = bench.fetcher(entries)
    requests = 0
    for number, (_, data) in enumerate(series):
        bench.server.on(V4, chunked(data))
        haul(bench, fetcher, entries[2 * number])
        requests += len(bench.server.requests)
        assert len(bench.scratch()) == min(number + 1, 2)
    assert requests == 4
    bench.server.on(V4, chunked(series[3][1]))
    haul(bench, fetcher, entries[7])
    assert bench.server.requests == []
    assert bench.scratch() == [".zip"]
    bench.server.on(V4, chunked(series[0][1]))
    haul(bench, fetcher, entries[1])  # had to make room: fetched again
    assert len(bench.server.requests) == 1
    fetcher.close()
    assert bench.scratch() == []


def test_all_pieces_fail_by_one_trial_and_each_may_be_tried_again(bench):
    """Pieces of an item that cannot be had do not each wear the site out; a second round is a new trial."""
    bench.server.on(V4, PASSING["short"])
    entries = tuple(one(bench.item, piece, 3) for piece in range(3))
    fetcher = bench.fetcher(entries)
    for entry in entries:
        with pytest.raises(ItemError, match="2 of 3 images"):
            fetcher.list_bodies(entry, soon())
    assert len(bench.server.requests) == DOUBTS
    bench.server.on(V4, chunked(ZIP))
    assert sum(len(haul(bench, fetcher, entry)) for entry in entries) == 3
    assert len(bench.server.requests) == 1


def test_threads_that_wait_for_a_failing_zip_all_hear_of_it(bench):
    """Bodies of one entry that wait together do not each begin anew."""
    bench.server.on(V4, chunked(ZIP))
    fetcher = bench.fetcher()
    bodies = fetcher.list_bodies(one(bench.item), soon())
    bench.known.update(dict.fromkeys((body.cache_key for body in bodies), True))
    fetcher.release(one(bench.item))
    assert fetcher.list_bodies(one(bench.item), soon()) == bodies
    gate = threading.Event()

    def late(request: Request, sock: Any) -> bool:
        gate.wait(20)
        return answer(403)(request, sock)

    bench.server.on(V4, late)
    bench.server.on(V1, answer(403))
    errors: list[str] = []

    def work(number: int) -> None:
        try:
            fetcher.fetch(bodies[number], bench.root / f"raw-{number}", soon())
        except ItemError as error:
            errors.append(error.reason)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    waiting = fetcher._store._changed._waiters  # type: ignore[attr-defined]  # of the condition: who waits on it
    until = soon()
    while len(waiting) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join()
    assert errors == ["forbidden"] * 3
    assert bench.asked() == [V4, V1]


def test_no_more_zips_are_unpacked_at_a_time_than_there_are_processors(bench, monkeypatch):
    """The others wait, and give up when they are told to stop or their time is over."""
    bench.server.on(V4, chunked(ZIP))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    fetcher = bench.fetcher()
    gate, lock = threading.Event(), threading.Lock()
    now: list[int] = []
    real = tcia_fetch.check_series

    def check(*args: Any, **options: Any) -> Any:
        with lock:
            now.append(1)
        gate.wait(20)
        return real(*args, **options)

    monkeypatch.setattr(tcia_fetch, "check_series", check)
    items = [msgspec.structs.replace(bench.item, id=f"{UID}.{n}") for n in range(2)]
    threads = [threading.Thread(target=fetcher.list_bodies, args=(one(item), soon())) for item in items]
    for thread in threads:
        thread.start()
    until = soon()
    while len(now) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    with pytest.raises(ItemError, match="time for this item is over"):
        fetcher.list_bodies(one(bench.item), time.monotonic() + 0.6)
    assert len(now) == 2
    gate.set()
    for thread in threads:
        thread.join()
    assert len(fetcher.list_bodies(one(bench.item), soon())) == 3


# -- lives ------------------------------------------------------------------------------------------------------------


def test_a_later_life_with_all_files_on_scratch_downloads_nothing(bench):
    """The record of the zip says what was in it; where a file is missing, the zip is fetched for it."""
    bench.server.on(V4, chunked(ZIP))
    first = bench.fetcher()
    bodies = first.list_bodies(one(bench.item), soon())
    first.close()
    assert bench.scratch() == []
    bench.server.on(V4, chunked(OLD_ZIP))
    bench.known = dict.fromkeys((body.cache_key for body in bodies), True)
    later = bench.fetcher()
    assert later.list_bodies(one(bench.item), soon()) == bodies
    later.release(one(bench.item))
    assert bench.server.requests == []
    del bench.known[bodies[1].cache_key]
    again = bench.fetcher()
    assert again.list_bodies(one(bench.item), soon()) == bodies
    assert len(bench.server.requests) == 1
    assert fetch_verified(again, bodies[1], bench.root / "raw", soon()).file.name == f"{UID}.2.dcm"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b'{"uid":"1.2","files":[]}'),
        lambda path: path.write_bytes(path.read_bytes().replace(UID.encode(), b"9.9")),
        lambda path: path.write_bytes(b'{"uid":"' + UID.encode() + b'","files":[["../x","' + b"0" * 32 + b'",5]]}'),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b"\xff\xfe"),
    ],
)
def test_a_record_that_is_not_right_is_not_used(bench, damage: Callable[[Path], object]):
    """Torn, foreign or made up: the zip is fetched."""
    bench.server.on(V4, chunked(ZIP))
    first = bench.fetcher()
    first.list_bodies(one(bench.item), soon())
    first.close()
    (record,) = (bench.root / "sources").glob("*.json")
    damage(record)
    fetcher = bench.fetcher(known=lambda _: True)
    assert len(fetcher.list_bodies(one(bench.item), soon())) == 3
    assert len(bench.server.requests) == 2


def test_a_series_that_changed_since_it_was_listed_is_not_mixed(bench):
    """A body that a record names and the new zip lacks fails the item; the next listing has the new content."""
    bench.server.on(V4, chunked(ZIP))
    first = bench.fetcher()
    bodies = first.list_bodies(one(bench.item), soon())
    first.close()
    changed = FILES | {"1-2.dcm": make_dicom(UID, f"{UID}.2", seed=5)}
    bench.server.on(V4, chunked(make_series_zip(changed)))
    later = bench.fetcher(known=lambda _: True)
    assert later.list_bodies(one(bench.item), soon()) == bodies
    with pytest.raises(ItemError) as caught:
        later.fetch(bodies[1], bench.root / "raw", soon())
    assert (caught.value.reason, caught.value.transient) == ("checksum", True)
    later.release(one(bench.item))
    assert bench.scratch() == []
    assert [body.file.etag for body in bench.fetcher().list_bodies(one(bench.item), soon())] == sorted_md5s(changed)


def sorted_md5s(files: dict[str, bytes]) -> list[str]:
    """MD5s of files by name."""
    return [hashlib.md5(files[name]).hexdigest() for name in sorted(files)]


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_zip_that_changes_on_scratch_is_never_handed_out(bench, how):
    """It was right when it was checked: the item fails, may be tried again, and the zip does not stay."""
    bench.server.on(V4, chunked(ZIP))
    entries = (one(bench.item, 0, 2), one(bench.item, 1, 2))
    fetcher = bench.fetcher(entries)
    bodies = fetcher.list_bodies(entries[0], soon())
    (path,) = (bench.root / "sources").glob("*.zip")
    data = bytearray(path.read_bytes())
    for place in range(100, len(data) - 800, 97):
        data[place] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if how == "flip" else data[:200])
    with pytest.raises(ItemError) as caught:
        [fetch_verified(fetcher, body, bench.root / "raw", soon()) for body in bodies]
    assert (caught.value.reason, caught.value.transient) == ("checksum", True)
    fetcher.release(entries[0])
    assert bench.scratch() == []
    assert len(haul(bench, fetcher, entries[1])) + len(bodies) == 3


def test_a_stop_ends_downloads_and_waiting_at_once(bench):
    """Whoever downloads and whoever waits for it are told, and no half zip is left."""
    asked = threading.Event()

    def hang(request: Request, sock: Any) -> bool:
        asked.set()
        return bench.server.hang()

    bench.server.on(V4, hang)
    fetcher = bench.fetcher()
    ended: list[type[BaseException]] = []

    def work(piece: int) -> None:
        try:
            fetcher.list_bodies(one(bench.item, piece, 2), soon())
        except BaseException as error:  # noqa: BLE001 - what it is, is the test
            ended.append(type(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    assert asked.wait(20)
    began = time.monotonic()
    bench.stop.set()
    for thread in threads:
        thread.join(20)
    assert time.monotonic() - began < 5
    assert ended == [InterruptedRunError] * 2
    assert bench.scratch() == []


def test_full_scratch_is_a_storage_error(bench, monkeypatch):
    """It is everybody's trouble, and no item's."""
    real = os.write

    def full(fd: int, data: Any) -> int:
        if len(data) > 100:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    bench.server.on(V4, chunked(ZIP))
    fetcher = bench.fetcher()
    monkeypatch.setattr("pipeline.transport.download.os.write", full)
    with pytest.raises(StorageError, match="No space left"):
        fetcher.list_bodies(one(bench.item), soon())
    assert bench.scratch() == []
