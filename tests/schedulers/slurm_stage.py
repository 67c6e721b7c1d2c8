"""A stage for medhaul's commands on a cluster of shims: a run, a fake `medhaul` for its tasks, and calls that count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from click.testing import CliRunner

from pipeline.rundir import RunDir
from pipeline.schedulers.attempt import Attempt, Liveness, read_attempt
from pipeline.schedulers.slurm import SlurmScheduler
from pipeline.schedulers.slurm_states import FIELDS
from tests.schedulers.fake_run import make_fake, wait_until, write_run
from tests.slurm_shims.shims import ShimSlurm

AMBIENT = ("SLURM_", "SBATCH_", "MEDHAUL_")


class SlurmStage:
    """Everything below `root`; `knobs` are the cluster's. The end of a `with` block ends the cluster."""

    def __init__(self, root: Path, **knobs: Any) -> None:
        self.root = root
        self.fake = make_fake(root / "fake")
        plain = {key: value for key, value in os.environ.items() if not key.startswith(AMBIENT)}
        self.slurm = ShimSlurm(root / "cluster", base=plain, **{"kill_wait": 0.3, **knobs})
        self.environ = {
            **plain,
            **self.slurm.environ,
            "MEDHAUL_ENV": str(self.fake.folder / "environment.sh"),
            "MEDHAUL_SCHEDULER": "slurm",
        }

    def __enter__(self) -> Self:
        self.slurm.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.fake.end_children()
        self.slurm.stop()

    def run(self, shards: int, **tables: object) -> RunDir:
        """A planned run."""
        return write_run(self.root / "storage", shards, tables=tables)

    def scheduler(self, run: RunDir, **options: Any) -> SlurmScheduler:
        """A client of the cluster that never sleeps."""
        options = {"environ": self.environ, "sleep": lambda _: None, **options}
        return SlurmScheduler(run, **options)

    def call(self, command: Any, *words: object, env: dict[str, str] | None = None) -> Any:
        """Call a command in this process; what it raised is raised."""
        gone = {key: None for key in os.environ if key not in self.environ}
        done = CliRunner(env={**gone, **self.environ, **(env or {})}).invoke(command, [str(word) for word in words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def popen(self, *words: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start the real `medhaul`."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", *map(str, words)],
            env={**self.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def medhaul(self, *words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the real `medhaul` to its end, for two minutes at most."""
        with self.popen(*words, env=env) as child:
            try:
                out, err = child.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    def attempt(self, run: RunDir, number: int = 1) -> Attempt:
        """An attempt as a new client sees it."""
        return read_attempt(run, number, self.scheduler(run))

    def settle(self, run: RunDir, number: int = 1) -> Attempt:
        """Wait for the end of all jobs."""
        self.slurm.wait_idle()
        wait_until(lambda: self.attempt(run, number).liveness is not Liveness.ALIVE)
        return self.attempt(run, number)

    def counted(self) -> dict[str, int]:
        """How often each of Slurm's commands was called since the last `reset_calls`."""
        calls = [argv[0] for argv in self.slurm.calls()]
        return {name: calls.count(name) for name in sorted(set(calls))}

    def jobs_named(self, name: str) -> list[str]:
        """The ids of the cluster's jobs with a name."""
        found = self.scheduler_calls(
            "squeue", "--noheader", "--array", "--states=all", "--Format=ArrayJobID:20,Name:200"
        )
        return sorted({line.split()[0] for line in found.splitlines() if line.split()[1] == name})

    def scheduler_calls(self, *argv: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(argv, env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout


def shards_done(stage: SlurmStage, shards: int) -> list[int]:
    """How many lives the fake's tasks of each shard had."""
    names = [path.name.split(".")[0] for path in (stage.fake.folder / "trace").glob("[!.]*.json")]
    return [names.count(str(shard)) for shard in range(shards)]


def squeue_line(**values: object) -> str:
    """A line as `squeue --Format` pads it."""
    return "".join(f"{values.get(name, '')!s:<{width}.{width}}" for name, width in FIELDS.items())
