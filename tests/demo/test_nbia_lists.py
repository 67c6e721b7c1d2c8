"""The demo NBIA's lists have the columns, the order, the dates, the formats and the gaps of the real ones."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
from test_nbia_client import Api

from pipeline.demo.data import DemoData
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import CART, NAMES, ONLY_NBIA, RESTRICTED, TAIL, NbiaDemo, build_many, build_nbia
from pipeline.demo.nbia_format import render_csv, render_html, render_xml
from pipeline.demo.nbia_records import load_archive
from pipeline.demo.nbia_rows import Table, render_american, render_java_date, render_timestamp

SERIES_V1 = [
    "SeriesInstanceUID", "StudyInstanceUID", "Modality", "ProtocolName", "SeriesDate", "SeriesDescription",
    "BodyPartExamined", "SeriesNumber", "AnnotationsFlag", "Collection", "PatientID", "Manufacturer",
    "ManufacturerModelName", "SoftwareVersions", "ImageCount", "TimeStamp", "LicenseName", "LicenseURI",
    "CollectionURI", "FileSize", "DateReleased", "StudyDesc", "StudyDate", "ThirdPartyAnalysis",
]  # fmt: skip
SERIES_V4 = [
    "SeriesInstanceUID", "StudyInstanceUID", "Modality", "ProtocolName", "SeriesDate", "SeriesDescription",
    "BodyPartExamined", "SeriesNumber", "AnnotationsFlag", "Collection", "Site", "PatientID", "PatientSex",
    "PatientAge", "AdmittingDiagnosisDescription", "Manufacturer", "ManufacturerModelName", "SoftwareVersions",
    "ImageCount", "MaxSubmissionTimestamp", "LicenseName", "LicenseURI", "DataDescriptionURI", "FileSize",
    "DateReleased", "StudyDesc", "StudyDate", "ThirdPartyAnalysis", "ReleasedStatus", "Authorized",
]  # fmt: skip
STAMP = re.compile(r"\d{4}-\d\d-\d\d 00:00:00\.0")
AMERICAN = re.compile(r"\d\d-\d\d-\d{4}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture(scope="module")
def api(demo: NbiaDemo) -> Iterator[Api]:
    """A client with a token of a site that serves them."""
    with NbiaSite(demo.archive) as site:
        client = Api(site.url)
        client.login()
        yield client


def in_order(keys: list[str], columns: list[str]) -> bool:
    """Whether keys are some of the columns, in their order."""
    return [name for name in columns if name in keys] == keys


def table_of(text: bytes) -> list[dict[str, str]]:
    """The rows of a CSV."""
    return list(csv.DictReader(io.StringIO(text.decode())))


def test_where_the_demo_series_are(demo):
    """Shared series have the same instances in both places, the older one fewer in NBIA, the rest are in one place."""
    idc = {one.uid: {(f.sop_instance_uid, f.sha256) for f in one.files} for one in demo.idc.series}
    nbia = {one.uid: {(f.sop_instance_uid, f.sha256) for f in one.files} for one in demo.archive.series}
    places = demo.places
    assert {uid for uid in idc.keys() & nbia.keys() if idc[uid] == nbia[uid]} == places.both
    assert {uid for uid in idc.keys() & nbia.keys() if idc[uid] > nbia[uid]} == places.older == {demo.named["older"]}
    assert idc.keys() - nbia.keys() == places.idc_only
    assert nbia.keys() - idc.keys() == places.nbia_only | places.restricted
    assert [len(group) for group in (places.both, places.idc_only, places.nbia_only, places.restricted)] == [
        23,
        2,
        7,
        1,
    ]
    assert demo.named["tail-a"][-5:] == demo.named["tail-b"][-5:] == TAIL
    assert demo.archive.find(demo.named["tail-a"]).study_uid == demo.archive.find(demo.named["tail-b"]).study_uid
    assert isinstance(demo.idc, DemoData)
    for name in ("demo_mixed", "demo_nc"):
        here = {one.uid for one in demo.idc.series if one.row.collection_id == name}
        assert here == {one.uid for one in demo.archive.series if one.collection == NAMES[name]} <= places.both


def test_the_files_are_what_the_catalogue_says(demo, tmp_path):
    """Sizes of the records are those of the files; a second build and the written catalogue say the same."""
    for one in demo.archive.series:
        assert len({demo.archive.read(file) for file in one.files}) == len(one.files)
        assert [len(demo.archive.read(file)) for file in one.files] == [file.size for file in one.files]
    again = build_nbia(tmp_path / "again", "tiny")
    assert again.archive.series == demo.archive.series
    assert load_archive(tmp_path / "again") == again.archive


def test_many_series(tmp_path):
    """A collection of any number of series, files and bytes can be made, and is told in one call."""
    many = build_many(tmp_path, 200, files=2, file_bytes=1500)
    with NbiaSite(many.archive) as site:
        rows = Api(site.url).get("v4/getSeries", Collection="Demo Many").rows
        assert site.calls() == {"v4/getSeries": 1}
    assert {row["SeriesInstanceUID"] for row in rows} == many.places.nbia_only
    assert len(many.places.nbia_only) == 200
    assert {(row["ImageCount"], row["FileSize"]) for row in rows} == {(2, 3000)}


def test_dates():
    """The three ways of NBIA to write a date."""
    date = dt.date(2019, 3, 8)
    assert render_timestamp(date) == "2019-03-08 00:00:00.0"
    assert render_american(date) == "03-08-2019"
    assert render_java_date(date) == "Fri Mar 08 00:00:00 UTC 2019"


@pytest.mark.parametrize(
    ("version", "columns", "date"), [("v1", SERIES_V1, STAMP), ("v2", SERIES_V1, STAMP), ("v4", SERIES_V4, AMERICAN)]
)
def test_series(api, demo, version, columns, date):
    """`getSeries` gives all public series with the version's columns in order, nulls left out, dates in its style."""
    rows = api.get(f"{version}/getSeries").rows
    public = {one.uid: one for one in demo.archive.series if not one.restricted}
    assert {row["SeriesInstanceUID"] for row in rows} == set(public)
    assert len(rows) == len(public)
    assert [row["SeriesInstanceUID"] for row in rows] != list(public)
    assert len(columns) == (30 if version == "v4" else 24)
    for row in rows:
        one = public[row["SeriesInstanceUID"]]
        assert in_order(list(row), columns)
        assert None not in row.values()
        assert (row["ImageCount"], row["FileSize"]) == (len(one.files), one.size)
        assert date.fullmatch(row["TimeStamp" if version != "v4" else "MaxSubmissionTimestamp"])
        assert row["AnnotationsFlag"] is False
        assert row["CollectionURI" if version != "v4" else "DataDescriptionURI"] == f"https://doi.org/{one.doi}"
        assert row["LicenseURI"].startswith("https://creativecommons.org/licenses/by")
    bare = next(row for row in rows if row["SeriesInstanceUID"] == demo.named["no-description"])
    assert not {"SeriesDescription", "SeriesDate", "StudyDate", "BodyPartExamined"} & bare.keys()
    assert {row["ThirdPartyAnalysis"] for row in rows} == {"YES", "NO"}


