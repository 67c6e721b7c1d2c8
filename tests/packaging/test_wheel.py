"""The package as others get it: a wheel of the tracked files, alone in a fresh environment, does a whole haul."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.external, pytest.mark.timeout(600)]


class Installed(NamedTuple):
    """A wheel, what it was made of, and the folder of the programs of the environment that it is installed in."""

    source: Path
    wheel: Path
    binaries: Path


def pip(*words: object) -> subprocess.CompletedProcess[str]:
    """Run this environment's pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copy_source(target: Path) -> None:
    """Copy the files that git tracks or would track; without git, those that a wheel is made of."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = listed.stdout.split("\0")
    if listed.returncode or "setup.cfg" not in names:
        folders = ("pipeline", "slurm", "configs")
        found = [*(path for name in folders for path in (ROOT / name).rglob("*")), *ROOT.iterdir()]
        names = [str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts]
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() or path.is_symlink():  # a link in the checkout leads to the batch scripts
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name, follow_symlinks=False)


def requirements() -> list[str]:
    """What setup.cfg says that the package needs."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["options"]["install_requires"].strip().splitlines()  # a line may have a marker after the name


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, and only it with what it says that it needs, in a fresh environment."""
    folder = tmp_path_factory.mktemp("packaging")
    store = folder / "store"
    fetched = pip("download", "--quiet", "--dest", store, "setuptools>=68", "wheel", *requirements())
    if fetched.returncode:
        pytest.skip(f"pip cannot get what is needed: {fetched.stderr.strip().splitlines()[-1]}")
    source = folder / "source"
    copy_source(source)
    local = ("--no-index", "--find-links", store)  # from here on nothing may be missing
    built = pip("wheel", "--quiet", *local, "--no-deps", "--wheel-dir", folder / "dist", source)
    assert built.returncode == 0, built.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    binaries = folder / "venv" / "bin"
    put = pip("--python", binaries / "python", "install", "--quiet", *local, wheel)
    assert put.returncode == 0, put.stderr
    return Installed(source, wheel, binaries)


def test_wheel_holds_all_that_is_used(installed: Installed) -> None:
    """The wheel has every module, the batch scripts, all configs and the mark of typing; nothing else."""
    with zipfile.ZipFile(installed.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    folder = installed.source / "pipeline"
    there = {f"pipeline/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    scripts = {f"pipeline/slurm_scripts/{path.name}" for path in (ROOT / "slurm").glob("*.sh")}
    configs = {f"pipeline/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.toml")}
    assert names == there | scripts | configs
    assert len(scripts) >= 3
    assert {"pipeline/py.typed", "pipeline/demo/demo.toml"} <= names


def test_init_of_the_wheel(installed: Installed, tmp_path: Path) -> None:
    """`medhaul init` writes the scripts, which run, and the configs of the checkout that the wheel was made of."""
    done = subprocess.run(
        [installed.binaries / "medhaul", "init", "out"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for folder, pattern in (("slurm", "*.sh"), ("configs", "**/*.toml")):
        there = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / folder).glob(pattern)}
        assert {path: (tmp_path / "out" / path).read_bytes() for path in there} == there
    assert all(os.access(path, os.X_OK) for path in (tmp_path / "out" / "slurm").glob("*.sh"))


def test_demo_of_the_wheel(installed: Installed, tmp_path: Path) -> None:
    """`medhaul demo`, called by its path with next to nothing in the environment, ends well with all it promises."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
    done = subprocess.run(
        [installed.binaries / "medhaul", "demo", "out"], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    archives = sorted((tmp_path / "out" / "runs" / "demo" / "archives").glob("*.tar.xz"))
    assert [path.name for path in archives] == ["demo_ct_mr.tar.xz", "demo_mixed.tar.xz"]
    assert all(f"\n  {path}\n" in done.stdout for path in archives)
    folders = {path.parent for path in (tmp_path / "out" / "extracted").rglob("*.dcm")}
    assert len(folders) == 1
    listed = subprocess.run(
        [installed.binaries / "medhaul", "verify", tmp_path / "out" / "runs" / "demo"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert listed.stdout.count(": fine: ") == 2
