"""Tokens for TCIA's API, off unless credentials are given: public collections need none.

A secret appears in a request's body or Authorization header, and nowhere else: neither in `repr`, messages, URLs, logs
nor the cache.
"""

from __future__ import annotations

import os
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CredentialsError, SiteUnavailableError
from pipeline.sources.api_body import GarbledError, explain_refusal, parse_json
from pipeline.sources.api_secrets import read_private_file
from pipeline.transport.retry import Policy, Runtime, Verdict, choose_next, classify_failure, parse_retry_after, pause

USERNAME, PASSWORD, CREDENTIALS_FILE = (
    "MEDHAUL_TCIA_USERNAME",
    "MEDHAUL_TCIA_PASSWORD",
    "MEDHAUL_TCIA_CREDENTIALS",
)
_KEYS = {"username", "password", "client_id", "client_secret"}
_HINT = 'the file has the lines username = "…" and password = "…", and chmod 600'
_TIMEOUT = (10.0, 30.0)


class Credentials:
    """A user's name and password. Neither shows in `repr` or `str`."""

    __slots__ = ("_client_secret", "_password", "client_id", "username")

    def __init__(self, username: str, password: str, client_id: str = "nbia", client_secret: str = "") -> None:
        self.username = username
        self.client_id = client_id
        self._password = password
        self._client_secret = client_secret

    def __repr__(self) -> str:
        return "Credentials(…)"

    def __reduce__(self) -> str:
        raise TypeError("credentials are not to be written anywhere")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def _all(self) -> tuple[str, str, str, str]:
        return self.username, self._password, self.client_id, self._client_secret

    def form(self) -> dict[str, str]:
        """The form that asks for a token with the password."""
        form = {"grant_type": "password", "username": self.username, "password": self._password}
        return form | self.client_form()

    def client_form(self) -> dict[str, str]:
        """What every form of this client has."""
        secret = {"client_secret": self._client_secret} if self._client_secret else {}
        return {"client_id": self.client_id, **secret}

    def scrub(self, text: str) -> str:
        """Take the secrets out of a text."""
        for secret in (self._password, self._client_secret):
            text = text.replace(secret, "…") if secret else text
        return text


