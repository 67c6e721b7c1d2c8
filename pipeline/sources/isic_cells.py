"""How ISIC images stand in tables: the columns that every table has, their cells, and lines of CSV. Pure.

Rows are those of `flatten_image`. What an image does not have is an empty cell, or null.
"""

from __future__ import annotations

import csv
import decimal
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import msgspec

from pipeline.sources.isic_fields import FIELDS, Kind
from pipeline.sources.isic_rows import Value

# Keys of a row beside those of `flatten_image`: the collections of the selection that the image is in.
COLLECTION_NAMES, COLLECTION_IDS = "medhaul.collections", "medhaul.collection_ids"
REST = "other"  # all that an image has beyond the registry, as a JSON object
# What spreadsheets take for a formula, in their full-width forms too, and after a guard: it can be taken off again.
_DANGEROUS = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_OWN = frozenset({*FIELDS, COLLECTION_NAMES, COLLECTION_IDS})


class Column(msgspec.Struct, frozen=True):
    """A column: its name in the table, and the key of the row that fills it ("": it stays empty)."""

    name: str
    key: str
    kind: Kind = "text"


def field_columns() -> tuple[Column, ...]:
    """Every field of the registry, always the same ones in the same order, and `other` for what is beyond it."""
    return (*(Column(field.name, field.column, field.kind) for field in FIELDS.values()), Column(REST, REST))


def join_values(values: Iterable[object]) -> str | None:
    """Several values in one cell; None for none."""
    return "; ".join(map(str, values)) or None


def render_cell(value: Value, *, exact: bool = False) -> str:
    """A value for CSV: `true`, `false`, plain decimals, nothing for None.

    A text that a spreadsheet would take for a formula gets a leading ', unless it is a number or `exact`.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    text = str(value)
    guard = not exact and isinstance(value, str) and _DANGEROUS.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if guard else text


def pick_cells(columns: Sequence[Column], row: Mapping[str, Value]) -> list[Value]:
    """The values of a row for columns."""
    return [_pick_rest(row) if column.key == REST else row.get(column.key) for column in columns]


def _pick_rest(row: Mapping[str, Value]) -> str | None:
    rest = {name: value for name, value in row.items() if name not in _OWN and value is not None}
    if not rest:
        return None
    shown = {name: str(value) if isinstance(value, decimal.Decimal) else value for name, value in rest.items()}
    return json.dumps(shown, ensure_ascii=False, sort_keys=True)


def render_csv_lines(
    columns: Sequence[Column], rows: Iterable[Sequence[Value]], *, exact: bool = False
) -> Iterator[str]:
    """Lines of CSV (RFC 4180, but for their ends, which are the caller's), the header once there is a row."""
    source = iter(rows)
    first = list(islice(source, 1))  # whatever fails before that leaves no half table
    text = io.StringIO()
    writer = csv.writer(text)  # its \r\n makes it quote either sign in a value, and is not given on
    writer.writerow([render_cell(column.name, exact=exact) for column in columns])
    yield text.getvalue()[:-2]
    for row in chain(first, source):
        text.seek(0)
        text.truncate()
        writer.writerow([render_cell(value, exact=exact) for value in row])
        yield text.getvalue()[:-2]
