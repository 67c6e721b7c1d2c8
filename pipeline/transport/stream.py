"""A body on its way to a file when nobody states its length: only its framing tells its end, nothing continues it."""

from __future__ import annotations

from pipeline.transport.download import Sink
from pipeline.transport.exchange import RequestError
from pipeline.transport.retry import Verdict
from pipeline.transport.wire import Body, Head

_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress"})


class Count:
    """How many bytes were fed: a tally without hashes."""

    def __init__(self) -> None:
        self.size = 0

    def feed(self, data: memoryview) -> None:
        """Count the next bytes."""
        self.size += len(data)

    def reset(self) -> None:
        """Forget everything fed."""
        self.size = 0


def judge_coding(head: Head) -> None:
    """Raise `RequestError` for a body that is not stored as it is sent."""
    coding = head.headers.get("content-encoding", "").lower()
    if coding in _ENCODINGS:
        raise RequestError(
            "unavailable", Verdict.RETRY, f"the answer is {coding}-encoded although identity was asked for"
        )


def judge_stream(head: Head) -> None:
    """Raise `RequestError` for a success that cannot be the whole of a file: a part, nothing, a web page."""
    judge_coding(head)
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if head.status != 200 or kind == "text/html":
        what = "a web page in place of the file" if head.status == 200 else "not with 200 and the whole file"
        raise RequestError("unavailable", Verdict.RETRY, f"{head.status}, {what}")


def pour(body: Body, sink: Sink[Count], buffer: memoryview, limit: int) -> None:
    """Read a body of at most `limit` bytes to its end. Raises `RequestError`, OSError or HTTPException."""
    while not body.done:
        count = 0
        while count < len(buffer) and not body.done:
            count += body.readinto(buffer[count:])
        if sink.tally.size + count > limit or body.length > limit:
            raise RequestError("size", Verdict.RETRY, f"the answer is longer than {limit} bytes")
        sink.feed(buffer[:count])
