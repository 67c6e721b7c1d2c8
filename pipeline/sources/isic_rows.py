"""What the ISIC Archive answers, as records: images flattened to stable typed columns, collections, lesions, users.

What the site leaves out is None. What it adds, or gives in another form than expected, is kept in `other`, never lost;
only a record without a usable identifier is an error. Everything here is pure.
"""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from pipeline.sources.api_body import ShapeError, clean_text
from pipeline.sources.isic_fields import FIELDS, METADATA, SQL_TYPES, Field

Value = str | int | bool | decimal.Decimal | None
_ISIC_ID = re.compile(r"ISIC_[0-9]{7,12}", re.ASCII)
_BIGINT = 2**63 - 1
_AS_SENT = " (as sent)"
_SITE_DEPTH = 4  # metadata.clinical.NAME, and one more; deeper things become JSON text


class ImageFile(msgspec.Struct, frozen=True):
    """Where a file of an image is, and how large the site thinks it is: `size` in bytes, as it was when it came in.

    URLs of images that are not public are signed, and good for 6 to 7 days: the signature is not shown.
    """

    url: str
    size: int | None = None

    def __repr__(self) -> str:
        return f"ImageFile({self.url.partition('?')[0]!r}, size={self.size})"

    @property
    def signed(self) -> bool:
        """Whether the URL has a query, and so an end."""
        return "?" in self.url

    @property
    def extension(self) -> str:
        """Of the name in the URL, lower case with its dot (`.jpg`, `.png`, `.tif`), or nothing. Pure."""
        match = re.search(r"\.[A-Za-z0-9]{1,8}$", urlsplit(self.url).path)
        return match[0].lower() if match else ""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image.

    Attributes
    ----------
    attribution
        Of the cohort, which may differ from the file's own.
    metadata
        By column (`metadata.clinical.sex`), those that the image has: text, numbers, Decimals and booleans.
    other
        What is not in the registry of fields, by path, and as `PATH (as sent)` what was of another type than expected.
    """

    isic_id: str
    copyright_license: str | None = None
    attribution: str | None = None
    public: bool | None = None
    full: ImageFile | None = None
    thumbnail: ImageFile | None = None
    metadata: dict[str, Value] = {}
    other: dict[str, Value] = {}

    def __repr__(self) -> str:
        return f"Image({self.isic_id}, {self.copyright_license}, {self.full!r})"


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """A collection; `description` is Markdown. How many images it has: `IsicClient.count(collections=[id])`."""

    id: int
    name: str | None = None
    description: str | None = None
    public: bool | None = None
    pinned: bool | None = None
    locked: bool | None = None
    doi: str | None = None
    doi_url: str | None = None
    other: dict[str, Value] = {}


class Lesion(msgspec.Struct, frozen=True, kw_only=True):
    """A lesion with its images; seen only by who may see all of them."""

    id: str
    images: tuple[Image, ...] = ()
    images_count: int | None = None
    longitudinally_monitored: bool | None = None
    index_image_id: str | None = None
    outcome_diagnosis: str | None = None
    outcome_diagnosis_1: str | None = None
    other: dict[str, Value] = {}


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the site takes us for."""

    id: int
    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    full_name: str | None = None
    hash_id: str | None = None
    created: str | None = None
    accepted_terms: str | None = None
    other: dict[str, Value] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A study, annotation or task of a study. `values`: all that it has, by path."""

    id: int
    values: dict[str, Value] = {}


def parse_value(field: Field, value: object) -> Value:
    """A value as its field's type, or None where it is not of it."""
    if field.kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if field.kind == "text":
        return (clean_text(value) or None) if isinstance(value, str) else None
    number = _parse_decimal(value)
    if number is None or field.kind == "decimal":
        return number
    return int(number) if number == number.to_integral_value() else None


