"""`medhaul metadata isic` and `query isic`: kept pages, few questions, values, full disks, signals, bad lists."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.cli.isic_cli_kit import Run, _filled, _run  # noqa: F401 -- the fixtures
from tests.sources.isic_archive import API, Archive, image_rows, listed, said
from tests.sources.test_tcia_http import Asked, Handler, _site  # noqa: F401 -- the fixture

M = ("metadata", "isic")
KEPT = "2 of 3 pages of lists are kept from"


# -- kept pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [M, ("query", "isic", "images", "--all", "--id-only"), ("query", "isic", "size", "--where", "pixels_x > 0")],
    ids=["metadata", "images", "size"],
)
def test_kept_pages_are_told(run: Run, filled: Archive, command: tuple[str, ...]) -> None:
    """Who gets what was listed before is told so on stderr, with the way to ask anew; `--refresh` asks for all."""
    filled.rows = image_rows(250)
    first = run(*command)
    assert (first.code, first.err) == (0, "")
    again = run(*command)
    assert again.out == first.out
    assert KEPT in again.err
    assert "--refresh" in again.err
    asked = len(filled.site.asked)
    assert run(*command, "--refresh").err == ""
    assert listed(filled, asked) == ["first", "next", "next", "count"]


# -- few questions -------------------------------------------------------------------------------------------------


@pytest.fixture(name="mapping")
def _mapping(tmp_path: Path) -> Path:
    """Columns that need the collections of images."""
    path = tmp_path / "m.csv"
    path.write_text("id,isic_id\nin,collection_ids\n")
    return path


@pytest.fixture(name="large")
def _large(filled: Archive) -> Archive:
    """A thousand images, of which two collections have many."""
    filled.rows = image_rows(1000)
    filled.collections.clear()
    filled.add_collection(7, [f"ISIC_{number:07d}" for number in range(1, 701)])
    filled.add_collection(9, [f"ISIC_{number:07d}" for number in range(2, 1001)])
    return filled


def test_a_few_images_need_few_questions(run: Run, large: Archive, mapping: Path) -> None:
    """`--count` looks up the collections of the images that are written, not whole collections."""
    some = ("--columns", str(mapping), "--collection", "7", "--collection", "9")
    done = run(*M, *some, "--count", "3")
    assert done.table == [
        {"id": "ISIC_0000001", "in": "7"},
        {"id": "ISIC_0000002", "in": "7; 9"},
        {"id": "ISIC_0000003", "in": "7; 9"},
    ]
    assert len(large.site.asked) < 10
    whole = run(*M, *some)
    assert run(*M, *some, "--count", "250").table == whole.table[:250]


def test_listed_ids_need_few_questions(run: Run, large: Archive, mapping: Path, tmp_path: Path) -> None:
    """So does a list of ids."""
    (tmp_path / "ids.txt").write_text("ISIC_0000900\nISIC_0000001\n")
    some = ("--columns", str(mapping), "--collection", "9", "--collection", "7", "--ids", str(tmp_path / "ids.txt"))
    assert run(*M, *some).table == [{"id": "ISIC_0000900", "in": "9"}, {"id": "ISIC_0000001", "in": "7"}]
    assert len(large.site.asked) < 12


# -- values of conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [M, ("query", "isic", "images")], ids=["metadata", "images"])
def test_values_of_conditions(run: Run, filled: Archive, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A condition that no image can meet is an error with the nearest value; a doubtful one is told loudly."""
    nevus, melanoma = {"key": "Nevus", "doc_count": 8}, {"key": "Melanoma, NOS", "doc_count": 4}
    facets: dict[str, Any] = {"diagnosis_3": {"buckets": [nevus, melanoma], "sum_other_doc_count": 0}}
    filled.site.on(f"{API}images/facets/", said(200, facets))
    path = tmp_path / "c.json"
    path.write_text('[["diagnosis_3", "==", "nevus"]]')
    done = run(*command, "--conditions", str(path))
    assert (done.code, done.out) == (78, "")
    assert "diagnosis_3 is never 'nevus'" in done.err
    assert "did you mean Nevus?" in done.err
    facets["diagnosis_3"]["sum_other_doc_count"] = 2
    filled.site.on(f"{API}images/facets/", said(200, facets))
    done = run(*command, "--conditions", str(path), "--refresh")
    assert done.code == 0
    assert "most frequent" in done.err
    path.write_text('[["diagnosis_3", "==", "Nevus"]]')
    done = run(*command, "--conditions", str(path))
    assert (done.code, done.err) == (0, "")


# -- lists, disks, signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [M, ("query", "isic", "images"), ("query", "isic", "size")])
def test_a_list_without_ids(run: Run, filled: Archive, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A header alone is no list, and not a selection of nothing."""
    path = tmp_path / "ids.csv"
    path.write_text("isic_id\n")
    done = run(*command, "--ids", str(path))
    assert (done.code, done.out) == (78, "")
    assert "lists no images" in done.err
    assert not filled.site.asked


def medhaul(archive: Archive, tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the program itself, which asks the archive."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MEDHAUL")}
    environ |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "MEDHAUL_ISIC_BASE_URL": archive.site.origin + API}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
    return subprocess.Popen(command, cwd=root, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    "command", [M, (*M, "--fields"), ("query", "isic", "images", "--all", "--csv")], ids=["table", "fields", "images"]
)
def test_a_full_disk(filled: Archive, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Standard output that takes no more is the fault of the disk: 73, in one line."""
    filled.rows = image_rows(150)
    words = " ".join((sys.executable, "-m", "pipeline.cli.main", *command, "--from", "rows"))
    words = words if "--fields" in command else words.removesuffix(" --from rows")
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "c"), "MEDHAUL_ISIC_BASE_URL": filled.site.origin + API}
    done = subprocess.run(
        ["sh", "-c", f"exec {words} > /dev/full"], cwd=Path(__file__).parents[2], env=environ, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 73
    assert b"standard output: No space left" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr


def test_a_folder_that_takes_no_file(run: Run) -> None:
    """A table that cannot be there is 73, whatever the system calls the reason."""
    done = run(*M, "-o", "/proc/x.csv")
    assert done.code == 73
    assert "/proc/x.csv" in done.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_nothing_behind(filled: Archive, tmp_path: Path, number: signal.Signals) -> None:
    """Told to stop, the command takes its unfinished file away and ends with 75."""
    filled.rows = image_rows(350)
    pages = iter(range(100))
    reached, good = threading.Event(), filled.list_images

    def slow(handler: Handler, asked: Asked) -> None:
        if next(pages) == 2:
            reached.set()
            filled.site.closing.wait(30)
        good(handler, asked)

    filled.site.on(f"{API}images/", slow)
    out = tmp_path / "out"
    process = medhaul(filled, tmp_path, *M, "-o", str(out / "x.csv"))
    try:
        assert reached.wait(30)
        assert [path.suffix for path in out.iterdir()] == [".tmp"]
        process.send_signal(number)
        _, said_ = process.communicate(timeout=30)
    finally:
        filled.site.closing.set()
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert b"interrupted" in said_
    assert list(out.iterdir()) == []
