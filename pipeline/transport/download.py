"""One object on its way to a file: where its bytes go, which answers continue it, what the next request says."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import msgspec

from pipeline.errors import StorageError
from pipeline.transport.evidence import MismatchError, Stated, Tally, classify_evidence, normalise_etag, read_stated
from pipeline.transport.exchange import RequestError
from pipeline.transport.retry import Verdict
from pipeline.transport.wire import Body, Head, ShortBodyError, parse_length

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MD5 = re.compile(r"[0-9a-f]{32}")
# An entity tag (RFC 9110 section 8.8.3), of the characters that can be sent back; some sites leave the quotes out.
_STRONG_ETAG = re.compile(r'"([!#-~]{1,1000})"|(?!W/)([!#-~]{1,1000})')
# An object that changes twice within the clock's second has one Last-Modified for two versions, RFC 9110 section
# 8.8.2.2; clocks of a site's machines may be apart by more.
DATE_IS_STRONG = 60.0  # seconds


class Download(msgspec.Struct, frozen=True):
    """A file that came whole and passed every check that the site made possible.

    Attributes
    ----------
    evidence
        What its bytes were compared with, best first: `sha256`, `md5`, `etag-multipart`, `size`.
    attempts
        Requests sent, the successful one included.
    seconds
        From the call to the end, waits included.
    resumed
        How many of the requests continued a broken body.
    etag
        As the answer had it that the bytes began with, quotes and weakness mark included; may be empty.
    """

    path: Path
    size: int
    md5: str
    sha256: str
    evidence: tuple[str, ...]
    attempts: int
    seconds: float
    resumed: int
    etag: str = ""


class Meter(Protocol):
    """What counts, and may hash, all that is fed."""

    size: int

    def feed(self, data: memoryview) -> None:
        """Count the next bytes."""
        ...

    def reset(self) -> None:
        """Forget everything fed."""
        ...


M = TypeVar("M", bound=Meter)


class Sink(Generic[M]):
    """A file on scratch and the tally of what is in it. Leaving the context by an exception removes the file.

    Every failure of the file is a `StorageError`, so that none is taken for a failure of the network.
    """

    def __init__(self, path: Path, tally: M) -> None:
        self._path = path
        self.tally = tally
        self.furthest = 0
        self._fd = -1

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self._path, flags, 0o600)
            os.fchmod(self._fd, 0o600)  # a file that was there already keeps its mode otherwise
        except OSError as error:
            self._abandon()
            raise self._explain(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self._abandon()

    def feed(self, data: memoryview) -> None:
        """Hash and write the next bytes."""
        self.tally.feed(data)
        self.furthest = max(self.furthest, self.tally.size)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise self._explain(error) from error

    def restart(self) -> None:
        """Forget everything fed."""
        if self.tally.size == 0:
            return
        self.tally.reset()
        try:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Close the file; network file systems may report a full disk only now."""
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError as error:
            raise self._explain(error) from error

    def _abandon(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                os.close(fd)
        finally:
            self._path.unlink(missing_ok=True)

    def _explain(self, error: OSError) -> StorageError:
        hint = (
            "free space there, or raise the quota, or set [task] scratch to a larger place"
            if error.errno in _FULL
            else "check that the folder exists and can be written"
        )
        return StorageError(f"cannot write {self._path}: {error.strerror or error}", hint=hint)


class Validator(NamedTuple):
    """What an answer says about the version of the object that its bytes are of, in its own words; "" for nothing."""

    etag: str = ""
    modified: str = ""
    date: str = ""


def read_validator(headers: Mapping[str, str]) -> Validator:
    """Read it from response headers. Pure."""
    return Validator(*(headers.get(name, "").strip() for name in ("etag", "last-modified", "date")))


def choose_condition(validator: Validator) -> str:
    """Choose the value of If-Range (RFC 9110 section 13.1.5) that names this version and no other; "" for none. Pure.

    A weak ETag names several versions, and leaves no room for a date; a date alone counts when the answer was sent long
    after it.
    """
    if validator.etag:
        match = _STRONG_ETAG.fullmatch(validator.etag)
        return f'"{match[1] or match[2]}"' if match else ""
    try:
        modified, date = (parsedate_to_datetime(text).timestamp() for text in (validator.modified, validator.date))
    except (ValueError, TypeError, OverflowError):
        return ""
    good = all(text.endswith(" GMT") and text.isascii() and text.isprintable() for text in validator[1:])
    return validator.modified if good and date - modified >= DATE_IS_STRONG else ""


class Haul:
    """The state of one download between its requests. `first` is of the answer that the bytes in the sink began with.

    With `if_range` the condition of a resumed body is If-Range also for a listed ETag, else If-Match: what is not as
    listed is refused then.
    """

    def __init__(self, sink: Sink[Tally], size: int, etag: str, *, resume: bool, if_range: bool = False) -> None:
        self.sink = sink
        self.size = size
        self.etag = etag
        self.resumed = 0
        self.first = Validator()
        self._resume = resume
        self._if_range = if_range
        self._stated = Stated()
        self._distrust = False

    def request_headers(self) -> dict[str, str]:
        """Headers of the next request: from where to go on, under which condition, past caches after wrong bytes.

        Without a condition that holds for one version only, what is there is thrown away.
        """
        headers = {"x-amz-checksum-mode": "ENABLED"}
        condition = choose_condition(Validator(f'"{self.etag}"') if self.etag else self.first)
        if not self._resume or not condition:
            self.sink.restart()
        have = self.sink.tally.size
        if have:
            headers["Range"] = f"bytes={have}-"
            headers["If-Match" if self.etag and not self._if_range else "If-Range"] = condition
        if self._distrust:
            headers["Cache-Control"] = "no-cache"
        return headers

    def accept(self, head: Head) -> None:
        """Take a 200 or 206 response as the beginning or as what comes next; else raise `RequestError`."""
        start = judge_head(head, have=self.sink.tally.size, size=self.size, etag=self.etag)
        stated, own = read_stated(head.status, head.headers), read_validator(head.headers)
        if start:
            # Whoever ignores the condition sends a part of any version. A listed MD5 needs no word about it: the whole
            # is compared with it.
            if not _MD5.fullmatch(self.etag) and not same_version(self.first, own, self.etag):
                self._resume = False
                said = f"ETag {own.etag[:100]!r} and date {own.modified[:40]!r}"
                text = f"a part with {said}, perhaps of another version than what came first"
                raise RequestError("checksum", Verdict.RETRY, text, discard=True)
            self.resumed += 1
            self._stated = Stated(sha256=self._stated.sha256, md5=stated.md5 or self._stated.md5)
            return
        self.sink.restart()
        self._stated, self.first = stated, own

    def receive(self, body: Body, buffer: memoryview) -> None:
        """Read the body to its end; what comes before a failure is kept.

        Raises `RequestError`, OSError or HTTPException.
        """
        while not body.done:
            count = 0
            try:
                while count < len(buffer) and not body.done:
                    count += body.readinto(buffer[count:])
            finally:
                if count:
                    self.sink.feed(buffer[:count])
            if self.sink.tally.size > self.size:
                raise RequestError(
                    "size", Verdict.RETRY, f"more than the {self.size} bytes of the listing", discard=True
                )
        if self.sink.tally.size < self.size:
            raise ShortBodyError(f"{self.sink.tally.size} of {self.size} bytes came")

    def prove(self) -> tuple[str, ...]:
        """Return the evidence for the whole body; raises `RequestError` when the site states other hashes."""
        try:
            return classify_evidence(self.sink.tally.digests(), self.etag, self._stated)
        except MismatchError as error:
            raise RequestError("checksum", Verdict.RETRY, str(error), discard=True) from None

    def fail(self, failure: RequestError) -> None:
        """Get ready for the next request after a failed one."""
        # All bytes there and still a failure: there is nothing to ask for from here on.
        if failure.discard or self.sink.tally.size >= self.size:
            self._distrust = True
            self.sink.restart()


def same_version(first: Validator, own: Validator, etag: str = "") -> bool:
    """Whether two answers are surely about one version of the object, of ETag `etag` if that is listed. Pure."""
    strong = choose_condition(Validator(own.etag))
    if etag:
        return {normalise_etag(strong), normalise_etag(choose_condition(Validator(first.etag)))} == {etag}
    condition = choose_condition(first)
    return bool(condition) and condition == (strong if first.etag or own.etag else own.modified)


def judge_head(head: Head, *, have: int, size: int, etag: str) -> int:
    """Say at which byte of the object the body of a 200 or 206 response starts: 0 or `have`.

    Raises
    ------
    RequestError
        When it is not the object of that size and ETag ("" for any), or not the part that was asked for.
    """
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/html":
        raise RequestError("size", Verdict.RETRY, f"{head.status} with a web page in place of the object", discard=True)
    own = normalise_etag(head.headers.get("etag", ""))
    if etag and own and own != etag:
        text = f"the object's ETag is {own[:100]!r}, not {etag!r} as in the listing"
        raise RequestError("checksum", Verdict.CHANGED, text, discard=True)
    start, expected = 0, size
    if head.status == 206:
        start, expected = have, _judge_range(head.headers.get("content-range", ""), have, size)
    length = parse_length(head)
    if length not in {-1, expected}:
        text = f"Content-Length is {length} where {expected} bytes are due"
        raise RequestError("size", Verdict.RETRY, text, discard=True)
    return start


def _judge_range(value: str, have: int, size: int) -> int:
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None or have == 0:
        raise RequestError("unavailable", Verdict.RETRY, f"206 with Content-Range {value[:60]!r}", discard=True)
    first, last = int(match[1]), int(match[2])
    if first != have or not first <= last < size or match[3] not in {str(size), "*"}:
        text = f"Content-Range is {value[:60]!r} where byte {have} of {size} is due"
        raise RequestError("size", Verdict.RETRY, text, discard=True)
    return last - first + 1
