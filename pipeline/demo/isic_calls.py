"""The paths of the ISIC Archive's API v2: what each gives, to whom, and how it refuses."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from pipeline.demo.faults import Fault
from pipeline.demo.isic_answer import (
    Answer,
    CallError,
    answer_json,
    answer_page,
    bad_query,
    not_found,
    unauthorized,
    unprocessable,
)
from pipeline.demo.isic_faults import bend_page
from pipeline.demo.isic_pages import (
    BadParameterError,
    Ordering,
    cut_page,
    parse_cursor,
    parse_integer,
    parse_limit,
    render_link,
)
from pipeline.demo.isic_query import BadQueryError, ColumnlessError, Engine
from pipeline.demo.isic_records import (
    NOBODY,
    IsicCollection,
    IsicImage,
    IsicUser,
    render_collection,
    render_time,
    render_user,
)
from pipeline.demo.isic_view import IsicView, Places, count_facets, order_images, render_lesion

RenderImage = Callable[[IsicImage], dict[str, Any]]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the API: `path` below its root with a slash at its end, `words` of it that are no fixed names."""

    view: IsicView
    user: IsicUser
    path: str
    url: str
    query: str = ""
    words: tuple[str, ...] = ()
    body: bytes = b""
    fault: Fault | None = None
    render: RenderImage

    def get(self, name: str) -> str | None:
        """A parameter's value, the last one where it is repeated; None where it is not there."""
        return parse_qs(self.query, keep_blank_values=True).get(name, [None])[-1]

    def collections(self) -> frozenset[int] | None:
        """Numbers of collections to take images of; None for all images. Raises `BadParameterError`."""
        given = parse_qs(self.query, keep_blank_values=True).get("collections", [])
        numbers = [part for value in given for part in value.split(",") if part.strip()]
        return frozenset(parse_integer("collections", part) for part in numbers) if numbers else None


def select_places(call: Call, engine: Engine = "database") -> Places:
    """Places of the images that a request's parameters mean; raises `CallError` and `BadParameterError`."""
    return select_for(call.view, call.user, call.get("query") or "", call.collections(), engine)


def select_for(
    view: IsicView, user: IsicUser, query: str, collections: frozenset[int] | None, engine: Engine = "database"
) -> Places:
    """As `IsicView.select`, with the site's answers to a query that it cannot read."""
    try:
        return view.select(user, query.strip(), collections, engine)
    except BadQueryError:
        raise bad_query() from None
    except ColumnlessError:
        raise CallError(answer_page(500)) from None


def list_images(call: Call) -> Answer:
    """`images/`: all that the user sees."""
    return _answer_page(call, call.view.select(call.user), order_images(call.view.archive), _show_image(call))


def search_images(call: Call) -> Answer:
    """`images/search/`: those that a query finds, in collections."""
    return _answer_page(call, select_places(call), order_images(call.view.archive), _show_image(call))


def _show_image(call: Call) -> Callable[[int], dict[str, Any]]:
    return lambda place: call.render(call.view.archive.images[place])


def _answer_page(
    call: Call, rows: Sequence[Any], ordering: Ordering, render: Callable[[Any], dict[str, Any]]
) -> Answer:
    cut = cut_page(rows, ordering, parse_cursor(call.get("cursor") or ""), parse_limit(call.get("limit")))
    page = {
        "results": [render(row) for row in cut.rows],
        "count": cut.count,
        "next": render_link(call.url, call.query, cut.following),
        "previous": render_link(call.url, call.query, cut.previous),
    }
    if call.fault is not None:
        own = f"{call.url}?{call.query}" if call.query else call.url
        page = bend_page(page, call.fault, own)
    return answer_json(page)


def sum_sizes(call: Call) -> Answer:
    """`images/search/size/`."""
    return answer_json({"size": call.view.sum_sizes(select_places(call, "search"))})


def show_facets(call: Call) -> Answer:
    """`images/facets/`."""
    return answer_json(count_facets(call.view.archive.images, select_places(call, "search")))


def show_image(call: Call) -> Answer:
    """`images/{isic_id}/`."""
    image = call.view.find(call.user, call.words[0])
    if image is None:
        raise not_found()
    return answer_json(call.render(image))