def find_credentials(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Credentials | None:
    """Credentials of a file, or of the environment, or None where nobody gave any.

    In order: `path`; the file that `MEDHAUL_TCIA_CREDENTIALS` names; `MEDHAUL_TCIA_USERNAME` with
    `MEDHAUL_TCIA_PASSWORD`.

    Raises
    ------
    CredentialsError
        When the file cannot be used, or one variable is set without the other.
    """
    if path is None and environ.get(CREDENTIALS_FILE):
        path = Path(environ[CREDENTIALS_FILE]).expanduser()
    if path is not None:
        return read_credentials(path)
    username, password = environ.get(USERNAME, ""), environ.get(PASSWORD, "")
    if not username and not password:
        return None
    if not username or not password:
        raise CredentialsError(f"{USERNAME} and {PASSWORD} are of use together only", hint="set both, or neither")
    return Credentials(username, password)


def read_credentials(path: Path) -> Credentials:
    """Read credentials from a TOML file that nobody but its owner can read.

    Raises
    ------
    CredentialsError
        When others have any right to it, it is another user's, or not what it must be; never with what is in it.
    """
    data = read_private_file(path, hint=_HINT)
    values = _parse_file(data)
    if values is None or not {"username", "password"} <= set(values) <= _KEYS:
        raise CredentialsError(f"{path}: not a TOML file with username and password as texts", hint=_HINT)
    return Credentials(**values)


def _parse_file(data: bytes) -> dict[str, str] | None:
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # their texts may quote the file
        return None
    return values if all(isinstance(value, str) and value for value in values.values()) else None


class TokenSource:
    """A bearer token that is valid when asked for: one log-in, renewed before it expires. For many threads.

    Parameters
    ----------
    url
        Of the token endpoint; without credentials in it.
    """

    renewable = True

    def __init__(
        self, url: str, credentials: Credentials, *, policy: Policy | None = None, runtime: Runtime | None = None
    ) -> None:
        self._url = url
        self._credentials = credentials
        self._policy = policy or Policy(attempts=4, deadline=120.0)
        self._runtime = runtime or Runtime()
        self._lock = threading.Lock()
        self._access = self._refresh = ""
        self._renew_at = self._refresh_until = 0.0

    def __repr__(self) -> str:
        return "TokenSource(…)"

    def get(self, stop: threading.Event | None = None) -> str:
        """A token that is good for a while yet.

        Raises
        ------
        CredentialsError
            When the site refuses the credentials.
        SiteUnavailableError
            When it gives no token for another reason.
        InterruptedRunError
            When `stop` is set meanwhile.
        """
        with self._lock:
            if not self._access or self._runtime.clock() >= self._renew_at:
                self._renew(stop or threading.Event())
            return self._access

    def reject(self, token: str) -> None:
        """Say that the site did not take this token: the next `get` brings another, by the password."""
        with self._lock:
            if token == self._access:
                self._access = self._refresh = ""

    def scrub(self, text: str) -> str:
        """Take the secrets out of a text."""
        for secret in (self._access, self._refresh):
            text = text.replace(secret, "…") if secret else text
        return self._credentials.scrub(text)

    def _renew(self, stop: threading.Event) -> None:
        if self._refresh and self._runtime.clock() < self._refresh_until:
            form = {"grant_type": "refresh_token", "refresh_token": self._refresh, **self._credentials.client_form()}
            try:
                self._take(self._ask(form, stop))
            except CredentialsError:
                self._refresh = ""  # ended early; the password is still there
            else:
                return
        self._take(self._ask(self._credentials.form(), stop))

    def _take(self, answer: object) -> None:
        token = answer.get("access_token") if isinstance(answer, dict) else None
        # What may stand in a header: RFC 6750 section 2.1.
        if not isinstance(answer, dict) or not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SiteUnavailableError(f"{self._url}: the answer has no token", hint="check the URL of the tokens")
        now = self._runtime.clock()
        refresh = answer.get("refresh_token")
        lifetime = _seconds(answer.get("expires_in")) or 300.0
        self._access = token
        self._renew_at = now + lifetime - min(600.0, lifetime / 4)
        self._refresh = refresh if isinstance(refresh, str) else ""
        self._refresh_until = now + _seconds(answer.get("refresh_expires_in")) - 30.0

    def _ask(self, form: Mapping[str, str], stop: threading.Event) -> object:
        """Post a form; raises as `get`."""
        import requests

        end = self._runtime.clock() + self._policy.deadline
        failures = 0
        while True:
            failures += 1
            verdict, after, problem = Verdict.RETRY, None, ""
            try:
                with requests.Session() as session:
                    answer = session.post(
                        self._url, data=form, timeout=_TIMEOUT, allow_redirects=False, auth=_leave_alone
                    )
                status, data = answer.status_code, answer.content
                if status in {400, 401, 403}:
                    text = self.scrub(explain_refusal(data))
                    problem = f"{self._url}: {status}: {text}"
                    verdict = Verdict.FORBIDDEN
                elif status == 200:
                    return parse_json(data)
                else:
                    problem = f"{self._url}: {status} {answer.reason}"
                    verdict = classify_failure(status)
                    after = parse_retry_after(answer.headers.get("Retry-After", ""), self._runtime.wall())
            except requests.RequestException as error:
                problem = f"{self._url}: {type(error).__name__}"
            except GarbledError:
                problem = f"{self._url}: the answer is no JSON"
            if verdict is Verdict.FORBIDDEN:
                raise CredentialsError(problem, hint="check username and password; public collections need neither")
            left = end - self._runtime.clock()
            delay = choose_next(self._policy, verdict, failures, after, left, self._runtime.random)
            if delay is None:
                raise SiteUnavailableError(problem, hint="try again later, or without credentials")
            pause(self._runtime, stop, delay)


def _seconds(value: object) -> float:
    return float(min(value, 86_400 * 365)) if isinstance(value, int) and value > 0 else 0.0


def _leave_alone(request: Any) -> Any:
    """Stand in for an authentication: without one, requests sends what ~/.netrc has for the host."""
    return request


_SHARED: dict[tuple[str, Credentials], TokenSource] = {}
_SHARED_LOCK = threading.Lock()


def shared_token(url: str, credentials: Credentials) -> TokenSource:
    """The one source of tokens of this process for these credentials."""
    with _SHARED_LOCK:
        return _SHARED.setdefault((url, credentials), TokenSource(url, credentials))
