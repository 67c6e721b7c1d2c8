"""Pages of lists as the ISIC Archive cuts them, with its cursors, and with the rows that it loses.

The site fetches 101 rows whatever the page's length and takes the last of them for the one that follows the page. So
with pages of less than 100, rows of one time are lost where a page ends among them. Facts: isic/core/pagination.py of
https://github.com/ImageMarkup/isic, made after that of Django REST framework.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

import msgspec

PAGE = 100


class BadParameterError(ValueError):
    """A parameter that is answered by 422; `errors` is its `detail`."""

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.errors = [{"type": kind, "loc": ["query", name], "msg": message}]


class Cursor(msgspec.Struct, frozen=True):
    """Where a page begins: so many rows after a position, or before it."""

    offset: int = 0
    reverse: bool = False
    position: str | None = None


class Ordering(msgspec.Struct, frozen=True):
    """How a list is ordered.

    Attributes
    ----------
    rank
        Of a row; it never falls along the list.
    text
        The position of a row, as a cursor has it.
    parse
        The rank of a position. Raises ValueError.
    """

    rank: Callable[[Any], Any]
    text: Callable[[Any], str]
    parse: Callable[[str], Any]


class Cut(msgspec.Struct, frozen=True):
    """A page: rows, how many there are (on the first page), and cursors of its neighbours."""

    rows: list[Any]
    count: int | None
    following: Cursor | None
    previous: Cursor | None


def parse_integer(name: str, text: str) -> int:
    """A whole number of a query; raises `BadParameterError`."""
    if not re.fullmatch(r"\s*[+-]?\d{1,30}(\.0+)?\s*", text, re.ASCII):
        raise BadParameterError(
            "int_parsing", name, "Input should be a valid integer, unable to parse string as an integer"
        )
    return int(text.partition(".")[0])


def parse_limit(text: str | None) -> int:
    """The length of a page; raises `BadParameterError`."""
    if text is None:
        return PAGE
    return min(max(parse_integer("limit", text) or PAGE, 0), PAGE)


def parse_cursor(text: str) -> Cursor:
    """Read a cursor, "" for the beginning; raises `BadParameterError`."""
    if not text:
        return Cursor()
    try:
        query = parse_qs(base64.b64decode(text.encode("ascii"), validate=True).decode("ascii"), keep_blank_values=True)
        offset = int(query.get("o", ["0"])[0])
        if offset < 0:
            raise ValueError("a negative offset")
        reverse = bool(int(query.get("r", ["0"])[0]))
    except (ValueError, binascii.Error):
        raise _bad_cursor() from None
    return Cursor(min(offset, PAGE), reverse, query.get("p", [None])[0])


def _bad_cursor() -> BadParameterError:
    return BadParameterError("value_error", "cursor", "Value error, Invalid cursor.")


def render_cursor(cursor: Cursor) -> str:
    """A cursor as it stands in URLs."""
    parts: list[tuple[str, str]] = []
    if cursor.offset:
        parts.append(("o", str(cursor.offset)))
    if cursor.reverse:
        parts.append(("r", "1"))
    if cursor.position is not None:
        parts.append(("p", cursor.position))
    return base64.b64encode(urlencode(parts).encode("ascii")).decode("ascii")


def cut_page(rows: Sequence[Any], ordering: Ordering, cursor: Cursor, limit: int) -> Cut:
    """Cut a page out of a list; raises `BadParameterError`. Pure."""
    start, end = 0, len(rows)
    if cursor.position is not None:
        try:
            rank = ordering.parse(cursor.position)
        except (ValueError, OverflowError):
            raise _bad_cursor() from None
        if cursor.reverse:
            end = bisect.bisect_left(rows, rank, key=ordering.rank)
        else:
            start = bisect.bisect_right(rows, rank, key=ordering.rank)
    if cursor.reverse:
        last = max(0, end - cursor.offset)
        fetched = [rows[place] for place in range(last - 1, max(-1, last - PAGE - 2), -1)]
    else:
        first = start + cursor.offset
        fetched = [rows[place] for place in range(first, min(end, first + PAGE + 1))]
    page = fetched[:limit]
    more = len(fetched) > len(page)
    beyond = ordering.text(fetched[-1]) if more else None
    before = cursor.position is not None or cursor.offset > 0
    if cursor.reverse:
        page.reverse()
        has_next, has_previous = before, more
        positions = (cursor.position, beyond)
    else:
        has_next, has_previous = more, before
        positions = (beyond, cursor.position)
    texts = [ordering.text(row) for row in page]
    following = _link_next(texts, cursor, positions, has_previous, limit) if has_next else None
    previous = _link_previous(texts, cursor, positions, has_next, limit) if has_previous else None
    return Cut(page, len(rows) if cursor.position is None else None, following, previous)


def _walk(texts: Sequence[str], compare: str | None) -> tuple[int, str | None]:
    """How many rows share the position of the one after them, and the first position that differs."""
    for equal, text in enumerate(texts):
        if text != compare:
            return equal, text
    return len(texts), None


def _link_next(
    texts: list[str], cursor: Cursor, positions: tuple[str | None, str | None], has_previous: bool, limit: int
) -> Cursor:
    following, previous = positions
    if not texts:
        return Cursor(0, False, following)
    compare = texts[-1] if cursor.reverse and cursor.offset else following
    offset, position = _walk(texts[::-1], compare)
    if position is not None:
        return Cursor(offset, False, position)
    if not has_previous:
        return Cursor(limit, False, None)
    return Cursor(0 if cursor.reverse else cursor.offset + limit, False, previous)


def _link_previous(
    texts: list[str], cursor: Cursor, positions: tuple[str | None, str | None], has_next: bool, limit: int
) -> Cursor:
    following, previous = positions
    if not texts:
        return Cursor(0, True, previous)
    compare = texts[0] if not cursor.reverse and cursor.offset else previous
    offset, position = _walk(texts, compare)
    if position is not None:
        return Cursor(offset, True, position)
    if not has_next:
        return Cursor(limit, True, None)
    return Cursor(cursor.offset + limit if cursor.reverse else 0, True, following)


def render_link(url: str, query: str, cursor: Cursor | None) -> str | None:
    """The URL of a neighbour: that of the request, its parameters sorted, another cursor. Pure."""
    if cursor is None:
        return None
    params = parse_qs(query, keep_blank_values=True)
    params["cursor"] = [render_cursor(cursor)]
    return f"{url}?{urlencode(sorted(params.items()), doseq=True)}"
