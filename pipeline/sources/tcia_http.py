"""One call to TCIA's API: through the planner's cache, tried again with patience, bounded in time and size.

Nothing that is empty, cut short or of a wrong shape gets into the cache: an answer is read before it is kept.
Import this module only where it is used: requests takes a while.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import threading
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import requests
from platformdirs import user_cache_dir
from requests.adapters import HTTPAdapter

from pipeline.errors import ConfigError, CredentialsError, SiteUnavailableError
from pipeline.sources.http_cache import MAX_BYTES, planner_session
from pipeline.sources.tcia_api import ENDPOINTS, Call, parse_answer
from pipeline.sources.tcia_body import GarbledError, ShapeError, clean_text, explain_refusal
from pipeline.sources.tcia_token import TokenSource
from pipeline.transport.retry import (
    Policy,
    Runtime,
    Verdict,
    check_stop,
    choose_next,
    classify_failure,
    parse_retry_after,
    pause,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
_LATER = "try again later; `offline` plans from answers that are kept"


class BadAnswerError(SiteUnavailableError):
    """The site answers, but not with what was asked for: another version of the API may."""


class RefusedCallError(ConfigError):
    """The site refuses this call as it is (400): asking again is of no use."""


class _EmptyAnswerError(requests.RequestException):
    """200 or 204 with nothing in it: no match, a failed database and an expired token look alike."""


class _UnfitAnswerError(requests.RequestException):
    def __init__(self, problem: ShapeError) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Adapter(HTTPAdapter):
    """Reads and checks each answer whole, before anything else sees it. Never asks twice; keeps no cookies."""

    def __init__(self, timeout: tuple[float, float], max_bytes: int) -> None:
        super().__init__()
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
        response.cookies.clear()
        response._content = body  # noqa: SLF001 -- as if read by `response.content`, which has no bound
        if response.status_code in {200, 204}:
            try:
                parsed = parse_answer(urlsplit(request.url or "").path, body) if body.strip() else None
            except ShapeError as problem:
                raise _UnfitAnswerError(problem) from None
            if not parsed:
                raise _EmptyAnswerError("an empty answer")
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
            raise _UnfitAnswerError(ShapeError(f"more than {self._max_bytes} bytes"))
        if length.isdecimal() and response.raw.tell() < int(length[:20]):
            raise requests.ConnectionError(f"{response.raw.tell()} of {length} bytes")
        return bytes(body)


class Api:
    """The calls of one client. `close` it.

    Parameters
    ----------
    cache_dir, expire, refresh, offline
        As `planner_session` has them; with a token, answers are kept apart from everybody's. `refresh` asks for each
        answer anew once.
    policy
        `attempts`, waits, and the `deadline` in seconds of a whole question.
    timeout
        Seconds to connect, and without a byte.
    attempt_seconds
        That one request may take, however it trickles.
    empty_attempts
        How often a call is sent before its empty answer is given back as such.
    """

    def __init__(
        self,
        *,
        cache_dir: Path | None = None,
        expire: float,
        refresh: bool = False,
        offline: bool = False,
        token: TokenSource | None = None,
        account: str = "",
        policy: Policy,
        runtime: Runtime | None = None,
        stop: threading.Event | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
        attempt_seconds: float = 300.0,
        empty_attempts: int = 2,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        folder = cache_dir or Path(user_cache_dir("medhaul")) / "http"
        if account:
            folder /= f"account-{hashlib.sha256(account.encode()).hexdigest()[:16]}"
        self._session = planner_session(folder, expire=expire, offline=offline)
        # Nothing of what the site says about caching fits a plan; expiry is the user's.
        self._session.settings.cache_control = False
        self._session.settings.allowable_methods = ("GET", "POST")
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, _Adapter(timeout, max_bytes))
        self._refresh = refresh and not offline
        self._refreshed: set[tuple[str, Call]] = set()
        self._offline = offline
        self._token = token
        self.policy = policy
        self.runtime = runtime or Runtime()
        self._stop = stop or threading.Event()
        self._attempt_seconds = attempt_seconds
        self._empty_attempts = empty_attempts

    def close(self) -> None:
        """Close connections and cache."""
        self._session.close()  # type: ignore[no-untyped-call]

    def ask(self, root: str, call: Call, end: float, *, fresh: bool = False) -> Any:
        """What a call gives, read; None when the site keeps saying nothing.

        Parameters
        ----------
        end
            Of the clock: no wait and no request goes beyond.
        fresh
            Do not use a kept answer.

        Raises
        ------
        BadAnswerError
            When the site answers, but with nothing of use.
        RefusedCallError
            For 400, with the site's reason.
        CredentialsError
            When the site refuses the token, or the credentials for one.
        SiteUnavailableError
            When it does not answer.
        InterruptedRunError
            When the client was told to stop.
        """
        where = f"{call.method} {root}/{call.path}"
        if call.params and call.method == "GET":
            where += clean_text(f"?{urlencode(call.params)}")[:200]
        failures = empties = 0
        rejected = False
        while True:
            check_stop(self._stop)
            verdict, after, problem = Verdict.RETRY, None, ""
            kind: type[SiteUnavailableError] = BadAnswerError
            token = self._token.get(self._stop) if self._token and not self._offline else ""
            left = end - self.runtime.clock()
            try:
                response = self._run(min(left, self._attempt_seconds), root, call, token, fresh=fresh)
                if response.status_code == 200:
                    parsed = self._read_kept(response, call)
                    if parsed:
                        return parsed
                    problem, fresh = "what was kept is damaged", True
                else:
                    after = parse_retry_after(response.headers.get("Retry-After", ""), self.runtime.wall())
                    problem, verdict = self._explain(response), classify_failure(response.status_code)
            except _EmptyAnswerError:
                empties += 1
                problem = "an empty answer"
                if empties >= self._empty_attempts:
                    return None
                if token and self._token and not rejected:  # v2 says so little when a token has expired
                    rejected = True
                    self._token.reject(token)
            except _UnfitAnswerError as error:
                problem = str(error)
                verdict = Verdict.RETRY if isinstance(error.problem, GarbledError) else Verdict.PERMANENT
            except requests.RequestException as error:
                problem, kind = _explain_fault(error), SiteUnavailableError
                certificate = "CERTIFICATE_VERIFY_FAILED" in str(error)
                verdict = Verdict.PERMANENT if certificate else Verdict.RETRY
            except TimeoutError:
                problem, kind = "no whole answer in time", SiteUnavailableError
            problem = self._token.scrub(problem) if self._token else problem
            if verdict is Verdict.FORBIDDEN and token and self._token:
                if not rejected:
                    rejected = True
                    self._token.reject(token)
                    continue
                raise CredentialsError(f"{where}: {problem}", hint="check what the account may see, or use none")
            failures += 1
            left = end - self.runtime.clock()
            delay = choose_next(self.policy, verdict, failures, after, left, self.runtime.random)
            if self._offline:
                raise BadAnswerError(f"{where}: {problem}", hint="plan once with a network connection")
            if delay is None or verdict is Verdict.UNSATISFIABLE or verdict is Verdict.CHANGED:
                if problem.startswith("400"):
                    raise RefusedCallError(f"{where}: {problem}", hint="check the names and UIDs that were asked for")
                raise kind(f"{where}: {problem}", hint=_LATER)
            logger.info("%s: %s; asking again in %.1f s", where, problem, delay)
            pause(self.runtime, self._stop, delay)

    @staticmethod
    def _read_kept(response: requests.Response, call: Call) -> Any:
        parsed = response.__dict__.get("parsed")
        if parsed:
            return parsed
        try:
            return parse_answer(call.endpoint, response.content)
        except ShapeError:  # kept by another version of medhaul, or damaged since
            return None

    def _explain(self, response: requests.Response) -> str:
        status = response.status_code
        if self._offline and status == 504:
            return "not in the cache"
        if 300 <= status < 400:
            target = response.headers.get("Location", "").partition("?")[0]
            return f"{status}, it has moved to {clean_text(target)[:200]}"
        text = explain_refusal(response.content)
        return f"{status} {clean_text(response.reason or '')}: {text}"

    def _run(self, seconds: float, root: str, call: Call, token: str, *, fresh: bool) -> requests.Response:
        asked = (root, call)
        anew = fresh or (self._refresh and asked not in self._refreshed)
        keep = {} if ENDPOINTS[call.endpoint].kept else {"Cache-Control": "no-store"}

        def request() -> requests.Response:
            return self._session.request(
                call.method,
                f"{root}/{call.path}",
                params=call.params if call.method == "GET" else None,
                data=call.params if call.method == "POST" else None,
                headers=keep,
                auth=_Bearer(token),
                allow_redirects=call.method == "GET",
                force_refresh=anew and not self._offline,
            )

        response = _within(seconds, request, self._stop)
        if response.status_code == 200:
            self._refreshed.add(asked)
        return response


class _Bearer(requests.auth.AuthBase):
    """The token, if any; and in any case not what ~/.netrc has for the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _within(seconds: float, work: Callable[[], T], stop: threading.Event) -> T:
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

    threading.Thread(target=run, daemon=True, name="tcia-api").start()
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


def _explain_fault(error: BaseException) -> str:
    """Say why a connection failed, without addresses of objects and credentials of a proxy."""
    inner: Any = error
    for _ in range(4):
        inner = next((a for a in getattr(inner, "args", ()) if isinstance(a, BaseException)), inner)
        inner = getattr(inner, "reason", None) if isinstance(getattr(inner, "reason", None), Exception) else inner
    text = re.sub(r"^<?[A-Za-z.0-9_ ]*(object at 0x[0-9a-f]+>|\([^)]*\)):\s*", "", clean_text(str(inner)))
    text = re.sub(r"//[^/@\s]*@", "//…@", text)
    return f"{type(error).__name__}: {text[:300]}"
