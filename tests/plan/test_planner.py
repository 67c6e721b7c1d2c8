"""The planner: a run is there whole or not at all, and planning again finds it, whatever the items hold."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_kit import DONE, KILLED, FakeSource, make_config, make_item, make_plan, run_and_kill

from pipeline.errors import ConfigError, StorageError
from pipeline.manifest import Manifest, check_whole
from pipeline.model import Item
from pipeline.plan import planner
from pipeline.plan.planner import plan_run
from pipeline.plan.source import Selected
from pipeline.rundir import RunDir
from pipeline.sizes import item_bytes

ITEMS = [make_item(n, files=n % 4, size=[-1, 0, 3000, 200_000, 7][n % 5]) for n in range(23)]


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_back(run: RunDir) -> list[Item]:
    """The items of a manifest, each once."""
    return [entry.item for _, entry in Manifest(run).all_entries() if entry.piece == 0]


hostile_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
hostile_items = st.lists(
    st.tuples(st.integers(-1, 100), st.integers(-1, 10**6) | st.just(2**62 // 100), hostile_texts, hostile_texts),
    min_size=1,
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)
@given(rows=hostile_items, shards=st.integers(0, 40), max_bytes=st.sampled_from([0, 1, 50_000]))
def test_every_item_is_in_the_manifest_once_and_in_order(
    rows: list[tuple[int, int, str, str]], shards: int, max_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever sizes, ids and licences a source states, the manifest holds its items and its sums are theirs."""
    items = [
        make_item(n, files, size, id=uid, licence=licence, meta=msgspec.Raw(msgspec.json.encode([uid])))
        for n, (files, size, uid, licence) in enumerate(rows)
    ]
    plan = make_plan(tmp_path_factory.mktemp("p"), items, shards={"count": shards}, archive={"max_bytes": max_bytes})
    run = plan.run
    assert run is not None
    assert [msgspec.json.encode(item) for item in read_back(run)] == [msgspec.json.encode(item) for item in items]
    index = run.read_manifest_index()
    assert sum(shard.items for shard in index.shards) == plan.items == run.read_run().items == len(items)
    assert sum(shard.files for shard in index.shards) == plan.files == sum(max(0, item.files) for item in items)
    assert sum(shard.bytes for shard in index.shards) == plan.bytes == sum(map(item_bytes, items))
    assert plan.unknown_sizes == sum(item.bytes <= 0 for item in items)
    assert {name: count for name, (count, _) in plan.licences.items()} == {
        name: [item.licence for item in items].count(name) for name in {item.licence for item in items}
    }
    frames = [entry.frame for _, entry in Manifest(run).all_entries()]
    assert frames == sorted(frames)
    for number, shard in enumerate(index.shards):
        assert shard.shard == number
        wanted = range(shard.first_frame, shard.first_frame + shard.frames)
        entries = Manifest(run).entries(number)
        assert sorted({entry.frame for entry in entries}) == list(wanted)
        assert len(entries) == shard.entries
    check_whole(run)


def test_the_same_config_plans_the_same_manifest_and_finds_the_run(tmp_path: Path) -> None:
    """Planning again changes no byte of the run, and says that it was there."""
    first = make_plan(tmp_path, ITEMS)
    before = everything(tmp_path)
    again = make_plan(tmp_path, ITEMS)
    assert (first.reused, again.reused) == (False, True)
    assert again._replace(reused=False, run=None) == first._replace(run=None)
    assert everything(tmp_path) == before
    assert make_plan(tmp_path / "other", ITEMS).manifest_sha256 == first.manifest_sha256


def test_shard_settings_change_no_entry(tmp_path: Path) -> None:
    """With one shard or with many, every entry and its frame are the same."""
    entries = [
        [entry for _, entry in Manifest(RunDir(root / "runs" / "r")).all_entries()]
        for count in (1, 3, 100)
        for root in [tmp_path / str(count)]
        if make_plan(root, ITEMS, shards={"count": count})
    ]
    assert entries[0] == entries[1] == entries[2]


@pytest.mark.parametrize("change", ["fewer", "more", "bytes", "meta", "archive", "shards"])
def test_another_selection_under_the_same_name_is_refused_and_loses_nothing(tmp_path: Path, change: str) -> None:
    """A run with another manifest stays as it is, to the byte."""
    make_plan(tmp_path, ITEMS)
    before = everything(tmp_path)
    items = {
        "fewer": ITEMS[:-1],
        "more": [*ITEMS, make_item(99)],
        "bytes": [*ITEMS[:-1], msgspec.structs.replace(ITEMS[-1], bytes=1)],
        "meta": [*ITEMS[:-1], msgspec.structs.replace(ITEMS[-1], meta=msgspec.Raw(b"[1]"))],
    }.get(change, ITEMS)
    tables = {"archive": {"archive": {"portable": True}}, "shards": {"shards": {"count": 7}}}.get(change, {})
    with pytest.raises(ConfigError, match="exists already, with another selection") as caught:
        make_plan(tmp_path, items, **tables)
    assert "run.name" in caught.value.hint
    assert everything(tmp_path) == before


