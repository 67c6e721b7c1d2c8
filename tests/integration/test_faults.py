"""What an archive site can do wrong: it passes, or the item fails with the reason. Never wrong bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from haul import Haul, one_line_error

from pipeline.archive.index import FailedLine, FileLine
from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData, DemoSeries
from pipeline.demo.faults import PASSING_KINDS, Fault, FaultKind
from pipeline.demo.site import DemoSite

# Each lasting fault of one object of a series, and the reason with which the series fails; empty: it does not.
LASTING: list[tuple[Fault, str]] = [
    (Fault(kind="error-500"), "unavailable"),
    (Fault(kind="error-503"), "unavailable"),
    (Fault(kind="slow-down"), "unavailable"),
    (Fault(kind="forbidden"), "forbidden"),
    (Fault(kind="html"), "size"),
    (Fault(kind="hangup"), "unavailable"),
    (Fault(kind="delay", seconds=0.3), ""),
    (Fault(kind="reset"), "unavailable"),
    (Fault(kind="stall", seconds=60, at=0.01), "unavailable"),
    (Fault(kind="drip", rate=100, at=0.01), "unavailable"),
    (Fault(kind="drip", rate=200_000), ""),
    (Fault(kind="truncate"), "unavailable"),
    (Fault(kind="flip"), "checksum"),
    (Fault(kind="vanish"), "withdrawn"),
    (Fault(kind="short"), "size"),
    (Fault(kind="ignore-range"), ""),
    (Fault(kind="etag-get"), "checksum"),
    (Fault(kind="etag-list"), "checksum"),
    (Fault(kind="etag-both"), "checksum"),
    (Fault(kind="hide"), "count"),
    (Fault(kind="extra"), "count"),
    (Fault(kind="error-503", on="list"), "unavailable"),
    (Fault(kind="html", on="list"), "unavailable"),
    (Fault(kind="truncate", on="list"), "unavailable"),
]
IMPATIENT = {"attempts": 2}


def target_series(data: DemoData) -> list[tuple[DemoSeries, Fault, str]]:
    """A series for each lasting fault. One that hides a file needs another that is seen, and none needs to be long."""
    several = [series for series in data.series if len(series.files) > 1 and series.files[0].size < 300_000]
    others = [series for series in data.series if series not in several and series.files[0].size < 1_000_000]
    chosen = []
    for fault, reason in LASTING:
        chosen.append(((several if fault.kind == "hide" else others or several).pop(), fault, reason))
    return chosen


def fail(site: DemoSite, series: DemoSeries, fault: Fault) -> None:
    """Let the first object of a series, or its listing, fail."""
    prefix = f"{series.row.crdc_series_uuid}/"
    site.faults.set(prefix if fault.on == "list" else series.files[0].key, fault)


def test_lasting_faults_fail_their_item_and_no_other(
    folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """Each item whose site keeps failing is listed with the reason, all others are archived; later all is made good."""
    expected = {}
    for series, fault, reason in target_series(data):
        fail(site, series, fault)
        if reason:
            expected[series.uid] = reason
    haul = Haul(folder, data.index, site.url, shards=5, task=IMPATIENT)
    haul.plan()
    codes = {ended.code for ended in haul.tasks()}
    assert codes <= {0, 3}
    assert haul.failures() == expected
    refused = haul.reduce()
    assert refused.code == 3
    assert "medhaul resume" in refused.err
    partial = haul.reduce("--allow-partial")
    assert partial.code == 3
    haul.check_members(data, without=list(expected))
    # The collection of one item, which failed, has no archive that could list it; reduce itself says so.
    assert "not joined, since incomplete: demo_nc;" in partial.err
    alone = next(series.uid for series in data.series if series.row.collection_id == "demo_nc")
    listed = {line.id: line.reason for line in haul.lines() if isinstance(line, FailedLine)}
    assert listed == {uid: reason for uid, reason in expected.items() if uid != alone}
    site.faults.clear()
    assert haul.finish() == undisturbed
    assert not list(haul.run.archives.glob("*.failed.csv"))
    assert haul.leftovers() == []


def test_mirror_makes_good_what_the_endpoint_fails(
    folder: Path, data: DemoData, store: Store, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """With a sound mirror the same faults fail nothing but the item whose stated ETag is wrong on the endpoint."""
    with DemoSite(store, mirror="only") as mirror:
        expected = {}
        for series, fault, reason in target_series(data):
            fail(site, series, fault)
            if fault.kind in {"etag-list", "etag-both"}:
                expected[series.uid] = reason
        haul = Haul(folder, data.index, site.url, mirror=mirror.url, shards=5, task=IMPATIENT)
        haul.plan()
        haul.tasks()
        assert haul.failures() == expected
        for series, fault, _ in target_series(data):
            if fault.kind in {"etag-list", "etag-both"}:
                site.faults.set(series.files[0].key, Fault(kind=fault.kind, times=1, probability=0))
        assert haul.finish() == undisturbed
        routes = {line.key: line.route for line in haul.lines() if isinstance(line, FileLine)}
    for series, fault, reason in target_series(data):
        # A listing that is wrong is made good by the mirror's; the objects then still come from the endpoint.
        if reason and series.uid not in expected and fault.on == "object" and fault.kind not in {"hide", "extra"}:
            assert routes[series.files[0].key] == f"idc:{mirror.url}", fault
    assert f"idc:{site.url}" in routes.values()


@pytest.mark.parametrize("times", [1, 3])
def test_passing_faults_are_got_over(
    times: int, folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """Faults that pass after one or three requests leave nothing behind: all items, the same bytes."""
    kinds: tuple[FaultKind, ...] = (*PASSING_KINDS, "stall")
    for series, kind in zip([s for s in data.series if s.files[0].size < 1_000_000], kinds, strict=False):
        fail(site, series, Fault(kind=kind, times=times, seconds=0 if kind == "slow-down" else 30, rate=50_000))
    haul = Haul(folder, data.index, site.url, shards=4, task={"attempts": 5})
    assert haul.all() == undisturbed
    assert set(site.faults.struck) == set(kinds)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chaos_is_got_over(
    seed: int, folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A fifth of all objects and of all listings fail once, each in its own way: all items, the same bytes."""
    site.faults.sprinkle(0.2, seed)
    site.faults.sprinkle(0.2, seed + 100, on="list", kinds=("error-503", "html", "reset", "truncate", "hangup"))
    haul = Haul(folder, data.index, site.url, shards=4, task={"attempts": 5})
    assert haul.all() == undisturbed
    assert sum(site.faults.struck.values()) > 10


