"""Which values of `[slurm]` cannot be, above all which options of sbatch are medhaul's own. Pure.

Names and forms of the options are those of sbatch(1). Long options may be shortened there (getopt_long(3)), so an
option is also refused when it could be a short form of one that is not allowed.
"""

from __future__ import annotations

import re

import msgspec

from pipeline.settings import Slurm, SlurmReduce

# Options with a key of their own.
KEYS = {
    "partition": "partition", "account": "account", "qos": "qos", "reservation": "reservation",
    "constraint": "constraint", "nodelist": "nodelist", "exclude": "exclude", "gres": "gres", "time": "time",
    "mem": "memory", "mem-per-cpu": "memory", "mem-per-gpu": "memory", "cpus-per-task": "cpus",
    "mail-user": "mail_user", "mail-type": "mail_type",
}  # fmt: skip
# Options that decide how medhaul's own jobs work.
OWNED = (
    "array", "output", "error", "input", "job-name", "dependency", "signal", "parsable", "export", "export-file",
    "open-mode", "chdir", "wrap", "requeue", "no-requeue", "wait", "clusters", "test-only", "hold", "nodes", "ntasks",
    "kill-on-invalid-dep", "quiet", "help", "usage", "version", "get-user-env", "nodefile",
)  # fmt: skip
SHORT = {
    "a": "array", "o": "output", "e": "error", "i": "input", "J": "job-name", "d": "dependency", "W": "wait",
    "M": "clusters", "H": "hold", "N": "nodes", "n": "ntasks", "D": "chdir", "Q": "quiet", "h": "help", "V": "version",
    "F": "nodefile", "p": "partition", "A": "account", "q": "qos", "C": "constraint", "w": "nodelist", "x": "exclude",
    "t": "time", "c": "cpus-per-task",
}  # fmt: skip
# Options without a value. Any other must bring it along, or it would take the option after it for one.
FLAGS = frozenset(
    {"contiguous", "exclusive", "spread-job", "use-min-nodes", "reboot", "oversubscribe", "overcommit", "no-kill",
     "nice", "propagate", "ignore-pbs"}
)  # fmt: skip
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TEXT_KEYS = ("partition", "account", "qos", "reservation", "constraint", "nodelist", "exclude", "gres")


def option_problem(option: str) -> str:
    """Say why an option cannot be passed on to sbatch; empty when it can."""
    if not option.isprintable():
        return "has unprintable letters"
    if match := re.fullmatch(r"-([A-Za-z])(.*)", option):
        name = SHORT.get(match[1], "")
        if not name:
            return "write it in its long form, --name=value"
        return _taken([name])
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(=.*)?", option)
    if match is None:
        return "must have the form --name=value"
    name = match[1]
    if problem := _taken([known for known in (*KEYS, *OWNED) if known == name or known.startswith(name)]):
        return problem
    if match[2] is None and name not in FLAGS:
        return "must have the form --name=value"
    return ""


def _taken(names: list[str]) -> str:
    if not names:
        return ""
    if names[0] in KEYS:
        return f"has a key of its own: slurm.{KEYS[names[0]]}"
    return f"is medhaul's own to set (--{names[0]})"


def find_slurm_problems(slurm: Slurm) -> list[tuple[str, str]]:
    """List the (key path, problem) of values that cannot be."""
    found: list[tuple[str, str]] = []

    def need(good: bool, key: str, problem: str) -> None:
        if not good:
            found.append((f"slurm.{key}", problem))

    tables: list[tuple[str, Slurm | SlurmReduce]] = [("", slurm), ("reduce.", slurm.reduce)]
    for prefix, table in tables:
        values = msgspec.structs.asdict(table)
        for name in (*TEXT_KEYS, "mail_user", "mail_type"):
            value = values.get(name, "")
            need(value.isprintable() and value.strip() == value, f"{prefix}{name}", f"{value!r} must be printable")
        for option in table.extra:
            problem = option_problem(option)
            need(not problem, f"{prefix}extra", f"{option!r} {problem}")
        need(0 <= table.cpus <= 10_000, f"{prefix}cpus", "must be 0 to 10,000")
    need(slurm.signal_lead <= 65535, "signal_lead", "must be at most 65535 s")  # sbatch(1): an integer from 0 to 65535
    need(0 <= slurm.requeue <= 100, "requeue", "must be 0 to 100")
    need(0 <= slurm.max_array <= 4_000_001, "max_array", "must be 0 (as the cluster says) to 4,000,001")
    need(slurm.poll >= 1, "poll", "must be at least 1 s")
    for name in slurm.environment:
        need(VARIABLE.fullmatch(name) is not None, "environment", f"{name!r} is not the name of a variable")
    return found
