"""Files of a length that nobody states: whole and accepted, or asked for again from the start, or an error."""

from __future__ import annotations

import random
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import InterruptedRunError, ItemError, StorageError
from pipeline.transport.client import BUFFER, DOUBTS, Transport
from tests.transport.conftest import QUICK
from tests.transport.server import answer, chunked, drip, head, part, raw

BODY = random.Random(1).randbytes(200_000)
LONG = random.Random(2).randbytes(2 * BUFFER + 12_345)


def fetch(transport, url, tmp_path, body=BODY, **options):
    """Stream and check what must hold of any success."""
    dest = tmp_path / "file"
    options.setdefault("limit", 10 << 20)
    options.setdefault("accept", Path.read_bytes)
    got = transport.stream(url, dest, **options)
    assert dest.read_bytes() == body
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    return got


def fail(transport, url, tmp_path, reason, **options):
    """Stream and check what must hold of any failure."""
    options.setdefault("limit", 10 << 20)
    options.setdefault("accept", Path.read_bytes)
    with pytest.raises(ItemError) as caught:
        transport.stream(url, tmp_path / "file", **options)
    assert caught.value.reason == reason, caught.value
    assert list(tmp_path.iterdir()) == []
    return caught.value


def refuse(*, transient: bool = True):
    """An `accept` that takes nothing, and counts."""
    seen: list[int] = []

    def accept(path: Path) -> None:
        seen.append(path.stat().st_size)
        raise ItemError("count", "two are missing", transient=transient)

    return seen, accept


@pytest.mark.parametrize("body", [b"", b"x", BODY, LONG], ids=len)
def test_a_chunked_body_arrives_over_one_connection(server, transport, tmp_path, body):
    """Whatever its length, and what accepts it gives the result."""
    url = server.on("/o", chunked(body))
    for _ in range(3):
        assert fetch(transport, url, tmp_path, body) == body
    assert server.connections == 1
    assert server.asked("range") == [""] * 3


def test_bodies_of_stated_length_and_until_close_arrive_too(server, transport, tmp_path):
    """A proxy may put chunks together, or speak HTTP/1.0."""
    fetch(transport, server.on("/o", answer(200, BODY)), tmp_path)
    fetch(transport, server.on("/o", raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)), tmp_path)


def test_heads_are_told(server, transport, tmp_path):
    """Of each answer whose body is written, before the file is looked at; not of those that are no file."""
    told: list[str] = []
    taken = []

    def accept(path: Path) -> int:
        taken.append(told[-1])
        if len(taken) == 1:
            raise ItemError("checksum", "not that one", transient=True)
        return len(told)

    steps = [part(BODY, 9, "a"), answer(200, b"x", ETag='"b"', Content_Type="text/html")]
    url = server.on("/o", *steps, answer(200, LONG, ETag='"c"'), chunked(BODY, ETag='"d"'))
    assert fetch(transport, url, tmp_path, accept=accept, on_head=lambda head: told.append(head.headers["etag"])) == 3
    assert (told, taken) == (['"a"', '"c"', '"d"'], ['"c"', '"d"'])


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_body_is_asked_for_from_its_start(server, transport, tmp_path, reset):
    """Nothing continues it, and nothing of the first try is left in the file."""
    broken = part(LONG, 700_000, "", reset=reset)
    url = server.on("/o", chunked(LONG, whole=False), broken, chunked(BODY))
    fetch(transport, url, tmp_path)
    assert server.asked("range") == ["", "", ""]


def test_bodies_that_always_break_end_however_far_they_come(server, transport, tmp_path):
    """What came before a break is no progress: it is lost."""
    steps = [chunked(LONG[: 100_000 * n], whole=False) for n in range(1, 11)]
    error = fail(transport, server.on("/o", *steps), tmp_path, "unavailable")
    assert error.transient
    assert len(server.requests) == QUICK.attempts


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_errors_of_the_server_are_waited_for(server, transport, tmp_path, status):
    """The next request may get it."""
    fetch(transport, server.on("/o", answer(status), answer(status), chunked(BODY)), tmp_path)


