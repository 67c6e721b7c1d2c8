"""What is asked of sbatch: its options for an array and for the reduce job, and the environment they get. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pipeline.errors import ConfigError
from pipeline.schedulers.base import ATTEMPT, ENV, HOME, OFFSET, RUN, ArraySpec, ReduceSpec
from pipeline.settings import Config
from pipeline.units import render_size

CPUS = 2
REDUCE_MEMORY = 1 << 30
TEXT_OPTIONS = ("partition", "account", "qos", "reservation", "constraint", "nodelist", "exclude", "gres")
# What jobs get of the submitter's environment. Not all of it: slurmctld keeps a job's environment, and a site may keep
# it in its accounting database for others to read. No TMPDIR: the login node's means nothing on a compute node.
PASSED = frozenset(
    {
        "HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "SLURM_CONF",
        "PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_EXE", "CONDA_SHLVL",
        "CONDA_DEFAULT_ENV", "CONDA_PYTHON_EXE", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "MODULEPATH", "MODULEPATH_ROOT", "MODULESHOME", "MODULES_CMD",
        "LOADEDMODULES", "_LMFILES_", "BASH_ENV", "BASH_FUNC_module%%", "BASH_FUNC_ml%%", "BASH_FUNC__module_raw%%",
        HOME, ENV, "MEDHAUL_TCIA_CREDENTIALS", "MEDHAUL_ISIC_CREDENTIALS",
    }
)  # fmt: skip
LOCALE = ("ALL", "COLLATE", "CTYPE", "MESSAGES", "MONETARY", "NUMERIC", "TIME")  # no others: LC_* is let through by ssh
# Secrets that commands of a login node take from the environment; jobs need a file for them.
SECRETS = ("MEDHAUL_TCIA_USERNAME", "MEDHAUL_TCIA_PASSWORD", "MEDHAUL_ISIC_TOKEN")
PASSED_PREFIXES = ("LMOD_", "__LMOD_", "__MODULES_")
SECRET = re.compile("SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY", re.IGNORECASE)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def passed_environment(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return what a job gets of an environment: what it needs to find its programs, proxies, and `names`.

    A proxy's URL with a user or password in it is left out.
    """
    wanted = PASSED | {f"LC_{name}" for name in LOCALE} | set(names)
    made = {
        key: value
        for key, value in environ.items()
        if key in wanted or (key.startswith(PASSED_PREFIXES) and not SECRET.search(key))
    }
    proxies = {key: value for key, value in environ.items() if key.lower() in PROXIES and "@" not in value}
    return made | proxies


def job_variables(spec: ArraySpec | ReduceSpec) -> dict[str, str]:
    """Return the variables that tell a batch script what it is to do."""
    made = {RUN: str(spec.run), ATTEMPT: str(spec.attempt)}
    return made | {OFFSET: str(spec.offset)} if isinstance(spec, ArraySpec) else made


def sbatch_arguments(
    spec: ArraySpec | ReduceSpec, config: Config, after: Sequence[str], extra: Sequence[str]
) -> list[str]:
    """Return the whole command line for a job; `after` are ids of jobs that must have ended, however they ended.

    `extra` come last, and win over the same options of the config.
    """
    slurm = config.slurm
    made = [
        "sbatch", "--parsable", f"--job-name={spec.name}", "--open-mode=append", "--requeue", "--export=ALL",
        "--nodes=1", "--ntasks=1", f"--chdir={spec.run}",
    ]  # fmt: skip
    logs = escape_pattern(str(spec.logs))
    if isinstance(spec, ArraySpec):
        made += [f"--array=0-{spec.length - 1}%{spec.throttle}", f"--output={logs}/%A_%a.log"]
        made.append(f"--signal=B:USR1@{slurm.lead()}")
    else:
        made.append(f"--output={logs}/reduce.log")
    if after:
        made.append("--dependency=afterany:" + ":".join(after))
    made += resource_options(config, reduce=isinstance(spec, ReduceSpec))
    return [*made, *extra, str(spec.script)]


