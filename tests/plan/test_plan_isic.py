"""Planning from the ISIC Archive: each image once, in order, the same each time, whatever else is selected."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cli.main import run_cli
from pipeline.config import parse_config
from pipeline.config_check import isic_path_problems
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest
from pipeline.model import IsicLocation, Item
from pipeline.plan.cut import cut_frames
from pipeline.plan.isic import ADDED, RELEASE, IsicPlanSource, plain_url
from pipeline.plan.planner import Plan, plan_run
from pipeline.reduce.tables import write_tables
from pipeline.settings import DEFAULT_PATH, Config
from pipeline.sources.isic_table import COLUMNS
from tests.sources.isic_archive import API, image, image_rows
from tests.sources.isic_kit import SearchArchive
from tests.sources.test_tcia_http import _site  # noqa: F401 -- the fixture


@pytest.fixture(name="archive")
def _archive(site: Any) -> SearchArchive:
    """Thirty images; collections 7 (1-20) and 5 (11-30)."""
    made = SearchArchive(site)
    made.rows = image_rows(30)
    for number, (_, record) in enumerate(made.rows, 1):
        record["copyright_license"] = ("CC-0", "CC-BY", "CC-BY-NC")[number % 3]
        record["attribution"] = "Anonymous" if number % 2 else "A, B"
        record["metadata"]["clinical"]["age_approx"] = number
    made.add_collection(7, [f"ISIC_{number:07d}" for number in range(1, 21)])
    made.add_collection(5, [f"ISIC_{number:07d}" for number in range(11, 31)])
    made.add_licences()
    return made


def make_config(site: SearchArchive, root: Path, select: dict[str, Any], /, **changes: Any) -> Config:
    """A config for the archive."""
    data: dict[str, Any] = {
        "run": {"name": "r"},
        "storage": {"root": str(root / "runs")},
        "select": {"isic": select},
        "sources": {"isic": {"base_url": site.site.origin + API.rstrip("/")}},
    }
    return parse_config(data | changes, "test")


def plan(
    config: Config, cache: Path, *, dry_run: bool = False, day: float = 0.0, named: str = "", refresh: bool = False
) -> Plan:
    """Plan a run."""
    options: dict[str, Any] = {"named_url": named, "cache_dir": cache / "cache", "refresh": refresh}
    with IsicPlanSource(config, **options, clock=lambda: day) as source:
        return plan_run(config, source, dry_run=dry_run, on_progress=lambda _: None)


def read_items(made: Plan) -> list[tuple[Item, dict[str, Any]]]:
    """The items of a run's manifest, each with its meta by column."""
    assert made.run is not None
    manifest = Manifest(made.run)
    entries = [entry.item for _, entry in manifest.all_entries(range(made.shards)) if entry.piece == 0]
    return [(item, dict(zip(manifest.index.columns, msgspec.json.decode(item.meta), strict=True))) for item in entries]


def test_an_image_of_two_collections_is_stored_once(archive: SearchArchive, tmp_path: Path) -> None:
    """It goes to the first one of the config that has it, and its row lists both."""
    made = plan(make_config(archive, tmp_path, {"collections": ["C7", "5"]}), tmp_path)
    items = read_items(made)
    assert [item.path for item, _ in items] == sorted(item.path for item, _ in items)
    assert {item.id: item.path for item, _ in items} == {
        f"ISIC_{number:07d}": f"{'C7' if number <= 20 else 'C5'}/ISIC_{number:07d}" for number in range(1, 31)
    }
    for item, row in items:
        assert list(row) == [*COLUMNS, *ADDED]
        number = int(item.id[5:])
        listed = [name for name, there in (("7", number <= 20), ("5", number >= 11)) if there]
        assert row["collection_ids"].split() == listed
        assert json.loads(row["collections"]) == [f"C{name}" for name in listed]
        assert row["collection"] == item.path.partition("/")[0]
        assert row["files.full.url"] == item.location.urls[0]
    assert any("10 images are in several of the collections" in note for note in made.notes)
    other = plan(make_config(archive, tmp_path / "o", {"collections": ["5", "7"]}), tmp_path)
    assert {item.path for item, _ in read_items(other) if item.path.startswith("C7")} == {
        f"C7/ISIC_{number:07d}" for number in range(1, 11)
    }


