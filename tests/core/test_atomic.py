"""Atomic files: wholly there or not at all, whoever reads and whatever goes wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from run_kit import DONE, KILLED, run_and_kill

from pipeline import atomic
from pipeline.atomic import atomic_file, current_umask, storage_errors, write_atomic
from pipeline.errors import StorageError


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_last_byte(tmp_path: Path) -> None:
    """Under its name nothing is seen until the block has ended; then all of it, and nothing else."""
    path = tmp_path / "a" / "b" / "x.json"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with atomic_file(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["x.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    """Also an interrupt removes the temporary file, and passes through."""
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_failing_disk_is_a_storage_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Whichever call fails, the old file stays and the error says where and what to do."""
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, step, fail)
    with pytest.raises(StorageError, match=f"{path}: {os.strerror(number)}") as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_other_errors_pass_through_as_they_are(tmp_path: Path) -> None:
    """What is not about storage is not hidden as such."""
    with pytest.raises(OSError, match="Connection reset") as caught, storage_errors(tmp_path):
        raise OSError(errno.ECONNRESET, "Connection reset")
    assert not isinstance(caught.value, StorageError)


@pytest.mark.parametrize("name", ["file/x", "x" * 300, "loop/x"])
def test_a_path_that_cannot_be_is_a_storage_error(tmp_path: Path, name: str) -> None:
    """A file where a folder should be, a name too long, a loop of links: told, not a fault."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError):
        write_atomic(tmp_path / name, b"x")


def test_data_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fsync of the file, then rename, then fsync of the folder; without `durable` no fsync at all."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(atomic.os, name, lambda *a, _n=name, _r=real: (calls.append(_n), _r(*a))[1])
    write_atomic(tmp_path / "x", b"1")
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    write_atomic(tmp_path / "x", b"2", durable=False)
    assert calls == ["replace"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    """A temporary file is private, the finished one is as the user wants files to be."""
    old = os.umask(umask)
    try:
        assert current_umask() == umask
        write_atomic(tmp_path / "x", b"1")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644 & ~umask


def test_a_kill_at_any_line_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """After SIGKILL anywhere the name holds one of the two contents, whole."""
    code, lines = run_and_kill(lambda: write_atomic(tmp_path / "y", b"n" * 9000), 0)
    assert code == DONE
    seen = set()
    for at in range(1, lines):
        path = tmp_path / f"x{at}"
        write_atomic(path, b"o" * 9000)
        assert run_and_kill(lambda path=path: write_atomic(path, b"n" * 9000), at)[0] == KILLED
        assert path.read_bytes() in {b"o" * 9000, b"n" * 9000}
        seen.add(path.read_bytes())
    assert len(seen) == 2


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    """Should two processes ever write one file, it holds what one of them wrote."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(20):
                write_atomic(tmp_path / "x", bytes([number]) * 5000, durable=False)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    data = (tmp_path / "x").read_bytes()
    assert len(data) == 5000
    assert len(set(data)) == 1
    assert names(tmp_path) == ["x"]
