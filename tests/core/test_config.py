"""The config: what is wrong is refused, with file, key path and what is allowed; what is right survives freezing."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import settings as settings_module
from pipeline.config import ENVIRONMENT, parse_config, read_config
from pipeline.errors import ConfigError
from pipeline.rundir import freeze_config
from pipeline.settings import DEFAULT_ISIC_PATH, DEFAULT_PATH, Config
from pipeline.units import ByteSize, Duration

MINIMAL = '[run]\nname = "r"\n[storage]\nroot = "runs"\n[select.idc]\ncontent = "both"\n'


def minimal() -> dict[str, Any]:
    """The least that a config must say."""
    return {"run": {"name": "r"}, "storage": {"root": "/x"}, "select": {"idc": {"content": "both"}}}


def with_value(path: str, value: object) -> dict[str, Any]:
    """The minimal config with one key set."""
    data = minimal()
    table = data
    *tables, key = path.split(".")
    for name in tables:
        table = table.setdefault(name, {})
    table[key] = value
    return data


def refused(data: dict[str, Any]) -> str:
    """The message with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "some.toml")
    assert caught.value.hint
    message = str(caught.value)
    assert message.startswith("some.toml: ")
    return message.removeprefix("some.toml: ")


def walk(table: Any = Config, prefix: str = "") -> typing.Iterator[tuple[str, Any, bool]]:
    """Every key path of the config with its type, and whether it is a table."""
    for field in msgspec.structs.fields(table):
        path = f"{prefix}{field.name}"
        kinds = [kind for kind in typing.get_args(field.type) if isinstance(kind, type) and kind is not type(None)]
        kind = kinds[0] if kinds and issubclass(kinds[0], msgspec.Struct) else field.type
        is_table = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        yield path, kind, is_table
        if is_table:
            yield from walk(kind, f"{path}.")


KEYS = {path: kind for path, kind, is_table in walk() if not is_table}
TABLES = {path: kind for path, kind, is_table in walk() if is_table}
WRONG: dict[Any, list[Any]] = {
    str: [1, 1.5, True, [], {}, dt.date(2020, 1, 1)],
    int: ["1", 1.5, True, [], {}, dt.time(1)],
    bool: ["true", 1, 0, [], {}],
    ByteSize: ["x", "1 GX", 1.5, True, [], {}, -1, dt.date(2020, 1, 1)],
    Duration: ["x", "1 y", -1, math.nan, math.inf, True, [], {}, dt.time(1)],
    tuple[str, ...]: ["x", 1, {}, [1], [["x"]], [None], [True]],
}


@pytest.mark.parametrize("path", KEYS)
def test_a_wrong_type_is_refused_at_every_key(path: str) -> None:
    """Whatever stands where something else belongs, the message begins with the key."""
    kind = KEYS[path]
    for value in WRONG.get(kind, ["no such choice", 1, True, [], {}]):
        said = refused(with_value(path, value))
        assert said.partition(":")[0].partition("[")[0] == path


@pytest.mark.parametrize("path", TABLES)
def test_a_table_must_be_a_table(path: str) -> None:
    """A value where a table belongs is refused with the table's name."""
    for value in (1, "x", [], [{}], True):
        assert re.match(rf"{re.escape(path)}: expected `object( \| null)?`", refused(with_value(path, value)))


