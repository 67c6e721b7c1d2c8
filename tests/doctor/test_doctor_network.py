"""Sites are asked as the transport would ask them, and what comes is judged."""

from __future__ import annotations

import socket

import pytest

from pipeline.doctor.network import (
    Site,
    SiteAnswer,
    classify_proxies,
    classify_site,
    list_sites,
    probe_site,
    probe_sites,
    site_request,
)
from pipeline.settings import SourceIdc
from tests.doctor.doctor_kit import levels
from tests.transport.server import Listener, Proxy, Server, answer, raw

LISTING = b'<?xml version="1.0"?><ListBucketResult></ListBucketResult>'
BUCKET = "/idc-open-data"


@pytest.fixture
def server():
    """Yield a plain server."""
    it = Server()
    yield it
    it.close()


def ask(site: Site, environ=None, seconds: float = 5.0):
    """Ask a site, and judge."""
    said = probe_site(site, environ or {}, seconds=seconds)
    return said, classify_site(site, said)


@pytest.mark.parametrize(
    ("step", "level", "code"),
    [
        (answer(200, LISTING), "ok", 0),
        (answer(200, b"<html>log in</html>"), "fail", 69),
        (answer(302, Location="http://user:secret@portal.example/x"), "fail", 69),
        (answer(403), "fail", 69),
        (answer(404), "warn", 0),
        (answer(503), "warn", 0),
        (raw(b"SSH-2.0-x\r\n\r\n"), "fail", 69),
        (raw(b""), "fail", 69),
    ],
)
def test_an_endpoint_is_judged_by_its_answer(server, step, level, code):
    """Only a listing is well; busy is a warning; a log-in page, a redirect, a refusal and noise fail with 69."""
    server.on(BUCKET, step)
    said, finding = ask(Site("IDC endpoint", server.base, "s3"))
    assert (finding.level, finding.code) == (level, code), finding
    assert "secret" not in finding.detail
    assert said.seconds < 5
    assert len(server.requests) == 1


def test_other_sites_need_only_answer(server):
    """The base of an API is reachable whatever it says below 500; a file that is not there is not."""
    assert ask(Site("TCIA", server.base))[1].level == "ok"
    assert ask(Site("IDC index", f"{server.base}/x.parquet", "file"))[1].level == "fail"
    server.on("/x.parquet", answer(200, b"x" * 10))
    assert ask(Site("IDC index", f"{server.base}/x.parquet", "file"))[1].level == "ok"


def test_a_site_that_does_not_answer_ends_in_time(server):
    """A server that accepts and says nothing costs the time limit, and no more."""
    server.on("/", server.hang)
    said, finding = ask(Site("slow", server.base), seconds=0.3)
    assert said.seconds < 3
    assert "no answer within 0.3 s" in finding.detail
    assert finding.code == 69


class Plain(Listener):
    """Answers before it is asked, in plain text, as a site without TLS does to a TLS client."""

    def serve(self, sock, number):
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        sock.recv(65536)


def test_each_step_has_its_own_words():
    """No name, no connection and no TLS are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "refused" in ask(Site("x", f"http://127.0.0.1:{port}"))[1].detail
    assert "DNS" in ask(Site("x", "http://no.such.host.invalid"))[1].detail
    plain = Plain()
    try:
        assert "TLS" in ask(Site("x", f"https://127.0.0.1:{plain.port}"))[1].detail
    finally:
        plain.close()


def test_the_proxy_is_used(server):
    """Through a proxy as the transport would go; its refusal and its host are told, its password never."""
    server.on(BUCKET, answer(200, LISTING))
    site = Site("IDC endpoint", server.base, "s3")
    proxy, refusing = Proxy(), Proxy(refuse=407)
    try:
        said, finding = ask(site, {"http_proxy": f"http://me:secret@127.0.0.1:{proxy.port}"})
        assert finding.level == "ok"
        assert said.route == f"through the proxy 127.0.0.1:{proxy.port}"
        assert len(proxy.seen) == 1
        _, finding = ask(site, {"http_proxy": f"http://me:secret@127.0.0.1:{refusing.port}"})
        assert (finding.level, finding.code) == ("fail", 69)
        assert "secret" not in finding.detail
        _, finding = ask(site, {"http_proxy": "socks5://me:secret@x"})
        assert finding.level == "fail"
        assert "secret" not in finding.detail + finding.hint
    finally:
        proxy.close()
        refusing.close()


def test_the_sites_of_a_config_are_listed():
    """Endpoint, mirror and an index by URL, then what is added; the demo is said, and not asked."""
    sites, said = list_sites(SourceIdc(index="https://me:pw@h/i.parquet"), [Site("TCIA", "https://t.example/nbia")])
    assert [site.name for site in sites] == ["IDC endpoint", "IDC mirror", "IDC index", "TCIA"]
    assert said == []
    assert site_request(sites[0]) == "https://s3.amazonaws.com/idc-open-data?list-type=2&max-keys=1"
    assert "pw" not in site_request(sites[2])
    assert "pw" not in classify_site(sites[2], SiteAnswer(route="directly", seconds=0, status=200)).detail
    sites, said = list_sites(SourceIdc(s3_endpoint="demo"))
    assert sites == []
    assert levels(said) == ["ok"]
    assert probe_sites([]) == []


def test_proxy_variables_are_told_without_credentials():
    """Names and hosts are shown, credentials never; whether a job would get them is said where there are jobs."""
    environ = {
        "https_proxy": "http://me:secret@proxy.example:3128",
        "HTTP_PROXY": "http://proxy.example:3128",
        "no_proxy": "localhost,me:secret@x",
        "ftp_proxy": "x",
    }
    found = {finding.what: finding for finding in classify_proxies(environ, [], slurm=True)}
    assert set(found) == {"https_proxy", "HTTP_PROXY", "no_proxy"}
    assert "secret" not in str(found)
    assert "proxy.example:3128" in found["https_proxy"].detail
    assert found["https_proxy"].level == "warn"
    assert "not passed on" in found["https_proxy"].detail
    assert "; passed on to jobs" in found["HTTP_PROXY"].detail
    assert levels(classify_proxies(environ, [], slurm=False)) == ["ok"] * 3
    (bad,) = classify_proxies({"https_proxy": "socks5://me:secret@h:1"}, [], slurm=True)
    assert (bad.level, bad.code) == ("fail", 78)
    assert "secret" not in bad.detail + bad.hint
