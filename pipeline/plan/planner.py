"""The planner: from a source's items to a manifest, and what to tell people about it."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import shutil
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline import __version__
from pipeline.archive.liblzma import liblzma_version
from pipeline.atomic import current_umask, fsync_folder, storage_errors, write_atomic
from pipeline.errors import ConfigError
from pipeline.manifest import ManifestWriter, encode_entry
from pipeline.plan.cut import FrameCut, count_shards, cut_frames, cut_shards, cut_volumes, frame_scratch
from pipeline.plan.needs import judge_politeness, largest_shard
from pipeline.plan.paths import archive_name
from pipeline.plan.source import PlanSource, TellingSource
from pipeline.plan.spool import Group, Spool
from pipeline.records import FORMAT, ArchiveEntry, ManifestIndex, RunRecord, ShardEntry
from pipeline.rundir import RunDir, encode_record, freeze_config
from pipeline.settings import Archive, Config, Shards

# Seconds after which the folder of a plan that never ended is taken to be left behind.
UNFINISHED_AGE = 24 * 3600.0
# Lines of a shard that are too many to be held beside the next one's.
AHEAD_BYTES = 16 << 20


class Layout(NamedTuple):
    """One archive's cut: its items, their pieces (frames numbered from 0) and the frames in each shard."""

    name: str
    first_item: int
    items: int
    pieces: FrameCut
    shard_frames: list[int]


class Plan(NamedTuple):
    """What `medhaul plan` tells people. Files count what the source states, bytes what items are planned with.

    Of the bytes, `assumed_bytes` are those of the `unknown_sizes` items of which none are stated. `scratch_frame` and
    `scratch_shard`: the most that a frame and a shard need on scratch, with zips. `missing`: items that were asked for
    by name, or selected, and are not in the plan; `notes` say more.
    """

    run: RunDir | None
    reused: bool
    source: str
    release: str
    items: int
    files: int
    bytes: int
    licences: dict[str, tuple[int, int]]
    archives: list[ArchiveEntry]
    shards: int
    largest_shard: int
    scratch_frame: int
    scratch_shard: int
    unknown_sizes: int
    assumed_bytes: int
    manifest_sha256: str
    missing: int = 0
    notes: Sequence[str] = ()


def plan_layouts(
    groups: list[Group], sizes: array[int], files: array[int], archive: Archive, shards: Shards
) -> list[Layout]:
    """Cut groups into archives, frames and shards. Pure; frames do not depend on the settings of `shards`."""
    file_cost = int(shards.file_cost)
    cost_total = 0
    if shards.count:  # else nobody asks
        cost_total = sum(max(0, s) + max(0, f) * file_cost for s, f in zip(sizes, files, strict=True))
    layouts = []
    for group in groups:
        item_sizes = sizes[group.first : group.first + group.length]
        item_files = files[group.first : group.first + group.length]
        volumes = cut_volumes(item_sizes, archive.max_bytes)
        begin = 0
        for number, count in enumerate(volumes, start=1):
            pairs = list(zip(item_sizes[begin : begin + count], item_files[begin : begin + count], strict=True))
            pieces = cut_frames(pairs, archive.group_bytes, archive.cut_bytes, archive.cut_files)
            costs = frame_costs(pieces, pairs, file_cost)
            shard_count = count_shards(costs, shards.count, cost_total, shards.target_bytes)
            name = archive_name(archive.name, group.name) + (f"-{number:04d}" if len(volumes) > 1 else "")
            layouts.append(Layout(name, group.first + begin, count, pieces, cut_shards(costs, shard_count)))
            begin += count
    return layouts


def frame_costs(cut: FrameCut, sizes: Iterable[tuple[int, int]], file_cost: int) -> list[int]:
    """Cost of each frame in bytes: its bytes, and `file_cost` for every file. Pure."""
    costs = [0] * cut.frames
    for (size, files), first, count in zip(sizes, cut.first, cut.counts, strict=True):
        cost = max(size, 0) + max(files, 0) * file_cost
        if count == 1:
            costs[first] += cost + 1
            continue
        for frame in range(first, first + count):
            costs[frame] += 1 + cost // count
    return costs


