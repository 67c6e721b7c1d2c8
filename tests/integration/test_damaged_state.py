"""Files of a run that are cut short, damaged or of another run: told in one line, nothing lost, and made good."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from haul import Haul, one_line_error, run_medhaul
from saboteur import flip_bit

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite
from pipeline.rundir import RunDir

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"
PART = "parts/00/000000.0.part"
JOURNAL = "parts/00/000000.0.journal"
SHARD_INDEX = "parts/00/000000.0.index.zst"
RECEIPT = "receipts/00/000000.json"


@pytest.fixture(scope="module")
def served(store: Store) -> Iterator[DemoSite]:
    """One site for all tests here."""
    with DemoSite(store) as site:
        yield site


@pytest.fixture(scope="module")
def done(data: DemoData, served: DemoSite, tmp_path_factory: pytest.TempPathFactory) -> Haul:
    """A run whose two shards are done, and that was not reduced."""
    select = {"collections": [COLLECTION]}
    made = Haul(tmp_path_factory.mktemp("done"), data.index, served.url, select=select, shards=2)
    made.plan()
    assert [ended.code for ended in made.tasks()] == [0, 0]
    return made


@pytest.fixture(scope="module")
def other(data: DemoData, served: DemoSite, tmp_path_factory: pytest.TempPathFactory) -> Haul:
    """Another run of the same series, cut otherwise."""
    select = {"collections": [COLLECTION]}
    made = Haul(
        tmp_path_factory.mktemp("other"), data.index, served.url, select=select, archive={"group_bytes": "400 kB"}
    )
    made.plan()
    assert made.task().code == 0
    return made


@pytest.fixture
def haul(done: Haul, tmp_path: Path) -> Haul:
    """A copy of the run that is done, to be damaged."""
    mine = copy.copy(done)
    mine.run = RunDir(tmp_path / "haul")
    mine.scratch = tmp_path / "scratch"
    shutil.copytree(done.run.path, mine.run.path)
    return mine


def cut(path: Path) -> None:
    """Lose the second half, as when a disk was full."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Lose all bytes, as after a power cut on some file systems."""
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    """Have bytes of something else, of the same length."""
    path.write_bytes(bytes(range(128, 256)) * (path.stat().st_size // 128 + 1))


HARMS = [cut, empty, garbage]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["run.json", "manifest.index.json", "manifest.jsonl.zst"])
def test_damaged_plan_is_told(name: str, harm: Callable[[Path], None], haul: Haul, undisturbed: dict[str, str]) -> None:
    """Task and reduce refuse a run whose plan is damaged, with 78 and the file's name; nothing else has changed."""
    path = haul.run.path / name
    whole = path.read_bytes()
    before = {each: each.read_bytes() for each in (haul.run.path / "parts").rglob("*") if each.is_file()}
    harm(path)
    for ended in (haul.task(1), haul.reduce()):
        assert ended.code == 78, ended.err
        assert str(path) in one_line_error(ended)
    path.write_bytes(whole)
    assert {each: each.read_bytes() for each in before} == before
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


@pytest.mark.parametrize("name", ["run.json", "manifest.index.json", "manifest.jsonl.zst"])
def test_plan_of_another_run_is_told(name: str, haul: Haul, other: Haul, undisturbed: dict[str, str]) -> None:
    """A plan of which one file is another run's is refused with 78 by task and reduce."""
    path = haul.run.path / name
    whole = path.read_bytes()
    shutil.copy(other.run.path / name, path)
    for ended in (haul.task(0), haul.reduce()):
        assert ended.code == 78, ended.err
        one_line_error(ended)
    path.write_bytes(whole)
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


@pytest.mark.parametrize("harm", [*HARMS, Path.unlink], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", [RECEIPT, PART, SHARD_INDEX])
def test_damaged_result_is_done_again(
    name: str, harm: Callable[[Path], None], haul: Haul, undisturbed: dict[str, str]
) -> None:
    """Reduce refuses what a damaged receipt, part or shard index proves; doing the shard again makes the same bytes."""
    path = haul.run.path / name
    harm(path)
    refused = haul.reduce()
    assert refused.code in {3, 78}, refused.err
    assert path.name in refused.err or "no receipt" in refused.err
    one_line_error(refused)
    assert haul.archives() == []
    if refused.code == 78:  # bytes that only reading shows to be wrong: the hint says what to remove
        assert f"remove {path.name}" in refused.err
        path.unlink()
        assert haul.reduce().code == 3
    ended = haul.task(0)
    assert ended.code == 0, ended.err
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


@pytest.mark.parametrize("harm", [cut, empty, garbage, flip_bit])
@pytest.mark.parametrize("name", [PART, JOURNAL])
def test_damaged_part_or_journal_is_never_taken_over(
    name: str, harm: Callable[[Path], None], haul: Haul, served: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A later life takes over only what part and journal agree on, and fetches the rest."""
    (haul.run.path / RECEIPT).unlink()
    harm(haul.run.path / name)
    served.stats.reset()
    ended = haul.task(0)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert served.stats.count("GET") > 0
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_receipt_of_another_run_proves_nothing(haul: Haul, other: Haul, undisturbed: dict[str, str]) -> None:
    """A receipt that another run wrote is refused, and the shard counts as missing."""
    shutil.copy(other.run.path / RECEIPT, haul.run.path / RECEIPT)
    refused = haul.reduce()
    assert refused.code == 3
    assert "of another shard or run" in refused.err
    assert haul.task(0).code == 0
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_journal_of_another_run_is_told(haul: Haul, other: Haul, undisturbed: dict[str, str]) -> None:
    """A journal that another run wrote ends the task with 78; removed as the hint says, its part is in nobody's way."""
    (haul.run.path / RECEIPT).unlink()
    shutil.copy(other.run.path / JOURNAL, haul.run.path / JOURNAL)
    ended = haul.task(0)
    assert ended.code == 78, ended.err
    assert JOURNAL in one_line_error(ended)
    (haul.run.path / JOURNAL).unlink()
    ended = haul.task(0)
    assert ended.code == 0, ended.err
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


@pytest.mark.parametrize("harm", [cut, empty, garbage])
@pytest.mark.parametrize("suffix", ["", ".index.jsonl.zst"])
def test_archive_damaged_after_reduce(
    suffix: str, harm: Callable[[Path], None], haul: Haul, undisturbed: dict[str, str]
) -> None:
    """A finished archive whose length or index is damaged no longer counts; its shards can be done again."""
    assert haul.reduce().code == 0
    harm(haul.run.archives / (ARCHIVE + suffix))
    refused = haul.reduce()
    if refused.code == 0:  # of the same length, so only `verify` sees it: reduce reads no finished archive again
        assert (suffix, harm) == ("", garbage)
        return
    assert refused.code == 3, refused.err
    assert "is missing" in refused.err
    assert [haul.task(shard).code for shard in haul.shards] == [0, 0]
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_damaged_config_is_told(done: Haul, tmp_path: Path) -> None:
    """A config that is cut short ends `plan` with 78 and makes no run."""
    config = tmp_path / "config.toml"
    text = done.config.read_text()
    for length in range(20, len(text) - 1, len(text) // 8):
        config.write_text(text[:length])
        ended = run_medhaul("plan", config)
        if ended.code:
            assert ended.code == 78, ended.err
            assert str(config) in one_line_error(ended)


def test_command_lines_that_cannot_be(done: Haul, tmp_path: Path) -> None:
    """A folder that is no run, a shard that there is not and a half-named task end with their codes."""
    for arguments, code in [
        (("task", tmp_path, "--shard", 0), 64),
        (("reduce", tmp_path / "none"), 64),
        (("task", done.run.path, "--shard", 99), 78),
        (("task", done.run.path), 64),
        (("task", done.run.path, "--attempt", 7, "--index", 0), 78),
    ]:
        ended = run_medhaul(*arguments)
        assert ended.code == code, ended.err
        one_line_error(ended)
