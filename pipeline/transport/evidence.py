"""Hashes of a body while it comes in, and what they prove against what the site states about the object."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping

import msgspec

MIB = 1 << 20
# Part sizes of common upload tools, likeliest first: boto3 and the AWS CLI 8 MiB, the smallest that S3 allows 5, the
# Java SDK and the console 16 and 17, rclone 5 and 64, s5cmd 50, then round numbers, then those in powers of 1000.
PART_SIZES = (
    *(
        n * MIB
        for n in (8, 5, 16, 64, 50, 100, 128, 256, 512, 1024, 32, 25, 15, 10, 20, 17, 6, 7, 200, 500, 2048, 5120)
    ),
    *(n * 1_000_000 for n in (5, 8, 10, 16, 25, 50, 64, 100, 128, 256, 500, 512, 1000, 5000)),
)
# Each candidate costs an MD5 of the whole object.
MAX_CANDIDATES = 8
_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,4})")


class MismatchError(Exception):
    """The bytes do not have the hash that the site states."""


class Stated(msgspec.Struct, frozen=True):
    """What response headers say about the whole object; empty where they say nothing."""

    sha256: bytes = b""
    md5: bytes = b""


class Digests(msgspec.Struct, frozen=True):
    """Hex hashes of a whole body, and the multipart ETags it would have."""

    size: int
    md5: str
    sha256: str
    multipart: tuple[str, ...]


class Tally:
    """MD5 and SHA-256 of everything fed, and a multipart ETag for every part size that the expected one allows."""

    def __init__(self, size: int, etag: str) -> None:
        self._parts = choose_parts(etag, size)
        self.reset()

    def reset(self) -> None:
        """Forget everything fed."""
        # Identification, not security: hosts in FIPS mode refuse MD5 otherwise.
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256(usedforsecurity=False)
        self._multipart = [_MultipartTally(part) for part in self._parts]
        self.size = 0

    def feed(self, data: memoryview) -> None:
        """Hash the next bytes of the body."""
        self._md5.update(data)
        self._sha256.update(data)
        for tally in self._multipart:
            tally.feed(data)
        self.size += len(data)

    def digests(self) -> Digests:
        """Return the hashes of what was fed."""
        return Digests(
            size=self.size,
            md5=self._md5.hexdigest(),
            sha256=self._sha256.hexdigest(),
            multipart=tuple(tally.etag() for tally in self._multipart),
        )


class _MultipartTally:
    """The ETag that S3 gives an object uploaded in parts of one size: the MD5 of the parts' MD5s, and their number."""

    def __init__(self, part: int) -> None:
        self._part = part
        self._room = part
        self._current = hashlib.md5(usedforsecurity=False)
        self._done: list[bytes] = []

    def feed(self, data: memoryview) -> None:
        while data:
            piece = data[: self._room]
            self._current.update(piece)
            self._room -= len(piece)
            data = data[len(piece) :]
            if self._room == 0:
                self._done.append(self._current.digest())
                self._current = hashlib.md5(usedforsecurity=False)
                self._room = self._part

    def etag(self) -> str:
        parts = list(self._done)
        if self._room < self._part or not parts:
            parts.append(self._current.digest())
        return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def normalise_etag(etag: str) -> str:
    """Strip quotes and the weakness mark; an MD5 becomes lower case."""
    etag = etag.strip().removeprefix("W/").strip('"')
    return etag.lower() if _MD5.fullmatch(etag.lower()) or _MULTIPART.fullmatch(etag.lower()) else etag


def choose_parts(etag: str, size: int) -> tuple[int, ...]:
    """Choose the part sizes that give as many parts as a multipart ETag says, likeliest first; () for other ETags."""
    match = _MULTIPART.fullmatch(etag)
    if match is None or size <= 0:
        return ()
    count = int(match[2])
    if count == 1:  # whatever the part size was, the one part is the whole object
        return (size,)
    even = -(-size // count)
    candidates = (*PART_SIZES, -(-even // MIB) * MIB, even)
    fitting = dict.fromkeys(part for part in candidates if -(-size // part) == count)
    return tuple(fitting)[:MAX_CANDIDATES]


def read_stated(status: int, headers: Mapping[str, str]) -> Stated:
    """Read the hashes of the whole object from response headers; whatever is not such a hash is as if it was not there.

    `x-amz-checksum-sha256` is base64; with `-N` it is a checksum of checksums, and with a range it may be a part's.
    `x-goog-hash` holds `crc32c=...` and, unless the object was composed, `md5=...`, of the whole object even for
    ranges.
    """
    sha256 = b""
    if status == 200 and headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() == "FULL_OBJECT":
        sha256 = _decode_base64(headers.get("x-amz-checksum-sha256", ""), 32)
    md5 = b""
    for entry in headers.get("x-goog-hash", "").split(","):
        name, _, value = entry.strip().partition("=")
        if name.lower() == "md5":
            md5 = _decode_base64(value, 16)
    return Stated(sha256=sha256, md5=md5)


def classify_evidence(digests: Digests, etag: str, stated: Stated) -> tuple[str, ...]:
    """Say what proves the bytes, best first: `sha256`, `md5`, `etag-multipart`, `size`.

    The size must have been compared before. A multipart ETag that no candidate gives proves nothing either way.

    Raises
    ------
    MismatchError
        When a hash that the site states is another one.
    """
    found = []
    if stated.sha256:
        _compare("x-amz-checksum-sha256", stated.sha256.hex(), "SHA-256", digests.sha256)
        found.append("sha256")
    if stated.md5:
        _compare("x-goog-hash", stated.md5.hex(), "MD5", digests.md5)
    if _MD5.fullmatch(etag):
        _compare("the ETag", etag, "MD5", digests.md5)
    if stated.md5 or _MD5.fullmatch(etag):
        found.append("md5")
    if etag in digests.multipart:
        found.append("etag-multipart")
    return (*found, "size")


def _compare(source: str, stated: str, name: str, ours: str) -> None:
    if stated != ours:
        raise MismatchError(f"{source} says {stated}, but the bytes have {name} {ours}")


def _decode_base64(text: str, size: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return data if len(data) == size else b""
