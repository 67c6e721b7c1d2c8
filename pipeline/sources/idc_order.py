"""Bringing rows that come in any order into ranked order, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgspec

BUCKET = 4096  # ranks per bucket
HELD_BYTES = 48 << 20  # what may wait in memory before it is spilled
_ROW_OVERHEAD = 1500  # bytes of a Python row, beside its longest text


def in_rank_order(
    rows: Iterable[tuple[int, tuple[Any, ...]]], total: int, spill: BinaryIO, held_bytes: int = HELD_BYTES
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of ranks 0 to `total` - 1 in order of rank; each rank must come exactly once.

    Ranks are gathered in buckets, and a bucket is passed on once it and all before it are full. Rows that come nearly
    in order never touch the file `spill`; others wait there. Values must be text, numbers or None.

    Raises
    ------
    ValueError
        When ranks are missing.
    """
    waiting: dict[int, list[tuple[int, tuple[Any, ...]]]] = {}
    spilled: dict[int, list[tuple[int, int]]] = {}
    missing = [min(BUCKET, total - first) for first in range(0, total, BUCKET)]
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(list[tuple[int, tuple[Any, ...]]])
    current = held = end = 0

    def take(bucket: int) -> list[tuple[int, tuple[Any, ...]]]:
        nonlocal held
        found = waiting.pop(bucket, [])
        held -= sum(_weight(row) for _, row in found)
        for start, length in spilled.pop(bucket, []):
            spill.seek(start)
            found += decoder.decode(spill.read(length))
        found.sort(key=lambda ranked: ranked[0])
        return found

    for ranked in rows:
        bucket = ranked[0] // BUCKET
        waiting.setdefault(bucket, []).append(ranked)
        missing[bucket] -= 1
        held += _weight(ranked[1])
        while current < len(missing) and missing[current] == 0:
            for _, row in take(current):
                yield row
            current += 1
        if held > held_bytes:
            for number, group in waiting.items():
                spill.seek(end)
                length = spill.write(encoder.encode(group))
                spilled.setdefault(number, []).append((end, length))
                end += length
            waiting.clear()
            held = 0
    if current < len(missing):
        raise ValueError(f"{sum(missing):,} ranks did not come")


def _weight(row: tuple[Any, ...]) -> int:
    return len(row[-1]) + _ROW_OVERHEAD