def test_slashes_are_escaped(api):
    """JSON escapes `/`, as Jettison does."""
    assert b"https:\\/\\/doi.org\\/10.5072" in api.get("v4/getSeries", Collection=ONLY_NBIA).body


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_filters(api, demo, version):
    """A collection is found in any case of letters; filters narrow; nothing found is an empty body with status 200."""
    path = f"{version}/getSeries"
    assert len(api.get(path, Collection=ONLY_NBIA.upper()).rows) == len(api.get(path, Collection=ONLY_NBIA).rows) == 6
    assert len(api.get(path, Collection=ONLY_NBIA, Modality="CT").rows) == 3
    assert len(api.get(path, Collection=ONLY_NBIA, PatientID="nbia 002").rows) == 2
    assert len(api.get(path, SeriesInstanceUID=demo.named["tail-a"]).rows) == 1
    for params in ({"Collection": "No such"}, {"SeriesInstanceUID": demo.named["restricted"]}, {"Modality": "XX"}):
        got = api.get(path, **params)
        assert (got.status, got.body, got.headers["Content-Length"], got.type) == (200, b"", "0", "application/json")


def test_values(api):
    """Lists of one column; a null among them is `{}`; the restricted collection is not there at all."""
    assert api.get("v4/getCollectionValues").rows == [
        {"Collection": name} for name in sorted((*NAMES.values(), ONLY_NBIA))
    ]
    assert RESTRICTED not in api.get("v1/getCollectionValues").body.decode()
    rows = api.get("v1/getBodyPartValues", Collection=ONLY_NBIA).rows
    assert rows[0] == {}
    assert {"BodyPartExamined": "BRAIN"} in rows
    assert {"Modality": "PT"} in api.get("v4/getModalityValues", Collection=ONLY_NBIA).rows
    assert api.get("v4/getManufacturerValues", Collection=ONLY_NBIA).rows == [{"Manufacturer": "Demo Imaging"}]
    got = api.get("v4/getPatientByCollectionAndModality", Collection=ONLY_NBIA, Modality="PT")
    assert got.rows == [{"PatientId": "NBIA 002"}]


