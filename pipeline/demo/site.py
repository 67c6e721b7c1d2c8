"""An archive site on this machine: the part of S3 that anonymous readers use, with faults on demand.

`with DemoSite(store) as site:` serves from threads of this process; `python -m pipeline.demo ROOT` from a process
of its own, which ends with its parent or after its lifetime. Binds to 127.0.0.1 only.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import select
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from pipeline.demo import s3, wire
from pipeline.demo.bucket import MIRROR_NAMES, Bucket, Store, StoredObject
from pipeline.demo.faults import (
    GET_KINDS,
    HEAD_KINDS,
    LIST_KINDS,
    Fault,
    FaultPlan,
    Faults,
    read_fault_plan,
    render_wrong_etag,
)
from pipeline.demo.stats import Asked, Stats, Verb
from pipeline.demo.wire import Reply, Request
from pipeline.errors import ConfigError

STATS_PATH = "/_stats"
_HTML = b"<html><head><title>Gateway</title></head><body><h1>Please sign in to the network</h1></body></html>\n"
_ERROR_OF_FAULT = {
    "error-500": "InternalError",
    "error-503": "ServiceUnavailable",
    "slow-down": "SlowDown",
    "forbidden": "AccessDenied",
}


class DemoSite:
    """Serves a store as S3 does, path style: `{url}/{bucket}/{key}`.

    Parameters
    ----------
    store
        What to serve; not to be changed meanwhile.
    faults
        May be changed meanwhile: `site.faults.set("*.dcm", Fault(kind="reset", times=1))`.
    mirror
        `only`: buckets have their GCS names and no others; `also`: both names.
    page_size
        Most keys on a page of a listing.
    latency
        Seconds before each answer begins.
    checksums
        Whether objects have a SHA-256 to give to whoever sends `x-amz-checksum-mode: ENABLED`.
    requests_per_connection
        After so many the site closes the connection; 0: never.
    faults_file
        Read again whenever it changes, in place of `faults`; see `faults.FaultPlan`.
    listener
        A listening socket that other processes may share, in place of one of its own on `port`.
    """

    def __init__(
        self,
        store: Store,
        faults: Faults | FaultPlan | None = None,
        *,
        mirror: Literal["", "only", "also"] = "",
        page_size: int = 1000,
        latency: float = 0.0,
        checksums: bool = False,
        requests_per_connection: int = 0,
        faults_file: Path | None = None,
        port: int = 0,
        listener: socket.socket | None = None,
    ) -> None:
        self.faults = faults if isinstance(faults, Faults) else Faults(faults)
        self.stats = Stats()
        self.latency = latency
        self.page_size = page_size
        self.checksums = checksums
        self.requests_per_connection = requests_per_connection
        self._mirror = mirror != ""
        names = {} if mirror == "only" else dict(store.buckets)
        if mirror:
            names |= {MIRROR_NAMES.get(name, name): bucket for name, bucket in store.buckets.items()}
        self._buckets: dict[str, Bucket] = names
        self._faults_file = faults_file
        self._faults_seen: tuple[int, int] | None = None
        self._reading_faults = threading.Lock()
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._wake, self._woken = socket.socketpair()
        self._listener = listener or socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listener.setblocking(False)  # another process may take the connection that woke this one
        self._port = int(self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, name="demo-site", daemon=True)

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """The endpoint for clients, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Begin to answer."""
        self._reread_faults()
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Stop: no port, no connection and no thread is left. May be called twice."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._wake.close()
        if self._acceptor.ident is not None:
            self._acceptor.join()
        self._listener.close()
        self._woken.close()
        with self._lock:
            threads = list(self._open.values())
            for sock in self._open:
                with contextlib.suppress(OSError):  # the client may have closed it first
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while not self._stop.is_set():
            poll.poll()
            if self._stop.is_set():
                return
            try:
                sock, _ = self._listener.accept()
            except (ConnectionError, BlockingIOError):
                continue  # the client gave up while it waited, or another process answers it
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._converse, args=(sock,), name="demo-connection", daemon=True)
            with self._lock:
                self._open[sock] = thread
            self.stats.connection_opened()
            thread.start()

    def _converse(self, sock: socket.socket) -> None:
        buffer = bytearray()
        try:
            for served in itertools.count(1):
                request = self._read(sock, buffer)
                if request is None or self._stop.is_set():
                    return
                last = served == self.requests_per_connection or not request.keep_alive
                if not self._answer(sock, request, keep_alive=not last):
                    return
        except ConnectionError:
            return  # the client has gone: nobody to tell
        except ValueError:
            error = s3.S3Error("InvalidRequest")
            reply = wire.make_reply(error.status, (), s3.render_error(error, "", "0"), head_only=False)
            with contextlib.suppress(ConnectionError):
                wire.send_reply(sock, reply, self._stop, keep_alive=False)
        finally:
            with self._lock:
                self._open.pop(sock, None)
            self.stats.connection_closed()
            sock.close()

    def _read(self, sock: socket.socket, buffer: bytearray) -> Request | None:
        return wire.read_head(sock, buffer)

    def _answer(self, sock: socket.socket, request: Request, *, keep_alive: bool) -> bool:
        head_only = request.method == "HEAD"
        if request.target == STATS_PATH:
            body = msgspec.json.encode(self.stats.snapshot(self.faults.struck))
            reply = wire.make_reply(200, ("Content-Type: application/json",), body, head_only=head_only)
            return wire.send_reply(sock, reply, self._stop, keep_alive=keep_alive)[1]
        if self._faults_file is not None:
            self._reread_faults()
        target = s3.parse_target(request.target)
        verb = choose_verb(request.method, target)
        key = target.query.get("prefix", "") if verb == "LIST" else target.key
        if self.latency:
            self._stop.wait(self.latency)
        try:
            reply = self._plan_reply(request, target, verb, key)
        except s3.S3Error as error:
            text = s3.render_error(error, f"/{target.bucket}/{target.key}", f"{next(self._numbers):016X}")
            extra = (f"Retry-After: {error.details['RetryAfter']}",) if "RetryAfter" in error.details else ()
            if error.code == "InvalidRange":
                extra = (f"Content-Range: bytes */{error.details['ActualObjectSize']}",)
            reply = wire.make_reply(error.status, ("Content-Type: application/xml", *extra), text, head_only=head_only)
        headers = request.headers
        self.stats.request_started(
            Asked(verb, target.bucket, key, reply.status, headers.get("range", ""), headers.get("user-agent", ""))
        )
        sent = 0
        try:
            # A body is not read for another method, so what follows on the connection would not be understood.
            sent, keep = wire.send_reply(sock, reply, self._stop, keep_alive=keep_alive and verb != "OTHER")
        finally:
            self.stats.request_ended(sent)
        return keep

    def _plan_reply(self, request: Request, target: s3.Target, verb: Verb, key: str) -> Reply:
        if verb == "OTHER":
            raise s3.S3Error("AccessDenied" if request.method == "GET" else "MethodNotAllowed")
        bucket = self._buckets.get(target.bucket)
        if bucket is None:
            raise s3.S3Error("NoSuchBucket", BucketName=target.bucket)
        if verb == "HEAD-BUCKET":
            return wire.make_reply(200, ("x-amz-bucket-region: us-east-1",), b"", head_only=True)
        is_list = verb == "LIST"
        kinds = LIST_KINDS if is_list else GET_KINDS if verb == "GET" else HEAD_KINDS
        fault = self.faults.strike(key, "list" if is_list else "object", kinds=kinds)
        if fault is not None:
            if fault.kind == "delay":
                self._stop.wait(fault.seconds)
            elif (early := plan_status_fault(fault, head_only=request.method == "HEAD")) is not None:
                return early
        if is_list:
            query = s3.parse_list_query(target.query, self.page_size)
            page = s3.plan_page(bucket, query, self.faults.view if self.faults.plan != FaultPlan() else None)
            body = s3.render_page(target.bucket, query, page)
            reply = wire.make_reply(200, ("Content-Type: application/xml",), body, head_only=False)
            return msgspec.structs.replace(reply, fault=fault)
        item = bucket.objects.get(key) or bucket.objects.get(self.faults.extra_of(key))
        if item is None or (fault is not None and fault.kind == "vanish"):
            raise s3.S3Error("NoSuchKey", Key=key)
        return plan_object(request, item, fault, checksums=self.checksums, mirror=self._mirror)

    def _reread_faults(self) -> None:
        if self._faults_file is None:
            return
        try:
            state = self._faults_file.stat()
            seen = (state.st_mtime_ns, state.st_size)
        except FileNotFoundError:
            seen = (0, 0)
        if seen == self._faults_seen:
            return
        with self._reading_faults:
            try:
                self.faults.plan = read_fault_plan(self._faults_file)
            except ConfigError as error:  # half written, or wrong: the former plan holds, and the operator is told
                print(f"demo site: {error}", file=sys.stderr, flush=True)
            self._faults_seen = seen


def choose_verb(method: str, target: s3.Target) -> Verb:
    """Say what kind of request it is. Pure."""
    if method not in {"GET", "HEAD"} or not target.bucket:
        return "OTHER"
    if target.key:
        return "GET" if method == "GET" else "HEAD"
    return "LIST" if method == "GET" else "HEAD-BUCKET"


def plan_status_fault(fault: Fault, *, head_only: bool) -> Reply | None:
    """The answer of a fault that needs no object; None for the others. Raises `S3Error` for errors. Pure."""
    if fault.kind == "hangup":
        return Reply(status=500, headers=(), hang_up=True)
    if fault.kind == "html":
        return wire.make_reply(200, ("Content-Type: text/html",), _HTML, head_only=head_only)
    if fault.kind in _ERROR_OF_FAULT:
        wait = {"RetryAfter": f"{fault.seconds:.0f}"} if fault.kind == "slow-down" and fault.seconds else {}
        raise s3.S3Error(_ERROR_OF_FAULT[fault.kind], **wait)
    return None


def plan_object(
    request: Request, item: StoredObject, fault: Fault | None, *, checksums: bool = False, mirror: bool = False
) -> Reply:
    """The answer to GET or HEAD of an object: all of it, a range, or that it has not changed. Pure.

    Raises
    ------
    S3Error
        PreconditionFailed or InvalidRange.
    """
    asked = request.headers
    wrong = fault is not None and fault.kind in {"etag-get", "etag-both"}
    etag = render_wrong_etag(item.etag) if wrong else item.etag
    headers = [f'ETag: "{etag}"', f"Last-Modified: {item.last_modified}", "Accept-Ranges: bytes"]
    if s3.check_conditions(asked, etag, item.modified) == "not-modified":
        return Reply(status=304, headers=tuple(headers))
    headers.append("Content-Type: application/dicom")
    size = item.size
    if fault is not None and fault.kind == "short":
        size = min(int(size * fault.at), max(size - 1, 0))
    spec = asked.get("range", "")
    usable = not (fault is not None and fault.kind == "ignore-range")
    fresh = "if-range" not in asked or asked["if-range"].strip('"') == etag
    span = s3.choose_range(spec, size) if spec and usable and fresh else None
    start, end = span or (0, size)
    if span:
        headers.append(f"Content-Range: bytes {start}-{end - 1}/{size}")
    elif checksums and asked.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        headers += [
            f"x-amz-checksum-sha256: {base64.b64encode(item.sha256).decode()}",
            "x-amz-checksum-type: FULL_OBJECT",
        ]
    if mirror and "-" not in item.etag:
        headers.append(f"x-goog-hash: md5={base64.b64encode(item.md5).decode()}")
    body = wire.EMPTY if request.method == "HEAD" else wire.Body(item.data or b"", start, end, item.path)
    return Reply(
        status=206 if span else 200,
        headers=tuple(headers),
        body=body,
        length=end - start,
        fault=fault,
    )
