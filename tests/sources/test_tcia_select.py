"""What a `[select.tcia]` table finds: by every key, in few calls, with words for what is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import CART, NAMES, ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.settings import SelectTcia, SourceIdc
from pipeline.sources.idc_index import IdcIndex
from pipeline.sources.tcia_client import TciaClient
from pipeline.sources.tcia_inputs import read_series_list
from pipeline.sources.tcia_rows import Series
from pipeline.sources.tcia_select import Finder, choose_values
from pipeline.sources.tcia_table import SeriesTable
from pipeline.transport.retry import Policy
from tests.sources.test_tcia_http import Site, rows
from tests.sources.test_tcia_metadata import LOST, POST, SINGLE, table


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive) as running:
        yield running


class Finding:
    """What was found: SeriesInstanceUIDs, notes, unknown names, and the table's own columns by series."""

    def __init__(self, finder: Finder, table: SeriesTable) -> None:
        rows = table.fetch("SELECT SeriesInstanceUID, collection, PatientID, Modality, ImageCount FROM chosen")
        self.rows = {uid: rest for uid, *rest in rows}
        self.uids = set(self.rows)
        assert len(rows) == len(self.uids)
        self.notes = finder.notes
        self.unknown = finder.unknown


def find(site: NbiaSite, demo: NbiaDemo, cache: Path, *, index: bool = False, **wanted: Any) -> Finding:
    """Look up a selection."""
    select = SelectTcia(**{key: value if isinstance(value, str) else tuple(value) for key, value in wanted.items()})
    listed = read_series_list(Path(select.manifest)) if select.manifest else None
    url = f"{site.url}/nbia-api/services"
    policy = Policy(attempts=2, base=0.01, deadline=20.0)
    with TciaClient(url, cache_dir=cache / "cache", policy=policy) as client:
        opened = IdcIndex.open(SourceIdc(index=str(demo.idc.index)), temp=cache) if index else None
        table = SeriesTable(opened)
        try:
            finder = Finder(client, table, select, listed, use_index=index)
            finder.find()
            finder.narrow()
            return Finding(finder, table)
        finally:
            table.close()
            if opened is not None:
                opened.close()


def in_collection(demo: NbiaDemo, *names: str) -> set[str]:
    """The public series of collections."""
    return {one.uid for one in demo.archive.series if one.collection in names and not one.restricted}


