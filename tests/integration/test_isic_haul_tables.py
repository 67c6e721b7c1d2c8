"""What lies beside an archive of ISIC images: the table that `medhaul metadata isic` writes, whom to name, licences."""

from __future__ import annotations

import csv
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from haul import Haul, run_medhaul

from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_data import CHALLENGE, CLINIC, COLLECTIONS, DERMOSCOPY, IsicDemo, build_isic
from pipeline.demo.isic_records import IsicArchive, IsicImage
from pipeline.demo.isic_zip import render_attributions
from pipeline.reduce.isic_tables import NOBODY
from pipeline.sources.api_body import clean_text

CHOSEN = (CHALLENGE, DERMOSCOPY, CLINIC)
EXTRA = ["collection_ids", "collections", "archive_path", "archive_thumbnail_path"]
HOSTILE = (
    "=cmd|' /C calc'!A0",
    "Klinik A\nKlinik B\n\nAnonymous\n    9 images: CC-0",
    "a\x00b\x1b[31mc\r\nd\u2028e",
    "\U0001f469\u200d\u2695\ufe0f Hautklinik \U0001f3e5",
    '"quoted", with; commas',
    "\u202eevil",
    "@SUM(1+1)",
    "-1",
    "",
    "\uff1dwide",
)


class IsicHaul(Haul):
    """A haul of three collections that overlap, with thumbnails."""

    def __init__(self, folder: Path, site: IsicSite, *, shards: int = 1, **archive: Any) -> None:
        super().__init__(folder, "packaged", site.url, archive=archive, shards=shards)
        del self.settings["select.idc"]
        self.settings["select.isic"] = {"collections": [str(number) for number in CHOSEN], "thumbnails": True}
        self.settings["sources.isic"] = {"base_url": site.api_url}

    def beside(self, suffix: str) -> dict[str, bytes]:
        """Files beside the archives that end so, by name."""
        return {path.name: path.read_bytes() for path in sorted(self.run.archives.glob(f"*.{suffix}"))}

    def paths(self) -> set[str]:
        """Paths of all files in the archives."""
        return {member.path for member in self.members()}


@pytest.fixture(scope="module", name="demo")
def _demo(tmp_path_factory: pytest.TempPathFactory) -> IsicDemo:
    """The demo data: 60 images."""
    return build_isic(tmp_path_factory.mktemp("isic"))


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer of another test's site, which may have had the same port."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(name="site")
def _site(demo: IsicDemo) -> Iterator[IsicSite]:
    """A site that serves them; the files name who the API names."""
    images = [msgspec.structs.replace(image, own_attribution="") for image in demo.archive.images]
    with IsicSite(IsicArchive(images, COLLECTIONS)) as running:
        yield running


def chosen(site: IsicSite) -> list[IsicImage]:
    """The public images of the collections."""
    return [image for image in site.archive.images if image.public and set(image.collections) & set(CHOSEN)]


def cells(data: bytes) -> list[list[str]]:
    """A table's cells, as anybody would read them."""
    return list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))


def records(data: bytes) -> list[dict[str, str]]:
    """A table's rows by column."""
    head, *rows = cells(data)
    assert all(len(row) == len(head) for row in rows)
    return [dict(zip(head, row, strict=True)) for row in rows]


def read_metadata(site: IsicSite, target: Path, *options: object) -> bytes:
    """The table that `medhaul metadata isic` writes of the same selection."""
    named = [part for number in CHOSEN for part in ("--collection", number)]
    ended = run_medhaul("metadata", "isic", *named, "-o", target, "--base-url", site.api_url, *options)
    assert ended.code == 0, ended.err
    return target.read_bytes()


def entries(text: str) -> list[tuple[str, str]]:
    """Entries of attribution.txt: who is named, and what is said of the images."""
    assert text.endswith("\n")
    found = [tuple(entry.split("\n")) for entry in text.removesuffix("\n").split("\n\n")]
    assert all(len(entry) == 2 for entry in found)
    return found  # type: ignore[return-value]


