"""The run directory: every record is read back as written, or refused with the name of the file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_kit import MadeRun, make_item, make_plan

from pipeline.errors import ConfigError, UsageError
from pipeline.records import FORMAT, ArrayPlan, AttemptPlan, Heartbeat, Job, ManifestIndex, Receipt, RunRecord
from pipeline.rundir import RunDir, decode_record, encode_record, read_record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """A run with two shards, both done. Not to be changed."""
    run = MadeRun(tmp_path_factory.mktemp("made"), [5, 1, 9], shards={"count": 2})
    run.do()
    return run


def heartbeat(shard: int) -> Heartbeat:
    """Some last words."""
    return Heartbeat(
        shard=shard, attempt=1, job="7_0", node="n", pid=1, time=1.0, started=1.0, phase="working", entries=1,
        entries_done=0, failed=0, frames=1, frames_done=0, bytes=1, bytes_downloaded=0, bytes_packed=0,
    )  # fmt: skip


def plan_of(attempt: int) -> AttemptPlan:
    """Some attempt's plan."""
    return AttemptPlan(
        format=FORMAT, run="r", attempt=attempt, manifest_sha256="0" * 64, scheduler="local", created="now",
        shards=[0, 1], tasks=1, connections=8, tag="7e", cluster="", accounting=False,
        arrays=[ArrayPlan(0, 2, 1)], extra=[],
    )  # fmt: skip


def records(made: MadeRun) -> dict[str, tuple[Path, Any]]:
    """Every kind of record that lies in a run, with its type."""
    run = made.run
    run.write_plan(plan_of(1))
    run.write_jobs(1, [Job(kind="array", name="n", id="7", offset=0, length=2)])
    return {
        "run": (run.run_json, RunRecord),
        "index": (run.manifest_index, ManifestIndex),
        "receipt": (run.receipt(0), Receipt),
        "plan": (run.attempt_folder(1) / "plan.json", AttemptPlan),
        "jobs": (run.attempt_folder(1) / "jobs.json", list[Job]),
        "citations": (run.path / "citations.json", dict[str, str]),
    }


KINDS = ["run", "index", "receipt", "plan", "jobs", "citations"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_read_back_as_written(made: MadeRun, kind: str) -> None:
    """Reading and writing again gives the same bytes: nothing is lost or added."""
    path, type_ = records(made)[kind]
    assert encode_record(read_record(path, type_)) == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_cut_short_anywhere_is_refused_with_its_name(made: MadeRun, kind: str) -> None:
    """No prefix of a record passes for the record."""
    path, type_ = records(made)[kind]
    data = path.read_bytes().rstrip()
    for end in range(len(data)):
        with pytest.raises(ConfigError) as caught:
            decode_record(data[:end], type_, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["run", "index", "receipt", "plan"])
def test_another_format_number_is_refused_with_both_numbers(made: MadeRun, kind: str) -> None:
    """A record of a later medhaul is not guessed at."""
    path, type_ = records(made)[kind]
    data = path.read_bytes().replace(b'"format": 1', b'"format": 2', 1)
    with pytest.raises(ConfigError, match="format 2, but this medhaul reads 1"):
        decode_record(data, type_, path)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_types_and_missing_keys_are_refused_with_the_name(made: MadeRun, kind: str) -> None:
    """Whatever JSON stands there, it is the record or it is refused."""
    path, type_ = records(made)[kind]
    data = json.loads(path.read_bytes())
    bad: list[Any] = [None, 5, "x", [5], {"x": 5}, [[]]]
    if isinstance(data, dict) and kind != "citations":
        bad += [{key: value for key, value in data.items() if key != gone} for gone in data]
        bad += [{**data, key: None} for key in data]
        bad += [{**data, key: {"a": [1]}} for key, value in data.items() if not isinstance(value, dict)]
    for each in bad:
        with pytest.raises(ConfigError, match=path.name):
            decode_record(json.dumps(each).encode(), type_, path)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"\x00", b"[" * 100_000, b'{"a":' * 100_000, b"<html>"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_json_is_refused_with_the_name(made: MadeRun, kind: str, data: bytes) -> None:
    """An empty file, binary, deep nesting, a web page: told with the file's name."""
    path, type_ = records(made)[kind]
    with pytest.raises(ConfigError, match=path.name):
        decode_record(data, type_, path)


def test_a_record_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a folder, an input/output error: each with the file's name and what to do."""
    with pytest.raises(ConfigError, match=r"run\.json: missing") as caught:
        read_record(tmp_path / "run.json", RunRecord)
    assert caught.value.hint
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_record(tmp_path, RunRecord)

    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ConfigError, match="Input/output error"):
        read_record(tmp_path / "run.json", RunRecord)
    with pytest.raises(ConfigError, match="Input/output error"):
        RunDir(tmp_path).read_receipt(0, "x")


