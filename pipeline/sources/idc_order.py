"""Bringing rows that come in any order into ranked order, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, BinaryIO

import msgspec

BUCKET = 4096  # ranks per bucket
HELD_BYTES = 48 << 20  # what may wait in memory before it is spilled
_ROW_OVERHEAD = 1500  # bytes of a Python row, beside its longest text


def in_rank_order(
    chunks: Iterable[list[tuple[int, tuple[Any, ...]]]], total: int, spill: BinaryIO, held_bytes: int = HELD_BYTES
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of ranks 0 to `total` - 1 in order of rank, in lists; each rank must come exactly once.

    `chunks` are lists of (rank, row). Ranks are gathered in buckets, and a bucket is passed on once it and all before
    it are full. Rows that come nearly in order never touch the file `spill`; others wait there. Values must be text,
    numbers or None.

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

    for chunk in chunks:
        held += _weight(chunk)
        for ranked in chunk:  # a million times: as little as can be
            bucket = ranked[0] // BUCKET
            missing[bucket] -= 1
            group = waiting.get(bucket)
            if group is None:
                waiting[bucket] = [ranked]
            else:
                group.append(ranked)
        while current < len(missing) and missing[current] == 0:
            found = waiting.pop(current, [])
            held -= _weight(found)
            for start, length in spilled.pop(current, []):
                spill.seek(start)
                found += decoder.decode(spill.read(length))
            found.sort(key=itemgetter(0))
            yield [row for _, row in found]
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


def _weight(group: list[tuple[int, tuple[Any, ...]]]) -> int:
    return sum([len(ranked[1][-1]) for ranked in group]) + len(group) * _ROW_OVERHEAD
