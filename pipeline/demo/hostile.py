"""Demo data as no archive site should have it: names that attack paths, rows that lie, files that are broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from pipeline.demo.data import DemoData, build_series
from pipeline.demo.dicoms import make_fitting_series
from pipeline.demo.encode import make_uid
from pipeline.demo.index import IndexRow
from pipeline.demo.rows import describe_series

COLLECTION = "demo_hostile"
# Each is a PatientID; a path made from it must stay below its folder, and no two may become one name.
PATIENTS = (
    "../../etc/passwd",
    "/absolute",
    "..",
    ".",
    "-rf",
    "a/b",
    "a_b",
    "a b",
    "a  b",
    " a_b",
    "A_B",
    "new\nline",
    "tab\tand\x1b[31mescape",
    "nul\0byte",
    "back\\slash",
    "p\u00e4tient",
    "pa\u0308tient",
    "\u202egpj.exe",
    "%2e%2e%2f",
    "=cmd()",
    "quote\"and'and,comma",
    "CON",
    "x" * 300,
    "\u00fc" * 150,
)
NULL_COLUMNS = ("analysis_result_id", "PatientAge", "StudyDate", "BodyPartExamined", "SeriesDescription", "Modality")


def build_hostile(root: Path) -> DemoData:
    """Build one small MR series for each of `PATIENTS`, one without files, and one whose row is NULL where it may be.

    Their files are sound DICOM: what is hostile is the index.
    """
    made = [_make(f"patient {number}", patient) for number, patient in enumerate(PATIENTS)]
    empty_row, _ = _make("no files", "EMPTY")
    made.append((msgspec.structs.replace(empty_row, instanceCount=0, series_size_MB=0.0), []))
    null_row, files = _make("NULLs", "NULLS")
    made.append((msgspec.structs.replace(null_row, **dict.fromkeys(NULL_COLUMNS)), files))
    return build_series(root, made)


def build_lying(root: Path) -> DemoData:
    """Build series whose rows say one file too many, one too few, or other bytes than there are, by PatientID."""
    made = []
    for name, more, megabytes in (("MORE", 1, 0.0), ("FEWER", -1, 0.0), ("BYTES", 0, 0.001), ("HONEST", 0, 0.0)):
        row, files = _make(name, name)
        said = (row.instanceCount or 0) + more, (row.series_size_MB or 0) + megabytes
        made.append((msgspec.structs.replace(row, instanceCount=said[0], series_size_MB=said[1]), files))
    return build_series(root, made)


# What is done to the last of three files of a series, by the reason that a verifier should give; see errors.REASONS.
BREAKERS: dict[str, Callable[[list[bytes]], bytes]] = {
    "not-dicom": lambda files: b"<html>" + b" " * (len(files[2]) - 6),
    "truncated": lambda files: files[2][:-5000],
    "wrong-uid": lambda files: make_fitting_series(make_uid("other"), make_uid("st"), "X", "MR", 1, len(files[2]), 9)[
        0
    ],
    "duplicate": lambda files: files[1][:-2] + b"\1\1",
    "malformed": lambda files: _set_rows(files[2], 0xFFFF),
}


def build_broken(root: Path) -> DemoData:
    """Build series of three files, the last of them broken as `BREAKERS` says; the PatientID is the reason.

    Rows, ETags and sizes agree with the broken bytes: only looking into the file shows what is wrong.
    """
    made = []
    for reason, breaker in BREAKERS.items():
        row, files = _make(reason, reason)
        files[2] = breaker(files)
        made.append((msgspec.structs.replace(row, series_size_MB=sum(map(len, files)) / 1e6), files))
    return build_series(root, made)


def _set_rows(file: bytes, rows: int) -> bytes:
    """Change Rows (0028,0010), so that the image is taller than its pixels."""
    head, value, tail = file.partition(b"\x28\x00\x10\x00US\x02\x00")
    return head + value + rows.to_bytes(2, "little") + tail[2:]


def _make(name: str, patient: str) -> tuple[IndexRow, list[bytes]]:
    series, study = make_uid("hostile series", name), make_uid("hostile study", name)
    files = make_fitting_series(series, study, "DEMO", "MR", 3, 60_000, 1)
    row = describe_series(files, collection_id=COLLECTION, aws_bucket="idc-open-data")
    return msgspec.structs.replace(row, PatientID=patient), files