def test_patients_and_studies(api, demo):
    """Patients are `PatientId`, studies' patients `PatientID`; one patient of two collections has two rows."""
    row = next(row for row in api.get("v1/getPatient", Collection=ONLY_NBIA).rows if row["PatientId"] == "NBIA-001")
    assert {"Phantom": "NO", "SpeciesCode": "337915000", "SpeciesDescription": "Homo sapiens"}.items() <= row.items()
    assert "Authorized" not in row
    assert api.get("v4/getPatient", PatientId="NBIA-001").rows[0]["Authorized"] == 1
    both = [row["Collection"] for row in api.get("v4/getPatient").rows if row["PatientId"] == "DEMO-001"]
    assert sorted(both) == ["DEMO-CT-MR", "Demo Mixed Modalities"]
    study = demo.archive.find(demo.named["tail-a"]).study_uid
    (row,) = api.get("v1/getPatientStudy", StudyInstanceUID=study).rows
    assert (row["PatientID"], row["SeriesCount"], row["StudyDescription"][-5:]) == ("NBIA-001", 4, "study")


@pytest.mark.parametrize(
    ("path", "params", "found"),
    [
        ("v1/getUpdatedSeries", {"fromDate": "05/05/2024"}, 7),
        ("v1/getUpdatedSeries", {"fromDate": "06/05/2024"}, 0),
        ("v1/getUpdatedSeries", {"fromDate": "2024-05-05"}, 0),
        ("v4/getUpdatedSeries", {"fromDate": "05-05-2024"}, 7),
        ("v4/getUpdatedSeries", {"fromDate": "05-06-2024"}, 0),
        ("v1/NewPatientsInCollection", {"Collection": ONLY_NBIA, "Date": "2024/05/05"}, 2),
        ("v1/NewPatientsInCollection", {"Collection": ONLY_NBIA, "Date": "2024/05/06"}, 0),
        ("v4/NewPatientsInCollection", {"Collection": ONLY_NBIA, "fromDate": "05-06-2024"}, 2),
        ("v4/NewPatientsInCollection", {"Collection": ONLY_NBIA, "fromDate": "05-07-2024"}, 0),
        ("v2/NewStudiesInPatientCollection", {"Collection": ONLY_NBIA, "Date": "2024/05/05"}, 2),
        ("v4/NewStudiesInPatientCollection", {"Collection": ONLY_NBIA, "fromDate": "nonsense"}, 0),
    ],
)
def test_what_is_new(api, path, params, found):
    """Each version reads dates in its own style, strictly after or from them on; others find nothing, with 200."""
    got = api.get(path, **params)
    assert got.status == 200
    assert (len(got.rows) if got.body else 0) == found
    if path == "v1/getUpdatedSeries" and found:
        assert in_order(list(got.rows[0]), [*SERIES_V1[:15], "DateReleased"])


