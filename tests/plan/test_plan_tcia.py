"""Planning from TCIA: items, routes, groups and what lies beside them, the same each time, in a handful of calls."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cli.main import run_cli
from pipeline.config import parse_config
from pipeline.demo.data import build_series
from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, ONLY_NBIA, NbiaDemo, build_many, build_nbia
from pipeline.demo.rows import describe_series
from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.manifest import Manifest
from pipeline.model import IdcLocation, Item, NbiaLocation
from pipeline.plan.planner import Plan, plan_run
from pipeline.plan.tcia import ADDED, TciaPlanSource, find_citation, make_client, parse_doi
from pipeline.reduce.tables import write_tables
from pipeline.rundir import RunDir
from pipeline.settings import Config, SourceTcia
from pipeline.sources.tcia_table import COLUMNS

COLLECTIONS = [NAMES["demo_ct_mr"], ONLY_NBIA]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive) as running:
        yield running


def make_config(site: NbiaSite, index: Path, root: Path, *, route: str = "auto", **changes: Any) -> Config:
    """A config for the site; the tables of `changes` are added."""
    data: dict[str, Any] = {
        "run": {"name": "r"},
        "storage": {"root": str(root / "runs")},
        "select": {"tcia": {"collections": COLLECTIONS}},
        "sources": {
            "tcia": {"base_url": f"{site.url}/nbia-api/services", "route": route},
            "idc": {"index": str(index)},
        },
    }
    return parse_config(data | changes, "test")


def plan(config: Config, cache: Path, *, dry_run: bool = False, day: float = 0.0) -> Plan:
    """Plan a run."""
    with TciaPlanSource(config, cache_dir=cache / "cache", clock=lambda: day) as source:
        return plan_run(config, source, dry_run=dry_run, on_progress=lambda _: None)


def read_items(made: Plan) -> list[tuple[Item, dict[str, Any]]]:
    """The items of a run's manifest, each with its meta by column."""
    assert made.run is not None
    manifest = Manifest(made.run)
    entries = [entry.item for _, entry in manifest.all_entries(range(made.shards)) if entry.piece == 0]
    return [(item, dict(zip(manifest.index.columns, msgspec.json.decode(item.meta), strict=True))) for item in entries]


