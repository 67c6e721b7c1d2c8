"""The bulk routes of the demo ISIC Archive: tokens, lists of files, CSVs, attributions, licences and the zip itself."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import hmac
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

import msgspec

from pipeline.demo.isic_bodies import LICENCE_URLS, make_body
from pipeline.demo.isic_records import IsicImage
from pipeline.demo.isic_view import IsicView, Places

_KEY = b"demo-isic-zip-key"
TOKEN_LIFETIME = 86_400.0
_BATCH = 1000  # rows of a stream at a time
ANONYMOUS = "Anonymous"


class ZipRequest(msgspec.Struct, frozen=True):
    """What a token stands for."""

    user: str
    query: str
    collections: tuple[int, ...] | None


def sign_request(request: ZipRequest, now: float) -> str:
    """A token, good for a day. Pure."""
    payload = base64.urlsafe_b64encode(msgspec.json.encode(request)).rstrip(b"=").decode() + f":{int(now)}"
    return f"{payload}:{hmac.new(_KEY, payload.encode(), hashlib.sha256).hexdigest()}"


def parse_token(token: str, now: float) -> ZipRequest | None:
    """What a token stands for; None for one that is not ours, or too old. Pure."""
    payload, _, signature = token.rpartition(":")
    right = hmac.new(_KEY, payload.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(right.encode(), signature.encode()):
        return None
    data, _, stamp = payload.partition(":")
    if now - int(stamp) > TOKEN_LIFETIME:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)), type=ZipRequest)
    except (msgspec.DecodeError, binascii.Error):
        return None


def stream_listing(view: IsicView, places: Places, token: str, licences: Sequence[str]) -> Iterator[bytes]:
    """The JSON that lists all files of a query. Order is nobody's promise, so it is not that of the lists."""
    images = view.archive.images
    name = f"{images[places[0]].isic_id}.zip" if len(places) == 1 else "ISIC-images.zip"
    yield f'{{"suggestedFilename": {json.dumps(name)}, "files": ['.encode()
    for start in range(len(places), 0, -_BATCH):
        batch = [images[place] for place in reversed(places[max(0, start - _BATCH) : start])]
        entries = [{"url": view.locate(image)[0], "zipPath": f"{image.isic_id}.{image.kind}"} for image in batch]
        yield "".join(json.dumps(entry) + ", " for entry in entries).encode()
    api = f"{view.url}/api/v2/zip-download"
    last = [
        {"url": f"{api}/metadata-file/?token={token}", "zipPath": "metadata.csv"},
        {"url": f"{api}/attribution-file/?token={token}", "zipPath": "attribution.txt"},
        *({"url": f"{api}/license-file/{one}/", "zipPath": f"licenses/{one}.txt"} for one in licences),
    ]
    yield (", ".join(map(json.dumps, last)) + "]}").encode()


def stream_csv(images: Sequence[IsicImage], places: Places) -> Iterator[bytes]:
    """The metadata of images, by their ids, in the columns that they use."""
    names: set[str] = set()
    order = []
    for place in places:
        image = images[place]
        names |= {**image.acquisition, **image.clinical}.keys()
        order.append((image.number, place))
    order.sort()
    columns = ["isic_id", "attribution", "copyright_license", *sorted(names)]
    yield _render_rows([columns])
    for start in range(0, len(order), _BATCH):
        rows = []
        for _, place in order[start : start + _BATCH]:
            image = images[place]
            fields: dict[str, Any] = {**image.acquisition, **image.clinical}
            values = [image.isic_id, image.credit, image.licence, *(fields.get(name, "") for name in sorted(names))]
            rows.append([guard_cell(value) for value in values])
        yield _render_rows(rows)


def _render_rows(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def guard_cell(value: object) -> object:
    """A value as the site's CSVs have it: a tab before what a spreadsheet takes for a formula. Pure."""
    return f"\t{value}" if isinstance(value, str) and value[:1] in {"=", "-", "+", "@"} else value


def render_attributions(images: Sequence[IsicImage], places: Places) -> str:
    """Whom to name: the most images first, then by name; the anonymous last. Pure."""
    counts = Counter(images[place].credit for place in places)
    return "\n\n".join(sorted(counts, key=lambda name: (name == ANONYMOUS, -counts[name], name)))


def render_licence(name: str) -> str:
    """The text of a licence. Pure."""
    return f"{name}\n\nThis stands for the licence's text in the demo. See {LICENCE_URLS[name]}\n"


def list_licences(images: Sequence[IsicImage], places: Places) -> list[str]:
    """Licences of images, sorted. Pure."""
    return sorted({images[place].licence for place in places})


def write_zip(view: IsicView, places: Places, out: IO[bytes]) -> None:
    """Write the zip of a query: stored, flat."""
    images = view.archive.images
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:

        def add(name: str, data: bytes) -> None:
            made.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0)), data)

        for place in places:
            add(f"{images[place].isic_id}.{images[place].kind}", make_body(images[place]))
        add("metadata.csv", b"".join(stream_csv(images, places)))
        add("attribution.txt", render_attributions(images, places).encode())
        for licence in list_licences(images, places):
            add(f"licenses/{licence}.txt", render_licence(licence).encode())
