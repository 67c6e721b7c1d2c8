"""`medhaul query idc`: what is printed, and how it fails."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner, Result

from pipeline.cli.query import query, render_csv, render_table
from pipeline.errors import ConfigError

COLUMNS = (
    "collection_id, analysis_result_id, PatientID, StudyInstanceUID, SeriesInstanceUID, Modality, instanceCount, "
    "series_size_MB, license_short_name, aws_bucket, crdc_series_uuid, source_DOI"
)
ROOT = Path(__file__).parents[2]
Run = Callable[..., Result]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 3,000 series, one of whose patients has control characters in its name."""
    file = tmp_path / "idc_index.parquet"
    with duckdb.connect() as database:
        database.execute(
            f"CREATE TABLE t AS SELECT * FROM (SELECT 'c_' || n % 3, NULL::VARCHAR, "
            "CASE WHEN n = 0 THEN 'esc' || chr(27) || '[2J' || chr(10) ELSE 'P' || n END, '1.' || n, '1.1.' || n, "
            "CASE WHEN n % 2 = 0 THEN 'CT' ELSE 'MR' END, n, 1.5::DOUBLE, 'CC BY 4.0', 'idc-open-data', 'u' || n, 'd' "
            f"FROM range(3000) AS r(n)) AS t({COLUMNS})"
        )
        database.execute(f"COPY (FROM t ORDER BY collection_id) TO '{file}'")
    return file


@pytest.fixture
def run(index: Path) -> Run:
    """Run a query on it."""

    def run_query(*arguments: str) -> Result:
        return CliRunner().invoke(query, ["idc", *arguments, "--index", str(index)])

    return run_query


def test_table(run: Run) -> None:
    """By default rows are an aligned table for people, with sizes in their units."""
    lines = run("collections").output.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:6] == ["collection_id", "patients", "studies", "series", "files", "bytes"]
    assert lines[1].split() == ["c_0", "1000", "1000", "1000", "1498500", "1.5", "GB", "CT,", "MR", "CC", "BY", "4.0"]
    assert len({line.index("CT, MR") for line in lines[1:]}) == 1


def test_json_and_csv_agree(run: Run) -> None:
    """CSV and JSON hold the same values, sizes in bytes, and parse as what they are."""
    read = json.loads(run("patients", "--collection", "c-1", "--json").output)
    rows = list(csv.DictReader(io.StringIO(run("patients", "--collection", "C 1", "--csv").output)))
    assert len(read) == len(rows) == 1000
    assert read[0]["bytes"] == 1_500_000
    for record, row in zip(read, rows, strict=True):
        assert {key: "; ".join(v) if isinstance(v, list) else str(v) for key, v in record.items()} == row


def test_json_of_nothing_hostile(run: Run) -> None:
    """Control characters of the index never reach a terminal as such, but programs get them unchanged."""
    table = run("series", "--study", "1.0").output
    assert "\x1b" not in table
    assert len(table.splitlines()) == 2
    (record,) = json.loads(run("series", "--study", "1.0", "--json").output)
    assert record["PatientID"] == "esc\x1b[2J\n"
    (row,) = csv.DictReader(io.StringIO(run("series", "--study", "1.0", "--csv").output, newline=""))
    assert row["PatientID"] == "esc\x1b[2J\n"


def test_options_select(run: Run) -> None:
    """All options hold at once, and one given twice means either value."""
    rows = json.loads(
        run("series", "--collection", "c_0", "--modality", "ct", "--where", "instanceCount < 20", "--json").output
    )
    assert [row["SeriesInstanceUID"] for row in rows] == ["1.1.0", "1.1.6", "1.1.12", "1.1.18"]
    rows = json.loads(run("studies", "--patient", "P1", "--patient", "P2", "--limit", "1", "--json").output)
    assert [row["PatientID"] for row in rows] == ["P1"]
    assert json.loads(run("size", "--series", "1.1.5", "--json").output) == [
        {"collections": 1, "series": 1, "files": 5, "bytes": 1500000}
    ]


def test_columns(run: Run) -> None:
    """The columns for --where are listed with their types."""
    rows = json.loads(run("columns", "--json").output)
    assert [row["name"] for row in rows] == COLUMNS.split(", ")
    assert {row["type"] for row in rows} == {"VARCHAR", "BIGINT", "DOUBLE"}


def test_urls(run: Run) -> None:
    """Places are printed one per line, for either cloud."""
    assert run("urls", "--study", "1.7").output == "s3://idc-open-data/u7/*\n"
    assert run("urls", "--study", "1.7", "--provider", "gcs").output == "gs://idc-open-data/u7/*\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("series", "--collection", "c_9"),
        ("series", "--where", "1=1); DROP TABLE x"),
        ("series", "--where", "Modality"),
        ("series", "--content", "derived"),
        ("studies", "--patient", "nobody"),
        ("size", "--modality", "XX"),
        ("urls", "--series", "9.9"),
    ],
)
def test_errors_are_the_projects_own(run: Run, arguments: tuple[str, ...]) -> None:
    """What cannot be answered raises an error that the main command turns into a line, and prints nothing."""
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert result.output == ""


def test_wrong_usage_is_refused(run: Run) -> None:
    """Unknown options and impossible values are usage errors."""
    assert run("series", "--limit", "0").exit_code == 2
    assert run("series", "--content", "all").exit_code == 2
    assert run("nothing").exit_code == 2


def test_table_is_cut_to_a_terminal() -> None:
    """On a terminal a line is as wide as the terminal at most; elsewhere it is whole."""
    rows = [["x" * 50, 5], ["y", 500]]
    assert [len(line) for line in render_table(["name", "files"], rows, 20)] == [20, 20, 20]
    assert list(render_table(["name", "files"], rows, 0))[1] == "x" * 50 + "      5"


def test_csv_quotes() -> None:
    """Separators, quotes and newlines in values survive CSV."""
    values = ['a,b"c\n\r d', "", "ä;x", "a\nb", "a\rb", "a\n"]
    (line,) = list(render_csv(list("abcdef"), [values]))[1:]
    assert next(csv.reader(io.StringIO(line, newline=""))) == values


def test_a_reader_that_leaves_is_no_error(index: Path) -> None:
    """`| head` ends the command quietly."""
    script = "from pipeline.cli.query import query; query()"
    command = [sys.executable, "-c", script, "idc", "series", "--csv", "--index", str(index)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.skipif(importlib.util.find_spec("idc_index_data") is None, reason="idc-index-data is not installed")
def test_on_the_real_index_in_little_memory() -> None:
    """On the real index the command answers in less than 200 MB."""
    script = (
        "import sys; from pipeline.cli.query import query; query(standalone_mode=False);"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0], file=sys.stderr)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MEDHAUL_IDC_INDEX"}
    for command in ("collections", "size"):
        done = subprocess.run(
            [sys.executable, "-c", script, "idc", command, "--json"],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert int(done.stderr) < 200 * 1024
        assert sum(row["series"] for row in json.loads(done.stdout)) > 1_000_000


@pytest.mark.parametrize(
    "command",
    [("patients",), ("series", "--csv"), ("size", "--json"), ("urls",)],
    ids=["table", "csv", "json", "lines"],
)
def test_a_full_disk(index: Path, command: tuple[str, ...]) -> None:
    """Standard output that takes no more is the fault of the disk: 73, in one line."""
    words = [sys.executable, "-m", "pipeline.cli.main", "query", "idc", *command, "--index", str(index)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 73
    assert b"standard output: No space left" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr
