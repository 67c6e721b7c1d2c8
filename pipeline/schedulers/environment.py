"""The variables a batch script sees, as Slurm sets them. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

LEAKING = ("SLURM_", "SBATCH_", "SRUN_", "SLURMD_")
YEAR = 365 * 86400  # the end time Slurm books for a job without limit


class TaskPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when a task starts."""

    job: str
    name: str
    cpus: int
    submit_dir: str
    node: str
    start: float
    limit: float
    restarts: int


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment without what a surrounding Slurm job put there, which would steer or mislead ours."""
    return {key: value for key, value in environ.items() if not key.startswith(LEAKING)}


def prepend_path(environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """Copy an environment with `folder` first on PATH."""
    return {**environ, "PATH": f"{folder}:{environ['PATH']}" if environ.get("PATH") else folder}


def medhaul_first(environ: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment so that jobs run the medhaul that submits them, unless MEDHAUL_ENV says otherwise."""
    binaries = Path(sys.executable).parent
    return prepend_path(environ, str(binaries)) if (binaries / "medhaul").is_file() else dict(environ)


def job_environment(environ: Mapping[str, str], place: TaskPlace) -> dict[str, str]:
    """Return the environment of a batch job; names and meanings as in sbatch(1)."""
    made = clean_environment(environ)
    made |= {
        "SLURM_JOB_ID": place.job,
        "SLURM_JOB_NAME": place.name,
        "SLURM_CPUS_PER_TASK": str(place.cpus),
        "SLURM_SUBMIT_DIR": place.submit_dir,
        "SLURM_JOB_START_TIME": str(int(place.start)),
        "SLURM_JOB_END_TIME": str(int(place.start + (place.limit or YEAR))),
        "SLURMD_NODENAME": place.node,
    }
    if place.restarts:  # unset on the first start
        made["SLURM_RESTART_COUNT"] = str(place.restarts)
    return made


def array_environment(
    environ: Mapping[str, str], place: TaskPlace, array: str, index: int, count: int
) -> dict[str, str]:
    """Return the environment of task `index` of the array job `array` of `count` tasks."""
    return job_environment(environ, place) | {
        "SLURM_ARRAY_JOB_ID": array,
        "SLURM_ARRAY_TASK_ID": str(index),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": str(count - 1),
        "SLURM_ARRAY_TASK_STEP": "1",
    }
