"""Config lines that would help, from what was found. Pure."""

from __future__ import annotations

import math

from pipeline.doctor.records import Suggestion
from pipeline.doctor.scratch import toml_text
from pipeline.doctor.slurm import SlurmFacts
from pipeline.doctor.slurm_judge import SHORT_TIME, choose_partitions, render_limit
from pipeline.doctor.slurm_texts import Partition, smallest
from pipeline.settings import Config
from pipeline.units import render_size

USUAL_TIME = 12 * 3600.0
LEAST_MEMORY = 256 << 20
MIB = 1 << 20


def suggest_slurm(facts: SlurmFacts, config: Config) -> list[Suggestion]:
    """Choose lines for [slurm], [task] and [limits]; none for what is well or not known."""
    if facts.limits is None or not facts.partitions:
        return []
    used, missing = choose_partitions(facts, config.slurm)
    made = []
    if missing or not used:
        best = choose_partition(list(facts.partitions.values()))
        if best is None:
            return []
        why = f"{', '.join(missing)}: no such partition" if missing else "the cluster has no default partition"
        made.append(Suggestion(table="slurm", key="partition", value=toml_text(best.name), why=why))
        used = [best]
    return [*made, *_suggest_time(used, config), *_suggest_memory(used, config), *_suggest_tasks(facts, config)]


def choose_partition(known: list[Partition]) -> Partition | None:
    """Choose a partition: the default, else one that is up and lets jobs run longest; None when there is none."""
    usable = [one for one in known if one.name.isprintable() and one.state in {"UP", ""}]
    return max(usable, key=lambda one: (one.default, one.max_time or 0), default=None)


def _suggest_time(used: list[Partition], config: Config) -> list[Suggestion]:
    most = min((one.max_time for one in used if one.max_time), default=math.inf)
    default = min((one.default_time for one in used if one.default_time is not None), default=math.inf)
    asked = config.slurm.time
    if asked > most:
        why = f"the partition's limit is {render_limit(most)}"
        return [Suggestion(table="slurm", key="time", value=_render_seconds(most), why=why)]
    better = min(USUAL_TIME, most)
    if not asked and default < SHORT_TIME and better > default:
        why = f"without it a task gets {render_limit(default)}"
        return [Suggestion(table="slurm", key="time", value=_render_seconds(better), why=why)]
    return []


def _render_seconds(seconds: float) -> str:
    """A duration as TOML, in the largest unit that leaves nothing over."""
    whole = int(seconds)
    for unit, size in (("h", 3600), ("min", 60)):
        if whole and whole % size == 0:
            return toml_text(f"{whole // size} {unit}")
    return toml_text(f"{whole} s")


def _suggest_memory(used: list[Partition], config: Config) -> list[Suggestion]:
    most = min((one.memory for one in used if one.memory), default=math.inf)
    asked, needed = config.slurm.memory, math.ceil(1.25 * config.task.memory)
    if max(asked, 0 if asked else needed) > most:
        why = f"the partition gives a job at most {render_size(most)} on a node"
        made = [Suggestion(table="slurm", key="memory", value=toml_text(f"{int(most) // MIB} MiB"), why=why)]
        own = int(most) * 8 // 10 // MIB * MIB
        if own < config.task.memory and own >= LEAST_MEMORY:
            value = toml_text(f"{own // MIB} MiB")
            made.append(Suggestion(table="task", key="memory", value=value, why="what fits into slurm.memory"))
        return made
    if asked and asked < config.task.memory:
        value = toml_text(f"{math.ceil(needed / MIB)} MiB")
        why = "below task.memory, Slurm would end tasks that use what they may"
        return [Suggestion(table="slurm", key="memory", value=value, why=why)]
    return []


def _suggest_tasks(facts: SlurmFacts, config: Config) -> list[Suggestion]:
    slurm = config.slurm
    mine = [one.max_jobs for one in facts.associations or [] if not slurm.account or one.account == slurm.account]
    qos = (facts.qos or {}).get(slurm.qos)
    running = smallest([*mine, qos.max_jobs if qos else None])
    if running is None or not 1 <= running < config.limits.tasks:
        return []
    why = f"you may run {running} jobs at a time"
    return [Suggestion(table="limits", key="tasks", value=str(running), why=why)]
