"""Exploring the NCI Imaging Data Commons from Python: what it holds, how large it is, where it lies.

with IdcClient() as idc:
    for found in idc.series(collection="rider_pilot", modality="CT"):
        print(found.SeriesInstanceUID, found.bytes)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar
from urllib.parse import quote

import msgspec

from pipeline.model import IdcLocation, Item
from pipeline.settings import Content, SelectIdc, SourceIdc
from pipeline.sources.idc_buckets import mirror_bucket
from pipeline.sources.idc_index import IdcIndex
from pipeline.sources.idc_rows import BYTES, FILES

Provider = Literal["aws", "gcs"]
Names = str | Sequence[str] | None
T = TypeVar("T", bound=msgspec.Struct)


class Collection(msgspec.Struct, frozen=True):
    """A collection of the index, as far as it is selected. `bytes` of all its files."""

    collection_id: str
    patients: int
    studies: int
    series: int
    files: int
    bytes: int
    modalities: list[str]
    licences: list[str]


class Patient(msgspec.Struct, frozen=True):
    """A patient in one collection; the same PatientID may occur in several."""

    collection_id: str
    PatientID: str
    studies: int
    series: int
    files: int
    bytes: int
    modalities: list[str]


class Study(msgspec.Struct, frozen=True):
    """A study. `date` and `description` are empty where the index has none."""

    collection_id: str
    PatientID: str
    StudyInstanceUID: str
    date: str
    description: str
    series: int
    files: int
    bytes: int
    modalities: list[str]


class Series(msgspec.Struct, frozen=True):
    """A series: `s3://{bucket}/{uuid}/*`. `files` and `bytes` are -1 where the index states nothing usable."""

    collection_id: str
    PatientID: str
    StudyInstanceUID: str
    SeriesInstanceUID: str
    Modality: str
    description: str
    files: int
    bytes: int
    licence: str
    bucket: str
    uuid: str

    def item(self) -> Item:
        """The series as an item of a manifest, in a folder of its own."""
        uid = self.SeriesInstanceUID
        where = IdcLocation(self.bucket, self.uuid)
        return Item(id=uid, path=uid, files=self.files, bytes=self.bytes, location=where, licence=self.licence)

    def prefix(self, provider: Provider = "aws") -> str:
        """Where its files lie, as `s3://` or `gs://` URL with a `*`, as s5cmd and gcloud read it."""
        if provider == "gcs":
            return f"gs://{mirror_bucket(self.bucket)}/{self.uuid}/*"
        return f"s3://{self.bucket}/{self.uuid}/*"


class Column(msgspec.Struct, frozen=True):
    """A column of the index."""

    name: str
    type: str
    description: str


# What each record's fields are in SQL, in the record's order; then what groups and orders the rows.
_SUMS = f"count(*), sum(greatest({FILES}, 0))::BIGINT, sum(greatest({BYTES}, 0))::BIGINT"


def _text(name: str) -> str:
    return f"coalesce(\"{name}\"::VARCHAR, '')"


def _names(column: str) -> str:
    """SQL of the different values of a group, for few large groups."""
    return f'coalesce(list_sort(list(DISTINCT "{column}") FILTER ("{column}" IS NOT NULL)), [])'


def _names_of_many(column: str) -> str:
    """The same for many small groups: a hash table for each would take DuckDB several times the memory."""
    return f'coalesce(list_sort(list_distinct(list("{column}") FILTER ("{column}" IS NOT NULL))), [])'


def _level_sql(kind: type[msgspec.Struct], columns: dict[str, str]) -> tuple[str, str]:
    """SQL of a record's values, and of their grouping. Pure."""

    def first(name: str) -> str:
        return f"coalesce(min(\"{name}\")::VARCHAR, '')" if name in columns else "''"

    collection, patient, study = _text("collection_id"), _text("PatientID"), _text("StudyInstanceUID")
    if kind is Collection:
        licences = _names("license_short_name")
        counts = 'count(DISTINCT "PatientID"), count(DISTINCT "StudyInstanceUID")'
        return f"{collection}, {counts}, {_SUMS}, {_names('Modality')}, {licences}", "GROUP BY 1 ORDER BY 1"
    if kind is Patient:
        counts = 'count(DISTINCT "StudyInstanceUID")'
        return f"{collection}, {patient}, {counts}, {_SUMS}, {_names('Modality')}", "GROUP BY 1, 2 ORDER BY 1, 2"
    if kind is Study:
        facts = f"{first('StudyDate')}, {first('StudyDescription')}"
        values = f"{collection}, {patient}, {study}, {facts}, {_SUMS}, {_names_of_many('Modality')}"
        return values, "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    described = _text("SeriesDescription") if "SeriesDescription" in columns else "''"
    places = ", ".join(map(_text, ("license_short_name", "aws_bucket", "crdc_series_uuid")))
    names = f"{collection}, {patient}, {study}, {_text('SeriesInstanceUID')}, {_text('Modality')}"
    return f"{names}, {described}, {FILES}, {BYTES}, {places}", ""