def test_sizes_and_instances(api, demo):
    """Sizes are sums, of an unknown series `[{}]`; instances are UIDs, of an unknown series nothing."""
    one = demo.archive.find(demo.named["tail-b"])
    for version in ("v1", "v2", "v4"):
        assert api.get(f"{version}/getSeriesSize", SeriesInstanceUID=one.uid).rows == [
            {"TotalSizeInBytes": one.size, "ObjectCount": 3}
        ]
        assert api.get(f"{version}/getSeriesSize", SeriesInstanceUID="9.9").body == b"[{}]"
        rows = api.get(f"{version}/getSOPInstanceUIDs", SeriesInstanceUID=one.uid).rows
        assert {row["SOPInstanceUID"] for row in rows} == {file.sop_instance_uid for file in one.files}
        assert api.get(f"{version}/getSOPInstanceUIDs", SeriesInstanceUID="9.9").body == b""
        denied = api.get(f"{version}/getSOPInstanceUIDs", SeriesInstanceUID=demo.named["restricted"])
        assert bool(denied.body) is (version == "v4")


def test_metadata_of_one_series(api, demo):
    """`getSeriesMetaData` of v1: one row of texts with spaced keys, three styles of dates, and 204 for the unknown."""
    (row,) = api.get("v1/getSeriesMetaData", SeriesInstanceUID=demo.named["tail-a"]).rows
    assert all(isinstance(value, str) for value in row.values())
    assert list(row)[:5] == ["Series UID", "Collection", "3rd Party Analysis", "Data Description URI", "Subject ID"]
    assert (row["Series Number"], row["Number of Images"], row["File Location"]) == ("2.000000", "2", "1")
    assert AMERICAN.fullmatch(row["Study Date"])
    assert re.fullmatch(r"[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d 00:00:00 UTC \d{4}", row["Series Date"])
    assert row["Date Released"] == row["TimeStamp"] == "Mon May 06 00:00:00 UTC 2024"
    for uid in ("9.9", demo.named["restricted"]):
        got = api.get("v1/getSeriesMetaData", SeriesInstanceUID=uid)
        assert (got.status, got.body) == (204, b"")
    rle = next(one for one in demo.archive.series if one.description and "," in one.description)
    (row,) = api.get("v1/getSeriesMetaData", SeriesInstanceUID=rle.uid).rows
    assert "," not in row["Series Description"]


def test_metadata_of_many_series(api, demo):
    """`getSeriesMetadata` of v4: a quoted CSV of 40 columns, one row for each known series, whatever the UIDs wear."""
    uids = [demo.named["acquisitions"], demo.named["no-description"], "9.9", demo.named["restricted"]]
    got = api.post("v4/getSeriesMetadata", list=", ".join(f"'{uid}'" for uid in uids))
    assert (got.type, got.headers["Content-Disposition"]) == ("text/csv", 'attachment; filename="SeriesMetaData.csv"')
    rows = table_of(got.body)
    assert [row["SeriesInstanceUID"] for row in rows] == uids[:2]
    assert len(rows[0]) == 40
    assert got.body.startswith(b'"PatientID","PatientName",')
    assert (rows[0]["SliceThickness(mm)"], rows[1]["SeriesDescription"], rows[0]["ImageCount"]) == ("3, 4", "", "12")
    assert AMERICAN.fullmatch(rows[0]["DateReleased"])
    assert len(api.post("v4/getSeriesMetadata", list=uids[0], format="json").rows) == 1
    assert table_of(api.post("v4/getSeriesMetadata", list="9.9").body) == []
    assert api.post("v4/getSeriesMetadata").status == 400


def test_older_metadata_of_many_series(api, demo):
    """`getSeriesMetadata2` has 24 columns and ISO dates, `getSeriesMetadata3` 38 and a row for each thickness."""
    uid = demo.named["acquisitions"]
    (row,) = table_of(api.post("getSeriesMetadata2", list=uid).body)
    assert (len(row), row["Series ID"], row["Date Released"]) == (24, uid, "2024-05-06")
    rows = table_of(api.post("v2/getSeriesMetadata3", list=uid).body)
    assert [(len(row), row["SliceThickness(mm)"]) for row in rows] == [(38, "3"), (38, "4")]


