"""One call to TCIA: patience with what may pass, none with what will not, nothing doubtful in the cache."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from pipeline.errors import InterruptedRunError, SiteUnavailableError
from pipeline.sources.tcia_api import Call
from pipeline.sources.tcia_http import Api, BadAnswerError, RefusedCallError
from pipeline.sources.tcia_rows import Series
from pipeline.transport.retry import Policy, Runtime

ROOT = "/nbia-api/services"
SERIES = {"SeriesInstanceUID": "1.2.3", "Collection": "X", "ImageCount": 3}


@dataclass
class Asked:
    """A request that the site got."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]


Step = Callable[["Handler", Asked], None]


class Handler(BaseHTTPRequestHandler):
    """Takes the next step of a path; the last one stays."""

    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.answer_next()

    def do_POST(self) -> None:
        self.answer_next()

    def answer_next(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        pairs = parse_qsl(body if self.command == "POST" else parts.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, parts.path.removeprefix(ROOT), dict(pairs), headers)
        with self.server.lock:
            self.server.asked.append(asked)
            steps = self.server.routes.get(asked.path, [answer(404, b"no such page")])
            step = steps.pop(0) if len(steps) > 1 else steps[0]
        step(self, asked)

    def log_message(self, *_: object) -> None:
        pass


class Site(ThreadingHTTPServer):
    """A site on 127.0.0.1 that answers as told. `asked` is what it was asked, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, list[Step]] = {}
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"
        self.root = self.origin + ROOT
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def on(self, path: str, *steps: Step) -> None:
        """Set the steps of a path below the services, such as `/v4/getSeries`."""
        self.routes[path] = list(steps)

    def paths(self) -> list[str]:
        """Paths that were asked so far."""
        return [asked.path for asked in self.asked]

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join(10)


def answer(status: int, body: bytes = b"", **headers: str) -> Step:
    """The same answer whatever is asked; `_` in header names stands for `-`."""

    def step(handler: Handler, _: Asked) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return step


def rows(*found: object, **headers: str) -> Step:
    """A JSON list."""
    return answer(200, json.dumps(found).encode(), Content_Type="application/json", **headers)


EMPTY = answer(200)


def cut(body: bytes, *, chunked: bool) -> Step:
    """A body that ends too early."""

    def step(handler: Handler, _: Asked) -> None:
        handler.send_response(200)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
            body_sent = f"{len(body):X}\r\n".encode() + body + b"\r\n"
        else:
            handler.send_header("Content-Length", str(len(body) + 7))
            body_sent = body
        handler.end_headers()
        handler.wfile.write(body_sent)
        handler.close_connection = True

    return step


def reset(handler: Handler, _: Asked) -> None:
    """No answer at all."""
    handler.connection.close()
    handler.close_connection = True


def trickle(handler: Handler, _: Asked) -> None:
    """A body that never ends, one byte at a time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b" ")


