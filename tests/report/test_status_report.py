"""The status report: receipts decide, the rest explains; ten thousand shards are read quickly."""

from __future__ import annotations

import sys
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Job
from pipeline.report.explain import Cause, ShardState, classify_shard, exit_meanings, explain_exit, explain_task
from pipeline.report.failed import make_failed
from pipeline.report.progress import PlainView, RichView, choose_view
from pipeline.report.receipts import read_todo
from pipeline.report.render import render_line, render_open, render_status
from pipeline.report.status import Collector, StatusReport, view_running
from pipeline.schedulers.base import State, TaskStatus, job_keys
from tests.schedulers.fake_run import heartbeat_of, receipt_of, write_archive, write_part, write_run
from tests.schedulers.test_attempt import Paper, plan


class Told(Paper):
    """A scheduler that says what it is told to say."""

    def __init__(self, **states: TaskStatus) -> None:
        super().__init__()
        self.told = {int(key[1:]): status for key, status in states.items() if key != "reduce"}
        self.reduce = states.get("reduce", TaskStatus(State.PENDING))

    def states(self, jobs):
        return {
            (job, index): self.reduce if job == "2" else self.told.get(index, TaskStatus(State.PENDING))
            for job, index in job_keys(jobs)
        }


def submitted(run, shards, scheduler):
    """A collector of a run whose first attempt, of `shards` shards, stands as `scheduler` says."""
    made = msgspec.structs.replace(plan(range(shards), run.read_config().limits), run="r1")
    run.write_plan(made)
    run.write_jobs(
        1,
        [Job(kind="array", name="a", id="1", offset=0, length=shards), Job(kind="reduce", name="b", id="2")],
    )
    return Collector(run, clock=lambda: 112.0, open_scheduler=lambda _name, _run: scheduler)


def test_report_counts_everything_once(tmp_path):
    """Every shard is in exactly one state; items, bytes, rate and time left follow from receipts and heartbeats."""
    run = write_run(tmp_path, 8, archives=2)
    for shard in (0, 1):
        run.write_receipt(receipt_of(shard))
        write_part(run, shard)
    run.write_receipt(receipt_of(2, state="partial", failed=1))
    run.write_heartbeat(heartbeat_of(3))
    run.write_heartbeat(heartbeat_of(4, attempt=9))
    run.receipt(5).write_bytes(b"torn")
    scheduler = Told(
        s0=TaskStatus(State.COMPLETED, exit_code=0),
        s1=TaskStatus(State.CANCELLED),
        s2=TaskStatus(State.FAILED, exit_code=3),
        s3=TaskStatus(State.RUNNING),
        s4=TaskStatus(State.RUNNING),
        s5=TaskStatus(State.FAILED, signal=9),
        s6=TaskStatus(State.UNKNOWN),
    )
    report, attempt = submitted(run, 8, scheduler).collect()
    expected = {"done": 2, "partial": 1, "running": 2, "waiting": 1, "dead": 1, "unknown": 1, "not submitted": 0}
    assert report.shards == expected
    assert (report.items, report.archived, report.failed) == (16, 5, 1)
    assert (report.bytes, report.done_bytes) == (8000, 3500)
    assert report.rate == 50.0
    assert report.eta == 4500 / 50
    assert report.alive == attempt.liveness.value == "alive"
    assert [view.done_bytes for view in report.running] == [500, 0]
    assert [(view.shard, view.state) for view in report.open] == [(2, "partial"), (5, "dead"), (6, "unknown")]
    assert "SIGKILL" in report.open[1].reason
    assert "damaged receipt" in report.open[1].reason
    assert report.reduce.state == "PENDING"
    assert [view.path for view in report.archives] == [None, None]
    text = "\n".join(render_status(report))
    for words in ("16: 5 archived, 1 failed", "shard 000003: working", "SIGKILL", "2 of 2 not built", "waiting for"):
        assert words in text
    assert msgspec.json.decode(msgspec.json.encode(report), type=StatusReport) == report


