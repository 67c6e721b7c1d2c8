"""What a plan says of items whose size nobody states, of scratch, and of politeness to NBIA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_kit import make_config, make_item, make_plan

from pipeline.cli.plan import render_plan
from pipeline.doctor.scratch import read_needs, scratch_wanted
from pipeline.manifest import Manifest
from pipeline.model import IsicLocation, Item, NbiaLocation
from pipeline.plan.planner import Plan
from pipeline.sizes import DICOM_BYTES, IMAGE_BYTES, item_bytes, zip_bytes
from pipeline.task.intake import frame_size
from pipeline.units import render_size

DEFAULT = {"group_bytes": "64 MiB", "cut_bytes": "2 GiB"}
NBIA, ISIC = NbiaLocation("http://127.0.0.1:9/s"), IsicLocation("http://127.0.0.1:9/api", ("u",), (".jpg",))


def moved(where: Any, *args: Any, **options: Any) -> Item:
    """An item of another source."""
    return msgspec.structs.replace(make_item(*args, **options), location=where)


def frames_of(plan: Plan) -> dict[int, list[Any]]:
    """The entries of each frame."""
    assert plan.run is not None
    frames: dict[int, list[Any]] = {}
    for _, entry in Manifest(plan.run).all_entries():
        frames.setdefault(entry.frame, []).append(entry)
    return frames


def test_images_of_unstated_size_do_not_make_a_giant_frame(tmp_path: Path) -> None:
    """A thousand images that may be of a MiB each are as many frames as if that were stated."""
    items = [moved(ISIC, n, files=1, size=-1) for n in range(1000)]
    plan = make_plan(tmp_path / "a", items, archive=DEFAULT)
    assert len(frames_of(plan)) == -(-1000 // ((64 << 20) // IMAGE_BYTES))
    stated = [msgspec.structs.replace(item, bytes=IMAGE_BYTES) for item in items]
    other = make_plan(tmp_path / "b", stated, archive=DEFAULT)
    assert [len(f) for f in frames_of(other).values()] == [len(f) for f in frames_of(plan).values()]
    assert (plan.unknown_sizes, plan.bytes, plan.assumed_bytes) == (1000, 1000 * IMAGE_BYTES, 1000 * IMAGE_BYTES)
    assert (other.unknown_sizes, other.bytes, other.assumed_bytes) == (0, 1000 * IMAGE_BYTES, 0)
    assert plan.licences == other.licences


def test_a_series_of_unstated_size_is_cut_by_its_files(tmp_path: Path) -> None:
    """At 512 KiB an instance; and the same frames whatever else is in the plan's settings of shards."""
    items = [moved(NBIA, n, files=files, size=-1) for n, files in enumerate([9000, 3, -1, 200])]
    plans = [make_plan(tmp_path / str(n), items, archive=DEFAULT, shards={"count": n}) for n in (0, 3)]
    first, second = [[[e.number for e in entries] for entries in frames_of(plan).values()] for plan in plans]
    assert first == second
    assert first == [[0]] * -(-9000 * DICOM_BYTES // (2 << 30)) + [[1, 2], [3]]


def test_archives_of_bounded_size_count_what_is_assumed(tmp_path: Path) -> None:
    """`max_bytes` bounds archives of images of unstated size, too."""
    items = [moved(ISIC, n, files=1, size=-1) for n in range(10)]
    plan = make_plan(tmp_path, items, archive={"max_bytes": 4 * IMAGE_BYTES})
    assert [archive.items for archive in plan.archives] == [4, 4, 2]


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    """The totals are marked as an estimate, with how much of them is one; stated ones are not."""
    config = make_config(tmp_path)
    stated = make_plan(tmp_path, [make_item(n, size=500) for n in range(3)], dry_run=True)
    assert "about" not in render_plan(stated, config)
    mixed = [make_item(0, size=500), moved(ISIC, 1, files=1, size=0)]
    said = render_plan(make_plan(tmp_path, mixed, dry_run=True), config)
    assert "1 of unstated size" in said
    (line,) = (line for line in said.splitlines() if line.startswith("bytes"))
    assert "about" in line
    assert f"{render_size(IMAGE_BYTES)} of it assumed" in line


def test_the_manifest_keeps_what_the_source_states(tmp_path: Path) -> None:
    """What is assumed is for planning: no item is refused for it."""
    plan = make_plan(tmp_path, [moved(ISIC, 0, files=1, size=-1)])
    ((entry,),) = frames_of(plan).values()
    assert entry.item.bytes == -1


def test_plan_doctor_and_task_agree_on_scratch(tmp_path: Path) -> None:
    """With zips, cut items and unstated sizes: what is printed is what a task asks for."""
    items = [moved(NBIA, 0, files=9, size=30_000_000), make_item(1, size=2_000_000), moved(NBIA, 2, files=2, size=-1)]
    changes = {"archive": {"cut_bytes": "8 MB", "group_bytes": "1 MB"}, "task": {"scratch_bytes": "1 GB"}}
    plan = make_plan(tmp_path, items, **changes)
    config = make_config(tmp_path, **changes)
    largest = max(frame_size(entries).bytes for entries in frames_of(plan).values())
    assert largest == 30_000_000 // 4 + zip_bytes(items[0]) > 30_000_000 // 4 + 30_000_000
    assert plan.scratch_frame == largest
    needs = read_needs(config)
    assert needs is not None
    assert (needs.largest_frame, needs.largest_shard) == (plan.scratch_frame, plan.scratch_shard)
    least, most = scratch_wanted(config.task, needs)
    said = render_plan(plan, config)
    assert f"up to {render_size(most)} a task" in said
    assert f"at least {render_size(least)}" in said
    assert needs.total == plan.bytes == sum(map(item_bytes, items))


@pytest.mark.parametrize(
    ("tasks", "shards", "where", "warned"),
    [(17, 20, NBIA, True), (16, 20, NBIA, False), (17, 16, NBIA, False), (17, 20, None, False)],
)
def test_more_tasks_than_nbia_may_have_connections_are_warned_of(
    tmp_path: Path, tasks: int, shards: int, where: Any, warned: bool
) -> None:
    """Each task has one at least, so the bound would not hold; where nothing comes from NBIA it is of no interest."""
    items = [make_item(n, size=20_000) for n in range(24)]
    items = [msgspec.structs.replace(item, location=where or item.location) for item in items]
    changes = {
        "archive": {"group_bytes": 10_000}, "shards": {"count": shards}, "limits": {"tasks": tasks},
        "sources": {"tcia": {"connections": 16}},
    }  # fmt: skip
    plan = make_plan(tmp_path, items, dry_run=True, **changes)
    found = [note for note in plan.notes if "sources.tcia.connections" in note]
    assert bool(found) == warned
    assert all(f"{tasks}" in note and "limits.tasks" in note for note in found)
