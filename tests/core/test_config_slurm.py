"""The [slurm] table and profiles: what medhaul owns cannot be passed on, and what a machine needs can be shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import parse_config, read_config
from pipeline.config_slurm import KEYS, OWNED, SHORT, option_problem
from pipeline.errors import ConfigError
from pipeline.units import Duration

MINIMAL = '[run]\nname = "r"\n[storage]\nroot = "runs"\n[select.idc]\ncontent = "both"\n'


def with_slurm(**table: object) -> dict[str, Any]:
    """The minimal config with a [slurm] table."""
    return {"run": {"name": "r"}, "storage": {"root": "/x"}, "select": {"idc": {"content": "both"}}, "slurm": table}


@given(st.sampled_from([*OWNED, *KEYS]), st.integers(1, 20), st.sampled_from(["", "=x"]))
def test_owned_options_are_refused_however_shortened(name: str, letters: int, value: str) -> None:
    """No long option that sbatch could take for one of medhaul's own is passed on."""
    assert option_problem(f"--{name[:letters]}{value}")


@pytest.mark.parametrize("letter", sorted(SHORT))
def test_short_owned_options_are_refused(letter: str) -> None:
    """No short form of an option of medhaul's own is passed on."""
    assert option_problem(f"-{letter}")
    assert option_problem(f"-{letter}7")


@pytest.mark.parametrize(
    "option",
    ["--exclusive", "--exclusive=user", "--licenses=lustre:1", '--comment=it\'s a "comment"', "--tmp=40G", "--nice"],
)
def test_other_options_are_passed_on(option: str) -> None:
    """What medhaul has no view on is the user's."""
    assert parse_config(with_slurm(extra=[option]), "x").slurm.extra == (option,)


@pytest.mark.parametrize("option", ["", "job.sh", "--", "-", "--comment", "--tmp\n=1", "-s", "--Array=1", "comment=x"])
def test_malformed_options_are_refused(option: str) -> None:
    """An option that would take another for its value, or be taken for the script, is refused by name."""
    with pytest.raises(ConfigError, match=r"^x: slurm\.reduce\.extra: "):
        parse_config(with_slurm(reduce={"extra": [option]}), "x")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"requeue": -1}, "slurm.requeue: must be"),
        ({"cpus": 20_000}, "slurm.cpus: must be"),
        ({"reduce": {"cpus": -1}}, "slurm.reduce.cpus: must be"),
        ({"partition": "a\nb"}, "slurm.partition: "),
        ({"signal_lead": "20 h"}, "slurm.signal_lead: must be at most"),
        ({"environment": ["A=1"]}, "slurm.environment: 'A=1' is not the name"),
        ({"max_array": -1}, "slurm.max_array: must be"),
        ({"poll": 0}, "slurm.poll: must be"),
        ({"partiton": "x"}, "slurm.partiton: unknown key; did you mean partition"),
        ({"reduce": {"tine": 1}}, "slurm.reduce.tine: unknown key; did you mean time"),
    ],
)
def test_impossible_values_are_refused(table: dict[str, Any], said: str) -> None:
    """The message names the key path and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        parse_config(with_slurm(**table), "x")
    assert said in str(caught.value)


def write(folder: Path, profile: str, config: str) -> Path:
    """Write a profile and a config that names it."""
    (folder / "sites").mkdir()
    (folder / "sites" / "here.toml").write_text(profile)
    path = folder / "c.toml"
    path.write_text('profile = "sites/here.toml"\n' + MINIMAL + config)
    return path


def test_a_profile_lies_under_the_config(tmp_path: Path) -> None:
    """Keys of the profile hold where the config is silent, table by table."""
    profile = '[slurm]\npartition = "p"\ntime = "2 h"\n[slurm.reduce]\npartition = "q"\n[task]\ncores = 3\n'
    path = write(tmp_path, profile, '[slurm]\ntime = "1 h"\n[slurm.reduce]\ncpus = 4\n')
    config = read_config(path, {})
    assert (config.slurm.partition, config.slurm.time, config.task.cores) == ("p", Duration(3600), 3)
    assert (config.slurm.reduce.partition, config.slurm.reduce.cpus) == ("q", 4)
    assert config.profile == str(tmp_path / "sites" / "here.toml")


@pytest.mark.parametrize("text", ['[run]\nname = "other"\n', "slurm = 3\n", '[storage]\nroot = "/x"\n'])
def test_a_profile_holds_a_machine_only(tmp_path: Path, text: str) -> None:
    """What is a run's own cannot come from a profile."""
    with pytest.raises(ConfigError, match=r"here\.toml: .*not allowed in a profile"):
        read_config(write(tmp_path, text, ""), {})


def test_errors_name_the_profile(tmp_path: Path) -> None:
    """A wrong value, a broken profile and a missing one are each told with the profile's path."""
    with pytest.raises(ConfigError, match=r"c\.toml with .*here\.toml: slurm\.time: "):
        read_config(write(tmp_path, '[slurm]\ntime = "soon"\n', ""), {})
    (tmp_path / "sites" / "here.toml").write_text("[slurm")
    with pytest.raises(ConfigError, match=r"here\.toml: not TOML"):
        read_config(tmp_path / "c.toml", {})
    (tmp_path / "sites" / "here.toml").unlink()
    with pytest.raises(ConfigError, match=r"here\.toml: no such config file"):
        read_config(tmp_path / "c.toml", {})
