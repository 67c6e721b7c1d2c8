"""A user of the shims, for their own tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.slurm_shims.shims import ShimSlurm

FIELDS = "ArrayJobID:12,ArrayTaskID:12,State:14,exit_code:8,RestartCnt:4,Reason:30"


class Client:
    """Runs commands as a user does, in the folder `work`."""

    def __init__(self, slurm: ShimSlurm, work: Path) -> None:
        self.slurm = slurm
        self.work = work
        work.mkdir()

    def run(self, *argv: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in argv],
            env=os.environ | self.slurm.environ | environ,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def ok(self, *argv: object, **environ: str) -> str:
        """What a command printed that must go well."""
        done = self.run(*argv, **environ)
        assert done.returncode == 0, done
        return done.stdout

    def bad(self, *argv: object) -> str:
        """What a command complained about that must fail with exit code 1."""
        done = self.run(*argv)
        assert (done.returncode, done.stdout) == (1, ""), done
        return done.stderr

    def script(self, text: str) -> Path:
        """A batch script."""
        path = self.work / f"script{len(list(self.work.glob('script*')))}.sh"
        path.write_text(f"#!/bin/bash\n{text}\n")
        return path

    def submit(self, text: str, *options: object, args: tuple[str, ...] = ()) -> str:
        """Submit a script; its id."""
        return self.ok("sbatch", "--parsable", *options, self.script(text), *args).strip()

    def rows(self, *options: object) -> list[list[str]]:
        """What `squeue` shows of all tasks, as FIELDS."""
        out = self.ok("squeue", "--noheader", "--array", "--states=all", f"--Format={FIELDS}", *options)
        return [line.split() for line in out.splitlines()]

    def sacct(self, *options: object) -> list[list[str]]:
        """What `sacct` shows, as JobID, State, ExitCode."""
        out = self.ok("sacct", "-X", "-n", "-P", "--format=JobID,State,ExitCode", *options)
        return [line.split("|") for line in out.splitlines()]

    def wait_file(self, name: str) -> str:
        """Wait for a script to have written a whole line into a file."""
        path = self.work / name
        self.slurm._wait(lambda: path.exists() and path.read_text().endswith("\n"))
        return path.read_text()
