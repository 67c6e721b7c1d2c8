"""Which scheduler an attempt goes to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from pipeline.errors import UsageError
from pipeline.rundir import RunDir
from pipeline.schedulers.base import Scheduler
from pipeline.schedulers.local import LocalScheduler
from pipeline.settings import Config

CHOICES = ("auto", "slurm", "local")


def choose_scheduler(asked: str, which: Callable[[str], str | None] = shutil.which) -> str:
    """Choose a scheduler's name: `auto` is Slurm where there is an sbatch.

    Raises
    ------
    UsageError
        When Slurm is asked for and not there.
    """
    if asked == "slurm" and not which("sbatch"):
        raise UsageError(
            "there is no sbatch on PATH", hint="run this on a login node of the cluster, or use --scheduler local"
        )
    if asked == "auto":
        return "slurm" if which("sbatch") else "local"
    return asked


def open_scheduler(name: str, run: RunDir, extra: Sequence[str] = (), config: Config | None = None) -> Scheduler:
    """Open the scheduler that an attempt's plan names.

    `extra` are options of sbatch for a submission; `config` is for a run that is not planned yet. Raises `UsageError`
    for a scheduler that this version lacks.
    """
    if name == LocalScheduler.name:
        return LocalScheduler(run, config=config)
    if name == "slurm":
        from pipeline.schedulers.slurm import SlurmScheduler  # the local scheduler's tasks need none of it

        return SlurmScheduler(run, extra=extra, config=config)
    raise UsageError(
        f"{run.path}: submitted to the scheduler {name!r}", hint="use the medhaul version that submitted it"
    )
