"""Tokens of the demo NBIA: grants by password and by refresh token, that expire.

A token says for whom, for what and until when, under a keyed hash: any process that knows the key can check it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Literal

from pipeline.demo.nbia_format import Answer

GUEST = "nbia_guest"
LIFETIME = 7200.0
_KEY = b"medhaul demo: no secret"


class Tokens:
    """Gives and checks tokens. `lifetime` is in seconds and may be changed; `users` maps names to passwords.

    The guest needs no password. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        users: Mapping[str, str] | None = None,
        *,
        lifetime: float = LIFETIME,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.users = dict(users or {})
        self.lifetime = lifetime
        self.clock = clock

    def grant(self, form: Mapping[str, str]) -> Answer:
        """The answer to a request for a token, by its form."""
        kind = form.get("grant_type", "")
        if kind == "password":
            user = form.get("username", "")
            if user != GUEST and (user not in self.users or self.users[user] != form.get("password", "")):
                return _refuse(401, "invalid_grant", "Invalid user credentials")
        elif kind == "refresh_token":
            found = self.check(form.get("refresh_token", ""), "refresh")
            if found is None:
                return _refuse(400, "invalid_grant", "Token is not active")
            user = found
        else:
            return _refuse(400, "unsupported_grant_type", "Unsupported grant_type")
        body = {
            "access_token": self.make(user, "access"),
            "expires_in": int(self.lifetime),
            "refresh_expires_in": int(self.lifetime),
            "refresh_token": self.make(user, "refresh"),
            "token_type": "Bearer",
            "id_token": self.make(user, "id"),
            "not-before-policy": 0,
            "session_state": hashlib.sha256(user.encode()).hexdigest()[:32],
            "scope": "openid",
        }
        return Answer(body=json.dumps(body).encode())

    def make(self, user: str, kind: Literal["access", "refresh", "id"]) -> str:
        """A token that lives from now on."""
        text = json.dumps({"user": user, "kind": kind, "until": self.clock() + self.lifetime}).encode()
        return f"{base64.urlsafe_b64encode(text).decode().rstrip('=')}.{_sign(text)}"

    def check(self, token: str, kind: Literal["access", "refresh"] = "access") -> str | None:
        """Whose token it is; None when it is not one of ours, of another kind, or has expired."""
        text, _, signature = token.partition(".")
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            return None
        if not hmac.compare_digest(_sign(data).encode(), signature.encode()):
            return None
        said = json.loads(data)
        return str(said["user"]) if said["kind"] == kind and self.clock() < said["until"] else None


def _sign(data: bytes) -> str:
    return hmac.new(_KEY, data, "sha256").hexdigest()


def _refuse(status: int, error: str, description: str) -> Answer:
    return Answer(status=status, body=json.dumps({"error": error, "error_description": description}).encode())
