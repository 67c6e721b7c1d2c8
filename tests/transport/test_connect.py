"""Connecting: one bound for all its steps, and a stop or a deadline that is noticed in each of them."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest

from pipeline.errors import InterruptedRunError, ItemError
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy
from tests.transport.server import Listener, Proxy, answer, serve

PATIENT = Policy(attempts=1, deadline=60, stall=30)


class Mute(Listener):
    """Accepts, sends `first`, then the same byte every tenth of a second, for ever."""

    def __init__(self, first: bytes = b"", byte: bytes = b"") -> None:
        self.first = first
        self.byte = byte
        self.reached = threading.Event()
        super().__init__()

    def serve(self, sock: socket.socket, number: int) -> None:
        sock.sendall(self.first)
        self.reached.set()
        while not self.closing.wait(0.1):
            sock.sendall(self.byte)


# A proxy that never ends its answer, one that says nothing, and one that opens the tunnel to a server without TLS.
PEERS = {
    "dripping proxy": (b"HTTP/1.1 200 ok\r\nX: ", b"a"),
    "silent proxy": (b"", b""),
    "silent in the handshake": (b"HTTP/1.1 200 ok\r\n\r\n", b""),
}


@pytest.fixture(params=PEERS)
def peer(request):
    """Yield a proxy that never lets a connection get ready."""
    it = Mute(*PEERS[request.param])
    yield it
    it.close()


@pytest.fixture
def stuck_resolver(monkeypatch):
    """Make every look-up of a name take for ever; returns the event that is set once one has begun."""
    begun, end = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def lookup(host, port, *rest, **options):
        if host == "stuck.example.org" and not (options.get("flags", 0) or (rest and rest[-1])):
            begun.set()
            end.wait(60)
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    yield begun
    end.set()


def timed(transport, url, error):
    """Fetch, which must raise `error`; returns it and the seconds that it took."""
    begun = time.monotonic()
    with pytest.raises(error) as caught:
        transport.fetch_bytes(url)
    return caught.value, time.monotonic() - begun


def through(peer, **options):
    """A pool that goes through the peer."""
    return ConnectionPool(2, environ={"https_proxy": f"http://127.0.0.1:{peer.port}"}, **options)


def test_stop_while_connecting(peer):
    """A stop is noticed within about a second, whichever step of the way to the site does not end."""
    stop = threading.Event()
    with through(peer) as pool:
        threading.Thread(target=lambda: (peer.reached.wait(10), stop.set()), daemon=True).start()
        _, seconds = timed(Transport(pool, PATIENT, stop=stop), "https://example.org/x", InterruptedRunError)
        assert seconds < 4
        assert pool.open_connections == 0


def test_deadline_while_connecting(peer):
    """The deadline of an item ends a connection attempt too."""
    policy = Policy(attempts=9, deadline=0.5, stall=30)
    with through(peer) as pool:
        error, seconds = timed(Transport(pool, policy), "https://example.org/x", ItemError)
    assert (error.reason, error.transient) == ("unavailable", True)
    assert seconds < 4


def test_one_bound_for_all_steps(peer):
    """Tunnel and handshake together take no longer than `connect_timeout`, however the bytes are spread."""
    with through(peer, connect_timeout=0.4) as pool:
        error, seconds = timed(Transport(pool, PATIENT), "https://example.org/x", ItemError)
        assert pool.open_connections == 0
    assert (error.reason, error.transient) == ("unavailable", True)
    assert "0.4 s" in str(error)
    assert seconds < 4


def test_stop_while_looking_up_a_name(stuck_resolver):
    """A resolver that does not answer holds up neither a stop nor the bound."""
    stop = threading.Event()
    with ConnectionPool(2, environ={}, connect_timeout=0.4) as pool:
        error, seconds = timed(Transport(pool, PATIENT, stop=stop), "http://stuck.example.org/x", ItemError)
        assert error.transient
        assert "stuck.example.org" in str(error)
        assert seconds < 4
    with ConnectionPool(2, environ={}) as pool:
        threading.Thread(target=lambda: (stuck_resolver.wait(10), stop.set()), daemon=True).start()
        _, seconds = timed(Transport(pool, PATIENT, stop=stop), "http://stuck.example.org/x", InterruptedRunError)
        assert seconds < 4


@pytest.mark.parametrize("host", ["a" * 64 + ".example.org", "no such host", "-", "a..b"])
def test_impossible_names(transport, host):
    """A name that cannot be looked up makes the item unavailable, and is no fault in medhaul."""
    with pytest.raises(ItemError) as caught:
        transport.fetch_bytes(f"http://{host}/x")
    assert caught.value.reason == "unavailable"


def test_the_next_address_is_tried(server, transport, monkeypatch):
    """Of a name with several addresses, one where nobody listens, and one that does not answer, cost no request."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = []
        for _ in range(4):  # a listener whose queue is full drops what comes: an address that does not answer
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [(*kind, ("127.0.0.1", 1)), (*kind, full.getsockname()), (*kind, ("127.0.0.1", server.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        server.on("/l", serve(b"body"))
        with ConnectionPool(1, environ={}, connect_timeout=1.5) as pool:
            assert Transport(pool, PATIENT).fetch_bytes("http://several.example.org/l").body == b"body"
        for filler in fillers:
            filler.close()


def test_a_proxy_that_sends_too_much_is_not_believed(certificate):
    """What comes behind the proxy's answer is nobody's handshake."""
    peer = Mute(b"HTTP/1.1 200 ok\r\n\r\nmore")
    with through(peer, context=ssl.create_default_context(cafile=certificate)) as pool:
        error, _ = timed(Transport(pool, PATIENT), "https://example.org/x", ItemError)
    assert error.reason == "unavailable"
    peer.close()


def test_an_ipv6_site_through_a_tunnel():
    """The proxy is asked for an address in brackets."""
    proxy = Proxy(refuse=403)
    with ConnectionPool(1, environ={"https_proxy": f"http://127.0.0.1:{proxy.port}"}) as pool:
        error, _ = timed(Transport(pool, PATIENT), "https://[::1]/x", ItemError)
    assert not error.transient
    assert proxy.seen[0].target == "[::1]:443"
    assert proxy.seen[0].headers["host"] == "[::1]:443"
    proxy.close()


def test_connections_are_not_delayed(server, pool):
    """Small requests leave at once (TCP_NODELAY)."""
    Transport(pool, PATIENT).fetch_bytes(server.on("/l", answer(200, b"x")))
    (connection,) = pool._idle
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
