"""Hauls on a real Slurm that end well: from job or shell, in one array or many, and cancelled and resumed."""

from __future__ import annotations

import os
from pathlib import Path

from cluster import SlurmCluster
from haul_kit import SCRIPTS, GatedSite, SlurmHaul, data, few, haul, site, undisturbed  # noqa: F401

from pipeline.demo.data import DemoData
from tests.integration.haul import one_line_error, render_toml

HOSTILE = 'it\'s a "run" – naïve $HOME `x` *;&'  # noqa: RUF001 - all that a config allows in storage.root


def test_planned_and_submitted_in_a_job(
    cluster: SlurmCluster,
    tmp_path: Path,
    data: DemoData,  # noqa: F811
    site: GatedSite,  # noqa: F811
    few: dict[str, str],  # noqa: F811
) -> None:
    """`sbatch submit_array.sh CONFIG` from a folder with a hostile name does the whole haul."""
    hostile = SlurmHaul(cluster, tmp_path / HOSTILE, data, site)
    hostile.config.write_text(render_toml(hostile.settings))
    script = SCRIPTS / "submit_array.sh"
    done = hostile.shell(
        "sbatch", "--parsable", script, hostile.config.name, MEDHAUL_ENV=hostile.environ["MEDHAUL_ENV"]
    )
    job = done.out.strip()
    (row,) = cluster.wait_ended(job)
    said = (hostile.folder / f"medhaul-submit-{job}.log").read_text()
    assert row["State"] == "COMPLETED", said
    assert "medhaul resume" in said
    assert hostile.ended_well() == few


def test_submitted_from_a_shell(haul: SlurmHaul, few: dict[str, str]) -> None:  # noqa: F811
    """`bash submit_array.sh CONFIG` does the same with the `medhaul` on PATH; a repetition finds nothing to do."""
    haul.config.write_text(render_toml(haul.settings))
    path = f"{haul.folder / 'bin'}{os.pathsep}{haul.environ['PATH']}"
    script = ("bash", SCRIPTS / "submit_array.sh", haul.config)
    assert f"medhaul status {haul.run.path}" in haul.shell(*script, PATH=path).out
    assert haul.ended_well() == few
    assert "nothing to do" in haul.shell(*script, PATH=path).out
    assert haul.run.attempts() == [1]


def test_many_arrays(
    cluster: SlurmCluster,
    tmp_path: Path,
    data: DemoData,  # noqa: F811
    site: GatedSite,  # noqa: F811
    undisturbed: dict[str, str],  # noqa: F811
) -> None:
    """Where arrays are short, 23 shards go in five of them, with never more tasks at a time than allowed in all."""
    cluster.reconfigure(MaxArraySize=5)
    long = SlurmHaul(cluster, tmp_path / "long", data, site, shards=23, tasks=3, collections=())
    long.submit()
    assert [(job.kind, job.length) for job in long.run.read_jobs(1)] == [
        ("array", 4), ("array", 5), ("array", 4), ("array", 5), ("array", 5), ("reduce", 0),
    ]  # fmt: skip
    assert long.ended_well() == undisturbed
    receipts = long.receipts()
    assert len(receipts) == 23
    begun = [sum(other.started <= receipt.started < other.ended for other in receipts) for receipt in receipts]
    assert 2 <= max(begun) <= 3


def test_throttle_of_a_live_run(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """`medhaul throttle` lets fewer or more tasks of a run at work run at a time, but never exceeds its connections."""
    haul.settings["limits"]["tasks"] = 2
    haul.plan()
    site.shut(*haul.own_series(1), *haul.own_series(2), *haul.own_series(3))
    haul.submit()
    haul.wait_blocked(1)
    haul.wait_blocked(2)
    assert haul.waiting(3) == "for its turn among the run's tasks"
    assert "hold 24 of the run's 24 connections" in one_line_error(haul.medhaul("throttle", haul.run.path, 3, code=64))
    assert "more connections than the run has: 24" in one_line_error(
        haul.medhaul("throttle", haul.run.path, 25, code=64)
    )
    haul.medhaul("throttle", haul.run.path, 1)
    site.open(*haul.own_series(2))
    haul.wait(lambda: [view["shard"] for view in haul.status()["running"]] == [1])
    assert haul.row(3)["State"] == "PENDING"
    haul.medhaul("throttle", haul.run.path, 2)
    haul.wait_blocked(3)
    site.open()
    assert haul.ended_well() == few
    for shard in (1, 2, 3):  # two at a time, of 24 together
        assert "12 connections" in haul.log(shard)


def test_cancel_and_resume(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """A run at work refuses another attempt; cancelled it ends at once, and `resume` keeps what was finished."""
    haul.settings["limits"]["tasks"] = 2
    haul.plan()
    site.shut(*haul.own_series(1)[-1:], *haul.own_series(2)[1:])
    haul.submit()
    haul.wait_blocked(1, frames=1)
    haul.wait_blocked(2, frames=1)
    kept = haul.journaled_keys(2)
    error = one_line_error(haul.medhaul("resume", haul.run.path, code=64))
    assert "attempt 001 is still at work" in error
    said = haul.medhaul("cancel", haul.run.path).out
    assert "cancelled; go on with:" in said
    report = haul.status()
    assert (report["alive"], report["reduce"]["state"]) == ("ended", "CANCELLED")
    assert haul.causes() == {1: "cancelled", 2: "cancelled", 3: "cancelled"}
    assert "nothing is at work" in haul.medhaul("cancel", haul.run.path).out
    site.open()
    site.stats.reset()
    assert haul.finish() == few
    assert not any(site.stats.count("GET", key) for key in kept)
    assert haul.run.read_plan(2).shards == [1, 2, 3]
