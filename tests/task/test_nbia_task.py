"""NBIA in a task: zips come and go on scratch, lives follow one another, no archive shows by which way files came."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_kit import MadeRun, do_shard, make_plan, make_series

from pipeline.cli.task import do_shard as do_task
from pipeline.errors import ItemError
from pipeline.model import Entry, Item, NbiaLocation
from pipeline.records import Receipt
from pipeline.rundir import RunDir
from pipeline.settings import Sources, SourceTcia
from pipeline.sizes import DICOM_BYTES, entry_bytes, zip_bytes
from pipeline.sources.base import Body
from pipeline.sources.fetch import RoutedFetcher
from pipeline.task.cache import ScratchCache
from pipeline.task.detail import DetailLog
from pipeline.task.intake import EntryDone, Fatal, FrameWork, Intake, Probed
from pipeline.task.shard import describe_life
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy
from tests.sources.zip_kit import make_series_zip
from tests.transport.server import Request, Server, Step, answer, chunked

QUICK = Policy(attempts=2, deadline=60, base=0.001, slow_base=0.002, cap=0.01, stall=10, min_rate=1)
PATH = "/s/v4/getImage"


class Nbia(Server):
    """Series by UID; `steps` answer in place of the zip, one after the other, by UID."""

    def __init__(self, counts: list[int], *, pixels: int = 600) -> None:
        super().__init__()
        made = [make_series(number, files, pixels) for number, files in enumerate(counts)]
        where = NbiaLocation(f"{self.base}/s")
        self.items = [msgspec.structs.replace(item, location=where) for item, _ in made]
        self.bodies = {item.id: bodies for item, bodies in made}
        self.steps: dict[str, list[Step]] = {}
        self.on(PATH, self._answer)
        self.on("/s/v1/getImageWithMD5Hash", answer(404))

    def _answer(self, request: Request, sock: Any) -> bool:
        uid = request.target.partition("SeriesInstanceUID=")[2].partition("&")[0]
        if self.steps.get(uid):
            return self.steps[uid].pop(0)(request, sock)
        return chunked(self.zip(uid))(request, sock)

    def zip(self, uid: str) -> bytes:
        return make_series_zip({f"1-{n}.dcm": data for n, data in enumerate(reversed(self.bodies[uid]))})

    def asked_for(self, item: Item) -> int:
        """How often a series was asked for."""
        return sum(f"UID={item.id}&" in request.target for request in self.requests)


@pytest.fixture
def sites() -> Iterator[list[Nbia]]:
    """Sites that end with the test."""
    made: list[Nbia] = []
    yield made
    for site in made:
        site.close()


class Bench:
    """An intake on a site."""

    def __init__(self, root: Path, site: Nbia, entries: list[Entry], *, connections: int = 3) -> None:
        self.stop = threading.Event()
        self.pool = ConnectionPool(connections, environ={})
        self.cache = ScratchCache(root / "scratch", "s")
        self.log = DetailLog(root / "log.zst")
        self.sources = self.cache.folder / "sources"
        self.fetcher = RoutedFetcher(
            Sources(tcia=SourceTcia(base_url=site.base)), Transport(self.pool, QUICK, stop=self.stop), self.sources,
            entries=entries, known=self.cache.find, stop=self.stop,
        )  # fmt: skip
        self.events: queue.SimpleQueue[EntryDone | Probed | Fatal] = queue.SimpleQueue()
        self.intake = Intake(
            self.fetcher, self.cache, self.log, connections=connections, item_deadline=60, stop=self.stop,
            report=self.events.put,
        )  # fmt: skip

    def run(self, entries: list[Entry]) -> FrameWork:
        work = FrameWork(0, entries)
        self.intake.start(work)
        for _ in entries:
            event = self.events.get(timeout=20)
            assert isinstance(event, EntryDone), event
        return work

    def zips(self) -> int:
        return len(list(self.sources.glob("*.zip")))

    def end(self, *, keep: bool = True) -> None:
        self.intake.close()
        self.fetcher.close()
        self.log.close()
        self.cache.close(keep=keep)
        self.pool.close()


def entries_of(items: list[Item], pieces: int = 1) -> list[Entry]:
    """Manifest entries of items, all cut into so many pieces."""
    return [Entry(n, 0, piece, pieces, item) for n, item in enumerate(items) for piece in range(pieces)]


def test_zips_are_gone_when_their_entries_are_settled(tmp_path, sites):
    """Well or not: what is left on scratch are the verified files, and records."""
    sites.append(site := Nbia([3, 2, 4]))
    site.steps[site.items[1].id] = [answer(400, b"... has not been granted the access to image ...")]
    entries = entries_of(site.items)
    bench = Bench(tmp_path, site, entries)
    work = bench.run(entries)
    assert [each.failure.reason if each.failure else "" for each in work.entries] == ["", "forbidden", ""]
    assert bench.zips() == 0
    files = work.job().pieces[0].files
    assert [Path(file.local).read_bytes() for file in files] == site.bodies[site.items[0].id]
    bench.end()


def test_a_later_life_uses_what_is_on_scratch_and_asks_the_site_for_nothing(tmp_path, sites):
    """Raw files are found by their content; a file that changed costs one download of its series."""
    sites.append(site := Nbia([3, 5]))
    entries = entries_of(site.items)
    first = Bench(tmp_path, site, entries)
    first.run(entries)
    first.end()
    site.requests.clear()
    second = Bench(tmp_path, site, entries)
    work = second.run(entries)
    assert site.requests == []
    assert second.intake.reused == sum(item.bytes for item in site.items)
    second.end()
    Path(work.job().pieces[1].files[2].local).write_bytes(b"?")
    third = Bench(tmp_path, site, entries)
    work = third.run(entries)
    assert [each.failure for each in work.entries] == [None, None]
    assert [site.asked_for(item) for item in site.items] == [0, 1]
    assert third.intake.delivered == 1
    third.end(keep=False)
    assert not list((tmp_path / "scratch").iterdir())


def test_pieces_of_a_cut_item_cost_one_download(tmp_path, sites):
    """In frames one after the other, as the task does them; the zip is gone with the last."""
    sites.append(site := Nbia([12]))
    entries = entries_of(site.items, 3)
    bench = Bench(tmp_path, site, entries)
    names: list[str] = []
    for number, entry in enumerate(entries):
        work = bench.run([entry])
        names += [file.name for file in work.job().pieces[0].files]
        assert bench.zips() == (number < 2)
    assert names == sorted(f"{site.items[0].id}.{n + 1}.dcm" for n in range(12))
    assert len(site.requests) == 1
    bench.end()


def test_a_probe_leaves_nothing(tmp_path, sites):
    """Whether it brings its body or not, and the item's own turn comes later all the same."""
    sites.append(site := Nbia([2, 2]))
    entries = entries_of(site.items)
    site.steps[site.items[1].id] = [answer(500)] * 2
    bench = Bench(tmp_path, site, entries)
    bench.intake.probe(entries)
    told = {bench.events.get(timeout=20) for _ in entries}
    assert sum(isinstance(each, Probed) and each.failure is None for each in told) >= 1
    assert bench.zips() == 0
    assert [each.failure for each in bench.run(entries).entries] == [None, None]
    assert bench.zips() == 0
    bench.end()


