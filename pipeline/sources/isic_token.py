"""The bearer token for the ISIC Archive's API: public images need none. It comes from a private file or a variable.

The site issues it after a log-in in a browser, and it is good for a day. It has no password for programs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import CredentialsError
from pipeline.sources.api_secrets import read_private_file

TOKEN, CREDENTIALS_FILE = "MEDHAUL_ISIC_TOKEN", "MEDHAUL_ISIC_CREDENTIALS"
_HINT = 'the file has the token alone, or token = "…", or is the token.json of isic-cli; and chmod 600'


class BearerToken:
    """A token. It does not show in `repr` or `str`. There is no other one where the site refuses it."""

    __slots__ = ("_token",)
    renewable = False

    def __init__(self, token: str) -> None:
        # What may stand in a header: RFC 6750 section 2.1.
        if not re.fullmatch(r"[A-Za-z0-9._~+/-]{1,8000}=*", token, re.ASCII):
            raise CredentialsError("the ISIC token has characters that no token has", hint=_HINT)
        self._token = token

    def __repr__(self) -> str:
        return "BearerToken(…)"

    def __reduce__(self) -> str:
        raise TypeError("tokens are not to be written anywhere")

    def get(self, stop: threading.Event | None = None) -> str:  # noqa: ARG002 -- others may have to wait
        """The token."""
        return self._token

    def reject(self, token: str) -> None:
        """There is no other."""

    def scrub(self, text: str) -> str:
        """Take the token out of a text."""
        return text.replace(self._token, "…")

    @property
    def label(self) -> str:
        """A name that tells tokens apart and gives nothing away."""
        return hashlib.sha256(b"medhaul " + self._token.encode()).hexdigest()[:16]


def find_token(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, wall: Callable[[], float] = time.time
) -> BearerToken | None:
    """The token of a file, or of the environment, or None where nobody gave any.

    In order: `path`; the file that `MEDHAUL_ISIC_CREDENTIALS` names; `MEDHAUL_ISIC_TOKEN`.

    Raises
    ------
    CredentialsError
        When the file cannot be used, or what it has is no token, or one that has expired.
    """
    if path is None and environ.get(CREDENTIALS_FILE):
        path = Path(environ[CREDENTIALS_FILE]).expanduser()
    if path is not None:
        return read_token(path, wall=wall)
    token = environ.get(TOKEN, "").strip()
    return BearerToken(token) if token else None


def read_token(path: Path, *, wall: Callable[[], float] = time.time) -> BearerToken:
    """Read a token from a file that nobody but its owner can read: the token alone, TOML, or what isic-cli wrote.

    Raises
    ------
    CredentialsError
        When others have any right to it, it is another user's, has no token or one that has expired; never with what
        is in it.
    """
    data = read_private_file(path, hint=_HINT)
    token, expires = _parse_file(data)
    if not token:
        raise CredentialsError(f"{path}: has no token", hint=_HINT)
    if expires is not None and expires <= wall():
        raise CredentialsError(f"{path}: the token has expired", hint="log in again with `isic user login`")
    problem = ""
    try:
        return BearerToken(token)
    except CredentialsError as error:
        problem = str(error)
    raise CredentialsError(f"{path}: {problem}", hint=_HINT)


def _parse_file(data: bytes) -> tuple[str, float | None]:
    """The token and when it expires (seconds since 1970), if the file says so; "" where there is none."""
    try:
        text = data.decode("utf-8-sig").strip()
        if text.startswith("{"):
            values = json.loads(text)
        elif "=" in text.rstrip("=") and ("\n" in text or re.match(r"\w+\s*=\s*[\"']", text)):
            values = tomllib.loads(text)
        else:
            return text, None
    except (ValueError, RecursionError):  # their texts may quote the file
        return "", None
    if not isinstance(values, dict):
        return "", None
    token = values.get("access_token", values.get("token"))
    expires = values.get("expires_at")
    when: float | None = None
    if isinstance(expires, (int, float)) and not isinstance(expires, bool) and abs(expires) < 1e12:
        when = float(expires)
    return (token if isinstance(token, str) else ""), when
