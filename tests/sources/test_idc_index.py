"""The IDC index: what opens, what is selected, and in which order rows come."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.settings import SelectIdc, SourceIdc
from pipeline.sources.idc_index import IdcIndex, plain_text
from pipeline.sources.idc_order import in_rank_order
from pipeline.sources.idc_select import choose_names

TEXT = ("collection_id", "analysis_result_id", "PatientID", "SeriesInstanceUID", "StudyInstanceUID", "source_DOI")
TEXT += ("PatientAge", "PatientSex", "StudyDate", "StudyDescription", "BodyPartExamined", "Modality", "SOPClassUID")
TEXT += ("sop_class_name", "TransferSyntaxUID", "transfer_syntax_name", "PhotometricInterpretation")
TEXT += ("PixelRepresentation", "Manufacturer", "ManufacturerModelName", "SeriesDate", "SeriesDescription")
TEXT += ("SeriesNumber",)
COLUMNS: dict[str, str] = (
    dict.fromkeys(TEXT, "VARCHAR")
    | {"instanceCount": "BIGINT", "license_short_name": "VARCHAR"}
    | {"series_init_idc_version": "BIGINT", "series_revised_idc_version": "BIGINT"}
    | dict.fromkeys(("aws_bucket", "crdc_series_uuid", "series_aws_url"), "VARCHAR")
    | {"series_size_MB": "DOUBLE"}
)
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("idc_index_data") is None, reason="idc-index-data is not installed"
)
Write = Callable[..., Path]


def series(number: int, **values: Any) -> dict[str, Any]:
    """A plausible row."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update(
        collection_id="rider_pilot",
        PatientID=f"P{number % 3}",
        StudyInstanceUID=f"1.2.{number % 5}",
        SeriesInstanceUID=f"1.2.3.{number}",
        source_DOI="10.7937/A",
        Modality="CT",
        instanceCount=number + 1,
        license_short_name="CC BY 3.0",
        aws_bucket="idc-open-data",
        crdc_series_uuid=f"00000000-0000-4000-8000-{number:012d}",
        series_size_MB=1.234567,
    )
    return row | values


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as an index, return its path."""

    def write_rows(rows: list[dict[str, Any]], name: str = "idc_index.parquet", **kinds: str | None) -> Path:
        columns = {key: kind for key, kind in (COLUMNS | kinds).items() if kind}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        target = str(tmp_path / "written.parquet")
        with duckdb.connect() as database:
            made = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
            database.execute(f"CREATE TABLE t ({made})")
            for row in rows:
                marks = ", ".join(["?"] * len(columns))
                database.execute(f"INSERT INTO t VALUES ({marks})", [row.get(column) for column in columns])
            database.execute(f"COPY t TO '{target}'")
        return Path(target).rename(path)

    return write_rows


ROWS = [
    series(0),
    series(1, collection_id="tcga_brca", Modality="SM", license_short_name="CC BY-NC 4.0"),
    series(2, collection_id="tcga_brca", Modality="SEG", analysis_result_id="total_segmentations"),
    series(3, collection_id="tcga_luad", Modality="MR", PatientID="odd \n'\"\0 id", source_DOI="10.7937/b"),
]


@pytest.fixture
def index(write: Write) -> Iterator[IdcIndex]:
    """An open index of a few rows."""
    with IdcIndex.open(SourceIdc(index=str(write(ROWS)))) as opened:
        yield opened


def uids(index: IdcIndex, **keys: Any) -> list[str]:
    """Last numbers of the UIDs selected."""
    selection = index.select(SelectIdc(**({"content": "both"} | keys)))
    found = sorted(row[1].rpartition(".")[2] for row in selection.scan(["SeriesInstanceUID"]))
    assert selection.series == len(found)
    return found


def test_content_separates_original_from_derived(index: IdcIndex) -> None:
    """Original data have no analysis_result_id, derived data have one."""
    assert uids(index, content="original") == ["0", "1", "3"]
    assert uids(index, content="derived") == ["2"]
    assert uids(index, content="both") == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"collections": ("tcga_brca",)}, ["1", "2"]),
        ({"collections": ("TCGA-BRCA", "RIDER Pilot")}, ["0", "1", "2"]),
        ({"collections": ("tcga_brca",), "modalities": ("seg", "ct")}, ["2"]),
        ({"licences": ("cc by-nc 4.0",)}, ["1"]),
        ({"analysis_results": ("Total-Segmentations",)}, ["2"]),
        ({"patients": ("P0", "P1")}, ["0", "1"]),
        ({"patients": ("odd \n'\"\0 id",)}, ["3"]),
        ({"studies": ("1.2.3",)}, ["3"]),
        ({"series": ("1.2.3.1", "1.2.3.1", "1.2.3.3")}, ["1", "3"]),
        ({"crdc_series": ("00000000-0000-4000-8000-000000000002",)}, ["2"]),
        ({"where": "instanceCount BETWEEN 2 AND 3"}, ["1", "2"]),
        ({"where": "1=1 OR 1=1", "modalities": ("MR",)}, ["3"]),
        ({"content": "original", "where": "series_size_MB > 1", "collections": ("tcga-brca",)}, ["1"]),
    ],
)
def test_all_keys_hold_at_once(index: IdcIndex, keys: dict[str, Any], expected: list[str]) -> None:
    """Keys are joined by AND, values of a key by OR, names without regard to case and separators."""
    assert uids(index, **keys) == expected


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"collections": ("tcga_brka",)}, "did you mean tcga_brca"),
        ({"collections": ("tcga_brca", "nope"), "modalities": ("CT",)}, "no 'nope'"),
        ({"modalities": ("CTT",)}, "did you mean CT"),
        ({"licences": ("CC BY 5.0",)}, "did you mean CC BY 3.0"),
        ({"analysis_results": ("total segmentation",)}, "did you mean total_segmentations"),
        ({"series": ("1.2.3.1", "9.9")}, "select.idc.series: 1 of 2 not in the IDC index sha256:"),
        ({"patients": ("p0",)}, "1 of 1 not in the IDC index"),
        ({"studies": tuple(f"9.{n}" for n in range(25))}, "25 of 25 not in"),
        ({"crdc_series": ("'; DROP TABLE t; --",)}, "'; DROP TABLE t; --"),
        ({"where": "Modalitty = 'CT'"}, "select.idc.where \"Modalitty = 'CT'\": unknown column"),
        ({"where": "(SELECT true)"}, "subqueries"),
    ],
)
def test_values_that_are_nowhere_are_errors(index: IdcIndex, keys: dict[str, Any], part: str) -> None:
    """A value that the index does not have at all is named, with the nearest; never silently fewer series."""
    with pytest.raises(ConfigError) as caught:
        index.select(SelectIdc(**({"content": "both"} | keys)))
    assert part in str(caught.value)


def test_many_missing_are_counted_not_listed(index: IdcIndex) -> None:
    """Of many missing identifiers ten are listed and the rest is counted."""
    with pytest.raises(ConfigError, match=r"9\.9 and 15 more"):
        index.select(SelectIdc(content="both", series=tuple(f"9.{n}" for n in range(25))))


def test_nothing_selected_tells_the_steps(index: IdcIndex) -> None:
    """When conditions exclude each other, the count after each says which did."""
    with pytest.raises(ConfigError) as caught:
        index.select(SelectIdc(content="original", collections=("tcga_brca",), where="Modality = 'SEG'"))
    message = str(caught.value)
    assert "4 series in the index, 3 after content = 'original', 1 after collections, 0 after where" in message


def test_earlier_releases_are_told(write: Write) -> None:
    """A series that only earlier releases had is said to be so, with the releases."""
    path = write(ROWS)
    with duckdb.connect() as database:
        database.execute(
            "COPY (SELECT '7.7' AS SeriesInstanceUID, 'u' AS crdc_series_uuid, "
            f"3 AS min_idc_version, 9 AS max_idc_version) TO '{path.with_name('prior_versions_index.parquet')}'"
        )
    with IdcIndex.open(SourceIdc(index=str(path))) as index:
        for keys in ({"series": ("7.7", "8.8")}, {"crdc_series": ("u", "8.8")}):
            with pytest.raises(ConfigError, match=r"\(only in earlier releases, v3 to v9\), 8\.8$"):
                index.select(SelectIdc(content="both", **keys))


def test_conversion_errors_of_data_are_told(index: IdcIndex, write: Write) -> None:
    """A condition that fails only on the data is refused in one line, with the way out."""
    with pytest.raises(ConfigError) as caught:
        index.select(SelectIdc(content="both", where="CAST(Modality AS INTEGER) > 1"))
    assert "Could not convert" in str(caught.value)
    assert "TRY_CAST" in caught.value.hint


def test_rows_come_in_bytewise_order_of_path(write: Write) -> None:
    """Rows come sorted by path as bytes, ties by SeriesInstanceUID, each once, with its own values."""
    rows = [series(number) for number in range(50)]
    with IdcIndex.open(SourceIdc(index=str(write(rows)))) as index:
        selection = index.select(SelectIdc(content="both"))
        numbers = {row[0]: row[1] for row in selection.scan(["SeriesInstanceUID"])}
        paths = {"0": "a/Z", "1": "a/a", "2": "a-b", "3": "a_b", "4": "B/x"}
        keys = {number: paths.get(uid.rpartition(".")[2], "a/m") for number, uid in numbers.items()}
        found = list(selection.ordered(reversed(list(keys.items()))))
    assert [row.path for row in found] == sorted(keys.values())
    assert [(row.path, row.SeriesInstanceUID) for row in found] == sorted(
        (path, numbers[number]) for number, path in keys.items()
    )
    assert all(row.instanceCount == int(row.SeriesInstanceUID.rpartition(".")[2]) + 1 for row in found)


def test_only_given_rows_are_yielded(index: IdcIndex) -> None:
    """Of a selection only the rows with a path come; no path, no rows."""
    selection = index.select(SelectIdc(content="both"))
    numbers = {row[1]: row[0] for row in selection.scan(["SeriesInstanceUID"])}
    assert [row.SeriesInstanceUID for row in selection.ordered([(numbers["1.2.3.2"], "x")])] == ["1.2.3.2"]
    assert list(selection.ordered([])) == []


@pytest.mark.parametrize("path", ["", "a\tb", "a\nb", "a'b", 'a"b', "ä", "a\rb"])
def test_paths_that_cannot_be_are_refused(index: IdcIndex, path: str) -> None:
    """A path that would not come back as it went in is a fault of the caller."""
    with pytest.raises(ValueError, match=r"path|ascii"):
        list(index.select(SelectIdc(content="both")).ordered([(0, path)]))


@pytest.mark.parametrize("numbers", [[0, 0], [4], [-1], [10**12]])
def test_rows_twice_or_nowhere_are_refused(index: IdcIndex, numbers: list[int]) -> None:
    """A row given twice, or not in the file, is a fault of the caller."""
    with pytest.raises(ValueError, match="twice or not in the index"):
        list(index.select(SelectIdc(content="both")).ordered((number, "x") for number in numbers))


def test_rows_not_selected_are_refused(index: IdcIndex) -> None:
    """A row of the file that is not of the selection is a fault of the caller, not left out."""
    selection = index.select(SelectIdc(content="both", series=("1.2.3.1",)))
    with pytest.raises(ValueError, match="1 ranks did not come"):
        list(selection.ordered([(0, "a"), (1, "b")]))


def test_meta_is_the_whole_row(write: Write) -> None:
    """`meta` is the row as JSON in file order: NULL is null, numbers are numbers, any text comes back as it was."""
    row = series(3, PatientID="odd \n\t'\"\\\0\x1b ä☃𝄞 </script>", series_size_MB=26.405988, StudyDate="1997-09-17")
    with IdcIndex.open(SourceIdc(index=str(write([row])))) as index:
        assert list(index.column_types()) == list(COLUMNS)
        found = next(index.select(SelectIdc(content="both")).ordered([(0, "x")]))
    assert json.loads(found.meta) == [row[column] for column in COLUMNS]
    assert found.PatientID == row["PatientID"]
    assert found.size_bytes == 26405988


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.floats(0.001, 1e6), st.integers(1, 10**9))
def test_any_text_and_numbers_round_trip(text: str, size: float, count: int) -> None:
    """Whatever text and numbers the index holds come back from it unchanged."""
    row = series(0, PatientID=text, SeriesDescription=text, instanceCount=count, series_size_MB=size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i.parquet"
        with duckdb.connect() as database:
            made = ", ".join(f'"{column}" {kind}' for column, kind in COLUMNS.items())
            database.execute(f"CREATE TABLE t ({made})")
            database.execute(f"INSERT INTO t VALUES ({', '.join(['?'] * len(COLUMNS))})", list(row.values()))
            database.execute(f"COPY t TO '{path}'")
        with IdcIndex.open(SourceIdc(index=str(path))) as index:
            found = next(index.select(SelectIdc(content="both", patients=(text,))).ordered([(0, "x")]))
    assert found.PatientID == text
    assert found.instanceCount == count
    assert found.size_bytes == round(size * 1e6)
    assert json.loads(found.meta) == list(row.values())


@pytest.mark.parametrize("count", [None, 0, -5])
@pytest.mark.parametrize("size", [None, 0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e300])
def test_impossible_numbers_become_minus_one(write: Write, count: int | None, size: float | None) -> None:
    """What cannot be a count or a size is -1, missing text is empty, and the row is still there."""
    nothing = dict.fromkeys(("aws_bucket", "crdc_series_uuid", "PatientID", "SeriesInstanceUID", "license_short_name"))
    row = series(0, instanceCount=count, series_size_MB=size, **nothing)
    with IdcIndex.open(SourceIdc(index=str(write([row])))) as index:
        selection = index.select(SelectIdc(content="both"))
        found = next(selection.ordered([(0, "x")]))
        assert next(iter(selection.scan(["PatientID", "aws_bucket"]))) == (0, None, None)
    assert (found.instanceCount, found.size_bytes) == (-1, -1)
    assert (found.aws_bucket, found.crdc_series_uuid, found.PatientID, found.SeriesInstanceUID) == ("", "", "", "")
    assert len(json.loads(found.meta)) == len(COLUMNS)


def test_other_number_types_are_read(write: Write) -> None:
    """Counts and sizes of other number types give the same records; columns beyond the known stay in `meta`."""
    path = write([series(0)], instanceCount="INTEGER", series_size_MB="DECIMAL(18,6)", extra="INTEGER[]")
    with IdcIndex.open(SourceIdc(index=str(path))) as index:
        found = next(index.select(SelectIdc(content="both")).ordered([(0, "x")]))
    assert (found.instanceCount, found.size_bytes) == (1, 1234567)
    assert len(json.loads(found.meta)) == len(COLUMNS) + 1


def test_missing_or_wrong_columns_are_named(write: Write) -> None:
    """An index without a needed column, or with one of an unusable type, is refused by name."""
    path = write([], aws_bucket=None, instanceCount="VARCHAR")
    with pytest.raises(ConfigError) as caught:
        IdcIndex.open(SourceIdc(index=str(path)))
    assert "aws_bucket (missing)" in str(caught.value)
    assert "instanceCount (is VARCHAR" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"<html>not found</html>"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    """A damaged file is refused in one line that names it."""
    path = tmp_path / "idc_index.parquet"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"idc_index\.parquet"):
        IdcIndex.open(SourceIdc(index=str(path)))


def test_damage_inside_is_refused(write: Write) -> None:
    """Data pages that do not decode end in a project error, not in wrong rows or a traceback."""
    path = write([series(number, SeriesDescription="x" * number) for number in range(500)])
    data = bytearray(path.read_bytes())
    data[100 : len(data) // 2] = b"\xff" * (len(data) // 2 - 100)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"idc_index\.parquet"), IdcIndex.open(SourceIdc(index=str(path))) as index:
        list(index.select(SelectIdc(content="both")).ordered((number, "x") for number in range(500)))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path where nothing is, or a folder, is refused."""
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(ConfigError, match=r"sources\.idc\.index"):
            IdcIndex.open(SourceIdc(index=str(path)))


