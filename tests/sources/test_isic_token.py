"""The ISIC token: from a private file or a variable, and nowhere to be seen."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CredentialsError
from pipeline.sources.isic_token import BearerToken, _parse_file, find_token, read_token

SECRET = "s3cret.T0KEN-~+/x=="


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a token file."""
    path.write_text(text)
    path.chmod(mode)
    return path


CLI = json.dumps({"access_token": SECRET, "refresh_token": "other", "expires_at": 2000.5, "token_type": "Bearer"})


@pytest.mark.parametrize(
    "text",
    [SECRET, f"{SECRET}\n", f'token = "{SECRET}"\n', f"# mine\ntoken = '{SECRET}'", CLI, f'{{"token": "{SECRET}"}}'],
)
def test_files(tmp_path: Path, text: str) -> None:
    """The token alone, TOML, or what isic-cli keeps."""
    path = write(tmp_path / "t", text)
    assert read_token(path, wall=lambda: 2000.0).get() == SECRET
    found = find_token(None, {"MEDHAUL_ISIC_CREDENTIALS": str(path), "MEDHAUL_ISIC_TOKEN": "x"}, lambda: 2000.0)
    assert found
    assert found.get() == SECRET


def test_the_environment() -> None:
    """A variable, or nothing at all."""
    found = find_token(None, {"MEDHAUL_ISIC_TOKEN": f" {SECRET}\n"})
    assert found
    assert found.get() == SECRET
    assert find_token(None, {}) is None
    assert find_token(None, {"MEDHAUL_ISIC_TOKEN": " "}) is None
    with pytest.raises(CredentialsError):
        find_token(None, {"MEDHAUL_ISIC_TOKEN": "a b"})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_for_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Any right of group or others is one too many: exit code 77, and a hint."""
    with pytest.raises(CredentialsError, match=f"mode 0{mode:o}") as caught:
        read_token(write(tmp_path / "t", SECRET, mode))
    assert caught.value.exit_code == 77
    assert "600" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[" * 9999, "\x00" * 9, f'{{"access_token": ["{SECRET}"]}}', f'{{"x": "{SECRET}"'),
        *(f"token = {SECRET}\n[", f"{SECRET} é", f"token = '{SECRET}\\n'\nx", f'token = "{SECRET} x"'),
        f'x = "{SECRET}"',
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    """What is wrong is said without what is in the file."""
    with pytest.raises(CredentialsError) as caught:
        read_token(write(tmp_path / "t", text))
    shown = f"{caught.value} {caught.value.hint} {caught.value.__context__!r} {caught.value.__cause__!r}"
    assert "s3cret" not in shown


def test_an_expired_token(tmp_path: Path) -> None:
    """A token that says that it has expired is not used: the site would not say so."""
    with pytest.raises(CredentialsError, match="expired"):
        read_token(write(tmp_path / "t", CLI), wall=lambda: 2001.0)


def test_an_odd_expiry(tmp_path: Path) -> None:
    """A time beyond reason is no reason to fail."""
    text = json.dumps({"access_token": SECRET, "expires_at": 10**400})
    assert read_token(write(tmp_path / "t", text)).get() == SECRET


def test_no_such_file(tmp_path: Path) -> None:
    """A missing file, a folder or a pipe is refused, and does not hang."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(CredentialsError):
            read_token(path)


def test_it_does_not_show() -> None:
    """No repr, str, pickle or label has it."""
    token = BearerToken(SECRET)
    assert "s3cret" not in f"{token} {token!r} {[token]} {token.label}"
    assert token.scrub(f"a {SECRET} b") == "a … b"
    assert BearerToken("other").label != token.label
    with pytest.raises(TypeError):
        pickle.dumps(token)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_token_or_none(data: bytes) -> None:
    """No file crashes."""
    token, expires = _parse_file(data)
    assert isinstance(token, str)
    assert expires is None or isinstance(expires, float)
    message = ""
    try:
        BearerToken(token)
    except CredentialsError as error:
        message = str(error)
    assert len(token) < 4 or token not in message
