"""The detail log of one task life: every request, retry, check and frame, as compressed JSON lines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from pipeline.atomic import storage_errors

FLUSH_SECONDS = 10.0


class DetailLog:
    """Appends JSON lines to a zstandard file; each flush ends a zstd frame, so a torn tail costs seconds at most.

    Counts events by kind in `counts`, and bytes received in `received`.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.received = 0

    def event(self, event: str, **fields: Any) -> None:
        """Note one event. Never raises: a log that cannot be written must not end a download."""
        self.record({"event": event, **fields})

    def record(self, fields: dict[str, Any]) -> None:
        """Note one event that is a dict already, with its kind under `event`."""
        line = msgspec.json.encode({"t": round(time.time(), 3), **fields}, enc_hook=str)
        with self._lock:
            self.counts[str(fields.get("event"))] += 1
            self.received += int(fields.get("received", 0))
            self._lines.append(line)
            if len(self._lines) >= 1000 or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._flush()

    def close(self) -> None:
        with self._lock:
            self._flush()
            self._file.close()

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._lines:
            return
        data = self._compressor.compress(b"\n".join(self._lines) + b"\n")
        self._lines.clear()
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            self.counts[f"log-failed:{error.strerror}"] += 1  # told at the end of the readable log