def test_shared_cart(api, demo):
    """`getContentsByName` gives a cart's series with `Date Released`, in v1 without a token; other names nothing."""
    rows = api.get("v1/getContentsByName", name=CART).rows
    assert {row["SeriesInstanceUID"] for row in rows} == set(demo.archive.carts[0].series)
    assert in_order(list(rows[0]), [*SERIES_V1[:15], "Date Released"])
    assert api.get("v1/getContentsByName", name="other").body == b""
    assert api.get("v4/getContentsByName", name=CART).status == 404
    assert api.post("createSharedList", name="mine", list=demo.named["single"]).status == 200
    assert api.get("getSharedList", name="mine").rows == [{"SeriesInstanceUID": demo.named["single"]}]


def test_denied_series(api, demo):
    """Only what is refused is listed; 204 when nothing is."""
    uids = f"{demo.named['single']},{demo.named['restricted']}"
    assert api.get("v4/getDeniedSeries", seriesList=uids).rows == [{"SeriesInstanceUID": demo.named["restricted"]}]
    assert api.get("v4/getDeniedSeries", seriesList=demo.named["single"]).status == 204


def test_collections_cite_and_license(api, demo):
    """Descriptions are HTML with the DOI; v4 lacks three of the keys; licences have their terms."""
    (row,) = api.get("getCollectionDescriptions", collectionName="demo-nc").rows
    assert list(row) == [
        "description", "id", "collectionDescTimestamp", "collectionName", "userName", "licenseId", "descriptionURI",
    ]  # fmt: skip
    assert row["descriptionURI"] in row["description"]
    assert row["collectionDescTimestamp"] == 1_614_816_000_000
    rows = api.get("v4/getCollectionDescriptions").rows
    assert set(rows[0]) == {"description", "id", "collectionName", "descriptionURI"}
    assert {one["collectionName"] for one in rows} == {*NAMES.values(), ONLY_NBIA}
    licences = {one["shortName"]: one["commercialUse"] for one in api.get("getLicenses").rows}
    assert licences == {"CC BY 4.0": "YES", "CC BY 3.0": "YES", "CC BY-NC 4.0": "NO"}
    doi = demo.archive.collections[0].doi
    rows = api.post("v4/getCollectionOrSeriesForDOI", DOI=doi, CollectionOrSeries="series").rows
    assert set(rows[0]) == {"collection", "seriesInstanceUID", "thirdPartyAnanlysis", "authorized"}
    assert api.get("getCollectionValuesAndCounts").rows[0] == {"criteria": "DEMO-CT-MR", "count": "3"}


def test_tags(api, demo):
    """Tags of the first image as texts, items of sequences behind `>`; of an unknown series nothing."""
    rows = api.get("v4/getDicomTags", SeriesUID=demo.named["tail-a"]).rows
    assert {"element": "(0010,0020)", "name": "Patient ID", "data": "NBIA-001"} in rows
    seg = next(one for one in demo.archive.series if one.modality == "SEG")
    assert any(row["element"].startswith(">(") for row in api.get("getDicomTags", SeriesUID=seg.uid).rows)
    assert api.get("v4/getDicomTags", SeriesUID="9").body == b""


def test_search_and_manifests(api, demo):
    """A search counts patients and pages them; manifests have six lines and then the UIDs, by search or by list."""
    criteria = {"criteriaType0": "CollectionCriteria", "value0": ONLY_NBIA}
    found = api.post("v4/getSimpleSearch", **criteria, start="0", size="1").rows
    assert (found["totalPatients"], len(found["resultSet"])) == (2, 1)
    assert found["resultSet"][0]["totalNumberOfSeries"] == 2
    assert api.post("v4/getSimpleSearch", **criteria, size="many").status == 500
    both = criteria | {"criteriaType1": "ImageModalityCriteria", "value1": "MR"}
    lines = api.post("v4/getManifestForSimpleSearch", **both, size="1000000").body.decode().splitlines()
    assert [line.partition("=")[0] for line in lines[:6]] == [
        "downloadServerUrl", "includeAnnotation", "noOfrRetry", "databasketId", "manifestVersion",
        "ListOfSeriesToDownload",
    ]  # fmt: skip
    assert set(lines[6:]) == {demo.named["acquisitions"], demo.named["single"]}
    text = api.post("v4/getManifestText", list=f"{demo.named['single']},9").body.decode()
    assert text.endswith(f"ListOfSeriesToDownload=\n{demo.named['single']}\n")
    text = api.post("getManifestForCollection", collection=ONLY_NBIA.lower()).body.decode()
    assert len(text.splitlines()) == 12
    assert api.post("getAdvancedQCSearch").status == 401


