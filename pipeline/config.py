"""The config file: TOML read into frozen records. Whatever is unknown, of a wrong type or impossible is refused."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from pipeline.errors import ConfigError
from pipeline.units import ByteSize, Duration, parse_duration, parse_size

Content = Literal["original", "derived", "both"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ITEM_FIELDS = ("collection", "PatientID", "StudyInstanceUID", "Modality", "SeriesInstanceUID")
HINT = "configs/reference.toml shows every option"
DEFAULT_PATH = "{collection}/{PatientID}/{StudyInstanceUID}/{Modality}_{SeriesInstanceUID}/{SOPInstanceUID}.dcm"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Run(_Table, frozen=True):
    """`[run]`."""

    name: str


class Storage(_Table, frozen=True):
    """`[storage]`: shared storage. Relative paths are relative to the config file."""

    root: str
    logs: str = ""


class SelectIdc(_Table, frozen=True):
    """`[select.idc]`: every key given must hold (AND); values within a key are alternatives (OR)."""

    content: Content
    collections: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    crdc_series: tuple[str, ...] = ()
    analysis_results: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    where: str = ""


class Select(_Table, frozen=True):
    """`[select]`: one source's selection."""

    idc: SelectIdc


class SourceIdc(_Table, frozen=True):
    """`[sources.idc]`: endpoints of the NCI Imaging Data Commons and the index to plan from.

    `index` is a Parquet file, the http(s) URL of one, or `packaged` (from the installed idc-index-data); `release` pins
    the data release: `25` or `25.0.5`, empty for whatever is installed. `s3_endpoint` may be `demo`: the embedded site
    and its index. `mirror_endpoint` empty: no fail-over.
    """

    index: str = "packaged"
    release: str = ""
    s3_endpoint: str = "https://s3.amazonaws.com"
    mirror_endpoint: str = "https://storage.googleapis.com"


class Sources(_Table, frozen=True):
    """`[sources]`."""

    idc: SourceIdc = SourceIdc()


class Archive(_Table, frozen=True):
    """`[archive]`: all that, beside the items' content, decides an archive's bytes."""

    name: str = "{group}"
    group_by: Literal["collection", "licence", "run"] = "collection"
    path: str = DEFAULT_PATH
    max_bytes: ByteSize = ByteSize(0)
    group_bytes: ByteSize = ByteSize(64 << 20)
    cut_bytes: ByteSize = ByteSize(2 << 30)
    cut_files: int = 10_000
    block_bytes: ByteSize = ByteSize(4 << 20)
    portable: bool = False


class Shards(_Table, frozen=True):
    """`[shards]`: how much one array task does. Never changes the archives' bytes.

    `count` 0: as many as `target_bytes` asks for. A file costs as much as `file_cost` bytes.
    """

    count: int = 0
    target_bytes: ByteSize = ByteSize(20 * 1000**3)
    file_cost: ByteSize = ByteSize(300_000)


class Limits(_Table, frozen=True):
    """`[limits]`: politeness. `connections` to the site for the whole run, divided over `tasks` at a time."""

    connections: int = 64
    tasks: int = 4


class Task(_Table, frozen=True):
    """`[task]`: one array task. `cores` 0: all that the scheduler grants.

    `retry_base`: the first wait before a request is repeated is at most this long, and each further one twice as long;
    where the site asks to slow down, four times that. `second_round_wait`: the longest wait at the end of a shard,
    before items are tried again whose failures may pass.
    """

    cores: int = 0
    memory: ByteSize = ByteSize(1 << 30)
    scratch: str = ""
    scratch_bytes: ByteSize = ByteSize(20 * 1000**3)
    allow_shared_scratch: bool = False
    verify_blocks: bool = True
    attempts: int = 6
    item_deadline: Duration = Duration(4 * 3600)
    stall: Duration = Duration(60)
    min_rate: ByteSize = ByteSize(1000)
    start_jitter: Duration = Duration(5)
    retry_base: Duration = Duration(0.5)
    second_round_wait: Duration = Duration(20)


