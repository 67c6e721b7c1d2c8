"""Answers of TCIA's API taken apart: JSON, CSV or text in, plain values or `ShapeError` out. Pure."""

from __future__ import annotations

import csv
import io
import json
import re

# Characters that no name or description needs: C0 and C1 controls, DEL, lone surrogates, line and paragraph separators.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\ufeff]+")
_UID = re.compile(r"[0-9.]{1,64}")


class ShapeError(ValueError):
    """An answer is not what the call should give. The text says what came instead."""


class GarbledError(ShapeError):
    """An answer cannot be read at all: cut short, or somebody else's page. Asking again may help."""


def clean_text(text: str) -> str:
    """Make text fit for a table and for UTF-8: a space for each run of unprintable characters, none at the ends."""
    return _UNPRINTABLE.sub(" ", text).strip()


def describe_body(body: bytes) -> str:
    """Say what an answer looks like and how it begins, for messages."""
    text = clean_text(body[:2000].decode("utf-8", "replace"))
    if not text:
        return f"{len(body)} bytes of nothing" if body else "an empty body"
    start = text[:100].lower()
    kind = "text"
    if start.startswith(("<!doctype html", "<html")):
        kind = "an HTML page"
    elif start.startswith("<"):
        kind = "an XML document"
    elif body.startswith(b"PK"):
        kind = "a ZIP archive"
    elif start[0] in "[{":
        kind = "JSON"
    return f"{kind} of {len(body)} bytes that begins {text[:80]!r}"


def explain_refusal(body: bytes) -> str:
    """Make the text of a refused request readable: one line, no markup, at most 300 characters."""
    text = body[:20_000].decode("utf-8-sig", "replace")
    if text.lstrip()[:1] == "<":
        text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>", " ", text)
    text = " ".join(clean_text(text).split())
    return f"{text[:299]}…" if len(text) > 300 else text or "without a reason"


def parse_json(body: bytes) -> object:
    """Read JSON, lenient with raw control characters, a BOM and bytes that are not UTF-8; of equal keys, the last.

    Raises
    ------
    GarbledError
        For anything else, including nesting or numbers beyond reason.
    """
    text = body.decode("utf-8-sig", "replace")
    value: object = None
    problem = ""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse_constant)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:  # JSONDecodeError, or an integer of more digits than Python converts
        problem = clean_text(str(error))[:100]
    if problem:
        raise GarbledError(f"{describe_body(body)}, not JSON ({problem})")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


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
