"""Questions to the ISIC Archive: with or without an account, one answer or a list of pages.

Import this module only where it is used: requests takes a while.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pipeline.errors import ConfigError, CredentialsError, SiteUnavailableError
from pipeline.sources.api_body import ShapeError
from pipeline.sources.api_http import Answer, Request
from pipeline.sources.isic_api import PAGE, Page, plan_next
from pipeline.sources.isic_http import IsicApi, NotThereError
from pipeline.sources.isic_pages import Cursor, Fetched, Listing, parse_cursor
from pipeline.sources.isic_rows import User
from pipeline.sources.isic_token import BearerToken

logger = logging.getLogger(__name__)
_CHECK = "check the base URL of ISIC"
_ANONYMOUS = (
    "ISIC does not know the token: it has expired, or is wrong. The site says nothing about that and answers as it"
    " answers everybody: IMAGES THAT ARE NOT PUBLIC ARE MISSING from what follows. Log in again for a new token"
)


class Site:
    """The site as one user sees it. `user`: whom it takes us for, None for anybody. Options as of `ApiSession`."""

    def __init__(self, root: str, token: BearerToken | None, pages_expire: float, options: dict[str, Any]) -> None:
        self.root = root
        self.token = token
        self.user: User | None = None
        self.offline: bool = options["offline"]
        self._pages_expire = pages_expire
        self._options = options
        self._api: IsicApi | None = None

    def close(self) -> None:
        """Close the connections."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def connect(self) -> IsicApi:
        """The session; with a token, first find out whether the site knows it: it says so nowhere else."""
        if self._api is None:
            if self.token is not None:
                self.user = self._find_user(self.token)
            known = self.user is not None
            account = f"{self.root} {self.user.id}" if self.user else ""
            self._api = IsicApi(**self._options, token=self.token if known else None, account=account)
        return self._api

    def _find_user(self, token: BearerToken) -> User | None:
        # By the token, not the user, so that it is found again when nothing can be asked.
        api = IsicApi(**self._options, token=token, account=f"{self.root} {token.label}")
        try:
            end = api.runtime.clock() + api.policy.deadline
            user: User = api.ask(self._request("users/me/", ()), end, fresh=True).value
        except CredentialsError:
            logger.warning("%s: %s", self.root, _ANONYMOUS)
            return None
        finally:
            api.close()
        return user

    def _check_known(self) -> None:
        """Raise when a token that was known is not any more: the list that was read may lack what is not public."""
        if self.user is not None and self.token is not None and not self.offline and not self._find_user(self.token):
            text = "ISIC: the token expired while images were listed; those that are not public may be missing"
            raise CredentialsError(text, hint="log in again and list again: what came is kept")

    def _request(
        self, path: str, params: Iterable[tuple[str, str]], url: str = "", expire: float | None = None
    ) -> Request:
        return Request(url=url or f"{self.root}/{path}", path=f"/{path}", params=tuple(params), expire=expire)

    def _ask(self, request: Request, *, fresh: bool = False) -> Answer:
        """What a request gives; raises as `IsicApi.ask`."""
        api = self.connect()
        return api.ask(request, api.runtime.clock() + api.policy.deadline, fresh=fresh)

    def one(self, path: str, *, fresh: bool = False) -> Any:
        """What a path gives; None for 404."""
        try:
            return self._ask(self._request(path, ()), fresh=fresh).value
        except NotThereError:
            return None

    def one_of(self, path: str, params: Iterable[tuple[str, str]]) -> Any:
        """What a path gives that is always there."""
        return self._ask(self._request(path, params)).value

    def count(self, path: str, params: tuple[tuple[str, str], ...]) -> int:
        """How many entries a list has now."""
        page: Page = self._ask(self._request(path, (*params, ("limit", "1"))), fresh=True).value
        if page.count is None:
            raise SiteUnavailableError(f"{self.root}/{path}: the first page has no count", hint="try again later")
        return page.count

    def list(
        self,
        path: str,
        params: tuple[tuple[str, str], ...],
        identifier: str,
        *,
        start: Cursor | str | None = None,
        growing: bool = False,
    ) -> Listing[Any]:
        """A list to iterate over, from its beginning or from a cursor. `growing`: new entries come at its end."""
        self.connect()
        where = f"{self.root}/{path}"
        first = f"{where}?{urlencode((*params, ('limit', str(PAGE))))}"
        cursor = parse_cursor(start) if isinstance(start, str) else start
        if cursor is not None:
            cursor = self._check_cursor(cursor, path, first)
        counted = False

        def fetch(url: str, fresh: bool) -> Fetched:
            asked = self._request(path, (), url, self._pages_expire if growing else None)
            answer = self._ask(asked, fresh=fresh)
            page: Page = answer.value
            try:
                following = plan_next(page.next, self.root, path) if page.next else ""
            except ShapeError as error:
                raise SiteUnavailableError(f"{where}: {error}", hint=_CHECK) from None
            return Fetched(page.results, page.count, following, answer.kept, answer.at)

        def count() -> int:
            nonlocal counted
            if not counted:
                self._check_known()
                counted = True
            return self.count(path, params)

        return Listing(
            fetch,
            count,
            lambda row: getattr(row, identifier),
            first=first,
            what=where + (f"?{urlencode(params)}" if params else ""),
            growing=growing,
            start=cursor,
            offline=self.offline,
        )

    def _check_cursor(self, cursor: Cursor, path: str, first: str) -> Cursor:
        """The cursor with this site's own address; raises `ConfigError` when it is one of another list."""
        hint = "start it from the beginning, or give what it was saved for"
        try:
            url = plan_next(cursor.url, self.root, path)
        except ShapeError:
            raise ConfigError(f"the cursor is of another list than {path}", hint=hint) from None
        of = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if name != "cursor"]
        if sorted(of) != sorted(parse_qsl(urlsplit(first).query)):
            raise ConfigError("the cursor is of a list with another query or other collections", hint=hint)
        return Cursor(url, cursor.listed, cursor.counted)
