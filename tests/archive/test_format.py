"""docs/format.md is normative: it names every field that is written."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from pipeline import records
from pipeline.archive import index
from pipeline.archive.chains import CLASSES, FILTERS
from pipeline.model import Entry, IdcLocation, Item

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
LINES = (index.ArchiveLine, index.FrameLine, index.ItemLine, index.FileLine, index.FailedLine)
RECORDS = [each for each in vars(records).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]


@pytest.mark.parametrize(
    "kind", [*LINES, Entry, Item, IdcLocation, *(each for each in RECORDS if each is not records.FileRecord)]
)
def test_every_field_is_in_the_text(kind: type[msgspec.Struct]) -> None:
    """Each field of each record stands in the text as code."""
    words = {word for code in re.findall(r"`([^`]*)`", TEXT) for word in re.findall(r"\w+", code)}
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert fields <= words


def test_every_chain_is_in_the_text() -> None:
    """Each class and each chain has its row, with the options that the encoder is given."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.startswith("| ")]
    assert CLASSES - {"R0", "R3"} <= {row[0] for row in rows}
    for name in ("A0", "R0"):
        [text] = [row[1] for row in rows if row[0] == name and row[1].startswith("LZMA2")]
        lzma2 = FILTERS[name][-1]
        said = dict(word.split("=") for word in text.split()[1:])
        assert {key: int(said[key]) for key in ("lc", "lp", "pb", "depth")} == {
            key: lzma2[key] for key in ("lc", "lp", "pb", "depth")
        }
        assert int(said["nice"]) == lzma2["nice_len"]
        assert said["dict"] == f"{lzma2['dict_size'] >> 20}MiB"


def test_format_numbers_agree() -> None:
    """The text, the index and the records have one number."""
    assert TEXT.startswith(f"# Formats, version {index.FORMAT}\n")
    assert index.FORMAT == records.FORMAT
