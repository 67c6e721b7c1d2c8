"""Objects into files: every way a server can go wrong ends in the right bytes or in the right error."""

from __future__ import annotations

import base64
import hashlib
import random
import stat

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ItemError, StorageError
from pipeline.transport.client import BUFFER, Transport
from pipeline.transport.download import Validator, choose_condition
from pipeline.transport.pool import ConnectionPool
from tests.transport.conftest import QUICK
from tests.transport.server import Server, answer, chunked, drip, md5, part, raw, serve

BODY = random.Random(1).randbytes(200_000)
LONG = random.Random(2).randbytes(2 * BUFFER + 12_345)
FLIPPED = BODY[:1000] + bytes([BODY[1000] ^ 1]) + BODY[1001:]


def fetch(transport, url, tmp_path, body=BODY, etag=None, **options):
    """Download and check everything that must hold of any success."""
    dest = tmp_path / "object"
    got = transport.download(url, dest, size=len(body), etag=md5(body) if etag is None else etag, **options)
    assert dest.read_bytes() == body
    assert (got.path, got.size, got.md5) == (dest, len(body), md5(body))
    assert got.sha256 == hashlib.sha256(body).hexdigest()
    assert got.evidence[-1] == "size"
    return got


def fail(transport, url, tmp_path, reason, body=BODY, **options):
    """Download and check everything that must hold of any failure."""
    dest = tmp_path / "object"
    with pytest.raises(ItemError) as caught:
        transport.download(url, dest, size=len(body), **options)
    assert caught.value.reason == reason, caught.value
    assert not dest.exists()
    return caught.value


@pytest.mark.parametrize("body", [b"", b"x", BODY, LONG], ids=len)
def test_plain(server, transport, tmp_path, body):
    """An object of any size arrives whole in one request, with its hashes, private to the user."""
    got = fetch(transport, server.on("/o", serve(body)), tmp_path, body)
    assert (got.evidence, got.attempts, got.resumed) == (("md5", "size"), 1, 0)
    assert stat.S_IMODE(got.path.stat().st_mode) == 0o600
    assert server.asked("accept-encoding") == ["identity"]
    assert server.asked("user-agent")[0].startswith("medhaul/")
    assert server.asked("x-amz-checksum-mode") == ["ENABLED"]


def test_old_file_is_replaced(server, transport, tmp_path):
    """A longer file left over from before, readable to all, becomes the new one, private to the user."""
    (tmp_path / "object").write_bytes(LONG)
    (tmp_path / "object").chmod(0o644)
    got = fetch(transport, server.on("/o", serve(BODY)), tmp_path)
    assert stat.S_IMODE(got.path.stat().st_mode) == 0o600


def test_keep_alive(server, transport, tmp_path):
    """Twenty objects come over one connection."""
    url = server.on("/o", serve(BODY))
    for _ in range(20):
        fetch(transport, url, tmp_path)
    assert server.connections == 1


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_broken_body_is_resumed(server, transport, tmp_path, reset):
    """A body that breaks off is continued from the byte where it broke, under the condition that it is the same."""
    url = server.on("/o", part(LONG, 700_000, reset=reset), part(LONG, 100_000, reset=reset), serve(LONG))
    got = fetch(transport, url, tmp_path, LONG)
    assert (got.attempts, got.evidence) == (3, ("md5", "size"))
    if not reset:  # a reset may destroy bytes that were sent before it
        assert got.resumed == 2
        assert server.asked("range") == ["", "bytes=700000-", "bytes=800000-"]
        assert server.asked("if-match")[1:] == [f'"{md5(LONG)}"'] * 2


def test_without_resume(server, transport, tmp_path):
    """Where resuming is not wanted, a broken body is asked for again from its start."""
    url = server.on("/o", part(BODY, 50_000), serve(BODY))
    got = fetch(transport, url, tmp_path, resume=False)
    assert (got.attempts, got.resumed, server.asked("range")) == (2, 0, ["", ""])


def test_resume_without_listed_etag_uses_the_first_answers(server, transport, tmp_path):
    """Where the listing has no ETag, a resumed body must still be of the object that the first answer named."""
    url = server.on("/o", part(BODY, 50_000, "v1"), serve(BODY, "v1"))
    got = fetch(transport, url, tmp_path, etag="")
    assert (got.evidence, got.resumed, got.etag) == (("size",), 1, '"v1"')
    assert server.asked("if-range") == ["", '"v1"']


