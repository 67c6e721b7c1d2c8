"""Lists of the ISIC Archive, page by page: kept, resumable, complete, in bounded memory.

The site gives lists of images oldest first, each page with the URL of the next one. Pages that have a next one do not
change when images are added, so a later run uses those that are kept and asks for the last one and what follows. The
site does not say when an image was changed or withdrawn: that shows when pages are asked anew, which happens when they
have expired, on `refresh`, and when a list has not as many different ids as the site counts.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import msgspec

from pipeline.errors import ConfigError, SiteUnavailableError

logger = logging.getLogger(__name__)
T = TypeVar("T")
_RELISTS = 2  # how often a list that does not add up is asked anew
_CHASES = 3  # how often its end is, where entries are missing
_BARREN = 3  # pages in a row without a new entry, after which a list has no end
_LATER = "the site is at fault: try again later; what came is kept"
_SURPLUS = 10_000  # entries that a list may have beyond twice what the site counts


class ListingChangedError(SiteUnavailableError):
    """A list has not as many different entries as the site counts, however often it is asked."""


class EndlessListError(SiteUnavailableError):
    """A list whose pages lead on without giving anything new, or far more than the site counts."""


class Cursor(msgspec.Struct, frozen=True):
    """Where a list goes on. `str()` is what to save; `parse_cursor` reads it.

    Attributes
    ----------
    url
        Of the next page.
    listed
        Different entries before it.
    counted
        As the site counted the whole list at its beginning.
    """

    url: str
    listed: int
    counted: int | None

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.url, self.listed, self.counted]).encode()).decode()


class ListPage(msgspec.Struct, Generic[T], frozen=True):
    """Entries that came for the first time.

    Attributes
    ----------
    cursor
        Goes on after them; None at the end.
    kept
        Whether the page is from the cache.
    at
        When it came from the site, in seconds since 1970.
    """

    rows: tuple[T, ...]
    cursor: Cursor | None
    kept: bool
    at: float = 0.0


class PageTally:
    """How old the pages are that lists were made of.

    Attributes
    ----------
    kept, total
        Pages out of the cache, and all.
    oldest, newest
        When the first and the last of them came from the site, in seconds since 1970; infinite without pages.
    """

    def __init__(self) -> None:
        self.kept = self.total = 0
        self.oldest, self.newest = float("inf"), float("-inf")

    def add(self, page: ListPage[Any]) -> None:
        """Count a page that was used."""
        self.total += 1
        self.kept += page.kept
        self.oldest, self.newest = min(self.oldest, page.at), max(self.newest, page.at)

    @property
    def days(self) -> tuple[str, str]:
        """The days of the first and the last page, in UTC; of the epoch without pages."""
        first, last = (self.oldest, self.newest) if self.total else (0.0, 0.0)
        return show_day(first), show_day(last)


def show_day(seconds: float) -> str:
    """The day of a moment in UTC, as 2026-11-21. Pure."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).date().isoformat()


class Fetched(msgspec.Struct, frozen=True):
    """A page as the site gives it; `at` in seconds since 1970."""

    rows: tuple[Any, ...]
    count: int | None
    next: str
    kept: bool
    at: float


