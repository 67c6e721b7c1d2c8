"""The demo site on the wire: what an S3 client relies on."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import threading
import xml.etree.ElementTree as ET

import pytest
from demo_client import BIG, BUCKET, fetch_from
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.demo.bucket import Store
from pipeline.demo.site import DemoSite

NS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def code(body: bytes) -> str | None:
    """The code of an S3 error."""
    return ET.fromstring(body).findtext("Code")


def test_get_gives_the_object_and_what_is_known_of_it(fetch):
    """GET answers 200 with the bytes, their MD5 as ETag, length, date and, when asked, SHA-256."""
    got = fetch(f"/{BUCKET}/two/big.dcm", x_amz_checksum_mode="ENABLED")
    assert (got.status, got.body) == (200, BIG)
    assert got.headers["ETag"] == f'"{hashlib.md5(BIG).hexdigest()}"'
    assert got.headers["Content-Length"] == str(len(BIG))
    assert got.headers["Last-Modified"].endswith("GMT")
    assert got.headers["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(BIG).digest()).decode()
    assert fetch(f"/{BUCKET}/two/big.dcm").headers["x-amz-checksum-sha256"] is None


def test_head_is_get_without_the_body(fetch):
    """HEAD gives the same status and headers as GET, for objects, errors and buckets, and no body."""
    for path in (f"/{BUCKET}/two/big.dcm", f"/{BUCKET}/two/empty.dcm"):
        full, head = fetch(path), fetch(path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert dict(head.headers) == dict(full.headers)
    assert fetch(f"/{BUCKET}", "HEAD").status == 200
    assert fetch("/nowhere", "HEAD").status == 404
    missing = fetch(f"/{BUCKET}/nothing", "HEAD")
    assert (missing.status, missing.body) == (404, b"")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.integers(0, 300_010), st.integers(0, 300_010))
def test_ranges_on_the_wire(fetch, first, last):
    """A range is answered by 206, its bytes and Content-Range, or 416 with the size, or 200 when it is malformed."""
    got = fetch(f"/{BUCKET}/two/big.dcm", Range=f"bytes={first}-{last}")
    if last < first:
        assert (got.status, got.body) == (200, BIG)
    elif first >= len(BIG):
        assert (got.status, code(got.body)) == (416, "InvalidRange")
        assert got.headers["Content-Range"] == f"bytes */{len(BIG)}"
    else:
        end = min(last, len(BIG) - 1)
        assert (got.status, got.body) == (206, BIG[first : end + 1])
        assert got.headers["Content-Range"] == f"bytes {first}-{end}/{len(BIG)}"


def test_files_are_served_as_memory_is(tmp_path, store):
    """Objects in files, small and large, whole and in ranges, come out as those in memory do."""
    for key, item in store.buckets[BUCKET].objects.items():
        path = tmp_path / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.read())
    with DemoSite(Store.from_folder(tmp_path)) as from_files, DemoSite(store) as from_memory:
        for key in store.buckets[BUCKET].objects:
            for span in ("", "bytes=5-", "bytes=100-270000", "bytes=-7"):
                headers = {"Range": span} if span else {}
                one, other = (fetch_from(site)(f"/{BUCKET}/{key}", **headers) for site in (from_files, from_memory))
                assert (one.status, one.body, one.headers["ETag"]) == (other.status, other.body, other.headers["ETag"])


def test_conditions_on_the_wire(fetch):
    """If-Match that fails is 412, If-None-Match that holds is 304 without a body, and If-Range guards a resume."""
    path, etag = f"/{BUCKET}/one/0.dcm", f'"{hashlib.md5(BIG[:1000]).hexdigest()}"'
    assert fetch(path, If_Match=etag).status == 200
    assert code(fetch(path, If_Match='"other"').body) == "PreconditionFailed"
    same = fetch(path, If_None_Match=etag)
    assert (same.status, same.body) == (304, b"")
    assert fetch(path, Range="bytes=10-", If_Range=etag).status == 206
    assert fetch(path, Range="bytes=10-", If_Range='"other"').status == 200


def test_errors_are_s3_errors(fetch):
    """What is not there or not allowed is refused with S3's status and code, as XML."""
    for path, method, status, word in (
        (f"/{BUCKET}/one/9.dcm", "GET", 404, "NoSuchKey"),
        ("/nowhere/one", "GET", 404, "NoSuchBucket"),
        ("/nowhere?list-type=2", "GET", 404, "NoSuchBucket"),
        (f"/{BUCKET}?list-type=2&continuation-token=%21", "GET", 400, "InvalidArgument"),
        (f"/{BUCKET}", "GET", 501, "NotImplemented"),
        ("/", "GET", 403, "AccessDenied"),
        (f"/{BUCKET}/one/0.dcm", "PUT", 405, "MethodNotAllowed"),
    ):
        got = fetch(path, method)
        assert (got.status, code(got.body)) == (status, word)


