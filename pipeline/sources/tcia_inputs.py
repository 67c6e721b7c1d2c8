"""Lists of series that people bring along: `.tcia` and `.s5cmd` manifests, tables and plain lists of UIDs.

Files come from anywhere: whatever they hold, they are read line by line in little memory, and what cannot be meant is
an error that names file and line.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from pipeline.errors import ConfigError
from pipeline.sources.tcia_rows import squeeze

MAX_LINE = 1 << 20  # characters
MAX_FILE = 1 << 30  # bytes
Kind = Literal["series", "idc"]
T = TypeVar("T")

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_SERIES_COLUMNS = ("seriesinstanceuid", "seriesuid", "seriesid")
# Columns of TCIA's own manifests that lead to files which are no DICOM series, or to another site.
_OTHER_COLUMNS = {
    "imageurl": "imageUrl (pathology images)",
    "wsiimageurl": "wsiimage_url (pathology images)",
    "drsuri": "drs_uri (files of the CRDC)",
    "fileid": "File ID (files of the CRDC)",
}
_START = re.compile(r"\s*ListOfSeriesToDownload\s*[=:](.*)", re.DOTALL)
# The manifest's other properties, as the Java Data Retriever knows them: a second header is one of joined files.
_PROPERTY = re.compile(r"\s*(downloadServerUrl|includeAnnotation|noOfrRetry|databasketId|manifestVersion|dataType)\b")
_COPY = re.compile(r"\s*(?:s5cmd\s.*?)?(?:cp|sync)\s.*?(?:s3|gs)://|\s*['\"]?(?:s3|gs)://", re.DOTALL)
_PLACE = re.compile(r"(?:s3|gs)://([^/\s'\"]+)/([^\s'\"]*)")
_UUID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:/\*?)?", re.IGNORECASE)
_SUFFIXES = "a .tcia or .s5cmd manifest, or a CSV, TSV or text file of SeriesInstanceUIDs"
_DETECT = 200  # lines in which a manifest shows what it is


class SeriesList:
    """A list of series. Iterating reads the file, once, and yields names as they stand there, repeated ones too.

    Attributes
    ----------
    kind
        `series`: names are SeriesInstanceUIDs. `idc`: they are folders of the IDC's buckets (crdc_series_uuid).
    notes
        What people should know of the file; complete once it has been read.
    """

    def __init__(self, path: Path, kind: Kind, names: Iterator[str], notes: list[str]) -> None:
        self.path = path
        self.kind = kind
        self.notes = notes
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return self._names


class _Lines:
    """The lines of a text file with their number; refuses what no text file holds."""

    def __init__(self, file: BinaryIO, encoding: str, path: Path) -> None:
        self._text = io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=None)
        self._path = path
        self._ahead: list[str] = []
        self._returned = 0
        self.number = 0

    def peek(self, count: int) -> list[str]:
        """The first lines, which are still to come."""
        while len(self._ahead) < count and (line := self._read(len(self._ahead) + 1)):
            self._ahead.append(line)
        return self._ahead

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._returned < len(self._ahead):
            line = self._ahead[self._returned]
            self._returned += 1
        else:
            line = self._read(self.number + 1)
        if not line:
            self._text.close()
            raise StopIteration
        self.number += 1
        return line

    def _read(self, number: int) -> str:
        try:
            line = self._text.readline(MAX_LINE + 1)
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{self._path}:{number}: {error}", hint=f"name {_SUFFIXES}") from None
        if len(line) > MAX_LINE:
            raise ConfigError(f"{self._path}:{number}: more than {MAX_LINE} characters", hint=f"name {_SUFFIXES}")
        if "\0" in line:
            hint = f"name {_SUFFIXES}, saved as UTF-8"
            raise ConfigError(f"{self._path}:{number}: not text: it has bytes of value 0", hint=hint)
        return line


def read_series_list(path: Path) -> SeriesList:
    """Open a list and find out by its content which kind it is.

    Read are: `.tcia` manifests (any host, header and line ends; SeriesInstanceUIDs are what follows the first
    `ListOfSeriesToDownload=`), `.s5cmd` manifests (`cp s3://bucket/uuid/* .`, also `gs://`), CSV and TSV with a column
    of SeriesInstanceUIDs in any of TCIA's spellings, and text with one UID a line. UTF-8, or UTF-16 with its mark.

    Raises
    ------
    ConfigError
        No such file, or none of these; while it is iterated, with the line: what is no UID.
    """
    try:
        info = path.stat()
        problem = "" if stat.S_ISREG(info.st_mode) else "no plain file"  # opening a pipe would wait for ever
        problem = problem or ("more than 1 GiB" if info.st_size > MAX_FILE else "")
        if problem:
            raise ConfigError(f"select.tcia.manifest {path}: {problem}", hint=f"name {_SUFFIXES}")
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"select.tcia.manifest {path}: {error.strerror}", hint=f"name {_SUFFIXES}") from None
    try:
        head = file.read(512)
        file.seek(0)
        if problem := describe_binary(head):
            raise ConfigError(f"select.tcia.manifest {path}: {problem}", hint=f"name {_SUFFIXES}")
        lines = _Lines(file, choose_encoding(head), path)
        first = lines.peek(_DETECT)
        notes: list[str] = []
        kind: Kind = "series"
        if path.suffix.lower() == ".tcia" or any(map(_START.match, first)):
            names = _read_tcia(lines, path, notes)
        elif path.suffix.lower() == ".s5cmd" or _COPY.match(next(filter(_says_something, first), "")):
            kind, names = "idc", _read_s5cmd(lines, path)
        else:
            names = _read_table(lines, path, notes)
    except BaseException:
        file.close()
        raise
    return SeriesList(path, kind, names, notes)


def describe_binary(head: bytes) -> str:
    """Say what a file is that begins like this and is no text; "" for text. Pure."""
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return "a spreadsheet (XLSX or such) or a ZIP archive; save the table as CSV"
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")):
        return "compressed; unpack it first"
    return "not text but Parquet; save the table as CSV" if head.startswith(b"PAR1") else ""


def choose_encoding(head: bytes) -> str:
    """The encoding of a text by its mark; UTF-8 without one. Pure."""
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _shown(text: str) -> str:
    return repr(text.strip()[:80])


def _check_uid(text: str, path: Path, number: int) -> str:
    if len(text) > 64 or not _UID.fullmatch(text):
        hint = "one SeriesInstanceUID: digits and dots, 64 at most"
        hint += "; a spreadsheet may have spoilt it" if re.fullmatch(r"[\d.,]+E\+?\d+", text, re.IGNORECASE) else ""
        raise ConfigError(f"{path}:{number}: {_shown(text)} is no UID", hint=hint)
    return text


def _read_tcia(lines: _Lines, path: Path, notes: list[str]) -> Iterator[str]:
    listing = False
    for line in lines:
        start = _START.match(line)
        if not listing and not start:
            if match := re.match(r"\s*dataType\s*[=:]\s*(\S+)", line):
                kind = match[1]
                if kind.upper() != "DICOM":
                    notes.append(f"{path}:{lines.number}: dataType={kind[:40]}: only DICOM series are hauled")
            continue
        listing = True
        text = start[1] if start else line
        if not start and (not text.strip() or text.lstrip()[0] in "#!" or _PROPERTY.match(text)):
            continue
        for word in text.split(","):  # the Java Data Retriever takes a comma at the end of a line away
            if uid := word.strip().strip('"'):
                yield _check_uid(uid, path, lines.number)
    if not listing:
        hint = "not a .tcia manifest, or cut short: fetch it anew"
        raise ConfigError(f"{path}: no line ListOfSeriesToDownload=", hint=hint)


def _read_s5cmd(lines: _Lines, path: Path) -> Iterator[str]:
    for line in lines:
        if not _says_something(line):
            continue
        place = _PLACE.search(line)
        folder = _UUID.fullmatch(place[2]) if place else None
        if folder is None:
            text = f"{path}:{lines.number}: {_shown(line)} copies no series of the IDC"
            raise ConfigError(text, hint="such lines read: cp s3://idc-open-data/UUID/* .")
        yield folder[1].lower()


def _read_table(lines: _Lines, path: Path, notes: list[str]) -> Iterator[str]:
    head = next(filter(_says_something, lines.peek(_DETECT)), None)
    if head is None:
        raise ConfigError(f"{path}: empty, or nothing in its first {_DETECT} lines", hint=f"name {_SUFFIXES}")
    delimiter = max("\t,;", key=head.count)  # of equals the first
    cells = _guard(path, lambda: 1, lambda: next(csv.reader([head], delimiter=delimiter), []))
    names = [squeeze(cell) for cell in cells]
    column = next((names.index(name) for name in _SERIES_COLUMNS if name in names), -1)
    if column < 0 and not _UID.fullmatch(cells[0].strip().strip("'") if cells else ""):
        raise _explain_columns(path, cells, names)
    return _read_cells(lines, path, delimiter, column, notes)


def _explain_columns(path: Path, cells: list[str], names: list[str]) -> ConfigError:
    if other := next((_OTHER_COLUMNS[name] for name in names if name in _OTHER_COLUMNS), ""):
        return ConfigError(
            f"{path}: lists no DICOM series: of the columns that lead to files it has only {other}",
            hint="TCIA's own data retriever fetches those; this reads a column SeriesInstanceUID",
        )
    shown = ", ".join(_shown(cell) for cell in cells[:12])
    return ConfigError(
        f"{path}: no column of SeriesInstanceUIDs, and its first line is no UID: {shown}",
        hint="name the column SeriesInstanceUID, or Series UID; or write one UID a line",
    )


def _read_cells(lines: _Lines, path: Path, delimiter: str, column: int, notes: list[str]) -> Iterator[str]:
    """UIDs of a table's column, or (-1) of a list in which every cell is one."""
    rows = csv.reader(_skip_comments(lines, headed=column >= 0), delimiter=delimiter, strict=True)
    headed, blank = column < 0, 0
    while (row := _guard(path, lambda: lines.number, lambda: next(rows, None))) is not None:
        if not headed:
            headed = True
            continue
        if column >= 0:
            cell = row[column].strip().strip("'") if column < len(row) else ""
            if cell:
                yield _check_uid(cell, path, lines.number)
            else:
                blank += any(each.strip() for each in row)
            continue
        for each in row:
            if cell := each.strip().strip("'"):
                yield _check_uid(cell, path, lines.number)
    if blank:
        notes.append(f"{path}: {blank:,} rows have no SeriesInstanceUID and are left out")


def _skip_comments(lines: Iterable[str], *, headed: bool) -> Iterator[str]:
    """Lines that say something; of a table with a header all that are not blank, for cells may begin as comments do."""
    begun = False
    for line in lines:
        if _says_something(line) or (begun and headed and line.strip()):
            begun = True
            yield line


def _guard(path: Path, number: Callable[[], int], work: Callable[[], T]) -> T:
    try:
        return work()
    except csv.Error as error:
        raise ConfigError(f"{path}:{number()}: not a table: {error}", hint="check the quotes of that line") from None
