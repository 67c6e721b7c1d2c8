"""Exploring the ISIC Archive from Python: its images and their metadata, collections, lesions, counts.

with IsicClient() as isic:
    for image in isic.images(query="diagnosis_1:Malignant", collections=[212]):
        print(image.isic_id, image.metadata["metadata.clinical.diagnosis_1"], image.full)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline.errors import ConfigError, CredentialsError, SiteUnavailableError, UsageError
from pipeline.sources.isic_api import BASE_URL, parse_isic_id, parse_root
from pipeline.sources.isic_conditions import check_values, open_fields
from pipeline.sources.isic_dsl import Selection, join_queries, plan_selection, review_query
from pipeline.sources.isic_pages import Cursor, Listing, ListPage
from pipeline.sources.isic_rows import Collection, FacetCounts, Image, Lesion, Record, User
from pipeline.sources.isic_token import BearerToken
from pipeline.transport.retry import Policy, Runtime

if TYPE_CHECKING:
    from pipeline.sources.isic_ask import Site

logger = logging.getLogger(__name__)
Licence = Literal["CC-0", "CC-BY", "CC-BY-NC"]
_DAY = 86_400.0


class IsicClient:
    """ISIC's API, for planning and for people. Use it in a `with` block, or close it. One thread at a time.

    Parameters
    ----------
    base_url
        With `/api/v2` at its end; a host alone gets that added.
    token
        Public images need none: see `find_token`. One that the site does not know is a loud warning, and no more
        sent; `me` and `signed_in` tell.
    cache_dir, expire, refresh, offline
        Answers are kept in the user's cache folder for `expire` seconds; `refresh` asks anew for each, once; `offline`
        uses what is kept, however old, and sends nothing. Answers to an account are kept apart, those with signed URLs
        not at all.
    pages_expire
        Seconds for which pages of images that have a next page are used: see `pipeline.sources.isic_pages`.
    policy
        Attempts, waits, and the `deadline` in seconds of one request with its repetitions.
    timeout
        Seconds to connect, and without a byte; `attempt_seconds` for a whole request.
    stop
        Set it to end what is going on with `InterruptedRunError`.

    Every method may raise `SiteUnavailableError` (no answer, a wrong one, or none in the cache), `ConfigError` (a query
    or parameter that the site refuses, explained; something that there is not), `CredentialsError` (an account is
    needed, or another one) and `StorageError` (no cache folder).
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        token: BearerToken | None = None,
        cache_dir: Path | None = None,
        expire: float = _DAY,
        pages_expire: float = 30 * _DAY,
        refresh: bool = False,
        offline: bool = False,
        policy: Policy | None = None,
        runtime: Runtime | None = None,
        stop: threading.Event | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
        attempt_seconds: float = 300.0,
    ) -> None:
        self._root = parse_root(base_url, secret=token is not None)
        self._token = token
        self._pages_expire = pages_expire
        self._options: dict[str, Any] = {
            "cache_dir": cache_dir,
            "expire": expire,
            "refresh": refresh,
            "offline": offline,
            "policy": policy or Policy(attempts=6, deadline=600.0),
            "runtime": runtime,
            "stop": stop,
            "timeout": timeout,
            "attempt_seconds": attempt_seconds,
        }
        self._opened: Site | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"IsicClient({self._root!r})"

    def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _site(self) -> Site:
        from pipeline.sources.isic_ask import Site

        if self._opened is None:
            self._opened = Site(self._root, self._token, self._pages_expire, self._options)
        return self._opened

    def signed_in(self) -> bool:
        """Whether the site knows the token, and so gives what is not public."""
        self._site.connect()
        return self._site.user is not None

    def me(self) -> User:
        """Whom the site takes us for; raises `CredentialsError` without a token that it knows."""
        if self._token is None:
            raise CredentialsError("ISIC: no token was given", hint="public images need none; `me` does")
        self._site.connect()
        if self._site.user is None:
            raise CredentialsError("ISIC does not know the token", hint="log in again for a new one: they last a day")
        return self._site.user

    def images(
        self, query: str = "", collections: Sequence[int] = (), *, start: Cursor | str | None = None
    ) -> Iterator[Image]:
        """Images, each once, oldest first, as they come in. Parameters and errors as `image_pages`."""
        listing = self.image_pages(query, collections, start=start)
        for page in listing:
            yield from page.rows
        if not listing.listed:
            _say_why(query)

    def image_pages(
        self, query: str = "", collections: Sequence[int] = (), *, start: Cursor | str | None = None
    ) -> Listing[Image]:
        """Images page by page: iterate over it; each page has the `cursor` to go on from, in another process too.

        Parameters
        ----------
        query
            In the site's search language, or nothing for all.
        collections
            Numbers of collections of which to take all images. One that there is not, or not for us, is an error.
        start
            A saved cursor of the same list.
        """
        numbers = self._check_collections(collections)
        path = "images/search/" if query.strip() or numbers else "images/"
        return self._site.list(path, self._filters(query, numbers), "isic_id", start=start, growing=True)

    def select(
        self, selection: Selection | object, collections: Sequence[int] = (), *, query: str = ""
    ) -> Iterator[Image]:
        """Images that meet conditions: see `plan_selection`, and its errors. Beside the conditions, those of a query.

        The site searches as far as its language goes; the rest is decided here.
        """
        chosen = selection if isinstance(selection, Selection) else plan_selection(selection)
        for note in (*chosen.notes, *self.check_values(chosen)):
            logger.warning("%s", note)
        for image in self.images(join_queries(query, chosen.query), collections):
            if chosen.matches(image):
                yield image

    def image(self, isic_id: str) -> Image | None:
        """One image, as it is now unless `offline`; None for one that was withdrawn, never was, or is not for us."""
        return self._site.one(f"images/{parse_isic_id(isic_id)}/", fresh=True)  # type: ignore[no-any-return]

    def count(self, query: str = "", collections: Sequence[int] = ()) -> int:
        """How many images there are now. Parameters as of `image_pages`."""
        numbers = self._check_collections(collections)
        path = "images/search/" if query.strip() or numbers else "images/"
        found = self._site.count(path, self._filters(query, numbers))
        if not found:
            _say_why(query)
        return found

    def size(self, query: str = "", collections: Sequence[int] = ()) -> int:
        """Bytes of images, about: as they came in, counted once a day. Parameters as of `image_pages`."""
        numbers = self._check_collections(collections)
        return int(self._site.one_of("images/search/size/", self._filters(query, numbers)))

    def check_values(self, selection: Selection) -> tuple[str, ...]:
        """What to tell people of values in conditions that may be misspelt: the site is asked once which it has.

        Raises
        ------
        ConfigError
            For a value that no image has, with the nearest ones.
        """
        names = open_fields(selection.expression)
        if not names:
            return ()
        try:
            known = self.facets()
        except (SiteUnavailableError, ConfigError, CredentialsError) as error:
            # No reason not to select: the site does not promise this list, and a mirror may not have it.
            return (f"values of conditions on {', '.join(names)} could not be checked: {error}",)
        return check_values(selection.expression, known)

    def facets(self, query: str = "", collections: Sequence[int] = ()) -> dict[str, FacetCounts]:
        """Values of fields and how many images have each, counted once a day. Not all: a field's most frequent ones."""
        numbers = self._check_collections(collections)
        found: dict[str, FacetCounts] = self._site.one_of("images/facets/", self._filters(query, numbers))
        return found

    def stats(self) -> dict[str, int]:
        """Counts over the site: `image.public_images_count`, `collection.public_collections_count` and so on."""
        found: dict[str, int] = self._site.one_of("stats/", ())
        return found

    def collections(
        self, *, pinned: bool | None = None, sort: Literal["name", "created"] | None = None
    ) -> list[Collection]:
        """Collections, the newest first or by name; only those that are `pinned`, or not."""
        params = [] if pinned is None else [("pinned", "true" if pinned else "false")]
        return self._all("collections/", (*params, *([("sort", sort)] if sort else [])))

    def collection(self, number: int) -> Collection:
        """A collection; raises `ConfigError` for one that there is not, or not for us."""
        found: Collection | None = self._site.one(f"collections/{_number(number)}/")
        if found is None:
            who = "is not public or does not exist" if self._site.user is None else "does not exist, or not for you"
            raise ConfigError(f"ISIC: collection {number} {who}", hint="`collections` lists what there is")
        return found

    def lesions(self) -> Iterator[Lesion]:
        """Lesions with their images, as they come in."""
        for page in self._site.list("lesions/", (), "id"):
            yield from page.rows

    def lesion(self, lesion_id: str) -> Lesion | None:
        """A lesion, or None for one that there is not, or of which we may not see all images."""
        return self._site.one(f"lesions/{_name(lesion_id)}/")  # type: ignore[no-any-return]

    def studies(self) -> list[Record]:
        """Studies, for users who have the right (staff of the site); others get `CredentialsError`."""
        return self._all("studies/", ())

    def study(self, number: int) -> Record | None:
        """A study, or None; as `studies`."""
        return self._site.one(f"studies/{_number(number)}/")  # type: ignore[no-any-return]

    def annotations(self) -> Iterator[Record]:
        """Annotations of studies, as they come in; for whom `studies` are."""
        for page in self._site.list("annotations/", (), "id"):
            yield from page.rows

    def annotation(self, number: int) -> Record | None:
        """An annotation, or None; as `studies`."""
        return self._site.one(f"annotations/{_number(number)}/")  # type: ignore[no-any-return]

    def study_tasks(self) -> Iterator[Record]:
        """Tasks of studies: who annotates which image; for whom `studies` are."""
        for page in self._site.list("study-tasks/", (), "id"):
            yield from page.rows

    def licence(self, name: Licence) -> str:
        """The text of a licence."""
        if name not in {"CC-0", "CC-BY", "CC-BY-NC"}:
            raise UsageError(f"{str(name)[:40]!r} is no licence of ISIC", hint="CC-0, CC-BY or CC-BY-NC")
        return str(self._site.one_of(f"zip-download/license-file/{name}/", ()))

    def _check_collections(self, collections: Sequence[int]) -> tuple[int, ...]:
        """The numbers, sorted; raises `ConfigError` for one that the site would leave out without a word."""
        if isinstance(collections, (str, bytes, int)):
            raise UsageError("collections is a list of numbers", hint="collections=[212]")
        numbers = tuple(sorted({_number(number) for number in collections}))
        for number in numbers:
            self.collection(number)
        return numbers

    @staticmethod
    def _filters(query: str, collections: Sequence[int]) -> tuple[tuple[str, str], ...]:
        listed = ",".join(map(str, collections))
        return (*([("query", query.strip())] if query.strip() else []), *([("collections", listed)] if listed else []))

    def _all(self, path: str, params: tuple[tuple[str, str], ...]) -> list[Any]:
        return [row for page in self._site.list(path, params, "id") for row in page.rows]


def _say_why(query: str) -> None:
    """Warn of what may be wrong with a query that finds nothing: the site does not say."""
    for remark in review_query(query):
        logger.warning("no images for %s: %s", query, remark)


def _number(number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**31:
        raise UsageError(f"{str(number)[:40]!r} is no number of ISIC", hint="they are whole and positive")
    return number


def _name(name: str) -> str:
    if not name.replace("_", "").isalnum() or not name.isascii() or len(name) > 40:
        raise UsageError(f"{name[:80]!r} is no id of ISIC", hint="as IL_0000001")
    return name


__all__ = ["BASE_URL", "Cursor", "IsicClient", "ListPage", "Listing"]
