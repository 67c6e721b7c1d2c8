"""`medhaul metadata isic`: columns, forms, what older tools wrote, and what must never happen to a table."""

from __future__ import annotations

import csv
import decimal
import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import isic_images
from pipeline.cli.isic_images import plain_image_progress
from pipeline.errors import ConfigError, SiteUnavailableError, StorageError, UsageError
from pipeline.report.isic_columns import Column, default_columns, importer_columns, parse_mapping
from pipeline.report.isic_table import (
    choose_table_form,
    pick_cells,
    render_cell,
    render_csv_lines,
    render_json_lines,
    render_lines,
    write_table,
)
from pipeline.sources.isic_fields import FIELDS
from pipeline.sources.isic_rows import flatten_image, read_image
from tests.cli.isic_cli_kit import (  # noqa: F401 -- the fixtures
    HOSTILE,
    Run,
    _filled,
    _run,
    image,
    private_rows,
)
from tests.sources.isic_archive import API, Archive, image_rows, listed, said
from tests.sources.test_tcia_http import _site, answer  # noqa: F401 -- the fixture

M = ("metadata", "isic")
NAMES = [field.name for field in FIELDS.values()]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


# -- columns -------------------------------------------------------------------------------------------------------


def test_a_row_for_each_image_in_stable_columns(run: Run, tmp_path: Path) -> None:
    """Every selection has the same columns in the same order; absent is empty; the file ends with a line end."""
    whole, some = tmp_path / "new" / "all.csv", tmp_path / "some.csv"
    done = run(*M, "-o", str(whole))
    assert (done.code, done.out) == (0, "")
    assert f"{whole}: 12 images" in done.err
    assert run(*M, "--query", "diagnosis_1:Malignant", "-o", str(some)).code == 0
    assert whole.read_text().splitlines()[0] == some.read_text().splitlines()[0] == ",".join([*NAMES, "other"])
    assert whole.read_bytes().endswith(b"\n")
    assert b"\r" not in whole.read_bytes()
    rows = read_csv(whole)
    assert [row["isic_id"] for row in rows] == [f"ISIC_{number:07d}" for number in range(1, 13)]
    assert (rows[0]["mel_thick_mm"], rows[0]["public"], rows[0]["pixels_x"]) == ("0.55", "true", "100")
    assert (rows[1]["mel_thick_mm"], rows[1]["age_approx"], rows[1]["melanocytic"]) == ("", "", "")
    assert rows[2]["diagnosis_3"] == "Melanoma, NOS"
    assert rows[4]["other"] == '{"metadata.clinical.sparkle": "new field"}'
    assert [row["isic_id"] for row in read_csv(some)] == [f"ISIC_{number:07d}" for number in (3, 6, 9, 12)]


def test_to_standard_output(run: Run) -> None:
    """Without a file the same CSV is printed, and nothing else."""
    done = run(*M, "--collection", "C7", "--where", "age_approx >= 60")
    assert (done.code, done.err) == (0, "")
    assert [row["isic_id"] for row in done.table] == ["ISIC_0000006", "ISIC_0000007", "ISIC_0000008"]


def test_count_is_exact(run: Run) -> None:
    """`--count N` gives N images, not one more, and asks for no more pages than it needs."""
    for number in (1, 5, 12, 100):
        assert len(run(*M, "--count", str(number)).table) == min(number, 12)
    assert len(run(*M, "--count", "2", "--where", "pixels_x > 500").table) == 2


def test_count_ends_the_listing(run: Run, filled: Archive) -> None:
    """Pages after the last wanted image are not asked for."""
    filled.rows = image_rows(350)
    assert len(run(*M, "--count", "120").table) == 120
    assert listed(filled) == ["first", "next"]


def test_own_columns(run: Run, tmp_path: Path) -> None:
    """A mapping file names columns and chooses their order; old names are mapped with a note."""
    mapping, out = tmp_path / "mine.csv", tmp_path / "mine-out.csv"
    mapping.write_text("my name,ISIC field\npatient age,age\noutcome,meta.clinical.benign_malignant\nimage,isic_id\n")
    done = run(*M, "--columns", str(mapping), "-o", str(out), "--count", "3")
    assert done.code == 0
    assert out.read_text() == (
        "patient age,outcome,image\n35,Benign,ISIC_0000001\n,Benign,ISIC_0000002\n45,Malignant,ISIC_0000003\n"
    )
    assert "meta.clinical.benign_malignant is read as diagnosis_1" in done.err
    assert "age is read as age_approx" in done.err