def resource_options(config: Config, *, reduce: bool) -> list[str]:
    """Return the options for what a task, or the reduce job, needs of the cluster."""
    table = msgspec.structs.asdict(config.slurm)
    memory = config.slurm.memory or math.ceil(1.25 * config.task.memory)
    cpus = config.slurm.cpus or config.task.cores or CPUS
    if reduce:
        over = msgspec.structs.asdict(config.slurm.reduce)
        memory = over["memory"] or max(memory, REDUCE_MEMORY)
        cpus = over["cpus"] or CPUS
        table |= {key: value for key, value in over.items() if value}
    made = [f"--{name}={table[name]}" for name in TEXT_OPTIONS if table[name]]
    if table["time"]:
        made.append(f"--time={render_time(table['time'])}")
    if config.slurm.ask_memory:
        made.append(f"--mem={math.ceil(memory / (1 << 20))}M")
    made.append(f"--cpus-per-task={cpus}")
    if reduce:  # one mail a run, not one a task
        made += [f"--mail-{name}={table[f'mail_{name}']}" for name in ("user", "type") if table[f"mail_{name}"]]
    return [*made, *table["extra"]]


def render_time(seconds: float) -> str:
    """A time limit as sbatch(1) reads it; Slurm counts in minutes, and so do we, upwards."""
    minutes = max(1, math.ceil(seconds / 60))
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00" if days else f"{rest // 60:02d}:{rest % 60:02d}:00"


def escape_pattern(path: str) -> str:
    """Return a path as sbatch's file name patterns need it. Raises `ConfigError` for one they cannot express."""
    if "\\" in path:  # it would switch off all patterns of the name: sbatch(1), "filename pattern"
        raise ConfigError(
            f"storage.logs: {path!r} has a backslash, which sbatch cannot take", hint="choose another folder"
        )
    return path.replace("%", "%%")


def parse_job_id(out: str) -> tuple[str, str]:
    """Read the id, and the cluster if there is one, from what `sbatch --parsable` printed.

    A site's wrapper may print other things: the last line of the right form counts. Raises ValueError when none has it.
    """
    for line in reversed(out.splitlines()):
        match = re.fullmatch(r"([0-9]{1,20})(?:;(\S+))?", line.strip())
        if match:
            return match[1], match[2] or ""
    raise ValueError("no job id in what sbatch printed")


# What sbatch says, as in slurm_errno.c. After the first kind nobody knows whether the job was taken.
LOST_ANSWER = re.compile(
    r"socket timed out|timed out|zero bytes were transmitted|connection reset|communication connection failure"
    r"|message receive failure|unexpected message received|failed to receive",
    re.IGNORECASE,
)
BUSY = re.compile(
    r"unable to contact slurm controller|resource temporarily unavailable|slurmctld is.*(?:not responding|busy)"
    r"|temporarily unable to accept|queue is full|try again",
    re.IGNORECASE,
)
FULL = re.compile(r"MaxSubmit|submit limit|job submit limit|MaxJobCount|JobsLimit", re.IGNORECASE)


def refusal_hint(said: str, config: Config) -> str:
    """Say what can be done about what sbatch said."""
    if FULL.search(said):
        return (
            "the cluster takes no more jobs of yours now; when some have ended, go on with --continue; "
            "when there are none, set slurm.max_array to as many as it takes, and submit the config again"
        )
    if "array specification" in said:
        return "set slurm.max_array below the cluster's MaxArraySize (`medhaul doctor` tells it)"
    if re.search(r"memory|node configuration", said, re.IGNORECASE):
        return f"no node has what slurm.memory, slurm.cpus ask for; task.memory is {render_size(config.task.memory)}"
    if re.search(r"time limit", said, re.IGNORECASE):
        return "lower slurm.time, or choose another slurm.partition"
    if re.search(r"partition|account|qos|reservation|constraint|feature|gres", said, re.IGNORECASE):
        return "see [slurm] in the config; `medhaul doctor CONFIG` tells what the cluster has"
    return "`medhaul doctor CONFIG` may tell more"
