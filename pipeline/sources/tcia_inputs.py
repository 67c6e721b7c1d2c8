"""Lists of series that people bring along: `.tcia` and `.s5cmd` manifests, tables and plain lists of UIDs.

Files come from anywhere: whatever they hold, they are read line by line in little memory, and what cannot be meant is
an error that names file and line.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.sources.tcia_cells import read_table
from pipeline.sources.tcia_lines import FORMS, Lines, UidCheck, says_something, show

MAX_FILE = 1 << 30  # bytes
Kind = Literal["series", "idc"]

_START = re.compile(r"\s*ListOfSeriesToDownload\s*[=:](.*)", re.DOTALL)
# The manifest's other properties, as the Java Data Retriever knows them: a second header is one of joined files.
_PROPERTY = re.compile(r"\s*(downloadServerUrl|includeAnnotation|noOfrRetry|databasketId|manifestVersion|dataType)\b")
_COPY = re.compile(r"\s*(?:s5cmd\s.*?)?(?:cp|sync)\s.*?(?:s3|gs)://|\s*['\"]?(?:s3|gs)://", re.DOTALL)
_PLACE = re.compile(r"(?:s3|gs)://([^/\s'\"]+)/([^\s'\"]*)")
_UUID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:/\*?)?", re.IGNORECASE)
_DETECT = 200  # lines, after comments at the top, in which a manifest shows what it is


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


def read_series_list(path: Path) -> SeriesList:
    """Open a list and find out by its content which kind it is.

    Read are: `.tcia` manifests (any host, header and line ends; SeriesInstanceUIDs are what follows the first
    `ListOfSeriesToDownload=`), `.s5cmd` manifests (`cp s3://bucket/uuid/* .`, also `gs://`), CSV and TSV with a column
    of SeriesInstanceUIDs in any of TCIA's spellings, and text with one UID a line. UTF-8, or UTF-16 with its mark.
    Comments (`#`) and blank lines at the top are passed over.

    Raises
    ------
    ConfigError
        No such file, or none of these; while it is iterated, with the line: what is no table, and all that is no UID.
    """
    try:
        info = path.stat()
        problem = "" if stat.S_ISREG(info.st_mode) else "no plain file"  # opening a pipe would wait for ever
        problem = problem or ("more than 1 GiB" if info.st_size > MAX_FILE else "")
        if problem:
            raise ConfigError(f"select.tcia.manifest {path}: {problem}", hint=f"name {FORMS}")
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"select.tcia.manifest {path}: {error.strerror}", hint=f"name {FORMS}") from None
    try:
        head = file.read(512)
        file.seek(0)
        if problem := describe_binary(head):
            raise ConfigError(f"select.tcia.manifest {path}: {problem}", hint=f"name {FORMS}")
        lines = Lines(file, choose_encoding(head), path)
        lines.skip_comments()
        first = lines.peek(_DETECT)
        notes: list[str] = []
        kind: Kind = "series"
        if path.suffix.lower() == ".tcia" or any(map(_START.match, first)):
            names = _read_tcia(lines, path, notes)
        elif path.suffix.lower() == ".s5cmd" or _COPY.match(next(filter(says_something, first), "")):
            kind, names = "idc", _read_s5cmd(lines, path)
        else:
            names = read_table(lines, path, notes)
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


def _read_tcia(lines: Lines, path: Path, notes: list[str]) -> Iterator[str]:
    listing = False
    check = UidCheck(path)
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
            uid = word.strip().strip('"')
            if uid and check.fits(uid, lines.number):
                yield uid
    if not listing:
        hint = "not a .tcia manifest, or cut short: fetch it anew"
        raise ConfigError(f"{path}: no line ListOfSeriesToDownload=", hint=hint)
    check.finish()


def _read_s5cmd(lines: Lines, path: Path) -> Iterator[str]:
    for line in lines:
        if not says_something(line):
            continue
        place = _PLACE.search(line)
        folder = _UUID.fullmatch(place[2]) if place else None
        if folder is None:
            text = f"{path}:{lines.number}: {show(line)} copies no series of the IDC"
            raise ConfigError(text, hint="such lines read: cp s3://idc-open-data/UUID/* .")
        yield folder[1].lower()
