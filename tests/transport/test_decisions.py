"""The pure decisions: what a failure means, how long to wait, which proxy, what hashes prove, what a head says."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import socket
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InterruptedRunError
from pipeline.transport.evidence import (
    MAX_CANDIDATES,
    MismatchError,
    Stated,
    Tally,
    choose_parts,
    classify_evidence,
    normalise_etag,
    read_stated,
)
from pipeline.transport.proxy import choose_proxy, matches_no_proxy
from pipeline.transport.retry import (
    Policy,
    Progress,
    ProxyRefusedError,
    Runtime,
    Verdict,
    choose_delay,
    choose_next,
    classify_failure,
    count_failure,
    parse_retry_after,
    pause,
)
from pipeline.transport.wire import Body, Guard, Head, ProtocolError, Stream, parse_head, parse_length, render_request

POLICY = Policy(attempts=5, base=0.5, cap=60, slow_base=2)
NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        (301, "permanent"),
        (400, "permanent"),
        (401, "forbidden"),
        (403, "forbidden"),
        (404, "gone"),
        (408, "retry"),
        (412, "changed"),
        (416, "unsatisfiable"),
        (429, "slow-down"),
        (500, "retry"),
        (501, "permanent"),
        (503, "slow-down"),
        (504, "retry"),
        (999, "permanent"),
        (TimeoutError(), "retry"),
        (ConnectionResetError(), "retry"),
        (socket.gaierror(-3, "later"), "retry"),
        (http.client.BadStatusLine("x"), "retry"),
        (ssl.SSLError(), "retry"),
        (ssl.SSLCertVerificationError(), "permanent"),
        (ProxyRefusedError("", 404), "permanent"),
        (ProxyRefusedError("", 503), "slow-down"),
    ],
)
def test_classify_failure(failure, verdict):
    """Each status and exception has the one meaning that its definition gives it."""
    assert classify_failure(failure) is Verdict(verdict)


@given(
    st.sampled_from([Verdict.RETRY, Verdict.SLOW_DOWN]),
    st.integers(0, 10_000),
    st.none() | st.floats(0, 1e6),
    st.floats(0, 1, exclude_max=True),
)
def test_delay_bounds(verdict, failures, retry_after, uniform):
    """A wait is never shorter than Retry-After, and but for that never longer than the cap."""
    delay = choose_delay(POLICY, verdict, failures, retry_after, lambda: uniform)
    assert (retry_after or 0) <= delay <= (retry_after or 0) + POLICY.cap


def test_delay_grows():
    """Waits double from the base, the one for a site that asks to slow down being larger."""
    assert [choose_delay(POLICY, Verdict.RETRY, n, None, lambda: 1.0) for n in (1, 2, 3, 99)] == [0.5, 1, 2, 60]
    assert [choose_delay(POLICY, Verdict.SLOW_DOWN, n, None, lambda: 1.0) for n in (1, 2, 3, 99)] == [2, 4, 8, 60]


@pytest.mark.parametrize(
    ("verdict", "failures", "retry_after", "left", "expected"),
    [
        (Verdict.RETRY, 1, None, 100, 0.5),
        (Verdict.RETRY, 4, None, 100, 4.0),
        (Verdict.RETRY, 5, None, 100, None),
        (Verdict.RETRY, 1, None, 0.5, None),
        (Verdict.SLOW_DOWN, 1, 30.0, 100, 32.0),
        (Verdict.SLOW_DOWN, 1, 60.0, 100, 62.0),
        (Verdict.SLOW_DOWN, 1, 60.0, 61, None),
        (Verdict.SLOW_DOWN, 1, 61.0, 1e6, None),
        (Verdict.RETRY, 1, 1e9, 1e6, None),
        (Verdict.GONE, 1, None, 100, None),
        (Verdict.FORBIDDEN, 1, None, 100, None),
        (Verdict.PERMANENT, 1, None, 100, None),
        (Verdict.UNSATISFIABLE, 1, None, 100, 0.5),
    ],
)
def test_choose_next(verdict, failures, retry_after, left, expected):
    """Giving up has four causes: the verdict, the number of failures, the deadline, a site that asks for too long."""
    assert choose_next(POLICY, verdict, failures, retry_after, left, lambda: 1.0) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 400, 9_999_999_999),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60),
        ("Tue, 14 Nov 2000 22:14:20 GMT", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("\u0661", None),
        ("Tue, 99 Nov 2023 22:14:20 GMT", None),
    ],
)
def test_retry_after(text, seconds):
    """Retry-After is read as seconds or a date, and anything else as if it was not there."""
    assert parse_retry_after(text, NOW) == seconds


@given(st.text())
def test_retry_after_hostile(text):
    """No text whatever makes reading Retry-After fail, or gives a negative wait."""
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or seconds >= 0


def test_count_failure():
    """1 MiB, or 5 % of a small object, makes the next failure the first again; the same bytes twice do not."""
    assert count_failure(Progress(2, 0), 1000, 49) == Progress(3, 0)
    assert count_failure(Progress(2, 0), 1000, 50) == Progress(1, 50)
    assert count_failure(Progress(1, 50), 1000, 50) == Progress(2, 50)
    assert count_failure(Progress(2, 0), 10**12, 1 << 20) == Progress(1, 1 << 20)
    assert count_failure(Progress(2, 0), 0, 0) == Progress(3, 0)


@given(st.integers(0, 10**7), st.lists(st.integers(0, 10**7), max_size=200))
def test_failures_are_bounded(size, reached):
    """Whatever a server does, the failures that count as first ones are at most twenty-one for a small object."""
    progress, firsts, furthest = Progress(), 0, 0
    for position in reached:
        furthest = max(furthest, min(position, size))
        progress = count_failure(progress, size, furthest)
        firsts += progress.failures == 1
    assert firsts <= 22


def test_pause():
    """A pause waits as long as it is told on the clock it is given, and ends the run when stopped."""
    waited = []
    stop = threading.Event()
    runtime = Runtime(wait=lambda event, seconds: waited.append((event, seconds)))
    pause(runtime, stop, 12.5)
    assert waited == [(stop, 12.5)]
    stop.set()
    with pytest.raises(InterruptedRunError):
        pause(runtime, stop, 1)


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "matches"),
    [
        ("*", "a.org", 80, True),
        ("", "a.org", 80, False),
        ("a.org", "a.org", 80, True),
        ("a.org", "b.a.org", 80, True),
        (".a.org", "b.a.org", 80, True),
        ("*.a.org", "b.a.org", 80, True),
        ("a.org", "ba.org", 80, False),
        ("x, A.ORG.", "a.org", 80, True),
        ("a.org:8080", "a.org", 8080, True),
        ("a.org:8080", "a.org", 80, False),
        ("10.0.0.0/8", "10.2.3.4", 80, True),
        ("10.0.0.0/8", "11.2.3.4", 80, False),
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.1:81", "127.0.0.1", 80, False),
        ("0.1", "127.0.0.1", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("fd00::/8", "fd00::1", 80, True),
        ("///,:,[", "a.org", 80, False),
    ],
)
def test_no_proxy(no_proxy, host, port, matches):
    """NO_PROXY is read as the common tools read it."""
    assert matches_no_proxy(host, port, no_proxy) is matches


def test_choose_proxy():
    """Lower case wins, the scheme decides, credentials never show, and a CGI client cannot name a proxy."""
    both = {"http_proxy": "http://low:1", "HTTP_PROXY": "http://up:2"}
    assert choose_proxy("http", "a.org", 80, both).host == "low"
    assert choose_proxy("https", "a.org", 443, both) is None
    assert choose_proxy("http", "a.org", 80, {"HTTP_PROXY": "http://up:2", "REQUEST_METHOD": "GET"}) is None
    proxy = choose_proxy("https", "a.org", 443, {"HTTPS_PROXY": "user:secret@h"})
    assert (proxy.host, proxy.port) == ("h", 80)
    assert "secret" not in repr(proxy)
    assert base64.b64decode(proxy.headers["Proxy-Authorization"].split()[1]) == b"user:secret"


@pytest.mark.parametrize("value", ["socks5://secret", "http://secret:port", "http://", "http://[secret"])
def test_bad_proxy(value):
    """A proxy that cannot be used is a config error which does not show the value."""
    with pytest.raises(ConfigError) as caught:
        choose_proxy("http", "a.org", 80, {"http_proxy": value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("etag", "plain"),
    [
        ('"abc"', "abc"),
        ('W/"abc"', "abc"),
        ('"' + "A" * 32 + '"', "a" * 32),
        ("A" * 32 + "-2", "a" * 32 + "-2"),
        ("", ""),
    ],
)
def test_normalise_etag(etag, plain):
    """Quotes and weakness go; only hashes change case."""
    assert normalise_etag(etag) == plain


@given(st.binary(max_size=300), st.integers(1, 40), st.lists(st.integers(0, 300)))
def test_multipart_tally(body, part_size, cuts):
    """In whatever pieces a body is fed, and fed again after a reset, its multipart ETag is that of its parts."""
    parts = [body[start : start + part_size] for start in range(0, len(body), part_size)] or [b""]
    joined = b"".join(hashlib.md5(piece).digest() for piece in parts)
    etag = f"{hashlib.md5(joined).hexdigest()}-{len(parts)}"
    tally = Tally(len(body), etag)
    tally._parts = (part_size,)
    tally.feed(memoryview(b"something else"))
    tally.reset()
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        tally.feed(memoryview(body)[start:end])
    digests = tally.digests()
    assert digests.multipart == (etag,)
    assert (digests.md5, digests.sha256) == (hashlib.md5(body).hexdigest(), hashlib.sha256(body).hexdigest())


@given(st.integers(1, 10**13), st.integers(1, 10_000))
def test_choose_parts(size, count):
    """Candidates give the stated number of parts, are different, and are few."""
    parts = choose_parts(f"{'0' * 32}-{count}", size)
    assert all(-(-size // part) == count for part in parts) or parts == (size,)
    assert len(set(parts)) == len(parts) <= MAX_CANDIDATES


@pytest.mark.parametrize(("size", "part"), [(5_000_000_000, 8 << 20), (10**9, 50 << 20), (64 << 20, 5_000_000)])
def test_common_parts_are_candidates(size, part):
    """The part sizes of common tools are among the candidates."""
    assert part in choose_parts(f"{'0' * 32}-{-(-size // part)}", size)
    assert choose_parts("0" * 32, size) == ()


def test_evidence():
    """Every hash that the site states is compared, and listed best first."""
    tally = Tally(3, "")
    tally.feed(memoryview(b"abc"))
    digests = tally.digests()
    right = Stated(sha256=bytes.fromhex(digests.sha256), md5=bytes.fromhex(digests.md5))
    assert classify_evidence(digests, digests.md5, right) == ("sha256", "md5", "size")
    assert classify_evidence(digests, "other", Stated()) == ("size",)
    for etag, stated in [("0" * 32, right), ("", Stated(sha256=b"0" * 32)), ("", Stated(md5=b"0" * 16))]:
        with pytest.raises(MismatchError):
            classify_evidence(digests, etag, stated)


@given(st.sampled_from([200, 206]), st.text(), st.text(), st.text())
def test_stated_hostile(status, sha256, kind, goog):
    """No header value makes reading stated hashes fail, or gives one of the wrong length."""
    headers = {"x-amz-checksum-sha256": sha256, "x-amz-checksum-type": kind, "x-goog-hash": f"md5={goog}"}
    stated = read_stated(status, headers)
    assert len(stated.sha256) in {0, 32}
    assert len(stated.md5) in {0, 16}


def test_stated_only_of_whole_objects():
    """A SHA-256 of a part, or a checksum of checksums, is not taken for that of the object."""
    value = base64.b64encode(b"x" * 32).decode()
    assert read_stated(200, {"x-amz-checksum-sha256": value}).sha256 == b"x" * 32
    assert read_stated(206, {"x-amz-checksum-sha256": value}).sha256 == b""
    assert read_stated(200, {"x-amz-checksum-sha256": value, "x-amz-checksum-type": "COMPOSITE"}).sha256 == b""
    assert read_stated(200, {"x-amz-checksum-sha256": f"{value}-2"}).sha256 == b""


def test_parse_head():
    """Names become lower case, repeated and folded headers are joined, the reason may be missing."""
    head = parse_head(b"HTTP/1.1 200\r\nA: 1\r\na:2 \r\nB: x\r\n  y\r\nC:")
    assert head == Head(200, "", {"a": "1, 2", "b": "x y", "c": ""}, 1)
    assert head.keep_alive
    assert not parse_head(b"HTTP/1.1 200 OK\r\nConnection: Close").keep_alive
    assert not parse_head(b"HTTP/1.0 200 OK").keep_alive


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/2 200 OK", b"HTTP/1.1 99 x", b"HTTP/1.1 2000 x", b"ICY 200 OK", b"HTTP/1.1 200 OK\r\nno colon",
     b"HTTP/1.1 200 OK\r\n: x", b"HTTP/1.1 200 OK\r\nA B: x", b"HTTP/1.1 200 OK\r\n x"],
)  # fmt: skip
def test_no_head(raw):
    """What is not an HTTP/1.x head is refused."""
    with pytest.raises(ProtocolError):
        parse_head(raw)


@pytest.mark.parametrize(
    ("headers", "length"),
    [({}, -1), ({"content-length": "5"}, 5), ({"content-length": "5, 5"}, 5),
     ({"content-length": "5", "transfer-encoding": "chunked"}, -1)],
)  # fmt: skip
def test_length(headers, length):
    """The length is what Content-Length says once, or twice alike, unless the body is chunked."""
    assert parse_length(Head(200, "", headers)) == length
    assert parse_length(Head(204, "", headers)) == 0


@pytest.mark.parametrize("value", ["5, 6", "-5", "+5", "5.0", "", "\u0665", "9" * 19])
def test_impossible_length(value):
    """A Content-Length that is not one number is refused."""
    with pytest.raises(ProtocolError):
        parse_length(Head(200, "", {"content-length": value}))


def test_render_request():
    """A request is one line each, and values that would add a line are refused."""
    assert render_request("/a?b", "h", {"A": "1"}) == b"GET /a?b HTTP/1.1\r\nHost: h\r\nA: 1\r\n\r\n"
    for target, host, value in [("/a\nb", "h", ""), ("/", "h\r\nX: y", ""), ("/", "h", "1\r\nX: y"), ("/ ", "h", "")]:
        with pytest.raises(ValueError, match="characters"):
            render_request(target, host, {"A": value})


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
)
def test_hostile_stream(data, prefix):
    """Whatever bytes a server sends, reading ends: with a body, or with an error of the network or protocol."""
    ours, theirs = socket.socketpair()
    guard = Guard(lambda: 0.0, threading.Event(), stall=1, min_rate=0, deadline_at=9)
    with ours, theirs:
        theirs.sendall(prefix + data)
        theirs.shutdown(socket.SHUT_WR)
        stream = Stream(ours)
        stream.prepare(guard)
        view = memoryview(bytearray(64))
        try:
            body = Body(stream, stream.read_head(guard), guard)
            while not body.done:
                assert body.readinto(view) >= 0
        except (OSError, http.client.HTTPException):
            pass


def test_slow_head():
    """A head that trickles in more slowly than the minimum rate is given up like a body."""
    now = [0.0]
    guard = Guard(lambda: now[0], threading.Event(), stall=10, min_rate=1000, deadline_at=1e9)

    def trickle():
        while now[0] < 100:
            guard.check_pace()
            now[0] += 1
            guard.arrived(1)

    with pytest.raises(TimeoutError, match="below 1000 bytes/s"):
        trickle()
    assert now[0] <= 13