@pytest.mark.parametrize("path", ["", *TABLES])
def test_an_unknown_key_is_refused_in_every_table(path: str) -> None:
    """Every table says which key is unknown and which there are."""
    said = refused(with_value(f"{path}.zzqq".lstrip("."), 1))
    assert said.startswith(f"{path}.zzqq: ".lstrip(".") + "unknown key")
    for field in msgspec.structs.fields(TABLES.get(path, Config)):
        assert field.name in said.partition("Allowed here:")[2]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("rnu", "run"), ("storage.rot", "root"), ("select.idc.collection", "collections"), ("shards.counts", "count"),
        ("archive.group_byte", "group_bytes"), ("sources.idc.s3_endpont", "s3_endpoint"), ("task.scrach", "scratch"),
        ("select.idc.licenses", "licences"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_told_its_neighbour(path: str, near: str) -> None:
    """A typing error is answered with the key that was meant."""
    assert f"did you mean {near}" in refused(with_value(path, 1))


@given(st.text(min_size=1).filter(lambda key: key != "name"))
def test_any_unknown_key_is_named(key: str) -> None:
    """Whatever signs a key holds, the message names it with its table."""
    data = minimal()
    data["run"][key] = 1
    assert refused(data).startswith(f"run.{key}: unknown key")


@given(st.text().filter(lambda text: text not in {"original", "derived", "both"}))
def test_a_wrong_choice_is_told_the_choices(text: str) -> None:
    """Where a key takes one of a few words, the words are listed."""
    said = refused(with_value("select.idc.content", text))
    assert said.startswith("select.idc.content: ")
    assert said.endswith("choose one of: original, derived, both")


@pytest.mark.parametrize("path", ["run", "run.name", "storage", "storage.root", "select", "select.idc.content"])
def test_what_is_required_and_missing_is_named(path: str) -> None:
    """A missing table or key is named with its whole path."""
    data = minimal()
    *tables, key = path.split(".")
    table = data
    for name in tables:
        table = table[name]
    del table[key]
    assert refused(data) == f"{path}: required, but not given"


IMPOSSIBLE = {
    "run.name": ["", ".", "..", "-x", "a/b", "a b", "x" * 101, "é", "a\n", "\0", "_x", "."],
    "storage.root": ["", "a\0b", "a\nb"],
    "storage.logs": ["a\0b"],
    "select.idc.collections": [[""], ["x", ""]],
    "select.idc.series": [[""]],
    "sources.idc.index": ["", "a\0b"],
    "sources.idc.release": ["x", "25.", ".5", "25.0.5.1", "v25", "\u0662", "25\n"],
    "sources.idc.s3_endpoint": [
        "", "s3.amazonaws.com", "ftp://x", "http://", "https:///x", "http://u:p@x", "http://u@x/", "http://x?y", "http://x#y",
        "http://x y", "http://x\n", "http://x:99999", "http://x:port", "http://[", "http://x/\udcff", "http://é", " http://x",
    ],
    "sources.idc.mirror_endpoint": ["x", "http://u:p@x", "demo "],
    "sources.tcia.connections": [0, -1, 1025, 10**30],
    "archive.name": [
        "", "x", "{x}", "{group", "{group}{x}", "a/{group}", "-{group}", ".{group}", "{group}" * 2,
        "x" * 101 + "{group}",
    ],
    "archive.path": ["", "{SOPInstanceUID}.dcm", "x/{SOPInstanceUID}.dcm"],
    "archive.block_bytes": [0, 1, "68 MB", (64 << 10) - 1, (64 << 20) + 1],
    "archive.cut_bytes": [0, "1 MiB"],
    "archive.group_bytes": ["3 GiB"],
    "shards.count": [-1, 2**63, 10**30],
    "shards.target_bytes": [0],
    "limits.connections": [0, -1, 1025, 10**30],
    "limits.tasks": [0, -1, 65],
    "task.cores": [-1, 2**63],
    "task.memory": [0, "1 MB"],
    "task.scratch": ["a\0b"],
    "task.scratch_bytes": [0],
    "task.attempts": [0, 101],
    "task.stall": [0, 0.5],
    "task.item_deadline": [0, 59],
    "local.jobs": [0, -1, 1001],
}  # fmt: skip


@pytest.mark.parametrize("path", IMPOSSIBLE)
def test_values_that_cannot_be_are_refused_with_the_rule(path: str) -> None:
    """A value of the right type that cannot work is refused where it stands."""
    for value in IMPOSSIBLE[path]:
        said = refused(with_value(path, value))
        assert said.startswith(f"{path}: ")
        assert len(said) > len(path) + 10


@pytest.mark.parametrize("tables", [{}, {"idc": {"content": "both"}, "tcia": {"cart": "x"}}])
def test_exactly_one_source_is_selected_from(tables: dict[str, Any]) -> None:
    """No selection, and two of them, are refused with the tables that there are."""
    said = refused(minimal() | {"select": tables})
    assert said == "select: needs exactly one of [select.idc], [select.tcia], [select.isic]"


@pytest.mark.parametrize(
    ("source", "select", "path"),
    [
        ("idc", {"content": "both"}, DEFAULT_PATH),
        ("tcia", {"cart": "x"}, DEFAULT_PATH),
        ("isic", {}, DEFAULT_ISIC_PATH),
    ],
)
def test_the_path_of_a_source_is_chosen_when_the_config_is_read(source: str, select: Any, path: str) -> None:
    """Who says nothing gets the source's own, which survives freezing; one that was written stands, or is refused."""
    data = minimal() | {"select": {source: select}}
    config = parse_config(data, "some.toml")
    assert config.archive.path == path
    assert parse_config(freeze_config(config), "run.json") == config
    assert parse_config(data | {"archive": {"portable": True}}, "some.toml").archive.path == path
    written = f"x-{path}"
    assert parse_config(data | {"archive": {"path": written}}, "some.toml").archive.path == written
    wrong = {DEFAULT_PATH: DEFAULT_ISIC_PATH, DEFAULT_ISIC_PATH: DEFAULT_PATH}[path]
    assert refused(data | {"archive": {"path": wrong}}).startswith("archive.path: unknown field ")


def test_every_problem_that_a_rule_knows_is_about_a_key_that_exists() -> None:
    """The table above speaks of real keys."""
    assert set(IMPOSSIBLE) <= set(KEYS)


@pytest.mark.parametrize(
    "text",
    [
        "x", "[run", "[run]\nname = ", "[run]\nname = 'r'\nname = 's'", "[run]\n[run]\n", "a = 1979-99-99",
        "\ufeff[run]", "= 1",
        "a = " + "[" * 5000 + "]" * 5000, "a = " + "9" * 5000, '[run]\nname = "\\ud800"', "\x00",
    ],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_what_is_not_toml_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    """A syntax error names the file and where, never a traceback."""
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"c\.toml: not TOML") as caught:
        read_config(path, {})
    assert caught.value.hint


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8: each is told."""
    with pytest.raises(ConfigError, match=r"no\.toml: no such config file"):
        read_config(tmp_path / "no.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        read_config(tmp_path, {})
    (tmp_path / "c.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_config(tmp_path / "c.toml", {})


def write(folder: Path, text: str = MINIMAL) -> Path:
    """Write a config file."""
    path = folder / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_minimal_config_has_the_defaults(tmp_path: Path) -> None:
    """What is not said has its default, and paths are absolute, relative to the file."""
    config = read_config(write(tmp_path), {})
    assert config.storage.root == str(tmp_path / "runs")
    assert config.storage.logs == str(tmp_path / "runs" / "logs")
    assert config.sources.idc.index == "packaged"
    assert config.archive == settings_module.Archive()
    assert config.task.scratch == ""


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is started from does not matter."""
    (tmp_path / "a").mkdir()
    text = MINIMAL.replace('"runs"', '"../runs"\nlogs = "logs"')
    text += '[sources.idc]\nindex = "i.parquet"\n[task]\nscratch = "~/s"\n'
    path = write(tmp_path / "a", text)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir("/")
    config = read_config(path, {})
    assert config.storage.root == str(tmp_path / "runs")
    assert config.storage.logs == str(tmp_path / "a" / "logs")
    assert config.sources.idc.index == str(tmp_path / "a" / "i.parquet")
    assert config.task.scratch == str(tmp_path / "home" / "s")


@pytest.mark.parametrize("root", ["~no-such-user-xyz/runs", "loop/runs"])
def test_a_path_that_cannot_be_resolved_is_refused(tmp_path: Path, root: str) -> None:
    """Unknown users and symlink loops are told as a bad config."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=r"c\.toml: storage\.root: "):
        read_config(write(tmp_path, MINIMAL.replace("runs", root)), {})


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_environment_overrides_endpoints(tmp_path: Path, name: str) -> None:
    """A variable wins over the file; an empty one does not count."""
    value = "https://mirror.example:8443/x"
    _, source, key = ENVIRONMENT[name]
    text = MINIMAL + f'[sources.{source}]\n{key} = "http://file.example"\n'
    changed = getattr(getattr(read_config(write(tmp_path, text), {name: value}).sources, source), key)
    assert changed == value or (key == "index" and changed.startswith(str(tmp_path)))
    kept = getattr(getattr(read_config(write(tmp_path, text), {name: ""}).sources, source), key)
    assert kept == "http://file.example" or (key == "index" and kept.endswith("file.example"))


def test_a_bad_value_from_the_environment_names_the_variable(tmp_path: Path) -> None:
    """What the file does not hold cannot be found there, so the message says where it stands."""
    for name in ("MEDHAUL_IDC_S3_ENDPOINT", "MEDHAUL_IDC_INDEX"):
        with pytest.raises(ConfigError, match=name):
            read_config(write(tmp_path), {name: "x\0\udcff"})


def test_the_environment_does_not_hide_a_wrong_table(tmp_path: Path) -> None:
    """An override of a key in what is no table leaves the complaint about the table."""
    with pytest.raises(ConfigError, match="sources: expected `object`"):
        read_config(write(tmp_path, "sources = 5\n" + MINIMAL), {"MEDHAUL_IDC_INDEX": "x"})


sizes = st.integers(1 << 20, 1 << 40)
seconds = st.floats(60, 1e6)
words = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3)


@given(
    st.fixed_dictionaries(
        {
            "run": st.fixed_dictionaries({"name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)}),
            "storage": st.fixed_dictionaries({"root": st.just("/é x")}),
            "select": st.fixed_dictionaries(
                {
                    "idc": st.fixed_dictionaries(
                        {"content": st.sampled_from(["original", "derived", "both"])},
                        optional={"collections": words, "where": st.text(st.characters(exclude_categories=["Cs"]))},
                    )
                }
            ),
        },
        optional={
            "archive": st.fixed_dictionaries({}, optional={"max_bytes": sizes, "portable": st.booleans()}),
            "shards": st.fixed_dictionaries({}, optional={"count": st.integers(0, 10**6), "file_cost": sizes}),
            "task": st.fixed_dictionaries(
                {},
                optional={
                    "item_deadline": seconds,
                    "memory": st.integers(256 << 20, 1 << 50),
                    "stall": st.just("1 min"),
                },
            ),
        },
    )
)
def test_a_frozen_config_reads_back_the_same(data: dict[str, Any]) -> None:
    """What run.json keeps is the config, to the last digit, in JSON that says nothing but values."""
    config = parse_config(data, "x")
    frozen = json.loads(json.dumps(freeze_config(config)))
    assert parse_config(frozen, "run.json") == config


def test_the_examples_that_we_ship_are_good() -> None:
    """Every config of configs/ is read without complaint."""
    found = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
    assert found
    for path in found:
        read_config(path, {})
