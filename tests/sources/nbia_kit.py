"""A made-up NBIA that answers as a test says, and a fetcher on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_kit import make_dicom, make_item
from zip_kit import list_md5s, make_series_zip, make_zip

from pipeline.errors import ItemError
from pipeline.model import Entry, Item, NbiaLocation
from pipeline.settings import SourceTcia
from pipeline.sources.tcia_fetch import NbiaFetcher
from pipeline.sources.verified import Verified, fetch_verified
from pipeline.transport.client import Transport
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.retry import Policy
from tests.transport.server import Server, Step, answer, chunked, part

QUICK = Policy(attempts=3, deadline=60, base=0.001, slow_base=0.002, cap=0.01, stall=10, min_rate=1)
V4, V1, V2 = "/api/v4/getImage", "/api/v1/getImageWithMD5Hash", "/api/v2/getImageWithMD5Hash"
UID = "1.2.826.0.1.1"
FILES = {f"1-{n}.dcm": make_dicom(UID, f"{UID}.{n}") for n in (3, 1, 2)}
ZIP = make_series_zip(FILES)
OLD_ZIP = make_series_zip({f"0000000{n}.dcm": data for n, data in enumerate(FILES.values())}, licence=False)
GRANTED = b"The user has not been granted the access to image with given SeriesInstanceUID,1.2. Please contact us."
PUBLIC = b"Image with given SeriesInstanceUID,1.2, is not in public domain."


class Bench:
    """A fetcher on a made-up NBIA."""

    def __init__(self, root: Path) -> None:
        self.server = Server()
        self.root = root
        self.base = f"{self.server.base}/api"
        self.pool = ConnectionPool(4, environ={})
        self.stop = threading.Event()
        self.transport = Transport(self.pool, QUICK, stop=self.stop)
        self.settings = SourceTcia(base_url=self.base, nlst_base_url="")
        self.known: dict[str, object] = {}
        self.item = self.make_item(FILES)
        self.fetchers: list[NbiaFetcher] = []

    def make_item(self, files: dict[str, bytes], uid: str = UID, **changes: Any) -> Item:
        made = make_item(0, len(files), sum(map(len, files.values())), uid=uid, location=NbiaLocation(self.base))
        return msgspec.structs.replace(made, **changes)

    def fetcher(self, entries: tuple[Entry, ...] = (), **changes: Any) -> NbiaFetcher:
        """A new life on the same scratch."""
        options = {"entries": entries, "known": self.known.get, "stop": self.stop, **changes}
        settings = options.pop("settings", self.settings)
        self.fetchers.append(NbiaFetcher(settings, self.transport, self.root / "sources", **options))
        return self.fetchers[-1]

    def scratch(self, ending: str = "") -> list[str]:
        """Endings of what lies on scratch."""
        return sorted(p.suffix for p in (self.root / "sources").iterdir() if p.suffix != ".json" or ending == ".json")

    def asked(self) -> list[str]:
        return [request.target.partition("?")[0] for request in self.server.requests]

    def close(self) -> None:
        self.stop.set()
        for each in self.fetchers:
            each.close()
        self.pool.close()
        self.server.close()


def one(item: Item, piece: int = 0, pieces: int = 1) -> Entry:
    """A manifest entry."""
    return Entry(0, piece, piece, pieces, item)


def soon() -> float:
    """A deadline that no test should meet."""
    return time.monotonic() + 30


def haul(bench: Bench, fetcher: NbiaFetcher, entry: Entry) -> list[Verified]:
    """All of an entry, as intake does it."""
    bodies = fetcher.list_bodies(entry, soon())
    try:
        return [fetch_verified(fetcher, body, bench.root / f"raw-{n}", soon()) for n, body in enumerate(bodies)]
    finally:
        fetcher.release(entry)


def refuse(bench: Bench, item: Item | None = None) -> ItemError:
    """The error that an item ends in; nothing is left on scratch."""
    with pytest.raises(ItemError) as caught:
        haul(bench, bench.fetcher(), one(item or bench.item))
    assert bench.scratch(".json") == []
    return caught.value


PASSING: dict[str, Step] = {
    "500": answer(500, b"Server was not able to process your request\nnull"),
    "502": answer(502, b"<html>", Content_Type="text/html"),
    "503": answer(503, Retry_After=0),
    "429": answer(429),
    "cut": chunked(ZIP[:900], whole=False),
    "reset": part(ZIP, 300, "", reset=True),
    "short body that looks whole": chunked(ZIP[:-30]),
    "page": answer(200, b"<html>Sign in</html>", Content_Type="text/html"),
    "page without a type": answer(200, b"<html>Sign in</html>"),
    "text": answer(200, b"Server was not able to process your request"),
    "nothing": answer(200),
    "flipped bit": chunked(ZIP[:500] + bytes([ZIP[500] ^ 1]) + ZIP[501:]),
    "22 bytes": chunked(make_zip({})),
    "licence only": chunked(make_zip({"LICENSE": b"CC BY"})),
    "short": chunked(make_series_zip(dict(list(FILES.items())[:2]))),
    "no list": chunked(make_zip(FILES)),
    "wrong MD5": chunked(make_series_zip(FILES, md5s=list_md5s(FILES | {"1-1.dcm": b""}))),
}
