"""The demo NBIA with all its faults, fetched from as a task does: the series byte for byte, or a reason that fits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NbiaDemo, build_nbia
from pipeline.demo.nbia_faults import NBIA_PASSING_KINDS
from pipeline.errors import ItemError
from pipeline.model import Entry, Item, NbiaLocation
from pipeline.settings import SourceTcia
from pipeline.sources.tcia_fetch import NbiaFetcher
from pipeline.sources.verified import fetch_verified
from pipeline.transport.client import DOUBTS, Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy

QUICK = Policy(attempts=3, deadline=60, base=0.001, slow_base=0.002, cap=0.01, stall=10, min_rate=1)


class Bench:
    """A site and a transport to it."""

    def __init__(self, demo: NbiaDemo, site: NbiaSite, transport: Transport) -> None:
        self.demo = demo
        self.site = site
        self.transport = transport
        self.base = f"{site.url}/nbia-api/services"

    def item(self, uid: str) -> Item:
        one = self.demo.archive.find(uid)
        return Item(uid, "p", len(one.files), one.size, NbiaLocation(self.base), one.licence)

    def strike(self, uid: str, kind: str, times: int) -> None:
        self.site.faults.clear()
        fault = Fault(kind=kind, times=times, rate=1e9)  # type: ignore[arg-type]
        self.site.faults.set(f"nbia/*/getImage*/{uid}", fault)

    def haul(self, uid: str, root: Path) -> set[str]:
        """SHA-256 of all files of a series; nothing but them is left below `root`."""
        fetcher = NbiaFetcher(SourceTcia(base_url=self.base), self.transport, root / "sources")
        entry = Entry(0, 0, 0, 1, self.item(uid))
        until = time.monotonic() + 60
        try:
            bodies = fetcher.list_bodies(entry, until)
            got = [fetch_verified(fetcher, body, root / str(n), until) for n, body in enumerate(bodies)]
            fetcher.release(entry)
            assert not list(root.glob("sources/*.zip"))
        finally:
            fetcher.close()
        return {verified.file.sha256 for verified in got}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The tiny demo."""
    demo = build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")
    with NbiaSite(demo.archive) as site, ConnectionPool(4, environ={}) as pool:
        yield Bench(demo, site, Transport(pool, QUICK))


def test_every_public_series_comes_byte_for_byte(bench, tmp_path):
    """All kinds of images, compressed or not; what is restricted is forbidden."""
    bench.site.faults.clear()
    for number, one in enumerate(bench.demo.archive.series):
        folder = tmp_path / str(number)
        folder.mkdir()
        if one.restricted:
            with pytest.raises(ItemError, match="not been granted") as caught:
                bench.haul(one.uid, folder)
            assert caught.value.reason == "forbidden"
        else:
            assert bench.haul(one.uid, folder) == {file.sha256 for file in one.files}


@pytest.mark.parametrize("kind", NBIA_PASSING_KINDS)
def test_each_fault_that_passes_is_got_over(bench, tmp_path, kind):
    """Struck once, a series comes whole all the same."""
    uid = bench.demo.named["acquisitions"]
    bench.strike(uid, kind, 1)
    assert bench.haul(uid, tmp_path) == {file.sha256 for file in bench.demo.archive.find(uid).files}


LASTING = {
    "error-400": ("forbidden", False, 2), "error-401": ("forbidden", False, 2), "forbidden": ("forbidden", False, 2),
    "error-429": ("unavailable", True, QUICK.attempts), "error-500": ("unavailable", True, 2 * QUICK.attempts),
    "html": ("unavailable", True, 2 * QUICK.attempts), "empty": ("unavailable", True, 2 * DOUBTS),
    "truncate": ("unavailable", True, 2 * QUICK.attempts), "flip": ("checksum", True, DOUBTS),
    "zip-short": ("count", True, DOUBTS), "zip-hole": ("count", True, DOUBTS), "zip-empty": ("count", True, DOUBTS),
    "zip-licence": ("count", True, DOUBTS), "zip-cut-entry": ("size", True, DOUBTS),
    "md5-wrong": ("checksum", True, DOUBTS), "md5-missing": ("unavailable", True, 2 * DOUBTS),
    "md5-extra": ("count", True, DOUBTS), "md5-short": ("count", True, DOUBTS),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "expected"), LASTING.items(), ids=LASTING)
def test_each_fault_that_lasts_has_its_reason_and_so_many_requests(bench, tmp_path, kind, expected):
    """Reason, whether a later try may help, and how often the site was bothered."""
    uid = bench.demo.named["no-instance-numbers"]
    bench.strike(uid, kind, 0)
    before = sum(bench.site.calls().values())
    with pytest.raises(ItemError) as caught:
        bench.haul(uid, tmp_path)
    asked = sum(bench.site.calls().values()) - before
    assert (caught.value.reason, caught.value.transient, asked) == expected
    assert list(tmp_path.rglob("*")) == [tmp_path / "sources"]


def test_names_that_are_others_at_each_request_do_no_harm(bench, tmp_path):
    """getImageWithMD5Hash over a shuffled database: the same files twice."""
    uid = bench.demo.named["no-instance-numbers"]
    bench.strike(uid, "shuffle", 0)
    bench.site.faults.set(f"nbia/v4/getImage/{uid}", Fault(kind="error-500"))
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        got = bench.haul(uid, tmp_path / str(number))
        assert got == {file.sha256 for file in bench.demo.archive.find(uid).files}
