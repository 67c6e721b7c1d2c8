"""The ISIC client with a token: what only accounts may see, and secrets that stay where they belong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, CredentialsError
from pipeline.sources.isic_client import IsicClient
from pipeline.sources.isic_token import BearerToken
from tests.sources.isic_archive import (  # noqa: F401 -- the fixture
    API,
    Archive,
    _archive,
    client,
    ids,
    image,
    image_rows,
    said,
)
from tests.sources.test_tcia_http import (  # noqa: F401 -- the fixture
    Site,
    _site,
    answer,
    kept,
)


@pytest.mark.parametrize("status", [401, 403])
def test_what_needs_an_account(archive: Archive, status: int) -> None:
    """Studies and annotations: exit code 77 with what to do, asked once."""
    calls = ("studies", "annotations", "study_tasks")
    archive.site.on(f"{API}studies/5/", said(status, {"detail": "Unauthorized"}))
    with client(archive) as isic:
        for name in calls:
            with pytest.raises(CredentialsError, match="401 Unauthorized") as caught:
                list(getattr(isic, name)())
            assert caught.value.exit_code == 77
            assert "account" in caught.value.hint
        with pytest.raises(CredentialsError, match=str(status)):
            isic.study(5)
        with pytest.raises(CredentialsError, match="no token"):
            isic.me()
        assert not isic.signed_in()
    assert len(archive.site.asked) == 4


SECRET = "t0ken-abc.def"


def signed(number: int) -> dict[str, Any]:
    """An image that is not public."""
    record = image(number) | {"public": False}
    record["files"]["full"]["url"] = f"https://content.isic-archive.com/u/{number}.jpg?Expires=1&Signature=s1gn&Key=k"
    return record


def test_with_an_account(archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More images for a token that is known; no secret in cache, log and reprs; accounts are kept apart."""
    caplog.set_level(logging.DEBUG)
    archive.rows = image_rows(100)
    archive.private = [("2021", signed(900))]
    archive.good = {SECRET}
    study = {"id": 3, "name": "S", "features": [{"id": 1}], "creator": {"id": 4}}
    archive.site.on(f"{API}studies/", said(200, {"results": [study], "count": 1, "next": None}))
    with client(archive) as isic:
        assert len(ids(isic)) == 100
    with client(archive, token=BearerToken(SECRET)) as isic:
        assert isic.signed_in()
        assert isic.me().id == 7
        images = list(isic.images())
        assert len(images) == 101
        (found,) = isic.studies()
        assert found.values["creator.id"] == 4
        assert SECRET not in f"{isic!r} {isic._token!r}"
    assert "s1gn" not in repr(images)
    assert images[-1].full
    assert images[-1].full.signed
    assert "s1gn" in images[-1].full.url
    assert SECRET not in caplog.text
    assert "s1gn" not in caplog.text
    files = kept(tmp_path)
    assert files
    assert not any(secret in data for data in files for secret in (SECRET.encode(), b"s1gn"))
    with client(archive) as isic:
        assert len(ids(isic)) == 100
    archive.site.close()
    with client(archive, token=BearerToken(SECRET), offline=True) as isic:
        assert isic.me().id == 7
        assert isic.studies()


def test_a_token_that_is_not_known(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    """The site treats it as nobody's and says nothing: a loud warning, and the token is sent no more."""
    archive.rows = image_rows(10)
    with client(archive, token=BearerToken(SECRET)) as isic:
        assert len(ids(isic)) == 10
        assert not isic.signed_in()
        with pytest.raises(CredentialsError, match="does not know the token"):
            isic.me()
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "NOT PUBLIC ARE MISSING" in warning.getMessage()
    sent = [each.path for each in archive.site.asked if "authorization" in each.headers]
    assert sent == [f"{API}users/me/"]


def test_a_token_that_expires_while_listing(archive: Archive) -> None:
    """A list that may have lost what is not public is an error at its end."""
    archive.rows = image_rows(150)
    archive.good = {SECRET}
    with client(archive, token=BearerToken(SECRET)) as isic:
        images = isic.images()
        next(images)
        archive.good = set()
        with pytest.raises(CredentialsError, match="expired while"):
            list(images)


def test_a_token_is_not_sent_elsewhere(archive: Archive, tmp_path: Path) -> None:
    """Not to another host by a redirection, nor over plain http, nor repeated in a message."""
    archive.good = {SECRET}
    other = Site()
    other.on(f"{API}stats/", said(200, {"image": {"n": 5}}))
    archive.site.on(f"{API}stats/", answer(302, Location=f"http://localhost:{other.server_address[1]}{API}stats/"))
    archive.site.on(f"{API}studies/", said(403, {"error": f"no {SECRET}"}))
    with client(archive, token=BearerToken(SECRET)) as isic:
        assert isic.stats() == {"image.n": 5}
        with pytest.raises(CredentialsError) as caught:
            isic.studies()
    assert SECRET not in str(caught.value)
    assert all("authorization" not in each.headers for each in other.asked)
    assert len(other.asked) == 1
    other.close()
    with pytest.raises(ConfigError, match="plain http"):
        IsicClient("http://example.org/", token=BearerToken(SECRET))
