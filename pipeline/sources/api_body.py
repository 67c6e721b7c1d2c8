"""Answers of archive sites' APIs: text made fit to show, JSON read, and what came instead of it described. Pure."""

from __future__ import annotations

import json
import re

# Characters that no name or description needs: C0 and C1 controls, DEL, lone surrogates, line and paragraph separators.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\ufeff]+")


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