def test_only_a_run_is_opened_as_a_run(tmp_path: Path) -> None:
    """A folder without run.json, and what is no folder, are usage errors."""
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(UsageError, match="not a run directory"):
            RunDir.open(path)


def test_a_receipt_counts_only_for_its_shard_and_manifest(made: MadeRun, tmp_path: Path) -> None:
    """A receipt of another shard or run proves nothing, and says so."""
    sha = made.run.read_run().manifest_sha256
    receipt = made.run.read_receipt(0, sha)
    assert receipt is not None
    other = RunDir(tmp_path)
    for changed in ({"shard": 1}, {"manifest_sha256": "0" * 64}):
        path = other.receipt(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_record(msgspec.structs.replace(receipt, **changed)))
        with pytest.raises(ConfigError, match="of another shard or run"):
            other.read_receipt(0, sha)
    other.write_receipt(receipt)
    assert other.read_receipt(0, sha) == receipt
    assert other.read_receipt(5, sha) is None


def test_a_manifest_index_of_another_run_is_refused(tmp_path: Path) -> None:
    """When files of two runs are mixed, the difference is told, with the name of the file."""
    one = make_plan(tmp_path / "1", [make_item(1)]).run
    two = make_plan(tmp_path / "2", [make_item(2)]).run
    assert one
    assert two
    one.manifest_index.write_bytes(two.manifest_index.read_bytes())
    with pytest.raises(ConfigError, match=r"manifest\.index\.json: of manifest .* but run\.json names"):
        one.read_manifest_index()


@pytest.mark.parametrize("shard", [0, 1, 999, 1000, 123_456, 1_234_567])
def test_shards_have_paths_of_their_own(tmp_path: Path, shard: int) -> None:
    """A thousand shards share a folder, none shares a file, and listing finds the numbers again."""
    run = RunDir(tmp_path)
    run.write_heartbeat(heartbeat(shard))
    assert run.receipt(shard).parent.name == run.parts_folder(shard).name == run.heartbeat(shard).parent.name
    assert set(run.read_heartbeats()) == {shard}
    run.parts_folder(shard).mkdir(parents=True)
    for life in (0, 3, 11):
        run.journal(shard, life).touch()
    (run.parts_folder(shard) / f"{shard:06d}.x.journal").touch()
    assert run.lives(shard) == [0, 3, 11]
    assert run.lives(shard + 1) == []


def test_listings_ignore_what_is_not_ours(tmp_path: Path) -> None:
    """Temporary files, editors' backups and strange folders are no receipts and no attempts."""
    run = RunDir(tmp_path)
    for name in (
        "00/000001.json",
        "00/.000002.json.x.tmp",
        "00/000003.json~",
        "00/4.json",
        "x.json",
        "00/000005.json.bad",
    ):
        path = tmp_path / "receipts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert run.receipt_shards() == {1}
    run.write_plan(plan_of(2))
    run.write_plan(plan_of(10))
    for name in (".003.tmp", "x", "\u00b2", "004"):
        (tmp_path / "attempts" / name).mkdir()
    assert run.attempts() == [2, 10]
    assert run.read_plan(10) == plan_of(10)
    assert run.read_jobs(10) == []


def test_a_run_without_folders_has_nothing(tmp_path: Path) -> None:
    """Before the first task nothing is there, and that is no error."""
    run = RunDir(tmp_path)
    assert run.attempts() == []
    assert run.receipt_shards() == set()
    assert run.read_heartbeats() == {}
    assert run.lives(0) == []
    assert run.read_citations() == {}


def test_a_torn_heartbeat_is_no_heartbeat(tmp_path: Path) -> None:
    """Hints may be lost: a damaged one is left out, the others are read."""
    run = RunDir(tmp_path)
    run.write_heartbeat(heartbeat(1))
    run.write_heartbeat(heartbeat(2))
    data = run.heartbeat(1).read_bytes()
    for bad in (b"", data[:-1], b"\xff", data.replace(b"7_0", b"7\xff0"), b"[]"):
        run.heartbeat(1).write_bytes(bad)
        assert run.read_heartbeats() == {2: heartbeat(2)}


def test_logs_lie_where_the_config_says(made: MadeRun) -> None:
    """One folder for each run and attempt."""
    assert made.run.logs(3) == made.root / "logs" / "r" / "003"
