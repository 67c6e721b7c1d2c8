"""Raw files that a dead life left on scratch are used again, but never trusted unread."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from haul import Haul, Sabotage
from saboteur import flip_bit

from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"


@pytest.fixture
def haul(folder: Path, data: DemoData, site: DemoSite) -> Haul:
    """One planned shard of one collection in one frame, so that nothing is journaled until all is verified."""
    sizes = {"group_bytes": "20 MB", "cut_bytes": "20 MB"}
    made = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, archive=sizes, connections=4)
    made.plan()
    return made


def verified(haul: Haul) -> dict[str, str]:
    """Key -> path of the raw files that the cache's log lists."""
    [log] = haul.scratch.rglob("verified.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line]
    return {line["file"]["key"]: line["file"]["local"] for line in lines}


def fetched(site: DemoSite) -> set[str]:
    """Keys of the objects that were asked for."""
    return {asked.key for asked in site.stats.requests_log() if asked.verb == "GET"}


def test_verified_files_are_used_again(haul: Haul, site: DemoSite) -> None:
    """After a kill every file that was verified is taken from scratch, and the folder is gone in the end."""
    assert haul.task(sabotage=Sabotage("verified", 8, "SIGKILL")).code == -signal.SIGKILL
    kept = verified(haul)
    assert len(kept) == 8
    first = fetched(site)
    site.stats.reset()
    ended = haul.task()
    assert ended.code == 0, ended.err
    assert fetched(site).isdisjoint(kept)
    assert len(fetched(site)) == 12 - 8
    assert len(first | fetched(site)) == 12
    assert [path for path in haul.scratch.rglob("*") if path.is_file()] == []


def test_flipped_bit_on_scratch_is_noticed(haul: Haul, site: DemoSite) -> None:
    """Of the files of a dead life, the one in which a bit changed is fetched again, and no other."""
    assert haul.task(sabotage=Sabotage("verified", 8, "SIGKILL")).code == -signal.SIGKILL
    kept = verified(haul)
    spoiled = sorted(kept)[3]
    flip_bit(Path(kept[spoiled]))
    site.stats.reset()
    assert haul.task().code == 0
    assert fetched(site) & set(kept) == {spoiled}


@pytest.mark.parametrize("harm", ["torn", "garbage", "lost file"])
def test_damaged_cache_costs_only_downloads(harm: str, haul: Haul, site: DemoSite) -> None:
    """A log of the cache that is torn or garbage, or a file that is gone, costs downloads and nothing else."""
    assert haul.task(sabotage=Sabotage("verified", 8, "SIGKILL")).code == -signal.SIGKILL
    [log] = haul.scratch.rglob("verified.jsonl")
    if harm == "torn":
        log.write_bytes(log.read_bytes()[:-30])
    elif harm == "garbage":
        log.write_bytes(b"\0\xff{}\n" + b"\x80" * 5000)
    else:
        Path(next(iter(verified(haul).values()))).unlink()
    site.stats.reset()
    ended = haul.task()
    assert ended.code == 0, ended.err
    assert len(fetched(site)) == {"torn": 5, "garbage": 12, "lost file": 5}[harm]


@pytest.mark.parametrize("count", [3, 12])
def test_bit_that_flips_after_verification_is_noticed(
    count: int, folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A raw file that changes between its verification and its packing never enters the archive."""
    haul = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, connections=4)
    haul.plan()
    ended = haul.task(sabotage=Sabotage("verified", count, "FLIP"))
    assert ended.code == 0, ended.err
    assert "changed on scratch" in ended.err
    assert haul.reduce().code == 0
    assert haul.sums() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_two_lives_at_once(haul: Haul, site: DemoSite) -> None:
    """Two lives of one shard at the same time disturb each other in nothing, and one of the receipts stands."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: haul.task(), range(2)))
    assert [ended.code for ended in both] == [0, 0], both
    assert haul.reduce().code == 0
    assert haul.leftovers() == []
