"""Tokens in a task: had once, renewed when refused, sent to hosts of the settings alone, and never shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nbia_kit import (
    V2,
    V4,
    ZIP,
    Bench,
    haul,
    one,
    refuse,
    soon,
)

from pipeline.errors import ConfigError, CredentialsError, ItemError
from pipeline.model import NbiaLocation
from tests.transport.server import Request, Server, Step, answer, chunked


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench with a site of its own."""
    made = Bench(tmp_path)
    yield made
    made.close()


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path: Path) -> str:
    """A file with credentials."""
    path = tmp_path / "credentials.toml"
    path.touch(mode=0o600)
    path.write_text(f'username = "u{tmp_path.name}"\npassword = "hunter2"\n')
    return str(path)


def bearer(tokens: dict[str, Step], refused: Step) -> Step:
    """What each token gets."""

    def step(request: Request, sock: Any) -> bool:
        return tokens.get(request.headers.get("authorization", ""), refused)(request, sock)

    return step


def grant(numbers: Iterator[int]) -> Step:
    """A token endpoint that gives another token each time."""

    def step(request: Request, sock: Any) -> bool:
        sock.settimeout(20)
        if int(request.headers.get("content-length", "0")) and request.method == "POST":
            pass  # the form may still be on its way: the answer does not depend on it
        body = b'{"access_token":"secret-%d","expires_in":7200}' % next(numbers)
        answer(200, body, Connection="close")(request, sock)
        return False

    return step


def test_a_token_goes_to_the_site_only_and_another_one_is_had_when_it_expires(bench, credentials, caplog, capfd):
    """One log-in for all; 401 brings a second; neither token nor password shows anywhere."""
    bench.settings = msgspec.structs.replace(bench.settings, credentials=credentials)
    bench.server.on("/api/oauth/token", grant(itertools.count(1)))
    bench.server.on(V4, bearer({"Bearer secret-1": chunked(ZIP)}, answer(401)))
    fetcher = bench.fetcher()
    for _ in range(2):
        haul(bench, fetcher, one(bench.item))
    assert bench.asked().count("/api/oauth/token") == 1
    bench.server.on(V4, bearer({"Bearer secret-2": chunked(ZIP)}, answer(401)))
    haul(bench, fetcher, one(bench.item))
    bench.server.on(V4, answer(401, b"bad token secret-3"))
    bench.server.on(V2, answer(401, b"bad token secret-3"))
    with pytest.raises(ItemError) as caught:
        haul(bench, fetcher, one(bench.item))
    assert caught.value.reason == "forbidden"
    told = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    for path in (bench.root / "sources").iterdir():
        told += path.read_text()
    assert "secret-" not in told
    assert "hunter2" not in told
    other = Server()
    try:
        other.on(V4, chunked(ZIP))
        far = msgspec.structs.replace(bench.item, location=NbiaLocation(f"{other.base}/api"))
        haul(bench, fetcher, one(far))
        assert other.asked("authorization") == [""]  # not a host of the settings
    finally:
        other.close()


def test_refused_credentials_end_the_task_and_a_token_endpoint_that_is_down_the_item(bench, credentials):
    """A wrong password is everybody's trouble; a site that gives no token now may do so later."""
    bench.settings = msgspec.structs.replace(bench.settings, credentials=credentials)
    bench.server.on("/api/oauth/token", answer(401, b'{"error":"invalid_grant"}', Connection="close"))
    with pytest.raises(CredentialsError):
        bench.fetcher().list_bodies(one(bench.item), soon())
    bench.server.on("/api/oauth/token", answer(501, Connection="close"))
    error = refuse(bench)
    assert (error.reason, error.transient) == ("unavailable", True)
    with pytest.raises(CredentialsError):
        bench.fetcher(settings=msgspec.structs.replace(bench.settings, credentials=str(bench.root / "none")))
    open_world = msgspec.structs.replace(bench.settings, base_url="http://nbia.example/nbia-api/services")
    with pytest.raises(ConfigError, match="not sent over plain http"):
        bench.fetcher(settings=open_world)
