"""Write tables of ISIC images as CSV, JSON lines or Parquet: whole or not at all, in bounded memory.

Rows are those of `flatten_image`. What an image does not have is an empty cell, or null.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from pipeline.atomic import atomic_file
from pipeline.errors import StorageError, UsageError
from pipeline.sources.isic_cells import REST, Column, pick_cells, render_cell, render_csv_lines
from pipeline.sources.isic_fields import SQL_TYPES
from pipeline.sources.isic_rows import Value

__all__ = [
    "Written",
    "choose_table_form",
    "pick_cells",
    "render_cell",
    "render_csv_lines",
    "render_json_lines",
    "render_lines",
    "write_table",
]
_BATCH = 5_000  # rows that Parquet gets at a time
_FORMS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class Written(msgspec.Struct, frozen=True):
    """How many rows a table got, and the names of its columns that are empty in all of them."""

    rows: int
    empty: tuple[str, ...]


def choose_table_form(path: Path) -> str:
    """The form of a table by the end of its file's name: `csv`, `jsonl` or `parquet`. Raises `UsageError`. Pure."""
    form = _FORMS.get(path.suffix.lower(), "")
    if not form:
        raise UsageError(f"{path}: no kind of table has this name", hint="end it in .csv, .jsonl or .parquet")
    return form


def render_json_lines(columns: Sequence[Column], rows: Iterable[Sequence[Value]]) -> Iterator[str]:
    """A JSON object per row with all columns; decimals are numbers, `other` is an object. Pure."""
    encode = msgspec.json.Encoder(decimal_format="number").encode
    names = [column.name for column in columns]
    rest = [column.key == REST for column in columns]
    for row in rows:
        values: list[Any] = [
            msgspec.Raw(value.encode("utf-8", "backslashreplace")) if is_rest and isinstance(value, str) else value
            for value, is_rest in zip(row, rest, strict=True)
        ]
        yield encode(dict(zip(names, values, strict=True))).decode()


class _Tally:
    """Passes rows on, and notes how many there are and which columns have anything."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Value]]) -> None:
        self._columns = columns
        self._rows = rows
        self._count = 0
        self._empty = set(range(len(columns)))

    def __iter__(self) -> Iterator[list[Value]]:
        for row in self._rows:
            cells = pick_cells(self._columns, row)
            self._count += 1
            if self._empty:
                self._empty = {place for place in self._empty if cells[place] is None}
            yield cells

    def result(self) -> Written:
        return Written(self._count, tuple(self._columns[place].name for place in sorted(self._empty)))


def write_table(
    path: Path, columns: Sequence[Column], rows: Iterable[Mapping[str, Value]], *, form: str, exact: bool = False
) -> Written:
    """Write a table in the form `csv`, `jsonl` or `parquet`; rows are read once, after the file could be opened.

    Raises
    ------
    StorageError
        When it cannot be written; then there is no file, or still the old one. As for whatever `rows` raises.
    """
    tally = _Tally(columns, rows)
    with _open_table(path) as file:
        if form == "parquet":
            _write_parquet(file, columns, tally, path)
        else:
            lines = (
                render_csv_lines(columns, tally, exact=exact) if form == "csv" else render_json_lines(columns, tally)
            )
            for line in lines:
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")
    return tally.result()


@contextlib.contextmanager
def _open_table(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file`; a place that takes no file, for whatever reason, is a `StorageError`."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", hint="name a place that can be written") from error


def render_lines(
    columns: Sequence[Column], rows: Iterable[Mapping[str, Value]], *, form: str, exact: bool = False
) -> Iterator[str]:
    """Lines of a table, for standard output. Pure."""
    cells = (pick_cells(columns, row) for row in rows)
    return render_csv_lines(columns, cells, exact=exact) if form == "csv" else render_json_lines(columns, cells)


def _write_parquet(file: BinaryIO, columns: Sequence[Column], rows: Iterable[Sequence[Value]], path: Path) -> None:
    from pipeline.sources.duck import storing

    what = f"{path} as Parquet"
    with storing(what):
        folder = tempfile.TemporaryDirectory(prefix="medhaul-")
    with folder:
        made = Path(folder.name) / "table.parquet"
        _make_parquet(made, columns, rows, what)
        with made.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)


def _make_parquet(made: Path, columns: Sequence[Column], rows: Iterable[Sequence[Value]], what: str) -> None:
    """Gather rows in DuckDB, which spills what gets too much, and have it write them."""
    from pipeline.sources.duck import compose, connect, quote_name, quote_text, reading

    types = [SQL_TYPES[column.kind] for column in columns]
    names = ", ".join(f"{quote_name(each.name)} {kind}" for each, kind in zip(columns, types, strict=True))
    insert = compose("INSERT INTO images SELECT {lists}", lists=", ".join(f"unnest(?::{kind}[])" for kind in types))
    copy = compose(
        "COPY images TO {made} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 10000)", made=quote_text(str(made))
    )
    connection = connect(str(made.parent), keep_order=True)
    try:
        with reading(what, "give the columns names that Parquet can have"):
            connection.execute(compose("CREATE TABLE images ({names})", names=names))
        source = iter(rows)
        while batch := list(islice(source, _BATCH)):
            values = [[_fit(row[place], column) for row in batch] for place, column in enumerate(columns)]
            with reading(what):
                connection.execute(insert, values)
        with reading(what):
            connection.execute(copy)
    finally:
        connection.close()


def _fit(value: Value, column: Column) -> Value:
    """What has no type in the registry is text in Parquet."""
    if column.kind != "text" or value is None or isinstance(value, str):
        return value
    return render_cell(value, exact=True)