def test_the_table_is_that_of_the_metadata_command(site: IsicSite, tmp_path: Path) -> None:
    """Header and every row are byte for byte those of `metadata isic`, followed by collections and paths."""
    haul = IsicHaul(tmp_path / "haul", site, group_by="run", name="skin")
    haul.all()
    made = haul.beside("metadata.csv")["skin.metadata.csv"]
    told = read_metadata(site, tmp_path / "told.csv")
    theirs, ours = told.decode().splitlines(), made.decode().splitlines()
    assert ours[0] == ",".join([theirs[0], *EXTRA])
    assert len(ours) == len(theirs) == len(chosen(site)) + 1
    by_id = {line[:12]: line for line in ours}
    assert len(by_id) == len(ours)
    assert all(by_id[line[:12]].startswith(f"{line},") for line in theirs)
    mapping = tmp_path / "map.csv"
    mapping.write_text("id,isic_id\ncollection_ids,collection_ids\ncollections,collections\n")
    named = {row["id"]: row for row in records(read_metadata(site, tmp_path / "named.csv", "--columns", mapping))}
    rows = records(made)
    for row in rows:
        assert (row["collection_ids"], row["collections"]) == tuple(named[row["isic_id"]].values())[1:]
    assert Counter(row["collection_ids"].count(";") for row in rows)[1] > 10
    assert {row["isic_id"]: row["attribution"] for row in rows if row["attribution"].startswith("'=")}


def test_the_paths_are_those_of_the_members(site: IsicSite, tmp_path: Path) -> None:
    """Each row's paths are members of the archive it lies beside, and no member is without its row."""
    haul = IsicHaul(tmp_path / "haul", site, group_by="collection")
    haul.all()
    found = []
    for name, data in haul.beside("metadata.csv").items():
        with tarfile.open(haul.run.archives / name.replace(".metadata.csv", ".tar.xz"), "r:xz") as tar:
            inside = {each for each in tar.getnames() if not each.startswith(".medhaul/")}
        rows = records(data)
        assert {row[column] for row in rows for column in EXTRA[2:]} == inside
        found += [row["isic_id"] for row in rows]
    assert sorted(found) == sorted(image.isic_id for image in chosen(site))
    kinds = {image.isic_id: image.kind for image in chosen(site)}
    assert set(kinds.values()) == {"jpg", "png", "tif"}
    for data in haul.beside("metadata.csv").values():
        for row in records(data):
            assert row["archive_path"].endswith(f"/{row['isic_id']}.{kinds[row['isic_id']]}")
            assert row["archive_thumbnail_path"].endswith(f"/{row['isic_id']}.thumbnail.jpg")


def test_without_thumbnails_the_columns_are_the_same(site: IsicSite, tmp_path: Path) -> None:
    """The column of their paths is there, and empty."""
    haul = IsicHaul(tmp_path / "haul", site, group_by="run", name="skin")
    haul.settings["select.isic"] |= {"thumbnails": False, "limit": 3}
    haul.all()
    rows = records(haul.beside("metadata.csv")["skin.metadata.csv"])
    assert list(rows[0])[-4:] == EXTRA
    assert [row["archive_thumbnail_path"] for row in rows] == ["", "", ""]
    assert {row["archive_path"] for row in rows} == haul.paths()


def test_attribution_and_licences(site: IsicSite, tmp_path: Path) -> None:
    """Attributions are in the site's own order with right counts; each licence in use has its text, URL and DOIs."""
    haul = IsicHaul(tmp_path / "haul", site, group_by="run", name="skin")
    haul.all()
    images = chosen(site)
    found = entries(haul.beside("attribution.txt")["skin.attribution.txt"].decode())
    places = [site.archive.images.index(image) for image in images]
    assert "\n\n".join(name for name, _ in found) == render_attributions(site.archive.images, places)
    for name, said in found:
        licences = Counter(image.licence for image in images if image.attribution == name)
        assert said.startswith(f"    {licences.total()} images: ")
        shown = [f"{count} {each}" for each, count in licences.items()] if len(licences) > 1 else list(licences)
        assert sorted(said.partition(": ")[2].split(", ")) == sorted(shown)
    used = Counter(image.licence for image in images)
    for name, data in haul.beside("txt").items():
        if ".licence." in name:
            assert data.startswith(f"{name.split('.')[2]}\n\nThis stands for the licence's text".encode())
    assert len(haul.beside("licence.*.txt")) == len(used) == 3
    rows = {row["licence"]: row for row in records(haul.beside("licences.csv")["skin.licences.csv"])}
    assert {name: int(row["items"]) for name, row in rows.items()} == used
    assert all(row["uris"].startswith("https://creativecommons.org/") for row in rows.values())
    assert rows["CC-0"]["dois"] == "10.34970/100001; 10.34970/100002"
    cited = haul.beside("citations.txt")["skin.citations.txt"].decode()
    count = sum(CLINIC in image.collections for image in images)
    assert f"10.34970/100002 ({count} items)\nDemo Clinic, Ünïcode & more. International Skin" in cited
    haul.sums()  # SHA256SUMS has them all


