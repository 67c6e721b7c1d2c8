"""The whole examination, in order: each probe with its judgement. One place that knows what belongs to what."""

from __future__ import annotations

import importlib.metadata
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import pipeline
from pipeline.config import ENVIRONMENT, HINT, parse_config, read_config
from pipeline.doctor.bounded import run_bounded
from pipeline.doctor.machine import (
    check_credentials,
    classify_credentials,
    classify_machine,
    credential_paths,
    probe_machine,
)
from pipeline.doctor.network import Site, classify_proxies, classify_site, list_sites, probe_sites
from pipeline.doctor.node import NodeCheck
from pipeline.doctor.records import CONFIG, DoctorReport, Finding, Suggestion, failure, good, make_report, warning
from pipeline.doctor.scratch import RunNeeds, classify_scratch, probe_others, probe_scratch, read_needs, suggest_scratch
from pipeline.doctor.slurm import SlurmFacts, probe_slurm
from pipeline.doctor.slurm_judge import choose_partitions, classify_from_node, classify_slurm
from pipeline.doctor.storage import classify_storage, probe_storage
from pipeline.doctor.suggest import suggest_slurm
from pipeline.errors import ConfigError, MedhaulError
from pipeline.settings import Config
from pipeline.task.resources import choose_workers, granted_cores

MANIFEST_SECONDS = 120.0


class Examination(msgspec.Struct, kw_only=True):
    """What was found so far, and what the job on a node needs. `given`: the config is the user's and is good."""

    config: Config
    given: bool
    slurm: SlurmFacts
    findings: list[Finding]
    suggestions: list[Suggestion]


def examine(
    path: Path | None, environ: Mapping[str, str] = os.environ, *, here: bool = False, more: Sequence[Site] = ()
) -> Examination:
    """Look at everything on this machine.

    Parameters
    ----------
    path
        The config file; None to check what needs none, with default settings.
    here
        This is a job on a node: Slurm is only asked whether it answers, and scratch must be usable.
    more
        Sites to reach beside those of the config.
    """
    config, given, findings = load_config(path, environ)
    slurm = probe_slurm(config, environ, brief=here)
    on_cluster = slurm.found and slurm.limits is not None
    tasks_here = here or not on_cluster or "SLURM_JOB_ID" in environ
    needs = None
    if given:
        needs, found = _find_needs(config)
        findings += [*found, *_check_memory(config, environ)]
    findings += classify_machine(probe_machine(environ), config, tasks_here=tasks_here)
    shards = needs.shards if needs else None
    findings += classify_from_node(slurm) if here else classify_slurm(slurm, config, shards)
    suggestions = [] if here else suggest_slurm(slurm, config)
    places = probe_scratch(config, environ)
    findings += classify_scratch(places, config.task, needs, elsewhere=not tasks_here)
    if tasks_here:
        suggestions += suggest_scratch(places, probe_others(places), config.task, needs)
    if given:
        findings += _examine_storage(config, environ, needs, slurm=on_cluster, here=here)
    findings += classify_proxies(environ, config.slurm.environment, slurm=slurm.found)
    sites, said = list_sites(config.sources.idc, more)
    findings += said
    answers = probe_sites(sites, environ)
    findings += [classify_site(site, answer) for site, answer in zip(sites, answers, strict=True)]
    if not here:
        findings += check_index(config, required=given)
    findings += classify_credentials(check_credentials(credential_paths(environ)))
    return Examination(config=config, given=given, slurm=slurm, findings=findings, suggestions=suggestions)


def examine_node(
    seen: Examination, path: Path, environ: Mapping[str, str], *, timeout: float, note: Callable[[str], None]
) -> DoctorReport | None:
    """Let a job examine a node, add what is to be said of the job, and return the node's report."""
    used, _ = choose_partitions(seen.slurm, seen.config.slurm)
    most = min((one.max_time for one in used if one.max_time), default=math.inf)
    found, report = NodeCheck(seen.config, path, environ, timeout=timeout, most=most, note=note).run()
    seen.findings += found
    return report


def report_on(seen: Examination, node: DoctorReport | None) -> DoctorReport:
    """Make the report."""
    return make_report(socket.gethostname(), pipeline.__version__, seen.findings, seen.suggestions, node)


