"""What commands and the kernel print is read rightly, and anything else does no harm."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.doctor.machine import cgroup_files, parse_memory_limit, slurm_memory
from pipeline.doctor.mounts import find_local_reason, find_mount, parse_quota
from pipeline.doctor.node import parse_queue
from pipeline.doctor.records import printable
from pipeline.doctor.slurm_texts import parse_associations, parse_partitions, parse_qos, parse_time
from pipeline.task.resources import file_system_kind
from tests.doctor.doctor_kit import PARTITION_TEXT

MOUNTS = (
    "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
    "28 27 0:25 / /home\\040x rw - nfs4 nas:/export/home rw\n"
    "29 27 0:26 / /lustre rw - lustre 10.0.0.1@tcp:/fs rw\n"
    "30 27 0:27 / /dev/shm rw - tmpfs tmpfs rw\n"
    "31 27 0:30 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n"
    "32 27 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def test_partitions_are_read():
    """A partition's times are seconds, its memory bytes; without a default time MaxTime holds (slurm.conf(5))."""
    found = parse_partitions(PARTITION_TEXT + "PartitionName=big DefaultTime=NONE MaxTime=UNLIMITED State=DOWN\n")
    assert found["main"].default_time == 8 * 3600
    assert found["main"].max_time == 86400
    assert found["main"].memory == math.inf
    assert found["short"].memory == 1 << 30
    assert found["big"].default_time == math.inf
    assert found["big"].nodes is None
    assert found["big"].grace is None


def test_what_is_not_said_is_unknown():
    """A line with a name alone leaves everything else unknown, never unlimited."""
    one = parse_partitions("PartitionName=x MaxTime=what MaxMemPerNode=-3")["x"]
    assert (one.default_time, one.max_time, one.memory, one.grace) == (None, None, None, None)
    assert parse_time("n/a") is None


def test_associations_and_qos_are_read():
    """Empty limits are None; lines of another form are left out."""
    found = parse_associations("a|p|q1,q2|4|10\nb|||||\nnonsense\n|x|||\nc||||\n")
    assert [(one.account, one.max_jobs, one.max_submit) for one in found] == [("a", 4, 10), ("c", None, None)]
    assert found[0].qos == ("q1", "q2")
    qos = parse_qos("long|7-00:00:00|20|\nx|y\n")
    assert qos["long"].max_wall == 7 * 86400
    assert qos["long"].max_submit is None


def test_quotas_are_read():
    """Both commands' tables are read: with and without a grace, with a name on a line of its own, when exceeded."""
    text = (
        "Disk quotas for user a (uid 1):\n"
        "     Filesystem   space   quota   limit   grace   files   quota   limit   grace\n"
        "/dev/mapper/a-very-long-name\n"
        "                  8123M* 8000M  11000M   6days    120k    200k    220k        \n"
        "/dev/sdb1   4K  0K  0K  12  0  0\n"
    )
    first, second = parse_quota(text)
    assert (first.source, first.used, first.limit) == ("/dev/mapper/a-very-long-name", 8123 << 20, 11000 << 20)
    assert (first.files, first.file_limit, first.over) == (120_000, 220_000, True)
    assert (second.used, second.limit, second.files, second.file_limit) == (4096, 0, 12, 0)
    lustre = "Disk quotas for usr a (uid 1):\n Filesystem used quota limit grace files quota limit grace\n"
    (third,) = parse_quota(lustre + "  /lustre  1.5T   0k   10T   -  123456   0 1000000   -\nuid 1 is using default\n")
    assert (third.used, third.limit, third.file_limit) == (3 << 39, 10 << 40, 1_000_000)


def test_mounts_are_found():
    """The innermost mount holds a path, escapes undone, and its kind is the one that tasks go by."""
    assert find_mount(Path("/home x/a"), MOUNTS).source == "nas:/export/home"
    assert find_mount(Path("/homes"), MOUNTS).kind == "ext4"
    for path in ("/", "/lustre/a", "/dev/shm", "/home x"):
        assert find_mount(Path(path), MOUNTS).kind == file_system_kind(Path(path), MOUNTS)


def test_local_places_are_known():
    """Only what is surely of one machine is called so; /scratch on a disk is not known to be."""
    disk = find_mount(Path("/scratch"), MOUNTS)
    assert find_local_reason(Path("/tmp/x"), disk, {})
    assert find_local_reason(Path("/tmpx"), disk, {}) == ""
    assert find_local_reason(Path("/scratch/a"), disk, {}) == ""
    assert find_local_reason(Path("/scratch/a"), disk, {"SLURM_TMPDIR": "/scratch"})
    assert find_local_reason(Path("/dev/shm/a"), find_mount(Path("/dev/shm/a"), MOUNTS), {})
    assert find_local_reason(Path("/lustre/tmp"), find_mount(Path("/lustre"), MOUNTS), {"TMPDIR": "/lustre"}) == ""


def test_memory_limits_are_found():
    """Control groups of both versions are followed up to the root; huge numbers and words are no limit."""
    files = cgroup_files("4:memory:/slurm/job\n1:cpu:/x\n0::/y\n", MOUNTS)
    assert files[0] == "/sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes"
    assert "/sys/fs/cgroup/memory/memory.limit_in_bytes" in files
    assert "/sys/fs/cgroup/unified/y/memory.max" in files
    assert cgroup_files("0::/../../etc\n", MOUNTS)[0] == "/sys/fs/cgroup/unified/etc/memory.max"
    assert parse_memory_limit("1048576\n") == 1 << 20
    assert parse_memory_limit("9223372036854771712") is None
    assert parse_memory_limit("max\n") is None
    assert slurm_memory({"SLURM_MEM_PER_NODE": "2000"}) == 2000 << 20
    assert slurm_memory({"SLURM_MEM_PER_NODE": "0"}) is None
    assert slurm_memory({"SLURM_MEM_PER_NODE": "²"}) is None


def test_the_queue_is_read():
    """A state with its reason; a forgotten job is gone; an error that says nothing sure is neither."""
    assert parse_queue(0, "PENDING|Resources\n", "").reason == "Resources"
    assert parse_queue(0, "COMPLETED|None\n", "").ended
    assert parse_queue(0, "", "").ended
    assert parse_queue(1, "", "slurm_load_jobs error: Invalid job id specified").ended
    assert not parse_queue(1, "", "Unable to contact slurm controller").ended
    assert not parse_queue(0, "what is this", "").ended


HOSTILE = st.text(st.characters(codec=None), max_size=300) | st.lists(
    st.sampled_from(
        ["PartitionName=", "=", "|", "\n", " ", "-", "*", "[", "1.5T", "/x", "\x1b[31m", "\ud800", "∞", "9" * 30, " - "]
    )
).map("".join)


@given(HOSTILE)
def test_hostile_text_does_no_harm(text):
    """No parser raises for any text, and what is shown of it is one printable line."""
    parse_partitions(text)
    parse_associations(text)
    parse_qos(text)
    parse_quota(text)
    parse_time(text)
    parse_queue(0, text, text)
    find_mount(Path("/a"), text)
    cgroup_files(text, text)
    parse_memory_limit(text)
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 600
    shown.encode("utf-8")
