"""Whole hauls from TCIA by either route: the same bytes, and never wrong ones, whatever NBIA does."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from haul import SECONDS, file_sha256, run_medhaul, start_medhaul
from tcia_kit import (
    ALL,
    IMPATIENT,
    NBIA_KINDS,
    SERVICES,
    TciaHaul,
    break_images,
    read_members,
    sprinkle_all,
)

from pipeline.archive.index import FailedLine, FileLine
from pipeline.demo.embed import stop_site
from pipeline.demo.faults import Fault, FaultKind
from pipeline.demo.index import write_index
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.model import Entry, Item, NbiaLocation
from pipeline.rundir import RunDir
from pipeline.settings import SourceTcia
from pipeline.sources.tcia_fetch import NbiaFetcher
from pipeline.sources.verified import fetch_verified
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool

# What comes of each switch of NBIA that stays on, when it is on for one series by every call; empty: it is archived.
LASTING: dict[FaultKind, str] = {
    "error-400": "forbidden",  # one version says so, the other one that it is withdrawn
    "error-401": "forbidden",
    "error-429": "unavailable",
    "error-500": "unavailable",
    "error-502": "unavailable",
    "error-503": "unavailable",
    "error-504": "unavailable",
    "slow-down": "unavailable",
    "forbidden": "forbidden",
    "html": "unavailable",
    "empty": "unavailable",
    "hangup": "unavailable",
    "delay": "",
    "reset": "unavailable",
    "stall": "unavailable",
    "drip": "unavailable",
    "truncate": "unavailable",
    "flip": "checksum",
    "zip-short": "count",
    "zip-cut-entry": "size",
    "zip-hole": "count",
    "zip-empty": "count",
    "zip-licence": "count",
    "md5-wrong": "checksum",
    "md5-missing": "unavailable",
    "md5-extra": "count",
    "md5-short": "count",
    "shuffle": "",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data: 24 series in NBIA and IDC, 2 in IDC only, 7 in NBIA only."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of answers for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that is NBIA and IDC."""
    with NbiaSite(demo.archive, demo.idc.store()) as running:
        yield running


