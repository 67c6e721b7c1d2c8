"""Lists of the ISIC client: complete, resumed, kept, in bounded memory."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, SiteUnavailableError
from pipeline.sources.isic_pages import EndlessListError, Fetched, Ids, Listing, ListingChangedError
from pipeline.sources.isic_rows import Image
from tests.sources.isic_archive import (  # noqa: F401 -- the fixture
    API,
    Archive,
    _archive,
    client,
    ids,
    image,
    image_rows,
    listed,
    page,
    said,
)
from tests.sources.test_tcia_http import (  # noqa: F401 -- the fixture
    Asked,
    Handler,
    _site,
    kept,
)


@pytest.mark.parametrize("tied", [(), range(95, 106), range(100, 102), range(1, 251), range(50, 200)])
def test_all_images_once(archive: Archive, tied: range) -> None:
    """Pages of 100 are followed to the end, also where many images have one time at a page's edge."""
    archive.rows = image_rows(250, tied=tied)
    with client(archive) as isic:
        assert ids(isic) == list(range(1, 251))
    assert listed(archive) == ["first", "next", "next", "count"]
    assert {each.params["limit"] for each in archive.site.asked} == {"100", "1"}


def test_smaller_pages_would_lose_images() -> None:
    """The reason for pages of 100: with others, the site itself loses images of one time."""
    rows = image_rows(205, tied=range(98, 108))
    seen: set[str] = set()
    params: dict[str, str] = {"limit": "7"}
    while params:
        found = page(rows, params, "http://x/")
        seen |= {record["isic_id"] for record in found["results"]}
        query = (found["next"] or "?").partition("?")[2]
        params = {name: values for name, _, values in (part.partition("=") for part in query.split("&") if part)}
        params = {name: value.replace("%3D", "=").replace("%2F", "/") for name, value in params.items()}
    assert len(seen) < 205


def test_next_is_followed_verbatim(archive: Archive) -> None:
    """The site's own URL of the next page is asked, with all its parameters in its order."""
    archive.rows = image_rows(150)
    archive.queries['diagnosis_1:"a b" AND x:1&2#+%'] = lambda _: True
    archive.add_collection(5, [record["isic_id"] for _, record in archive.rows])
    with client(archive) as isic:
        assert len(ids(isic, query='diagnosis_1:"a b" AND x:1&2#+%', collections=[5, 5])) == 150
    pages = [each for each in archive.site.asked if each.path == f"{API}images/search/"]
    assert [list(each.params) for each in pages[:2]] == [
        ["query", "collections", "limit"],
        ["collections", "cursor", "limit", "query"],
    ]


def test_an_inner_address_is_not_followed(archive: Archive) -> None:
    """A next page at another host is asked where the first one was; one of another list is an error."""
    rows = image_rows(150)

    def inner(handler: Handler, asked: Asked) -> None:
        said(200, page(rows, asked.params, "http://inner.example.org/api/v2/images/"))(handler, asked)

    archive.site.on(f"{API}images/", inner)
    with client(archive) as isic:
        assert len(ids(isic)) == 150
    for bad in ("ftp://x/api/v2/images/?cursor=x", "http://x/api/v2/users/?cursor=x", "//", "http://[", "x" * 30):
        archive.site.on(f"{API}images/", said(200, {"results": [image(1)], "count": 9, "next": bad}))
        with client(archive, refresh=True) as isic, pytest.raises(SiteUnavailableError, match="next page"):
            ids(isic)


def test_a_circle_ends(archive: Archive) -> None:
    """Pages that lead back to themselves are an error, not a loop."""
    url = f"{archive.site.origin}{API}images/?limit=100"
    archive.site.on(f"{API}images/", said(200, {"results": [image(1)], "count": 9, "next": url}))
    with client(archive) as isic, pytest.raises(SiteUnavailableError, match="circle"):
        ids(isic)


def endless(archive: Archive, *, new: bool = False, stop: int = 10**9) -> None:
    """Make the list say 205, and give a next page for ever: the same images each time, or `new` ones."""

    def step(handler: Handler, asked: Asked) -> None:
        if asked.params.get("limit") == "1":
            said(200, {"results": [image(1)], "count": 205, "next": None})(handler, asked)
            return
        number = int(asked.params.get("cursor", "0"))
        first = 100 * number if new else 0
        found = [image(first + each) for each in range(1, 101)]
        url = f"{archive.site.origin}{API}images/?cursor={number + 1}&limit=100" if number < stop else None
        said(200, {"results": found, "count": None if number else 205, "next": url})(handler, asked)

    archive.site.on(f"{API}images/", step)


