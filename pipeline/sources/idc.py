"""The NCI Imaging Data Commons: series as folders of public buckets, on AWS and mirrored on Google Cloud.

Facts: a series is `{bucket}/{crdc_series_uuid}/{crdc_instance_uuid}.dcm`, both levels immutable; the index states the
number of files and the exact bytes; ETags are MD5 except of multipart objects; no credentials are needed.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_plus, urlencode

from pipeline.errors import ItemError
from pipeline.model import Entry, IdcLocation, Item, RemoteFile
from pipeline.settings import SourceIdc
from pipeline.sources.base import Body, Received, cut_files
from pipeline.sources.idc_buckets import mirror_bucket
from pipeline.transport.client import Response, Transport

LISTING_LIMIT = 16 << 20
# Where the index states no number of files, a longer listing is a fault of the site: the largest series has 92,000.
MAX_FILES = 200_000
# So is one of more pages (of 1,000 keys), whatever is on them.
MAX_PAGES = 2000
# Of the time that is left for an item or a body, what the endpoint may use up while a mirror waits.
ENDPOINT_SHARE = 2 / 3


class Place(NamedTuple):
    """A series at an endpoint."""

    endpoint: str
    bucket: str
    uuid: str

    def url(self, key: str) -> str:
        return f"{self.endpoint.rstrip('/')}/{quote(self.bucket)}/{quote(key)}"

    def listing_url(self, token: str) -> str:
        query = {"list-type": "2", "prefix": f"{self.uuid}/", "encoding-type": "url"}
        if token:
            query["continuation-token"] = token
        return f"{self.endpoint.rstrip('/')}/{quote(self.bucket)}?{urlencode(query)}"


def parse_listing(body: bytes) -> tuple[list[RemoteFile], str]:
    """Read one ListObjectsV2 page: its files and the token of the next page, empty at the end. Pure.

    Raises
    ------
    ItemError
        When it is not such a page: an HTML error page with status 200, XML cut short, sizes that are no numbers.
    """

    def wrong(what: str) -> ItemError:
        return ItemError("unavailable", f"the site's listing is not S3 XML: {what}", transient=True)

    if b"<!DOCTYPE" in body:
        raise wrong("it has a document type, as web pages do")
    try:
        root = ET.fromstring(body)  # noqa: S314 - size-limited, without entities
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two for what it calls its encoding
        raise wrong(str(error)) from None
    namespace = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    if root.tag != f"{namespace}ListBucketResult":
        raise wrong(f"its root is {root.tag[:80]!r}")
    encoded = root.findtext(f"{namespace}EncodingType") == "url"
    files = []
    for element in root.iterfind(f"{namespace}Contents"):
        key = element.findtext(f"{namespace}Key") or ""
        size = element.findtext(f"{namespace}Size") or ""
        etag = (element.findtext(f"{namespace}ETag") or "").strip('"')
        if not key or not (size.isascii() and size.isdecimal()) or len(size) > 18:
            raise wrong(f"key {key[:80]!r} has size {size[:20]!r}")
        files.append(RemoteFile(unquote_plus(key) if encoded else key, int(size), etag))
    truncated = root.findtext(f"{namespace}IsTruncated")
    if truncated not in {"true", "false"}:
        raise wrong(f"whether it is truncated is {truncated!r:.80}")
    if truncated == "false":
        return files, ""
    token = root.findtext(f"{namespace}NextContinuationToken") or ""
    if not token:
        raise wrong("truncated, but without a continuation token")
    return files, token


def check_count(item: Item, count: int) -> None:
    """Refuse a listing as soon as it has more files than there can be. Pure. Raises `ItemError`."""
    if 0 <= item.files < count:
        text = f"the site lists more than the {item.files} files that the index states: {count} so far"
        raise ItemError("count", text, transient=True)
    if item.files < 0 and count > MAX_FILES:
        text = f"the site lists more than {MAX_FILES} files, and the index states no number"
        raise ItemError("count", text, transient=True)


def check_listing(item: Item, files: Sequence[RemoteFile]) -> None:
    """Compare a complete listing with what the index states. Pure.

    Raises
    ------
    ItemError
        `empty`, `count` or `size`; also for a file name given twice.
    """
    if not files:
        raise ItemError("empty" if item.files in {0, -1} else "withdrawn", "the site lists no files for it")
    if item.files >= 0 and len(files) != item.files:
        raise ItemError("count", f"the site lists {len(files)} files, the index states {item.files}", transient=True)
    total = sum(file.size for file in files)
    if item.bytes >= 0 and total != item.bytes:
        raise ItemError("size", f"the site lists {total} bytes, the index states {item.bytes}", transient=True)
    if len({file.key for file in files}) != len(files):
        raise ItemError("count", "the site lists a key twice", transient=True)


def choose_error(errors: Sequence[tuple[str, ItemError]]) -> ItemError:
    """Make one error of what each place said, first place first. Pure.

    Only what no place has is `withdrawn`; what may pass wins over what will not, so that the item is tried again.
    """
    if len(errors) == 1:
        return errors[0][1]
    said = "; ".join(f"{place}: {error}" for place, error in errors)
    lasting = [error for _, error in errors if error.reason != "withdrawn"]
    passing = [error for error in lasting if error.transient]
    chosen = [*passing, *lasting, errors[0][1]][0]
    return ItemError(chosen.reason, said, transient=chosen.transient)


def find_series(item: Item) -> IdcLocation:
    """Where an item lies in IDC. Raises `ItemError` for one that is another source's."""
    if not isinstance(item.location, IdcLocation):
        raise ItemError("internal", f"it is not in IDC, but at {item.location}")
    return item.location


