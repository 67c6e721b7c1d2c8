"""Rows of the demo index, read from the headers of the files they describe."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pydicom
from pydicom.dataset import FileDataset

from pipeline.demo.encode import make_uuid
from pipeline.demo.index import CollectionRow, IndexRow, Licence, Provenance, Source

NO_PATIENT = "DEMO-NO-NAME"  # for files whose PatientID is empty; the index never has NULL there
_CC = "https://creativecommons.org/licenses/"
LICENCES = {
    "CC BY 4.0": Licence(_CC + "by/4.0/", "Creative Commons Attribution 4.0 International License", "CC BY 4.0"),
    "CC BY 3.0": Licence(_CC + "by/3.0/", "Creative Commons Attribution 3.0 Unported License", "CC BY 3.0"),
    "CC BY-NC 4.0": Licence(
        _CC + "by-nc/4.0/", "Creative Commons Attribution-NonCommercial 4.0 International License", "CC BY-NC 4.0"
    ),
}


def describe_series(
    files: Sequence[bytes],
    *,
    collection_id: str,
    aws_bucket: str,
    licence: str = "CC BY 4.0",
    analysis_result_id: str | None = None,
    versions: tuple[int, int] = (1, 1),
) -> IndexRow:
    """The index row that is true of a series, given all its files; `versions` are the initial and the last revision."""
    headers = [_read_header(file) for file in files]
    first = headers[0]

    def text(name: str) -> str | None:
        value = first.get(name)
        return None if value is None or str(value) == "" else str(value)

    def date(name: str) -> str | None:
        value = text(name)
        return f"{value[:4]}-{value[4:6]}-{value[6:8]}" if value else None

    syntaxes = sorted({header.file_meta.TransferSyntaxUID for header in headers})
    uid = str(first.SeriesInstanceUID)
    folder = str(make_uuid("series", uid))
    return IndexRow(
        collection_id=collection_id,
        analysis_result_id=analysis_result_id,
        PatientID=text("PatientID") or NO_PATIENT,
        SeriesInstanceUID=uid,
        StudyInstanceUID=text("StudyInstanceUID"),
        source_DOI=make_doi(analysis_result_id or collection_id, licence),
        PatientAge=text("PatientAge"),
        PatientSex=text("PatientSex"),
        StudyDate=date("StudyDate"),
        StudyDescription=text("StudyDescription"),
        BodyPartExamined=text("BodyPartExamined"),
        Modality=text("Modality"),
        SOPClassUID=text("SOPClassUID"),
        sop_class_name=first.SOPClassUID.name,
        TransferSyntaxUID=",".join(syntaxes),
        transfer_syntax_name=",".join(sorted(syntax.name for syntax in syntaxes)),
        PhotometricInterpretation=text("PhotometricInterpretation"),
        PixelRepresentation=text("PixelRepresentation"),
        Manufacturer=text("Manufacturer"),
        ManufacturerModelName=text("ManufacturerModelName"),
        SeriesDate=date("SeriesDate"),
        SeriesDescription=text("SeriesDescription"),
        SeriesNumber=text("SeriesNumber"),
        instanceCount=len(files),
        license_short_name=licence,
        series_init_idc_version=versions[0],
        series_revised_idc_version=versions[1],
        aws_bucket=aws_bucket,
        crdc_series_uuid=folder,
        series_aws_url=f"s3://{aws_bucket}/{folder}/*",
        series_size_MB=sum(map(len, files)) / 1e6,
    )


def describe_collections(rows: Sequence[IndexRow]) -> list[CollectionRow]:
    """One row for each collection, with one source for each source_DOI in it."""
    by_collection: dict[str, list[IndexRow]] = {}
    for row in rows:
        by_collection.setdefault(row.collection_id or "", []).append(row)
    return [
        CollectionRow(
            collection_name=name.upper().replace("_", "-"),
            collection_id=name,
            cancer_types="None",
            tumor_locations="Various",
            subjects=len({row.PatientID for row in members}),
            species="Human",
            sources=tuple(_describe_source(doi, members) for doi in dict.fromkeys(row.source_DOI for row in members)),
            supporting_data="",
            program_id="demo",
            status="Complete",
            updated="2025-01-01",
            description=f"Made and sample images for demonstrations: {name}.",
        )
        for name, members in sorted(by_collection.items())
    ]


def make_doi(source_id: str, licence: str) -> str:
    """A DOI of the test prefix 10.5072, which never resolves; one for each source and licence."""
    return f"10.5072/medhaul.{source_id}.{licence.lower().replace(' ', '-')}".lower()


def read_instance_uid(data: bytes) -> str:
    """The SOPInstanceUID of a DICOM file; empty when it is not DICOM."""
    if data[128:132] != b"DICM":
        return ""
    return str(_read_header(data).get("SOPInstanceUID", ""))


def _read_header(data: bytes) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)


def _describe_source(doi: str | None, rows: Sequence[IndexRow]) -> Source:
    members = [row for row in rows if row.source_DOI == doi]
    first = members[0]
    derived = first.analysis_result_id is not None
    modalities = ", ".join(sorted({row.Modality or "" for row in members}))
    unknown = Licence("", first.license_short_name or "", first.license_short_name or "")
    return Source(
        source_id=first.analysis_result_id or first.collection_id or "",
        source_title=f"Demo images of {first.analysis_result_id or first.collection_id}",
        source_type="analysis_result" if derived else "original_data",
        source_doi=doi or "",
        source_url=f"https://doi.org/{doi}",
        modalities=modalities,
        license=LICENCES.get(first.license_short_name or "", unknown),
        citation=f"medhaul (2025). <i>Demo images of {first.collection_id}</i> [Data set]. https://doi.org/{doi}",
        provenance=None if derived else Provenance("medhaul", "NOT_APPLICABLE", "NOT_APPLICABLE", "NOT_APPLICABLE"),
        Access="Public",
        ImageTypes=modalities,
    )