def test_listing_follows_its_tokens(fetch):
    """Pages of the site's size, followed by their tokens, list each object with size and quoted ETag."""
    found, token, pages = {}, "", 0
    while True:
        got = fetch(f"/{BUCKET}?list-type=2&prefix=one%2F" + (f"&continuation-token={token}" if token else ""))
        tree = ET.fromstring(got.body)
        found |= {e.findtext(NS + "Key"): e for e in tree.iter(NS + "Contents")}
        pages += 1
        token = tree.findtext(NS + "NextContinuationToken")
        if tree.findtext(NS + "IsTruncated") == "false":
            break
    assert pages == 2
    assert list(found) == [f"one/{n}.dcm" for n in range(5)]
    assert found["one/3.dcm"].findtext(NS + "Size") == "1003"
    assert found["one/3.dcm"].findtext(NS + "ETag") == f'"{hashlib.md5(BIG[:1003]).hexdigest()}"'
    folded = ET.fromstring(fetch(f"/{BUCKET}/?list-type=2&delimiter=/").body)
    assert [e.findtext(NS + "Prefix") for e in folded.iter(NS + "CommonPrefixes")] == ["one/", "two/"]


def test_mirror_has_the_mirror_s_names(store):
    """A mirror serves the same keys by GCS names; `only` has no others, `also` has both, and neither renames all."""
    store.put("idc-open-data", "k", b"x")
    for mirror, other in (("only", 404), ("also", 200)):
        with DemoSite(store, mirror=mirror) as site:
            fetch = fetch_from(site)
            got = fetch("/idc-open-idc1/one/0.dcm")
            assert (got.status, got.body) == (200, BIG[:1000])
            assert got.headers["x-goog-hash"] == "md5=" + base64.b64encode(hashlib.md5(BIG[:1000]).digest()).decode()
            assert fetch(f"/{BUCKET}/one/0.dcm").status == other
            assert fetch("/idc-open-data/k").status == 200


def test_connections_are_kept_and_counted(site):
    """Many requests go over one connection, pipelined ones too, and every one is counted by kind and key."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port)
    for n in range(5):
        connection.request("GET", f"/{BUCKET}/one/{n}.dcm", headers={"User-Agent": "test/1"})
        assert len(connection.getresponse().read()) == 1000 + n
    connection.request("GET", f"/{BUCKET}?list-type=2&prefix=one/")
    connection.getresponse().read()
    connection.close()
    two = f"GET /{BUCKET}/two/empty.dcm HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2
    with socket.create_connection(("127.0.0.1", site.port)) as raw:
        raw.sendall(two + b"GET /_stats HTTP/1.0\r\n\r\n")
        raw.settimeout(10)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert (site.stats.connections, site.stats.requests) == (2, 8)
    assert site.stats.count("GET", "one/*") == 5
    assert site.stats.count("LIST", "one/") == 1
    assert site.stats.count(key="two/empty.dcm", bucket=BUCKET) == 2
    assert site.stats.requests_log()[0].user_agent == "test/1"
    assert site.stats.snapshot().bytes_sent > 5010


def test_a_site_may_limit_requests_per_connection(store):
    """After the given number of requests the site says so and closes the connection."""
    with DemoSite(store, requests_per_connection=2) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port)
        said = []
        for _ in range(2):
            connection.request("GET", f"/{BUCKET}/one/0.dcm")
            answer = connection.getresponse()
            answer.read()
            said.append(answer.headers["Connection"])
        assert said == ["keep-alive", "close"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / FTP/1\r\n\r\n",
        b"GET /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"a" * 70_000,
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(site, request_bytes):
    """A client that does not speak HTTP is told so and cut off; the site goes on."""
    with socket.create_connection(("127.0.0.1", site.port)) as raw:
        raw.settimeout(10)
        raw.sendall(request_bytes)
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
    assert fetch_from(site)(f"/{BUCKET}/one/0.dcm").status == 200


def test_closing_ends_everything(store):
    """After `close` no thread of the site lives and its port is shut, though a client still holds a connection."""
    before = set(threading.enumerate())
    with DemoSite(store) as site:
        idle = socket.create_connection(("127.0.0.1", site.port))
        fetch_from(site)(f"/{BUCKET}/one/0.dcm")
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", site.port))
    idle.close()


def test_many_clients_at_once_get_their_own_bytes(site):
    """Sixteen clients at once each get the bytes they asked for."""
    wrong = []

    def client(turn: int) -> None:
        fetch = fetch_from(site)
        for n in range(20):
            start = (turn * 7919 + n * 104_729) % len(BIG)
            if fetch(f"/{BUCKET}/two/big.dcm", Range=f"bytes={start}-").body != BIG[start:]:
                wrong.append((turn, n))

    threads = [threading.Thread(target=client, args=(turn,)) for turn in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert site.stats.count("GET") == 320


def test_a_foreign_client_agrees(site):
    """boto3, unsigned, lists through a paginator and gets objects, checking the checksum the site sends."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is a stranger's S3 client; without it nobody to ask")
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    config = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}, retries={"max_attempts": 1})
    client = boto3.client("s3", endpoint_url=site.url, region_name="us-east-1", config=config)
    pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET))
    listed = {item["Key"]: item["Size"] for page in pages for item in page["Contents"]}
    assert len(pages) == 3
    assert listed == {**{f"one/{n}.dcm": 1000 + n for n in range(5)}, "two/big.dcm": len(BIG), "two/empty.dcm": 0}
    got = client.get_object(Bucket=BUCKET, Key="two/big.dcm", ChecksumMode="ENABLED")
    assert got["Body"].read() == BIG
    assert client.get_object(Bucket=BUCKET, Key="two/big.dcm", Range="bytes=5-9")["Body"].read() == BIG[5:10]
    assert client.head_object(Bucket=BUCKET, Key="one/1.dcm")["ContentLength"] == 1001
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket=BUCKET, Key="nothing")
    assert caught.value.response["Error"]["Code"] == "NoSuchKey"