def test_done_needs_the_parts(tmp_path):
    """A receipt whose part or index is missing or short is not done, as for resume and reduce, and why is told."""
    run = write_run(tmp_path, 5, archives=5)
    for shard in range(5):
        run.write_receipt(receipt_of(shard))
        write_part(run, shard, 99 if shard == 1 else 100)
    parts = run.parts_folder(0)
    (parts / "000000.0.part").unlink()
    (parts / "000002.0.index.zst").unlink()
    (parts / "000004.0.part").unlink()
    write_archive(run, "a4")
    report, _ = Collector(run).collect()
    assert (report.shards["done"], report.shards["dead"]) == (2, 3)
    assert [view.shard for view in report.open] == [0, 1, 2]
    assert [view.shard for view in make_failed(report, {}).shards] == [0, 1, 2]
    for view, words in zip(report.open, ("part 000000.0.part is missing", "99 bytes, not 100", "index"), strict=True):
        assert words in view.reason
    assert (report.archived, report.done_bytes) == (4, 2000)
    collector = submitted(run, 5, Told(**{f"s{shard}": TaskStatus(State.COMPLETED, exit_code=0) for shard in range(5)}))
    reasons = [view.reason for view in collector.collect()[0].open]
    assert "left no receipt" not in " ".join(reasons)
    assert all("is missing" in reason or "bytes, not" in reason for reason in reasons)
    assert sorted(read_todo(run, collector.index, collector.book).shards) == [0, 1, 2]


def test_parts_that_come_are_seen(tmp_path):
    """A shard that ends while its run is watched is done at once, though sizes are not read at every look."""
    run = write_run(tmp_path, 2)
    collector = Collector(run, clock=lambda: 100.0)
    run.write_receipt(receipt_of(0))
    write_part(run, 0)
    assert collector.collect()[0].shards["done"] == 1
    run.write_receipt(receipt_of(1))
    write_part(run, 1)
    assert collector.collect()[0].shards["done"] == 2


def test_run_without_attempt(tmp_path):
    """A run that was only planned says so, and has no time left."""
    report, attempt = Collector(write_run(tmp_path, 2)).collect()
    assert attempt is None
    assert (report.alive, report.attempt, report.shards["not submitted"], report.eta) == ("none", 0, 2, None)
    assert "not submitted yet" in "\n".join(render_status(report))


def count_opens(action):
    """How often files are opened below /tmp or elsewhere while `action` runs."""
    opened = []
    active = [True]

    def hook(event, arguments):
        if active[0] and event == "open":
            opened.append(arguments[0])

    sys.addaudithook(hook)
    action()
    active[0] = False
    return opened


def test_ten_thousand_shards(tmp_path):
    """Each receipt is opened once, and little else; asking again opens next to nothing."""
    shards = 10_000
    run = write_run(tmp_path, shards)
    for group in range(10):
        (run.path / "receipts" / f"{group:02d}").mkdir(parents=True)
    for shard in range(shards - 1):
        write_part(run, shard)
        run.receipt(shard).write_bytes(msgspec.json.encode(receipt_of(shard)))
    scheduler = Told(**{f"s{shards - 1}": TaskStatus(State.RUNNING)})
    collector = submitted(run, shards, scheduler)
    began = time.process_time()
    opened = count_opens(collector.collect)
    spent = time.process_time() - began
    assert len(opened) <= shards + 50
    assert spent < 10  # generous: the machine may be slow; measured values stand in the benchmark
    assert len(count_opens(collector.collect)) <= 50
    report, _ = collector.collect()
    assert report.shards["done"] == shards - 1
    assert report.shards["running"] == 1


RECEIPTS = st.sampled_from([None, receipt_of(0), receipt_of(0, state="partial", failed=2)])
STATUSES = st.none() | st.builds(
    TaskStatus,
    state=st.sampled_from(list(State)),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 100),
    note=st.sampled_from(["", "a note"]),
)


@given(
    receipt=RECEIPTS,
    damage=st.sampled_from(["", "torn"]),
    status=STATUSES,
    heartbeat=st.sampled_from([None, heartbeat_of(0, note="disk full")]),
)
def test_only_receipts_prove(receipt, damage, status, heartbeat):
    """No scheduler word makes a shard done; unknown stays unknown; whatever is dead has a reason."""
    state, reason, cause = classify_shard(receipt, damage, status, heartbeat)
    assert (state is ShardState.DONE) == (receipt is not None and receipt.state == "complete")
    if receipt is None and status is not None and status.state is State.UNKNOWN:
        assert state is ShardState.UNKNOWN
    if state in {ShardState.DEAD, ShardState.UNKNOWN, ShardState.PARTIAL}:
        assert reason
        assert cause


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (TaskStatus(State.TIMEOUT), "time limit"),
        (TaskStatus(State.FAILED, signal=9), "SIGKILL"),
        (TaskStatus(State.FAILED, signal=99), "signal 99"),
        (TaskStatus(State.FAILED, exit_code=73), "scratch or shared storage"),
        (TaskStatus(State.FAILED, exit_code=75), "stopped by a signal"),
        (TaskStatus(State.FAILED, exit_code=137), "SIGKILL"),
        (TaskStatus(State.FAILED, exit_code=42), "unexpected"),
        (TaskStatus(State.FAILED, note="could not be started: no"), "could not be started"),
        (TaskStatus(State.CANCELLED), "cancelled"),
        (TaskStatus(State.LOST, note="its controller died"), "controller died"),
        (TaskStatus(State.PENDING), "waiting"),
    ],
)
def test_reasons(status, words):
    """Each way to end has its own words."""
    assert words in explain_task(status)