def test_refusals(api):
    """Missing parameters are 400 in plain words; v4 refuses parameters that it does not know, v1 ignores them."""
    for path in ("v1/getImage", "v4/getImage", "v1/getSeriesSize", "v1/getSOPInstanceUIDs"):
        got = api.get(path)
        assert (got.status, got.type) == (400, "application/json")
        assert got.body == b"A parameter, SeriesInstanceUID, is required for this API call."
    got = api.get("v4/getSeries", Collection=ONLY_NBIA, foo="1")
    assert got.status == 400
    assert got.body.startswith(b"Invalid query parameter: 'foo'. Allowed parameters are: [Collection, PatientID, ")
    assert len(api.get("v1/getSeries", Collection=ONLY_NBIA, foo="1").rows) == 6
    assert api.get("v4/NewPatientsInCollection", Collection=ONLY_NBIA, Date="2024/01/01").status == 400
    got = api.get("v1/getSeries", format="yaml")
    assert (got.status, got.body) == (500, b"Server was not able to process your request")


def test_formats(api):
    """The same list as CSV, CSV file, HTML and XML, in any case of letters."""
    path, where = "v4/getSeries", {"Collection": ONLY_NBIA}
    expected = len(api.get(path, **where).rows)
    got = api.get(path, **where, format="CSV")
    assert got.type == "text/csv"
    assert len(table_of(got.body)) == expected
    assert list(table_of(got.body)[0]) == SERIES_V4
    assert api.get(path, **where, format="csv-download").headers["Content-Disposition"].startswith("attachment")
    got = api.get(path, **where, format="xml")
    assert (got.type, len(ET.fromstring(got.body).findall("Row"))) == ("application/xml", expected)
    got = api.get(path, **where, format="html")
    assert (got.type, got.body.count(b"<TR>")) == ("text/html", expected + 1)
    assert api.get("v1/getCollectionValues", format="csv").body.splitlines()[0] == b"Collection"


def test_rendering_of_nulls_and_quotes():
    """Nulls are empty cells, a null in the first column shifts its row, and quotes and tags are escaped."""
    rows = ({"A": 'say "x"', "B": None, "C": True}, {"A": None, "B": "<b>", "C": 3})
    table = Table(("A", "B", "C"), rows)
    assert render_csv(table) == '"A","B","C"\n"say ""x""","","true"\n","","<b>","3"\n'
    assert "<TD>&nbsp;</TD><TD>true</TD>" in render_html(table)
    assert "<B type='java.lang.String'>&lt;b&gt;</B><C type='java.lang.Integer'>3</C>" in render_xml(table)


def test_small_texts(api, demo):
    """Digests, classes and health are texts."""
    file = demo.archive.find(demo.named["single"]).files[0]
    for path, name in (("v1/getM5HashForImage", "SOPInstanceUid"), ("v4/getMD5HashForImage", "SOPInstanceUID")):
        got = api.get(path, **{name: file.sop_instance_uid})
        assert (got.type, got.body.decode()) == ("text/plain", file.md5)
        assert api.get(path, **{name: "9"}).body == b""
    got = api.post("v4/getMD5Hierarchy", Collection=ONLY_NBIA)
    assert re.fullmatch(rb"[0-9a-f]{32}", got.body)
    assert b"1.2.840.10008.5.1.4.1.1.2=CT Image Storage\n" in api.get("v1/getAllSOPClassDefinition").body
    assert api.get("v1/getUserAgreementTxt").status == 404
    assert api.get("v1/status").status == api.get("v1/up").status == 200
