"""HTTP for planning: few, small-ish answers that many plans ask for again, kept between runs in the user's cache.

Items never come this way: see `pipeline.transport`. Import this module only where it is used: requests takes a while.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from platformdirs import user_cache_dir
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from requests_cache.backends.base import BaseCache
from requests_cache.backends.filesystem import FileDict
from requests_cache.models.response import CachedResponse
from requests_cache.policy.settings import DEFAULT_IGNORED_PARAMS
from urllib3.util.retry import Retry

import pipeline
from pipeline.errors import ConfigError, SiteUnavailableError, StorageError

logger = logging.getLogger(__name__)

# Seconds to connect, and without a byte.
TIMEOUT = (10.0, 60.0)
# More than any release of the index: a larger answer is refused before it is read into memory.
MAX_BYTES = 1 << 30
# Parameters of URLs that are signed for a short time: no part of what a URL names, and not to be kept.
SIGNATURES = (
    *(
        f"X-{store}-{name}"
        for store in ("Amz", "Goog")
        for name in ("Credential", "Date", "Security-Token", "Signature")
    ),
    *("AWSAccessKeyId", "Signature", "sig", "token"),
)


class _Files(FileDict):
    """Responses and redirects as a file each: the record in JSON, then the body as it is.

    The stock storage writes bodies as text, which takes minutes for 100 MB, and in place, which other processes see.
    """

    def __init__(self, folder: Path, *, records: bool) -> None:
        super().__init__(folder, extension="http", decode_content=False)
        self._records = records

    def __getitem__(self, key: str) -> Any:
        with self._try_io(key):
            data = self._key2path(key).read_bytes()
        size = int.from_bytes(data[:8], "big")
        record, body = data[16 : 16 + size], data[16 + size :]
        if len(data) < 16 or len(body) != int.from_bytes(data[8:16], "big") or bool(record) != self._records:
            raise KeyError(key)  # damaged
        if not record:
            return body.decode(errors="replace")
        response = self.deserialize(key, record.decode(errors="replace"))
        if response is None:  # of another version of the library
            raise KeyError(key)
        return CachedResponse.from_response(response, content=body)

    def __setitem__(self, key: str, value: CachedResponse | str) -> None:
        record = b""
        if isinstance(value, str):
            body = value.encode()
        else:
            body = value.content or b""
            record = self.serialize(CachedResponse.from_response(value, content=b"")).encode()
        path = self._key2path(key)
        try:
            fd, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(len(record).to_bytes(8, "big") + len(body).to_bytes(8, "big") + record)
                    file.write(body)
                Path(partial).replace(path)
            except BaseException:
                Path(partial).unlink()
                raise
        except OSError as error:  # what cannot be kept can be used nevertheless
            logger.warning("cannot keep a download in %s: %s", path.parent, error.strerror or error)


class _FileCache(BaseCache):
    """Plain files only.

    Home directories of clusters are shared storage, on which SQLite's locks hang or lie: so neither the default
    backend, nor the stock one of files, which keeps its redirects in SQLite.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.responses = _Files(folder / "responses", records=True)
        self.redirects = _Files(folder / "redirects", records=False)


class _Adapter(HTTPAdapter):
    """Adds what requests leaves out: timeouts, a bound on the answer, and a few more tries."""

    def __init__(self) -> None:
        # Retry-After is not obeyed here: somebody is waiting, and may rather use another index.
        tries = Retry(
            total=3,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=("GET",),
            respect_retry_after_header=False,
            raise_on_status=False,
        )
        super().__init__(max_retries=tries)

    def send(self, request: requests.PreparedRequest, *rest: Any, **options: Any) -> requests.Response:
        """Send with a timeout. Raises `requests.RequestException`, also for an answer that states too many bytes."""
        options["timeout"] = options.get("timeout") or TIMEOUT
        response = super().send(request, *rest, **options)
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > MAX_BYTES:
            response.close()
            raise requests.RequestException(f"the answer has {length} bytes, more than {MAX_BYTES}")
        return response