def test_more_items_than_connections_never_wait_for_each_other(tmp_path, sites):
    """Zips are brought by the threads that read from them: there is always one that can go on."""
    sites.append(site := Nbia([2] * 30))
    entries = entries_of(site.items, 2)
    bench = Bench(tmp_path, site, entries, connections=1)
    work = bench.run(entries)
    assert not any(each.failure for each in work.entries)
    assert site.gauge.peak == 1
    assert bench.zips() == 0
    bench.end()


def test_release_is_called_once_for_each_listing_that_returned(tmp_path, sites):
    """Also where a body fails; not where the listing did."""
    sites.append(site := Nbia([3, 3, 3]))
    calls: list[tuple[str, int]] = []

    class Counting:
        def list_bodies(self, entry: Entry, deadline: float) -> list[Body]:
            if entry.number == 0:
                raise ItemError("withdrawn", "gone")
            calls.append(("list", entry.number))
            return list(bench.fetcher.list_bodies(entry, deadline))

        def fetch(self, body: Body, path: Path, deadline: float) -> Any:
            if body.entry.number == 1:
                raise ItemError("checksum", "bad")
            return bench.fetcher.fetch(body, path, deadline)

        def release(self, entry: Entry) -> None:
            calls.append(("release", entry.number))
            bench.fetcher.release(entry)

    entries = entries_of(site.items)
    bench = Bench(tmp_path, site, entries)
    intake = Intake(
        Counting(), bench.cache, bench.log, connections=3, item_deadline=60, stop=bench.stop, report=bench.events.put
    )
    intake.start(FrameWork(0, entries))
    for _ in entries:
        bench.events.get(timeout=20)
    intake.close()
    assert sorted(calls) == [("list", 1), ("list", 2), ("release", 1), ("release", 2)]
    bench.end()


