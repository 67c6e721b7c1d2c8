"""The bulk paths of the ISIC Archive: `zip-download/...` of its API, the zip's own host, and a collection's CSV."""

from __future__ import annotations

import json
import re

from pipeline.demo.isic_answer import Answer, answer_json, answer_page, answer_text, not_found, unauthorized
from pipeline.demo.isic_answer import unprocessable as unprocessable_call
from pipeline.demo.isic_bodies import LICENCE_URLS
from pipeline.demo.isic_calls import BadParameterError, Call, Handler, find_collection, select_for
from pipeline.demo.isic_pages import parse_integer
from pipeline.demo.isic_records import NOBODY, USERS
from pipeline.demo.isic_view import Places
from pipeline.demo.isic_zip import (
    ZipRequest,
    list_licences,
    parse_token,
    render_attributions,
    render_licence,
    sign_request,
    stream_csv,
    stream_listing,
)

ZIP_PATH = "/zip/download"


def make_url(call: Call) -> Answer:
    """`zip-download/url/`: the URL of a zip, with a token for it; raises `BadParameterError` and `CallError`."""
    try:
        given = json.loads(call.body)
    except ValueError:
        return answer_json({"detail": "Cannot parse request body"}, 400)
    if not isinstance(given, dict):
        message = "Input should be a valid dictionary"
        raise unprocessable_call([{"type": "model_attributes_type", "loc": ["body", "payload"], "msg": message}])
    extra = [
        {"type": "extra_forbidden", "loc": ["body", "payload", key], "msg": "Extra inputs are not permitted"}
        for key in given
        if key not in {"query", "collections"}
    ]
    if extra:
        raise unprocessable_call(extra)
    query = given.get("query") or ""
    if not isinstance(query, str):
        message = "Input should be a valid string"
        raise unprocessable_call([{"type": "string_type", "loc": ["body", "payload", "query"], "msg": message}])
    listed = given.get("collections") or ()
    words = listed.split(",") if isinstance(listed, str) else [str(one) for one in listed]
    numbers = tuple(parse_integer("collections", word) for word in words if word.strip()) or None
    select_for(call.view, call.user, query, frozenset(numbers) if numbers else None)  # a query that cannot be read
    token = sign_request(ZipRequest(call.user.name, query, numbers), call.view.clock())
    return answer_json(f"{call.view.url}{ZIP_PATH}?zsid={token}")


def open_token(call: Call, name: str = "token") -> Places:
    """Places of the images that a token stands for; raises `CallError` 401."""
    asked = parse_token(call.get(name) or "", call.view.clock())
    if asked is None:
        raise unauthorized()
    user = next((one for one in USERS if one.name == asked.user), NOBODY)
    return select_for(call.view, user, asked.query, frozenset(asked.collections) if asked.collections else None)


def list_files(call: Call) -> Answer:
    """`zip-download/file-listing/`."""
    places = open_token(call)
    licences = list_licences(call.view.archive.images, places)
    return Answer(stream=stream_listing(call.view, places, call.get("token") or "", licences))


def show_metadata(call: Call) -> Answer:
    """`zip-download/metadata-file/`."""
    return _csv(call, open_token(call), "metadata.csv")


def _csv(call: Call, places: Places, name: str) -> Answer:
    return Answer(
        content_type="text/csv",
        headers=(f'Content-Disposition: attachment; filename="{name}"',),
        stream=stream_csv(call.view.archive.images, places),
    )


def show_attributions(call: Call) -> Answer:
    """`zip-download/attribution-file/`."""
    return answer_text(render_attributions(call.view.archive.images, open_token(call)))


def show_licence(call: Call) -> Answer:
    """`zip-download/license-file/{name}/`."""
    if call.words[0] not in LICENCE_URLS:
        raise not_found()
    return answer_text(render_licence(call.words[0]))


def show_collection_csv(call: Call) -> Answer:
    """`/collections/{id}/metadata/` of the website: a page of its own where the collection is not for the user."""
    number = call.words[0]
    one = call.view.archive.collections.get(int(number)) if number.isdigit() and len(number) < 10 else None
    if one is None or not call.user.sees(one.public, one.owner):
        return answer_page(404)
    places = call.view.select(call.user, collections=frozenset({find_collection(call).id}))
    return _csv(call, places, f"collection_{one.id}_metadata.csv")


ROUTES: tuple[tuple[str, re.Pattern[str], str, Handler], ...] = tuple(
    (method, re.compile(path, re.ASCII), name, handler)
    for method, path, name, handler in (
        ("POST", r"zip-download/url/", "zip-download/url", make_url),
        ("GET", r"zip-download/file-listing/", "zip-download/file-listing", list_files),
        ("GET", r"zip-download/metadata-file/", "zip-download/metadata-file", show_metadata),
        ("GET", r"zip-download/attribution-file/", "zip-download/attribution-file", show_attributions),
        ("GET", r"zip-download/license-file/([^/]+)/", "zip-download/license-file", show_licence),
    )
)
WEBSITE = re.compile(r"/collections/([^/]+)/metadata/", re.ASCII)

__all__ = ["ROUTES", "WEBSITE", "ZIP_PATH", "BadParameterError", "open_token", "show_collection_csv"]
