"""The scratch cache: a raw file is used again only if it still is what was verified."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.model import RawFile
from pipeline.task.cache import FOLDER, ScratchCache, remove_cache


def put(cache: ScratchCache, key: str, data: bytes, frame: int = 0) -> RawFile:
    """A verified file in the cache."""
    path = cache.frame_folder(frame) / hashlib.sha256(key.encode()).hexdigest()[:16]
    path.write_bytes(data)
    file = RawFile(
        name="1.2.dcm", local=str(path), size=len(data), sha256=hashlib.sha256(data).hexdigest(), md5="", key=key,
        evidence=("md5",), route="r", chain="A0",
    )  # fmt: skip
    cache.add(key, file)
    return file


def reopen(base: Path) -> ScratchCache:
    """The cache as a later life of the shard finds it."""
    return ScratchCache(base, "s")


def test_a_later_life_finds_what_was_verified(tmp_path: Path) -> None:
    """Files survive a life that was told to stop, with all that is known of them."""
    cache = reopen(tmp_path)
    files = {key: put(cache, key, key.encode() * 9) for key in ("a", "b", "é\n")}
    cache.close(keep=True)
    later = reopen(tmp_path)
    assert {key: later.find(key) for key in files} == files
    assert later.find("c") is None
    later.close(keep=False)


@pytest.mark.parametrize("change", ["flip", "longer", "shorter", "gone", "empty"])
def test_a_changed_file_is_not_used_and_not_kept(tmp_path: Path, change: str) -> None:
    """Every use reads the file again; one that changed is forgotten for good."""
    cache = reopen(tmp_path)
    path = Path(put(cache, "a", b"0123456789").local)
    good = put(cache, "b", b"other")
    cache.close(keep=True)
    if change == "gone":
        path.unlink()
    else:
        changed = {"flip": b"0123456788", "longer": b"0123456789x", "shorter": b"012345678", "empty": b""}
        path.write_bytes(changed[change])
    later = reopen(tmp_path)
    assert later.find("a") is None
    assert later.find("a") is None
    assert not path.exists()
    assert later.find("b") == good


def test_the_log_torn_at_any_byte_loses_only_its_last_line(tmp_path: Path) -> None:
    """A kill while the log is written costs at most the file that was being noted, and later notes are whole."""
    cache = reopen(tmp_path)
    put(cache, "a", b"A")
    put(cache, "b", b"B")
    cache.close(keep=True)
    log = cache.folder / "verified.jsonl"
    data = log.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(len(data) + 1):
        log.write_bytes(data[:cut])
        later = reopen(tmp_path)
        known = {key for key in ("a", "b") if later.find(key)}
        assert known == {key for key, end in (("a", first), ("b", len(data))) if cut >= end - 1}
        put(later, "c", b"C")
        later.close(keep=True)
        again = reopen(tmp_path)
        assert {key for key in ("a", "b", "c") if again.find(key)} == known | {"c"}
        again.close(keep=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80) | st.text().map(lambda text: b'{"key":"' + text.encode("utf-8", "surrogatepass")))
def test_junk_in_the_log_is_passed_over(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Whatever a damaged disk left in the log, the good lines count and nothing else does."""
    base = tmp_path_factory.mktemp("c")
    cache = reopen(base)
    put(cache, "a", b"A")
    cache.close(keep=True)
    with (cache.folder / "verified.jsonl").open("ab") as log:
        log.write(junk + b"\n" + b'{"key":"\xff\xfe","file":{"name":"\xff"}}\n' + b"[" * 20_000 + b"\n")
    later = reopen(base)
    assert later.find("a") is not None
    assert later.find("\xff") is None
    later.close(keep=False)


def test_forgetting_and_dropping_delete(tmp_path: Path) -> None:
    """What is taken out is gone from scratch, in this life and the next."""
    cache = reopen(tmp_path)
    one, two, three = put(cache, "a", b"A", 1), put(cache, "b", b"B", 1), put(cache, "c", b"C", 2)
    cache.forget("a")
    cache.forget("nothing")
    assert not Path(one.local).exists()
    cache.drop_frame(1, ["a", "b"])
    assert not Path(two.local).exists()
    assert cache.find("b") is None
    cache.close(keep=True)
    later = reopen(tmp_path)
    assert [later.find(key) for key in ("a", "b", "c")] == [None, None, three]


