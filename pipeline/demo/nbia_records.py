"""What a demo NBIA holds: collections, series with their files, and shared carts; read from DICOM headers."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pydicom
from pydicom.dataset import FileDataset

from pipeline.errors import ConfigError

CATALOGUE = "nbia.json"


class NbiaFile(msgspec.Struct, frozen=True):
    """One instance. `path` is relative to the archive's root; `md5` and `sha256` in hexadecimal."""

    path: str
    sop_instance_uid: str
    size: int
    md5: str
    sha256: str
    instance: int | None
    acquisition: int | None


class NbiaSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One series as its database knows it; None is NULL. `files` are in the order of the database, which is none.

    `licence` is the short name of one of the archive's licences; `pixel_spacing` and `slice_thickness` hold each value
    that occurs. A `restricted` series is denied to everybody.
    """

    uid: str
    study_uid: str
    collection: str
    patient_id: str
    modality: str
    doi: str
    licence: str
    submitted: dt.date
    released: dt.date
    third_party: str = "NO"
    patient_name: str | None = None
    patient_sex: str | None = None
    patient_age: str | None = None
    ethnic_group: str | None = None
    study_date: dt.date | None = None
    study_description: str | None = None
    study_id: str | None = None
    protocol: str | None = None
    series_date: dt.date | None = None
    description: str | None = None
    body_part: str | None = None
    number: int | None = None
    manufacturer: str | None = None
    model: str | None = None
    software: str | None = None
    sop_class: str | None = None
    sop_class_name: str | None = None
    pixel_spacing: tuple[str, ...] = ()
    slice_thickness: tuple[str, ...] = ()
    restricted: bool = False
    files: tuple[NbiaFile, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all its files, uncompressed."""
        return sum(file.size for file in self.files)


class NbiaLicence(msgspec.Struct, frozen=True):
    """A licence as NBIA's table of licences has it."""

    id: int
    long_name: str
    short_name: str
    url: str
    commercial: str


class NbiaCollection(msgspec.Struct, frozen=True, kw_only=True):
    """A collection: its name as TCIA spells it, what to cite (`description` is HTML) and the DOI of its page."""

    id: int
    name: str
    licence: str
    doi: str
    citation: str
    description: str
    updated: dt.date


class NbiaCart(msgspec.Struct, frozen=True):
    """A shared list of series."""

    name: str
    description: str
    url: str
    series: tuple[str, ...]


class NbiaArchive(msgspec.Struct, frozen=True, kw_only=True):
    """All that an `NbiaSite` serves."""

    root: str
    series: tuple[NbiaSeries, ...]
    collections: tuple[NbiaCollection, ...]
    licences: tuple[NbiaLicence, ...]
    carts: tuple[NbiaCart, ...] = ()

    def read(self, file: NbiaFile) -> bytes:
        """The bytes of a file. Raises OSError when it is not there."""
        return Path(self.root, file.path).read_bytes()

    def find(self, uid: str) -> NbiaSeries:
        """The series of a SeriesInstanceUID. Raises KeyError."""
        for one in self.series:
            if one.uid == uid:
                return one
        raise KeyError(uid)


def write_archive(archive: NbiaArchive, root: Path) -> None:
    """Write the catalogue of an archive into its root."""
    (root / CATALOGUE).write_bytes(msgspec.json.encode(archive))


def load_archive(root: Path) -> NbiaArchive:
    """Read the catalogue that lies in a root; paths are taken relative to where the root is now. Raises ConfigError."""
    path = root / CATALOGUE
    try:
        archive = msgspec.json.decode(path.read_bytes(), type=NbiaArchive)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: not a catalogue: {error}", hint="make one with build_nbia") from None
    return msgspec.structs.replace(archive, root=str(root))


def describe_file(path: str, data: bytes) -> NbiaFile:
    """The record that is true of a DICOM file."""
    header = read_header(data)
    return NbiaFile(
        path=path,
        sop_instance_uid=str(header.SOPInstanceUID),
        size=len(data),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        instance=_number(header, "InstanceNumber"),
        acquisition=_number(header, "AcquisitionNumber"),
    )


def describe_nbia_series(
    files: Sequence[tuple[str, bytes]],
    *,
    collection: str,
    patient_id: str,
    licence: str,
    doi: str,
    submitted: dt.date,
    third_party: str = "NO",
    restricted: bool = False,
) -> NbiaSeries:
    """The record that is true of a series, given path and content of its files; what headers lack is None."""
    headers = [read_header(data) for _, data in files]
    first = headers[0]

    def text(name: str) -> str | None:
        value = first.get(name)
        return None if value is None or str(value).strip() == "" else str(value)

    def each(name: str) -> tuple[str, ...]:
        values = (header.get(name) for header in headers)
        return tuple(dict.fromkeys(str(v[0] if name == "PixelSpacing" else v) for v in values if v))

    return NbiaSeries(
        uid=str(first.SeriesInstanceUID),
        study_uid=str(first.StudyInstanceUID),
        collection=collection,
        patient_id=patient_id,
        modality=str(first.Modality),
        doi=doi,
        licence=licence,
        submitted=submitted,
        released=submitted,
        third_party=third_party,
        patient_name=text("PatientName"),
        patient_sex=text("PatientSex"),
        patient_age=text("PatientAge"),
        ethnic_group=text("EthnicGroup"),
        study_date=_date(text("StudyDate")),
        study_description=text("StudyDescription"),
        study_id=text("StudyID"),
        protocol=text("ProtocolName"),
        series_date=_date(text("SeriesDate")),
        description=text("SeriesDescription"),
        body_part=text("BodyPartExamined"),
        number=_number(first, "SeriesNumber"),
        manufacturer=text("Manufacturer"),
        model=text("ManufacturerModelName"),
        software=text("SoftwareVersions"),
        sop_class=text("SOPClassUID"),
        sop_class_name=first.SOPClassUID.name,
        pixel_spacing=each("PixelSpacing"),
        slice_thickness=each("SliceThickness"),
        restricted=restricted,
        files=tuple(describe_file(path, data) for path, data in files),
    )


def read_header(data: bytes) -> FileDataset:
    """The attributes of a DICOM file before its pixels."""
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)


def _number(header: FileDataset, name: str) -> int | None:
    value = header.get(name)
    return None if value is None or str(value) == "" else int(value)


def _date(text: str | None) -> dt.date | None:
    return dt.date(int(text[:4]), int(text[4:6]), int(text[6:8])) if text else None
