"""Shared storage: does what a run does to it work there, and is there room."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from pipeline.atomic import write_atomic
from pipeline.doctor.bounded import run_bounded
from pipeline.doctor.mounts import Mount, Quota, describe_kind, find_local_reason, find_mount, parse_quota
from pipeline.doctor.records import STORAGE, Finding, failure, good, warning
from pipeline.doctor.slurm import user_name
from pipeline.errors import StorageError
from pipeline.schedulers.base import SchedulerError
from pipeline.schedulers.slurm_calls import SlurmCalls
from pipeline.task.resources import SHARED_KINDS
from pipeline.units import render_size

GROUP = "storage"
SECONDS = 30.0
QUOTA_SECONDS = 20.0
TRIAL_BYTES = 4 << 20
SLOW = 5.0
FEW_FILES = 10_000
LITTLE = 100 << 20


class StorageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a folder on storage.

    Attributes
    ----------
    path, base
        The folder, and the nearest folder above it that exists (itself when it does).
    problem
        Why it cannot be used; empty when it can.
    seconds
        What the trial took: write 4 MiB, fsync, rename over, fsync the folder, read back, delete.
    free, free_files
        For this user; None where the file system does not tell.
    quotas
        Of this user, None where they cannot be read.
    """

    path: str
    base: str
    problem: str = ""
    seconds: float = 0.0
    free: int | None = None
    free_files: int | None = None
    mount: Mount = Mount()
    local: str = ""
    quotas: list[Quota] | None = None


def probe_storage(
    path: Path,
    environ: Mapping[str, str],
    *,
    seconds: float = SECONDS,
    trial: Callable[[Path], float] | None = None,
    which: Callable[..., str | None] = shutil.which,
) -> StorageFacts:
    """Look at a folder, and try in it what a run does; nothing stays behind. Never takes much longer than `seconds`."""
    try:
        facts = run_bounded(lambda: _look(path, environ, trial or try_storage), seconds)
    except TimeoutError as error:
        return StorageFacts(path=str(path), base=str(path), problem=f"{error}: is its file server up?")
    if facts.problem:
        return facts
    return msgspec.structs.replace(facts, quotas=read_quotas(Path(facts.base), facts.mount, environ, which))


def _look(path: Path, environ: Mapping[str, str], trial: Callable[[Path], float]) -> StorageFacts:
    base = path
    try:
        while not base.exists() and base != base.parent:
            base = base.parent
        mount = find_mount(base.resolve(), read_mountinfo())
        facts = StorageFacts(path=str(path), base=str(base), mount=mount)
        if not base.is_dir():
            return msgspec.structs.replace(facts, problem=f"{base} is not a folder")
        seconds = trial(base)
        free, files = free_space(base)
    except StorageError as error:
        return StorageFacts(path=str(path), base=str(base), problem=str(error))
    except OSError as error:
        return StorageFacts(path=str(path), base=str(base), problem=f"{base}: {error.strerror or error}")
    local = find_local_reason(base.resolve(), mount, dict(environ))
    return msgspec.structs.replace(facts, seconds=seconds, free=free, free_files=files, local=local)


def read_mountinfo() -> str:
    """The text of /proc/self/mountinfo; empty where it cannot be read."""
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def try_storage(base: Path) -> float:
    """Do in a temporary folder below `base` what a run does; returns the seconds it took.

    Raises
    ------
    StorageError
        When it does not work, or other bytes are read back than were written.
    OSError
        For a failure of another kind.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".medhaul-doctor-", dir=base) as folder:
        file = Path(folder) / "trial"
        data = os.urandom(1 << 16) * (TRIAL_BYTES >> 16)
        write_atomic(file, b"before")  # temporary file, fsync, rename, fsync of the folder: what a run does
        write_atomic(file, data)
        if file.read_bytes() != data:
            raise StorageError(f"{base}: other bytes are read back than were written", hint="tell its administrators")
    return time.monotonic() - begun


def free_space(folder: Path) -> tuple[int, int | None]:
    """Bytes and files that this user may still put there; None for files where the file system has no such limit."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize, stat.f_favail if stat.f_files else None


