"""Listings of IDC: no page that is not what it should be is believed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from idc_pages import ETAG, NS, files_of, page
from run_kit import make_item

from pipeline.errors import ItemError
from pipeline.model import RemoteFile
from pipeline.sources.idc import check_listing, parse_listing

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
        with contextlib.suppress(ItemError):
            parse_listing(body)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_flipped_byte_never_makes_a_fault(position: int, flip: int) -> None:
    """A damaged page is another page or an item error."""
    damaged = GOOD[:position] + bytes([GOOD[position] ^ flip]) + GOOD[position + 1 :]
    try:
        files, _ = parse_listing(damaged)
    except ItemError:
        return
    assert len(files) <= 2


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
