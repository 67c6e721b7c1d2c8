"""Files that say which images of the ISIC Archive are wanted: lists of ids, and condition lists of the old tools.

They come from anywhere: read line by line, and what cannot be meant is an error that names file and line.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.sources.tcia_inputs import choose_encoding, describe_binary

MAX_LINE = 1 << 20  # characters
MAX_FILE = 1 << 28  # bytes
_HINT = "name a text file with one ISIC id a line, or a CSV file with a column isic_id"
# What tables of the archive and of its challenges call it.
_ID_COLUMNS = ("isicid", "isic", "image", "imagename", "imageid", "name")
# Challenge tables name files, and downsampled ones.
_ID = re.compile(r"(ISIC_[0-9]{7,12})(?:_downsampled)?(?:\.(?:jpe?g|png|tiff?))?", re.IGNORECASE)


def check_id(text: str) -> str:
    """The ISIC id that a cell means, or "". Pure."""
    match = _ID.fullmatch(text.strip().strip("'"))
    return match[1].upper() if match else ""


def read_ids(path: Path, key: str = "select.isic.ids_file") -> Iterator[str]:
    """The ids of a file in its order, repeated ones too.

    Raises
    ------
    ConfigError
        No such file, no text, or (with the line) what is no id.
    """
    number, head = next(_open_rows(path, key), (0, ""))
    if not head:
        raise _explain_empty(path, key)
    delimiter = max(",\t;", key=head.count)
    cells = _split_line(head, delimiter, f"{key} {path}:{number}")
    names = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in cells]
    column = next((names.index(name) for name in _ID_COLUMNS if name in names), -1)
    if column < 0 and not any(check_id(cell) for cell in cells):
        shown = ", ".join(repr(cell.strip()[:40]) for cell in cells[:8])
        raise ConfigError(f"{key} {path}: no column of ISIC ids, and no id in its first line: {shown}", hint=_HINT)
    return _read_cells(path, key, delimiter, column)


def _read_cells(path: Path, key: str, delimiter: str, column: int) -> Iterator[str]:
    headed, empty = column < 0, True
    for number, line in _open_rows(path, key):
        if not headed:
            headed = True
            continue
        where = f"{key} {path}:{number}"
        row = _split_line(line, delimiter, where)
        for cell in [row[column]] if 0 <= column < len(row) else row if column < 0 else [""]:
            if not cell.strip() and column < 0:
                continue
            if not (found := check_id(cell)):
                raise ConfigError(f"{where}: {cell.strip()[:80]!r} is no ISIC id", hint="they look like ISIC_0000001")
            empty = False
            yield found
    if empty:
        raise _explain_empty(path, key)


def _explain_empty(path: Path, key: str) -> ConfigError:
    return ConfigError(f"{key} {path}: lists no images", hint=_HINT)


def _split_line(line: str, delimiter: str, where: str) -> list[str]:
    """The cells of one line. Raises `ConfigError` for a quotation mark that the line does not close.

    A row ends where its line does: else a stray mark would take the rows that follow into one cell, without a word.
    """
    try:
        return next(csv.reader([line.rstrip("\n")], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        if "unexpected end" in str(error):
            text = f"{where}: a quotation mark that the line does not close; cells hold no line ends here"
            raise ConfigError(text, hint=f"close it or leave it out; {_HINT}") from None
        raise ConfigError(f"{where}: not a table: {error}", hint=_HINT) from None


def _open_rows(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """Lines that say something, with their numbers: not empty ones, and no remarks."""
    return (each for each in _open_lines(path, key) if each[1].strip() and not each[1].lstrip().startswith("#"))


def _open_lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers."""
    data = _read_file(path, key)
    if problem := describe_binary(data[:512]):
        raise ConfigError(f"{key} {path}: {problem}", hint=_HINT)
    text = io.TextIOWrapper(io.BytesIO(data), encoding=choose_encoding(data[:4]), errors="replace", newline=None)
    try:
        for number, line in enumerate(iter(lambda: text.readline(MAX_LINE + 1), ""), 1):
            if len(line) > MAX_LINE or "\0" in line:
                problem = "bytes of value 0" if "\0" in line else f"more than {MAX_LINE} characters"
                raise ConfigError(f"{key} {path}:{number}: not text: {problem}", hint=_HINT)
            yield number, line
    except UnicodeError as error:
        raise ConfigError(f"{key} {path}: {error}", hint=_HINT) from None


def _read_file(path: Path, key: str) -> bytes:
    try:
        info = path.stat()
        problem = "" if stat.S_ISREG(info.st_mode) else "no plain file"  # opening a pipe would wait for ever
        problem = problem or (f"more than {MAX_FILE >> 20} MiB" if info.st_size > MAX_FILE else "")
        if problem:
            raise ConfigError(f"{key} {path}: {problem}", hint=_HINT)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} {path}: {error.strerror}", hint=_HINT) from None


def read_conditions(path: Path, key: str = "select.isic.conditions") -> Any:
    """The JSON of a file with conditions. Raises `ConfigError` when there is none."""
    data = _read_file(path, key)
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        text = f"{key} {path}: not JSON: {error}"
        raise ConfigError(
            text, hint='a list of [PATH, OPERATOR, VALUE], as ["diagnosis_1", "==", "Malignant"]'
        ) from None
