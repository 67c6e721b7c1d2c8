"""What the ISIC Archive answers: flattened to stable columns, nothing lost, nothing hostile let through."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.api_body import ShapeError
from pipeline.sources.isic_api import explain_error, parse_answer, plan_next
from pipeline.sources.isic_fields import FIELDS, METADATA, OLD_NAMES, render_registry, resolve_path
from pipeline.sources.isic_pages import Cursor, parse_cursor
from pipeline.sources.isic_rows import (
    Image,
    ImageFile,
    flatten_image,
    read_collection,
    read_facets,
    read_image,
    read_lesion,
    read_record,
    read_stats,
    read_user,
    sql_columns,
)
from tests.sources.isic_archive import image

ROOT = "https://api.isic-archive.com/api/v2"


def test_an_image() -> None:
    """Every field has its column and type: numbers of text are Decimals, what is left out is None."""
    found = read_image(image(7, concomitant_biopsy=True, clin_size_long_diam_mm="3.00"))
    assert found.isic_id == "ISIC_0000007"
    assert found.full == ImageFile("https://isic-archive.s3.amazonaws.com/images/ISIC_0000007.jpg", 1007)
    assert found.full.extension == ".jpg"
    assert not found.full.signed
    row = flatten_image(found)
    assert list(row) == list(FIELDS) == list(sql_columns())
    assert row["metadata.acquisition.pixels_x"] == 600
    assert row["metadata.clinical.clin_size_long_diam_mm"] == Decimal("3.00")
    assert str(row["metadata.clinical.mel_thick_mm"]) == "0.55"
    assert row["metadata.clinical.concomitant_biopsy"] is True
    assert row["metadata.clinical.diagnosis_1"] is None
    assert row["public"] is True
    assert found.other == {}


def test_columns_are_the_same_for_all() -> None:
    """An image with next to nothing has the columns of one with everything."""
    bare = read_image({"isic_id": "ISIC_0000001"})
    assert list(flatten_image(bare)) == list(flatten_image(read_image(image(1))))
    assert (bare.full, bare.thumbnail, bare.public, bare.metadata) == (None, None, None, {})


def test_new_fields_are_kept() -> None:
    """What the registry does not know stands behind it, by its path; of another type, as it was sent."""
    record = image(1, new_thing="x", age_approx="fifty", nested={"a": {"b": [1]}}, sex=None, listed=[1, "é"])
    record |= {"created": "2026-01-01", "ratio": 0.5, "huge": 10**30, "meta.x": 1, "pub\x00lic": True}
    record["metadata"]["acquisition"]["pixels_x"] = 1.5
    found = read_image(record)
    assert found.other == {
        "created": "2026-01-01",
        "huge": hex(10**30),
        "meta.x": 1,
        "metadata.acquisition.pixels_x (as sent)": Decimal("1.5"),
        "metadata.clinical.age_approx (as sent)": "fifty",
        "metadata.clinical.listed": '[1, "é"]',
        "metadata.clinical.nested.a": '{"b": [1]}',
        "metadata.clinical.new_thing": "x",
        "pub lic": True,
        "ratio": Decimal("0.5"),
    }
    row = flatten_image(found)
    assert row["metadata.clinical.age_approx"] is None
    assert row["metadata.clinical.new_thing"] == "x"


def test_colliding_paths_are_both_kept() -> None:
    """A dot inside a name does not make one field of two."""
    found = read_image({"isic_id": "ISIC_0000001", "a": {"b": 1}, "a.b": 2})
    assert found.other == {"a.b": 1, "a.b (2)": 2}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://x/y.jpg",
        "https:///y.jpg",
        "https://a:b@c/y.jpg",
        "https://x/\n",
        "https://x:99999/",
        5,
        None,
        {},
    ],
)
def test_unusable_urls(url: object) -> None:
    """A file that cannot be had is None."""
    record = image(1)
    record["files"]["full"]["url"] = url
    assert read_image(record).full is None


def test_signatures_do_not_show() -> None:
    """The signature of a URL is in the URL alone."""
    record = image(1)
    record["files"]["full"]["url"] = "https://c/u/x.TIF?Expires=1&Signature=s1gn"
    record["files"]["thumbnail_256"]["url"] = "ftp://c/u?Signature=s1gn"
    found = read_image(record)
    assert found.full
    assert (found.full.extension, found.full.signed) == (".tif", True)
    assert "s1gn" not in f"{found!r} {found.other!r} {[found]!r}"


@pytest.mark.parametrize(
    "record",
    [{}, [], None, "x", {"isic_id": 5}, {"isic_id": "ISIC_1"}, {"isic_id": "ISIC_0000001/.."}, {"isic_id": None}],
)
def test_no_image(record: object) -> None:
    """Without a usable id there is no image."""
    with pytest.raises(ShapeError):
        read_image(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
PATHS = st.sampled_from([*FIELDS, "metadata", "metadata.clinical", "files", "files.full", "x"])


def placed(values: dict[str, Any]) -> dict[str, Any]:
    """A record with values at paths."""
    record: dict[str, Any] = {}
    for path, value in values.items():
        inner = record
        *groups, name = path.split(".")
        for group in groups:
            inner = inner.setdefault(group, {}) if isinstance(inner.get(group, {}), dict) else {}
        inner[name] = value
    return record


@given(st.dictionaries(PATHS, JSON, max_size=8), st.dictionaries(st.text(max_size=6), JSON, max_size=3))
def test_hostile_images(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Whatever fields hold, a row has the columns first, types of the registry, and text fit for a file."""
    record = {**more, **placed(values), "isic_id": "ISIC_0000001"}
    found = read_image(json.loads(json.dumps(record)))
    row = flatten_image(found)
    assert list(row)[: len(FIELDS)] == list(FIELDS)
    kinds = {"text": str, "int": int, "decimal": Decimal, "bool": bool}
    for column, field in FIELDS.items():
        assert row[column] is None or type(row[column]) is kinds[field.kind]
    for name, value in row.items():
        assert isinstance(value, (str, int, bool, Decimal, type(None)))
        f"{name} {value}".encode()
    out = io.StringIO()
    csv.writer(out).writerow(row.values())
    assert len(out.getvalue().splitlines()) == 1
    assert isinstance(found, Image)


