"""Answers of TCIA in one spelling; whatever comes, a parser gives clean values or says what is wrong."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources import tcia_body, tcia_rows, tcia_search
from pipeline.sources.tcia_api import ENDPOINTS, parse_answer, plan_call
from pipeline.sources.tcia_body import ShapeError
from pipeline.sources.tcia_rows import Patient, Series, SeriesMetadata, SeriesSize, Study, parse_date, read_rows

V1 = {
    "SeriesInstanceUID": "1.2",
    "StudyInstanceUID": "1.1",
    "Modality": "CT",
    "SeriesDate": "2000-01-31 00:00:00.0",
    "SeriesNumber": 3,
    "AnnotationsFlag": True,
    "Collection": "X",
    "PatientID": "P",
    "ImageCount": 133,
    "TimeStamp": "2012-05-06 07:08:09.0",
    "LicenseURI": "u",
    "CollectionURI": "d",
    "FileSize": 70012345,
    "DateReleased": "2012-05-07 00:00:00.0",
    "StudyDesc": "chest",
    "ThirdPartyAnalysis": "NO",
}
V4 = V1 | {"SeriesDate": "01-31-2000", "MaxSubmissionTimestamp": "05-06-2012", "DateReleased": "05-07-2012"}
V4 = {**V4, "DataDescriptionURI": "d", "ReleasedStatus": "Yes", "Authorized": 1}
del V4["TimeStamp"], V4["CollectionURI"]
METADATA = {
    "Series UID": "1.2",
    "Study UID": "1.1",
    "Subject ID": "P",
    "Collection": "X",
    "3rd Party Analysis": "NO",
    "Data Description URI": "d",
    "Study Description": "chest",
    "Study Date": "01-30-2000",
    "Series Date": "Mon Jan 31 00:00:00 UTC 2000",
    "Modality": "CT",
    "Number of Images": "133",
    "File Size": "70012345",
    "File Location": "study 7",
    "Series Number": "3.000000",
    "License URL": "u",
    "Annotations Flag": "true",
    "TimeStamp": "Sun May 06 07:08:09 UTC 2012",
    "Date Released": "Mon May 07 00:00:00 UTC 2012",
}


def read(kind: type[Any], *records: object) -> list[Any]:
    """Read rows as from an answer's bytes."""
    return read_rows(kind, tcia_body.parse_records(json.dumps(records).encode()))


def test_versions_agree() -> None:
    """The same series in v1, v4 and the metadata call has the same values in the same fields."""
    (one,), (four,) = read(Series, V1), read(Series, V4)
    (meta,) = read(SeriesMetadata, METADATA)
    expected = {
        "SeriesInstanceUID": "1.2",
        "StudyInstanceUID": "1.1",
        "PatientID": "P",
        "collection": "X",
        "Modality": "CT",
        "SeriesNumber": 3,
        "SeriesDate": "2000-01-31",
        "StudyDescription": "chest",
        "ImageCount": 133,
        "FileSize": 70012345,
        "LicenseURI": "u",
        "DataDescriptionURI": "d",
        "AnnotationsFlag": True,
        "ThirdPartyAnalysis": False,
        "DateReleased": "2012-05-07",
    }
    for row in (one, four, meta):
        found = msgspec.structs.asdict(row)
        assert {key: found[key] for key in expected} == expected
        assert row.SeriesDescription is None
        assert row.Manufacturer is None
    assert one.MaxSubmissionTimestamp == meta.MaxSubmissionTimestamp == "2012-05-06T07:08:09"
    assert four.MaxSubmissionTimestamp == "2012-05-06"
    assert (four.ReleasedStatus, four.Authorized) == (True, True)
    assert (meta.StudyID, meta.StudyDate) == ("study 7", "2000-01-30")