def show_similar(call: Call) -> Answer:
    """`images/{isic_id}/similar/`, for users; no image here has what it needs."""
    if call.user is NOBODY:
        raise unauthorized()
    show_image(call)
    return answer_json([])


def list_collections(call: Call) -> Answer:
    """`collections/`: the newest first, or by name."""
    view, sort, pinned = call.view, call.get("sort"), call.get("pinned")
    if sort not in {None, "name", "created"}:
        error = {"type": "literal_error", "loc": ["query", "sort"], "msg": "Input should be 'name' or 'created'"}
        raise unprocessable([error])
    if pinned is not None and pinned.lower() not in {"true", "false", "1", "0"}:
        message = "Input should be a valid boolean, unable to interpret input"
        raise unprocessable([{"type": "bool_parsing", "loc": ["query", "pinned"], "msg": message}])
    rows = [
        one
        for one in view.archive.collections.values()
        if call.user.sees(one.public, one.owner) and (pinned is None or one.pinned == (pinned.lower() in {"true", "1"}))
    ]
    by_name = sort == "name"
    ordering = _BY_NAME if by_name else _OLDEST if sort == "created" else _NEWEST
    return _answer_page(call, sorted(rows, key=ordering.rank), ordering, render_collection)


def _stamp(text: str) -> float:
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


_BY_NAME = Ordering(lambda one: one.name, lambda one: one.name, str)
_OLDEST = Ordering(lambda one: one.created.timestamp(), lambda one: str(one.created), _stamp)
_NEWEST = Ordering(lambda one: -one.created.timestamp(), lambda one: str(one.created), lambda text: -_stamp(text))


def find_collection(call: Call) -> IsicCollection:
    """The collection of a path; raises `CallError` 404, and `BadParameterError` for what is no number."""
    number = call.words[0]
    if not (number.isascii() and number.isdigit()):
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise unprocessable([{"type": "int_parsing", "loc": ["path", "id"], "msg": message}])
    one = call.view.archive.collections.get(int(number))
    if one is None or not call.user.sees(one.public, one.owner):
        raise not_found()
    return one


def show_collection(call: Call) -> Answer:
    """`collections/{id}/`."""
    return answer_json(render_collection(find_collection(call)))


def show_attribution(call: Call) -> Answer:
    """`collections/{id}/attribution/`: licences and attributions, and how many images have each."""
    images = call.view.archive.images
    counts: dict[tuple[str, str], int] = {}
    for place in call.view.select(call.user, collections=frozenset({find_collection(call).id})):
        key = images[place].licence, images[place].credit
        counts[key] = counts.get(key, 0) + 1
    rows = sorted(counts.items(), key=lambda item: -item[1])
    return answer_json([{"license": key[0], "attribution": key[1], "count": number} for key, number in rows])


def complete_collections(call: Call) -> Answer:
    """`collections/autocomplete/`: unlocked ones whose name has the words."""
    wanted = (call.get("query") or "").lower()
    if len(wanted) < 3:
        message = "String should have at least 3 characters"
        raise unprocessable([{"type": "string_too_short", "loc": ["query", "query"], "msg": message}])
    found = [
        render_collection(one)
        for one in call.view.archive.collections.values()
        if not one.locked and call.user.sees(one.public, one.owner) and wanted in one.name.lower()
    ]
    return answer_json(found[:20])


def list_lesions(call: Call) -> Answer:
    """`lesions/`: those of which the user sees all images."""
    view = call.view
    rows = [item for item in view.lesions().items() if all(view.sees(call.user, place) for place in item[1])]
    ordering = Ordering(lambda item: item[0], lambda item: item[0], str)
    return _answer_page(call, rows, ordering, lambda item: render_lesion(view, *item))


def show_lesion(call: Call) -> Answer:
    """`lesions/{id}/`."""
    places = call.view.lesions().get(call.words[0])
    if not places or not all(call.view.sees(call.user, place) for place in places):
        raise not_found()
    return answer_json(render_lesion(call.view, call.words[0], places))


