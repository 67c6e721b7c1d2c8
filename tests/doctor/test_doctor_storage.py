"""Storage, scratch, credentials and this machine: what is tried, and how it is judged."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import pytest

from pipeline.doctor.bounded import run_bounded
from pipeline.doctor.machine import check_credentials, classify_machine, credential_paths, probe_machine
from pipeline.doctor.mounts import Mount, Quota
from pipeline.doctor.records import choose_code
from pipeline.doctor.scratch import probe_scratch, read_needs, scratch_problem
from pipeline.doctor.storage import StorageFacts, classify_storage, probe_storage, try_storage
from pipeline.errors import StorageError
from pipeline.task.resources import find_scratch
from tests.doctor.doctor_kit import FakeSlurm, levels, make_config
from tests.run_kit import make_config as make_run_config
from tests.run_kit import make_item, make_plan

GOOD = StorageFacts(path="/s", base="/s", free=10**12, free_files=10**6, mount=Mount("/s", "nfs4", "nas:/s"), quotas=[])
NEEDED = 20 * 10**9


def judge(facts: StorageFacts, **changes):
    """Judge storage for a cluster."""
    return classify_storage("storage.root", msgspec.structs.replace(facts, **changes), NEEDED, slurm=True, here=False)


def test_storage_is_tried_and_left_clean(tmp_path):
    """A folder that exists and one that can be made are both usable, and nothing is left in either."""
    for folder in (tmp_path, tmp_path / "a" / "b"):
        facts = probe_storage(folder, {"PATH": "/nonexistent"})
        assert facts.problem == ""
        assert facts.base == str(tmp_path)
        assert facts.free > 0
        assert facts.quotas is None
    assert list(tmp_path.iterdir()) == []


def test_storage_that_cannot_be_used_is_code_73(tmp_path):
    """A file in the way, a trial that fails and one that hangs are failures, in time."""
    (tmp_path / "file").write_text("x")
    found = judge(probe_storage(tmp_path / "file" / "root", {}))
    assert choose_code(found) == 73
    for error in (StorageError("full"), PermissionError(13, "Permission denied")):

        def fail(_: Path, error: Exception = error) -> float:
            raise error

        facts = probe_storage(tmp_path, {}, trial=fail)
        assert facts.problem
        assert choose_code(judge(facts)) == 73
    never = threading.Event()
    facts = probe_storage(tmp_path, {}, seconds=0.1, trial=lambda _: float(never.wait(60)))
    never.set()
    assert "no answer within 0.1 s" in facts.problem


def test_bytes_that_come_back_changed_are_noticed(tmp_path, monkeypatch):
    """Storage that gives other bytes than were written is refused."""
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"other")
    with pytest.raises(StorageError, match="other bytes"):
        try_storage(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "ok"),
        ({"free": 10**9}, "warn"),
        ({"free": 10**6}, "fail"),
        ({"free_files": 500}, "warn"),
        ({"free_files": 5}, "fail"),
        ({"free_files": None}, "ok"),
        ({"local": "it is below /tmp"}, "warn"),
        ({"seconds": 9.0}, "warn"),
        ({"quotas": None}, "ok"),
        ({"quotas": [Quota(source="nas:/s", used=99 * 10**9, limit=10**11, files=5, file_limit=0)]}, "warn"),
        ({"quotas": [Quota(source="nas:/s", used=10**11, limit=10**11, files=5, file_limit=0)]}, "fail"),
        ({"quotas": [Quota(source="nas:/s", used=0, limit=0, files=10, file_limit=10)]}, "fail"),
        ({"quotas": [Quota(source="other:/s", used=10, limit=10, files=10, file_limit=10)]}, "ok"),
        ({"mount": Mount("/", "ext4", "/dev/vda")}, "ok"),
    ],
)
def test_room_and_speed_are_judged(changes, level):
    """What is used up fails, what is short or slow or local is warned of, what is not known is neither."""
    found = judge(GOOD, **changes)
    worst = max(levels(found), key=["ok", "warn", "fail"].index)
    assert worst == level, found
    assert choose_code(found) == (73 if level == "fail" else 0)


def test_quotas_come_from_the_commands(tmp_path):
    """`quota -s` is read also when it ends with 1, as it does when a quota is exceeded; one that hangs costs little."""
    fake = FakeSlurm(tmp_path / "fake")
    line = " /dev/x 10M* 5M 9M 6days 1 0 0"
    fake.command("quota", f"echo '{line}'; exit 1")
    (tmp_path / "fake" / "bin" / "quota").chmod(0o755)
    facts = probe_storage(tmp_path, fake.environ)
    assert facts.quotas == [Quota(source="/dev/x", used=10 << 20, limit=9 << 20, files=1, file_limit=0, over=True)]
    fake.command("quota", "echo hostile; exit 3")
    assert probe_storage(tmp_path, fake.environ).quotas is None


def test_scratch_is_judged_as_tasks_do(tmp_path):
    """The doctor and `find_scratch`, which tasks use, agree on every place."""
    config = make_config(task={"allow_shared_scratch": True})
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        (facts,) = (one for one in probe_scratch(config, {"TMPDIR": str(path)}) if one.name == "$TMPDIR")
        problem = scratch_problem(facts, 1, allow_shared=True)
        try:
            find_scratch([("$TMPDIR", str(path))], 1, allow_shared=True, configured=False)
        except StorageError:
            assert problem
        else:
            assert problem == ""
    (facts,) = probe_scratch(make_config(task={"scratch": str(tmp_path / "new" / "er")}), {})
    assert facts.problem == ""
    assert not (tmp_path / "new").exists()


def test_a_run_says_what_it_needs(tmp_path):
    """The largest frame and the number of shards come from the manifest; without a run there is nothing to say."""
    config = make_run_config(tmp_path, shards={"count": 2})
    assert read_needs(config) is None
    make_plan(tmp_path, [make_item(n, size=1000 * (n + 1)) for n in range(4)], shards={"count": 2})
    needs = read_needs(config)
    assert needs.shards == 2
    assert needs.total == 10_000
    assert 4000 <= needs.largest_frame <= 10_000


def test_credentials_must_be_private(tmp_path):
    """0600 and stricter is well; anything that others can read or change fails with 77 and the command that helps."""
    path = tmp_path / "a b"
    path.write_text("token")
    for mode, level in ((0o600, "ok"), (0o400, "ok"), (0o640, "fail"), (0o604, "fail"), (0o620, "fail")):
        path.chmod(mode)
        (finding,) = check_credentials([path])
        assert finding.level == level
        assert finding.code == (77 if level == "fail" else 0)
        assert "token" not in finding.detail
    assert finding.hint == f"chmod 600 '{path}'"
    path.chmod(0o600)
    assert choose_code(check_credentials([path], user=os.getuid() + 1)) == 77
    assert choose_code(check_credentials([tmp_path / "none"])) == 77
    assert choose_code(check_credentials([tmp_path])) == 77


def test_netrc_is_found_where_there_is_one(tmp_path):
    """`~/.netrc` is looked at only when it exists."""
    assert credential_paths({"HOME": str(tmp_path)}) == []
    (tmp_path / ".netrc").write_text("")
    assert credential_paths({"HOME": str(tmp_path)}) == [tmp_path / ".netrc"]
    assert credential_paths({"HOME": str(tmp_path), "NETRC": str(tmp_path / "x")}) == []
    assert credential_paths({}) == []


def test_a_machine_too_small_for_a_task_is_warned_of():
    """Where tasks run, memory granted must be what a task may use, and files enough for its connections."""
    facts = probe_machine({"SLURM_MEM_PER_NODE": "500"})
    assert facts.memory <= 500 << 20
    config = make_config()
    assert levels(classify_machine(facts, config, tasks_here=True), "memory") == ["warn"]
    assert levels(classify_machine(facts, config, tasks_here=False), "memory") == ["ok"]
    few = msgspec.structs.replace(facts, open_files=70)
    assert levels(classify_machine(few, config, tasks_here=False), "open files") == ["warn"]


def test_bounded_work_gives_its_result_or_its_error():
    """What the work returns or raises comes out as it is."""
    assert run_bounded(lambda: 5, 10) == 5
    with pytest.raises(KeyError):
        run_bounded(lambda: {}["x"], 10)
