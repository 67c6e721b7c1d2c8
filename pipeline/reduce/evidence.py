"""What the receipts prove: which shards can be joined, and what is missing. Files are the truth, Slurm is not asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

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


def read_shard_index(run: RunDir, receipt: Receipt) -> Iterator[FrameRecord]:
    """Yield a shard's frames in order.

    Raises
    ------
    ConfigError
        When the file is not the one that the receipt names by SHA-256.
    """
    import zstandard

    path = run.parts_folder(receipt.shard) / receipt.index
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="check the folder's rights and mount") from None
    if hashlib.sha256(data).hexdigest() != receipt.index_sha256:
        # While the file is there, the shard counts as done.
        hint = f"remove {path.name}, then `medhaul resume {run.path}`"
        raise ConfigError(f"{path}: not the file that the receipt names", hint=hint)
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        text = reader.read()
    for line in text.splitlines():
        yield _RECORD.decode(line)


def find_duplicates(run: RunDir, manifest: Manifest, receipts: Sequence[Receipt]) -> Iterator[FailedItem]:
    """Yield the items that have two files of one name in different pieces: no task sees more than one piece.

    Reads the records of those shards only that hold a piece of a cut item; memory holds the names of one item. Raises
    `ConfigError`.
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
