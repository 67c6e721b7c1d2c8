"""The logs of a task: the end of the readable one, and the records of the detailed one that matter."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

TAIL_BYTES = 64 << 10
CHUNK = 16 << 10


def read_tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a text log; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except FileNotFoundError:
        return []
    return data.decode("utf-8", "replace").splitlines()[-lines:]


def read_detail(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a detail log, JSON lines in zstd frames, as far as they can be read.

    A log ends torn when its task was killed; what follows the first damage is not to be trusted and left out. Lines
    that are not JSON objects are left out too. A missing file has no records.
    """
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    rest = b""
    for data in _decompress(path):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                yield decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


def match_records(records: Iterator[dict[str, Any]], words: Collection[str], keep: int) -> list[dict[str, Any]]:
    """The last `keep` records that have one of `words` as a value; with no words the last `keep` of all."""
    found: list[dict[str, Any]] = []
    wanted = frozenset(words)
    for record in records:
        if not wanted or any(isinstance(value, str) and value in wanted for value in record.values()):
            found.append(record)
            if len(found) > keep:
                del found[0]
    return found


def log_path(logs: Path, job: str) -> Path:
    """The readable log of the task `A_a`, or `A_a.N` in its N-th requeue: all its lives share it."""
    return logs / f"{job.partition('.')[0]}.log"


def detail_path(logs: Path, job: str) -> Path:
    """The detail log of the task `A_a`, or `A_a.N`."""
    return logs / f"{job.partition('.')[0]}.detail.jsonl.zst"


def render_record(record: Mapping[str, Any]) -> str:
    """A record of the detail log on one line."""
    return msgspec.json.encode(record).decode()


def _decompress(path: Path) -> Iterator[bytes]:
    import zstandard

    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        while data := file.read(CHUNK):
            while data:
                try:
                    yield decompressor.decompress(data)
                except zstandard.ZstdError:
                    return
                if not decompressor.eof:
                    break
                data = decompressor.unused_data
                decompressor = zstandard.ZstdDecompressor().decompressobj()