def test_retry_after_is_honoured(server, pool, events, tmp_path):
    """429 is waited for as long as it says."""
    transport = Transport(pool, msgspec.structs.replace(QUICK, cap=2.0), on_event=events.append)
    fetch(transport, server.on("/o", answer(429, Retry_After=1), chunked(BODY)), tmp_path)
    (retry,) = [event for event in events if event["event"] == "retry"]
    assert retry["delay"] >= 1


def test_stall_and_drip_are_given_up(server, pool, tmp_path):
    """A server that stops within a chunk, or sends next to nothing, is asked again."""
    transport = Transport(pool, msgspec.structs.replace(QUICK, stall=0.4, min_rate=1000))
    start = head(200, {"Transfer-Encoding": "chunked"}) + b"ffff\r\n" + BODY[:9000]

    def then(what):
        def step(request, sock):
            sock.sendall(start)
            what(request, sock)
            return False

        return step

    fetch(transport, server.on("/o", then(server.hang), chunked(BODY)), tmp_path)
    fetch(transport, server.on("/o", then(drip(server.closing, 0.02)), chunked(BODY)), tmp_path)


def test_the_deadline_ends_it(server, transport, tmp_path):
    """A body without end ends in time, and nothing is left of it."""
    step = part(BODY, 10, "", then=drip(server.closing, 0.01))
    error = fail(transport, server.on("/o", step), tmp_path, "unavailable", deadline_at=time.monotonic() + 0.4)
    assert error.transient


def test_a_body_that_flows_may_go_on_when_no_other_is_asked_for(server, transport, tmp_path):
    """`ask_until` ends what has not begun to answer, and lets a slow body go on; a broken one is not asked again."""
    slow = part(BODY, 10, "", then=drip(server.closing, 0.01))
    url = server.on("/o", slow, chunked(BODY))
    now = time.monotonic()
    fail(transport, url, tmp_path, "unavailable", ask_until=now + 0.1, deadline_at=now + 0.6)
    assert time.monotonic() - now >= 0.6
    assert len(server.requests) == 1
    url = server.on("/p", server.hang)
    now = time.monotonic()
    fail(transport, url, tmp_path, "unavailable", ask_until=now + 0.2, deadline_at=now + 60)
    assert time.monotonic() - now < 30


def test_a_body_that_is_too_long_is_not_fetched_for_ever(server, transport, tmp_path):
    """It counts as one that was not accepted: a whole body is dear."""
    fail(transport, server.on("/o", chunked(LONG)), tmp_path, "size", limit=len(LONG) - 1, doubts=2)
    assert len(server.requests) == 2


def test_more_than_the_limit_is_never_written(server, transport, tmp_path):
    """A body that goes on and on is broken off at the limit, whether or not it says how long it is."""
    for step in (chunked(LONG), answer(200, LONG), raw(b"HTTP/1.0 200 OK\r\n\r\n" + LONG)):
        fail(transport, server.on("/o", step), tmp_path, "size", limit=len(LONG) - 1)
        fetch(transport, server.on("/o", step), tmp_path, LONG, limit=len(LONG), accept=lambda p: p.stat().st_size)
        (tmp_path / "file").unlink()


