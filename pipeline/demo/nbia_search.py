"""NBIA's search, manifests, licences and descriptions: what the site's own portal and its retriever use. Pure."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from pipeline.demo.nbia_calls import EMPTY, Call, CallError, Catalogue, Outcome, split_uids, text_of
from pipeline.demo.nbia_format import ERROR_500, Answer
from pipeline.demo.nbia_records import NbiaCart, NbiaCollection
from pipeline.demo.nbia_rows import Row, Table, Values, list_studies

SERVLET = "https://nbia.cancerimagingarchive.net/nbia-download/servlet/DownloadServlet"
_MANIFEST_TYPE = "application/x-nbia-manifest-file"
# Criterion of a search, and the value that it must equal; several of the same are alternatives.
_CRITERIA = {
    "CollectionCriteria": "Collection",
    "ImageModalityCriteria": "Modality",
    "AnatomicalSiteCriteria": "BodyPartExamined",
    "BodyPartExaminedCriteria": "BodyPartExamined",
    "ManufacturerCriteria": "Manufacturer",
    "ModelCriteria": "ManufacturerModelName",
    "SoftwareVersionCriteria": "SoftwareVersions",
    "SpeciesCriteria": "SpeciesCode",
    "PatientCriteria": "PatientID",
    "StudyCriteria": "StudyInstanceUID",
    "SeriesCriteria": "SeriesInstanceUID",
    "PatientSexCriteria": "PatientSex",
    "ThirdPartyAnalysis": "ThirdPartyAnalysis",
}


def search(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSimpleSearch: a summary of patients, a page of them with their studies."""
    picked = choose_series(catalogue, call)
    patients: dict[tuple[object, object], list[Values]] = {}
    for one in picked:
        patients.setdefault((one["Collection"], one["PatientID"]), []).append(one)
    start, size = _number(call, "start", 0), _number(call, "size", 10)
    ids = {one.uid: number for number, one in enumerate(catalogue.archive.series, 1)}
    ordered = sorted(patients.items(), key=str, reverse=call.get("sortDirection") == "descending")
    page = [_summarise(members, ids) for _, members in ordered[start : start + size]]
    summary = {
        "resultSet": page,
        "totalPatients": len(patients),
        "bodyParts": _counts("BodyPartExamined", picked),
        "modalities": _counts("Modality", picked),
        "collections": _counts("Collection", picked),
        "species": _counts("SpeciesCode", picked),
        "minTimepoints": 0,
        "maxTimepoints": 0,
        "sort": f"{call.get('sortField') or 'subject'} {call.get('sortDirection') or 'ascending'}",
    }
    return Answer(body=json.dumps(summary).encode())


def choose_series(catalogue: Catalogue, call: Call) -> list[Values]:
    """The series that a search finds; criteria that are not known here do not narrow it."""
    wanted: dict[str, set[str]] = {}
    picked = list(catalogue.values.values())
    for number in range(len(call.params)):
        name, value = call.get(f"criteriaType{number}"), call.get(f"value{number}")
        if name in _CRITERIA:
            wanted.setdefault(_CRITERIA[name], set()).add(value.upper())
        elif name == "DescriptionCriteria":
            picked = [one for one in picked if value.upper() in str(one["SeriesDescription"] or "").upper()]
        elif name == "DateRangeCriteria":
            first, last = (_date(call.get(f"{end}Date{number}")) for end in ("from", "to"))
            picked = [one for one in picked if _within(one["MaxSubmissionTimestamp"], first, last)]
        elif name == "MinNumberOfStudiesCriteria":
            picked = _with_studies(picked, _number(call, f"value{number}", 0))
    return [one for one in picked if all(str(one[name] or "").upper() in among for name, among in wanted.items())]


def _number(call: Call, name: str, default: int) -> int:
    text = call.get(name)
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise CallError(500, f'{ERROR_500}\nFor input string: "{text}"', "text/plain")
    return int(text) if text else default


def _with_studies(values: Sequence[Values], least: int) -> list[Values]:
    studies = Counter((one["Collection"], one["PatientID"]) for one in list_studies(values))
    return [one for one in values if studies[one["Collection"], one["PatientID"]] >= least]


