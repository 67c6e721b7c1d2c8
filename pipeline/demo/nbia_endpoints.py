"""The endpoints of NBIA: under which versions they are, what they take, and how they refuse. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from pipeline.demo import nbia_calls as calls
from pipeline.demo import nbia_search as searches
from pipeline.demo.nbia_calls import Call, CallError, Catalogue, Handler, Outcome, count_column, list_column
from pipeline.demo.nbia_format import ERROR_500, Answer

API = "/nbia-api/"
TOKEN_PATHS = ("/nbia-api/oauth/token", "/nbia-api/services/oauth/token")
LOGOUT_PATH = "/nbia-api/logout"
_VERSION_OF = {"0": "", "1": "v1", "2": "v2", "4": "v4"}
Caller = Literal["user", "guest", "nobody", "expired"]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint in one version.

    `quiet` is how a list answers who may not ask: with an empty body under status 200, or with 204. `strict` refuses
    parameters that it does not know. `secured` wants a token. `image` makes a zip.
    """

    handler: Handler
    allowed: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    method: Literal["GET", "POST"] = "GET"
    quiet: Literal[0, 200, 204] = 0
    strict: bool = False
    secured: bool = False
    image: bool = False


_TABLE: dict[tuple[str, str], Endpoint] = {}


def _add(
    versions: str,
    names: str,
    handler: Handler,
    takes: str = "",
    *,
    method: Literal["GET", "POST"] = "GET",
    quiet: Literal[0, 200, 204] = 0,
    image: bool = False,
) -> None:
    """Add endpoints; in `takes` a `!` marks a parameter that must be there."""
    words = takes.split()
    for name in names.split():
        for code in versions:
            version = _VERSION_OF[code]
            _TABLE[version, name] = Endpoint(
                handler=handler,
                allowed=tuple(word.rstrip("!") for word in words),
                required=tuple(word.rstrip("!") for word in words if word.endswith("!")),
                method=method,
                quiet=quiet,
                strict=version == "v4" and method == "GET",
                secured=version in {"", "v2"},
                image=image,
            )


