"""The first answer about a file of the ISIC Archive's storage: what it states, and the bytes where they are all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pipeline.errors import ItemError
from pipeline.transport.client import Response
from pipeline.transport.download import Download
from pipeline.transport.evidence import (
    Digests,
    MismatchError,
    Stated,
    Tally,
    classify_evidence,
    normalise_etag,
    read_stated,
)

# What one answer may hold in memory, on each connection: nearly all images come whole by one request.
INLINE = 512 << 10
ROOM = 64 << 10  # by which an image may be larger than stated: what is embedded has some 3 KB
_CONTENT_RANGE = re.compile(r"bytes 0-([0-9]{1,18})/([0-9]{1,18})")
HASHES = frozenset({"md5", "etag-multipart"})  # evidence that an ETag is of the bytes
# What an index keeps of an ETag; RFC 9110 section 8.8.3 allows more than anybody sends.
_ETAG = re.compile(r'(W/)?"([!#-~]{1,256})"|(?!W/)([!#-~]{1,256})')


class Proof(msgspec.Struct, frozen=True):
    """Hashes of all bytes of a file, what they were compared with, and the ETag they came under, as it is kept."""

    size: int
    md5: str
    sha256: str
    evidence: tuple[str, ...]
    etag: str


class Whole(msgspec.Struct, frozen=True):
    """All bytes of a file."""

    body: bytes
    proof: Proof


class Start(msgspec.Struct, frozen=True):
    """What the site states of a file that is larger than what was asked for: `etag` only if it is a strong one."""

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
    return Whole(body, prove(tally, answer.status, headers))


def prove_file(path: Path, headers: Mapping[str, str]) -> Proof:
    """Compare a file with what the answer with 200 states that brought all of it. Raises `ItemError`, transient."""
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise _doubtful("unavailable", "200 without anything that states how long the image is")
    tally = Tally(path.stat().st_size, strong_etag(headers.get("etag", "")))
    with path.open("rb") as file:
        while piece := file.read(INLINE):
            tally.feed(memoryview(piece))
    return prove(tally, 200, headers)


def prove(tally: Tally, status: int, headers: Mapping[str, str]) -> Proof:
    """Compare the bytes of a tally, which was made for the answer's ETag, with what the answer states. Pure.

    Raises
    ------
    ItemError
        Transient `checksum`: they do not have its hash.
    """
    stated = headers.get("etag", "")
    etag, digests = strong_etag(stated), tally.digests()
    try:
        evidence = classify_evidence(digests, etag, read_stated(status, headers))
    except MismatchError as error:
        raise _doubtful("checksum", str(error)) from None
    return Proof(digests.size, digests.md5, digests.sha256, add_etag(evidence, etag), keep_etag(stated))


def prove_download(got: Download, etag: str) -> Proof:
    """What a download proves that was made for the strong ETag `etag`, or for none: then its own answer may have one.

    Raises `ItemError`, transient, when that is an MD5 and not the one of the bytes. Pure.
    """
    evidence, own = got.evidence, strong_etag(got.etag)
    if own and not etag:
        try:
            evidence = classify_evidence(Digests(got.size, got.md5, got.sha256, ()), own, Stated())
        except MismatchError as error:
            raise _doubtful("checksum", str(error)) from None
        evidence = tuple(dict.fromkeys((*got.evidence[:-1], *evidence)))
    # Where the bytes came without it, the ETag that was stated before is theirs only if they have its hash.
    kept = keep_etag(got.etag) or (etag if HASHES & set(evidence) else "")
    return Proof(got.size, got.md5, got.sha256, add_etag(evidence, own), kept)


def strong_etag(header: str) -> str:
    """An ETag that stands for the bytes; "" for a weak one (RFC 9110 section 8.8.1), or none that can be kept. Pure."""
    etag = keep_etag(header)
    return "" if etag.startswith('W/"') else normalise_etag(etag)


def keep_etag(header: str) -> str:
    """The ETag as an index keeps it: without quotes, or with both mark and quotes if it is weak. Pure.

    One that is none by its grammar, or too long to be kept whole, is "".
    """
    match = _ETAG.fullmatch(header.strip())
    if match is None:
        return ""
    return match[0] if match[1] else match[2] or match[3]


def add_etag(evidence: tuple[str, ...], etag: str) -> tuple[str, ...]:
    """Note an ETag that is no hash of the bytes known here: all of them came under it. Pure."""
    if not etag or HASHES & set(evidence):
        return evidence
    return (*(word for word in evidence if word != "size"), "etag", "size")


def _doubtful(reason: str, text: str) -> ItemError:
    return ItemError(reason, text, transient=True)
