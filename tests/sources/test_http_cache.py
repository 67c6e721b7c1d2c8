"""The planner's HTTP: answers are kept in plain files, asked for again as HTTP says, and never with credentials."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import pipeline
from pipeline.config import parse_config, resolve_paths
from pipeline.errors import ConfigError, SiteUnavailableError, StorageError
from pipeline.settings import SelectIdc, SourceIdc
from pipeline.sources import http_cache
from pipeline.sources.http_cache import download_parquet, is_parquet, planner_session, show_url
from pipeline.sources.idc_index import IdcIndex
from tests.transport.server import Request, Server, answer, md5

COLUMNS = (
    *("collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "source_DOI", "StudyDate"),
    *("license_short_name", "aws_bucket", "crdc_series_uuid", "analysis_result_id", "SeriesDescription"),
)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An index of one series."""
    path = tmp_path_factory.mktemp("index") / "idc_index.parquet"
    values = ", ".join(f"'x' AS \"{name}\"" for name in COLUMNS)
    sql = f"COPY (SELECT {values}, 3 AS instanceCount, 1.5::DOUBLE AS series_size_MB) TO '{path}' (FORMAT parquet)"
    with duckdb.connect() as database:  # not the module's own, which another test may be reading from
        database.execute(sql).fetchall()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory of its own; returns where medhaul keeps answers in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib3.util.retry.Retry.get_backoff_time", lambda _: 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "medhaul" / "http"


@pytest.fixture
def server() -> Iterator[Server]:
    """A site."""
    made = Server()
    yield made
    made.close()


def with_etag(body: bytes, **headers: object):
    """Serve a body, or 304 to who has it."""
    tag = f'"{md5(body)}"'

    def step(request: Request, sock: object) -> bool:
        if request.headers.get("if-none-match") == tag:
            return answer(304, ETag=tag, **headers)(request, sock)
        return answer(200, body, ETag=tag, **headers)(request, sock)

    return step


def open_series(url: str, **options: bool) -> tuple[int, str]:
    """Open an index and close it again: how many series it has, and its release."""
    with IdcIndex.open(SourceIdc(index=url), **options) as index:
        assert len(list(index.select(SelectIdc(content="both")).stream("*"))) == 1
        return index.series, index.release


def test_an_index_may_be_a_url(server: Server, parquet: bytes, tmp_path: Path) -> None:
    """It is what a file of the same bytes is, says who asks, and leaves nothing behind but the cache."""
    url = server.on("/v25/idc_index.parquet", with_etag(parquet))
    (tmp_path / "same.parquet").write_bytes(parquet)
    temp = tmp_path / "temp"
    temp.mkdir()
    with IdcIndex.open(SourceIdc(index=url), temp=temp) as index:
        assert index.release.startswith("sha256:")
        assert (index.series, index.release) == open_series(str(tmp_path / "same.parquet"))
    assert list(temp.iterdir()) == []
    assert server.asked("user-agent") == [f"medhaul/{pipeline.__version__}"]


