"""What the receipts prove: which shards can be joined, and what is missing. Files are the truth, Slurm is not asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from pipeline.errors import ConfigError
from pipeline.records import FrameRecord, Receipt
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
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != receipt.index_sha256:
        raise ConfigError(f"{path}: not the file that the receipt names", hint=f"medhaul resume {run.path}")
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        text = reader.read()
    for line in text.splitlines():
        yield _RECORD.decode(line)
