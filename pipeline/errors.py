"""Errors: what happened, what to do now, and the exit code of the process.

Two families. `MedhaulError` ends a command and carries its exit code. `ItemError` ends one item (a DICOM series or an
image) and never more than that: the task records its reason and goes on.
"""

from __future__ import annotations

from typing import ClassVar


class MedhaulError(Exception):
    """Ends a command. `str()` says what happened to which thing; `hint` says what to do now."""

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ItemsFailedError(MedhaulError):
    """Finished, but some items failed and are listed."""

    exit_code = 3


class UsageError(MedhaulError):
    """The command line asks for something that cannot be."""

    exit_code = 64


class SiteUnavailableError(MedhaulError):
    """An archive site, a mirror of it, or the scheduler does not answer as it should."""

    exit_code = 69


class StorageError(MedhaulError):
    """Scratch or shared storage is full, missing or not writable."""

    exit_code = 73


class InterruptedRunError(MedhaulError):
    """Stopped by a signal or a time limit; everything finished is kept and `resume` goes on."""

    exit_code = 75


class TimeLimitError(InterruptedRunError):
    """Stopped ahead of the time limit. `progress`: whether this life finished anything."""

    def __init__(self, message: str, *, hint: str = "", progress: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.progress = progress


class CredentialsError(MedhaulError):
    """Credentials are missing, refused, or kept in a file that others can read."""

    exit_code = 77


class ConfigError(MedhaulError):
    """A config, manifest, receipt, journal or archive is not what it must be."""

    exit_code = 78


class ItemError(Exception):
    """One item failed.

    Parameters
    ----------
    reason
        One of the words of `REASONS`: stable, for scripts.
    message
        For people: what was expected, what came, for which file.
    transient
        Whether asking again later may help.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        self.reason = reason
        self.transient = transient


REASONS = {
    "withdrawn": "the site no longer has it (404 on site and mirror; NBIA: 400, not in public domain; ISIC: its API)",
    "forbidden": "the site refuses it (401 or 403; NBIA: 400, not granted)",
    "unavailable": "the site did not deliver in spite of retries",
    "count": "more or fewer files than the manifest says",
    "size": "more or fewer bytes than the manifest or the listing says, or more than scratch holds",
    "checksum": "the bytes do not have the hash that the site states",
    "not-dicom": "the file is not DICOM",
    "wrong-uid": "the file belongs to another series or image, or its UIDs are invalid",
    "truncated": "the file ends before its pixel data does",
    "malformed": "the file contradicts itself; an image is not of its name's format or not of the stated pixel size",
    "duplicate": "two files of the item have the same SOPInstanceUID",
    "empty": "the item has no files",
    "internal": "a fault in medhaul; the log has the traceback",
}


def render_table() -> str:
    """The Markdown tables of docs/exit-codes.md: exit codes, and reasons of failed items. Pure."""
    codes = {0: "Everything asked for is done.", 70: "A fault in medhaul; `medhaul -v` shows the traceback."}
    for error in (
        ItemsFailedError,
        UsageError,
        SiteUnavailableError,
        StorageError,
        InterruptedRunError,
        CredentialsError,
        ConfigError,
    ):
        codes[error.exit_code] = (error.__doc__ or "").strip()
    lines = ["| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {text} |" for code, text in sorted(codes.items())]
    lines += ["", "| reason | meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {text} |" for reason, text in REASONS.items()]
    return "\n".join(lines) + "\n"