@given(JSON)
def test_hostile_records(value: Any) -> None:
    """Every reader gives a record or ShapeError."""
    for read in (read_collection, read_user, read_lesion, read_record, read_stats, read_facets, read_image):
        try:
            found = read(value)
        except ShapeError as error:
            str(error).encode()
            continue
        assert found is not None


PLACES = ("images/", "images/search/", "images/search/size/", "images/facets/", "images/ISIC_0000001/", "stats/")
MORE = (
    "collections/",
    "collections/5/",
    "users/me/",
    "lesions/",
    "studies/5/",
    "zip-download/license-file/CC-0/",
    "x/",
)


@given(st.sampled_from([*PLACES, *MORE]), st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()))
def test_hostile_bodies(path: str, body: bytes) -> None:
    """Any bytes at any path are an answer or ShapeError; errors are readable."""
    try:
        assert parse_answer(f"/api/v2/{path}", body)
    except ShapeError as error:
        str(error).encode()
    explain_error(body).encode()


def test_deep_nesting() -> None:
    """Nesting beyond reason is an error, not a crash."""
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(ShapeError):
        read_image({"isic_id": "ISIC_0000001", "x": deep})


def test_other_records() -> None:
    """Collections, users, lesions and studies, with what is new in them."""
    collection = read_collection({"id": 5, "name": "N", "doi": None, "pinned": True, "new": 1, "public": "yes"})
    assert (collection.id, collection.name, collection.doi, collection.pinned) == (5, "N", None, True)
    assert collection.other == {"new": 1, "public (as sent)": "yes"}
    user = read_user({"id": 5, "email": "a@b.c", "accepted_terms": None})
    assert (user.id, user.email) == (5, "a@b.c")
    lesion = read_lesion({"id": "IL_0000001", "images": [image(1)], "images_count": 1, "outcome_diagnosis": "A:B"})
    assert (lesion.images[0].isic_id, lesion.images_count, lesion.outcome_diagnosis) == ("ISIC_0000001", 1, "A:B")
    study = read_record({"id": 5, "name": "S", "questions": [{"id": 1}]})
    assert study.values == {"id": 5, "name": "S", "questions": '[{"id": 1}]'}
    for read in (read_collection, read_user, read_record):
        for bad in ({}, {"id": None}, {"id": "x"}, [], None):
            with pytest.raises(ShapeError):
                read(bad)
    with pytest.raises(ShapeError, match="images are str"):
        read_lesion({"id": "IL_0000001", "images": "x"})