def test_a_list_without_an_end(archive: Archive, tmp_path: Path) -> None:
    """A cursor that leads on for ever ends with an error after some pages without a new image; pages stay kept."""
    endless(archive)
    with (
        client(archive, cache_dir=tmp_path / "cache") as isic,
        pytest.raises(EndlessListError, match="no end") as caught,
    ):
        ids(isic)
    assert caught.value.exit_code == 69
    assert "205" in str(caught.value)
    assert len(listed(archive)) == 4
    assert len(kept(tmp_path)) == 4


def test_new_images_without_an_end(archive: Archive) -> None:
    """Far more images than the site counts are an error as well."""
    endless(archive, new=True)
    with client(archive) as isic, pytest.raises(EndlessListError, match="205"):
        ids(isic)
    assert len(listed(archive)) < 120


def test_a_kept_list_without_an_end_is_asked_anew(archive: Archive, tmp_path: Path) -> None:
    """What a broken site once said does not stand in the way when it is mended."""
    endless(archive)
    with client(archive, cache_dir=tmp_path / "cache") as isic, pytest.raises(EndlessListError):
        ids(isic)
    archive.rows = image_rows(205)
    archive.site.on(f"{API}images/", archive.list_images)
    with client(archive, cache_dir=tmp_path / "cache") as isic:
        assert ids(isic) == list(range(1, 206))


def lossy(archive: Archive, times: int, lost: int) -> Callable[[], int]:
    """Make the list lose an image for so many first pages; says how many were asked."""
    asked_first = 0

    def step(handler: Handler, asked: Asked) -> None:
        nonlocal asked_first
        rows = archive.rows
        if asked.params.get("limit") != "1":
            asked_first += "cursor" not in asked.params
            if asked_first <= times:
                found = page(rows, asked.params, f"{archive.site.origin}{asked.path}")
                found["results"] = [record for record in found["results"] if record["isic_id"] != f"ISIC_{lost:07d}"]
                said(200, found)(handler, asked)
                return
        archive.list_images(handler, asked)

    archive.site.on(f"{API}images/", step)
    return lambda: asked_first


