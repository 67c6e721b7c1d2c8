"""Resources: never more memory than allowed, never scratch that is remote or in memory, and the reason told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, StorageError
from pipeline.task import resources
from pipeline.task.resources import (
    BASE_MEMORY,
    BLOCK_COPIES,
    CONNECTION_MEMORY,
    ENCODER_MEMORY,
    FILE_MEMORY,
    FILES_AHEAD,
    choose_workers,
    file_system_kind,
    find_scratch,
    granted_cores,
    scratch_candidates,
)


@given(
    st.integers(0, 1 << 38), st.integers(1, 256), st.integers(1, 1024), st.integers(64 << 10, 64 << 20),
    st.integers(1, 1_000_000),
)  # fmt: skip
def test_workers_fit_into_the_memory(memory: int, cores: int, connections: int, block_bytes: int, files: int) -> None:
    """Whatever is asked for, the sum of what all workers hold is within the bound, or it is refused."""
    try:
        workers = choose_workers(memory, cores, connections, block_bytes, files)
    except ConfigError:
        least = BASE_MEMORY + CONNECTION_MEMORY + ENCODER_MEMORY + FILE_MEMORY * files
        assert memory < least + BLOCK_COPIES * 3 * block_bytes * 2
        return
    assert 1 <= workers.cores <= cores
    assert 1 <= workers.connections <= connections
    assert workers.blocks >= 1
    assert files <= workers.files <= max(files, FILES_AHEAD)
    held = (
        BASE_MEMORY
        + workers.files * FILE_MEMORY
        + workers.connections * CONNECTION_MEMORY
        + workers.cores * ENCODER_MEMORY
    )
    assert held + workers.blocks * BLOCK_COPIES * 3 * block_bytes <= memory
    if workers.cores > 1:
        assert workers.blocks >= 2 * workers.cores


def test_too_little_memory_is_told_with_the_setting() -> None:
    """The message names the key of the config and what to change."""
    with pytest.raises(ConfigError, match=r"task\.memory") as caught:
        choose_workers(256 << 20, 1, 1, 64 << 20, 10_000)
    assert "archive.block_bytes" in caught.value.hint


def test_the_defaults_use_what_is_granted() -> None:
    """1 GiB feeds several cores at blocks of 4 MiB, and plenty of memory feeds all."""
    assert choose_workers(1 << 30, 2, 16, 4 << 20, 10_000) == (2, 6, 16, 20_000)
    assert choose_workers(64 << 30, 32, 64, 4 << 20, 10_000) == (32, 66, 64, 20_000)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("", 8), ("3", 3), ("8", 8), ("99", 8), ("0", 8), ("-1", 8), ("x", 8), ("2.5", 8), ("\u0663", 3), ("\u00b2", 8)],
)
def test_cores_are_those_granted_and_never_more_than_the_affinity(
    monkeypatch: pytest.MonkeyPatch, text: str, cores: int
) -> None:
    """Slurm's number counts, within what the kernel allows; nonsense does not."""
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(8)))
    assert granted_cores({"SLURM_CPUS_PER_TASK": text} if text else {}) == cores


def test_candidates_come_in_the_stated_order() -> None:
    """The config alone, or the cluster's variables from the most special to the most general."""
    environ = {"SLURM_TMPDIR": "/s", "L_SCRATCH_JOB": "", "LOCAL_SCRATCH": "/l", "SLURM_JOB_ID": "7", "TMPDIR": "/t"}
    assert scratch_candidates("/c", environ) == [("task.scratch", "/c")]
    assert [path for _, path in scratch_candidates("", environ)] == ["/s", "/l", "/lscratch/7", "/t", "/tmp"]
    assert [path for _, path in scratch_candidates("", {})] == ["/tmp"]


MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1g
31 22 0:27 / /home rw shared:2 master:1 - nfs4 server:/home rw,vers=4.2
32 31 8:2 / /home/local rw - xfs /dev/nvme0 rw
33 22 0:30 / /mnt/with\040space rw - lustre mds@tcp:/fs rw
34 22 0:31 / /mnt/back\134slash rw - beegfs beegfs_nodev rw
35 22 0:32 / /mnt/new\012line rw - ext4 /dev/x rw
36 22 0:33 / /over rw - ext4 /dev/y rw
37 36 0:34 / /over rw - tmpfs none rw
38 22 0:35 / /mnt/dash rw propagate_from:2 - fuse.sshfs user@host:/ rw
39 22 0:36 / /odd\999 rw - ext4 /dev/z rw
broken line
40 22 0:37 / /cut
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"), ("/tmp", "tmpfs"), ("/tmp/x/y", "tmpfs"), ("/tmpx", "ext4"), ("/home", "nfs4"),
        ("/home/u", "nfs4"),
        ("/home/local/u", "xfs"), ("/home/localx", "nfs4"), ("/mnt/with space/x", "lustre"), ("/mnt/with", "ext4"),
        ("/mnt/back\\slash", "beegfs"), ("/mnt/new\nline/x", "ext4"), ("/over/x", "tmpfs"),
        ("/mnt/dash/x", "fuse.sshfs"),
    ],
)  # fmt: skip
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    """Escapes are read, names that only begin alike do not match, and what is mounted over counts."""
    assert file_system_kind(Path(path), MOUNTINFO) == kind


@given(st.text())
def test_no_mountinfo_breaks_the_reader(text: str) -> None:
    """Whatever the kernel writes there, an answer comes."""
    assert isinstance(file_system_kind(Path("/x"), text + "\n" + text), str)


def problem(path: Path, kind: str, *, needed: int = 1, allow: bool = False) -> str:
    """What is wrong with `path` as scratch, if it were on a file system of that kind."""
    mountinfo = f"1 0 8:1 / / rw - {kind} dev rw\n"
    return resources._scratch_problem(path, mountinfo, needed, allow_shared=allow)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "tmpfs", "ramfs"])
def test_scratch_in_memory_or_on_the_network_is_refused_unless_allowed(tmp_path: Path, kind: str) -> None:
    """The reason names the file system and the setting that allows it."""
    said = problem(tmp_path, kind)
    assert kind in said
    assert "task.allow_shared_scratch" in said
    assert problem(tmp_path, kind, allow=True) == ""
    assert problem(tmp_path, "ext4") == ""


def test_scratch_needs_room(tmp_path: Path) -> None:
    """Too little room is told with both numbers."""
    assert "needed" in problem(tmp_path, "ext4", needed=1 << 62)


@pytest.mark.parametrize("call", ["tempfile.TemporaryFile", "shutil.disk_usage", "Path.is_dir"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_scratch_that_cannot_be_used_is_a_reason_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Whatever the probe meets, the next candidate gets its chance."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"pipeline.task.resources.{call}", fail)
    assert os.strerror(number) in problem(tmp_path, "ext4")


def test_the_first_usable_folder_is_taken_and_the_others_are_explained(tmp_path: Path) -> None:
    """The line for the log says which it is, where it is named, and why better ones were not taken."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    good = tmp_path / "good"
    good.mkdir()
    candidates = [
        ("$A", str(tmp_path / "no")),
        ("$B", str(tmp_path / "file")),
        ("$C", "x" * 5000),
        ("$D", str(tmp_path / "loop")),
        ("$E", str(good)),
        ("$F", "/"),
    ]
    path, told = find_scratch(candidates, 0, allow_shared=True, configured=False)
    assert path == good
    assert f"scratch: {good} ($E)" in told
    for name in "ABCD":
        assert f"(${name}): " in told
    assert "$F" not in told


def test_no_usable_scratch_is_a_storage_error_that_explains_all(tmp_path: Path) -> None:
    """Every candidate is listed with its reason, and the setting is named."""
    with pytest.raises(StorageError, match=r"no usable scratch: .*no \(\$A\): does not exist; .*\$B") as caught:
        find_scratch(
            [("$A", str(tmp_path / "no")), ("$B", str(tmp_path))], 1 << 62, allow_shared=True, configured=False
        )
    assert "task.scratch" in caught.value.hint


def test_a_configured_folder_is_made_or_refused(tmp_path: Path) -> None:
    """task.scratch is made where it can be; where not, it is a storage error with its name."""
    wanted = tmp_path / "a" / "b"
    path, _ = find_scratch([("task.scratch", str(wanted))], 0, allow_shared=True, configured=True)
    assert path == wanted
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match=r"task\.scratch"):
            find_scratch([("task.scratch", str(bad))], 0, allow_shared=True, configured=True)
