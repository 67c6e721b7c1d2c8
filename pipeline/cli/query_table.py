"""What the `query` commands share: rows as tables, CSV or JSON, chosen columns, and where an item's failure ends."""

from __future__ import annotations

import csv
import difflib
import errno
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, TextIO, TypeVar

import click
import msgspec

from pipeline.cli.common import make_echo
from pipeline.cli.progress import printable
from pipeline.errors import ItemError, ItemsFailedError, StorageError, UsageError
from pipeline.units import render_size

F = TypeVar("F", bound=Callable[..., Any])

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_SAMPLE = 1000  # rows that decide a table's column widths
_SIZES = frozenset({"bytes", "FileSize", "AnnotationSize"})
_NUMBERS = _SIZES | {
    *("collections", "patients", "studies", "series", "files", "count", "unstated"),
    *("ImageCount", "SeriesCount", "SeriesNumber"),
}


class Form(msgspec.Struct, frozen=True):
    """How rows are printed: `table`, `csv` or `json`. `width` 0: as wide as it gets."""

    kind: str
    width: int = 0


def form_options(command: F) -> F:
    """Add `--csv` and `--json` to a command."""
    command = click.option("--json", "form", flag_value="json", help="Print a JSON array, one record per line.")(
        command
    )
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV; sizes in bytes.")(command)
    return click.option("--table", "form", flag_value="table", default="table", hidden=True)(command)


@contextmanager
def item_border(item: str, hint: str) -> Iterator[None]:
    """Turn an item's failure into the command's; `hint` is for failures that asking again does not mend."""
    try:
        yield
    except ItemError as error:
        raise ItemsFailedError(
            f"{item}: {error.reason}: {error}", hint="try again" if error.transient else hint
        ) from None


@contextmanager
def printing() -> Iterator[None]:
    """Turn a standard output that takes no more into a `StorageError`; a reader that has gone is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # Nothing may be left to flush at exit, which would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StorageError(f"standard output: {error.strerror}", hint="free space or quota where it goes") from error


def choose_form(kind: str, out: TextIO | None = None) -> Form:
    """Choose how to print: a table is cut to the width of a terminal, and of a terminal only."""
    terminal = (out or sys.stdout).isatty()
    return Form(kind, shutil.get_terminal_size().columns if kind == "table" and terminal else 0)


def choose_columns(header: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Choose columns by their names, in the order wanted; case does not matter. Pure.

    Raises
    ------
    UsageError
        For a name that is none of them, with the nearest ones.
    """
    places = {name.lower(): place for place, name in enumerate(header)}
    for name in wanted:
        if name.lower() not in places:
            near = [header[places[each]] for each in difflib.get_close_matches(name.lower(), places, n=3)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(header)}"
            raise UsageError(f"no column {name!r}", hint=hint)
    return [places[name.lower()] for name in wanted]


def print_records(records: Iterable[msgspec.Struct], kind: type[msgspec.Struct], form: Form) -> None:
    """Print records of one kind as they come."""
    print_rows([field.name for field in msgspec.structs.fields(kind)], map(msgspec.structs.astuple, records), form)


def print_rows(header: Sequence[str], rows: Iterable[Sequence[Any]], form: Form) -> None:
    """Print rows of cells as they come."""
    if form.kind == "json":
        print_lines(render_json(dict(zip(header, row, strict=True)) for row in rows))
    elif form.kind == "csv":
        print_lines(render_csv(header, rows))
    else:
        print_lines(render_table(header, rows, form.width))


def render_json(records: Iterable[Any]) -> Iterator[str]:
    """Lines of a JSON array with a record per line."""
    before = "["
    for record in records:
        yield before + msgspec.json.encode(record).decode()
        before = ","
    yield "]" if before == "," else "[]"


def render_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Lines of CSV (RFC 4180, but newlines as of the system); lists are joined by `; `, nothing is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)  # its \r\n makes it quote either sign in a value, and is not printed
    for row in chain([header], rows):
        writer.writerow(map(_csv_cell, row))
        yield text.getvalue()[:-2]
        text.seek(0)
        text.truncate()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "; ".join(value) if isinstance(value, (list, tuple)) else value


def render_table(header: Sequence[str], rows: Iterable[Sequence[Any]], width: int) -> Iterator[str]:
    """Aligned lines; a line is cut at `width`, unless that is 0. The first rows decide the columns' widths."""
    cells = ([_cell(name, value) for name, value in zip(header, row, strict=True)] for row in rows)
    sample = list(islice(cells, _SAMPLE))
    widths = [max(map(len, column)) for column in zip(header, *sample, strict=True)]
    for line in chain([list(header)], sample, cells):
        padded = [
            text.rjust(wide) if name in _NUMBERS else text.ljust(wide)
            for name, text, wide in zip(header, line, widths, strict=True)
        ]
        whole = "  ".join(padded).rstrip()
        yield whole if not width or len(whole) <= width else whole[: width - 1] + "…"


def _cell(name: str, value: Any) -> str:
    """A value for a terminal: on one line and without control characters, whatever the site says."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        if name in _SIZES:
            return render_size(value) if value >= 0 else "?"
        return str(value) if value >= 0 or name not in _NUMBERS or name == "SeriesNumber" else "?"
    return printable(", ".join(value) if isinstance(value, (list, tuple)) else str(value))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines; end quietly when the reader (`| head`) has gone. A terminal gets no control characters.

    Raises
    ------
    StorageError
        When standard output takes no more.
    """
    out = sys.stdout
    terminal = out.isatty()
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is no reason to end
    try:
        with printing():
            for line in lines:
                out.write((printable(line) if terminal else line) + "\n")
            out.flush()
    except BrokenPipeError:
        # Nothing may be left to flush at exit, which would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


class Output:
    """Where a command's rows go.

    Parameters
    ----------
    columns
        Names of columns, also several joined by commas; nothing means the usual ones.
    limit
        Print at most so many rows.
    usual
        The columns that a table shows of records that have more; CSV and JSON have all.
    """

    def __init__(
        self,
        form: Form,
        columns: Sequence[str] = (),
        limit: int | None = None,
        usual: Mapping[type[msgspec.Struct], Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._form = form
        self._usual = usual
        self.kind = form.kind
        self._columns = [name.strip() for each in columns for name in each.split(",") if name.strip()]
        self.limit = limit

    def records(self, records: Iterable[msgspec.Struct], kind: type[msgspec.Struct]) -> None:
        """Print records; a table shows what people look at first, and CSV and JSON all."""
        header = [field.name for field in msgspec.structs.fields(kind)]
        usual = self._usual.get(kind, header) if self._form.kind == "table" else header
        places = choose_columns(header, self._columns or usual)
        rows = ([getattr(record, header[place]) for place in places] for record in records)
        self._print([header[place] for place in places], rows)

    def rows(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print rows of cells."""
        places = choose_columns(header, self._columns or header)
        self._print([header[place] for place in places], ([row[place] for place in places] for row in rows))

    def _print(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        counted = 0

        def count() -> Iterator[Sequence[Any]]:
            nonlocal counted
            for row in islice(rows, self.limit):
                counted += 1
                yield row

        print_rows(header, count(), self._form)
        if not counted:
            make_echo(quiet=False, verbose=False).note("nothing matches")
