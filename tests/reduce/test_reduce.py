"""Reduce: joins only what is proven, loses nothing on the way, and gives the same bytes whatever happened before."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_kit import DONE, KILLED, FakeFetcher, MadeRun, do_shard, make_plan, make_series, refuse, run_and_kill

from pipeline.archive.index import ArchiveLine, FailedLine, FileLine, ItemLine, Line, read_lines
from pipeline.errors import ConfigError, ItemsFailedError, StorageError
from pipeline.manifest import Manifest
from pipeline.plan.source import Selected
from pipeline.reduce import join, tables
from pipeline.reduce import run as reduce_module
from pipeline.reduce.finished import read_finished
from pipeline.reduce.run import Outcome, reduce_run
from pipeline.report.receipts import ReceiptBook, read_todo
from pipeline.rundir import RunDir, encode_record

# A group of small items, a lonely one, one that is cut over several frames and shards, and a group again.
COUNTS = [3, 1, 2, 90, 1, 2]
TABLES: dict[str, Any] = {"shards": {"count": 5}}


def reduce(run: RunDir, *, allow_partial: bool = False) -> list[Outcome]:
    """Join, without progress."""
    return reduce_run(run, allow_partial=allow_partial, on_progress=lambda *_: None)


def results(run: RunDir) -> dict[str, bytes]:
    """Every file of the archives folder."""
    if not run.archives.exists():
        return {}
    return {path.name: path.read_bytes() for path in sorted(run.archives.iterdir())}


def left(run: RunDir) -> list[str]:
    """Parts, journals and shard indexes that are still there."""
    return sorted(path.name for path in (run.path / "parts").rglob("*") if path.is_file())


def lines_of(run: RunDir, name: str = "c") -> list[Line]:
    """The index beside an archive."""
    with (run.archives / f"{name}.tar.xz.index.jsonl.zst").open("rb") as file:
        return list(read_lines(file, "x"))


def members(run: RunDir, name: str = "c") -> dict[str, bytes]:
    """What an archive holds, read as anybody would."""
    found = {}
    with tarfile.open(run.archives / f"{name}.tar.xz", "r:xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def wanted(made: MadeRun, without: set[str] = frozenset()) -> dict[str, bytes]:
    """What an archive should hold."""
    return {
        f"{item.path}/{item.id}.{n + 1}.dcm": body
        for item in made.items
        if item.id not in without
        for n, body in enumerate(made.fetcher.bodies[item.id])
    }


def rows(run: RunDir, table: str) -> list[list[str]]:
    """A table, read as anybody would."""
    return list(csv.reader(io.StringIO((run.archives / table).read_text(encoding="utf-8"), newline="")))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """A run whose shards are all done, and not yet joined. Not to be changed: see `copy`."""
    made = MadeRun(tmp_path_factory.mktemp("done"), COUNTS, **TABLES)
    assert made.shards == 5
    assert all(receipt.state == "complete" for receipt in made.do())
    return made


@pytest.fixture
def copy(done: MadeRun, tmp_path: Path) -> MadeRun:
    """That run, to be changed."""
    shutil.copytree(done.root / "runs", tmp_path / "runs")
    made = object.__new__(MadeRun)
    made.__dict__.update(done.__dict__, root=tmp_path, run=RunDir(tmp_path / "runs" / "r"))
    made.fetcher = FakeFetcher(done.fetcher.bodies)
    return made


@pytest.fixture(scope="module")
def undisturbed(done: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All results of a run in which nothing went wrong."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(done.root / "runs", root / "runs")
    run = RunDir(root / "runs" / "r")
    reduce(run)
    return results(run)


# -- all is well ------------------------------------------------------------------------------------------------------


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
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=copy.run.archives, check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_tables_list_every_item_once(copy: MadeRun) -> None:
    """Metadata by item in order, licences with their sums, citations with their counts."""
    reduce(copy.run)
    head, *body = rows(copy.run, "c.metadata.csv")
    assert head == ["id", "source_DOI", "x", "archive_path"]
    assert body == [[item.id, "10.1/x", "", item.path] for item in copy.items]
    total = sum(item.bytes for item in copy.items)
    assert rows(copy.run, "c.licences.csv") == [["licence", "items", "bytes"], ["CC BY 4.0", str(len(COUNTS)), str(total)]]
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


# -- proof is missing or wrong ------------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit_receipt(run: RunDir, shard: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a receipt's JSON."""
    data = msgspec.json.decode(run.receipt(shard).read_bytes())
    change(data)
    run.receipt(shard).write_bytes(msgspec.json.encode(data))