class IdcFetcher:
    """A task's way to IDC: lists and downloads from the endpoint, and from the mirror where the endpoint fails.

    `clock` is what deadlines are on: the transport's.
    """

    def __init__(
        self, settings: SourceIdc, transport: Transport, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = clock

    def list_bodies(self, entry: Entry, deadline: float) -> list[Body]:
        """List an entry's objects in key order; of a cut item, those of this piece."""
        files = self.list_series(entry.item, deadline)
        if entry.pieces > 1:
            counts = cut_files([file.size for file in files], entry.pieces)
            begin = sum(counts[: entry.piece])
            files = files[begin : begin + counts[entry.piece]]
        bucket = find_series(entry.item).bucket
        return [Body(entry, file, f"{bucket}/{file.key}:{file.size}:{file.etag}") for file in files]

    def list_series(self, item: Item, deadline: float) -> list[RemoteFile]:
        """List a whole series, checked against the index, in key order. Raises `ItemError`."""
        errors = []
        for place, until in self._places(item, deadline):
            try:
                files = self._list_place(place, item, until)
                check_listing(item, files)
            except ItemError as error:
                errors.append((place.endpoint, error))
                continue
            return sorted(files, key=lambda file: file.key)
        raise choose_error(errors)

    def fetch(self, body: Body, path: Path, deadline: float) -> Received:
        """Download one object, from the mirror when the endpoint does not deliver it. Raises `ItemError`."""
        file = body.file
        errors: list[tuple[str, ItemError]] = []
        for place, until in self._places(body.entry.item, deadline):
            # A multipart ETag is the endpoint's own; the mirror has the bytes, but may have another ETag.
            etag = file.etag if not errors or "-" not in file.etag else ""
            try:
                got = self._transport.download(place.url(file.key), path, size=file.size, etag=etag, deadline_at=until)
            except ItemError as error:
                errors.append((place.endpoint, error))
                continue
            return Received(path, got.size, got.md5, got.sha256, got.evidence, f"idc:{place.endpoint}")
        raise choose_error(errors)

    def _places(self, item: Item, deadline: float) -> Iterator[tuple[Place, float]]:
        """Yield where an item is, each place with its own deadline, reckoned when its turn comes."""
        where = find_series(item)
        if not where.bucket or not where.uuid:
            raise ItemError("unavailable", "the index states no bucket or no crdc_series_uuid for it")
        endpoint, mirror = self._settings.s3_endpoint, self._settings.mirror_endpoint
        now = self._clock()
        yield Place(endpoint, where.bucket, where.uuid), now + (deadline - now) * ENDPOINT_SHARE if mirror else deadline
        if mirror:
            yield Place(mirror, mirror_bucket(where.bucket), where.uuid), deadline

    def _list_place(self, place: Place, item: Item, deadline: float) -> list[RemoteFile]:
        def parse(answer: Response) -> tuple[list[RemoteFile], str]:
            found = parse_listing(answer.body)
            foreign = [file.key for file in found[0] if not file.key.startswith(f"{place.uuid}/")]
            if foreign:
                text = f"the site lists {foreign[0]!r:.200} for prefix {place.uuid}/"
                raise ItemError("unavailable", text, transient=True)
            return found

        files: list[RemoteFile] = []
        token = ""
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            url = place.listing_url(token)
            page, token = self._transport.fetch_parsed(url, parse, limit=LISTING_LIMIT, deadline_at=deadline)
            files += page
            check_count(item, len(files))
            if not token:
                return files
            if token in seen:
                raise ItemError("unavailable", "the site's listing leads back to an earlier page", transient=True)
            seen.add(token)
        raise ItemError("unavailable", f"the site's listing does not end after {MAX_PAGES} pages")
