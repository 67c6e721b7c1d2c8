"""`medhaul query tcia`: every question, what is printed, what is written, and how it fails."""

from __future__ import annotations

import csv
import datetime as dt
import fcntl
import io
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import query_tcia_options
from pipeline.cli.main import run_cli
from pipeline.cli.query_table import choose_columns, render_csv, render_table
from pipeline.cli.query_tcia_options import choose_server, combine, make_filter, render_manifest, strip_markup
from pipeline.demo.faults import Fault
from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import CART, ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.errors import ConfigError, UsageError
from pipeline.sources.tcia_body import parse_manifest
from pipeline.sources.tcia_client import TciaClient
from pipeline.sources.tcia_rows import Series, sql_columns
from pipeline.sources.tcia_search import CRITERIA, SearchResult

ROOT = Path(__file__).parents[2]
HOSTILE = '=HYPERLINK("x"),\u202eevil; \u2066"'


class Done(msgspec.Struct, frozen=True):
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, object]]:
        """Its JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.out.splitlines()


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data, in which one series has a hostile description."""
    built = build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")
    series = tuple(
        msgspec.structs.replace(one, description=HOSTILE) if one.uid == built.named["single"] else one
        for one in built.archive.series
    )
    return msgspec.structs.replace(built, archive=msgspec.structs.replace(built.archive, series=series))


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them."""
    with NbiaSite(demo.archive, users={"ann": "secret"}) as running:
        yield running


@pytest.fixture
def run(site: NbiaSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a query on it, with a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDHAUL_TCIA_BASE_URL", f"{site.url}/nbia-api/services")

    def run_query(*arguments: str) -> Done:
        code = run_cli(["query", "tcia", *arguments])
        return Done(code, *capsys.readouterr())

    return run_query


QUESTIONS: dict[str, tuple[list[str], str, int]] = {
    "collections": (["collections"], "collection", 4),
    "modalities": (["modalities", "--collection", "demo-ct-mr"], "Modality", 3),
    "modalities of a part": (["modalities", "--body-part", "CHEST", "--collection", ONLY_NBIA], "Modality", 1),
    "bodyparts": (["bodyparts", "--collection", ONLY_NBIA, "--modality", "CT"], "BodyPartExamined", 1),
    "manufacturers": (["manufacturers", "--collection", ONLY_NBIA], "Manufacturer", 1),
    "patients": (["patients", "--collection", ONLY_NBIA], "PatientID", 2),
    "patients by name": (["patients", "--patient", "DEMO-001"], "PatientID", 2),
    "patients by modality": (["patients", "--collection", ONLY_NBIA, "--modality", "PT"], "PatientID", 1),
    "studies": (["studies", "--patient", "NBIA-001"], "StudyInstanceUID", 1),
    "series": (["series", "--collection", ONLY_NBIA], "SeriesInstanceUID", 6),
    "series by all": (
        [
            *("series", "--collection", ONLY_NBIA, "--modality", "MR", "--body-part", "BRAIN"),
            *("--manufacturer", "Demo Imaging", "--model", "Phantom One", "--patient", "NBIA 002"),
        ],
        "SeriesInstanceUID",
        1,
    ),
    "several values": (
        ["series", "--collection", ONLY_NBIA, "--collection", "DEMO-NC", "--modality", "MR", "--modality", "PT"],
        "SeriesInstanceUID",
        4,
    ),
    "cart": (["cart", CART], "SeriesInstanceUID", 5),
    "descriptions": (["descriptions", "--collection", ONLY_NBIA], "description", 1),
    "counts of collections": (["counts", "collection"], "count", 4),
    "counts of modalities": (["counts", "modality", "--collection", ONLY_NBIA], "value", 3),
    "counts of body parts": (["counts", "body-part", "--modality", "PT"], "value", 1),
    "counts of manufacturers": (["counts", "manufacturer", "--collection", ONLY_NBIA], "value", 1),
    "counts of species": (["counts", "species"], "value", 1),
    "search": (["search", "--modality", "PT"], "PatientID", 2),
    "search by days": (
        ["search", "--collection", "DEMO-CT-MR", "--released", "2024-01-01", "2024-12-31"],
        "series",
        1,
    ),
    "search for counts": (["search", "--modality", "PT", "--counts"], "count", 5),
    "doi": (["doi", "https://doi.org/10.5072/medhaul.demo-nbia-only.cc-by-3.0"], "collection", 1),
    "doi's series": (
        ["doi", "10.5072/medhaul.demo-nbia-only.cc-by-3.0", "--series"],
        "SeriesInstanceUID",
        6,
    ),
    "new patients": (["new-patients", "--collection", ONLY_NBIA, "--since", "2024-05-06"], "PatientID", 2),
    "new studies": (
        ["new-studies", "--collection", ONLY_NBIA, "--since", "2024-05-06", "--patient", "NBIA-001"],
        "StudyInstanceUID",
        1,
    ),
    "updated": (["updated", "--since", "2024-05-06"], "SeriesInstanceUID", 7),
    "limited": (["series", "--all", "--limit", "3"], "SeriesInstanceUID", 3),
    "size": (["size", "--collection", ONLY_NBIA], "bytes", 1),
    "columns": (["columns"], "type", len(sql_columns(Series))),
}


@pytest.mark.parametrize(("arguments", "column", "count"), QUESTIONS.values(), ids=QUESTIONS)
def test_every_question_in_every_form(run: Run, arguments: list[str], column: str, count: int) -> None:
    """Each command answers as table, CSV and JSON with the same rows, and asks the site no second time."""
    found = run(*arguments, "--json")
    assert (found.code, found.err) == (0, "")
    assert len(found.rows) == count
    assert all(column in row for row in found.rows)
    table = run(*arguments)
    assert (table.code, len(table.lines)) == (0, count + 1)
    read = list(csv.DictReader(io.StringIO(run(*arguments, "--csv").out, newline="")))
    assert len(read) == count
    for row, record in zip(read, found.rows, strict=True):
        value = record[column]
        assert row[column] == ("" if value is None else str(value))


@pytest.mark.parametrize("api", ["v4", "v1"])
def test_either_version_of_the_api(run: Run, site: NbiaSite, api: str) -> None:
    """`--api` pins the version, and the series are the same."""
    found = run("series", "--collection", ONLY_NBIA, "--api", api, "--uids")
    assert (found.code, len(found.lines)) == (0, 6)
    assert {name.partition("/")[0] for name in site.calls()} == {api}


def test_questions_about_one_series(run: Run, demo: NbiaDemo) -> None:
    """Its instances with their MD5s, its elements, all its metadata."""
    series = next(one for one in demo.archive.series if one.uid == demo.named["acquisitions"])
    found = run("sops", series.uid, "--md5", "--json")
    assert {row["SOPInstanceUID"]: row["MD5"] for row in found.rows} == {
        file.sop_instance_uid: file.md5 for file in series.files
    }
    assert len(run("sops", series.uid, "--csv").lines) == 13
    tags = run("tags", series.uid, "--json").rows
    assert {"element": "(0020,000e)", "name": "Series Instance UID", "data": series.uid} in [
        {**row, "element": str(row["element"]).lower()} for row in tags
    ]
    (metadata,) = run("metadata", series.uid, "--json").rows
    assert (metadata["SeriesInstanceUID"], metadata["ImageCount"]) == (series.uid, 12)
    assert run("metadata", series.uid, "--where", "SliceThickness = '99'", "--json").rows == []


def test_metadata_of_a_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """UIDs come from standard input as `series --uids` prints them; what the site does not know is told, with 3."""
    listed = run("series", "--collection", ONLY_NBIA, "--uids").out
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed))
    assert run("metadata", "-", "--uids").out.splitlines() == listed.splitlines()
    found = run("metadata", listed.splitlines()[0], "1.2.3", "--json")
    assert (found.code, len(found.rows)) == (3, 1)
    assert "does not know 1 of 2 series: 1.2.3" in found.err


def test_metadata_that_nobody_could_tell_of(run: Run, site: NbiaSite, demo: NbiaDemo) -> None:
    """A series at which the site fails is not one that it does not know: both are told, each with its reason."""
    known, hidden = demo.named["single"], demo.named["tail-a"]
    site.faults.set("nbia/v4/getSeriesMetadata*", Fault(kind="hide-rows", names=(hidden,)))
    site.faults.set("nbia/v1/getSeriesMetaData*", Fault(kind="error-500"))
    found = run("metadata", known, hidden, "--json")
    assert (found.code, len(found.rows)) == (3, 1)
    assert f"nobody could tell of 1 of 2 series: {hidden}: " in found.err
    assert "500" in found.err
    assert "does not know" not in found.err
    assert "withdrawn" not in found.err
    assert "try again" in found.err


def test_any_day_may_be_asked_from(run: Run) -> None:
    """The first day of the calendar is as good as any other before the site was."""
    for command in (
        ["updated"],
        ["new-patients", "--collection", ONLY_NBIA],
        ["new-studies", "--collection", ONLY_NBIA],
    ):
        for api in ("v4", "v1"):
            codes = {run(*command, "--since", day, "--api", api, "--json").out for day in ("0001-01-01", "1999-12-31")}
            assert len(codes) == 1
            assert len(json.loads(codes.pop())) > 0


def test_size(run: Run, demo: NbiaDemo) -> None:
    """What is selected is summed up; a recount by the site agrees."""
    public = [one for one in demo.archive.series if not one.restricted and one.collection == ONLY_NBIA]
    (total,) = run("size", "--collection", ONLY_NBIA, "--json").rows
    assert total["bytes"] == sum(one.size for one in public)
    assert (total["series"], total["files"], total["unstated"]) == (6, sum(len(one.files) for one in public), 0)
    assert run("size", "--collection", ONLY_NBIA, "--recount", "--json").rows == [total]


def test_size_that_is_not_stated(run: Run, site: NbiaSite) -> None:
    """A series without a size is counted as such, rather than as empty without a word."""
    site.faults.set("nbia/*/getSeries/*", Fault(kind="drop-keys", names=("FileSize",)))
    (total,) = run("size", "--collection", ONLY_NBIA, "--json").rows
    assert (total["bytes"], total["unstated"]) == (0, 6)
    assert run("size", "--collection", ONLY_NBIA).lines[1].split()[-1] == "6"


def test_where(run: Run) -> None:
    """A condition over the rows chooses among them, NULL included, and works for every command that gives series."""
    some = run("series", "--collection", ONLY_NBIA, "--where", "ImageCount > 3 AND SeriesDescription IS NULL", "--json")
    assert [row["ImageCount"] for row in some.rows] == [4]
    assert len(run("series", "--collection", ONLY_NBIA, "--where", "true", "--uids").lines) == 6
    assert len(run("updated", "--since", "2024-05-06", "--where", "Modality = 'PT'", "--uids").lines) == 1
    assert len(run("cart", CART, "--where", "ImageCount > 100", "--uids").lines) == 0
    assert run("size", "--all", "--where", "collection = 'DEMO-NC'", "--json").rows[0]["series"] == 1


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 9), st.none() | st.sampled_from(["CT", "it's", "MR"])), max_size=30)
)
def test_where_keeps_what_python_would(values: list[tuple[int | None, str | None]]) -> None:
    """The filter keeps just the rows for which the condition is true, in their order, whatever is unknown."""
    rows = [
        Series(SeriesInstanceUID=str(number), ImageCount=count, Modality=kind)
        for number, (count, kind) in enumerate(values)
    ]
    kept = make_filter("ImageCount >= 5 OR modality = 'it''s'", Series)(rows)
    assert kept == [row for row in rows if (row.ImageCount or 0) >= 5 or row.Modality == "it's"]


def test_where_of_many_rows() -> None:
    """Rows are told apart over all portions in which the database takes them."""
    rows = [Series(SeriesInstanceUID=str(number), ImageCount=number % 7) for number in range(25_000)]
    assert make_filter("ImageCount = 3", Series)(rows) == rows[3::7]


def test_columns_are_chosen(run: Run) -> None:
    """`--columns` chooses columns and their order in every form; an unknown one is refused with the nearest."""
    arguments = ("series", "--collection", "DEMO-NC", "--columns", "modality, PatientID", "--columns", "FileSize")
    assert run(*arguments).lines[0].split() == ["Modality", "PatientID", "FileSize"]
    assert run(*arguments, "--csv").lines[0] == "Modality,PatientID,FileSize"
    assert list(run(*arguments, "--json").rows[0]) == ["Modality", "PatientID", "FileSize"]
    refused = run("series", "--collection", "DEMO-NC", "--columns", "Modalty")
    assert (refused.code, refused.out) == (64, "")
    assert "did you mean Modality?" in refused.err


def test_uids_and_manifest(run: Run, site: NbiaSite, tmp_path: Path) -> None:
    """UIDs are printed alone; the manifest has TCIA's header and the same UIDs."""
    listed = run("series", "--collection", ONLY_NBIA, "--uids").lines
    path = tmp_path / "new" / "only.tcia"
    done = run("series", "--collection", ONLY_NBIA, "--manifest", str(path))
    assert (done.code, done.out) == (0, "")
    assert f"{path}: 6 series, " in done.err
    head = path.read_text().splitlines()
    assert head[0] == f"downloadServerUrl={site.url}/nbia-download/servlet/DownloadServlet"
    assert head[1:3] == ["includeAnnotation=true", "noOfrRetry=4"]
    assert head[3].startswith("databasketId=manifest-")
    assert head[4:6] == ["manifestVersion=3.0", "ListOfSeriesToDownload="]
    assert head[6:] == parse_manifest(path.read_bytes()) == listed


