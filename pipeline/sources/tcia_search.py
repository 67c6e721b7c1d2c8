"""TCIA's simple search, and its values with counts: forms written, summaries read. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pipeline.errors import UsageError
from pipeline.sources.api_body import ShapeError, clean_text
from pipeline.sources.tcia_rows import parse_count, parse_flag, parse_text, squeeze

# What a search may ask, and the API's name for it; the value of a range is a pair.
CRITERIA = {
    "collection": "CollectionCriteria",
    "species": "SpeciesCriteria",
    "modality": "ImageModalityCriteria",
    "body_part": "AnatomicalSiteCriteria",
    "manufacturer": "ManufacturerCriteria",
    "model": "ModelCriteria",
    "software": "SoftwareVersionCriteria",
    "description": "DescriptionCriteria",
    "patient": "PatientCriteria",
    "study": "StudyCriteria",
    "series": "SeriesCriteria",
    "sex": "PatientSexCriteria",
    "min_studies": "MinNumberOfStudiesCriteria",
    "min_study_dates": "MinNumberOfStudyDatesCriteria",
    "time_point": "TimePointCriteria",
    "phantom": "PhantomCriteria",
    "third_party": "ThirdPartyAnalysisCriteria",
    "exclude_commercial": "ExcludeCommercialCriteria",
    "all_modalities": "ModalityAndedSearchCriteria",
}
DATE_RANGE = "released"
RANGES = {
    "age": "PatientAgeRangeCriteria",
    "pixel_spacing": "PixelSpacingRangeCriteria",
    "slice_thickness": "SliceThicknessRangeCriteria",
}
Criterion = str | int | float | dt.date | Sequence[str | int | float | dt.date]


class Count(msgspec.Struct, frozen=True):
    """A value and how often it occurs."""

    value: str
    count: int


class FoundPatient(msgspec.Struct, frozen=True, kw_only=True):
    """A patient that a search found; the site names its studies and series by numbers of its own database only."""

    PatientID: str
    collection: str | None = None
    studies: int | None = None
    series: int | None = None
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    species: tuple[str, ...] = ()
    Authorized: bool | None = None


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A page of what a search found, and counts over all of it."""

    patients: tuple[FoundPatient, ...]
    total: int
    collections: tuple[Count, ...] = ()
    modalities: tuple[Count, ...] = ()
    body_parts: tuple[Count, ...] = ()
    species: tuple[Count, ...] = ()


def render_search(criteria: Mapping[str, Criterion], start: int = 0, size: int = 100) -> list[tuple[str, str]]:
    """Write the form of a search; several values of one criterion are alternatives.

    Raises
    ------
    UsageError
        For an unknown criterion, none at all, or a range that is no pair.
    """
    form: list[tuple[str, str]] = []
    number = 0
    for name, value in criteria.items():
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if name == DATE_RANGE or name in RANGES:
            if len(values) != 2:
                raise UsageError(f"{name} takes two values, from and to", hint=f"{name}=(FROM, TO)")
            form.append((f"criteriaType{number}", RANGES.get(name, "DateRangeCriteria")))
            ends = ("fromDate", "toDate") if name == DATE_RANGE else ("from", "to")
            form += [(f"{end}{number}", _render(each)) for end, each in zip(ends, values, strict=True)]
            number += 1
        elif name in CRITERIA:
            for each in values:
                form += [(f"criteriaType{number}", CRITERIA[name]), (f"value{number}", _render(each))]
                number += 1
        else:
            allowed = ", ".join((*CRITERIA, DATE_RANGE, *RANGES))
            raise UsageError(f"{name!r} is no criterion of a search", hint=f"choose from: {allowed}")
    if not form:
        raise UsageError("a search needs a criterion", hint="for example collection='LIDC-IDRI'")
    order = [("sortField", "subject"), ("sortDirection", "ascending")]
    return [*form, *order, ("start", str(start)), ("size", str(size))]


def _render(value: str | int | float | dt.date) -> str:  # noqa: PYI041
    return f"{value:%m-%d}-{value.year:04}" if isinstance(value, dt.date) else str(value)


def read_search(value: object) -> SearchResult:
    """Read a search's summary. Raises `ShapeError` when it is none."""
    summary = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(summary, dict) or not {"resultSet", "totalPatients"} & set(summary):
        raise ShapeError("no summary of a search")
    results = summary.get("resultSet")
    results = [results] if isinstance(results, dict) else results or []
    if not isinstance(results, list):
        raise ShapeError(f"resultSet is no list but {type(results).__name__}")
    patients = tuple(_read_patient(number, result) for number, result in enumerate(results, 1))
    total = parse_count(summary.get("totalPatients"))
    return SearchResult(
        patients=patients,
        total=len(patients) if total is None else total,
        collections=_read_optional_counts(summary.get("collections")),
        modalities=_read_optional_counts(summary.get("modalities")),
        body_parts=_read_optional_counts(summary.get("bodyParts")),
        species=_read_optional_counts(summary.get("species")),
    )


def _read_patient(number: int, value: object) -> FoundPatient:
    patient = parse_text(value.get("subjectId")) if isinstance(value, dict) else None
    if patient is None or not isinstance(value, dict):
        raise ShapeError(f"row {number} of the search has no subjectId")
    return FoundPatient(
        PatientID=patient,
        collection=parse_text(value.get("project")),
        studies=parse_count(value.get("totalNumberOfStudies")),
        series=parse_count(value.get("totalNumberOfSeries")),
        modalities=_texts(value.get("modalities")),
        body_parts=_texts(value.get("bodyParts")),
        species=_texts(value.get("species")),
        Authorized=parse_flag(value.get("authorized")),
    )


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in map(parse_text, values) if text is not None)


def _read_optional_counts(value: object) -> tuple[Count, ...]:
    records = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return tuple(read_counts([record for record in records if isinstance(record, dict)]))


def read_counts(records: Iterable[Mapping[str, object]]) -> list[Count]:
    """Read values with counts: the count is in the column `count`, the value in `criteria`, `value`, or the one other.

    Raises
    ------
    ShapeError
        When a row has no count.
    """
    found: dict[Count, None] = {}
    for number, record in enumerate(records, 1):
        cells = {squeeze(key): value for key, value in record.items()}
        count = parse_count(cells.pop("count", None))
        if not record:
            continue
        if count is None:
            has = ", ".join(sorted(clean_text(key)[:40] for key in record)[:8])
            raise ShapeError(f"row {number} has no usable count, but {has}")
        names: list[str] = [name for name in ("criteria", "value") if name in cells]
        names = names or [name for name in cells if name != "authorized"]
        value = parse_text(cells[names[0]]) if names else None
        if value is not None:
            found[Count(value, count)] = None
    return list(found)