def part_of(run: RunDir, shard: int) -> Path:
    """A shard's part."""
    return run.parts_folder(shard) / run.part_name(shard, 0)


def index_of(run: RunDir, shard: int) -> Path:
    """A shard's index."""
    return run.parts_folder(shard) / run.shard_index_name(shard, 0)


DAMAGE: dict[str, tuple[Callable[[RunDir], Any], str]] = {
    "receipt missing": (lambda run: run.receipt(2).unlink(), "shard 2: no receipt"),
    "receipt empty": (lambda run: run.receipt(2).write_bytes(b""), "000002.json"),
    "receipt cut": (lambda run: run.receipt(2).write_bytes(run.receipt(2).read_bytes()[:-9]), "000002.json"),
    "receipt binary": (lambda run: run.receipt(2).write_bytes(b"\xff" * 99), "000002.json"),
    "receipt is a folder": (lambda run: (run.receipt(2).unlink(), run.receipt(2).mkdir()), "000002.json"),
    "receipt of another shard": (lambda run: shutil.copy(run.receipt(1), run.receipt(2)), "of another shard"),
    "receipt of another manifest": (
        lambda run: edit_receipt(run, 2, lambda r: r.update(manifest_sha256="0" * 64)),
        "of another shard or run",
    ),
    "receipt of another format": (lambda run: edit_receipt(run, 2, lambda r: r.update(format=2)), "format 2"),
    "receipt without parts": (lambda run: edit_receipt(run, 2, lambda r: r.pop("parts")), "000002.json"),
    "part missing": (lambda run: part_of(run, 2).unlink(), "part 000002.0.part is missing"),
    "part shorter": (lambda run: os.truncate(part_of(run, 2), part_of(run, 2).stat().st_size - 1), "bytes instead of"),
    "part empty": (lambda run: os.truncate(part_of(run, 2), 0), "has 0 bytes instead of"),
    "part is a folder": (lambda run: (part_of(run, 2).unlink(), part_of(run, 2).mkdir()), "000002.0.part"),
    "part's first byte": (lambda run: flip(part_of(run, 2), 0), "000002.0.part"),
    "part's last byte": (lambda run: flip(part_of(run, 2), -1), "000002.0.part"),
    "index missing": (lambda run: index_of(run, 2).unlink(), "shard index 000002.0.index.zst is missing"),
    "index flipped": (lambda run: flip(index_of(run, 2), 30), "000002.0.index.zst"),
    "index cut": (lambda run: os.truncate(index_of(run, 2), 40), "000002.0.index.zst"),
    "index of another shard": (lambda run: shutil.copy(index_of(run, 1), index_of(run, 2)), "000002.0.index.zst"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_proven_is_not_joined(copy: MadeRun, undisturbed: dict[str, bytes], damage: str) -> None:
    """The reason and the way on are told, nothing is removed, and after doing as told the bytes are as ever."""
    change, said = DAMAGE[damage]
    change(copy.run)
    before = left(copy.run)
    with pytest.raises((ItemsFailedError, ConfigError)) as caught:
        reduce(copy.run)
    assert said in str(caught.value)
    assert f"medhaul resume {copy.run.path}" in caught.value.hint
    assert results(copy.run) == {}
    assert left(copy.run) == before
    for name in re.findall(r"[0-9]{6}\.[0-9]\.(?:part|index\.zst)", caught.value.hint):
        (copy.run.parts_folder(2) / name).unlink()
    if "receipt, then" in caught.value.hint:
        copy.run.receipt(2).unlink()
    for path in (copy.run.receipt(2), part_of(copy.run, 2)):
        if path.is_dir():
            path.rmdir()
    manifest = Manifest(copy.run)
    book = ReceiptBook(copy.run, manifest.sha256)
    book.refresh()
    todo = read_todo(copy.run, manifest.index, book)
    assert list(todo.shards) == [2]
    copy.do(2)
    reduce(copy.run)
    assert results(copy.run)["c.tar.xz"] == undisturbed["c.tar.xz"]
    assert left(copy.run) == []


def test_any_changed_byte_of_a_receipt_is_refused_or_harmless(copy: MadeRun, undisturbed: dict[str, bytes]) -> None:
    """Whatever flips in a receipt, either nothing is joined, or the archive is the very same."""
    path = copy.run.receipt(1)
    data = path.read_bytes()
    parts = {name: (copy.run.parts_folder(0) / name).read_bytes() for name in left(copy.run)}
    joined = 0
    for position in range(0, len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            reduce(copy.run)
        except (ItemsFailedError, ConfigError, StorageError):
            assert results(copy.run) == {}
            continue
        joined += 1
        assert results(copy.run)["c.tar.xz"] == undisturbed["c.tar.xz"]
        shutil.rmtree(copy.run.archives)
        for name, content in parts.items():
            (copy.run.parts_folder(0) / name).write_bytes(content)
    assert joined


def test_a_damaged_manifest_stops_before_anything(copy: MadeRun) -> None:
    """The manifest is checked as a whole first."""
    flip(copy.run.manifest, -1)
    with pytest.raises(ConfigError, match=r"manifest\.jsonl\.zst"):
        reduce(copy.run)
    assert results(copy.run) == {}


def test_many_problems_are_listed_briefly(tmp_path: Path) -> None:
    """Twenty lines, and how to see the rest."""
    made = MadeRun(tmp_path, [4] * 30, shards={"count": 30})
    with pytest.raises(ItemsFailedError) as caught:
        reduce(made.run)
    text = str(caught.value)
    assert text.count("no receipt") == 20
    assert f"... and {made.shards - 20} more: medhaul failed {made.run.path}" in text
    assert "--allow-partial" in caught.value.hint


# -- items failed -----------------------------------------------------------------------------------------------------


def with_failures(tmp_path: Path, *failed: int, reason: str = "checksum") -> MadeRun:
    """A run, all shards done, in which these items failed."""
    made = MadeRun(tmp_path, COUNTS, **TABLES)
    for number in failed:
        made.fetcher.faults[made.items[number].id] = refuse(reason)
    made.do()
    return made


def test_failed_items_keep_the_archive_back(tmp_path: Path) -> None:
    """Each is listed with its reason, and nothing is joined or removed."""
    made = with_failures(tmp_path, 0, 4)
    before = left(made.run)
    with pytest.raises(ItemsFailedError) as caught:
        reduce(made.run)
    for number in (0, 4):
        assert f"{made.items[number].id}: checksum: made up" in str(caught.value)
    assert results(made.run) == {}
    assert left(made.run) == before


@pytest.mark.parametrize("failed", [(0,), (1, 4), (3,), (0, 1, 2, 4, 5)])
def test_a_partial_archive_says_what_it_lacks(tmp_path: Path, failed: tuple[int, ...]) -> None:
    """On request the rest is joined; the lack is told in the exit, the index, the catalogue and a table."""
    made = with_failures(tmp_path, *failed)
    ids = {made.items[number].id for number in failed}
    before = left(made.run)
    with pytest.raises(ItemsFailedError, match="joined without what failed: c"):
        reduce(made.run, allow_partial=True)
    found = members(made.run)
    inside = list(read_lines(io.BytesIO(found.popitem()[1]), "x"))
    assert found == wanted(made, without=ids)
    for lines in (inside, lines_of(made.run)):
        head = lines[0]
        assert isinstance(head, ArchiveLine)
        assert (head.items, head.failed) == (len(COUNTS), len(failed))
        assert [line.id for line in lines if isinstance(line, FailedLine)] == [made.items[n].id for n in failed]
        assert {line.id for line in lines if isinstance(line, ItemLine)} == {i.id for i in made.items} - ids
    table = rows(made.run, "c.failed.csv")
    assert table[0] == ["id", "path", "reason", "message"]
    assert [row[0] for row in table[1:]] == [made.items[n].id for n in failed]
    assert {row[0] for row in rows(made.run, "c.metadata.csv")[1:]} == {i.id for i in made.items} - ids
    assert left(made.run) == before
    line = read_finished(made.run, "c", Manifest(made.run).sha256)
    assert line is not None
    assert line.state == "partial"


def test_a_cut_item_with_one_failed_piece_fails_whole(tmp_path: Path) -> None:
    """Half a series is never passed off as a series: none of its pieces is archived, and it is counted once."""
    made = MadeRun(tmp_path, COUNTS, **TABLES)
    item = made.items[3]
    bodies = made.fetcher.bodies[item.id]
    made.fetcher.faults[item.id] = lambda data: refuse("checksum")() if data == bodies[-1] else data
    receipts = made.do()
    entries = [entry for _, entry in Manifest(made.run).all_entries() if entry.item.id == item.id]
    assert len(entries) == entries[0].pieces > 2
    assert sum(len(receipt.failed) for receipt in receipts) == 1
    with pytest.raises(ItemsFailedError):
        reduce(made.run, allow_partial=True)
    assert not [path for path in members(made.run) if path.startswith(item.path)]
    lines = lines_of(made.run)
    assert [line.id for line in lines if isinstance(line, FailedLine)] == [item.id]
    head = lines[0]
    assert isinstance(head, ArchiveLine)
    assert (head.items, head.failed, head.files) == (len(COUNTS), 1, sum(COUNTS) - COUNTS[3])


def test_two_files_of_one_name_in_different_pieces_are_found(tmp_path: Path) -> None:
    """No task sees both, so reduce looks, and fails the item."""
    made = MadeRun(tmp_path, COUNTS, **TABLES)
    item = made.items[3]
    made.fetcher.bodies[item.id][-1] = made.fetcher.bodies[item.id][0]
    made.do()
    with pytest.raises(ItemsFailedError, match=f"{item.id}: duplicate: two files of the series are"):
        reduce(made.run)
    assert results(made.run) == {}
    with pytest.raises(ItemsFailedError):
        reduce(made.run, allow_partial=True)
    assert [line.id for line in lines_of(made.run) if isinstance(line, FailedLine)] == [item.id]


def test_shards_without_receipt_count_as_failed_items(copy: MadeRun) -> None:
    """A partial archive accounts for every item of the manifest, also those of which nothing is known."""
    copy.run.receipt(0).unlink()
    lost = {entry.item.id for entry in Manifest(copy.run).entries(0)}
    with pytest.raises(ItemsFailedError):
        reduce(copy.run, allow_partial=True)
    lines = lines_of(copy.run)
    failed = [line for line in lines if isinstance(line, FailedLine)]
    assert {line.id for line in failed} == lost
    assert {line.message for line in failed} == {"shard 0 has no receipt"}
    head = lines[0]
    assert isinstance(head, ArchiveLine)
    archived = {line.id for line in lines if isinstance(line, ItemLine)}
    assert len(archived) + len(lost) == head.items == len(COUNTS)


def test_an_archive_of_nothing_is_not_written(tmp_path: Path) -> None:
    """When every item failed there is nothing to join, also on request."""
    made = with_failures(tmp_path, *range(len(COUNTS)))
    with pytest.raises(ItemsFailedError, match="not joined"):
        reduce(made.run, allow_partial=True)
    assert "c.tar.xz" not in results(made.run)


def test_partial_then_resumed_is_as_if_nothing_had_happened(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The complete archive takes the partial one's place, with all its tables, and the list of failures goes."""
    made = with_failures(tmp_path, 0, 3)
    with pytest.raises(ItemsFailedError):
        reduce(made.run, allow_partial=True)
    assert "c.failed.csv" in results(made.run)
    made.fetcher.faults.clear()
    with pytest.raises(ItemsFailedError):
        reduce(made.run)
    assert "c.failed.csv" in results(made.run)
    made.do(attempt=2)
    reduce(made.run)
    found = results(made.run)
    assert set(found) == set(undisturbed)
    for name in set(found) - {"SHA256SUMS", "c.tar.xz.index.jsonl.zst"}:
        assert found[name] == undisturbed[name]
    assert b"c.failed.csv" not in found["SHA256SUMS"]
    assert left(made.run) == []


def test_two_items_of_one_id_are_told_apart(tmp_path: Path) -> None:
    """A series that the index lists in two places is two items: one failing takes nothing from the other."""
    (one, bodies), (two, more) = make_series(0, 3), make_series(1, 3)
    twin = msgspec.structs.replace(one, path=two.path, location=two.location)
    plan = make_plan(tmp_path, [one, twin], archive={"group_bytes": 100})
    assert plan.run is not None
    fetcher = FakeFetcher({one.id: bodies})
    real = fetcher.list_bodies
    fetcher.list_bodies = lambda e, d: refuse("size")() if e.number else real(e, d)  # type: ignore[method-assign]
    for shard in range(plan.shards):
        do_shard(plan.run, shard, fetcher, tmp_path / "scratch")
    with pytest.raises(ItemsFailedError):
        reduce(plan.run, allow_partial=True)
    assert [row[-1] for row in rows(plan.run, "c.metadata.csv")[1:]] == [one.path]
    assert more


# -- kills ------------------------------------------------------------------------------------------------------------


STEPS: dict[str, tuple[Any, str]] = {
    "copy": (join.ArchiveWriter, "copy_frame"),
    "catalogue": (join.ArchiveWriter, "finish"),
    "read back": (join.ArchiveJoin, "_read_back"),
    "rename": (join.os, "replace"),
    "sync": (join, "fsync_folder"),
    "tables": (reduce_module, "write_tables"),
    "csv": (tables, "write_csv"),
    "citations": (tables, "write_atomic"),
    "index": (join.ArchiveJoin, "write_index"),
    "checksums": (reduce_module, "write_checksums"),
    "cleaning": (reduce_module, "remove_parts"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=["^C", "full"])
def test_stopped_at_any_step_it_can_be_run_again(
    copy: MadeRun, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """Parts are there until the archive is complete, and the second run gives all files as if it were the first."""
    owner, name = STEPS[step]

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, stop)
    before = left(copy.run)
    with pytest.raises((KeyboardInterrupt, StorageError, OSError)):
        reduce(copy.run)
    monkeypatch.undo()
    assert left(copy.run) == before
    if step not in {"checksums", "cleaning"}:
        assert read_finished(copy.run, "c", Manifest(copy.run).sha256) is None
    reduce(copy.run)
    assert results(copy.run) == undisturbed
    assert left(copy.run) == []


def test_killed_at_any_line_it_can_be_run_again(
    done: MadeRun, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """After SIGKILL anywhere the next reduce ends with the same files, and parts never go before the archive is there."""

    def fresh(name: str) -> RunDir:
        shutil.copytree(done.root / "runs", tmp_path / name)
        return RunDir(tmp_path / name / "r")

    run = fresh("whole")
    code, lines = run_and_kill(lambda: reduce(run), 0)
    assert code == DONE
    parts = left(done.run)
    for at in [*range(1, lines, max(1, lines // 40)), *range(lines - 60, lines, 4)]:
        killed = fresh(str(at))
        assert run_and_kill(lambda killed=killed: reduce(killed), at)[0] == KILLED
        if left(killed) != parts:
            assert results(killed) == undisturbed
        reduce(killed)
        assert results(killed) == undisturbed
        assert left(killed) == []
        shutil.rmtree(killed.path)


def test_an_archive_that_reads_back_wrong_is_not_published(
    copy: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that does not keep what is written is found out before the parts are gone."""
    real = join.os.fsync

    def rot(descriptor: int) -> None:
        real(descriptor)
        os.pwrite(descriptor, b"\0\0\0\0", 5000)

    monkeypatch.setattr(join.os, "fsync", rot)
    before = left(copy.run)
    with pytest.raises(StorageError, match="reads back other bytes"):
        reduce(copy.run)
    assert not [name for name in results(copy.run) if "tar" in name]
    assert left(copy.run) == before


def test_too_little_room_is_told_before_the_copy(copy: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is free and how much is needed, and nothing is written."""
    monkeypatch.setattr(join.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(StorageError, match="10 B free, .* needed"):
        reduce(copy.run)
    assert [name for name in results(copy.run) if not name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["archive gone", "archive shorter", "index gone", "index cut", "of another manifest"])
def test_a_finished_archive_that_is_no_longer_whole_is_not_taken_as_finished(copy: MadeRun, damage: str) -> None:
    """Its index must be there, whole, of this manifest, and state the archive's size."""
    reduce(copy.run)
    archive, index = copy.run.archives / "c.tar.xz", copy.run.archives / "c.tar.xz.index.jsonl.zst"
    sha = Manifest(copy.run).sha256
    assert read_finished(copy.run, "c", sha) is not None
    if damage == "of another manifest":
        assert read_finished(copy.run, "c", "0" * 64) is None
        return
    {
        "archive gone": archive.unlink,
        "archive shorter": lambda: os.truncate(archive, archive.stat().st_size - 1),
        "index gone": index.unlink,
        "index cut": lambda: os.truncate(index, 20),
    }[damage]()
    assert read_finished(copy.run, "c", sha) is None
    with pytest.raises(ItemsFailedError):  # the parts are gone, so it must be done again
        reduce(copy.run)


def test_progress_ends_at_the_whole(copy: MadeRun) -> None:
    """What is shown while joining adds up to the bytes of all frames."""
    seen: list[tuple[str, int, int]] = []
    reduce_run(copy.run, allow_partial=False, on_progress=lambda *step: seen.append(step))
    assert seen[-1][0] == "c"
    assert seen[-1][1] == seen[-1][2] > 0
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)


def test_records_of_receipts_are_json_for_people(copy: MadeRun) -> None:
    """A receipt can be read with any JSON reader, and written back the same."""
    sha = Manifest(copy.run).sha256
    receipt = copy.run.read_receipt(1, sha)
    assert encode_record(receipt) == copy.run.receipt(1).read_bytes()
