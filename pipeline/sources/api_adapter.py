"""How one request to an archive site's API is made: bounded in time and size, read whole, checked before it is kept.

Import this module only where it is used: requests takes a while.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from pipeline.sources.api_body import ShapeError, clean_text
from pipeline.transport.retry import check_stop

T = TypeVar("T")
# Reads an answer by the path of its URL: falsy when it says nothing; raises `ShapeError`.
Parse = Callable[[str, bytes], Any]


class EmptyAnswerError(requests.RequestException):
    """200 or 204 with nothing in it: no match, a failed database and an expired token look alike."""


class UnfitAnswerError(requests.RequestException):
    """An answer that cannot be read; `problem` says why."""

    def __init__(self, problem: ShapeError) -> None:
        super().__init__(str(problem))
        self.problem = problem


class CheckedAdapter(HTTPAdapter):
    """Reads and checks each answer whole, before anything else sees it. Never asks twice; keeps no cookies."""

    def __init__(self, parse: Parse, timeout: tuple[float, float], max_bytes: int) -> None:
        super().__init__()
        self._parse = parse
        self._timeout = timeout
        self._max_bytes = max_bytes

    def send(self, request: requests.PreparedRequest, *rest: Any, **options: Any) -> requests.Response:
        """Send; raises `requests.RequestException`, also for an answer that is empty, unfit, short or too large."""
        options |= {"timeout": self._timeout, "stream": True}
        response = super().send(request, *rest, **options)
        try:
            body = self._read(response)
        finally:
            response.close()
        for headers in (response.headers, response.raw.headers):
            headers.pop("Set-Cookie", None)
            headers.pop("Vary", None)  # one session always sends the same; accounts have caches of their own
        response.cookies.clear()
        response._content = body  # noqa: SLF001 -- as if read by `response.content`, which has no bound
        if response.status_code in {200, 204}:
            try:
                parsed = self._parse(urlsplit(request.url or "").path, body) if body.strip() else None
            except ShapeError as problem:
                raise UnfitAnswerError(problem) from None
            if not parsed:
                raise EmptyAnswerError("an empty answer")
            response.__dict__["parsed"] = parsed  # spares reading it a second time
        return response

    def _read(self, response: requests.Response) -> bytes:
        length = response.headers.get("Content-Length", "")
        body = bytearray()
        too_large = length.isdecimal() and int(length[:20]) > self._max_bytes
        for chunk in () if too_large else response.iter_content(1 << 16):
            body += chunk
            if len(body) > self._max_bytes:
                too_large = True
                break
        if too_large:
            raise UnfitAnswerError(ShapeError(f"more than {self._max_bytes} bytes"))
        if length.isdecimal() and response.raw.tell() < int(length[:20]):
            raise requests.ConnectionError(f"{response.raw.tell()} of {length} bytes")
        return bytes(body)


class Authorization(requests.auth.AuthBase):
    """The token, if any; and in any case not what ~/.netrc has for the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def within(seconds: float, work: Callable[[], T], stop: threading.Event) -> T:
    """Do work for so many seconds at most: a server may trickle headers and body for ever without any timeout's notice.

    What takes longer is left behind in a thread that ends with the process. Raises `TimeoutError`,
    `InterruptedRunError`, and what the work raises.
    """
    if seconds <= 0:
        raise TimeoutError
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
            done.put((None, error))

    threading.Thread(target=run, daemon=True, name="site-api").start()
    waited = 0.0
    while True:
        step = min(0.25, seconds - waited)
        try:
            result, error = done.get(timeout=step)
        except queue.Empty:
            check_stop(stop)
            waited += step
            if waited >= seconds:
                raise TimeoutError from None
            continue
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def explain_fault(error: BaseException) -> str:
    """Say why a connection failed, without addresses of objects and credentials of a proxy."""
    inner: Any = error
    for _ in range(4):
        inner = next((a for a in getattr(inner, "args", ()) if isinstance(a, BaseException)), inner)
        inner = getattr(inner, "reason", None) if isinstance(getattr(inner, "reason", None), Exception) else inner
    text = re.sub(r"^<?[A-Za-z.0-9_ ]*(object at 0x[0-9a-f]+>|\([^)]*\)):\s*", "", clean_text(str(inner)))
    text = re.sub(r"//[^/@\s]*@", "//…@", text)
    return f"{type(error).__name__}: {text[:300]}"
