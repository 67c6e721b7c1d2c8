"""Listing and fetching from IDC: pages are followed to the end, and the mirror stands in."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from idc_pages import ETAG, files_of, page
from run_kit import make_item

from pipeline.errors import InterruptedRunError, ItemError
from pipeline.model import Entry, IdcLocation, Item, RemoteFile
from pipeline.settings import SourceIdc
from pipeline.sources import idc
from pipeline.sources.base import Body
from pipeline.sources.idc import IdcFetcher, Place
from pipeline.transport.client import Response, Transport
from pipeline.transport.download import Download
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy
from tests.transport.server import Server, answer

T = TypeVar("T")


class FakeTransport:
    """A site and its mirror from memory. Answers are found by host; a callable may raise or make up anything."""

    def __init__(self, sites: dict[str, Callable[[str, dict[str, str]], bytes]]) -> None:
        self.sites = sites
        self.asked: list[str] = []
        self.etags: list[str] = []
        self.deadlines: list[float] = []

    def _answer(self, url: str) -> bytes:
        self.asked.append(url)
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return self.sites[parts.netloc](parts.path, query)

    def fetch_parsed(self, url: str, parse: Callable[[Response], T], *, limit: int, deadline_at: float) -> T:
        assert limit <= 16 << 20
        self.deadlines.append(deadline_at)
        return parse(Response(200, {}, self._answer(url)))

    def download(self, url: str, dest: Path, *, size: int, etag: str, deadline_at: float) -> Download:
        self.etags.append(etag)
        self.deadlines.append(deadline_at)
        data = self._answer(url)
        if len(data) != size:
            raise ItemError("size", f"{url}: {len(data)} bytes", transient=True)
        dest.write_bytes(data)
        md5, sha256 = hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest()
        return Download(
            path=dest, size=size, md5=md5, sha256=sha256, evidence=("size",), attempts=1, seconds=0.0, resumed=False
        )


def fails(reason: str, *, transient: bool = True) -> Callable[..., bytes]:
    """A site that answers everything with this error."""

    def answer(*_: object) -> bytes:
        raise ItemError(reason, f"made up: {reason}", transient=transient)

    return answer


def serves(files: list[RemoteFile], per_page: int = 1000) -> Callable[[str, dict[str, str]], bytes]:
    """A site that lists these files, page by page, and serves each as so many zeros."""

    def answer(path: str, query: dict[str, str]) -> bytes:
        if "list-type" not in query:
            return bytes(next(file.size for file in files if path.endswith(file.key)))
        assert query["prefix"].endswith("/")
        start = int(query.get("continuation-token", "0"))
        rows = [(file.key, str(file.size)) for file in files[start : start + per_page]]
        return page(rows, token=str(start + per_page) if start + per_page < len(files) else "")

    return answer


def fetcher(aws: Callable[..., bytes], gcs: Callable[..., bytes] | None = None, **settings: str) -> Any:
    """A fetcher on fake sites: `aws` is the endpoint, `gcs` the mirror, which by default has nothing."""
    transport = FakeTransport({"aws": aws, "gcs": gcs or fails("withdrawn", transient=False)})
    made = IdcFetcher(
        SourceIdc(**{"s3_endpoint": "http://aws", "mirror_endpoint": "http://gcs/", **settings}),
        transport,  # type: ignore[arg-type]
        clock=lambda: 1000.0,
    )
    return made, transport


@pytest.fixture
def server() -> Iterator[Server]:
    """A site of real sockets."""
    made = Server()
    yield made
    made.close()


ITEM = make_item(0, 5, 15)
UNCOUNTED = msgspec.structs.replace(ITEM, files=-1, bytes=-1)
FIVE = files_of(1, 2, 3, 4, 5)


def entry(item: Item = ITEM, piece: int = 0, pieces: int = 1) -> Entry:
    """A manifest entry."""
    return Entry(0, 0, piece, pieces, item)


@pytest.mark.parametrize("per_page", [1, 2, 5, 1000])
def test_pages_are_followed_to_the_end_and_sorted(per_page: int) -> None:
    """However many pages and in whatever order, the listing is all files in key order."""
    made, transport = fetcher(serves(FIVE[::-1], per_page))
    bodies = made.list_bodies(entry(), 0.0)
    assert [body.file for body in bodies] == FIVE
    assert len({body.cache_key for body in bodies}) == 5
    assert len(transport.asked) == -(-5 // per_page)
    assert all("uuid-00000%2F" in url for url in transport.asked)


def test_pieces_share_the_listing_without_gap_or_overlap() -> None:
    """The pieces of a cut item together are the whole, in order."""
    made, _ = fetcher(serves(FIVE))
    pieces = [[body.file for body in made.list_bodies(entry(piece=n, pieces=3), 0.0)] for n in range(3)]
    assert list(itertools.chain(*pieces)) == FIVE
    assert all(pieces)


@pytest.mark.parametrize("aws", [fails("unavailable"), fails("forbidden"), fails("withdrawn"), lambda *_: b"<html>"])
def test_a_listing_comes_from_the_mirror_when_the_endpoint_fails(aws: Callable[..., bytes]) -> None:
    """The mirror's listing is as good: keys are the same there."""
    made, transport = fetcher(aws, serves(FIVE))
    assert [body.file for body in made.list_bodies(entry(), 0.0)] == FIVE
    assert transport.asked[-1].startswith("http://gcs/idc-open-data?")