def plan_run(config: Config, source: PlanSource, *, dry_run: bool, on_progress: Callable[[int], None]) -> Plan:
    """Plan a run: select, cut, and (unless `dry_run`) write `<storage.root>/<run.name>` whole or not at all.

    The same config and index plan the same manifest; a run directory that has it already is used as it is.

    Raises
    ------
    ConfigError
        When nothing is selected, or the run directory exists with another manifest.
    StorageError
        When shared storage is full or not writable.
    """
    spool = Spool()
    collecting = gc.isenabled()
    gc.disable()  # millions of small records and no cycles: the collector would only go through them again and again
    try:
        spool.fill(source, on_progress)
        layouts = plan_layouts(spool.groups, spool.sizes, spool.files, config.archive, config.shards)
        names = Counter(layout.name for layout in layouts)
        if double := [name for name, count in names.items() if count > 1]:
            raise ConfigError(
                f"two archives would be named {double[0]}", hint="change archive.name or archive.group_by"
            )
        root = Path(config.storage.root)
        with storage_errors(root):
            if not dry_run:
                root.mkdir(parents=True, exist_ok=True)
                remove_unfinished(root, config.run.name, time.time())
            folder = Path(tempfile.mkdtemp(prefix=f".{config.run.name}.", dir=None if dry_run else root))
        try:
            index = _write_manifest(folder, spool, layouts, source, config)
            write_atomic(folder / "citations.json", encode_record(source.citations()))
            telling = source if isinstance(source, TellingSource) else None
            if telling and not dry_run and not (root / config.run.name / "run.json").exists():
                for name, data in telling.extras().items():
                    write_atomic(folder / name, data)
            run, reused = (None, False) if dry_run else _publish(folder, config, index)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        spool.close()
        if collecting:
            gc.enable()
    scratch = [frame_scratch(layout.pieces, *_sizes(spool, layout)) for layout in layouts]
    return Plan(
        run=run,
        reused=reused,
        source=source.name,
        release=source.release,
        items=len(spool.sizes),
        files=sum(max(0, count) for count in spool.files),
        bytes=sum(spool.sizes),
        licences=dict(sorted(spool.licences.items(), key=lambda pair: -pair[1][0])),
        archives=index.archives,
        shards=len(index.shards),
        largest_shard=max(shard.bytes for shard in index.shards),
        scratch_frame=max(map(max, scratch)),
        scratch_shard=max(map(largest_shard, scratch, (layout.shard_frames for layout in layouts))),
        unknown_sizes=spool.unknown,
        assumed_bytes=spool.assumed,
        manifest_sha256=index.manifest_sha256,
        missing=telling.missing if telling else 0,
        notes=[
            *(telling.notes() if telling else ()),
            *judge_politeness(config, spool.from_nbia, len(index.shards)),
        ],
    )


def remove_unfinished(root: Path, name: str, now: float) -> None:
    """Remove what plans of that name left in `root` when they were killed, more than a day ago."""
    for folder in root.glob(f".{name}.*"):
        # The eight letters are tempfile's.
        if not re.fullmatch(r"[a-z0-9_]{8}", folder.name.removeprefix(f".{name}.")) or folder.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError):
            touched = max(path.lstat().st_mtime for path in (folder, *folder.glob("*")))
            if folder.is_dir() and now - touched > UNFINISHED_AGE:
                shutil.rmtree(folder, ignore_errors=True)


def _sizes(spool: Spool, layout: Layout) -> tuple[array[int], array[int]]:
    """Bytes and zips of an archive's items."""
    span = slice(layout.first_item, layout.first_item + layout.items)
    return spool.sizes[span], spool.zips[span]


def _write_manifest(
    folder: Path, spool: Spool, layouts: list[Layout], source: PlanSource, config: Config
) -> ManifestIndex:
    """Write the manifest and its index into `folder`."""
    shards: list[ShardEntry] = []
    archives: list[ArchiveEntry] = []
    header = {
        "medhaul": "manifest",
        "format": FORMAT,
        "source": source.name,
        "release": source.release,
        "columns": source.columns,
        "archive": freeze_config(config)["archive"],
    }
    with storage_errors(folder), (folder / "manifest.jsonl.zst").open("wb") as out:
        writer = ManifestWriter(out)
        # The settings that decide the archives' bytes are part of what the manifest's SHA-256 stands for.
        writer.write(writer.compress(msgspec.json.encode(header) + b"\n"))
        for made, data in _compress_ahead(_shard_lines(spool, layouts), writer.compress):
            offset, length, sha256 = writer.write(data)
            shards.append(
                ShardEntry(
                    shard=len(shards), archive=made.archive, offset=offset, length=length, sha256=sha256,
                    entries=made.entries, items=made.items, files=made.files, bytes=made.bytes,
                    first_frame=made.first_frame, frames=made.frames,
                )
            )  # fmt: skip
        out.flush()
        os.fsync(out.fileno())
    first_shard = 0
    for layout in layouts:
        mine = shards[first_shard : first_shard + len(layout.shard_frames)]
        archives.append(
            ArchiveEntry(
                name=layout.name, items=layout.items, files=sum(shard.files for shard in mine),
                bytes=sum(shard.bytes for shard in mine), first_shard=first_shard, shards=len(mine),
                first_frame=mine[0].first_frame, frames=sum(shard.frames for shard in mine),
            )
        )  # fmt: skip
        first_shard += len(mine)
    index = ManifestIndex(
        format=FORMAT, manifest_sha256=writer.sha256, source=source.name, release=source.release,
        columns=source.columns, archives=archives, shards=shards,
    )  # fmt: skip
    write_atomic(folder / "manifest.index.json", encode_record(index))
    return index


class _ShardFacts(NamedTuple):
    """What a shard holds, as its manifest entry tells."""

    archive: str
    entries: int
    items: int
    files: int
    bytes: int
    first_frame: int
    frames: int