def _date(text: str) -> dt.date | None:
    for style in ("%m-%d-%Y", "%m/%d/%Y"):
        try:
            return dt.datetime.strptime(text, style).date()  # noqa: DTZ007 - a date, without a time
        except ValueError:
            continue
    return None


def _within(value: object, first: dt.date | None, last: dt.date | None) -> bool:
    return isinstance(value, dt.date) and (first is None or value >= first) and (last is None or value <= last)


def _summarise(members: list[Values], ids: dict[str, int]) -> dict[str, object]:
    studies: dict[str, list[int]] = {}
    for one in members:
        studies.setdefault(str(one["StudyInstanceUID"]), []).append(ids[str(one["SeriesInstanceUID"])])
    return {
        "subjectId": members[0]["PatientID"],
        "project": members[0]["Collection"],
        "id": min(ids[str(one["SeriesInstanceUID"])] for one in members),
        "studyIdentifiers": [
            {"studyIdentifier": min(numbers), "seriesIdentifiers": sorted(numbers)} for numbers in studies.values()
        ],
        "totalNumberOfStudies": len(studies),
        "totalNumberOfSeries": len(members),
        "modalities": sorted({str(one["Modality"]) for one in members}),
        "bodyParts": sorted({str(one["BodyPartExamined"] or "Not Specified") for one in members}),
        "species": sorted({str(one["SpeciesCode"]) for one in members}),
        "timepoints": {},
        "authorized": 1,
    }


def _counts(column: str, values: Iterable[Values]) -> list[dict[str, object]]:
    found: dict[str, set[object]] = {}
    for one in values:
        found.setdefault(str(one[column] or "Not Specified"), set()).add((one["Collection"], one["PatientID"]))
    return [{"value": name, "count": len(who)} for name, who in sorted(found.items())]


def render_manifest(uids: Iterable[str], *, annotations: bool = True, number: int = 0) -> str:
    """A `.tcia` manifest, for the retriever."""
    head = {
        "downloadServerUrl": SERVLET,
        "includeAnnotation": "true" if annotations else "false",
        "noOfrRetry": "4",
        "databasketId": f"manifest-{1_735_689_600_000 + number}.tcia",
        "manifestVersion": "3.0",
        "ListOfSeriesToDownload": "",
    }
    return text_of(head) + "".join(f"{uid}\n" for uid in uids)


def manifest_by(choose: Callable[[Catalogue, Call], Iterable[str]]) -> Callable[[Catalogue, Call], Outcome]:
    """An endpoint that gives a manifest of chosen series."""

    def answer(catalogue: Catalogue, call: Call) -> Outcome:
        text = render_manifest(choose(catalogue, call), annotations=not call.says("includeAnnotation", "false"))
        return Answer(content_type=_MANIFEST_TYPE, body=text.encode())

    return answer


def uids_of_search(catalogue: Catalogue, call: Call) -> list[str]:
    """By criteria, as a search."""
    return [str(one["SeriesInstanceUID"]) for one in choose_series(catalogue, call)]


def uids_of_list(catalogue: Catalogue, call: Call) -> list[str]:
    """As listed."""
    return [uid for uid in split_uids(call.get("list")) if uid in catalogue.series]


def uids_of_collection(catalogue: Catalogue, call: Call) -> list[str]:
    """All of a collection."""
    name = call.get("collection").upper()
    return [one.uid for one in catalogue.series.values() if one.collection.upper() == name]


def uids_of_parts(catalogue: Catalogue, call: Call) -> list[str]:
    """By lists of patients, studies and series: any of them or all."""
    lists = (("patientIDs", "PatientID"), ("studyUIDs", "StudyInstanceUID"), ("seriesUIDs", "SeriesInstanceUID"))
    wanted = {column: set(call.get(name).split(",")) for name, column in lists if call.get(name)}
    decide = all if call.says("anyOrAll", "all") else any
    return [
        uid
        for uid, one in catalogue.values.items()
        if wanted and decide(str(one[column]) in among for column, among in wanted.items())
    ]


