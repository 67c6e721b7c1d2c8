"""The licence texts that NBIA sends with images: the first member of each image zip.

A zip is streamed without a length, LICENSE first, so its text costs one request and a few hundred bytes of the answer;
then the connection is dropped. The text is one for all series of a collection that have the same licence.
"""

from __future__ import annotations

import http.client
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from urllib.parse import urlencode

from pipeline.errors import CredentialsError, ItemError, SiteUnavailableError
from pipeline.transport.exchange import RequestError, ask, parse_target
from pipeline.transport.pool import ConnectionPool
from pipeline.transport.wire import Guard

TEXT_SECONDS = 20.0  # for one text
MAX_RECEIVED = 1 << 20
MAX_TEXT = 1 << 18
_HEADER = struct.Struct("<4s5H3I2H")  # of a member: APPNOTE.TXT 6.3.10, 4.3.7
_NAMES = {"LICENSE", "LICENSE.TXT"}
_STORED, _DEFLATED, _ENCRYPTED, _SIZE_LATER = 0, 8, 1, 8


def name_text(collection: str, licence: str) -> str:
    """What a licence text is kept and shown under: collection and, where it is stated, licence. Pure."""
    return f"{collection} / {licence}" if licence else collection


class LicenceReader:
    """Takes the bytes of a zip as they come, until its first member is whole.

    Attributes
    ----------
    text
        The licence, once it is there; None before.
    """

    def __init__(self) -> None:
        self.text: str | None = None
        self._head = b""
        self._body = bytearray()
        self._stored = -1  # bytes of a member that is not compressed
        self._inflate: zlib._Decompress | None = None
        self._received = 0

    def feed(self, data: bytes) -> None:
        """Take in more bytes.

        Raises
        ------
        ValueError
            When this is no zip whose first member is a licence, or more than a licence can be.
        """
        self._received += len(data)
        if self._received > MAX_RECEIVED:
            raise ValueError(f"no licence in the first {MAX_RECEIVED} bytes")
        if self._inflate is None and self._stored < 0:
            self._head += data
            rest = self._open()
            if rest is None:
                return
            data = rest
        if self._inflate is not None:
            try:
                self._body += self._inflate.decompress(data, MAX_TEXT + 1 - len(self._body))
            except zlib.error as error:
                raise ValueError(f"the licence cannot be unpacked: {error}") from None
            done = self._inflate.eof
        else:
            self._body += data[: self._stored - len(self._body)]
            done = len(self._body) == self._stored
        if len(self._body) > MAX_TEXT:
            raise ValueError(f"a licence of more than {MAX_TEXT} bytes")
        if done:
            text = self._body.decode("utf-8", "replace").replace("\r\n", "\n").strip()
            if not text:
                raise ValueError("the licence has no text")
            self.text = text

    def _open(self) -> bytes | None:
        """Read the member's header; what follows it, or None while it is not whole."""
        head = self._head
        if not b"PK\x03\x04".startswith(head[:4]):
            raise ValueError("not a zip with a member")
        if len(head) < _HEADER.size:
            return None
        _, _, flags, method, _, _, _, packed, _, name_length, extra_length = _HEADER.unpack_from(head)
        end = _HEADER.size + name_length + extra_length
        if len(head) < end:
            return None
        name = head[_HEADER.size : _HEADER.size + name_length].decode("utf-8", "replace")
        if name.upper() not in _NAMES:
            raise ValueError(f"its first member is {name[:80]!r}, no licence")
        if method == _DEFLATED and not flags & _ENCRYPTED:
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        elif method == _STORED and not flags & (_ENCRYPTED | _SIZE_LATER) and packed <= MAX_TEXT:
            self._stored = packed
        else:
            raise ValueError(f"a licence packed by method {method} with flags {flags:#x}")
        return head[end:]


def fetch_texts(
    wanted: Iterable[tuple[str, str, str]],
    url_for: Callable[[str], str],
    bearer: Callable[[str], str],
    *,
    seconds: float,
    stop: threading.Event,
) -> tuple[dict[str, str], list[str]]:
    """Licence texts by `name_text`, and why others could not be had; never an error, and done within the time.

    Parameters
    ----------
    wanted
        Collection, name of the licence ("": none is stated), and a series that has it.
    url_for, bearer
        Where a collection's series are, and the token for such a place ("": none).
    seconds
        For all of them.

    Raises
    ------
    InterruptedRunError
        When `stop` is set.
    """
    texts: dict[str, str] = {}
    problems: list[str] = []
    pool = ConnectionPool(limit=1)
    end = time.monotonic() + seconds
    try:
        for collection, licence, series in wanted:
            left = min(TEXT_SECONDS, end - time.monotonic())
            name = name_text(collection, licence)
            try:
                if left <= 0:
                    raise ItemError("unavailable", f"no time left after {seconds:.0f} s")
                url = url_for(collection)
                texts[name] = fetch_licence(pool, url, series, left, stop, token=bearer(url))
            except (ItemError, SiteUnavailableError, CredentialsError) as error:
                problems.append(f"{name}: {error}")
    finally:
        pool.close()
    return texts, problems


def fetch_licence(
    pool: ConnectionPool, base_url: str, series: str, seconds: float, stop: threading.Event, *, token: str = ""
) -> str:
    """The licence text that comes with a series' images; asked for once, within so many seconds.

    `base_url` is the root of the services, without a version; `token` that of an account, which it is sent to.

    Raises
    ------
    ItemError
        When it does not come: never more than that.
    InterruptedRunError
        When `stop` is set.
    """
    clock = time.monotonic
    guard = Guard(clock, stop, stall=seconds, min_rate=0, deadline_at=clock() + seconds)
    reader = LicenceReader()
    data = bytearray(4096)
    try:
        target = parse_target(f"{base_url}/v4/getImage?{urlencode({'SeriesInstanceUID': series})}")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        exchange, _ = ask(pool, target, headers, guard)
        with exchange:
            if exchange.head.status != 200:
                raise ValueError(f"status {exchange.head.status}")
            while reader.text is None:
                count = exchange.body.readinto(memoryview(data))
                if not count:
                    raise ValueError("the answer ends before the licence does")
                reader.feed(bytes(data[:count]))
    except (RequestError, OSError, http.client.HTTPException, ValueError) as error:
        text = f"no licence text with series {series}: {error}"
        raise ItemError("unavailable", text.replace(token, "…") if token else text, transient=True) from None
    return reader.text