def test_room_on_scratch_is_kept_for_the_zip():
    """As large as its images, whole for each piece; and where no size is stated, as for one that is assumed."""
    item = make_series(0, 1)[0]
    item = msgspec.structs.replace(item, bytes=10**9, location=NbiaLocation("x"))
    assert entry_bytes(Entry(0, 0, 0, 1, item)) == 10**9 + zip_bytes(item) >= 2 * 10**9
    assert entry_bytes(Entry(0, 0, 0, 4, item)) == 10**9 // 4 + zip_bytes(item)
    unknown = msgspec.structs.replace(item, files=40, bytes=-1)
    assert entry_bytes(Entry(0, 0, 0, 4, unknown)) == 10 * DICOM_BYTES + zip_bytes(unknown) >= 50 * DICOM_BYTES


def lying(folder: Path) -> int:
    """Bytes in a folder where other threads move files meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_lies_on_scratch_is_within_what_was_planned(tmp_path, sites, pieces, monkeypatch):
    """Of series that do not compress, zip and images lie there at one time; looked at after each body."""
    sites.append(site := Nbia([6, 5], pixels=60_000))
    entries = entries_of(site.items, pieces)
    bench = Bench(tmp_path, site, entries, connections=1)
    seen = []
    fetch = bench.fetcher.fetch

    def look(*args: Any) -> Any:
        got = fetch(*args)
        seen.append(lying(tmp_path / "scratch"))
        return got

    monkeypatch.setattr(bench.fetcher, "fetch", look)
    assert not any(work.failure for work in bench.run(entries).entries)
    assert max(seen) <= sum(map(entry_bytes, entries))
    if pieces == 1:
        assert max(seen) > 3 * max(item.bytes for item in site.items) // 2
    bench.end()


# -- whole tasks ------------------------------------------------------------------------------------------------------


def plan(root: Path, items: list[Item], **task: Any) -> RunDir:
    """Plan a run whose tasks do their work below `root`."""
    made = make_plan(
        root,
        items,
        task={"scratch": str(root / "scratch"), "cores": 1, "second_round_wait": 0, "retry_base": 0.001, **task},
        archive={"cut_bytes": 65536, "group_bytes": 5000, "block_bytes": 65536},
        shards={"count": 1},
    )
    assert made.run is not None
    (root / "scratch").mkdir(exist_ok=True)
    return made.run


def left(root: Path) -> list[str]:
    """What lies on scratch."""
    return sorted(str(path.relative_to(root / "scratch")) for path in (root / "scratch").rglob("*") if path.is_file())


def part_hash(run: RunDir, receipt: Receipt) -> list[str]:
    """Hashes of the frames of a shard, as its parts have them."""
    return [hashlib.sha256((run.parts_folder(0) / use.name).read_bytes()).hexdigest() for use in receipt.parts]


def test_the_route_leaves_no_trace_in_the_archive(tmp_path, sites):
    """The same series by way of IDC and by way of NBIA, one of them cut: the same bytes."""
    counts, pixels = [3, 40, 1, 2], 4000
    sites.append(site := Nbia(counts, pixels=pixels))
    for folder in ("idc", "nbia"):
        (tmp_path / folder).mkdir()
    made = MadeRun(tmp_path / "idc", counts, pixels=pixels, shards={"count": 1})
    for bodies in made.fetcher.bodies.values():  # IDC lists by key; here that is the order of the UIDs
        bodies.sort(key=lambda data: data.split(b"\x08\x00\x18\x00UI")[1][2:40])
    (idc,) = made.do()
    run = plan(tmp_path / "nbia", site.items)
    nbia = do_task(run, 0, describe_life(0, {}), 2)
    assert (nbia.state, nbia.archived, nbia.files) == (idc.state, idc.archived, idc.files) == ("complete", 9, 46)
    assert part_hash(run, nbia) == part_hash(made.run, idc)
    assert [site.asked_for(item) for item in site.items] == [1] * 4
    assert left(tmp_path / "nbia") == []


def test_a_short_zip_fails_its_item_and_no_other_and_passes_in_the_second_round(tmp_path, sites):
    """A fault that lasts through the first round's tries is over in the second."""
    sites.append(site := Nbia([3, 3, 3]))
    uid = site.items[1].id
    short = chunked(make_series_zip({"1-1.dcm": site.bodies[uid][0]}))
    site.steps[uid] = [short] * 3
    receipt = do_task(plan(tmp_path, site.items), 0, describe_life(0, {}), 2)
    assert (receipt.state, receipt.files) == ("complete", 9)
    assert site.asked_for(site.items[1]) == 4


