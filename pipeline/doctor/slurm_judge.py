"""What Slurm's answers mean for a run. Pure: facts and config in, findings out."""

from __future__ import annotations

import math
import re

from pipeline.doctor.records import CONFIG, SITE, Finding, failure, good, warning
from pipeline.doctor.slurm import SlurmFacts
from pipeline.doctor.slurm_texts import Partition, smallest
from pipeline.schedulers.slurm_calls import ClusterLimits
from pipeline.schedulers.slurm_jobs import refusal_hint
from pipeline.settings import Config, Slurm
from pipeline.units import render_duration, render_size

GROUP = "slurm"
# Less than this, and a task of the usual size spends its time starting and stopping.
SHORT_TIME = 2 * 3600.0


def classify_slurm(facts: SlurmFacts, config: Config, shards: int | None) -> list[Finding]:
    """Judge what Slurm said; `shards` of the run, None while it is not planned."""
    if not facts.found:
        return [_classify_absent(config.slurm)]
    if facts.limits is None:
        text = "sbatch is on PATH, but the controller cannot be asked: " + facts.problem
        return [failure(GROUP, "controller", text, "is this a login node of the cluster? is SLURM_CONF right?", SITE)]
    return [
        *_classify_cluster(facts.limits),
        *_classify_array(facts.limits, config.slurm),
        *_classify_counts(facts, config, shards),
        *_classify_accounting(facts, config.slurm),
        *_classify_partitions(facts, config),
        *_classify_tests(facts, config),
    ]


def classify_from_node(facts: SlurmFacts) -> list[Finding]:
    """Judge whether a job can ask Slurm, which it does to put itself back into the queue."""
    if facts.limits is not None:
        return [good(GROUP, "controller", f"answers here, too: cluster {facts.limits.cluster!r}")]
    said = facts.problem or "scontrol is not on PATH"
    hint = "tasks that run into their time limit cannot queue themselves again: `medhaul resume` does it"
    return [warning(GROUP, "controller", f"cannot be asked from here: {said}", hint)]


def _classify_absent(slurm: Slurm) -> Finding:
    text = "not found (no sbatch on PATH): tasks would run on this machine, by the local scheduler"
    if slurm == Slurm():
        return good(GROUP, "found", text)
    return warning(GROUP, "found", f"{text}; the config's [slurm] has no effect", "run this on a login node")


def _classify_cluster(limits: ClusterLimits) -> list[Finding]:
    config = limits.config
    found = [good(GROUP, "found", f"cluster {limits.cluster or 'unknown'!r}, {limits.version or 'unknown version'}")]
    requeue = {"1": "yes", "0": "no; medhaul's jobs ask for it"}.get(config.get("JobRequeue", ""), "unknown")
    found.append(
        good(
            GROUP,
            "ending jobs",
            f"KillWait {_stated(config, 'KillWait')}, MinJobAge {_stated(config, 'MinJobAge')}, "
            f"requeue after node failure: {requeue}",
        )
    )
    mode, kind = config.get("PreemptMode", ""), config.get("PreemptType", "")
    if kind in {"preempt/none", "(null)"} or mode == "OFF":
        found.append(good(GROUP, "preemption", "none"))
    elif not mode:
        found.append(good(GROUP, "preemption", "unknown"))
    elif "CANCEL" in mode:
        hint = "a preempted task ends; `medhaul resume RUN` goes on with what it had finished"
        found.append(warning(GROUP, "preemption", f"{mode} ({kind})", hint))
    else:
        found.append(good(GROUP, "preemption", f"{mode} ({kind or 'unknown type'})"))
    return found


def _stated(config: dict[str, str], name: str) -> str:
    value = config.get(name, "")
    match = re.fullmatch(r"(\d+)(?: sec)?", value)
    return f"{match[1]} s" if match else (value or "unknown")