def find_doi(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getCollectionOrSeriesForDOI."""
    doi = call.get("DOI").lower().removeprefix("https://doi.org/")
    found = [one for one in catalogue.series.values() if doi and doi in one.doi]
    by_series = call.says("CollectionOrSeries", "series")
    columns = ("collection", *(("seriesInstanceUID",) if by_series else ()), "thirdPartyAnanlysis", "authorized")
    full: list[Row] = [
        {
            "collection": one.collection,
            "seriesInstanceUID": one.uid,
            "thirdPartyAnanlysis": one.third_party,
            "authorized": 1,
        }
        for one in found
    ]
    distinct = {tuple(row[name] for name in columns): {name: row[name] for name in columns} for row in full}
    return Table(columns, tuple(distinct.values()))


def describe_collections(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getCollectionDescriptions: HTML with what to cite."""
    asked = call.get("collectionName").upper()
    columns: tuple[str, ...] = ("description", "id")
    if call.version == "v4":
        columns = (*columns, "collectionName", "descriptionURI")
    else:
        columns = (*columns, "collectionDescTimestamp", "collectionName", "userName", "licenseId", "descriptionURI")
    numbers = {one.short_name: one.id for one in catalogue.archive.licences}

    def describe(one: NbiaCollection) -> Row:
        midnight = dt.datetime.combine(one.updated, dt.time(), dt.UTC)
        full: Row = {
            "description": one.description,
            "id": one.id,
            "collectionDescTimestamp": int(midnight.timestamp() * 1000),
            "collectionName": one.name,
            "userName": "curator",
            "licenseId": numbers.get(one.licence),
            "descriptionURI": f"https://doi.org/{one.doi}",
        }
        return {name: full[name] for name in columns}

    found = [catalogue.collections[name] for name in catalogue.visible if asked in {"", name.upper()}]
    return Table(columns, tuple(map(describe, found)))


def list_licences(catalogue: Catalogue, _: Call) -> Outcome:
    """Answer getLicenses."""
    columns = ("id", "longName", "shortName", "licenseURL", "licenseText", "commercialUse")
    found: tuple[Row, ...] = tuple(
        {
            "id": one.id,
            "longName": one.long_name,
            "shortName": one.short_name,
            "licenseURL": one.url,
            "licenseText": None,
            "commercialUse": one.commercial,
        }
        for one in catalogue.archive.licences
    )
    return Table(columns, found)


def get_shared_list(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSharedList: the UIDs of a list by its name."""
    cart = catalogue.carts.get(call.get("name"))
    found: tuple[Row, ...] = tuple({"SeriesInstanceUID": uid} for uid in cart.series) if cart else ()
    return Table(("SeriesInstanceUID",), found)


def create_shared_list(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer createSharedList: kept for as long as the site lives."""
    name, uids = call.get("name"), tuple(split_uids(call.get("list")))
    if name in catalogue.carts:
        raise CallError(400, "Duplicate list name", "text/plain")
    catalogue.carts[name] = NbiaCart(name, call.get("description"), call.get("url"), uids)
    return Answer(content_type="text/plain", body=b"List Submitted")


def refuse_quality_control(_: Catalogue, __: Call) -> Outcome:
    """Answer getAdvancedQCSearch: for a role that nobody has here."""
    raise CallError(401, "Insufficiant Privileges", "text/plain")


def list_classes(catalogue: Catalogue, _: Call) -> Outcome:
    """Answer getAllSOPClassDefinition: Java properties as a file."""
    known = {one.sop_class: one.sop_class_name or "" for one in catalogue.series.values() if one.sop_class}
    attachment = "Content-Disposition: attachment; filename=sopClass.properties"
    return Answer(content_type="text/plain", headers=(attachment,), body=text_of(known).encode())


def lack_agreement(_: Catalogue, __: Call) -> Outcome:
    """Answer getUserAgreementTxt: there is none."""
    return Answer(status=404, content_type="text/plain")


def tell_status(_: Catalogue, call: Call) -> Outcome:
    """Whether the service is up."""
    return Answer(content_type="text/html", body=b"<p>NBIA API is up</p>") if call.name == "status" else EMPTY
