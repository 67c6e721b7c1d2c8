"""What tests of the ISIC commands share: a small archive that understands queries, and how commands are run on it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cli import main
from pipeline.cli.main import run_cli
from pipeline.sources.isic_rows import flatten_image, read_image
from tests.sources.isic_archive import API, Archive, image, image_rows
from tests.sources.isic_search import BadQueryError, parse_query
from tests.sources.test_tcia_http import Site

HOSTILE = '=HYPERLINK("http://x"),\u202eevil; "quoted"'
SIGNED = "https://content.isic-archive.com/a/b.jpg?Expires=1&Signature=SECRET&Key-Pair-Id=K"


class Done(msgspec.Struct, frozen=True):
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.out.splitlines()

    @property
    def table(self) -> list[dict[str, str]]:
        """Its CSV."""
        return list(csv.DictReader(io.StringIO(self.out, newline="")))


Run = Callable[..., Done]


class Judged(dict[str, Callable[[dict[str, Any]], bool]]):
    """Every query that the site could read, with what decides it."""

    def __contains__(self, query: object) -> bool:
        try:
            parse_query(str(query))
        except BadQueryError:
            return False
        return True

    def __getitem__(self, query: str) -> Callable[[dict[str, Any]], bool]:
        judge = parse_query(query)
        return lambda record: judge(flatten_image(read_image(record)))


def fill(archive: Archive) -> None:
    """Make 12 images of which some are malignant, large, hostile or new, and three collections."""
    archive.rows = image_rows(12)
    for number, (_, record) in enumerate(archive.rows, 1):
        clinical = record["metadata"]["clinical"]
        clinical["diagnosis_1"] = "Malignant" if number % 3 == 0 else "Benign"
        clinical["diagnosis_3"] = "Melanoma, NOS" if number % 3 == 0 else "Nevus"
        clinical["age_approx"] = 30 + 5 * number
        record["metadata"]["acquisition"]["pixels_x"] = 100 * number
        if number == 2:
            del clinical["age_approx"], clinical["mel_thick_mm"]
        if number == 5:
            record["attribution"] = HOSTILE
            clinical["sparkle"] = "new field"
        if number == 6:
            clinical["melanocytic"] = True
            clinical["diagnosis_confirm_type"] = "histopathology"
    names = [record["isic_id"] for _, record in archive.rows]
    archive.add_collection(7, names[:8])
    archive.add_collection(9, names[6:])
    archive.add_collection(11, [])
    archive.queries = Judged()


def private_rows() -> list[tuple[str, dict[str, Any]]]:
    """An image that is not public, with signed URLs."""
    ((position, record),) = image_rows(1, start=50)
    record["files"]["full"]["url"] = SIGNED
    record["public"] = False
    record["metadata"]["clinical"]["note"] = SIGNED
    return [(position, record)]


@pytest.fixture(name="filled")
def _filled(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An archive with 12 images, which commands ask by default, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDHAUL_ISIC_BASE_URL", site.origin + API)
    for name in ("MEDHAUL_ISIC_TOKEN", "MEDHAUL_ISIC_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(main.COMMANDS, "metadata", "pipeline.cli.metadata:metadata")
    monkeypatch.setitem(main.SHORT_HELP, "metadata", "Tables of metadata.")
    archive = Archive(site)
    fill(archive)
    return archive


@pytest.fixture(name="run")
def _run(filled: Archive, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command."""

    def run(*arguments: str) -> Done:
        code = run_cli(list(arguments))
        return Done(code, *capsys.readouterr())

    return run


__all__ = ["HOSTILE", "SIGNED", "Done", "Run", "_filled", "_run", "fill", "image", "private_rows"]
