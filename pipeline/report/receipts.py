"""What the receipts prove: which shards are done, which items failed, what is still to do."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError
from pipeline.records import ArchiveEntry, ManifestIndex, Receipt
from pipeline.reduce.finished import archive_file, read_finished
from pipeline.rundir import RunDir


class ReceiptBook:
    """All receipts of a run. Each file is read once; those that prove a shard complete never again.

    Attributes
    ----------
    receipts
        The sound ones, by shard.
    damaged
        Why a receipt file proves nothing, by shard.
    """

    def __init__(self, run: RunDir, manifest_sha256: str) -> None:
        self._run = run
        self._manifest_sha256 = manifest_sha256
        self.receipts: dict[int, Receipt] = {}
        self.damaged: dict[int, str] = {}

    def refresh(self) -> None:
        """Read what is new or may have changed. One directory listing per thousand shards, one open per receipt."""
        kept = {shard: receipt for shard, receipt in self.receipts.items() if receipt.state == "complete"}
        there = self._run.receipt_shards()
        self.receipts = {shard: receipt for shard, receipt in kept.items() if shard in there}
        self.damaged = {}
        for shard in sorted(there - self.receipts.keys()):
            try:
                receipt = self._run.read_receipt(shard, self._manifest_sha256)
            except ConfigError as error:
                self.damaged[shard] = str(error)
                continue
            if receipt is not None:
                self.receipts[shard] = receipt


class Todo(msgspec.Struct, frozen=True):
    """What a new attempt has to do: shards, each with the reason, and whether a reduce is due."""

    shards: dict[int, str]
    reduce: bool


def choose_todo(
    index: ManifestIndex,
    receipts: Mapping[int, Receipt],
    damaged: Mapping[int, str],
    sizes: Mapping[str, int],
    finished: Collection[str],
) -> Todo:
    """Choose the shards without proof that they are good, and say whether a reduce is due. Pure.

    Parameters
    ----------
    sizes
        Bytes of each file in the run's `parts`, by name.
    finished
        Names of the archives that are there, complete and verified. Nothing of theirs is done again; a part of theirs
        that is left wants the reduce that was interrupted before it removed it.
    """
    shards = {}
    for entry in index.shards:
        if entry.archive not in finished:
            why = shard_problem(receipts.get(entry.shard), damaged.get(entry.shard, ""), sizes)
            if why:
                shards[entry.shard] = why
    waiting = any(archive.name not in finished or _parts_left(archive, receipts, sizes) for archive in index.archives)
    return Todo(shards, bool(shards) or waiting)


def shard_problem(receipt: Receipt | None, damage: str, sizes: Mapping[str, int]) -> str:
    """Say why a shard must be done (again); empty when its receipt is good and all that it names is there. Pure."""
    if damage:
        return f"damaged receipt: {damage}"
    if receipt is None:
        return "no receipt"
    if receipt.state != "complete":
        return f"{len(receipt.failed)} failed"
    for part in receipt.parts:
        size = sizes.get(part.name)
        if size is None:
            return f"part {part.name} is missing"
        if size < part.length:
            return f"part {part.name} has {size} bytes, not {part.length}"
    return "" if receipt.index in sizes else f"shard index {receipt.index} is missing"


def find_problems(
    index: ManifestIndex,
    receipts: Mapping[int, Receipt],
    damaged: Mapping[int, str],
    sizes: Mapping[str, int],
    finished: Collection[str],
) -> dict[int, str]:
    """Say of which shards the receipt proves nothing, and why: it is damaged, or what it names is not there. Pure.

    Parameters as of `choose_todo`: receipts of finished archives need no parts.
    """
    problems = {shard: f"damaged receipt: {damage}" for shard, damage in damaged.items()}
    for entry in index.shards:
        receipt = receipts.get(entry.shard)
        if receipt is not None and receipt.state == "complete" and entry.archive not in finished:
            why = shard_problem(receipt, "", sizes)
            if why:
                problems[entry.shard] = why
    return problems


def _parts_left(archive: ArchiveEntry, receipts: Mapping[int, Receipt], sizes: Mapping[str, int]) -> bool:
    shards = range(archive.first_shard, archive.first_shard + archive.shards)
    return any(part.name in sizes for shard in shards if shard in receipts for part in receipts[shard].parts)


def read_part_sizes(run: RunDir) -> dict[str, int]:
    """Bytes of every part and shard index of the run, by name."""
    sizes: dict[str, int] = {}
    for group in _entries(run.path / "parts"):
        if group.is_dir():
            sizes |= {
                entry.name: entry.stat().st_size
                for entry in _entries(Path(group.path))
                if entry.name.endswith((".part", ".index.zst"))
            }
    return sizes


class FoundArchive(msgspec.Struct, frozen=True):
    """An archive that is there as its index says; `complete` or `partial`."""

    path: Path
    bytes: int
    state: str


def find_archives(run: RunDir, index: ManifestIndex) -> dict[str, FoundArchive]:
    """The archives that are there, by name: two file opens for each, or none when there is no archive at all."""
    if not run.archives.is_dir():
        return {}
    lines = {archive.name: read_finished(run, archive.name, index.manifest_sha256) for archive in index.archives}
    return {
        name: FoundArchive(archive_file(run, name), line.size, line.state)
        for name, line in lines.items()
        if line is not None
    }


def read_todo(run: RunDir, index: ManifestIndex, book: ReceiptBook) -> Todo:
    """Read what `choose_todo` decides from, except the receipts, which `book` has read."""
    finished = [name for name, archive in find_archives(run, index).items() if archive.state == "complete"]
    return choose_todo(index, book.receipts, book.damaged, read_part_sizes(run), finished)


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
