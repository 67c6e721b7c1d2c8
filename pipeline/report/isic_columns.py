"""Which columns a table of ISIC images has: all fields, those that people name, or those of an older tool.

A mapping file has two columns, the name that a column shall have and the ISIC field that fills it. Earlier tools looked
up the wrong one of the two, and left every renamed column empty without a word.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError
from pipeline.sources.isic_cells import COLLECTION_IDS, COLLECTION_NAMES, REST, Column, field_columns
from pipeline.sources.isic_fields import FIELDS, resolve_path

__all__ = [
    "COLLECTION_IDS",
    "COLLECTION_NAMES",
    "MAX_FILE",
    "REST",
    "Column",
    "Columns",
    "default_columns",
    "importer_columns",
    "parse_mapping",
    "read_mapping",
    "resolve_column",
]
_GIVEN = "other:"  # before the path of something beyond the registry
_COLLECTIONS = {
    **dict.fromkeys(("collections", "collection", "dataset", "dataset_name", "dataset.name"), COLLECTION_NAMES),
    **dict.fromkeys(("collection_ids", "collection_id", "dataset_id", "dataset._id"), COLLECTION_IDS),
}
_HEADS = frozenset(
    {"field", "fields", "isic", "isic field", "isic name", "isic column", "isic path", "source field", "path"}
)
_NEWER = f"for a field that is newer than this version write {_GIVEN}metadata.clinical.NAME"
_SHOWN = 8  # problems of a file that are told at once
MAX_FILE = 1 << 20  # bytes
# What the importer of 2017 wrote, in its order; "": the site gives this to nobody any more.
_IMPORTER = {
    "image_id": "",
    "image_name": "isic_id",
    "created": "",
    "dataset_id": "collection_ids",
    "dataset_name": "collections",
    "pixelsx": "pixels_x",
    "pixelsy": "pixels_y",
    "age": "age_approx",
    "sex": "sex",
    "benign_malignant": "benign_malignant",
    "diagnosis": "diagnosis",
    "diagnosis_confirm_type": "diagnosis_confirm_type",
    "melanocytic": "melanocytic",
    "updated": "",
    "tags": "",
}


class Columns(msgspec.Struct, frozen=True):
    """Columns in their order, and notes for people on names that were read as something else."""

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def by_collection(self) -> bool:
        """Whether a row needs to know its collections."""
        return any(column.key in {COLLECTION_NAMES, COLLECTION_IDS} for column in self.columns)


def default_columns() -> Columns:
    """Every field of the registry, always the same ones in the same order, and `other` for what is beyond it."""
    return Columns(field_columns())


def importer_columns() -> Columns:
    """The columns of the metadata importer of 2017, filled from where the site has that now."""
    columns: list[Column] = []
    notes: list[str] = []
    for name, field in _IMPORTER.items():
        column, note = resolve_column(name, field) if field else (Column(name, ""), "")
        columns.append(column)
        notes += [note] if note else []
    gone = ", ".join(name for name, field in _IMPORTER.items() if not field)
    return Columns(tuple(columns), (*notes, f"{gone}: the site does not give these any more; the columns are empty"))


def resolve_column(name: str, field: str) -> tuple[Column, str]:
    """The column of a name, and a note where the field's name is an old one.

    Raises
    ------
    ConfigError
        For an unknown field, with the nearest ones.
    """
    if field in _COLLECTIONS:
        return Column(name, _COLLECTIONS[field]), ""
    if field == REST:
        return Column(name, REST), ""
    if field.startswith(_GIVEN):
        path = field.removeprefix(_GIVEN).strip()
        if not path:
            raise ConfigError(f"{field!r} names no field", hint=_NEWER)
        return Column(name, path, FIELDS[path].kind if path in FIELDS else "text"), ""
    try:
        found = resolve_path("isic_id" if field == "image_name" else field)
    except ConfigError as error:
        new = f"; {_NEWER}" if "no field" in str(error) else ""
        raise ConfigError(str(error), hint=f"{error.hint}{new}") from None
    return Column(name, found.field.column, found.field.kind), found.note


def parse_mapping(data: bytes, file: str) -> Columns:
    """Read a mapping file: CSV of two columns, my name and ISIC field, with or without a header.

    Commas, semicolons or tabs; any line ends; UTF-8 or UTF-16 with a mark; lines that begin with # are skipped.

    Raises
    ------
    ConfigError
        With all lines (as many as fit) that are wrong: another number of cells, a name twice (also in another case:
        readers of tables do not tell these apart), an unknown field.
    """
    columns: list[Column] = []
    notes: list[str] = []
    problems: list[str] = []
    hint = ""
    lines: dict[str, int] = {}
    for number, cells in _data_rows(_read_rows(data, file)):
        try:
            name, field = _check_cells(cells)
            if name.casefold() in lines:
                raise ConfigError(
                    f"{name!r} is the name of line {lines[name.casefold()]} as well",
                    hint="give each column a name of its own; capital letters do not tell names apart",
                )
            lines[name.casefold()] = number
            column, note = resolve_column(name, field)
        except ConfigError as error:
            problems.append(f"line {number}: {error}")
            hint = hint or error.hint
            continue
        columns.append(column)
        notes += [note] if note and note not in notes else []
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(f"{file}: {'; '.join(problems[:_SHOWN])}{more}", hint=hint)
    if not columns:
        raise ConfigError(f"{file}: has no columns", hint="write a line each: my name,ISIC field")
    return Columns(tuple(columns), tuple(notes))


def _check_cells(cells: list[str]) -> tuple[str, str]:
    while len(cells) > 2 and not cells[-1]:
        cells = cells[:-1]
    if len(cells) != 2 or not all(cells):
        raise ConfigError(f"{cells!r:.100} are not two names", hint="write a line each: my name,ISIC field")
    if not cells[0].isprintable() or len(cells[0]) > 200:
        raise ConfigError(f"{cells[0]!r:.100} is no name for a column", hint="take printable characters, 200 at most")
    return cells[0], cells[1]


def _data_rows(rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Rows without the header: a first row whose second cell is a word for fields, and no field itself."""
    for place, (number, cells) in enumerate(rows):
        words = [re.sub(r"[\s_-]+", " ", cell).casefold() for cell in cells]
        if place == 0 and len(words) == 2 and words[1] in _HEADS and not _is_field(cells[1]):
            continue
        yield number, cells


def _is_field(field: str) -> bool:
    try:
        resolve_column("x", field)
    except ConfigError:
        return False
    return True


def _read_rows(data: bytes, file: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and stripped cells of a small table in text; lines that are empty or begin with # are left out.

    Raises
    ------
    ConfigError
        When it is no such text.
    """
    if len(data) > MAX_FILE:
        raise ConfigError(f"{file}: {len(data):,} bytes are no list of names", hint="name the right file")
    mark = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if mark else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"{file}: not text in UTF-8", hint="save it as CSV, UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=re.sub(r'"[^"]*"', "", first).count), strict=True
    )
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and not cells[0].startswith("#"):
                yield reader.line_num, cells
    except csv.Error as error:
        raise ConfigError(f"{file}: line {reader.line_num}: {error}", hint="write it as CSV") from None


def read_mapping(path: Path) -> Columns:
    """Read a mapping file. Raises `ConfigError` as `parse_mapping`, and when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", hint="name a file that can be read") from None
    return parse_mapping(data, str(path))
