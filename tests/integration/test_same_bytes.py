"""Same content, same bytes: whatever the shards, workers, routes and kills."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from haul import SECONDS, Haul, start_medhaul

from pipeline.demo.bucket import Store
from pipeline.demo.data import DemoData
from pipeline.demo.site import DemoSite

KILLS = 6


def test_shard_count_leaves_no_trace(folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]) -> None:
    """Seven shards, done two at a time, make the same archives as one."""
    haul = Haul(folder, data.index, site.url, shards=7)
    assert haul.all() == undisturbed
    assert len(haul.shards) >= 7
    haul.check_members(data)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_leave_no_trace(
    seed: int, folder: Path, data: DemoData, store: Store, undisturbed: dict[str, str]
) -> None:
    """Tasks killed at random moments and run again until they are done make the same archives."""
    rng = random.Random(seed)
    with DemoSite(store, latency=0.05) as site:
        haul = Haul(folder, data.index, site.url, shards=7, connections=4)
        haul.plan()
        killed = 0
        for shard in haul.shards:
            for life in range(KILLS):
                process = start_medhaul("task", haul.run.path, "--shard", shard)
                try:
                    process.communicate(timeout=rng.uniform(0.2, 1.0) if life < KILLS - 1 else SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                if process.returncode == 0:
                    break
                assert process.returncode == -signal.SIGKILL
                killed += 1
            assert process.returncode == 0
        assert killed
        ended = haul.reduce()
        assert ended.code == 0, ended.err
    assert haul.sums() == undisturbed
    assert haul.leftovers() == []


@pytest.mark.parametrize(
    ("shards", "connections", "task"),
    [
        (1, 64, {"cores": 4, "memory": "2 GiB"}),
        (2, 2, {"cores": 1, "memory": "256 MiB", "scratch_bytes": "1 MB"}),
        (3, 8, {"verify_blocks": False}),
    ],
    ids=["many workers", "few of everything", "unverified blocks"],
)
def test_workers_leave_no_trace(
    shards: int,
    connections: int,
    task: dict[str, Any],
    folder: Path,
    data: DemoData,
    site: DemoSite,
    undisturbed: dict[str, str],
) -> None:
    """Cores, memory, connections, room on scratch and decoding each block again leave the bytes as they are."""
    haul = Haul(folder, data.index, site.url, shards=shards, connections=connections, task=task)
    assert haul.all() == undisturbed
    assert site.stats.peak_requests <= connections


def test_route_leaves_no_trace_in_the_archive(
    folder: Path, data: DemoData, store: Store, undisturbed: dict[str, str]
) -> None:
    """From the mirror, under its bucket names, the same archives come; only the index beside them tells."""
    with DemoSite(store) as gone:
        endpoint = gone.url  # closed before the haul begins
    with DemoSite(store, mirror="only") as mirror:
        haul = Haul(folder, data.index, endpoint, mirror=mirror.url, task={"attempts": 2})
        assert haul.all() == undisturbed
        routes = {line.route for line in haul.lines() if hasattr(line, "route")}
        assert routes == {f"idc:{mirror.url}"}


def test_later_run_on_other_settings_goes_on(
    folder: Path, data: DemoData, site: DemoSite, undisturbed: dict[str, str]
) -> None:
    """A run that is planned again with other workers keeps what it has, and ends with the same bytes."""
    haul = Haul(folder, data.index, site.url, shards=3)
    haul.plan()
    assert haul.task(0).code == 0
    asked = site.stats.count("GET")
    haul.settings["task"] |= {"cores": 1, "verify_blocks": False}
    assert "was planned before" in haul.plan().out
    assert haul.finish() == undisturbed
    assert site.stats.count("GET") - asked <= sum(len(series.files) for series in data.series) - asked
