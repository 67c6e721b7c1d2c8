"""The config file: TOML read into frozen records. Whatever is unknown, of a wrong type or impossible is refused."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from pipeline.config_check import find_impossible
from pipeline.errors import ConfigError
from pipeline.settings import DEFAULT_ISIC_PATH, Config, Sources, Storage, Table
from pipeline.units import ByteSize, Duration, parse_duration, parse_size

HINT = "configs/reference.toml shows every option"
PROFILE_TABLES = ("slurm", "task", "limits", "local")

# Endpoints are settings that the environment may override, so that mirrors, proxies and test servers need no edits.
ENVIRONMENT = {
    "MEDHAUL_IDC_S3_ENDPOINT": ("sources", "idc", "s3_endpoint"),
    "MEDHAUL_IDC_MIRROR_ENDPOINT": ("sources", "idc", "mirror_endpoint"),
    "MEDHAUL_IDC_INDEX": ("sources", "idc", "index"),
    "MEDHAUL_TCIA_BASE_URL": ("sources", "tcia", "base_url"),
    "MEDHAUL_ISIC_BASE_URL": ("sources", "isic", "base_url"),
}


def read_config(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a config file; relative paths in it become absolute.

    Raises
    ------
    ConfigError
        Naming the file, the key path and what is allowed.
    """
    data = _read_toml(path)
    additions = []
    profile = data.get("profile")
    if isinstance(profile, str) and profile:
        where = path.resolve().parent / Path(profile).expanduser()
        data = _merge(_read_profile(where), data) | {"profile": str(where)}
        additions.append(str(where))
    for variable, keys in ENVIRONMENT.items():
        if environ.get(variable):
            _set_key(data, keys, environ[variable])
            additions.append(variable)
    file = f"{path} with {', '.join(additions)}" if additions else str(path)
    return resolve_paths(parse_config(data, file), path.resolve().parent, file)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file", hint="see configs/ for examples") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="name a TOML config file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}", hint="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # tomllib's own error is a ValueError, as is a number of 5,000 digits
        raise ConfigError(f"{path}: not TOML: {error}", hint="see https://toml.io for the syntax") from None