def show_user(call: Call) -> Answer:
    """`users/me/`."""
    if call.user is NOBODY:
        raise unauthorized()
    return answer_json(render_user(call.user))


def show_stats(call: Call) -> Answer:
    """`stats/`."""
    view = call.view
    everything = len(view.select(IsicUser(id=1, name="staff", staff=True)))
    collections = view.archive.collections.values()
    return answer_json(
        {
            "image": {
                "images_count": everything,
                "public_images_count": len(view.select(NOBODY)),
                "annotated_images_count": 1,
            },
            "collection": {
                "collections_count": len(collections),
                "public_collections_count": sum(one.public for one in collections),
            },
            "doi": {"dois_count": sum(one.doi is not None for one in collections)},
            "study": {"studies_count": 1, "public_studies_count": 0, "study_annotations_count": 1},
            "user": {"users_count": 3, "uploading_users_count": 1, "annotating_users_count": 1},
            "engagement": {"30_day_sessions_count": 2},
        }
    )


def list_staff_records(call: Call) -> Answer:
    """`studies/`, `annotations/` and `study-tasks/`, for staff: one of each."""
    if not call.user.staff:
        raise unauthorized()
    ordering = Ordering(lambda row: row["id"], lambda row: str(row["id"]), int)
    return _answer_page(call, [_staff_record(call)], ordering, lambda row: row)


def show_staff_record(call: Call) -> Answer:
    """One of them."""
    if not call.user.staff:
        raise unauthorized()
    if call.words[0] != "1":
        raise not_found()
    return answer_json(_staff_record(call))


def _staff_record(call: Call) -> dict[str, Any]:
    images = call.view.archive.images
    name = images[0].isic_id if len(images) else None
    kind = call.path.partition("/")[0]
    if kind == "annotations":
        return {"id": 1, "study": 1, "image": name, "task": 1, "annotator": 8}
    if kind == "study-tasks":
        return {"id": 1, "study": 1, "image": name, "annotator": 8, "complete": True}
    choices = [{"id": number, "question": 1, "text": text} for number, text in enumerate(("yes", "no"), 1)]
    question = {"id": 1, "type": "select", "prompt": "Is it?", "official": True, "required": True, "choices": choices}
    feature = {"id": 1, "required": False, "name": ["Dots", "Irregular"], "official": True}
    return {
        "id": 1,
        "created": render_time(images[0].created) if len(images) else None,
        "creator": 1,
        "name": "Demo study",
        "description": "",
        "features": [feature],
        "questions": [question],
    }


Handler = Callable[[Call], Answer]
_STAFF = r"(?:studies|annotations|study-tasks)"
# Method, path below the API's root, name in statistics, handler.
ROUTES: tuple[tuple[str, re.Pattern[str], str, Handler], ...] = tuple(
    (method, re.compile(path, re.ASCII), name, handler)
    for method, path, name, handler in (
        ("GET", r"images/", "images", list_images),
        ("GET", r"images/search/", "images/search", search_images),
        ("GET", r"images/search/size/", "images/search/size", sum_sizes),
        ("GET", r"images/facets/", "images/facets", show_facets),
        ("GET", r"images/([^/]+)/", "images/{id}", show_image),
        ("GET", r"images/([^/]+)/similar/", "images/{id}/similar", show_similar),
        ("GET", r"collections/", "collections", list_collections),
        ("GET", r"collections/autocomplete/", "collections/autocomplete", complete_collections),
        ("GET", r"collections/([^/]+)/", "collections/{id}", show_collection),
        ("GET", r"collections/([^/]+)/attribution/", "collections/{id}/attribution", show_attribution),
        ("GET", r"lesions/", "lesions", list_lesions),
        ("GET", r"lesions/([^/]+)/", "lesions/{id}", show_lesion),
        ("GET", r"users/me/", "users/me", show_user),
        ("GET", r"stats/", "stats", show_stats),
        ("GET", rf"{_STAFF}/", "staff", list_staff_records),
        ("GET", rf"{_STAFF}/([^/]+)/", "staff/{id}", show_staff_record),
    )
)


__all__ = ["ROUTES", "BadParameterError", "Call", "Handler", "select_for"]
