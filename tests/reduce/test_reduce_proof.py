"""Reduce joins only what is proven, and says what is missing and how to go on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from reduce_kit import left, reduce, results
from run_kit import MadeRun

from pipeline.errors import ConfigError, ItemsFailedError, StorageError
from pipeline.manifest import Manifest
from pipeline.report.receipts import ReceiptBook, read_todo
from pipeline.rundir import RunDir


def flip(path: Path, position: int) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit_receipt(run: RunDir, shard: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a receipt's JSON."""
    data = msgspec.json.decode(run.receipt(shard).read_bytes())
    change(data)
    run.receipt(shard).write_bytes(msgspec.json.encode(data))


def part_of(run: RunDir, shard: int) -> Path:
    """A shard's part."""
    return run.parts_folder(shard) / run.part_name(shard, 0)


def index_of(run: RunDir, shard: int) -> Path:
    """A shard's index."""
    return run.parts_folder(shard) / run.shard_index_name(shard, 0)


DAMAGE: dict[str, tuple[Callable[[RunDir], Any], str]] = {
    "receipt missing": (lambda run: run.receipt(2).unlink(), "shard 2: no receipt"),
    "receipt empty": (lambda run: run.receipt(2).write_bytes(b""), "000002.json"),
    "receipt cut": (lambda run: run.receipt(2).write_bytes(run.receipt(2).read_bytes()[:-9]), "000002.json"),
    "receipt binary": (lambda run: run.receipt(2).write_bytes(b"\xff" * 99), "000002.json"),
    "receipt is a folder": (lambda run: (run.receipt(2).unlink(), run.receipt(2).mkdir()), "000002.json"),
    "receipt of another shard": (lambda run: shutil.copy(run.receipt(1), run.receipt(2)), "of another shard"),
    "receipt of another manifest": (
        lambda run: edit_receipt(run, 2, lambda r: r.update(manifest_sha256="0" * 64)),
        "of another shard or run",
    ),
    "receipt of another format": (lambda run: edit_receipt(run, 2, lambda r: r.update(format=2)), "format 2"),
    "receipt without parts": (lambda run: edit_receipt(run, 2, lambda r: r.pop("parts")), "000002.json"),
    "part missing": (lambda run: part_of(run, 2).unlink(), "part 000002.0.part is missing"),
    "part shorter": (lambda run: os.truncate(part_of(run, 2), part_of(run, 2).stat().st_size - 1), "bytes instead of"),
    "part empty": (lambda run: os.truncate(part_of(run, 2), 0), "has 0 bytes instead of"),
    "part is a folder": (lambda run: (part_of(run, 2).unlink(), part_of(run, 2).mkdir()), "000002.0.part"),
    "part's first byte": (lambda run: flip(part_of(run, 2), 0), "000002.0.part"),
    "part's last byte": (lambda run: flip(part_of(run, 2), -1), "000002.0.part"),
    "index missing": (lambda run: index_of(run, 2).unlink(), "shard index 000002.0.index.zst is missing"),
    "index flipped": (lambda run: flip(index_of(run, 2), 30), "000002.0.index.zst"),
    "index cut": (lambda run: os.truncate(index_of(run, 2), 40), "000002.0.index.zst"),
    "index of another shard": (lambda run: shutil.copy(index_of(run, 1), index_of(run, 2)), "000002.0.index.zst"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_proven_is_not_joined(copy: MadeRun, undisturbed: dict[str, bytes], damage: str) -> None:
    """The reason and the way on are told, nothing is removed, and the shard done again gives the bytes as ever."""
    change, said = DAMAGE[damage]
    change(copy.run)
    before = left(copy.run)
    with pytest.raises(ItemsFailedError) as caught:
        reduce(copy.run)
    assert said in str(caught.value)
    assert "not joined, since incomplete: c\n" in str(caught.value)
    assert f"medhaul resume {copy.run.path}" in caught.value.hint
    assert results(copy.run) == {}
    assert left(copy.run) == before
    for path in (copy.run.receipt(2), part_of(copy.run, 2)):
        if path.is_dir():
            path.rmdir()
    manifest = Manifest(copy.run)
    book = ReceiptBook(copy.run, manifest.sha256)
    book.refresh()
    assert list(read_todo(copy.run, manifest.index, book).shards) == [2]
    copy.do(2)
    reduce(copy.run)
    assert results(copy.run)["c.tar.xz"] == undisturbed["c.tar.xz"]
    assert left(copy.run) == []


def test_any_changed_byte_of_a_receipt_is_refused_or_harmless(copy: MadeRun, undisturbed: dict[str, bytes]) -> None:
    """Whatever flips in a receipt, either nothing is joined, or the archive is the very same."""
    path = copy.run.receipt(1)
    data = path.read_bytes()
    parts = {name: (copy.run.parts_folder(0) / name).read_bytes() for name in left(copy.run)}
    joined = 0
    for position in range(0, len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            reduce(copy.run)
        except (ItemsFailedError, ConfigError, StorageError):
            assert results(copy.run) == {}
            continue
        joined += 1
        assert results(copy.run)["c.tar.xz"] == undisturbed["c.tar.xz"]
        shutil.rmtree(copy.run.archives)
        for name, content in parts.items():
            (copy.run.parts_folder(0) / name).write_bytes(content)
    assert joined


def test_a_damaged_manifest_stops_before_anything(copy: MadeRun) -> None:
    """The manifest is checked as a whole first."""
    flip(copy.run.manifest, -1)
    with pytest.raises(ConfigError, match=r"manifest\.jsonl\.zst"):
        reduce(copy.run)
    assert results(copy.run) == {}


def test_many_problems_are_listed_briefly(tmp_path: Path) -> None:
    """Twenty lines, and how to see the rest."""
    made = MadeRun(tmp_path, [4] * 30, shards={"count": 30})
    with pytest.raises(ItemsFailedError) as caught:
        reduce(made.run)
    text = str(caught.value)
    assert text.count("no receipt") == 20
    assert f"... and {made.shards - 20} more: medhaul failed {made.run.path}" in text
    assert "--allow-partial" in caught.value.hint
