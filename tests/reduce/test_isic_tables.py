"""Tables beside an archive of ISIC images: what is decided of a row, of whom to name, and of licences."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archive.index import FailedLine
from pipeline.config import parse_config
from pipeline.demo.isic import IsicSite
from pipeline.demo.isic_data import CHALLENGE, build_isic
from pipeline.manifest import Manifest
from pipeline.model import IsicLocation, Item
from pipeline.plan.isic import IsicPlanSource
from pipeline.plan.planner import plan_run
from pipeline.reduce.isic_tables import (
    COLUMNS,
    NOBODY,
    UNSTATED,
    credit_of,
    find_members,
    licence_files,
    make_row,
    render_attribution,
    render_licence,
    render_metadata,
)
from pipeline.reduce.tables import Beside, write_tables
from pipeline.sources.isic_fields import FIELDS
from pipeline.sources.isic_meta import ADDED, added_values, name_others, read_meta, unfold_other
from pipeline.sources.isic_rows import Collection

TEXTS = st.text(max_size=30) | st.sampled_from(
    ["Anonymous", "", "a\nb", "a\n\nb", "=x", "\ud800", "\u2028", "\U0001f600"]
)


def make_item(*names: str, meta: bytes = b"[]") -> Item:
    """An image with files of these names."""
    where = IsicLocation("u", tuple("u" for _ in names), names)
    return Item("ISIC_0000001", "c/ISIC_0000001", len(names), 1, where, "CC-0", msgspec.Raw(meta))


def make_meta(others: dict[str, object], collections: list[Collection], *, most: int = 200) -> tuple[list[str], bytes]:
    """Columns and a row, as the planner makes them."""
    names = name_others(set(others), most)
    values = [*(dict.fromkeys(FIELDS) | {"isic_id": "ISIC_0000001", "attribution": "A"}).values()]
    folded = json.dumps(others) if others else None
    return [*FIELDS, *names, *ADDED], msgspec.json.encode(
        [*values, *unfold_other(names, folded), *added_values("CC-BY", "x", collections)]
    )


@given(st.dictionaries(st.tuples(TEXTS, st.sampled_from(["CC-0", "CC-BY", ""])), st.integers(1, 9999), min_size=1))
def test_each_attribution_is_one_entry(counts: dict[tuple[str, str], int]) -> None:
    """Whatever the texts, there is an entry of two lines for each, in order, and the counts add up."""
    credited: Counter[tuple[str, str]] = Counter()
    for (name, licence), count in counts.items():
        columns, meta = make_meta({}, [])
        image = read_meta(columns, meta)
        credited[credit_of(msgspec.structs.replace(image, row=image.row | {"attribution": name}), licence)] += count
    entries = [entry.split("\n") for entry in render_attribution(credited)[:-1].split("\n\n")]
    assert all(len(entry) == 2 for entry in entries)
    totals = [int(said.split()[0].replace(",", "")) for _, said in entries]
    assert sum(totals) == sum(counts.values())
    names = [name for name, _ in entries]
    assert len(set(names)) == len(names) == len({name or NOBODY for name, _ in credited})
    ranks = [(name == NOBODY, name == "Anonymous", -total) for (name, _), total in zip(entries, totals, strict=True)]
    assert ranks == sorted(ranks)


def test_the_words_of_attribution() -> None:
    """Counts stand by licence where there are several; what is not stated is said not to be."""
    credited = {("B", "CC-0"): 1, ("A", "CC-0"): 1, ("Anonymous", "CC-BY"): 2000, ("", ""): 5000, ("C", ""): 1}
    assert render_attribution(credited | {("C", "CC-BY"): 2}) == (
        f"C\n    3 images: 2 CC-BY, 1 {UNSTATED}\n\nA\n    1 image: CC-0\n\nB\n    1 image: CC-0\n\n"
        f"Anonymous\n    2,000 images: CC-BY\n\n{NOBODY}\n    5,000 images: {UNSTATED}\n"
    )


@pytest.mark.parametrize("most", [200, 1])
def test_rows_keep_what_is_not_in_the_registry(most: int) -> None:
    """A column each or all in one, fields of the registry's and of our own columns' names too: all are in `other`."""
    others: dict[str, object] = {"collections": "theirs", "LicenseURI": True, "x.y": 1.5, "z": "t"}
    for more in ({}, {"other": '{"a": 1}'}):
        columns, meta = make_meta(others | more, [Collection(id=5, name="C5")], most=most)
        image = read_meta(columns, meta)
        row = dict(zip([column.name for column in COLUMNS], make_row(image, make_item(".jpg", meta=meta)), strict=True))
        assert json.loads(str(row["other"])) == others | more
        assert (row["collections"], row["collection_ids"], row["attribution"]) == ("C5", "5", "A")
        assert image.licence_url == "https://creativecommons.org/licenses/by/4.0/"


def test_collections_of_a_row() -> None:
    """Names may hold anything, one without a name is called by its number, and each DOI is there once."""
    listed = [Collection(id=5, name="a; b, =c", doi="10.1/x y"), Collection(id=7, doi="10.1/x y"), Collection(id=9)]
    columns, meta = make_meta({}, listed)
    image = read_meta(columns, meta)
    row = make_row(image, make_item(".jpg", ".thumbnail.jpg", meta=meta))
    assert row[-4:] == ["5; 7; 9", "a; b, =c; 7; 9", "c/ISIC_0000001.jpg", "c/ISIC_0000001.thumbnail.jpg"]
    assert image.dois == ("10.1/x y",)
    columns, meta = make_meta({}, [])
    assert make_row(read_meta(columns, meta), make_item(".png", meta=meta))[-4:] == [
        *(None, None, "c/ISIC_0000001.png", None)
    ]
    assert find_members(make_item()) == (None, None)


def test_a_row_of_another_form_is_refused() -> None:
    """A manifest whose rows do not fit its columns makes no table with shifted cells."""
    columns, meta = make_meta({}, [])
    with pytest.raises(ValueError, match=r"unpack|zip"):
        read_meta([*columns[:3], *columns[4:]], meta)


def test_the_table_is_guarded() -> None:
    """A cell that a spreadsheet would run begins with a quote."""
    columns, meta = make_meta({}, [Collection(id=5, name="=SUM(A1)")])
    line = list(render_metadata([make_row(read_meta(columns, meta), make_item(".jpg", meta=meta))]))[1]
    assert ",'=SUM(A1)," in line


def test_licence_files() -> None:
    """Each licence in use has its text as it came; without one, its URL and that there was none; others no file."""
    files = licence_files({"CC-0", "CC-BY", "../x"}, {"CC-0": " Text\n\nmore", "CC-BY": " \n", "../x": "?"})
    assert files["licence.CC-0.txt"] == " Text\n\nmore\n"
    assert files["licence.CC-BY-NC.txt"] == ""
    assert "https://creativecommons.org/licenses/by/4.0/" in files["licence.CC-BY.txt"]
    assert "did not hand out" in files["licence.CC-BY.txt"]
    assert len(files) == 3
    assert render_licence("CC-0", "a\n") == "a\n"


def test_what_is_not_there_any_more_is_taken_away(tmp_path: Path) -> None:
    """An empty text removes the file of an earlier archive, and is not named."""
    beside = Beside(tmp_path, "a")
    beside.write_text("x.txt", "\ud800x\n")
    assert (tmp_path / "a.x.txt").read_bytes() == b"\\ud800x\n"
    again = Beside(tmp_path, "a")
    again.write_text("x.txt", "")
    again.write_text("y.txt", "y")
    assert again.names == ["a.y.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.y.txt"]


def test_files_of_an_archive_that_holds_less(tmp_path: Path) -> None:
    """Licences and citations of images that are not in the archive any more do not stay beside it."""
    archive = build_isic(tmp_path / "demo").archive
    with IsicSite(archive) as site:
        config = parse_config(
            {
                "run": {"name": "r"},
                "storage": {"root": str(tmp_path / "runs")},
                "select": {"isic": {"collections": [str(CHALLENGE)]}},
                "sources": {"isic": {"base_url": site.api_url}},
                "archive": {"group_by": "run", "name": "skin"},
            },
            "test",
        )
        with IsicPlanSource(config, cache_dir=tmp_path / "cache") as source:
            run = plan_run(config, source, dry_run=False, on_progress=lambda _: None).run
    assert run is not None
    manifest = Manifest(run)
    run.archives.mkdir()
    (one,) = manifest.index.archives
    whole = write_tables(run, manifest, one, [], run.read_citations())
    assert whole == [
        f"skin.{suffix}"
        for suffix in (
            *("metadata.csv", "licences.csv", "attribution.txt", "citations.txt"),
            *(f"licence.{name}.txt" for name in ("CC-0", "CC-BY", "CC-BY-NC")),
        )
    ]
    items = [entry.item for _, entry in manifest.all_entries() if entry.item.licence != "CC-0"]
    failed = [FailedLine(id=item.id, path=item.path, reason="withdrawn", message="m") for item in items]
    less = write_tables(run, manifest, one, failed, {})
    assert set(whole) - set(less) == {"skin.licence.CC-BY.txt", "skin.licence.CC-BY-NC.txt"}
    assert set(less) - set(whole) == {"skin.failed.csv"}
    assert {path.name for path in run.archives.iterdir()} == set(less)
    assert re.fullmatch(r"([^\n]+\n    \d+ images?: CC-0\n\n?)+", (run.archives / "skin.attribution.txt").read_text())