def test_what_cannot_be_had_is_in_the_receipt(tmp_path, sites):
    """Nothing is reported as done that was not saved: a series of wrong MD5s for ever, and one that was withdrawn."""
    sites.append(site := Nbia([2, 2, 2]))
    wrong = make_series_zip(dict(zip("ab", site.bodies[site.items[0].id], strict=True)), md5s=b"Filename,MD5Hash\n"
                            + b"a,%032d\nb,%032d\n" % (1, 2))  # fmt: skip
    site.steps[site.items[0].id] = [chunked(wrong)] * 20
    site.steps[site.items[2].id] = [answer(400, b"series is not in public domain.")] * 20
    receipt = do_task(plan(tmp_path, site.items), 0, describe_life(0, {}), 2)
    assert [(failed.id, failed.reason) for failed in receipt.failed] == [
        (site.items[0].id, "checksum"),
        (site.items[2].id, "withdrawn"),
    ]
    assert (receipt.archived, left(tmp_path)) == (1, [])


def test_a_task_that_is_killed_in_mid_download_leaves_its_cache_folder_only_and_the_next_ends_well(tmp_path, sites):
    """SIGKILL: half a zip stays below the shard's folder on scratch, and the next life fetches the series again."""
    sites.append(site := Nbia([3, 6, 2]))
    asked = threading.Event()
    data = site.zip(site.items[1].id)

    def half(_: Request, sock: Any) -> bool:
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(data) + data[: len(data) // 2]
        )
        asked.set()
        return site.hang()

    site.steps[site.items[1].id] = [half]
    run = plan(tmp_path, site.items)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do_task(run, 0, describe_life(0, {}), 2)
            code = 0
        finally:
            os._exit(code)
    assert asked.wait(60)
    until = time.monotonic() + 30
    while not any(name.endswith(".part") for name in left(tmp_path)) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert any(name.endswith(".part") for name in left(tmp_path))
    (folder,) = (tmp_path / "scratch").iterdir()
    assert len(list(folder.iterdir())) == 1  # the shard's own
    receipt = do_task(run, 0, describe_life(0, {}), 2)
    assert (receipt.state, receipt.files) == ("complete", 11)
    assert site.asked_for(site.items[1]) == 2
    assert left(tmp_path) == []


def test_idc_and_nbia_share_a_shard(tmp_path, sites):
    """Items of both sources in one run; each comes from where its manifest says."""
    sites.append(site := Nbia([2]))
    made = MadeRun(tmp_path, [2, 3], shards={"count": 1})
    both = [site.items[0], made.items[1]]
    root = tmp_path / "both"
    root.mkdir()
    run = plan(root, both)

    class Both:
        """The made-up IDC behind the real routes."""

        nbia_threads = 0

        def __init__(self, nbia: RoutedFetcher) -> None:
            self.nbia = nbia

        def __getattr__(self, name: str) -> Any:
            def call(first: Any, *rest: Any) -> Any:
                entry = first.entry if isinstance(first, Body) else first
                if isinstance(entry.item.location, NbiaLocation):
                    return getattr(self.nbia, name)(first, *rest)
                return getattr(made.fetcher, name)(first, *rest) if name != "release" else None

            return call

    with ConnectionPool(2, environ={}) as pool:
        routed = RoutedFetcher(Sources(), Transport(pool, QUICK), root / "sources")
        receipt = do_shard(run, 0, Both(routed), root / "scratch")  # type: ignore[arg-type]
        routed.close()
    assert (receipt.state, receipt.files) == ("complete", 5)
