"""Rows of NBIA's answers: which columns an endpoint has in a version, in which order, and its dates. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from pipeline.demo.nbia_records import NbiaArchive, NbiaSeries

Cell = str | int | bool | None
Row = dict[str, Cell]
Values = dict[str, Cell | dt.date]
DateStyle = Callable[[dt.date], str]
Columns = tuple[str, ...]


class Table(msgspec.Struct, frozen=True):
    """What a list endpoint answers: columns in order, and rows that have them all; None is NULL."""

    columns: Columns
    rows: tuple[Row, ...]


def render_timestamp(date: dt.date) -> str:
    """As java.sql.Timestamp prints itself: v1 and v2."""
    return f"{date:%Y-%m-%d} 00:00:00.0"


def render_american(date: dt.date) -> str:
    """MM-dd-yyyy: v4."""
    return f"{date:%m-%d-%Y}"


def render_java_date(date: dt.date) -> str:
    """As java.util.Date prints itself, in English."""
    days, months = (
        ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"],
    )
    return f"{days[date.weekday()]} {months[date.month - 1]} {date.day:02d} 00:00:00 UTC {date.year}"


def _columns(*texts: str) -> Columns:
    return tuple(name for text in texts for name in text.split(", "))


_HEAD = (
    "SeriesInstanceUID, StudyInstanceUID, Modality, ProtocolName, SeriesDate, SeriesDescription, BodyPartExamined, "
    "SeriesNumber, AnnotationsFlag, Collection"
)
_MAKER = "Manufacturer, ManufacturerModelName, SoftwareVersions, ImageCount"
_PATIENT = "PatientName, PatientSex, EthnicGroup"
_PATIENT_V1 = "PatientName, PatientBirthDate, PatientSex, EthnicGroup"
_STUDY = "StudyInstanceUID, StudyDate, StudyDescription, AdmittingDiagnosesDescription, StudyID, PatientAge, PatientID"
_OFFSETS = "LongitudinalTemporalEventType, LongitudinalTemporalOffsetFromEvent"
_SPECIES = "Phantom, SpeciesCode, SpeciesDescription"
_RELEASED = "FileSize, DateReleased, StudyDesc, StudyDate, ThirdPartyAnalysis"

SERIES_V1 = _columns(_HEAD, "PatientID", _MAKER, "TimeStamp, LicenseName, LicenseURI, CollectionURI", _RELEASED)
SERIES_V4 = _columns(
    _HEAD,
    "Site, PatientID, PatientSex, PatientAge, AdmittingDiagnosisDescription",
    _MAKER,
    "MaxSubmissionTimestamp, LicenseName, LicenseURI, DataDescriptionURI",
    _RELEASED,
    "ReleasedStatus, Authorized",
)
UPDATED_V1 = _columns(_HEAD, "PatientID", _MAKER, "DateReleased")
CART = _columns(_HEAD, "PatientID", _MAKER, "Date Released")
PATIENT_V1 = _columns("PatientId", _PATIENT_V1, "Collection", _SPECIES)
PATIENT_V4 = _columns("PatientId", _PATIENT, "Collection", _SPECIES, "Authorized")
STUDY_V1 = _columns(_STUDY, _PATIENT_V1, "Collection, SeriesCount", _OFFSETS)
STUDY_V4 = _columns(_STUDY, _PATIENT, "Collection, SeriesCount", _OFFSETS, "Authorized")
METADATA_V1 = _columns(
    "Series UID, Collection, 3rd Party Analysis, Data Description URI, Subject ID, Study UID, Study Description, "
    "Study Date, Series Description, Manufacturer, Modality, SOP Class UID, Number of Images, File Size, "
    "File Location, Series Number, License Name, License URL, Annotation Size, Date Released, Series Date, "
    "Protocol Name, Body Part Examined, Annotations Flag, Manufacturer Model Name, Software Versions, TimeStamp"
)
METADATA_V2 = _columns(
    "Subject ID, Study UID, Study Description, Study Date, Series ID, Series Description, Number of images, "
    "File Size (Bytes), Collection Name, Modality, Manufacturer, 3rd Party Analysis, Data Description URI, "
    "Series Number, License Name, License URL, Date Released, Series Date, Protocol Name, Body Part Examined, "
    "Annotations Flag, Manufacturer Model Name, Software Versions, TimeStamp"
)
METADATA_V4 = _columns(
    f"PatientID, {_PATIENT}, {_SPECIES}, StudyInstanceUID, StudyDate, StudyDesc, AdmittingDiagnosisDescription, "
    f"StudyID, PatientAge, {_OFFSETS}, SeriesInstanceUID, Collection, Site, Modality, ProtocolName, SeriesDate, "
    "SeriesDescription, BodyPartExamined, SeriesNumber, AnnotationsFlag, Manufacturer, ManufacturerModelName, "
    "PixelSpacing(mm)-Row, SliceThickness(mm), SoftwareVersions, ImageCount, MaxSubmissionTimestamp, LicenseName, "
    "LicenseURI, DataDescriptionURI, FileSize, ReleasedStatus, DateReleased, ThirdPartyAnalysis, Authorized"
)
# Which 38 of the later 40 columns this endpoint has is not known; those two came last.
METADATA_V3 = tuple(name for name in METADATA_V4 if name not in {"ReleasedStatus", "Authorized"})

# A column holds the value of its own name without spaces, but for these.
_VALUE_OF = {
    "3rd Party Analysis": "ThirdPartyAnalysis",
    "AdmittingDiagnosesDescription": "AdmittingDiagnosisDescription",
    "Collection Name": "Collection",
    "CollectionURI": "DataDescriptionURI",
    "File Location": "StudyID",
    "File Size (Bytes)": "FileSize",
    "License URL": "LicenseURI",
    "Number of Images": "ImageCount",
    "Number of images": "ImageCount",
    "PatientId": "PatientID",
    "Series ID": "SeriesInstanceUID",
    "Series UID": "SeriesInstanceUID",
    "Study Description": "StudyDesc",
    "Study UID": "StudyInstanceUID",
    "StudyDescription": "StudyDesc",
    "Subject ID": "PatientID",
    "TimeStamp": "MaxSubmissionTimestamp",
}


def list_values(archive: NbiaArchive, series: NbiaSeries) -> Values:
    """All that any answer says of a series, by the names of v4."""
    licence = next((one for one in archive.licences if one.short_name == series.licence), None)
    return {
        "SeriesInstanceUID": series.uid,
        "StudyInstanceUID": series.study_uid,
        "Modality": series.modality,
        "ProtocolName": series.protocol,
        "SeriesDate": series.series_date,
        "SeriesDescription": series.description,
        "BodyPartExamined": series.body_part,
        "SeriesNumber": series.number,
        "AnnotationsFlag": False,
        "AnnotationSize": 0,
        "Collection": series.collection,
        "Site": series.collection,
        "PatientID": series.patient_id,
        "PatientName": series.patient_name or "",
        "PatientBirthDate": None,
        "PatientSex": series.patient_sex,
        "PatientAge": series.patient_age,
        "EthnicGroup": series.ethnic_group,
        "AdmittingDiagnosisDescription": None,
        "Phantom": "NO",
        "SpeciesCode": "337915000",
        "SpeciesDescription": "Homo sapiens",
        "StudyDate": series.study_date,
        "StudyDesc": series.study_description,
        "StudyID": series.study_id,
        "LongitudinalTemporalEventType": None,
        "LongitudinalTemporalOffsetFromEvent": None,
        "Manufacturer": series.manufacturer,
        "ManufacturerModelName": series.model,
        "SoftwareVersions": series.software,
        "SOPClassUID": series.sop_class,
        "PixelSpacing(mm)-Row": ", ".join(series.pixel_spacing) or None,
        "SliceThickness(mm)": ", ".join(series.slice_thickness) or None,
        "ImageCount": len(series.files),
        "FileSize": series.size,
        "MaxSubmissionTimestamp": series.submitted,
        "DateReleased": series.released,
        "LicenseName": licence.long_name if licence else None,
        "LicenseURI": licence.url if licence else None,
        "DataDescriptionURI": f"https://doi.org/{series.doi}",
        "ThirdPartyAnalysis": series.third_party,
        "ReleasedStatus": "Yes",
        "Authorized": 1,
    }


def shape_rows(columns: Columns, values: Iterable[Mapping[str, Cell | dt.date]], dates: DateStyle) -> Table:
    """Rows of some columns, in their order, with dates in one style."""

    def cell(value: Cell | dt.date) -> Cell:
        return dates(value) if isinstance(value, dt.date) else value

    names = [(name, _VALUE_OF.get(name, name.replace(" ", ""))) for name in columns]
    return Table(columns, tuple({name: cell(one[source]) for name, source in names} for one in values))


def shape_metadata_v1(values: Values) -> Table:
    """The one row of v1 getSeriesMetaData: all text, numbers with six decimals, and words without their commas."""
    row = shape_rows(METADATA_V1, [values], render_java_date).rows[0]
    study_date = values["StudyDate"]
    row["Study Date"] = render_american(study_date) if isinstance(study_date, dt.date) else None
    number = row["Series Number"]
    row["Series Number"] = None if number is None else f"{number}.000000"
    for name in ("Study Description", "Series Description"):
        text = row[name]
        row[name] = None if text is None else re.sub(r"[^A-Za-z0-9 .-]", "", str(text))
    maker = row["Manufacturer"]
    row["Manufacturer"] = None if maker is None else str(maker).replace(",", " ")
    return Table(METADATA_V1, ({name: render_text(value) for name, value in row.items()},))


def shape_metadata_v3(values: Iterable[tuple[NbiaSeries, Values]]) -> Table:
    """Shape getSeriesMetadata3: a row for each spacing and thickness that occur in a series."""
    spread: list[Values] = [
        one | {"PixelSpacing(mm)-Row": spacing, "SliceThickness(mm)": thickness}
        for series, one in values
        for spacing in series.pixel_spacing or (None,)
        for thickness in series.slice_thickness or (None,)
    ]
    return shape_rows(METADATA_V3, spread, dt.date.isoformat)


def list_patients(values: Iterable[Values]) -> list[Values]:
    """The first row of each patient of each collection."""
    return list({(one["Collection"], one["PatientID"]): one for one in reversed(list(values))}.values())[::-1]


def list_studies(values: Iterable[Values]) -> list[Values]:
    """A row for each study, with its number of series as SeriesCount."""
    studies: dict[object, list[Values]] = {}
    for one in values:
        studies.setdefault((one["Collection"], one["StudyInstanceUID"]), []).append(one)
    return [members[0] | {"SeriesCount": len(members)} for members in studies.values()]


def list_distinct(column: str, values: Iterable[Mapping[str, Cell | dt.date]]) -> Table:
    """A list of one column; NULL is one of its values and comes first, as MySQL sorts it."""
    found: set[str | None] = set()
    for one in values:
        value = one[column]
        found.add(None if value is None else str(value))
    ordered = sorted(found, key=lambda value: (value is not None, value or ""))
    return Table((column,), tuple({column: value} for value in ordered))


def count_patients(column: str, values: Sequence[Values]) -> Table:
    """How many patients have each value, as text; NULL counts as `Not Specified`."""
    patients: dict[str, set[object]] = {}
    for one in values:
        name = "Not Specified" if one[column] is None else str(one[column])
        patients.setdefault(name, set()).add((one["Collection"], one["PatientID"]))
    rows: tuple[Row, ...] = tuple({"criteria": name, "count": str(len(who))} for name, who in sorted(patients.items()))
    return Table(("criteria", "count"), rows)


def render_text(value: Cell) -> str | None:
    """A value as Java prints it; None stays None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)