def test_a_column_without_any_value_is_told(run: Run, tmp_path: Path) -> None:
    """Who asks for a field that no image has learns that, instead of an empty column without a word."""
    mapping = tmp_path / "mine.csv"
    mapping.write_text("id,isic_id\nulcer,mel_ulcer\nspark,other:metadata.clinical.sparkle\n")
    done = run(*M, "--columns", str(mapping), "-o", str(tmp_path / "a.csv"))
    assert "no image has a value for ulcer\n" in done.err
    assert read_csv(tmp_path / "a.csv")[4]["spark"] == "new field"


def test_parity_with_the_importer_of_2017(run: Run, tmp_path: Path) -> None:
    """Its default columns are there, in its order, filled from where the site has that now.

    What the site does not give any more is empty, and told.
    """
    out = tmp_path / "old.csv"
    done = run(*M, "--importer", "--collection", "7", "-o", str(out))
    assert done.code == 0
    rows = read_csv(out)
    assert list(rows[0]) == [
        *("image_id", "image_name", "created", "dataset_id", "dataset_name", "pixelsx", "pixelsy", "age", "sex"),
        *("benign_malignant", "diagnosis", "diagnosis_confirm_type", "melanocytic", "updated", "tags"),
    ]
    assert rows[5] == {
        "image_id": "",
        "image_name": "ISIC_0000006",
        "created": "",
        "dataset_id": "7",
        "dataset_name": "C7",
        "pixelsx": "600",
        "pixelsy": "450",
        "age": "60",
        "sex": "male",
        "benign_malignant": "Malignant",
        "diagnosis": "Melanoma, NOS",
        "diagnosis_confirm_type": "histopathology",
        "melanocytic": "true",
        "updated": "",
        "tags": "",
    }
    assert rows[0]["melanocytic"] == ""
    assert "image_id, created, updated, tags: the site does not give these any more" in done.err


def test_renamed_fields_have_their_values(run: Run, tmp_path: Path) -> None:
    """A mapping as of 2017, without a header and with CR line ends, fills every renamed column.

    The importer looked up the name that the column should get, and wrote NA into all of them.
    """
    mapping, out = tmp_path / "map.csv", tmp_path / "out.csv"
    mapping.write_bytes(b"pathology diagnosis,diagnosis\rbiopsy done,diagnosis_confirm_type\rpatientlocation,sex")
    assert run(*M, "--columns", str(mapping), "-o", str(out), "--ids", str(write_ids(tmp_path, 6))).code == 0
    assert read_csv(out) == [
        {"pathology diagnosis": "Melanoma, NOS", "biopsy done": "histopathology", "patientlocation": "male"}
    ]


def write_ids(folder: Path, *numbers: int) -> Path:
    """A CSV file with a column of ids."""
    path = folder / "ids.csv"
    path.write_text("isic_id,x\n" + "".join(f"ISIC_{number:07d},1\n" for number in numbers))
    return path


def test_collections_of_images(run: Run, tmp_path: Path) -> None:
    """`collections` lists which of the wanted collections an image is in; without any it is refused."""
    mapping = tmp_path / "mine.csv"
    mapping.write_text("id,isic_id\nnames,collections\nnumbers,dataset_id\n")
    done = run(*M, "--columns", str(mapping), "--collection", "C9", "--collection", "7")
    found = {row["id"]: (row["names"], row["numbers"]) for row in done.table}
    assert len(found) == 12
    assert found["ISIC_0000001"] == ("C7", "7")
    assert found["ISIC_0000007"] == ("C9; C7", "9; 7")
    assert found["ISIC_0000012"] == ("C9", "9")
    refused = run(*M, "--columns", str(mapping))
    assert (refused.code, refused.out) == (64, "")
    assert "--collection" in refused.err


ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r", "crlf twice": "\r\n\r\n"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("head", ["", "name,field", "My Name,ISIC field", "column,path", '"Internal name","isic_name"'])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_mapping_files_of_any_program(end: str, encoding: str, head: str, sign: str) -> None:
    """Line ends, marks, headers and separators make no difference."""
    lines = [head, "# a remark", '"Größe, längste",clin_size_long_diam_mm', "sex , sex ", "Age,age_approx,,"]
    if sign != ",":
        lines[2:] = ['"Größe, längste"\tclin_size_long_diam_mm', "sex \t sex ", "Age\tage_approx\t\t"]
        lines = [line.replace("," if line == head else "\t", sign) for line in lines]
    found = parse_mapping(end.join(filter(None, lines)).encode(encoding), "m.csv").columns
    assert [(each.name, each.key) for each in found] == [
        ("Größe, längste", "metadata.clinical.clin_size_long_diam_mm"),
        ("sex", "metadata.clinical.sex"),
        ("Age", "metadata.clinical.age_approx"),
    ]