class IdcClient:
    """The Imaging Data Commons, for people. Use it in a `with` block, or close it.

    Parameters
    ----------
    index
        A Parquet file, or an open `IdcIndex` (which stays open); default: the installed idc-index-data.
    endpoints
        Where `file_urls` and `download_series` ask: `SourceIdc(s3_endpoint=..., mirror_endpoint=...)`; default: the
        public buckets. Nothing else needs the network.

    Every method that selects takes the same keywords, all of which must hold: `collection`, `patient`, `study` and
    `modality` (a value or several alternatives), `where` (an SQL condition over `columns()`), `content` (`original`,
    `derived` or `both`). A value that the index does not have, and a selection of nothing, raise `ConfigError`.
    """

    def __init__(self, index: IdcIndex | Path | str | None = None, *, endpoints: SourceIdc | None = None) -> None:
        self._owned = not isinstance(index, IdcIndex)
        if isinstance(index, IdcIndex):
            self._index = index
        else:
            source = SourceIdc(index="packaged" if index is None else str(index))
            self._index = IdcIndex.open(source, memory="250MB", keep_order=True)
        self._endpoints = endpoints or SourceIdc()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index, if this client opened it."""
        if self._owned:
            self._index.close()

    @property
    def release(self) -> str:
        """The data release: the version of idc-index-data, or the hash of the file."""
        return self._index.release

    def columns(self) -> list[Column]:
        """The columns that a `where` may use."""
        descriptions = self._index.descriptions()
        return [Column(name, kind, descriptions.get(name, "")) for name, kind in self._index.column_types().items()]

    def collections(self, *, modality: Names = None, where: str = "", content: Content = "both") -> list[Collection]:
        """All collections, or those with what is selected."""
        return list(self.iterate(Collection, modality=modality, where=where, content=content))

    def patients(
        self, collection: Names = None, *, modality: Names = None, where: str = "", content: Content = "both"
    ) -> list[Patient]:
        """The patients of a collection."""
        return list(self.iterate(Patient, collection=collection, modality=modality, where=where, content=content))

    def studies(
        self,
        patient: Names = None,
        *,
        collection: Names = None,
        modality: Names = None,
        where: str = "",
        content: Content = "both",
    ) -> list[Study]:
        """The studies of a patient; give the collection too where a PatientID occurs in several."""
        return list(
            self.iterate(Study, collection=collection, patient=patient, modality=modality, where=where, content=content)
        )

    def series(
        self,
        collection: Names = None,
        patient: Names = None,
        study: Names = None,
        modality: Names = None,
        where: str = "",
        content: Content = "both",
    ) -> list[Series]:
        """The selected series."""
        return list(
            self.iterate(
                Series,
                collection=collection,
                patient=patient,
                study=study,
                modality=modality,
                where=where,
                content=content,
            )
        )

    def iterate(
        self,
        kind: type[T],
        *,
        collection: Names = None,
        patient: Names = None,
        study: Names = None,
        series: Names = None,
        modality: Names = None,
        where: str = "",
        content: Content = "both",
        limit: int | None = None,
    ) -> Iterator[T]:
        """Yield records of `Collection`, `Patient`, `Study` or `Series` one by one, in little memory."""
        selection = self._index.select(
            SelectIdc(
                content=content,
                collections=_several(collection),
                patients=_several(patient),
                studies=_several(study),
                series=_several(series),
                modalities=_several(modality),
                where=where,
            )
        )
        values, rest = _level_sql(kind, self._index.column_types())
        if kind is Series and not selection.keeps_order:  # else they come in the order of the file by themselves
            rest = "ORDER BY file_row_number"
        if limit is not None:
            rest += f" LIMIT {limit:d}"
        for rows in selection.stream(values, rest):
            for row in rows:
                yield kind(*row)

    def series_size(self, series_uid: str) -> int:
        """Bytes of all files of a series, as the index states them."""
        return sum(max(found.bytes, 0) for found in self.iterate(Series, series=series_uid))

    def file_urls(self, series_uid: str, provider: Provider = "aws") -> list[str]:
        """URLs of all files of a series, in the order of their keys. Asks the network.

        Raises
        ------
        ItemError
            When the series cannot be listed, or not as the index states it.
        """
        from pipeline.sources.idc_access import IdcAccess

        endpoint = self._endpoints.s3_endpoint if provider == "aws" else self._endpoints.mirror_endpoint
        urls = []
        with IdcAccess(self._endpoints) as access:
            for found in self.iterate(Series, series=series_uid):
                bucket = mirror_bucket(found.bucket) if provider == "gcs" else found.bucket
                files = access.list_files(found.item())
                urls += [f"{endpoint.rstrip('/')}/{quote(bucket)}/{quote(file.key)}" for file in files]
        return urls

    def download_series(
        self, series_uid: str, folder: Path | str, on_file: Callable[[int], object] = int
    ) -> list[Path]:
        """Download a series to `folder/{SeriesInstanceUID}/{SOPInstanceUID}.dcm`, by the path that a run takes.

        Every file is compared with the site's hash and checked as DICOM; the folder is there whole or not at all.
        `on_file` is told the bytes of each file that is done. Returns the files' paths.

        Raises
        ------
        ItemError
            Why the series cannot be had whole.
        StorageError
            When the folder exists already, or cannot be written.
        """
        from pipeline.sources.idc_access import IdcAccess

        paths: list[Path] = []
        with IdcAccess(self._endpoints) as access:
            for found in self.iterate(Series, series=series_uid):
                paths += access.download_series(found.item(), Path(folder), on_file)
        return paths


def _several(value: Names) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
