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


def parse_records(body: bytes) -> list[dict[str, object]]:
    """Read a JSON list of objects, or a single object, or CSV with a header row; nothing at all is an empty list.

    Raises
    ------
    ShapeError
        When it is something else; `GarbledError` when it cannot be read.
    """
    start = body[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and not body.strip(b"\xef\xbb\xbf \t\r\n"):
        return []
    if start[:1] == b'"' or start[:1].isalnum():
        return parse_csv(body)
    value = parse_json(body)
    values = [value] if isinstance(value, dict) else value
    if not isinstance(values, list):
        raise ShapeError(f"{describe_body(body)}, not a list")
    records: list[dict[str, object]] = []
    for number, record in enumerate(values, 1):
        if not isinstance(record, dict):
            raise ShapeError(f"{describe_body(body)}, whose row {number} is no object but {type(record).__name__}")
        records.append(record)
    return records


def parse_csv(body: bytes) -> list[dict[str, object]]:
    """Read CSV with a header row; cells that are empty or `null` are left out, as JSON answers leave them out.

    Raises
    ------
    ShapeError
        When it has no series column, or a row has another number of cells than the header.
    """
    text = body.decode("utf-8-sig", "replace").replace("\0", " ")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise GarbledError(f"{describe_body(body)}, not CSV ({error})") from None
    header = [clean_text(name) for name in rows[0]] if rows else []
    if not any(re.fullmatch(r"series ?(instance ?)?(uid|id)", name.lower()) for name in header):
        raise GarbledError(f"{describe_body(body)}, neither JSON nor a table of series")
    records: list[dict[str, object]] = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ShapeError(f"CSV whose row {number} has {len(row)} cells under {len(header)} headings")
        records.append({name: cell for name, cell in zip(header, row, strict=True) if cell not in {"", "null"}})
    return records


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
