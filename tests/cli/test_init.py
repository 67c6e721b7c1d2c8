"""`medhaul init`: all that is needed to start without a checkout, and nothing of the user's overwritten."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import init as init_module
from pipeline.cli.init import find_binaries, package_files, render_commands, write_files
from pipeline.cli.main import COMMANDS, cli
from pipeline.config import read_config
from pipeline.errors import StorageError, UsageError

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
HOSTILE = 'it\'s a "run" \u2013 na\u00efve $HOME `x` {0} %s *\nnew line'


def call(*words: object) -> str:
    """Call the command and return what it printed; what it raised is raised."""
    done = CliRunner().invoke(cli, ["init", *(str(word) for word in words)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> content of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def originals() -> dict[str, bytes]:
    """What a checkout has of all that."""
    scripts = {f"slurm/{path.name}": path.read_bytes() for path in (ROOT / "slurm").glob("*.sh")}
    configs = {str(path.relative_to(ROOT)): path.read_bytes() for path in (ROOT / "configs").rglob("*.toml")}
    return scripts | configs


def test_all_is_written_as_it_is(tmp_path: Path) -> None:
    """A new folder gets the scripts, all configs and profiles, byte for byte, and a README.txt; scripts executable."""
    folder = tmp_path / "new" / HOSTILE
    call(folder)
    made = tree(folder)
    assert set(made) == set(originals()) | {"README.txt"}
    assert originals().items() <= made.items()
    assert {"slurm/submit_array.sh", "configs/demo.toml", "configs/sites/plain-tmp.toml"} <= set(made)
    for name in made:
        assert os.access(folder / name, os.X_OK) == name.endswith(".sh")


def test_the_configs_find_their_profiles(tmp_path: Path) -> None:
    """A profile that was written out can be named in a config as its comments say."""
    call(tmp_path)
    config = tmp_path / "configs" / "small.toml"
    config.write_text('profile = "sites/slurm-tmpdir.toml"\n' + config.read_text())
    assert read_config(config, {}).profile == str(tmp_path / "configs" / "sites" / "slurm-tmpdir.toml")


def test_again_is_nothing(tmp_path: Path) -> None:
    """What is there already is not touched, and a missing file is put back."""
    call(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert ": 0 files written" in call(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    (tmp_path / "slurm" / "reduce.sh").unlink()
    assert ": 1 files written" in call(tmp_path)
    assert os.access(tmp_path / "slurm" / "reduce.sh", os.X_OK)


def test_what_differs_is_kept(tmp_path: Path) -> None:
    """Files that differ are all named, and nothing is written, not even what is missing; --force overwrites them."""
    call(tmp_path)
    (tmp_path / "configs" / "small.toml").write_text("mine")
    (tmp_path / "README.txt").write_text("mine too")
    (tmp_path / "slurm" / "reduce.sh").unlink()
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"configs/small\.toml, README\.txt; nothing was written") as caught:
        call(tmp_path)
    assert caught.value.exit_code == 64
    assert "--force" in caught.value.hint
    assert tree(tmp_path) == before
    assert ": 3 files written" in call(tmp_path, "--force")
    assert originals().items() <= tree(tmp_path).items()


def test_an_identical_script_becomes_executable(tmp_path: Path) -> None:
    """A script that lost its mode on the way, as archives without modes do to it, gets it back."""
    call(tmp_path)
    script = tmp_path / "slurm" / "submit_array.sh"
    script.chmod(0o644)
    call(tmp_path)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700)])
def test_modes_are_as_the_user_wants_them(tmp_path: Path, mask: int, mode: int) -> None:
    """The umask holds for executable files as for others."""
    before = os.umask(mask)
    try:
        call(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x" / "slurm" / "reduce.sh").stat().st_mode) == mode


@pytest.mark.parametrize("kind", ["dangling", "loop", "folder", "pipe"])
def test_odd_things_in_the_way_are_kept(tmp_path: Path, kind: str) -> None:
    """A link to nowhere, a folder or a pipe of one of the names counts as differing, and nothing hangs on it."""
    (tmp_path / "configs").mkdir()
    way = tmp_path / "configs" / "demo.toml"
    if kind in {"dangling", "loop"}:
        way.symlink_to("demo.toml" if kind == "loop" else "nowhere")
    elif kind == "pipe":
        os.mkfifo(way)
    else:
        (way / "full").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"configs/demo\.toml; nothing"):
        call(tmp_path)
    if kind == "folder":
        with pytest.raises(StorageError):
            call(tmp_path, "--force")
        assert (way / "full").is_dir()
    else:
        call(tmp_path, "--force")
        assert way.read_bytes() == originals()["configs/demo.toml"]
        assert not way.is_symlink()


def test_a_link_to_the_same_is_the_same(tmp_path: Path) -> None:
    """A link to a file with that content is left as a link."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    call(tmp_path)
    assert (tmp_path / "slurm").is_symlink()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """DIR that is a file is wrong usage; a file where a folder of ours would be is an error of storage."""
    (tmp_path / "file").write_text("x")
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "file")])
    assert done.exit_code == 2  # click's own, which `medhaul` turns into 64
    (tmp_path / "slurm").write_text("x")
    with pytest.raises(StorageError, match="slurm") as caught:
        call(tmp_path)
    assert caught.value.exit_code == 73


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENODEV])
def test_errors_of_storage_are_73(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whatever the disk says when files are written is an error of storage that names what was written."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(init_module, "write_atomic", refuse)
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path}: {os.strerror(number)}")):
        call(tmp_path)


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative DIR below a deleted folder is an error of storage, not a fault."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StorageError):
        call("x")


