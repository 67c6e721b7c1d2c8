"""Listing and fetching from IDC: no page that is not what it should be is believed, and the mirror stands in."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlsplit
from xml.sax.saxutils import escape

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from run_kit import make_item

from pipeline.config import SourceIdc
from pipeline.errors import InterruptedRunError, ItemError
from pipeline.model import Entry, IdcLocation, Item, RemoteFile
from pipeline.sources import idc
from pipeline.sources.idc import IdcFetcher, Place, check_listing, parse_listing
from pipeline.transport.client import Response
from pipeline.transport.download import Download

NS = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ETAG = "d41d8cd98f00b204e9800998ecf8427e"


def page(
    files: list[tuple[str, str]],
    *,
    token: str = "",
    truncated: str | None = None,
    namespace: str = NS,
    encode: bool = True,
    more: str = "",
) -> bytes:
    """A page of ListObjectsV2 as the site would write it."""
    truncated = ("true" if token else "false") if truncated is None else truncated
    rows = "".join(
        f'<Contents><Key>{escape(quote_plus(key) if encode else key)}</Key><Size>{size}</Size><ETag>"{ETAG}"</ETag></Contents>'
        for key, size in files
    )
    encoding = "<EncodingType>url</EncodingType>" if encode else ""
    flag = f"<IsTruncated>{truncated}</IsTruncated>" if truncated else ""
    next_ = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult{namespace}>{encoding}{flag}{next_}{rows}{more}</ListBucketResult>'
    return text.encode()


keys = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1, max_size=20
)


@given(st.lists(st.tuples(keys, st.integers(0, 10**17)), max_size=8), st.text("ab/+=&<", max_size=9))
@pytest.mark.parametrize("namespace", [NS, "", ' xmlns="http://doc.s3.amazonaws.com/2006-03-01"'])
def test_a_good_page_is_read_whole(namespace: str, files: list[tuple[str, int]], token: str) -> None:
    """Keys are decoded, sizes are numbers, ETags lose their quotes, and the token leads on."""
    found, next_ = parse_listing(page([(k, str(n)) for k, n in files], token=token, namespace=namespace))
    assert found == [RemoteFile(key, size, ETAG) for key, size in files]
    assert next_ == token


def test_a_page_without_url_encoding_is_taken_literally() -> None:
    """A plus or percent sign of a key that is not encoded stays."""
    assert parse_listing(page([("a+b%41", "1")], encode=False))[0][0].key == "a+b%41"
    assert parse_listing(page([("a+b%41 é", "1")]))[0][0].key == "a+b%41 é"


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10 if n else b"&a;" * 10) for n in range(9))
    + b"]><ListBucketResult><Contents><Key>&a8;</Key><Size>1</Size></Contents></ListBucketResult>"
)
INNER = b'<!DOCTYPE x [<!ENTITY k "u/1.dcm">]><ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>'
OUTER = b'<!DOCTYPE x [<!ENTITY k SYSTEM "file:///etc/passwd">]><ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>'
CONTENTS = b"<Contents><Key>&k;</Key><Size>1</Size></Contents>"
GOOD = page([("u/1.dcm", "10"), ("u/2.dcm", "20")], token="t")
BAD_PAGES = {
    "nothing": b"",
    "spaces": b"  \n",
    "html": b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>portal<br></body></html>",
    "xhtml": b'<html xmlns="http://www.w3.org/1999/xhtml"><body/></html>',
    "json": b'{"Contents": []}',
    "an S3 error": b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>",
    "a version 1 bucket list": b"<ListAllMyBucketsResult><IsTruncated>false</IsTruncated></ListAllMyBucketsResult>",
    "binary": bytes(range(256)),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(50),
    "an unknown encoding": b'<?xml version="1.0" encoding="x-nonsense"?><ListBucketResult/>',
    "a codec that is no encoding": b'<?xml version="1.0" encoding="zlib"?><ListBucketResult/>',
    "a wide encoding": b'<?xml version="1.0" encoding="shift_jis"?><ListBucketResult/>',
    "utf-7": b'<?xml version="1.0" encoding="utf-7"?><ListBucketResult/>',
    "an entity bomb": BOMB,
    "an inner entity": INNER % CONTENTS,
    "an outer entity": OUTER % CONTENTS,
    "truncated without token": page([("u/1", "1")], truncated="true"),
    "truncated maybe": page([("u/1", "1")], truncated="maybe"),
    "truncated unsaid": page([("u/1", "1")], truncated=""),
    "no size": page([("u/1", "")]),
    "negative size": page([("u/1", "-1")]),
    "fractional size": page([("u/1", "1.5")]),
    "size with words": page([("u/1", "1 kB")]),
    "size in other digits": page([("u/1", "\u0661")]),
    "endless size": page([("u/1", "9" * 19)]),
    "huge size": page([("u/1", "9" * 5000)]),
    "no key": page([("", "1")]),
    "deep": b"<ListBucketResult>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"<b></ListBucketResult>",
}


@pytest.mark.parametrize("name", BAD_PAGES)
def test_what_is_no_listing_is_refused(name: str) -> None:
    """Whatever came with status 200, if it is no S3 listing the item fails as unavailable, and may be asked again."""
    with pytest.raises(ItemError) as caught:
        parse_listing(BAD_PAGES[name])
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)
    assert len(str(caught.value)) < 500


def test_a_page_cut_short_anywhere_is_refused() -> None:
    """No prefix of a page is a page: a listing never seems complete because its end is missing."""
    for end in range(len(GOOD)):
        with pytest.raises(ItemError, match="is not S3 XML"):
            parse_listing(GOOD[:end])


@given(st.binary(max_size=200))
@example(b"<ListBucketResult/>")
def test_any_bytes_are_a_listing_or_an_item_error(data: bytes) -> None:
    """Nothing that a site can send is a fault in medhaul."""
    for body in (data, GOOD[:60] + data, GOOD[:-40] + data + GOOD[-40:]):
        try:
            parse_listing(body)
        except ItemError as error:
            assert error.reason == "unavailable"


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_flipped_byte_never_makes_a_fault(position: int, flip: int) -> None:
    """A damaged page is another page or an item error."""
    damaged = GOOD[:position] + bytes([GOOD[position] ^ flip]) + GOOD[position + 1 :]
    try:
        files, _ = parse_listing(damaged)
    except ItemError:
        return
    assert len(files) <= 2


def files_of(*sizes: int, uuid: str = "uuid-00000") -> list[RemoteFile]:
    """A listing."""
    return [RemoteFile(f"{uuid}/{n}.dcm", size, ETAG) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("files", "count", "size", "reason", "transient"),
    [
        (files_of(), 3, 6, "withdrawn", False),
        (files_of(), -1, -1, "empty", False),
        (files_of(), 0, 0, "empty", False),
        (files_of(1, 2), 3, 3, "count", True),
        (files_of(1, 2, 3, 4), 3, 10, "count", True),
        (files_of(1, 2, 3), 3, 7, "size", True),
        (files_of(1, 2) + files_of(1), 3, 4, "count", True),
        (files_of(1, 2) + files_of(1), -1, -1, "count", True),
    ],
)
def test_a_listing_must_be_what_the_index_states(
    files: list[RemoteFile], count: int, size: int, reason: str, transient: bool
) -> None:
    """Too few, too many, other bytes, or a key twice: each has its word."""
    with pytest.raises(ItemError) as caught:
        check_listing(make_item(0, count, size), files)
    assert (caught.value.reason, caught.value.transient) == (reason, transient)


@pytest.mark.parametrize(("count", "size"), [(3, 6), (-1, 6), (3, -1), (-1, -1)])
def test_a_listing_that_fits_passes(count: int, size: int) -> None:
    """What the index does not state is not asked for."""
    check_listing(make_item(0, count, size), files_of(1, 2, 3))


class FakeTransport:
    """A site and its mirror from memory. Answers are found by host; a callable may raise or make up anything."""

    def __init__(self, sites: dict[str, Callable[[str, dict[str, str]], bytes]]) -> None:
        self.sites = sites
        self.asked: list[str] = []
        self.etags: list[str] = []

    def _answer(self, url: str) -> bytes:
        self.asked.append(url)
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return self.sites[parts.netloc](parts.path, query)

    def fetch_bytes(self, url: str, *, limit: int, deadline_at: float | None) -> Response:
        assert limit <= 16 << 20
        return Response(200, {}, self._answer(url))

    def download(self, url: str, dest: Path, *, size: int, etag: str, deadline_at: float) -> Download:
        self.etags.append(etag)
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


def fetcher(aws: Callable[..., bytes], gcs: Callable[..., bytes] = fails("withdrawn"), **settings: str) -> Any:
    """A fetcher on fake sites: `aws` is the endpoint, `gcs` the mirror."""
    transport = FakeTransport({"aws": aws, "gcs": gcs})
    made = IdcFetcher(
        SourceIdc(**{"s3_endpoint": "http://aws", "mirror_endpoint": "http://gcs/", **settings}),
        transport,  # type: ignore[arg-type]
    )
    return made, transport


ITEM = make_item(0, 5, 15)
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


def test_when_both_fail_the_endpoint_s_reason_counts() -> None:
    """The first site is the one that the index speaks of."""
    made, _ = fetcher(fails("forbidden", transient=False), fails("unavailable"))
    with pytest.raises(ItemError, match="made up: forbidden"):
        made.list_bodies(entry(), 0.0)


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
        made.list_bodies(entry(msgspec.structs.replace(ITEM, files=-1, bytes=-1)), 0.0)


def test_endless_pages_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that always has one more page is given up after so many."""
    monkeypatch.setattr(idc, "MAX_PAGES", 20)
    numbers = itertools.count()
    made, transport = fetcher(lambda *_: page([(f"uuid-00000/{next(numbers)}", "1")], token=f"t{next(numbers)}"))
    with pytest.raises(ItemError, match="does not end after 20 pages") as caught:
        made.list_bodies(entry(), 0.0)
    assert caught.value.reason == "unavailable"
    assert len([url for url in transport.asked if "aws" in url]) == 20


