"""What this process may use: cores, memory, and node-local scratch."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import ConfigError, StorageError
from pipeline.units import render_size

# Resident before the first byte: interpreter, libraries, thread stacks.
BASE_MEMORY = 120 << 20
# A block on its way: read parts, joined, compressed, decoded again; and the encoder's own tables.
BLOCK_COPIES = 4
ENCODER_MEMORY = 16 << 20
CONNECTION_MEMORY = 1 << 20
# A file under way: its place in the queue, its names and hashes, on scratch and in records. Measured: 4.5 kB.
FILE_MEMORY = 5 << 10
# More files under way than this, or than one frame has, speed up nothing.
FILES_AHEAD = 20_000
# Of a bound that is enforced by killing: the rest is for the interpreter's own and for what the kernel counts as ours.
USABLE_MEMORY = 0.9
COUNT_DIGITS = 20  # of 2**64
UNBOUNDED_MEMORY = 1 << 60  # what a control group without a bound says in its first version is near 2**63
SHARED_KINDS = frozenset(
    {
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "cifs",
        "smb3",
        "fuse.sshfs",
        "afs",
        "panfs",
        "wekafs",
        "dvs",
        "9p",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.ceph",
    }
)
LAST_RESORT = ("/tmp", "/tmp")  # noqa: S108 - the one folder that every node has; medhaul makes a private one in it
MEMORY_KINDS = frozenset({"tmpfs", "ramfs"})


class Workers(NamedTuple):
    """How many of each a task runs."""

    cores: int
    blocks: int
    connections: int
    files: int = 20_000  # that may be under way at once


def parse_count(text: str) -> int:
    """A whole number as Slurm and the kernel write it; 0 for anything else, also for one that cannot be meant. Pure."""
    return int(text) if len(text) <= COUNT_DIGITS and text.isdecimal() else 0


def granted_cores(environ: Mapping[str, str]) -> int:
    """Cores that the scheduler grants this process: never more than its affinity."""
    affinity = len(os.sched_getaffinity(0))
    return min(affinity, parse_count(environ.get("SLURM_CPUS_PER_TASK", "")) or affinity)


def granted_memory(environ: Mapping[str, str], root: Path = Path("/")) -> int | None:
    """Bytes of memory that scheduler and kernel grant this process; None when they set no bound.

    SLURM_MEM_PER_NODE and SLURM_MEM_PER_CPU are in MiB (sbatch(1)); the kernel's are those of all control groups above
    this process (cgroups(7)). `root` is the root of the file system.
    """
    bounds = []
    node, cpu = (parse_count(environ.get(f"SLURM_MEM_PER_{each}", "")) for each in ("NODE", "CPU"))
    cpus = parse_count(environ.get("SLURM_CPUS_PER_TASK") or environ.get("SLURM_CPUS_ON_NODE", ""))
    if node:
        bounds.append(node << 20)
    elif cpu:
        bounds.append((cpu << 20) * max(1, cpus))
    try:
        groups = os.fsdecode((root / "proc/self/cgroup").read_bytes())
    except OSError:
        groups = ""
    for line in groups.split("\n"):  # a group's name may hold anything else, in any encoding
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            try:
                text = (base / folder / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text()
            except (OSError, ValueError):
                continue
            if 0 < (bound := parse_count(text.strip())) < UNBOUNDED_MEMORY:
                bounds.append(bound)
    return min(bounds, default=None)


def fit_memory(asked: int, granted: int | None) -> int:
    """The memory a task may plan with: what is asked for, but never all that is granted. Pure."""
    return asked if granted is None else min(asked, int(granted * USABLE_MEMORY))


def choose_workers(memory: int, cores: int, connections: int, block_bytes: int, cut_files: int) -> Workers:
    """Fit compressors, blocks in flight, connections and files under way into a bound of `memory` bytes. Pure.

    Files under way are at least as many as a frame may have, and of what is left as many as keep all others busy.

    Raises
    ------
    ConfigError
        When not even one of each fits.
    """
    largest_block = 3 * block_bytes  # see archive.blocks.HUGE_MEMBER_BLOCKS
    left = memory - BASE_MEMORY - cut_files * FILE_MEMORY
    connections = max(1, min(connections, left // 4 // CONNECTION_MEMORY))
    left -= connections * CONNECTION_MEMORY
    per_block = BLOCK_COPIES * largest_block
    cores = max(1, min(cores, left // (ENCODER_MEMORY + 2 * per_block)))
    blocks = min(2 * cores + 2, (left - cores * ENCODER_MEMORY) // per_block)
    if blocks < 1:
        raise ConfigError(
            f"task.memory: {render_size(memory)} is too little for blocks of {render_size(block_bytes)} "
            f"and frames of {cut_files} files",
            hint="raise task.memory, or lower archive.block_bytes or archive.cut_files",
        )
    left -= cores * ENCODER_MEMORY + blocks * per_block
    return Workers(cores, blocks, connections, min(max(cut_files, FILES_AHEAD), cut_files + left // FILE_MEMORY))


def peak_memory() -> int:
    """The most bytes that this process ever had resident.

    From /proc: getrusage also counts what the process had before exec, that is its parent's memory.
    """
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def scratch_candidates(configured: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Places to try as scratch, best first, each with where it is named. Pure."""
    if configured:
        return [("task.scratch", configured)]
    job = environ.get("SLURM_JOB_ID", "")
    found = [(f"${name}", environ.get(name, "")) for name in ("SLURM_TMPDIR", "L_SCRATCH_JOB", "LOCAL_SCRATCH")]
    found += [("/lscratch", f"/lscratch/{job}" if job else ""), ("$TMPDIR", environ.get("TMPDIR", ""))]
    found.append(LAST_RESORT)
    return [(name, path) for name, path in found if path]


