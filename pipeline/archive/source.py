"""Where an archive is read from: a local file or an http(s) URL, by ranges."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import ConfigError, SiteUnavailableError, StorageError, UsageError

if TYPE_CHECKING:
    import requests

TIMEOUTS = (10, 60)  # seconds to connect, seconds of silence
CUT_SHORT_HINT = "the file was cut short or changed while it was read; copy it again"


class Range(Protocol):
    """A stretch of an archive, read front to back."""

    def read(self, count: int, /) -> bytes:
        """Exactly the next `count` bytes. Raises `ConfigError` when the archive ends before."""

    def close(self) -> None: ...


class Source(Protocol):
    """Bytes of an archive at stated offsets.

    Attributes
    ----------
    name
        For messages; holds no credentials.
    size
        Bytes in all.
    """

    name: str
    size: int

    def open_range(self, offset: int, length: int) -> Range:
        """Begin ONE contiguous read of `length` bytes, in bounded memory however long it is."""

    def close(self) -> None: ...


def open_source(location: str | Path) -> Source:
    """Open an archive for reading.

    Raises
    ------
    UsageError
        No such file or URL.
    StorageError, SiteUnavailableError
        It cannot be read now.
    """
    if re.match(r"https?://", str(location)):
        return HttpSource(str(location))
    return LocalSource(Path(location))


def read_at(source: Source, offset: int, length: int) -> bytes:
    """`length` bytes at `offset`. Raises `ConfigError` when the archive ends before."""
    if offset < 0 or offset + length > source.size:
        raise ConfigError(f"{source.name}: ends before byte {max(offset, 0) + length}", hint=CUT_SHORT_HINT)
    with opened(source, offset, length) as stretch:
        return stretch.read(length)


@contextmanager
def opened(source: Source, offset: int, length: int) -> Iterator[Range]:
    """`source.open_range`, closed at the end of the block."""
    stretch = source.open_range(offset, length)
    try:
        yield stretch
    finally:
        stretch.close()


class _Closing:
    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class LocalSource(_Closing):
    """A file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # Not fstat: a block device, the other thing worth reading from, has no st_size.
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except FileNotFoundError:
            raise UsageError(f"{path}: no such archive", hint="name a .tar.xz file or an http(s) URL of one") from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", hint="check the file's rights and mount") from None

    def open_range(self, offset: int, length: int) -> Range:
        os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_SEQUENTIAL)
        return _LocalRange(self._descriptor, self.name, offset)

    def close(self) -> None:
        os.close(self._descriptor)


class _LocalRange:
    def __init__(self, descriptor: int, name: str, offset: int) -> None:
        self._descriptor = descriptor
        self._name = name
        self._offset = offset

    def read(self, count: int, /) -> bytes:
        parts = []
        while count:
            try:
                data = os.pread(self._descriptor, count, self._offset)
            except OSError as error:
                problem = f"{self._name}: at byte {self._offset}: {error.strerror}"
                raise StorageError(
                    problem, hint="the storage is failing; copy the archive from another place"
                ) from None
            if not data:
                raise ConfigError(f"{self._name}: ends at byte {self._offset}", hint=CUT_SHORT_HINT)
            parts.append(data)
            self._offset += len(data)
            count -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Nothing to close: the source owns the descriptor."""


def display_name(location: str) -> str:
    """The location as messages may show it: a URL without credentials and query. Pure."""
    if not re.match(r"https?://", location):
        return location
    parts = urlsplit(location)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


class HttpSource(_Closing):
    """A URL whose server answers range requests (RFC 9110, section 14)."""

    def __init__(self, url: str) -> None:
        import requests

        self.name = display_name(url)
        self._url = url
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"  # ranges are of the archive's own bytes
        self._etag = ""
        self.size = 0
        # The first byte only: where ranges are not understood, the whole archive would come.
        with self._get("bytes=0-0") as response:
            self._etag = response.headers.get("ETag", "")
            self.size = self._total(response)

    def open_range(self, offset: int, length: int) -> Range:
        response = self._get(f"bytes={offset}-{offset + length - 1}")
        if self._total(response) != self.size or response.headers.get("ETag", "") != self._etag:
            response.close()
            raise ConfigError(f"{self.name}: changed while it was read", hint="begin again")
        return _HttpRange(response, self.name)

    def _get(self, byte_range: str) -> requests.Response:
        with _http_errors(self.name):
            response = self._session.get(self._url, headers={"Range": byte_range}, stream=True, timeout=TIMEOUTS)
        if response.status_code == 206:
            return response
        response.close()
        if response.status_code in {401, 403, 404, 410}:
            raise UsageError(f"{self.name}: HTTP {response.status_code}", hint="check the URL, and who may read it")
        if response.status_code == 200:
            raise UsageError(f"{self.name}: the server does not answer range requests", hint="download the archive")
        raise SiteUnavailableError(f"{self.name}: HTTP {response.status_code}", hint="try again later")

    def _total(self, response: requests.Response) -> int:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None:
            response.close()
            raise SiteUnavailableError(f"{self.name}: the server does not say the size", hint="download the archive")
        return int(match[1])

    def close(self) -> None:
        self._session.close()


class _HttpRange:
    def __init__(self, response: requests.Response, name: str) -> None:
        self._response = response
        self._name = name

    def read(self, count: int, /) -> bytes:
        parts = []
        while count:
            with _http_errors(self._name):
                data: bytes = self._response.raw.read(count)
            if not data:
                raise SiteUnavailableError(f"{self._name}: the server closed early", hint="try again later")
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        self._response.close()


@contextmanager
def _http_errors(name: str) -> Iterator[None]:
    import requests
    import urllib3

    faults: tuple[Any, ...] = (requests.RequestException, urllib3.exceptions.HTTPError)
    try:
        yield
    except faults as error:
        # The error's own text may hold the URL with its credentials.
        problem = f"{name}: no answer ({type(error).__name__})"
        raise SiteUnavailableError(problem, hint="check the network and try again") from None
