"""What a plan of ISIC images knows of their collections and addresses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.plan.isic import IsicPlanSource
from pipeline.sources.isic_meta import read_meta
from tests.plan.test_plan_isic import make_config
from tests.sources.isic_archive import image_rows
from tests.sources.isic_kit import SearchArchive
from tests.sources.test_tcia_http import _site  # noqa: F401 -- the fixture


@pytest.fixture(name="archive")
def _archive(site: Any) -> SearchArchive:
    """Thirty images. Collections: 1 has 21 to 30, 2 all of them, 3 those from 25 on."""
    made = SearchArchive(site)
    made.rows = image_rows(30)
    for number, first in ((1, 21), (2, 1), (3, 25)):
        made.add_collection(number, [f"ISIC_{each:07d}" for each in range(first, 31)])
    made.add_licences()
    return made


def select(archive: SearchArchive, root: Path, named: str = "", **wanted: Any) -> dict[str, dict[str, Any]]:
    """The rows of what is selected, by ISIC id."""
    config = make_config(archive, root, {"collections": ["1", "2", "3"], **wanted})
    with IsicPlanSource(config, named_url=named, cache_dir=root / "cache") as source:
        items = [item for _, item in source.select()]
        return {item.id: dict(zip(source.columns, msgspec.json.decode(item.meta), strict=True)) for item in items}


def test_a_limit_hides_no_membership(archive: SearchArchive, tmp_path: Path) -> None:
    """Where a list was left in its middle, images that were taken before it and stand in its rest are in it, too."""
    rows = select(archive, tmp_path, limit=15)
    assert sorted(rows) == [f"ISIC_{number:07d}" for number in (*range(1, 6), *range(21, 31))]
    for name, row in rows.items():
        number = int(name[5:])
        listed = [one for one, first in ((1, 21), (2, 1), (3, 25)) if number >= first]
        assert row["collection_ids"] == " ".join(map(str, listed))
    whole = select(archive, tmp_path)
    assert {name: row for name, row in whole.items() if name in rows} == rows


def test_each_doi_of_an_image_is_known(archive: SearchArchive, tmp_path: Path) -> None:
    """An image of several collections has the DOIs of all of them, and all are cited."""
    plain = archive.collection
    archive.collections.clear()
    archive.collection = staticmethod(  # type: ignore[method-assign, assignment]
        lambda number: plain(number) | ({"doi": f"10.1/{number}", "doi_url": None} if number != 2 else {})
    )
    for number, first in ((1, 21), (2, 1), (3, 25)):
        archive.add_collection(number, [f"ISIC_{each:07d}" for each in range(first, 31)])
    config = make_config(archive, tmp_path, {"collections": ["1", "2", "3"]})
    with IsicPlanSource(config, cache_dir=tmp_path / "cache") as source:
        found = {item.id: read_meta(source.columns, item.meta).dois for _, item in source.select()}
        cited = source.citations()
    assert found["ISIC_0000030"] == ("10.1/1", "10.1/3")
    assert found["ISIC_0000021"] == ("10.1/1",)
    assert found["ISIC_0000001"] == ()
    assert list(cited) == ["10.1/1", "10.1/3"]


def test_the_demo_s_address_is_in_no_row(archive: SearchArchive, tmp_path: Path) -> None:
    """Its port is another each time; elsewhere URLs are as listed."""
    for _, record in archive.rows:
        for name in ("full", "thumbnail_256"):
            record["files"][name]["url"] = f"{archive.site.origin}/x/{name}.jpg"
    rows = select(archive, tmp_path, named="demo")
    assert archive.site.origin not in json.dumps(rows)
    assert {row["files.full.url"] for row in rows.values()} == {"demo:/x/full.jpg"}
    rows = select(archive, tmp_path)
    assert {row["files.full.url"] for row in rows.values()} == {f"{archive.site.origin}/x/full.jpg"}
