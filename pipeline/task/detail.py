"""The detail log of one task life: every request, retry, check and frame, as compressed JSON lines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.atomic import storage_errors

FLUSH_SECONDS = 10.0


class DetailLog:
    """Appends JSON lines to a zstandard file; each flush ends a zstd frame, so a torn tail costs seconds at most.

    Counts events by kind in `counts`.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        self._compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False
        self.counts: Counter[str] = Counter()

    def event(self, event: str, /, **fields: Any) -> None:
        """Note one event. Never raises: a log that cannot be written must not end a download."""
        self.record({"event": event, **fields})

    def record(self, fields: dict[str, Any]) -> None:
        """Note one event that is a dict already, with its kind under `event`."""
        line = _encode({"t": round(time.time(), 3), **fields})
        with self._lock:
            self.counts[str(fields.get("event"))] += 1
            if self._closed:
                return
            self._lines.append(line)
            if len(self._lines) >= 1000 or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._flush()

    def close(self) -> None:
        with self._lock:
            self._flush()
            self._closed = True
            with self._counting_failures():
                self._file.close()

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._lines:
            return
        data = self._compressor.compress(b"\n".join(self._lines) + b"\n")
        self._lines.clear()
        with self._counting_failures():
            self._file.write(data)
            self._file.flush()

    @contextlib.contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.counts[f"log-failed:{error.strerror}"] += 1  # told at the end of the readable log


def _encode(fields: dict[str, Any]) -> bytes:
    """One line of JSON; what JSON cannot hold (odd objects, lone surrogates, huge numbers) as Python shows it."""
    try:
        return msgspec.json.encode(fields, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError):
        shown = {_show(key): _show(value) for key, value in fields.items()}
        return msgspec.json.encode(shown)


def _show(value: object) -> str | float | None:
    if value is None or isinstance(value, float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "backslashreplace").decode()