def test_a_mixed_plan(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Each series comes by the route that suits it, with that route's counts, and its row says so."""
    made = plan(make_config(site, demo.idc.index, tmp_path), tmp_path)
    items = read_items(made)
    public = {one.uid: one for one in demo.archive.series if one.collection in COLLECTIONS and not one.restricted}
    in_idc = {one.uid: one for one in demo.idc.series}
    assert {item.id for item, _ in items} == set(public)
    for item, row in items:
        one = public[item.id]
        assert list(row) == [*COLUMNS, *ADDED]
        assert row["SeriesInstanceUID"] == item.id
        assert row["collection"] == one.collection
        assert row["source_DOI"] == one.doi
        assert item.licence == row["LicenseName"]
        assert item.path.startswith(one.collection.replace(" ", "%20") + "/")
        if item.id in demo.places.nbia_only:
            assert item.location == NbiaLocation(f"{site.url}/nbia-api/services")
            assert (row["route"], row["route_reason"], row["crdc_series_uuid"]) == ("nbia", "only-nbia", None)
            assert (item.files, item.bytes) == (len(one.files), one.size)
        else:
            known = in_idc[item.id].row
            assert item.location == IdcLocation(known.aws_bucket, known.crdc_series_uuid)
            assert row["route_reason"] == ("more-files" if item.id in demo.places.older else "same")
            assert (row["route"], row["crdc_series_uuid"]) == ("idc", known.crdc_series_uuid)
            assert item.files == known.instanceCount
            assert item.bytes == round(known.series_size_MB * 1e6)
    assert {row["route"] for _, row in items} == {"idc", "nbia"}
    assert (made.missing, made.source) == (0, "tcia")
    assert made.release.startswith("nbia, idc sha256:")


def test_the_same_answers_are_the_same_manifest(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Whatever the day, the order of rows and the input, the same series plan the same run."""
    config = make_config(site, demo.idc.index, tmp_path)
    first = plan(config, tmp_path, day=0)
    again = plan(config, tmp_path / "other", day=1e9)
    assert again.reused
    assert first.manifest_sha256 == again.manifest_sha256
    assert "listed on 1970-01-01" in first.notes[0]
    assert "listed on 2001-09-09" in again.notes[0]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{item.id}\n" for item, _ in reversed(read_items(first))))
    other = make_config(site, demo.idc.index, tmp_path, select={"tcia": {"manifest": str(listed)}})
    assert plan(other, tmp_path).manifest_sha256 == first.manifest_sha256


def test_the_path_is_the_same_by_either_route(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A series has one path, whichever way it comes."""
    paths = {}
    for route in ("auto", "idc", "nbia"):
        config = make_config(site, demo.idc.index, tmp_path / route, route=route)
        paths[route] = {item.id: item.path for item, _ in read_items(plan(config, tmp_path))}
    assert paths["auto"] == paths["nbia"]
    assert paths["idc"].items() < paths["auto"].items()


def test_a_forced_route(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """What does not come by the forced route is left out and told; an error when that is everything."""
    made = plan(make_config(site, demo.idc.index, tmp_path, route="idc"), tmp_path)
    items = read_items(made)
    assert all(isinstance(item.location, IdcLocation) and row["route_reason"] == "forced" for item, row in items)
    assert made.missing == len(demo.places.nbia_only)
    assert any(f"{made.missing} series do not come by route idc: " in note for note in made.notes)
    assert made.run is not None
    assert set((made.run.path / "unknown-series.txt").read_text().split()) == demo.places.nbia_only
    only = {"select": {"tcia": {"collections": [ONLY_NBIA]}}}
    with pytest.raises(ConfigError, match="none of 6 selected series comes by route idc"):
        plan(make_config(site, demo.idc.index, tmp_path / "o", route="idc", **only), tmp_path)
    missing = tmp_path / "none.parquet"
    made = plan(make_config(site, missing, tmp_path / "n", route="nbia"), tmp_path)
    assert all(isinstance(item.location, NbiaLocation) for item, _ in read_items(made))
    assert made.release == "nbia"
    with pytest.raises(ConfigError) as caught:
        plan(make_config(site, missing, tmp_path / "m"), tmp_path)
    assert "route = 'nbia'" in caught.value.hint


@pytest.mark.parametrize("group_by", ["collection", "licence", "run"])
def test_groups(site: NbiaSite, demo: NbiaDemo, tmp_path: Path, group_by: str) -> None:
    """Items are grouped as the config says, and within a group in order of path."""
    archive = {"group_by": group_by, "name": "all" if group_by == "run" else "{group}"}
    config = make_config(site, demo.idc.index, tmp_path, archive=archive)
    with TciaPlanSource(config, cache_dir=tmp_path / "cache") as source:
        found = list(source.select())
    for group, item in found:
        row = dict(zip(source.columns, msgspec.json.decode(item.meta), strict=True))
        assert group == {"collection": row["collection"], "licence": row["LicenseName"], "run": "r"}[group_by]
    assert [(group, item.path) for group, item in found] == sorted((group, item.path) for group, item in found)


def test_two_hundred_series_take_a_handful_of_calls(tmp_path: Path) -> None:
    """Calls grow with collections and thousands of UIDs, not with series."""
    demo = build_many(tmp_path, 200)
    series = []
    for one in demo.archive.series[::2]:
        files = [demo.archive.read(file) for file in one.files]
        series.append((describe_series(files, collection_id="demo_many", aws_bucket="idc-open-data"), files))
    index = build_series(tmp_path / "half", series).index
    listed = tmp_path / "list.csv"
    listed.write_text("Series UID\n" + "".join(f"{one.uid}\n" for one in demo.archive.series))
    beside = {"v4/getImage": 1, "v4/getCollectionDescriptions": 1}  # a licence text; what to cite
    with NbiaSite(demo.archive) as site:
        for number, (wanted, lists) in enumerate(
            (
                ({"collections": ["demo many"]}, {"v4/getCollectionValues": 1, "v4/getSeries": 1}),
                ({"manifest": str(listed)}, {"v4/getSeriesMetadata": 1}),
            )
        ):
            before = site.calls()
            config = make_config(site, index, tmp_path / str(number), select={"tcia": wanted})
            made = plan(config, tmp_path / str(number))
            routes = [row["route"] for _, row in read_items(made)]
            assert (routes.count("idc"), routes.count("nbia")) == (100, 100)
            calls = {name: count - before.get(name, 0) for name, count in site.calls().items()}
            assert {name: count for name, count in calls.items() if count} == lists | beside


def test_unknown_series_are_told_and_the_plan_goes_on(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """What neither NBIA nor the index has is in the notes, in a file of the run, and counted."""
    listed = tmp_path / "m.tcia"
    uids = [*sorted(demo.places.idc_only), demo.named["single"], demo.named["restricted"], "1.2.3"]
    listed.write_text("ListOfSeriesToDownload=\n" + "\n".join(uids))
    made = plan(make_config(site, demo.idc.index, tmp_path, select={"tcia": {"manifest": str(listed)}}), tmp_path)
    reasons = {item.id: row["route_reason"] for item, row in read_items(made)}
    assert reasons == dict.fromkeys(demo.places.idc_only, "only-idc") | {demo.named["single"]: "only-nbia"}
    assert made.missing == 2
    assert "2 of 5 listed series are not at TCIA or in the IDC's index: 1.2.3, " in made.notes[-1]
    assert made.run is not None
    assert set((made.run.path / "unknown-series.txt").read_text().split()) == set(uids[-2:])
    rows = {item.id: (item, row) for item, row in read_items(made)}
    for one in demo.idc.series:
        if one.uid in rows and one.uid in demo.places.idc_only:
            item, row = rows[one.uid]
            assert row["collection"] == NAMES[one.row.collection_id]
            assert item.licence.startswith("Creative Commons Attribution")
            assert row["source_DOI"] == one.row.source_DOI


def test_tables_beside_an_archive(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Licences with URLs and DOIs, the site's licence text, and a citation of each DOI."""
    made = plan(make_config(site, demo.idc.index, tmp_path), tmp_path)
    assert made.run is not None
    made.run.archives.mkdir()
    manifest = Manifest(made.run)
    for archive in made.archives:
        names = write_tables(made.run, manifest, archive, [], made.run.read_citations())
        assert f"{archive.name}.licence.txt" in names
        text = (made.run.archives / f"{archive.name}.licence.txt").read_text()
        collection = next(name for name in COLLECTIONS if text.startswith(name))
        assert "is made available under the licence" in text
        with (made.run.archives / f"{archive.name}.licences.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert all(row["uris"].startswith("https://creativecommons.org/licenses/") for row in rows)
        cited = (made.run.archives / f"{archive.name}.citations.txt").read_text()
        for doi in {one.doi for one in demo.archive.series if one.collection == collection and not one.restricted}:
            assert any(doi in row["dois"] for row in rows)
            assert f"https://doi.org/{doi}" in cited
        assert "Data set" in cited


def test_trouble_with_words_is_only_a_note(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Without licence texts and descriptions there is a plan, with notes and bare citations; dry runs ask for none."""
    site.faults.set("nbia/*/getImage*", Fault(kind="error-500"))
    only = {"select": {"tcia": {"collections": [ONLY_NBIA]}}}
    config = make_config(site, demo.idc.index, tmp_path, **only)
    assert plan(config, tmp_path, dry_run=True).run is None
    assert "v4/getImage" not in site.calls()
    made = plan(config, tmp_path)
    assert any(note.startswith(f"no licence text of {ONLY_NBIA} / Creative") for note in made.notes)
    assert made.run is not None
    assert made.run.read_licences() == {}
    assert plan(config, tmp_path).reused
    assert site.calls()["v4/getImage"] == 1
    site.faults.clear()
    site.faults.set("nbia/*/getCollectionDescriptions*", Fault(kind="error-400"))
    made = plan(make_config(site, demo.idc.index, tmp_path / "b", **only), tmp_path / "b")
    assert made.run is not None
    assert [text.split(".")[0] for text in made.run.read_citations().values()] == [ONLY_NBIA]
    assert any("citations are bare" in note for note in made.notes)


def test_nothing_is_left_and_nothing_is_planned_when_the_site_is_down(
    site: NbiaSite, demo: NbiaDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that does not answer ends the plan with 69, a wrong name with 78, and no run is there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tmp_path / "c.toml"
    text = f"""
        [run]\nname = "r"\n[storage]\nroot = "runs"\n[select.tcia]\ncollections = ["{ONLY_NBIA}"]
        [sources.tcia]\nbase_url = "{site.url}/nbia-api/services"\n[sources.idc]\nindex = "{demo.idc.index}"
    """
    config.write_text(text.replace(ONLY_NBIA, "Demo NBIA Onyl"))
    assert run_cli(["plan", str(config)]) == 78
    config.write_text(text)
    site.faults.set("nbia/*", Fault(kind="forbidden"))
    with pytest.raises(SiteUnavailableError):
        plan(make_config(site, demo.idc.index, tmp_path), tmp_path)
    site.faults.clear()
    assert not (tmp_path / "runs" / "r").exists()
    assert run_cli(["plan", "--route", "idc", str(config)]) == 78
    assert run_cli(["plan", "--route", "nbia", str(config)]) == 0
    assert json.loads((tmp_path / "runs/r/run.json").read_text())["config"]["sources"]["tcia"]["route"] == "nbia"


def test_a_route_is_for_tcia_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--route` with a config that selects from the IDC is a mistake on the command line."""
    config = tmp_path / "c.toml"
    config.write_text('[run]\nname = "r"\n[storage]\nroot = "runs"\n[select.idc]\ncontent = "both"\n')
    assert run_cli(["plan", "--route", "idc", str(config)]) == 64
    assert "--route is for TCIA" in capsys.readouterr().err


def test_the_embedded_site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`base_url = "demo"` plans without any network, the same each time; a dry run leaves nothing behind."""
    monkeypatch.setattr("pipeline.demo.nbia_data.build_nbia", lambda root: build_nbia(root, "tiny"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tmp_path / "c.toml"
    config.write_text(
        '[run]\nname = "r"\n[storage]\nroot = "runs"\n[select.tcia]\ncollections = ["demo nbia only", "Demo-NC"]\n'
        '[sources.tcia]\nbase_url = "demo"\n'
    )
    before = sorted(tmp_path.rglob("*"))
    assert run_cli(["plan", "--dry-run", "--json", str(config)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    assert run_cli(["plan", str(config)]) == 0
    shown = capsys.readouterr().out
    assert told["manifest_sha256"] in shown
    assert "note          1 series from IDC (same 1)" in shown
    run = RunDir(tmp_path / "runs" / "r")
    places = [entry.item.location for _, entry in Manifest(run).all_entries(range(run.read_run().shards))]
    assert {place.base_url for place in places if isinstance(place, NbiaLocation)} == {"demo"}
    assert run_cli(["plan", str(config)]) == 0
    assert "was planned before" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


_MANY = """
import sys
from pathlib import Path
import pipeline.plan.tcia as tcia
from pipeline.config import parse_config
from pipeline.plan.planner import plan_run
from pipeline.sources.tcia_rows import Series

class Client:
    def collections(self, **_):
        return [f"Collection {n}" for n in range(40)]
    def series(self, collection):
        return [Series(SeriesInstanceUID=f"1.3.6.1.4.1.14519.5.2.1.7009.9004.{hash(collection)%10**9}.{n}",
            StudyInstanceUID=f"1.3.6.1.4.1.14519.5.2.1.{n // 4}", PatientID=f"P-{n // 8}", collection=collection,
            Modality="CT", SeriesDescription="AX T1 POST CONTRAST", ImageCount=100, FileSize=52_000_000 + n,
            LicenseName="Creative Commons Attribution 3.0 Unported License",
            DataDescriptionURI="https://doi.org/10.7937/x") for n in range(5000)]
    def base_url_for(self, collection):
        return "https://site/nbia-api/services"
    def descriptions(self):
        return []
    def close(self):
        pass

tcia.make_client = lambda *_: Client()
config = parse_config({"run": {"name": "r"}, "storage": {"root": sys.argv[1]},
    "sources": {"idc": {"index": sys.argv[2]}}, "select": {"tcia": {"collections": Client().collections()}}}, "x")
with tcia.TciaPlanSource(config) as source:
    print(plan_run(config, source, dry_run=True, on_progress=lambda _: None).items)
# Not ru_maxrss, which begins with what the parent had when it forked.
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def test_two_hundred_thousand_series_in_bounded_memory(demo: NbiaDemo, tmp_path: Path) -> None:
    """A plan of that many needs less than 600 MB."""
    command = [sys.executable, "-c", _MANY, str(tmp_path), str(demo.idc.index)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    items, peak = map(int, found.stdout.split())
    assert items == 200_000
    assert peak < 600 << 10


@pytest.mark.parametrize(
    ("uri", "doi"),
    [
        ("https://doi.org/10.7937/K9/TCIA.2015", "10.7937/K9/TCIA.2015"),
        ("http://dx.doi.org/10.7937/x", "10.7937/x"),
        (" doi: 10.7937/x ", "10.7937/x"),
        ("10.7937/x", "10.7937/x"),
        ("https://wiki.example.org/page", "https://wiki.example.org/page"),
        (None, None),
    ],
)
def test_dois(uri: str | None, doi: str | None) -> None:
    """A DOI is found in any of its spellings; what is none stays as it is."""
    assert parse_doi(uri) == doi


def test_citations_in_descriptions() -> None:
    """The paragraph that names the DOI is the citation; none is made of a page without one, or of a whole page."""
    text = '<p>About.</p><p>A, B &amp; C (2020). <i>Title</i>. <a href="https://doi.org/10.1234/X">https://doi.org/10.1234/X</a></p>'
    assert find_citation(text, "10.1234/x") == "A, B & C (2020). Title. https://doi.org/10.1234/X"
    assert find_citation(text, "10.1234/y") == ""
    assert find_citation("<p>" + "x" * 2000 + "10.1234/x</p>", "10.1234/x") == ""
    assert find_citation("<" * 5000, "10.1234/x") == ""


def test_a_host_of_ones_own_is_asked_for_everything() -> None:
    """Who names another base_url alone never asks TCIA's own hosts, not for NLST either."""
    own = "http://127.0.0.1:9/nbia-api/services"
    with make_client(SourceTcia(base_url=own)) as client:
        assert client.base_url_for("NLST") == client.base_url_for("X") == own
    with make_client(SourceTcia()) as client:
        assert client.base_url_for("NLST").startswith("https://nlst.")
    with make_client(SourceTcia(base_url=own, nlst_base_url="http://127.0.0.1:10/x")) as client:
        assert client.base_url_for("NLST") == "http://127.0.0.1:10/x"
