"""What NBIA's endpoints answer: from a call to a table, a text, or a zip that is to be made. No sockets here."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from pipeline.demo import nbia_rows as rows
from pipeline.demo.nbia_format import ERROR_500, Answer
from pipeline.demo.nbia_records import NbiaArchive, NbiaCart, NbiaSeries, read_header
from pipeline.demo.nbia_rows import Row, Table, Values
from pipeline.demo.nbia_zip import ZipOptions

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

EMPTY = Answer()


class Call(msgspec.Struct, frozen=True):
    """A request as an endpoint sees it. `version` is `v1`, `v2`, `v4` or, of the unversioned form, empty."""

    version: str
    name: str
    params: dict[str, str]

    @property
    def dates(self) -> rows.DateStyle:
        """How this version writes dates."""
        return rows.render_american if self.version == "v4" else rows.render_timestamp

    def get(self, name: str) -> str:
        """A parameter; empty when it is missing."""
        return self.params.get(name, "")

    def says(self, name: str, word: str) -> bool:
        """Whether a parameter is a word, in whatever case."""
        return self.get(name).lower() == word


class Image(msgspec.Struct, frozen=True):
    """A zip that is to be made and sent."""

    series: NbiaSeries
    options: ZipOptions


class CallError(Exception):
    """A call that is answered by an error, in plain words."""

    def __init__(self, status: int, text: str, content_type: str = "application/json") -> None:
        super().__init__(text)
        self.answer = Answer(status=status, content_type=content_type, body=text.encode())


class Listed(msgspec.Struct, frozen=True):
    """A table in a format that the call does not choose."""

    table: Table
    form: str


Outcome = Answer | Table | Listed | Image
Handler = Callable[["Catalogue", Call], Outcome]


class Catalogue:
    """An archive, prepared for calls: `series` and `values` are those that everybody may see."""

    def __init__(self, archive: NbiaArchive) -> None:
        self.archive = archive
        # In an order of no meaning, as a query without ORDER BY gives them.
        ordered = sorted(archive.series, key=lambda one: hashlib.sha256(one.uid.encode()).digest())
        self.series = {one.uid: one for one in ordered if not one.restricted}
        self.values = {uid: rows.list_values(archive, one) for uid, one in self.series.items()}
        self.collections = {one.name: one for one in archive.collections}
        public = {one.collection for one in self.series.values()}
        self.visible = tuple(name for name in self.collections if name in public)
        self.carts: dict[str, NbiaCart] = {one.name: one for one in archive.carts}

    def pick(self, call: Call, *names: str) -> list[Values]:
        """Rows of the series that agree with those parameters that are given; in any case of letters."""
        wanted = {rows_name(name): call.get(name).upper() for name in names if call.get(name)}
        return [
            one
            for one in self.values.values()
            if all(str(one[name] or "").upper() == value for name, value in wanted.items())
        ]

    def images(self, call: Call) -> NbiaSeries:
        """The series whose images are asked for; a forbidden one and one that is not there are refused alike."""
        uid = call.get("SeriesInstanceUID")
        if uid not in self.series:
            raise CallError(400, refuse_images(call.version, uid))
        return self.series[uid]


def rows_name(parameter: str) -> str:
    """The value that a parameter selects by."""
    return "PatientID" if parameter == "PatientId" else parameter


def refuse_images(version: str, uid: str) -> str:
    """What NBIA says of a series that is unknown or not for everybody."""
    if version == "v1":
        return f"Image with given SeriesInstanceUID,{uid}, is not in public domain."
    return (
        f"The user has not been granted the access to image with given SeriesInstanceUID,{uid}. "
        "Please contact System Admin to resolve this issue."
    )


def split_uids(text: str) -> list[str]:
    """The UIDs of a list in a form, which is cleaned of all but digits, dots and commas."""
    return [uid for uid in re.sub(r"[^0-9.,]", "", text).split(",") if uid]


def list_column(column: str, *names: str) -> Handler:
    """An endpoint that lists the distinct values of a column."""

    def answer(catalogue: Catalogue, call: Call) -> Outcome:
        table = rows.list_distinct(column, catalogue.pick(call, *names))
        if column != "PatientID":
            return table
        return Table(("PatientId",), tuple({"PatientId": row["PatientID"]} for row in table.rows))

    return answer


def count_column(column: str, *names: str) -> Handler:
    """An endpoint that counts the patients of each value of a column."""
    return lambda catalogue, call: rows.count_patients(column, catalogue.pick(call, *names))


def list_patients(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getPatient."""
    columns = rows.PATIENT_V4 if call.version == "v4" else rows.PATIENT_V1
    found = rows.list_patients(catalogue.pick(call, "Collection", "PatientId"))
    return rows.shape_rows(columns, found, call.dates)


