"""What TCIA answers, in one spelling: every API version has its own names, dates and numbers; these records have one.

Fields are DICOM keywords where there are any. What the site leaves out, gives empty, or gives in no usable form is
None; only a row without its identifying field is an error. Everything here is pure.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TypeVar, get_type_hints

import msgspec

from pipeline.sources.api_body import ShapeError, clean_text

T = TypeVar("T", bound=msgspec.Struct)
_BIGINT = 2**63 - 1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of an answer. `msgspec.structs.asdict` makes a dict of it."""


class Series(Row, frozen=True, kw_only=True):
    """A series. `FileSize` in bytes, of all its DICOM files unpacked; `ImageCount` of its files; dates in ISO 8601."""

    SeriesInstanceUID: str
    StudyInstanceUID: str | None = None
    PatientID: str | None = None
    collection: str | None = None
    Modality: str | None = None
    BodyPartExamined: str | None = None
    SeriesNumber: int | None = None
    SeriesDescription: str | None = None
    SeriesDate: str | None = None
    ProtocolName: str | None = None
    StudyDescription: str | None = None
    StudyDate: str | None = None
    Manufacturer: str | None = None
    ManufacturerModelName: str | None = None
    SoftwareVersions: str | None = None
    ImageCount: int | None = None
    FileSize: int | None = None
    LicenseName: str | None = None
    LicenseURI: str | None = None
    DataDescriptionURI: str | None = None
    PatientSex: str | None = None
    PatientAge: str | None = None
    AdmittingDiagnosesDescription: str | None = None
    Site: str | None = None
    AnnotationsFlag: bool | None = None
    ThirdPartyAnalysis: bool | None = None
    ReleasedStatus: bool | None = None
    Authorized: bool | None = None
    DateReleased: str | None = None
    MaxSubmissionTimestamp: str | None = None


class SeriesMetadata(Series, frozen=True, kw_only=True):
    """A series with what only the metadata calls tell. `PixelSpacing` and `SliceThickness` in mm, as text."""

    PatientName: str | None = None
    EthnicGroup: str | None = None
    Phantom: bool | None = None
    SpeciesCode: str | None = None
    SpeciesDescription: str | None = None
    StudyID: str | None = None
    SOPClassUID: str | None = None
    PixelSpacing: str | None = None
    SliceThickness: str | None = None
    AnnotationSize: int | None = None
    LongitudinalTemporalEventType: str | None = None
    LongitudinalTemporalOffsetFromEvent: str | None = None


class Patient(Row, frozen=True, kw_only=True):
    """A patient in one collection; the same PatientID may occur in several."""

    PatientID: str
    collection: str | None = None
    PatientName: str | None = None
    PatientBirthDate: str | None = None
    PatientSex: str | None = None
    EthnicGroup: str | None = None
    Phantom: bool | None = None
    SpeciesCode: str | None = None
    SpeciesDescription: str | None = None
    Authorized: bool | None = None


class Study(Row, frozen=True, kw_only=True):
    """A study."""

    StudyInstanceUID: str
    PatientID: str | None = None
    collection: str | None = None
    StudyDate: str | None = None
    StudyDescription: str | None = None
    StudyID: str | None = None
    SeriesCount: int | None = None
    PatientName: str | None = None
    PatientAge: str | None = None
    PatientSex: str | None = None
    PatientBirthDate: str | None = None
    EthnicGroup: str | None = None
    AdmittingDiagnosesDescription: str | None = None
    LongitudinalTemporalEventType: str | None = None
    LongitudinalTemporalOffsetFromEvent: str | None = None
    Authorized: bool | None = None


class SeriesSize(Row, frozen=True, kw_only=True):
    """How large a series is: bytes of its files, and how many."""

    FileSize: int
    ImageCount: int


class Instance(Row, frozen=True, kw_only=True):
    """An instance of a series."""

    SOPInstanceUID: str


class Tag(Row, frozen=True, kw_only=True):
    """A DICOM element of a series' first image; nested elements begin with `>`."""

    element: str
    name: str | None = None
    data: str | None = None


class Description(Row, frozen=True, kw_only=True):
    """What TCIA says about a collection; `description` is HTML."""

    collection: str
    description: str | None = None
    DataDescriptionURI: str | None = None
    id: int | None = None
    LicenseID: int | None = None
    UserName: str | None = None
    timestamp: str | None = None


