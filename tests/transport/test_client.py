"""Small bodies, connections, proxies, TLS and stopping, against a real server."""

from __future__ import annotations

import random
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from pipeline.errors import ConfigError, InterruptedRunError, ItemError
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Runtime
from tests.transport.conftest import QUICK
from tests.transport.server import Proxy, Server, answer, chunked, md5, part, raw, serve

BODY = random.Random(1).randbytes(200_000)
PATIENT = msgspec.structs.replace(QUICK, stall=60.0)


def fails(transport, url, reason, **options):
    """Fetch, which must fail for that reason, and return the error."""
    with pytest.raises(ItemError) as caught:
        transport.fetch_bytes(url, **options)
    assert caught.value.reason == reason, caught.value
    return caught.value


@pytest.mark.parametrize("step", [serve(BODY), chunked(BODY), raw(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)])
def test_fetch(server, transport, step):
    """A small answer comes whole, however its end is marked, with its headers in lower case."""
    got = transport.fetch_bytes(server.on("/l", step) + "?list-type=2&prefix=a%2F", headers={"X-Other": "1"})
    assert (got.status, got.body) == (200, BODY)
    assert server.requests[0].target == "/l?list-type=2&prefix=a%2F"
    assert server.asked("x-other") == ["1"]
    assert all(name == name.lower() for name in got.headers)


@pytest.mark.parametrize(
    "bad", [part(BODY, 100), chunked(BODY, whole=False), answer(500), raw(b""), raw(b"SSH-2.0\r\n\r\n")]
)
def test_fetch_retries(server, transport, bad):
    """A short body, a server error, an empty or foreign answer is asked for again, never returned."""
    url = server.on("/l", bad, bad, serve(BODY))
    assert transport.fetch_bytes(url).body == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("step", "reason", "transient", "requests"),
    [
        (answer(404), "withdrawn", False, 1),
        (answer(401), "forbidden", False, 1),
        (answer(403), "forbidden", False, 1),
        (answer(400), "unavailable", False, 1),
        (answer(302, Location="/x"), "unavailable", False, 1),
        (answer(412), "checksum", True, 1),
        (answer(500), "unavailable", True, QUICK.attempts),
        (answer(503), "unavailable", True, QUICK.attempts),
        (answer(200, b"x", Content_Encoding="gzip"), "unavailable", True, QUICK.attempts),
        (part(BODY, 100), "unavailable", True, QUICK.attempts),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000), "unavailable", True, QUICK.attempts),
    ],
)
def test_fetch_failures(server, transport, step, reason, transient, requests):
    """Every failure has its reason, says whether later may help, and took as many requests as that deserves."""
    error = fails(transport, server.on("/l", step), reason)
    assert error.transient == transient
    assert len(server.requests) == requests


@pytest.mark.parametrize("step", [serve(BODY), chunked(BODY), raw(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)])
def test_fetch_limit(server, transport, step):
    """An answer of exactly the limit is returned, a longer one refused at once."""
    url = server.on("/l", step)
    assert transport.fetch_bytes(url, limit=len(BODY)).body == BODY
    fails(transport, url, "size", limit=len(BODY) - 1)
    assert len(server.requests) == 2


@pytest.mark.parametrize("url", ["ftp://h/x", "http:///x", "x", "http://u:p@h/x", "http://[::1/x", "http://h:x/"])
def test_impossible_urls(transport, url):
    """What is no http URL, or holds credentials, fails without a request."""
    assert not fails(transport, url, "unavailable").transient


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: 1", "/\u00e9", "/a\x00"])
def test_hostile_paths(server, transport, path):
    """A path that would break out of the request line, or is not encoded, is not sent."""
    fails(transport, server.on("/o", serve(BODY)) + path, "unavailable")
    assert all("x" not in request.headers for request in server.requests)


def test_nobody_listens(transport):
    """A port where nobody listens makes the item unavailable for now."""
    server = Server()
    server.close()
    assert fails(transport, server.base + "/l", "unavailable").transient


def test_error_page_keeps_the_connection(server, transport):
    """Answers that are no success do not cost a connection each."""
    fails(transport, server.on("/l", answer(500, b"x" * 1000)), "unavailable")
    assert server.connections == 1


