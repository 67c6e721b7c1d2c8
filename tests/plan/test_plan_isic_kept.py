"""What a plan of the ISIC Archive says of answers that it did not ask for today, and of files that are not there."""

from __future__ import annotations

import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import run_cli
from pipeline.errors import ConfigError
from pipeline.sources.idc_index import IdcIndex
from tests.plan.test_plan_isic import _archive, make_config, plan, read_items  # noqa: F401 -- the fixture
from tests.sources.isic_archive import API, image_rows, listed, said
from tests.sources.isic_kit import SearchArchive
from tests.sources.test_tcia_http import _site  # noqa: F401 -- the fixture

DAY = 86_400.0


def show_day(seconds: float) -> str:
    """The day of a moment, in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).date().isoformat()


def test_a_fresh_plan_says_its_day(archive: SearchArchive, tmp_path: Path) -> None:
    """What was all listed now is as of today, and nothing was kept."""
    archive.rows = image_rows(350)
    made = plan(make_config(archive, tmp_path, {}), tmp_path, day=time.time())
    assert made.notes[0] == f"the ISIC Archive has no data releases: listed on {show_day(time.time())} (UTC)"
    assert "kept" not in " ".join(made.notes)


def test_a_plan_from_kept_pages_says_so(archive: SearchArchive, tmp_path: Path) -> None:
    """The note has the days between which pages came, how many are old, and how to ask anew."""
    archive.rows = image_rows(350)
    config = make_config(archive, tmp_path, {})
    plan(config, tmp_path, dry_run=True)
    begun, later = time.time(), time.time() + 20 * DAY
    for _, record in archive.rows[:100]:
        record["metadata"]["clinical"]["sex"] = "female"  # corrected upstream
    asked = len(archive.site.asked)
    made = plan(config, tmp_path, day=later)
    assert listed(archive, asked) == ["next", "count"]
    assert made.notes[0] == (
        f"the ISIC Archive has no data releases: listed between {show_day(begun)} and {show_day(later)} (UTC); "
        "3 of 4 pages are KEPT FROM EARLIER LISTINGS, and what changed since about their images is not seen "
        "(medhaul plan --refresh asks anew)"
    )


def test_refresh_asks_for_all_pages(archive: SearchArchive, tmp_path: Path) -> None:
    """`refresh` sees what was corrected since, says the day of all pages, and leaves them to the next plan."""
    archive.rows = image_rows(350)
    config = make_config(archive, tmp_path, {})
    plan(config, tmp_path, dry_run=True)
    archive.rows[0][1]["metadata"]["clinical"]["sex"] = "female"
    later = time.time() + 20 * DAY
    asked = len(archive.site.asked)
    made = plan(config, tmp_path, day=later, refresh=True)
    assert listed(archive, asked) == ["first", "next", "next", "next", "count"]
    assert read_items(made)[0][1]["metadata.clinical.sex"] == "female"
    assert made.notes[0].endswith(f"listed on {show_day(later)} (UTC)")
    assert plan(config, tmp_path, day=later).reused


def test_plan_refresh(archive: SearchArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """`medhaul plan` tells of kept pages, and `--refresh` asks for them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive.rows = image_rows(250)
    config = tmp_path / "c.toml"
    config.write_text(
        f'[run]\nname = "r"\n[storage]\nroot = "{tmp_path}/runs"\n[select.isic]\n'
        f'[sources.isic]\nbase_url = "{archive.site.origin}/api/v2"\n'
    )
    assert run_cli(["plan", str(config), "--dry-run"]) == 0
    assert "KEPT" not in capsys.readouterr().out
    assert run_cli(["plan", str(config), "--dry-run"]) == 0
    assert "2 of 3 pages are KEPT FROM EARLIER LISTINGS" in capsys.readouterr().out
    asked = len(archive.site.asked)
    assert run_cli(["plan", str(config), "--dry-run", "--refresh", "--json"]) == 0
    assert "KEPT" not in json.loads(capsys.readouterr().out)["notes"][0]
    assert listed(archive, asked) == ["first", "next", "next", "count"]


def test_the_help_tells_what_refresh_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """What it means for each of the sources."""
    assert run_cli(["plan", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--refresh" in said
    assert all(name in said for name in ("ISIC", "TCIA", "IDC"))


def test_images_without_a_thumbnail_are_told(archive: SearchArchive, tmp_path: Path) -> None:
    """Who wants thumbnails learns how many images have none; who does not is not bothered."""
    for place in (2, 4):
        archive.rows[place][1]["files"]["thumbnail_256"] = {"url": None, "size": None}
    made = plan(make_config(archive, tmp_path, {"thumbnails": True}), tmp_path, dry_run=True)
    assert "2 of 30 images have no thumbnail: ISIC_0000003, ISIC_0000005" in made.notes
    made = plan(make_config(archive, tmp_path, {}), tmp_path, dry_run=True)
    assert "thumbnail" not in " ".join(made.notes)


FACETS: dict[str, Any] = {
    "diagnosis_3": {
        "buckets": [{"key": "Melanoma Invasive", "doc_count": 3}, {"key": "Nevus", "doc_count": 9}],
        "sum_other_doc_count": 4,
    }
}


def test_a_value_that_cannot_be_checked_is_a_note(archive: SearchArchive, tmp_path: Path) -> None:
    """Where the site lists its most frequent values only, the plan goes on and says what it could not check."""
    archive.site.on(f"{API}images/facets/", said(200, FACETS))
    archive.rows[3][1]["metadata"]["clinical"]["diagnosis_3"] = "melanoma invasive"
    path = tmp_path / "c.json"
    path.write_text('[["diagnosis", "==", "melanoma invasive"]]')
    made = plan(make_config(archive, tmp_path, {"conditions": str(path)}), tmp_path, dry_run=True)
    (note,) = [note for note in made.notes if "most frequent" in note]
    assert "diagnosis_3" in note
    assert "'Melanoma Invasive'" in note


@pytest.mark.parametrize("index", ["http://127.0.0.1:9/idc_index.parquet", "/nowhere/idc_index.parquet"])
def test_refresh_of_the_idc_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    """An index that is a URL is asked for anew before it is planned from; a file is what it is."""
    opened: list[tuple[str, bool]] = []

    class Index:
        def close(self) -> None:
            pass

    def record(source: Any, *, refresh: bool = False) -> Index:
        opened.append((source.index, refresh))
        if refresh:
            return Index()
        raise ConfigError("enough")

    monkeypatch.setattr(IdcIndex, "open", record)
    config = tmp_path / "c.toml"
    config.write_text(
        f'[run]\nname = "r"\n[storage]\nroot = "{tmp_path}/runs"\n[select.idc]\ncollections = ["x"]\n'
        f'content = "original"\n[sources.idc]\nindex = "{index}"\n'
    )
    assert run_cli(["plan", str(config), "--dry-run", "--refresh"]) == 78
    assert opened == [(index, True), (index, False)][not index.startswith("http") :]
