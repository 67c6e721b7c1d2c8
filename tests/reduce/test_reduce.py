"""Reduce of a run in which all went well: whole, in order, with tables and checksums, and the same bytes always."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
from pathlib import Path

import msgspec
import pytest
from reduce_kit import COUNTS, left, lines_of, members, reduce, results, rows, wanted
from run_kit import FakeFetcher, MadeRun, do_shard, make_plan, make_series, refuse

from pipeline.archive.index import ArchiveLine, FileLine, read_lines
from pipeline.errors import ItemsFailedError
from pipeline.manifest import Manifest
from pipeline.plan.source import Selected
from pipeline.reduce import join, tables
from pipeline.reduce.finished import read_finished


def test_a_complete_run_is_joined_whole_and_cleaned_up(copy: MadeRun) -> None:
    """Every file is in the archive once, in path order, the index agrees with it, and parts are gone."""
    (outcome,) = reduce(copy.run)
    found = members(copy.run)
    catalogue = found.popitem()
    assert catalogue[0] == ".medhaul/c.index.jsonl.zst"
    assert found == wanted(copy)
    folders = [path.rpartition("/")[0] for path in found]
    assert folders == sorted(folders)
    lines = lines_of(copy.run)
    head = lines[0]
    assert isinstance(head, ArchiveLine)
    assert outcome.line == head
    assert (head.state, head.items, head.failed, head.files) == ("complete", len(COUNTS), 0, sum(COUNTS))
    assert head.bytes == sum(map(len, wanted(copy).values()))
    data = (copy.run.archives / "c.tar.xz").read_bytes()
    assert (head.sha256, head.size) == (hashlib.sha256(data).hexdigest(), len(data))
    files = [line for line in lines if isinstance(line, FileLine)]
    assert [line.sha256 for line in files] == [hashlib.sha256(body).hexdigest() for body in found.values()]
    assert left(copy.run) == []
    assert read_finished(copy.run, "c", Manifest(copy.run).sha256) == head


def test_the_catalogue_inside_says_nothing_of_when_and_how(copy: MadeRun) -> None:
    """It is the index without evidence, route, run and hash of the archive: content alone."""
    reduce(copy.run)
    inside = list(read_lines(io.BytesIO(members(copy.run)[".medhaul/c.index.jsonl.zst"]), "x"))
    beside = lines_of(copy.run)
    assert inside == [join.content_only(line) for line in beside]
    text = b"".join(map(msgspec.json.encode, inside))
    for word in (b"idc:test", b"evidence", b"route", copy.run.path.name.join('""').encode()):
        assert word not in text


def test_the_checksums_are_what_sha256sum_checks(copy: MadeRun) -> None:
    """`sha256sum -c` in the archives folder passes, and covers every file."""
    reduce(copy.run)
    listed = {line.split("  ")[1] for line in (copy.run.archives / "SHA256SUMS").read_text().splitlines()}
    assert listed == set(results(copy.run)) - {"SHA256SUMS"}
    found = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=copy.run.archives,
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_tables_list_every_item_once(copy: MadeRun) -> None:
    """Metadata by item in order, licences with their sums, citations with their counts."""
    reduce(copy.run)
    head, *body = rows(copy.run, "c.metadata.csv")
    assert head == ["id", "source_DOI", "x", "archive_path"]
    assert body == [[item.id, "10.1/x", "", item.path] for item in copy.items]
    total = sum(item.bytes for item in copy.items)
    assert rows(copy.run, "c.licences.csv") == [
        ["licence", "items", "bytes"],
        ["CC BY 4.0", str(len(COUNTS)), str(total)],
    ]
    text = (copy.run.archives / "c.citations.txt").read_text()
    assert text == f"10.1/x ({len(COUNTS)} items)\nA paper, 2020.\n\n"
    assert not (copy.run.archives / "c.failed.csv").exists()


@pytest.mark.parametrize("value", ['a,"b"\n', "a\rb", "\r", "\r\n", "é\u2028", "=1+1", " x ", "\x00", '"', ""])
def test_any_value_survives_the_tables(tmp_path: Path, value: str) -> None:
    """Whatever an index holds is read back from the CSV as it was."""
    tables.write_csv(tmp_path / "x.csv", [["a", value, "b"], ["c", "d", "e"]])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", value, "b"], ["c", "d", "e"]]


def test_joining_again_changes_nothing(copy: MadeRun, undisturbed: dict[str, bytes]) -> None:
    """A second reduce finds the archive, writes the same checksums and no archive."""
    reduce(copy.run)
    before = (copy.run.archives / "c.tar.xz").stat().st_ino
    (outcome,) = reduce(copy.run)
    assert outcome.line is not None
    assert (copy.run.archives / "c.tar.xz").stat().st_ino == before
    assert results(copy.run) == undisturbed


@pytest.mark.parametrize(("count", "cores"), [(1, 1), (2, 4), (40, 2)])
def test_bytes_do_not_depend_on_shards_and_cores(
    tmp_path: Path, undisturbed: dict[str, bytes], count: int, cores: int
) -> None:
    """However the work was divided, the archive is the same, and so are its tables."""
    made = MadeRun(tmp_path, COUNTS, shards={"count": count})
    made.do(cores=cores, blocks=2 * cores + 1)
    reduce(made.run)
    found = results(made.run)
    for name in ("c.tar.xz", "c.metadata.csv", "c.licences.csv", "c.citations.txt"):
        assert found[name] == undisturbed[name]


def test_several_archives_each_have_their_files(tmp_path: Path) -> None:
    """Groups become archives of their own; one that cannot be joined does not keep the others back."""
    made = [make_series(n, 2) for n in range(6)]
    fetcher = FakeFetcher({item.id: bodies for item, bodies in made})
    selected = [Selected("abc"[n // 2], item) for n, (item, _) in enumerate(made)]
    plan = make_plan(tmp_path, selected, shards={"count": 6})
    assert plan.run is not None
    fetcher.faults[made[2][0].id] = refuse("checksum")
    for shard in range(plan.shards):
        do_shard(plan.run, shard, fetcher, tmp_path / "scratch")
    with pytest.raises(ItemsFailedError) as caught:
        reduce(plan.run)
    assert "not joined, since incomplete: b\n" in str(caught.value)
    assert {name for name in results(plan.run) if name.endswith(".xz")} == {"a.tar.xz", "c.tar.xz"}
    assert left(plan.run) == [name for name in left(plan.run) if int(name[:6]) in {2, 3}] != []
    sums = (plan.run.archives / "SHA256SUMS").read_text()
    assert "a.tar.xz" in sums
    assert "c.tar.xz" in sums
    fetcher.faults.clear()
    for shard in (2, 3):
        do_shard(plan.run, shard, fetcher, tmp_path / "scratch")
    assert [outcome.line is not None for outcome in reduce(plan.run)] == [True] * 3
    assert left(plan.run) == []
