"""TCIA on this machine: the part of NBIA's REST API that clients use, with faults on demand.

`with NbiaSite(archive) as site:` serves `{url}/nbia-api/services/v1|v2|v4/...`, the unversioned calls and the token
endpoint from threads of this process; given a store too, also its objects, as `DemoSite` does. Several processes on one
port: `pipeline.demo.nbia_process`. Binds to 127.0.0.1 only.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from pipeline.demo import nbia_wire, wire
from pipeline.demo.bucket import Store
from pipeline.demo.faults import Fault, FaultKind, FaultPlan, Faults
from pipeline.demo.nbia_calls import Call, CallError, Catalogue, Image, Listed, Outcome, refuse_images
from pipeline.demo.nbia_endpoints import (
    API,
    ENDPOINTS,
    LOGOUT_PATH,
    TOKEN_PATHS,
    Caller,
    answer_call,
    name_call,
    parse_path,
)
from pipeline.demo.nbia_faults import (
    ANY_FAULTS,
    LIST_FAULTS,
    ZIP_FAULTS,
    bend_table,
    bend_zip,
    plan_refusal,
)
from pipeline.demo.nbia_format import ERROR_500, Answer, render_table
from pipeline.demo.nbia_records import NbiaArchive, NbiaSeries
from pipeline.demo.nbia_rows import Table
from pipeline.demo.nbia_tokens import LIFETIME, Tokens
from pipeline.demo.nbia_wire import PostedRequest
from pipeline.demo.nbia_zip import ZipOptions, plan_zip, render_zip, write_zip
from pipeline.demo.site import DemoSite
from pipeline.demo.stats import Asked, Verb
from pipeline.demo.wire import Body, Reply, Request

TOKEN_KEY = "nbia/oauth/token"  # noqa: S105 - the name of an endpoint
CORS = "Access-Control-Allow-Origin: *"
CHUNKED = -1  # in the place of a length
# The zips that clients ask for: getImageWithMD5Hash, and v4 getImage with all it can have.
COMMON_ZIPS = (ZipOptions(md5=True), ZipOptions(new_names=True, licence=True, md5=True))


class NbiaSite(DemoSite):
    """Serves an archive as NBIA does, and a store as S3 does.

    Parameters
    ----------
    archive
        What to serve; its files must not change meanwhile.
    store
        Objects to serve as well.
    faults
        May be changed meanwhile, `site.faults.set("nbia/*/getImage*/UID", Fault(kind="zip-short", times=1))`; see
        `pipeline.demo.nbia_faults`.
    latency
        Seconds before each answer begins.
    token_lifetime
        Seconds that a token holds; `site.tokens` has its clock and users too.
    users
        Names and passwords, besides the guest.
    zips
        A folder for finished zips, which processes may share; without it the site has one of its own while it lives.
    level
        Of deflate, 1 to 9.
    """

    def __init__(
        self,
        archive: NbiaArchive,
        store: Store | None = None,
        faults: Faults | FaultPlan | None = None,
        *,
        latency: float = 0.0,
        token_lifetime: float = LIFETIME,
        users: Mapping[str, str] | None = None,
        faults_file: Path | None = None,
        zips: Path | None = None,
        level: int = 1,
        port: int = 0,
        listener: socket.socket | None = None,
    ) -> None:
        super().__init__(
            store or Store(), faults, latency=latency, faults_file=faults_file, port=port, listener=listener
        )
        self.archive = archive
        self.catalogue = Catalogue(archive)
        self.tokens = Tokens(users, lifetime=token_lifetime)
        self.level = level
        self._own_folder = zips is None
        self._folder = zips or Path(tempfile.mkdtemp(prefix="medhaul-nbia-"))
        self._folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Stop, and remove the site's own zips. May be called twice."""
        super().close()
        if self._own_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def prebuild(self, variants: Iterable[ZipOptions] = COMMON_ZIPS) -> None:
        """Make zips of all series before anybody asks, so that serving them costs no more than reading a file."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # zlib lets go of the interpreter
            jobs = [pool.submit(self._zip, one, each) for each in variants for one in self.catalogue.series.values()]
            for job in jobs:
                job.result()

    def calls(self) -> dict[str, int]:
        """How often each endpoint was asked: `v4/getSeries`, `plain/getDicomTags`, `oauth/token`."""
        asked: Counter[str] = Counter()
        for name, times in self.stats.snapshot().keys.items():
            key = name.partition(" nbia-api/nbia/")[2]
            if key:
                asked["/".join(key.split("/")[:2])] += times
        return dict(asked)

    def _read(self, sock: socket.socket, buffer: bytearray) -> Request | None:
        return nbia_wire.read_request(sock, buffer)

    def _answer(self, sock: socket.socket, request: Request, *, keep_alive: bool) -> bool:
        target = request.target
        if target.startswith("http://"):
            target = "/" + target[7:].partition("/")[2]
        path, _, query = target.partition("?")
        if not path.startswith(API):
            return super()._answer(sock, request, keep_alive=keep_alive)
        self._reread_faults()
        if self.latency:
            self._stop.wait(self.latency)
        key, reply = self._plan_path(request, path, query)
        head_only = request.method == "HEAD"
        verb: Verb = "GET" if request.method == "GET" else "HEAD" if head_only else "OTHER"
        agent = request.headers.get("user-agent", "")
        self.stats.request_started(Asked(verb, "nbia-api", key, reply.status, "", agent))
        sent = 0
        try:
            if reply.length == CHUNKED and not reply.hang_up:
                sent, keep = nbia_wire.send_chunked(sock, reply, self._stop, keep_alive=keep_alive, head_only=head_only)
            else:
                sent, keep = wire.send_reply(sock, reply, self._stop, keep_alive=keep_alive)
        finally:
            self.stats.request_ended(sent)
        return keep

    def _plan_path(self, request: Request, path: str, query: str) -> tuple[str, Reply]:
        body = request.body if isinstance(request, PostedRequest) else b""
        form = nbia_wire.parse_form(body.decode("utf-8", "replace"))
        head_only = request.method == "HEAD"
        method = "GET" if head_only else request.method
        if path in TOKEN_PATHS:
            return TOKEN_KEY, self._plan(
                TOKEN_KEY,
                ANY_FAULTS,
                lambda: self.tokens.grant(form) if method == "POST" else _page(405),
                refused="",
                head_only=head_only,
            )
        if path == LOGOUT_PATH:
            return "nbia/oauth/logout", make_answer(Answer(content_type="text/html"), None, head_only=head_only)
        where = parse_path(path)
        endpoint = ENDPOINTS.get(where) if where else None
        if where is None or endpoint is None:
            return f"nbia/{path.removeprefix(API)}", make_answer(_page(404), None, head_only=head_only)
        call = Call(*where, form if method == "POST" else nbia_wire.parse_form(query))
        key = name_call(call)
        if method != endpoint.method:
            return key, make_answer(_page(405), None, head_only=head_only)
        return key, self._plan(
            key,
            ANY_FAULTS | (ZIP_FAULTS if endpoint.image else LIST_FAULTS),
            lambda: answer_call(self.catalogue, endpoint, call, self._caller(request)),
            refused=refuse_images(call.version, call.get("SeriesInstanceUID")),
            form=call.get("format"),
            head_only=head_only,
        )

    def _plan(
        self,
        key: str,
        kinds: frozenset[FaultKind],
        answer: Callable[[], Outcome],
        *,
        refused: str,
        form: str = "",
        head_only: bool,
    ) -> Reply:
        fault = self.faults.strike(key, "object", kinds=kinds)
        if fault is not None:
            if fault.kind == "hangup":
                return Reply(status=500, headers=(), hang_up=True)
            if fault.kind == "delay":
                self._stop.wait(fault.seconds)
            elif (early := plan_refusal(fault, refused)) is not None:
                return make_answer(early, None, head_only=head_only)
        try:
            outcome = answer()
            if isinstance(outcome, Image):
                return self._plan_image(outcome, fault, head_only=head_only)
            rendered = render_outcome(outcome, form, fault)
        except CallError as error:
            rendered = error.answer
        return make_answer(rendered, fault, head_only=head_only)

    def _caller(self, request: Request) -> Caller:
        given = request.headers.get("authorization", "")
        if not given:
            return "nobody"
        token = given.removeprefix("Bearer ").strip()
        if token == "undefined":  # noqa: S105 - what a portal sends before it has a token
            return "guest"
        return "expired" if self.tokens.check(token) is None else "user"

    def _plan_image(self, image: Image, fault: Fault | None, *, head_only: bool) -> Reply:
        series, options = image.series, image.options
        headers = (
            "Content-Type: application/octet-stream",
            f'Content-Disposition: attachment; filename="{series.uid}.zip"',
            CORS,
        )
        if head_only:
            body = wire.EMPTY
        elif fault is not None and fault.kind in ZIP_FAULTS:
            if fault.kind == "shuffle":
                options = msgspec.structs.replace(options, order=next(self._numbers))
            data = render_zip(bend_zip(plan_zip(self.archive, series, options), fault), self.level)
            body = Body(data, 0, len(data))
        else:
            path = self._zip(series, options)
            body = Body(b"", 0, path.stat().st_size, str(path))
        return Reply(status=200, headers=headers, body=body, length=CHUNKED, fault=fault)

    def _zip(self, series: NbiaSeries, options: ZipOptions) -> Path:
        """The finished zip, made when it is not there."""
        variant = f"{options.new_names:d}{options.licence:d}{options.md5:d}"
        path = self._folder / f"{series.uid}.{variant}.zip"
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as made:
                write_zip(plan_zip(self.archive, series, options), made, self.level)
            Path(made.name).replace(path)  # who was faster made the same bytes
        return path


def render_outcome(outcome: Answer | Table | Listed, form: str, fault: Fault | None) -> Answer:
    """An answer from memory, bent by a fault of lists. Pure."""
    if isinstance(outcome, Answer):
        return outcome
    always = isinstance(outcome, Listed) and outcome.form != "json"
    table, form = (outcome.table, outcome.form) if isinstance(outcome, Listed) else (outcome, form)
    if fault is not None and fault.kind in LIST_FAULTS:
        bent = bend_table(table, fault)
        if isinstance(bent, Answer):
            return bent
        table = bent
    try:
        return render_table(table, form, always=always)
    except ValueError:
        return Answer(status=500, content_type="text/plain", body=ERROR_500.encode())


def make_answer(answer: Answer, fault: Fault | None, *, head_only: bool) -> Reply:
    """An answer from memory on its way out. Pure."""
    headers = (f"Content-Type: {answer.content_type}", *answer.headers, CORS)
    reply = wire.make_reply(answer.status, headers, answer.body, head_only=head_only)
    return msgspec.structs.replace(reply, fault=fault)


def _page(status: int) -> Answer:
    return Answer(status=status, content_type="text/html")