@pytest.mark.parametrize("wrong", [FIVE[:4], [*FIVE, *files_of(9, uuid="uuid-00000/x")], files_of(1, 2, 3, 4, 6), []])
def test_a_wrong_listing_is_asked_for_at_the_mirror(wrong: list[RemoteFile]) -> None:
    """A count or size that is not the index's sends the task to the other site."""
    made, _ = fetcher(serves(wrong), serves(FIVE))
    assert [body.file for body in made.list_bodies(entry(), 0.0)] == FIVE


def gone(reason: str, *, transient: bool = False) -> tuple[str, bool]:
    """What a place says."""
    return reason, transient


@pytest.mark.parametrize(
    ("aws", "gcs", "told"),
    [
        (gone("withdrawn"), gone("withdrawn"), gone("withdrawn")),
        (gone("withdrawn"), gone("unavailable", transient=True), gone("unavailable", transient=True)),
        (gone("unavailable", transient=True), gone("withdrawn"), gone("unavailable", transient=True)),
        (gone("forbidden"), gone("unavailable", transient=True), gone("unavailable", transient=True)),
        (gone("count", transient=True), gone("size", transient=True), gone("count", transient=True)),
        (gone("forbidden"), gone("withdrawn"), gone("forbidden")),
        (gone("withdrawn"), gone("forbidden"), gone("forbidden")),
        (gone("withdrawn"), gone("checksum"), gone("checksum")),
    ],
)
def test_when_both_fail_the_hopeful_reason_counts(
    aws: tuple[str, bool], gcs: tuple[str, bool], told: tuple[str, bool], tmp_path: Path
) -> None:
    """Withdrawn is only what is gone everywhere; what may pass is tried later; the message has what each place said."""
    made, _ = fetcher(fails(aws[0], transient=aws[1]), fails(gcs[0], transient=gcs[1]))
    body = Body(entry(), FIVE[0], "key")
    for call in (lambda: made.list_bodies(entry(), 2000.0), lambda: made.fetch(body, tmp_path / "x", 2000.0)):
        with pytest.raises(ItemError) as caught:
            call()
        assert (caught.value.reason, caught.value.transient) == told
        assert str(caught.value) == f"http://aws: made up: {aws[0]}; http://gcs/: made up: {gcs[0]}"


def test_an_empty_listing_is_gone_only_if_it_is_so_everywhere() -> None:
    """An empty listing at the endpoint and a mirror that does not answer leave the item for later."""
    made, _ = fetcher(serves([]), fails("unavailable"))
    with pytest.raises(ItemError) as caught:
        made.list_bodies(entry(), 2000.0)
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)
    made, _ = fetcher(serves([]), serves([]))
    with pytest.raises(ItemError) as caught:
        made.list_bodies(entry(), 2000.0)
    assert (caught.value.reason, caught.value.transient) == ("withdrawn", False)


def test_the_endpoint_leaves_time_for_the_mirror(tmp_path: Path) -> None:
    """Of the time left the endpoint gets two thirds; the mirror, or an endpoint without one, gets all of it."""
    made, transport = fetcher(fails("unavailable"), serves(FIVE))
    body = made.list_bodies(entry(), 1300.0)[0]
    made.fetch(body, tmp_path / "x", 1600.0)
    assert transport.deadlines == pytest.approx([1200.0, 1300.0, 1400.0, 1600.0])
    made, transport = fetcher(serves(FIVE), mirror_endpoint="")
    made.list_bodies(entry(), 1300.0)
    assert transport.deadlines == [1300.0]