def read_quotas(
    folder: Path, mount: Mount, environ: Mapping[str, str], which: Callable[..., str | None]
) -> list[Quota] | None:
    """The user's quotas by the command for the file system; None where they cannot be read."""
    lustre = ["lfs", "quota", "-h", "-u", user_name(environ), str(folder)]
    argv = lustre if mount.kind == "lustre" else ["quota", "-s"]
    if which(argv[0], path=environ.get("PATH")) is None:
        return None
    try:
        answer = SlurmCalls(environ, seconds=QUOTA_SECONDS)(*argv)
    except SchedulerError:
        return None
    # quota(1) ends with 1 when a quota is exceeded: what it printed counts, not how it ended.
    found = parse_quota(answer.out)
    return found if found or answer.code == 0 else None


def classify_storage(what: str, facts: StorageFacts, needed: int, *, slurm: bool, here: bool) -> list[Finding]:
    """Judge a folder on storage for a run that needs about `needed` bytes there. Pure.

    `slurm`: other nodes must see it; `here`: one of them is looking. Space that is short is a warning as long as
    there is some: how well the images pack is not known before.
    """
    if facts.problem:
        hint = "set storage.root and storage.logs to folders that you can write"
        return [failure(GROUP, what, f"{facts.path}: {facts.problem}", hint, STORAGE)]
    state = "exists" if facts.base == facts.path else f"can be made in {facts.base}"
    speed = f"write, fsync, rename and delete took {facts.seconds:.2f} s"
    text = f"{facts.path} {state}; {describe_kind(facts.mount.kind)}; {speed}"
    slow = "every receipt and frame waits that long: a faster file system would help" if facts.seconds > SLOW else ""
    found = [warning(GROUP, what, text, slow) if slow else good(GROUP, what, text)]
    if facts.local:
        hint = (
            "all nodes must see it: choose a folder on shared storage" if slurm or here else "fine while all runs here"
        )
        found.append(warning(GROUP, what, facts.local, hint))
    elif slurm and not here and facts.mount.kind not in SHARED_KINDS:
        text = f"whether other nodes see it is not known from its type, {facts.mount.kind or 'unknown'}"
        found.append(good(GROUP, what, text, "`medhaul doctor CONFIG --on-node` finds out"))
    return [*found, _classify_free(what, facts, needed), _classify_quota(what, facts, needed)]


def _classify_free(what: str, facts: StorageFacts, needed: int) -> Finding:
    what = f"{what} free"
    free, files = facts.free, facts.free_files
    text = f"{'unknown' if free is None else render_size(free)}, inodes: "
    text += "no limit told" if files is None else f"{files:,}"
    if (free is not None and free < LITTLE) or (files is not None and files < FEW_FILES // 100):
        return failure(GROUP, what, text, "free space there, or choose another storage.root", STORAGE)
    if free is not None and free < needed:
        return warning(GROUP, what, f"{text}; up to {render_size(needed)} may be needed", "make room in time")
    if files is not None and files < FEW_FILES:
        return warning(GROUP, what, text, "a run needs a few files for each shard")
    return good(GROUP, what, text)


def _classify_quota(what: str, facts: StorageFacts, needed: int) -> Finding:
    what = f"{what} quota"
    if facts.quotas is None:
        return good(GROUP, what, "not readable")
    mine = [one for one in facts.quotas if one.source in {facts.mount.source, facts.mount.folder, facts.path}]
    if not mine:
        others = f"; there are some for {', '.join(one.source for one in facts.quotas)}" if facts.quotas else ""
        return good(GROUP, what, f"none told for this file system{others}")
    quota = mine[0]
    text = f"{render_size(quota.used)} of {render_size(quota.limit) if quota.limit else 'no limit'}, "
    text += f"{quota.files:,} of {f'{quota.file_limit:,}' if quota.file_limit else 'no limit of'} files"
    left, files_left = quota.limit - quota.used, quota.file_limit - quota.files
    if (quota.limit and left <= LITTLE) or (quota.file_limit and files_left <= 0):
        return failure(GROUP, what, f"{text}: used up", "make room, or choose another storage.root", STORAGE)
    if quota.over or (quota.limit and left < needed) or (quota.file_limit and files_left < FEW_FILES):
        return warning(GROUP, what, f"{text}; up to {render_size(needed)} may be needed", "make room in time")
    return good(GROUP, what, text)
