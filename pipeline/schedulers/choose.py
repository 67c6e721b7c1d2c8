"""Which scheduler an attempt goes to."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from pipeline.errors import UsageError
from pipeline.rundir import RunDir
from pipeline.schedulers.base import Scheduler
from pipeline.schedulers.local import LocalScheduler

CHOICES = ("auto", "slurm", "local")


def choose_scheduler(asked: str, which: Callable[[str], str | None] = shutil.which) -> tuple[str, str]:
    """Choose a scheduler's name, and say what the user should know about the choice (may be empty).

    Raises
    ------
    UsageError
        When the scheduler asked for is not in this version.
    """
    if asked == "slurm":
        raise UsageError("the Slurm scheduler is not in this version", hint="use --scheduler local")
    if asked == "auto" and which("sbatch"):
        return (
            "local",
            "sbatch is on PATH, but this version submits to the local scheduler only: tasks run on this machine",
        )
    return "local", ""


def open_scheduler(name: str, run: RunDir) -> Scheduler:
    """Open the scheduler that an attempt's plan names. Raises `UsageError` for one that this version lacks."""
    if name == LocalScheduler.name:
        return LocalScheduler(run)
    raise UsageError(
        f"{run.path}: submitted to the scheduler {name!r}", hint="use the medhaul version that submitted it"
    )