def test_a_listed_etag_may_be_the_condition_of_the_range_alone(server, transport, tmp_path):
    """With `if_range` a site that has another version sends that whole, in place of a refusal."""
    url = server.on("/o", part(BODY, 50_000), serve(BODY))
    assert fetch(transport, url, tmp_path, if_range=True).resumed == 1
    assert server.asked("if-range") == ["", f'"{md5(BODY)}"']
    assert server.asked("if-match") == ["", ""]


EARLY, LATE = "Sat, 03 Jan 2026 10:00:00 GMT", "Sat, 03 Jan 2026 10:00:30 GMT"
LATER = "Mon, 05 Jan 2026 10:00:00 GMT"
MIXING = {
    "nothing": ({}, {}),
    "weak": ({"ETag": 'W/"1"'}, {"ETag": 'W/"2"'}),
    "same weak": ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}),
    "weak and date": ({"ETag": 'W/"1"', "Last_Modified": EARLY, "Date": LATER}, {"ETag": 'W/"1"'}),
    "fresh date": ({"Last_Modified": EARLY, "Date": LATE}, {"Last_Modified": EARLY, "Date": LATE}),
    "date without a clock": ({"Last_Modified": EARLY}, {"Last_Modified": EARLY}),
    "no date": ({"Last_Modified": "yesterday", "Date": LATER}, {"Last_Modified": "yesterday", "Date": LATER}),
    "impossible date": ({"Last_Modified": "Sat, 99 Jan 99999 99:99:99 GMT", "Date": LATER}, {}),
    "no entity tag": ({"ETag": '"a b"'}, {"ETag": '"a b"'}),
}


@pytest.mark.parametrize(("first", "then"), MIXING.values(), ids=MIXING)
def test_without_a_strong_validator_nothing_is_joined(server, transport, tmp_path, first, then):
    """What names no version for sure is no condition: a broken body starts over, and is all of one version."""
    other = BODY[::-1]
    url = server.on("/o", part(BODY, 50_000, "", **first), serve(other, "", **then))
    got = fetch(transport, url, tmp_path, other, etag="")
    assert (got.attempts, got.resumed) == (2, 0)
    assert server.asked("range") == server.asked("if-range") == server.asked("if-match") == ["", ""]