def planner_session(
    cache_dir: Path | None = None,
    *,
    expire: float,
    refresh: bool = False,
    offline: bool = False,
    keep: Callable[[requests.Response], bool] | None = None,
) -> CachedSession:
    """Make a session whose answers are kept in `cache_dir`, by default `http` in the user's cache of medhaul.

    Credentials are neither part of a key nor kept. An answer is held in memory whole, about three times.

    Parameters
    ----------
    expire
        Seconds for which an answer is used unasked, unless its Cache-Control says otherwise. Then, and always with
        `refresh`, the site is asked whether it has changed (ETag, Last-Modified).
    offline
        Use what is kept, however old, and answer 504 else; nothing is sent.
    keep
        Which answers may be kept.

    Raises
    ------
    StorageError
        When the folder cannot be made.
    """
    folder = cache_dir or Path(user_cache_dir("medhaul")) / "http"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        backend = _FileCache(folder)
    except OSError as error:
        hint = "make it writable, or set XDG_CACHE_HOME to another folder"
        raise StorageError(f"cannot make the cache {folder}: {error.strerror or error}", hint=hint) from None
    session = CachedSession(
        backend=backend,
        expire_after=expire,
        cache_control=True,
        always_revalidate=refresh and not offline,
        only_if_cached=offline,
        stale_if_error=offline,
        allowable_methods=("GET",),
        ignored_parameters=(*DEFAULT_IGNORED_PARAMS, *SIGNATURES),
        filter_fn=keep,
    )
    session.headers["User-Agent"] = f"medhaul/{pipeline.__version__}"
    session.mount("https://", _Adapter())
    session.mount("http://", _Adapter())
    return session


def download_parquet(
    url: str, path: Path, *, cache_dir: Path | None = None, expire: float, refresh: bool = False, offline: bool = False
) -> None:
    """Write the Parquet file at `url`, or the copy of it that is kept, to `path`. See `planner_session`.

    Raises
    ------
    SiteUnavailableError
        When it cannot be had, with the URL.
    ConfigError
        When it is no Parquet file (it is not kept, then), or the URL holds credentials.
    StorageError
        When `path` cannot be written.
    """
    shown = show_url(url)
    with planner_session(cache_dir, expire=expire, refresh=refresh, offline=offline, keep=_may_keep) as session:
        try:
            response = session.get(url)
        except requests.RequestException as error:
            hint = "try again later, or name another mirror or a local Parquet file"
            raise SiteUnavailableError(f"{shown}: {_reason(error, url, shown)}", hint=hint) from None
        if offline and response.status_code == 504:
            raise SiteUnavailableError(f"{shown}: not in the cache", hint="plan once with a network connection")
        if response.status_code != 200:
            text = f"{shown}: {response.status_code} {response.reason}"
            raise SiteUnavailableError(text, hint="check the URL, or try again later")
        if not is_parquet(response.content):
            raise ConfigError(f"{shown}: not a Parquet file", hint="name the URL of an idc_index.parquet")
        try:
            path.write_bytes(response.content)
        except OSError as error:
            hint = "free or change the temporary folder (TMPDIR)"
            raise StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from None


def is_parquet(data: bytes) -> bool:
    """Say whether data begin and end as a Parquet file does (https://parquet.apache.org/docs/file-format/). Pure."""
    return len(data) >= 12 and data[:4] == data[-4:] == b"PAR1"


def show_url(url: str) -> str:
    """Return a URL without its query, which may be a signature. Raises `ConfigError` where it holds credentials."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("sources.idc.index is not an http(s) URL without credentials", hint="see ~/.netrc for those")
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _may_keep(response: requests.Response) -> bool:
    return response.status_code != 200 or is_parquet(response.content)  # other statuses are not kept anyway


def _reason(error: Exception, url: str, shown: str) -> str:
    text = " ".join(str(error).split()).replace(url, shown)
    query = urlsplit(url).query
    return (text.replace(query, "…") if query else text)[:300]