def close_after(step):
    """Answer as `step` does, promise to stay, and close."""

    def then(request, sock):
        step(request, sock)
        return False

    return then


def test_stale_connection(server, transport, pool, events, monkeypatch):
    """A kept-alive connection that the server closed is replaced without counting as an attempt, even if unnoticed."""
    single = Transport(pool, msgspec.structs.replace(QUICK, attempts=1), on_event=events.append)
    url = server.on("/l", close_after(serve(BODY)))
    for _ in range(3):
        assert single.fetch_bytes(url).body == BODY
    assert (server.connections, len(server.requests)) == (3, 3)
    # The end of the connection may arrive only after the request has gone out: as if it could not be seen before.
    monkeypatch.setattr("pipeline.transport.pool._readable", lambda _: False)
    url = server.on("/l", serve(BODY), raw(b""), serve(BODY))
    assert single.fetch_bytes(url).body == BODY
    assert single.fetch_bytes(url).body == BODY
    assert [event["stale"] for event in events][-1]
    assert single.fetch_bytes(server.on("/l", serve(BODY))).body == BODY


def test_stale_is_replaced_once(server, pool, monkeypatch):
    """A server that closes the replacement as well has failed an attempt."""
    monkeypatch.setattr("pipeline.transport.pool._readable", lambda _: False)
    single = Transport(pool, msgspec.structs.replace(QUICK, attempts=1))
    url = server.on("/l", serve(BODY), raw(b""))
    single.fetch_bytes(url)
    fails(single, url, "unavailable")
    assert len(server.requests) == 3


def test_old_idle_connection_is_not_used(server):
    """A connection that was idle for longer than `idle_seconds` is replaced before it can fail."""
    with ConnectionPool(2, environ={}, idle_seconds=0.0) as pool:
        transport = Transport(pool, QUICK)
        url = server.on("/l", serve(BODY))
        transport.fetch_bytes(url)
        transport.fetch_bytes(url)
        assert (server.connections, pool.open_connections) == (2, 1)


