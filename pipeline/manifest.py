"""The manifest: JSON lines in zstandard, one zstd frame per shard, so that a task reads only its own bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from pipeline.errors import ConfigError
from pipeline.model import Entry
from pipeline.records import ManifestIndex, ShardEntry
from pipeline.rundir import RunDir

_DECODER = msgspec.json.Decoder(Entry)
HINT = "the run's files are damaged or mixed with another run's; plan anew under another run.name"


class ManifestWriter:
    """Writes the manifest to a binary file, shard after shard."""

    def __init__(self, out: BinaryIO) -> None:
        import zstandard

        self._out = out
        self._compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        self._digest = hashlib.sha256()
        self._offset = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def compress(self, lines: bytes | bytearray) -> bytes:
        """One shard's lines as a zstd frame; releases the interpreter lock. Not for several threads at once."""
        return self._compressor.compress(lines)

    def write(self, data: bytes) -> tuple[int, int, str]:
        """Append one shard's zstd frame; return its (offset, length, SHA-256)."""
        self._out.write(data)
        self._digest.update(data)
        offset = self._offset
        self._offset += len(data)
        return offset, len(data), hashlib.sha256(data).hexdigest()


def encode_entry(number: int, frame: int, piece: int, pieces: int, item: bytes) -> bytes:
    """A manifest line from an item that is JSON already."""
    return b'{"number":%d,"frame":%d,"piece":%d,"pieces":%d,"item":%b}\n' % (number, frame, piece, pieces, item)


class Manifest:
    """A run's manifest, read shard by shard."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.index: ManifestIndex = run.read_manifest_index()

    @property
    def sha256(self) -> str:
        return self.index.manifest_sha256

    @property
    def shards(self) -> list[ShardEntry]:
        return self.index.shards

    def entries(self, shard: int) -> list[Entry]:
        """A shard's entries, in order.

        Raises
        ------
        ConfigError
            When the shard does not exist, or its bytes are not those that were planned.
        """
        import zstandard

        if not 0 <= shard < len(self.shards):
            raise ConfigError(
                f"{self.run.path}: no shard {shard}", hint=f"shards are numbered 0 to {len(self.shards) - 1}"
            )
        entry = self.shards[shard]
        path = self.run.manifest
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, entry.offset))
                data = file.read(max(0, min(entry.length, size)))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", hint=HINT) from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ConfigError(f"{path}: the bytes of shard {shard} are not those that were planned", hint=HINT)
        lines = zstandard.ZstdDecompressor().decompress(data).splitlines()
        try:
            return [_DECODER.decode(line) for line in lines]
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: shard {shard}: {error}", hint=HINT) from None

    def all_entries(self, shards: Iterable[int] | None = None) -> Iterator[tuple[int, Entry]]:
        """Yield (shard, entry) of the given shards, or of all, in order, one shard in memory at a time."""
        for shard in range(len(self.shards)) if shards is None else shards:
            for entry in self.entries(shard):
                yield shard, entry


def check_whole(run: RunDir) -> None:
    """Compare the whole manifest with the SHA-256 that is the run's identity. Raises `ConfigError`."""
    expected = run.read_run().manifest_sha256
    try:
        found = file_sha256(run.manifest)
    except OSError as error:
        raise ConfigError(f"{run.manifest}: {error.strerror}", hint=HINT) from None
    if found != expected:
        raise ConfigError(f"{run.manifest}: SHA-256 is {found[:12]}, but run.json names {expected[:12]}", hint=HINT)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
