"""One request to the API of an archive site: through the planner's cache, tried again with patience, bounded.

Nothing that is empty, cut short or of a wrong shape gets into the cache: an answer is read before it is kept.
Import this module only where it is used: requests takes a while.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
import requests
from platformdirs import user_cache_dir

from pipeline.errors import ConfigError, CredentialsError, MedhaulError, SiteUnavailableError
from pipeline.sources.api_adapter import (
    Authorization,
    CheckedAdapter,
    EmptyAnswerError,
    Parse,
    UnfitAnswerError,
    explain_fault,
    within,
)
from pipeline.sources.api_body import GarbledError, ShapeError, clean_text, explain_refusal
from pipeline.sources.api_secrets import Bearer
from pipeline.sources.http_cache import MAX_BYTES, planner_session
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

_LATER = "try again later; `offline` plans from answers that are kept"


class BadAnswerError(SiteUnavailableError):
    """The site answers, but not with what was asked for: another version of the API may."""


class RefusedCallError(ConfigError):
    """The site refuses this call as it is (400): asking again is of no use."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked.

    Attributes
    ----------
    params
        Of the query; of a POST's form.
    path
        By which the answer is read, should it be a kept one.
    kept
        Whether answers may be cached; `expire`: for how many seconds, if not for as long as others.
    """

    url: str
    path: str
    method: str = "GET"
    params: tuple[tuple[str, str], ...] = ()
    kept: bool = True
    expire: float | None = None

    def show(self) -> str:
        """The request in a message: method, URL and the beginning of its query."""
        where = f"{self.method} {self.url.partition('?')[0]}"
        query = urlsplit(self.url).query
        if self.params and self.method == "GET":
            query = urlencode(self.params)
        return where + (clean_text(f"?{query}")[:200] if query else "")


class Answer(msgspec.Struct, frozen=True):
    """What came, read. `kept`: out of the cache; `at`: when the site said so, in seconds since 1970."""

    value: Any
    kept: bool
    at: float


class ApiSession:
    """The requests of one client. `close` it. A site's own ways are methods to override: `_explain`, `_refuse`.

    Parameters
    ----------
    parse
        Reads answers; see `Parse`.
    logger
        Gets a line for each wait.
    cache_dir, expire, refresh, offline
        As `planner_session` has them; with an account, answers are kept apart from everybody's. `refresh` asks for
        each answer anew once.
    may_keep
        Which answers may be kept, beside that they must be fit.
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
        parse: Parse,
        logger: logging.Logger,
        *,
        cache_dir: Path | None = None,
        expire: float,
        refresh: bool = False,
        offline: bool = False,
        may_keep: Callable[[requests.Response], bool] | None = None,
        token: Bearer | None = None,
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
        self._session = planner_session(folder, expire=expire, offline=offline, keep=may_keep)
        # Nothing of what the site says about caching fits a plan; expiry is the user's.
        self._session.settings.cache_control = False
        self._session.settings.allowable_methods = ("GET", "POST")
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, CheckedAdapter(parse, timeout, max_bytes))
        self._parse = parse
        self._logger = logger
        self._refresh = refresh and not offline
        self._refreshed: set[Request] = set()
        self.offline = offline
        self._token = token
        self.policy = policy
        self.runtime = runtime or Runtime()
        self._stop = stop or threading.Event()
        self._attempt_seconds = attempt_seconds
        self._empty_attempts = empty_attempts

    def close(self) -> None:
        """Close connections and cache."""
        self._session.close()  # type: ignore[no-untyped-call]

    def ask_request(self, request: Request, end: float, *, fresh: bool = False) -> Answer | None:
        """What a request gives; None when the site keeps saying nothing.

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
        where = request.show()
        failures = empties = 0
        rejected = self._token is None or not self._token.renewable
        while True:
            check_stop(self._stop)
            verdict, after, problem = Verdict.RETRY, None, ""
            refusal: MedhaulError | None = None
            kind: type[SiteUnavailableError] = BadAnswerError
            token = self._token.get(self._stop) if self._token and not self.offline else ""
            left = end - self.runtime.clock()
            try:
                response = self._run(min(left, self._attempt_seconds), request, token, fresh=fresh)
                if response.status_code == 200:
                    answer = self._read_kept(response, request)
                    if answer:
                        return answer
                    problem, fresh = "what was kept is damaged", True
                else:
                    after = parse_retry_after(response.headers.get("Retry-After", ""), self.runtime.wall())
                    problem, verdict = self._explain(response), classify_failure(response.status_code)
                    problem = self._token.scrub(problem) if self._token else problem
                    refusal = self._refuse(response, f"{where}: {problem}")
            except EmptyAnswerError:
                empties += 1
                problem = "an empty answer"
                if empties >= self._empty_attempts:
                    return None
                if token and self._token and not rejected:  # some say so little when a token has expired
                    rejected = True
                    self._token.reject(token)
            except UnfitAnswerError as error:
                problem = str(error)
                verdict = Verdict.RETRY if isinstance(error.problem, GarbledError) else Verdict.PERMANENT
            except requests.RequestException as error:
                problem, kind = explain_fault(error), SiteUnavailableError
                certificate = "CERTIFICATE_VERIFY_FAILED" in str(error)
                verdict = Verdict.PERMANENT if certificate else Verdict.RETRY
            except TimeoutError:
                problem, kind = "no whole answer in time", SiteUnavailableError
            problem = self._token.scrub(problem) if self._token else problem
            if verdict is Verdict.FORBIDDEN and token and self._token and not rejected:
                rejected = True
                self._token.reject(token)
                continue
            if verdict is Verdict.FORBIDDEN and token and not refusal:
                raise CredentialsError(f"{where}: {problem}", hint="check what the account may see, or use none")
            failures += 1
            left = end - self.runtime.clock()
            delay = choose_next(self.policy, verdict, failures, after, left, self.runtime.random)
            if self.offline:
                raise BadAnswerError(f"{where}: {problem}", hint="plan once with a network connection")
            if refusal:
                raise refusal
            if delay is None or verdict is Verdict.UNSATISFIABLE or verdict is Verdict.CHANGED:
                raise kind(f"{where}: {problem}", hint=_LATER)
            self._logger.info("%s: %s; asking again in %.1f s", where, problem, delay)
            pause(self.runtime, self._stop, delay)

    def _read_kept(self, response: requests.Response, request: Request) -> Answer | None:
        kept = bool(getattr(response, "from_cache", False))
        made = getattr(response, "created_at", None)
        at = made.timestamp() if kept and made else self.runtime.wall()
        parsed = response.__dict__.get("parsed")
        if not parsed:
            try:
                parsed = self._parse(request.path, response.content)
            except ShapeError:  # kept by another version of medhaul, or damaged since
                return None
        return Answer(value=parsed, kept=kept, at=at) if parsed else None

    def _explain(self, response: requests.Response) -> str:
        """Say what an answer other than 200 means."""
        status = response.status_code
        if self.offline and status == 504:
            return "not in the cache"
        if 300 <= status < 400:
            target = response.headers.get("Location", "").partition("?")[0]
            return f"{status}, it has moved to {clean_text(target)[:200]}"
        text = explain_refusal(response.content)
        return f"{status} {clean_text(response.reason or '')}: {text}"

    def _refuse(self, response: requests.Response, message: str) -> MedhaulError | None:
        """The error for an answer that is the user's to mend: asked once. None for others."""
        if response.status_code == 400:
            return RefusedCallError(message, hint="check the names and UIDs that were asked for")
        return None

    def _run(self, seconds: float, asked: Request, token: str, *, fresh: bool) -> requests.Response:
        anew = fresh or (self._refresh and asked not in self._refreshed)
        keep = {} if asked.kept else {"Cache-Control": "no-store"}
        options: dict[str, Any] = {} if asked.expire is None or not asked.kept else {"expire_after": asked.expire}

        def request() -> requests.Response:
            return self._session.request(
                asked.method,
                asked.url,
                params=asked.params if asked.method == "GET" else None,
                data=asked.params if asked.method == "POST" else None,
                headers=keep,
                auth=Authorization(token),
                allow_redirects=asked.method == "GET",
                force_refresh=anew and not self.offline,
                **options,
            )

        response = within(seconds, request, self._stop)
        if self._refresh and response.status_code == 200:
            self._refreshed.add(asked)
        return response
