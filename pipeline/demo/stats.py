"""What a demo site was asked: counts, peaks and the last requests, so that a test can say how often and how."""

from __future__ import annotations

import fnmatch
import threading
from collections import Counter, deque
from typing import Literal

import msgspec

Verb = Literal["GET", "HEAD", "LIST", "HEAD-BUCKET", "OTHER"]
_LOG_LENGTH = 20_000


class Asked(msgspec.Struct, frozen=True):
    """One request as it was answered. `key` is the prefix of a listing; `range` as the client wrote it."""

    verb: Verb
    bucket: str
    key: str
    status: int
    range: str
    user_agent: str


class Snapshot(msgspec.Struct, frozen=True):
    """The state of the counters; what `/_stats` answers, as JSON. `keys` maps `VERB bucket/key` to how often."""

    connections: int
    open_connections: int
    peak_connections: int
    requests: int
    peak_requests: int
    bytes_sent: int
    verbs: dict[str, int]
    statuses: dict[int, int]
    keys: dict[str, int]
    faults: dict[str, int]


class Stats:
    """Counters of one site; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start counting anew. Connections that are open are forgotten in peaks, not closed."""
        with self._lock:
            self.connections = self.open_connections = self.peak_connections = 0
            self.requests = self.active_requests = self.peak_requests = 0
            self.bytes_sent = 0
            self.statuses: Counter[int] = Counter()
            self.verbs: Counter[str] = Counter()
            self.keys: Counter[tuple[str, str, str]] = Counter()
            self.log: deque[Asked] = deque(maxlen=_LOG_LENGTH)

    def count(self, verb: Verb | None = None, key: str = "*", bucket: str = "*") -> int:
        """How often keys that match a pattern (as in file names) were asked for; for LIST the key is the prefix."""
        with self._lock:
            return sum(
                times
                for (seen, where, name), times in self.keys.items()
                if verb in {None, seen} and fnmatch.fnmatchcase(name, key) and fnmatch.fnmatchcase(where, bucket)
            )

    def requests_log(self) -> list[Asked]:
        """The last requests, oldest first; at most 20,000."""
        with self._lock:
            return list(self.log)

    def snapshot(self, faults: dict[str, int] | None = None) -> Snapshot:
        """All counters at one moment."""
        with self._lock:
            return Snapshot(
                connections=self.connections,
                open_connections=self.open_connections,
                peak_connections=self.peak_connections,
                requests=self.requests,
                peak_requests=self.peak_requests,
                bytes_sent=self.bytes_sent,
                verbs=dict(self.verbs),
                statuses=dict(self.statuses),
                keys={f"{verb} {bucket}/{key}": n for (verb, bucket, key), n in self.keys.items()},
                faults=faults or {},
            )

    def connection_opened(self) -> None:
        """A client connected."""
        with self._lock:
            self.connections += 1
            self.open_connections += 1
            self.peak_connections = max(self.peak_connections, self.open_connections)

    def connection_closed(self) -> None:
        """A connection ended, from whichever side."""
        with self._lock:
            self.open_connections = max(0, self.open_connections - 1)

    def request_started(self, asked: Asked) -> None:
        """A request was understood and its answer is about to be sent."""
        with self._lock:
            self.requests += 1
            self.active_requests += 1
            self.peak_requests = max(self.peak_requests, self.active_requests)
            self.verbs[asked.verb] += 1
            self.statuses[asked.status] += 1
            self.keys[asked.verb, asked.bucket, asked.key] += 1
            self.log.append(asked)

    def request_ended(self, body_bytes: int) -> None:
        """The answer was sent, or as much of it as was to be."""
        with self._lock:
            self.active_requests = max(0, self.active_requests - 1)
            self.bytes_sent += body_bytes
