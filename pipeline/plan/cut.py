"""Cutting: items into frames, frames into archives, archives into shards. Pure functions of sizes and settings.

The sizes are those that items are planned with, above 0 also where the source states none: see `pipeline.sizes`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """One manifest entry to be: the `piece`-th of `pieces` of item `item`, in frame `frame`."""

    item: int
    piece: int
    pieces: int
    frame: int


def count_pieces(size: int, files: int, cut_bytes: int, cut_files: int) -> int:
    """Over how many frames an item is cut: none above `cut_bytes` or `cut_files` as planned, none without a file."""
    return max(1, min(files, max(-(-size // cut_bytes), -(-files // cut_files))))


class FrameCut(Sequence[Piece]):
    """An archive's items cut into frames: a sequence of pieces, kept as two numbers an item.

    Attributes
    ----------
    first
        The frame of each item's first piece.
    counts
        The number of pieces of each item; they lie in consecutive frames.
    """

    def __init__(self) -> None:
        self.first = array("q")
        self.counts = array("q")

    @property
    def frames(self) -> int:
        """Frames in all."""
        return self.first[-1] + self.counts[-1] if self.first else 0

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[Piece]:
        for item, (first, count) in enumerate(zip(self.first, self.counts, strict=True)):
            for piece in range(count):
                yield Piece(item, piece, count, first + piece)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrameCut | list) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def cut_frames(sizes: Iterable[tuple[int, int]], group_bytes: int, cut_bytes: int, cut_files: int) -> FrameCut:
    """Cut one archive's items, given in order as (bytes, files), into frames numbered from 0.

    Items of at least `group_bytes`, or of more than `cut_files` files, are a frame each, or several; smaller neighbours
    share one until it holds `group_bytes` or `cut_files` files.
    """
    cut = FrameCut()
    put_first, put_count = cut.first.append, cut.counts.append
    frame = -1
    held = group_bytes  # bytes in the open group; full, so that the first item opens a frame
    held_files = 0
    for planned, files in sizes:
        size = planned if planned > 0 else 1
        if size >= group_bytes or files > cut_files:
            cuttable = size > cut_bytes or files > cut_files
            count = count_pieces(size, files, cut_bytes, cut_files) if cuttable else 1
            put_first(frame + 1)
            put_count(count)
            frame += count
            held = group_bytes
            continue
        held += size
        held_files += files if files > 0 else 1
        if held > group_bytes or held_files > cut_files:
            frame += 1
            held = size
            held_files = files if files > 0 else 1
        put_first(frame)
        put_count(1)
    return cut


def cut_volumes(sizes: Sequence[int], max_bytes: int) -> list[int]:
    """Cut a group's items into archives of at most `max_bytes` each: the number of items in every one.

    0: one archive. An item larger than `max_bytes` is an archive of its own.
    """
    if not sizes:
        return []
    if max_bytes <= 0:
        return [len(sizes)]
    volumes = [0]
    held = 0
    for planned in sizes:
        size = planned if planned > 0 else 1
        if volumes[-1] and held + size > max_bytes:
            volumes.append(0)
            held = 0
        volumes[-1] += 1
        held += size
    return volumes


def frame_scratch(cut: FrameCut, sizes: Iterable[int], zips: Iterable[int]) -> list[int]:
    """Bytes that each frame needs on scratch: of each item a share of its bytes, and all of the zip it comes in."""
    needs = [0] * cut.frames
    for size, zipped, first, count in zip(sizes, zips, cut.first, cut.counts, strict=True):
        if count == 1:
            needs[first] += size + zipped
            continue
        for frame in range(first, first + count):
            needs[frame] += size // count + zipped
    return needs


def cut_shards(costs: Sequence[int], count: int) -> list[int]:
    """Cut consecutive frames into at most `count` shards whose dearest is as cheap as can be: frames in each.

    Every shard has a frame. Binary search over the bound that a greedy cut needs.
    """
    if not costs:
        return []
    count = max(1, min(count, len(costs)))
    ends = [0, *accumulate(costs)]
    low, high = max(costs), ends[-1]
    while low < high:
        bound = (low + high) // 2
        if _shards_needed(ends, bound) <= count:
            high = bound
        else:
            low = bound + 1
    return _fill_shards(costs, low, count)


def _shards_needed(ends: Sequence[int], bound: int) -> int:
    """Shards that a greedy cut needs, from the running total of the costs, when none may exceed `bound`."""
    needed = position = 0
    while position < len(ends) - 1:
        position = bisect_right(ends, ends[position] + bound, position) - 1
        needed += 1
    return needed


def _fill_shards(costs: Sequence[int], bound: int, count: int) -> list[int]:
    """Fill shards in order up to `bound`; near the end, one frame each, so that there are exactly `count`."""
    shards: list[int] = []
    frames = held = 0
    for position, cost in enumerate(costs):
        spare = len(costs) - position > count - len(shards) - 1
        if frames and (held + cost > bound or not spare):
            shards.append(frames)
            frames = held = 0
        frames += 1
        held += cost
    shards.append(frames)
    return shards


def count_shards(costs: Sequence[int], wanted: int, total: int, target: int) -> int:
    """How many shards one archive gets: its share of `wanted` among the run's `total` cost, or one per `target`."""
    cost = sum(costs)
    count = round(wanted * cost / total) if wanted and total else -(-cost // target)
    return max(1, min(count, len(costs)))
