"""TCIA's API (NBIA REST, v4 and its elders) as data: what each call is named, takes and gives in which version. Pure.

Names and shapes: https://cbiit.github.io/NBIA-TCIA/nbia-api.yaml (v4), and the server's source for v1 and v2.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from pipeline.sources import tcia_body as body
from pipeline.sources import tcia_rows as rows
from pipeline.sources.api_body import GarbledError, ShapeError, clean_text, describe_body, parse_json
from pipeline.sources.api_url import parse_site_url
from pipeline.sources.tcia_search import read_counts, read_search

Version = Literal["v4", "v2", "v1"]
BASE_URL = "https://nbia.cancerimagingarchive.net/nbia-api/services/v4/"
# One collection of 13 TB has a host of its own; the main one answers 400 or nothing for it.
NLST = "NLST"
NLST_URL = "https://nlst.cancerimagingarchive.net/nbia-api/services/v4/"

Parameter = str | dt.date | list[tuple[str, str]]
Parse = Callable[[bytes], Any]

_FILTERS = {
    "collection": "Collection",
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "instance": "SOPInstanceUID",
    "name": "name",
    "list": "list",
    "doi": "DOI",
    "what": "CollectionOrSeries",
}
_BEFORE_ALL = dt.date(1970, 1, 1)  # no series was released before; years of less than four digits are read as others
_V1_DATES = {"NewPatientsInCollection": "%Y/%m/%d", "NewStudiesInPatientCollection": "%Y/%m/%d"}


class Call(msgspec.Struct, frozen=True):
    """A request below the services' root; `form` is sent in the body of a POST, else in the query."""

    endpoint: str
    path: str
    method: str
    params: tuple[tuple[str, str], ...]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A call that some versions have.

    Attributes
    ----------
    parse
        Turns an answer into rows; raises `ShapeError`.
    spelled, elders_spelled
        Parameters that have another name here; in v1 and v2.
    elders_name
        What v1 and v2 call it, where that differs.
    kept
        Whether answers may be cached. What is an item's content may not.
    """

    parse: Parse
    versions: tuple[Version, ...] = ("v4", "v2", "v1")
    method: str = "GET"
    spelled: Mapping[str, str] = {}
    elders_name: str = ""
    elders_spelled: Mapping[str, str] = {}
    kept: bool = True


def _rows(kind: type[rows.Row], *, lenient: bool = False) -> Parse:
    return lambda data: rows.read_rows(kind, body.parse_records(data, lenient=lenient), lenient=lenient)


def _values(column: str) -> Parse:
    return lambda data: rows.read_values(column, body.parse_records(data))


def _parse_counts(data: bytes) -> Any:
    return read_counts(body.parse_records(data))


def _parse_search(data: bytes) -> Any:
    return read_search(parse_json(data)) if data.strip() else None


def _parse_md5(data: bytes) -> str:
    text = data.decode("ascii", "replace").strip().lower()
    if text and not re.fullmatch(r"[0-9a-f]{32}", text):
        raise GarbledError(f"{describe_body(data)}, no MD5")
    return text


def _parse_dicom(data: bytes) -> bytes:
    if data and data[128:132] != b"DICM":  # PS3.10 section 7.1
        raise GarbledError(f"{describe_body(data)}, no DICOM file")
    return data


_ONLY_V4: tuple[Version, ...] = ("v4",)
_SIMPLE_SEARCH = "getSimpleSearch"
ENDPOINTS: dict[str, Endpoint] = {
    "getCollectionValues": Endpoint(parse=_values("Collection")),
    "getModalityValues": Endpoint(parse=_values("Modality")),
    "getBodyPartValues": Endpoint(parse=_values("BodyPartExamined")),
    "getManufacturerValues": Endpoint(parse=_values("Manufacturer")),
    "getPatient": Endpoint(parse=_rows(rows.Patient), spelled={"patient": "PatientId"}),
    "getPatientByCollectionAndModality": Endpoint(parse=_values("PatientId")),
    "NewPatientsInCollection": Endpoint(parse=_rows(rows.Patient), elders_spelled={"since": "Date"}),
    "getPatientStudy": Endpoint(parse=_rows(rows.Study)),
    "NewStudiesInPatientCollection": Endpoint(parse=_rows(rows.Study), elders_spelled={"since": "Date"}),
    "getSeries": Endpoint(parse=_rows(rows.Series)),
    "getUpdatedSeries": Endpoint(parse=_rows(rows.Series)),
    "getSeriesSize": Endpoint(parse=_rows(rows.SeriesSize)),
    "getSOPInstanceUIDs": Endpoint(parse=_rows(rows.Instance)),
    # Who asks for these names each series, and so sees which rows are missing.
    "getSeriesMetadata": Endpoint(parse=_rows(rows.SeriesMetadata, lenient=True), versions=_ONLY_V4, method="POST"),
    "getSeriesMetaData": Endpoint(parse=_rows(rows.SeriesMetadata, lenient=True), versions=("v2", "v1")),
    "getSingleImage": Endpoint(parse=_parse_dicom, kept=False),
    "getMD5HashForImage": Endpoint(
        parse=_parse_md5, kept=False, elders_name="getM5HashForImage", elders_spelled={"instance": "SOPInstanceUid"}
    ),
    "getContentsByName": Endpoint(parse=_rows(rows.Series), versions=("v2", "v1")),
    "getDicomTags": Endpoint(parse=_rows(rows.Tag), versions=_ONLY_V4, spelled={"series": "SeriesUID"}),
    "getCollectionDescriptions": Endpoint(
        parse=_rows(rows.Description), versions=_ONLY_V4, spelled={"collection": "collectionName"}
    ),
    "getCollectionOrSeriesForDOI": Endpoint(parse=_rows(rows.DoiEntry), versions=_ONLY_V4, method="POST"),
    "getCollectionValuesAndCounts": Endpoint(parse=_parse_counts, versions=_ONLY_V4),
    "getModalityValuesAndCounts": Endpoint(parse=_parse_counts, versions=_ONLY_V4),
    "getBodyPartValuesAndCounts": Endpoint(parse=_parse_counts, versions=_ONLY_V4),
    "getManufacturerValuesAndCounts": Endpoint(parse=_parse_counts, versions=_ONLY_V4),
    "getSpeciesValuesAndCounts": Endpoint(parse=_parse_counts, versions=_ONLY_V4),
    _SIMPLE_SEARCH: Endpoint(parse=_parse_search, versions=_ONLY_V4, method="POST"),
    "getManifestForSimpleSearch": Endpoint(parse=body.parse_manifest, versions=_ONLY_V4, method="POST"),
}
_BY_PATH = {name: endpoint for each, endpoint in ENDPOINTS.items() for name in (each, endpoint.elders_name) if name}


def plan_call(name: str, version: Version, params: Mapping[str, Parameter]) -> Call | None:
    """Plan a call in one version, or None where that version does not have it.

    `since` (a date) is inclusive: where the API leaves out the day itself, it is asked from the day before. `form` is
    taken as it is.
    """
    endpoint = ENDPOINTS[name]
    if version not in endpoint.versions:
        return None
    elder = version != "v4"
    spelled = {**_FILTERS, "since": "fromDate", **endpoint.spelled, **(endpoint.elders_spelled if elder else {})}
    out: list[tuple[str, str]] = []
    for key, value in params.items():
        if isinstance(value, list):
            out += value
        elif isinstance(value, dt.date):
            out.append((spelled[key], render_since(name, version, value)))
        else:
            out.append((spelled[key], value))
    path = (endpoint.elders_name if elder else "") or name
    return Call(name, f"{version}/{path}", endpoint.method, tuple(out))


def render_since(name: str, version: Version, since: dt.date) -> str:
    """Write a date as this call of this version reads it, so that changes of that very day are among the answers."""
    since = max(since, _BEFORE_ALL)
    if version == "v4":
        from_day = since - dt.timedelta(days=1) if name == "getUpdatedSeries" else since
        return from_day.strftime("%m-%d-%Y")
    before = since - dt.timedelta(days=1)
    return before.strftime(_V1_DATES.get(name, "%d/%m/%Y"))


def parse_answer(path: str, data: bytes) -> Any:
    """Read the answer to a call by the last part of its path; falsy when it says nothing. Raises `ShapeError`."""
    endpoint = _BY_PATH.get(path.rpartition("/")[2])
    if endpoint is None:
        raise ShapeError(f"{describe_body(data)}, after a redirection to {clean_text(path)[:200]}")
    return endpoint.parse(data)


@functools.lru_cache(64)
def parse_base_url(url: str, *, secret: bool = False) -> str:
    """Check a base URL and return the services' root: without version and slash at the end.

    Raises
    ------
    ConfigError
        When it is no http(s) URL, holds credentials, a query or a fragment, or (`secret`) would carry credentials
        unencrypted over a network.
    """
    root = parse_site_url(url, site="TCIA", default=BASE_URL, secret=secret)
    return re.sub(r"/+v[1-4]$", "", root)