def _shard_lines(spool: Spool, layouts: list[Layout]) -> Iterator[tuple[_ShardFacts, bytearray]]:
    """Yield every shard's facts and manifest lines, in order."""
    written = spool.lines()
    first_frame = 0
    for layout in layouts:
        pieces = _LayoutPieces(layout, spool, written, first_frame)
        begin = 0
        for frames in layout.shard_frames:
            lines, entries, items, files, size = pieces.take(begin + frames)
            yield _ShardFacts(layout.name, entries, items, files, size, first_frame + begin, frames), lines
            del lines  # a shard's may be 50 MB
            begin += frames
        first_frame += begin


def _compress_ahead(
    shards: Iterator[tuple[_ShardFacts, bytearray]], compress: Callable[[bytearray], bytes]
) -> Iterator[tuple[_ShardFacts, bytes]]:
    """Compress a shard's lines on a thread while the next one's are made, unless they are many; yield in order."""
    pending: tuple[_ShardFacts, Future[bytes]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="compress") as pool:
        for facts, lines in shards:
            large = len(lines) > AHEAD_BYTES
            before, pending = pending, (facts, pool.submit(compress, lines))
            del lines
            if before is not None:
                yield before[0], before[1].result()
            if large:
                yield pending[0], pending[1].result()
                pending = None
        if pending is not None:
            yield pending[0], pending[1].result()


class _LayoutPieces:
    """The manifest lines of one archive, handed out frame by frame."""

    def __init__(self, layout: Layout, spool: Spool, lines: Iterator[bytes], first_frame: int) -> None:
        self._cut = layout.pieces
        self._spool = spool
        self._lines = lines
        self._first_item = layout.first_item
        self._first_frame = first_frame
        self._item = -1  # the item whose line is at hand
        self._line = b""
        self._left = 0  # pieces of it that are still to come

    def take(self, end: int) -> tuple[bytearray, int, int, int, int]:
        """Lines up to frame `end`: (lines, their number, items that begin in them, planned files, planned bytes)."""
        taken = bytearray()  # not a list: half a million short lines take twice their bytes
        entries = items = files = size = 0
        firsts, counts, sizes, numbers = self._cut.first, self._cut.counts, self._spool.sizes, self._spool.files
        lines, first_frame, put = self._lines, self._first_frame, taken.extend
        while True:
            if not self._left:
                item = self._item + 1
                if item == len(firsts) or firsts[item] >= end:
                    break
                self._item, self._line = item, next(lines)
                items += 1
                if counts[item] == 1:  # nearly always
                    number = self._first_item + item
                    files += max(0, numbers[number])
                    size += max(0, sizes[number])
                    put(encode_entry(number, first_frame + firsts[item], 0, 1, self._line))
                    entries += 1
                    continue
                self._left = counts[item]
            count = counts[self._item]
            piece = count - self._left
            frame = firsts[self._item] + piece
            if frame >= end:
                break
            number = self._first_item + self._item
            files += share_of(max(0, numbers[number]), piece, count)
            size += share_of(max(0, sizes[number]), piece, count)
            put(encode_entry(number, first_frame + frame, piece, count, self._line))
            entries += 1
            self._left -= 1
        return taken, entries, items, files, size


def share_of(total: int, piece: int, pieces: int) -> int:
    """A piece's planned share of an item's total; the shares of all pieces add up to it. Pure."""
    return total * (piece + 1) // pieces - total * piece // pieces


def _publish(folder: Path, config: Config, index: ManifestIndex) -> tuple[RunDir, bool]:
    """Give the finished folder the run's name, or find that the run is there already."""
    run = RunDir(Path(config.storage.root) / config.run.name)
    record = RunRecord(
        format=FORMAT,
        name=config.run.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        medhaul=__version__,
        liblzma=liblzma_version(),
        python=platform.python_version(),
        source=index.source,
        release=index.release,
        manifest_sha256=index.manifest_sha256,
        items=sum(shard.items for shard in index.shards),
        files=sum(shard.files for shard in index.shards),
        bytes=sum(shard.bytes for shard in index.shards),
        shards=len(index.shards),
        config=freeze_config(config),
    )
    if run.run_json.exists():
        found = run.read_run()
        if found.manifest_sha256 != index.manifest_sha256:
            raise ConfigError(
                f"{run.path}: exists already, with another selection or cut "
                f"(manifest {found.manifest_sha256[:12]}, now {index.manifest_sha256[:12]})",
                hint="choose another run.name; to go on with that run: `medhaul resume RUN`",
            )
        if found.config != record.config:  # settings that leave the manifest as it is, such as task.memory
            write_atomic(run.run_json, encode_record(msgspec.structs.replace(found, config=record.config)))
        return run, True
    write_atomic(folder / "run.json", encode_record(record))
    with storage_errors(run.path):
        folder.chmod(0o777 & ~current_umask())
        try:
            folder.rename(run.path)
        except OSError as error:
            raise ConfigError(f"{run.path}: is in the way: {error.strerror}", hint="choose another run.name") from None
        fsync_folder(run.path.parent)
    return run, False
