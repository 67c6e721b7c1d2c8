"""Calling Slurm's commands: a clean environment, a bound in time, and what `scontrol show config` says."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from pipeline.schedulers.base import SchedulerError
from pipeline.schedulers.environment import clean_environment

SECONDS = 180.0  # Slurm's own MessageTimeout, 10 s, times the repetitions its commands make of themselves
DEFAULT_ARRAY = 1001  # slurm.conf(5): MaxArraySize


class Answer(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its complaint on one line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return "; ".join(lines[-4:])


class NoAnswerError(SchedulerError):
    """A command of Slurm did not end in time; what it did is not known."""


class SlurmCalls:
    """Runs Slurm's commands."""

    def __init__(self, environ: Mapping[str, str] = os.environ, *, seconds: float = SECONDS) -> None:
        self.environ = slurm_environment(environ)
        self._seconds = seconds

    def __call__(self, *argv: str, environ: Mapping[str, str] | None = None, cwd: str | None = None) -> Answer:
        """Run one command to its end; its exit code is the caller's to judge.

        Parameters
        ----------
        environ
            Instead of our own environment, less what a surrounding job put there.

        Raises
        ------
        NoAnswerError
            When it does not end in time.
        SchedulerError
            When it is not there.
        """
        used = dict(self.environ if environ is None else environ)
        try:
            done = subprocess.run(
                argv, env=used, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                timeout=self._seconds, start_new_session=True,  # a Ctrl-C is for us: sbatch must end what it began
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NoAnswerError(
                f"{argv[0]} did not answer within {self._seconds:.0f} s",
                hint="is the cluster's controller up? try later",
            ) from None
        except OSError as error:
            raise SchedulerError(
                f"{argv[0]}: {error.strerror}", hint="run this where Slurm's commands are on PATH: a login node"
            ) from error
        return Answer(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for Slurm's commands: nothing of a surrounding job but where the cluster is; English."""
    made = clean_environment(environ) | {"LC_ALL": "C"}
    if conf := environ.get("SLURM_CONF"):
        made["SLURM_CONF"] = conf
    return made


class ClusterLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster says of itself.

    Attributes
    ----------
    max_array
        Most tasks in one array that begins at 0: by `MaxArraySize`, a bound of the index, and `max_array_tasks`. 0: the
        cluster takes no arrays.
    accounting
        Whether `sacct` has something to say.
    kill_wait
        Seconds from SIGTERM to SIGKILL.
    min_job_age
        Seconds for which the controller remembers a job that has ended.
    """

    cluster: str
    version: str
    max_array: int
    accounting: bool
    kill_wait: int
    min_job_age: int
    config: dict[str, str] = {}


def parse_cluster(text: str) -> ClusterLimits:
    """Read `scontrol show config`; what is not said has the default of slurm.conf(5). Pure."""
    config = {}
    for line in text.splitlines():
        name, found, value = line.partition("=")
        if found:
            config[name.strip()] = value.strip()
    size = _number(config.get("MaxArraySize", ""), DEFAULT_ARRAY)
    tasks = re.search(r"\bmax_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    return ClusterLimits(
        cluster=config.get("ClusterName", ""),
        version=config.get("SLURM_VERSION", ""),
        max_array=min(size, int(tasks[1])) if tasks else size,
        accounting=config.get("AccountingStorageType", "").endswith("slurmdbd"),
        kill_wait=_number(config.get("KillWait", ""), 30),
        min_job_age=_number(config.get("MinJobAge", ""), 300),
        config=config,
    )


def _number(text: str, default: int) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else default


def read_cluster(calls: SlurmCalls) -> ClusterLimits:
    """Ask the cluster what it is. Raises `SchedulerError` when it does not answer."""
    answer = calls("scontrol", "show", "config")
    if answer.code != 0:
        raise SchedulerError(f"scontrol show config: {answer.said}", hint="is the cluster's controller up? try later")
    return parse_cluster(answer.out)