def test_damage_on_the_way_is_seen_without_an_md5(
    folder: Path, data: DemoData, store: Store, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """Where the listing's ETag is no MD5, a SHA-256 that the site states on request finds a flipped bit."""
    del site
    large = [
        (name, item.key, item.read()) for name, bucket in store.buckets.items() for item in bucket.objects.values()
    ]
    multipart = Store()
    for name, key, content in large:
        multipart.put(name, key, content, part_size=100_000)
    with DemoSite(multipart, checksums=True) as checked:
        checked.faults.set("*", Fault(kind="flip", times=1))
        haul = Haul(folder, data.index, checked.url)
        assert haul.all() == undisturbed
        assert {line.evidence[0] for line in haul.lines() if isinstance(line, FileLine)} == {"sha256"}
        assert checked.faults.struck["flip"] == len(large)


@pytest.mark.parametrize("shards", [1, 5])
def test_site_down_ends_with_69(
    shards: int, folder: Path, data: DemoData, store: Store, undisturbed: dict[str, str]
) -> None:
    """An endpoint that does not answer at all ends every task with 69 and no receipt; once it is back, all goes on."""
    with DemoSite(store) as gone:
        url, port = gone.url, gone.port
    haul = Haul(folder, data.index, url, shards=shards, task={"attempts": 2})
    haul.plan()
    for ended in haul.tasks():
        assert ended.code == 69, ended.err
        assert "medhaul resume" in ended.err
        one_line_error(ended)
    assert haul.receipts() == []
    assert haul.reduce("--allow-partial").code == 3
    assert haul.archives() == []
    with DemoSite(store, port=port):
        assert haul.finish() == undisturbed


@pytest.mark.parametrize(
    ("harm", "code", "reason"),
    [
        (lambda site: site.faults.set("*", Fault(kind="html", on="list")), 69, ""),
        (lambda site: site.faults.set("*", Fault(kind="error-503", on="list")), 69, ""),
        (lambda site: site.faults.set("*", Fault(kind="forbidden", on="list")), 3, "forbidden"),
        (lambda site: site.faults.set("*", Fault(kind="forbidden")), 3, "forbidden"),
        (lambda site: site.faults.set("*", Fault(kind="vanish")), 3, "withdrawn"),
        (lambda site: site.faults.set("*", Fault(kind="flip")), 3, "checksum"),
    ],
    ids=["captive portal", "overloaded", "listing refused", "objects refused", "objects gone", "all flipped"],
)
def test_whole_site_at_fault(
    harm: Callable[[DemoSite], None],
    code: int,
    reason: str,
    folder: Path,
    data: DemoData,
    site: DemoSite,
) -> None:
    """A site that answers nobody is down (69); one that refuses each item fails item by item (3), without archive."""
    harm(site)
    haul = Haul(folder, data.index, site.url, select={"collections": ["demo_nc", "demo_ct_mr"]}, task=IMPATIENT)
    haul.plan()
    for ended in haul.tasks():
        assert ended.code == code, ended.err
    if code == 3:
        assert set(haul.failures().values()) == {reason}
        assert len(haul.failures()) == 7
    reduced = haul.reduce("--allow-partial")
    assert reduced.code == 3
    assert haul.archives() == []


def test_site_that_goes_down_in_the_middle(
    folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """When objects stop coming half-way, what came is kept, and the rest follows when the site is back."""
    half = [file.key for series in data.series for file in series.files][::2]
    for key in half:
        site.faults.set(key, Fault(kind="error-503"))
    haul = Haul(folder, data.index, site.url, task=IMPATIENT)
    haul.plan()
    haul.tasks()
    assert haul.failures()
    site.faults.clear()
    assert haul.finish() == undisturbed
