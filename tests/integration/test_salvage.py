"""One bad item of a frame costs requests for that item alone: what the frame holds is not asked of any site again."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from haul import MEASURED, SECONDS, Haul, Sabotage, run_medhaul
from tcia_kit import TciaHaul
from test_two_lives import end, frozen

from pipeline.archive.index import FileLine
from pipeline.demo.bucket import Store
from pipeline.demo.data import build_demo, build_series
from pipeline.demo.dicoms import iterate_fitting_series, make_fitting_series
from pipeline.demo.encode import make_uid
from pipeline.demo.faults import Fault
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_data import CLINIC, build_isic
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, build_nbia
from pipeline.demo.rows import describe_series
from pipeline.demo.site import DemoSite

# One frame for each archive, and one request for each item before it fails.
SIZES = {"group_bytes": "20 MB", "cut_bytes": "20 MB"}
TASK = {"attempts": 1}
MIXED, CT_MR = "demo_mixed", "demo_ct_mr"
BOUND = 300 << 20


class Bench(NamedTuple):
    """A site, how to haul from it, and what is to fail: the key of a request, and words in all requests of its item."""

    site: DemoSite
    make: Callable[[Path], Haul]
    key: str
    words: tuple[str, ...]

    def fail(self, **fault: Any) -> None:
        """Let the item fail: with each request, or so many `times`."""
        self.site.faults.set(self.key, Fault(kind="error-503", **fault))

    def asked(self) -> Counter[str]:
        """What was asked for since the last look, and how often."""
        found = Counter(self.site.stats.snapshot().keys)
        self.site.stats.reset()
        return found

    def others(self, asked: Counter[str]) -> Counter[str]:
        """What was asked for that is not of the item."""
        return Counter({key: times for key, times in asked.items() if not any(word in key for word in self.words)})


def make_idc(folder: Path) -> Iterator[Bench]:
    """Series of the IDC, of which one object fails."""
    data = build_demo(folder / "demo", "tiny")
    chosen = [one for one in data.series if one.row.collection_id == CT_MR]
    bad = max(chosen, key=lambda one: len(one.files))
    with DemoSite(data.store()) as site:

        def make(place: Path) -> Haul:
            select = {"collections": [CT_MR]}
            return Haul(place, data.index, site.url, select=select, archive=SIZES, task=TASK)

        yield Bench(site, make, bad.files[0].key, (bad.row.crdc_series_uuid,))


def make_nbia(folder: Path) -> Iterator[Bench]:
    """Series of NBIA, of which one fails by every version of the API."""
    demo = build_nbia(folder / "demo", "tiny")
    with NbiaSite(demo.archive, demo.idc.store()) as site:

        def make(place: Path) -> Haul:
            select = {"collections": [NAMES[MIXED]]}
            return TciaHaul(place, demo, site, route="nbia", select=select, archive=SIZES, task=TASK)

        planned = make(folder / "look")
        planned.plan()
        uid = sorted(planned.routes())[3]
        yield Bench(site, make, f"nbia/*/getImage*/{uid}", (uid,))


def make_isic(folder: Path) -> Iterator[Bench]:
    """Images of the ISIC Archive with their thumbnails, of which one fails."""
    archive = build_isic(folder / "demo").archive
    chosen = [image for image in archive.images if image.public and CLINIC in image.collections]
    bad = chosen[len(chosen) // 2]
    with IsicSite(archive) as site:

        def make(place: Path) -> Haul:
            made = Haul(place, "packaged", site.url, archive={**SIZES, "group_by": "run"}, task=TASK)
            del made.settings["select.idc"]
            made.settings["select.isic"] = {"collections": [str(CLINIC)], "thumbnails": True}
            made.settings["sources.isic"] = {"base_url": site.api_url}
            return made

        yield Bench(site, make, bad.key, (bad.isic_id,))


@pytest.fixture(params=[make_idc, make_nbia, make_isic], ids=["idc", "nbia", "isic"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Each source in turn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield from request.param(tmp_path)


@pytest.fixture
def idc(tmp_path: Path) -> Iterator[Bench]:
    """The IDC alone, for what does not depend on the source."""
    yield from make_idc(tmp_path)


def planned(bench: Bench, folder: Path) -> Haul:
    """A haul of one shard and few frames, planned; what that asked for does not count."""
    haul = bench.make(folder)
    haul.settings["limits"] = {"connections": 1, "tasks": 1}  # so that requests can be told one by one
    haul.plan()
    assert len(haul.shards) == 1
    bench.asked()
    return haul


def undisturbed(bench: Bench, folder: Path) -> tuple[Haul, Counter[str]]:
    """A haul that nothing disturbed, and what its task asked for."""
    haul = planned(bench, folder)
    ended = haul.task()
    assert ended.code == 0, ended.err
    asked = bench.asked()
    assert haul.reduce().code == 0
    assert len(bench.others(asked)) > 5
    assert asked != bench.others(asked)
    return haul, asked


def proofs(haul: Haul) -> list[FileLine]:
    """Every file of the index with what was proved of it, and how."""
    return [line for line in haul.lines() if isinstance(line, FileLine)]


def check_end(haul: Haul, calm: Haul) -> None:
    """Archives and proofs are those of the haul that nothing disturbed, and nothing lies about."""
    ended = haul.reduce()
    assert ended.code == 0, ended.err
    assert haul.sums() == calm.sums()
    assert proofs(haul) == proofs(calm)
    assert haul.leftovers() == []


def test_a_failure_that_passes_costs_requests_for_its_item_alone(bench: Bench, tmp_path: Path) -> None:
    """In the second round the item is asked for again; all others are asked for as often as if nothing had failed."""
    calm, asked_calm = undisturbed(bench, tmp_path / "calm")
    haul = planned(bench, tmp_path / "haul")
    bench.fail(times=1)
    ended = haul.task()
    assert ended.code == 0, ended.err
    assert "second round: 1 frames" in ended.err
    asked = bench.asked()
    assert bench.others(asked) == bench.others(asked_calm)
    assert sum(asked.values()) - sum(asked_calm.values()) <= 3
    check_end(haul, calm)


def test_resume_asks_for_what_failed_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    """Also on another node, where nothing is on scratch, and while it still fails."""
    calm, asked_calm = undisturbed(bench, tmp_path / "calm")
    haul = planned(bench, tmp_path / "haul")
    bench.fail()
    ended = haul.task()
    assert ended.code == 3, ended.err
    assert bench.others(bench.asked()) == bench.others(asked_calm)
    shutil.rmtree(haul.scratch)
    assert haul.task().code == 3
    assert bench.others(bench.asked()) == Counter()
    bench.site.faults.clear()
    ended = run_medhaul("resume", haul.run.path, "--wait", "--scheduler", "local")
    assert ended.code == 0, ended.err
    asked = bench.asked()
    assert bench.others(asked) == Counter()
    assert 0 < sum(asked.values()) <= sum(asked_calm.values()) - sum(bench.others(asked_calm).values()) + 1
    check_end(haul, calm)


# Point and at which passing of it; see saboteur.py.
POINTS = [("before-salvage", 1), ("taken-back", 1), ("taken-back", 4), ("mid-frame", 2), ("half-line", 1)]
IDS = [f"{point}-{count}" for point, count in POINTS]


def failed_once(bench: Bench, folder: Path) -> Haul:
    """A haul of which one item failed, and could be had now."""
    haul = planned(bench, folder)
    bench.fail()
    assert haul.task().code == 3
    bench.site.faults.clear()
    bench.asked()
    return haul


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize(("point", "count"), POINTS, ids=IDS)
def test_stopped_while_a_frame_is_taken_back(point: str, count: int, name: str, idc: Bench, tmp_path: Path) -> None:
    """Killed or told to stop, the next life takes it back again, and still asks for nothing that was had."""
    calm, _ = undisturbed(idc, tmp_path / "calm")
    haul = failed_once(idc, tmp_path / "haul")
    ended = haul.task(sabotage=Sabotage(point, count, name))
    assert ended.code == (-signal.SIGKILL if name == "SIGKILL" else 75), ended.err
    ended = haul.task()
    assert ended.code == 0, ended.err
    asked = idc.asked()
    assert idc.others(asked) == Counter()
    assert all(times == 1 for key, times in asked.items() if key.startswith("GET "))
    check_end(haul, calm)


def test_a_bit_flips_in_what_was_taken_back(idc: Bench, tmp_path: Path) -> None:
    """Packing notices it; the frame is taken back again."""
    calm, _ = undisturbed(idc, tmp_path / "calm")
    haul = failed_once(idc, tmp_path / "haul")
    ended = haul.task(sabotage=Sabotage("taken-back", 3, "FLIP"))
    assert ended.code == 0, ended.err
    assert "changed on scratch" in ended.err
    assert idc.others(idc.asked()) == Counter()
    check_end(haul, calm)


@pytest.mark.parametrize(("point", "count"), POINTS, ids=IDS)
@pytest.mark.parametrize("joined", [False, True])
def test_another_life_does_all_meanwhile(point: str, count: int, idc: Bench, tmp_path: Path, *, joined: bool) -> None:
    """A life that sleeps while it takes a frame back wakes to a shard that is done, with or without its parts."""
    calm, _ = undisturbed(idc, tmp_path / "calm")
    haul = failed_once(idc, tmp_path / "haul")
    with frozen(haul, "task", point, count) as sleeper:
        ended = haul.task()
        assert ended.code == 0, ended.err
        if joined:
            assert haul.reduce().code == 0
        ended = end(sleeper)
        assert ended.code == 0, ended.err
    assert [receipt.state for receipt in haul.receipts()] == ["complete"]
    check_end(haul, calm)


@pytest.mark.timeout(SECONDS)
def test_a_large_frame_is_taken_back_in_bounded_memory(tmp_path: Path) -> None:
    """A frame of more than 256 MiB, all but one small item packed, within 300 MiB."""
    rows, store, names = [], Store(), []
    for number in range(9):
        series, study = make_uid("wide", str(number)), make_uid("wide study", str(number))
        files, size = (2, 17_000_000) if number else (1, 10_000)
        first = make_fitting_series(series, study, "BIG", "CT", 1, size, 0)
        row = describe_series(first, collection_id="demo_wide", aws_bucket="idc-open-data")
        rows.append((msgspec.structs.replace(row, instanceCount=files, series_size_MB=files * size / 1e6), []))
        for n, content in enumerate(iterate_fitting_series(series, study, "BIG", "CT", files, files * size, 0)):
            path = tmp_path / f"{number}-{n}.dcm"
            black = bytes(max(0, len(content) - 4096 - (64 << 10)))  # for speed
            path.write_bytes(content[:4096] + black + content[4096 + len(black) :])
            names.append(f"{row.crdc_series_uuid}/{n:03d}.dcm")
            store.put("idc-open-data", names[-1], path)
    data = build_series(tmp_path / "index", rows)
    with DemoSite(store) as site:
        sizes = {"group_bytes": "1 GB", "cut_bytes": "1 GB", "block_bytes": "4 MiB"}
        memory = {"memory": "300 MiB", "attempts": 1, "cores": 1}
        haul = Haul(tmp_path / "haul", data.index, site.url, archive=sizes, task=memory, connections=8)
        haul.plan()
        site.faults.set(names[0], Fault(kind="error-503"))
        assert haul.task().code == 3
        site.faults.clear()
        site.stats.reset()
        ended = run_medhaul("task", haul.run.path, "--shard", 0, through=MEASURED)
        assert ended.code == 0, ended.err
        assert "8 of 8 entries come from" in ended.err
        assert site.stats.count("GET") == 1
    [receipt] = haul.receipts()
    assert receipt.bytes > 256 << 20
    assert int(ended.err.rpartition("peak ")[2]) < BOUND