@pytest.mark.parametrize("first", ["name,name", "Internal name,name", "column,sex", "field,isic_id"])
def test_a_first_line_that_names_a_field_is_no_header(first: str) -> None:
    """A header is a first line whose second cell is no field: the mapping of 2017 may begin with `name,name`."""
    found = parse_mapping(f"{first}\nage,age_approx\n".encode(), "m.csv").columns
    assert [each.name for each in found] == [first.partition(",")[0], "age"]


BAD_MAPPINGS: dict[str, tuple[bytes, str, str]] = {
    "unknown field": (b"a,sex\nb,dignosis_1", "line 2: images have no field 'dignosis_1'", "did you mean diagnosis_1"),
    "duplicate": (b"location,sex\nx,age\nLocation,patient_id", "line 3: 'Location' is the name of line 1", "own"),
    "gone": (b"a,nevus_type", "nothing has taken its place", "fields: "),
    "unstructured": (b"a,unstructured", "gives it to nobody", "fields: "),
    "three cells": (b"a,sex,b", "line 1", "my name,ISIC field"),
    "one cell": (b"a\nb", "line 1", "my name,ISIC field"),
    "no name": (b",sex", "line 1", "my name,ISIC field"),
    "nothing": (b"", "no columns", "my name"),
    "header only": (b"name,field\n", "no columns", "my name"),
    "several": (b"a,x1\nb,x2\nc,x3", "line 3: ", ""),
    "binary": (b"PK\x03\x04\x00\x00", "not text", "CSV"),
    "latin": ("größe,sex".encode("latin-1"), "not text", "UTF-8"),
    "control": (b"a\x07b,sex", "no name", "printable"),
    "quote": (b'"a,sex', "line 1", "CSV"),
    "bare other": (b"a,other:", "names no field", "metadata"),
    "too long": (b"a,sex\n" * 200_000, "no list", "right file"),
}


@pytest.mark.parametrize(("data", "text", "hint"), BAD_MAPPINGS.values(), ids=BAD_MAPPINGS)
def test_bad_mappings_are_refused(data: bytes, text: str, hint: str) -> None:
    """What cannot be meant is an error that names the line and what to do."""
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        parse_mapping(data, "m.csv")
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 2000


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_hostile_mappings(data: bytes) -> None:
    """Any bytes are either columns with names of their own or a `ConfigError`."""
    try:
        found = parse_mapping(data, "m.csv").columns
    except ConfigError:
        return
    assert found
    assert len({each.name.casefold() for each in found}) == len(found)


def test_importer_columns_exist() -> None:
    """Every column of the old importer that is filled is one of a field or of collections."""
    for column in importer_columns().columns:
        assert column.key in {*FIELDS, "", "medhaul.collections", "medhaul.collection_ids"}


# -- cells ---------------------------------------------------------------------------------------------------------