def _classify_array(limits: ClusterLimits, slurm: Slurm) -> list[Finding]:
    size = limits.config.get("MaxArraySize", "unknown")
    tasks = re.search(r"\bmax_array_tasks=(\d+)", limits.config.get("SchedulerParameters", ""))
    text = f"MaxArraySize {size}, max_array_tasks {tasks[1] if tasks else 'not set'}"
    if limits.max_array < 1:
        return [failure(GROUP, "arrays", f"{text}: no job arrays here", "use `--scheduler local` in a job", SITE)]
    text += f": up to {limits.max_array} tasks in one array"
    if slurm.max_array > limits.max_array:
        hint = f"set slurm.max_array to at most {limits.max_array}, or to 0"
        return [warning(GROUP, "arrays", f"{text}, but slurm.max_array is {slurm.max_array}", hint)]
    return [good(GROUP, "arrays", text)]


def _classify_counts(facts: SlurmFacts, config: Config, shards: int | None) -> list[Finding]:
    limits, slurm = facts.limits, config.slurm
    known = limits.config.get("MaxJobCount", "") if limits else ""
    most = int(known) if known.isdecimal() else None
    text = f"of the whole cluster (MaxJobCount): {known or 'unknown'}; "
    if facts.associations is None:
        text += "yours (MaxSubmitJobs): unknown, sacctmgr does not tell"
        submit = running = None
    else:
        mine = [one for one in facts.associations if not slurm.account or one.account == slurm.account]
        qos = (facts.qos or {}).get(slurm.qos)
        submit = smallest([*(one.max_submit for one in mine), qos.max_submit if qos else None])
        running = smallest([*(one.max_jobs for one in mine), qos.max_jobs if qos else None])
        unset = "not set by your accounts, perhaps by a QOS"
        text += f"yours waiting and running (MaxSubmitJobs): {unset if submit is None else submit}; "
        text += f"yours running (MaxJobs): {unset if running is None else running}"
    jobs = None if shards is None else shards + 1
    for bound, name in ((submit, "MaxSubmitJobs"), (most, "MaxJobCount")):
        if jobs is not None and bound is not None and jobs > bound:
            hint = "submit goes as far as it may, and --continue further; larger shards need fewer jobs"
            return [warning(GROUP, "job counts", f"{text}; the run needs {jobs}, more than {name}", hint)]
    if running is not None and running < config.limits.tasks:
        hint = f"set limits.tasks to {max(1, running)}, so that each task gets its share of the connections"
        return [warning(GROUP, "job counts", f"{text}; limits.tasks is {config.limits.tasks}", hint)]
    return [good(GROUP, "job counts", text)]


def _classify_accounting(facts: SlurmFacts, slurm: Slurm) -> list[Finding]:
    found = []
    configured = facts.limits is not None and facts.limits.accounting
    if not configured:
        age = facts.limits.min_job_age if facts.limits else 0
        text = f"none: how a job ended is known for {age} s only; receipts decide anyway"
        found.append(good(GROUP, "accounting", text))
    elif facts.accounting_answers:
        found.append(good(GROUP, "accounting", "yes, and sacct answers"))
    else:
        text = f"configured, but sacct does not answer: {facts.accounting_said or 'unknown why'}"
        found.append(warning(GROUP, "accounting", text, "status will know less of ended jobs; receipts decide anyway"))
    enforced = (facts.limits.config if facts.limits else {}).get("AccountingStorageEnforce", "").lower()
    if slurm.account:
        accounts = sorted({one.account for one in facts.associations or []})
        found.append(_classify_name("account", slurm.account, accounts, enforced="associations" in enforced))
    if slurm.qos:
        granted = sorted({name for one in facts.associations or [] for name in one.qos} & set(facts.qos or {}))
        names = granted or sorted(facts.qos or {})
        found.append(_classify_name("qos", slurm.qos, names, enforced="qos" in enforced))
    return found


