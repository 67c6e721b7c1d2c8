"""What a plan asks of scratch and of NBIA, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.settings import Config


def largest_shard(frames: Sequence[int], shards: Iterable[int]) -> int:
    """The most that a shard needs, from what each frame needs and how many frames each shard has."""
    most = begin = 0
    for count in shards:
        most = max(most, sum(frames[begin : begin + count]))
        begin += count
    return most


def judge_politeness(config: Config, from_nbia: int, shards: int) -> list[str]:
    """Say that more tasks at a time than NBIA may have connections would go beyond them: each has one at least."""
    tasks, bound = min(config.limits.tasks, shards), config.sources.tcia.connections
    if not from_nbia or tasks <= bound:
        return []
    said = f"{tasks} tasks at a time (limits.tasks) make up to {tasks} connections to NBIA, one each"
    return [f"{said}, which is more than sources.tcia.connections = {bound}: set limits.tasks to at most {bound}"]