def list_studies(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getPatientStudy."""
    columns = rows.STUDY_V4 if call.version == "v4" else rows.STUDY_V1
    found = rows.list_studies(catalogue.pick(call, "Collection", "PatientID", "StudyInstanceUID"))
    return rows.shape_rows(columns, found, call.dates)


def list_new_patients(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer NewPatientsInCollection."""
    columns = rows.PATIENT_V4 if call.version == "v4" else rows.PATIENT_V1
    recent = _since(call, catalogue.pick(call, "Collection"), inclusive=call.version == "v4")
    return rows.shape_rows(columns, rows.list_patients(recent), call.dates)


def list_new_studies(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer NewStudiesInPatientCollection."""
    columns = rows.STUDY_V4 if call.version == "v4" else rows.STUDY_V1
    recent = _since(call, catalogue.pick(call, "Collection", "PatientID"), inclusive=call.version == "v4")
    return rows.shape_rows(columns, rows.list_studies(recent), call.dates)


def list_updated_series(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getUpdatedSeries."""
    columns = rows.SERIES_V4 if call.version == "v4" else rows.UPDATED_V1
    return rows.shape_rows(columns, _since(call, catalogue.values.values(), inclusive=False), call.dates)


def _since(call: Call, values: Iterable[Values], *, inclusive: bool) -> list[Values]:
    """Rows submitted after a date; none when the date cannot be read."""
    parameter = "Date" if "Date" in call.params else "fromDate"
    if parameter not in call.params:
        return list(values)
    style = "%m-%d-%Y" if call.version == "v4" else "%Y/%m/%d" if parameter == "Date" else "%d/%m/%Y"
    try:
        limit = dt.datetime.strptime(call.get(parameter), style).date()  # noqa: DTZ007 - a date, without a time
    except ValueError:
        return []
    dated = ((one, one["MaxSubmissionTimestamp"]) for one in values)
    return [one for one, date in dated if isinstance(date, dt.date) and (date > limit or (inclusive and date == limit))]


def list_series(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSeries."""
    columns = rows.SERIES_V4 if call.version == "v4" else rows.SERIES_V1
    found = catalogue.pick(
        call, "Collection", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "BodyPartExamined",
        "Manufacturer", "ManufacturerModelName",
    )  # fmt: skip
    return rows.shape_rows(columns, found, call.dates)


def tell_size(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSeriesSize; of an unknown series both sums are NULL."""
    one = catalogue.series.get(call.get("SeriesInstanceUID"))
    row: Row = {"TotalSizeInBytes": one.size if one else None, "ObjectCount": len(one.files) if one else None}
    return Table(("TotalSizeInBytes", "ObjectCount"), (row,))


def list_instances(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSOPInstanceUIDs; v4 tells them of a series that is denied, too."""
    known = catalogue.archive.series if call.version == "v4" else catalogue.series.values()
    found = (one for one in known if one.uid == call.get("SeriesInstanceUID"))
    uids = [file.sop_instance_uid for one in found for file in one.files]
    return Table(("SOPInstanceUID",), tuple({"SOPInstanceUID": uid} for uid in uids))


def tell_metadata(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSeriesMetaData: one row of text, or status 204."""
    values = catalogue.values.get(call.get("SeriesInstanceUID"))
    return rows.shape_metadata_v1(values) if values else Answer(status=204)


def post_metadata(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSeriesMetadata of v4, and getSeriesMetadata2 and 3: a CSV file, without series that are denied."""
    uids = [uid for uid in split_uids(call.get("list")) if uid in catalogue.series]
    values = [catalogue.values[uid] for uid in uids]
    if call.name == "getSeriesMetadata":
        table = rows.shape_rows(rows.METADATA_V4, values, rows.render_american)
        if call.get("format").lower() not in {"", "csv", "csv-download"}:
            return table
    elif call.name == "getSeriesMetadata2":
        table = rows.shape_rows(rows.METADATA_V2, values, dt.date.isoformat)
    else:
        table = rows.shape_metadata_v3((catalogue.series[uid], catalogue.values[uid]) for uid in uids)
    return Listed(table, "csv-download")


def get_image(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getImage: LICENSE, then images, then (v4, on request) their MD5s."""
    md5 = call.version == "v4" and call.says("IncludeMD5", "yes")
    return Image(catalogue.images(call), ZipOptions(new_names=call.says("NewFileNames", "yes"), licence=True, md5=md5))


def get_image_with_md5(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getImageWithMD5Hash: images, then their MD5s."""
    return Image(catalogue.images(call), ZipOptions(md5=True))


def get_dcm_image(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getDCMImage: as the command-line retriever wants it."""
    return Image(catalogue.images(call), ZipOptions(new_names=True, md5=call.says("MD5Verification", "true")))


def get_single_image(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getSingleImage: one DICOM file; of an instance that is not there an error of the server."""
    uid = call.get("SOPInstanceUID")
    for file in catalogue.images(call).files:
        if file.sop_instance_uid == uid:
            attachment = f"Content-Disposition: attachment; filename={uid}.dcm"
            try:
                body = catalogue.archive.read(file)
            except OSError:
                break
            return Answer(content_type="application/dicom", headers=(attachment,), body=body)
    raise CallError(500, f"{ERROR_500}\nnull", "text/plain")


def tell_md5(catalogue: Catalogue, call: Call) -> Outcome:
    """The MD5 of one instance as text; nothing when it is unknown."""
    uid = call.get("SOPInstanceUID") or call.get("SOPInstanceUid")
    found = (file.md5 for one in catalogue.series.values() for file in one.files if file.sop_instance_uid == uid)
    return Answer(content_type="text/plain", body=next(found, "").encode())


def tell_hierarchy(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getMD5Hierarchy: a digest over the sorted MD5s of all images that are asked for."""
    names = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Collection")
    picked = catalogue.pick(call, *names) if any(map(call.get, names)) else []
    md5s = sorted(file.md5 for one in picked for file in catalogue.series[str(one["SeriesInstanceUID"])].files)
    digest = hashlib.md5("".join(md5s).encode(), usedforsecurity=False).hexdigest() if md5s else ""
    return Answer(content_type="text/plain", body=digest.encode())


def list_denied(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getDeniedSeries: those that are refused; status 204 when all are allowed."""
    denied = [uid for uid in call.get("seriesList").split(",") if uid.strip() not in catalogue.series]
    found: tuple[Row, ...] = tuple({"SeriesInstanceUID": uid.strip()} for uid in denied)
    return Table(("SeriesInstanceUID",), found) if denied else Answer(status=204)


def list_tags(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getDicomTags: the elements of the first image; nothing when it is not there."""
    one = catalogue.series.get(call.get("SeriesUID"))
    if one is None:
        return EMPTY
    try:
        header = read_header(catalogue.archive.read(one.files[0]))
    except OSError:
        return EMPTY
    return Table(("element", "name", "data"), tuple(_tags(header, "")))


def _tags(data: Dataset, depth: str) -> Iterator[Row]:
    for element in data:
        tag = f"{depth}({element.tag.group:04X},{element.tag.element:04X})"
        if element.VR == "SQ":
            yield {"element": tag, "name": element.name, "data": ""}
            for item in element.value:
                yield from _tags(item, depth + ">")
        elif not isinstance(element.value, bytes):
            yield {"element": tag, "name": element.name, "data": str(element.value)}


def get_cart(catalogue: Catalogue, call: Call) -> Outcome:
    """Answer getContentsByName: the series of a shared cart, as JSON only."""
    cart = catalogue.carts.get(call.get("name"))
    values = [catalogue.values[uid] for uid in cart.series if uid in catalogue.values] if cart else []
    return Listed(rows.shape_rows(rows.CART, values, call.dates), "json")


def text_of(lines: Mapping[str, str]) -> str:
    """Java properties."""
    return "".join(f"{name}={value}\n" for name, value in lines.items())