class Waits:
    """A runtime that does not sleep; `seconds` is how long it would have."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.runtime = Runtime(random=lambda: 0.5, wait=lambda _, seconds: self.seconds.append(seconds))


@pytest.fixture(name="site")
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site, and a user's cache and home of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Site()
    yield made
    made.close()


def open_api(waits: Waits | None = None, **options: Any) -> Api:
    """Open an `Api` that waits for nothing."""
    settings = {"expire": 3600.0, "policy": Policy(attempts=4, deadline=60.0), "runtime": (waits or Waits()).runtime}
    return Api(**settings | options)


def get(site: Site, waits: Waits | None = None, seconds: float = 60.0, **options: Any) -> Any:
    """Ask for the series of X once."""
    api = open_api(waits, **options)
    try:
        return api.ask(site.root, Call("getSeries", "v4/getSeries", "GET", (("Collection", "X"),)), end(seconds))
    finally:
        api.close()


def end(seconds: float = 60.0) -> float:
    """So many seconds from now."""
    return time.monotonic() + seconds


def kept(tmp_path: Path) -> list[bytes]:
    """Contents of the files of the cache."""
    return [path.read_bytes() for path in (tmp_path / "cache").rglob("*.http")]


FAULTS: dict[str, Step] = {
    "500": answer(500, b"Server was not able to process your request\nnull"),
    "502": answer(502),
    "503": answer(503),
    "504": answer(504),
    "429": answer(429, b"slow down"),
    "reset": reset,
    "short": cut(b"[{", chunked=False),
    "cut chunks": cut(b'[{"SeriesInstanceUID":"1.2.3"}]', chunked=True),
    "cut JSON": answer(200, b'[{"SeriesInstanceUID":"1.2.3"},{"Ser'),
    "empty": EMPTY,
    "no content": answer(204),
    "bare": rows({}),
    "list of nothing": rows(),
    "a proxy's page": answer(200, b"<html><body>Please wait</body></html>", Content_Type="text/html"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_may_pass_is_asked_again(site: Site, tmp_path: Path, fault: Step) -> None:
    """One bad answer costs one more request, and only the good one is kept."""
    site.on("/v4/getSeries", fault, rows(SERIES))
    waits = Waits()
    assert get(site, waits) == [Series(SeriesInstanceUID="1.2.3", collection="X", ImageCount=3)]
    assert len(site.asked) == 2
    assert len(waits.seconds) == 1
    assert 0 < waits.seconds[0] <= 2
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_does_not_pass_ends_and_is_not_kept(site: Site, tmp_path: Path, fault: Step) -> None:
    """After a bounded number of requests there is an error that names the path, or a doubtful nothing."""
    site.on("/v4/getSeries", fault)
    error: SiteUnavailableError | None = None
    found: object = None
    try:
        found = get(site)
    except SiteUnavailableError as raised:
        error = raised
    assert found is None
    assert len(site.asked) == (4 if error else 2)
    assert error is None or ("/nbia-api/services/v4/getSeries" in str(error) and error.exit_code == 69)
    assert kept(tmp_path) == []


def test_waits_grow_and_are_jittered(site: Site) -> None:
    """Each wait may be twice the one before, and is a random part of that."""
    site.on("/v4/getSeries", FAULTS["500"])
    waits = Waits()
    with pytest.raises(BadAnswerError):
        get(site, waits)
    assert waits.seconds == [0.25, 0.5, 1.0]


def test_retry_after_is_honoured(site: Site) -> None:
    """The wait is at least what the site asks for; one beyond the cap ends the call."""
    site.on("/v4/getSeries", answer(429, Retry_After="7"), answer(503, Retry_After="3600"))
    waits = Waits()
    with pytest.raises(SiteUnavailableError, match="503"):
        get(site, waits)
    assert len(waits.seconds) == 1
    assert 7 <= waits.seconds[0] < 10


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"Invalid query parameter: 'foo'. Allowed parameters are: [Collection]", "Invalid query parameter: 'foo'"),
        (b"<html><style>p{}</style><body><h1>Bad</h1>\n<p>No\x00 such thing</p></body></html>", "Bad No such thing"),
        (b"", "without a reason"),
    ],
)
def test_a_refused_call_is_not_repeated(site: Site, body: bytes, text: str) -> None:
    """400 is asked once, and its text is made readable."""
    site.on("/v4/getSeries", answer(400, body, Content_Type="application/json"))
    with pytest.raises(RefusedCallError) as caught:
        get(site)
    assert text in str(caught.value)
    assert caught.value.exit_code == 78
    assert len(site.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410, 412, 416, 501, 418])
def test_other_refusals_are_not_repeated(site: Site, status: int) -> None:
    """What the next request would meet again is asked once."""
    site.on("/v4/getSeries", answer(status, b"no"))
    with pytest.raises(SiteUnavailableError, match=str(status)):
        get(site)
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'"text"',
        b"7",
        b"[7]",
        b'[{"error": "x"}]',
        b'{"SeriesInstanceUID": null}',
        b"[[]]",
        b'[{"SeriesInstanceUID":""}]',
    ],
)
def test_a_wrong_shape_is_an_error_at_once(site: Site, tmp_path: Path, body: bytes) -> None:
    """JSON that is no list of series says what came, and is neither repeated nor kept."""
    site.on("/v4/getSeries", answer(200, body))
    with pytest.raises(BadAnswerError, match="v4/getSeries"):
        get(site)
    assert kept(tmp_path) == []


def test_a_page_is_called_a_page(site: Site) -> None:
    """HTML where JSON should be is named as such, with its beginning."""
    site.on("/v4/getSeries", answer(200, b"<!DOCTYPE html><title>Login</title>"))
    with pytest.raises(BadAnswerError, match=r"an HTML page.*Login"):
        get(site)


def test_a_trickle_has_an_end(site: Site) -> None:
    """A body that keeps coming by the byte is given up when the time is over."""
    site.on("/v4/getSeries", trickle)
    start = time.monotonic()
    with pytest.raises(SiteUnavailableError, match="in time"):
        get(site, seconds=1.0)
    assert time.monotonic() - start < 10


def test_a_trickle_does_not_use_up_the_question(site: Site) -> None:
    """One request has less time than all of them, so that another may succeed."""
    site.on("/v4/getSeries", trickle, rows(SERIES))
    assert len(get(site, attempt_seconds=0.5)) == 1


def test_a_huge_body_is_refused(site: Site) -> None:
    """What exceeds the bound is not held in memory, stated or not."""
    site.on("/v4/getSeries", rows(SERIES), cut(b"x" * 5000, chunked=True))
    for _ in range(2):
        with pytest.raises(SiteUnavailableError, match="more than 20 bytes"):
            get(site, max_bytes=20)


def test_a_stop_is_obeyed(site: Site) -> None:
    """Setting the event ends a request that hangs."""
    stop = threading.Event()

    def hang(handler: Handler, _: Asked) -> None:
        stop.set()
        handler.server.closing.wait(30)

    site.on("/v4/getSeries", hang)
    with pytest.raises(InterruptedRunError):
        get(site, stop=stop)


def test_nothing_listens(site: Site) -> None:
    """A site that is not there is an error with the reason."""
    site.close()
    with pytest.raises(SiteUnavailableError, match="refused"):
        get(site)


def test_answers_are_kept(site: Site) -> None:
    """A second ask sends nothing, `refresh` asks once, `offline` uses what is kept and says what is not."""
    site.on("/v4/getSeries", rows(SERIES, Cache_Control="no-store"), rows(SERIES, SERIES | {"SeriesInstanceUID": "9"}))
    assert len(get(site)) == 1
    assert len(get(site)) == 1
    assert len(site.asked) == 1
    assert len(get(site, expire=0.000001)) == 1
    api = open_api(refresh=True)
    call = Call("getSeries", "v4/getSeries", "GET", (("Collection", "X"),))
    assert [len(api.ask(site.root, call, end())) for _ in range(3)] == [2, 2, 2]
    assert len(site.asked) == 2
    api.close()
    site.close()
    assert len(get(site, offline=True)) == 2
    assert len(get(site, offline=True, refresh=True)) == 2
    api = open_api(offline=True)
    with pytest.raises(SiteUnavailableError, match="not in the cache"):
        api.ask(site.root, Call("getSeries", "v4/getSeries", "GET", (("Collection", "Y"),)), end())
    api.close()


def test_old_answers_are_asked_anew(site: Site) -> None:
    """What has expired is used only offline."""
    site.on("/v4/getSeries", rows(SERIES), rows(SERIES, SERIES | {"SeriesInstanceUID": "9"}))
    assert len(get(site, expire=1.0)) == 1
    deadline = time.monotonic() + 20
    while len(get(site, expire=1.0)) == 1:
        assert time.monotonic() < deadline
    assert len(site.asked) == 2


def test_a_doubtful_answer_does_not_replace_a_good_one(site: Site) -> None:
    """What is kept survives an empty answer to `refresh`."""
    site.on("/v4/getSeries", rows(SERIES), EMPTY)
    assert len(get(site)) == 1
    assert get(site, refresh=True) is None
    assert len(get(site, offline=True)) == 1


def test_forms_are_kept_by_their_content(site: Site) -> None:
    """Two POSTs of different content are two answers."""
    site.on("/v4/getSeriesMetadata", rows(SERIES), rows(SERIES | {"SeriesInstanceUID": "9"}))
    api = open_api()
    calls = [Call("getSeriesMetadata", "v4/getSeriesMetadata", "POST", (("list", uid),)) for uid in ("1.2.3", "9")]
    found = [api.ask(site.root, call, end())[0].SeriesInstanceUID for call in calls * 2]
    assert found == ["1.2.3", "9"] * 2
    assert [asked.params for asked in site.asked] == [{"list": "1.2.3"}, {"list": "9"}]
    api.close()


def test_damaged_and_outdated_entries_are_asked_again(site: Site, tmp_path: Path) -> None:
    """A file of the cache that holds something else costs a request, no more."""
    site.on("/v4/getSeries", rows(SERIES))
    get(site)
    (path,) = (tmp_path / "cache").rglob("responses/*.http")
    data = path.read_bytes()
    body = json.dumps([SERIES]).encode()
    assert data.endswith(body)
    path.write_bytes(data[: -len(body)] + b"7" * len(body))
    assert len(get(site)) == 1
    path.write_bytes(data[:50])
    assert len(get(site)) == 1
    assert len(site.asked) == 3


def test_no_cookies_no_netrc(site: Site, tmp_path: Path) -> None:
    """The site's cookies are neither sent back nor kept, and ~/.netrc is left alone."""
    (tmp_path / ".netrc").write_text("default login me password n3trc\n")
    (tmp_path / ".netrc").chmod(0o600)
    site.on("/v4/getSeries", answer(503, Set_Cookie="JSESSIONID=c00kie"), rows(SERIES, Set_Cookie="JSESSIONID=c00kie"))
    get(site)
    assert all("cookie" not in asked.headers and "authorization" not in asked.headers for asked in site.asked)
    assert kept(tmp_path)
    assert not any(b"c00kie" in data for data in kept(tmp_path))