def _read_profile(path: Path) -> dict[str, Any]:
    """Read a profile, which may hold only what is a machine's and not a run's."""
    data = _read_toml(path)
    for table, value in data.items():
        if table not in PROFILE_TABLES or not isinstance(value, dict):
            allowed = ", ".join(f"[{name}]" for name in PROFILE_TABLES)
            raise ConfigError(f"{path}: {table}: not allowed in a profile; allowed: {allowed}", hint=HINT)
    return data


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay one tree of tables over another; pure."""
    merged = under | over
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            merged[key] = _merge(under[key], over[key])
    return merged


def parse_config(data: dict[str, Any], file: str) -> Config:
    """Turn TOML data into a checked `Config`; pure. Raises `ConfigError`."""
    try:
        config = msgspec.convert(data, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_explain(str(error))}", hint=HINT) from None
    config = choose_path(config, written="path" in data.get("archive", {}))
    for key, problem in find_impossible(config):
        raise ConfigError(f"{file}: {key}: {problem}", hint=HINT)
    return config


def choose_path(config: Config, *, written: bool) -> Config:
    """The config with the path template of its source, unless one was `written`; pure.

    Everything after this sees `archive.path` as it is used, and so do those who read a run's config.
    """
    if written or config.select.isic is None:
        return config
    return msgspec.structs.replace(config, archive=msgspec.structs.replace(config.archive, path=DEFAULT_ISIC_PATH))


def resolve_paths(config: Config, base: Path, file: str) -> Config:
    """Make the paths of a config absolute, relative ones against `base`; `~` is the user's home.

    Raises
    ------
    ConfigError
        For a user that there is not, or a loop of symbolic links.
    """

    def absolute(key: str, text: str) -> str:
        try:
            return str((base / Path(text).expanduser()).resolve()) if text else ""
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{file}: {key}: {text!r}: {error}", hint="name a folder that can be there") from None

    root = absolute("storage.root", config.storage.root)
    logs = absolute("storage.logs", config.storage.logs)
    storage = Storage(root=root, logs=logs or str(Path(root) / "logs"))
    idc = config.sources.idc
    if idc.index != "packaged" and not idc.index.startswith(("http://", "https://")):
        idc = msgspec.structs.replace(idc, index=absolute("sources.idc.index", idc.index))
    task = msgspec.structs.replace(config.task, scratch=absolute("task.scratch", config.task.scratch))
    credentials = absolute("sources.tcia.credentials", config.sources.tcia.credentials)
    tcia = msgspec.structs.replace(config.sources.tcia, credentials=credentials)
    select = config.select
    if select.tcia is not None:
        manifest = absolute("select.tcia.manifest", select.tcia.manifest)
        select = msgspec.structs.replace(select, tcia=msgspec.structs.replace(select.tcia, manifest=manifest))
    if select.isic is not None:
        files = {
            name: absolute(f"select.isic.{name}", getattr(select.isic, name)) for name in ("ids_file", "conditions")
        }
        select = msgspec.structs.replace(select, isic=msgspec.structs.replace(select.isic, **files))
    secret = absolute("sources.isic.credentials", config.sources.isic.credentials)
    isic = msgspec.structs.replace(config.sources.isic, credentials=secret)
    sources = Sources(idc=idc, tcia=tcia, isic=isic)
    return msgspec.structs.replace(config, storage=storage, select=select, sources=sources, task=task)


def _set_key(data: dict[str, Any], keys: tuple[str, ...], value: str) -> None:
    table: Any = data
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return  # parse_config reports the wrong type
    table[keys[-1]] = value


def _decode(kind: type, value: object) -> object:
    if kind is ByteSize:
        return parse_size(value)  # msgspec adds the key path to a ValueError
    if kind is Duration:
        return parse_duration(value)
    raise NotImplementedError(kind)


def _explain(message: str) -> str:
    """Make msgspec's message name the key path first and, for an unknown key, the nearest allowed ones."""
    at = re.fullmatch(r"(.*) - at `\$(?:\.([a-z0-9_.\[\]]*))?`", message, re.DOTALL)  # greedy: values may look like it
    text, where = (at[1], at[2] or "") if at else (message, "")
    unknown = re.search(r"unknown field `(.*)`", text, re.DOTALL)
    if unknown:
        fields = _fields_at(where)
        near = difflib.get_close_matches(unknown[1], fields, n=3, cutoff=0.5)
        path = f"{where}.{unknown[1]}".lstrip(".")
        said = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{path}: unknown key{said} Allowed here: {', '.join(fields)}"
    if text.startswith("Invalid enum value"):
        kind = next(
            (f.type for f in msgspec.structs.fields(_table_at(where)) if f.name == where.rpartition(".")[2]), None
        )
        return f"{where}: {text[19:].replace('`', '')} is not allowed here; choose one of: {', '.join(get_args(kind))}"
    missing = re.search(r"missing required field `(.*)`", text)
    if missing:
        return f"{where}.{missing[1]}".lstrip(".") + ": required, but not given"
    return f"{where}: {text[:1].lower()}{text[1:]}" if where else text


def _table_at(where: str) -> Any:
    """Return the record that describes the innermost table on the way to `where`."""
    table: Any = Config
    for key in filter(None, where.split(".")):
        found = next((f.type for f in msgspec.structs.fields(table) if f.name == key), None)
        found = next(
            (kind for kind in get_args(found) if kind is not type(None)), found
        )  # of a table that may be left out
        if not (isinstance(found, type) and issubclass(found, Table)):
            break
        table = found
    return table


def _fields_at(where: str) -> list[str]:
    return [f.name for f in msgspec.structs.fields(_table_at(where))]