class Local(_Table, frozen=True):
    """`[local]`: the scheduler for machines without Slurm."""

    jobs: int = 2
    time_limit: Duration = Duration(0)
    signal_lead: Duration = Duration(180)
    kill_wait: Duration = Duration(30)


class Config(_Table, frozen=True):
    """A whole config file."""

    run: Run
    storage: Storage
    select: Select
    sources: Sources = Sources()
    archive: Archive = Archive()
    shards: Shards = Shards()
    limits: Limits = Limits()
    task: Task = Task()
    local: Local = Local()


# Endpoints are settings that the environment may override, so that mirrors, proxies and test servers need no edits.
ENVIRONMENT = {
    "MEDHAUL_IDC_S3_ENDPOINT": ("sources", "idc", "s3_endpoint"),
    "MEDHAUL_IDC_MIRROR_ENDPOINT": ("sources", "idc", "mirror_endpoint"),
    "MEDHAUL_IDC_INDEX": ("sources", "idc", "index"),
}


def read_config(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a config file; relative paths in it become absolute.

    Raises
    ------
    ConfigError
        Naming the file, the key path and what is allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file", hint="see configs/ for examples") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="name a TOML config file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}", hint="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # tomllib's own error is a ValueError, as is a number of 5,000 digits
        raise ConfigError(f"{path}: not TOML: {error}", hint="see https://toml.io for the syntax") from None
    overrides = [variable for variable in ENVIRONMENT if environ.get(variable)]
    for variable in overrides:
        _set_key(data, ENVIRONMENT[variable], environ[variable])
    file = f"{path} with {', '.join(overrides)}" if overrides else str(path)
    return resolve_paths(parse_config(data, file), path.resolve().parent, file)


def parse_config(data: dict[str, Any], file: str) -> Config:
    """Turn TOML data into a checked `Config`; pure. Raises `ConfigError`."""
    try:
        config = msgspec.convert(data, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_explain(str(error))}", hint=HINT) from None
    for key, problem in _impossible(config):
        raise ConfigError(f"{file}: {key}: {problem}", hint=HINT)
    return config


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
    return msgspec.structs.replace(config, storage=storage, sources=Sources(idc=idc), task=task)


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
        if not (isinstance(found, type) and issubclass(found, _Table)):
            break
        table = found
    return table


def _fields_at(where: str) -> list[str]:
    return [f.name for f in msgspec.structs.fields(_table_at(where))]