@pytest.mark.parametrize("keep", [True, False])
def test_the_end_keeps_or_deletes(tmp_path: Path, *, keep: bool) -> None:
    """A finished shard leaves nothing on scratch; an interrupted one leaves its files."""
    cache = reopen(tmp_path)
    put(cache, "a", b"A")
    cache.close(keep=keep)
    assert cache.folder.exists() == keep
    remove_cache(tmp_path, "s")
    assert list(tmp_path.iterdir()) == []
    remove_cache(tmp_path, "s")


ROOT = Path(__file__).parents[2]
# A process that takes the cache, says which folder it got, and ends without a word when its standard input ends.
OTHER = """
import os, sys
from pathlib import Path
from pipeline.task.cache import ScratchCache
cache = ScratchCache(Path(sys.argv[1]), "s")
print(cache.folder.name, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_two_living_processes_never_share_a_folder(tmp_path: Path) -> None:
    """While one life has the folder another gets its own; what a dead one left there is removed."""
    first = reopen(tmp_path)
    file = put(first, "a", b"A")
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        name = other.stdout.readline().strip()
        assert name not in {"", first.folder.name}
        assert first.find("a") == file
        first.close(keep=True)
        meanwhile = reopen(tmp_path)
        assert meanwhile.folder == first.folder
        assert (tmp_path / name).exists()
        meanwhile.close(keep=True)
        other.communicate("")
    later = reopen(tmp_path)
    assert later.find("a") == file
    assert not (tmp_path / name).exists()


def test_a_folder_of_its_own_number_may_be_taken_too(tmp_path: Path) -> None:
    """Whoever clears up may hold even the folder with this process's number for a moment: then it is another one."""
    first, own = reopen(tmp_path), reopen(tmp_path)
    assert own.folder.name == f"s.{os.getpid()}"
    third = reopen(tmp_path)
    assert len({cache.folder for cache in (first, own, third)}) == 3
    assert FOLDER.fullmatch(f"{'a' * 12}-{'0' * 6}{third.folder.name.removeprefix('s')}")
    for cache in (first, own, third):
        assert cache.folder.exists()
        cache.close(keep=False)


def test_what_is_in_use_is_not_removed(tmp_path: Path) -> None:
    """A life that ends beside others removes what the dead left, and nothing of the living."""
    first, own = reopen(tmp_path), reopen(tmp_path)
    file = put(first, "a", b"A")
    (tmp_path / "s.1").mkdir()
    remove_cache(tmp_path, "s")
    assert {path.name for path in tmp_path.iterdir()} == {first.folder.name, own.folder.name}
    assert first.find("a") == file


def test_other_shards_are_left_alone(tmp_path: Path) -> None:
    """One scratch folder serves many shards of a node."""
    one, two = ScratchCache(tmp_path, "x-000001"), ScratchCache(tmp_path, "x-000010")
    file = put(two, "a", b"A")
    two.close(keep=True)
    one.close(keep=False)
    remove_cache(tmp_path, "x-000001")
    later = ScratchCache(tmp_path, "x-000010")
    assert later.find("a") == file


def test_folders_are_private(tmp_path: Path) -> None:
    """Images lie where other users of the node cannot read them."""
    cache = ScratchCache(tmp_path / "base", "s")
    assert (tmp_path / "base").stat().st_mode & 0o077 == 0
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_a_full_scratch_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the task, since no other item would fare better."""
    cache = reopen(tmp_path)
    file = put(cache, "a", b"A")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match="No space left"):
        cache.frame_folder(5)
    with pytest.raises(StorageError, match="No space left"):
        ScratchCache(tmp_path / "x", "s")
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_log", type("Full", (), {"write": full, "flush": full})())
    with pytest.raises(StorageError, match="No space left"):
        cache.add("b", file)
