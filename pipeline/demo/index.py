"""Index files of the demo data, in the form of idc-index-data: the same columns and types, in Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb
import msgspec


class IndexRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of idc_index, columns in its order (idc-index-data 25). Any may be NULL there, so any may be None."""

    collection_id: str | None
    analysis_result_id: str | None
    PatientID: str | None
    SeriesInstanceUID: str | None
    StudyInstanceUID: str | None
    source_DOI: str | None  # noqa: N815 - the column's own name
    PatientAge: str | None
    PatientSex: str | None
    StudyDate: str | None
    StudyDescription: str | None
    BodyPartExamined: str | None
    Modality: str | None
    SOPClassUID: str | None
    sop_class_name: str | None
    TransferSyntaxUID: str | None
    transfer_syntax_name: str | None
    PhotometricInterpretation: str | None
    PixelRepresentation: str | None
    Manufacturer: str | None
    ManufacturerModelName: str | None
    SeriesDate: str | None
    SeriesDescription: str | None
    SeriesNumber: str | None
    instanceCount: int | None  # noqa: N815 - the column's own name
    license_short_name: str | None
    series_init_idc_version: int | None
    series_revised_idc_version: int | None
    aws_bucket: str | None
    crdc_series_uuid: str | None
    series_aws_url: str | None
    series_size_MB: float | None  # noqa: N815 - the column's own name


class Licence(msgspec.Struct, frozen=True):
    """A licence as collections_index writes it."""

    license_url: str
    license_long_name: str
    license_short_name: str


class Provenance(msgspec.Struct, frozen=True):
    """Who made a source."""

    data_contributor: str
    source_data_provider: str
    deidentification_party: str
    dicom_conversion_by: str


class Source(msgspec.Struct, frozen=True):
    """One source of a collection: what to cite, and under which licence it is."""

    source_id: str
    source_title: str
    source_type: str
    source_doi: str
    source_url: str
    modalities: str
    license: Licence
    citation: str
    provenance: Provenance | None
    Access: str
    ImageTypes: str


class CollectionRow(msgspec.Struct, frozen=True):
    """A row of collections_index, columns in its order (idc-index-data 25)."""

    collection_name: str
    collection_id: str
    cancer_types: str
    tumor_locations: str
    subjects: int
    species: str
    sources: tuple[Source, ...]
    supporting_data: str
    program_id: str
    status: str
    updated: str
    description: str


_TYPES = {"instanceCount": "BIGINT", "series_size_MB": "DOUBLE"} | dict.fromkeys(
    ("series_init_idc_version", "series_revised_idc_version"), "BIGINT"
)
INDEX_COLUMNS = {name: _TYPES.get(name, "VARCHAR") for name in IndexRow.__struct_fields__}
INDEX_ORDER = ("collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_SOURCE = (
    "STRUCT(source_id VARCHAR, source_title VARCHAR, source_type VARCHAR, source_doi VARCHAR, source_url VARCHAR, "
    "modalities VARCHAR, license STRUCT(license_url VARCHAR, license_long_name VARCHAR, license_short_name VARCHAR), "
    "citation VARCHAR, provenance STRUCT(data_contributor VARCHAR, source_data_provider VARCHAR, "
    'deidentification_party VARCHAR, dicom_conversion_by VARCHAR), "Access" VARCHAR, ImageTypes VARCHAR)[]'
)
COLLECTION_COLUMNS = {
    name: {"subjects": "BIGINT", "sources": _SOURCE}.get(name, "VARCHAR") for name in CollectionRow.__struct_fields__
}


def write_index(rows: Iterable[IndexRow], path: Path) -> None:
    """Write an index Parquet file, sorted as the real one is."""
    _write_parquet(INDEX_COLUMNS, [msgspec.structs.astuple(row) for row in rows], INDEX_ORDER, path)


def write_collections(rows: Iterable[CollectionRow], path: Path) -> None:
    """Write a collections_index Parquet file."""
    values = [tuple(msgspec.to_builtins(msgspec.structs.astuple(row))) for row in rows]
    _write_parquet(COLLECTION_COLUMNS, values, ("collection_id",), path)


def _write_parquet(
    columns: dict[str, str], rows: Sequence[tuple[object, ...]], order: tuple[str, ...], path: Path
) -> None:
    names = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    with duckdb.connect(":memory:") as database:
        database.execute(f"CREATE TABLE written ({names})")
        table = database.table("written")
        for row in rows:
            table.insert(list(row))
        by = ", ".join(f'"{name}"' for name in order)
        table.order(by).write_parquet(str(path), compression="zstd")