@pytest.mark.parametrize("key", ["PatientID", "PatientId", "Subject ID", "Patient ID"])
def test_patients_have_one_spelling(key: str) -> None:
    """Every name of the patient's identifier means the same."""
    assert read(Patient, {key: "P", "Collection": "X", "PatientName": ""}) == [Patient(PatientID="P", collection="X")]


def test_studies_and_sizes() -> None:
    """Studies and sizes are read in either version's names."""
    (study,) = read(Study, {"StudyInstanceUID": "1", "AdmittingDiagnosisDescription": "a", "SeriesCount": "2"})
    assert (study.AdmittingDiagnosesDescription, study.SeriesCount) == ("a", 2)
    assert read(SeriesSize, {"TotalSizeInBytes": 7, "ObjectCount": 2}) == [SeriesSize(FileSize=7, ImageCount=2)]
    assert read(SeriesSize, {}) == []


@pytest.mark.parametrize(
    ("given_", "iso"),
    [
        ("2000-01-01 00:00:00.0", "2000-01-01"),
        ("2000-01-02 03:04:05.678", "2000-01-02T03:04:05"),
        ("12-31-2000", "2000-12-31"),
        ("Thu Mar 08 00:00:00 UTC 2019", "2019-03-08"),
        ("Thu Mar 08 01:02:03 CEST 2019", "2019-03-08T01:02:03"),
        ("2019-03-08", "2019-03-08"),
        (1552003200000, "2019-03-08"),
        ("1552003200000", "2019-03-08"),
        ("31-12-2000", None),
        ("02-30-2000", None),
        ("0000-00-00 00:00:00.0", None),
        ("yesterday", None),
        (10**30, None),
        (True, None),
        ({}, None),
    ],
)
def test_dates(given_: object, iso: str | None) -> None:
    """All forms of the API become ISO 8601, and what is none becomes nothing."""
    assert parse_date(given_) == iso


@pytest.mark.parametrize(
    ("given_", "number"),
    [
        ("3000923.000000", 3000923),
        (" 12 ", 12),
        (12.0, 12),
        (0, 0),
        ("-4", None),
        (12.5, None),
        (1e400, None),
        (2**63, None),
        ("9" * 30, None),
        ("١٢", None),
        (True, None),
        ([3], None),
        ("", None),
    ],
)
def test_counts(given_: object, number: int | None) -> None:
    """Text becomes a number; what SQL could not hold, or is no count, becomes nothing."""
    assert tcia_rows.parse_count(given_) == number


def test_the_first_spelling_that_says_something_counts() -> None:
    """A row may name a field twice."""
    assert read(Patient, {"PatientId": None, "PatientID": "A", "Subject ID": "B"}) == [Patient(PatientID="A")]


def test_a_row_without_its_name_is_an_error() -> None:
    """A series without UID is neither left out nor invented."""
    with pytest.raises(ShapeError, match=r"row 2 has no usable SeriesInstanceUID, but Modality"):
        read(Series, V1, {"Modality": "CT"})
    with pytest.raises(ShapeError, match="row 1 is empty"):
        read(Series, {}, V1)


def test_a_single_object_is_a_list_of_one_and_rows_come_once() -> None:
    """An object instead of a list, a BOM, and equal rows do no harm."""
    body = b"\xef\xbb\xbf" + json.dumps(V1).encode()
    assert parse_answer("/v1/getSeries", body) == read(Series, V1) == read(Series, V1, V1)


def test_values_leave_out_the_empty_one() -> None:
    """A bare object among values means series without a value."""
    body = b'[{},{"BodyPartExamined":"LUNG"},{"BodyPartExamined":"ABDOMEN"},{"BodyPartExamined":"LUNG"}]'
    assert parse_answer("/v1/getBodyPartValues", body) == ["ABDOMEN", "LUNG"]
    with pytest.raises(ShapeError, match="no usable BodyPartExamined, but error"):
        parse_answer("/v1/getBodyPartValues", b'{"error": "no"}')