def test_a_token_that_comes_twice_ends_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that goes round in circles is not asked two thousand times."""
    made, transport = fetcher(lambda *_: page([("uuid-00000/1", "1")], token="same"))
    with pytest.raises(ItemError):
        made.list_bodies(entry(), 0.0)
    assert len(transport.asked) < 10


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


def test_a_body_that_nobody_has_fails_with_the_endpoint_s_reason(tmp_path: Path) -> None:
    """What the first site said is what is recorded."""
    made, _ = fetcher(serves(FIVE))
    body = made.list_bodies(entry(), 0.0)[0]
    made, _ = fetcher(fails("checksum"), fails("withdrawn"))
    with pytest.raises(ItemError, match="made up: checksum"):
        made.fetch(body, tmp_path / "x", 0.0)
    assert not (tmp_path / "x").exists()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), st.text(max_size=8))
def test_urls_hold_any_key_and_token(key: str, token: str) -> None:
    """Signs of keys and tokens never become parts of the URL."""
    place = Place("http://aws/", "b", "u")
    assert urlsplit(place.url(key)).query == urlsplit(place.url(key)).fragment == ""
    query = parse_qs(urlsplit(place.listing_url(token.encode("utf-8", "replace").decode())).query)
    assert query["prefix"] == ["u/"]
    assert query.get("continuation-token", [""])[0] == token.encode("utf-8", "replace").decode()