def test_without_a_mirror_only_the_endpoint_is_asked() -> None:
    """An empty mirror_endpoint means none."""
    made, transport = fetcher(fails("unavailable"), serves(FIVE), mirror_endpoint="")
    with pytest.raises(ItemError):
        made.list_bodies(entry(), 0.0)
    assert [urlsplit(url).netloc for url in transport.asked] == ["aws"]


def test_a_stop_is_not_answered_by_the_mirror() -> None:
    """Being told to stop ends the item at once."""

    def stop(*_: object) -> bytes:
        raise InterruptedRunError("stop")

    made, transport = fetcher(stop, serves(FIVE))
    with pytest.raises(InterruptedRunError):
        made.list_bodies(entry(), 0.0)
    assert len(transport.asked) == 1


def test_buckets_are_called_otherwise_on_the_mirror() -> None:
    """Two of the buckets have other names on Google Cloud."""
    for bucket, other in (("idc-open-data-two", "idc-open-idc1"), ("idc-open-data-cr", "idc-open-cr")):
        made, transport = fetcher(fails("unavailable"), serves(FIVE))
        item = msgspec.structs.replace(ITEM, location=IdcLocation(bucket, "uuid-00000"))
        made.list_bodies(entry(item), 0.0)
        assert [urlsplit(url).path for url in transport.asked] == [f"/{bucket}", f"/{other}"]


@pytest.mark.parametrize(
    "files",
    [files_of(1, 2, 3, 4, 5, uuid="uuid-000000"), files_of(15, uuid="uuid-0000"), [RemoteFile("uuid-00000", 15, ETAG)]],
)
def test_keys_of_another_series_are_refused(files: list[RemoteFile]) -> None:
    """A listing for a prefix that holds other prefixes is not believed."""
    made, _ = fetcher(serves(files))
    with pytest.raises(ItemError, match="for prefix uuid-00000/"):
        made.list_bodies(entry(UNCOUNTED), 0.0)


def endless(per_page: int) -> Callable[..., bytes]:
    """A site that always has one more page."""
    numbers = itertools.count()
    return lambda *_: page([(f"uuid-00000/{next(numbers)}", "1") for _ in range(per_page)], token=f"t{next(numbers)}")


def pages_asked(transport: FakeTransport) -> int:
    """How many pages the endpoint was asked for."""
    return len([url for url in transport.asked if "aws" in url])


def test_a_listing_ends_with_more_files_than_the_index_states() -> None:
    """A site that lists too many files is asked for no page more."""
    made, transport = fetcher(endless(2))
    with pytest.raises(ItemError, match="more than the 5 files that the index states: 6") as caught:
        made.list_bodies(entry(), 0.0)
    assert (caught.value.reason, caught.value.transient) == ("count", True)
    assert pages_asked(transport) == 3


def test_a_listing_of_unknown_length_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index states no number, there is still one that no series has."""
    assert idc.MAX_FILES == 200_000
    monkeypatch.setattr(idc, "MAX_FILES", 10)
    made, transport = fetcher(endless(3))
    with pytest.raises(ItemError, match="more than 10 files") as caught:
        made.list_bodies(entry(UNCOUNTED), 0.0)
    assert caught.value.reason == "count"
    assert pages_asked(transport) == 4


def test_endless_empty_pages_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that always has one more page, with nothing on it, is given up after so many."""
    monkeypatch.setattr(idc, "MAX_PAGES", 20)
    made, transport = fetcher(endless(0))
    with pytest.raises(ItemError, match="does not end after 20 pages") as caught:
        made.list_bodies(entry(), 0.0)
    assert caught.value.reason == "unavailable"
    assert pages_asked(transport) == 20


@pytest.mark.parametrize("tokens", [["same"], ["a", "b"], ["a", "b", "c"]])
def test_a_token_that_comes_twice_ends_the_listing(tokens: list[str]) -> None:
    """A site that goes round in circles, however wide, is asked for no page twice."""
    circle = itertools.cycle(tokens)
    made, transport = fetcher(lambda *_: page([], token=next(circle)))
    with pytest.raises(ItemError, match="leads back") as caught:
        made.list_bodies(entry(), 0.0)
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)
    assert pages_asked(transport) == len(tokens) + 1


@pytest.mark.parametrize(("bucket", "uuid"), [("", "u"), ("b", ""), ("", "")])
def test_an_item_without_a_place_is_told(bucket: str, uuid: str) -> None:
    """No request is made for a prefix that would list a whole bucket."""
    made, transport = fetcher(serves(FIVE))
    item = msgspec.structs.replace(ITEM, location=IdcLocation(bucket, uuid))
    with pytest.raises(ItemError, match="states no bucket or no crdc_series_uuid"):
        made.list_bodies(entry(item), 0.0)
    assert transport.asked == []