@pytest.fixture(scope="module")
def half(demo: NbiaDemo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the IDC that lacks every other series: about as many series come by either route."""
    path = tmp_path_factory.mktemp("half") / "idc_index.parquet"
    write_index((one.row for one in demo.idc.series[::2]), path)
    return path


@pytest.fixture(scope="module")
def undisturbed_half(demo: NbiaDemo, half: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of each archive of a mixed haul that nothing disturbed."""
    with NbiaSite(demo.archive, demo.idc.store()) as calm, pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("calm")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        haul = TciaHaul(folder / "haul", demo, calm)
        haul.settings["sources.idc"]["index"] = str(half)
        return haul.all()


# -- either route ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_bytes", ["10 MB", "1 MB"])
def test_either_route_makes_the_same_archive(cut_bytes: str, folder: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """All series that both have: the same files at the same paths; the same bytes unless an item is cut.

    The files of an item that is cut over frames lie in the order of the site's listing, and the sites list by other
    keys; there alone the archives differ.
    """
    collections = list(NAMES.values()) if cut_bytes == "10 MB" else [NAMES["demo_mixed"]]
    select = {"collections": collections, "series": sorted(demo.places.both)}
    made: dict[str, TciaHaul] = {}
    for route in ("idc", "nbia"):
        haul = made[route] = TciaHaul(
            folder / route, demo, site, route=route, select=select, archive={"cut_bytes": cut_bytes}
        )
        haul.all()
        haul.check_contents()
        assert set(haul.routes().values()) == {route}
        seen = {line.route.split(":")[0] for line in haul.lines() if isinstance(line, FileLine)}
        assert seen == {route}
    idc, nbia = made["idc"], made["nbia"]
    assert len(idc.archives()) == len(collections)
    assert sorted(idc.members()) == sorted(nbia.members())
    if cut_bytes == "10 MB":
        assert idc.sums() == nbia.sums()
        return
    for one, other in zip(idc.archives(), nbia.archives(), strict=True):
        members, others = read_members(one), read_members(other)
        moved = [a for a, b in zip(members, others, strict=True) if a != b and not a.startswith(".medhaul/")]
        assert moved  # or the data show nothing
        series = {Path(path).parent.name.partition("_")[2] for path in moved}
        assert all(each.size > 1_000_000 for each in demo.archive.series if each.uid in series)


def test_sizes_that_nobody_states(folder: Path, cache: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """Without FileSize frames are cut elsewhere, so bytes may differ; files, paths and SHA-256 are the same."""
    collection = NAMES["demo_mixed"]
    stated = TciaHaul(folder / "a", demo, site, route="nbia", select={"collections": [collection]})
    stated.all()
    shutil.rmtree(cache)
    site.faults.set(f"nbia/v4/getSeries/{collection}", Fault(kind="drop-keys", names=("FileSize",)))
    bare = TciaHaul(folder / "b", demo, site, route="nbia", select={"collections": [collection]})
    assert "(19 of unstated size)" in bare.plan().out
    bare.finish()
    assert sorted(stated.members()) == sorted(bare.members())


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_lasting_chaos_fails_items_with_reasons(
    seed: int, folder: Path, demo: NbiaDemo, half: Path, site: NbiaSite, undisturbed_half: dict[str, str]
) -> None:
    """A fifth of all zips, objects and listings fail for good: the rest is right, and later all is made good."""
    haul = TciaHaul(folder / "run", demo, site, shards=3, task=IMPATIENT)
    haul.settings["sources.idc"]["index"] = str(half)
    haul.plan()
    assert {*haul.routes().values()} == {"idc", "nbia"}
    sprinkle_all(site, 0.2, seed, times=0)
    assert {ended.code for ended in haul.tasks()} <= {0, 3}
    failed = haul.failures()
    assert failed
    assert "internal" not in failed.values()
    refused = haul.reduce("--allow-partial")
    assert refused.code == 3
    haul.check_contents(without=failed)
    haul.check_account()
    site.faults.clear()
    resumed = haul.resume()
    assert resumed.code == 0, resumed.err
    haul.check_contents()
    assert haul.sums() == undisturbed_half
    assert haul.leftovers() == []


def test_passing_chaos_is_got_over(folder: Path, demo: NbiaDemo, half: Path, site: NbiaSite) -> None:
    """The same faults, each once: whatever does not pass by asking again fails with a reason, and nothing is wrong."""
    haul = TciaHaul(folder, demo, site, shards=3, task={"min_rate": "150 kB"})
    haul.settings["sources.idc"]["index"] = str(half)
    haul.plan()
    sprinkle_all(site, 0.2, 3, times=1)
    haul.tasks()
    assert set(haul.failures().values()) <= {"forbidden", "withdrawn", "count", "checksum"}
    assert sum(site.faults.struck.values()) > 5
    haul.reduce("--allow-partial")
    haul.check_contents(without=haul.failures())
    haul.check_account()


def test_each_lasting_fault_alone(folder: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """Each switch on one series: archived right, or failed with the fitting reason; other series never suffer.

    Where the newer version of the API alone is at fault, the elder one has it. Then all is made good.
    """
    assert set(LASTING) == set(NBIA_KINDS)
    # A shard of one item that the site never answers for ends as if the site were down; so no shard has just one.
    select = {"collections": [name for name in ALL if name != NAMES["demo_nc"]]}
    haul = TciaHaul(folder / "run", demo, site, route="nbia", select=select, task=IMPATIENT)
    haul.plan()
    struck = choose_series(demo, haul)
    for kind, uid in struck.items():
        break_images(site, uid, make_lasting(kind))
    assert {ended.code for ended in haul.tasks()} == {3}
    expected = {struck[kind]: reason for kind, reason in LASTING.items() if reason}
    assert haul.failures() == expected
    assert set(site.faults.struck) == set(LASTING)
    assert haul.reduce("--allow-partial").code == 3
    haul.check_contents(without=expected)
    haul.check_account()
    site.faults.clear()
    for kind, uid in struck.items():
        break_images(site, uid, make_lasting(kind), versions="v4")
    haul.tasks()
    # The elder call reads the same images, so it is not asked after a whole zip that lies; nor after a 429.
    lies = {uid for uid, reason in expected.items() if reason in {"checksum", "count", "size"}}
    assert set(haul.failures()) == lies | {struck["error-429"]}
    site.faults.clear()
    resumed = haul.resume()
    assert resumed.code == 0, resumed.err
    haul.check_contents()
    assert haul.sums() == TciaHaul(folder / "calm", demo, site, route="nbia", select=select).all()


def choose_series(demo: NbiaDemo, haul: TciaHaul) -> dict[FaultKind, str]:
    """A series for each of `LASTING`: of several files where a zip lies, of a long body where that matters."""
    left = sorted((one for one in demo.archive.series if one.uid in haul.routes()), key=lambda one: one.size)
    chosen = {}
    for kind in sorted(LASTING, key=lambda kind: not kind.startswith(("zip", "md5", "drip", "stall"))):
        several = [one for one in left if len(one.files) > 1]
        one = left[-1] if kind in {"stall", "drip"} else several[0] if kind.startswith(("zip", "md5")) else left[0]
        left.remove(one)
        chosen[kind] = one.uid
    return chosen


def make_lasting(kind: FaultKind) -> Fault:
    """A switch that never goes off."""
    return Fault(kind=kind, seconds=60 if kind == "stall" else 0.3 if kind == "delay" else 0, rate=5_000)


@pytest.mark.parametrize("kind", ["null-text", "string-numbers", "single-object", "duplicate-rows", "drop-keys"])
def test_lists_that_are_odd_plan_the_right_archive(
    kind: FaultKind, folder: Path, demo: NbiaDemo, site: NbiaSite
) -> None:
    """Oddities of the list of series never make a wrong archive: what is planned is archived."""
    site.faults.set("nbia/*/getSeries/*", Fault(kind=kind))
    haul = TciaHaul(folder, demo, site, route="nbia", select={"collections": [ONLY_NBIA]})
    haul.all()
    haul.check_contents()
    if kind != "single-object":
        assert haul.routes().keys() == {one.uid for one in demo.archive.series if one.collection == ONLY_NBIA}


@pytest.mark.parametrize(("kind", "reason"), [("wrong-count", "count"), ("wrong-size", "size")])
def test_lists_that_lie_fail_items(kind: FaultKind, reason: str, folder: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """Where the list states more than there is, each series fails with the reason, and a new plan makes it good."""
    site.faults.set("nbia/*/getSeries/*", Fault(kind=kind))
    haul = TciaHaul(folder / "a", demo, site, route="nbia", select={"collections": [ONLY_NBIA]}, task=IMPATIENT)
    haul.plan()
    assert haul.task().code == 3
    assert set(haul.failures().values()) == {reason}
    assert haul.failures().keys() == haul.routes().keys()
    assert haul.reduce("--allow-partial").code == 3
    assert haul.archives() == []


# -- what other clients get wrong --------------------------------------------------------------------------------------


def test_what_other_clients_get_wrong(folder: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """Each of their defects is in the archive as it should be, or in the failure list; a second run makes it good."""
    named = demo.named
    shared = sorted(demo.archive.series, key=lambda one: (one.collection != NAMES["demo_mixed"], -len(one.files)))
    cut, page, refused, nothing = [one.uid for one in shared[:4]]
    faults = {
        named["single"]: ("zip-licence", "count"),
        named["acquisitions"]: ("zip-short", "count"),
        named["no-instance-numbers"]: ("md5-wrong", "checksum"),
        cut: ("truncate", "unavailable"),
        page: ("html", "unavailable"),
        refused: ("error-500", "unavailable"),
        nothing: ("empty", "unavailable"),
    }
    for uid, (kind, _) in faults.items():
        break_images(site, uid, Fault(kind=kind))
    haul = TciaHaul(folder / "run", demo, site, route="nbia", task=IMPATIENT)
    haul.plan()
    assert 3 in {ended.code for ended in haul.tasks()} <= {0, 3}
    expected = {uid: reason for uid, (_, reason) in faults.items()}
    assert haul.reduce("--allow-partial").code == 3
    assert haul.check_account() == expected
    haul.check_contents(without=expected)
    listed = {line.id: line.reason for line in haul.lines() if isinstance(line, FailedLine)}
    assert listed == expected
    tables = "".join(path.read_text() for path in haul.run.archives.glob("*.failed.csv"))
    assert all(f"{uid}," in tables and f",{reason}," in tables for uid, reason in expected.items())
    # Absent SeriesDescription; UIDs that end alike, in one study: each whole, in a folder of its own.
    folders: dict[str, set[str]] = {}
    for member in haul.members():
        uid = Path(member.path).parent.name.partition("_")[2]
        folders.setdefault(uid, set()).add(str(Path(member.path).parent))
    assert len(folders[named["no-description"]]) == 1
    (first,), (second,) = folders[named["tail-a"]], folders[named["tail-b"]]
    assert first != second
    assert Path(first).parent == Path(second).parent
    # What was cut is not "already downloaded": it is asked for anew, and then it is whole.
    site.faults.clear()
    resumed = haul.resume()
    assert resumed.code == 0, resumed.err
    haul.check_contents()
    assert not list(haul.run.archives.glob("*.failed.csv"))
    assert haul.sums() == TciaHaul(folder / "calm", demo, site, route="nbia").all()


def test_images_that_are_gone_come_from_the_zip(tmp_path: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """What a check wrote out is handed out by moving it; what is not there any more is inflated again, the same."""
    series = next(one for one in demo.archive.series if one.uid == demo.named["acquisitions"])
    item = Item(series.uid, "x", len(series.files), series.size, NbiaLocation(site.url + SERVICES), "")
    entry, end = Entry(0, 0, 0, 1, item), time.monotonic() + SECONDS
    with ConnectionPool(2, environ={}) as pool:
        fetcher = NbiaFetcher(SourceTcia(), Transport(pool), tmp_path / "sources", entries=[entry])
        bodies = fetcher.list_bodies(entry, end)
        images = next((tmp_path / "sources").glob("*.images"))
        assert {path.name for path in images.iterdir()} == {file.md5 for file in series.files}
        files = [fetch_verified(fetcher, bodies[0], tmp_path / "0", end).file]
        shutil.rmtree(images)
        files += [fetch_verified(fetcher, body, tmp_path / str(n), end).file for n, body in enumerate(bodies[1:], 1)]
        fetcher.release(entry)
        assert not [path for path in (tmp_path / "sources").iterdir() if path.suffix != ".json"]
        fetcher.close()
    expected = {(file.sop_instance_uid, file.sha256) for file in series.files}
    assert {(Path(file.name).stem, file.sha256) for file in files} == expected
    assert {(Path(file.name).stem, file_sha256(Path(file.local))) for file in files} == expected


# -- as a user ---------------------------------------------------------------------------------------------------------


def test_kill_in_the_middle_of_a_zip(folder: Path, demo: NbiaDemo, site: NbiaSite) -> None:
    """A task killed while a zip comes leaves no trace: resume takes what is finished and makes the same bytes."""
    uid = max((one for one in demo.archive.series if one.collection == NAMES["demo_ct_mr"]), key=lambda o: o.size).uid
    select = {"collections": [NAMES["demo_ct_mr"]]}
    calm = TciaHaul(folder / "calm", demo, site, route="nbia", select=select).all()
    break_images(site, uid, Fault(kind="stall", seconds=600, at=0.6))
    haul = TciaHaul(folder / "run", demo, site, route="nbia", select=select, task={"stall": 300})
    haul.plan()
    process = start_medhaul("task", haul.run.path, "--shard", 0)
    try:
        end = time.monotonic() + SECONDS
        while not any(path.stat().st_size for path in haul.scratch.rglob("*.part")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    site.faults.clear()
    resumed = haul.resume()
    assert resumed.code == 0, resumed.err
    assert haul.sums() == calm
    haul.check_contents()
    assert haul.leftovers() == []


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Path]:
    """A storage root whose embedded site will serve the tiny demo data, for speed; the site ends with the test."""
    root = tmp_path / "runs"
    build_nbia(root / ".demo-tcia" / "data", "tiny")
    yield root
    stop_site(root / ".demo-tcia")


def write_config(folder: Path, name: str, select: str) -> Path:
    """A user's config for the embedded site."""
    path = folder / f"{name}.toml"
    path.write_text(
        f'[run]\nname = "{name}"\n[storage]\nroot = "runs"\n[select.tcia]\n{select}\n[sources.tcia]\n'
        'base_url = "demo"\n[task]\nallow_shared_scratch = true\nstart_jitter = 0\n'
    )
    return path


def test_as_a_user(tmp_path: Path, embedded: Path, demo: NbiaDemo) -> None:
    """Plan, run, ls, verify and query of the embedded site; licence text and citations lie beside the archive."""
    config = write_config(tmp_path, "r", f'collections = ["{ONLY_NBIA.lower()}", "{NAMES["demo_ct_mr"]}"]')
    dry = run_medhaul("plan", "--dry-run", config)
    assert dry.code == 0, dry.err
    assert "dry run: nothing was written" in dry.out
    assert not (embedded / "r").exists()
    ended = run_medhaul("run", config, "--scheduler", "local")
    assert ended.code == 0, ended.err
    run = RunDir(embedded / "r")
    archives = sorted(run.archives.glob("*.tar.xz"))
    assert len(archives) == 2
    verified = run_medhaul("verify", run.path)
    assert verified.code == 0, verified.err
    assert verified.out.count(": fine: ") == 2
    names = {one.uid for one in demo.archive.series if one.collection == ONLY_NBIA}
    only = next(path for path in archives if "only" in path.name)
    shown = run_medhaul("ls", only)
    assert shown.code == 0, shown.err
    assert all(uid in shown.out for uid in names)
    beside = str(only).removesuffix(".tar.xz")
    assert f"images, {ONLY_NBIA}, is made available under the licence" in Path(f"{beside}.licence.txt").read_text()
    assert f"Demo images of {ONLY_NBIA} [Data set]" in Path(f"{beside}.citations.txt").read_text()
    assert "https://creativecommons.org/" in Path(f"{beside}.licences.csv").read_text()
    url = f"http://127.0.0.1:{(embedded / '.demo-tcia' / 'port').read_text().strip()}{SERVICES}"
    listed = run_medhaul("query", "tcia", "collections", environ={"MEDHAUL_TCIA_BASE_URL": url})
    assert listed.code == 0, listed.err
    assert listed.out.split("\n")[1:-1] == sorted(ALL)
    series = run_medhaul("query", "tcia", "series", "--collection", ONLY_NBIA, "--base-url", url, "--json")
    assert {row["SeriesInstanceUID"] for row in json.loads(series.out)} == names


def test_lists_of_a_user(tmp_path: Path, embedded: Path, demo: NbiaDemo) -> None:
    """A .tcia manifest, an .s5cmd manifest and a CSV plan the series they name; what is unknown is listed."""
    in_idc = [one for one in demo.idc.series if one.uid in demo.places.both][:2]
    uids = [demo.named["tail-a"], demo.named["tail-b"], *(one.uid for one in in_idc)]
    (tmp_path / "a.tcia").write_text(
        "downloadServerUrl=https://public.cancerimagingarchive.net/nbia-download/servlet/DownloadServlet\n"
        "includeAnnotation=true\nnoOfrRetry=4\ndatabasketId=m.tcia\nmanifestVersion=3.0\nListOfSeriesToDownload=\n"
        + "".join(f"{uid}\n" for uid in [*uids, "1.2.3.4", demo.named["restricted"]])
    )
    (tmp_path / "b.s5cmd").write_text(
        "".join(f"cp s3://{one.bucket}/{one.row.crdc_series_uuid}/* .\n" for one in in_idc)
    )
    (tmp_path / "c.csv").write_text("Subject,Series UID\n" + "".join(f"x,{uid}\n" for uid in uids))
    expected = {"a.tcia": (uids, 2), "b.s5cmd": ([one.uid for one in in_idc], 0), "c.csv": (uids, 0)}
    for name, (wanted, missing) in expected.items():
        config = write_config(tmp_path, name[0], f'manifest = "{tmp_path / name}"')
        dry = run_medhaul("plan", "--dry-run", "--json", config)
        assert dry.code == 0, dry.err
        told = json.loads(dry.out)
        assert (told["items"], told["missing"]) == (len(wanted), missing)
    ended = run_medhaul("run", tmp_path / "a.toml", "--scheduler", "local")
    assert ended.code == 0, ended.err
    assert "2 of 6 listed series are not at TCIA or in the IDC's index" in ended.out
    run = RunDir(embedded / "a")
    assert set((run.path / "unknown-series.txt").read_text().split()) == {"1.2.3.4", demo.named["restricted"]}
    found = {
        Path(name).parent.name.partition("_")[2]
        for path in run.archives.glob("*.tar.xz")
        for name in read_members(path)
        if not name.startswith(".medhaul/")
    }
    assert found == set(uids)