def test_an_item(archive: SearchArchive, tmp_path: Path) -> None:
    """An item has the archive's URL, size and licence, its files' names, and a row of all that is known."""
    archive.rows[0][1]["metadata"]["clinical"]["new_field"] = 7
    archive.rows[1][1]["files"]["full"] = {"url": "https://h.example/x/ISIC_0000002.PNG", "size": None}
    made = plan(make_config(archive, tmp_path, {"thumbnails": True}), tmp_path)
    (item, row), (second, beside), *_ = read_items(made)
    base = archive.site.origin + API.rstrip("/")
    bucket = "https://isic-archive.s3.amazonaws.com"
    assert item.location == IsicLocation(
        base,
        (f"{bucket}/images/ISIC_0000001.jpg", f"{bucket}/thumbnails/ISIC_0000001_thumbnail.jpg"),
        (".jpg", ".thumbnail.jpg"),
    )
    assert (item.id, item.path, item.files, item.bytes) == ("ISIC_0000001", "isic/ISIC_0000001", 2, 1011)
    assert item.licence == row["copyright_license"] == "CC-BY"
    assert row["LicenseURI"] == "https://creativecommons.org/licenses/by/4.0/"
    assert row["attribution"] == "Anonymous"
    assert row["metadata.clinical.mel_thick_mm"] == "0.55"
    assert (row["collection"], row["collection_ids"], row["collections"]) == ("isic", None, None)
    assert (row["metadata.clinical.new_field"], beside["metadata.clinical.new_field"]) == (7, None)
    assert (second.bytes, second.location.names[0]) == (-1, ".png")
    assert (made.release, made.unknown_sizes, made.missing) == (RELEASE, 1, 0)


def test_the_same_answers_are_the_same_manifest(archive: SearchArchive, tmp_path: Path) -> None:
    """Whatever the day, and whether a collection is called by name or number, the manifest is the same."""
    first = plan(make_config(archive, tmp_path, {"collections": ["C5", "C7"]}), tmp_path, day=0)
    again = plan(make_config(archive, tmp_path, {"collections": ["5", "7"]}), tmp_path / "x", day=1e9)
    assert again.reused
    assert again.manifest_sha256 == first.manifest_sha256
    assert "listed on 1970-01-01" in first.notes[0]
    assert "listed on 2001-09-09" in again.notes[0]


@pytest.mark.parametrize("group_by", ["collection", "licence", "run"])
def test_groups(archive: SearchArchive, tmp_path: Path, group_by: str) -> None:
    """Items are grouped as the config says, and within a group in order of path."""
    shape = {"group_by": group_by, "name": "all" if group_by == "run" else "{group}"}
    config = make_config(archive, tmp_path, {"collections": ["5", "7"]}, archive=shape)
    with IsicPlanSource(config, cache_dir=tmp_path / "cache") as source:
        found = list(source.select())
        for group, item in found:
            row = dict(zip(source.columns, msgspec.json.decode(item.meta), strict=True))
            assert group == {"collection": row["collection"], "licence": item.licence, "run": "r"}[group_by]
    assert [(group, item.path) for group, item in found] == sorted((group, item.path) for group, item in found)


def test_signed_urls_leave_their_signature(archive: SearchArchive, tmp_path: Path) -> None:
    """Of an image that is not public no signature gets into the run, only a mark that it needs one."""
    archive.rows = []
    secret = image(40) | {"public": False}
    for name in ("full", "thumbnail_256"):
        secret["files"][name]["url"] = f"https://content.example/{name}.jpg?Expires=1&Signature=SECRET&Key-Pair-Id=K"
    secret["files"]["mosaic"] = {"url": "https://content.example/m.tif?Signature=SECRET"}
    archive.private = [("2020", secret)]
    archive.good = {"good"}
    token = tmp_path / "token"
    token.write_text("good")
    token.chmod(0o600)
    sources = {"isic": {"base_url": archive.site.origin + API.rstrip("/"), "credentials": str(token)}}
    made = plan(make_config(archive, tmp_path, {"thumbnails": True}, sources=sources), tmp_path)
    ((item, row),) = read_items(made)
    assert item.location.urls == ("https://content.example/full.jpg?", "https://content.example/thumbnail_256.jpg?")
    assert row["files.full.url"] == "https://content.example/full.jpg"
    assert row["files.mosaic.url"] == "https://content.example/m.tif"
    assert made.run is not None
    for path in [*made.run.path.rglob("*"), *(tmp_path / "cache").rglob("*")]:
        assert not path.is_file() or (b"SECRET" not in path.read_bytes() and b"good" not in path.read_bytes())