def test_errors_are_made_readable() -> None:
    """Each form of the site's errors is one line."""
    assert explain_error(b'{"message": "Could not parse search query."}') == "Could not parse search query."
    assert explain_error(b'{"error": "Collection is locked"}') == "Collection is locked"
    assert explain_error(b'{"detail": "Not Found"}') == "Not Found"
    detail = {"detail": [{"loc": ["query", "limit"], "msg": "Input should be a valid integer"}, {"msg": "x\ny"}]}
    assert explain_error(json.dumps(detail).encode()) == "query.limit: Input should be a valid integer; x y"
    for none in (b"", b"<html>", b"[]", b'"x"', b"{}", b'{"detail": 5}'):
        assert explain_error(none) == ""


def test_the_registry() -> None:
    """Names are unique, every old name leads somewhere or says why not, and the table has all."""
    assert len({field.name for field in FIELDS.values()}) == len(FIELDS)
    assert all(field.column.startswith(("metadata.acquisition.", "metadata.clinical.")) for field in METADATA)
    names = {field.name: field for field in FIELDS.values()}
    for name, old in OLD_NAMES.items():
        if old.new:
            assert resolve_path(f"meta.clinical.{name}").field is names[old.new]
            assert not old.values or set(old.values.values()) <= set(names[old.new].values)
        else:
            with pytest.raises(ConfigError, match=r"\w"):
                resolve_path(name)
    for field in FIELDS.values():
        assert resolve_path(field.column).field is field
        assert resolve_path(field.name).field is field
    assert len(render_registry()) == len(FIELDS)
    assert sql_columns()["metadata.clinical.melanocytic"] == "BOOLEAN"


@given(st.text(max_size=40))
def test_any_path_is_a_field_or_an_error(path: str) -> None:
    """No path crashes."""
    hint = ""
    try:
        assert resolve_path(path).field in FIELDS.values()
    except ConfigError as error:
        hint = error.hint or "none"
    assert hint != "none"


@given(st.text(max_size=60))
def test_hostile_next_pages(text: str) -> None:
    """The next page is at the site that was asked, of the same list, or refused."""
    for following in (text, f"https://evil/{text}", f"{ROOT}/images/?{text}", f"http://x/api/v2/images/?{text}"):
        try:
            url = plan_next(following, ROOT, "images/")
        except ShapeError:
            continue
        assert url.startswith(f"{ROOT}/images/?")


@given(st.text(max_size=60), st.integers(0, 10**7), st.none() | st.integers(0, 10**7))
def test_cursors_survive_saving(url: str, listed: int, counted: int | None) -> None:
    """What was saved is read again; anything else is an error for its user."""
    cursor = Cursor(url, listed, counted)
    assert parse_cursor(f" {cursor}\n") == cursor
    with contextlib.suppress(ConfigError):
        parse_cursor(url)