def test_lost_images_are_listed_again(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer different ids than the site counts: all is asked anew, and what was missing comes, once."""
    archive.rows = image_rows(250)
    passes = lossy(archive, 1, 30)
    with client(archive) as isic:
        assert ids(isic) == [n for n in range(1, 251) if n != 30] + [30]
    assert passes() == 2
    assert "249 entries, but the site counts 250" in caplog.text


def test_a_list_that_never_adds_up(archive: Archive) -> None:
    """After a bounded number of passes it is an error: exit code 69, with both numbers."""
    archive.rows = image_rows(250)
    passes = lossy(archive, 99, 30)
    with client(archive) as isic, pytest.raises(ListingChangedError, match=r"249 different.*250") as caught:
        ids(isic)
    assert caught.value.exit_code == 69
    assert passes() == 3


def test_images_that_come_while_listing(archive: Archive) -> None:
    """What is published in the meantime is found at the end, without listing all again."""
    archive.rows = image_rows(250)

    def grow(handler: Handler, asked: Asked) -> None:
        if asked.params.get("limit") == "1" and len(archive.rows) == 250:
            archive.rows += image_rows(60, start=251)
        archive.list_images(handler, asked)

    archive.site.on(f"{API}images/", grow)
    with client(archive) as isic:
        listing = isic.image_pages()
        assert [int(row.isic_id[5:]) for each in listing for row in each.rows] == list(range(1, 311))
    assert listed(archive) == ["first", "next", "next", "count", "next", "next", "count"]
    assert (listing.passes, listing.counted, listing.listed) == (1, 310, 310)


def test_an_image_withdrawn_while_listing(archive: Archive) -> None:
    """A list that is complete as of its beginning counts as complete."""
    archive.rows = image_rows(150)

    def shrink(handler: Handler, asked: Asked) -> None:
        if asked.params.get("limit") == "1":
            archive.rows = archive.rows[1:]
        archive.list_images(handler, asked)

    archive.site.on(f"{API}images/", shrink)
    with client(archive) as isic:
        assert len(ids(isic)) == 150
    assert listed(archive) == ["first", "next", "count"]


def test_resumed_from_a_cursor(archive: Archive) -> None:
    """A saved cursor goes on after its page, in another client, and the whole is still compared with the count."""
    archive.rows = image_rows(350)
    with client(archive) as isic:
        pages = iter(isic.image_pages())
        first, second = next(pages), next(pages)
    assert len(first.rows) == len(second.rows) == 100
    saved = str(second.cursor)
    asked = len(archive.site.asked)
    with client(archive) as isic:
        assert ids(isic, start=saved) == list(range(201, 351))
    assert listed(archive, asked) == ["next", "next", "count"]
    assert str(second.cursor) == saved
    archive.rows = archive.rows[10:]
    with client(archive, refresh=True) as isic, pytest.raises(ListingChangedError) as caught:
        ids(isic, start=second.cursor)
    assert "beginning" in caught.value.hint


def test_a_cursor_of_another_list(archive: Archive) -> None:
    """A cursor goes with its query and path only; text that is no cursor is refused."""
    archive.rows = image_rows(150)
    archive.queries["sex:male"] = lambda _: True
    with client(archive) as isic:
        plain = next(iter(isic.image_pages())).cursor
        searched = next(iter(isic.image_pages("sex:male"))).cursor
        for query, cursor in (("", searched), ("sex:male", plain), ("sex:female", searched)):
            with pytest.raises(ConfigError, match="cursor"):
                isic.image_pages(query, start=cursor)
        for text in ("", "x", "é", "W10=", "WzEsMiwzXQ==", "bnVsbA=="):
            with pytest.raises(ConfigError, match="cursor"):
                isic.image_pages(start=text)


def test_a_later_run_asks_only_what_is_new(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    """Full pages are used again; the last one and the count are asked; the log says what cannot be seen so."""
    caplog.set_level(logging.INFO, logger="pipeline.sources.isic_pages")
    archive.rows = image_rows(250)
    with client(archive) as isic:
        ids(isic)
    assert "kept" not in caplog.text
    archive.rows += image_rows(170, start=251)
    asked = len(archive.site.asked)
    with client(archive) as isic:
        listing = isic.image_pages()
        assert sum(len(each.rows) for each in listing) == 420
    assert listed(archive, asked) == ["next", "next", "next", "count"]
    assert (listing.pages_kept, listing.pages_asked) == (2, 3)
    assert "420 entries, 3 pages asked for, 2 kept since" in caplog.text
    assert "not seen unless you refresh" in caplog.text
    asked = len(archive.site.asked)
    with client(archive, refresh=True) as isic:
        assert len(ids(isic)) == 420
    assert listed(archive, asked) == ["first", "next", "next", "next", "next", "count"]


def test_kept_pages_that_do_not_add_up(archive: Archive) -> None:
    """An image withdrawn since makes the list be asked anew, and is not among what the later run gives twice."""
    archive.rows = image_rows(250)
    with client(archive) as isic:
        ids(isic)
    del archive.rows[5]
    with client(archive) as isic:
        listing = isic.image_pages()
        found = [int(row.isic_id[5:]) for each in listing for row in each.rows]
    assert listing.passes == 2
    assert sorted(found) == list(range(1, 251))  # given before it was known to be gone
    with client(archive) as isic:
        assert len(ids(isic)) == 249


def test_offline(archive: Archive) -> None:
    """What was listed once is listed without the site; what was not is an error."""
    archive.rows = image_rows(250)
    with client(archive) as isic:
        ids(isic)
    archive.rows += image_rows(30, start=251)
    with client(archive) as isic:
        ids(isic)
    asked = len(archive.site.asked)
    with client(archive, offline=True) as isic:
        assert len(ids(isic)) == 280
        with pytest.raises(SiteUnavailableError, match="not in the cache"):
            isic.stats()
    assert len(archive.site.asked) == asked


def test_pages_expire(archive: Archive) -> None:
    """Pages have a life of their own: an expired one is asked anew."""
    archive.rows = image_rows(150)
    with client(archive, pages_expire=0.001, expire=3600) as isic:
        ids(isic)
    asked = len(archive.site.asked)
    with client(archive, pages_expire=3600, expire=0.001) as isic:
        ids(isic)
        ids(isic)
    assert listed(archive, asked) == ["first", "next", "count", "next", "count"]


def test_memory_is_bounded(archive: Archive) -> None:
    """Hundreds of thousands of ids take a bit each, and pages are let go of."""
    many = Ids()
    tracemalloc.start()
    for number in range(100_000):
        assert many.add(f"ISIC_{number * 17 % 9_999_991:07d}")
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 2 << 20
    assert len(many) == 100_000
    assert not many.add("ISIC_0000017")
    assert many.add("ISIC_00000017")
    assert many.add(17)
    assert not many.add(17)
    archive.rows = image_rows(250)
    with client(archive) as isic:
        pages = iter(isic.image_pages())
        next(pages)
        assert len(archive.site.asked) == 1  # not more than is used


def test_a_long_list_does_not_pile_up() -> None:
    """A hundred thousand images are given page by page: what stays is bits and a word for each page."""
    pages = 1000

    def fetch(url: str, _: bool) -> Fetched:
        number = int(url)
        rows = tuple(Image(isic_id=f"ISIC_{number * 100 + each:07d}", attribution="x" * 200) for each in range(100))
        return Fetched(
            rows, 100 * pages if not number else None, str(number + 1) if number < pages - 1 else "", False, 0
        )

    listing: Listing[Image] = Listing(fetch, lambda: 100 * pages, lambda row: row.isic_id, first="0", what="images")
    tracemalloc.start()
    total = sum(len(each.rows) for each in listing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 100 * pages
    assert peak < 3 << 20