def test_the_demo_s_address_is_in_no_manifest(archive: SearchArchive, tmp_path: Path) -> None:
    """Its port is another each time: what is kept are the paths."""
    made = plan(make_config(archive, tmp_path, {}), tmp_path, named="demo")
    assert read_items(made)[0][0].location == IsicLocation("demo", ("demo:/images/ISIC_0000001.jpg?",), (".jpg",))
    assert plain_url("http://h:1/a b", signed=False, named=False) == "http://h:1/a b"


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("{collection}/{isic_id}.{ext}", "C5/ISIC_0000011"),
        ("{licence}/{patient_id}/{lesion_id}/{isic_id}.{ext}", "CC-0/%/%/ISIC_0000012"),
        ("{isic_id}.{ext}", "ISIC_0000011"),
        ("x/{lesion_id}-{isic_id}.{ext}", "x/%-ISIC_0000011"),
    ],
)
def test_path_templates(archive: SearchArchive, tmp_path: Path, path: str, first: str) -> None:
    """Folders are filled with the image's own values."""
    shape = {"path": path, "group_by": "run", "name": "all"}
    made = plan(make_config(archive, tmp_path, {"collections": ["5"]}, archive=shape), tmp_path)
    assert read_items(made)[0][0].path == first


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{collection}/{isic_id}", "must end in {isic_id}.{ext}"),
        ("{ext}/{isic_id}.{ext}", "must end in {isic_id}.{ext}"),
        ("{PatientID}/{isic_id}.{ext}", "unknown field {PatientID}"),
        ("{collection}{isic_id}.{ext}", "separator"),
        ("../{isic_id}.{ext}", "component"),
        ("a b/{isic_id}.{ext}", "may hold"),
    ],
)
def test_impossible_path_templates(archive: SearchArchive, tmp_path: Path, path: str, said: str) -> None:
    """Each problem is named in words, when the config is read."""
    assert said in "; ".join(isic_path_problems(path))
    with pytest.raises(ConfigError, match=r"archive\.path"):
        make_config(archive, tmp_path, {}, archive={"path": path})


def test_the_default_path(archive: SearchArchive, tmp_path: Path) -> None:
    """Who says nothing gets a path for images, in the run's record too; one for DICOM is refused."""
    config = make_config(archive, tmp_path, {})
    assert config.archive.path == "{collection}/{isic_id}.{ext}"
    made = plan(config, tmp_path)
    assert made.run is not None
    assert made.run.read_run().config["archive"]["path"] == "{collection}/{isic_id}.{ext}"
    assert made.run.read_config().archive.path == "{collection}/{isic_id}.{ext}"
    for path in (DEFAULT_PATH, "{SeriesInstanceUID}/{SOPInstanceUID}.dcm"):
        with pytest.raises(ConfigError, match=r"archive\.path"):
            make_config(archive, tmp_path, {}, archive={"path": path})


