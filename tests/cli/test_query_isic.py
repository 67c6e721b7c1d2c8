"""`medhaul query isic`: every question, what is printed, and how it fails."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import query_isic_options
from pipeline.cli.query_isic_options import sort_rows
from pipeline.sources.isic_fields import FIELDS, OLD_NAMES
from tests.cli.isic_cli_kit import (  # noqa: F401 -- the fixtures
    HOSTILE,
    SIGNED,
    Run,
    _filled,
    _run,
    image,
    private_rows,
)
from tests.sources.isic_archive import API, NOT_FOUND, Archive, said
from tests.sources.test_tcia_http import _site  # noqa: F401 -- the fixture

ROOT = Path(__file__).parents[2]
Q = ("query", "isic")


def serve(filled: Archive) -> None:
    """Add what the archive has beside images and collections."""
    site = filled.site
    lesion = {
        "id": "IL_0000001",
        "images": [image(1), image(2)],
        "images_count": 2,
        "longitudinally_monitored": False,
        "index_image_id": "ISIC_0000001",
        "outcome_diagnosis": "Benign:Nevus",
        "outcome_diagnosis_1": "Benign",
    }
    site.on(f"{API}lesions/", said(200, {"results": [lesion], "count": 1, "next": None, "previous": None}))
    site.on(f"{API}lesions/IL_0000001/", said(200, lesion))
    site.on(f"{API}lesions/IL_0000002/", NOT_FOUND)
    site.on(f"{API}stats/", said(200, {"image": {"images_count": 13, "public_images_count": 12}}))
    site.on(f"{API}images/search/size/", said(200, {"size": 12345}))
    buckets = [{"key": "Benign", "doc_count": 8}, {"key": "Malignant", "doc_count": 4}]
    sexes = [{"key": "male", "doc_count": 12}]
    site.on(f"{API}images/facets/", said(200, {"diagnosis_1": {"buckets": buckets}, "sex": {"buckets": sexes}}))
    for number in (1, 5):
        site.on(f"{API}images/ISIC_{number:07d}/", said(200, filled.rows[number - 1][1]))
    site.on(f"{API}images/ISIC_0000099/", NOT_FOUND)
    site.on(f"{API}collections/99/", NOT_FOUND)


QUESTIONS: dict[str, tuple[list[str], str, int]] = {
    "collections": (["collections"], "name", 3),
    "collections by name": (["collections", "--name", "c1", "--counts"], "images", 1),
    "pinned": (["collections", "--pinned", "--sort", "name"], "id", 3),
    "images": (["images", "--all"], "isic_id", 12),
    "images of a collection": (["images", "--collection", "7"], "isic_id", 8),
    "images of two, by name and number": (["images", "--collection", "c7", "--collection", "9"], "isic_id", 12),
    "images by query": (["images", "--query", "diagnosis_1:Malignant"], "isic_id", 4),
    "images by where": (["images", "--where", "diagnosis_3 LIKE 'Mel%' AND age_approx > 50"], "isic_id", 3),
    "images by full name": (["images", "--where", '"metadata.clinical.melanocytic"'], "isic_id", 1),
    "images by all": (
        [*("images", "--collection", "7", "--query", "sex:male"), *("--where", "pixels_x <= 600", "--limit", "2")],
        "isic_id",
        2,
    ),
    "first images": (["images", "--limit", "5"], "isic_id", 5),
    "image": (["image", "ISIC_0000001", "ISIC_0000005"], "isic_id", 2),
    "lesions": (["lesions"], "images", 1),
    "lesion": (["lesions", "IL_0000001"], "outcome_diagnosis", 1),
    "stats": (["stats"], "count", 2),
    "facets": (["facets"], "count", 3),
    "facets of a field": (["facets", "--field", "benign_malignant", "--collection", "C7"], "value", 2),
    "size": (["size", "--query", "sex:male"], "bytes", 1),
    "fields": (["fields"], "type", len(FIELDS)),
    "old fields": (["fields", "--old"], "note", len(OLD_NAMES)),
}


@pytest.mark.parametrize(("arguments", "column", "count"), QUESTIONS.values(), ids=QUESTIONS)
def test_every_question_in_every_form(run: Run, filled: Archive, arguments: list[str], column: str, count: int) -> None:
    """Each command answers as table, CSV and JSON with the same rows."""
    serve(filled)
    found = run(*Q, *arguments, "--json")
    assert found.code == 0
    assert len(found.rows) == count
    assert all(column in row for row in found.rows)
    table = run(*Q, *arguments)
    assert table.code == 0
    if arguments[0] != "image":
        assert len(table.lines) == count + 1
    read = run(*Q, *arguments, "--csv").table
    assert len(read) == count
    for row, record in zip(read, found.rows, strict=True):
        value = record[column]
        shown = "; ".join(value) if isinstance(value, list) else str(value)
        assert row[column] == ("" if value is None else shown)


def test_images_have_all_fields(run: Run) -> None:
    """CSV and JSON have every field of the registry in its order and what is newer; a table the main ones."""
    names = [field.name for field in FIELDS.values()]
    found = run(*Q, "images", "--query", "isic_id:ISIC_0000005", "--json").rows[0]
    assert list(found) == [*names, "other"]
    assert found["other"] == {"metadata.clinical.sparkle": "new field"}
    assert (found["mel_thick_mm"], found["age_approx"], found["melanocytic"]) == (0.55, 55, None)
    (row,) = run(*Q, "images", "--query", "isic_id:ISIC_0000005", "--csv").table
    assert row["other"] == '{"metadata.clinical.sparkle": "new field"}'
    assert row["mel_thick_mm"] == "0.55"
    assert run(*Q, "images", "--limit", "1").lines[0].split()[:3] == ["isic_id", "image_type", "diagnosis_1"]


def test_image_as_lines(run: Run, filled: Archive) -> None:
    """One image is a line for each field that it has; what the archive does not have ends with 3 after the others."""
    serve(filled)
    done = run(*Q, "image", "ISIC_0000001", "ISIC_0000099")
    fields = dict(line.split(maxsplit=1) for line in done.lines[1:])
    assert fields["isic_id"] == "ISIC_0000001"
    assert fields["mel_thick_mm"] == "0.55"
    assert "melanocytic" not in fields
    assert done.code == 3
    assert "1 of 2 images: ISIC_0000099" in done.err
    lesions = run(*Q, "lesions", "IL_0000002", "IL_0000001", "--json")
    assert (lesions.code, [row["images"] for row in lesions.rows]) == (3, [["ISIC_0000001", "ISIC_0000002"]])


def test_sort_and_columns(run: Run) -> None:
    """Rows are sorted before they are limited, what is missing last; columns may have old names."""
    ages = ("images", "--all", "--columns", "isic_id,age_approx", "--json")
    up = [row["age_approx"] for row in run(*Q, *ages, "--sort", "age_approx").rows]
    down = [row["age_approx"] for row in run(*Q, *ages, "--sort", "-age_approx").rows]
    assert up[-1] is down[-1] is None
    assert up[:-1] == down[-2::-1] == sorted(up[:-1])
    first = run(*Q, *ages, "--sort", "-age_approx", "--limit", "2").rows
    assert [row["isic_id"] for row in first] == ["ISIC_0000012", "ISIC_0000011"]
    old = run(*Q, "images", "--limit", "1", "--columns", "age, benign_malignant", "--json")
    assert old.rows == [{"age_approx": 35, "diagnosis_1": "Benign"}]
    assert "benign_malignant is read as diagnosis_1" in old.err


@given(
    st.lists(st.none() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text()),
    st.booleans(),
    st.none() | st.integers(1, 5),
)
def test_any_values_can_be_sorted(values: list[int | Decimal | str | None], down: bool, limit: int | None) -> None:
    """Whatever a column holds, sorting loses nothing, cuts where it is told, and has what is missing at the end."""
    found = [row[0] for row in sort_rows(["x"], [[value] for value in values], "-x" if down else "x", limit)]
    assert len(found) == min(len(values), limit or len(values))
    if limit is None:
        assert sorted(map(repr, found)) == sorted(map(repr, values))
    there = sum(value is not None for value in values)
    assert all(value is None for value in found[there:])
    assert all(value is not None for value in found[: min(there, len(found))])


def test_ids(run: Run, tmp_path: Path) -> None:
    """A list of ids gives its images in its order; ids that the archive does not have are named, with 3."""
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xef\xbb\xbfimage_name,target\r\nISIC_0000009,1\r\nISIC_0000002,0\r\nISIC_0000009,1\r\n")
    assert run(*Q, "images", "--ids", str(path), "--id-only").lines == ["ISIC_0000009", "ISIC_0000002"]
    path.write_text("ISIC_0000002\nISIC_0000099\nISIC_0000001\n")
    done = run(*Q, "images", "--ids", str(path), "--id-only")
    assert (done.code, done.lines) == (3, ["ISIC_0000002", "ISIC_0000001"])
    assert "1 of 3 images: ISIC_0000099" in done.err
    chosen = run(*Q, "images", "--ids", str(path), "--id-only", "--collection", "9")
    assert (chosen.code, chosen.lines) == (3, [])
    assert "1 of 3 images: ISIC_0000099" in chosen.err
    path.write_text("ISIC_0000002\nISIC_0000009\n")
    chosen = run(*Q, "images", "--ids", str(path), "--id-only", "--query", "diagnosis_1:Malignant")
    assert (chosen.code, chosen.lines) == (0, ["ISIC_0000009"])
    path.write_text("ISIC_0000002\nfoo\n")
    assert run(*Q, "images", "--ids", str(path)).code == 78


def test_many_ids_are_few_questions(run: Run, filled: Archive, tmp_path: Path) -> None:
    """Ids are asked for a hundred at a time, and no address gets too long."""
    path = tmp_path / "list.txt"
    path.write_text("".join(f"ISIC_{number:07d}\n" for number in range(1, 251)))
    done = run(*Q, "images", "--ids", str(path), "--id-only", "--query", "diagnosis_1:Malignant")
    assert done.lines == [f"ISIC_{number:07d}" for number in (3, 6, 9, 12)]
    asked = [each.params["query"] for each in filled.site.asked if "query" in each.params]
    assert 3 <= len({each for each in asked if "Malignant" in each}) <= 4
    assert len(set(asked)) <= 7
    assert max(map(len, asked)) < 4000


def test_conditions_of_older_tools(run: Run, tmp_path: Path) -> None:
    """A file of conditions selects as it did, with a note on names that changed."""
    path = tmp_path / "conditions.json"
    path.write_text('[["meta.clinical.benign_malignant", "==", "malignant"], ["pixelsX", ">", 300]]')
    done = run(*Q, "images", "--conditions", str(path), "--id-only")
    assert done.lines == ["ISIC_0000006", "ISIC_0000009", "ISIC_0000012"]
    assert "is read as diagnosis_1" in done.err
    path.write_text("[[")
    assert run(*Q, "images", "--conditions", str(path)).code == 78


def test_size_of_what_is_decided_here(run: Run, filled: Archive) -> None:
    """With a condition of ours images are listed and summed up; else the site says."""
    serve(filled)
    assert run(*Q, "size", "--where", "pixels_x > 1000", "--json").rows == [{"images": 2, "bytes": 2023}]
    assert run(*Q, "size", "--json").rows == [{"images": 12, "bytes": 12345}]


FAILURES: dict[str, tuple[list[str], int, str]] = {
    "nothing selected": (["images"], 64, "--all"),
    "unknown collection": (["images", "--collection", "c77"], 78, "did you mean C7"),
    "unknown number": (["images", "--collection", "99"], 78, "does not exist"),
    "bad query as CSV": (["images", "--query", "sex = male", "--csv"], 78, "ranges"),
    "bad query": (["images", "--query", "sex = male"], 78, "ranges"),
    "old field in a query": (["images", "--query", "benign_malignant:malignant"], 78, "diagnosis_1"),
    "unknown field in where": (["images", "--where", "sexx = 'male'"], 78, "did you mean sex"),
    "old field in where": (["images", "--where", "benign_malignant = 'malignant'"], 78, "diagnosis_1 has Benign"),
    "statements in where": (["images", "--where", "1=1); DROP TABLE x"], 78, "--where"),
    "where that fails for a row": (["images", "--where", "isic_id::BIGINT > 1"], 78, "--where"),
    "unknown column": (["images", "--limit", "1", "--columns", "sexx"], 64, "did you mean sex"),
    "unknown sort": (["collections", "--sort", "nam"], 64, "did you mean name"),
    "no id": (["image", "ISIC_1"], 64, "no ISIC id"),
    "no lesion": (["lesions", "../x"], 64, "no id of ISIC"),
    "no file": (["images", "--ids", "/nowhere/at.all"], 78, "No such file"),
    "contradiction": (["collections", "--refresh", "--offline"], 64, "contradict"),
    "nothing kept": (["collections", "--offline"], 69, "not in the cache"),
    "no base URL": (["collections", "--base-url", "ftp://x"], 78, "base URL"),
    "no token": (["me"], 77, "no token"),
    "no staff": (["studies"], 77, "needs an account"),
    "no staff for annotations": (["annotations"], 77, "needs an account"),
    "no duration": (["collections", "--expire", "soon"], 64, "no"),
    "unknown command": (["everything"], 64, "No such command"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), FAILURES.values(), ids=FAILURES)
def test_failures_have_their_codes(run: Run, filled: Archive, arguments: list[str], code: int, text: str) -> None:
    """What cannot be answered prints nothing on stdout, says what to do, and ends with its code."""
    serve(filled)
    done = run(*Q, *arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert "Traceback" not in done.err


def test_mistakes_cost_the_site_nothing(run: Run, filled: Archive) -> None:
    """Conditions, columns and files are checked before the first request."""
    for wrong in (["--where", "sexx = 1"], ["--columns", "sexx"], ["--sort", "sexx"], ["--ids", "/nowhere"]):
        assert run(*Q, "images", "--all", *wrong).code in {64, 78}
    assert filled.site.asked == []


def test_a_site_that_is_down_is_69(run: Run) -> None:
    """Nobody listens at the port: told with the code for sites, after the patience that was asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        done = run(*Q, "collections", "--base-url", f"http://127.0.0.1:{port}/api/v2", "--wait", "1 s")
    assert (done.code, done.out) == (69, "")
    assert "\n  -> " in done.err