@pytest.mark.parametrize("name", ["it's [odd]*?{a}.parquet", "ä b;c/idc.parquet", "a%20b.parquet", 'q"uote.parquet'])
def test_any_file_name_opens(write: Write, name: str) -> None:
    """Signs that mean something to SQL or to globs are only letters of a file name."""
    with IdcIndex.open(SourceIdc(index=str(write(ROWS, name)))) as index:
        assert index.select(SelectIdc(content="both")).series == 4


def test_release_of_a_file_is_its_hash(write: Write) -> None:
    """A file is known by its SHA-256; a pinned release cannot be checked against it and is refused."""
    path = write(ROWS)
    with IdcIndex.open(SourceIdc(index=str(path))) as index:
        assert index.release.startswith("sha256:")
        assert len(index.release) == len("sha256:") + 12
    with pytest.raises(ConfigError, match="'25'"):
        IdcIndex.open(SourceIdc(index=str(path), release="25"))


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without idc-index-data the error has the pip command."""
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    with pytest.raises(ConfigError) as caught:
        IdcIndex.open(SourceIdc())
    assert caught.value.hint == "pip install 'medhaul[idc]'"


def test_sql_of_the_index_cannot_leave_it(index: IdcIndex, tmp_path: Path) -> None:
    """Even SQL that got past all checks could read and write no other file, load nothing and loosen nothing."""
    outside = tmp_path / "outside.csv"
    outside.write_text("secret\n1\n")
    for sql in (
        f"SELECT * FROM read_csv('{outside}')",
        f"SELECT * FROM '{outside}'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        f"COPY (SELECT 1) TO '{outside}'",
        f"ATTACH '{tmp_path / 'new.db'}'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SELECT * FROM read_parquet('https://127.0.0.1:9/x.parquet')",
    ):
        with pytest.raises(ConfigError):
            index.fetch(sql)
    assert outside.read_text() == "secret\n1\n"


def test_temporary_files_go(write: Write, tmp_path: Path) -> None:
    """Closing the index leaves nothing behind, also when an order was not read to its end."""
    temp = tmp_path / "temp"
    temp.mkdir()
    with IdcIndex.open(SourceIdc(index=str(write(ROWS))), temp=temp) as index:
        next(iter(index.select(SelectIdc(content="both")).ordered([(0, "a"), (1, "b")])))
        assert list(temp.iterdir())
    assert list(temp.iterdir()) == []


def test_citations_offline(write: Write) -> None:
    """Citations are plain text by DOI whatever its case; what is not known is left out."""
    path = write(ROWS)
    with IdcIndex.open(SourceIdc(index=str(path))) as index:
        assert index.citations(["10.7937/A"]) == {}
    with duckdb.connect() as database:
        database.execute(
            "COPY (SELECT [{'source_doi': '10.7937/a', 'citation': 'A &amp; B.\n<i>Data</i> < 5', "
            "'license': {'license_short_name': 'CC BY 3.0'}}, {'source_doi': NULL, 'citation': NULL, 'license': NULL}]"
            f" AS sources) TO '{path.with_name('collections_index.parquet')}'"
        )
    with IdcIndex.open(SourceIdc(index=str(path))) as index:
        assert index.citations(["10.7937/A", "10.9/none"]) == {"10.7937/A": ("A & B. Data < 5", "CC BY 3.0")}


def test_damaged_descriptions_are_refused(write: Write) -> None:
    """Descriptions are optional, but what lies in their place must be them."""
    path = write(ROWS)
    with IdcIndex.open(SourceIdc(index=str(path))) as index:
        assert index.descriptions() == {}
        for text in ("{", "[]", '{"columns": [1]}', "\xff"):
            path.with_name("idc_index_schema.json").write_text(text, encoding="latin-1")
            with pytest.raises(ConfigError, match=r"schema\.json"):
                index.descriptions()


def test_ambiguous_names_are_refused() -> None:
    """A name that folds to several is only taken when it is written exactly."""
    assert choose_names("k", ["a_b"], ["a_b", "A-B"]) == ("a_b",)
    with pytest.raises(ConfigError, match="may mean A-B or a_b"):
        choose_names("k", ["A B"], ["a_b", "A-B"])


@pytest.mark.parametrize(("marked", "plain"), [("a &lt;b&gt;\n c", "a <b> c"), ("<i>x</i> 1 < 2 > 1", "x 1 < 2 > 1")])
def test_plain_text(marked: str, plain: str) -> None:
    """Tags and entities go, signs of inequality stay."""
    assert plain_text(marked) == plain


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.randoms(use_true_random=False), st.sampled_from([0, 100_000, 1 << 30]))
def test_rank_order_is_restored(total: int, random: Any, held: int) -> None:
    """Rows in any order come out in order of rank, each once, with or without spilling."""
    numbers = list(range(total))
    random.shuffle(numbers)
    rows = [(number, (number, f"text {number}", None, "x" * (number % 7))) for number in numbers]
    chunks = (rows[begin : begin + 1500] for begin in range(0, total, 1500))
    with tempfile.TemporaryFile() as spill:
        found = [row for batch in in_rank_order(chunks, total, spill, held) for row in batch]
    assert [row[0] for row in found] == list(range(total))
    assert all(tuple(row) == (n, f"text {n}", None, "x" * (n % 7)) for n, row in enumerate(found))


def test_missing_ranks_are_an_error() -> None:
    """Ranks that never come are an error, not a shorter result."""
    with tempfile.TemporaryFile() as spill, pytest.raises(ValueError, match="1 ranks"):
        list(in_rank_order([[(0, ("a",)), (2, ("c",))]], 3, spill))


@needs_package
def test_packaged_index_and_its_pins() -> None:
    """The packaged index opens with its version as release; other pins are refused with the pip command."""
    with IdcIndex.open(SourceIdc()) as index:
        release = index.release
        major = release.partition(".")[0]
        assert int(major) >= 25
        selection = index.select(SelectIdc(content="original", collections=("RIDER Pilot",)))
        assert selection.series > 100
        rows = list(selection.ordered((row[0], f"p/{row[1]}") for row in selection.scan(["SeriesInstanceUID"])))
        assert [row.path for row in rows] == sorted(row.path for row in rows)
        assert sum(row.size_bytes for row in rows) == selection.bytes
        assert all(len(json.loads(row.meta)) == len(index.column_types()) for row in rows)
        dois = {row.source_DOI for row in rows}
        assert set(index.citations(dois)) == dois
        assert set(index.descriptions()) >= {"Modality", "instanceCount"}
    for pin in (major, release):
        IdcIndex.open(SourceIdc(release=pin)).close()
    with pytest.raises(ConfigError) as caught:
        IdcIndex.open(SourceIdc(release="7"))
    assert f"'7', but the installed IDC index is {release}" in str(caught.value)
    assert caught.value.hint == "pip install 'idc-index-data==7.*'"


@needs_package
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_packaged_index_in_bounded_memory() -> None:
    """Ordering all series of the real index stays within 350 MB of memory."""
    script = textwrap.dedent(
        """
        from pipeline.settings import SelectIdc, SourceIdc
        from pipeline.sources.idc_index import IdcIndex
        with IdcIndex.open(SourceIdc()) as index:
            selection = index.select(SelectIdc(content="both"))
            columns = ["collection_id", "StudyInstanceUID", "Modality", "SeriesInstanceUID"]
            paths = ((row[0], "/".join(row[1:])) for row in selection.scan(columns))
            assert sum(1 for _ in selection.ordered(paths)) == selection.series
        print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
        """
    )
    root = Path(__file__).parents[2]
    # Not getrusage: its peak would include this process's memory at the time of the fork.
    peak = subprocess.run([sys.executable, "-c", script], check=True, cwd=root, capture_output=True, text=True).stdout
    assert int(peak) < 350 * 1024