WORDS = st.one_of(st.text(max_size=40), st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d GMT"))


@given(etag=st.one_of(st.just(""), WORDS), modified=st.one_of(st.just(EARLY), WORDS), date=st.just(LATER) | WORDS)
def test_no_header_breaks_the_condition(etag, modified, date):
    """Whatever a site says of its version, the condition is nothing, or a line that can be sent."""
    found = choose_condition(Validator(etag, modified, date))
    assert found.isascii()
    assert found.isprintable()
    assert found in {"", modified, etag, f'"{etag}"'}


def test_an_old_date_is_a_condition(server, transport, tmp_path):
    """Without any ETag, Last-Modified is If-Range's date, if the answer came long after it (RFC 9110 8.8.2.2)."""
    dates = {"Last_Modified": EARLY, "Date": LATER}
    url = server.on("/o", part(BODY, 50_000, "", **dates), serve(BODY, "", **dates))
    assert fetch(transport, url, tmp_path, etag="").resumed == 1
    assert server.asked("if-range") == ["", EARLY]
    other = BODY[::-1]
    url = server.on("/o", part(BODY, 50_000, "", **dates), serve(other, "", **(dates | {"Last_Modified": LATE})))
    assert fetch(transport, url, tmp_path, other, etag="").resumed == 0


def test_a_beginning_that_does_not_say_of_what_it_is(server, transport, tmp_path):
    """A listed ETag that is no hash of the whole does not vouch for bytes that came without one."""
    other, etag = BODY[::-1], "0" * 32 + "-1"
    url = server.on("/o", part(other, 50_000, ""), serve(BODY, etag))
    got = fetch(transport, url, tmp_path, etag=etag)
    assert (got.attempts, got.resumed) == (3, 0)


@pytest.mark.parametrize("etag", ["", "0" * 32 + "-1"], ids=["unlisted", "listed"])
def test_a_part_that_does_not_say_of_what_it_is(server, transport, tmp_path, etag):
    """A site that leaves the ETag out of a part's answer is not asked for parts again."""
    bare = serve(BODY[::-1], "")  # another version, for all that anybody can know
    step = part(BODY, 50_000, "0" * 32 + "-1")
    url = server.on("/o", step, bare, step, serve(BODY, "0" * 32 + "-1"))
    got = fetch(transport, url, tmp_path, etag=etag, if_range=True)
    assert got.resumed == 0
    assert [bool(value) for value in server.asked("range")] == [False, True, False, False]


def test_object_replaced_while_resuming_is_never_mixed(server, transport, tmp_path):
    """When another object of the same size takes its place in mid-download, the file is all of the new one."""
    other = BODY[::-1]
    url = server.on("/o", part(BODY, 50_000, "v1"), serve(other, "v2"))
    fetch(transport, url, tmp_path, other, etag="")
    assert [r.offset for r in server.requests] == [0, 50_000, 0]


@pytest.mark.parametrize("how", ["stall", "drip"])
def test_stall_and_drip_are_resumed(server, pool, events, tmp_path, how):
    """A server that sends nothing, or next to nothing, is given up after the stall time and asked for the rest."""
    policy = msgspec.structs.replace(QUICK, stall=0.6, min_rate=1000)
    transport = Transport(pool, policy, on_event=events.append)
    then = server.hang if how == "stall" else drip(server.closing, 0.02)
    body = BODY[:50_000] + b"x" * 150_000  # what the drip sends is right, only too slow
    got = fetch(transport, server.on("/o", part(body, 50_000, then=then), serve(body)), tmp_path, body)
    assert got.resumed >= 1
    reasons = [event["reason"] for event in events if event["event"] == "failure"]
    assert any(reason.startswith("StallError" if how == "stall" else "SlowError") for reason in reasons)


def test_no_answer_at_all(server, pool, tmp_path):
    """A server that accepts requests and never answers makes the item unavailable, to be tried again later."""
    transport = Transport(pool, msgspec.structs.replace(QUICK, stall=0.2, attempts=2))
    error = fail(transport, server.on("/o", server.hang), tmp_path, "unavailable")
    assert error.transient
    assert "no byte for 0.2 s" in str(error)


def test_flipped_bit(server, transport, tmp_path):
    """Bytes that do not have the MD5 of the listing are thrown away and asked for again, past caches."""
    got = fetch(transport, server.on("/o", serve(FLIPPED, md5(BODY)), serve(BODY)), tmp_path)
    assert (got.attempts, got.resumed) == (2, 0)
    assert server.asked("cache-control") == ["", "no-cache"]


def test_flipped_bit_for_ever(server, transport, tmp_path):
    """Bytes that never have the MD5 of the listing fail the item after as many requests as the policy has attempts."""
    error = fail(transport, server.on("/o", serve(FLIPPED, md5(BODY))), tmp_path, "checksum", etag=md5(BODY))
    assert error.transient
    assert len(server.requests) == QUICK.attempts


def test_wrong_etag(server, transport, tmp_path):
    """An object whose own ETag is not the listed one is asked for once more, and then not taken whatever its bytes."""
    fail(transport, server.on("/o", serve(BODY, "0" * 32)), tmp_path, "checksum", etag=md5(BODY))
    assert len(server.requests) == 2
    url = server.on("/o", serve(BODY, "0" * 32), serve(BODY))
    assert fetch(transport, url, tmp_path).attempts == 2


def test_sha256_header(server, transport, tmp_path):
    """A SHA-256 that the site states for the whole object is the best evidence; a wrong one is never passed over."""
    good = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    bad = base64.b64encode(hashlib.sha256(FLIPPED).digest()).decode()
    url = server.on("/o", serve(BODY, x_amz_checksum_sha256=bad), serve(BODY, x_amz_checksum_sha256=good))
    got = fetch(transport, url, tmp_path)
    assert (got.evidence, got.attempts) == (("sha256", "md5", "size"), 2)
    url = server.on("/o", serve(BODY, x_amz_checksum_sha256=bad + "-3"))
    assert fetch(transport, url, tmp_path).evidence == ("md5", "size")


def test_sha256_header_survives_a_resume(server, transport, tmp_path):
    """The hash that the first answer stated counts for the body that a later one completed."""
    good = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    url = server.on("/o", part(BODY, 9, x_amz_checksum_sha256=good), serve(BODY, x_amz_checksum_sha256="AAAA"))
    assert fetch(transport, url, tmp_path).evidence == ("sha256", "md5", "size")


def test_goog_hash(server, transport, tmp_path):
    """The MD5 in x-goog-hash is evidence where the ETag is none, and a wrong one fails the body."""
    good = "crc32c=AAAAAA==,md5=" + base64.b64encode(hashlib.md5(BODY).digest()).decode()
    bad = "crc32c=AAAAAA==,md5=" + base64.b64encode(hashlib.md5(FLIPPED).digest()).decode()
    url = server.on("/o", serve(BODY, "", x_goog_hash=bad), serve(BODY, "", x_goog_hash=good))
    got = fetch(transport, url, tmp_path, etag="")
    assert (got.evidence, got.attempts) == (("md5", "size"), 2)


def test_multipart_etag(server, transport, tmp_path):
    """A multipart ETag of a common part size is evidence; one of an unknown size is neither evidence nor failure."""
    body = random.Random(3).randbytes(12_000_000)
    part_size = 5 << 20
    digests = [hashlib.md5(body[start : start + part_size]).digest() for start in range(0, len(body), part_size)]
    etag = f"{md5(b''.join(digests))}-{len(digests)}"
    url = server.on("/o", part(body, 7_000_000, etag), serve(body, etag))
    got = fetch(transport, url, tmp_path, body, etag=f'"{etag}"')
    assert (got.evidence, got.resumed) == (("etag-multipart", "size"), 1)
    other = f"{'0' * 32}-{len(digests)}"
    assert fetch(transport, server.on("/o", serve(body, other)), tmp_path, body, etag=other).evidence == ("size",)


@pytest.mark.parametrize(("status", "reason"), [(404, "withdrawn"), (410, "withdrawn"), (403, "forbidden")])
def test_final_statuses(server, transport, tmp_path, status, reason):
    """What is gone or refused is reported at the first answer, and is not worth another try."""
    document = b"<Error><Code>AccessDenied</Code></Error>"
    error = fail(transport, server.on("/o", answer(status, document)), tmp_path, reason)
    assert not error.transient
    assert len(server.requests) == 1
    assert f"{status} Some Reason (AccessDenied)" in str(error)


def test_slow_down(server, pool, events, tmp_path):
    """503 is waited for: at least as long as Retry-After says, over the same connection."""
    transport = Transport(pool, msgspec.structs.replace(QUICK, cap=2.0), on_event=events.append)
    url = server.on("/o", answer(503, b"<Code>SlowDown</Code>", Retry_After=1), serve(BODY))
    got = fetch(transport, url, tmp_path)
    assert (got.attempts, server.connections) == (2, 1)
    retry = next(event for event in events if event["event"] == "retry")
    assert retry["verdict"] == "slow-down"
    assert 1 <= retry["delay"] < 1.1
    assert got.seconds >= 1


@pytest.mark.parametrize(("deadline", "cap"), [(60, 7200), (86400, 60)])
def test_retry_after_beyond_reason(server, pool, tmp_path, deadline, cap):
    """A site that asks to wait longer than there is time, or than the policy ever waits, is given up at once."""
    transport = Transport(pool, msgspec.structs.replace(QUICK, deadline=deadline, cap=cap))
    error = fail(transport, server.on("/o", answer(503, Retry_After=3600)), tmp_path, "unavailable")
    assert error.transient
    assert "asks to wait 3600 s" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("steps", [[answer(412)], [answer(412), answer(412)]], ids=["once", "twice"])
def test_412_while_resuming(server, transport, tmp_path, steps):
    """An object that changed in mid-download is started over once; the second time the item fails."""
    url = server.on("/o", part(BODY, 50_000), *steps, serve(BODY))
    if len(steps) == 1:
        assert fetch(transport, url, tmp_path).attempts == 3
        assert [r.offset for r in server.requests] == [0, 50_000, 0]
    else:
        fail(transport, url, tmp_path, "checksum", etag=md5(BODY))


def test_200_to_a_range_request(server, transport, tmp_path):
    """A server that ignores Range and sends everything again is taken at its word, in the same request."""
    got = fetch(transport, server.on("/o", part(BODY, 50_000), serve(BODY, ranges=False)), tmp_path)
    assert (got.attempts, got.resumed) == (2, 0)


def test_416(server, transport, tmp_path):
    """A refused range makes the body start over."""
    got = fetch(transport, server.on("/o", part(BODY, 50_000), answer(416), serve(BODY)), tmp_path)
    assert (got.attempts, got.resumed) == (3, 0)


@pytest.mark.parametrize(
    "value",
    [
        "bytes 0-199999/200000",
        "bytes 40000-189999/200000",
        "bytes 50000-199999/300000",
        "bytes 50000-999999/200000",
        "items 1-2/3",
        "",
    ],
)
def test_wrong_content_range(server, transport, tmp_path, value):
    """A 206 that is not exactly the part that was asked for is never joined to what is there."""
    wrong = answer(206, BODY[50_000:], Content_Range=value)
    got = fetch(transport, server.on("/o", part(BODY, 50_000), wrong, serve(BODY)), tmp_path)
    assert (got.attempts, got.resumed) == (3, 0)


def test_short_range_is_continued(server, transport, tmp_path):
    """A 206 with less than was asked for is kept and continued."""
    some = answer(206, BODY[50_000:60_000], Content_Range="bytes 50000-59999/200000")
    got = fetch(transport, server.on("/o", part(BODY, 50_000), some, serve(BODY)), tmp_path)
    assert (got.attempts, got.resumed) == (3, 2)


def test_206_without_range(server, transport, tmp_path):
    """A 206 that nobody asked for is not taken for the object."""
    wrong = answer(206, BODY, Content_Range="bytes 0-199999/200000")
    assert fetch(transport, server.on("/o", wrong, serve(BODY)), tmp_path).attempts == 2


def test_web_page(server, transport, tmp_path):
    """A web page with status 200, as captive portals send it, is never an object, even of the right length."""
    page = answer(200, BODY, Content_Type="text/html; charset=utf-8")
    assert fetch(transport, server.on("/o", page, serve(BODY)), tmp_path).attempts == 2
    error = fail(transport, server.on("/o", page), tmp_path, "size")
    assert "web page" in str(error)


@pytest.mark.parametrize("change", [-1, 1])
def test_other_length_than_listed(server, transport, tmp_path, change):
    """An object longer or shorter than listed fails as `size`, after retries."""
    body = BODY + b"x" if change > 0 else BODY[:-1]
    fail(transport, server.on("/o", serve(body, "")), tmp_path, "size")
    assert len(server.requests) == QUICK.attempts


def test_chunked(server, transport, tmp_path):
    """A body in chunks without a stated length arrives whole, and its connection can be used again."""
    url = server.on("/o", chunked(LONG))
    fetch(transport, url, tmp_path, LONG)
    fetch(transport, url, tmp_path, LONG)
    assert server.connections == 1


def test_chunked_too_long_or_unfinished(server, transport, tmp_path):
    """A chunked body longer than listed fails as `size`; one without its end is completed or asked for again."""
    fail(transport, server.on("/o", chunked(BODY + b"x")), tmp_path, "size")
    got = fetch(transport, server.on("/o", chunked(BODY[:50_000], whole=False), serve(BODY)), tmp_path)
    assert (got.attempts, got.resumed) == (2, 1)
    got = fetch(transport, server.on("/o", chunked(BODY, whole=False), serve(BODY)), tmp_path)
    assert (got.attempts, got.resumed) == (2, 0)


def test_nothing_of_a_longer_body_is_left(server, transport, tmp_path):
    """After a body that was too long, the file is as long as the right one."""
    assert fetch(transport, server.on("/o", chunked(BODY + b"more"), serve(BODY)), tmp_path).attempts == 2


def test_body_until_close(server, transport, tmp_path):
    """A body that only the end of the connection ends is checked against the listing, and resumed when short."""
    whole, short = (raw(b"HTTP/1.0 200 OK\r\n\r\n" + data) for data in (BODY, BODY[:60_000]))
    assert fetch(transport, server.on("/o", whole), tmp_path).attempts == 1
    assert fetch(transport, server.on("/o", short, serve(BODY)), tmp_path).resumed == 1


def test_redirect(server, transport, tmp_path):
    """A redirect is not followed, and the message says where it led without the query."""
    url = server.on("/o", answer(307, Location="https://u:p@elsewhere.example/o?token=secret"))
    error = fail(transport, url, tmp_path, "unavailable")
    assert "elsewhere.example" in str(error)
    assert "secret" not in str(error)
    assert "u:p" not in str(error)
    assert len(server.requests) == 1


def test_progress_renews_attempts(server, transport, tmp_path):
    """A body that breaks again and again but comes on each time arrives, though the policy has fewer attempts."""
    got = fetch(transport, server.on("/o", *[part(BODY, 20_000) for _ in range(9)], serve(BODY)), tmp_path)
    assert got.attempts == 10
    error = fail(transport, server.on("/o", part(BODY, 10)), tmp_path, "unavailable")
    assert "requests: " in str(error)
    assert len(server.requests) == QUICK.attempts


def test_deadline(server, pool, tmp_path):
    """The deadline ends a download that goes on slowly but surely."""
    transport = Transport(pool, msgspec.structs.replace(QUICK, deadline=0.5))
    error = fail(transport, server.on("/o", part(BODY, 10, then=drip(server.closing, 0.01))), tmp_path, "unavailable")
    assert error.transient


def test_events_have_no_query(server, transport, events, tmp_path):
    """Events name the URL without its query, which may hold a signature, and count requests and bytes."""
    url = server.on("/o", part(BODY, 50_000), serve(BODY))
    fetch(transport, url + "?X-Amz-Signature=secret", tmp_path)
    assert [event["event"] for event in events] == ["failure", "retry", "response"]
    assert all(event["url"] == url for event in events)
    assert "secret" not in repr(events)
    assert events[-1]["status"] == 206
    assert events[-1]["bytes"] > 150_000


def test_unwritable_destination(server, transport, tmp_path):
    """A folder that is not there is a fault of the storage, not of the item."""
    with pytest.raises(StorageError, match="No such file"):
        transport.download(server.on("/o", serve(BODY)), tmp_path / "no" / "object", size=len(BODY))
    assert not server.requests


def test_full_disk(server, transport, tmp_path, monkeypatch):
    """A full disk in mid-body is a fault of the storage, is not retried, and leaves no file."""

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.transport.download.os.write", full)
    with pytest.raises(StorageError, match="No space left"):
        transport.download(server.on("/o", serve(BODY)), tmp_path / "object", size=len(BODY))
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def world():
    """Yield a server and a transport that last for all examples."""
    server = Server()
    with ConnectionPool(4, environ={}) as pool:
        yield server, Transport(pool, QUICK)
    server.close()


# No truncation before 5 % of the body: without progress the attempts would rightly run out.
cuts = st.tuples(st.integers(10_000, 200_000), st.booleans(), st.booleans())


@settings(max_examples=60, deadline=None)
@given(plan=st.lists(cuts, max_size=3), listed=st.booleans())
def test_any_sequence_of_truncations(world, tmp_path_factory, plan, listed):
    """Wherever and however bodies break, whether or not ranges are honoured, the bytes and hashes are right."""
    server, transport = world
    steps = [part(BODY, count, reset=reset, ranges=ranges) for count, reset, ranges in plan]
    url = server.on("/o", *steps, serve(BODY))
    fetch(transport, url, tmp_path_factory.mktemp("any"), etag=None if listed else "")


def test_a_listed_etag_that_cannot_be_sent(server, transport, tmp_path):
    """It is no condition: the body starts over, and no request is broken by it."""
    url = server.on("/o", part(BODY, 50_000, ""), serve(BODY, ""))
    assert fetch(transport, url, tmp_path, etag="x\r\ny\xe9").resumed == 0
    assert server.asked("range") == ["", ""]
