"""Lists of series in tables: CSV, TSV, what spreadsheets make of them, and plain lists of UIDs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.sources.tcia_lines import FORMS, Lines, UidCheck, explain_no_uid, says_something, show
from pipeline.sources.tcia_rows import squeeze

_DELIMITERS = "\t,;"
_SERIES_COLUMNS = ("seriesinstanceuid", "seriesuid", "seriesid")
# Columns of TCIA's own manifests that lead to files which are no DICOM series, or to another site.
_OTHER_COLUMNS = {
    "imageurl": "imageUrl (pathology images)",
    "wsiimageurl": "wsiimage_url (pathology images)",
    "drsuri": "drs_uri (files of the CRDC)",
    "fileid": "File ID (files of the CRDC)",
}
# By which Excel says how the lines after it are separated.
_SEPARATOR = re.compile(r'\s*"?sep\s*=\s?([^\s"]|\t)"?\s*', re.IGNORECASE)
# In a cell of several lines: a quote was one too many, or one was forgotten, and series are swallowed.
_HIDDEN = re.compile(r"[0-9]+(?:\.[0-9]+){4}")
_QUOTES = "check the quotes of that line: each that opens has to close, and one within is written twice"


def read_table(lines: Lines, path: Path, notes: list[str]) -> Iterator[str]:
    """SeriesInstanceUIDs of a table's column of them, or of a list in which every cell is one.

    A first line `sep=;` names the delimiter; else a file that ends in `.tsv` is separated by tabs, and others by the
    sign that makes a column of SeriesInstanceUIDs, or is most frequent.

    Raises
    ------
    ConfigError
        With the line: nothing that can be meant; while it is iterated, for quotes that do not close, and at its end
        for what is no UID.
    """
    head = next(iter(lines.peek(1)), None)
    if head is None:
        raise ConfigError(f"{path}: empty, or nothing but comments", hint=f"name {FORMS}")
    delimiter = ""
    if mark := _SEPARATOR.fullmatch(head):
        delimiter = mark[1]
        next(lines)
        lines.skip_comments()
        head = next(iter(lines.peek(1)), "")
    elif path.suffix.lower() == ".tsv":
        delimiter = "\t"
    number = lines.number + 1
    try:
        delimiter = delimiter or choose_delimiter(head)
        cells = _split(head, delimiter)
    except csv.Error as error:
        raise _explain_quotes(path, number, error) from None
    names = [squeeze(cell) for cell in cells]
    column = next((names.index(name) for name in _SERIES_COLUMNS if name in names), -1)
    if column < 0 and explain_no_uid(cells[0].strip().strip("'") if cells else ""):
        raise _explain_columns(path, number, cells, names)
    return _read_cells(lines, path, delimiter, column, notes)


def choose_delimiter(head: str) -> str:
    """Choose what separates the cells of a table by its first line. Raises `csv.Error` for broken quotes. Pure."""
    fitting = [
        sign for sign in _DELIMITERS if set(map(squeeze, _split(head, sign, strict=False))) & set(_SERIES_COLUMNS)
    ]
    return max(fitting or _DELIMITERS, key=head.count)  # of equals the first


def _split(line: str, delimiter: str, *, strict: bool = True) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, strict=strict), [])


def _explain_quotes(path: Path, number: int, error: object) -> ConfigError:
    said = "a quote opens in this line and does not close in it" if "end of data" in str(error) else str(error)
    return ConfigError(f"{path}:{number}: not a table: {said}", hint=_QUOTES)


def _explain_columns(path: Path, number: int, cells: list[str], names: list[str]) -> ConfigError:
    if other := next((_OTHER_COLUMNS[name] for name in names if name in _OTHER_COLUMNS), ""):
        return ConfigError(
            f"{path}:{number}: lists no DICOM series: of the columns that lead to files it has only {other}",
            hint="TCIA's own data retriever fetches those; this reads a column SeriesInstanceUID",
        )
    if len(cells) == 1 and re.fullmatch(r"\s*'?[0-9.,]*[0-9]\S*\s*", cells[0]):  # rather a row than a heading
        check = UidCheck(path)
        check.fits(cells[0].strip().strip("'"), number)
        check.finish()
    shown = ", ".join(show(cell) for cell in cells[:12])
    return ConfigError(
        f"{path}:{number}: no column of SeriesInstanceUIDs, and its first line is no UID: {shown}",
        hint="name the column SeriesInstanceUID, or Series UID; or write one UID a line",
    )


class _Rows:
    """Rows of a table, and the line in which the last one begins."""

    def __init__(self, lines: Lines, path: Path, delimiter: str, *, headed: bool) -> None:
        self._lines = lines
        self._path = path
        self._headed = headed
        self._rows = csv.reader(self._feed(), delimiter=delimiter, strict=True)
        self.number = 0

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            self.number = 0
            try:
                row = next(self._rows, None)
            except csv.Error as error:
                raise _explain_quotes(self._path, self.number, error) from None
            if row is None:
                return
            if any("\n" in (text := cell.strip()) and _HIDDEN.search(text) for cell in row):
                raise _explain_quotes(self._path, self.number, "end of data")
            yield row

    def _feed(self) -> Iterator[str]:
        """Lines that say something; of a table with a header all that are not blank: cells may begin as comments do."""
        begun = False
        for line in self._lines:
            if not (says_something(line) or (begun and self._headed and line.strip())):
                continue
            begun = True
            self.number = self.number or self._lines.number
            yield line


def _read_cells(lines: Lines, path: Path, delimiter: str, column: int, notes: list[str]) -> Iterator[str]:
    """UIDs of a table's column, or (-1) of a list in which every cell is one."""
    check = UidCheck(path)
    rows = _Rows(lines, path, delimiter, headed=column >= 0)
    headed, blank = column < 0, 0
    for row in rows:
        if not headed:
            headed = True
            continue
        cells = row if column < 0 else row[column : column + 1]
        words = [word for cell in cells if (word := cell.strip().strip("'"))]
        if column >= 0 and not words:
            blank += any(each.strip() for each in row)
        for word in words:
            if check.fits(word, rows.number):
                yield word
    check.finish()
    if blank:
        notes.append(f"{path}: {blank:,} rows have no SeriesInstanceUID and are left out")
