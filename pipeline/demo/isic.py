"""The ISIC Archive on this machine: its API v2, and its bucket and signed URLs of images, with faults on demand.

`with IsicSite(archive) as site:` serves `{url}/api/v2/...`, `{url}/isic-archive/images/ISIC_0000001.jpg` and
`{url}/content/...` from threads of this process; given a store too, also its objects, as `DemoSite` does. Several
processes on one port: `pipeline.demo.isic_process`. Binds to 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from pipeline.demo import isic_bulk, isic_calls, nbia_wire, s3, wire
from pipeline.demo.bucket import Store, StoredObject
from pipeline.demo.faults import Fault, FaultPlan, Faults
from pipeline.demo.isic_answer import Answer, CallError, answer_json, answer_page, answer_text, make_reply, plan_refusal
from pipeline.demo.isic_bodies import Sizes, make_file
from pipeline.demo.isic_faults import (
    API_FAULTS,
    FILE_FAULTS,
    HEAD_FAULTS,
    LIST_FAULTS,
    RECORD_FAULTS,
    bend_record,
)
from pipeline.demo.isic_files import find_file, plan_file, refuse_file, refuse_signature
from pipeline.demo.isic_pages import BadParameterError
from pipeline.demo.isic_records import NOBODY, USERS, IsicArchive, IsicImage, IsicUser
from pipeline.demo.isic_view import BUCKET, CONTENT, IsicView, Signed
from pipeline.demo.isic_zip import write_zip
from pipeline.demo.nbia_wire import PostedRequest
from pipeline.demo.site import DemoSite
from pipeline.demo.stats import Asked, Verb
from pipeline.demo.wire import Body, Reply, Request

API = "/api/v2/"
TOKENS = {f"demo-{user.name}-token": user.name for user in USERS}
_STREAMED = -1  # in the place of a length
_FILES_KEPT = 256


class IsicSite(DemoSite):
    """Serves an archive as the ISIC Archive does, and a store as S3 does.

    Parameters
    ----------
    archive
        What to serve.
    store
        Objects to serve as well.
    faults
        May be changed meanwhile, `site.faults.set("images/*", Fault(kind="short", times=1))`; see
        `pipeline.demo.isic_faults`.
    sizes
        What the API says of files' sizes: `exact`; `ingest`, of JPEGs about 3 kB too few; `absent`, nothing.
    signed
        Which images have signed URLs, `private` or `all`.
    url_lifetime
        Seconds for which they are good; 0: to midnight (UTC) and 7 days more.
    tokens
        Bearer tokens and the names of users (`owner`, `other`, `staff`); `site.tokens` may be changed meanwhile.
    latency
        Seconds before each answer begins.
    clock
        Seconds since 1970, for signatures and their ends.
    """

    def __init__(
        self,
        archive: IsicArchive,
        store: Store | None = None,
        faults: Faults | FaultPlan | None = None,
        *,
        sizes: Sizes = "exact",
        signed: Signed = "private",
        url_lifetime: float = 0.0,
        tokens: Mapping[str, str] | None = None,
        latency: float = 0.0,
        faults_file: Path | None = None,
        clock: Callable[[], float] = time.time,
        port: int = 0,
        listener: socket.socket | None = None,
    ) -> None:
        super().__init__(
            store or Store(), faults, latency=latency, faults_file=faults_file, port=port, listener=listener
        )
        self.archive = archive
        self.view = IsicView(archive, clock, sizes=sizes, signed=signed, url_lifetime=url_lifetime)
        self.view.url = self.url
        self.tokens = dict(TOKENS if tokens is None else tokens)
        self._revisions: dict[int, int] = {}
        self._calls: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._make = functools.lru_cache(maxsize=_FILES_KEPT)(self._make_file)

    @property
    def api_url(self) -> str:
        """The root of the API, without a slash at its end."""
        return self.url + API.rstrip("/")

    @property
    def published(self) -> int:
        """How many images there are so far, the oldest; may be changed, to have a list that grows."""
        return self.view.published

    @published.setter
    def published(self, count: int) -> None:
        self.view.published = min(count, len(self.archive.images))

    def withdraw(self, isic_id: str) -> None:
        """Take an image out of everything, its file too; KeyError when there is none."""
        place = self.archive.find(isic_id)
        if place is None:
            raise KeyError(isic_id)
        self.view.withdrawn |= {place}

    def revise(self, isic_id: str) -> None:
        """Correct the file of an image: from now on it has other bytes; KeyError when there is none."""
        number = self.archive.image(isic_id).number
        self._revisions[number] = self._revisions.get(number, 0) + 1

    def file_of(self, isic_id: str, *, thumbnail: bool = False) -> StoredObject:
        """The file of an image as it is now, with its bytes and hashes; KeyError when there is none."""
        image = self.archive.image(isic_id)
        return self._make(image.number, thumbnail, self._revisions.get(image.number, 0))

    def calls(self) -> dict[str, int]:
        """How often each endpoint was asked: `images/search`, `images/{id}`, `file`, `thumbnail`, `zip`."""
        with self._counting:
            return dict(self._calls)

    def _make_file(self, number: int, thumbnail: bool, revision: int) -> StoredObject:
        place = self.archive.place_of(number)
        if place is None:
            raise KeyError(number)
        image = self.archive.images[place]
        key = image.thumbnail_key if thumbnail else image.key
        return make_file(image, key, thumbnail=thumbnail, revision=revision)

    def _count(self, name: str) -> None:
        with self._counting:
            self._calls[name] += 1

    def _read(self, sock: socket.socket, buffer: bytearray) -> Request | None:
        return nbia_wire.read_request(sock, buffer)

    def _answer(self, sock: socket.socket, request: Request, *, keep_alive: bool) -> bool:
        target = request.target
        if target.startswith("http://"):
            target = "/" + target[7:].partition("/")[2]
        path, _, query = target.partition("?")
        path = unquote(path)
        website = isic_bulk.WEBSITE.fullmatch(path)
        if not path.startswith("/api/") and path != isic_bulk.ZIP_PATH and website is None:
            return super()._answer(sock, request, keep_alive=keep_alive)
        self._reread_faults()
        if self.latency:
            self._stop.wait(self.latency)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        key = "isic/" + path.removeprefix(API).strip("/")
        fault = self.faults.strike(key, "object", kinds=API_FAULTS)
        if fault is not None and fault.kind == "delay":
            self._stop.wait(fault.seconds)
        with contextlib.ExitStack() as spool:
            if fault is not None and fault.kind == "hangup":
                reply = Reply(status=500, headers=(), hang_up=True)
            else:
                answer = self._plan_answer(request, path, query, fault)
                if answer.stream is not None:
                    reply = self._spool(answer, spool, fault)
                else:
                    reply = make_reply(answer, fault, zipped=zipped)
            verb: Verb = "GET" if request.method == "GET" else "HEAD" if request.method == "HEAD" else "OTHER"
            asked = Asked(verb, "isic-api", key, reply.status, "", request.headers.get("user-agent", ""))
            self.stats.request_started(asked)
            return self._send(sock, request, reply, keep_alive=keep_alive)

    def _send(self, sock: socket.socket, request: Request, reply: Reply, *, keep_alive: bool) -> bool:
        sent, head = 0, request.method == "HEAD"
        try:
            if reply.length == _STREAMED and not reply.hang_up:
                sent, keep = nbia_wire.send_chunked(sock, reply, self._stop, keep_alive=keep_alive, head_only=head)
            else:
                shown = msgspec.structs.replace(reply, body=wire.EMPTY) if head else reply
                sent, keep = wire.send_reply(sock, shown, self._stop, keep_alive=keep_alive)
        finally:
            self.stats.request_ended(sent)
        return keep

    def _spool(self, answer: Answer, spool: contextlib.ExitStack, fault: Fault | None) -> Reply:
        """A stream as a file on its way out, in chunks: however long, it takes no memory."""
        file = tempfile.NamedTemporaryFile(prefix="medhaul-isic-")  # noqa: SIM115 - the stack closes it
        spool.enter_context(file)
        for piece in answer.stream or ():
            file.write(piece)
        file.flush()
        body = Body(b"", 0, file.tell(), file.name)
        headers = (f"Content-Type: {answer.content_type}", *answer.headers)
        return Reply(status=answer.status, headers=headers, body=body, length=_STREAMED, fault=fault)

    def _plan_answer(self, request: Request, path: str, query: str, fault: Fault | None) -> Answer:
        if fault is not None and (early := plan_refusal(fault)) is not None:
            self._count("refused")
            return early
        user = self._user(request) if fault is None or fault.kind != "anonymous" else NOBODY
        listed = fault if fault is not None and fault.kind in LIST_FAULTS else None
        call = isic_calls.Call(
            view=self.view,
            user=user,
            path=path.removeprefix(API),
            url=self.url + path,
            query=query,
            body=request.body if isinstance(request, PostedRequest) else b"",
            fault=listed,
            render=self._render,
        )
        try:
            return self._dispatch(call, request.method, path)
        except CallError as error:
            return error.answer
        except BadParameterError as error:
            return answer_json({"detail": error.errors}, 422)

    def _dispatch(self, call: isic_calls.Call, method: str, path: str) -> Answer:
        if path == isic_bulk.ZIP_PATH:
            self._count("zip")
            return self._plan_zip(call)
        if (website := isic_bulk.WEBSITE.fullmatch(path)) is not None:
            self._count("collections/{id}/metadata")
            return isic_bulk.show_collection_csv(msgspec.structs.replace(call, words=website.groups()))
        slashed = path if path.endswith("/") else f"{path}/"
        for wanted, pattern, name, handler in (*isic_calls.ROUTES, *isic_bulk.ROUTES):
            match = pattern.fullmatch(slashed.removeprefix(API)) if slashed.startswith(API) else None
            if match is None:
                continue
            self._count(name)
            if slashed != path and method in {"GET", "HEAD"}:
                where = f"{slashed}?{call.query}" if call.query else slashed
                return Answer(status=301, content_type="text/html; charset=utf-8", headers=(f"Location: {where}",))
            if method != wanted:
                return msgspec.structs.replace(answer_text("Method not allowed", 405), headers=(f"Allow: {wanted}",))
            return handler(msgspec.structs.replace(call, words=match.groups()))
        self._count("unknown")
        return answer_page(404)

    def _plan_zip(self, call: isic_calls.Call) -> Answer:
        places = isic_bulk.open_token(call, "zsid")

        def stream() -> Iterator[bytes]:
            with tempfile.TemporaryFile() as made:
                write_zip(self.view, places, made)
                made.seek(0)
                while piece := made.read(1 << 20):
                    yield piece

        name = "ISIC-images.zip" if len(places) != 1 else f"{self.archive.images[places[0]].isic_id}.zip"
        disposition = f'Content-Disposition: attachment; filename="{name}"'
        return Answer(content_type="application/zip", headers=(disposition,), stream=stream())

    def _user(self, request: Request) -> IsicUser:
        """Whom a request comes from; nobody when the token is not known, and nobody says so."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        name = self.tokens.get(token.strip()) if scheme.lower() == "bearer" else None
        return next((user for user in USERS if user.name == name), NOBODY)

    def _render(self, image: IsicImage) -> dict[str, Any]:
        record = self.view.render_image(image)
        if self.faults.plan == FaultPlan():
            return record
        fault = self.faults.strike(f"isic/record/{image.isic_id}", "object", kinds=RECORD_FAULTS)
        return bend_record(record, fault) if fault is not None else record

    def _plan_reply(self, request: Request, target: s3.Target, verb: Verb, key: str) -> Reply:
        if target.bucket not in {BUCKET, CONTENT}:
            return super()._plan_reply(request, target, verb, key)
        if verb not in {"GET", "HEAD"}:
            raise s3.S3Error("AccessDenied")  # nobody lists the bucket
        found = find_file(self.view, target)
        self._count("thumbnail" if found is not None and found.thumbnail else "file")
        name = found.fault_key if found is not None else key
        head_only = verb == "HEAD"
        fault = self.faults.strike(name, "object", kinds=HEAD_FAULTS if head_only else FILE_FAULTS)
        if fault is not None:
            if fault.kind == "delay":
                self._stop.wait(fault.seconds)
            elif (early := refuse_file(fault, target, head_only=head_only)) is not None:
                return msgspec.structs.replace(early, body=wire.EMPTY) if head_only else early
        if target.bucket == CONTENT and not self.view.check_signature(f"{CONTENT}/{target.key}", target.query):
            return refuse_signature(head_only=head_only)
        if found is None:
            raise s3.S3Error("NoSuchKey", Key=key)
        number, revision = found.image.number, self._revisions.get(found.image.number, 0)
        if fault is not None and fault.kind == "revised":
            revision += 1
        elif fault is not None and fault.kind == "swap":
            place = self.archive.find(fault.names[0]) if fault.names else self.archive.find(found.image.isic_id)
            # The one after it, unless the fault names another.
            place = place if fault.names or place is None else (place + 1) % len(self.archive.images)
            number = self.archive.images[place].number if place is not None else number
        return plan_file(request, found, self._make(number, found.thumbnail, revision), fault)
