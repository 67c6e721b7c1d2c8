"""A site's own bound on connections, within the budget of the pool: held over hosts, threads, reuse and failures."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import InterruptedRunError, ItemError
from pipeline.transport.client import Transport
from pipeline.transport.exchange import parse_target
from pipeline.transport.pool import ConnectionPool
from tests.transport.conftest import QUICK
from tests.transport.server import Server, answer, raw, serve


def slow(body, seconds=0.01):
    """A step that takes a while."""

    def step(request, sock):
        time.sleep(seconds)
        return serve(body)(request, sock)

    return step


def origin(server):
    """Where a server listens."""
    return parse_target(server.base + "/").origin


@pytest.fixture
def other():
    """Yield a second server."""
    it = Server()
    yield it
    it.close()


@pytest.fixture
def third():
    """Yield a third server."""
    it = Server()
    yield it
    it.close()


def test_hosts_of_a_site_share_its_bound_and_no_one_else_is_held_up(server, other, third):
    """Of eight connections two may be to the modest site, on whichever of its hosts; another site has the rest."""
    urls = [server.on("/l", slow(b"a")), other.on("/l", slow(b"b")), third.on("/l", slow(b"c"))]
    most = []
    with (
        ConnectionPool(8, environ={}, site=[origin(server), origin(other)], site_limit=2) as pool,
        ThreadPoolExecutor(12) as threads,
    ):
        transport = Transport(pool, QUICK)

        def one(number):
            body = transport.fetch_bytes(urls[number % 3]).body
            most.append((server.gauge.now + other.gauge.now, pool.site_connections, pool.open_connections))
            return body

        assert list(threads.map(one, range(120))) == [b"a", b"b", b"c"] * 40
        assert max(now for now, _, _ in most) <= 2
        assert max(count for _, count, _ in most) <= 2
        assert max(count for _, _, count in most) <= 8
    assert server.gauge.peak <= 2
    assert other.gauge.peak <= 2
    assert third.gauge.peak > 2
    assert pool.site_connections == pool.open_connections == 0


def test_a_site_that_is_busy_holds_up_no_other(server, other):
    """While its one connection hangs, and somebody waits for it, another site answers."""
    stop = threading.Event()
    url = server.on("/l", server.hang)
    with (
        ConnectionPool(3, environ={}, site=[origin(server)], site_limit=1) as pool,
        ThreadPoolExecutor(2) as threads,
    ):
        transport = Transport(pool, QUICK, stop=stop)
        hanging = [threads.submit(transport.fetch_bytes, url) for _ in range(2)]
        try:
            good = other.on("/l", serve(b"x"))
            assert [transport.fetch_bytes(good).body for _ in range(3)] == [b"x"] * 3
            assert server.gauge.peak <= 1
        finally:
            stop.set()
        for one in hanging:
            with pytest.raises(InterruptedRunError):
                one.result()
    assert pool.site_connections == 0


def test_an_idle_connection_to_one_host_makes_room_for_the_other(server, other):
    """Idle connections count, so the bound holds as the site sees it; and they go when another host is asked."""
    urls = [server.on("/l", serve(b"a")), other.on("/l", serve(b"b"))]
    with ConnectionPool(5, environ={}, site=[origin(server), origin(other)], site_limit=1) as pool:
        transport = Transport(pool, QUICK)
        for number in range(6):
            assert transport.fetch_bytes(urls[number % 2]).body == [b"a", b"b"][number % 2]
            assert pool.site_connections == pool.open_connections == 1
    assert (server.connections, other.connections) == (3, 3)


def test_places_come_back_after_failures_and_from_idle_ones(server, other):
    """Whatever a request ends with, and whoever takes an idle connection's place, nothing of the bound is lost."""
    with ConnectionPool(
        1, environ={}, site=[origin(server), parse_target("http://127.0.0.1:1/").origin], site_limit=1
    ) as pool:
        transport = Transport(pool, QUICK)
        for step in (raw(b""), answer(500), raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")):
            with pytest.raises(ItemError):
                transport.fetch_bytes(server.on("/l", step))
        with pytest.raises(ItemError):
            transport.fetch_bytes("http://127.0.0.1:1/l")
        good, away = server.on("/g", serve(b"x")), other.on("/g", serve(b"y"))
        for _ in range(2):
            assert transport.fetch_bytes(good).body == b"x"
            assert pool.site_connections == 1
            assert transport.fetch_bytes(away).body == b"y"
            assert (pool.site_connections, pool.open_connections) == (0, 1)


def test_a_site_has_one_connection_at_least():
    """A bound of nothing is a mistake, not a way to stop."""
    with pytest.raises(ValueError, match="at least one"):
        ConnectionPool(2, site=[parse_target("http://h/").origin], site_limit=0)
