"""What S3 says: ListObjectsV2 pages, ranges, conditions and errors. Pure: from records to text.

Facts: Amazon S3 API reference (ListObjectsV2, GetObject, error responses); RFC 9110 sections 13 and 14.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import quote, unquote, unquote_plus
from xml.sax.saxutils import escape

import msgspec

from pipeline.demo.bucket import Bucket, StoredObject

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_LAST = "\U0010ffff"

ERRORS: dict[str, tuple[int, str]] = {
    "AccessDenied": (403, "Access Denied"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRequest": (400, "The request cannot be understood."),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NotImplemented": (501, "A header or query you provided implies functionality that is not implemented"),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SlowDown": (503, "Please reduce your request rate."),
}


class S3Error(Exception):
    """A request that is answered by an error. `code` is one of `ERRORS`."""

    def __init__(self, code: str, **details: str) -> None:
        super().__init__(code)
        self.code = code
        self.status, self.message = ERRORS[code]
        self.details = details


class Target(msgspec.Struct, frozen=True):
    """What a request names."""

    bucket: str
    key: str
    query: dict[str, str]


class Page(msgspec.Struct, frozen=True):
    """One page of a listing; `token` is empty on the last."""

    objects: tuple[StoredObject, ...]
    prefixes: tuple[str, ...]
    token: str


class ListQuery(msgspec.Struct, frozen=True):
    """The parameters of ListObjectsV2."""

    prefix: str
    delimiter: str
    max_keys: int
    token: str
    start_after: str
    url_encoded: bool


def parse_target(target: str) -> Target:
    """Split a path-style request target, or the absolute form that proxies are given."""
    if target.startswith("http://"):
        target = "/" + target[7:].partition("/")[2]
    path, _, query = target.partition("?")
    bucket, _, key = unquote(path[1:]).partition("/")
    pairs = (pair.partition("=") for pair in query.split("&") if pair) if query else ()
    return Target(bucket, key, {unquote_plus(name): unquote_plus(value) for name, _, value in pairs})


def parse_list_query(query: Mapping[str, str], page_size: int) -> ListQuery:
    """Read the parameters of a listing; raises `S3Error` InvalidArgument."""
    if query.get("list-type") != "2":
        raise S3Error("NotImplemented")
    limit = query.get("max-keys", "")
    if limit and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        raise S3Error("InvalidArgument", ArgumentName="max-keys", ArgumentValue=limit)
    encoding = query.get("encoding-type", "")
    if encoding not in {"", "url"}:
        raise S3Error("InvalidArgument", ArgumentName="encoding-type", ArgumentValue=encoding)
    if "continuation-token" in query:
        _read_token(query["continuation-token"])
    return ListQuery(
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        max_keys=min(int(limit), page_size) if limit else page_size,
        token=query.get("continuation-token", ""),
        start_after=query.get("start-after", ""),
        url_encoded=encoding == "url",
    )


def plan_page(
    bucket: Bucket,
    query: ListQuery,
    view: Callable[[StoredObject, str], Iterable[StoredObject]] | None = None,
) -> Page:
    """Choose what stands on a page.

    `view(object, after)` says what the listing shows in the place of an object, in key order and after `after`;
    None shows every object as it is. A common prefix counts as one key.
    """
    after = _read_token(query.token) if query.token else query.start_after
    objects: list[StoredObject] = []
    prefixes: list[str] = []
    last = after
    for marker, entry in _entries(bucket, query, after, view):
        if len(objects) + len(prefixes) >= query.max_keys:
            return Page(tuple(objects), tuple(prefixes), _write_token(last) if query.max_keys else "")
        if isinstance(entry, str):
            prefixes.append(entry)
        else:
            objects.append(entry)
        last = marker
    return Page(tuple(objects), tuple(prefixes), "")


def _entries(
    bucket: Bucket,
    query: ListQuery,
    after: str,
    view: Callable[[StoredObject, str], Iterable[StoredObject]] | None,
) -> Iterator[tuple[str, StoredObject | str]]:
    """Yield what a listing shows, objects and common prefixes, each with the text after which the next one comes."""
    while True:
        for key in bucket.keys_from(query.prefix, after):
            rest = key[len(query.prefix) :]
            if query.delimiter and query.delimiter in rest:
                common = query.prefix + rest[: rest.index(query.delimiter) + len(query.delimiter)]
                after = common + _LAST
                yield after, common
                break
            found = bucket.objects[key]
            for shown in (found,) if view is None else view(found, after):
                yield shown.key, shown
        else:
            return


def _write_token(last: str) -> str:
    return base64.urlsafe_b64encode(b"1:" + last.encode("utf-8", "surrogatepass")).decode()


def _read_token(token: str) -> str:
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        if text.startswith(b"1:"):
            return text[2:].decode("utf-8", "surrogatepass")
    except (binascii.Error, UnicodeError):
        pass  # the same answer as for any other token that is not ours
    raise S3Error("InvalidArgument", ArgumentName="continuation-token", ArgumentValue=token)


def render_page(bucket: str, query: ListQuery, page: Page) -> bytes:
    """The XML of ListObjectsV2."""

    def text(value: str) -> str:
        return quote(value, safe="/~") if query.url_encoded else escape(value)

    out = [
        f'{_HEAD}<ListBucketResult xmlns="{NAMESPACE}">',
        f"<Name>{escape(bucket)}</Name><Prefix>{text(query.prefix)}</Prefix>",
    ]
    if query.delimiter:
        out.append(f"<Delimiter>{text(query.delimiter)}</Delimiter>")
    if query.start_after:
        out.append(f"<StartAfter>{text(query.start_after)}</StartAfter>")
    if query.token:
        out.append(f"<ContinuationToken>{escape(query.token)}</ContinuationToken>")
    if query.url_encoded:
        out.append("<EncodingType>url</EncodingType>")
    if page.token:
        out.append(f"<NextContinuationToken>{escape(page.token)}</NextContinuationToken>")
    out.append(
        f"<MaxKeys>{query.max_keys}</MaxKeys><KeyCount>{len(page.objects) + len(page.prefixes)}</KeyCount>"
        f"<IsTruncated>{'true' if page.token else 'false'}</IsTruncated>"
    )
    dates: dict[int, str] = {}
    for item in page.objects:
        if item.modified not in dates:
            dates[item.modified] = datetime.fromtimestamp(item.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        out.append(
            f"<Contents><Key>{text(item.key)}</Key><LastModified>{dates[item.modified]}</LastModified>"
            f"<ETag>&quot;{item.etag}&quot;</ETag><Size>{item.size}</Size>"
            f"<StorageClass>STANDARD</StorageClass></Contents>"
        )
    out.extend(f"<CommonPrefixes><Prefix>{text(prefix)}</Prefix></CommonPrefixes>" for prefix in page.prefixes)
    out.append("</ListBucketResult>")
    return "".join(out).encode("utf-8", "replace")


def render_error(error: S3Error, resource: str, request_id: str) -> bytes:
    """The XML of an error."""
    details = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in error.details.items())
    return (
        f"{_HEAD}<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>{details}"
        f"<Resource>{escape(resource)}</Resource><RequestId>{request_id}</RequestId><HostId>demo</HostId></Error>"
    ).encode("utf-8", "replace")


def choose_range(header: str, size: int) -> tuple[int, int] | None:
    """Choose the bytes `[start, end)` that a Range header asks of an object; None: all of it.

    Only a single range is served; one that is malformed, or several, are ignored (RFC 9110 14.2). Raises `S3Error`
    InvalidRange when the range lies outside.
    """
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not all(p == "" or _is_digits(p) for p in (first, last)):
        return None
    if first:
        start = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    elif last:
        start, end = max(0, size - int(last)), size
    else:
        return None
    if start >= size or start >= end:
        raise S3Error("InvalidRange", RangeRequested=header, ActualObjectSize=str(size))
    return start, end


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def check_conditions(headers: Mapping[str, str], etag: str, modified: int) -> Literal["send", "not-modified"]:
    """Decide by If-Match, If-None-Match and their dated kin (RFC 9110 13.2.2); raises `S3Error` PreconditionFailed."""
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if match is not None:
        if not _matches(match, etag):
            raise S3Error("PreconditionFailed", Condition="If-Match")
    elif (limit := _date(headers.get("if-unmodified-since"))) is not None and modified > limit:
        raise S3Error("PreconditionFailed", Condition="If-Unmodified-Since")
    if none_match is not None:
        return "not-modified" if _matches(none_match, etag) else "send"
    limit = _date(headers.get("if-modified-since"))
    return "not-modified" if limit is not None and modified <= limit else "send"


def _matches(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return "*" in tags or etag in tags


def _date(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None  # RFC 9110 13.1.3: a condition with an invalid date is ignored
