"""Scratch or shared storage that takes no more: exit code 73, the place is named, and later all goes on."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from haul import Haul, one_line_error, run_medhaul

from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"


@pytest.fixture
def haul(folder: Path, data: DemoData, site: DemoSite) -> Haul:
    """One planned shard of one collection."""
    made = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, connections=4)
    made.plan()
    return made


def limit_files(size: int) -> None:
    """Let this process write no file beyond so many bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_full_scratch_ends_with_73(folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """A scratch that takes no more ends the task with exit code 73; with room again it goes on to the same bytes."""
    haul = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, connections=4)
    haul.plan()
    ended = haul.task(preexec_fn=lambda: limit_files(500_000))
    assert ended.code == 73, ended.err
    assert "cannot write" in one_line_error(ended)
    assert haul.finish() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_full_shared_storage_ends_with_73(
    folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A part that cannot grow ends the task with exit code 73; with room again it goes on to the same bytes."""
    haul = Haul(folder, data.index, site.url, select={"collections": ["demo_mixed"]}, connections=4)
    haul.plan()
    ended = haul.task(preexec_fn=lambda: limit_files(1_200_000))  # raw files have 0.9 MB at most, the part 1.7 MB
    assert ended.code == 73, ended.err
    assert ".part" in one_line_error(ended)
    assert haul.finish() == {"demo_mixed.tar.xz": undisturbed["demo_mixed.tar.xz"]}


def test_unusable_scratch_is_told(haul: Haul) -> None:
    """A scratch folder that cannot be made ends the task with exit code 73 and a message that names it."""
    haul.settings["task"]["scratch"] = "/proc/no/such/place"
    haul.plan()
    ended = haul.task()
    assert ended.code == 73, ended.err
    assert "/proc/no/such/place" in one_line_error(ended)


def test_full_storage_ends_reduce_with_73(haul: Haul, undisturbed: dict[str, str]) -> None:
    """An archive that cannot grow ends reduce with exit code 73 and leaves no half of it; later it is made."""
    assert haul.task().code == 0
    ended = run_medhaul("reduce", haul.run.path, preexec_fn=lambda: limit_files(800_000))
    assert ended.code == 73, ended.err
    assert ARCHIVE in one_line_error(ended)
    assert list(haul.run.archives.iterdir()) == []
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}
