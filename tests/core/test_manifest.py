"""The manifest: a task reads its own bytes only, and no byte that was not planned is ever believed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from run_kit import make_item, make_plan

from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, check_whole, encode_entry, file_sha256
from pipeline.model import Entry
from pipeline.rundir import RunDir, encode_record


def planned(root: Path, count: int = 12, first: int = 0) -> RunDir:
    """A run of `count` items in four shards."""
    items = [make_item(n, files=3, size=6000) for n in range(first, first + count)]
    run = make_plan(root, items, shards={"count": 4}).run
    assert run is not None
    return run


def test_shards_hold_all_entries_in_order(tmp_path: Path) -> None:
    """One shard after the other gives the whole manifest; each knows its archive."""
    manifest = Manifest(planned(tmp_path))
    numbers = [(shard, entry.number) for shard, entry in manifest.all_entries()]
    assert [number for _, number in numbers] == list(range(12))
    assert sorted({shard for shard, _ in numbers}) == [0, 1, 2, 3]
    assert [(s, e) for s, e in manifest.all_entries([2])] == [(2, entry) for entry in manifest.entries(2)]
    assert all(manifest.shards[shard].archive == "c" for shard in range(4))


@pytest.mark.parametrize("shard", range(4))
def test_a_shard_reads_only_its_own_bytes(tmp_path: Path, shard: int) -> None:
    """With every byte outside the shard's own destroyed, or cut off, its entries are the same."""
    run = planned(tmp_path)
    manifest = Manifest(run)
    wanted = manifest.entries(shard)
    place = manifest.shards[shard]
    data = run.manifest.read_bytes()
    own = data[place.offset : place.offset + place.length]
    run.manifest.write_bytes(b"\xaa" * place.offset + own)
    assert Manifest(run).entries(shard) == wanted
    for other in set(range(4)) - {shard}:
        with pytest.raises(ConfigError, match=f"manifest.jsonl.zst: the bytes of shard {other} are not those"):
            manifest.entries(other)


@pytest.mark.parametrize("shard", range(4))
def test_any_changed_byte_of_a_shard_is_noticed(tmp_path: Path, shard: int) -> None:
    """Each byte of a shard's part of the manifest counts, and so does its end."""
    run = planned(tmp_path)
    manifest = Manifest(run)
    place = manifest.shards[shard]
    data = run.manifest.read_bytes()
    for position in range(place.offset, place.offset + place.length):
        changed = bytearray(data)
        changed[position] ^= 0x41
        run.manifest.write_bytes(changed)
        with pytest.raises(ConfigError, match=r"manifest\.jsonl\.zst"):
            manifest.entries(shard)
    for end in range(place.offset, place.offset + place.length, 7):
        run.manifest.write_bytes(data[:end])
        with pytest.raises(ConfigError, match=r"manifest\.jsonl\.zst"):
            manifest.entries(shard)


@pytest.mark.parametrize("shard", [-1, 4, 10**9])
def test_a_shard_that_does_not_exist_is_told_the_range(tmp_path: Path, shard: int) -> None:
    """The error says which numbers there are."""
    with pytest.raises(ConfigError, match=f"no shard {shard}") as caught:
        Manifest(planned(tmp_path)).entries(shard)
    assert "0 to 3" in caught.value.hint


def test_the_manifest_of_another_run_is_refused(tmp_path: Path) -> None:
    """Mixed files are noticed, by the shard's hash and by that of the whole."""
    one, two = planned(tmp_path / "1"), planned(tmp_path / "2", first=50)
    one.manifest.write_bytes(two.manifest.read_bytes())
    for shard in range(4):
        with pytest.raises(ConfigError, match=str(one.manifest)):
            Manifest(one).entries(shard)
    with pytest.raises(ConfigError, match=str(one.manifest)) as caught:
        check_whole(one)
    assert "run.name" in caught.value.hint


def test_a_missing_manifest_is_told(tmp_path: Path) -> None:
    """Without the file, reading a shard and checking the whole both name it."""
    run = planned(tmp_path)
    manifest = Manifest(run)
    run.manifest.unlink()
    with pytest.raises(ConfigError, match=r"manifest\.jsonl\.zst: No such file"):
        manifest.entries(0)
    with pytest.raises(ConfigError, match=r"manifest\.jsonl\.zst: No such file"):
        check_whole(run)


@pytest.mark.parametrize(
    "change", [{"offset": -5}, {"offset": 10**18}, {"length": -1}, {"length": 10**18}, {"length": 0}]
)
def test_a_damaged_index_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    """Impossible places in the index do not lead to reads of other bytes, of all memory, or to a fault."""
    run = planned(tmp_path)
    index = run.read_manifest_index()
    index.shards[1] = msgspec.structs.replace(index.shards[1], **change)
    run.manifest_index.write_bytes(encode_record(index))
    with pytest.raises(ConfigError, match="manifest"):
        Manifest(run).entries(1)


def test_the_whole_is_checked_to_the_byte(tmp_path: Path) -> None:
    """A good manifest passes; one byte more, fewer or other does not."""
    run = planned(tmp_path)
    check_whole(run)
    assert file_sha256(run.manifest) == run.read_run().manifest_sha256
    data = run.manifest.read_bytes()
    for bad in (data + b"\0", data[:-1], b"", bytes([data[0] ^ 1]) + data[1:]):
        run.manifest.write_bytes(bad)
        with pytest.raises(ConfigError, match="SHA-256 is"):
            check_whole(run)


def test_a_line_is_an_entry() -> None:
    """The line that is put together from bytes is what msgspec would write."""
    item = make_item(3, id='q"\\\n\u2028é', licence="\x00\x85")
    line = encode_entry(7, 8, 1, 2, msgspec.json.encode(item))
    assert line.count(b"\n") == 1
    entry = msgspec.json.decode(line, type=Entry)
    assert msgspec.json.encode(entry) == msgspec.json.encode(Entry(7, 8, 1, 2, item))
