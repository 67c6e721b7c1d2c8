"""The logs of a task: the end of the readable one, and the records of the detailed one that matter."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

TAIL_BYTES = 64 << 10
CHUNK = 16 << 10
MAGIC = b"\x28\xb5\x2f\xfd"  # of a zstd frame, RFC 8878, 3.1.1


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
    """Yield the records of a detail log, JSON lines in zstd frames, of all frames that are whole.

    A task that is killed leaves its last frame torn, and its next life appends to that: what follows is found again by
    the next frame's magic number. Lines that are not JSON objects are left out. A missing file has no records.
    """
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    at = data.find(MAGIC)
    while at >= 0:
        frame, end = _read_frame(data, at)
        good = frame.endswith(b"\n")
        for line in frame.splitlines():
            try:
                yield decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                good = False
        # Where not all is as it was written, the frame may be a torn one that ends in the next one's bytes.
        at = data.find(MAGIC, end if good else at + len(MAGIC))


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


def _read_frame(data: bytes, at: int) -> tuple[bytes, int]:
    """The content of the zstd frame at `at`, and where it ends; nothing when it is torn or not what was written."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    found = []
    for start in range(at, len(data), CHUNK):
        try:
            found.append(decompressor.decompress(data[start : start + CHUNK]))
        except zstandard.ZstdError:
            break
        if decompressor.eof:
            content = b"".join(found)
            if MAGIC in content:  # no UTF-8: a block that was stored as it is, torn, and filled by the next frame
                break
            return content, min(start + CHUNK, len(data)) - len(decompressor.unused_data)
    return b"", at
