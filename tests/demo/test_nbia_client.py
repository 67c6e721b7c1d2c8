"""Calls to the demo NBIA as its tests make them; tokens, statistics and what else is common to all endpoints."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

import pytest

from pipeline.demo.nbia import NbiaSite
from pipeline.demo.nbia_data import NAMES, ONLY_NBIA, NbiaDemo, build_nbia
from pipeline.demo.nbia_endpoints import ENDPOINTS
from pipeline.demo.nbia_tokens import Tokens

SERVICES = "/nbia-api/services/"
GUEST = {"grant_type": "password", "username": "nbia_guest", "password": "", "client_id": "NBIA"}
ERROR_500 = b"Server was not able to process your request\nnull"


class Got:
    """An answer, read to its end."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.type = answer.headers["Content-Type"]
        self.body = answer.read()

    @property
    def rows(self) -> list[dict[str, object]]:
        """The body as JSON."""
        return json.loads(self.body)


class Api:
    """A client of a site; every call has a connection of its own."""

    def __init__(self, url: str) -> None:
        self.port = urlsplit(url).port
        self.token = ""

    def ask(self, method: str, path: str, form: dict[str, str] | None = None) -> Got:
        """Ask for a path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body=None if form is None else urlencode(form), headers=headers)
            return Got(connection.getresponse())
        finally:
            connection.close()

    def get(self, name: str, /, **params: str) -> Got:
        """GET of an endpoint, `v4/getSeries`."""
        return self.ask("GET", f"{SERVICES}{name}" + (f"?{urlencode(params)}" if params else ""))

    def post(self, name: str, /, **form: str) -> Got:
        """POST to an endpoint."""
        return self.ask("POST", SERVICES + name, form)

    def login(self) -> None:
        """Get a token as guest, and send it from now on."""
        self.token = self.ask("POST", "/nbia-api/oauth/token", GUEST).rows["access_token"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> NbiaDemo:
    """The tiny demo data."""
    return build_nbia(tmp_path_factory.mktemp("nbia"), "tiny")


@pytest.fixture
def site(demo: NbiaDemo) -> Iterator[NbiaSite]:
    """A site that serves them, with the objects of the demo IDC."""
    with NbiaSite(demo.archive, demo.idc.store(), users={"ann": "secret"}) as running:
        yield running


@pytest.fixture
def api(site: NbiaSite) -> Api:
    """A client without a token."""
    return Api(site.url)


def test_token_by_password_and_by_refresh(api):
    """The guest needs no password, others theirs; both paths grant; a refresh token gives another that works."""
    for path in ("/nbia-api/oauth/token", f"{SERVICES}oauth/token"):
        got = api.ask("POST", path, GUEST)
        assert (got.status, got.type) == (200, "application/json")
        assert set(got.rows) == {
            "access_token", "expires_in", "refresh_expires_in", "refresh_token", "token_type", "id_token",
            "not-before-policy", "session_state", "scope",
        }  # fmt: skip
        assert (got.rows["expires_in"], got.rows["token_type"], got.rows["scope"]) == (7200, "Bearer", "openid")
    form = {"grant_type": "refresh_token", "refresh_token": got.rows["refresh_token"], "client_id": "NBIA"}
    api.token = api.ask("POST", "/nbia-api/oauth/token", form).rows["access_token"]
    assert len(api.get("v2/getCollectionValues").rows) == 4
    assert api.ask("POST", "/nbia-api/oauth/token", GUEST | {"username": "ann", "password": "secret"}).status == 200


@pytest.mark.parametrize(
    ("form", "status"),
    [
        (GUEST | {"username": "ann", "password": "wrong"}, 401),
        (GUEST | {"username": "nobody"}, 401),
        ({"grant_type": "password"}, 401),
        ({"grant_type": "refresh_token", "refresh_token": "x.y"}, 400),
        ({"grant_type": "magic"}, 400),
    ],
)
def test_tokens_that_are_refused(api, form, status):
    """Wrong passwords, unknown users, empty forms, false refresh tokens and unknown grants get no token."""
    got = api.ask("POST", "/nbia-api/oauth/token", form)
    assert got.status == status
    assert "access_token" not in got.rows


def test_credentials_in_the_query_are_not_read(api):
    """A token is granted by the form alone."""
    assert api.ask("POST", f"/nbia-api/oauth/token?{urlencode(GUEST)}", {}).status == 400


def test_tokens_expire_by_the_clock():
    """A token holds up to its lifetime and not longer, and neither kind stands in for the other."""
    now = [1000.0]
    tokens = Tokens(lifetime=60, clock=lambda: now[0])
    access, refresh = tokens.make("ann", "access"), tokens.make("ann", "refresh")
    now[0] = 1059.9
    assert tokens.check(access) == "ann"
    assert tokens.check(refresh) is None
    assert tokens.check(refresh, "refresh") == "ann"
    now[0] = 1060.0
    assert tokens.check(access) is None


@pytest.mark.parametrize("token", ["", ".", "x", "ä.ö", "e30.00", "a" * 10_000])
def test_tokens_that_are_not_ours(token):
    """Whatever a client sends is checked without an error, and is no token."""
    assert Tokens().check(token) is None


def test_without_a_token(api, demo):
    """Calls that want a token answer 500, lists 200 and nothing, metadata 204: v1 and v4 need none."""
    uid = demo.named["single"]
    for name in ("v2/getImage", "v2/getImageWithMD5Hash"):
        got = api.get(name, SeriesInstanceUID=uid)
        assert (got.status, got.type, got.body) == (500, "text/plain", ERROR_500)
        assert got.headers["Content-Length"] == "48"
    for name in ("v2/getCollectionValues", "getCollectionDescriptions", "getModalityValuesAndCounts"):
        assert (api.get(name).status, api.get(name).body) == (500, ERROR_500)
    for name in ("v2/getSeries", "v2/getPatient", "v2/getPatientStudy", "v2/getModalityValues"):
        got = api.get(name)
        assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")
    assert api.get("v2/getSeriesMetaData", SeriesInstanceUID=uid).status == 204
    assert api.get("v1/getCollectionValues").body == api.get("v4/getCollectionValues").body != b""


def test_with_an_expired_token(site, api, demo):
    """In the middle of a run, images become 401 without a body, lists 200 without a body: as if all were gone."""
    api.login()
    assert len(api.get("v2/getSeries", Collection=ONLY_NBIA).rows) == 6
    site.tokens.clock = lambda: 1e12
    uid = demo.named["single"]
    for name in ("v2/getImage", "v2/getImageWithMD5Hash", "v4/getImage"):
        got = api.get(name, SeriesInstanceUID=uid)
        assert (got.status, got.body) == (401, b"")
    assert api.get("v2/getCollectionValues").status == api.get("getCollectionDescriptions").status == 401
    got = api.get("v2/getSeries", Collection=ONLY_NBIA)
    assert (got.status, got.body) == (200, b"")
    assert api.get("v2/getSeriesMetaData", SeriesInstanceUID=uid).status == 204
    assert api.get("v1/getImage", SeriesInstanceUID=uid).status == 200
    api.token = "undefined"
    assert api.get("v2/getImage", SeriesInstanceUID=uid).status == 200


def test_statistics_by_endpoint(site, api, demo):
    """Each endpoint's requests are counted, and can be asked for by series; the site's own answers are not."""
    api.get("v4/getSeries", Collection=NAMES["demo_nc"])
    api.get("v4/getSeries", Collection=ONLY_NBIA)
    api.post("v4/getSeriesMetadata", list=demo.named["single"])
    api.get("v1/getImage", SeriesInstanceUID=demo.named["single"])
    api.get("v1/getNothing")
    api.login()
    api.get("getModalityValuesAndCounts")
    assert site.calls() == {
        "v4/getSeries": 2,
        "v4/getSeriesMetadata": 1,
        "v1/getImage": 1,
        "services/v1": 1,
        "oauth/token": 1,
        "plain/getModalityValuesAndCounts": 1,
    }
    assert site.stats.count("GET", f"nbia/v1/getImage/{demo.named['single']}") == 1
    assert site.stats.count(key=f"nbia/v4/getSeries/{ONLY_NBIA}") == 1


def test_the_same_port_serves_objects(site, api, demo):
    """The demo IDC is there as ever, beside NBIA, and its own faults and statistics with it."""
    series = demo.idc.series[0]
    got = api.ask("GET", f"/{series.bucket}/{series.files[0].key}")
    assert (got.status, got.headers["ETag"]) == (200, f'"{series.files[0].md5}"')
    assert api.ask("GET", "/_stats").rows["verbs"] == {"GET": 1}
    assert site.calls() == {}


def test_calls_that_are_none(api):
    """Unknown endpoints and versions are 404, a wrong method 405, and connections outlive each of them."""
    assert api.get("v4/getNothing").status == api.get("v3/getSeries").status == api.get("v4/a/b").status == 404
    assert api.ask("GET", "/nbia-api/").status == 404
    assert api.get("v4/getSeriesMetadata").status == api.post("v4/getSeries").status == 405
    assert api.ask("DELETE", f"{SERVICES}v4/getSeries").status == 405
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    for path, status in (("v4/getNothing", 404), ("v4/getCollectionValues", 200)):
        connection.request("POST" if status == 404 else "GET", SERVICES + path, body=b"x" * 100_000)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


@pytest.mark.parametrize(("version", "name"), sorted(ENDPOINTS))
def test_every_endpoint_answers_any_words(api, version, name):
    """No endpoint breaks on parameters that make no sense: an answer comes, and the site still lives."""
    api.login()
    endpoint = ENDPOINTS[version, name]
    words = dict.fromkeys((*endpoint.allowed, "format"), "\x00\ud800".encode("utf-8", "replace").decode() + "'%,;")
    path = f"{version}/{name}".lstrip("/")
    for params in ({}, words, words | {"format": "xml"}, dict.fromkeys(endpoint.allowed, "1" * 5000)):
        got = api.post(path, **params) if endpoint.method == "POST" else api.get(path, **params)
        assert got.status in {200, 204, 400, 401, 404, 500}
    assert api.get("v4/getCollectionValues").status == 200
