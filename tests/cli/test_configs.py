"""The config files of `configs/`: all of them are read, and the reference holds every option with its true default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from pipeline.config import parse_config, read_config
from pipeline.settings import Config

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.toml"))
REFERENCE = FOLDER / "reference.toml"
REQUIRED = {"run.name": "x", "storage.root": "x", "select.idc.content": "original"}
EXAMPLES = {"storage.logs", "select.idc.series"}  # their defaults are "another option's value" and "all"


def flatten(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Key path -> value of nested tables."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat


def key_paths(kind: Any, above: str = "") -> set[str]:
    """The key paths of all options that a record and those in it describe."""
    found: set[str] = set()
    for field in msgspec.structs.fields(kind):
        kinds = [kind for kind in (field.type, *get_args(field.type)) if isinstance(kind, type)]
        if issubclass(kinds[0] if kinds else int, msgspec.Struct):
            found |= key_paths(kinds[0], f"{above}{field.name}.")
        else:
            found.add(above + field.name)
    return found


def values_of(config: Config) -> dict[str, Any]:
    """Key path -> value of a checked config."""
    return flatten(msgspec.to_builtins(config, enc_hook=float))


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested tables of key paths."""
    data: dict[str, Any] = {}
    for path, value in flat.items():
        *tables, key = path.split(".")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value
    return data


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_config_is_read(path: Path) -> None:
    """Each file of configs/ is accepted as it is."""
    assert read_config(path).run.name


def test_reference_holds_every_option() -> None:
    """The keys of the references are those of the config's records, no more and no fewer, none commented out.

    A run selects from one source: each further one has a reference of its own.
    """
    texts = [path.read_text() for path in FILES if path.name.startswith("reference")]
    assert set().union(*(flatten(tomllib.loads(text)) for text in texts)) == key_paths(Config)
    assert [line for text in texts for line in re.findall(r"^\s*#\s*\w+ *= .*", text, re.MULTILINE)] == []


def test_reference_states_the_defaults() -> None:
    """Each value of the reference is the default, except those that are marked: required ones, and two examples."""
    text = REFERENCE.read_text()
    stated = values_of(parse_config(tomllib.loads(text), "reference"))
    defaults = values_of(parse_config(nest(REQUIRED), "defaults"))
    differing = {key for key in stated if stated[key] != defaults[key]}
    assert differing <= set(REQUIRED) | EXAMPLES
    for key in REQUIRED:
        assert re.search(rf"^{key.rpartition('.')[2]} = .*# required", text, re.MULTILINE), key
    for key in EXAMPLES:
        assert re.search(rf"^{key.rpartition('.')[2]} = .*# (default:|an example;)", text, re.MULTILINE), key
