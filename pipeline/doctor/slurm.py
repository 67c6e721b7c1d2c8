"""Asking Slurm: a handful of short questions, none of which submits anything."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from pipeline.doctor.slurm_texts import (
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    Association,
    Partition,
    Qos,
    parse_associations,
    parse_partitions,
    parse_qos,
)
from pipeline.schedulers.base import SchedulerError
from pipeline.schedulers.slurm_calls import Answer, ClusterLimits, SlurmCalls, read_cluster
from pipeline.schedulers.slurm_jobs import passed_environment, resource_options
from pipeline.settings import Config

SECONDS = 20.0
TRIAL_SCRIPT = "#!/bin/sh\nexit 0\n"


class SlurmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Slurm said. None: it was not asked, or did not say.

    Attributes
    ----------
    found
        Whether sbatch is on PATH.
    problem
        Why the controller cannot be asked; empty when it can.
    limits
        Of `scontrol show config`.
    accounting_answers, accounting_said
        Whether sacct answers, and its complaint when it does not.
    tests
        What `sbatch --test-only` said: (of which job, whether it would be taken, what was said).
    """

    found: bool
    problem: str = ""
    limits: ClusterLimits | None = None
    partitions: dict[str, Partition] | None = None
    associations: list[Association] | None = None
    qos: dict[str, Qos] | None = None
    accounting_answers: bool | None = None
    accounting_said: str = ""
    tests: tuple[tuple[str, bool, str], ...] = ()


def probe_slurm(
    config: Config,
    environ: Mapping[str, str],
    *,
    brief: bool,
    which: Callable[..., str | None] = shutil.which,
    seconds: float = SECONDS,
) -> SlurmFacts:
    """Ask Slurm's commands what a run needs to know; `brief` asks only whether the controller answers."""
    if which("scontrol" if brief else "sbatch", path=environ.get("PATH")) is None:
        return SlurmFacts(found=False)
    calls = SlurmCalls(environ, seconds=seconds)
    try:
        limits = read_cluster(calls)
    except SchedulerError as error:
        return SlurmFacts(found=True, problem=str(error))
    if brief:
        return SlurmFacts(found=True, limits=limits)
    partitions = _ask(calls, "scontrol", "--oneliner", "show", "partition")
    user = f"user={user_name(environ)}"
    associations = _ask(calls, "sacctmgr", "-n", "-P", "show", "assoc", user, f"format={ASSOCIATION_FIELDS}")
    qos = _ask(calls, "sacctmgr", "-n", "-P", "show", "qos", f"format={QOS_FIELDS}")
    answers, said = _try_accounting(calls)
    return SlurmFacts(
        found=True,
        limits=limits,
        partitions=None if partitions is None else parse_partitions(partitions),
        associations=None if associations is None else parse_associations(associations),
        qos=None if qos is None else parse_qos(qos),
        accounting_answers=answers,
        accounting_said=said,
        tests=tuple(_try_jobs(calls, config, environ)),
    )


def user_name(environ: Mapping[str, str]) -> str:
    """Name of the user that this process runs as."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an id that this machine has no name for
        return environ.get("USER") or str(os.getuid())


def _ask(calls: SlurmCalls, *argv: str) -> str | None:
    """What a command printed; None when it failed, is not there or did not answer: unknown, then."""
    try:
        answer = calls(*argv)
    except SchedulerError:
        return None
    return answer.out if answer.code == 0 else None


def _try_accounting(calls: SlurmCalls) -> tuple[bool, str]:
    try:
        answer = calls("sacct", "-X", "-n", "-P", "-o", "JobID", "-j", "1")
    except SchedulerError as error:
        return False, str(error)
    return answer.code == 0, answer.said


def _try_jobs(calls: SlurmCalls, config: Config, environ: Mapping[str, str]) -> list[tuple[str, bool, str]]:
    """Let sbatch judge a job like a task, and one like the reduce job, without submitting them."""
    given = passed_environment(environ, config.slurm.environment)
    jobs = {"task": ["--array=0-0", *resource_options(config, reduce=False)]}
    jobs["reduce job"] = resource_options(config, reduce=True)
    said = []
    with tempfile.TemporaryDirectory(prefix="medhaul-doctor-") as folder:
        script = Path(folder) / "trial.sh"
        script.write_text(TRIAL_SCRIPT, encoding="utf-8")
        for name, options in jobs.items():
            argv = ["sbatch", "--test-only", "--output=/dev/null", "--nodes=1", "--ntasks=1", *options, str(script)]
            try:
                answer = calls(*argv, environ=given)
            except SchedulerError as error:
                said.append((name, False, str(error)))
                continue
            said.append((name, answer.code == 0, _last_line(answer)))
    return said


def _last_line(answer: Answer) -> str:
    """The line that says most: the verdict on the job, which comes last; banners of a site come before it."""
    lines = [line.strip() for line in (answer.err or answer.out).splitlines() if line.strip()]
    return (lines[-1] if answer.code == 0 else answer.said) if lines else f"exit code {answer.code}"