class Ids:
    """A set of identifiers; those of `PREFIX_0000000` take a bit each, for there are hundreds of thousands."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._others: set[object] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, identifier: object) -> bool:
        """Add one; say whether it is new."""
        number = -1
        if isinstance(identifier, str) and identifier.startswith("ISIC_") and len(identifier) == 12:
            digits = identifier[5:]
            number = int(digits) if digits.isascii() and digits.isdecimal() else -1
        if number < 0:
            new = identifier not in self._others
            self._others.add(identifier)
        else:
            place, bit = number >> 3, 1 << (number & 7)
            if place >= len(self._bits):
                self._bits.extend(bytes(place + 1 - len(self._bits)))
            new = not self._bits[place] & bit
            self._bits[place] |= bit
        self._count += new
        return new


class Listing(Generic[T]):
    """A list that is being read: iterate over it once.

    Attributes
    ----------
    counted
        Entries as the site counted them last; None before the first page.
    listed
        Different entries so far in the current pass, with those before a saved cursor.
    pages_kept, pages_asked
        Pages out of the cache, and from the site.
    oldest
        When the oldest page that was used came from the site, in seconds since 1970.
    passes
        How often the list was read; more than 1 when it did not add up.
    """

    def __init__(
        self,
        fetch: Callable[[str, bool], Fetched],
        count: Callable[[], int],
        identify: Callable[[T], object],
        *,
        first: str,
        what: str,
        growing: bool = True,
        start: Cursor | None = None,
        offline: bool = False,
    ) -> None:
        self._fetch = fetch
        self._count = count
        self._identify = identify
        self._first = first
        self._what = what
        self._growing = growing
        self._start = start
        self._offline = offline
        self._last = ""
        self._fresh_count: int | None = None
        self.counted: int | None = start.counted if start else None
        self.listed = start.listed if start else 0
        self.pages_kept = self.pages_asked = 0
        self.oldest = float("inf")
        self.passes = 0

    def __repr__(self) -> str:
        return f"Listing({self._what}, {self.listed} of {self.counted})"

    def __iter__(self) -> Iterator[ListPage[T]]:
        """Pages, each entry once, in the site's order.

        Raises
        ------
        ListingChangedError
            When what came is not as much as the site counts, after it was all asked anew.
        EndlessListError
            When the pages have no end; kept ones are asked anew before that.
        SiteUnavailableError, CredentialsError, ConfigError, InterruptedRunError
            As `IsicClient`.
        """
        given = Ids()
        now = 0
        while self.passes <= _RELISTS:
            fresh = self.passes > 0
            self.passes += 1
            start = self._start if not fresh else None
            seen = Ids()
            before = start.listed if start else 0
            self._fresh_count, self.counted = None, start.counted if start else None
            try:
                yield from self._walk(start.url if start else self._first, seen, given, before, fresh=fresh)
            except EndlessListError as error:
                if fresh or start or self._offline or not self.pages_kept:
                    raise
                logger.warning("%s; asking for all anew", error)  # kept pages may be those of a fault that has passed
                continue
            if not self._growing and not self.pages_asked:
                return
            for _ in range(_CHASES):
                now = self._count()
                if self.listed == now or now < self.listed == self._fresh_count:  # complete now, or as of the start
                    self.counted = now
                    self._report()
                    return
                if self._offline or self.listed > now:
                    break
                yield from self._walk(self._last, seen, given, before, fresh=True)  # added in the meantime?
            if self._start or self._offline:
                break  # what came before is not here to be compared
            logger.warning("%s: %d entries, but the site counts %d; asking for all anew", self._what, self.listed, now)
        hint = "list it from the beginning, with `refresh`" if self._start or self._offline else "try again later"
        raise ListingChangedError(f"{self._what}: {self.listed} different entries, the site counts {now}", hint=hint)

    def _walk(self, url: str, seen: Ids, given: Ids, before: int, *, fresh: bool) -> Iterator[ListPage[T]]:
        """Follow the pages from one on."""
        asked = Ids()
        barren = 0
        while url:
            if not asked.add(url):
                raise EndlessListError(f"{self._what}: the pages go in a circle", hint=_LATER)
            page = self._fetch(url, fresh)
            if self._growing and page.kept and not page.next and not self._offline:
                page = self._fetch(url, True)  # the last page as of then: more may follow by now
            if page.kept:
                self.pages_kept += 1
            else:
                self.pages_asked += 1
            self.oldest = min(self.oldest, page.at)
            if page.count is not None:
                self.counted = page.count
                self._fresh_count = None if page.kept else page.count
            known = len(seen)
            for row in page.rows:
                seen.add(self._identify(row))
            self.listed = before + len(seen)
            barren = 0 if len(seen) > known else barren + 1
            new = tuple(row for row in page.rows if given.add(self._identify(row)))
            self._last, url = url, page.next
            yield ListPage(new, Cursor(url, self.listed, self.counted) if url else None, page.kept, page.at)
            if url:
                self._check_end(barren)

    def _check_end(self, barren: int) -> None:
        """Raise where a list that leads on cannot be one with an end."""
        many = self.listed > _SURPLUS + 2 * (self.counted or 0)
        if many:  # it may have grown, or nobody has said how many there are
            self.counted = self._count()
            many = self.listed > _SURPLUS + 2 * self.counted
        if many or barren >= _BARREN:
            said = f"{self.listed} different entries, the site counts {self.counted}"
            why = "far more came than there are" if many else f"{barren} pages in a row gave nothing new"
            raise EndlessListError(f"{self._what}: the list has no end: {why}, and lead on; {said}", hint=_LATER)

    def _report(self) -> None:
        text = f"{self._what}: {self.listed} entries, {self.pages_asked} pages asked for"
        if self.pages_kept:
            since = show_day(self.oldest)
            text += (
                f", {self.pages_kept} kept since {since} or later: what changed about entries listed then is not seen"
            )
            text += " unless you refresh"
        logger.info("%s", text)


def parse_cursor(text: str) -> Cursor:
    """Read a saved cursor; raises `ConfigError` when it is none."""
    try:
        url, listed, counted = json.loads(base64.b64decode(text.strip().encode(), altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        url = None
    good = isinstance(url, str) and type(listed) is int and listed >= 0 and (counted is None or type(counted) is int)
    if not good:
        raise ConfigError("this is no cursor of a list", hint="give the one that was saved, or list from the start")
    return Cursor(url, listed, counted)