class DoiEntry(Row, frozen=True, kw_only=True):
    """A collection, or a series, that a DOI stands for."""

    collection: str
    SeriesInstanceUID: str | None = None
    ThirdPartyAnalysis: bool | None = None
    Authorized: bool | None = None


# Spellings that are not a field's own but for case, spaces and punctuation.
_ALIASES = {
    "seriesuid": "SeriesInstanceUID",
    "seriesid": "SeriesInstanceUID",
    "studyuid": "StudyInstanceUID",
    "subjectid": "PatientID",
    "sopuid": "SOPInstanceUID",
    "collectionname": "collection",
    "project": "collection",
    "studydesc": "StudyDescription",
    "filesizebytes": "FileSize",
    "totalsizeinbytes": "FileSize",
    "numberofimages": "ImageCount",
    "objectcount": "ImageCount",
    "licenseurl": "LicenseURI",
    "collectionuri": "DataDescriptionURI",
    "descriptionuri": "DataDescriptionURI",
    "timestamp": "MaxSubmissionTimestamp",
    "admittingdiagnosisdescription": "AdmittingDiagnosesDescription",
    "3rdpartyanalysis": "ThirdPartyAnalysis",
    "thirdpartyananlysis": "ThirdPartyAnalysis",  # the API's own slip
    "pixelspacingmmrow": "PixelSpacing",
    "slicethicknessmm": "SliceThickness",
    "filelocation": "StudyID",  # which getSeriesMetaData gives under that heading
    "collectiondesctimestamp": "timestamp",
}
_TIMES = {"DateReleased", "MaxSubmissionTimestamp", "timestamp"}
_MONTHS = {name: n for n, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}  # noqa: SIM905
_ISO = re.compile(r"(\d{4})[-/](\d\d?)[-/](\d\d?)(?:[ T](\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?Z?)?", re.ASCII)
_AMERICAN = re.compile(r"(\d\d?)[-/](\d\d?)[-/](\d{4})(?:[ T](\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?)?", re.ASCII)
_JAVA = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) (\d\d) (\d\d):(\d\d):(\d\d) \S{1,40} (\d{4})", re.ASCII)


def squeeze(name: str) -> str:
    """Take case, spaces and punctuation out of a name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def parse_text(value: object) -> str | None:
    """Text without unprintable characters; None for nothing, the word `null`, and what is no scalar."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        number = parse_number(value)
        return str(value)[:40] if number is None else str(number)
    text = clean_text(value) if isinstance(value, str) else ""
    return text if text and text != "null" else None


def parse_number(value: object) -> int | None:
    """A whole number that SQL's BIGINT holds, also from text such as `3000923.000000`; else None."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([+-]?\d{1,19})(?:\.0*)?\s*", value, re.ASCII)
        value = int(match[1]) if match else None
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -_BIGINT - 1 <= value <= _BIGINT else None


def parse_count(value: object) -> int | None:
    """A number that is not negative, or None."""
    number = parse_number(value)
    return number if number is not None and number >= 0 else None


def parse_flag(value: object) -> bool | None:
    """Yes or no in any of the API's spellings, or None."""
    word = str(value).strip().lower() if isinstance(value, (str, bool, int)) else ""
    return True if word in {"true", "yes", "y", "1"} else False if word in {"false", "no", "n", "0"} else None


def parse_date(value: object) -> str | None:
    """A date of any version in ISO 8601: `2000-12-31`, or `2000-12-31T23:59:59` where it has a time; else None.

    Read are `2000-12-31[ 23:59:59.0]` (v1), `12-31-2000` (v4, month first), `Sun Dec 31 23:59:59 UTC 2000` (metadata of
    v1; the zone is dropped), and milliseconds since 1970.
    """
    moment: dt.datetime | None = None
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
            moment = epoch + dt.timedelta(milliseconds=value)
        elif isinstance(value, str):
            text = value.strip()
            if match := _ISO.fullmatch(text):
                moment = _moment(match[1], match[2], match[3], match.groups()[3:])
            elif match := _AMERICAN.fullmatch(text):
                moment = _moment(match[3], match[1], match[2], match.groups()[3:])
            elif match := _JAVA.fullmatch(text):
                moment = _moment(match[6], str(_MONTHS.get(match[1], 0)), match[2], match.groups()[2:5])
            elif re.fullmatch(r"\d{11,14}", text, re.ASCII):
                return parse_date(int(text))
    except (ValueError, OverflowError):  # the 31st of February, a year beyond 9999
        return None
    if moment is None:
        return None
    moment = moment.replace(tzinfo=None, microsecond=0)
    return moment.isoformat() if moment.time() != dt.time() else moment.date().isoformat()