def _parse_decimal(value: object) -> decimal.Decimal | None:
    """A number that SQL's BIGINT or DECIMAL(18,2) holds. Numbers of text, too: so the API gives millimetres."""
    if isinstance(value, float):
        value = repr(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return decimal.Decimal(value) if abs(value) <= _BIGINT else None
    if not isinstance(value, str) or not re.fullmatch(r"\s*[+-]?\d{1,15}(\.\d{1,15})?\s*", value, re.ASCII):
        return None
    return decimal.Decimal(value.strip())


def flatten_json(value: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Paths and scalars of a JSON object; lists, and what is nested deeper than images are, as JSON text."""
    if isinstance(value, Mapping) and depth < _SITE_DEPTH and (value or not prefix):
        for key, inner in value.items():
            name = clean_text(str(key)) or "?"
            yield from flatten_json(inner, f"{prefix}.{name}" if prefix else name, depth + 1)
    elif isinstance(value, (Mapping, list)):
        try:
            yield prefix, clean_text(json.dumps(value, ensure_ascii=False, sort_keys=True))
        except (RecursionError, ValueError):
            raise ShapeError(f"{prefix[:100]} is nested too deeply") from None
    else:
        yield prefix, value


def _keep(other: dict[str, Value], path: str, value: object) -> None:
    """Add a value under its path, or under a number where there is one already."""
    if value is None:
        return
    kept: Value
    if isinstance(value, float):
        number = _parse_decimal(value)
        kept = repr(value) if number is None else number
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > _BIGINT:
        kept = hex(value)[:100]
    else:
        kept = clean_text(value) if isinstance(value, str) else cast("Value", value)
    name, number_of = path, 1
    while name in other:
        number_of += 1
        name = f"{path} ({number_of})"
    other[name] = kept


def _parse_file(url: object, size: object) -> ImageFile | None:
    if not isinstance(url, str) or not re.fullmatch(r"[\x21-\x7e]{1,8000}", url) or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    number = parse_value(FIELDS["files.full.size"], size)
    size_of = number if isinstance(number, int) and number >= 0 else None
    return ImageFile(url, size_of) if usable and "@" not in parts.netloc else None


def read_image(record: object) -> Image:
    """Read an image.

    Raises
    ------
    ShapeError
        When it is no object, or has no usable `isic_id`.
    """
    if not isinstance(record, Mapping):
        raise ShapeError(f"an image that is {type(record).__name__}")
    isic_id = record.get("isic_id")
    if not isinstance(isic_id, str) or not _ISIC_ID.fullmatch(isic_id):
        raise ShapeError(f"an image with the isic_id {clean_text(str(isic_id)[:100])!r}; {_has(record)}")
    values: dict[str, Value] = {}
    other: dict[str, Value] = {}
    sent: dict[str, object] = {}
    for path, raw in flatten_json(record):
        field = FIELDS.get(path)
        value = parse_value(field, raw) if field else None
        if field and path not in sent:
            sent[path] = raw
        if value is not None and path not in values:
            values[path] = value
        elif raw is not None:
            _keep(other, path + _AS_SENT if field else path, raw)
    files: list[ImageFile | None] = []
    for name in ("files.full", "files.thumbnail_256"):
        url, size = sent.get(f"{name}.url"), sent.get(f"{name}.size")
        file = _parse_file(url, size)
        files.append(file)
        if file is None and values.get(f"{name}.url") is not None:
            _keep(other, f"{name}.url{_AS_SENT}", str(url).partition("?")[0])  # not what may be a signature
        if values.get(f"{name}.size") is not None and (file is None or file.size is None):
            _keep(other, f"{name}.size{_AS_SENT}", size)
    return Image(
        isic_id=isic_id,
        copyright_license=_text(values.get("copyright_license")),
        attribution=_text(values.get("attribution")),
        public=cast("bool | None", values.get("public")),
        full=files[0],
        thumbnail=files[1],
        metadata={field.column: values[field.column] for field in METADATA if field.column in values},
        other=dict(sorted(other.items())),
    )


def _text(value: Value) -> str | None:
    return value if isinstance(value, str) else None


def _has(record: Mapping[Any, object]) -> str:
    return "it has " + (", ".join(sorted(clean_text(str(key))[:40] for key in record)[:8]) or "nothing")


def flatten_image(image: Image) -> dict[str, Value]:
    """An image as a row: every column of the registry, in its order, then what else it has."""
    full, thumbnail = image.full, image.thumbnail
    row: dict[str, Value] = {
        "isic_id": image.isic_id,
        "copyright_license": image.copyright_license,
        "attribution": image.attribution,
        "public": image.public,
        "files.full.url": full.url if full else None,
        "files.full.size": full.size if full else None,
        "files.thumbnail_256.url": thumbnail.url if thumbnail else None,
        "files.thumbnail_256.size": thumbnail.size if thumbnail else None,
    }
    for field in METADATA:
        row[field.column] = image.metadata.get(field.column)
    for name, value in image.other.items():
        row.setdefault(name, value)
    return row


def sql_columns() -> dict[str, str]:
    """SQL types of the registry's columns, in the order of `flatten_image`: for `CREATE TABLE`."""
    return {column: SQL_TYPES[field.kind] for column, field in FIELDS.items()}


def read_collection(record: object) -> Collection:
    """Read a collection; raises `ShapeError` as `read_image`."""
    found: Collection = _read(Collection, record)
    return found


def read_user(record: object) -> User:
    """Read a user; raises `ShapeError` as `read_image`."""
    found: User = _read(User, record)
    return found


def read_lesion(record: object) -> Lesion:
    """Read a lesion with its images; raises `ShapeError` as `read_image`, for one of its images too."""
    if not isinstance(record, Mapping):
        raise ShapeError(f"a lesion that is {type(record).__name__}")
    images = record.get("images")
    if images is not None and not isinstance(images, list):
        raise ShapeError(f"a lesion whose images are {type(images).__name__}; {_has(record)}")
    rest = {key: value for key, value in record.items() if key != "images"}
    found: Lesion = _read(Lesion, rest)
    return msgspec.structs.replace(found, images=tuple(map(read_image, images or ())))


def read_record(record: object) -> Record:
    """Read a study, annotation or task; raises `ShapeError` as `read_image`."""
    if not isinstance(record, Mapping):
        raise ShapeError(f"a record that is {type(record).__name__}")
    number = record.get("id")
    if isinstance(number, bool) or not isinstance(number, int):
        raise ShapeError(f"a record without a number as id; {_has(record)}")
    values: dict[str, Value] = {}
    for path, raw in flatten_json(record):
        _keep(values, path, raw)
    return Record(id=number, values=values)


def _read(kind: type[Any], record: object) -> Any:
    """Read an object into a record whose fields are scalars; what does not fit goes to `other`."""
    what = kind.__name__.lower()
    if not isinstance(record, Mapping):
        raise ShapeError(f"a {what} that is {type(record).__name__}")
    hints = {field.name: field.type for field in msgspec.structs.fields(kind) if field.name not in {"other", "images"}}
    found: dict[str, object] = {}
    other: dict[str, Value] = {}
    for path, raw in flatten_json(record):
        hint = hints.get(path)
        value: object = None
        if hint is not None:
            name = {int: "int", int | None: "int", bool | None: "bool"}.get(hint, "text")
            value = parse_value(Field(name=path, column=path, kind=cast("Any", name)), raw)
        if value is not None and path not in found:
            found[path] = value
        else:
            _keep(other, path + _AS_SENT if hint is not None else path, raw)
    if not found.get("id") and found.get("id") != 0:
        raise ShapeError(f"a {what} without a usable id; {_has(record)}")
    return kind(**found, other=dict(sorted(other.items())))


def read_stats(record: object) -> dict[str, int]:
    """Read the site's counts: `image.public_images_count` and so on. Raises `ShapeError` where there are none."""
    found = {
        path: raw
        for path, raw in flatten_json(record if isinstance(record, Mapping) else {})
        if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) <= _BIGINT
    }
    if not found:
        raise ShapeError("no counts")
    return found


class FacetCounts(dict[str, int]):
    """Values of a field, and how many images have each. `others`: images with values that are not listed."""

    others: int = 0


def read_facets(record: object) -> dict[str, FacetCounts]:
    """Read values of fields and how many images have each; raises `ShapeError`. Fields without values are left out.

    These are aggregations of Elasticsearch: lists of buckets, or buckets by name.
    """
    if not isinstance(record, Mapping):
        raise ShapeError(f"facets that are {type(record).__name__}")
    found: dict[str, FacetCounts] = {}
    for name, raw in record.items():
        if counts := FacetCounts(_buckets(raw)):
            others = raw.get("sum_other_doc_count")  # of the buckets beyond the most frequent ones
            counts.others = max(0, others) if isinstance(others, int) else 0
            found[clean_text(str(name))] = counts
    return found


def _buckets(facet: object) -> Iterable[tuple[str, int]]:
    buckets = facet.get("buckets") if isinstance(facet, Mapping) else None
    if isinstance(buckets, Mapping):
        buckets = [{"key": key, **bucket} for key, bucket in buckets.items() if isinstance(bucket, Mapping)]
    for bucket in buckets if isinstance(buckets, list) else ():
        if not isinstance(bucket, Mapping):
            raise ShapeError("a facet whose bucket is no object")
        key, count = bucket.get("key_as_string", bucket.get("key")), bucket.get("doc_count")
        if key is None or isinstance(key, (list, Mapping)) or isinstance(count, bool) or not isinstance(count, int):
            raise ShapeError(f"a facet whose bucket is unusable; {_has(bucket)}")
        text = str(key).lower() if isinstance(key, bool) else str(key)
        yield clean_text(text), count
