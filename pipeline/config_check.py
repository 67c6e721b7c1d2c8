"""What a config of the right types still cannot be: decisions about values, each with its key path. Pure."""

from __future__ import annotations

import re

import msgspec

from pipeline.config_slurm import find_slurm_problems
from pipeline.settings import ITEM_FIELDS, Config

ISIC_FIELDS = ("collection", "isic_id", "licence", "lesion_id", "patient_id")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def find_impossible(config: Config) -> list[tuple[str, str]]:
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
    selections = {name: table for name, table in msgspec.structs.asdict(config.select).items() if table is not None}
    need(len(selections) == 1, "select", "needs exactly one of [select.idc], [select.tcia], [select.isic]")
    for source, table in selections.items():
        for name, value in msgspec.structs.asdict(table).items():
            need(not isinstance(value, tuple) or all(value), f"select.{source}.{name}", "must not hold an empty value")
    if (wanted := config.select.tcia) is not None:
        places = (wanted.collections, wanted.patients, wanted.studies, wanted.series, wanted.cart, wanted.manifest)
        need(any(places), "select.tcia", "needs collections, patients, studies, series, cart or manifest")
    if (images := config.select.isic) is not None:
        need(images.limit >= 0, "select.isic.limit", "must be 0 (all) or more")
    url = config.sources.isic.base_url
    said = f"{url!r} must be 'demo' or an http:// or https:// URL without credentials"
    need(url == "demo" or _is_endpoint(url), "sources.isic.base_url", said)
    tcia = config.sources.tcia
    for name, word in (("base_url", "demo"), ("nlst_base_url", "")):
        url = getattr(tcia, name)
        said = f"{url!r} must be {word!r} or an http:// or https:// URL without credentials"
        need(url == word or _is_endpoint(url), f"sources.tcia.{name}", said)
    need(1 <= tcia.connections <= 1024, "sources.tcia.connections", "must be 1 to 1024")
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
    isic = config.select.isic is not None
    for problem in (isic_path_problems if isic else path_template_problems)(archive.path):
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
    return found + find_slurm_problems(config.slurm)


def _is_endpoint(url: str) -> bool:
    match = re.fullmatch(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:/[!-~]*)?", url)
    return match is not None and not set(url) & {"?", "#"} and int(match[1] or 0) < 1 << 16


def isic_path_problems(template: str) -> list[str]:
    """Say why a path template of images cannot work; empty when it can. Pure.

    All but the extension is filled from the manifest; {isic_id} keeps any two images apart.
    """
    problems = []
    allowed = (*ISIC_FIELDS, "ext")
    fields = re.findall(r"\{([^{}]*)\}", template)
    if unknown := [field for field in fields if field not in allowed]:
        problems.append(f"unknown field {{{unknown[0]}}}; of images there are: {', '.join(allowed)}")
    if not template.endswith("{isic_id}.{ext}") or template.count("{ext}") != 1:
        problems.append("must end in {isic_id}.{ext}")
    return problems + _spelling_problems(template)


def path_template_problems(template: str) -> list[str]:
    """Say why a path template cannot work; empty when it can. Pure.

    Folders are filled from the manifest, the last component from the file, so that a frame's paths are known only from
    content. SeriesInstanceUID must be among the folders: it alone keeps any two series apart.
    """
    problems = []
    allowed = (*ITEM_FIELDS, "SOPInstanceUID")
    fields = re.findall(r"\{([^{}]*)\}", template)
    folders, _, last = template.rpartition("/")
    if unknown := [field for field in fields if field not in allowed]:
        problems.append(f"unknown field {{{unknown[0]}}}; allowed: {', '.join(allowed)}")
    if "{SeriesInstanceUID}" not in folders:
        problems.append("its folders need {SeriesInstanceUID}")
    if last != "{SOPInstanceUID}.dcm":
        problems.append("must end in /{SOPInstanceUID}.dcm")
    if "{SOPInstanceUID}" in folders:
        problems.append("{SOPInstanceUID} may stand only in the last component")
    return problems + _spelling_problems(template)


def _spelling_problems(template: str) -> list[str]:
    """What is wrong with a path template whatever its fields."""
    problems = []
    if re.search(r"[^A-Za-z0-9._/{}-]", template) or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", template)):
        problems.append("may hold A-Z a-z 0-9 . _ - / and {fields}")
    if "}{" in template:
        problems.append("fields of one component need a separator between them")
    if any(part[:1] in {"", ".", "-"} for part in template.split("/")):
        problems.append("has an empty component, or one that begins with '.' or '-'")
    if len(template) > 400 or any(len(text) > 100 for text in re.split(r"\{[^{}]*\}|/", template)):
        problems.append("is too long: at most 400 letters, and 100 between two fields")
    return problems
