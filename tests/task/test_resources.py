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
    fit_memory,
    granted_cores,
    granted_memory,
    parse_count,
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
    [
        ("", 8),
        ("3", 3),
        ("8", 8),
        ("99", 8),
        ("0", 8),
        ("-1", 8),
        ("x", 8),
        ("2.5", 8),
        ("\u0663", 3),
        ("\u00b2", 8),
        ("9" * 5000, 8),
    ],
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


def test_a_place_that_is_too_small_for_some_items_serves_the_others(tmp_path: Path) -> None:
    """Where none has room for all, the first with room for what it can hold at all; never one of no use otherwise."""
    places = [("$A", str(tmp_path / "no")), ("$B", str(tmp_path)), ("$C", str(tmp_path.parent))]
    path, told = find_scratch(places, 1 << 62, allow_shared=True, configured=False, least=lambda free: free // 2)
    assert path == tmp_path
    assert "too small for some items" in told
    with pytest.raises(StorageError, match="needed"):
        find_scratch(places, 1 << 62, allow_shared=True, configured=False, least=lambda free: free + (1 << 40))
    assert "too small" not in find_scratch(places, 0, allow_shared=True, configured=False, least=lambda _: 1 << 62)[1]


def test_a_configured_folder_is_made_or_refused(tmp_path: Path) -> None:
    """task.scratch is made where it can be; where not, it is a storage error with its name."""
    wanted = tmp_path / "a" / "b"
    path, _ = find_scratch([("task.scratch", str(wanted))], 0, allow_shared=True, configured=True)
    assert path == wanted
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match=r"task\.scratch"):
            find_scratch([("task.scratch", str(bad))], 0, allow_shared=True, configured=True)


# -- granted memory ---------------------------------------------------------------------------------------------------

MIB = 1 << 20
JOB = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


def system(root: Path, groups: str | bytes, limits: dict[str, str | bytes]) -> Path:
    """A root folder with /proc/self/cgroup and the files of control groups below /sys/fs/cgroup."""
    files = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}}
    for name, text in files.items():
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


@pytest.mark.parametrize(
    ("limits", "granted"),
    [
        ({f"{JOB}/memory.max": "max\n", "system.slice/slurmstepd.scope/job_7/memory.max": f"{900 * MIB}\n"}, 900 * MIB),
        ({f"{JOB}/memory.max": f"{300 * MIB}\n", "system.slice/memory.max": f"{900 * MIB}\n"}, 300 * MIB),
        ({f"{JOB}/memory.max": f"{900 * MIB}\n", "system.slice/memory.max": f"{300 * MIB}\n"}, 300 * MIB),
        ({"memory.max": f"{700 * MIB}\n"}, 700 * MIB),
        ({f"{JOB}/memory.max": "max\n", "system.slice/memory.max": "max\n"}, None),
        ({f"{JOB}/memory.high": "5\n", "other/memory.max": "5\n", f"{JOB}/deeper/memory.max": "5\n"}, None),
        ({}, None),
    ],
    ids=["of the job", "innermost", "outermost", "of the root", "max", "of others", "none"],
)
def test_memory_of_nested_groups_of_version_2(tmp_path: Path, limits: dict[str, str], granted: int | None) -> None:
    """The least bound of the group and all above it counts; `max` is none, and other groups' are not ours."""
    assert granted_memory({}, system(tmp_path, f"0::/{JOB}\n", limits)) == granted


V1_UNBOUNDED = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("limits", "granted"),
    [
        ({"slurm/uid_1/job_7/memory.limit_in_bytes": f"{400 * MIB}\n"}, 400 * MIB),
        ({"slurm/uid_1/job_7/memory.limit_in_bytes": V1_UNBOUNDED, "memory.limit_in_bytes": V1_UNBOUNDED}, None),
        ({"slurm/uid_1/job_7/memory.limit_in_bytes": V1_UNBOUNDED, "slurm/memory.limit_in_bytes": "5000000"}, 5000000),
        ({"slurm/uid_1/job_7/memory.max": "5\n"}, None),
    ],
    ids=["of the job", "unbounded", "above", "file of version 2"],
)
def test_memory_of_groups_of_version_1(tmp_path: Path, limits: dict[str, str], granted: int | None) -> None:
    """The memory controller's own tree counts, whatever the others say; near 2**63 is no bound."""
    groups = "12:cpuset:/slurm/x\n4:memory:/slurm/uid_1/job_7\n3:cpu,cpuacct:/slurm/y\n1:name=systemd:/z\n0::/z\n"
    strange = {"x/memory.limit_in_bytes": "5\n", "slurm/y/memory.limit_in_bytes": "6\n"}
    named = {f"memory/{name}": text for name, text in {**limits, **strange}.items()}
    assert granted_memory({}, system(tmp_path, groups, named)) == granted


def test_memory_controller_beside_others_is_found(tmp_path: Path) -> None:
    """Version 1 may mount several controllers together."""
    root = system(tmp_path, "5:cpu,memory:/job\n", {"memory/job/memory.limit_in_bytes": "123456789"})
    assert granted_memory({}, root) == 123456789


