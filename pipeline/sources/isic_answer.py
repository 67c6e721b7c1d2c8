"""The first answer about a file of the ISIC Archive's storage: what it states, and the bytes where they are all."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from pipeline.errors import ItemError
from pipeline.transport.client import Response
from pipeline.transport.evidence import MismatchError, Tally, classify_evidence, normalise_etag, read_stated

# What one answer may hold in memory, on each connection: nearly all images come whole by one request.
INLINE = 512 << 10
ROOM = 64 << 10  # by which an image may be larger than stated: what is embedded has some 3 KB
_CONTENT_RANGE = re.compile(r"bytes 0-([0-9]{1,18})/([0-9]{1,18})")


class Whole(msgspec.Struct, frozen=True):
    """All bytes of a file, and what they were compared with."""

    body: bytes
    md5: str
    sha256: str
    evidence: tuple[str, ...]


class Start(msgspec.Struct, frozen=True):
    """What the site states of a file that is larger than what was asked for."""

    size: int
    etag: str


def choose_range(stated: int) -> str:
    """The Range to begin with: the whole file if it is likely to be small, else a byte, to learn its size. Pure."""
    return f"bytes=0-{INLINE - 1 if stated + ROOM <= INLINE else 0}"


def read_start(answer: Response) -> Whole | Start:
    """Read an answer to a Range request from byte 0; a site may ignore the range.

    Raises
    ------
    ItemError
        Transient: it is no such answer, its length is not what it states, or its bytes do not have its hash.
    """
    headers, body = answer.headers, answer.body
    if headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html":
        raise _doubtful("unavailable", f"{answer.status} with a web page in place of the image")
    etag = strong_etag(headers.get("etag", ""))
    size = len(body)
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
        if match is None:
            raise _doubtful("unavailable", f"206 with Content-Range {headers.get('content-range', '')[:60]!r}")
        last, size = int(match[1]), int(match[2])
        if last + 1 != len(body) or size < len(body):
            raise _doubtful("size", f"Content-Range is {match[0]!r}, and {len(body)} bytes came")
        if size > len(body):
            return Start(size, etag)
    elif answer.status != 200:
        raise _doubtful("unavailable", f"{answer.status} in place of the image")
    elif "content-length" not in headers and "transfer-encoding" not in headers:
        raise _doubtful("unavailable", "200 without anything that states how long the image is")
    tally = Tally(size, etag)
    tally.feed(memoryview(body))
    digests = tally.digests()
    try:
        evidence = classify_evidence(digests, etag, read_stated(answer.status, headers))
    except MismatchError as error:
        raise _doubtful("checksum", str(error)) from None
    return Whole(body, digests.md5, digests.sha256, add_etag(evidence, etag))


def strong_etag(header: str) -> str:
    """An ETag that stands for the bytes; "" for a weak one or none (RFC 9110 section 8.8.1). Pure."""
    return "" if header.strip().startswith("W/") else normalise_etag(header)


def add_etag(evidence: tuple[str, ...], etag: str) -> tuple[str, ...]:
    """Note an ETag that is no hash of the bytes known here: all of them came under it. Pure."""
    if not etag or {"md5", "etag-multipart"} & set(evidence):
        return evidence
    return (*(word for word in evidence if word != "size"), "etag", "size")


def hash_file(path: Path) -> tuple[int, str, str]:
    """Size, MD5 and SHA-256 of a file."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(INLINE):
            md5.update(piece)
            sha256.update(piece)
            size += len(piece)
    return size, md5.hexdigest(), sha256.hexdigest()


def _doubtful(reason: str, text: str) -> ItemError:
    return ItemError(reason, text, transient=True)