def test_csv() -> None:
    """The metadata table is read with its odd headings, quotes, empty cells and line ends inside cells."""
    head = "PatientID,SeriesInstanceUID,SeriesDescription,PixelSpacing(mm)-Row,ImageCount,StudyDate".split(",")  # noqa: SIM905
    cells = [head, ["P", "1.2", 'a "b",\nc', "0.5, 0.7", "7", "01-31-2000"], ["null", "1.3", "", "", "", ""]]
    text = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells) + "\n"
    first, second = parse_answer("/v4/getSeriesMetadata", text.encode())
    assert (first.SeriesDescription, first.PixelSpacing, first.ImageCount) == ('a "b", c', "0.5, 0.7", 7)
    assert first.StudyDate == "2000-01-31"
    assert second == SeriesMetadata(SeriesInstanceUID="1.3")
    with pytest.raises(ShapeError, match="row 2 has 2 cells under 1 headings"):
        parse_answer("/v4/getSeriesMetadata", b"SeriesInstanceUID\n1,2\n")


def test_text_is_clean() -> None:
    """Control characters, lone surrogates and bytes that are not UTF-8 do not get through."""
    body = b'[{"SeriesInstanceUID":"1","SeriesDescription":"a\\u0000\\ud800b\x1b[0m\xff","Modality":" null "}]'
    (row,) = parse_answer("/v4/getSeries", body)
    assert row.SeriesDescription == "a b [0m\ufffd"
    assert row.Modality is None


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" + b"9" * 10_000 + b"]", b"[NaN]", b"[1,", b"\xff\xfe[\x00"])
def test_unreadable_json(body: bytes) -> None:
    """Nesting and numbers beyond reason are garbled, not a crash."""
    with pytest.raises(ShapeError):
        parse_answer("/v4/getSeries", body)


def test_rows_fit_into_sql() -> None:
    """The columns of a record make a table that takes its rows."""
    columns = tcia_rows.sql_columns(SeriesMetadata)
    assert columns["FileSize"] == "BIGINT"
    assert columns["AnnotationsFlag"] == "BOOLEAN"
    with duckdb.connect() as database:
        names = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
        database.execute(f"CREATE TABLE series ({names})")
        marks = ", ".join("?" * len(columns))
        row = read(SeriesMetadata, METADATA)[0]
        database.execute(f"INSERT INTO series VALUES ({marks})", msgspec.structs.astuple(row))
        found = database.execute("SELECT SeriesDate::DATE, FileSize + 1, Manufacturer FROM series").fetchone()
    assert found == (dt.date(2000, 1, 31), 70012346, None)


def test_manifests() -> None:
    """UIDs are found by the list's name, not by counting lines."""
    text = "downloadServerUrl=x\r\ndataType=y\r\nListOfSeriesToDownload=\r\n1.2\r\n1.3,\r\n\r\n1.2"
    assert tcia_body.parse_manifest(text.encode()) == ["1.2", "1.3"]
    for wrong in (b"", b"<html>", b"ListOfSeriesToDownload=\n../x\n"):
        with pytest.raises(ShapeError):
            tcia_body.parse_manifest(wrong)


def test_search_forms() -> None:
    """Criteria are numbered, alternatives repeat, ranges have two ends."""
    form = tcia_search.render_search(
        {"collection": ["A", "B"], "age": (1, 2), "released": (dt.date(2020, 1, 2), dt.date(2021, 3, 4))}, 5, 10
    )
    assert form == [
        ("criteriaType0", "CollectionCriteria"),
        ("value0", "A"),
        ("criteriaType1", "CollectionCriteria"),
        ("value1", "B"),
        ("criteriaType2", "PatientAgeRangeCriteria"),
        ("from2", "1"),
        ("to2", "2"),
        ("criteriaType3", "DateRangeCriteria"),
        ("fromDate3", "01-02-2020"),
        ("toDate3", "03-04-2021"),
        ("sortField", "subject"),
        ("sortDirection", "ascending"),
        ("start", "5"),
        ("size", "10"),
    ]
    for wrong in ({}, {"colour": "red"}, {"age": 3}):
        with pytest.raises(UsageError):
            tcia_search.render_search(wrong)


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("NewPatientsInCollection", "v4", ("fromDate", "03-01-2020")),
        ("NewPatientsInCollection", "v1", ("Date", "2020/02/29")),
        ("NewStudiesInPatientCollection", "v1", ("Date", "2020/02/29")),
        ("getUpdatedSeries", "v4", ("fromDate", "02-29-2020")),
        ("getUpdatedSeries", "v1", ("fromDate", "29/02/2020")),
    ],
)
def test_since_in_each_version(name: str, version: Any, expected: tuple[str, str]) -> None:
    """Each version is asked in its own form, for the day itself too."""
    call = plan_call(name, version, {"since": dt.date(2020, 3, 1)})
    assert call is not None
    assert call.params == (expected,)