def test_what_lies_beside(archive: SearchArchive, tmp_path: Path) -> None:
    """Licence texts, attributions, citations; metadata.csv has every image's licence and attribution."""
    archive.collections.clear()
    record = archive.collection(7) | {"doi": "10.34970/1", "doi_url": "https://doi.org/10.34970/1"}
    archive.add_collection(7, [f"ISIC_{number:07d}" for number in (1, 2, 4)])
    archive.collection = staticmethod(lambda _: record)  # type: ignore[method-assign, assignment]
    made = plan(make_config(archive, tmp_path, {"collections": ["7"]}), tmp_path)
    assert made.run is not None
    assert made.run.read_licences() == {name: f"Text of {name}." for name in ("CC-BY", "CC-BY-NC")}
    assert (made.run.path / "attribution.txt").read_text() == "A, B\n\nAnonymous\n"
    citations = json.loads((made.run.path / "citations.json").read_bytes())
    assert citations == {"10.34970/1": "C7. International Skin Imaging Collaboration. https://doi.org/10.34970/1"}
    made.run.archives.mkdir(exist_ok=True)
    write_tables(made.run, Manifest(made.run), made.archives[0], [], citations)
    with (made.run.archives / f"{made.archives[0].name}.metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["isic_id"] for row in rows] == ["ISIC_0000001", "ISIC_0000002", "ISIC_0000004"]
    assert {row["copyright_license"] for row in rows} == {"CC-BY", "CC-BY-NC"}
    assert (made.run.archives / f"{made.archives[0].name}.licence.CC-BY.txt").read_text() == "Text of CC-BY.\n"


def test_images_without_a_file_are_left_out(archive: SearchArchive, tmp_path: Path) -> None:
    """They are counted, noted, and listed in a file of the run."""
    archive.rows[3][1]["files"]["full"] = {"url": None, "size": None}
    made = plan(make_config(archive, tmp_path, {}), tmp_path)
    assert (made.items, made.missing) == (29, 1)
    assert made.run is not None
    assert (made.run.path / "unknown-images.txt").read_text() == "ISIC_0000004\n"
    assert any("1 images have no file" in note for note in made.notes)


def test_many_small_files_make_large_frames() -> None:
    """Half a million images of 100 KB fill frames of `group_bytes`; of tiny ones, `cut_files` bounds a frame."""
    cut = cut_frames([(100_000, 1)] * 500_000, 64 << 20, 2 << 30, 10_000)
    assert cut.frames == -(-500_000 // ((64 << 20) // 100_000))
    tiny = cut_frames([(1, 1)] * 25_000, 64 << 20, 2 << 30, 10_000)
    assert tiny.frames == 3
    pairs = cut_frames([(1, 2)] * 25_000, 64 << 20, 2 << 30, 10_000)
    assert pairs.frames == 5


SCRIPT = """
import sys
from pathlib import Path
from pipeline.config import parse_config
from pipeline.plan.isic import IsicPlanSource
from pipeline.plan.planner import plan_run
from pipeline.sources.isic_pages import ListPage
from pipeline.sources.isic_rows import read_image
sys.path.insert(0, sys.argv[2])
from tests.sources.isic_archive import image
COUNT = int(sys.argv[3])
class Client:
    base = None
    def collections(self): return []
    def close(self): pass
    def licence(self, name): return "text"
    def image_pages(self, query, collections):
        for first in range(0, COUNT, 100):
            numbers = ((n * 7919) % 9999991 for n in range(first, first + 100))
            yield ListPage(tuple(read_image(image(n)) for n in numbers), None, False)
config = parse_config({"run": {"name": "r"}, "storage": {"root": sys.argv[1]}, "select": {"isic": {}}}, "test")
told = []
source = IsicPlanSource(config, on_progress=told.append)
source._client = source._finder._client = Client()
with source:
    made = plan_run(config, source, dry_run=False, on_progress=lambda _: None)
# Not ru_maxrss, which begins with what the parent had when it forked.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(made.items, len(told), peak // 1024)
"""


def test_memory(tmp_path: Path) -> None:
    """A listing of a hundred thousand images plans in bounded memory, and tells how far it is."""
    count = 100_000
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "runs"), str(root), str(count)],
        check=True, capture_output=True, text=True, cwd=root, timeout=300,
    ).stdout  # fmt: skip
    items, told, peak = map(int, out.split())
    assert (items, told) == (count, count // 100)
    assert peak < 400


def test_the_command(archive: SearchArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`medhaul plan` plans from [select.isic], with its own default path in the manifest and the run's config."""
    config = tmp_path / "c.toml"
    config.write_text(
        f'[run]\nname = "r"\n[storage]\nroot = "{tmp_path}/runs"\n[select.isic]\ncollections = ["C5"]\nlimit = 4\n'
        f'[sources.isic]\nbase_url = "{archive.site.origin}/api/v2"\n'
    )
    assert run_cli(["plan", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source"], told["items"], told["release"]) == ("isic", 4, RELEASE)
    run = json.loads((tmp_path / "runs" / "r" / "run.json").read_bytes())
    assert run["config"]["archive"]["path"] == "{collection}/{isic_id}.{ext}"
    assert run_cli(["plan", str(config)]) == 0
    assert "was planned before" in capsys.readouterr().out