def test_unasked_bytes_end_a_connection(server, transport):
    """Bytes after the end of a body are never read as the next answer."""
    double = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"

    def step(_, sock):
        sock.sendall(double + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
        return True

    url = server.on("/l", step)
    for _ in range(3):
        assert transport.fetch_bytes(url).body == b"good"
    assert server.connections == 3


def test_bytes_that_come_late_are_no_answer(server, transport):
    """Bytes that arrive on an idle connection are never read as the answer to the next request."""
    sent = threading.Event()

    def step(request, sock):
        answer(200, b"good")(request, sock)
        if request.connection == 1:
            time.sleep(0.05)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
        sent.set()
        return True

    url = server.on("/l", step)
    assert transport.fetch_bytes(url).body == b"good"
    assert sent.wait(10)
    assert transport.fetch_bytes(url).body == b"good"


def test_connection_cap(server, tmp_path):
    """Twelve threads with a budget of three never have more than three requests or connections at once."""

    def slow(request, sock):
        time.sleep(0.01)
        return serve(BODY)(request, sock)

    url = server.on("/o", slow)
    with ConnectionPool(3, environ={}) as pool, ThreadPoolExecutor(12) as threads:
        transport = Transport(pool, PATIENT)

        def one(number):
            got = transport.download(url, tmp_path / str(number), size=len(BODY), etag=md5(BODY))
            return got.md5, pool.open_connections

        done = list(threads.map(one, range(60)))
        assert all(digest == md5(BODY) for digest, _ in done)
        assert max(count for _, count in done) <= 3
    assert server.gauge.peak <= 3
    assert server.connections <= 3


def test_cap_holds_over_sites(server, transport):
    """An idle connection to one site makes room for a request to another."""
    other = Server()
    with ConnectionPool(1, environ={}) as pool:
        transport = Transport(pool, QUICK)
        urls = [server.on("/l", serve(b"a")), other.on("/l", serve(b"b"))]
        assert [transport.fetch_bytes(urls[i % 2]).body for i in range(4)] == [b"a", b"b", b"a", b"b"]
        assert pool.open_connections == 1
    assert (server.connections, other.connections) == (2, 2)
    other.close()


def test_failures_give_their_place_back(server, transport, pool):
    """After failures of every kind nothing of the budget is missing."""
    for step in (raw(b""), part(BODY, 5), answer(500), raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")):
        fails(transport, server.on("/l", step), "unavailable")
    fails(transport, "http://127.0.0.1:1/l", "unavailable")
    fails(transport, server.base + "/a b", "unavailable")
    assert pool.open_connections <= 1
    pool.close()
    assert pool.open_connections == 0


def raises_soon(stop, call):
    """Call with `stop` being set a little later; it must end long before any stall, wait or deadline would."""
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(InterruptedRunError):
        call()
    timer.join()
    assert time.monotonic() - begun < 20


def test_stop_during_body(server, pool, stop, tmp_path):
    """A stop is obeyed while the server is silent in mid-body, and leaves no file."""
    transport = Transport(pool, PATIENT, stop=stop)
    url = server.on("/o", part(BODY, 100, then=server.hang))
    raises_soon(stop, lambda: transport.download(url, tmp_path / "o", size=len(BODY)))
    assert list(tmp_path.iterdir()) == []
    assert pool.open_connections == 0


def test_stop_before_answer(server, pool, stop):
    """A stop is obeyed while no answer comes."""
    transport = Transport(pool, PATIENT, stop=stop)
    raises_soon(stop, lambda: transport.fetch_bytes(server.on("/l", server.hang)))


def test_stop_during_back_off(server, pool, stop):
    """A stop is obeyed while waiting before the next try."""
    policy = msgspec.structs.replace(PATIENT, slow_base=30.0, cap=30.0)
    transport = Transport(pool, policy, Runtime(random=lambda: 1.0), stop=stop)
    raises_soon(stop, lambda: transport.fetch_bytes(server.on("/l", answer(503))))


def test_stop_while_waiting_for_a_connection(server, stop):
    """A stop is obeyed by threads that wait for the budget, too."""
    with ConnectionPool(1, environ={}) as pool, ThreadPoolExecutor(2) as threads:
        transport = Transport(pool, PATIENT, stop=stop)
        url = server.on("/l", server.hang)
        waiting = [threads.submit(transport.fetch_bytes, url) for _ in range(2)]
        raises_soon(stop, waiting[0].result)
        with pytest.raises(InterruptedRunError):
            waiting[1].result()


def test_http_proxy(server, events):
    """A plain request goes through the proxy in absolute form, with the credentials for the proxy only."""
    proxy = Proxy()
    environ = {"HTTP_PROXY": f"http://user:p%40ss@127.0.0.1:{proxy.port}"}
    with ConnectionPool(2, environ=environ) as pool:
        transport = Transport(pool, QUICK, on_event=events.append)
        url = server.on("/l", serve(BODY))
        assert transport.fetch_bytes(url + "?a=b").body == BODY
    assert proxy.seen[0].target == url + "?a=b"
    assert proxy.seen[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"  # user:p@ss
    assert server.asked("proxy-authorization") == [""]
    assert "dXNl" not in repr(events)
    proxy.close()


def test_no_proxy(server):
    """A host in NO_PROXY is asked directly."""
    environ = {"http_proxy": "http://127.0.0.1:1", "NO_PROXY": "example.org,127.0.0.1"}
    with ConnectionPool(2, environ=environ) as pool:
        assert Transport(pool, QUICK).fetch_bytes(server.on("/l", serve(BODY))).body == BODY


def trusting(certificate):
    """Return a context that trusts the test's certificate only."""
    return ssl.create_default_context(cafile=str(certificate))


def test_tls(tls_server, certificate, tmp_path):
    """Objects come over TLS, kept alive, resumed, and with a stop and a stall noticed as over plain TCP."""
    with ConnectionPool(2, environ={}, context=trusting(certificate)) as pool:
        transport = Transport(pool, msgspec.structs.replace(QUICK, stall=0.6))
        url = tls_server.on("/o", serve(BODY), part(BODY, 50_000, then=tls_server.hang), serve(BODY))
        for _ in range(2):
            got = transport.download(url, tmp_path / "o", size=len(BODY), etag=md5(BODY))
            assert (tmp_path / "o").read_bytes() == BODY
        assert got.resumed >= 1
        assert tls_server.connections >= 2


def test_tls_with_unknown_certificate(tls_server, pool):
    """A server that cannot prove who it is fails at once: asking again would not help."""
    transport = Transport(pool, QUICK)
    error = fails(transport, tls_server.on("/o", serve(BODY)), "unavailable")
    assert not error.transient
    assert tls_server.connections == 1


def test_https_proxy(tls_server, certificate):
    """A TLS request goes through a tunnel that is kept, and the proxy sees the host and the credentials only."""
    proxy = Proxy()
    environ = {"https_proxy": f"http://user:secret@127.0.0.1:{proxy.port}"}
    with ConnectionPool(2, environ=environ, context=trusting(certificate)) as pool:
        transport = Transport(pool, QUICK)
        url = tls_server.on("/l", serve(BODY))
        assert transport.fetch_bytes(url).body == BODY
        assert transport.fetch_bytes(url).body == BODY
    assert [(r.method, r.target) for r in proxy.seen] == [("CONNECT", f"127.0.0.1:{tls_server.port}")]
    assert proxy.seen[0].headers["proxy-authorization"].startswith("Basic ")
    assert tls_server.asked("proxy-authorization") == ["", ""]
    proxy.close()


@pytest.mark.parametrize(("status", "requests"), [(407, 1), (403, 1), (502, QUICK.attempts)])
def test_proxy_refuses(certificate, status, requests):
    """A proxy that wants other credentials is not asked again, one that is ill is; neither says the item is gone."""
    proxy = Proxy(refuse=status)
    environ = {"HTTPS_PROXY": f"http://user:secret@127.0.0.1:{proxy.port}"}
    with ConnectionPool(2, environ=environ, context=trusting(certificate)) as pool:
        error = fails(Transport(pool, QUICK), "https://127.0.0.1:1/l", "unavailable")
    assert str(status) in str(error)
    assert "secret" not in str(error)
    assert len(proxy.seen) == requests
    proxy.close()


def test_unusable_proxy():
    """A proxy of an unknown kind ends the command with its variable's name and without its value."""
    with ConnectionPool(2, environ={"https_proxy": "socks5://user:secret@h:1"}) as pool:
        with pytest.raises(ConfigError, match="https_proxy") as caught:
            Transport(pool, QUICK).fetch_bytes("https://127.0.0.1:1/l")
        assert "secret" not in str(caught.value) + caught.value.hint
        assert pool.open_connections == 0


def refuse_portal(response):
    """Read a number; what is none may pass, and `gone` may not."""
    if response.body == b"gone":
        raise ItemError("withdrawn", "says that it is gone")
    if not response.body.isdigit():
        raise ItemError("count", f"not a number: {response.body!r}", transient=True)
    return int(response.body)


def test_a_wrong_answer_is_asked_for_again(server, transport, events):
    """What the caller cannot read counts as a failed request: it is asked for again, past caches, at the same place."""
    url = server.on("/l", answer(200, b"<html>"), answer(200, b""), answer(200, b"17"))
    assert transport.fetch_parsed(url, refuse_portal) == 17
    assert server.asked("cache-control") == ["", "no-cache", "no-cache"]
    assert [event["event"] for event in events] == ["failure", "retry", "failure", "retry", "response"]
    assert server.connections == 1


def test_an_answer_that_stays_wrong_fails(server, transport):
    """The caller's reason is the one that the item fails with, after as many requests as the policy allows."""
    url = server.on("/l", answer(200, b"<html>"))
    with pytest.raises(ItemError, match=r"/l: not a number: b'<html>' \(requests: 4") as caught:
        transport.fetch_parsed(url, refuse_portal)
    assert (caught.value.reason, caught.value.transient) == ("count", True)
    assert len(server.requests) == 4


def test_an_answer_that_is_final_is_not_asked_for_again(server, transport):
    """A permanent error of the caller ends the trial at once."""
    with pytest.raises(ItemError, match="says that it is gone") as caught:
        transport.fetch_parsed(server.on("/l", answer(200, b"gone")), refuse_portal)
    assert (caught.value.reason, caught.value.transient) == ("withdrawn", False)
    assert len(server.requests) == 1
