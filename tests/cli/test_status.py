"""`status` and `failed`: for people on stdout, as JSON for programs."""

from __future__ import annotations

import socket

import msgspec
import pytest
import zstandard
from click.testing import CliRunner

from pipeline.archive.index import FailedLine
from pipeline.cli.failed import failed
from pipeline.cli.status import status
from pipeline.errors import ConfigError, UsageError
from pipeline.process import ProcessId
from pipeline.records import Job
from pipeline.report.failed import FailedReport
from pipeline.report.status import StatusReport
from pipeline.schedulers.base import State
from pipeline.schedulers.local_state import LocalState, LocalTask, write_state
from tests.schedulers.fake_run import receipt_of, write_archive, write_part, write_run
from tests.schedulers.test_attempt import plan


def call(command, *words):
    """Call a command; what it raised is raised."""
    done = CliRunner().invoke(command, [str(word) for word in words])
    if done.exception is not None:
        raise done.exception
    return done


@pytest.fixture
def run(tmp_path):
    """Return a run of four shards whose controller is gone: one shard done, one partial, one failed, one lost."""
    it = write_run(tmp_path / "a b", 4)
    it.write_receipt(receipt_of(0))
    write_part(it, 0)
    it.write_receipt(receipt_of(1, state="partial", failed=1, job="9_1"))
    it.write_plan(msgspec.structs.replace(plan(range(4), it.read_config().limits), run="r1"))
    jobs = [Job(kind="array", name="a", id="9", length=4), Job(kind="reduce", name="b", id="14")]
    it.write_jobs(1, jobs)
    states = [
        LocalTask(state=State.COMPLETED, exit_code=0),
        LocalTask(state=State.FAILED, exit_code=3),
        LocalTask(state=State.FAILED, exit_code=73),
        LocalTask(state=State.RUNNING),
    ]
    write_state(
        it,
        1,
        LocalState(
            owner=ProcessId(socket.gethostname(), "an earlier boot", 1, 1), job="9", name="a", offset=0, throttle=2,
            submit_dir="/", logs=str(it.logs(1)), tasks=states, reduce_job="14", reduce_name="b",
        ),
    )  # fmt: skip
    return it


def test_status_for_people(run):
    """The counts, the reasons of what is missing, and the reduce job are told."""
    text = call(status, run.path).stdout
    for words in (
        "shards   4: 1 done, 1 partial, 2 dead",
        "3 archived, 1 failed",
        "exit code 73",
        "its controller died",
        "reduce   lost (its controller died before it started)",
        "1 of 1 not built yet",
    ):
        assert words in text
    assert "shard 000003: dead" in call(status, run.path, "-v").stdout


def test_status_for_programs(run):
    """The JSON is one `StatusReport`."""
    report = msgspec.json.decode(call(status, run.path, "--json").stdout, type=StatusReport)
    assert (report.alive, report.attempt, report.shards["dead"]) == ("ended", 1, 2)
    assert [view.shard for view in report.open] == [1, 2, 3]


def test_watch_ends_with_the_attempt(run):
    """Watching a run that is not at work ends at once with the whole status."""
    assert "shards   4: 1 done" in call(status, run.path, "--watch").stdout
    with pytest.raises(UsageError):
        call(status, run.path, "--watch", "--json")


def test_status_needs_a_run(tmp_path, run):
    """Something that is no run is a usage error; a run whose files are damaged is told by name."""
    with pytest.raises(UsageError):
        call(status, tmp_path)
    run.run_json.write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"run\.json"):
        call(status, run.path)


def test_failed_lists_items_and_shards(run):
    """Failed items come with path, reason and message, dead shards with why."""
    lines = call(failed, run.path).stdout.splitlines()
    assert lines[0] == "1.2.1.0  c/p/s/CT_1.2.1.0  checksum: differs (shard 000001)"
    assert [line.split()[:2] for line in lines[1:]] == [["shard", "000002"], ["shard", "000003"]]
    report = msgspec.json.decode(call(failed, run.path, "--json").stdout, type=FailedReport)
    assert [item.reason for item in report.items] == ["checksum"]
    assert [view.shard for view in report.shards] == [2, 3]


def test_failed_lists_what_reduce_found(tmp_path):
    """An item that only reduce found to fail is listed with its archive; one of a receipt, or of no receipt, once."""
    run = write_run(tmp_path, 2)
    run.write_receipt(receipt_of(0, state="partial", failed=1))
    run.write_receipt(receipt_of(1))
    write_part(run, 1)
    write_archive(run, "a0")
    path = run.archives / "a0.tar.xz.index.jsonl.zst"
    head = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    lines = [
        FailedLine("1.2.0.0", "c/p/s/CT_1.2.0.0", "checksum", "differs"),
        FailedLine("1.2.1.1", "c/p/s/CT_1.2.1.1", "duplicate", "same path as 1.2.1.0"),
        FailedLine("1.2.7", "c/p/s/CT_1.2.7", "unavailable", "shard 3 has no receipt"),
    ]
    head = head.replace(b'"complete"', b'"partial"').replace(b'"failed":0', b'"failed":3')
    text = head + b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    path.write_bytes(zstandard.ZstdCompressor().compress(text))
    found = call(failed, run.path).stdout.splitlines()
    assert [line.split()[0] for line in found] == ["1.2.0.0", "1.2.1.1"]
    assert found[1].endswith("duplicate: same path as 1.2.1.0 (archive a0)")
    report = msgspec.json.decode(call(failed, run.path, "--json").stdout, type=FailedReport)
    assert [(item.archive, item.shard) for item in report.items] == [("", 0), ("a0", -1)]
    assert "1.2.1.1" in call(failed, run.path, "--logs").stdout


def test_failed_shows_logs(run):
    """With --logs the end of each log that matters is shown, and of no other."""
    logs = run.logs(1)
    logs.mkdir(parents=True)
    for index in range(3):
        (logs / f"9_{index}.log").write_text(f"task {index} said this\n")
    text = call(failed, run.path, "--logs").stdout
    assert "task 0 said" not in text
    assert "task 1 said" in text
    assert "task 2 said" in text
    assert "9_3.log: no such log" in text


def test_nothing_failed(tmp_path):
    """A run without failures lists nothing on stdout."""
    done = call(failed, write_run(tmp_path, 1).path)
    assert done.stdout == ""
    assert "no failed items" in done.stderr
