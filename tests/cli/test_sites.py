"""The site profiles of `configs/sites/`: each can lie under a config as it is, and says what to change."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.config import PROFILE_TABLES, read_config
from pipeline.settings import Config

FOLDER = Path(__file__).parents[2] / "configs"
PROFILES = sorted((FOLDER / "sites").iterdir())
NAMES = {"slurm-tmpdir.toml", "gres-lscratch.toml", "plain-tmp.toml"}


def under(profile: Path, config: Path, folder: Path) -> Config:
    """Read a config with a profile laid under it, as its first line would say."""
    sites = folder / "sites"
    sites.mkdir()
    (sites / profile.name).write_bytes(profile.read_bytes())
    path = folder / config.name
    path.write_text(f'profile = "sites/{profile.name}"\n{config.read_text()}')
    return read_config(path, {})


def test_the_three_kinds_are_there() -> None:
    """There is a profile for each of the usual kinds of scratch, and nothing else in their folder."""
    assert {path.name for path in PROFILES} == NAMES


@pytest.mark.parametrize("name", ["small.toml", "large.toml"])
@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_lies_under_a_config(profile: Path, name: str, tmp_path: Path) -> None:
    """With the profile a config is valid, has all of the profile that it does not say itself, and keeps its own."""
    machine = tomllib.loads(profile.read_text())
    own = tomllib.loads((FOLDER / name).read_text())
    assert set(machine) <= set(PROFILE_TABLES)
    plain = read_config(FOLDER / name, {})
    config = under(profile, FOLDER / name, tmp_path)
    assert config.slurm.time > 0
    assert config.slurm.gres == machine["slurm"].get("gres", "")
    assert config.slurm.reduce.time > 0
    assert config.limits.tasks == own.get("limits", machine["limits"])["tasks"]
    assert (config.task.memory, config.task.scratch_bytes) == (plain.task.memory, plain.task.scratch_bytes)
    assert config.select == plain.select


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_asks_for_what_its_tasks_need(profile: Path, tmp_path: Path) -> None:
    """Memory asked of Slurm is a quarter more than a task's bound, scratch by gres more than what tasks keep there."""
    bare = tmp_path / "bare.toml"
    bare.write_text('[run]\nname = "x"\n[storage]\nroot = "x"\n[select.idc]\ncontent = "both"\n')
    (tmp_path / "with").mkdir()
    config = under(profile, bare, tmp_path / "with")
    assert config.slurm.memory == 0 or config.slurm.memory >= 1.25 * config.task.memory
    if config.slurm.gres:
        assert int(config.slurm.gres.rpartition(":")[2]) * 1e9 >= 1.2 * config.task.scratch_bytes
    assert not config.task.allow_shared_scratch


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_says_what_to_do_with_it(profile: Path) -> None:
    """Its head says how to name it, what to change and how to check; every command named in it is complete."""
    head = profile.read_text().partition("\n[")[0]
    assert f'profile = "sites/{profile.name}"' in head
    assert re.search(r"^# To change: ", head, re.MULTILINE)
    assert re.search(r"^# To check:  medhaul doctor CONFIG --on-node ", head, re.MULTILINE)
    assert all(len(line) <= 120 for line in profile.read_text().splitlines())