_FILTERS = "Collection Modality BodyPartExamined format"
_add("124", "getCollectionValues", list_column("Collection"), "format")
_add("124", "getModalityValues", list_column("Modality", "Collection", "BodyPartExamined"), _FILTERS, quiet=200)
_add("124", "getBodyPartValues", list_column("BodyPartExamined", "Collection", "Modality"), _FILTERS, quiet=200)
_add(
    "124",
    "getManufacturerValues",
    list_column("Manufacturer", "Collection", "Modality", "BodyPartExamined"),
    _FILTERS,
    quiet=200,
)
_add("124", "getPatient", calls.list_patients, "Collection PatientId format", quiet=200)
_add("12", "NewPatientsInCollection", calls.list_new_patients, "Collection! Date! format", quiet=200)
_add("4", "NewPatientsInCollection", calls.list_new_patients, "Collection! fromDate! format")
_add(
    "124",
    "getPatientByCollectionAndModality",
    list_column("PatientID", "Collection", "Modality"),
    "Collection! Modality! format",
    quiet=200,
)
_add("124", "getPatientStudy", calls.list_studies, "Collection PatientID StudyInstanceUID format", quiet=200)
_add("12", "NewStudiesInPatientCollection", calls.list_new_studies, "Collection! PatientID Date! format", quiet=200)
_add("4", "NewStudiesInPatientCollection", calls.list_new_studies, "Collection! PatientID fromDate! format")
_add(
    "124",
    "getSeries",
    calls.list_series,
    "Collection PatientID StudyInstanceUID SeriesInstanceUID Modality BodyPartExamined Manufacturer "
    "ManufacturerModelName format",
    quiet=200,
)
_add("12", "getUpdatedSeries", calls.list_updated_series, "fromDate format", quiet=200)
_add("4", "getUpdatedSeries", calls.list_updated_series, "fromDate! format")
_add("124", "getSeriesSize", calls.tell_size, "SeriesInstanceUID! format", quiet=200)
_add("124", "getSOPInstanceUIDs", calls.list_instances, "SeriesInstanceUID! format", quiet=200)
_add("12", "getSeriesMetaData", calls.tell_metadata, "SeriesInstanceUID! format", quiet=204)
_add("02", "getSeriesMetadata2 getSeriesMetadata3", calls.post_metadata, "list!", method="POST")
_add("4", "getSeriesMetadata", calls.post_metadata, "list! format", method="POST")
_add("12", "getImage", calls.get_image, "SeriesInstanceUID! NewFileNames", image=True)
_add("4", "getImage", calls.get_image, "SeriesInstanceUID! NewFileNames IncludeMD5", image=True)
_add("124", "getImageWithMD5Hash", calls.get_image_with_md5, "SeriesInstanceUID!", image=True)
_add("124", "getDCMImage", calls.get_dcm_image, "SeriesInstanceUID! IncludeAnnotation MD5Verification", image=True)
_add("124", "getSingleImage", calls.get_single_image, "SeriesInstanceUID! SOPInstanceUID!")
_add("12", "getM5HashForImage", calls.tell_md5, "SOPInstanceUid!")
_add("4", "getMD5HashForImage", calls.tell_md5, "SOPInstanceUID!")
_add(
    "024",
    "getMD5Hierarchy",
    calls.tell_hierarchy,
    "SeriesInstanceUID StudyInstanceUID PatientID Collection",
    method="POST",
)
_add("12", "getContentsByName", calls.get_cart, "name!", quiet=200)
_add("124", "getDeniedSeries", calls.list_denied, "seriesList! userName format")
_add("024", "getDicomTags", calls.list_tags, "SeriesUID! format")
_add("024", "getCollectionDescriptions", searches.describe_collections, "collectionName format")
_add("024", "getCollectionValuesAndCounts", count_column("Collection"), "format")
_add("024", "getModalityValuesAndCounts", count_column("Modality", "Collection", "BodyPartExamined"), _FILTERS)
_add("024", "getBodyPartValuesAndCounts", count_column("BodyPartExamined", "Collection", "Modality"), _FILTERS)
_add(
    "024",
    "getManufacturerValuesAndCounts",
    count_column("Manufacturer", "Collection", "Modality", "BodyPartExamined"),
    _FILTERS,
)
_add("024", "getSpeciesValuesAndCounts", count_column("SpeciesCode", "Collection"), _FILTERS)
_add("02", "getSimpleSearchWithModalityAndBodyPartPaged", searches.search, method="POST")
_add("4", "getSimpleSearch", searches.search, method="POST")
_add("024", "getManifestForSimpleSearch", searches.manifest_by(searches.uids_of_search), method="POST")
_add("02", "getManifestTextV2", searches.manifest_by(searches.uids_of_list), "list!", method="POST")
_add("4", "getManifestText", searches.manifest_by(searches.uids_of_list), "list!", method="POST")
_add(
    "024",
    "getManifestForCollection",
    searches.manifest_by(searches.uids_of_collection),
    "collection!",
    method="POST",
)
_add("024", "getManifestFromPatientStudySeries", searches.manifest_by(searches.uids_of_parts), method="POST")
_add("024", "getCollectionOrSeriesForDOI", searches.find_doi, "DOI!", method="POST")
_add("02", "getAdvancedQCSearch", searches.refuse_quality_control, method="POST")
_add("024", "getLicenses", searches.list_licences, "format")
_add("024", "getSharedList", searches.get_shared_list, "name! format")
_add("024", "createSharedList", searches.create_shared_list, "list! name!", method="POST")
_add("1", "getAllSOPClassDefinition", searches.list_classes)
_add("1", "getUserAgreementTxt", searches.lack_agreement)
_add("1", "status up", searches.tell_status)

ENDPOINTS: Mapping[tuple[str, str], Endpoint] = _TABLE
_SUBJECTS = (
    "SeriesInstanceUID", "SeriesUID", "SOPInstanceUID", "SOPInstanceUid", "StudyInstanceUID", "PatientID", "PatientId",
    "Collection", "collection", "collectionName", "name",
)  # fmt: skip


def parse_path(path: str) -> tuple[str, str] | None:
    """Version and endpoint of a path below `/nbia-api/services/`; None when it has another form."""
    parts = path.removeprefix(API).strip("/").split("/")
    if parts[0] != "services" or not 2 <= len(parts) <= 3:
        return None
    return ("", parts[1]) if len(parts) == 2 else (parts[1], parts[2])


def name_call(call: Call) -> str:
    """The key of a call, for faults and statistics: `nbia/{version}/{endpoint}/{subject}`."""
    subject = next((call.params[name] for name in _SUBJECTS if call.params.get(name)), "")
    return f"nbia/{call.version or 'plain'}/{call.name}/{subject}"


def answer_call(catalogue: Catalogue, endpoint: Endpoint, call: Call, caller: Caller) -> Outcome:
    """What NBIA answers. Raises `CallError`."""
    if call.version != "v1" and (caller == "expired" or (endpoint.secured and caller == "nobody")):
        if endpoint.quiet:
            return Answer(status=endpoint.quiet)
        if caller == "expired":
            return Answer(status=401)
        raise CallError(500, f"{ERROR_500}\nnull", "text/plain")
    unknown = next((name for name in call.params if name not in endpoint.allowed), None)
    if endpoint.strict and unknown is not None:
        allowed = ", ".join(endpoint.allowed)
        text = f"Invalid query parameter: '{unknown}'. Allowed parameters are: [{allowed}]"
        raise CallError(400, text, "text/plain")
    for name in endpoint.required:
        if not call.get(name):
            raise CallError(400, f"A parameter, {name}, is required for this API call.")
    return endpoint.handler(catalogue, call)
