"""A small ISIC Archive for the tests of its client: pages and cursors as the real one makes them."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from pipeline.sources.isic_client import IsicClient
from pipeline.transport.retry import Policy
from tests.sources.test_tcia_http import Asked, Handler, Site, Waits, answer

API = "/api/v2/"
DAY = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
Row = tuple[str, dict[str, Any]]  # position in the list, record


def image(number: int, **clinical: object) -> dict[str, Any]:
    """A public image."""
    name = f"ISIC_{number:07d}"
    bucket = "https://isic-archive.s3.amazonaws.com"
    return {
        "isic_id": name,
        "copyright_license": "CC-0",
        "attribution": "Anonymous",
        "files": {
            "full": {"url": f"{bucket}/images/{name}.jpg", "size": 1000 + number},
            "thumbnail_256": {"url": f"{bucket}/thumbnails/{name}_thumbnail.jpg", "size": 10},
        },
        "metadata": {
            "acquisition": {"pixels_x": 600, "pixels_y": 450, "image_type": "dermoscopic"},
            "clinical": {"sex": "male", "mel_thick_mm": "0.55", "age_approx": 45, **clinical},
        },
        "public": True,
    }


def image_rows(count: int, start: int = 1, tied: Sequence[int] = ()) -> list[Row]:
    """Images by the time they were published; those of `tied` (numbers) at one time."""
    rows = []
    for number in range(start, start + count):
        moment = DAY + dt.timedelta(minutes=min(tied) if number in tied else number)
        rows.append((str(moment), image(number)))
    return rows


def page(rows: Sequence[Row], params: dict[str, str], url: str) -> dict[str, Any]:
    """One page of a list, as the server's cursor pagination cuts it."""
    limit = min(max(int(params.get("limit") or 100), 0), 100) or 100
    cursor = parse_qs(base64.b64decode(params.get("cursor", "")).decode())
    position, offset = cursor.get("p", [""])[0], int(cursor.get("o", ["0"])[0])
    after = [row for row in rows if row[0] > position]
    fetched = after[offset : offset + 101]
    shown = fetched[:limit]
    following = None
    if len(fetched) > len(shown):
        compare, skip = fetched[-1][0], 0
        for row in reversed(shown):
            if row[0] != compare:
                following = {"o": skip, "p": row[0]}
                break
            compare, skip = row[0], skip + 1
        else:
            following = {"o": offset + limit, "p": position}
        following = {name: value for name, value in following.items() if value}
    link = None
    if following is not None:
        token = base64.b64encode(urlencode(following).encode()).decode()
        link = f"{url}?{urlencode(sorted({**params, 'cursor': token}.items()))}"
    count = None if position else len(rows)
    return {"results": [record for _, record in shown], "count": count, "next": link, "previous": None}


def said(status: int, value: object, **headers: str) -> Callable[[Handler, Asked], None]:
    """A JSON answer."""
    return answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)


NOT_FOUND = said(404, {"detail": "Not Found"})
UNAUTHORIZED = said(401, {"detail": "Unauthorized"})


@dataclass
class Archive:
    """What the archive holds. `good`: tokens it knows; `private`: images only they see."""

    site: Site
    rows: list[Row] = field(default_factory=list)
    private: list[Row] = field(default_factory=list)
    collections: dict[int, list[str]] = field(default_factory=dict)
    good: set[str] = field(default_factory=set)
    queries: dict[str, Callable[[dict[str, Any]], bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.site.on(f"{API}images/", self.list_images)
        self.site.on(f"{API}images/search/", self.list_images)
        self.site.on(f"{API}users/me/", self.me)
        self.site.on(f"{API}collections/", self.list_collections)
        for name in ("studies", "annotations", "study-tasks"):
            self.site.on(f"{API}{name}/", UNAUTHORIZED)

    def add_collection(self, number: int, ids: list[str]) -> None:
        """Make a collection."""
        self.collections[number] = ids
        self.site.on(f"{API}collections/{number}/", said(200, self.collection(number)))

    @staticmethod
    def collection(number: int) -> dict[str, Any]:
        """A collection's record."""
        flags = {"public": True, "pinned": False, "locked": False}
        return {"doi": None, "doi_url": None, "id": number, "name": f"C{number}", "description": "x", **flags}

    def known(self, asked: Asked) -> bool:
        """Whether a request has a good token."""
        return asked.headers.get("authorization", "").removeprefix("Bearer ") in self.good

    def me(self, handler: Handler, asked: Asked) -> None:
        user = {"id": 7, "email": "a@b.c", "hash_id": "abcde", "full_name": "A B", "accepted_terms": None}
        (said(200, user) if self.known(asked) else UNAUTHORIZED)(handler, asked)

    def list_images(self, handler: Handler, asked: Asked) -> None:
        rows = sorted([*self.rows, *(self.private if self.known(asked) else [])], key=lambda row: row[0])
        query = asked.params.get("query", "")
        if query and query not in self.queries:
            said(400, {"message": "Could not parse search query."})(handler, asked)
            return
        if query:
            rows = [row for row in rows if self.queries[query](row[1])]
        numbers = [int(number) for number in asked.params.get("collections", "").split(",") if number]
        if numbers:
            ids = {each for number in numbers for each in self.collections.get(number, [])}
            rows = [row for row in rows if row[1]["isic_id"] in ids]
        said(200, page(rows, asked.params, f"http://{asked.headers['host']}{asked.path}"))(handler, asked)

    def list_collections(self, handler: Handler, asked: Asked) -> None:
        rows = [(f"{1000 - number:04d}", self.collection(number)) for number in sorted(self.collections, reverse=True)]
        said(200, page(rows, asked.params, f"http://{asked.headers['host']}{asked.path}"))(handler, asked)


@pytest.fixture(name="archive")
def _archive(site: Site) -> Archive:
    """An archive at the test's own site."""
    return Archive(site)


def client(archive: Archive, **options: Any) -> IsicClient:
    """Open a client of the archive that waits for nothing."""
    settings: dict[str, Any] = {"runtime": Waits().runtime, "policy": Policy(attempts=3, deadline=60.0)}
    return IsicClient(archive.site.origin + API, **settings | options)


def listed(archive: Archive, asked: int = 0) -> list[str]:
    """How pages were asked for, after so many requests: `count`, or the page."""
    return [
        "count" if each.params.get("limit") == "1" else "next" if "cursor" in each.params else "first"
        for each in archive.site.asked[asked:]
        if each.path.startswith(f"{API}images/")
    ]


def ids(isic: IsicClient, **options: Any) -> list[int]:
    """Numbers of all images that are listed."""
    return [int(found.isic_id[5:]) for found in isic.images(**options)]
