"""A task that is told to stop while it waits ends at once: not when the wait is over."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from haul import Haul, start_medhaul

from pipeline.demo.data import DemoData
from pipeline.demo.faults import Fault
from pipeline.demo.site import DemoSite

COLLECTION = "demo_ct_mr"
ARCHIVE = f"{COLLECTION}.tar.xz"
# Far longer than a stop may take, far shorter than what the tasks here wait for.
SOON = 30


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened at the site while the process lives."""
    end = time.monotonic() + SOON
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "struck", "task"),
    [
        (Fault(kind="stall", seconds=600), 1, {"stall": 300}),
        (Fault(kind="stall", seconds=600, on="list"), 1, {"stall": 300}),
        (Fault(kind="drip", rate=1), 1, {"stall": 300}),
        (Fault(kind="slow-down", seconds=59), 1, {}),
        (Fault(kind="error-503"), 1, {"retry_base": 300, "attempts": 20}),
        (Fault(kind="error-503"), 2, {"second_round_wait": 600, "attempts": 2}),
    ],
    ids=["stalled body", "stalled listing", "dripping body", "Retry-After", "between retries", "before second round"],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_stop_ends_a_wait(
    fault: Fault,
    struck: int,
    task: dict[str, float],
    number: signal.Signals,
    folder: Path,
    data: DemoData,
    site: DemoSite,
    undisturbed: dict[str, str],
) -> None:
    """Whatever a task waits for, a signal ends it within seconds, with 75; later it goes on to the same bytes."""
    target = max((s for s in data.series if s.row.collection_id == COLLECTION), key=lambda s: len(s.files))
    site.faults.set(f"{target.row.crdc_series_uuid}/*", fault)
    haul = Haul(folder, data.index, site.url, select={"collections": [COLLECTION]}, task=task)
    haul.plan()
    process = start_medhaul("task", haul.run.path, "--shard", 0)
    wait_for(lambda: site.faults.struck.get(fault.kind, 0) >= struck, process)
    time.sleep(0.2)  # into the wait; earlier would be as good
    process.send_signal(number)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 75, err
    assert "medhaul resume" in err
    assert haul.receipts() == []
    site.faults.clear()
    haul.settings["task"] |= {"stall": 1, "retry_base": 0.01, "second_round_wait": 0.05}
    haul.plan()
    assert haul.finish() == {ARCHIVE: undisturbed[ARCHIVE]}


def test_plan_killed_before_it_is_published(folder: Path, data: DemoData, site: DemoSite) -> None:
    """A plan that is killed leaves no run; planned again, it is the same plan."""
    haul = Haul(folder, data.index, site.url)
    haul.plan()
    first = haul.run.read_run().manifest_sha256
    haul.run.path.rename(folder / "first")
    process = start_medhaul("plan", haul.config)
    deadline = time.monotonic() + SOON
    while not list(haul.run.path.parent.glob(".haul.*")) and process.poll() is None:
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    haul.plan()
    assert haul.run.read_run().manifest_sha256 == first