CELLS: list[tuple[Any, str]] = [
    (None, ""),
    (True, "true"),
    (-5, "-5"),
    (decimal.Decimal("-0.50"), "-0.50"),
    ("-5.5e3", "-5.5e3"),
    ("+1", "+1"),
    ("=1+1", "'=1+1"),
    ("-1+1", "'-1+1"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("\tx", "'\tx"),
    ("\rx", "'\rx"),
    ("\n=1", "'\n=1"),
    ("\uff1d1", "'\uff1d1"),
    ("'=1", "''=1"),
    ("'tis", "'tis"),
    ("<1/mm^2", "<1/mm^2"),
    ("-", "'-"),
    ("-\u0661", "'-\u0661"),
]


@pytest.mark.parametrize(("value", "cell"), CELLS)
def test_cells(value: Any, cell: str) -> None:
    """What a spreadsheet would run is guarded, numbers are not; `exact` leaves all as it is."""
    assert render_cell(value) == cell
    if isinstance(value, str):
        assert render_cell(value, exact=True) == value


@given(st.text())
def test_guards_can_be_taken_off(text: str) -> None:
    """A guarded cell is the text after one ', never runs, and no other text has the same cell."""
    cell = render_cell(text)
    assert cell in {text, f"'{text}"}
    if text.startswith(("=", "@")):
        assert cell == f"'{text}"
    assert render_cell(f"'{text}") != cell


@given(st.lists(st.lists(st.text(alphabet='a,"\r\n\t =\u2028é') | st.none(), min_size=3, max_size=3)))
def test_csv_is_read_as_it_was_written(rows: list[list[str | None]]) -> None:
    """Commas, quotes and line ends within cells come back."""
    columns = [Column(name, name) for name in "abc"]
    text = "".join(f"{line}\n" for line in render_csv_lines(columns, rows, exact=True))
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [list("abc"), *([value or "" for value in row] for row in rows)]


def test_hostile_cells_from_the_site(run: Run, tmp_path: Path) -> None:
    """An attribution that is a formula is guarded, unless `--exact`; it stays in its cell in either case."""
    ids = write_ids(tmp_path, 5)
    (row,) = run(*M, "--ids", str(ids)).table
    assert row["attribution"] == f"'{HOSTILE}"
    (row,) = run(*M, "--ids", str(ids), "--exact").table
    assert row["attribution"] == HOSTILE


def test_signatures_are_left_out(run: Run, filled: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of images that are not public are written without their signatures."""
    filled.private, filled.good = private_rows(), {"tok-good"}
    monkeypatch.setenv("MEDHAUL_ISIC_TOKEN", "tok-good")
    done = run(*M)
    assert len(done.table) == 13
    assert "https://content.isic-archive.com/a/b.jpg," in done.out
    assert "SECRET" not in done.out


# -- forms ---------------------------------------------------------------------------------------------------------


def test_parquet(run: Run, tmp_path: Path) -> None:
    """Parquet has the same rows with types: numbers, decimals, booleans and NULL."""
    import duckdb

    path, text = tmp_path / "all.parquet", tmp_path / "all.csv"
    assert run(*M, "-o", str(path)).code == 0
    assert run(*M, "-o", str(text), "--exact").code == 0
    with duckdb.connect() as connection:
        table = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
        names = [each[0] for each in table.description or ()]
        rows = table.fetchall()
        kinds = dict(
            connection.execute("SELECT column_name, column_type FROM (DESCRIBE FROM read_parquet(?))", [str(path)])
            .fetchall()
        )  # fmt: skip
    assert names == [*NAMES, "other"]
    assert (kinds["mel_thick_mm"], kinds["age_approx"], kinds["melanocytic"], kinds["sex"]) == (
        *("DECIMAL(18,2)", "BIGINT", "BOOLEAN", "VARCHAR"),
    )
    assert [[render_cell(value, exact=True) for value in row] for row in rows] == [
        list(row.values()) for row in read_csv(text)
    ]


def test_json_lines(run: Run, tmp_path: Path) -> None:
    """JSON lines have all columns, null for what is absent, numbers for decimals, an object for `other`."""
    path = tmp_path / "all.jsonl"
    assert run(*M, "-o", str(path)).code == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 12
    assert all(list(row) == [*NAMES, "other"] for row in rows)
    assert (rows[0]["mel_thick_mm"], rows[1]["mel_thick_mm"], rows[5]["melanocytic"]) == (0.55, None, True)
    assert rows[4]["other"] == {"metadata.clinical.sparkle": "new field"}
    assert rows[4]["attribution"] == HOSTILE


def test_forms_have_the_same_values(tmp_path: Path) -> None:
    """The lines for standard output are those of the file."""
    rows = [flatten_image(read_image(image(number))) for number in range(1, 4)]
    columns = default_columns().columns
    for form in ("csv", "jsonl"):
        path = tmp_path / f"x.{form}"
        assert write_table(path, columns, rows, form=form).rows == 3
        assert path.read_text().splitlines() == list(render_lines(columns, rows, form=form))
    with pytest.raises(UsageError, match="no kind of table"):
        choose_table_form(Path("x.xlsx"))


def test_rest_of_any_kind() -> None:
    """What is beyond the registry stands in `other`, whatever its type and name."""
    row = flatten_image(read_image({**image(1), "zz": [1, {"a": 2}], "yy": 1.5, "xx": True, "medhaul": "x"}))
    cells = pick_cells([Column("rest", "other"), Column("y", "yy")], row)
    (line,) = render_json_lines([Column("rest", "other"), Column("y", "yy")], [cells])
    assert json.loads(line) == {"rest": {"medhaul": "x", "xx": True, "yy": "1.5", "zz": '[1, {"a": 2}]'}, "y": 1.5}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_is_whole_or_as_it_was(tmp_path: Path, form: str) -> None:
    """When rows end in an error the old file stays, and nothing is left beside it."""

    def broken() -> Iterator[dict[str, Any]]:
        yield dict(flatten_image(read_image(image(1))))
        raise SiteUnavailableError("down")

    path = tmp_path / f"x.{form}"
    path.write_text("old")
    with pytest.raises(SiteUnavailableError):
        write_table(path, default_columns().columns, broken(), form=form)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_file_that_cannot_be_written_is_known_at_once(tmp_path: Path, form: str) -> None:
    """The file is opened before the first row is asked for."""

    def never() -> Iterator[dict[str, Any]]:
        raise AssertionError
        yield {}

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_table(tmp_path / "file" / f"x.{form}", default_columns().columns, never(), form=form)


def many_rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of so many images, with texts of their own."""
    base = flatten_image(read_image(image(1)))
    for number in range(count):
        yield {**base, "isic_id": f"ISIC_{number:07d}", "attribution": f"{number} " * 20}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_memory_does_not_grow_with_rows(tmp_path: Path, form: str) -> None:
    """Ten times the rows take no more of Python's memory."""
    columns = default_columns().columns
    peaks = []
    for count in (1_000, 10_000):
        tracemalloc.start()
        write_table(tmp_path / f"x.{form}", columns, many_rows(count), form=form)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000


def test_parquet_of_many_rows(tmp_path: Path) -> None:
    """Rows are all there, in their order, over all portions in which the database takes them."""
    import duckdb

    path = tmp_path / "x.parquet"
    assert write_table(path, default_columns().columns, many_rows(12_345), form="parquet").rows == 12_345
    with duckdb.connect() as connection:
        ids = [name for (name,) in connection.execute("SELECT isic_id FROM read_parquet(?)", [str(path)]).fetchall()]
    assert ids == [f"ISIC_{number:07d}" for number in range(12_345)]


# -- fields --------------------------------------------------------------------------------------------------------


def test_fields_in_use(run: Run) -> None:
    """Fields of the selected images are counted over all rows, with types, also those that are new."""
    done = run(*M, "--fields", "--collection", "7", "--json")
    found = {row["field"]: row for row in done.rows}
    assert done.err == "8 images\n"
    assert found["age_approx"] | {"values": ""} == {
        "field": "age_approx",
        "type": "int",
        "images": 7,
        "distinct": 7,
        "values": "",
        "column": "metadata.clinical.age_approx",
    }
    assert found["diagnosis_1"]["values"] == "Benign (6); Malignant (2)"
    assert found["other:metadata.clinical.sparkle"]["type"] == "text"
    assert "mel_ulcer" not in found
    assert list(found)[:2] == ["isic_id", "copyright_license"]
    table = run(*M, "--fields", "--collection", "7")
    assert len(table.lines) == len(found) + 1
    assert len(run(*M, "--fields", "--from", "rows", "--count", "3", "--csv").table) < len(found)


def test_fields_with_many_values(run: Run, filled: Archive) -> None:
    """Values are told apart as far as there is room for, and images counted further on."""
    filled.rows = image_rows(250)
    (row,) = [row for row in run(*M, "--fields", "--from", "rows", "--json").rows if row["field"] == "isic_id"]
    assert (row["images"], row["distinct"], row["values"]) == (250, None, "")


def test_fields_of_the_whole_archive_are_one_question(run: Run, filled: Archive) -> None:
    """Without a selection the site's own counts are used, which is told."""
    facets = {"sex": {"buckets": [{"key": "male", "doc_count": 7}, {"key": "female", "doc_count": 5}]}}
    filled.site.on(
        f"{API}images/facets/", said(200, {"brand_new": {"buckets": [{"key": 1, "doc_count": 2}]}, **facets})
    )
    done = run(*M, "--fields", "--json")
    assert [(row["field"], row["images"], row["values"]) for row in done.rows] == [
        ("sex", 12, "male (7); female (5)"),
        ("brand_new", 2, "1 (2)"),
    ]
    assert "--from rows" in done.err
    assert [each.path for each in filled.site.asked] == [f"{API}images/facets/"]


# -- failures and people -------------------------------------------------------------------------------------------

FAILURES: dict[str, tuple[list[str], int, str]] = {
    "unknown form": (["-o", "x.xlsx"], 64, ".parquet"),
    "no mapping": (["--columns", "/nowhere/m.csv"], 78, "No such file"),
    "both columns": (["--columns", "m.csv", "--importer"], 64, "contradict"),
    "unknown collection": (["--collection", "c77"], 78, "did you mean C7"),
    "where": (["--where", "sexx = 1"], 78, "did you mean sex"),
    "query": (["--query", "diagnosis:nevus"], 78, "diagnosis_3"),
    "no count": (["--count", "0"], 64, "--count"),
    "exact Parquet": (["-o", "x.parquet", "--exact"], 64, "--exact"),
    "fields into a file": (["--fields", "-o", "x.csv"], 64, "--fields"),
    "form without fields": (["--json"], 64, "--fields"),
    "facets of ids": (["--fields", "--from", "facets", "--where", "true"], 64, "facets"),
    "offline": (["--offline"], 69, "not in the cache"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), FAILURES.values(), ids=FAILURES)
def test_failures_have_their_codes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, text: str
) -> None:
    """What cannot be done writes nothing, says what to do, and ends with its code."""
    monkeypatch.chdir(tmp_path)
    done = run(*M, *arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_missing_ids_end_with_3(run: Run, tmp_path: Path) -> None:
    """The table has the images that there are, in the list's order; the others are named."""
    out = tmp_path / "out.csv"
    done = run(*M, "--ids", str(write_ids(tmp_path, 9, 77, 1)), "-o", str(out))
    assert done.code == 3
    assert [row["isic_id"] for row in read_csv(out)] == ["ISIC_0000009", "ISIC_0000001"]
    assert "1 of 3 images: ISIC_0000077" in done.err


def test_a_site_that_fails_leaves_no_table(run: Run, filled: Archive, tmp_path: Path) -> None:
    """When a page cannot be had there is no table that looks whole; the next run goes on from the kept pages."""
    filled.rows = image_rows(350)
    pages = iter(range(100))
    good = filled.list_images

    def flaky(handler: Any, asked: Any) -> None:
        (answer(400, b"{}") if next(pages) == 2 else good)(handler, asked)

    filled.site.on(f"{API}images/", flaky)
    out = tmp_path / "out.csv"
    failed = run(*M, "-o", str(out), "--wait", "1 s")
    assert (failed.code, out.exists()) == (78, False)
    before = len(filled.site.asked)
    assert run(*M, "-o", str(out)).code == 0
    assert len(read_csv(out)) == 350
    assert listed(filled, before)[0] == "next"


def test_progress(run: Run, filled: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Long work tells of itself on stderr, with how much there is in all; `-q` leaves all notices out."""
    filled.rows = image_rows(250)
    monkeypatch.setattr(isic_images, "PLAIN_SECONDS", 0.0)
    out = str(tmp_path / "out.csv")
    assert f"{out}: 200 of 250 images\n" in run(*M, "-o", out).err
    assert run("-q", *M, "-o", out).err == ""


def test_progress_is_not_told_too_often() -> None:
    """A line comes when time has passed, and only then."""
    now = [0.0]
    lines: list[str] = []
    tell = plain_image_progress("x", lines.append, clock=lambda: now[0])
    for moment, done in ((1.0, 1), (11.0, 2), (12.0, 3), (22.0, 4_000)):
        now[0] = moment
        tell(done, 9_000 if moment < 20 else None)
    assert lines == ["x: 2 of 9,000 images", "x: 4,000 images"]


def test_help_has_examples(run: Run) -> None:
    """The help shows how a mapping looks and that formulas are guarded."""
    done = run(*M, "--help")
    assert done.code == 0
    assert "outcome,benign_malignant" in done.out
    assert "no spreadsheet runs it" in " ".join(done.out.split())
