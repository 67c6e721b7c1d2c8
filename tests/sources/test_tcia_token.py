"""Tokens: one log-in, renewed in time, and secrets nowhere but where they belong."""

from __future__ import annotations

import json
import logging
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, CredentialsError, SiteUnavailableError
from pipeline.sources.tcia_client import TciaClient
from pipeline.sources.tcia_token import (
    Credentials,
    TokenSource,
    find_credentials,
    read_credentials,
    shared_token,
)
from pipeline.transport.retry import Policy, Runtime
from tests.sources.test_tcia_http import (  # noqa: F401 -- the fixture
    EMPTY,
    SERIES,
    Asked,
    Handler,
    Site,
    Waits,
    _site,
    answer,
    kept,
    rows,
)

SECRET = "s3cret-pass"


def token(number: int = 1, **changes: object) -> Any:
    """An answer with a token that is good for two hours."""
    fields = {"access_token": f"t0ken-{number}", "expires_in": 7200, "refresh_token": f"refr3sh-{number}"}
    return answer(200, json.dumps({**fields, "refresh_expires_in": 7200, **changes}).encode())


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.runtime = Runtime(clock=lambda: self.now, wait=lambda *_: None)


def make(site: Site, clock: Clock, **changes: str) -> TokenSource:
    """A source of tokens at the site."""
    credentials = Credentials(**{"username": "me", "password": SECRET, **changes})
    return TokenSource(f"{site.root}/oauth/token", credentials, policy=Policy(attempts=3), runtime=clock.runtime)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a credentials file."""
    path.write_text(text)
    path.chmod(mode)
    return path


GOOD = f'username = "me"\npassword = "{SECRET}"\n'


def test_a_file_for_its_owner_only(tmp_path: Path) -> None:
    """A private file is read, also by the variable that names it."""
    path = write(tmp_path / "c", GOOD)
    assert read_credentials(path) == Credentials("me", SECRET)
    assert find_credentials(None, {"MEDHAUL_TCIA_CREDENTIALS": str(path)}) == Credentials("me", SECRET)
    assert find_credentials(None, {"MEDHAUL_TCIA_USERNAME": "a", "MEDHAUL_TCIA_PASSWORD": "b"}) == Credentials("a", "b")
    assert find_credentials(None, {}) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_file_for_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Any right of group or others is one too many: exit code 77, and a hint."""
    with pytest.raises(CredentialsError, match=f"mode 0{mode:o}") as caught:
        read_credentials(write(tmp_path / "c", GOOD, mode))
    assert caught.value.exit_code == 77
    assert "600" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", f"{SECRET}", f'password = "{SECRET}"', GOOD + "x = 1", GOOD + 'x = "y"', f"username = {SECRET}", "[" * 5000],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    """What is wrong is said without what is in the file."""
    with pytest.raises(CredentialsError) as caught:
        read_credentials(write(tmp_path / "c", text))
    assert SECRET not in f"{caught.value} {caught.value.hint} {caught.value.__context__!r}"


def test_no_such_file(tmp_path: Path) -> None:
    """A missing file, a folder or a pipe is refused, and does not hang."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(CredentialsError):
            read_credentials(path)
    with pytest.raises(CredentialsError, match="together"):
        find_credentials(None, {"MEDHAUL_TCIA_USERNAME": "me"})


def test_one_log_in(site: Site) -> None:
    """Many threads share one token, and the password goes in the body alone."""
    site.on("/oauth/token", token())
    source = make(site, Clock())
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(source.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {"t0ken-1"}
    (asked,) = site.asked
    assert asked.params == {"grant_type": "password", "username": "me", "password": SECRET, "client_id": "nbia"}
    assert (asked.method, asked.path) == ("POST", "/oauth/token")


def test_renewed_before_it_expires(site: Site) -> None:
    """Ten minutes ahead a token is refreshed; when that is refused, the password is used again."""
    clock = Clock()
    site.on("/oauth/token", token(1), token(2), answer(400, b"expired"), token(3))
    source = make(site, clock)
    assert source.get() == "t0ken-1"
    clock.now += 6500
    assert source.get() == "t0ken-1"
    clock.now += 200
    assert source.get() == "t0ken-2"
    clock.now += 6700
    assert source.get() == "t0ken-3"
    grants = [asked.params["grant_type"] for asked in site.asked]
    assert grants == ["password", "refresh_token", "refresh_token", "password"]


def test_without_refreshing(site: Site) -> None:
    """A token without refresh token or lifetime is replaced by a new log-in after minutes."""
    clock = Clock()
    site.on("/oauth/token", token(1, refresh_token=None, expires_in="x"), token(2))
    source = make(site, clock)
    assert [source.get(), source.get()] == ["t0ken-1", "t0ken-1"]
    clock.now += 300
    assert source.get() == "t0ken-2"


def test_refused_credentials(site: Site) -> None:
    """A wrong password is asked once, ends with 77, and does not show even where the site repeats it."""
    site.on("/oauth/token", answer(401, f"no {SECRET}".encode()))
    with pytest.raises(CredentialsError) as caught:
        make(site, Clock()).get()
    assert len(site.asked) == 1
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "step",
    [answer(500), answer(200, b"<html>"), answer(200, b"[]"), token(access_token="a\nb"), answer(302, Location="x")],
)
def test_no_token(site: Site, step: Any) -> None:
    """A site that gives none is unavailable, not a refusal."""
    site.on("/oauth/token", step)
    with pytest.raises(SiteUnavailableError):
        make(site, Clock()).get()


def test_secrets_do_not_show() -> None:
    """No repr, str or pickle has them."""
    credentials = Credentials("me", SECRET, client_secret="clients3cret")
    source = TokenSource("http://127.0.0.1/", credentials)
    client = TciaClient("http://127.0.0.1/", credentials=credentials)
    for shown in (credentials, source, client, {"x": credentials}):
        assert SECRET not in f"{shown!r} {shown}"
        assert "s3cret" not in repr(shown)
    with pytest.raises(TypeError):
        pickle.dumps(credentials)


def test_shared_by_the_process() -> None:
    """Equal credentials have one source of tokens; others another."""
    first, same, other = Credentials("a", "b"), Credentials("a", "b"), Credentials("a", "c")
    assert shared_token("u", first) is shared_token("u", same)
    assert shared_token("u", first) is not shared_token("u", other)


def test_plain_http_is_for_this_machine(tmp_path: Path) -> None:
    """Credentials do not travel unencrypted, and do not stand in URLs."""
    with pytest.raises(ConfigError, match="plain http"):
        TciaClient("http://example.org/", credentials=Credentials("a", "b"))
    with pytest.raises(ConfigError, match="plain http"):
        TciaClient(credentials=Credentials("a", "b"), token_url="http://example.org/")
    with pytest.raises(ConfigError) as caught:
        TciaClient(f"https://me:{SECRET}@example.org/")
    assert SECRET not in str(caught.value)


def test_a_client_with_credentials(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The token goes in a header to v4; one that is not taken is replaced once; no secret is kept or logged."""
    caplog.set_level(logging.DEBUG)

    def guarded(handler: Handler, asked: Asked) -> None:
        good = asked.headers.get("authorization") == "Bearer t0ken-2"
        (rows(SERIES) if good else answer(401))(handler, asked)

    site.on("/oauth/token", token(1), token(2))
    site.on("/v4/getSeries", guarded)
    with TciaClient(site.root, credentials=Credentials("me", SECRET), runtime=Waits().runtime) as client:
        assert [found.SeriesInstanceUID for found in client.series("X")] == ["1.2.3"]
    assert site.paths() == ["/oauth/token", "/v4/getSeries", "/oauth/token", "/v4/getSeries"]
    files = kept(tmp_path)
    assert files
    for secret in (SECRET, "t0ken-", "refr3sh-"):
        assert not any(secret.encode() in data for data in files)
        assert secret not in caplog.text
    asked = len(site.asked)
    with TciaClient(site.root, offline=True, runtime=Waits().runtime) as client, pytest.raises(SiteUnavailableError):
        client.series("X")  # what an account may see is not everybody's
    with TciaClient(site.root, offline=True, credentials=Credentials("me", SECRET)) as client:
        assert len(client.series("X")) == 1
    assert len(site.asked) == asked


def test_a_client_that_is_refused(site: Site) -> None:
    """401 to a fresh token too means credentials without rights: exit code 77."""
    site.on("/oauth/token", token(1), token(2))
    site.on("/v4/getSeries", answer(403, b"t0ken-2 is not welcome"))
    with (
        TciaClient(site.root, credentials=Credentials("me2", SECRET), runtime=Waits().runtime) as client,
        pytest.raises(CredentialsError) as caught,
    ):
        client.series("X")
    assert "t0ken" not in str(caught.value)
    assert len(site.asked) == 4


def test_an_empty_answer_may_mean_an_expired_token(site: Site) -> None:
    """With credentials, nothing is asked again with another token."""
    site.on("/oauth/token", token(1), token(2))
    site.on("/v4/getSeries", EMPTY, rows(SERIES))
    with TciaClient(site.root, credentials=Credentials("me3", SECRET), runtime=Waits().runtime) as client:
        assert len(client.series("X")) == 1
    used = [asked.headers["authorization"] for asked in site.asked if asked.method == "GET"]
    assert used == ["Bearer t0ken-1", "Bearer t0ken-2"]