@pytest.mark.parametrize(
    "step",
    [
        answer(200, b"<html>", Content_Type="text/html; charset=utf-8"),
        answer(200, b"x", Content_Encoding="gzip"),
        answer(206, BODY, Content_Range="bytes 0-199999/200000"),
        raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_successes_that_are_none(server, transport, tmp_path, step):
    """Web pages, parts, encoded bodies and nothing at all never become a file."""
    fetch(transport, server.on("/o", step, chunked(BODY)), tmp_path)
    assert fail(transport, server.on("/o", step), tmp_path, "unavailable").transient


def test_what_is_not_accepted_is_asked_for_again_past_caches_but_seldom(server, transport, tmp_path):
    """Whole bodies are dear: so many doubts, then the reason stands."""
    seen, accept = refuse()
    error = fail(transport, server.on("/o", chunked(BODY)), tmp_path, "count", accept=accept)
    assert (seen, len(server.requests), error.transient) == ([len(BODY)] * DOUBTS, DOUBTS, True)
    assert server.asked("cache-control") == ["", "no-cache", "no-cache"]
    assert "two are missing" in str(error)
    answers = iter([ItemError("count", "short", transient=True), None])

    def second(path: Path) -> int:
        if (error := next(answers)) is not None:
            raise error
        return path.stat().st_size

    url = server.on("/o", chunked(LONG), chunked(BODY))
    assert fetch(transport, url, tmp_path, accept=second) == len(BODY)


def test_what_is_refused_for_good_is_not_asked_for_again(server, transport, tmp_path):
    """An `ItemError` that is not transient is the end at once."""
    _, accept = refuse(transient=False)
    assert not fail(transport, server.on("/o", chunked(BODY)), tmp_path, "count", accept=accept).transient
    assert len(server.requests) == 1


def test_the_source_says_what_an_error_status_means(server, transport, tmp_path):
    """With the server's own words, and the standing meaning where it says nothing."""
    told: list[tuple[int, bytes]] = []

    def explain(status: int, document: bytes) -> ItemError | None:
        told.append((status, document))
        return ItemError("withdrawn", f"not public: {document.decode()}") if status == 400 else None

    url = server.on("/o", answer(400, b"no such series"))
    error = fail(transport, url, tmp_path, "withdrawn", explain=explain)
    assert not error.transient
    assert "no such series" in str(error)
    assert len(server.requests) == 1
    fail(transport, server.on("/o", answer(403, b"<Code>No</Code>")), tmp_path, "forbidden", explain=explain)
    assert told == [(400, b"no such series"), (403, b"<Code>No</Code>")]


def test_headers_are_sent_and_not_shown(server, transport, events, tmp_path):
    """A bearer token is in the request, and neither in events nor in errors; the query is in neither, too."""
    headers = {"Authorization": "Bearer secret"}
    url = server.on("/o", answer(500), chunked(BODY)) + "?uid=hidden"
    fetch(transport, url, tmp_path, headers=headers)
    assert server.asked("authorization") == ["Bearer secret"] * 2
    (tmp_path / "file").unlink()
    url = server.on("/p", answer(403)) + "?uid=hidden"
    error = fail(transport, url, tmp_path, "forbidden", headers=headers)
    assert not {"secret", "hidden"} & set((repr(events) + str(error)).replace("=", " ").split())


def test_a_stop_is_noticed_at_once(server, pool, tmp_path):
    """In mid-body, and while it is being accepted; no file is left."""
    stop = threading.Event()
    transport = Transport(pool, QUICK, stop=stop)

    def then(request, sock):
        stop.set()
        server.hang()

    url = server.on("/o", part(BODY, 1000, "", then=then))
    began = time.monotonic()
    with pytest.raises(InterruptedRunError):
        transport.stream(url, tmp_path / "file", Path.read_bytes, limit=1 << 20)
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


def test_trouble_with_the_file_is_storage_s(server, transport, tmp_path, monkeypatch):
    """A full scratch is neither retried nor the item's fault, and an error of `accept` goes through as it is."""

    def odd(_: Path) -> None:
        raise OSError("odd")

    with pytest.raises(OSError, match="odd"):
        transport.stream(server.on("/o", chunked(BODY)), tmp_path / "file", odd, limit=1 << 20)
    assert list(tmp_path.iterdir()) == []

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.transport.download.os.write", full)
    with pytest.raises(StorageError, match="No space left"):
        transport.stream(server.on("/o", chunked(BODY)), tmp_path / "file", Path.read_bytes, limit=1 << 20)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []
