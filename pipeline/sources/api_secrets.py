"""Secrets for archive sites' APIs: where they may lie, and what every source of bearer tokens can do.

A secret appears in a request's body or Authorization header, and nowhere else: neither in `repr`, messages, URLs, logs
nor the cache.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Protocol

from pipeline.errors import CredentialsError

_MAX_FILE = 64 << 10


class Bearer(Protocol):
    """Where a bearer token comes from. `renewable`: whether another one can be had when the site refuses it."""

    renewable: bool

    def get(self, stop: threading.Event | None = None) -> str:
        """A token that is thought to be good."""

    def reject(self, token: str) -> None:
        """Say that the site did not take this token."""

    def scrub(self, text: str) -> str:
        """Take the secrets out of a text."""


def read_private_file(path: Path, *, hint: str) -> bytes:
    """Read the beginning (64 KiB) of a file that nobody but its owner can read.

    Raises
    ------
    CredentialsError
        When others have any right to it, it is another user's, or no file; never with what is in it.
    """
    data = b""
    problem = ""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)  # of what was opened: a name may mean another file a moment later
            if not stat.S_ISREG(found.st_mode):
                problem = "not a file"
            elif found.st_uid not in {os.geteuid(), 0}:
                problem = "belongs to another user"
            elif found.st_mode & 0o077:
                problem = f"others than its owner can use it (mode {stat.S_IMODE(found.st_mode):04o})"
            else:
                data = os.read(descriptor, _MAX_FILE)
        finally:
            os.close(descriptor)
    except OSError as error:
        problem = error.strerror or "cannot be read"
    if problem:
        raise CredentialsError(f"{path}: {problem}", hint=hint)
    return data