def test_collections_in_any_case(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Each collection is listed with one call, by its name in any case and with any separator."""
    found = find(site, demo, tmp_path, collections=["demo-ct-mr", "DEMO_NBIA_ONLY"])
    assert found.uids == in_collection(demo, NAMES["demo_ct_mr"], ONLY_NBIA)
    assert site.calls() == {"v4/getCollectionValues": 1, "v4/getSeries": 2}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"collections": ["Demo CT MX"]}, "no 'Demo CT MX' among TCIA's; did you mean DEMO-CT-MR"),
        ({"collections": ["zzz"]}, "no 'zzz' among TCIA's; there are DEMO-CT-MR, "),
        ({"collections": [ONLY_NBIA], "modalities": ["CTX"]}, "modalities: no 'CTX' .*; did you mean CT"),
        ({"collections": [ONLY_NBIA], "body_parts": ["CHST"]}, "body_parts: no 'CHST' .*"),
        ({"collections": [ONLY_NBIA], "manufacturers": ["zz"]}, "manufacturers: no 'zz' .*there are"),
        ({"collections": [ONLY_NBIA], "licences": ["CC BY 3.0"]}, "licences: no 'CC BY 3.0' .*Creative Commons"),
        ({"collections": [ONLY_NBIA], "patients": ["NBIA-1"]}, "patients: no 'NBIA-1' .*did you mean NBIA"),
        ({"collections": [ONLY_NBIA], "studies": ["1.2.3"]}, "studies: 1 of 1 not among the series found: 1.2.3"),
        ({"collections": [ONLY_NBIA], "where": "Modalty = 'CT'"}, "unknown column Modalty; did you mean Modality"),
        ({"collections": [ONLY_NBIA], "where": "ImageCount"}, "must be true or false"),
        ({"collections": [ONLY_NBIA], "where": "SeriesNumber > 99"}, "nothing selected: 6 series found, .* 0 after"),
        ({"patients": ["nobody"]}, "patients: 1 of 1 not at TCIA: nobody"),
        ({"studies": ["1.2.3"]}, "studies: 1 of 1 not at TCIA: 1.2.3"),
        ({"series": ["1.2.3"]}, "series: 1 of 1 not at TCIA: 1.2.3"),
        ({"series": ["1.2.3\n"]}, r"series: '1.2.3.n' is no UID"),
        ({"cart": "none such"}, "no shared cart 'none such'"),
    ],
)
def test_what_is_not_there_is_named(
    site: NbiaSite, demo: NbiaDemo, tmp_path: Path, wanted: dict[str, Any], said: str
) -> None:
    """Every key that matches nothing is an error that names the value and, where there are any, the nearest."""
    with pytest.raises(ConfigError, match=said):
        find(site, demo, tmp_path, **wanted)


def test_filters_choose_among_what_is_found(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """All keys must hold; values of one are alternatives; where is SQL over the rows."""
    every = [one for one in demo.archive.series if one.collection == NAMES["demo_mixed"]]
    wanted = {
        "collections": [NAMES["demo_mixed"]],
        "modalities": ["ct", "PT"],
        "licences": ["creative commons attribution 3.0 unported license"],
        "where": "ImageCount >= 1 AND PatientID IS NOT NULL",
    }
    found = find(site, demo, tmp_path, **wanted)
    assert found.uids == {one.uid for one in every if one.modality in {"CT", "PT"} and one.licence == "CC BY 3.0"}
    one = next(each for each in every if each.manufacturer and each.body_part)
    for key, value in (
        ("manufacturers", one.manufacturer.lower()),
        ("body_parts", one.body_part.lower()),
        ("patients", one.patient_id.lower()),
        ("studies", one.study_uid),
        ("series", one.uid),
    ):
        found = find(site, demo, tmp_path, collections=[NAMES["demo_mixed"]], **{key: [value]})
        assert one.uid in found.uids
        assert found.uids < {each.uid for each in every}


def test_patients_and_studies_alone(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Without a collection, patients are looked up in all, and studies by themselves."""
    public = [one for one in demo.archive.series if not one.restricted]
    found = find(site, demo, tmp_path, patients=["demo-001", "NBIA 002"])
    assert found.uids == {one.uid for one in public if one.patient_id in {"DEMO-001", "NBIA 002"}}
    study = public[0].study_uid
    assert find(site, demo, tmp_path, studies=[study]).uids == {one.uid for one in public if one.study_uid == study}


def test_a_cart(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A shared cart gives its series, with counts and sizes, which the cart itself does not tell."""
    found = find(site, demo, tmp_path, cart=CART)
    assert found.uids == set(demo.archive.carts[0].series)
    assert all(row[-1] for row in found.rows.values())


def test_a_manifest_with_what_is_gone(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Unknown and restricted series are told and the others found; repeated ones are taken once, and told."""
    manifest = tmp_path / "m.tcia"
    uids = [demo.named["single"], demo.named["tail-a"], demo.named["restricted"], "1.2.3.4"]
    manifest.write_text("ListOfSeriesToDownload=\n" + "\n".join([*uids, uids[0]]))
    found = find(site, demo, tmp_path, manifest=str(manifest))
    assert found.uids == set(uids[:2])
    assert set(found.unknown.names) == set(uids[2:])
    assert any("2 of 4 listed series are not at TCIA: " in note and "1.2.3.4" in note for note in found.notes)
    assert any("1 lines repeat a series" in note for note in found.notes)
    manifest.write_text("ListOfSeriesToDownload=\n1.2.3.4\n")
    with pytest.raises(ConfigError, match="1 of 1 listed series are not at TCIA"):
        find(site, demo, tmp_path, manifest=str(manifest))
    manifest.write_text("ListOfSeriesToDownload=\n")
    with pytest.raises(ConfigError, match="lists no series"):
        find(site, demo, tmp_path, manifest=str(manifest))


def test_lists_narrow_each_other(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A series must be in manifest and cart when both are given."""
    manifest = tmp_path / "m.txt"
    manifest.write_text(f"{demo.named['tail-a']}\n{demo.named['tail-b']}\n")
    assert find(site, demo, tmp_path, manifest=str(manifest), cart=CART).uids == {demo.named["tail-a"]}
    manifest.write_text(f"{demo.named['tail-b']}\n")
    with pytest.raises(ConfigError, match="no series is in all of manifest, cart and series"):
        find(site, demo, tmp_path, manifest=str(manifest), cart=CART)


def test_folders_of_the_idc(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """An s5cmd manifest means the series of its folders, also those that NBIA does not have; unknown ones are told."""
    series = [one for one in demo.idc.series if one.uid in demo.places.both][:3]
    only = next(one for one in demo.idc.series if one.uid in demo.places.idc_only)
    gone = "00000000-0000-0000-0000-000000000000"
    manifest = tmp_path / "m.s5cmd"
    folders = [one.row.crdc_series_uuid for one in (*series, only)]
    manifest.write_text("".join(f"cp s3://x/{folder}/* .\n" for folder in (*folders, gone)))
    found = find(site, demo, tmp_path, index=True, manifest=str(manifest))
    assert found.uids == {one.uid for one in (*series, only)}
    assert found.unknown.names == (f"crdc_series_uuid {gone}",)
    assert any("the IDC's index has no such folder" in note and gone in note for note in found.notes)
    assert not any("not at TCIA" in note for note in found.notes)
    collection, patient, modality, count = found.rows[only.uid]
    row = only.row
    assert collection == NAMES[row.collection_id]
    assert (patient, modality, count) == (row.PatientID, row.Modality, row.instanceCount)
    manifest.write_text(f"cp s3://x/{gone}/* .\n")
    with pytest.raises(ConfigError, match=r"1 of 1 listed series are left out: .*the IDC's index has no such folder"):
        find(site, demo, tmp_path, index=True, manifest=str(manifest))


@pytest.fixture(name="scripted")
def _scripted_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A site that answers as told, at the place that `find` asks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    made = Site()
    yield SimpleNamespace(url=made.origin, on=made.on)
    made.close()


def test_what_the_index_has_of_unanswered_series_is_taken(
    scripted: SimpleNamespace, demo: NbiaDemo, tmp_path: Path
) -> None:
    """A typed series at which NBIA fails is taken as the index has it; one that nobody could tell of is listed."""
    only, other = sorted(demo.places.idc_only)[:2]
    good, lost = "1.2.3", "1.2.4"
    scripted.on(POST, table(poison=(lost, only, other)))
    scripted.on(SINGLE, LOST)
    scripted.on("/v4/getCollectionValues", rows({"Collection": "Coll A"}))
    found = find(scripted, demo, tmp_path, index=True, series=[good, lost, only, other])
    assert found.uids == {good, only, other}
    assert found.unknown.names == (lost,)
    assert any("as the IDC's index has them" in note for note in found.notes)


GIVEN = {"SeriesInstanceUID": "1.2.1", "Collection": "Coll A", "PatientID": "Pat-1", "StudyInstanceUID": "1.9"}
ASKED = [
    ("collections", "coll a", "Collection", "collection"),
    ("patients", "pat-1", "PatientID", "PatientID"),
    ("studies", "1.9", "StudyInstanceUID", "StudyInstanceUID"),
]


@pytest.mark.parametrize(("key", "value", "field", "column"), ASKED)
@pytest.mark.parametrize("every", [False, True])
def test_rows_without_what_was_asked_by_are_taken(
    scripted: SimpleNamespace,
    demo: NbiaDemo,
    tmp_path: Path,
    key: str,
    value: str,
    field: str,
    column: str,
    every: bool,
) -> None:
    """A row in the answer for one collection, patient or study that leaves out that very key has the asked value."""
    bare = {name: text for name, text in GIVEN.items() if name != field} | {"SeriesInstanceUID": "1.2.2"}
    scripted.on("/v4/getCollectionValues", rows({"Collection": "Coll A"}))
    scripted.on("/v4/getSeries", rows(bare) if every else rows(GIVEN, bare))
    found = find(scripted, demo, tmp_path, **{key: [value]})
    assert found.uids == ({"1.2.2"} if every else {"1.2.1", "1.2.2"})
    if not every:
        place = {"collection": 0, "PatientID": 1}.get(column)
        assert place is None or found.rows["1.2.2"][place] == GIVEN[field]


@pytest.mark.parametrize(("key", "value", "field", "column"), ASKED)
def test_rows_that_say_something_else_are_told(
    scripted: SimpleNamespace, demo: NbiaDemo, tmp_path: Path, key: str, value: str, field: str, column: str
) -> None:
    """A row that the site gives for one collection, patient or study and that names another is listed, not lost."""
    scripted.on("/v4/getCollectionValues", rows({"Collection": "Coll A"}))
    scripted.on("/v4/getSeries", rows(GIVEN, GIVEN | {"SeriesInstanceUID": "1.2.2", field: "1.8.8"}))
    found = find(scripted, demo, tmp_path, **{key: [value]})
    assert found.uids == {"1.2.1"}
    assert found.unknown.names == ("1.2.2",)
    assert any("1.2.2" in note and f"another {column}" in note for note in found.notes)


def test_a_site_that_is_down_is_no_empty_selection(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A failing site, and one whose answers are empty, are unavailable (exit 69), not without series."""
    for kind in ("error-500", "empty", "hangup", "html"):
        site.faults.set("nbia/*", Fault(kind=kind))
        for wanted in ({"collections": [ONLY_NBIA]}, {"patients": ["NBIA-001"]}, {"series": [demo.named["single"]]}):
            with pytest.raises(SiteUnavailableError):
                find(site, demo, tmp_path, **wanted)


def test_doubtful_rows_are_taken_once(site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """Lists with repeated rows, left-out keys and text for numbers give each series once."""
    for number, fault in enumerate((Fault(kind="duplicate-rows"), Fault(kind="drop-keys"), Fault(kind="null-text"))):
        site.faults.set("nbia/*", fault)
        found = find(site, demo, tmp_path / str(number), collections=[ONLY_NBIA])
        assert found.uids == in_collection(demo, ONLY_NBIA)


def test_two_rows_of_one_series_are_one(tmp_path: Path) -> None:
    """Of rows that differ the same one counts, in whatever order they come; text of any letters survives."""
    rows = [Series(SeriesInstanceUID="1.2", collection="X", PatientID=text) for text in ('b"\\\n', "a'\u2028", None)]
    chosen = []
    for order in (rows, rows[::-1]):
        table = SeriesTable(None)
        with TciaClient("http://127.0.0.1:9", cache_dir=tmp_path) as client:
            table.add_series(order)
            Finder(client, table, SelectTcia(collections=("x",)), None, use_index=False).narrow()
        chosen.append(table.fetch("SELECT n, SeriesInstanceUID, PatientID FROM chosen"))
        table.close()
    assert chosen[0] == chosen[1] == [(1, "1.2", "a'\u2028")]


def test_names_as_tcia_compares_them() -> None:
    """Case does not matter; every spelling of one name is meant; separators only when nothing else fits."""
    known = ["SIEMENS", "Siemens", "GE MEDICAL", "ge-medical", "ÄÖ"]
    assert choose_values("k", ["siemens"], known, "here") == ("SIEMENS", "Siemens")
    assert choose_values("k", ["ge medical"], known, "here") == ("GE MEDICAL",)
    assert choose_values("k", ["ge_medical"], known, "here") == ("GE MEDICAL", "ge-medical")
    assert choose_values("k", ["äö", "SIEMENS"], known, "here") == ("ÄÖ", "SIEMENS", "Siemens")
    with pytest.raises(ConfigError, match="no 'ge_medical' here; did you mean GE MEDICAL"):
        choose_values("k", ["ge_medical"], known, "here", fold=False)
    with pytest.raises(ConfigError, match="no 'x' here; there are none"):
        choose_values("k", ["x"], [], "here")