def test_contradiction_is_told():
    """A task that ended well without a receipt is dead, and the contradiction is told."""
    state, reason, cause = classify_shard(None, "", TaskStatus(State.COMPLETED, exit_code=0), None)
    assert state is ShardState.DEAD
    assert cause is Cause.LOST
    assert "left no receipt" in reason


def test_exit_codes_have_meanings():
    """Every exit code of the documented table is explained."""
    assert set(exit_meanings()) >= {0, 3, 64, 69, 70, 73, 75, 77, 78}
    assert "credentials" in explain_exit(77)
    assert "fault in medhaul" in explain_exit(70)


def test_many_shards_of_one_reason_are_one_line(tmp_path):
    """Thousands of shards that ended alike take one line that names a few."""
    run = write_run(tmp_path, 3000)
    scheduler = Told(**{f"s{shard}": TaskStatus(State.TIMEOUT) for shard in range(3000)})
    report, _ = submitted(run, 3000, scheduler).collect()
    lines = render_open(report.open)
    assert len(lines) == 1
    assert lines[0].startswith("3000 dead: stopped at the time limit (shards 0, 1, 2")
    assert len(render_status(report, everything=True)) > 3000


@given(
    downloaded=st.integers(0, 10**6),
    frames_done=st.integers(0, 10),
    frames=st.integers(0, 10),
    started=st.floats(0, 200),
    at=st.floats(0, 200),
)
def test_progress_of_a_shard_is_bounded(downloaded, frames_done, frames, started, at):
    """Whatever a heartbeat says, the bytes done are within the shard's and the rate is no less than nothing."""
    words = heartbeat_of(
        0, bytes_downloaded=downloaded, frames_done=frames_done, frames=frames, started=started, time=at
    )
    view = view_running(0, "", 1000, words, 150.0)
    assert 0 <= view.done_bytes <= 1000
    assert view.rate >= 0
    assert view.eta is None or view.eta >= 0


def test_silent_task_has_no_speed():
    """A task that was not heard of for long adds nothing to the rate, and its silence is told."""
    view = view_running(0, "", 1000, heartbeat_of(0), 1000.0)
    assert view.rate == 0
    assert view.quiet == 890


def test_plain_progress_is_sparse(tmp_path):
    """Plain lines come on a changed count, or every ten seconds when only bytes changed, and not without a change."""
    run = write_run(tmp_path, 2)
    report, _ = Collector(run, clock=lambda: 0.0).collect()
    now = [0.0]
    lines: list[str] = []
    view = PlainView(lines.append, clock=lambda: now[0])
    view.show(report)
    more = msgspec.structs.replace(report, done_bytes=5)
    now[0] = 9.0
    view.show(more)
    assert len(lines) == 1
    now[0] = 10.0
    view.show(more)
    now[0] = 30.0
    view.show(more)
    assert len(lines) == 2
    view.show(msgspec.structs.replace(more, failed=1))
    assert len(lines) == 3
    view.close()


def test_live_display(tmp_path):
    """On a terminal the display shows the overall line and one line for each shard at work."""

    class Terminal:
        def __init__(self) -> None:
            self.text = ""

        def write(self, text):
            self.text += text
            return len(text)

        def flush(self):
            pass

        def isatty(self):
            return True

    run = write_run(tmp_path, 2)
    run.write_heartbeat(heartbeat_of(0))
    report, _ = submitted(run, 2, Told(s0=TaskStatus(State.RUNNING))).collect()
    terminal = Terminal()
    view = choose_view(terminal, print, have_rich=True)
    assert isinstance(view, RichView)
    view.show(report)
    view.close()
    assert "shard 000000: working" in terminal.text
    assert render_line(report)[:20] in terminal.text
    assert isinstance(choose_view(terminal, print, have_rich=False), PlainView)
