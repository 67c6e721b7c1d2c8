"""Join one archive: frames are copied in manifest order, the index is made on the way, and all is read back."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import msgspec

from pipeline import __version__
from pipeline.archive.index import (
    FORMAT,
    ArchiveLine,
    FailedLine,
    FileLine,
    FrameLine,
    ItemLine,
    Line,
    content_only,
    write_lines,
)
from pipeline.archive.join import ArchiveWriter, CopiedFrame, read_back
from pipeline.archive.ratarmount import write_ratarmount_index
from pipeline.archive.xz import XzFormatError
from pipeline.atomic import atomic_file, current_umask, fsync_folder, storage_errors
from pipeline.errors import StorageError, UsageError
from pipeline.manifest import Manifest
from pipeline.model import Entry
from pipeline.records import ArchiveEntry, FailedItem, FrameRecord, Receipt
from pipeline.reduce.evidence import DamagedPartError, read_shard_index
from pipeline.reduce.finished import archive_file, index_file, ratarmount_file, read_finished
from pipeline.rundir import RunDir
from pipeline.settings import Config
from pipeline.units import render_size

logger = logging.getLogger("medhaul.reduce")


class Joined(NamedTuple):
    """A finished archive: its first index line, and the numbers of the items in it."""

    line: ArchiveLine
    failed: list[FailedLine]


class _Spool:
    """Index lines in a temporary file, to be read twice."""

    def __init__(self, folder: Path) -> None:
        # Beside the archive: a node's folder for temporary files is often in memory, and an index may be large.
        folder.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = tempfile.TemporaryFile(prefix=".medhaul-index-", dir=folder)  # noqa: SIM115 - closed by close()
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Line)

    def add(self, line: Line) -> None:
        self.file.write(self._encoder.encode(line) + b"\n")

    def lines(self) -> Iterator[Line]:
        self.file.seek(0)
        for data in self.file:
            yield self._decoder.decode(data)

    def close(self) -> None:
        self.file.close()


class ArchiveJoin:
    """Joins the shards of one archive.

    Parameters
    ----------
    receipts
        Of the archive's shards, in order; with `allow_partial`, of those that have one.
    missing
        Shards without a receipt: all their items are failed for want of it.
    duplicates
        Items that failed although their receipts say nothing of it.
    """

    def __init__(
        self,
        run: RunDir,
        config: Config,
        manifest: Manifest,
        archive: ArchiveEntry,
        receipts: list[Receipt],
        missing: list[int],
        duplicates: list[FailedItem],
        on_progress: Callable[[int], None],
    ) -> None:
        self.run = run
        self.config = config
        self.manifest = manifest
        self.archive = archive
        self.receipts = {receipt.shard: receipt for receipt in receipts}
        self.missing = set(missing)
        self.on_progress = on_progress
        self.counts = {"files": 0, "bytes": 0, "frames": 0, "items": 0}
        self.encoders: set[str] = set()  # the liblzma versions of the tasks, not of this job
        self.failed = self._collect_failures(duplicates)
        self._spool = _Spool(run.archives)
        self._line: ArchiveLine | None = None

    def _collect_failures(self, duplicates: list[FailedItem]) -> dict[int, FailedLine]:
        """Every failed item once, by number: a cut item fails whole when one of its pieces does."""
        failed: dict[int, FailedLine] = {}
        for shard in sorted(self.missing):
            for entry in self.manifest.entries(shard):
                failed.setdefault(
                    entry.number,
                    FailedLine(
                        id=entry.item.id, path=entry.item.path, reason="unavailable",
                        message=f"shard {shard} has no receipt",
                    ),
                )  # fmt: skip
        for items in (*(receipt.failed for receipt in self.receipts.values()), duplicates):
            for item in items:
                line = FailedLine(id=item.id, path=item.path, reason=item.reason, message=item.message)
                failed.setdefault(item.number, line)
        return dict(sorted(failed.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def write_archive(self) -> Joined:
        """Write the archive, read back and verified, under its final name.

        Raises
        ------
        DamagedPartError
            When a part's bytes are not those that its records describe.
        StorageError
            When shared storage is full.
        """
        target = archive_file(self.run, self.archive.name)
        needed = sum(receipt.packed_bytes for receipt in self.receipts.values())
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target.parent).free
        if free < needed * 1.01:
            raise StorageError(
                f"{target.parent}: {render_size(free)} free, {render_size(needed)} needed for {target.name}",
                hint="free space or quota there, then run reduce again",
            )
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            with storage_errors(target), os.fdopen(descriptor, "wb", buffering=0) as raw:
                line, frames = self._write(raw)
            self._line = msgspec.structs.replace(line, sha256=self._read_back(Path(temporary), frames))
            with storage_errors(target):
                known = read_finished(self.run, self.archive.name, self.manifest.sha256)
                taken = not Path(temporary).exists() or (known is not None and known.state == "complete")
                if taken:  # this process was stopped for so long that another reduce took over
                    raise UsageError(f"{target}: another reduce has taken over", hint="see `medhaul status RUN`")
                Path(temporary).chmod(0o666 & ~current_umask())
                index_file(self.run, self.archive.name).unlink(missing_ok=True)  # it vouches for the old archive
                os.replace(temporary, target)
                fsync_folder(target.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return Joined(self._line, list(self.failed.values()))

    def write_index(self) -> None:
        """Write the index beside the archive: last of all files, since it vouches for the rest."""
        assert self._line is not None
        lines = self._all_lines(self._line)
        write_ratarmount_index(lines, self._line.size, ratarmount_file(self.run, self.archive.name))
        with atomic_file(index_file(self.run, self.archive.name)) as out:
            write_lines(out, self._all_lines(self._line))

    def _write(self, raw: BinaryIO) -> tuple[ArchiveLine, list[CopiedFrame]]:
        writer = ArchiveWriter(raw)
        for frame, entries in self._frames():
            self._copy_frame(writer, frame, entries)
            self.on_progress(frame.length)
        line = self._head(writer.tar_bytes)
        with tempfile.TemporaryFile(prefix=".medhaul-catalogue-", dir=self.run.archives) as catalogue:
            write_lines(catalogue, (content_only(each) for each in self._all_lines(line)))
            size = catalogue.tell()
            catalogue.seek(0)
            writer.finish(self.archive.name, catalogue, size)
        os.fsync(raw.fileno())
        line = msgspec.structs.replace(
            line,
            state="partial" if self.failed else "complete",
            size=writer.size,
            manifest_sha256=self.manifest.sha256,
            run=self.run.path.name,
            source=self.manifest.index.source,
            release=self.manifest.index.release,
            medhaul=__version__,
        )
        return line, writer.frames

    def _frames(self) -> Iterator[tuple[FrameRecord, list[Entry]]]:
        """Frames to archive, in order, with their manifest entries."""
        for shard in range(self.archive.first_shard, self.archive.first_shard + self.archive.shards):
            receipt = self.receipts.get(shard)
            if receipt is None:
                continue
            by_frame: dict[int, list[Entry]] = {}
            for entry in self.manifest.entries(shard):
                by_frame.setdefault(entry.frame, []).append(entry)
            for record in read_shard_index(self.run, receipt):
                entries = by_frame[record.frame]
                whole = entries[0].pieces > 1 and entries[0].number in self.failed
                if record.length and not whole:
                    yield record, entries

    def _copy_frame(self, writer: ArchiveWriter, frame: FrameRecord, entries: list[Entry]) -> None:
        tar_offset = writer.tar_bytes
        part = self.run.parts_folder(self._shard_of(frame)) / frame.part
        with part.open("rb") as file:
            try:
                offset = writer.copy_frame(file.fileno(), frame.offset, frame.length, frame.sha256, frame.blocks)
            except XzFormatError as error:
                raise DamagedPartError(self._shard_of(frame), f"{part}: frame {frame.frame}: {error}") from None
        if writer.tar_bytes - tar_offset != frame.tar_bytes:
            raise DamagedPartError(
                self._shard_of(frame), f"{part}: frame {frame.frame}: blocks hold other bytes than recorded"
            )
        number = frame.frame - self.archive.first_frame
        self._spool.add(
            FrameLine(
                frame=number, offset=offset, length=frame.length, sha256=frame.sha256, tar_offset=tar_offset,
                tar_bytes=frame.tar_bytes, blocks=frame.blocks,
            )
        )  # fmt: skip
        self.counts["frames"] += 1
        self.encoders.add(frame.liblzma)
        for piece, entry in zip(frame.pieces, entries, strict=True):
            if piece.reason:
                continue
            item = entry.item
            self.counts["items"] += entry.piece == 0
            self.counts["files"] += len(piece.files)
            size = sum(file.size for file in piece.files)
            self.counts["bytes"] += size
            self._spool.add(
                ItemLine(
                    id=item.id, path=item.path, licence=item.licence, files=len(piece.files), bytes=size,
                    piece=entry.piece, pieces=entry.pieces,
                )
            )  # fmt: skip
            for each in piece.files:
                self._spool.add(
                    FileLine(
                        name=each.name, size=each.size, sha256=each.sha256, offset=tar_offset + each.offset,
                        key=each.key, evidence=each.evidence, route=each.route, etag=each.etag,
                    )
                )  # fmt: skip

    def _shard_of(self, frame: FrameRecord) -> int:
        return int(frame.part.partition(".")[0])

    def _head(self, tar_bytes: int) -> ArchiveLine:
        items = self.counts["items"] + len(self.failed)
        if items != self.archive.items:
            raise RuntimeError(
                f"{self.archive.name}: {self.counts['items']} items archived and {len(self.failed)} failed, "
                f"but the manifest has {self.archive.items}"
            )
        settings = self.config.archive
        return ArchiveLine(
            format=FORMAT, name=self.archive.name, items=items, failed=len(self.failed), files=self.counts["files"],
            bytes=self.counts["bytes"], frames=self.counts["frames"], tar_bytes=tar_bytes, path=settings.path,
            block_bytes=int(settings.block_bytes), group_bytes=int(settings.group_bytes),
            cut_bytes=int(settings.cut_bytes), cut_files=settings.cut_files, portable=settings.portable,
            liblzma=", ".join(sorted(self.encoders)), libzstd=libzstd_version(),
        )  # fmt: skip

    def _all_lines(self, line: ArchiveLine) -> Iterable[Line]:
        yield line
        yield from self.failed.values()
        yield from self._spool.lines()

    def _read_back(self, path: Path, frames: list[CopiedFrame]) -> str:
        """Read the archive from storage again, compare every frame with its record, and return the whole's SHA-256."""
        with storage_errors(path), path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from the page cache
            sha256, wrong = read_back(file, frames)
        for number, (frame, _) in enumerate(self._frames()):
            if number in wrong:
                self._blame(path, frame)
        return sha256

    def _blame(self, path: Path, frame: FrameRecord) -> None:
        """Say whether the part or the archive has a wrong frame. Raises `DamagedPartError` or `StorageError`."""
        part = self.run.parts_folder(self._shard_of(frame)) / frame.part
        with storage_errors(part), part.open("rb") as file:
            file.seek(frame.offset)
            _, wrong = read_back(file, [CopiedFrame(0, frame.length, frame.sha256)])
        if wrong:
            message = f"{part}: frame {frame.frame}: its bytes do not have the SHA-256 of its record"
            raise DamagedPartError(self._shard_of(frame), message)
        raise StorageError(
            f"{path}: reads back other bytes than were written", hint="the storage is faulty; run reduce again"
        )


def libzstd_version() -> str:
    """Version of the libzstd that compresses the catalogue."""
    import zstandard

    return ".".join(map(str, zstandard.ZSTD_VERSION))
