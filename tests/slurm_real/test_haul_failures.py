"""What goes wrong on a real Slurm: tasks that fail, end early, die, are preempted. Each haul ends in the same bytes."""

from __future__ import annotations

from pathlib import Path

from haul_kit import GatedSite, SlurmHaul, booked_haul, data, few, haul, site, undisturbed  # noqa: F401

from pipeline.demo.faults import Fault


def test_failing_items(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """Items that fail keep back their archive only; reduce says how to go on, `--allow-partial` joins what is there."""
    haul.plan()
    for uuid in haul.own_series(2)[2:]:
        site.faults.set(f"{uuid}/*", Fault(kind="vanish"))
    haul.submit()
    haul.settle()
    report = haul.status()
    assert (report["reduce"]["state"], report["reduce"]["exit_code"]) == ("FAILED", 3)
    assert (report["failed"], report["shards"]["done"]) == (2, 3)
    assert haul.causes() == {2: "partial"}
    assert "1 partial: 2 failed (shard 2)\n  -> partial: `failed` lists the items" in haul.told()
    assert f"medhaul resume {haul.run.path}" in haul.reduce_log()
    assert {view["name"]: view["state"] for view in report["archives"]} == {
        "demo_ct_mr": "missing",
        "demo_nc": "complete",
    }
    said = haul.medhaul("failed", haul.run.path, "--logs").out
    assert "withdrawn" in said
    assert f"--- {haul.run.logs(1)}/{haul.job(2)}.log" in said
    assert "2 of 4 items failed" in said
    partial = haul.medhaul("reduce", haul.run.path, "--allow-partial", code=3)
    assert "medhaul resume" in partial.err
    assert {view["state"] for view in haul.status()["archives"]} == {"partial", "complete"}
    site.faults.clear()
    assert haul.finish() == few
    assert haul.run.read_plan(2).shards == [2]


def test_failing_node_setup(haul: SlurmHaul, few: dict[str, str]) -> None:  # noqa: F811
    """A task that cannot even start medhaul is failed, and the end of its log says why."""
    environment = Path(haul.environ["MEDHAUL_ENV"])
    good = environment.read_text()
    environment.write_text(good + '[ "$SLURM_ARRAY_TASK_ID" != 1 ]\n')
    haul.submit()
    haul.settle()
    assert haul.causes() == {1: "failed"}
    assert "exit code 78" in haul.reason(1)
    said = haul.medhaul("failed", haul.run.path, "--logs").out
    assert f"MEDHAUL_ENV={environment}: not there, or it failed" in said
    environment.write_text(good)
    assert haul.finish() == few


def test_early_signal(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """At the early signal a task that got on queues itself again, so often as it may; one that did not, does not."""
    haul.settings["slurm"]["requeue"] = 1
    haul.settings["limits"]["connections"] = 96  # what is held back must not take all those of a task
    haul.plan()
    others = haul.own_series(2)[1:]
    site.shut(haul.own_series(1)[-1], *others, *haul.own_series(3))
    haul.submit()
    haul.wait_blocked(1, frames=1)
    haul.wait_blocked(2, frames=1)
    haul.wait_blocked(3)
    for shard in (1, 2, 3):
        haul.signal(shard)
    haul.wait(lambda: "TimeLimitError: shard 2: stopped by SIGUSR1" in haul.waiting(2))
    assert "its last life on n" in haul.waiting(1)
    haul.wait(lambda: haul.row(3)["State"] == "FAILED")
    assert haul.causes() == {3: "timeout"}
    site.forget()
    site.open(others[0], haul.own_series(1)[-1])
    haul.wait_blocked(2, frames=2, restarts=1)
    haul.signal(2)
    site.open()
    haul.settle()
    assert haul.causes() == {2: "timeout", 3: "timeout"}
    assert "exit code 75" in haul.reason(2)
    assert haul.status()["reduce"]["exit_code"] == 3
    assert "queued again, for the 1. of 1 times" in haul.log(2)
    assert "not queued again: 1 of 1 times" in haul.log(2)
    assert "not queued again: no frame was finished" in haul.log(3)
    done = haul.receipt(1)
    assert done is not None
    assert (done.job, done.life) == (f"{haul.job(1)}.1", 1)
    assert haul.finish() == few


def test_scancel_by_hand(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """A running and a waiting task that somebody cancels are told as cancelled; the others go on."""
    haul.settings["limits"]["tasks"] = 2
    haul.plan()
    site.shut(haul.own_series(1)[-1], *haul.own_series(2))
    haul.submit()
    haul.wait_blocked(1, frames=1)
    haul.wait_blocked(2)
    assert haul.row(3)["State"] == "PENDING"
    haul.cluster.run("scancel", haul.job(1), haul.job(3), check=True)
    haul.wait(lambda: set(haul.causes()) == {1, 3})
    site.open()
    haul.settle()
    assert haul.causes() == {1: "cancelled", 3: "cancelled"}
    assert haul.status()["reduce"]["exit_code"] == 3
    assert haul.finish() == few


def test_dead_node(haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """A task whose node loses power starts again on another, and keeps what it had finished."""
    haul.cluster.reconfigure(SlurmdTimeout=3, MessageTimeout=2)  # or it takes much longer to be missed
    haul.plan()
    site.shut(haul.own_series(1)[-1])
    haul.submit()
    node = haul.wait_blocked(1, frames=1)
    haul.cluster.kill_node(node)
    haul.wait(lambda: f"its last life on {node} ended without a word" in haul.waiting(1))
    waiting = haul.waiting(1)
    assert "requeued 1 time; waits to start again" in waiting
    assert f"1 waiting: {waiting} (shard 1)" in haul.told()
    site.open()
    assert haul.ended_well() == few
    done = haul.receipt(1)
    assert done is not None
    assert done.node != node
    assert done.job == f"{haul.job(1)}.1"


def test_dead_node_with_accounting(booked_haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """Where there is accounting, a task that starts again is told to do so after a node failure."""
    booked_haul.plan()
    site.shut(booked_haul.own_series(1)[-1])
    booked_haul.submit()
    node = booked_haul.wait_blocked(1, frames=1)
    booked_haul.cluster.kill_node(node, announce=True)
    booked_haul.wait(lambda: f"after node failure on {node}" in booked_haul.waiting(1))
    assert "ended without a word" in booked_haul.waiting(1)
    site.open()
    assert booked_haul.ended_well() == few


def test_preemption(booked_haul: SlurmHaul, site: GatedSite, few: dict[str, str]) -> None:  # noqa: F811
    """A preempted task notes what is finished, starts again, and goes on from there."""
    booked_haul.plan()
    site.shut(booked_haul.own_series(2)[-1])
    booked_haul.submit()
    node = booked_haul.wait_blocked(2, frames=3)
    high = booked_haul.cluster.submit("true\n", "-p", "high", "-c2", "-w", node)
    booked_haul.cluster.wait_ended(high)
    booked_haul.wait(lambda: f"after preemption on {node}" in booked_haul.waiting(2))
    assert f"its last life on {node}: InterruptedRunError: shard 2: stopped by SIGTERM" in booked_haul.waiting(2)
    site.open()
    assert booked_haul.ended_well() == few
    done = booked_haul.receipt(2)
    assert done is not None
    assert {part.name for part in done.parts} == {"000002.0.part", "000002.1.part"}