def test_counts_in_any_shape() -> None:
    """Counts as text, and values under another name, are read."""
    body = b'[{"criteria":"CT","count":"7"},{"Modality":"MR","Count":2,"authorized":true},{}]'
    assert parse_answer("/v4/getModalityValuesAndCounts", body) == [
        tcia_search.Count("CT", 7),
        tcia_search.Count("MR", 2),
    ]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
NAMES = st.sampled_from([*V1, *V4, *METADATA, "PatientId", "count", "criteria", "subjectId", "resultSet", "element"])
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(), inner, max_size=6),
    max_leaves=20,
)


def check_clean(value: Any) -> None:
    """Assert that a value can be printed, stored as UTF-8 and as BIGINT."""
    if isinstance(value, str):
        assert value.isprintable() or value == tcia_body.clean_text(value)
        value.encode()
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63
    elif isinstance(value, (list, tuple)):
        for each in value:
            check_clean(each)
    elif isinstance(value, msgspec.Struct):
        check_clean(msgspec.structs.astuple(value))


def parse_or_refusal(name: str, body: bytes) -> Any:
    """What an answer says, or why it says nothing."""
    try:
        return parse_answer(name, body)
    except ShapeError as error:
        return str(error)


@given(st.sampled_from(sorted(ENDPOINTS)), JUNK, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_any_json(name: str, value: object, encoding: str) -> None:
    """Any JSON is read into clean values, or refused as such."""
    found = parse_or_refusal(name, json.dumps(value).encode(encoding))
    if not isinstance(found, bytes):
        check_clean(found)


@given(st.sampled_from(sorted(ENDPOINTS)), st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes(name: str, body: bytes) -> None:
    """Any bytes at all are read, or refused as such; what is said about them is printable."""
    found = parse_or_refusal(name, body)
    if not isinstance(found, bytes):
        check_clean(found)
    tcia_body.describe_body(body).encode()
    assert len(tcia_body.explain_refusal(body)) <= 300


@given(st.dictionaries(st.sampled_from([*V1, *V4]), SCALARS), st.text())
def test_a_named_row_is_always_read(record: dict[str, object], description: str) -> None:
    """Whatever else is in it, a series with a UID becomes a row."""
    record |= {"SeriesInstanceUID": "1.2", "SeriesDescription": description}
    (row,) = read_rows(Series, [record])
    assert row.SeriesInstanceUID == "1.2"
    check_clean(row)


@given(st.text(alphabet='",\r\n\0a1.', max_size=60))
def test_any_csv(text: str) -> None:
    """Any table is read or refused as such."""
    try:
        found = parse_answer("/v4/getSeriesMetadata", f"SeriesInstanceUID,Modality\n{text}".encode())
    except ShapeError:
        return
    check_clean(found)


@given(SCALARS | JUNK)
def test_any_date(value: object) -> None:
    """A date is ISO 8601 or nothing."""
    found = parse_date(value)
    assert found is None or dt.datetime.fromisoformat(found)
