"""The API of the ISIC Archive (v2) as data: what each path gives, and how it is read. Pure.

Paths and shapes: https://api.isic-archive.com/api/docs/swagger/, and the server's source (ImageMarkup/isic).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pipeline.errors import UsageError
from pipeline.sources import isic_rows as rows
from pipeline.sources.api_body import GarbledError, ShapeError, clean_text, describe_body, parse_json
from pipeline.sources.api_url import parse_site_url

BASE_URL = "https://api.isic-archive.com/api/v2/"
# The most that the site gives, and the only number with which it never loses rows of one time at a page's edge.
PAGE = 100

Read = Callable[[object], Any]


class Page(msgspec.Struct, frozen=True):
    """A page of a list. `count`: of the whole list, on the first page only. `next`: URL of the next page, or ""."""

    results: tuple[Any, ...]
    count: int | None
    next: str


class Parsed(msgspec.Struct, frozen=True):
    """An answer, read: a `Page`, a record, counts or a text. `kind`: of the path that it came from in the end."""

    kind: str
    value: Any


def _page(read: Read) -> Read:
    def parse(answer: object) -> Page:
        if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
            raise ShapeError("no page of results")
        count, following = answer.get("count"), answer.get("next")
        if isinstance(count, bool) or not (count is None or (isinstance(count, int) and 0 <= count < 2**53)):
            raise ShapeError(f"a page whose count is {clean_text(str(count)[:40])!r}")
        if not (following is None or isinstance(following, str)):
            raise ShapeError("a page whose next is no URL")
        if following and not answer["results"]:
            raise ShapeError("a page without results that is not the last")
        return Page(tuple(map(read, answer["results"])), count, following or "")

    return parse


def _size(answer: object) -> int:
    size = answer.get("size") if isinstance(answer, dict) else None
    if size is None and isinstance(answer, dict) and "size" in answer:
        return 0  # the sum over no images
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ShapeError("no size")
    return size


def _as_text(answer: object) -> str:
    return str(answer)


_ID = r"[^/]+"
_LISTS = {"collections": rows.read_collection, "lesions": rows.read_lesion} | dict.fromkeys(
    ("studies", "annotations", "study-tasks"), rows.read_record
)
_PATHS: tuple[tuple[str, Read], ...] = (
    (r"images/(?:search/)?", _page(rows.read_image)),
    (r"images/search/size/", _size),
    (r"images/facets/", rows.read_facets),
    (rf"images/{_ID}/", rows.read_image),
    (r"users/me/", rows.read_user),
    (r"stats/", rows.read_stats),
    *((f"{name}/", _page(read)) for name, read in _LISTS.items()),
    *((f"{name}/{_ID}/", read) for name, read in _LISTS.items()),
    ("zip-download/license-file/[^/]+/", _as_text),
)
_READERS = tuple((re.compile(f".*/{path}"), path, read) for path, read in _PATHS)


def classify_path(path: str) -> tuple[str, Read] | None:
    """The kind of a path, wherever the API's root is, and how its answers are read; None for none of the API's."""
    return next(((kind, read) for pattern, kind, read in _READERS if pattern.fullmatch(path)), None)


def parse_answer(path: str, data: bytes) -> Parsed:
    """Read what came from a path; raises `ShapeError`."""
    found = classify_path(path)
    if found is None:
        raise ShapeError(f"{describe_body(data)}, after a redirection to {clean_text(path)[:200]}")
    kind, read = found
    if read is _as_text:
        text = data.decode("utf-8-sig", "replace")
        if text.lstrip()[:1] in {"<", "{"}:
            raise GarbledError(f"{describe_body(data)}, no licence")
        return Parsed(kind, text)
    value = parse_json(data)
    problem = ""
    try:
        return Parsed(kind, read(value))
    except ShapeError as error:
        problem = str(error)
    except RecursionError:
        problem = "nested too deeply"
    raise ShapeError(f"{describe_body(data)}: {problem}")


def explain_error(data: bytes) -> str:
    """What the site says in an error's JSON: `message`, `error` or `detail`; nothing where it is no such JSON."""
    try:
        value = parse_json(data[:100_000])
    except ShapeError:
        return ""
    found: list[str] = []
    if isinstance(value, dict):
        for key in ("message", "error", "detail"):
            said = value.get(key)
            for each in said if isinstance(said, list) else [said]:
                if isinstance(each, dict):  # of a parameter
                    place = each.get("loc")
                    where = ".".join(str(part) for part in place) if isinstance(place, list) else ""
                    found.append(f"{where}: {each.get('msg')}" if where else str(each.get("msg")))
                elif isinstance(each, str):
                    found.append(each)
    return clean_text("; ".join(found))[:300]


def plan_next(following: str, root: str, path: str) -> str:
    """The URL of the next page: as the site gives it, but for scheme and host where these are not the ones asked.

    A site behind a proxy names its inner address, and a token must not go elsewhere.

    Raises
    ------
    ShapeError
        When it is no page of the same list.
    """
    try:
        parts = urlsplit(following)
        good = parts.scheme in {"http", "https"} and re.fullmatch(r"[\x21-\x7e]{1,20000}", following)
    except ValueError:
        good = None
    if not good or not parts.path.endswith(f"/{path}") or not parts.query or "@" in parts.netloc:
        raise ShapeError(f"the next page is {clean_text(following)[:200]!r}")
    own = f"{root}/{path}?"
    return following if following.startswith(own) else own + parts.query


def parse_root(url: str, *, secret: bool = False) -> str:
    """Check a base URL; the root of the API without a slash at its end. `/api/v2` may be left out of a bare host's.

    Raises
    ------
    ConfigError
        As `parse_site_url`.
    """
    root = parse_site_url(url, site="ISIC", default=BASE_URL, secret=secret)
    return root if urlsplit(root).path else f"{root}/api/v2"


def parse_isic_id(isic_id: str) -> str:
    """Return the id of an image; raises `UsageError` when it is none."""
    if not re.fullmatch(r"ISIC_[0-9]{7,12}", isic_id, re.ASCII):
        raise UsageError(f"{isic_id[:80]!r} is no ISIC id", hint="they look like ISIC_0000001")
    return isic_id
