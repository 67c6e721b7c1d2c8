"""What a run leaves on shared storage, as typed records: run.json, plans of attempts, journals, receipts."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FORMAT = 1


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: what was planned, with what. `config` is the frozen config, which holds no secrets."""

    format: int
    name: str
    created: str
    medhaul: str
    liblzma: str
    python: str
    source: str
    release: str
    manifest_sha256: str
    items: int
    files: int
    bytes: int
    shards: int
    config: dict[str, Any]


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a shard's own zstd frame lies in the manifest, and what the shard holds.

    `items` counts the items that begin here (piece 0), so that sums over shards count each item once.
    """

    shard: int
    archive: str
    offset: int
    length: int
    sha256: str
    entries: int
    items: int
    files: int
    bytes: int
    first_frame: int
    frames: int


class ArchiveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An archive to come: its name without suffix, and the run of shards and frames that make it."""

    name: str
    items: int
    files: int
    bytes: int
    first_shard: int
    shards: int
    first_frame: int
    frames: int


class ManifestIndex(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.index.json`: the way into the manifest. `columns` names the values of each item's `meta`."""

    format: int
    manifest_sha256: str
    source: str
    release: str
    columns: list[str]
    archives: list[ArchiveEntry]
    shards: list[ShardEntry]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One array (or the reduce job) as the scheduler took it, at the Unix time `submitted`.

    Array task `i` does `plan.shards[offset + i]`.
    """

    kind: Literal["array", "reduce"]
    name: str
    id: str
    offset: int = 0
    length: int = 0
    submitted: float = 0.0


class ArrayPlan(msgspec.Struct, frozen=True):
    """One array of an attempt: its tasks are 0 to `length - 1`, at most `throttle` of them at a time.

    `after`: number of the array that must have ended before, -1 for none.
    """

    offset: int
    length: int
    throttle: int
    after: int = -1


class AttemptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts/NNN/plan.json`: the dense task index -> shard, and the arrays they are submitted in. Immutable.

    `tag` makes the names of its jobs unique among all jobs of a cluster; `cluster` is that cluster's name, where known.
    `extra` are the options of sbatch that were given for this submission alone.
    """

    format: int
    run: str
    attempt: int
    manifest_sha256: str
    scheduler: str
    created: str
    shards: list[int]
    tasks: int
    connections: int
    tag: str
    cluster: str
    accounting: bool
    arrays: list[ArrayPlan]
    extra: list[str]


def render_life(array: str, index: int, restarts: int) -> str:
    """Name a life of an array task: `A_a`, with `.L` behind it for life L after the first. Pure."""
    return f"{array}_{index}" + (f".{restarts}" if restarts else "")


class Throttle(msgspec.Struct, frozen=True):
    """`attempts/NNN/throttle.json`: how many tasks may run at a time, as changed while the attempt was at work.

    `connections` are those of each task that starts from now on. `held` are those of the tasks that ran at the time of
    the change, by `A_a`, with `.L` behind it for life L after the first.
    """

    tasks: int
    connections: int
    held: dict[str, int] = {}


class FileRecord(msgspec.Struct, frozen=True, array_like=True):
    """A file as it stands in a frame. `offset` is that of its first byte of content in the frame's tar bytes.

    Journals from before there was `etag` have none.
    """

    name: str
    size: int
    sha256: str
    offset: int
    key: str
    evidence: list[str]
    route: str
    etag: str = ""


class PieceRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one manifest entry in a frame: its files, or why there are none."""

    number: int
    piece: int
    files: list[FileRecord]
    reason: str = ""
    message: str = ""
    transient: bool = False


class FrameRecord(msgspec.Struct, frozen=True):
    """A frame in a part: a line of the journal and of the shard index.

    `blocks` holds (unpadded size, uncompressed size) of each xz block, as the xz index needs them; `sha256` is of the
    `length` compressed bytes at `offset` of the part named `part`; `liblzma` is the version that compressed them.
    """

    frame: int
    part: str
    offset: int
    length: int
    sha256: str
    tar_bytes: int
    blocks: list[tuple[int, int]]
    pieces: list[PieceRecord]
    liblzma: str = ""

    @property
    def failed(self) -> list[PieceRecord]:
        """The entries of this frame that failed."""
        return [piece for piece in self.pieces if piece.reason]


class PartUse(msgspec.Struct, frozen=True):
    """The first `length` bytes of a part file that a receipt relies on, with their SHA-256."""

    name: str
    length: int
    sha256: str


class FailedItem(msgspec.Struct, frozen=True):
    """An item (or piece of one) that is not archived, and why."""

    number: int
    piece: int
    id: str
    path: str
    reason: str
    message: str
    transient: bool


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """`receipts/00/000123.json`: written when a shard ended; the only proof of success.

    `complete`: every entry is archived. `partial`: every entry is archived or failed with a reason.
    """

    format: int
    shard: int
    manifest_sha256: str
    state: Literal["complete", "partial"]
    entries: int
    archived: int
    failed: list[FailedItem]
    files: int
    bytes: int
    tar_bytes: int
    packed_bytes: int
    index: str
    index_sha256: str
    parts: list[PartUse]
    attempt: int
    job: str
    node: str
    life: int
    started: float
    ended: float
    downloaded_bytes: int
    requests: int
    retries: int
    cpu_seconds: float
    max_rss: int
    medhaul: str
    liblzma: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """`heartbeats/00/000123.json`: what a living task last said of itself. A hint, never proof."""

    shard: int
    attempt: int
    job: str
    node: str
    pid: int
    time: float
    started: float
    phase: Literal["starting", "working", "stopping", "stopped", "failed"]
    entries: int
    entries_done: int
    failed: int
    frames: int
    frames_done: int
    bytes: int
    bytes_downloaded: int
    bytes_packed: int
    note: str = ""