@pytest.mark.parametrize(
    ("environ", "granted"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2048 * MIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_PER_TASK": "4"}, 2048 * MIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "3"}, 1536 * MIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "64"}, 1024 * MIB),
        ({"SLURM_MEM_PER_CPU": "512"}, 512 * MIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_PER_TASK": "x"}, 512 * MIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_PER_TASK": "0"}, 512 * MIB),
        ({"SLURM_MEM_PER_NODE": "0", "SLURM_MEM_PER_CPU": "100"}, 100 * MIB),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_CPUS_PER_TASK": "4"}, None),
        ({}, None),
    ],
    ids=lambda value: " ".join(f"{k[6:]}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_memory_that_slurm_grants(tmp_path: Path, environ: dict[str, str], granted: int | None) -> None:
    """Of the node, or per core times the cores; 0 means all of the node, which is no bound (sbatch(1))."""
    assert granted_memory(environ, tmp_path) == granted


@pytest.mark.parametrize(("slurm", "kernel", "granted"), [(100, 200, 100), (200, 100, 100)])
def test_the_lesser_of_slurm_and_kernel_counts(tmp_path: Path, slurm: int, kernel: int, granted: int) -> None:
    """Whoever kills first sets the bound."""
    root = system(tmp_path, "0::/job\n", {"job/memory.max": f"{kernel * MIB}\n"})
    assert granted_memory({"SLURM_MEM_PER_NODE": f"{slurm}"}, root) == granted * MIB


HOSTILE = ["", "\n", "-1", "+5", "1e9", "1_000", "0x10", "5G", "\u00b2", "max max", "1 2", "9" * 5000, "\0", "5\n6"]


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:12] for text in HOSTILE])
def test_memory_in_hostile_words_is_no_bound(tmp_path: Path, text: str) -> None:
    """What is no number bounds nothing, breaks nothing, and hides no bound that is a number."""
    environ = dict.fromkeys(("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_PER_TASK"), text)
    assert granted_memory(environ, system(tmp_path, "0::/a/b\n", {"a/b/memory.max": text})) is None
    assert granted_memory({**environ, "SLURM_MEM_PER_CPU": "7"}, tmp_path) == 7 * MIB
    assert granted_memory(environ, system(tmp_path, "0::/a/b\n", {"a/memory.max": "77"})) == 77


@pytest.mark.parametrize(
    "name",
    [b"plain", b"with space", b"with:colon", b"line\x0btab\x0cand\xe2\x80\xa8more", b"\xff\xfe", b"\xc3\xa4"],
    ids=ascii,
)
def test_a_group_of_any_name_is_found(tmp_path: Path, name: bytes) -> None:
    """A group's name may hold anything but a slash, NUL and an end of line, in any encoding."""
    root = system(tmp_path, b"0::/up/" + name + b"\n", {os.fsdecode(b"up/" + name + b"/memory.max"): "4096"})
    assert granted_memory({}, root) == 4096


@pytest.mark.parametrize(
    "groups",
    [b"", b"\n\n", b"::", b"0", b"0:", b"x:memory", b"0::/../../..", b"0::/no (deleted)", b"0::/\0", b"\xff" * 100,
     b"0::" + b"/a" * 500, b"4:memory:/" + b"x" * 500],
    ids=lambda groups: ascii(groups)[:20],
)  # fmt: skip
def test_odd_groups_break_nothing(tmp_path: Path, groups: bytes) -> None:
    """Lines that are none, groups outside the namespace, gone, or with names that no file can have."""
    root = system(tmp_path / "a" / "b" / "c", groups, {})
    assert granted_memory({}, root) is None
    (tmp_path / "a" / "b" / "c" / "sys" / "fs" / "cgroup").mkdir(parents=True)
    assert granted_memory({"SLURM_MEM_PER_NODE": "5"}, root) == 5 * MIB


@given(st.binary(max_size=200), st.binary(max_size=40), st.text(max_size=30))
def test_no_text_breaks_the_reader_of_grants(
    tmp_path_factory: pytest.TempPathFactory, groups: bytes, limit: bytes, variable: str
) -> None:
    """Whatever stands in files and variables, the answer is a bound or none."""
    root = tmp_path_factory.getbasetemp() / "grants"
    system(root, groups, {"memory.max": limit, "memory/memory.limit_in_bytes": limit})
    granted = granted_memory({"SLURM_MEM_PER_NODE": variable, "SLURM_MEM_PER_CPU": variable}, root)
    assert granted is None or granted > 0


def test_files_that_cannot_be_read_bound_nothing(tmp_path: Path) -> None:
    """A folder in the place of a file, and a file in the place of a folder."""
    (tmp_path / "proc/self/cgroup").mkdir(parents=True)
    assert granted_memory({}, tmp_path) is None
    root = system(tmp_path / "other", "0::/a/b\n", {"a": "file"})
    (root / "sys/fs/cgroup/memory.max").mkdir()
    assert granted_memory({}, root) is None


@given(st.integers(0, 1 << 50), st.none() | st.integers(0, 1 << 60))
def test_a_task_plans_with_less_than_is_granted(asked: int, granted: int | None) -> None:
    """Never more than asked for, and never all that whoever kills allows; without a bound, what is asked for."""
    fits = fit_memory(asked, granted)
    assert 0 <= fits <= asked
    if granted is None:
        assert fits == asked
    else:
        assert fits <= 0.9 * granted
        assert fits == asked or fits >= int(0.9 * granted)


@given(st.text() | st.integers(-5, 1 << 64).map(str))
def test_counts_are_whole_numbers_or_nothing(text: str) -> None:
    """A number is what it says, and what is none is 0."""
    found = parse_count(text)
    assert found == (int(text) if text.isdecimal() and len(text) <= 20 else 0)