def test_hostile_attributions(demo: IsicDemo, tmp_path: Path) -> None:
    """Whatever an attribution is, it stays one entry and one cell, and no spreadsheet runs it."""
    images = [
        msgspec.structs.replace(image, attribution=HOSTILE[place % len(HOSTILE)], own_attribution="")
        for place, image in enumerate(demo.archive.images)
    ]
    with IsicSite(IsicArchive(images, COLLECTIONS)) as site:
        haul = IsicHaul(tmp_path / "haul", site, group_by="run", name="skin")
        haul.all()
        told = read_metadata(site, tmp_path / "told.csv").decode().splitlines()
        counts = Counter(clean_text(image.attribution) or NOBODY for image in chosen(site))
    found = entries(haul.beside("attribution.txt")["skin.attribution.txt"].decode())
    assert Counter({name: int(said.split()[0]) for name, said in found}) == counts
    assert len(found) == len(HOSTILE)
    assert found[-1][0] == NOBODY
    data = haul.beside("metadata.csv")["skin.metadata.csv"]
    by_id = {line[:12]: line for line in data.decode().splitlines()}
    assert all(by_id[line[:12]].startswith(f"{line},") for line in told)
    rows = records(data)
    assert not [row for row in rows if row["attribution"][:1] in set("=+@\uff1d\t\r\n")]
    assert Counter(row["attribution"].removeprefix("'") or NOBODY for row in rows) == counts


def test_two_runs_write_the_same_bytes(site: IsicSite, tmp_path: Path) -> None:
    """All that lies beside is the same for few shards and for many."""
    found = []
    for shards in (1, 3):
        haul = IsicHaul(tmp_path / str(shards), site, shards=shards)
        haul.all()
        found.append((len(haul.shards), haul.sums(), haul.beside("csv") | haul.beside("txt")))
    assert found[0][1:] == found[1][1:]
    assert found[0][0] < found[1][0]
    assert sum(name.endswith(".metadata.csv") for name in found[0][2]) == 3


def test_what_failed_is_in_no_table_but_its_own(site: IsicSite, tmp_path: Path) -> None:
    """Neither table nor attribution counts an image that did not come; once it has come, all is as if it had always."""
    haul = IsicHaul(tmp_path / "haul", site, group_by="run", name="skin")
    haul.plan()
    gone = chosen(site)[7].isic_id
    site.withdraw(gone)
    assert haul.task().code == 3
    assert haul.reduce("--allow-partial").code == 3
    count = len(chosen(site))
    rows = records(haul.beside("metadata.csv")["skin.metadata.csv"])
    assert gone not in {row["isic_id"] for row in rows}
    assert len(rows) == count - 1
    named = entries(haul.beside("attribution.txt")["skin.attribution.txt"].decode())
    assert sum(int(said.split()[0]) for _, said in named) == count - 1
    (failed,) = records(haul.beside("failed.csv")["skin.failed.csv"])
    assert (failed["id"], failed["reason"]) == (gone, "withdrawn")
    assert {row[column] for row in rows for column in EXTRA[2:]} == haul.paths()
    site.view.withdrawn = frozenset()
    haul.finish()
    assert haul.beside("failed.csv") == {}
    whole = IsicHaul(tmp_path / "whole", site, group_by="run", name="skin")
    whole.all()
    assert haul.beside("csv") | haul.beside("txt") == whole.beside("csv") | whole.beside("txt")