def test_search_gives_lists_too(run: Run, tmp_path: Path) -> None:
    """A search can be printed as UIDs and written as a manifest; pages are told of."""
    path = tmp_path / "found.tcia"
    done = run("search", "--collection", ONLY_NBIA, "--manifest", str(path), "--uids")
    assert sorted(done.lines) == sorted(parse_manifest(path.read_bytes()))
    assert len(done.lines) == 6
    page = run("search", "--modality", "CT", "--limit", "2", "--start", "2")
    assert len(page.lines) == 3
    assert "3 to 4 of 6 patients" in page.err


def test_search_criteria_reach_the_site(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every criterion has an option, and ranges are pairs."""
    asked: list[dict[str, object]] = []

    def note(_: TciaClient, criteria: dict[str, object], **__: int) -> SearchResult:
        asked.append(criteria)
        return SearchResult(patients=(), total=0)

    monkeypatch.setattr(TciaClient, "search", note)
    words = [word for name in CRITERIA for word in (f"--{name.replace('_', '-')}", f"x-{name}")]
    ranges = ["--age", "40", "60", "--slice-thickness", "0", "1.5", "--pixel-spacing", "0.5", "1"]
    assert run("search", *words, *ranges, "--released", "2020-01-01", "2020-12-31").code == 0
    (criteria,) = asked
    assert criteria == {name: [f"x-{name}"] for name in CRITERIA} | {
        "age": ["40", "60"],
        "slice_thickness": ["0", "1.5"],
        "pixel_spacing": ["0.5", "1"],
        "released": [dt.date(2020, 1, 1), dt.date(2020, 12, 31)],
    }


def test_no_manifest_of_nothing(run: Run, tmp_path: Path) -> None:
    """A manifest that would be empty is refused, and not written."""
    path = tmp_path / "none.tcia"
    done = run("series", "--collection", ONLY_NBIA, "--where", "ImageCount > 999", "--manifest", str(path))
    assert done.code == 78
    assert not path.exists()


def test_what_is_no_uid_gets_into_no_list(run: Run, site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """A site that gives words in the place of UIDs does not write lines of a manifest."""
    bad = msgspec.structs.replace(demo.archive.series[0], uid="1.2=x --rm")
    with NbiaSite(msgspec.structs.replace(demo.archive, series=(bad,))) as other:
        path = tmp_path / "bad.tcia"
        base = ("--base-url", f"{other.url}/nbia-api/services")
        done = run("series", "--all", "--manifest", str(path), *base)
        assert (done.code, path.exists()) == (78, False)
        assert run("series", "--all", "--uids", *base).out == ""
        assert "1.2=x --rm" in run("series", "--all", *base).out


def test_image(run: Run, demo: NbiaDemo, tmp_path: Path) -> None:
    """One image comes verified, byte for byte; what is another's is refused."""
    series = next(one for one in demo.archive.series if one.uid == demo.named["single"])
    (file,) = series.files
    path = tmp_path / "one.dcm"
    done = run("image", series.uid, file.sop_instance_uid, str(path))
    assert (done.code, done.out) == (0, f"{path}\n")
    assert path.read_bytes() == demo.archive.read(file)
    other = run("image", series.uid, "1.2.3", str(tmp_path / "other.dcm"), "--wait", "30 s")
    assert other.code == 78
    assert "1.2.3 is none of the 1 images" in other.err


def test_image_of_wrong_bytes(run: Run, site: NbiaSite, demo: NbiaDemo, tmp_path: Path) -> None:
    """An image that does not have the site's MD5 is not written, and the command ends as with a failed item."""
    series = next(one for one in demo.archive.series if one.uid == demo.named["single"])
    site.faults.set("nbia/*/getSingleImage/*", Fault(kind="flip", at=0.9))
    path = tmp_path / "one.dcm"
    done = run("image", series.uid, series.files[0].sop_instance_uid, str(path))
    assert (done.code, path.exists()) == (3, False)
    assert "checksum" in done.err


def test_an_empty_answer_is_no_error(run: Run) -> None:
    """Where certainly nothing matches the list is empty, which is told on stderr."""
    done = run("updated", "--since", "2030-01-01", "--json")
    assert (done.code, done.out, done.err) == (0, "[]\n", "nothing matches\n")


FAILURES: dict[str, tuple[list[str], int, str]] = {
    "unknown collection": (["series", "--collection", "Demo NBIA Onli"], 78, "did you mean Demo NBIA Only"),
    "unknown cart": (["cart", "no such"], 78, "no shared cart"),
    "unknown column in where": (["series", "--all", "--where", "Modalit = 'CT'"], 78, "did you mean Modality"),
    "statements in where": (["series", "--all", "--where", "1=1); DROP TABLE x"], 78, "--where"),
    "where that fails for a row": (["series", "--all", "--where", "PatientID::BIGINT > 1"], 78, "--where"),
    "no selection": (["series"], 64, "--all"),
    "no selection for size": (["size"], 64, "--all"),
    "no criterion": (["search"], 64, "needs a criterion"),
    "no collection": (["new-patients", "--since", "2024-01-01"], 64, "--collection"),
    "no date": (["updated"], 64, "--since"),
    "wrong date": (["updated", "--since", "2024-13-01"], 64, "does not match"),
    "no UID": (["sops", "x;y"], 64, "no DICOM UID"),
    "no limit": (["series", "--all", "--limit", "0"], 64, "--limit"),
    "no duration": (["series", "--all", "--expire", "soon"], 64, "no"),
    "contradiction": (["series", "--all", "--refresh", "--offline"], 64, "contradict"),
    "modality without collection": (["patients", "--modality", "CT"], 64, "--collection"),
    "two collections to count": (
        ["counts", "modality", "--collection", "a", "--collection", "b"],
        64,
        "once",
    ),
    "unknown command": (["everything"], 64, "No such command"),
    "nothing kept": (["collections", "--offline"], 69, "not in the cache"),
    "no base URL": (["collections", "--base-url", "ftp://x"], 78, "base URL"),
}


@pytest.mark.parametrize(("arguments", "code", "said"), FAILURES.values(), ids=FAILURES)
def test_failures_have_their_codes(run: Run, arguments: list[str], code: int, said: str) -> None:
    """What cannot be answered prints nothing on stdout, says what to do, and ends with its code."""
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_wrong_where_costs_the_site_nothing(run: Run, site: NbiaSite) -> None:
    """A condition is checked before the first request."""
    run("series", "--all", "--where", "Modalit = 'CT'")
    assert site.calls() == {}


def test_a_site_that_is_down_is_69(run: Run) -> None:
    """Nobody listens at the port: told with the code for sites, after the patience that was asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        done = run("collections", "--base-url", f"http://127.0.0.1:{port}/nbia-api/services", "--wait", "1 s")
    assert (done.code, done.out) == (69, "")
    assert "\n  -> " in done.err


def test_waiting_is_told(run: Run, site: NbiaSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits long is told so, on stderr; who does not, is not."""
    site.faults.set("nbia/v4/getCollectionValues*", Fault(kind="delay", seconds=1.0))
    assert "waiting" not in run("collections").err
    monkeypatch.setattr(query_tcia_options, "SILENCE", 0.05)
    assert "waiting for the site" in run("collections", "--refresh").err


def test_answers_are_kept(run: Run, site: NbiaSite) -> None:
    """A second time nothing is asked, offline neither; `--refresh` asks anew; what is kept for no time is not kept."""
    asked = "v4/getSeries"
    arguments = ("series", "--collection", ONLY_NBIA, "--uids")
    first = run(*arguments).out
    assert run(*arguments).out == run(*arguments, "--offline").out == first
    assert site.calls() == {asked: 1}
    assert run(*arguments, "--refresh").out == first
    assert site.calls() == {asked: 2}
    for times in (3, 4):
        assert len(run("series", "--collection", "DEMO-NC", "--expire", "0", "--uids").lines) == 1
        assert site.calls() == {asked: times}


def test_credentials_come_from_a_file(
    run: Run, site: NbiaSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that only its owner reads logs in; one that others can read is refused with 77, as are wrong ones."""
    path = tmp_path / "tcia.toml"
    path.write_text('username = "ann"\npassword = "secret"\n')
    monkeypatch.setenv("MEDHAUL_TCIA_CREDENTIALS", str(path))
    path.chmod(0o644)
    assert run("collections").code == 77
    path.chmod(0o600)
    assert run("collections", "--csv").code == 0
    assert site.calls()["oauth/token"] == 1
    path.write_text('username = "ann"\npassword = "wrong-one"\n')
    refused = run("collections", "--refresh")
    assert refused.code == 77
    assert "wrong-one" not in refused.err


def test_hostile_words(run: Run, demo: NbiaDemo) -> None:
    """CSV keeps a value in its cell and unchanged; a table shows direction marks as what they are."""
    arguments = ("series", "--series", demo.named["single"])
    (row,) = csv.DictReader(io.StringIO(run(*arguments, "--csv").out, newline=""))
    assert row["SeriesDescription"] == HOSTILE
    table = run(*arguments).out
    assert "\u202e" not in table
    assert "\\u202eevil" in table
    assert run(*arguments, "--json").rows[0]["SeriesDescription"] == HOSTILE


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal(site: NbiaSite, demo: NbiaDemo, tmp_path: Path, width: int) -> None:
    """No line is wider than the terminal, UIDs are whole, and no form sends it control characters."""
    for form in ("--table", "--csv", "--json"):
        arguments = ["series", "--collection", ONLY_NBIA, form]
        out = ask_on_terminal(width, arguments, site.url, tmp_path)
        assert "\x1b" not in out
        assert demo.named["tail-a"] in out
        lines = out.replace("\r\n", "\n").splitlines()
        assert all(line.isprintable() for line in lines)
        if form == "--table":
            assert max(map(len, lines)) <= width


def ask_on_terminal(width: int, arguments: list[str], url: str, folder: Path) -> str:
    """Run a query with a terminal as its stdout, and return what that got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    environment |= {"XDG_CACHE_HOME": str(folder), "MEDHAUL_TCIA_BASE_URL": f"{url}/nbia-api/services"}
    command = [sys.executable, "-m", "pipeline.cli.main", "query", "tcia", *arguments]
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
    """`query --help` lists both sites; help and columns load no HTTP library and no database."""
    code = (
        "import sys; from pipeline.cli.main import run_cli\n"
        "for words in (['--help'], ['tcia', '--help'], ['tcia', 'series', '--help'], ['tcia', 'columns']):\n"
        "    assert run_cli(['query', *words]) == 0\n"
        "print([name for name in ('requests', 'requests_cache', 'duckdb', 'pydicom') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\n  idc " in done.stdout
    assert "\n  tcia " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_values_combine() -> None:
    """Values of one option are alternatives, options must all hold, and what was given twice is asked once."""
    assert list(combine({"a": ("1", "2", "1"), "b": (), "c": ("3",)})) == [{"a": "1", "c": "3"}, {"a": "2", "c": "3"}]
    assert list(combine({"a": ()})) == [{}]


def test_manifest_server() -> None:
    """The manifest names the host that was asked, and TCIA's where the address says nothing of it."""
    assert choose_server("https://a.org/x/nbia-api/services") == "https://a.org/x/nbia-download/servlet/DownloadServlet"
    assert choose_server("https://a.org/api").startswith("https://nbia.cancerimagingarchive.net/")
    assert parse_manifest(render_manifest(["1.2", "1.3"], "x", 7).encode()) == ["1.2", "1.3"]


def test_markup_is_stripped() -> None:
    """A description's tags, scripts and entities become plain text of one line."""
    assert strip_markup("<p>A&nbsp;&amp; B</p>\n<script>alert(1)</script><b>C</b>") == "A & B C"


def test_unknown_columns_are_refused() -> None:
    """Also one that is like none."""
    with pytest.raises(UsageError, match="no column 'zzz'"):
        choose_columns(["a", "b"], ["zzz"])


def test_conditions_are_checked_at_once() -> None:
    """A condition that is none never gets as far as rows."""
    with pytest.raises(ConfigError):
        make_filter("ImageCount", Series)


def test_cells_of_every_kind() -> None:
    """Nothing is an empty cell, yes and no have words, sizes units, a series number may be negative."""
    header = ["FileSize", "SeriesNumber", "Phantom", "names", "value"]
    row = [1_500_000, -3, True, ("a", "b"), None]
    assert list(render_table(header, [row], 0))[1].split() == ["1.5", "MB", "-3", "yes", "a,", "b"]
    assert list(render_csv(header, [row]))[1] == "1500000,-3,true,a; b,"


@pytest.mark.parametrize("command", [("collections",), ("series", "--collection", ONLY_NBIA, "--csv")])
def test_a_full_disk(site: NbiaSite, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Standard output that takes no more is the fault of the disk: 73, in one line."""
    words = [sys.executable, "-m", "pipeline.cli.main", "query", "tcia", *command]
    words += ["--base-url", f"{site.url}/nbia-api/services"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, stdout=full, stderr=subprocess.PIPE,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 73
    assert b"standard output: No space left" in done.stderr
    assert b"Traceback" not in done.stderr