def test_a_second_plan_does_not_ask(server: Server, parquet: bytes) -> None:
    """A fresh answer is used as it is."""
    url = server.on("/i", with_etag(parquet))
    assert open_series(url) == open_series(url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", ["no-cache", "max-age", "refresh"])
def test_an_answer_that_is_not_fresh_is_asked_for(server: Server, parquet: bytes, how: str) -> None:
    """What the site calls stale, or the user wants to be sure of, costs a conditional request and not the body."""
    headers = {"no-cache": {"Cache_Control": "no-cache"}, "max-age": {"Cache_Control": "max-age=0"}}.get(how, {})
    url = server.on("/i", with_etag(parquet, **headers))
    first = open_series(url)
    assert open_series(url, refresh=how == "refresh") == first
    assert server.asked("if-none-match") == ["", f'"{md5(parquet)}"']


def test_a_new_index_replaces_the_old_one(server: Server, parquet: bytes) -> None:
    """When the site has other bytes, they are used and kept."""
    url = server.on("/i", with_etag(parquet[:4] + b"old" + parquet[-4:]))
    with pytest.raises(ConfigError):
        IdcIndex.open(SourceIdc(index=url))
    server.on("/i", with_etag(parquet))
    assert open_series(url, refresh=True) == open_series(url, offline=True)
    assert len(server.requests) == 1


def test_offline_nothing_is_sent(server: Server, parquet: bytes) -> None:
    """What is kept is used however old it is, and what is not kept is an error that names it."""
    url = server.on("/i", with_etag(parquet, Cache_Control="max-age=0"))
    with pytest.raises(SiteUnavailableError, match=r"/i: not in the cache"):
        open_series(url, offline=True)
    assert server.requests == []
    first = open_series(url)
    server.close()
    assert open_series(url, offline=True) == first
    assert open_series(url, offline=True, refresh=True) == first
    with pytest.raises(SiteUnavailableError, match=url):
        open_series(url)


def test_the_cache_is_plain_files(server: Server, parquet: bytes, cache: Path) -> None:
    """No database, nobody else's business, and bodies as they are."""
    server.on("/to", with_etag(parquet))
    url = server.on("/from", answer(302, Location="/to"))
    assert open_series(url) == open_series(url)
    assert len(server.requests) == 2
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert not [path for path in files if path.read_bytes().startswith(b"SQLite") or "sqlite" in path.name]
    assert any(path.read_bytes().endswith(parquet) for path in files)
    assert cache.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_signatures_are_neither_keys_nor_kept(server: Server, parquet: bytes, cache: Path) -> None:
    """A URL that is signed anew is the same answer, and its signature is in no file and no message."""
    url = server.on("/i", with_etag(parquet))
    for secret in ("geheim1", "geheim2"):
        open_series(f"{url}?X-Amz-Signature={secret}&X-Amz-Security-Token={secret}")
    assert len(server.requests) == 1
    assert not [path for path in cache.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
    server.close()
    with pytest.raises(SiteUnavailableError) as caught:
        open_series(f"{url}x?X-Amz-Signature=geheim")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://user:geheim@127.0.0.1/i", "http://", "http://[::1/i", "https:///i"])
def test_impossible_urls(url: str) -> None:
    """What is no URL, or has credentials in it, is refused without showing them."""
    for call in (lambda: open_series(url), lambda: show_url(url)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert "geheim" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><html></html>", b"", b"PAR1", b"PAR1PAR1", b"PAR1" + bytes(20), bytes(20) + b"PAR1"]
)
def test_what_is_no_parquet_is_refused_and_not_kept(server: Server, parquet: bytes, body: bytes) -> None:
    """A portal's page with status 200 is an error now, and none any more once the portal is gone."""
    url = server.on("/i", answer(200, body))
    with pytest.raises(ConfigError, match="/i: not a Parquet file"):
        open_series(url)
    server.on("/i", with_etag(parquet))
    assert open_series(url)[0] == 1
    assert is_parquet(parquet)
    assert not is_parquet(body)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_site_without_the_index(server: Server, status: int) -> None:
    """The error names URL and status."""
    url = server.on("/i", answer(status))
    with pytest.raises(SiteUnavailableError, match=f"{url}: {status}"):
        open_series(url)


def test_a_site_that_is_ill_for_a_moment(server: Server, parquet: bytes) -> None:
    """A server error is asked again a few times, without regard to a Retry-After of hours."""
    url = server.on("/i", answer(503, Retry_After=3600), answer(500), with_etag(parquet))
    assert open_series(url)[0] == 1
    url = server.on("/j", answer(503))
    with pytest.raises(SiteUnavailableError, match=f"{url}: 503"):
        open_series(url)
    assert len(server.requests) == 4


def test_an_answer_cut_short_is_not_an_index(server: Server, parquet: bytes) -> None:
    """Fewer bytes than were promised are an error of the site, and are not kept."""

    def cut(request: Request, sock: object) -> bool:
        answer(200, parquet[:-9], Content_Length=len(parquet))(request, sock)
        return False

    url = server.on("/i", cut)
    with pytest.raises(SiteUnavailableError, match=url):
        open_series(url)
    server.on("/i", with_etag(parquet))
    assert open_series(url)[0] == 1


def test_too_large_an_answer_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that states more bytes than an index can have is refused by its head."""
    monkeypatch.setattr(http_cache, "MAX_BYTES", 100)
    with pytest.raises(SiteUnavailableError, match="101 bytes, more than 100"):
        open_series(server.on("/i", answer(200, bytes(101))))


def test_a_silent_site_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a timeout."""
    monkeypatch.setattr(http_cache, "TIMEOUT", (5.0, 0.1))
    with pytest.raises(SiteUnavailableError, match="timed out"):
        open_series(server.on("/i", server.hang))


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\xff" * 40, b"\0\0\0\0\0\0\0\x04{}{}PAR1"])
def test_a_damaged_cache_is_asked_around(server: Server, parquet: bytes, cache: Path, damage: bytes) -> None:
    """A file of the cache that is not what was written costs a request."""
    url = server.on("/i", with_etag(parquet))
    first = open_series(url)
    (file,) = (cache / "responses").iterdir()
    file.write_bytes(damage)
    assert open_series(url) == first
    assert len(server.requests) == 2


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    """The error names the folder and says what to set."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make the cache"):
        planner_session(tmp_path / "file" / "x", expire=1)


def test_an_answer_that_cannot_be_kept_is_used(server: Server, parquet: bytes, tmp_path: Path) -> None:
    """A full home directory does not stop a plan."""
    url = server.on("/i", with_etag(parquet))
    with planner_session(tmp_path / "c", expire=60) as session:
        (tmp_path / "c" / "responses").rmdir()
        assert session.get(url).content == parquet


def test_many_at_once(server: Server, parquet: bytes, tmp_path: Path) -> None:
    """Plans that start together each get whole answers."""
    url = server.on("/i", with_etag(parquet, Cache_Control="max-age=0"))
    threads = [
        threading.Thread(target=download_parquet, args=(url, tmp_path / f"{n}"), kwargs={"expire": 60})
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [(tmp_path / f"{n}").read_bytes() == parquet for n in range(8)] == [True] * 8


def test_a_url_is_no_path_of_the_config(tmp_path: Path) -> None:
    """It stays as it is where relative paths become absolute."""
    for url in ("https://example.org/a/../idc_index.parquet", "http://example.org/i"):
        data = {
            "run": {"name": "r"},
            "storage": {"root": "s"},
            "select": {"idc": {"content": "both"}},
            "sources": {"idc": {"index": url}},
        }
        assert resolve_paths(parse_config(data, "f"), tmp_path, "f").sources.idc.index == url


def test_requests_is_imported_only_for_urls() -> None:
    """Who plans from a file does not wait for an HTTP library."""
    code = (
        "import sys, pipeline.sources.idc_index; sys.exit('requests' in sys.modules or 'requests_cache' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
