"""What the demo site says must be S3's own semantics: pages, ranges, conditions."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo import s3
from pipeline.demo.bucket import Bucket, make_object
from pipeline.demo.faults import Fault, FaultPlan, Faults, Rule

KEYS = st.sets(st.text(st.sampled_from("ab/é𝄞 &<"), min_size=1, max_size=6), max_size=25)


def fill(keys: set[str]) -> Bucket:
    """A bucket with these keys."""
    bucket = Bucket("b")
    for key in keys:
        bucket.put(key, key.encode())
    return bucket


def list_all(bucket: Bucket, faults: Faults | None = None, **query: str) -> tuple[list[str], list[str], int]:
    """All keys and common prefixes, by following the tokens, and on how many pages they were."""
    keys, prefixes, pages = [], [], 0
    query = {"list-type": "2"} | {name.replace("_", "-"): value for name, value in query.items()}
    while True:
        parsed = s3.parse_list_query(query, 1000)
        page = s3.plan_page(bucket, parsed, faults.view if faults else None)
        keys += [item.key for item in page.objects]
        prefixes += page.prefixes
        pages += 1
        if not page.token:
            return keys, prefixes, pages
        assert len(page.objects) + len(page.prefixes) == parsed.max_keys
        query["continuation-token"] = page.token


@given(KEYS, st.text(st.sampled_from("ab/é"), max_size=2), st.integers(1, 7))
def test_pages_together_are_the_whole_listing(keys, prefix, limit):
    """Whatever the page size, the pages give every key with the prefix once, in the order of its UTF-8 bytes."""
    found, _, pages = list_all(fill(keys), prefix=prefix, max_keys=str(limit))
    assert found == sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
    assert pages == max(1, -(-len(found) // limit))


@given(KEYS, st.text(st.sampled_from("ab/"), max_size=2), st.sampled_from(["/", "a", "b/"]), st.integers(1, 4))
def test_delimiter_folds_keys_into_common_prefixes(keys, prefix, delimiter, limit):
    """Keys with the delimiter behind the prefix appear only as their common prefix, and once over all pages."""
    found, folded, _ = list_all(fill(keys), prefix=prefix, delimiter=delimiter, max_keys=str(limit))
    tails = {key: key[len(prefix) :] for key in keys if key.startswith(prefix)}
    assert found == sorted(key for key, tail in tails.items() if delimiter not in tail)
    assert folded == sorted(
        {prefix + t[: t.index(delimiter) + len(delimiter)] for t in tails.values() if delimiter in t}
    )


@given(KEYS, st.text(st.sampled_from("ab/é"), max_size=3))
def test_start_after_leaves_out_what_comes_before(keys, start):
    """`start-after` gives only keys that sort behind it, on all pages."""
    found, _, _ = list_all(fill(keys), start_after=start, max_keys="3")
    assert found == sorted(key for key in keys if key > start)


@given(KEYS, st.integers(1, 4))
def test_extra_names_survive_paging(keys, limit):
    """An extra name is listed exactly once beside each real one, wherever a page ends."""
    names = {f"{key}.dcm" for key in keys}
    faults = Faults(FaultPlan((Rule("*", Fault(kind="extra")),)))
    found, _, _ = list_all(fill(names), faults, max_keys=str(limit))
    assert sorted(found) == sorted(names | {name.removesuffix(".dcm") + "-extra.dcm" for name in names})


@given(KEYS.filter(bool), st.booleans())
def test_the_xml_of_a_page_gives_keys_back(keys, url_encoded):
    """A page parses as XML in S3's namespace, and its keys, decoded as asked, are the bucket's."""
    query = s3.parse_list_query({"list-type": "2"} | ({"encoding-type": "url"} if url_encoded else {}), 1000)
    bucket = fill(keys)
    tree = ET.fromstring(s3.render_page("b", query, s3.plan_page(bucket, query)))
    name = "{" + s3.NAMESPACE + "}"
    assert tree.tag == name + "ListBucketResult"
    assert [e.text for e in tree.iter(name + "Key")] == [quote(k, safe="/~") if url_encoded else k for k in bucket.keys]
    assert [e.text for e in tree.iter(name + "Size")] == [str(bucket.objects[k].size) for k in bucket.keys]
    assert tree.findtext(name + "KeyCount") == str(len(keys))


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"list-type": "1"}, "NotImplemented"),
        ({"list-type": "2", "max-keys": "-1"}, "InvalidArgument"),
        ({"list-type": "2", "max-keys": "x"}, "InvalidArgument"),
        ({"list-type": "2", "encoding-type": "gzip"}, "InvalidArgument"),
        ({"list-type": "2", "continuation-token": "bm90IG91cnM="}, "InvalidArgument"),
        ({"list-type": "2", "continuation-token": "\udce9"}, "InvalidArgument"),
    ],
)
def test_listings_refuse_what_s3_refuses(query, code):
    """A parameter that S3 would refuse is an S3 error, never a crash or an empty listing."""
    with pytest.raises(s3.S3Error) as caught:
        s3.parse_list_query(query, 1000)
    assert caught.value.code == code


def answer(header: str, size: int) -> tuple[int, int] | str | None:
    """What a Range header gives, or the code of its error."""
    try:
        return s3.choose_range(header, size)
    except s3.S3Error as error:
        return error.code


@given(st.integers(0, 60), st.integers(0, 70), st.integers(0, 70))
def test_ranges_cut_as_slices_do(size, first, last):
    """`a-b`, `a-` and `-n` give what the like Python slice gives, and InvalidRange when that is empty."""
    data = bytes(range(size))

    def cut(spec):
        span = answer(f"bytes={spec}", size)
        if span == "InvalidRange":
            return b""
        assert isinstance(span, tuple)
        assert 0 <= span[0] < span[1] <= size
        return data[span[0] : span[1]]

    assert cut(f"{first}-") == data[first:]
    assert cut(f"-{last}") == (data[-last:] if last else b"")
    if first <= last:
        assert cut(f"{first}-{last}") == data[first : last + 1]
    else:
        assert s3.choose_range(f"bytes={first}-{last}", size) is None


@given(st.text(max_size=20))
def test_any_range_header_has_an_answer(text):
    """No Range header, however wrong, makes anything but a range, the whole object or InvalidRange."""
    for header in (text, f"bytes={text}"):
        span = answer(header, 10)
        assert span in {None, "InvalidRange"} or 0 <= span[0] < span[1] <= 10


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, "send"),
        ({"if-match": '"e"'}, "send"),
        ({"if-match": "*"}, "send"),
        ({"if-match": '"x", "e"'}, "send"),
        ({"if-match": '"x"'}, "PreconditionFailed"),
        ({"if-none-match": '"e"'}, "not-modified"),
        ({"if-none-match": 'W/"e"'}, "not-modified"),
        ({"if-none-match": '"x"'}, "send"),
        ({"if-modified-since": "Thu, 01 Jan 1970 00:10:00 GMT"}, "not-modified"),
        ({"if-modified-since": "Thu, 01 Jan 1970 00:00:01 GMT"}, "send"),
        ({"if-modified-since": "no date"}, "send"),
        ({"if-unmodified-since": "Thu, 01 Jan 1970 00:00:01 GMT"}, "PreconditionFailed"),
        ({"if-match": '"e"', "if-unmodified-since": "Thu, 01 Jan 1970 00:00:01 GMT"}, "send"),
    ],
)
def test_conditions(headers, outcome):
    """Conditions are judged in the order of RFC 9110 13.2.2."""
    try:
        found: str = s3.check_conditions(headers, "e", 600)
    except s3.S3Error as error:
        found = error.code
    assert found == outcome


def test_multipart_etag_is_the_hash_of_part_hashes():
    """An object of 2.5 parts has S3's multipart ETag, whatever chunks it was hashed in, and its plain MD5 as well."""
    # Known from Amazon's rule: MD5 over the concatenated binary MD5s of the parts, then the number of parts.
    item = make_object("k", b"aaaabbbbcc", part_size=4)
    assert item.etag == "cf6c8a60b0e393d7e70f2e7564027788-3"
    assert make_object("k", b"aaaa", part_size=4).etag.endswith("-1")
    assert make_object("k", b"aaaa").etag == "74b87337454200d4d33f80c4663dc5e5"
