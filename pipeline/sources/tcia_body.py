"""Answers of TCIA's API taken apart: JSON, CSV or text in, plain values or `ShapeError` out. Pure."""

from __future__ import annotations

import csv
import io
import re

from pipeline.sources.api_body import GarbledError, ShapeError, clean_text, describe_body, explain_refusal, parse_json

__all__ = [
    "GarbledError",
    "ShapeError",
    "clean_text",
    "describe_body",
    "explain_refusal",
    "parse_csv",
    "parse_json",
    "parse_manifest",
    "parse_records",
]
_UID = re.compile(r"[0-9.]{1,64}")
_MOST_LINES = 20  # of one row of a table that is read in spite of what is broken in it


def parse_records(body: bytes, *, lenient: bool = False) -> list[dict[str, object]]:
    """Read a JSON list of objects, or a single object, or CSV with a header row; nothing at all is an empty list.

    `lenient`: rows that cannot be read are passed over, unless there are no others; who asked for them has to see to
    what is missing then.

    Raises
    ------
    ShapeError
        When it is something else; `GarbledError` when it cannot be read.
    """
    start = body[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and not body.strip(b"\xef\xbb\xbf \t\r\n"):
        return []
    if start[:1] == b'"' or start[:1].isalnum():
        return parse_csv(body, lenient=lenient)
    value = parse_json(body)
    values = [value] if isinstance(value, dict) else value
    if not isinstance(values, list):
        raise ShapeError(f"{describe_body(body)}, not a list")
    records: list[dict[str, object]] = []
    problem = ""
    for number, record in enumerate(values, 1):
        if isinstance(record, dict):
            records.append(record)
            continue
        problem = problem or f"{describe_body(body)}, whose row {number} is no object but {type(record).__name__}"
    if problem and not (lenient and records):
        raise ShapeError(problem)
    return records


def parse_csv(body: bytes, *, lenient: bool = False) -> list[dict[str, object]]:
    """Read CSV with a header row; cells that are empty or `null` are left out, as JSON answers leave them out.

    `lenient` as of `parse_records`: a row of broken quotes ends with its line then.

    Raises
    ------
    ShapeError
        When it has no series column, or a row has another number of cells than the header.
    """
    text = body.decode("utf-8-sig", "replace").replace("\0", " ")
    broken = ""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        broken = f"{describe_body(body)}, not CSV ({error})"
        if not lenient:
            raise GarbledError(broken) from None
        rows = _read_line_by_line(text)
    header = [clean_text(name) for name in rows[0]] if rows else []
    if not any(re.fullmatch(r"series ?(instance ?)?(uid|id)", name.lower()) for name in header):
        raise GarbledError(f"{describe_body(body)}, neither JSON nor a table of series")
    records: list[dict[str, object]] = []
    problem = ""
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            problem = problem or f"CSV whose row {number} has {len(row)} cells under {len(header)} headings"
            continue
        records.append({name: cell for name, cell in zip(header, row, strict=True) if cell not in {"", "null"}})
    if problem and not (lenient and records):
        raise ShapeError(problem)
    if broken and not records:
        raise GarbledError(broken)
    return records


def _read_line_by_line(text: str) -> list[list[str]]:
    """The rows of a table in which some are broken: each begins a line, and may have line ends in its cells."""
    lines = list(io.StringIO(text, newline=""))
    rows: list[list[str]] = []
    place = width = 0
    while place < len(lines):
        whole, taken = _read_row(lines[place : place + _MOST_LINES], width)
        if whole:
            rows.append(whole)
            width = width or len(whole)
        place += taken
    return rows


def _read_row(lines: list[str], width: int) -> tuple[list[str], int]:
    """The row that begins here and how many lines it takes; nothing, and one line, where there is none."""
    for taken in range(1, len(lines) + 1):
        try:
            rows = list(csv.reader(io.StringIO("".join(lines[:taken]), newline=""), strict=True))
        except csv.Error:  # perhaps a cell goes on in the next line
            continue
        row = rows[0] if rows else []
        return (row, taken) if len(rows) <= 1 and len(row) in {width or len(row), 0} else ([], 1)
    return [], 1


def parse_manifest(body: bytes) -> list[str]:
    """Read the SeriesInstanceUIDs of a `.tcia` manifest, in order, each once.

    Raises
    ------
    ShapeError
        When it has no `ListOfSeriesToDownload=`, or a line after it is no UID.
    """
    lines = [line.strip() for line in body.decode("utf-8-sig", "replace").splitlines()]
    start = next((n for n, line in enumerate(lines) if line.startswith("ListOfSeriesToDownload=")), None)
    if start is None:
        raise GarbledError(f"{describe_body(body)}, not a .tcia manifest")
    listed = [lines[start].partition("=")[2], *lines[start + 1 :]]
    uids = [line.rstrip(",").strip() for line in listed if line.strip(", ")]
    for uid in uids:
        if not _UID.fullmatch(uid):
            raise ShapeError(f"a .tcia manifest that lists {clean_text(uid)[:80]!r}, which is no UID")
    return list(dict.fromkeys(uids))