def test_answers_are_kept(run: Run, filled: Archive) -> None:
    """A second time nothing is asked, offline neither; `--refresh` asks anew; what is kept for no time is not kept."""
    first = run(*Q, "collections", "--csv").out
    asked = len(filled.site.asked)
    assert run(*Q, "collections", "--csv").out == run(*Q, "collections", "--csv", "--offline").out == first
    assert len(filled.site.asked) == asked
    assert run(*Q, "collections", "--csv", "--refresh").out == first
    assert len(filled.site.asked) > asked
    asked = len(filled.site.asked)
    run(*Q, "images", "--limit", "1", "--expire", "0")
    run(*Q, "images", "--limit", "1", "--expire", "0")
    assert len(filled.site.asked) == asked + 2


def test_a_token_shows_more(run: Run, filled: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of a private file or of a variable shows what is not public, without signatures; a wrong one warns."""
    filled.private, filled.good = private_rows(), {"tok-good"}
    ids = ("images", "--all", "--id-only")
    assert len(run(*Q, *ids).lines) == 12
    path = tmp_path / "token"
    path.write_text("tok-good\n")
    monkeypatch.setenv("MEDHAUL_ISIC_CREDENTIALS", str(path))
    path.chmod(0o644)
    assert run(*Q, *ids).code == 77
    path.chmod(0o600)
    assert len(run(*Q, *ids).lines) == 13
    (row,) = run(*Q, "images", "--query", "public:false", "--json").rows
    assert "SECRET" not in str(row)
    assert row["files.full.url"] == SIGNED.partition("?")[0]
    assert [each["email"] for each in run(*Q, "me", "--json").rows] == ["a@b.c"]
    monkeypatch.delenv("MEDHAUL_ISIC_CREDENTIALS")
    monkeypatch.setenv("MEDHAUL_ISIC_TOKEN", "tok-bad")
    done = run(*Q, "me")
    assert done.code == 77
    assert "tok-bad" not in done.err


def test_an_empty_answer_is_no_error(run: Run) -> None:
    """Where nothing matches the list is empty, which is told on stderr, with what may be wrong."""
    done = run(*Q, "images", "--query", "sex:Male", "--json")
    assert (done.code, done.out) == (0, "[]\n")
    assert "nothing matches" in done.err
    assert "sex is one of male; female" in done.err
    assert run(*Q, "images", "--where", "false", "--csv").code == 0


def test_waiting_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits long is told so, on stderr."""
    monkeypatch.setattr(query_isic_options, "SILENCE", 0.0)
    assert "waiting for the site" in run(*Q, "images", "--all").err


def test_hostile_words(run: Run) -> None:
    """CSV keeps a value in its cell; a table shows direction marks as what they are."""
    arguments = ("images", "--query", "isic_id:ISIC_0000005", "--columns", "attribution")
    (row,) = csv.DictReader(io.StringIO(run(*Q, *arguments, "--csv").out, newline=""))
    assert row["attribution"] == HOSTILE
    table = run(*Q, *arguments).out
    assert "\u202e" not in table
    assert "\\u202eevil" in table


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal(filled: Archive, tmp_path: Path, width: int) -> None:
    """No line is wider than the terminal, and no form sends it control characters."""
    for form in ("--table", "--csv", "--json"):
        out = ask_on_terminal(width, ["images", "--all", form], filled.site.origin, tmp_path)
        assert "\x1b" not in out
        assert "ISIC_0000012" in out
        lines = out.replace("\r\n", "\n").splitlines()
        assert all(line.isprintable() for line in lines)
        if form == "--table":
            assert max(map(len, lines)) <= width


def ask_on_terminal(width: int, arguments: list[str], url: str, folder: Path) -> str:
    """Run a query with a terminal as its stdout, and return what that got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    environment |= {"XDG_CACHE_HOME": str(folder), "MEDHAUL_ISIC_BASE_URL": f"{url}{API}"}
    command = [sys.executable, "-m", "pipeline.cli.main", "query", "isic", *arguments]
    got = b""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the other end has been closed
                break
            if not data:
                break
            got += data
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 0
    os.close(ours)
    return got.decode()


def test_help_and_lazy_imports() -> None:
    """Help and lists of fields load no HTTP library and no database."""
    code = (
        "import sys; from pipeline.cli.main import run_cli\n"
        "for words in (['--help'], ['isic', '--help'], ['isic', 'images', '--help'], ['isic', 'fields']):\n"
        "    assert run_cli(['query', *words]) == 0\n"
        "print([name for name in ('requests', 'requests_cache', 'duckdb', 'pydicom') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\n  isic " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