def file_system_kind(path: Path, mountinfo: str) -> str:
    """Type of the file system that holds `path`, from the text of /proc/self/mountinfo; empty when unknown. Pure."""
    best, kind = -1, ""
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 5 or not rest:
            continue
        mount = re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), fields[4])
        if (path == Path(mount) or Path(mount) in path.parents) and len(mount) >= best:
            best, kind = len(mount), rest[0]
    return kind


def find_scratch(
    candidates: Sequence[tuple[str, str]],
    needed: int,
    *,
    allow_shared: bool,
    configured: bool,
    least: Callable[[int], int] | None = None,
) -> tuple[Path, str]:
    """Return the first usable scratch folder, and a line that says which and why the others were not.

    Parameters
    ----------
    needed
        Bytes without which something that is to be done cannot be.
    least
        Where no place has `needed`: makes of the bytes that one has free those that it must have for what can be done
        there at all. The first that has them serves.

    Raises
    ------
    StorageError
        When none exists, is writable, is local and has as many bytes free.
    """
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    refused: list[str] = []
    tight: tuple[Path, str] | None = None
    for name, text in candidates:
        path = Path(text)
        if configured:
            with contextlib.suppress(OSError):  # what is wrong with it is told below
                path.mkdir(parents=True, exist_ok=True)
        try:
            path = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of symbolic links is either, depending on the Python
            problem = f"cannot be resolved: {error}"
        else:
            problem = _scratch_problem(path, mountinfo, needed, allow_shared=allow_shared)
        if not problem:
            return path, f"scratch: {path} ({name})" + "".join(f"; not {other}" for other in refused)
        refused.append(f"{path} ({name}): {problem}")
        wanted = least if tight is None else None
        if wanted is not None and not _scratch_problem(path, mountinfo, wanted, allow_shared=allow_shared):
            tight = path, f"scratch: {path} ({name}), though too small for some items: {problem}"
    if tight is not None:
        return tight
    raise StorageError("no usable scratch: " + "; ".join(refused), hint="set task.scratch to a node-local folder")


def _scratch_problem(path: Path, mountinfo: str, wanted: int | Callable[[int], int], *, allow_shared: bool) -> str:
    try:
        if not path.is_dir():
            return "does not exist"
        with tempfile.TemporaryFile(dir=path):
            pass
        free = shutil.disk_usage(path).free
    except OSError as error:
        return f"not writable: {error.strerror}"
    kind = file_system_kind(path, mountinfo)
    if kind in SHARED_KINDS | MEMORY_KINDS and not allow_shared:
        what = "in memory" if kind in MEMORY_KINDS else "on a network file system"
        return f"{what} ({kind}); task.allow_shared_scratch = true allows it"
    needed = wanted(free) if callable(wanted) else wanted
    return "" if free >= needed else f"{render_size(free)} free, {render_size(needed)} needed"