def _impossible(config: Config) -> list[tuple[str, str]]:
    """List the (key path, problem) of values that have the right type but cannot be."""
    found: list[tuple[str, str]] = []

    def need(good: bool, key: str, problem: str) -> None:
        if not good:
            found.append((key, problem))

    archive, task, limits, idc = config.archive, config.task, config.limits, config.sources.idc
    said = f"{config.run.name!r} must be 1 to 100 of A-Z a-z 0-9 . _ - and not start with a sign"
    need(NAME.fullmatch(config.run.name) is not None, "run.name", said)
    need(config.storage.root != "", "storage.root", "must name a folder on shared storage")
    need(idc.index != "", "sources.idc.index", "must name a Parquet file or be 'packaged'")
    paths = {"storage.root": config.storage.root, "storage.logs": config.storage.logs}
    for key, path in {**paths, "sources.idc.index": idc.index, "task.scratch": task.scratch}.items():
        need(path.isprintable(), key, f"{path!r} must be a path of printable letters")
    for name, value in msgspec.structs.asdict(config.select.idc).items():
        need(not isinstance(value, tuple) or all(value), f"select.idc.{name}", "must not hold an empty value")
    for name, word in (("s3_endpoint", "demo"), ("mirror_endpoint", "")):
        url = getattr(idc, name)
        said = f"{url!r} must be {word!r} or an http:// or https:// URL without credentials"
        need(url == word or _is_endpoint(url), f"sources.idc.{name}", said)
    release = re.fullmatch(r"([0-9]+(\.[0-9]+){0,2})?", idc.release)
    need(release is not None, "sources.idc.release", "must look like '25' or '25.0.5'")
    plain, groups = archive.name.replace("{group}", "x"), archive.name.count("{group}")
    said = "may hold A-Z a-z 0-9 . _ - and, once, {group}; at most 100 letters"
    need(NAME.fullmatch(plain) is not None and groups <= 1, "archive.name", said)
    need(archive.group_by == "run" or groups > 0, "archive.name", "needs {group} unless group_by = 'run'")
    for problem in path_template_problems(archive.path):
        need(False, "archive.path", problem)
    need(64 << 10 <= archive.block_bytes <= 64 << 20, "archive.block_bytes", "must be 64 KiB to 64 MiB")
    need(archive.cut_bytes >= archive.block_bytes, "archive.cut_bytes", "must be at least archive.block_bytes")
    need(archive.cut_files >= 1, "archive.cut_files", "must be at least 1")
    need(archive.group_bytes <= archive.cut_bytes, "archive.group_bytes", "must be at most archive.cut_bytes")
    need(0 <= config.shards.count <= 10**9, "shards.count", "must be 0 (automatic) to 1,000,000,000")
    need(config.shards.target_bytes > 0, "shards.target_bytes", "must be more than 0")
    need(1 <= limits.connections <= 1024, "limits.connections", "must be 1 to 1024")
    need(1 <= limits.tasks <= limits.connections, "limits.tasks", "must be 1 to limits.connections")
    need(0 <= task.cores <= 10**6, "task.cores", "must be 0 (all granted) to 1,000,000")
    need(task.memory >= 256 << 20, "task.memory", "must be at least 256 MiB")
    need(task.scratch_bytes > 0, "task.scratch_bytes", "must be more than 0")
    need(1 <= task.attempts <= 100, "task.attempts", "must be 1 to 100")
    need(task.retry_base > 0, "task.retry_base", "must be more than 0 s")
    need(task.stall >= 1, "task.stall", "must be at least 1 s")
    need(task.item_deadline >= task.stall, "task.item_deadline", "must be at least task.stall")
    need(1 <= config.local.jobs <= 1000, "local.jobs", "must be 1 to 1000")
    return found


def _is_endpoint(url: str) -> bool:
    match = re.fullmatch(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:/[!-~]*)?", url)
    return match is not None and not set(url) & {"?", "#"} and int(match[1] or 0) < 1 << 16


def path_template_problems(template: str) -> list[str]:
    """Say why a path template cannot work; empty when it can. Pure.

    Folders are filled from the manifest, the last component from the file, so that a frame's paths are known only from
    content. SeriesInstanceUID must be among the folders: it alone keeps any two series apart.
    """
    problems = []
    allowed = (*ITEM_FIELDS, "SOPInstanceUID")
    fields = re.findall(r"\{([^{}]*)\}", template)
    folders, _, last = template.rpartition("/")
    if re.search(r"[^A-Za-z0-9._/{}-]", template) or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", template)):
        problems.append("may hold A-Z a-z 0-9 . _ - / and {fields}")
    if unknown := [field for field in fields if field not in allowed]:
        problems.append(f"unknown field {{{unknown[0]}}}; allowed: {', '.join(allowed)}")
    if "{SeriesInstanceUID}" not in folders:
        problems.append("its folders need {SeriesInstanceUID}")
    if last != "{SOPInstanceUID}.dcm":
        problems.append("must end in /{SOPInstanceUID}.dcm")
    if "{SOPInstanceUID}" in folders:
        problems.append("{SOPInstanceUID} may stand only in the last component")
    if "}{" in template:
        problems.append("fields of one component need a separator between them")
    if any(part[:1] in {"", ".", "-"} for part in template.split("/")):
        problems.append("has an empty component, or one that begins with '.' or '-'")
    if len(template) > 400 or any(len(text) > 100 for text in re.split(r"\{[^{}]*\}|/", template)):
        problems.append("is too long: at most 400 letters, and 100 between two fields")
    return problems


CONTENTS: tuple[str, ...] = get_args(Content)