def _moment(year: str, month: str, day: str, clock: Iterable[str | None]) -> dt.datetime:
    hour, minute, second = (int(part or 0) for part in clock)
    return dt.datetime(int(year), int(month), int(day), hour, minute, second, tzinfo=dt.UTC)


def _is_date(name: str) -> bool:
    return name in _TIMES or name.endswith("Date")


@cache
def _readers(kind: type[Row]) -> tuple[dict[str, str], dict[str, Callable[[object], object]], tuple[str, ...]]:
    """How to read a record: squeezed spellings to fields, a reader for each field, and the fields it cannot lack."""
    hints = get_type_hints(kind)
    names = {squeeze(field.name): field.name for field in msgspec.structs.fields(kind)}
    names |= {alias: field for alias, field in _ALIASES.items() if field in hints and alias not in names}
    readers: dict[str, Callable[[object], object]] = {}
    for field, hint in hints.items():
        if hint in {int, int | None}:
            readers[field] = parse_number if field == "SeriesNumber" else parse_count
        elif hint in {bool, bool | None}:
            readers[field] = parse_flag
        else:
            readers[field] = parse_date if _is_date(field) else parse_text
    required = tuple(field.name for field in msgspec.structs.fields(kind) if field.required)
    return names, readers, required


def sql_columns(kind: type[Row]) -> dict[str, str]:
    """SQL types of a record's fields, in its order: for `CREATE TABLE`."""
    types = {int: "BIGINT", int | None: "BIGINT", bool | None: "BOOLEAN"}
    hints = get_type_hints(kind)
    return {field.name: types.get(hints[field.name], "VARCHAR") for field in msgspec.structs.fields(kind)}


def read_rows(kind: type[T], records: Iterable[Mapping[str, object]], *, lenient: bool = False) -> list[T]:
    """Turn objects of an answer into records, each once; an answer of nothing but `{}` is an empty list.

    Of two spellings of one field, the first that says something counts. `lenient`: rows without their identifying
    field are passed over, unless there are no others.

    Raises
    ------
    ShapeError
        When a row lacks its identifying field, naming the row's number and what it has.
    """
    found: dict[T, None] = {}
    bare, problem = 0, ""
    assert issubclass(kind, Row)
    names, readers, required = _readers(kind)
    for number, record in enumerate(records, 1):
        if not record:
            bare = bare or number
            continue
        values: dict[str, object] = {}
        for key, raw in record.items():
            field = names.get(squeeze(key))
            if field is not None and raw is not None and values.get(field) is None:
                values[field] = readers[field](raw)
        lacking = next((field for field in required if values.get(field) is None), "")
        if lacking:
            has = ", ".join(sorted(clean_text(key)[:40] for key in record)[:8])
            problem = problem or f"row {number} has no usable {lacking}, but {has}"
            continue
        found[kind(**values)] = None
    if bare and found:
        problem = problem or f"row {bare} is empty"
    if problem and not (lenient and found):
        raise ShapeError(problem)
    return list(found)


def read_values(column: str, records: Iterable[Mapping[str, object]]) -> list[str]:
    """The values of one column, each once, sorted. The empty value (`{}`) is left out.

    Raises
    ------
    ShapeError
        When a row has other columns only, or no scalar in this one.
    """
    values = set()
    wanted = squeeze(column)
    for number, record in enumerate(records, 1):
        cells = [value for key, value in record.items() if squeeze(key) == wanted]
        if record and (not cells or isinstance(cells[0], (dict, list))):
            has = ", ".join(sorted(clean_text(key)[:40] for key in record)[:8])
            raise ShapeError(f"row {number} has no usable {column}, but {has}")
        values |= {text for text in map(parse_text, cells) if text is not None}
    return sorted(values)
