"""Images of the ISIC Archive, from the storage that its API names: whole, checked, with fresh signatures where needed.

Facts: the API states no checksum, and a size from before identity and licence were embedded; storage is S3, whose ETag
mostly is an MD5. URLs of images that are not public are signed and good for 6 to 7 days. An API that does not know a
token answers as it answers everybody: images that are not public are not there then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ItemError
from pipeline.model import Entry, Item
from pipeline.settings import SourceIsic
from pipeline.sources.api_body import ShapeError
from pipeline.sources.base import Body, Received
from pipeline.sources.isic_answer import (
    INLINE,
    Proof,
    Start,
    Whole,
    choose_range,
    prove_download,
    prove_file,
    read_start,
)
from pipeline.sources.isic_api import explain_error, parse_answer, parse_root
from pipeline.sources.isic_body import THUMBNAIL, find_index, image_location, list_files, read_facts
from pipeline.sources.isic_rows import Image
from pipeline.sources.isic_token import find_token
from pipeline.transport.client import Transport
from pipeline.transport.download import Sink
from pipeline.transport.stream import Count
from pipeline.transport.wire import Head

DEMO = "demo"
MAX_BYTES = 1 << 36  # where nobody states a length
MAX_ANSWER = 4 << 20  # of the API, about one image
# What storage answers for a signature that is over, and for what it does not have: the API knows more.
ASK_AGAIN = frozenset({"forbidden", "withdrawn"})


class IsicFetcher:
    """A task's way to the ISIC Archive. Its `transport` has the clock that deadlines are on.

    Raises
    ------
    CredentialsError, ConfigError
        When credentials are given, and cannot be used.
    """

    def __init__(self, settings: SourceIsic, transport: Transport) -> None:
        self._transport = transport
        self._base = settings.base_url
        self._token = find_token(Path(settings.credentials) if settings.credentials else None)
        self._trusted = parse_root(settings.base_url, secret=True) if self._token else ""
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._told: dict[str, Image] = {}  # by the API, with signatures
        self._awake = False
        self._refused_token = False

    def list_bodies(self, entry: Entry, deadline: float) -> Sequence[Body]:
        """The files of an image, as the manifest has them. Until the storage has answered once, it is asked.

        Raises `ItemError` `unavailable`.
        """
        bodies = list_files(entry)
        url = image_location(entry.item).urls[0] if bodies else "?"
        if not self._awake and not url.endswith("?"):
            try:
                self._transport.fetch_bytes(url, headers={"Range": "bytes=0-0"}, limit=INLINE, deadline_at=deadline)
            except ItemError as error:
                if error.reason == "unavailable" and error.transient:
                    raise
            self._awake = True
        return bodies

    def fetch(self, body: Body, path: Path, deadline: float) -> Received:
        """Bring a file to `path`: all that its site states of it holds.

        Raises
        ------
        ItemError
            `withdrawn`: the archive has the image no more; `forbidden`: not for us; `unavailable`, `size`, `checksum`.
        StorageError, InterruptedRunError
            From the transport.
        """
        item = body.entry.item
        where = image_location(item)
        index = find_index(body)
        small = where.names[index].startswith(THUMBNAIL)
        url = where.urls[index]
        if url.endswith("?"):  # of no use without what a signature adds
            url = self._tell(item, small, "", path, deadline)
        try:
            return self._bring(url, body.file.size, path, deadline)
        except ItemError as error:
            if error.reason not in ASK_AGAIN:
                raise
            refused = error
        told = self._tell(item, small, url, path, deadline)
        if told != url:
            try:
                return self._bring(told, body.file.size, path, deadline)
            except ItemError as error:
                if error.reason not in ASK_AGAIN:
                    raise
                refused = error
        reason = "forbidden" if refused.reason == "forbidden" else "unavailable"
        text = f"{refused}; the archive still has the image, and names no other place"
        raise ItemError(reason, text, transient=reason == "unavailable")

    def release(self, entry: Entry) -> None:
        """Forget what the API told of an image."""
        with self._lock:
            self._told.pop(entry.item.id, None)
            self._asking.pop(entry.item.id, None)

    # -- storage ---------------------------------------------------------------------------------------------------

    def _bring(self, url: str, stated: int, path: Path, deadline: float) -> Received:
        """One file from its URL: at once where it is small, else by a download that can be resumed."""
        parts = urlsplit(url)
        route = f"isic:{parts.scheme}://{parts.netloc}"
        try:
            start = self._transport.fetch_parsed(
                url, read_start, headers={"Range": choose_range(stated)}, limit=INLINE, deadline_at=deadline
            )
        except ItemError as error:
            if error.reason != "size" or error.transient:
                raise
            # The site knows no ranges, and the file is large.
            return _receive(path, self._stream(url, path, deadline), route)
        if isinstance(start, Whole):
            with Sink(path, Count()) as sink:
                sink.feed(memoryview(start.body))
                sink.close()
            proof = start.proof
        else:
            proof = self._download(url, start, path, deadline)
        return _receive(path, proof, route)

    def _download(self, url: str, start: Start, path: Path, deadline: float) -> Proof:
        got = self._transport.download(
            url, path, size=start.size, etag=start.etag, deadline_at=deadline, if_range=True
        )  # fmt: skip
        try:
            return prove_download(got, start.etag)
        except ItemError:
            path.unlink()
            raise

    def _stream(self, url: str, path: Path, deadline: float) -> Proof:
        """A file from a site that knows no ranges: in one piece, and compared with what its answer states."""
        heads: list[Head] = []
        return self._transport.stream(
            url, path, lambda file: prove_file(file, heads[-1].headers), limit=MAX_BYTES, deadline_at=deadline,
            on_head=heads.append,
        )  # fmt: skip

    # -- the API ---------------------------------------------------------------------------------------------------

    def _tell(self, item: Item, small: bool, refused: str, path: Path, deadline: float) -> str:
        """Where a file is now, other than at the URL that was `refused` if the API has another; asked once for all."""
        with self._lock:
            asking = self._asking.setdefault(item.id, threading.Lock())
        with asking:
            image = self._told.get(item.id)
            url = _choose_url(image, small=small)
            if not url or url == refused:
                image = self._ask_image(item, path, deadline)
                with self._lock:
                    self._told[item.id] = image
                url = _choose_url(image, small=small)
        if not url:
            raise ItemError("unavailable", "the archive has the image, but names no such file of it")
        return url

    def _ask_image(self, item: Item, path: Path, deadline: float) -> Image:
        root = self._root(item)
        try:
            image: Image = self._ask(root, f"images/{item.id}/", path, deadline)
        except ItemError as error:
            if error.reason == "withdrawn" and read_facts(item).public is False:
                self._check_token(root, path, deadline)
            raise
        if image.isic_id != item.id:
            raise ItemError("unavailable", f"the API answers with {image.isic_id}", transient=True)
        return image

    def _check_token(self, root: str, path: Path, deadline: float) -> None:
        """Raise when an image that is not public may be there, only not for us."""
        if self._token is None or root != self._trusted:
            raise ItemError("forbidden", "the image is not public, and there are no credentials for it")
        if not self._refused_token:
            try:
                self._ask(root, "users/me/", path, deadline)
            except ItemError as error:
                if error.reason != "forbidden":
                    raise
                self._refused_token = True
        if self._refused_token:
            raise ItemError("forbidden", "the image is not public, and the token is not known any more: log in again")

    def _root(self, item: Item) -> str:
        """Where an image is asked for: the demo's address is another each time, and so in no manifest."""
        base = image_location(item).base_url
        return parse_root(self._base if base == DEMO else base)

    def _ask(self, root: str, call: str, path: Path, deadline: float) -> Any:
        """One call of the API."""
        headers = {}
        if self._token is not None and root == self._trusted:
            headers["Authorization"] = f"Bearer {self._token.get()}"
        answer = path.with_name(f"{path.name}.api")

        def accept(answer: Path) -> Any:
            try:
                return parse_answer(f"/{call}", answer.read_bytes()).value
            except ShapeError as error:
                raise ItemError("unavailable", str(error), transient=True) from None

        try:
            return self._transport.stream(
                f"{root}/{call}", answer, accept, limit=MAX_ANSWER, headers=headers, explain=judge_refusal,
                deadline_at=deadline,
            )  # fmt: skip
        except ItemError as error:
            text = self._token.scrub(str(error)) if self._token else str(error)
            raise ItemError(error.reason, text, transient=error.transient) from None
        finally:
            answer.unlink(missing_ok=True)


def judge_refusal(status: int, document: bytes) -> ItemError | None:
    """Say what an error status of the API means for the image; None for what it means everywhere. Pure.

    Only a 404 in the API's own words says that there is no such image: a proxy's says nothing about it.
    """
    said = explain_error(document)
    if status == 404:
        return ItemError("withdrawn", f"404 {said}") if said else ItemError("unavailable", "404, no such path")
    return ItemError("forbidden", f"{status} {said}".strip()) if status in {401, 403} else None


def _receive(path: Path, proof: Proof, route: str) -> Received:
    return Received(path, proof.size, proof.md5, proof.sha256, proof.evidence, route, proof.etag)


def _choose_url(image: Image | None, *, small: bool) -> str:
    file = None if image is None else image.thumbnail if small else image.full
    return file.url if file is not None else ""