def test_a_body_is_fetched_with_its_listed_size_and_etag(tmp_path: Path) -> None:
    """The transport is told what to expect, and the route is recorded."""
    made, transport = fetcher(serves(FIVE))
    body = made.list_bodies(entry(), 0.0)[2]
    received = made.fetch(body, tmp_path / "x", 0.0)
    assert (received.size, received.route, received.path) == (3, "idc:http://aws", tmp_path / "x")
    assert transport.asked[-1] == "http://aws/idc-open-data/uuid-00000/2.dcm"
    assert transport.etags == [ETAG]


@pytest.mark.parametrize(("etag", "at_mirror"), [(ETAG, ETAG), (f"{ETAG}-3", ""), ("", "")])
@pytest.mark.parametrize("reason", ["unavailable", "withdrawn", "checksum", "size"])
def test_a_body_comes_from_the_mirror_when_the_endpoint_fails(
    tmp_path: Path, etag: str, at_mirror: str, reason: str
) -> None:
    """An ETag that is an MD5 holds there too; one of a multipart upload is the endpoint's own."""
    made, transport = fetcher(fails(reason), serves(FIVE))
    (body,) = (body for body in made.list_bodies(entry(), 0.0) if body.file.key.endswith("4.dcm"))
    body = body._replace(file=msgspec.structs.replace(body.file, etag=etag))
    received = made.fetch(body, tmp_path / "x", 0.0)
    assert received.route == "idc:http://gcs/"
    assert transport.asked[-1] == "http://gcs/idc-open-data/uuid-00000/4.dcm"
    assert transport.etags == [etag, at_mirror]


def test_a_body_that_nobody_has_leaves_no_file(tmp_path: Path) -> None:
    """What cannot be had is not there."""
    made, _ = fetcher(fails("checksum"), fails("withdrawn"))
    with pytest.raises(ItemError, match="made up: checksum"):
        made.fetch(Body(entry(), FIVE[0], "key"), tmp_path / "x", 0.0)
    assert not (tmp_path / "x").exists()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), st.text(max_size=8))
def test_urls_hold_any_key_and_token(key: str, token: str) -> None:
    """Signs of keys and tokens never become parts of the URL."""
    place = Place("http://aws/", "b", "u")
    assert urlsplit(place.url(key)).query == urlsplit(place.url(key)).fragment == ""
    query = parse_qs(urlsplit(place.listing_url(token.encode("utf-8", "replace").decode())).query)
    assert query["prefix"] == ["u/"]
    assert query.get("continuation-token", [""])[0] == token.encode("utf-8", "replace").decode()


def test_a_page_that_is_none_is_asked_for_again_where_it_came_from(server: Server) -> None:
    """A portal, an error document, a cut page and foreign keys, all with status 200, cost a request, not the place."""
    good = page([(file.key, str(file.size)) for file in FIVE])
    foreign = page([("another/1", "1")])
    error = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"
    wrong = [b"<!DOCTYPE html><html></html>", error, good[:-20], foreign]
    server.on("/idc-open-data", *(answer(200, body) for body in [*wrong, good]))
    settings = SourceIdc(s3_endpoint=server.base, mirror_endpoint="")
    with ConnectionPool(1, environ={}) as pool:
        made = IdcFetcher(settings, Transport(pool, Policy(attempts=5, base=0.001)))
        assert made.list_series(ITEM, time.monotonic() + 60) == FIVE
        server.on("/idc-open-data", answer(200, error))
        with pytest.raises(ItemError, match="its root is 'Error'") as caught:
            made.list_series(ITEM, time.monotonic() + 60)
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)
    assert len(server.requests) == 5


def test_a_site_that_asks_for_hours_is_replaced_by_the_mirror(server: Server) -> None:
    """Retry-After of a day sends the item to the mirror at once."""
    server.on("/idc-open-data", answer(503, Retry_After=86400), answer(200, page([(f.key, str(f.size)) for f in FIVE])))
    settings = SourceIdc(s3_endpoint=server.base, mirror_endpoint=server.base)
    with ConnectionPool(1, environ={}) as pool:
        made = IdcFetcher(settings, Transport(pool))
        assert made.list_series(ITEM, time.monotonic() + 1e6) == FIVE
    assert len(server.requests) == 2
