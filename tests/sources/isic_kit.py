"""A small ISIC Archive that searches, has licences, single images and their files; and a task's way to it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from pipeline.model import Entry, IsicLocation, Item
from pipeline.settings import SourceIsic, Sources
from pipeline.sources.fetch import RoutedFetcher
from pipeline.sources.isic_fields import FIELDS
from pipeline.sources.isic_rows import flatten_image, read_image
from pipeline.sources.verified import Verified, fetch_verified
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy, Runtime
from tests.sources.isic_archive import API, NOT_FOUND, Archive, page, said
from tests.sources.isic_search import BadQueryError, parse_query
from tests.sources.test_tcia_http import Asked, Handler, Step, answer


class SearchArchive(Archive):
    """Reads queries as the real one does."""

    def list_images(self, handler: Handler, asked: Asked) -> None:
        rows = sorted([*self.rows, *(self.private if self.known(asked) else [])], key=lambda row: row[0])
        if query := asked.params.get("query", ""):
            try:
                judge = parse_query(query)
            except BadQueryError:
                said(400, {"message": "Could not parse search query."})(handler, asked)
                return
            rows = [row for row in rows if judge(flatten_image(read_image(row[1])))]
        if numbers := [int(number) for number in asked.params.get("collections", "").split(",") if number]:
            ids = {each for number in numbers for each in self.collections.get(number, [])}
            rows = [row for row in rows if row[1]["isic_id"] in ids]
        said(200, page(rows, asked.params, f"http://{asked.headers['host']}{asked.path}"))(handler, asked)

    def add_licences(self) -> None:
        """Serve the texts of the licences."""
        for name in ("CC-0", "CC-BY", "CC-BY-NC"):
            self.site.on(f"{API}zip-download/license-file/{name}/", answer(200, f"Text of {name}.".encode()))

    def listings(self) -> list[dict[str, str]]:
        """Parameters of the pages that were asked for."""
        return [
            each.params
            for each in self.site.asked
            if each.path in {f"{API}images/", f"{API}images/search/"} and each.params.get("limit") != "1"
        ]


def serve(data: bytes, *, etag: str | None = None, ranges: bool = True, cut: int = 0, **headers: str) -> Step:
    """A file as S3 serves it; `etag` None: its MD5, "": none. `cut`: the connection breaks after so many bytes.

    If-Range is not looked at: what is sent says of itself which version it is.
    """
    tag = hashlib.md5(data).hexdigest() if etag is None else etag

    def step(handler: Handler, asked: Asked) -> None:
        sent, status, more = data, 200, dict(headers)
        if ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))):
            if (wanted := asked.headers.get("if-match")) and wanted.strip('"') != tag:
                answer(412)(handler, asked)
                return
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            sent, status = data[first : last + 1], 206
            more["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        handler.send_response(status)
        if tag:
            handler.send_header("ETag", tag if tag.startswith("W/") else f'"{tag}"')
        handler.send_header("Content-Length", str(len(sent)))
        for name, value in more.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if cut and len(sent) > cut:
            handler.wfile.write(sent[:cut])
            handler.close_connection = True
        else:
            handler.wfile.write(sent)

    return step


def make_item(base: str, urls: tuple[str, ...], number: int = 1, **facts: Any) -> Item:
    """An image as the planner has it; `facts` by column."""
    name = f"ISIC_{number:07d}"
    row: dict[str, Any] = dict.fromkeys(FIELDS) | {"isic_id": name} | facts
    names = []
    for place, url in enumerate(urls):
        extension = re.search(r"\.[a-z]+(?=\??$)", url)
        names.append((".thumbnail" if place else "") + (extension[0] if extension else ".bin"))
    return Item(
        id=name,
        path=f"isic/{name}",
        files=len(urls),
        bytes=-1,
        location=IsicLocation(base, urls, tuple(names)),
        licence="CC-0",
        meta=msgspec.Raw(msgspec.json.encode(list(row.values()))),
    )


class Bench:
    """A task's way to the archive, that waits for nothing; `events` are what the transport tells."""

    def __init__(self, archive: Archive, folder: Path, *, base: str = "", credentials: str = "") -> None:
        self.archive = archive
        self.root = archive.site.origin + API.rstrip("/")
        self.events: list[dict[str, Any]] = []
        runtime = Runtime(wait=lambda event, _: event.is_set())
        self._pool = ConnectionPool(limit=8)
        transport = Transport(
            self._pool, Policy(attempts=3, deadline=60.0), runtime, threading.Event(), self.events.append
        )
        self.folder = folder / "scratch"
        self.folder.mkdir(exist_ok=True)
        settings = SourceIsic(base_url=base or self.root, credentials=credentials)
        self.fetcher = RoutedFetcher(Sources(isic=settings), transport, None)

    def close(self) -> None:
        """Close the connections."""
        self.fetcher.close()
        self._pool.close()

    def haul(self, item: Item, *, release: bool = True) -> list[Verified]:
        """All files of an image, verified."""
        entry = Entry(0, 0, 0, 1, item)
        deadline = Runtime().clock() + 60
        got = []
        for number, body in enumerate(self.fetcher.list_bodies(entry, deadline)):
            got.append(fetch_verified(self.fetcher, body, self.folder / f"{item.id}-{number}", deadline))
        if release:
            self.fetcher.release(entry)
        return got

    def asked(self, path: str) -> list[Asked]:
        """What was asked of a path."""
        return [each for each in self.archive.site.asked if each.path == path]


def single(archive: Archive, record: dict[str, Any], *, seen: Callable[[Asked], bool] = lambda _: True) -> str:
    """Serve one image's record to whom `seen` lets; return the path."""
    path = f"{API}images/{record['isic_id']}/"

    def step(handler: Handler, asked: Asked) -> None:
        (said(200, record) if seen(asked) else NOT_FOUND)(handler, asked)

    archive.site.on(path, step)
    return path
