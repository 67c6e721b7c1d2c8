"""What lies under a path: mounts, quotas, and whether a place is of this machine only. Pure."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from pipeline.task.resources import MEMORY_KINDS, SHARED_KINDS

# Places that, by custom or by the Filesystem Hierarchy Standard, belong to one machine.
LOCAL_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - named, not used
LOCAL_VARIABLES = ("TMPDIR", "SLURM_TMPDIR", "L_SCRATCH_JOB", "LOCAL_SCRATCH")
_UNITS = {"": 10, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_AMOUNT = re.compile(r"\[?([0-9]{1,15})(?:\.([0-9]{1,6}))?([kmgtpe]?)\]?(\*?)", re.IGNORECASE)
_GRACE = re.compile(r"-|none|\d+days?|\d+:\d\d(?::\d\d)?|(?:\d+[wdhms])+", re.IGNORECASE)


class Mount(msgspec.Struct, frozen=True):
    """A mounted file system: where, its type, and what is mounted. Empty where unknown."""

    folder: str = ""
    kind: str = ""
    source: str = ""


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """A user's quota on a file system. Limits are 0 for none; bytes, and numbers of files."""

    source: str
    used: int
    limit: int
    files: int
    file_limit: int
    over: bool = False


def find_mount(path: Path, mountinfo: str) -> Mount:
    """The mount that holds `path`, by the text of /proc/self/mountinfo (proc(5)); a later mount hides earlier ones."""
    best, found = -1, Mount()
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 5 or len(rest) < 2:
            continue
        folder = _unescape(fields[4])
        if (path == Path(folder) or Path(folder) in path.parents) and len(folder) >= best:
            best, found = len(folder), Mount(folder, rest[0], _unescape(rest[1]))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), text)


def describe_kind(kind: str) -> str:
    """Say what is known of a file system by its type, and no more."""
    if not kind:
        return "type unknown"
    if kind in SHARED_KINDS:
        return f"{kind}, a network file system"
    return f"{kind}, in memory" if kind in MEMORY_KINDS else kind


def find_local_reason(path: Path, mount: Mount, environ: dict[str, str]) -> str:
    """Say why a path is surely of this machine only; empty when that is not known."""
    if mount.kind in SHARED_KINDS:
        return ""
    if mount.kind in MEMORY_KINDS:
        return f"it is in this machine's memory ({mount.kind})"
    for place in LOCAL_PLACES:
        if path == Path(place) or Path(place) in path.parents:
            return f"it is below {place}, which each machine has for itself"
    for name in LOCAL_VARIABLES:
        value = environ.get(name, "")
        if value.startswith("/") and value != "/" and (path == Path(value) or Path(value) in path.parents):
            return f"it is below ${name}, which is node-local scratch"
    return ""


def parse_quota(text: str) -> list[Quota]:
    """Read what `quota -s` or `lfs quota -h -u USER PATH` prints; what has not that form is left out.

    A line is: file system, space used, quota, limit, grace, files, quota, limit, grace. Both commands break the line
    after a long name; a grace may be missing. Spaces without unit are of 1 KiB (quota(1), lfs-quota(1)).
    """
    found: list[Quota] = []
    name = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1:
            name = words[0]
            continue
        if words and line[:1].isspace() and name and _AMOUNT.fullmatch(words[0]):
            words = [name, *words]
        name = ""
        quota = _parse_quota_line(words)
        if quota is not None:
            found.append(quota)
    return found


def _parse_quota_line(words: list[str]) -> Quota | None:
    if len(words) < 7:
        return None
    rest = words[1:]
    space = [_amount(word, _UNITS) for word in rest[:3]]
    rest = rest[3:]
    if rest and _AMOUNT.fullmatch(rest[0]) is None and _GRACE.fullmatch(rest[0]):
        rest = rest[1:]
    files = [_amount(word, {}) for word in rest[:3]]
    if len(files) < 3 or any(one is None for one in (*space, *files)):
        return None
    (used, soft, hard), (count, file_soft, file_hard) = (
        [one for one in space if one is not None],
        [one for one in files if one is not None],
    )
    over = any(word.endswith("*") for word in words[1:])
    return Quota(
        source=words[0], used=used, limit=hard or soft, files=count, file_limit=file_hard or file_soft, over=over
    )


def _amount(word: str, units: dict[str, int]) -> int | None:
    match = _AMOUNT.fullmatch(word)
    if match is None:
        return None
    whole, fraction, unit, _ = match.groups()
    number = float(f"{whole}.{fraction or 0}")
    if units:
        return int(number * (1 << units[unit.lower()]))
    return int(number * 1000 ** (1 + "kmgtpe".index(unit.lower())) if unit else number)
