"""What the receipts prove: which shards can be joined, and what is missing. Files are the truth, Slurm is not asked."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from pipeline.atomic import storage_errors
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest
from pipeline.records import FailedItem, FrameRecord, Receipt
from pipeline.rundir import RunDir

_RECORD = msgspec.json.Decoder(FrameRecord)


class ShardProof(NamedTuple):
    """A shard's receipt if it can be relied on, or the problem that it has."""

    shard: int
    receipt: Receipt | None
    problem: str


def prove_shard(run: RunDir, shard: int, manifest_sha256: str) -> ShardProof:
    """Check a shard's receipt and that all it names is there with the stated length."""
    try:
        receipt = run.read_receipt(shard, manifest_sha256)
    except ConfigError as error:
        return ShardProof(shard, None, str(error))
    if receipt is None:
        return ShardProof(shard, None, "no receipt: its task has not ended well")
    folder = run.parts_folder(shard)
    for use in receipt.parts:
        try:
            size = (folder / use.name).stat().st_size
        except FileNotFoundError:
            return ShardProof(shard, None, f"part {use.name} is missing")
        if size < use.length:
            return ShardProof(shard, None, f"part {use.name} has {size} bytes instead of {use.length}")
    if not (folder / receipt.index).is_file():
        return ShardProof(shard, None, f"shard index {receipt.index} is missing")
    return ShardProof(shard, receipt, "")


class DamagedPartError(ConfigError):
    """What a shard left on shared storage is not what its receipt vouches for; `shard` names it."""

    def __init__(self, shard: int, message: str) -> None:
        super().__init__(message, hint="`medhaul resume RUN` does the shard's damaged frames again")
        self.shard = shard


def read_shard_index(run: RunDir, receipt: Receipt) -> Iterator[FrameRecord]:
    """Yield a shard's frames in order, in bounded memory.

    Raises
    ------
    DamagedPartError
        When the file is not the one that the receipt names by SHA-256.
    StorageError
        When it cannot be read.
    """
    import zstandard

    path = run.parts_folder(receipt.shard) / receipt.index
    with storage_errors(path), path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != receipt.index_sha256:
            raise DamagedPartError(receipt.shard, f"{path}: not the file that the receipt names")
        file.seek(0)
        with zstandard.ZstdDecompressor().stream_reader(file) as reader:
            for line in io.BufferedReader(reader, 1 << 20):
                yield _RECORD.decode(line)


def set_aside_receipt(run: RunDir, shard: int) -> None:
    """Take a receipt out of use that vouches for damaged bytes, so that `resume` does the shard again.

    The journals stay: the next life re-reads every frame, keeps the sound ones and does the others again.
    """
    path = run.receipt(shard)
    with storage_errors(path):
        path.replace(path.with_suffix(".damaged"))


def find_duplicates(run: RunDir, manifest: Manifest, receipts: Sequence[Receipt]) -> Iterator[FailedItem]:
    """Yield the items that have two files of one name in different pieces: no task sees more than one piece.

    Reads the records of those shards only that hold a piece of a cut item; memory holds the names of one item. Raises
    `DamagedPartError`.
    """
    number, names, told = -1, set[str](), False
    for receipt in receipts:
        # An item that is cut over shards begins in the shard before the one where entries outnumber items.
        near = manifest.shards[receipt.shard : receipt.shard + 2]
        if all(shard.entries == shard.items for shard in near):
            continue
        items = {entry.number: entry.item for entry in manifest.entries(receipt.shard) if entry.pieces > 1}
        for record in read_shard_index(run, receipt):
            for piece in record.pieces:
                if piece.number not in items:
                    continue
                if piece.number != number:
                    number, names, told = piece.number, set(), False
                item = items[number]
                for file in piece.files:
                    if file.name in names and not told:
                        told = True
                        message = f"two files of the series are {file.name.removesuffix('.dcm')}"
                        yield FailedItem(number, piece.piece, item.id, item.path, "duplicate", message, transient=False)
                    names.add(file.name)