def _classify_name(kind: str, name: str, known: list[str], *, enforced: bool) -> Finding:
    """Judge whether a configured account or QOS is among those that the user is known to have."""
    what = f"{kind} {name}"
    if not known:
        return good(GROUP, what, "unknown whether there is one: sacctmgr does not tell")
    if name in known:
        return good(GROUP, what, "is one of yours")
    text, hint = f"is none of yours: {', '.join(known)}", f"set slurm.{kind} to one of these"
    return failure(GROUP, what, text, hint, CONFIG) if enforced else warning(GROUP, what, text, hint)


def choose_partitions(facts: SlurmFacts, slurm: Slurm) -> tuple[list[Partition], list[str]]:
    """The partitions that tasks would go to, and the configured names that there are none of."""
    known = facts.partitions or {}
    if slurm.partition:
        names = [name.strip() for name in slurm.partition.split(",")]
        return [known[name] for name in names if name in known], [name for name in names if name not in known]
    return [one for one in known.values() if one.default], []


def _classify_partitions(facts: SlurmFacts, config: Config) -> list[Finding]:
    if facts.partitions is None:
        return [warning(GROUP, "partitions", "unknown: scontrol show partition failed", "ask it yourself")]
    used, missing = choose_partitions(facts, config.slurm)
    names = ", ".join(sorted(facts.partitions)) or "none"
    found = [
        failure(GROUP, f"partition {name}", f"there is none; there are: {names}", "set slurm.partition to one", CONFIG)
        for name in missing
    ]
    if not used and not missing:
        text = f"no default partition, and slurm.partition is not set; there are: {names}"
        found.append(failure(GROUP, "partition", text, "set slurm.partition to one of these", CONFIG))
    for partition in used:
        found += _classify_partition(partition, config.slurm)
    return found


def _classify_partition(one: Partition, slurm: Slurm) -> list[Finding]:
    what = f"partition {one.name}"
    text = f"{one.state or 'state unknown'}, {_shown(one.nodes)} nodes, time limit {render_limit(one.max_time)}, "
    text += f"without asking {render_limit(one.default_time)}; preemption {one.preempt or 'unknown'}, "
    text += f"grace {'unknown' if one.grace is None else f'{one.grace:.0f} s'}; memory of a node {_size(one.memory)}"
    found = [good(GROUP, what, text)]
    if one.state and one.state != "UP":
        found.append(warning(GROUP, what, f"is {one.state}: jobs wait", "choose another slurm.partition"))
    if slurm.time and one.max_time is not None and slurm.time > one.max_time:
        text = f"slurm.time {render_duration(slurm.time)} is more than its limit {render_limit(one.max_time)}"
        found.append(warning(GROUP, what, text, "lower slurm.time; such jobs are refused, or wait for ever"))
    limit = slurm.time or one.default_time
    if limit is not None and limit < SHORT_TIME:
        text = f"a task would get {render_limit(limit)}"
        hint = "set slurm.time to some hours, or let tasks be small (shards.target_bytes)"
        found.append(warning(GROUP, what, text, hint))
    return found


def _classify_tests(facts: SlurmFacts, config: Config) -> list[Finding]:
    found = []
    for name, taken, said in facts.tests:
        what = f"test of a {name}"
        if taken:
            found.append(good(GROUP, what, re.sub(r"^sbatch: ", "", said)))
        else:
            hint = refusal_hint(said, config)
            if "medhaul doctor" in hint:  # which is what this is
                hint = "compare [slurm] with what the cluster has, above"
            if name != "task":
                hint += "; [slurm.reduce] is for this job alone"
            found.append(
                failure(
                    GROUP, what, f"refused by sbatch --test-only: {said.replace('sbatch: error: ', '')}", hint, SITE
                )
            )
    return found


def render_limit(seconds: float | None) -> str:
    """A time limit for people."""
    if seconds is None:
        return "unknown"
    if math.isinf(seconds):
        return "none"
    return render_duration(seconds)


def _size(count: float | None) -> str:
    if count is None:
        return "unknown"
    return "not limited" if math.isinf(count) else render_size(count)


def _shown(count: int | None) -> str:
    return "unknown" if count is None else str(count)