def test_redirections(site: Site) -> None:
    """A GET is followed to the same call elsewhere; to a log-in page it is an error that says so."""
    site.on("/v4/getSeries", answer(301, Location=f"{site.root}/v1/getSeries"))
    site.on("/v1/getSeries", rows(SERIES))
    assert len(get(site)) == 1
    site.on("/v4/getSeries", answer(302, Location=f"{site.origin}/login"))
    site.on("/login", answer(200, b"<html>Log in</html>"))
    with pytest.raises(BadAnswerError, match=r"redirection to /login"):
        get(site, refresh=True)


def test_a_form_is_not_redirected(site: Site) -> None:
    """A POST that has moved says where to."""
    site.on("/v4/getSeriesMetadata", answer(302, Location="https://else.where/x?secret=1"))
    api = open_api()
    with pytest.raises(BadAnswerError, match=r"moved to https://else\.where/x") as caught:
        api.ask(site.root, Call("getSeriesMetadata", "v4/getSeriesMetadata", "POST", (("list", "1"),)), end())
    assert "secret" not in str(caught.value)
    api.close()


def test_waits_are_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Who looks at the log sees why it takes long."""
    caplog.set_level(logging.INFO, logger="pipeline.sources.tcia_http")
    site.on("/v4/getSeries", FAULTS["500"], rows(SERIES))
    get(site)
    assert "500" in caplog.text
    assert "getSeries" in caplog.text