def load_config(path: Path | None, environ: Mapping[str, str]) -> tuple[Config, bool, list[Finding]]:
    """Read the config; default settings where there is none, or a bad one, which is a finding then."""
    if path is not None:
        try:
            config = read_config(path, environ)
        except ConfigError as error:
            found = [failure("config", "config", str(error), error.hint, CONFIG)]
            return default_config({}), False, found
        return config, True, [good("config", "config", f"{path}: run {config.run.name}")]
    try:
        return default_config(environ), False, [good("config", "config", "none given: default settings")]
    except ConfigError as error:
        return default_config({}), False, [failure("config", "config", str(error), error.hint, CONFIG)]


def default_config(environ: Mapping[str, str]) -> Config:
    """Default settings, with the endpoints that the environment names. Raises `ConfigError` when these cannot be."""
    idc = {keys[-1]: environ[name] for name, keys in ENVIRONMENT.items() if keys[1] == "idc" and environ.get(name)}
    return parse_config(
        {
            "run": {"name": "doctor"},
            "storage": {"root": "."},
            "select": {"idc": {"content": "original"}},
            "sources": {"idc": idc},
        },
        "the environment",
    )


def check_index(config: Config, *, required: bool) -> list[Finding]:
    """Check that the index to plan from is there; one that is a URL is among the sites."""
    idc = config.sources.idc
    what = "IDC index"
    if idc.s3_endpoint == "demo" or idc.index.startswith(("http://", "https://")):
        return []
    if idc.index != "packaged":
        if Path(idc.index).is_file():
            return [good("network", what, f"the file {idc.index}")]
        hint = "name a Parquet file, its URL, or 'packaged'"
        return [failure("network", what, f"{idc.index}: no such file", hint, CONFIG)]
    hint = "pip install 'medhaul[idc]'"
    try:
        version = importlib.metadata.version("idc-index-data")
    except importlib.metadata.PackageNotFoundError:
        text = "'packaged', but idc-index-data is not installed here"
        if required:
            return [warning("network", what, f"{text}: a run cannot be planned", hint)]
        return [warning("network", what, text, hint)]
    pinned = idc.release
    if pinned and version.split(".")[: pinned.count(".") + 1] != pinned.split("."):
        text = f"release {pinned} is asked for, but idc-index-data {version} is installed"
        return [failure("network", what, text, f"pip install 'idc-index-data=={pinned}.*'", CONFIG)]
    return [good("network", what, f"idc-index-data {version}, installed")]


def _find_needs(config: Config) -> tuple[RunNeeds | None, list[Finding]]:
    try:
        needs = run_bounded(lambda: read_needs(config), MANIFEST_SECONDS)
    except (MedhaulError, OSError) as error:  # TimeoutError is an OSError
        text = f"run {config.run.name}: {error}"
        return None, [warning("config", "run", text, getattr(error, "hint", "") or "its storage does not answer")]
    if needs is None:
        return None, [good("config", "run", f"{config.run.name} is not planned yet")]
    return needs, [good("config", "run", f"{config.run.name} is planned: {needs.shards} shards")]


def _check_memory(config: Config, environ: Mapping[str, str]) -> list[Finding]:
    """Check that a task's memory holds what the archive settings ask for."""
    task, archive = config.task, config.archive
    share = max(1, config.limits.connections // config.limits.tasks)
    try:
        choose_workers(task.memory, task.cores or granted_cores(environ), share, archive.block_bytes, archive.cut_files)
    except ConfigError as error:
        return [failure("config", "task.memory", str(error), error.hint or HINT, CONFIG)]
    return []


def _examine_storage(
    config: Config, environ: Mapping[str, str], needs: RunNeeds | None, *, slurm: bool, here: bool
) -> list[Finding]:
    needed = needs.total if needs else int(config.shards.target_bytes)
    root = probe_storage(Path(config.storage.root), environ)
    found = classify_storage("storage.root", root, needed, slurm=slurm, here=here)
    logs = Path(config.storage.logs)
    if Path(config.storage.root) in logs.parents and not logs.exists():
        return found  # it will be made below the root, which was looked at
    facts = probe_storage(logs, environ)
    judged = classify_storage("storage.logs", facts, 0, slurm=slurm, here=here)
    # On the same file system, room and visibility are the same: no need to say it twice.
    return found + (judged[:1] if facts.mount == root.mount else judged)
