"""Folders of plans: with the rights that the umask leaves, and removed when their plan was killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run_kit import make_item, make_plan

from pipeline.plan.planner import UNFINISHED_AGE, remove_unfinished


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_run_folder_has_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    """A user who keeps others out keeps them out of the run too; a group that shares can write."""
    before = os.umask(umask)
    try:
        plan = make_plan(tmp_path, [make_item(0)])
    finally:
        os.umask(before)
    assert plan.run is not None
    assert plan.run.path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_a_killed_plan_left_is_removed_by_the_next_of_that_name(tmp_path: Path) -> None:
    """After a day; a plan that may still run, other names and other files stay."""
    root = tmp_path / "runs"
    names = [".r.abcd_123", ".r.abcdefgh", ".r.x.abcdefgh", ".q.abcdefgh", ".r.abc", "r.abcdefgh"]
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "manifest.jsonl.zst").touch()
        for path in (root / name / "manifest.jsonl.zst", root / name):
            os.utime(path, (1e9, 1e9))
    remove_unfinished(root, "r", 1e9 + UNFINISHED_AGE - 1)
    assert names_in(root) == sorted(names)
    (root / ".r.abcdefgh" / "manifest.jsonl.zst").touch()  # its plan goes on
    os.utime(root / ".r.abcdefgh", (1e9, 1e9))
    make_plan(tmp_path, [make_item(0)])
    assert names_in(root) == sorted({*names, "r"} - {".r.abcd_123"})
