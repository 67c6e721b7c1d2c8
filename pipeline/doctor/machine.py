"""What a process gets here: versions, cores, memory, open files; and the modes of files that hold credentials."""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

import pipeline
from pipeline.archive.liblzma import liblzma_version
from pipeline.doctor.mounts import find_mount
from pipeline.doctor.records import CREDENTIALS, Finding, failure, good, warning
from pipeline.doctor.storage import read_mountinfo
from pipeline.settings import Config
from pipeline.task.resources import granted_cores
from pipeline.units import render_size

GROUP = "machine"
FEW_OPEN_FILES = 1024
NO_LIMIT = 1 << 60  # cgroup v1 says 2**63 less a page where there is no limit


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What this process may use. Memory in bytes, None where nothing limits it; `limited_by` says what does."""

    python: str
    medhaul: str
    liblzma: str
    libzstd: str
    cores: int
    memory: int | None
    limited_by: str
    installed: int
    open_files: int


def probe_machine(environ: Mapping[str, str]) -> MachineFacts:
    """Look at this process and the machine under it."""
    import zstandard

    memory, limited_by = read_memory(environ)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MachineFacts(
        python=platform.python_version(),
        medhaul=pipeline.__version__,
        liblzma=liblzma_version() or "unknown",
        libzstd=".".join(str(part) for part in zstandard.ZSTD_VERSION),
        cores=granted_cores(environ),
        memory=memory,
        limited_by=limited_by,
        installed=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        open_files=NO_LIMIT if soft == resource.RLIM_INFINITY else soft,
    )


def read_memory(environ: Mapping[str, str]) -> tuple[int | None, str]:
    """The memory that this process is granted, and by what: the smallest of its control groups' and Slurm's word."""
    limits: list[tuple[int, str]] = []
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        groups = ""
    for file in cgroup_files(groups, read_mountinfo()):
        try:
            count = parse_memory_limit(Path(file).read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue  # a group above ours may be another's, and the root has no limit
        if count is not None:
            limits.append((count, "control group"))
    if (stated := slurm_memory(environ)) is not None:
        limits.append((stated, "Slurm"))
    return min(limits, default=(None, ""))


def cgroup_files(groups: str, mountinfo: str) -> list[str]:
    """Files that may limit this process's memory, by the texts of /proc/self/cgroup and mountinfo. Pure.

    cgroups(7): version 1 has a line with `memory` among the controllers, version 2 one that begins with `0::`. Every
    group on the way up counts, too.
    """
    found = []
    for line in groups.splitlines():
        match = re.fullmatch(r"(\d+):([^:]*):(/.*)", line)
        if match is None:
            continue
        number, controllers, path = match.groups()
        if "memory" in controllers.split(","):
            root, name = _cgroup_root(mountinfo, "cgroup", "memory"), "memory.limit_in_bytes"
        elif number == "0" and not controllers:
            root, name = _cgroup_root(mountinfo, "cgroup2", ""), "memory.max"
        else:
            continue
        if root:
            parts = [part for part in path.split("/") if part not in {"", ".."}]
            found += ["/".join([root, *parts[:count], name]) for count in range(len(parts), -1, -1)]
    return found


def _cgroup_root(mountinfo: str, kind: str, controller: str) -> str:
    """Where the control groups of a kind are mounted; empty when they are not."""
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) >= 5 and len(rest) >= 3 and rest[0] == kind:
            options = rest[2].split(",")
            if not controller or controller in options:
                return find_mount(Path(fields[4]), line).folder
    return ""


def parse_memory_limit(text: str) -> int | None:
    """Read a control group's limit; None where there is none or it cannot be read. Pure."""
    text = text.strip()
    if not re.fullmatch(r"[0-9]{1,20}", text):
        return None
    count = int(text)
    return count if count < NO_LIMIT else None


def slurm_memory(environ: Mapping[str, str]) -> int | None:
    """Memory that Slurm grants by its variables (sbatch(1)), in bytes; None outside a job. Pure."""
    node, cpu = environ.get("SLURM_MEM_PER_NODE", ""), environ.get("SLURM_MEM_PER_CPU", "")
    if re.fullmatch(r"[1-9][0-9]{0,14}", node):
        return int(node) << 20
    if re.fullmatch(r"[1-9][0-9]{0,14}", cpu):
        return (int(cpu) << 20) * granted_cores(environ)
    return None


def classify_machine(facts: MachineFacts, config: Config, *, tasks_here: bool) -> list[Finding]:
    """Judge what a process gets; `tasks_here`: tasks run on this machine. Pure."""
    found = [
        good(GROUP, "versions", f"medhaul {facts.medhaul}, Python {facts.python}, liblzma {facts.liblzma}, "
             f"libzstd {facts.libzstd}"),
        good(GROUP, "cores", f"{facts.cores} granted"),
    ]  # fmt: skip
    text = f"of {render_size(facts.installed)} installed"
    if facts.memory is None:
        text = f"no limit found, {text}"
    else:
        text = f"{render_size(facts.memory)} granted (by {facts.limited_by}), {text}"
    most = facts.installed if facts.memory is None else min(facts.memory, facts.installed)
    if tasks_here and most < config.task.memory:
        hint = "lower task.memory, or ask for more (slurm.memory)"
        text = f"{text}; a task may use {render_size(config.task.memory)}"
        found.append(warning(GROUP, "memory", text, hint))
    else:
        found.append(good(GROUP, "memory", text))
    shown = "no limit" if facts.open_files >= NO_LIMIT else str(facts.open_files)
    share = max(1, config.limits.connections // config.limits.tasks)
    if facts.open_files < min(FEW_OPEN_FILES, 64 + 4 * share):
        hint = "raise it (ulimit -n), or lower limits.connections"
        found.append(warning(GROUP, "open files", f"{shown}, a task has {share} connections", hint))
    else:
        found.append(good(GROUP, "open files", shown))
    return found


def credential_paths(environ: Mapping[str, str]) -> list[Path]:
    """Files with credentials that are there although no config names them: the one of netrc(5)."""
    named = environ.get("NETRC", "")
    home = environ.get("HOME", "")
    paths = [Path(named)] if named else [Path(home) / ".netrc"] if home else []
    return [path for path in paths if os.path.lexists(path)]


def check_credentials(paths: Iterable[Path], *, user: int | None = None) -> list[Finding]:
    """Check that files with credentials are readable by their owner only, and that this is us; `user` is a uid."""
    return [_check_credentials(path, os.getuid() if user is None else user) for path in paths]


def _check_credentials(path: Path, user: int) -> Finding:
    group, what = "credentials", path.name
    try:
        status = path.stat()
    except OSError as error:
        hint = "name a file that there is, with mode 0600"
        return failure(group, what, f"{path}: {error.strerror}", hint, CREDENTIALS)
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        return failure(group, what, f"{path} is not a file", "name a file with mode 0600", CREDENTIALS)
    if status.st_uid != user:
        text = f"{path} belongs to another user (uid {status.st_uid})"
        return failure(group, what, text, "keep credentials in a file of your own", CREDENTIALS)
    if mode & 0o077:
        text = f"{path} has mode {mode:04o}: others can read or change it"
        return failure(group, what, text, f"chmod 600 {shlex.quote(str(path))}", CREDENTIALS)
    return good(group, what, f"{path} has mode {mode:04o}")


def classify_credentials(found: Sequence[Finding]) -> list[Finding]:
    """Say so when there are no files to check. Pure."""
    return list(found) or [good("credentials", "files", "none")]