def test_settings_that_leave_the_manifest_alone_are_taken_over(tmp_path: Path) -> None:
    """More memory for the tasks of a run is a matter of planning it again."""
    run = make_plan(tmp_path, ITEMS).run
    assert run is not None
    made = run.read_run()
    make_plan(tmp_path, ITEMS, task={"memory": "2 GiB"})
    assert run.read_config().task.memory == 2 << 30
    assert run.read_run().created == made.created


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """Not even the folder that runs go to; and it counts what a real one would."""
    dry = make_plan(tmp_path, ITEMS, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert dry.run is None
    real = make_plan(tmp_path, ITEMS)
    assert dry == real._replace(run=None)


def test_nothing_selected_is_refused(tmp_path: Path) -> None:
    """An empty selection is no run."""
    with pytest.raises(ConfigError, match="nothing is selected"):
        make_plan(tmp_path, [])
    assert not (tmp_path / "runs" / "r").exists()


def test_two_items_with_one_path_are_refused(tmp_path: Path) -> None:
    """They would overwrite each other when the archive is unpacked; one item is named."""
    twin = make_item(4, path=ITEMS[3].path)
    with pytest.raises(ConfigError, match=f"{ITEMS[3].path}.*{twin.id}"):
        make_plan(tmp_path, [*ITEMS[:4], twin])
    assert list((tmp_path / "runs").glob("*") if (tmp_path / "runs").exists() else []) == []


def test_one_path_in_two_archives_is_fine(tmp_path: Path) -> None:
    """Paths need only differ within an archive."""
    one, two = make_item(1), make_item(2, path=make_item(1).path)
    assert make_plan(tmp_path, [Selected("a", one), Selected("b", two)]).items == 2


def test_a_source_that_breaks_its_order_is_a_fault(tmp_path: Path) -> None:
    """Unsorted items could hide two of one path, so that a source's broken promise is not passed over."""
    with pytest.raises(RuntimeError, match="order"):
        make_plan(tmp_path, [ITEMS[1], ITEMS[0]])


def test_groups_that_come_in_two_runs_are_refused(tmp_path: Path) -> None:
    """A group whose items are not together would be two archives of one name."""
    with pytest.raises(ConfigError, match="two archives would be named a"):
        make_plan(tmp_path, [Selected("a", ITEMS[0]), Selected("b", ITEMS[1]), Selected("a", ITEMS[2])])


def test_two_groups_with_one_archive_name_are_refused(tmp_path: Path) -> None:
    """A name without {group} fits one group only."""
    config = make_config(tmp_path, archive={"name": "fixed", "group_by": "run"})
    with pytest.raises(ConfigError, match="two archives would be named fixed") as caught:
        plan_run(
            config,
            FakeSource([Selected("a", ITEMS[0]), Selected("b", ITEMS[1])]),
            dry_run=False,
            on_progress=lambda _: None,
        )
    assert "archive.name" in caught.value.hint


def test_a_stranger_in_the_way_is_refused(tmp_path: Path) -> None:
    """A folder or file of the run's name that is no run stays untouched."""
    for make in (lambda p: (p.mkdir(parents=True), (p / "mine").write_bytes(b"x")), lambda p: p.write_bytes(b"x")):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        (root / "runs").mkdir(parents=True)
        make(root / "runs" / "r")
        before = everything(root)
        with pytest.raises(ConfigError, match="is in the way"):
            make_plan(root, ITEMS)
        assert everything(root) == before


@pytest.mark.parametrize("place", ["runs", "."])
def test_a_root_that_cannot_be_a_folder_is_refused(tmp_path: Path, place: str) -> None:
    """A file where the storage should be is told as such, not as a fault in medhaul."""
    root = tmp_path / "root"
    if place == ".":
        root.write_bytes(b"")
    else:
        root.mkdir()
        (root / "runs").write_bytes(b"")
    with pytest.raises(StorageError, match="runs"):
        make_plan(root, ITEMS)


@pytest.mark.parametrize("step", ["_write_manifest", "write_atomic", "_publish", "fsync_folder", "encode_record"])
def test_full_storage_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """When a step fails, no half run and no temporary folder is left, and the error names the storage."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(planner, step, full)
    with pytest.raises((StorageError, OSError)):
        make_plan(tmp_path, ITEMS)
    monkeypatch.undo()
    left = [path.name for path in (tmp_path / "runs").iterdir()]
    assert left == (["r"] if step == "fsync_folder" else [])
    assert make_plan(tmp_path, ITEMS).items == len(ITEMS)


def test_a_kill_at_any_line_leaves_a_whole_run_or_none(tmp_path: Path) -> None:
    """After SIGKILL anywhere in planning, the run directory is absent or good, and planning again is all it takes."""
    items = ITEMS[:5]

    def action(root: Path) -> None:
        make_plan(root, items)

    code, lines = run_and_kill(lambda: action(tmp_path / "whole"), 0)
    assert code == DONE
    sha = RunDir(tmp_path / "whole" / "runs" / "r").read_run().manifest_sha256
    for at in range(1, lines, max(1, lines // 60)):
        root = tmp_path / f"k{at}"
        code, _ = run_and_kill(lambda root=root: action(root), at)
        assert code == KILLED
        run = RunDir(root / "runs" / "r")
        if run.path.exists():
            check_whole(run)
            assert run.read_run().manifest_sha256 == sha
            assert read_back(run) == items
        assert make_plan(root, items).manifest_sha256 == sha


def test_progress_ends_at_the_number_of_items(tmp_path: Path) -> None:
    """What is shown while planning adds up."""
    seen: list[int] = []
    items = [make_item(n) for n in range(5000)]
    plan_run(make_config(tmp_path), FakeSource(items), dry_run=True, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 5000
    assert len(seen) > 1


def test_the_run_can_be_read_by_others_as_the_umask_says(tmp_path: Path) -> None:
    """Colleagues on shared storage see the run, which was made in a private temporary folder."""
    old = os.umask(0o022)
    try:
        run = make_plan(tmp_path, ITEMS).run
    finally:
        os.umask(old)
    assert run is not None
    assert run.path.stat().st_mode & 0o777 == 0o755
    assert run.run_json.stat().st_mode & 0o777 == 0o644