def test_the_commands_are_exact(tmp_path: Path) -> None:
    """Each command on the screen and in README.txt can be pasted into a shell, whatever DIR is called."""
    folder = tmp_path / HOSTILE
    shown = call(folder)
    commands = render_commands(folder, find_binaries())
    readme = (folder / "README.txt").read_text()
    assert all(command in shown and command in readme for command in commands)
    assert "sbatch slurm/submit_array.sh configs/small.toml\n" in readme
    words = [shlex.split(command, comments=True) for command in commands]
    assert words[0] == ["cd", str(folder)]
    for first, second, *more in words[2:]:
        if first == "medhaul":
            assert second in {*COMMANDS, "doctor"}
        else:
            assert (first, second) == ("bash", "slurm/submit_array.sh")
            assert (folder / second).is_file()
        assert all((folder / word).is_file() for word in more if word.endswith(".toml"))
    status = words[-1]
    config = read_config(folder / "configs" / "small.toml", {})
    assert folder / status[2] == Path(config.storage.root) / config.run.name


def test_the_written_script_works(tmp_path: Path) -> None:
    """The first lines of the commands, then the written script with the written demo config, plan a run."""
    folder = tmp_path / HOSTILE
    call(folder)
    lines = render_commands(folder, BINARIES)[:2]
    lines.append("bash slurm/submit_array.sh configs/demo.toml --scheduler local --dry-run")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)], env=environ, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was" in done.stdout


def test_the_binaries_are_those_of_the_medhaul_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called by its path, medhaul names its own folder; called otherwise, that on PATH."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
        shutil.copy("/bin/true", folder / "medhaul")
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.setattr(sys, "argv", [str(mine / "medhaul"), "init"])
    assert find_binaries() == mine
    monkeypatch.setattr(sys, "argv", ["-m", "init"])
    assert find_binaries() == other
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries().is_dir()


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A DIR of any bytes is written to, and its README.txt has those very bytes."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff x"))
    init = [sys.executable, "-c", "import sys; from pipeline.cli.init import init_folder; init_folder()"]
    done = subprocess.run([*init, folder], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert b"cd '" + os.fsencode(folder) + b"'" in (folder / "README.txt").read_bytes()


def test_what_is_written_is_what_was_asked_for(tmp_path: Path) -> None:
    """`write_files` returns exactly the names that it wrote."""
    files = {"a.sh": b"#!/bin/sh\n", "b/c.txt": b"x"}
    (tmp_path / "a.sh").write_bytes(files["a.sh"])
    assert write_files(tmp_path, files, force=False) == ["b/c.txt"]
    assert tree(tmp_path) == files
    assert not set(package_files()) & {"README.txt"}
