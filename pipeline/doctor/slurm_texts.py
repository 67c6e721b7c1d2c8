"""Reading what scontrol and sacctmgr print, as of scontrol(1) and sacctmgr(1). Pure; unknown is None, never a number.

Times are seconds; `math.inf` where Slurm says that there is no limit.
"""

from __future__ import annotations

import math
import re

import msgspec

from pipeline.units import parse_duration

ASSOCIATION_FIELDS = "Account,Partition,QOS,MaxJobs,MaxSubmit"
QOS_FIELDS = "Name,MaxWall,MaxJobsPU,MaxSubmitPU"
NO_LIMIT = frozenset({"UNLIMITED", "INFINITE"})
UNSET = frozenset({"NONE", "N/A", "(NULL)"})


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition. `default_time` is what a job without `--time` gets; `memory` is MaxMemPerNode, in bytes."""

    name: str
    default: bool
    state: str
    default_time: float | None
    max_time: float | None
    grace: float | None
    preempt: str
    memory: float | None
    nodes: int | None


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """What an account grants its user; None for a limit that is not set there."""

    account: str
    partition: str
    qos: tuple[str, ...]
    max_jobs: int | None
    max_submit: int | None


class Qos(msgspec.Struct, frozen=True, kw_only=True):
    """A quality of service; None for a limit that is not set there."""

    name: str
    max_wall: float | None
    max_jobs: int | None
    max_submit: int | None


def parse_time(text: str) -> float | None:
    """Read a time limit; infinite for none at all, None for what cannot be read."""
    text = text.strip()
    if text.upper() in NO_LIMIT:
        return math.inf
    try:
        return float(parse_duration(text))
    except ValueError:
        return None


def parse_count(text: str) -> int | None:
    """Read a whole number; None for anything else."""
    text = text.strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def parse_partitions(text: str) -> dict[str, Partition]:
    """Read `scontrol --oneliner show partition`; what is not a partition's line is left out."""
    found = {}
    for line in text.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        name = fields.get("PartitionName", "")
        if not name:
            continue
        most = parse_time(fields.get("MaxTime", ""))
        stated = fields.get("DefaultTime", "")
        # slurm.conf(5), DefaultTime: when it is not set, MaxTime is used.
        default = most if stated.upper() in UNSET else parse_time(stated)
        memory = fields.get("MaxMemPerNode", "")
        megabytes = parse_count(memory)
        grace = parse_count(fields.get("GraceTime", ""))
        found[name] = Partition(
            name=name,
            default=fields.get("Default") == "YES",
            state=fields.get("State", ""),
            default_time=default,
            max_time=most,
            grace=None if grace is None else float(grace),
            preempt=fields.get("PreemptMode", ""),
            memory=math.inf if memory.upper() in NO_LIMIT else None if megabytes is None else float(megabytes << 20),
            nodes=parse_count(fields.get("TotalNodes", "")),
        )
    return found


def parse_associations(text: str) -> list[Association]:
    """Read `sacctmgr -n -P show assoc` with `ASSOCIATION_FIELDS`; lines of another form are left out."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 5 or not fields[0]:
            continue
        account, partition, qos, jobs, submit = fields
        names = tuple(name.strip() for name in qos.split(",") if name.strip())
        found.append(
            Association(
                account=account, partition=partition, qos=names,
                max_jobs=parse_count(jobs), max_submit=parse_count(submit),
            )
        )  # fmt: skip
    return found


def parse_qos(text: str) -> dict[str, Qos]:
    """Read `sacctmgr -n -P show qos` with `QOS_FIELDS`; lines of another form are left out."""
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 4 and fields[0]:
            name, wall, jobs, submit = fields
            found[name] = Qos(
                name=name, max_wall=parse_time(wall), max_jobs=parse_count(jobs), max_submit=parse_count(submit)
            )
    return found


def smallest(counts: list[int | None]) -> int | None:
    """Return the smallest of the limits that are set; None when none is."""
    known = [count for count in counts if count is not None]
    return min(known) if known else None
